"""One run without Ray: the same bits however often it was stopped, and all its columns."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from study_maker import design, pool_of

from qualitygate.training import loop, results, study_run
from qualitygate.training.ledger import CHECKPOINTS, Ledger
from qualitygate.training.loop import Photographs
from qualitygate.training.study_plan import Run, plan
from qualitygate.training.study_run import Hooks, Material, Settings

CPU = torch.device("cpu")
SETTINGS = Settings(
    batch_size=8, learning_rate=1e-3, weight_decay=0.0, image_size=32, augment=True, checkpoint_share=1.0
)


class Stopped(Exception):
    pass


@pytest.fixture(scope="module")
def prepared() -> tuple[Run, Material]:
    """A network with dropout and one with batch normalisation would do; this one has dropout."""
    pool = pool_of(60)
    study = plan(pool, design(("squeezenet1_1",), repetitions=1))
    place = np.random.default_rng(0).permutation(len(pool.label))
    labels = np.empty_like(pool.label)
    labels[place] = pool.label
    pixels = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (60, 3, 32, 32), dtype=np.uint8))
    return study.runs[0], Material(
        pool=pool, photographs=Photographs(pixels=pixels, labels=torch.from_numpy(labels)), place=place
    )


def execute(prepared: tuple[Run, Material], folder: Path, settings: Settings = SETTINGS, **hooks: Any) -> Any:
    run, material = prepared
    return study_run.execute(run, settings, material, None, CPU, Ledger(str(folder)), Hooks(**hooks))


def test_a_run_stopped_in_its_second_epoch_ends_with_the_same_bits(
    prepared: tuple[Run, Material], tmp_path: Path
) -> None:
    row, predictions = execute(prepared, tmp_path / "a")
    steps = []

    def stop(rows: int) -> None:
        steps.append(rows)
        if sum(steps) > len(prepared[0].subset.train.rows):
            raise Stopped

    with pytest.raises(Stopped):
        execute(prepared, tmp_path / "b", on_step=stop)
    assert list((tmp_path / "b" / CHECKPOINTS).iterdir())
    epochs: list[int] = []
    resumed, again = execute(prepared, tmp_path / "b", on_epoch=lambda done, seconds: epochs.append(done))
    assert epochs == [2]
    assert again.equals(predictions)
    for name in set(row) - {"seconds"}:
        assert resumed[name] == row[name], name


def test_a_row_has_every_column_but_what_only_the_worker_knows(prepared: tuple[Run, Material], tmp_path: Path) -> None:
    row, predictions = execute(prepared, tmp_path)
    table = results.to_table([row])
    unknown = {name for name in table.column_names if table[name].null_count and "test_rows" in name}
    assert not unknown
    assert set(results.RUNS.names) - set(row) == {"error", "attempts", "hardware", "versions"}
    assert [len(row[name]) for name in ("train_loss", "eval_accuracy")] == [2, 2]
    assert predictions.num_rows == len(prepared[0].tests["all"].rows)


def test_a_training_that_diverges_says_so(prepared: tuple[Run, Material], tmp_path: Path) -> None:
    wild = Settings(batch_size=8, learning_rate=1e30, weight_decay=0.0, image_size=32, augment=False)
    with pytest.raises(loop.Diverged, match="learning-rate"):
        execute(prepared, tmp_path, wild)


def test_checkpoints_take_a_small_share_of_the_time() -> None:
    saving = study_run._Saving(share=0.1)
    assert saving.due()
    saving.timed(lambda: __import__("time").sleep(0.05))
    assert not saving.due()
    saving._last -= 1.0
    assert saving.due()

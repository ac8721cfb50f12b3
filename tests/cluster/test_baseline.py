"""Training on a real Ray: complete, resumable to the same bits, never twice; bad input before anything is made."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import labelled_photographs
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from job_helpers import Silent
from safetensors.torch import load_file

from qualitygate.cluster import baseline
from qualitygate.config import BaselineConfig
from qualitygate.errors import ConfigurationError, Interrupted
from qualitygate.report import classifier as said
from qualitygate.training import data, loop, models, record

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_session")]

COUNT, EPOCHS = 48, 3
FEW = {"architecture": "resnet18", "from_scratch": True, "epochs": EPOCHS, "image_size": 32, "batch_size": 8}


def _config(manifest: Path, output: Path, **options: Any) -> BaselineConfig:
    return BaselineConfig(
        input=str(manifest), output=str(output), **{**FEW, "learning_rate": 1e-3, "eval_fraction": 0.25, **options}
    )


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    path = labelled_photographs.write(folder, COUNT)
    (folder / "p005.png").write_bytes(b"no photograph")
    return path


class _Stops(Silent):
    """Ctrl-C after the first epoch."""

    def advance(self, *, rows: int, errors: int) -> None:
        super().advance(rows=rows, errors=errors)
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def trained(manifest: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: Any) -> baseline.Result:
    """A training that was stopped after its first epoch and went on."""
    config = _config(manifest, tmp_path_factory.mktemp("trained") / "model")
    with pytest.raises(Interrupted, match="run the same command again"):
        baseline.run(config, _Stops())
    assert not (Path(config.output) / "model.json").exists()
    with pytest.raises(ConfigurationError, match=r"holds an unfinished training with seed 0 instead of 1"):
        baseline.run(config.model_copy(update={"seed": 1}), Silent())
    progress = Silent()
    result = baseline.run(config, progress)
    # How far it came before it heard of the stop is a matter of milliseconds.
    assert 1 <= progress.done <= EPOCHS
    assert (progress.total, progress.rows) == (EPOCHS, EPOCHS - progress.done)
    return result


def _straight(output: str, pixels: np.ndarray, labels: list[int], threads: int) -> dict[str, np.ndarray]:
    """The same training by the bare loop: the parameters at its end."""
    subsets = pq.read_table(Path(output) / "training_ids.parquet")["subset"].to_pylist()
    train = np.flatnonzero([subset == "train" for subset in subsets])
    recipe = loop.Recipe(epochs=EPOCHS, batch_size=8, learning_rate=1e-3)
    torch.set_num_threads(threads)
    photographs = loop.Photographs(pixels=torch.from_numpy(pixels.copy()), labels=torch.tensor(labels))
    model = models.build("resnet18", 2, image_size=32, seed=0)
    optimizer = loop.optimizer_of(model, recipe)
    for epoch in range(EPOCHS):
        loop.train_epoch(model, optimizer, photographs, train, recipe, epoch)
    return {name: value.numpy() for name, value in model.state_dict().items()}


def test_a_stopped_training_ends_with_the_bits_of_one_that_ran_through_without_ray_train(
    manifest: Path, trained: baseline.Result, ray_session: Any
) -> None:
    rows = [row for row in data.labelled(str(manifest)).to_pylist() if row["image_id"] != "p005.png"]
    prepared = list(data.prepare(rows, 32))
    assert [one.failure for one in prepared if one.failure] == []
    pixels = np.stack([one.pixels for one in prepared if one.pixels is not None])
    labels = [labelled_photographs.LABELS.index(row["label"]) for row in rows]
    # In a process whose threads don't spin while they wait: here they would, and stall Ray's on the same cores.
    ray_session.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    straight = ray_session.remote(_straight).options(runtime_env={"env_vars": {"OMP_WAIT_POLICY": "PASSIVE"}})
    threads = trained.record["hardware"]["threads"]
    expected = ray_session.get(straight.remote(trained.output, pixels, labels, threads))
    held = load_file(Path(trained.output) / "model.safetensors")
    assert held.keys() == expected.keys()
    assert all(np.array_equal(held[name].numpy(), value) for name, value in expected.items())


def test_a_finished_training_leaves_a_whole_record_and_nothing_else(trained: baseline.Result) -> None:
    folder = Path(trained.output)
    assert sorted(os.listdir(folder)) == [
        "_config.yaml",
        "history.json",
        "model.json",
        "model.safetensors",
        "training_ids.parquet",
    ]
    made = json.loads((folder / "model.json").read_text())
    assert made == trained.record
    assert (made["architecture"], made["classes"], made["image_size"]) == ("resnet18", ["above", "below"], 32)
    assert (made["from_scratch"], made["pretrained"], made["epochs"]) == (True, None, EPOCHS)
    assert made["rows"]["unreadable"] == {"undecodable": 1}
    assert made["rows"]["train"] + made["rows"]["eval"] == COUNT - 1
    assert made["hardware"]["device"] == "cpu"
    ids = pq.read_table(folder / "training_ids.parquet").to_pylist()
    assert "p005.png" not in {row["image_id"] for row in ids}
    by_subset = {subset: {row["group"] for row in ids if row["subset"] == subset} for subset in ("train", "eval")}
    assert by_subset["train"]
    assert by_subset["eval"]
    assert not by_subset["train"] & by_subset["eval"]
    history = json.loads((folder / "history.json").read_text())
    assert [epoch["epoch"] for epoch in history] == [1, 2, 3]
    assert set(history[0]) == {"epoch", "train_loss", "train_accuracy", "eval_loss", "eval_accuracy", "seconds"}
    assert history[1]["train_loss"] < history[0]["train_loss"]
    assert made["accuracy"]["eval"] == history[-1]["eval_accuracy"]
    assert record.load(str(folder), ["below"]).fingerprint == made["model_fingerprint"]
    text = said.of_training(trained)
    assert "1 undecodable" in text
    assert made["model_fingerprint"] in text


def test_a_finished_training_is_not_done_again_and_another_is_refused(
    manifest: Path, trained: baseline.Result, silent: Silent
) -> None:
    output = Path(trained.output)
    before = (output / "model.json").stat().st_mtime_ns
    again = baseline.run(_config(manifest, output), silent)
    assert not again.trained
    assert again.record == trained.record
    assert silent.notes == ["trained already with these photographs and settings; nothing to do"]
    with pytest.raises(ConfigurationError, match=r"holds a training with epochs 3 instead of 4; give another folder"):
        baseline.run(_config(manifest, output, epochs=4), silent)
    with pytest.raises(ConfigurationError, match="holds a training with other photographs or labels"):
        baseline.run(_config(manifest, output, limit=40), silent)
    assert (output / "model.json").stat().st_mtime_ns == before


def test_two_workers_train_one_model_on_the_same_photographs(
    manifest: Path, trained: baseline.Result, tmp_path: Path, silent: Silent
) -> None:
    together = baseline.run(_config(manifest, tmp_path / "model", workers=2), silent)
    assert together.record["hardware"]["workers"] == 2
    assert together.record["rows"] == trained.record["rows"]
    # Not the same bits: each worker normalises by the statistics of its half of a batch.
    assert together.history[1]["train_loss"] < together.history[0]["train_loss"]
    assert together.record["accuracy"]["eval"] >= 0.9
    assert trained.record["accuracy"]["eval"] >= 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"from_scratch": False}, r"no weights for resnet18.*qualitygate weights fetch resnet18.*--from-scratch"),
        ({"architecture": "resnet81"}, r"unknown architecture 'resnet81'; did you mean"),
        ({"architecture": "alexnet"}, r"alexnet can't take photographs of 32 x 32"),
        ({"weights": "x.pth"}, r"--weights and --from-scratch contradict each other"),
        ({"workers": 3}, r"--workers 3 needs as many CPUs, the Ray cluster has 2"),
        ({"limit": 1}, r"all 1 photographs have the label 'above'"),
        ({"device": "cuda"}, r"torch finds no CUDA on the cluster's GPUs; use --device cpu"),
    ],
)
def test_what_cannot_be_trained_is_said_and_leaves_no_model(
    manifest: Path,
    tmp_path: Path,
    silent: Silent,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    message: str,
) -> None:
    if options.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.setenv("QUALITYGATE_WEIGHTS", str(tmp_path / "none"))
    with pytest.raises(ConfigurationError, match=message):
        baseline.run(_config(manifest, tmp_path / "model", **options), silent)
    assert not (tmp_path / "model" / "model.json").exists()


def test_too_many_unreadable_photographs_refuse_the_training(tmp_path: Path, silent: Silent) -> None:
    path = labelled_photographs.write(tmp_path / "in", 16)
    for number in range(3):
        (tmp_path / "in" / f"p{number:03}.png").unlink()
    with pytest.raises(ConfigurationError, match=r"3 of 16 photographs can't be read \(3 missing"):
        baseline.run(_config(path, tmp_path / "model"), silent)
    assert not (tmp_path / "model" / baseline.WORK).exists()

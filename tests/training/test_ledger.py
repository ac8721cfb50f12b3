"""The ledger: whole files or none, nothing finished is overwritten, checkpoints that are merely convenient."""

from pathlib import Path
from typing import Any

import pytest
import torch
from study_maker import design, pool_of, predicted_rows

from qualitygate.errors import ConfigurationError
from qualitygate.tables import storage
from qualitygate.training import results
from qualitygate.training.ledger import CHECKPOINTS, FOLDER, Ledger
from qualitygate.training.study_plan import plan


@pytest.fixture(scope="module")
def ended() -> tuple[dict[str, Any], Any]:
    pool = pool_of()
    study = plan(pool, design(repetitions=1))
    return predicted_rows(study.runs[0], study, pool, 1.0)


def test_what_was_written_is_read(tmp_path: Path, ended: tuple[dict[str, Any], Any]) -> None:
    row, predictions = ended
    ledger = Ledger(str(tmp_path))
    assert ledger.read([row["run_id"]]) == {}
    assert ledger.write(row, predictions)
    found = ledger.read(["other", row["run_id"]])
    assert list(found) == [row["run_id"]]
    entry = found[row["run_id"]]
    assert entry.predictions is not None
    assert entry.predictions.equals(predictions)
    assert results.to_table([entry.row]).equals(results.to_table([row]))


def test_a_finished_run_is_never_overwritten(tmp_path: Path, ended: tuple[dict[str, Any], Any]) -> None:
    row, predictions = ended
    ledger = Ledger(str(tmp_path))
    ledger.write(row, predictions)
    file = tmp_path / FOLDER / f"{row['run_id']}.parquet"
    before = file.read_bytes()
    assert not ledger.write({**row, "seconds": 99.0}, predictions)
    ledger.write_failure({**row, **results.failed("late")})
    assert file.read_bytes() == before
    assert [one.name for one in (tmp_path / FOLDER).iterdir()] == [file.name]


def test_a_failure_is_kept_until_the_run_ends_well(tmp_path: Path, ended: tuple[dict[str, Any], Any]) -> None:
    row, predictions = ended
    ledger, run_id = Ledger(str(tmp_path)), row["run_id"]
    for error in ("first", "second"):
        ledger.write_failure({"run_id": run_id, **results.failed(error)})
    entry = ledger.read([run_id])[run_id]
    assert entry.predictions is None
    assert entry.row["error"] == "second"
    ledger.write(row, predictions)
    assert ledger.read([run_id])[run_id].row["status"] == results.OK
    assert len(list((tmp_path / FOLDER).iterdir())) == 1


def test_nothing_is_left_where_the_disk_is_full(
    tmp_path: Path, ended: tuple[dict[str, Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    row, predictions = ended

    def full(uri: str, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        Ledger(str(tmp_path)).write(row, predictions)
    assert list((tmp_path / FOLDER).iterdir()) == []


def test_a_checkpoint_that_outgrows_the_disk_says_so_and_leaves_the_one_before(tmp_path: Path) -> None:
    import resource

    ledger = Ledger(str(tmp_path))
    ledger.save_checkpoint("run", {"epoch": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            ledger.save_checkpoint("run", {"epoch": 2, "model": {"weight": torch.zeros(1 << 20)}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert ledger.load_checkpoint("run") == {"epoch": 1}
    assert [path.name for path in (tmp_path / CHECKPOINTS).iterdir()] == ["run.pt"]


@pytest.mark.parametrize("damage", [b"", b"no parquet", None])
def test_a_damaged_entry_is_said_with_the_remedy(
    tmp_path: Path, ended: tuple[dict[str, Any], Any], damage: bytes | None
) -> None:
    row, predictions = ended
    ledger = Ledger(str(tmp_path))
    ledger.write(row, predictions)
    file = tmp_path / FOLDER / f"{row['run_id']}.parquet"
    file.write_bytes(file.read_bytes()[:-20] if damage is None else damage)
    with pytest.raises(ConfigurationError, match="delete it and run the same command again"):
        ledger.read([row["run_id"]])


def test_a_checkpoint_comes_back_and_a_torn_one_counts_as_none(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    assert ledger.load_checkpoint("a") is None
    content = {"epoch": 3, "model": {"weight": torch.arange(4.0)}, "history": [{"train_loss": 0.5}]}
    ledger.save_checkpoint("a", content)
    found = ledger.load_checkpoint("a")
    assert found is not None
    assert found["epoch"] == 3
    assert torch.equal(found["model"]["weight"], content["model"]["weight"])
    file = tmp_path / CHECKPOINTS / "a.pt"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert ledger.load_checkpoint("a") is None
    ledger.delete_checkpoint("a")
    ledger.delete_checkpoint("a")
    assert not list(file.parent.iterdir())

"""Old nights lose what is heavy, and nothing that later nights rest on."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from qualitygate.nightly import housekeeping, record
from qualitygate.nightly.record import Night
from qualitygate.tables import storage

pytestmark = pytest.mark.filterwarnings("error")

NOW = datetime(2026, 11, 23, 2, 0, tzinfo=UTC)
KEPT = {"night.json", "audit_sample.parquet", "_config.yaml", "earlier/1.json", "of somebody else.parquet"}
HEAVY = {
    "report.html",
    "gate/gate.json",
    "gate/calibration.parquet",
    "labelled/predictions.parquet",
    "labelled.parquet",
    "manifest.parquet",
    "manifest.changes.parquet",
    "failing.parquet",
    "canary/manifest.parquet",
    "earlier/1.changes.parquet",
}


def _night(output: Path, name: str, days: float, state: str = "promoted") -> Night:
    """A night that ended so many days ago, with all that there may be in its folder."""
    ended = (NOW - timedelta(days=days)).isoformat(timespec="seconds")
    finished = None if state == "running" else ended
    made = Night(night=name, started=ended, finished=finished, state=state)  # type: ignore[arg-type]
    for file in KEPT | HEAVY:
        path = Path(record.place(str(output), name, *file.split("/")))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    record.write(str(output), made)
    return made


def _left(output: Path, name: str) -> set[str]:
    folder = Path(record.place(str(output), name))
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def _remove(output: Path, nights: list[Night], days: int = 90) -> int:
    return housekeeping.remove_old(str(output), nights, nights[-1], days, NOW)


@pytest.mark.parametrize("state", ["promoted", "kept", "refused", "deadline"])
def test_an_old_night_keeps_its_records_and_its_sample(tmp_path: Path, state: str) -> None:
    nights = [_night(tmp_path, "old", 90.1, state), _night(tmp_path, "young", 89.9), _night(tmp_path, "tonight", 0)]
    assert _remove(tmp_path, nights) == len(HEAVY)
    assert _left(tmp_path, "old") == KEPT
    assert _left(tmp_path, "young") == _left(tmp_path, "tonight") == KEPT | HEAVY
    assert _remove(tmp_path, nights) == 0
    assert record.read(str(tmp_path), "old") == nights[0]


def test_what_somebody_may_have_to_look_at_stays(tmp_path: Path) -> None:
    nights = [
        _night(tmp_path, "resolved", 300, "refused"),
        _night(tmp_path, "good", 200),
        _night(tmp_path, "unresolved", 150, "refused"),
        _night(tmp_path, "killed", 140, "running"),
        _night(tmp_path, "tonight", 130, "refused"),
    ]
    # A record that can't be read is none of the nights that are known.
    _night(tmp_path, "damaged", 250)
    assert _remove(tmp_path, nights) == 2 * len(HEAVY)
    kept = {name for name in record.names(str(tmp_path)) if _left(tmp_path, name) == KEPT | HEAVY}
    assert kept == {"unresolved", "killed", "tonight", "damaged"}


def test_tonight_stays_however_long_ago_it_began(tmp_path: Path) -> None:
    nights = [_night(tmp_path, "good", 100), _night(tmp_path, "done again", 99)]
    assert _remove(tmp_path, nights) == len(HEAVY)
    assert _left(tmp_path, "done again") == KEPT | HEAVY


def test_without_old_nights_nothing_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("nothing is to be removed")

    monkeypatch.setattr(storage, "everything", refuse)
    assert _remove(tmp_path, [_night(tmp_path, "young", 1), _night(tmp_path, "tonight", 0)]) == 0

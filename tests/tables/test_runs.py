"""The records of earlier runs: which of them was the last good one."""

import json
import os
from datetime import datetime, timedelta
from pathlib import Path

from qualitygate.tables import runs


def test_nights_and_runs_by_hand_are_put_in_order_by_time(tmp_path: Path) -> None:
    """A night's name stands behind every date in the alphabet, and fifty old nights would hide the run of today."""
    history = tmp_path / "_history"
    history.mkdir()

    def write(name: str, started: str) -> None:
        record = {"state": "done", "started": f"{started}T00:00:00+00:00", "seconds": 60.0}
        (history / f"{name}.json").write_text(json.dumps(record))
        second = datetime.fromisoformat(started).timestamp()
        os.utime(history / f"{name}.json", (second, second))

    for day in range(60):
        date = f"{datetime(2026, 1, 1) + timedelta(days=day):%Y-%m-%d}"
        write(f"night-{date}", date)
    write("20260401T000000Z-x", "2026-04-01")
    assert runs.last_good(str(tmp_path)) == datetime.fromisoformat("2026-04-01T00:01:00+00:00")
    write("night-again", "2026-05-01")
    assert runs.last_good(str(tmp_path)) == datetime.fromisoformat("2026-05-01T00:01:00+00:00")

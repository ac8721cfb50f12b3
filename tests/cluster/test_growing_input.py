"""A listing that takes long: the first photographs are scored before the last are listed."""

import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from job_helpers import Silent, write_photographs

import qualitygate
from qualitygate.cluster import planning, scoring, scoring_input
from qualitygate.config import ScoreConfig
from qualitygate.tables import growing, scores

pytestmark = pytest.mark.cluster


def _slow(folder: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Half of the photographs are listed at once, the others when rows are committed; returns the rows seen then."""
    seen: list[int] = []
    listed = growing.list_images

    def later(*arguments: object) -> Iterator[pa.Table]:
        tables = listed(*arguments)  # type: ignore[arg-type]
        assert tables is not None
        table = pa.concat_tables(list(tables))
        half = table.num_rows // 2
        yield table.slice(0, half)
        until = time.monotonic() + 120
        while time.monotonic() < until:
            there = scores.open_table(str(output))
            if there is not None and there.count():
                seen.append(there.count())
                break
            time.sleep(0.1)
        yield table.slice(half)

    monkeypatch.setattr(growing, "list_images", later)
    monkeypatch.setattr(growing, "_SECONDS_A_FILE", 0.0)
    monkeypatch.setattr(scoring_input, "PATIENCE_S", 0.5)
    return seen


def test_the_first_photographs_are_scored_before_the_last_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = write_photographs(tmp_path / "in", 12)
    seen = _slow(tmp_path / "in", tmp_path / "out", monkeypatch)
    config = ScoreConfig(
        input=str(tmp_path / "in"), output=str(tmp_path / "out"), metrics=("lapm",), ray_address="local"
    )
    progress = Silent()
    whole: list[int] = []
    compiled = planning.compiled
    monkeypatch.setattr(planning, "compiled", lambda plan, pool, rows: whole.append(rows) or compiled(plan, pool, rows))
    stats = scoring.run(config, progress).stats
    assert seen == [6]
    # Whether compiling pays is seen by all that is known, not by a portion.
    assert whole == [6, 12]
    assert stats["manifest"]["by_status"] == {"ok": 12}
    assert stats["scored"]["rows"] == 12
    assert any("while the listing goes on" in note for note in progress.notes)
    rows = scores.dataset(scores.existing_table(str(tmp_path / "out"))).to_table().to_pylist()
    assert sorted(row["image_id"] for row in rows) == names
    alone = qualitygate.score([tmp_path / "in" / name for name in names], metrics=["lapm"]).to_pylist()
    assert {row["image_id"]: row["lapm"] for row in rows} == {Path(row["uri"]).name: row["lapm"] for row in alone}
    # Nothing is left to do, however the listing comes.
    assert scoring.run(config, Silent()).stats["scored"]["rows"] == 0

"""Compaction and vacuum: fewer files, the same rows, and a run at work is neither stopped nor robbed."""

import json
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from qualitygate.errors import AuditFailed, ConfigurationError, Superseded
from qualitygate.tables import scores, upkeep

COMMITS = 12


def _rows(writer: scores.Writer, ids: list[str], value: float = 1.0) -> pa.Table:
    row = {
        "status": "ok",
        "attempts": 1,
        "run_id": "r",
        "scored_at": datetime(2026, 1, 1, tzinfo=UTC),
        "lapv": value,
        "lapv_state": "ok",
        "lapv_fingerprint": "f1",
    }
    return pa.Table.from_pylist([row | {"image_id": image_id} for image_id in ids], schema=writer.schema)


def _stored(output: str) -> dict[str, float]:
    table = pa.table(scores.dataset(scores.existing_table(output)).to_table())
    ids = table["image_id"].to_pylist()
    assert len(ids) == len(set(ids))
    return dict(zip(ids, table["lapv"].to_pylist(), strict=True))


@pytest.fixture
def output(tmp_path: Path) -> str:
    return str(tmp_path / "out")


@pytest.fixture
def writer(output: str) -> scores.Writer:
    """A run that has committed twelve times."""
    made = scores.Writer(output, ["lapv"], "run-1")
    for number in range(COMMITS):
        made.commit(_rows(made, [f"a{number:02}", f"b{number:02}"], float(number)), _rows(made, []))
    return made


def _files(output: str, suffix: str = ".parquet") -> list[Path]:
    return sorted(path for path in (Path(output) / "scores").iterdir() if path.name.endswith(suffix))


def _age(path: Path, days: float) -> None:
    moment = time.time() - days * 86400
    os.utime(path, (moment, moment))


def test_compaction_makes_one_file_of_many_and_keeps_every_row(output: str, writer: scores.Writer) -> None:
    before = _stored(output)
    done = upkeep.compact(output)
    assert (done.files_before, done.files_after, done.rows) == (COMMITS, 1, 2 * COMMITS)
    assert done.bytes_after < done.bytes_before
    assert done.checkpoint
    assert _stored(output) == before
    assert len(scores.existing_table(output).file_uris()) == 1
    again = upkeep.compact(output)
    assert (again.files_before, again.files_after, again.rows, again.version) == (1, 1, 0, done.version)


def test_a_target_keeps_large_files_apart(output: str, writer: scores.Writer) -> None:
    one = _files(output)[0].stat().st_size
    done = upkeep.compact(output, target_bytes=3 * one + 1)
    assert done.files_before > done.files_after > 1
    assert len(_stored(output)) == 2 * COMMITS


def test_a_run_goes_on_after_compaction_and_vacuum(output: str, writer: scores.Writer) -> None:
    upkeep.compact(output)
    writer.commit(_rows(writer, ["new"]), _rows(writer, []))
    upkeep.compact(output)
    upkeep.vacuum(output)
    writer.commit(_rows(writer, []), _rows(writer, ["a00", "new"], 9.0))
    stored = _stored(output)
    assert len(stored) == 2 * COMMITS + 1
    assert (stored["a00"], stored["new"], stored["b00"]) == (9.0, 9.0, 0.0)
    writer.check_current()


def test_a_claim_beside_a_compaction_still_ends_the_older_run(output: str, writer: scores.Writer) -> None:
    upkeep.compact(output)
    newer = scores.Writer(output, ["lapv"], "run-2")
    newer.commit(_rows(newer, ["n1"]), _rows(newer, []))
    upkeep.compact(output)
    for new, replaced in ((["z"], []), ([], ["a00"])):
        with pytest.raises(Superseded):
            writer.commit(_rows(writer, new), _rows(writer, replaced, 9.0))
    newer.commit(_rows(newer, ["n2"]), _rows(newer, []))
    stored = _stored(output)
    assert set(stored) - {"n1", "n2"} == {f"{letter}{number:02}" for letter in "ab" for number in range(COMMITS)}
    assert stored["a00"] == 0.0


def test_an_epoch_outlives_checkpoints(output: str, writer: scores.Writer) -> None:
    assert upkeep.compact(output).checkpoint
    assert scores.existing_table(output).transaction_version(scores.APPLICATION) == writer.epoch
    assert scores.Writer(output, ["lapv"], "run-2").epoch == writer.epoch + 1


def test_what_is_no_upkeep_still_ends_a_run(output: str, writer: scores.Writer) -> None:
    scores.existing_table(output).delete("image_id = 'a00'")
    with pytest.raises(Superseded):
        writer.commit(_rows(writer, ["z"]), _rows(writer, []))


def test_compacting_while_a_run_commits_loses_and_doubles_nothing(output: str, writer: scores.Writer) -> None:
    ended = threading.Event()
    compacted: list[Any] = []

    def keep_compacting() -> None:
        while not ended.is_set():
            try:
                compacted.append(upkeep.compact(output))
            except Superseded as error:
                compacted.append(error)

    with ThreadPoolExecutor(1) as pool:
        beside = pool.submit(keep_compacting)
        try:
            for number in range(30):
                writer.commit(
                    _rows(writer, [f"n{number:02}"]), _rows(writer, [f"a{number % COMMITS:02}"], 100.0 + number)
                )
        finally:
            ended.set()
        beside.result()
    assert any(not isinstance(one, Superseded) and one.files_after < one.files_before for one in compacted)
    stored = _stored(output)
    assert len(stored) == 2 * COMMITS + 30
    assert [stored[f"a{number:02}"] for number in range(COMMITS)] == [
        100.0 + max(one for one in range(30) if one % COMMITS == number) for number in range(COMMITS)
    ]


def test_compaction_gives_way_to_a_run_that_replaces_the_same_rows(
    output: str, writer: scores.Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: Callable[[str], Any] = scores.existing_table
    values = iter(range(100))

    def then_replaced(output: str) -> Any:
        # As seen by the compaction; the run commits before it does.
        table = opened(output)
        writer.commit(_rows(writer, []), _rows(writer, ["a00"], 50.0 + next(values)))
        return table

    monkeypatch.setattr(upkeep, "_PAUSE_S", 0.0)
    monkeypatch.setattr(scores, "existing_table", then_replaced)
    with pytest.raises(Superseded, match=r"5 times over; nothing was changed, compact again"):
        upkeep.compact(output)
    monkeypatch.undo()
    assert _stored(output)["a00"] == 54.0
    assert len(_stored(output)) == 2 * COMMITS


def test_rows_that_compaction_changed_would_be_noticed(
    output: str, writer: scores.Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = upkeep._content
    monkeypatch.setattr(upkeep, "_content", lambda table, files: (found(table, files)[0], len(files)))
    with pytest.raises(AuditFailed, match=rf"changed rows .* at version {COMMITS + 1}"):
        upkeep.compact(output)


def test_vacuum_removes_what_no_version_of_the_last_days_needs(output: str, writer: scores.Writer) -> None:
    before = _stored(output)
    upkeep.compact(output)
    strange, fresh = Path(output) / "scores" / "orphan.parquet", Path(output) / "scores" / "just-written.parquet"
    for path in (strange, fresh):
        path.write_bytes(b"x" * 100)
    _age(strange, 8)
    half = Path(output) / "deeper" / "_writing-7-x"
    half.parent.mkdir()
    (half.parent / "_writing-8-x").write_bytes(b"young")
    half.write_bytes(b"half")
    _age(half, 8)
    for epoch, days in ((0, 0.0), (1, 8), (2, 8)):
        rows = Path(output) / "_runs" / str(epoch) / "0.parquet"
        rows.parent.mkdir(parents=True)
        rows.write_bytes(b"rows")
        _age(rows, days)
    (rows.parent / "1.parquet").write_bytes(b"at work")
    looked = upkeep.vacuum(output, dry_run=True)
    # What compaction replaced is too young to go.
    assert (looked.files, looked.bytes, looked.runs, looked.leftovers) == (1, 100, 1, 1)
    assert strange.exists()
    assert half.exists()
    done = upkeep.vacuum(output)
    assert (done.files, done.bytes, done.runs, done.leftovers) == (1, 100, 1, 1)
    assert not strange.exists()
    assert fresh.exists()
    assert not half.exists()
    # Of the run that has the table, and may be at work for weeks, nothing goes.
    assert sorted(str(path.relative_to(Path(output) / "_runs")) for path in (Path(output) / "_runs").glob("*/*")) == [
        "1/0.parquet",
        "2/0.parquet",
        "2/1.parquet",
    ]
    assert len(_files(output)) == COMMITS + 2
    assert _stored(output) == before


def test_vacuum_takes_files_that_were_replaced_long_ago(output: str, writer: scores.Writer) -> None:
    upkeep.compact(output)
    log = sorted((Path(output) / "scores" / "_delta_log").glob("*"))
    for path in log:
        if path.suffix == ".json" and b'"remove"' in path.read_bytes():
            actions = [json.loads(line) for line in path.read_text().splitlines()]
            for action in actions:
                if "remove" in action:
                    action["remove"]["deletionTimestamp"] -= 8 * 86_400_000
            path.write_text("\n".join(json.dumps(action) for action in actions) + "\n")
        elif "checkpoint" in path.name:
            path.unlink()
    done = upkeep.vacuum(output, timedelta(days=7))
    assert done.files == COMMITS
    assert len(_files(output)) == 1
    assert len(_stored(output)) == 2 * COMMITS


def test_a_short_memory_is_refused(output: str, writer: scores.Writer) -> None:
    with pytest.raises(ConfigurationError, match="keep one day at least"):
        upkeep.vacuum(output, timedelta(hours=3))
    with pytest.raises(ConfigurationError, match="holds no scores"):
        upkeep.compact(f"{output}-elsewhere")

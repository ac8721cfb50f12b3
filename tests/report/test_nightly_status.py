"""The status of a nightly output: the last nights, the gate in force, the lock, and how fresh it is."""

import json
import re
import socket
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import nights_maker as maker
import pytest

from qualitygate import cli
from qualitygate.nightly import record, standing, trend
from qualitygate.report import status
from qualitygate.report.status import Part, Status

NIGHTS = 7


def _at(number: int, *, hours: float = 0) -> datetime:
    """So long after a night ended."""
    return datetime.fromisoformat(maker.moment(number, seconds=1200)) + timedelta(hours=hours)


def _read(folder: Path, now: datetime, **more: Any) -> tuple[Status, Part]:
    found = status.read(str(folder), now=now, before=[standing.nightly], **more)
    return found, found.parts[0]


def _call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["status", *arguments])
    return int(ended.value.code or 0)


def _scored(folder: Path, run_id: str, state: str, number: int) -> None:
    stats = {"run_id": run_id, "state": state, "started": maker.moment(number), "seconds": 100.0}
    (folder / "_stats.json").write_text(json.dumps(stats | {"manifest": {"rows": 9, "present": 7}}))


def test_a_good_night_is_told_with_its_gate_and_its_lock(tmp_path: Path) -> None:
    maker.write(tmp_path, maker.history(NIGHTS))
    now = _at(6, hours=5)
    maker.lock(tmp_path, maker.name(6), until=now, released=True)
    found, part = _read(tmp_path, now)
    assert found.problems == ()
    assert (part.verb, part.good) == ("nightly", _at(6))
    assert part.facts["last_good"] == {"night": "2026-01-11", "ended": "2026-01-11T02:20:00+00:00"}
    assert [night["state"] for night in part.facts["nights"]] == [night.state for night in maker.history(NIGHTS)]
    gate = part.facts["gate"]
    assert (gate["id"], gate["night"], gate["by"]) == (maker.gate(6), "2026-01-10", "quality@node-7")
    assert part.facts["lock"]["held"] is False
    text = status.as_text(found)
    assert "2026-01-11: kept, ended 5 h ago" in text
    assert f"2026-01-09: refused, ended 2.21 days ago: {maker.DRIFT_CLAUSE}\n" in text
    assert f"gate in force: {maker.gate(6)} since 2026-01-10T02:20:00+00:00" in text
    assert "by night 2026-01-10 (promote: every guardrail held)" in text
    assert "lock: free; the last was node-7" in text
    assert "last good night: 2026-01-11" in text
    json.loads(status.as_json(found))


def test_a_night_that_was_refused_last_is_a_problem_with_its_reasons(tmp_path: Path) -> None:
    maker.write(tmp_path, [maker.night(0, "promoted", None, 1), maker.night(1, "refused", 1, 1)])
    found, part = _read(tmp_path, _at(1, hours=1))
    (problem,) = found.problems
    assert problem == (
        f"nightly: night 2026-01-06 was refused: {maker.DRIFT_CLAUSE}; whole in nights/2026-01-06/night.json"
    )
    # For programs it is whole here, too.
    assert part.facts["nights"][-1]["reasons"] == [maker.DRIFT]
    assert part.good == _at(0)


def test_many_long_reasons_are_told_in_short(tmp_path: Path) -> None:
    reasons = tuple(f"reason {number} {'is long ' * 60}; and {'longer ' * 60}" for number in range(9))
    nights = [maker.night(0, "promoted", None, 1), maker.night(1, "refused", 1, 1, reasons=reasons)]
    maker.write(tmp_path, nights)
    found, _ = _read(tmp_path, _at(1, hours=1))
    (problem,) = found.problems
    for text in (problem, next(line for line in status.as_text(found).splitlines() if "2026-01-06: refused" in line)):
        assert "reason 2 is long" in text
        assert "reason 3" not in text
        assert "; and 6 more" in text
        assert "longer" not in text
        assert len(text) < 700


@pytest.mark.parametrize(
    ("minutes", "released", "night", "problem"),
    [
        (5, False, maker.name(1), None),
        (-5, False, maker.name(1), "nobody holds its lock: it was killed; see its log"),
        (-5, True, maker.name(1), "night 2026-01-06 failed or was stopped; see its log"),
        (5, False, maker.name(0), "has begun and not ended, and is not at work"),
        (None, False, "", "has begun and not ended, and is not at work"),
    ],
)
def test_a_night_that_has_not_ended_is_a_problem_once_nobody_is_at_work(
    tmp_path: Path, minutes: int | None, released: bool, night: str, problem: str | None
) -> None:
    nights = [maker.night(0, "promoted", None, 1), maker.running(1, 1)]
    # The table is made at a night's end: it has the first night alone.
    maker.write(tmp_path, nights, table=False)
    trend.write(str(tmp_path), nights[:1])
    now = _at(1)
    if minutes is not None:
        maker.lock(tmp_path, night, until=now + timedelta(minutes=minutes), released=released)
    found, part = _read(tmp_path, now)
    assert part.facts["nights"][-1]["state"] == "running"
    if problem is None:
        assert found.problems == ()
        assert part.facts["lock"]["held"] is True
        assert "lock: held by node-7 since 2026-01-05T02:00:00+00:00, night 2026-01-06; expires in 300 s" in " ".join(
            part.lines
        )
    else:
        assert problem in found.problems[0]
        assert "it goes on behind its step 'canary'" in found.problems[0]


def test_a_night_that_is_done_again_is_read_from_its_own_record(tmp_path: Path) -> None:
    nights = [maker.night(0, "promoted", None, 1), maker.night(1, "refused", 1, 1)]
    maker.write(tmp_path, nights)
    record.write(str(tmp_path), maker.running(0, 1))
    maker.lock(tmp_path, maker.name(0), until=_at(1, hours=1))
    _, part = _read(tmp_path, _at(1))
    assert [night["state"] for night in part.facts["nights"]] == ["running", "refused"]


def test_a_process_of_this_machine_that_has_ended_holds_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker.write(tmp_path, [maker.running(0, None)])
    host = socket.gethostname()
    monkeypatch.setattr(standing.lock, "_host", lambda: host)
    maker.lock(tmp_path, maker.name(0), until=_at(0, hours=1), host=host)
    found, part = _read(tmp_path, _at(0))
    assert part.facts["lock"]["held"] is False
    assert "lock: its process has ended; it was" in status.as_text(found)
    assert len(found.problems) == 1


@pytest.mark.parametrize(
    ("state", "fresh"), [("promoted", True), ("kept", True), ("refused", False), ("deadline", False)]
)
def test_only_nights_that_ended_in_order_are_fresh(tmp_path: Path, state: str, fresh: bool) -> None:
    maker.write(tmp_path, [maker.night(0, "kept", 1, 1), maker.night(1, state, 1, 1)])
    # The scores are as fresh as can be, which is not enough.
    _scored(tmp_path, "night-2026-01-06", "done", 1)
    found, _ = _read(tmp_path, _at(1, hours=3), max_age_hours=26)
    late = [problem for problem in found.problems if "--max-age-hours" in problem]
    assert late == ([] if fresh else ["the last good run ended 27 h ago, longer than --max-age-hours 26"])


def test_no_good_night_is_never_fresh(tmp_path: Path) -> None:
    maker.write(tmp_path, [maker.night(0, "deadline", None, None)])
    _scored(tmp_path, "20260105T010000Z-aaaaaa", "done", 0)
    found, _ = _read(tmp_path, _at(0), max_age_hours=26)
    assert found.problems == ("no run has ended well yet (--max-age-hours 26)",)
    assert "no good night yet" in status.as_text(found)
    assert "gate in force: none" in status.as_text(found)


def test_the_scores_of_a_night_are_the_nights_business_and_others_are_not(tmp_path: Path) -> None:
    maker.write(tmp_path, [maker.night(0, "deadline", None, None)])
    _scored(tmp_path, "night-2026-01-05", "interrupted", 0)
    found, _ = _read(tmp_path, _at(0))
    assert found.problems == ()
    assert "run night-2026-01-05: interrupted" in status.as_text(found)
    _scored(tmp_path, "20260105T030000Z-aaaaaa", "interrupted", 0)
    found, _ = _read(tmp_path, _at(0))
    assert "was interrupted, 7 of 9 rows are there" in found.problems[0]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("_nightly_lock.json", "{", "the lock .* is damaged"),
        ("nights.parquet", "{", "is no table of nights; delete it"),
        ("gates/history.json", "{", "is damaged"),
        (f"nights/{maker.name(1)}/night.json", "{", "is damaged"),
    ],
)
def test_what_is_damaged_is_a_problem_beside_the_rest(tmp_path: Path, name: str, content: str, problem: str) -> None:
    maker.write(tmp_path, [maker.night(0, "promoted", None, 1), maker.night(1, "kept", 1, 1)])
    _scored(tmp_path, "night-2026-01-06", "done", 1)
    (tmp_path / name).write_text(content)
    found, part = _read(tmp_path, _at(1))
    assert part.verb == "nightly"
    (said,) = found.problems
    assert re.search(rf"^nightly: .*{problem}", said)
    assert [one.verb for one in found.parts] == ["nightly", "score"]


def test_reasons_come_without_credentials(tmp_path: Path) -> None:
    maker.write(tmp_path, [maker.night(0, "refused", None, None, reasons=(maker.HOSTILE,))])
    found, _ = _read(tmp_path, _at(0))
    for text in (status.as_text(found), status.as_json(found)):
        assert "user:pass" not in text
        assert "X-Amz-Signature" not in text


def test_the_command_knows_nights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = maker.night(0, "kept", None, None)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    maker.write(tmp_path, [replace(made, started=now, finished=now)])
    assert _call(str(tmp_path), "--max-age-hours", "1", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["parts"][0]["verb"] == "nightly"
    maker.write(tmp_path, [maker.night(0, "refused", None, None)])
    assert _call(str(tmp_path)) == 1
    assert "NOT WELL" in capsys.readouterr().out


def test_a_folder_without_nights_has_no_such_part(tmp_path: Path) -> None:
    _scored(tmp_path, "20260105T030000Z-aaaaaa", "done", 0)
    _, part = _read(tmp_path, _at(0))
    assert part.verb == "score"

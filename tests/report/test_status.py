"""The status of a folder: what is there, whether it is well, and how fresh."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import artefacts_maker
import pyarrow as pa
import pytest

from qualitygate import cli
from qualitygate.errors import ConfigurationError
from qualitygate.report import status
from qualitygate.tables import scores

ENDED = datetime(2026, 3, 2, 6, 1, 40, tzinfo=UTC)


def _stats(folder: Path, run_id: str = "20260302T060000Z-aaaaaa", **more: Any) -> None:
    content = {
        "run_id": run_id,
        "state": "done",
        "started": "2026-03-02T06:00:00+00:00",
        "seconds": 100.0,
        "scored": {"rows": 5},
        "manifest": {"rows": 7, "present": 7, "by_status": {"ok": 6, "error": 1}, "by_code": {"missing": 1}},
        **more,
    }
    (folder / "_history").mkdir(parents=True, exist_ok=True)
    for path in (folder / "_stats.json", folder / "_history" / f"{run_id}.json"):
        path.write_text(json.dumps(content))


def _table(folder: Path, run_id: str, commits: int = 2) -> None:
    writer = scores.Writer(str(folder), ["lapv"], run_id)
    for number in range(commits):
        row = {"image_id": f"{run_id}-{number}", "status": "ok", "attempts": 1, "run_id": run_id, "scored_at": 0}
        writer.commit(pa.Table.from_pylist([row], schema=writer.schema), writer.schema.empty_table())


def _call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["status", *arguments])
    return int(ended.value.code or 0)


def test_a_good_run_is_told_in_a_few_lines(tmp_path: Path) -> None:
    _stats(tmp_path)
    _table(tmp_path, "20260302T060000Z-aaaaaa")
    found = status.read(str(tmp_path), now=ENDED + timedelta(hours=3), max_age_hours=3)
    assert found.problems == ()
    (part,) = found.parts
    assert part.good == ENDED
    assert part.facts["by_status"] == {"ok": 6, "error": 1}
    table = part.facts["table"]
    assert (table["rows"], table["files"], table["version"]) == (2, 2, 3)
    assert table["bytes"] == sum(path.stat().st_size for path in (tmp_path / "scores").glob("*.parquet"))
    assert "unfinished" not in part.facts
    text = status.as_text(found)
    assert "run 20260302T060000Z-aaaaaa: done, ended 3 h ago, 5 rows scored by it" in text
    assert "7 rows, 6 ok, 1 error" in text
    assert "codes: 1 missing" in text


def test_a_run_that_is_too_old_is_a_problem(tmp_path: Path) -> None:
    _stats(tmp_path)
    found = status.read(str(tmp_path), now=ENDED + timedelta(hours=3, seconds=1), max_age_hours=3)
    (problem,) = found.problems
    assert "the last good run ended 3 h ago, longer than --max-age-hours 3" in problem


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("interrupted", "was interrupted, 7 of 7 rows are there; run the same command again"),
        ("error_budget_exceeded", "had too many errors"),
        ("odd", "ended as 'odd'"),
    ],
)
def test_a_run_that_failed_is_a_problem_and_the_good_one_before_is_remembered(
    tmp_path: Path, state: str, message: str
) -> None:
    _stats(tmp_path)
    _stats(tmp_path, "20260303T060000Z-bbbbbb", state=state, started="2026-03-03T06:00:00+00:00")
    found = status.read(str(tmp_path), now=ENDED + timedelta(hours=30), max_age_hours=26)
    assert message in found.problems[0]
    assert "ended 30 h ago" in found.problems[1]
    assert found.parts[0].facts["last_good"] == "2026-03-02T06:01:40+00:00"


def test_a_run_that_never_ended_is_seen_in_the_table(tmp_path: Path) -> None:
    _table(tmp_path, "20260301T060000Z-killed")
    found = status.read(str(tmp_path))
    assert found.problems == ()
    assert found.parts[0].facts["unfinished"]["run_id"] == "20260301T060000Z-killed"
    assert "it is at work, or was killed" in status.as_text(found)
    assert status.read(str(tmp_path), max_age_hours=1).problems == ("no run has ended well yet (--max-age-hours 1)",)
    _stats(tmp_path, "20260302T060000Z-aaaaaa")
    assert "unfinished" in status.read(str(tmp_path)).parts[0].facts
    _table(tmp_path, "20260302T060000Z-aaaaaa")
    assert "unfinished" not in status.read(str(tmp_path)).parts[0].facts


def test_many_small_files_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _table(tmp_path, "r", commits=3)
    assert "compact" not in status.as_text(status.read(str(tmp_path)))
    monkeypatch.setattr(status, "_MANY_FILES", 3)
    assert "3 of the files are small: 'qualitygate compact'" in status.as_text(status.read(str(tmp_path)))


def test_the_command_speaks_to_programs_and_probes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _call(str(tmp_path)) == 2
    assert "holds none of gate.json" in capsys.readouterr().err
    _stats(tmp_path, started=datetime.now(UTC).isoformat())
    assert _call(str(tmp_path), "--json", "--max-age-hours", "1") == 0
    content = json.loads(capsys.readouterr().out)
    assert (content["well"], content["problems"], content["parts"][0]["verb"]) == (True, [], "score")
    _stats(tmp_path)
    assert _call(str(tmp_path), "--max-age-hours", "1") == 1
    assert "NOT WELL" in capsys.readouterr().out


def test_a_broken_record_is_a_problem_beside_the_rest(tmp_path: Path) -> None:
    _stats(tmp_path)
    (tmp_path / "study.json").write_text("{")
    found = status.read(str(tmp_path))
    assert [part.verb for part in found.parts] == ["score", "study"]
    assert "is no JSON" in found.problems[0]


def test_every_kind_of_output_has_its_line(tmp_path: Path) -> None:
    made = {
        "calibrate": artefacts_maker.calibration(tmp_path / "gate"),
        "robustness": artefacts_maker.robustness(tmp_path / "robustness"),
        "score": artefacts_maker.scoring(tmp_path / "scores"),
        "gate": artefacts_maker.gate_run(tmp_path / "decisions"),
        "predict": artefacts_maker.prediction(tmp_path / "predictions"),
        "train-baseline": artefacts_maker.training(tmp_path / "model"),
        "study": artefacts_maker.study(tmp_path / "study"),
    }
    for verb, folder in made.items():
        found = status.read(str(folder if isinstance(folder, Path) else tmp_path / verb))
        part = next(part for part in found.parts if part.verb == verb)
        assert part.lines
        assert all(problem.startswith(f"{part.verb}:") for problem in found.problems)
    with pytest.raises(ConfigurationError, match="give the output folder of a verb"):
        status.read(str(tmp_path))

"""A night's numbers for Prometheus: how it ended, and that only a good one counts as the last success."""

import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import without_ray
from nights_here import Nights

from qualitygate.calibration import gate, gate_store
from qualitygate.cluster import scoring
from qualitygate.errors import ConfigurationError, Locked
from qualitygate.nightly import gauges, job, lock, record
from qualitygate.nightly.record import Night
from qualitygate.tables import storage

Values = dict[tuple[str, str], float]


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nights]:
    """One output, whose nights follow one another through this module's tests in their order."""
    made = Nights(tmp_path_factory.mktemp("nights"))
    made.add("n1", 200)
    with pytest.MonkeyPatch.context() as patch:
        without_ray.install(patch)
        yield made


def _values(file: Path) -> Values:
    """By name and the label that divides it."""
    found: Values = {}
    for name, labels, value in re.findall(r"^qualitygate_(\w+)\{(.*)\} (\S+)$", file.read_text(), re.M):
        divided = re.findall(r'(?:state|photographs)="(\w+)"', labels)
        found[name, divided[0] if divided else ""] = float(value)
    return found


def _run(nights: Nights, night: str, **changed: Any) -> tuple[Night, Values]:
    file = nights.root / f"{night}.prom"
    return nights.run(night, metrics_textfile=str(file), **changed).night, _values(file)


def _outcome(found: Values) -> str:
    (state,) = [label for (name, label), value in found.items() if name == "night_outcome" and value]
    assert {label for name, label in found if name == "night_outcome"} == set(gauges.OUTCOMES)
    return state


def _seconds(text: str | None) -> float:
    assert text is not None
    return datetime.fromisoformat(text).timestamp()


def test_a_night_that_was_promoted_is_the_last_success(nights: Nights) -> None:
    night, found = _run(nights, "n1")
    assert (_outcome(found), found["last_run_good", ""]) == ("promoted", 1)
    assert found["last_success_timestamp_seconds", ""] == _seconds(night.finished)
    assert found["night_started_timestamp_seconds", ""] == _seconds(night.started)
    change = gate_store.read(storage.join(nights.output, gate.FOLDER)).current
    assert change is not None
    assert found["gate_since_timestamp_seconds", ""] == _seconds(change.at)
    assert found["night_coverage", "all"] == pytest.approx(night.steps["decide"]["coverage"])
    assert (found["night_drifted", ""], found["night_photographs_left", ""]) == (0, 0)
    # What scoring counted is in the same file.
    assert "qualitygate_rows_total" in (nights.root / "n1.prom").read_text()


def test_a_refused_night_is_no_success(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    first = record.read(nights.output, "n1")
    assert first is not None
    nights.add("n2", 60, extra_blur=2.5)
    # A minute later, whose seconds the records would tell apart.
    monkeypatch.setattr(record, "now", lambda: "2100-01-01T00:00:00+00:00")
    night, found = _run(nights, "n2")
    assert (night.state, _outcome(found), found["last_run_good", ""]) == ("refused", "refused", 0)
    assert found["last_success_timestamp_seconds", ""] == _seconds(first.finished)
    assert found["night_finished_timestamp_seconds", ""] == _seconds("2100-01-01T00:00:00+00:00")
    assert found["night_drifted", ""] == night.steps["drift"]["drifted"] > 0
    assert found["night_coverage", "tonight"] == 0
    # The gate is the same, and so are the photographs that count: those of a refused night don't.
    assert found["night_coverage", "all"] == pytest.approx(first.steps["decide"]["coverage"])


def test_a_deadline_leaves_photographs(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    nights.add("n3", 60)
    monkeypatch.setattr(scoring._Run, "late", lambda run: run.deadline is not None and run.recorder.rows > 0)
    night, found = _run(nights, "n3", deadline="90m", canary=0)
    left = 60 - sum(row == "night-n3" for row in _runs(nights.output))
    assert (_outcome(found), night.steps["score"]["left"]) == ("deadline", left)
    assert 0 < found["night_photographs_left", ""] == left
    assert found["last_run_good", ""] == 0


def _runs(output: str) -> list[str]:
    from nights_here import rows_of

    return [row["run_id"] for row in rows_of(output)]


def test_a_night_that_failed_or_was_stopped_says_so(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    for error, state in ((ConfigurationError("no"), "failed"), (KeyboardInterrupt(), "stopped")):

        def fails(_: Any, error: BaseException = error) -> Any:
            raise error

        monkeypatch.setattr(job._Job, "_list", fails)
        with pytest.raises(type(error)):
            _run(nights, "n4", canary=0)
        found = _values(nights.root / "n4.prom")
        assert (_outcome(found), found["last_run_good", ""]) == (state, 0)
        first = record.read(nights.output, "n1")
        assert first is not None
        assert found["last_success_timestamp_seconds", ""] == _seconds(first.finished)


def test_a_job_that_finds_another_at_work_leaves_the_file_alone(nights: Nights) -> None:
    with lock.held(nights.output, night="n5", ttl_s=600), pytest.raises(Locked):
        _run(nights, "n5")
    assert not (nights.root / "n5.prom").exists()


def test_what_cannot_be_read_ends_no_night(
    nights: Nights, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: Any) -> Any:
        raise OSError("s3://me:secret@b is away")

    monkeypatch.setattr(gauges, "_earlier", fails)
    nights.add("n6", 60)
    night, found = _run(nights, "n6")
    assert _outcome(found) == night.state
    assert ("last_success_timestamp_seconds", "") not in found
    assert "what was before can't be told: s3://***@b is away" in caplog.text


def test_while_it_scores_the_night_is_running_and_the_last_success_stands(nights: Nights) -> None:
    first = record.read(nights.output, "n1")
    assert first is not None
    with gauges.of_night(nights.config("n8"), "n8") as counted:
        counted.started(5)
        assert counted.value("night_outcome", state="running") == 1
        last = counted.value("last_success_timestamp_seconds")
        assert last >= _seconds(first.finished)
        assert counted.value("rows_pending") == 5


def test_scoring_has_no_file_of_its_own_in_a_night(nights: Nights) -> None:
    with pytest.raises(ConfigurationError, match=r"score\.metrics_textfile is the nightly job's own"):
        nights.run("n7", score={"metrics": "lapm", "metrics_textfile": "x.prom"})

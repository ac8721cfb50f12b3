"""Whole nights, scored in this process: what they promote and refuse, and that killing one changes nothing."""

import copy
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import without_ray
from job_helpers import Silent
from nights_here import FIRST, METRIC, SETTINGS, Nights, rows_of, state_of

from qualitygate.calibration import gate, gate_store
from qualitygate.cluster import scoring
from qualitygate.config import NightlyConfig
from qualitygate.errors import (
    ConfigurationError,
    DeadlineReached,
    ErrorCode,
    ImageError,
    Locked,
    NightRefused,
    QualityGateError,
    StoreUnavailable,
    Superseded,
)
from qualitygate.metrics.rows import RowScorer
from qualitygate.nightly import canary, job, lock, record, settings, trend
from qualitygate.nightly.record import Night
from qualitygate.report import nightly as said
from qualitygate.tables import scores, storage, upkeep


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    without_ray.install(monkeypatch)


def _in_force(nights: Nights) -> str:
    return gate.load(nights.output).id


def _store(nights: Nights) -> str:
    return storage.join(nights.output, gate.FOLDER)


def _night(nights: Nights, name: str) -> Night:
    found = record.read(nights.output, name)
    assert found is not None
    return found


# ---- a week ----------------------------------------------------------------------------------------------


def test_a_week_of_nights(nights: Nights) -> None:
    """Promoted, refused for four reasons and no others, promoted again; the gate in force is the last good one."""
    first = _in_force(nights)
    nights.add("n2", 60)
    assert nights.run("n2").night.state == "promoted"
    second = _in_force(nights)
    assert second != first

    nights.add("n3", 60, extra_blur=2.5)
    drifted = nights.run("n3")
    assert (drifted.night.state, nights.failed("n3"), drifted.night.trusted) == ("refused", ["drift"], False)
    assert f"{METRIC} fell from a median of" in drifted.night.reasons[0]
    assert "worse quality" in drifted.night.reasons[0]
    with pytest.raises(NightRefused, match=rf"night n3 is refused, gate {second} stays in force: tonight's .* unlike"):
        job.raise_for(drifted)

    nights.add("n4", 60, corrupt=0.5)
    broken = nights.run("n4").night
    assert (broken.state, nights.failed("n4"), broken.trusted) == ("refused", ["errors", "drift"], False)
    assert "of tonight's 60 photographs have no score" in broken.reasons[0]
    assert re.search(
        r"the share without any score rose from 0\.0% to \d+\.\d% \(60 .*mostly truncated", broken.reasons[1]
    )

    nights.add("n5", 60)
    few = nights.run("n5", min_labelled=10_000).night
    # Its photographs are sound, only the labels are too few.
    assert (few.state, nights.failed("n5"), few.trusted) == ("refused", ["labelled"], True)
    assert few.reasons == ("320 labelled photographs, at least 10,000 are needed",)

    known = storage.read_bytes(storage.join(nights.output, canary.FILE)) or b""
    _regress(nights.output)
    nights.add("n6", 60)
    regressed = nights.run("n6").night
    assert (regressed.state, nights.failed("n6"), regressed.trusted) == ("refused", ["canary"], False)
    assert f"{METRIC} moved by up to" in regressed.reasons[0]
    assert "go back to the one before" in regressed.reasons[0]
    # Nothing was scored, and the list of photographs is that of the night before.
    assert rows_of(nights.output, "night-n6") == []
    assert set(regressed.steps) == {"canary", "upkeep", "report", "notify"}
    assert _in_force(nights) == second

    storage.write_bytes(storage.join(nights.output, canary.FILE), known)
    nights.add("n7", 60)
    recovered = nights.run("n7").night
    assert (recovered.state, recovered.reasons, recovered.trusted) == ("promoted", (), True)
    assert recovered.steps["drift"]["rows"] == 120
    assert recovered.gate_before == second
    assert _in_force(nights) == recovered.gate_after
    assert [change.night for change in gate_store.read(_store(nights)).changes] == ["n1", "n2", "n7"]
    table = pq.read_table(Path(nights.output, trend.FILE)).to_pylist()
    assert [(row["night"], row["state"]) for row in table] == [
        ("n1", "promoted"),
        ("n2", "promoted"),
        *((f"n{number}", "refused") for number in range(3, 7)),
        ("n7", "promoted"),
    ]


def _regress(output: str) -> None:
    """As if another library had made the known scores: each is 1 % larger than what is measured now."""
    known = canary.read(output)
    assert known is not None
    place = known.column_names.index(METRIC)
    moved = [1.01 * score for score in known[METRIC].to_pylist()]
    canary.write(output, known.set_column(place, METRIC, [moved]))


def test_photographs_nobody_trusts_make_no_gate(nights: Nights) -> None:
    """Labels of a night that was refused for its photographs are left out, until somebody accepts them."""
    blurred = nights.add("n2", 60, extra_blur=2.5)
    ahead = nights.add("not yet there", 10)
    for name in ahead:
        (nights.root / "in" / name).unlink()
    night = nights.run("n2").night
    assert night.steps["calibrate"]["left_out"] == {"without_row": len(ahead), "untrusted": len(blurred)}
    assert night.steps["calibrate"]["labelled"] == FIRST
    assert "left out:    60 labelled photographs of nights that were refused" in _printed(night)
    # What has a label needn't be labelled.
    drawn = pq.read_table(record.place(nights.output, "n2", "audit_sample.parquet"))["image_id"].to_pylist()
    assert not set(drawn) & set(blurred)

    accepted = nights.run("n2", accept_drift=True).night
    assert accepted.trusted
    assert accepted.steps["calibrate"]["left_out"] == {"without_row": len(ahead), "untrusted": 0}
    assert accepted.steps["calibrate"]["labelled"] == FIRST + len(blurred)
    (check,) = [check for check in accepted.checks if check.name == "drift"]
    assert check.said.startswith("drift, accepted: ")
    # From now on such photographs are what is usual.
    nights.add("n3", 60)
    assert nights.run("n3").night.steps["drift"]["reference"] == FIRST + len(blurred)


def _printed(night: Night) -> str:
    return said.of_night({**asdict(night), "output": "out", "already": False})


def test_without_any_photograph_that_counts_no_gate_is_made(first_night: Nights, tmp_path: Path) -> None:
    nights = Nights(first_night.root, feed=copy.deepcopy(first_night.feed), output=str(tmp_path / "out"))
    nights.feed.labels = [{**row, "image_id": f"{row['image_id']}.other"} for row in nights.feed.labels]
    (tmp_path / "labels.parquet").write_bytes(nights.feed.predictions())
    night = nights.run("n1", predictions=str(tmp_path / "labels.parquet")).night
    assert (night.state, nights.failed("n1")) == ("refused", ["calibrate"])
    assert f"of {FIRST} labelled photographs {FIRST} have no row among the scores" in night.reasons[0]


# ---- again and again ---------------------------------------------------------------------------------------


def _files(output: str) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path(output).rglob("*") if path.is_file()}


def test_a_night_that_has_ended_is_not_done_again(nights: Nights) -> None:
    before = _files(nights.output)
    nights.add("n2", 10)
    outcome = nights.run("n1")
    assert outcome.already
    assert outcome.night.state == "promoted"
    after = _files(nights.output)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert {Path(name).name for name in changed} == {lock.FILE}


def test_a_night_done_again_begins_with_what_it_found(nights: Nights) -> None:
    first = _in_force(nights)
    outcome = nights.run("n1", again=True)
    # The first night found no gate, and what it has promoted itself is none that it found.
    assert (outcome.already, outcome.night.state, outcome.night.gate_before) == (False, "promoted", None)
    assert _in_force(nights) == first
    assert len(gate_store.read(_store(nights)).changes) == 1
    nights.add("n2")
    second = nights.run("n2").night
    again = nights.run("n2", again=True).night
    assert (again.gate_before, again.gate_after, again.started) == (first, second.gate_after, second.started)
    assert again.steps["drift"]["rows"] == 60


def test_a_night_with_nothing_new_keeps_the_gate(nights: Nights) -> None:
    first = _in_force(nights)
    night = nights.run("n2").night
    assert night.steps["drift"]["rows"] == 0
    # The same labels give the same gate but for its parent, and for the weights that the gate in force allows now.
    assert night.state in ("kept", "promoted")
    again = nights.run("n3").night
    assert again.state == "kept"
    assert _in_force(nights) in (first, night.gate_after)


def test_without_predictions_the_gate_stays(nights: Nights) -> None:
    first = _in_force(nights)
    nights.add("n2", 60)
    night = nights.run("n2", predictions=None, calibrate={}).night
    assert (night.state, night.gate_after, nights.failed("n2")) == ("kept", first, [])
    assert "calibrate" not in night.steps


def test_the_first_of_all_nights(first_night: Nights) -> None:
    night = _night(first_night, "n1")
    assert night.gate_before is None
    checks = {check.name: check.said for check in night.checks}
    assert checks["drift"] == "too few photographs, tonight's or the reference's, to speak of drift"
    assert "canary" not in checks
    assert night.steps["upkeep"]["canary"] == 20
    assert Path(first_night.output, "nights", "n1", "report.html").stat().st_size > 10_000


# ---- killed ------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Ends the job at once: nothing in it handles this."""


class Killer:
    """Stands before everything that leaves a trace, and lets `kill` decide: by the step, what it is, and which one."""

    def __init__(self, patch: pytest.MonkeyPatch, output: str) -> None:
        self.kill: Callable[[str], bool] = lambda _: False
        self._output = output
        self._times: dict[str, int] = {}
        self._step = "begin"
        real = job._Job._step

        def step(night: Any, name: str, do: Any) -> Any:
            self._step = name
            return real(night, name, do)

        patch.setattr(job._Job, "_step", step)
        for name in ("write_bytes", "publish", "put_if", "delete", "delete_folder"):
            self._stand_before(patch, storage, name)
        for name in ("_claim", "_add_columns", "commit"):
            self._stand_before(patch, scores.Writer, name)
        for name in ("compact", "vacuum"):
            self._stand_before(patch, upkeep, name)

    def start(self) -> None:
        """The job is started once more."""
        self._times.clear()
        self._step = "begin"

    def _stand_before(self, patch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def stands_before(*arguments: Any, **named: Any) -> Any:
            place = next((one for one in arguments if isinstance(one, str) and one.startswith(self._output)), "")
            label = f"{self._step}: {name} {place.removeprefix(self._output)}".rstrip()
            self._times[label] = self._times.get(label, 0) + 1
            if lock.FILE not in label and self.kill(f"{label} #{self._times[label]}"):
                raise Killed(label)
            return real(*arguments, **named)

        patch.setattr(owner, name, stands_before)


@pytest.fixture
def undisturbed(nights: Nights, tmp_path: Path) -> dict[str, Any]:
    """The state that the next night leaves behind where nothing happens to it."""
    nights.add("n2", 60)
    other = Nights(nights.root, feed=nights.feed, output=str(tmp_path / "undisturbed"))
    shutil.copytree(nights.output, other.output)
    assert other.run("n2").night.state == "promoted"
    return state_of(other.output)


@pytest.mark.timeout(300)
def test_a_night_killed_before_everything_that_leaves_a_trace_ends_the_same(
    nights: Nights, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed and started again some fifty times: before each write of each step, and between any two steps."""
    killer = Killer(monkeypatch, nights.output)
    met: list[str] = []

    def first_time(label: str) -> bool:
        # Names that hold the moment of the run would be new each time.
        label = "canary: its history" if "/canary/_history/" in label else label
        if label in met:
            return False
        met.append(label)
        return True

    killer.kill = first_time
    for _ in range(200):
        killer.start()
        try:
            outcome = nights.run("n2")
            break
        except Killed:
            continue
    assert outcome.night.state == "promoted"
    assert state_of(nights.output) == undisturbed
    steps = ("canary", "manifest", "score", "drift", "calibrate", "decide", "upkeep", "report", "notify")
    traces = {f"{step}: write_bytes /nights/n2/night.json #1" for step in steps}
    traces |= {"score: commit #2", "score: publish /manifest.parquet #1", "decide: put_if /gates/history.json #1"}
    traces |= {"decide: publish /nights/n2/audit_sample.parquet #1", "decide: write_bytes /nights/n2/night.json #2"}
    assert traces | {"upkeep: compact #1", "upkeep: vacuum #1", "upkeep: publish /nights.parquet #1"} <= set(met)


@pytest.mark.parametrize(
    "label",
    [
        # Between the gate's change and the entry of it; between the new list of photographs and their scores; in the
        # midst of scoring; between the gate's files and the change that puts it in force.
        "decide: publish /nights/n2/audit_sample.parquet #1",
        "score: _claim #1",
        "score: commit #3",
        "decide: put_if /gates/history.json #1",
    ],
)
def test_a_night_killed_once_ends_the_same(
    nights: Nights, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch, label: str
) -> None:
    killer = Killer(monkeypatch, nights.output)
    killer.kill = lambda met: met == label
    with pytest.raises(Killed):
        nights.run("n2")
    assert _night(nights, "n2").state == "running"
    killer.kill = lambda _: False
    assert nights.run("n2").night.state == "promoted"
    assert state_of(nights.output) == undisturbed


@pytest.mark.timeout(300)
def test_a_night_done_again_and_killed_on_the_way_counts_and_ends_the_same(
    nights: Nights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started with --again each time: before each write until its photographs are scored, and between the steps."""
    names = nights.add("n2", 60)
    assert nights.run("n2", min_labelled=10_000).night.state == "refused"
    for name in names[:5]:
        os.utime(nights.root / "in" / name, ns=(1, 1))
    other = Nights(nights.root, feed=nights.feed, output=str(tmp_path / "undisturbed"))
    shutil.copytree(nights.output, other.output)
    calm = other.run("n2", again=True).night
    assert (calm.state, calm.steps["manifest"]["new"], calm.steps["manifest"]["changed"]) == ("promoted", 60, 0)
    killer = Killer(monkeypatch, nights.output)
    met: list[str] = []

    def first_time(label: str) -> bool:
        step = label.partition(":")[0]
        # By the step and the file: the number of a try is another each time.
        label = re.sub(r"earlier/\d+", "earlier", label)
        if step not in ("begin", "manifest", "score", "drift") or label in met:
            return False
        met.append(label)
        return True

    killer.kill = first_time
    for _ in range(100):
        killer.start()
        try:
            nights.run("n2", again=True)
            break
        except Killed:
            continue
    found, undisturbed = state_of(nights.output), state_of(other.output)
    for state in (found, undisturbed):
        # A killed try's listing has passed its check; the last one is held against that listing.
        state["n2/record"]["steps"]["manifest"].pop("checks")
        state["n2/record"]["checks"] = [one for one in state["n2/record"]["checks"] if one["name"] != "manifest"]
    assert found == undisturbed
    assert {
        "begin: write_bytes /nights/n2/earlier.json #1",
        "begin: publish /nights/n2/earlier.changes.parquet #1",
        "begin: write_bytes /nights/n2/night.json #1",
        "score: publish /manifest.parquet #1",
        "drift: write_bytes /nights/n2/night.json #1",
    } <= set(met)


def test_photographs_of_a_night_that_never_ended_are_judged_with_the_next(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    nights.add("n2", 60, extra_blur=2.5)
    with monkeypatch.context() as patch:
        killer = Killer(patch, nights.output)
        killer.kill = lambda met: met == "score: write_bytes /nights/n2/night.json #1"
        with pytest.raises(Killed):
            nights.run("n2")
    assert set(_night(nights, "n2").steps) == {"canary", "manifest"}
    assert len(rows_of(nights.output, "night-n2")) == 60
    nights.add("n3", 20)
    night = nights.run("n3").night
    assert (night.steps["drift"]["rows"], night.steps["drift"]["unfinished"]) == (80, ["n2"])
    assert (night.state, nights.failed("n3")) == ("refused", ["drift"])
    assert "with those of unfinished nights: n2" in _printed(night)
    # They were judged once: the night after has its own alone, and neither is a reference.
    nights.add("n4", 60)
    after = nights.run("n4").night
    assert (after.steps["drift"]["rows"], after.steps["drift"]["unfinished"]) == (60, [])
    assert after.steps["drift"]["reference"] == FIRST
    assert after.steps["calibrate"]["left_out"]["untrusted"] == 80


def test_photographs_that_were_scored_by_hand_pass_no_guardrail_unseen(nights: Nights) -> None:
    nights.add("n2", 60, extra_blur=2.5)
    by_hand = settings.of_score(nights.config("n2")).model_copy(update={"input": str(nights.root / "in")})
    run_id = scoring.run(by_hand, Silent()).run_id
    night = nights.run("n2").night
    assert (night.steps["drift"]["rows"], night.steps["drift"]["by_hand"]) == (60, [run_id])
    assert (night.state, nights.failed("n2")) == ("refused", ["drift"])
    assert "1 runs of 'score'" in _printed(night)
    nights.add("n3", 60)
    after = nights.run("n3").night
    assert (after.steps["drift"]["by_hand"], after.steps["drift"]["reference"]) == ([], FIRST)
    assert after.steps["calibrate"]["left_out"]["untrusted"] == 60


def test_nobody_vouches_for_a_night_whose_record_is_gone(nights: Nights) -> None:
    nights.add("n2", 60, extra_blur=2.5)
    assert nights.run("n2").night.state == "refused"
    shutil.rmtree(Path(record.place(nights.output, "n2")))
    nights.add("n3", 60)
    assert nights.run("n3").night.steps["drift"]["reference"] == FIRST


# ---- the lock ----------------------------------------------------------------------------------------------


def test_while_another_job_is_at_work_nothing_is_done(nights: Nights) -> None:
    nights.add("n2", 10)
    with lock.held(nights.output, night="n1", ttl_s=600), pytest.raises(Locked, match="another nightly job is at work"):
        nights.run("n2")
    assert record.read(nights.output, "n2") is None


def test_a_job_that_lost_the_lock_promotes_nothing(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _in_force(nights)
    nights.add("n2", 60)
    real = job._Job._candidate

    def stalls(self: Any, *arguments: Any) -> Any:
        # Another took the lock when its time was up, and has ended already; this one's renewal then fails.
        now, _ = lock.read(nights.output)
        assert now is not None
        other = replace(now, holder="another", fence=now.fence + 1, released=True)
        storage.write_bytes(storage.join(nights.output, lock.FILE), json.dumps(asdict(other)).encode())
        self._lock._write(until=now.until, released=False)
        return real(self, *arguments)

    monkeypatch.setattr(job._Job, "_candidate", stalls)
    with pytest.raises(Superseded, match="was lost"):
        nights.run("n2")
    assert _in_force(nights) == first
    monkeypatch.undo()
    without_ray.install(monkeypatch)
    assert nights.run("n2").night.state == "promoted"


def test_a_lock_deleted_by_hand_stops_no_later_night(nights: Nights) -> None:
    """The fence counts on from the gates' history: else every promotion would look like that of a job long dead."""
    nights.add("n2", 60)
    nights.run("n2")
    Path(nights.output, lock.FILE).unlink()
    nights.add("n3", 60)
    assert nights.run("n3").night.state == "promoted"
    fences = [change.fence for change in gate_store.read(_store(nights)).changes]
    assert fences == sorted(fences)


# ---- gates and people ----------------------------------------------------------------------------------------


def test_what_somebody_rolled_back_from_is_not_promoted_again(nights: Nights) -> None:
    first = _in_force(nights)
    nights.add("n2", 60)
    second = nights.run("n2").night.gate_after
    gate_store.rollback(_store(nights), reason="it was bad")
    assert _in_force(nights) == first
    again = nights.run("n2", again=True).night
    assert (again.state, nights.failed("n2")) == ("refused", ["not withdrawn"])
    assert again.reasons == (f"it is gate {second}, from which somebody rolled back",)
    # With more labels it is another gate.
    nights.add("n3", 60)
    assert nights.run("n3").night.state == "promoted"


def test_a_gate_put_in_force_by_hand_in_the_meantime_stays(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _in_force(nights)
    nights.add("n2", 60)
    second = nights.run("n2").night.gate_after
    assert second is not None
    nights.add("n3", 60)
    real = job._Job._calibrate

    def meanwhile(self: Any) -> Any:
        gate_store.rollback(_store(nights), reason="by hand")
        return real(self)

    monkeypatch.setattr(job._Job, "_calibrate", meanwhile)
    night = nights.run("n3").night
    assert (night.state, nights.failed("n3"), night.gate_after) == ("refused", ["gate in force"], first)
    assert f"put gate {first} in force while the night was at work" in night.reasons[0]
    monkeypatch.undo()
    without_ray.install(monkeypatch)
    assert nights.run("n3", again=True).night.state == "promoted"


# ---- lists of photographs ------------------------------------------------------------------------------------


def test_many_changes_stop_the_night_with_their_price(nights: Nights) -> None:
    nights.add("n2", 60)
    for path in sorted((nights.root / "in" / "n2").iterdir()):
        path.rename(path.with_name(f"new-{path.name}"))
    before = rows_of(nights.output)
    nights.run("n2")
    names = sorted((nights.root / "in" / "n2").iterdir())
    for path in names[:15]:
        path.unlink()
    for path in names[15:55]:
        os.utime(path, ns=(1, 1))
    stopped = nights.run("n3").night
    assert (stopped.state, nights.failed("n3"), stopped.trusted) == ("refused", ["manifest"], False)
    assert "40 of 260 known photographs are changed and 15 are gone: 21%, more than the 20%" in stopped.reasons[0]
    assert "; 40 photographs" in stopped.reasons[0]
    assert "of one core" in stopped.reasons[0]
    assert "--allow-changes" in stopped.reasons[0]
    # The list that the next night compares with is still the one of before.
    assert pq.read_table(Path(nights.output, job.MANIFEST)).num_rows == 260
    assert len(rows_of(nights.output)) == len(before) + 60
    allowed = nights.run("n3", allow_changes=True).night
    assert (allowed.state != "refused", allowed.steps["manifest"]["gone"]) == (True, 15)
    assert pq.read_table(Path(nights.output, job.MANIFEST)).num_rows == 245


def test_another_etag_over_the_same_bytes_costs_no_score(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    names = nights.add("n2", 40)
    nights.run("n2", canary=0)
    scored: list[int] = []
    real = RowScorer._scores

    def counted(self: RowScorer, metric: Any, photographs: Any) -> Any:
        scored.append(len(photographs))
        return real(self, metric, photographs)

    monkeypatch.setattr(RowScorer, "_scores", counted)
    for name in names:
        os.utime(nights.root / "in" / name, ns=(1, 1))
    before = {row["image_id"]: row for row in rows_of(nights.output)}
    night = nights.run("n3", canary=0).night
    assert night.steps["manifest"]["changed"] == 40
    assert scored == []
    after = {row["image_id"]: row for row in rows_of(nights.output)}
    assert {name for name in after if after[name]["etag"] != before[name]["etag"]} == set(names)
    assert all(after[name][METRIC] == before[name][METRIC] for name in after)


def test_a_night_over_one_in_a_hundred_new_photographs_costs_as_much(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    nights.add("n1", 300)
    nights.run("n1")
    before = {row["image_id"]: row for row in rows_of(nights.output)}
    files = set(Path(nights.output, "scores").rglob("*"))
    new = nights.add("n2", 3)
    night = nights.run("n2").night
    assert [row["image_id"] for row in rows_of(nights.output, night.run_id)] == sorted(new)
    stats = json.loads(Path(nights.output, "_stats.json").read_bytes())
    assert stats["scored"]["rows"] == 3
    # No other row was touched, and compaction leaves one file for readers.
    assert {row["image_id"]: row for row in rows_of(nights.output, "night-n1")} == before
    assert len(scores.existing_table(nights.output).file_uris()) == 1
    assert len(set(Path(nights.output, "scores").rglob("*")) - files) <= 20


# Of a night that promotes, besides two for each commit: the claim and the compaction in the table's log, the compacted
# file, six of the night, four of the gate, one of the run's history.
OTHER_FILES = 14


@pytest.mark.parametrize(("commit_rows", "commits"), [(40, 2), (16, 5)])
def test_the_files_of_a_night(tmp_path: Path, commit_rows: int, commits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that it adds, before and after a vacuum has taken what was compacted: docs/scale.md has these numbers."""
    nights = Nights(tmp_path)
    nights.add("n1", 300)
    nights.run("n1")
    # Old enough to be gone from here on, so that only the night's own files count.
    monkeypatch.setattr(upkeep, "SHORTEST_KEEP", timedelta(0))
    upkeep.vacuum(nights.output, timedelta(0))
    before = _paths(nights.output)
    nights.add("n2", 80)
    night = nights.run("n2", score=SETTINGS["score"] | {"commit_rows": commit_rows}).night
    assert night.state == "promoted"
    added = _paths(nights.output) - before
    assert len([name for name in added if name.endswith(".snappy.parquet")]) == commits
    assert len(added) == OTHER_FILES + 2 * commits + _checkpoints(added)
    if commits <= 2:
        assert len(added) <= 20
    # What the later nights' vacuum leaves, its own two notes in the log included.
    upkeep.vacuum(nights.output, timedelta(0))
    left = _paths(nights.output)
    assert len(left - before) == OTHER_FILES + commits + 2 + _checkpoints(added)
    # Compaction took the file of the night before, too.
    assert len(left) - len(before) == len(left - before) - 1
    assert [row["image_id"] for row in rows_of(nights.output)] == sorted(nights.feed.objects)


def _paths(output: str) -> set[str]:
    return {str(path.relative_to(output)) for path in Path(output).rglob("*") if path.is_file()}


def _checkpoints(names: set[str]) -> int:
    return sum("checkpoint" in name for name in names)


# ---- the canary ----------------------------------------------------------------------------------------------


def test_a_canary_whose_photographs_are_gone_is_drawn_anew(nights: Nights) -> None:
    known = canary.read(nights.output)
    assert known is not None
    # As if most of them had been replaced since.
    place = known.column_names.index("sha256")
    other = ["other bytes"] * 15 + known["sha256"].to_pylist()[15:]
    canary.write(nights.output, known.set_column(place, "sha256", [other]))
    nights.add("n2", 10)
    night = nights.run("n2").night
    assert night.steps["canary"]["compared"] == 5
    (check,) = [check for check in night.checks if check.name == "canary"]
    assert (check.passed, check.said) == (
        True,
        "5 of 20 photographs scored as before, the others are gone or changed; most of it is: a new one is drawn",
    )
    assert night.steps["upkeep"]["canary"] == 20
    nights.add("n3", 10)
    assert nights.run("n3").night.steps["canary"]["compared"] == 20


# ---- the deadline --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("next_one", ["n2", "n3"])
def test_a_deadline_leaves_a_valid_part_and_the_next_run_goes_on(
    nights: Nights, monkeypatch: pytest.MonkeyPatch, next_one: str
) -> None:
    first = _in_force(nights)
    nights.add("n2", 60)
    with monkeypatch.context() as patch:
        # It comes with the first photographs.
        patch.setattr(scoring._Run, "late", lambda run: run.deadline is not None and run.recorder.rows > 0)
        outcome = nights.run("n2", deadline="90m", canary=0)
    done = len(rows_of(nights.output, "night-n2"))
    reason = f"the deadline came before all photographs were scored: {done} were scored, {60 - done} are left"
    assert (outcome.night.state, outcome.night.reasons, outcome.night.gate_after) == ("deadline", (reason,), first)
    with pytest.raises(DeadlineReached, match=f"night n2: {reason}; those") as reached:
        job.raise_for(outcome)
    assert (reached.value.done, reached.value.left) == (done, 60 - done)
    assert 0 < done < 60
    assert len({row["image_id"] for row in rows_of(nights.output)}) == FIRST + done
    assert "calibrate" not in outcome.night.steps
    assert Path(nights.output, "nights", "n2", "report.html").exists()
    assert "THE DEADLINE CAME" in _printed(outcome.night)
    night = nights.run(next_one).night
    assert night.state == "promoted"
    assert night.steps["manifest"]["new"] == (60 if next_one == "n2" else 0)
    assert len(rows_of(nights.output)) == FIRST + 60
    assert len(rows_of(nights.output, night.run_id)) == (60 if next_one == "n2" else 60 - done)


def test_a_deadline_before_the_first_photograph_of_all(
    first_night: Nights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nights = Nights(first_night.root, feed=copy.deepcopy(first_night.feed), output=str(tmp_path / "out"))
    with monkeypatch.context() as patch:
        patch.setattr(settings, "deadline", lambda given, now: now)
        night = nights.run("n1", deadline="1s").night
    assert (night.state, night.gate_after, rows_of(nights.output)) == ("deadline", None, [])
    assert nights.run("n1").night.state == "promoted"
    assert len(rows_of(nights.output)) == FIRST


def test_a_night_started_again_after_its_deadline_scores_nothing_more(nights: Nights) -> None:
    """By a scheduler that takes exit code 3 for a failure, say; somebody who names another deadline has it go on."""
    nights.add("n2", 60)
    # An hour ago, so long past whatever starts it again.
    passed = f"{datetime.now(UTC) - timedelta(hours=1):%H:%M}"
    for _ in range(2):
        assert nights.run("n2", deadline=passed, canary=0).night.state == "deadline"
        assert rows_of(nights.output, "night-n2") == []
    assert nights.run("n2", deadline="3h", canary=0).night.state == "promoted"
    assert len(rows_of(nights.output, "night-n2")) == 60


# ---- what people are told -------------------------------------------------------------------------------------


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []

    def send(_: Any, message: Any) -> list[str]:
        messages.append(dict(message))
        return ["nobody answers"]

    monkeypatch.setattr(job.notify, "send", send)
    return messages


def test_a_night_is_told_once_and_its_failure_harms_nothing(nights: Nights, told: list[dict[str, Any]]) -> None:
    nights.add("n2", 60)
    night = nights.run("n2").night
    assert nights.run("n2").already
    (message,) = told
    assert (message["night"], message["state"], message["gate"]) == ("n2", "promoted", _in_force(nights))
    assert night.state == "promoted"
    assert "not told:    nobody answers" in _printed(night)


def test_a_refusal_is_told_in_short_and_a_failure_whole(told: list[dict[str, Any]]) -> None:
    """Whole reasons of a refused night are in its record; of a night that failed nothing else has them."""
    long = f"tonight's photographs are unlike the reference's: {'lapm fell ' * 40}; look at them {'again ' * 40}"
    night = Night(
        night="n1", started=record.now(), state="refused", reasons=(long, "320 labelled photographs, too few")
    )
    config = NightlyConfig(input="in", output="out")
    job._tell(config, night, "out")
    job._tell(config, night, "out", state="failed", reasons=(long,))
    short, whole = (message["reasons"] for message in told)
    assert [len(reason) <= 160 for reason in short] == [True, True]
    assert short[0].startswith("tonight's photographs are unlike the reference's: lapm fell")
    assert short[1] == "320 labelled photographs, too few"
    assert whole == [long]
    with pytest.raises(NightRefused) as refused:
        job.raise_for(job.Outcome(night=night, output="out", already=False))
    assert len(str(refused.value)) < 300
    assert "look at them" not in str(refused.value)


@pytest.mark.parametrize("error", [ConfigurationError("no"), OSError("s3://me:secret@b is away"), ZeroDivisionError()])
def test_a_job_that_fails_tells_so(
    nights: Nights, told: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(_: Any) -> Any:
        raise error

    monkeypatch.setattr(job._Job, "_list", fails)
    with pytest.raises(type(error)):
        nights.run("n2")
    (message,) = told
    assert message["state"] == "failed"
    assert "secret" not in json.dumps(message)
    assert (str(error) if isinstance(error, QualityGateError) else type(error).__name__) in message["reasons"][0]
    assert _night(nights, "n2").state == "running"


def test_a_store_that_is_down_is_told_as_that_and_not_as_something_to_mend(
    told: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise ImageError(ErrorCode.TRANSIENT, "connection refused")

    monkeypatch.setattr(storage, "write_bytes", fails)
    with pytest.raises(StoreUnavailable) as down:
        job.run(NightlyConfig(input="in", output="s3://quality/line", night="n1"), lambda _: Silent())
    assert down.value.exit_code == 1
    (message,) = told
    assert (message["state"], message["reasons"]) == ("failed", [str(down.value)])
    assert "(transient: connection refused); once it does, the same command goes on" in message["reasons"][0]


def test_a_job_that_is_stopped_tells_nobody(
    nights: Nights, told: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(job._Job, "_list", stopped)
    with pytest.raises(KeyboardInterrupt):
        nights.run("n2")
    assert told == []
    found, _ = lock.read(nights.output)
    assert found is not None
    assert found.released


def test_a_report_that_cannot_be_made_fails_no_night(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Any) -> Any:
        raise ValueError("s3://me:secret@b: no such figure")

    monkeypatch.setattr(job.page, "write", fails)
    nights.add("n2", 60)
    night = nights.run("n2").night
    assert night.state == "promoted"
    assert night.steps["report"] == night.steps["report"] | {
        "page": None,
        "problem": "ValueError: s3://***@b: no such figure",
    }
    assert "no report:" in _printed(night)

"""Nights that don't go as usual: damaged records, a gate by hand in between, tries that are done again, small nights,
photographs that are gone, tables that were scored lazily, and labels that aren't there.
"""

import copy
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import without_ray
from job_helpers import Silent
from nights_here import FIRST, METRIC, Nights, rows_of, state_of

from qualitygate.calibration import gate, gate_store
from qualitygate.cluster import scoring
from qualitygate.errors import ConfigurationError, NightRefused
from qualitygate.nightly import audit, candidate, housekeeping, job, listing, record, settings, standing, trend, windows
from qualitygate.nightly.record import Check, Night
from qualitygate.tables import scores, storage


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    without_ray.install(monkeypatch)

    def write(config: Any) -> str:
        """Pages are not what these tests are about."""
        storage.write_bytes(config.output, b"a page")
        return str(config.output)

    monkeypatch.setattr(job.page, "write", write)


def _store(nights: Nights) -> str:
    return storage.join(nights.output, gate.FOLDER)


def _check(night: Night, name: str) -> Check:
    (found,) = [check for check in night.checks if check.name == name]
    return found


def _row(nights: Nights, name: str) -> dict[str, Any]:
    (found,) = [row for row in pq.read_table(Path(nights.output, trend.FILE)).to_pylist() if row["night"] == name]
    return dict(found)


Remove = Callable[[Nights, list[str]], None]


@pytest.fixture
def remove(tmp_path: Path) -> Iterator[Remove]:
    """Takes photographs away from the input; they are back, as they were, for the next test."""
    taken: dict[Path, Path] = {}

    def away(nights: Nights, names: list[str]) -> None:
        for name in names:
            place = nights.root / "in" / name
            taken[place] = place.rename(tmp_path / f"taken-{len(taken)}")

    yield away
    for place, aside in taken.items():
        place.parent.mkdir(exist_ok=True)
        aside.rename(place)


# ---- damaged records ---------------------------------------------------------------------------------------


def test_the_damaged_record_of_another_night_stops_nobody(nights: Nights, caplog: pytest.LogCaptureFixture) -> None:
    nights.add("n2", 60, extra_blur=2.5)
    assert nights.run("n2").night.state == "refused"
    Path(record.place(nights.output, "n2", record.FILE)).write_text('{"format": ')
    Path(record.place(nights.output, "n2", audit.FILE)).write_text("no Parquet")
    nights.add("n3", 60)
    night = nights.run("n3").night
    assert night.state == "promoted"
    # Nobody vouches for its photographs: they are no reference, and their labels make no gate.
    assert night.steps["drift"]["reference"] == FIRST
    assert night.steps["calibrate"]["left_out"]["untrusted"] == 60
    said = [_check(night, "records").said, *nights.notes]
    assert sum("nights/n2/night.json' is damaged" in one for one in said) == 2
    assert sum("nights/n2/audit_sample.parquet' is damaged" in one for one in nights.notes) == 1
    assert "nights/n2/night.json' is damaged" in caplog.text
    # The table of nights has it as it was.
    assert [_row(nights, name)["state"] for name in ("n1", "n2", "n3")] == ["promoted", "refused", "promoted"]
    part = standing.nightly(nights.output, datetime.now(UTC))
    assert part is not None
    assert part.problem is None
    assert [line for line in part.lines if line.startswith("warning: ") and "nights/n2/night.json' is damaged" in line]


def test_tonights_own_damaged_record_is_said_with_what_to_do(nights: Nights) -> None:
    nights.add("n2", 10)
    nights.run("n2")
    path = Path(record.place(nights.output, "n2", record.FILE))
    path.write_text("{")
    with pytest.raises(ConfigurationError, match=r"nights/n2/night\.json' is damaged .* delete it, and"):
        nights.run("n2")
    path.unlink()
    # The gate that it had promoted is in force, and another one is no better.
    assert nights.run("n2").night.state in ("kept", "promoted")


def test_records_and_samples_are_read_side_by_side(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits for three others to be read: one after the other, none would ever be."""
    folder = storage.join(nights.output, record.NIGHTS)
    for number in range(2, 5):
        record.write(nights.output, Night(night=f"n{number}", started="2026-01-01"))
    together = threading.Barrier(4, timeout=20)
    real = storage.read_bytes

    def waits(uri: str) -> bytes | None:
        if uri.startswith(folder):
            together.wait()
        return real(uri)

    monkeypatch.setattr(storage, "read_bytes", waits)
    assert len(record.read_all(nights.output).nights) == 4
    assert audit.known(nights.output).schema.equals(audit.SCHEMA)


# ---- a gate by hand while the checks are made --------------------------------------------------------------


def _by_hand(folder: Path, made: gate.Gate) -> str:
    """Another gate than this one, in a folder."""
    content = dict(made.content) | {"created": "2026-01-02T03:04:05+00:00"}
    content["id"] = gate.identity(content)
    storage.write_bytes(storage.join(str(folder), gate.FILE), gate.dump(content))
    return str(folder)


@pytest.mark.parametrize("first", [True, False])
def test_a_gate_by_hand_during_the_checks_stays(
    nights: Nights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    """Also in the very first night, which found none."""
    name = "n1" if first else "n2"
    if first:
        nights = Nights(nights.root, feed=copy.deepcopy(nights.feed), output=str(tmp_path / "anew"))
    else:
        nights.add("n2", 60)
    real = candidate.checks

    def meanwhile(*arguments: Any) -> Any:
        found = real(*arguments)
        gate_store.promote(_store(nights), _by_hand(tmp_path / "by hand", arguments[3][0]), reason="ours")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(candidate, "checks", meanwhile)
        night = nights.run(name).night
    by_hand = gate.load(str(tmp_path / "by hand")).id
    assert (night.state, nights.failed(name), night.gate_after) == ("refused", ["gate in force"], by_hand)
    assert f"put gate {by_hand} in force while the night was at work; run it again with --again" in night.reasons[0]
    assert gate.load(nights.output).id == by_hand
    # Done again it is held against that one.
    again = nights.run(name, again=True).night
    assert (again.gate_before, again.state != "refused") == (by_hand, True)


def test_promotions_that_are_held_during_the_checks_stay_held(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    first = gate.load(nights.output).id
    nights.add("n2", 60)
    real = candidate.checks

    def meanwhile(*arguments: Any) -> Any:
        gate_store.rollback(_store(nights), to=first, reason="wait", held=True)
        return real(*arguments)

    monkeypatch.setattr(candidate, "checks", meanwhile)
    night = nights.run("n2").night
    assert (night.state, nights.failed("n2"), night.gate_after) == ("refused", ["gate in force"], first)
    assert "has held promotions" in night.reasons[0]


def test_a_gate_by_hand_after_the_decision_is_not_the_nights(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    """The night is still to be entered as ended when somebody goes back from what it promoted."""
    first = gate.load(nights.output).id
    nights.add("n2", 60)
    real = job._Job._end

    def meanwhile(job_: Any, state: Any) -> None:
        gate_store.rollback(_store(nights), to=first, reason="ours", held=True)
        real(job_, state)

    monkeypatch.setattr(job._Job, "_end", meanwhile)
    night = nights.run("n2").night
    made = night.steps["calibrate"]["gate"]
    assert (night.state, night.gate_after) == ("promoted", made)
    assert made != first == gate.load(nights.output).id
    assert night.steps["report"]["problem"] is None


def test_a_refused_night_whose_own_gate_is_in_force_says_so(nights: Nights) -> None:
    first = gate.load(nights.output).id
    nights.add("n2", 60)
    own = nights.run("n2").night.gate_after
    outcome = nights.run("n2", again=True, min_labelled=10_000)
    assert (outcome.night.state, outcome.night.gate_after) == ("refused", own)
    with pytest.raises(NightRefused, match=f"gate {own} stays in force .before this night it was {first}.*rollback"):
        job.raise_for(outcome)


# ---- tries -------------------------------------------------------------------------------------------------


def test_what_earlier_tries_found_stays_and_counts(nights: Nights, remove: Remove) -> None:
    names = nights.add("n2", 60)
    first = nights.run("n2", min_labelled=10_000).night
    assert first.state == "refused"
    remove(nights, names[:3])
    later = nights.feed.add("n2b", 5)
    for name, data in later.items():
        (nights.root / "in" / name).parent.mkdir(exist_ok=True)
        (nights.root / "in" / name).write_bytes(data)
    again = nights.run("n2", again=True).night
    # Of sixty three are gone again, and five came later.
    assert {key: again.steps["manifest"][key] for key in ("images", "known", "new", "changed", "gone")} == {
        "images": FIRST + 62,
        "known": FIRST,
        "new": 62,
        "changed": 0,
        "gone": 0,
    }
    row = _row(nights, "n2")
    assert (row["state"], row["new"], row["gone"], row["photographs"]) == (again.state, 62, 0, FIRST + 62)
    (short,) = again.earlier
    assert (short["state"], short["reasons"]) == ("refused", list(first.reasons))
    kept = json.loads(Path(record.place(nights.output, "n2", "earlier", "1.json")).read_bytes())
    assert (kept["state"], kept["steps"]["manifest"]["new"], kept["checks"][0]["name"]) == ("refused", 60, "canary")
    # And once more: nothing is new, and the night's count stays.
    third = nights.run("n2", again=True).night
    assert (third.steps["manifest"]["new"], len(third.earlier)) == (62, 2)
    assert [change.night for change in gate_store.read(_store(nights)).changes] == ["n1", "n2"]


def test_a_listing_that_was_refused_is_counted_once(nights: Nights) -> None:
    names = nights.add("n2", 60)
    nights.run("n2")
    for name in names:
        os.utime(nights.root / "in" / name, ns=(1, 1))
    stopped = nights.run("n3").night
    assert nights.failed("n3") == ["manifest"]
    assert stopped.steps["manifest"]["changed"] == 60
    allowed = nights.run("n3", allow_changes=True).night
    assert (allowed.steps["manifest"]["changed"], len(allowed.earlier)) == (60, 1)
    # The guardrail asks what has changed since the listing that was taken over: nothing more.
    again = nights.run("n3", again=True).night
    assert (again.steps["manifest"]["changed"], again.state == "refused") == (60, False)


def test_the_first_night_done_again_has_everything_new(nights: Nights) -> None:
    assert nights.run("n1", again=True).night.steps["manifest"]["new"] == FIRST


def test_a_try_that_was_killed_after_its_listing_counts(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: Any, **__: Any) -> Any:
        raise Killed

    nights.add("n2", 60)
    with monkeypatch.context() as patch:
        patch.setattr(scoring, "run", kill)
        with pytest.raises(Killed):
            nights.run("n2", canary=0)
    assert nights.run("n2", canary=0, again=True).night.steps["manifest"]["new"] == 60


def test_a_night_that_goes_on_after_a_later_one_lists_anew(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else photographs of the later night would count as gone."""
    nights.add("n2", 60)
    with monkeypatch.context() as patch:
        patch.setattr(scoring._Run, "late", lambda run: run.deadline is not None)
        late = nights.run("n2", deadline="90m", canary=0).night
        # Which photographs have labels isn't known then, and these aren't drawn again.
        assert (late.state, "audit" in late.steps["decide"]) == ("deadline", False)
    nights.add("n3", 60)
    nights.run("n3")
    night = nights.run("n2").night
    assert night.steps["manifest"]["images"] == FIRST + 120
    assert pq.read_table(Path(nights.output, job.MANIFEST)).num_rows == FIRST + 120


# ---- photographs that are gone -----------------------------------------------------------------------------


def test_photographs_that_are_gone_count_for_nothing_but_keep_their_rows(nights: Nights, remove: Remove) -> None:
    in_force = gate.load(nights.output)
    before = {row["image_id"]: row for row in rows_of(nights.output)}
    table = pa.Table.from_pylist(list(before.values()))
    passed = dict(zip(table["image_id"].to_pylist(), windows.passes(table, in_force), strict=True))
    rejected = [name for name, passes in passed.items() if not passes]
    # Rejected ones alone, so that the share that passes shows it.
    removed = rejected[:30]
    remove(nights, removed)
    names = nights.add("n2", 40)
    # No label but those of the first night's photographs that pass: every reject may be drawn.
    kept = [row for row in nights.feed.labels if passed.get(row["image_id"], False) or row["image_id"] in rejected[:60]]
    pq.write_table(pa.Table.from_pylist(kept), nights.root / "labels.parquet")
    # Drift is not what this is about.
    night = nights.run("n2", audit_share=1.0, accept_drift=True).night
    rows = {row["image_id"]: row for row in rows_of(nights.output)}
    assert set(rows) == {*before, *names}
    there = pa.Table.from_pylist([row for name, row in rows.items() if name not in removed])
    now = gate.load(nights.output)
    assert night.steps["decide"]["coverage"] == pytest.approx(float(np.mean(windows.passes(there, now))))
    sample = pq.read_table(record.place(nights.output, "n2", audit.FILE))["image_id"].to_pylist()
    expected = {
        name for name, low in zip(there["image_id"].to_pylist(), ~windows.passes(there, now), strict=True) if low
    }
    known = set(audit.known(nights.output, without="n2")["image_id"].to_pylist())
    assert set(sample) == expected - known - {row["image_id"] for row in kept}
    assert not set(sample) & set(removed)
    # What the labelled ones stand for is what is there.
    kinds = night.steps["calibrate"]["kinds"]
    assert kinds["passed"][1] + kinds["rejected"][1] == FIRST + 40 - 30
    assert (kinds["rejected"][0], night.steps["calibrate"]["labelled_gone"]) == (60, 30)


def test_labels_of_photographs_that_are_gone_stand_for_their_kind(
    tmp_path: Path, write: Any, many: Any, make_gate: Any
) -> None:
    """Of the rejects most are gone and labelled, of the others none: the weights are those of what is left."""
    output = str(tmp_path / "out")
    rows = many(1000)
    write(output, rows)
    passing = [row["image_id"] for row in rows if row[METRIC] >= 0.5]
    rejects = [row["image_id"] for row in rows if row[METRIC] < 0.5]
    pq.write_table(pa.table({"image_id": [*passing, *rejects[:100]]}), Path(output, listing.FILE))
    gone = listing.gone(output, tmp_path)
    labels = pa.table({"image_id": [*passing[:50], *rejects[50:350]]})
    found, kinds = audit.with_probabilities(labels, output, make_gate(0.5), "chance", gone=gone)
    assert kinds == audit.Labelled(passed=(50, len(passing)), rejected=(300, 100), gone=250)
    chance = np.asarray(found["chance"])
    assert chance.max() <= 1.0
    weight = 1 / chance
    # Passing ones and rejects weigh together as many as there are of them.
    assert weight[:50].sum() / weight[50:].sum() == pytest.approx(len(passing) / 100)


# ---- small nights ------------------------------------------------------------------------------------------


def _small(nights: Nights, name: str, count: int = 20, *, fewest: int = 60, **kind: Any) -> Night:
    """A night with fewer photographs than are needed to be tested. kind: of its photographs."""
    accept = {key: kind.pop(key) for key in ("again", "accept_drift") if key in kind}
    if not accept:
        nights.add(name, count, **kind)
    return nights.run(name, min_drift=fewest, **accept).night


def test_a_broken_camera_of_a_small_feed_is_noticed_once_there_are_enough(nights: Nights) -> None:
    first, second = (_small(nights, name, extra_blur=2.5) for name in ("n2", "n3"))
    for night, pooled in ((first, []), (second, ["n2"])):
        assert (night.trusted, night.steps["drift"]["settled"], night.steps["drift"]["pooled"]) == (True, False, pooled)
        # What nobody has tested is no reference.
        assert night.steps["drift"]["reference"] == FIRST
    assert _check(first, "drift").said == (
        "too few photographs, tonight's or the reference's, to speak of drift; they are tested together with the next "
        "nights'"
    )
    assert "with those of 1 night before that had too few to be tested: n2; they are" in _check(second, "drift").said
    third = _small(nights, "n4", extra_blur=2.5)
    assert (third.state, nights.failed("n4"), third.steps["drift"]["rows"]) == ("refused", ["drift"], 20)
    assert "; with those of 2 nights before that had too few to be tested: n2, n3" in third.reasons[0]
    # Labels of all three are left out from now on, and none is a reference.
    after = _small(nights, "n5", 60)
    assert (after.steps["drift"]["pooled"], after.steps["drift"]["reference"]) == ([], FIRST)
    assert after.steps["calibrate"]["left_out"]["untrusted"] == 60
    # Accepted, all three are.
    accepted = _small(nights, "n4", accept_drift=True)
    assert (accepted.trusted, accepted.steps["drift"]["pooled"]) == (True, ["n2", "n3"])
    last = _small(nights, "n6", 60)
    assert last.steps["drift"]["reference"] == FIRST + 60 + 60
    assert last.steps["calibrate"]["left_out"]["untrusted"] == 0


def test_a_sound_small_feed_becomes_a_reference_once_it_was_tested(nights: Nights) -> None:
    for name in ("n2", "n3", "n4"):
        night = _small(nights, name)
        assert (night.trusted, night.steps["drift"]["reference"]) == (True, FIRST)
    assert (night.steps["drift"]["settled"], night.steps["drift"]["pooled"]) == (True, ["n2", "n3"])
    changes = {one["what"]: one for one in night.steps["drift"]["changes"] if one["stratum"] == "all photographs"}
    assert (changes[METRIC]["current"], changes[METRIC]["word"]) == (60, "stable")
    after = _small(nights, "n5")
    assert (after.steps["drift"]["reference"], after.steps["drift"]["pooled"]) == (FIRST + 60, [])


def test_a_small_night_is_no_reference_for_one_before_it_either(nights: Nights) -> None:
    _small(nights, "n2", 60)
    _small(nights, "n3", extra_blur=2.5)
    again = _small(nights, "n2", again=True)
    assert (again.steps["drift"]["reference"], again.steps["drift"]["pooled"]) == (FIRST, [])


def test_without_anything_to_compare_with_small_nights_found_the_reference(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    found = [_small(nights, f"n{number}", fewest=30).steps["drift"] for number in (1, 2, 3)]
    assert [(one["settled"], one["pooled"], one["reference"]) for one in found] == [
        (False, [], 0),
        (True, ["n1"], 0),
        (False, [], 40),
    ]


def test_small_nights_done_again_end_the_same(nights: Nights) -> None:
    for name in ("n2", "n3", "n4", "n5"):
        _small(nights, name, extra_blur=2.5 if name < "n5" else 0.0)
    before = state_of(nights.output)
    for name in ("n2", "n4", "n3", "n5"):
        _small(nights, name, again=True)
    after = state_of(nights.output)
    for name in ("n2", "n3", "n4", "n5"):
        old, new = (state[f"{name}/record"]["steps"]["drift"] for state in (before, after))
        assert {key: new[key] for key in ("rows", "settled", "pooled", "drifted")} == {
            key: old[key] for key in ("rows", "settled", "pooled", "drifted")
        }
        assert after[f"{name}/record"]["trusted"] == before[f"{name}/record"]["trusted"]
    assert after["rows"] == before["rows"]


# ---- lazy votes --------------------------------------------------------------------------------------------


def _score(nights: Nights, **changed: Any) -> str:
    """Score the input by hand; returns the run."""
    by_hand = settings.of_score(nights.config("x")).model_copy(
        update={"input": str(nights.root / "in"), "metrics": ("lapm", "lapv", "wavs")} | changed
    )
    return scoring.run(by_hand, Silent()).run_id


def _lazily_scored(nights: Nights, tmp_path: Path) -> Nights:
    """The same feed in another output, scored by hand with --lazy: many photographs lack a metric."""
    content = dict(gate.load(nights.output).content)
    (line,) = content["methods"].values()
    whole = Nights(nights.root, feed=nights.feed, output=str(tmp_path / "whole"))
    _score(whole)
    rows = rows_of(whole.output)
    names = ("lapm", "lapv", "wavs")
    content["methods"] = {
        name: line | {"cutoff": float(np.median([row[name] for row in rows])), "interval": None} for name in names
    }
    content["fingerprints"] = {name: rows[0][scores.fingerprint_column(name)] for name in names}
    content["votes_needed"] = 2
    content["id"] = gate.identity(content)
    storage.write_bytes(str(tmp_path / "vote" / gate.FILE), gate.dump(content))
    lazy = Nights(nights.root, feed=copy.deepcopy(nights.feed), output=str(tmp_path / "lazy"))
    _score(lazy, gate=str(tmp_path / "vote"), lazy=True)
    states = [row["wavs_state"] for row in rows_of(lazy.output)]
    assert states.count(scores.SKIPPED_LAZY) > FIRST / 4
    return lazy


_THREE: dict[str, Any] = {
    "score": {"metrics": "lapm,lapv,wavs", "commit_rows": 16, "measure": False},
    "max_coverage_change": 1.0,
}


def test_a_table_that_was_scored_lazily_is_completed(nights: Nights, tmp_path: Path) -> None:
    lazy = _lazily_scored(nights, tmp_path)
    (run_id,) = {row["run_id"] for row in rows_of(lazy.output)}
    lazy.add("n2", 60)
    night = lazy.run("n2", **_THREE).night
    assert (night.state, lazy.failed("n2")) == ("promoted", [])
    assert all(row["wavs_state"] == scores.OK for row in rows_of(lazy.output))
    drift = night.steps["drift"]
    # They were there before the first night: the reference, not tonight's.
    assert (drift["rows"], drift["reference"], drift["by_hand"]) == (60, FIRST, [])
    assert [one["what"] for one in drift["changes"] if one["what"].startswith("missing:")] == []
    assert {row["run_id"] for row in rows_of(lazy.output)} == {run_id, "night-n2"}


def test_what_a_deadline_left_incomplete_is_compared_with_nothing(
    nights: Nights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lazy = _lazily_scored(nights, tmp_path)
    lazy.add("n2", 60)
    with monkeypatch.context() as patch:
        patch.setattr(scoring._Run, "late", lambda run: run.deadline is not None and run.recorder.rows > 40)
        night = lazy.run("n2", deadline="90m", canary=0, **_THREE).night
    assert (night.state, night.steps["drift"]["reference"]) == ("deadline", 0)
    assert any(row["wavs_state"] == scores.SKIPPED_LAZY for row in rows_of(lazy.output))
    night = lazy.run("n2", canary=0, **_THREE).night
    assert (night.state, night.steps["drift"]["reference"]) == ("promoted", FIRST)


# ---- failures ----------------------------------------------------------------------------------------------


def test_what_fails_for_the_first_time_counts_however_often_it_was_tried(nights: Nights) -> None:
    """Started again and again, a night tries what may pass again: that makes no old failures of tonight's."""
    old = nights.add("n2", 60)[:5]
    for name in old:
        (nights.root / "in" / name).write_bytes(b"")
    nights.run("n2", accept_drift=True)
    # As nights on end leave them that found no answer: failed many times, in runs that somebody has looked at.
    _as_failed(nights, old, "night-n2", attempts=4)
    nights.add("n3", 30)
    broken = [f"n3/p{number:04}.jpg" for number in range(6)]
    for name in broken:
        (nights.root / "in" / name).write_bytes(b"")
    # Tonight's were tried in five starts already.
    _as_failed(nights, broken, "night-n3", attempts=5)
    night = nights.run("n3", accept_drift=True).night
    attempts = {row["image_id"]: row["attempts"] for row in rows_of(nights.output, "night-n3") if row["error_code"]}
    assert attempts == dict.fromkeys(old, 5) | dict.fromkeys(broken, 6)
    assert (night.steps["drift"]["rows"], night.steps["drift"]["failed"]) == (30, 6)


def _as_failed(nights: Nights, names: list[str], run_id: str, *, attempts: int) -> None:
    writer = scores.Writer(nights.output, [METRIC], "by hand")
    some = rows_of(nights.output)[0]
    made = [
        some
        | {
            "image_id": name,
            "uri": str(nights.root / "in" / name),
            "etag": None,
            "status": "error",
            "error_code": "timeout",
            "attempts": attempts,
            "run_id": run_id,
            METRIC: None,
            scores.state_column(METRIC): f"{scores.FAILED}timeout",
        }
        for name in names
    ]
    rows = pa.Table.from_pylist(made, schema=writer.schema)
    writer.commit(rows.slice(0, 0), rows)


def test_old_failures_are_no_news_unless_the_photograph_is_another(tmp_path: Path, write: Any, many: Any) -> None:
    output = str(tmp_path)
    write(output, many(50, "fine"))
    failed = {METRIC: None, "error_code": "timeout"}
    write(output, [{"image_id": "twice", "attempts": 2, **failed}, {"image_id": "old", "attempts": 3, **failed}])
    write(output, [{"image_id": "nobody looked", "attempts": 9, **failed}], "night-n2")
    found = windows.failing_before(output, ["night-n1"], None)
    assert found is not None
    assert found["image_id"].to_pylist() == ["old"]
    other = windows.failing_before(output, ["night-n1"], pa.table({"image_id": ["old"]}))
    assert other is not None
    assert other.num_rows == 0
    read = windows.read(
        output, runs=["night-n1", "night-n2"], untrusted=[], days=28, gate=None, fewest=50, failing=found
    )
    assert (read.rows, read.failed) == (52, 2)


# ---- labels that aren't there ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "does not exist; check the path"),
        (pa.table({"image_id": ["a"], "correct": [True]}), "lacks the column confidence"),
        (b"no Parquet", "can't be read as a table"),
    ],
)
def test_predictions_that_cannot_be_used_are_said_before_anything_is_done(
    nights: Nights, tmp_path: Path, content: Any, said: str
) -> None:
    labels = tmp_path / "labels.parquet"
    if isinstance(content, bytes):
        labels.write_bytes(content)
    elif content is not None:
        pq.write_table(content, labels)
    nights.add("n2", 10)
    with pytest.raises(ConfigurationError, match=f"labels.parquet' {said}") as error:
        nights.run("n2", predictions=str(labels))
    assert error.value.exit_code == 2
    assert record.read(nights.output, "n2") is None
    assert len(rows_of(nights.output)) == FIRST


def test_predictions_that_vanish_while_a_night_is_at_work_are_a_reason_to_refuse(
    nights: Nights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = tmp_path / "labels.parquet"
    labels.write_bytes((nights.root / "labels.parquet").read_bytes())
    nights.add("n2", 10)
    real = job._Job._drift

    def vanish(self: Any) -> Any:
        labels.unlink()
        return real(self)

    monkeypatch.setattr(job._Job, "_drift", vanish)
    night = nights.run("n2", predictions=str(labels)).night
    assert (night.state, nights.failed("n2")) == ("refused", ["calibrate"])
    # Which night was it? It is told without them, too.
    assert nights.run("n2", predictions=str(labels)).already


# ---- old nights --------------------------------------------------------------------------------------------


def test_old_nights_lose_what_is_heavy_and_stay_trusted(nights: Nights) -> None:
    found = record.read(nights.output, "n1")
    assert found is not None
    record.write(
        nights.output, replace(found, started="2026-01-01T02:00:00+00:00", finished="2026-01-01T03:00:00+00:00")
    )
    sample = Path(record.place(nights.output, "n1", audit.FILE)).read_bytes()
    nights.add("n2", 60)
    night = nights.run("n2", keep_nights=30, reference_days=400).night
    # The report, the copy of the labels and what changed in the listing; the rest went when the night was promoted.
    assert night.steps["upkeep"]["removed_of_nights"] >= 2
    folder = Path(record.place(nights.output, "n1"))
    left = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert left == {"night.json", "audit_sample.parquet", "_config.yaml"}
    assert Path(folder, audit.FILE).read_bytes() == sample
    nights.add("n3", 60)
    after = nights.run("n3", reference_days=400).night
    assert (after.state, after.steps["drift"]["reference"]) == ("promoted", FIRST + 60)
    assert Path(record.place(nights.output, "n2", housekeeping.REPORT)).exists()

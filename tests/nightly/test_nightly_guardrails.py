"""Every guardrail on both sides of its bound, and what it says."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from qualitygate.calibration import gate as gates
from qualitygate.calibration import gate_store
from qualitygate.calibration.drift import DRIFTED, OVERALL, STABLE, TOO_FEW, Change
from qualitygate.calibration.gate import Gate
from qualitygate.calibration.gate_store import History
from qualitygate.config import NightlyConfig
from qualitygate.nightly import guardrails
from qualitygate.nightly.guardrails import Candidate
from qualitygate.nightly.record import Check

pytestmark = pytest.mark.filterwarnings("error")

MakeGate = Callable[..., Gate]
EMPTY = History(store="nowhere")


def _config(**given: Any) -> NightlyConfig:
    return NightlyConfig(**({"input": "in", "output": "out"} | given))


def _named(checks: Any) -> dict[str, Check]:
    found = list(checks)
    assert len({one.name for one in found}) == len(found)
    return {one.name: one for one in found}


# ---- of tonight's photographs ------------------------------------------------------------------------------


@pytest.mark.parametrize(("failed", "passes"), [(0, True), (10, True), (11, False)])
def test_errors(failed: int, passes: bool) -> None:
    check = _named(guardrails.of_tonight(_config(max_error_rate=0.1), 100, failed, []))["errors"]
    assert (check.passed, check.value, check.limit) == (passes, failed / 100, 0.1)


def test_a_night_without_photographs_has_no_errors() -> None:
    checks = _named(guardrails.of_tonight(_config(), 0, 0, []))
    assert all(check.passed for check in checks.values())
    assert checks["drift"].said == "too few photographs, tonight's or the reference's, to speak of drift"


def _change(what: str, word: Any = DRIFTED, stratum: str = OVERALL, psi: float | None = 0.3) -> Change:
    few = word == TOO_FEW
    return Change(
        what=what,
        stratum=stratum,
        reference=100,
        current=90,
        word=word,
        p_value=None if few else 1e-9,
        p_holm=None if few else 1e-8,
        psi=None if few else psi,
        before=0.5,
        after=0.25,
    )


def test_drift_stops_unless_it_is_accepted() -> None:
    changes = [_change("lapm"), _change("lapm", stratum="camera M"), _change("wavs", STABLE), _change("niqe", TOO_FEW)]
    check = _named(guardrails.of_tonight(_config(), 90, 0, changes))["drift"]
    assert not check.passed
    # What has drifted as a whole is not told again of its parts.
    assert check.value == 1
    said = "lapm fell from a median of 0.5 to 0.25: worse quality (PSI 0.30, 90 photographs); look at them"
    assert said in check.said
    accepted = _named(guardrails.of_tonight(_config(accept_drift=True), 90, 0, changes))["drift"]
    assert accepted.passed
    assert accepted.said.startswith("drift, accepted: lapm fell")


def test_drift_of_a_part_alone_stops_too() -> None:
    changes = [_change("lapm", STABLE), _change("coverage", stratum="camera M", psi=None)]
    check = _named(guardrails.of_tonight(_config(), 90, 0, changes))["drift"]
    assert not check.passed
    assert "the share that passes of camera M fell from 50.0% to 25.0% (90 photographs)" in check.said


def _told(*changes: Change) -> list[str]:
    return guardrails.drifts(changes, guardrails.limits(_config()))


@pytest.mark.parametrize(
    ("method", "before", "after", "said"),
    [
        ("lapm", 8.412, 3.1, "lapm fell from a median of 8.412 to 3.1: worse quality"),
        ("lapm", 3.1, 8.412, "lapm rose from a median of 3.1 to 8.412: better quality"),
        # Of NIQE lower is better.
        ("niqe", 3.1, 8.4, "niqe rose from a median of 3.1 to 8.4: worse quality"),
        ("niqe", 8.4, 3.1, "niqe fell from a median of 8.4 to 3.1: better quality"),
        ("lapm", 8.4, 8.40001, "lapm is spread otherwise around its median of 8.4"),
        ("no such method", 2.0, 1.0, "no such method fell from a median of 2 to 1"),
    ],
)
def test_a_drift_has_a_direction_and_says_what_it_means(method: str, before: float, after: float, said: str) -> None:
    (told,) = _told(replace(_change(method), before=before, after=after))
    assert told == f"{said} (PSI 0.30, 90 photographs)"


def test_rates_have_a_direction_and_errors_their_code() -> None:
    errors = replace(_change("errors", psi=None), before=0.005, after=0.48)
    truncated = replace(errors, what="error:truncated", before=0.0, after=0.46)
    denied = replace(errors, what="error:denied", before=0.0, after=0.03)
    assert _told(denied, truncated, errors) == [
        "the share without any score rose from 0.5% to 48.0% (90 photographs, mostly truncated)"
    ]
    # A code may drift though all errors together have not.
    assert _told(truncated) == ["the share that fails as truncated rose from 0.0% to 46.0% (90 photographs)"]
    missing = replace(errors, what="missing:musiq", before=0.1, after=0.0)
    assert _told(missing) == ["the share without musiq fell from 10.0% to 0.0% (90 photographs)"]


def test_a_thing_is_told_of_the_largest_part_in_which_it_drifted_and_where_most() -> None:
    small = replace(_change("lapm", stratum="camera A", psi=2.0), current=60)
    large = replace(_change("lapm", stratum="camera B", psi=0.3), current=300)
    assert _told(small, large) == [
        "lapm of camera B fell from a median of 0.5 to 0.25: worse quality (PSI 0.30, 300 photographs)"
    ]
    whole = replace(_change("lapm", psi=0.5), current=360)
    (told,) = _told(small, large, whole)
    assert told.endswith("(PSI 0.50, 360 photographs, most in camera A)")
    (told,) = _told(large, whole)
    assert "most in" not in told


def test_many_drifts_are_told_in_part_the_largest_first() -> None:
    changes = [_change(f"m{number}", psi=0.3 + number / 10) for number in range(9)]
    # Ten times its limit of five points.
    changes.append(replace(_change("coverage", psi=None), before=0.9, after=0.4))
    check = _named(guardrails.of_tonight(_config(), 90, 0, changes))["drift"]
    assert check.value == 10
    places = [check.said.index(told) for told in ("the share that passes", "m8 fell", "m7 fell", "and 7 more")]
    assert places == sorted(places)
    assert "m6 fell" not in check.said


def test_no_drift_is_said_only_where_something_was_compared() -> None:
    check = _named(guardrails.of_tonight(_config(), 90, 0, [_change("lapm", STABLE)]))["drift"]
    assert (check.passed, check.said) == (True, "tonight's photographs are like the reference's")
    check = _named(guardrails.of_tonight(_config(), 90, 0, [_change("lapm", TOO_FEW)]))["drift"]
    assert (check.passed, check.said[:7]) == (True, "too few")


# ---- of the new gate -----------------------------------------------------------------------------------------


def _photographs(count: int = 400, *, held_out: Callable[[np.ndarray], np.ndarray] | None = None) -> pa.Table:
    """Scores uniform in [0, 1): right from .5 up, but for every tenth photograph."""
    scores = (np.arange(count) + 0.5) / count
    correct = (scores >= 0.5) != (np.arange(count) % 10 == 0)
    passed = (scores >= 0.5).astype(float) if held_out is None else held_out(scores)
    return pa.table(
        {
            "image_id": [f"p{number}" for number in range(count)],
            "group": pa.array([None] * count, pa.string()),
            "correct": correct,
            "lapm": scores,
            "held_out_passed": passed,
        }
    )


def _candidate(gate: Gate, **changed: Any) -> Candidate:
    usual: dict[str, Any] = {"photographs": _photographs(), "seen": None, "refusal": None}
    return Candidate(gate=gate, **(usual | {"coverage": 0.5, "coverage_before": 0.5} | changed))


def _checked(
    new: Candidate, old: Gate | None, history: History = EMPTY, *, drifted: bool = False, **config: Any
) -> dict[str, Check]:
    return _named(guardrails.of_candidate(_config(**config), new, old, history, drifted))


def test_a_sound_candidate_passes_everything(make_gate: MakeGate) -> None:
    checks = _checked(_candidate(make_gate(0.51)), make_gate(0.5))
    assert all(check.passed for check in checks.values())
    names = {
        "labelled",
        "rejects labelled",
        "decides",
        "cut-off lapm",
        "methods",
        "coverage",
        "coverage change",
        "value",
    }
    assert set(checks) == {*names, "not withdrawn"}


def test_the_first_gate_is_compared_with_none(make_gate: MakeGate) -> None:
    checks = _checked(_candidate(make_gate(0.5), coverage_before=None), None)
    assert all(check.passed for check in checks.values())
    assert set(checks) == {"labelled", "rejects labelled", "decides", "coverage", "not withdrawn"}
    assert "ones that the new gate rejects" in checks["rejects labelled"].said


@pytest.mark.parametrize(("count", "passes"), [(199, False), (200, True)])
def test_labelled(make_gate: MakeGate, count: int, passes: bool) -> None:
    new = _candidate(make_gate(), photographs=_photographs(count))
    assert _checked(new, make_gate(), min_labelled=200)["labelled"].passed is passes


@pytest.mark.parametrize(("needed", "passes"), [(40, True), (41, False)])
def test_rejects_are_those_of_the_gate_in_force(make_gate: MakeGate, needed: int, passes: bool) -> None:
    # It rejects what scores below .1: 40 of 400; the new one would reject half.
    new = _candidate(make_gate(0.5))
    check = _checked(new, make_gate(0.1), min_audited=needed)["rejects labelled"]
    assert (check.passed, check.value) == (passes, 40)
    assert ("label the audit samples" in check.said) is not passes


def test_a_gate_that_cannot_decide_is_not_looked_at_further(make_gate: MakeGate) -> None:
    undecided = make_gate(None, status="undefined")
    for old in (None, make_gate()):
        checks = _checked(_candidate(undecided, refusal="none may vote"), old)
        assert (checks["decides"].passed, checks["decides"].said) == (False, "none may vote")
        assert set(checks) <= {"labelled", "rejects labelled", "decides"}


@pytest.mark.parametrize(
    ("before", "after", "passes"),
    [
        ((0.5, [0.4, 0.6]), (0.6, [0.59, 0.7]), True),
        # Only the new interval reaches back: still the same line.
        ((0.5, [0.49, 0.51]), (0.6, [0.5, 0.7]), True),
        ((0.5, [0.4, 0.55]), (0.6, [0.56, 0.7]), False),
    ],
)
def test_a_cutoff_may_move_as_far_as_the_intervals_say(
    make_gate: MakeGate, before: tuple[float, Any], after: tuple[float, Any], passes: bool
) -> None:
    old, new = (make_gate(cutoff, interval=interval) for cutoff, interval in (before, after))
    check = _checked(_candidate(new), old)["cut-off lapm"]
    assert check.passed is passes
    accepted = _checked(_candidate(new), old, drifted=True)["cut-off lapm"]
    assert accepted.passed
    assert ("which the accepted drift explains" in accepted.said) is not passes


def test_a_method_that_voted_has_to_go_on(make_gate: MakeGate) -> None:
    voter = make_gate().content["methods"]["lapm"]
    lost = voter | {"status": "undefined", "cutoff": None, "interval": None, "reason": "it does not separate"}
    old, new = make_gate(methods={"lapm": voter, "wavs": voter}), make_gate(methods={"lapm": voter, "wavs": lost})
    photographs = _photographs().append_column("wavs", _photographs()["lapm"])
    check = _checked(_candidate(new, photographs=photographs), old)["methods"]
    assert (check.passed, check.said) == (False, "had a cut-off and has none now: wavs (it does not separate)")
    # One that never voted may stay away, and a new one may come.
    checks = _checked(_candidate(old, photographs=photographs), new)
    assert checks["methods"].passed
    gone = _checked(_candidate(make_gate(), photographs=photographs), old)["methods"]
    assert gone.said.endswith("wavs (not asked for)")


@pytest.mark.parametrize(("share", "passes"), [(0.29, False), (0.3, True), (0.9, True), (0.91, False)])
def test_coverage(make_gate: MakeGate, share: float, passes: bool) -> None:
    new = _candidate(make_gate(), coverage=share, coverage_before=share)
    for drifted in (False, True):
        found = _checked(new, make_gate(), drifted=drifted, min_coverage=0.3, max_coverage=0.9)["coverage"]
        assert found.passed is passes


@pytest.mark.parametrize(("share", "passes"), [(0.4, True), (0.39, False), (0.6, True), (0.61, False)])
def test_coverage_change(make_gate: MakeGate, share: float, passes: bool) -> None:
    new = _candidate(make_gate(), coverage=share, coverage_before=0.5)
    check = _checked(new, make_gate(), max_coverage_change=0.1)["coverage change"]
    assert check.passed is passes
    assert f"{100 * (share - 0.5):+.1f} points" in check.said
    accepted = _checked(new, make_gate(), max_coverage_change=0.1, drifted=True)["coverage change"]
    assert accepted.passed
    assert accepted.said.endswith("drift was accepted") is not passes


# ---- value -----------------------------------------------------------------------------------------------------


def test_a_gate_that_does_worse_on_photographs_it_has_not_seen_is_refused(make_gate: MakeGate) -> None:
    worse = _photographs(held_out=lambda scores: (scores >= 0.8).astype(float))
    check = _checked(_candidate(make_gate(), photographs=worse), make_gate(0.5))["value"]
    assert (check.passed, check.limit) == (False, -0.02)
    assert check.value is not None
    assert check.value < -0.3
    assert _checked(_candidate(make_gate(), photographs=worse), make_gate(0.5), max_value_loss=0.6)["value"].passed


def test_a_loss_that_may_be_chance_is_no_loss(make_gate: MakeGate) -> None:
    # One photograph decides otherwise, of fifty.
    few = _photographs(50, held_out=lambda scores: (scores >= 0.53).astype(float))
    check = _checked(_candidate(make_gate(), photographs=few), make_gate(0.5), max_value_loss=0.0)["value"]
    assert check.value is not None
    assert check.value < 0
    assert check.passed


def test_the_gate_in_force_has_no_advantage_on_its_own_photographs(make_gate: MakeGate) -> None:
    """It fits those it was made from; gates of other groups, as its cross-fitting has them, did as the new one does."""
    rows = _photographs(held_out=lambda scores: (scores >= 0.6).astype(float))
    fitted = _checked(_candidate(make_gate(), photographs=rows), make_gate(0.5))["value"]
    assert not fitted.passed
    seen = rows.select(["image_id", "held_out_passed"])
    fair = _checked(_candidate(make_gate(), photographs=rows, seen=seen), make_gate(0.5))["value"]
    assert (fair.passed, fair.value) == (True, 0.0)
    # On those that came since, it is what it is.
    half = _checked(_candidate(make_gate(), photographs=rows, seen=seen.slice(0, 200)), make_gate(0.5))["value"]
    assert half.value == fitted.value


@pytest.mark.parametrize("unknown", ["held_out_passed", "seen", "method", "correct"])
def test_what_cannot_be_compared_is_said(make_gate: MakeGate, unknown: str) -> None:
    rows = _photographs()
    seen, old = None, make_gate()
    nothing = pa.array([None] * rows.num_rows, pa.float64())
    if unknown == "held_out_passed":
        rows = rows.set_column(rows.column_names.index(unknown), unknown, nothing)
    if unknown == "seen":
        seen = pa.table({"image_id": rows["image_id"], "held_out_passed": nothing})
    if unknown == "method":
        old = make_gate(methods={"niqe": make_gate().content["methods"]["lapm"]})
    if unknown == "correct":
        rows = rows.set_column(rows.column_names.index(unknown), unknown, pa.array([True] * rows.num_rows))
    check = _checked(_candidate(make_gate(), photographs=rows, seen=seen), old)["value"]
    assert check.passed
    assert "compare" in check.said


def test_weights_count(make_gate: MakeGate) -> None:
    """The new gate errs on the right photographs between .5 and .6 alone: what they stand for decides."""
    rows = _photographs(held_out=lambda scores: (scores >= 0.6).astype(float))
    inside = (np.asarray(rows["lapm"]) >= 0.5) & (np.asarray(rows["lapm"]) < 0.6)
    values = [
        _checked(
            _candidate(make_gate(), photographs=rows.append_column("weight", pa.array(np.where(inside, weight, 1.0)))),
            make_gate(0.5),
        )["value"].value
        for weight in (0.1, 1.0, 10.0)
    ]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == 3


# ---- what people have done ---------------------------------------------------------------------------------------


def _kept(folder: Path, gate: Gate) -> str:
    place = folder / gate.id
    place.mkdir(parents=True, exist_ok=True)
    (place / gates.FILE).write_bytes(gates.dump(gate.content))
    return str(place)


def test_a_gate_from_which_somebody_rolled_back_stays_out(tmp_path: Path, make_gate: MakeGate) -> None:
    store, good, bad = str(tmp_path / "gates"), make_gate(0.5), make_gate(0.52)
    for one in (good, bad):
        gate_store.promote(store, _kept(tmp_path / "made", one), reason="next")
    gate_store.rollback(store, reason="it was bad")
    history = gate_store.read(store)
    # The same by another name: only its parent differs.
    again = make_gate(0.52, parent="x")
    check = _checked(_candidate(again), good, history)["not withdrawn"]
    assert (check.passed, check.said) == (False, f"it is gate {bad.id}, from which somebody rolled back")
    assert _checked(_candidate(make_gate(0.53)), good, history)["not withdrawn"].passed


def test_promotions_may_be_held(tmp_path: Path, make_gate: MakeGate) -> None:
    store = str(tmp_path / "gates")
    for cutoff in (0.5, 0.52):
        gate_store.promote(store, _kept(tmp_path / "made", make_gate(cutoff)), reason="next")
    gate_store.rollback(store, reason="wait", held=True)
    check = _checked(_candidate(make_gate(0.51)), make_gate(0.5), gate_store.read(store))["not withdrawn"]
    assert not check.passed
    assert "held" in check.said

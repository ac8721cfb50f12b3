"""Whose photographs a night judges, which are a reference for it and which count for nothing: by the records alone."""

from collections.abc import Sequence
from typing import Any

import pytest

from qualitygate.nightly import trust
from qualitygate.nightly.record import Check, Night
from qualitygate.nightly.trust import Beside, Doubts

pytestmark = pytest.mark.filterwarnings("error")


def _night(number: int, *, failed: Sequence[str] = (), state: str = "kept", **drift: Any) -> Night:
    """A night that ended with twenty photographs. failed: names of checks that didn't hold."""
    checks = [
        Check(name=name, passed=name not in failed, said="") for name in ("canary", "errors", "drift", "labelled")
    ]
    step = {"rows": 20, "settled": True, "runs": [], "checks": [vars_of(one) for one in checks]} | drift
    ended = state != "running"
    return Night(
        night=f"n{number}",
        started=f"2026-01-{number:02}",
        state="refused" if failed else state,  # type: ignore[arg-type]
        trusted=trust.is_sound(checks) and ended,
        checks=tuple(checks) if ended else (),
        steps={"drift": step} if ended else {"canary": {}},
    )


def vars_of(check: Check) -> dict[str, Any]:
    return {"name": check.name, "passed": check.passed, "said": check.said}


def _small(number: int, **more: Any) -> Night:
    return _night(number, settled=False, **more)


def _tonight(number: int = 9) -> Night:
    return Night(night=f"n{number}", started=f"2026-01-{number:02}")


def _beside(*others: Night, runs: Sequence[str] = (), tonight: int = 9) -> Beside:
    return trust.beside(_tonight(tonight), others, runs)


def _doubts(*others: Night, runs: Sequence[str] = ()) -> Doubts:
    return trust.doubts(_tonight(), others, runs)


def test_nights_too_small_to_be_tested_are_pooled_until_they_have_been() -> None:
    others = [_night(1), _small(2), _small(3, pooled=["n2"])]
    assert _beside(*others) == Beside(pooled=("n2", "n3"))
    assert _doubts(*others) == Doubts(untested=("night-n2", "night-n3"))
    others.append(_night(4, pooled=["n2", "n3"]))
    assert _beside(*others) == Beside()
    assert _doubts(*others) == Doubts()


def test_a_pool_that_has_drifted_condemns_all_that_were_in_it() -> None:
    others = [_night(1), _small(2), _small(3, pooled=["n2"]), _night(4, failed=["drift"], pooled=["n2", "n3"])]
    assert _beside(*others) == Beside()
    assert _doubts(*others) == Doubts(untrusted=("night-n2", "night-n3", "night-n4"))
    # It may have drifted though few have a score, as where the share that fails has.
    others[3] = _small(4, failed=["drift"], pooled=["n2", "n3"])
    assert _beside(*others) == Beside()
    assert _doubts(*others) == Doubts(untrusted=("night-n2", "night-n3", "night-n4"))


def test_errors_of_one_night_are_not_those_of_the_nights_that_it_was_tested_with() -> None:
    others = [_night(1), _small(2), _night(3, failed=["errors"], pooled=["n2"])]
    assert _beside(*others) == Beside()
    assert _doubts(*others) == Doubts(untrusted=("night-n3",))
    # Nor has a night tested anybody that was itself too small.
    others[2] = _small(3, failed=["errors"], pooled=["n2"])
    assert _beside(*others) == Beside(pooled=("n2",))
    assert _doubts(*others) == Doubts(untested=("night-n2",), untrusted=("night-n3",))


def test_a_small_night_that_was_refused_for_its_photographs_is_pooled_with_nobody() -> None:
    for check in ("canary", "errors", "drift"):
        assert _beside(_night(1), _small(2, failed=[check])) == Beside()
    assert _beside(_night(1), _small(2, failed=["labelled"])) == Beside(pooled=("n2",))
    assert _beside(_night(1), _small(2, rows=0)) == Beside()


def test_a_night_that_is_done_again_finds_what_it_found_at_first() -> None:
    others = [_night(1), _small(2), _night(4, pooled=["n2", "n3"]), _small(5), _night(6, state="running")]
    assert _beside(*others, tonight=3) == Beside(pooled=("n2",))
    assert _beside(*others) == Beside(unfinished=("n6",), pooled=("n5",))


def test_what_a_small_night_judged_with_its_own_is_judged_again() -> None:
    running = _night(2, state="running")
    by_hand = {"unfinished": ["n2"], "by_hand": ["x"], "runs": ["night-n1", "x"]}
    others = [_night(1, runs=["night-n1"]), running, _small(3, **by_hand)]
    assert _beside(*others, runs=["night-n1", "x"]) == Beside(unfinished=("n2",), by_hand=("x",), pooled=("n3",))
    assert _doubts(*others) == Doubts(untested=("night-n2", "night-n3", "x"))
    others = [_night(1, runs=["night-n1"]), running, _night(3, **by_hand)]
    assert _beside(*others, runs=["night-n1", "x"]) == Beside()
    assert _doubts(*others) == Doubts()
    others = [_night(1, runs=["night-n1"]), running, _night(3, failed=["errors"], **by_hand)]
    assert _beside(*others, runs=["night-n1", "x"]) == Beside()
    assert _doubts(*others) == Doubts(untrusted=("night-n2", "night-n3", "x"))


def test_what_was_scored_by_hand_before_the_first_night_is_a_reference() -> None:
    others = [_night(1, runs=["before", "night-n1"]), _night(2, runs=["before", "night-n1", "night-n2"])]
    assert _beside(*others, runs=["before", "night-n1", "since"]) == Beside(by_hand=("since",))
    assert _beside(runs=["before"]) == Beside()


def test_a_run_that_only_a_lost_night_has_judged_is_judged_again() -> None:
    """Night 3 had refused 'x', and its record is gone; that of night 4 tells that the run was there."""
    everything = ["night-n1", "night-n3", "night-n4", "x"]
    others = [_night(1, runs=["night-n1"]), _night(4, runs=everything)]
    assert _beside(*others, runs=everything) == Beside(by_hand=("x",))
    assert _doubts(*others, runs=everything) == Doubts(untrusted=("night-n3",))


def test_of_a_night_that_failed_its_pool_is_set_aside_only_for_its_drift() -> None:
    beside = {"unfinished": ["n7"], "by_hand": ["x"], "pooled": ["n8"]}
    own = ["night-n9", "night-n7", "x"]
    found = {
        check: trust.set_aside(_night(9, failed=[check], **beside), [], ["night-n9"])
        for check in ("labelled", "errors", "drift")
    }
    assert found == {"labelled": [], "errors": own, "drift": [*own, "night-n8"]}
    assert trust.set_aside(_night(9, **beside), [_night(2, failed=["drift"])], []) == ["night-n2"]
    # Tonight's verdict on them comes first.
    assert trust.set_aside(_night(9, **beside), [_night(7, state="running")], []) == []


def test_runs_that_some_night_has_looked_at() -> None:
    others = [_night(1, runs=["x", "night-n1"]), _night(2, failed=["drift"]), _night(3, state="running")]
    assert trust.judged(others) == ["night-n1", "night-n2", "x"]

"""The canary: the same bytes must score the same; everything else that may happen to a photograph is no alarm."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from qualitygate.nightly import canary
from qualitygate.nightly.canary import Moved, Shift
from qualitygate.tables import scores

pytestmark = pytest.mark.filterwarnings("error")

SCHEMA = scores.schema(["lapm"])
BOUND = 1e-3


def _rows(values: Sequence[float | None], **of_row: Mapping[int, Mapping[str, Any]]) -> pa.Table:
    """Photographs with these scores. changed: other columns of some of them, by number."""
    changed = of_row.get("changed", {})
    made = []
    for number, value in enumerate(values):
        row = {
            "image_id": f"p{number}",
            "sha256": f"sha {number}",
            "status": "ok" if value is not None else "error",
            "attempts": 1,
            "run_id": "r",
            "scored_at": 0,
            "lapm": value,
            "lapm_fingerprint": "f",
        }
        made.append(row | changed.get(number, {}))
    return pa.Table.from_pylist(made, schema=SCHEMA)


KNOWN = [0.0, *(float(number) for number in range(1, 100)), 1000.0]
# The 5 to 95 % spread of KNOWN: what its one outlier does not stretch.
SPREAD = 90.0


def _compared(found: pa.Table) -> Moved:
    (moved,) = canary.compare(_rows(KNOWN), found, ["lapm"], BOUND)
    return moved


def test_the_same_scores_have_not_moved() -> None:
    moved = _compared(_rows(KNOWN))
    assert (moved.compared, moved.largest, moved.lost, moved.passed, moved.worst) == (101, 0.0, 0, True, None)


@pytest.mark.parametrize(("share", "passes"), [(0.9 * BOUND, True), (1.1 * BOUND, False)])
def test_one_photograph_that_moved_past_the_bound_is_enough(share: float, passes: bool) -> None:
    moved = _compared(_rows([*KNOWN[:7], KNOWN[7] - share * SPREAD, *KNOWN[8:]]))
    assert moved.largest == pytest.approx(share)
    assert (moved.passed, moved.worst) == (passes, "p7")
    assert ("lapm moved by up to" in canary.said([moved])) is not passes


def test_the_metric_that_moved_most_is_told_first() -> None:
    moved = _compared(_rows([*KNOWN[:7], KNOWN[7] - 2 * BOUND * SPREAD, *KNOWN[8:]]))
    worse = replace(moved, metric="niqe", largest=0.26)
    lost = replace(moved, metric="brisque", lost=2)
    other = replace(moved, metric="lapv", definition=True)
    told = [part.partition(" by ")[0] for part in canary.said([moved, worse]).split("; ")]
    assert told == ["niqe moved", "lapm moved"]
    assert canary.said([moved, worse, lost]).startswith("2 of 101 photographs lost their brisque")
    assert canary.said([moved, lost, other]).startswith("lapv is computed by another definition")


@pytest.mark.parametrize("code", ["undecodable", "non_finite", "worker_crash", "out_of_memory"])
def test_a_score_that_is_lost_is_an_alarm(code: str) -> None:
    # The worker that a photograph ends has no hash of it to tell.
    hashed = "sha 3" if code in ("undecodable", "non_finite") else None
    gone = {3: {"lapm": None, "sha256": hashed, "error_code": code}}
    moved = _compared(_rows(KNOWN, changed=gone))
    assert (moved.lost, moved.passed, moved.worst, moved.compared) == (1, False, "p3", 101)
    assert "1 of 101 photographs lost their lapm" in canary.said([moved])


@pytest.mark.parametrize(
    "changed",
    [
        {"sha256": "other bytes", "lapm": -5.0},
        {"sha256": "other bytes", "lapm": None, "error_code": "truncated", "lapm_fingerprint": "g"},
        *({"sha256": None, "lapm": None, "error_code": code} for code in ("missing", "denied", "timeout", "transient")),
        {"sha256": None, "lapm": None, "error_code": "too_large"},
    ],
)
def test_other_bytes_and_photographs_that_are_away_tell_nothing(changed: dict[str, Any]) -> None:
    moved = _compared(_rows(KNOWN, changed={3: changed}))
    assert (moved.compared, moved.largest, moved.lost, moved.definition, moved.passed) == (100, 0.0, 0, False, True)


@pytest.mark.parametrize("lost", [False, True])
def test_the_photographs_that_moved_most_are_kept_with_both_scores(lost: bool) -> None:
    changed: dict[int, Any] = {number: {"lapm": KNOWN[number] + number} for number in range(10, 20)}
    if lost:
        changed[3] = {"lapm": None, "error_code": "non_finite"}
    moved = _compared(_rows(KNOWN, changed=changed))
    expected = [Shift(image_id=f"p{number}", before=KNOWN[number], after=KNOWN[number] + number) for number in (19, 18)]
    gone = [Shift(image_id="p3", before=KNOWN[3], after=None)] if lost else []
    assert list(moved.shifts[: len(gone) + 2]) == [*gone, *expected]
    assert len(moved.shifts) == 6
    # A sentence that named one of them would outlive its erasure.
    assert "'p" not in canary.said([moved])


@pytest.mark.parametrize(("away", "passed"), [(50, True), (51, False)])
def test_a_store_that_withholds_most_of_them_is_an_alarm(away: int, passed: bool) -> None:
    denied = {"sha256": None, "lapm": None, "error_code": "denied"}
    moved = _compared(_rows(KNOWN, changed=dict.fromkeys(range(away), denied)))
    assert (moved.away, moved.passed) == (away, passed)
    if not passed:
        assert canary.said([moved]) == "51 photographs could not be read, only 50 of lapm be compared"
        assert "credentials" in canary.remedy([moved])


def test_photographs_that_were_not_scored_again_tell_nothing() -> None:
    assert _compared(_rows(KNOWN[:40])).compared == 40


def test_another_definition_is_an_alarm_though_no_score_moved() -> None:
    moved = _compared(_rows(KNOWN, changed={0: {"lapm_fingerprint": "g"}}))
    assert (moved.largest, moved.definition, moved.passed) == (0.0, True, False)
    assert canary.said([moved]) == "lapm is computed by another definition than before"


def test_without_a_spread_a_scores_own_size_is_the_scale() -> None:
    (moved,) = canary.compare(_rows([40.0]), _rows([40.4]), ["lapm"], BOUND)
    assert moved.largest == pytest.approx(0.01)
    (moved,) = canary.compare(_rows([0.0]), _rows([0.5]), ["lapm"], BOUND)
    assert moved.largest == pytest.approx(0.5)


def test_a_photograph_that_never_had_the_score_is_left_out() -> None:
    (moved,) = canary.compare(_rows([1.0, None]), _rows([1.0, 3.0]), ["lapm"], BOUND)
    assert (moved.compared, moved.passed) == (1, True)


# ---- which photographs -----------------------------------------------------------------------------------


def test_it_is_drawn_from_all_scored_photographs_and_the_same_each_time(
    tmp_path: Path, write: Callable[..., None], many: Callable[..., list[dict[str, Any]]]
) -> None:
    output = str(tmp_path)
    assert canary.choose(output, 20) is None
    write(output, [*many(300, "a/"), *many(300, "b/"), {"image_id": "broken", "lapm": None}])
    chosen = canary.choose(output, 20)
    assert chosen is not None
    ids = chosen["image_id"].to_pylist()
    assert len(set(ids)) == 20
    assert "broken" not in ids
    assert {name[0] for name in ids} == {"a", "b"}
    again = canary.choose(output, 20)
    assert again is not None
    assert again.equals(chosen)
    assert canary.metrics_in(chosen) == ("lapm",)
    canary.write(output, chosen)
    kept = canary.read(output)
    assert kept is not None
    assert kept.equals(chosen)


def test_scores_of_other_definitions_on_purpose_are_told_from_an_accident(
    tmp_path: Path, write: Callable[..., None], many: Callable[..., list[dict[str, Any]]]
) -> None:
    output = str(tmp_path)
    write(output, many(30))
    chosen = canary.choose(output, 10)
    assert chosen is not None
    assert not canary.redefined(chosen, output)
    # A new photograph of another definition is none of the canary's.
    write(output, [{"image_id": "new", "lapm": 1.0, "lapm_fingerprint": "g"}])
    assert not canary.redefined(chosen, output)
    column = pa.array(["of a release before"] * 10)
    older = chosen.set_column(chosen.column_names.index("lapm_fingerprint"), "lapm_fingerprint", column)
    assert canary.redefined(older, output)
    assert canary.redefined(chosen.drop_columns(["lapm"]), output)

"""Which photographs are compared with which: tonight's with those that were sound, of late, and not too many."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qualitygate.calibration.gate import Gate
from qualitygate.nightly import windows
from qualitygate.nightly.windows import Windows
from qualitygate.report import wording

pytestmark = pytest.mark.filterwarnings("error")

Write = Callable[..., None]
Many = Callable[..., list[dict[str, Any]]]
MakeGate = Callable[..., Gate]
NOW = datetime(2026, 11, 23, 2, 0, tzinfo=UTC)


def _read(output: Path, *runs: str, untrusted: tuple[str, ...] = (), gate: Gate | None = None) -> Windows:
    return windows.read(str(output), runs=runs, untrusted=untrusted, days=28, gate=gate, fewest=50)


def _sizes(found: Windows) -> tuple[int, int]:
    return len(found.reference) if found.reference is not None else 0, len(found.tonight)


def test_the_first_night_has_no_reference(tmp_path: Path, write: Write, many: Many) -> None:
    write(str(tmp_path), many(60))
    found = _read(tmp_path, "night-n1")
    assert found.reference is None
    assert (found.rows, found.failed, len(found.tonight)) == (60, 0, 60)


def test_nights_that_nobody_trusts_are_no_reference(tmp_path: Path, write: Write, many: Many) -> None:
    write(str(tmp_path), many(60, "a"), "night-n1")
    write(str(tmp_path), many(70, "b"), "night-n2")
    write(str(tmp_path), many(80, "c"), "night-n3")
    write(str(tmp_path), many(90, "d"), "by hand")
    assert _sizes(_read(tmp_path, "night-n3")) == (220, 80)
    assert _sizes(_read(tmp_path, "night-n3", untrusted=("night-n2",))) == (150, 80)
    # A night that nobody finished is judged together with tonight's.
    assert _sizes(_read(tmp_path, "night-n3", "night-n2")) == (150, 150)


def test_the_reference_is_as_young_as_may_be(tmp_path: Path, write: Write, many: Many) -> None:
    write(str(tmp_path), many(60, "old"), "night-n1", NOW - timedelta(days=29))
    write(str(tmp_path), many(49, "young"), "night-n2", NOW - timedelta(days=27))
    write(str(tmp_path), many(10, "new"), "night-n3", NOW)
    # Too few are young: better old ones than none.
    assert _sizes(_read(tmp_path, "night-n3")) == (109, 10)
    write(str(tmp_path), many(1, "more"), "night-n2", NOW - timedelta(days=27))
    assert _sizes(_read(tmp_path, "night-n3")) == (50, 10)
    # Its age is counted from tonight's photographs: a night that is done again later finds the same ones.
    assert _sizes(_read(tmp_path, "night-n2")) == (60 + 10, 50)


def test_a_night_without_anything_new_is_a_window_too(
    tmp_path: Path, write: Write, many: Many, make_gate: MakeGate
) -> None:
    write(str(tmp_path), many(60))
    found = _read(tmp_path, "night-n2", gate=make_gate())
    assert (_sizes(found), found.rows, found.failed, found.new_strata) == ((60, 0), 0, 0, {})


def test_windows_hold_a_part_of_very_many_and_count_all(
    tmp_path: Path, write: Write, many: Many, make_gate: MakeGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "_MOST", 500)
    rows = many(2000)
    for row in rows[:200]:
        row["lapm"] = None
    write(str(tmp_path), rows)
    found = _read(tmp_path, "night-n1", gate=make_gate(0.5))
    assert (found.rows, found.failed, len(found.tonight)) == (2000, 200, 500)
    again = _read(tmp_path, "night-n1", gate=make_gate(0.5))
    assert np.array_equal(again.tonight.scores["lapm"], found.tonight.scores["lapm"], equal_nan=True)
    # By a hash, so not by the order in which they came.
    assert 0.05 < np.mean([code == "truncated" for code in found.tonight.codes]) < 0.15
    assert windows.coverage(str(tmp_path), make_gate(0.5)) == pytest.approx(0.45, abs=0.07)


def test_strata_are_cameras_and_folders_and_not_too_many(tmp_path: Path, write: Write, many: Many) -> None:
    before = many(60, "shop/", make="Maker", model="M1")
    write(str(tmp_path), [*before, *many(5, "loose")])
    write(
        str(tmp_path),
        [*many(40, "shop/n", make="Maker", model="M1"), *many(10, "yard/", model="M2")],
        "night-n2",
    )
    found = _read(tmp_path, "night-n2")
    assert found.reference is not None
    assert set(found.reference.strata["camera"]) == {"Maker M1", ""}
    assert set(found.reference.strata["folder"]) == {"shop", ""}
    assert set(found.tonight.strata["folder"]) == {"shop", "yard"}
    # A new camera is worth a word; new folders are what a feed is made of.
    assert found.new_strata == {"camera M2": 0.2}
    many_cameras = [row for number in range(30) for row in many(1 + number, f"c{number}-", model=f"M{number:02}")]
    write(str(tmp_path), many_cameras, "night-n3")
    cameras = set(_read(tmp_path, "night-n3").tonight.strata["camera"])
    assert cameras == {"", *(f"M{number:02}" for number in range(10, 30))}


def test_cameras_never_seen_before_are_counted_all_together(tmp_path: Path, write: Write, many: Many) -> None:
    """Also those that are too rare for a stratum; and one that is rare in the reference is none of them."""
    usual = [row for number in range(25) for row in many(2 + number, f"u{number}-", model=f"U{number:02}")]
    write(str(tmp_path), usual)
    write(str(tmp_path), many(10, "refused-", model="R"), "night-n2")
    rare = [row for number in range(30) for row in many(1, f"r{number}-", model=f"N{number:02}")]
    tonight = [*many(300, "t", model="U24"), *many(2, "s", model="U00"), *many(8, "q", model="R"), *many(60, "z")]
    write(str(tmp_path), [*tonight, *rare], "night-n3")
    found = _read(tmp_path, "night-n3", untrusted=("night-n2",))
    assert found.reference is not None
    assert "U00" not in found.reference.strata["camera"]
    # Nobody has accepted camera R yet; where no camera is known, none is new.
    assert found.new_cameras == (31, 38)
    assert list(found.new_strata) == ["camera R", *(f"camera N{number:02}" for number in range(4))]
    assert found.new_strata["camera R"] == 8 / 400
    said = wording.unseen(found.new_strata, found.new_cameras, found.rows)
    assert said[0] == "camera R, 2% of tonight's photographs, was never seen before"
    assert said[-1] == "38 of tonight's photographs (10%) come from 31 cameras never seen before"


def test_coverage_is_of_the_photographs_that_count(
    tmp_path: Path, write: Write, many: Many, make_gate: MakeGate
) -> None:
    gate = make_gate(0.5)
    write(str(tmp_path), [{"image_id": "a", "lapm": 0.5}, {"image_id": "b", "lapm": 0.4}])
    write(str(tmp_path), [{"image_id": "c", "lapm": None}, {"image_id": "d", "lapm": 0.1}], "night-n2")
    # At the cut-off is not below it; a photograph without a score passes nothing.
    assert windows.coverage(str(tmp_path), gate) == 0.25
    assert windows.coverage(str(tmp_path), gate, readable=True) == pytest.approx(1 / 3)
    assert windows.coverage(str(tmp_path), gate, untrusted=["night-n2"]) == 0.5
    assert windows.coverage(str(tmp_path), gate, untrusted=["night-n1", "night-n2"]) is None


def test_a_method_without_a_column_votes_low(tmp_path: Path, write: Write, make_gate: MakeGate) -> None:
    write(str(tmp_path), [{"image_id": "a", "lapm": 0.9}])
    method = {"direction": "lower", "status": "ok", "cutoff": 9.0, "reason": None, "interval": None}
    other = make_gate(methods={"niqe": method})
    assert windows.coverage(str(tmp_path), other) == 0.0

"""The photographs that a study draws from: labels, groups, the gate's decisions, and one order of quality."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from qualitygate.errors import ConfigurationError
from qualitygate.training.data import shown, units

Direction = Literal["higher", "lower"]
Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

ORDER_RULE = (
    "fewest low votes first, then the mean rank over the gate's voting methods (1 is best, ties share their mean "
    "rank, a missing score ranks below every present one), then image_id"
)
_NEEDED = ("image_id", "label", "votes_low", "passed")
# What a photograph's pixels are, where the table says so: they enter the hash of each subset.
_CONTENT = ("sha256", "box")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """N labelled photographs in the order of their ids; subsets are row numbers into it.

    image_id: (N,) text. group: (N,) text, a photograph without one has its own id. unit: (N,) int64, equal where
        rows may not be parted: by group, or by the bytes of their file.
    label: (N,) int64 places in `classes`, which are sorted.
    passed: (N,) bool, the gate's decision. place: (N,) int64, where a row stands in the order of quality, 0 is best.
    content: (N,) text, what the pixels are as far as it is known. notes: what the user should know.
    """

    image_id: npt.NDArray[np.object_]
    group: npt.NDArray[np.object_]
    unit: Integers
    label: Integers
    classes: tuple[str, ...]
    passed: Booleans
    place: Integers
    content: npt.NDArray[np.object_]
    notes: tuple[str, ...] = ()

    def counts(self, rows: Integers) -> dict[str, int]:
        """Photographs of each class among some rows; zeros are kept."""
        found = np.bincount(self.label[rows], minlength=len(self.classes))
        return {name: int(count) for name, count in zip(self.classes, found, strict=True)}


def prepare(photographs: pa.Table, methods: Mapping[str, Direction]) -> Pool:
    """Check and order the photographs of a study; the result doesn't depend on the order of the rows.

    photographs: image_id, label, votes_low (how many methods vote against it), passed, a column of scores for each
        method; group (null: a group of its own), sha256 and box where they are known.
    methods: the gate's voting methods by name, and which direction of each is better.

    Raises ConfigurationError, in one line with counts and the remedy: a column absent, ids twice, labels or decisions
    missing, a single class, votes that contradict the decisions.
    """
    _check_columns(photographs, methods)
    if "group" not in photographs.column_names:
        photographs = photographs.append_column("group", pa.nulls(photographs.num_rows, pa.string()))
    photographs = photographs.sort_by("image_id")
    ids = photographs["image_id"].to_pylist()
    _check_rows(photographs, ids)
    without = photographs["group"].null_count
    named = pc.coalesce(photographs["group"].cast(pa.string()), photographs["image_id"].cast(pa.string()))
    photographs = photographs.set_column(photographs.column_names.index("group"), "group", named)
    labels = np.array(photographs["label"].cast(pa.string()).to_pylist(), dtype=object)
    classes, label = np.unique(labels.astype(str), return_inverse=True)
    if len(classes) < 2:
        raise ConfigurationError(
            f"all {len(ids):,} photographs have the label {str(classes[0])!r}; a study needs two classes at least"
        )
    votes = photographs["votes_low"].to_numpy().astype(np.int64)
    passed = photographs["passed"].to_numpy(zero_copy_only=False).astype(bool)
    _check_votes(votes, passed)
    unit, notes = units(photographs)
    if without:
        notes.append(f"{without:,} photographs have no group: if several show one object, test results are flattered")
    return Pool(
        image_id=np.array(ids, dtype=object),
        group=np.array(named.to_pylist(), dtype=object),
        unit=unit,
        label=label.astype(np.int64),
        classes=tuple(str(name) for name in classes),
        passed=passed,
        place=quality_order({name: _scores(photographs, name) for name in methods}, methods, votes),
        content=_content(photographs),
        notes=tuple(notes),
    )


def quality_order(scores: Mapping[str, Floats], methods: Mapping[str, Direction], votes_low: Integers) -> Integers:
    """Where each photograph stands by quality, (N,) int64, 0 is best; consistent with any number of votes needed.

    Fewest low votes first; within them by the mean of the methods' ranks, where a missing score (NaN) ranks below
    every present one; ties in the order of the rows. So the photographs that a gate passes come before all others.
    The paper leaves "lowest quality" across several methods open (section 3.3).
    """
    from scipy.stats import rankdata

    total = np.zeros(len(votes_low))
    for name, direction in methods.items():
        badness = -scores[name] if direction == "higher" else scores[name]
        total += rankdata(np.where(np.isnan(badness), np.inf, badness))
    ordered = np.lexsort((np.arange(len(total)), total, votes_low))
    place = np.empty(len(total), dtype=np.int64)
    place[ordered] = np.arange(len(total))
    return place


def _scores(photographs: pa.Table, name: str) -> Floats:
    found: Floats = photographs[name].cast(pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)
    return found


def _content(photographs: pa.Table) -> npt.NDArray[np.object_]:
    named = [photographs[name].to_pylist() for name in _CONTENT if name in photographs.column_names]
    if not named:
        return np.full(photographs.num_rows, "", dtype=object)
    return np.array([json.dumps(values) for values in zip(*named, strict=True)], dtype=object)


# ---- what is refused ---------------------------------------------------------------------------------------


def _check_columns(photographs: pa.Table, methods: Mapping[str, Any]) -> None:
    if not methods:
        raise ConfigurationError("the gate has no method that votes, so there is no order of quality; calibrate again")
    absent = [name for name in (*_NEEDED, *methods) if name not in photographs.column_names]
    if absent:
        raise ConfigurationError(
            f"the photographs of the study lack {', '.join(absent)} (they have "
            f"{', '.join(photographs.column_names)}); join the manifest's labels, the gate's decisions and the scores"
        )
    if not photographs.num_rows:
        raise ConfigurationError("the study has no photographs; give a manifest whose photographs are scored")


def _check_rows(photographs: pa.Table, ids: list[Any]) -> None:
    rows = photographs.num_rows
    if any(not name for name in ids):
        raise ConfigurationError(
            f"{sum(not name for name in ids):,} of {rows:,} photographs have no image_id; give each one"
        )
    twice = [name for name, times in Counter(ids).items() if times > 1]
    if twice:
        raise ConfigurationError(f"{len(twice):,} image_ids occur more than once ({shown(twice)}); make them unique")
    text = photographs["label"].cast(pa.string())
    _refuse_missing(photographs, pc.equal(pc.fill_null(pc.utf8_trim_whitespace(text), ""), ""), "label", "label them")
    for column in ("passed", "votes_low"):
        _refuse_missing(
            photographs,
            pc.is_null(photographs[column]),
            "decision of the gate",
            "run 'qualitygate score' and 'gate' on them",
        )


def _refuse_missing(photographs: pa.Table, missing: Any, what: str, remedy: str) -> None:
    names = photographs.filter(missing)["image_id"].to_pylist()
    if names:
        raise ConfigurationError(
            f"{len(names):,} of {photographs.num_rows:,} photographs have no {what} ({shown(names)}); {remedy} or "
            "leave them out"
        )


def _check_votes(votes: Integers, passed: Booleans) -> None:
    if not passed.any():
        raise ConfigurationError(
            f"none of {len(passed):,} photographs passes the gate: there is no high-quality set; calibrate again"
        )
    most = int(votes[passed].max())
    contradicting = int(np.count_nonzero(votes[~passed] <= most))
    if contradicting:
        raise ConfigurationError(
            f"votes_low and passed contradict each other: photographs pass with {most} low votes and "
            f"{contradicting:,} are rejected with no more; take both columns from one run of 'qualitygate gate'"
        )

"""Which photographs the page shows: a sample for the scatter, those either side of each line, the paper's pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from qualitygate.report import records
from qualitygate.report.artefacts import Calibration

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

_BESIDE = 6
_PAIR = 6
_CONFIDENT = 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Photographs:
    """The calibration's photographs as columns, in order of image_id, so that nothing depends on row order.

    confidence, scores: float64, NaN where there is none. correct: bool. votes: int, -1 where not known.
    """

    table: pa.Table
    confidence: Floats
    correct: npt.NDArray[np.bool_]
    scores: Mapping[str, Floats]

    def __len__(self) -> int:
        return self.confidence.size

    def column(self, name: str) -> list[Any]:
        """A column's values; nulls where the table lacks it."""
        return self.table[name].to_pylist() if name in self.table.column_names else [None] * len(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """The photographs nearest to one cut-off: those with a low vote, those without, the nearest first."""

    low: list[int]
    passing: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Row numbers of what is shown.

    scatter: in all figures; wrong_shown of wrong, and right_shown of right are in it.
    """

    scatter: Rows
    wrong: int
    wrong_shown: int
    right: int
    right_shown: int
    beside: Mapping[str, Beside]
    low_low: list[int]
    high_high: list[int]
    confident_errors: list[int]

    def gallery(self) -> list[int]:
        """Those shown as photographs in their own right, each once."""
        rows = [row for pair in self.beside.values() for row in (*pair.low, *pair.passing)]
        return list(dict.fromkeys([*rows, *self.low_low, *self.high_high, *self.confident_errors]))

    def every(self) -> list[int]:
        """All rows that the page knows of."""
        return list(dict.fromkeys([*self.gallery(), *self.scatter.tolist()]))


def photographs(calibration: Calibration) -> Photographs:
    """The calibration's table, ready to choose from."""
    table = calibration.table.sort_by("image_id")
    return Photographs(
        table=table,
        confidence=_floats(table["confidence"]),
        correct=table["correct"].fill_null(False).to_numpy(zero_copy_only=False).astype(bool),
        scores={name: _floats(table[name]) for name in calibration.gate.methods},
    )


def _floats(column: pa.ChunkedArray) -> Floats:
    values = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return np.asarray(values, dtype=np.float64)


def choose(rows: Photographs, calibration: Calibration, *, sample: int, seed: int) -> Selection:
    """What to show of these photographs; the same for the same photographs and seed, whatever their order."""
    wrong, right = np.flatnonzero(~rows.correct), np.flatnonzero(rows.correct)
    rng = np.random.default_rng(seed)
    # Wrong predictions are few and what it is about: up to half of the figure is theirs.
    wrong_shown = _sampled(wrong, max(sample // 2, sample - right.size), rng)
    right_shown = _sampled(right, sample - wrong_shown.size, rng)
    gate = calibration.gate
    low_low, high_high = _extremes(rows, gate)
    position = {image_id: row for row, image_id in enumerate(rows.column("image_id"))}
    listed = (position.get(error.image_id) for error in calibration.record.confident_errors)
    return Selection(
        scatter=np.sort(np.concatenate([wrong_shown, right_shown])),
        wrong=wrong.size,
        wrong_shown=wrong_shown.size,
        right=right.size,
        right_shown=right_shown.size,
        beside={
            name: _beside(rows.scores[name], method)
            for name, method in gate.methods.items()
            if method.cutoff is not None and method.status != "undefined"
        },
        low_low=low_low,
        high_high=high_high,
        confident_errors=[row for row in listed if row is not None][:_CONFIDENT],
    )


def _sampled(rows: Rows, most: int, rng: np.random.Generator) -> Rows:
    return rows if rows.size <= most else np.sort(rng.choice(rows, most, replace=False))


def goodness(scores: Floats, method: records.Method) -> Floats:
    """Scores on the scale of the fit, turned so that higher is better; NaN where there is none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.log(scores) if method.logarithmic else scores
    return -values if method.direction == "lower" else values


def _beside(scores: Floats, method: records.Method) -> Beside:
    cutoff = float(goodness(np.asarray([method.cutoff], dtype=np.float64), method)[0])
    distance = goodness(scores, method) - cutoff
    distance[~np.isfinite(distance)] = np.nan
    low, passing = np.flatnonzero(distance < 0), np.flatnonzero(distance >= 0)
    return Beside(
        low=low[np.argsort(-distance[low], kind="stable")][:_BESIDE].tolist(),
        passing=passing[np.argsort(distance[passing], kind="stable")][:_BESIDE].tolist(),
    )


def _extremes(rows: Photographs, gate: records.Gate) -> tuple[list[int], list[int]]:
    """(low quality and low confidence, high and high), the most extreme first.

    Quality is the mean over the methods of the share of photographs that are worse. A photograph is low in both
    by the larger of its two ranks, high in both by the smaller.
    """
    quality = mean_rank([goodness(rows.scores[name], method) for name, method in gate.methods.items()])
    confidence = mean_rank([rows.confidence])
    known = np.flatnonzero(np.isfinite(quality) & np.isfinite(confidence))
    larger = np.maximum(quality, confidence)[known]
    smaller = np.minimum(quality, confidence)[known]
    count = min(_PAIR, known.size // 2)
    return (
        known[np.argsort(larger, kind="stable")][:count].tolist(),
        known[np.argsort(-smaller, kind="stable")][:count].tolist(),
    )


def mean_rank(columns: Sequence[Floats]) -> Floats:
    """Mean over the columns of each row's rank in [0, 1], ties shared; NaN where no column has a value."""
    from scipy.stats import rankdata

    ranks = np.full((len(columns), columns[0].size if columns else 0), np.nan)
    for number, column in enumerate(columns):
        known = np.isfinite(column)
        if known.sum() > 1:
            ranks[number, known] = (rankdata(column[known]) - 1) / (known.sum() - 1)
    counted = np.isfinite(ranks).sum(axis=0)
    with np.errstate(invalid="ignore"):
        return np.where(counted > 0, np.nansum(ranks, axis=0) / counted, np.nan)

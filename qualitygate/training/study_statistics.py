"""Differences between training sets: paired by repetition, and under resampling of the test photographs by group.

Two sources of chance, two intervals. Over repetitions (other draws, other seeds) a t interval of the paired
differences. Over test photographs a bootstrap that draws groups, since photographs of one object go right or wrong
together; all runs are resampled alike, so it is paired too.

Everything is a contrast: a linear combination of cells (architecture, kind, percent removed), computed within each
repetition. `high - all` is one; the rise of a fitted line over the levels is another.

Suffixes of arrays: N photographs, G groups, K classes, B replicates.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from qualitygate.training.measures import LOWER_IS_BETTER, predicted
from qualitygate.training.results import column

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Interval = tuple[float, float]

LEVEL = 0.95
POWER = 0.8
# What the bootstrap resamples; Brier and ECE are described, not tested.
RESAMPLED = ("accuracy", "auc", "balanced_accuracy", "log_loss")
_CELLS_AT_ONCE = 4_000_000
_SMALLEST_PROBABILITY = float(np.finfo(np.float64).eps)


class Cell(NamedTuple):
    """What is repeated: a model trained on a kind of subset."""

    architecture: str
    kind: str
    removed: float = 0.0


Contrast = Mapping[Cell, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A contrast of one measure over repetitions; positive means that the first side is better, whatever the measure.

    values: by repetition. interval: t, of their mean. p_value: two-sided t, before any correction. bootstrap: over
    test photographs, by group; None without predictions. detectable: smallest true difference that as many
    repetitions of this spread find with 80 % power. reason: why interval and p are None, where they are.
    Units: shares in [-1, 1]; log-loss in nats.
    """

    measure: str
    test: str
    repetitions: tuple[int, ...]
    values: tuple[float, ...]
    missing: int
    mean: float | None = None
    sd: float | None = None
    interval: Interval | None = None
    p_value: float | None = None
    p_holm: float | None = None
    bootstrap: Interval | None = None
    detectable: float | None = None
    reason: str | None = None


def against(architecture: str, first: tuple[str, float], second: tuple[str, float]) -> Contrast:
    """First minus second, both (kind, percent removed), of one architecture."""
    return {Cell(architecture, *first): 1.0, Cell(architecture, *second): -1.0}


def rise(architecture: str, kind: str, levels: Sequence[float]) -> Contrast:
    """What a straight line, fitted to the levels by least squares, gains from the lowest to the highest of them."""
    centred = np.asarray(levels) - np.mean(levels)
    weights = centred / np.sum(centred**2) * (max(levels) - min(levels))
    return {Cell(architecture, kind, level): float(weight) for level, weight in zip(levels, weights, strict=True)}


def average(contrasts: Sequence[Contrast]) -> Contrast:
    """The mean of contrasts over disjoint cells, such as one difference of several architectures."""
    return {cell: weight / len(contrasts) for contrast in contrasts for cell, weight in contrast.items()}


# ---- over repetitions --------------------------------------------------------------------------------------


def difference(
    rows: Sequence[Mapping[str, Any]],
    contrast: Contrast,
    measure: str,
    *,
    test: str = "high",
    replicates: "Replicates | None" = None,
) -> Difference:
    """A contrast of finished run rows, paired by repetition: those in which a cell is missing are left out.

    missing: how many repetitions that is, of those in which any of the cells is there.
    """
    found: dict[int, dict[Cell, Mapping[str, Any]]] = {}
    for row in rows:
        cell = Cell(row["architecture"], row["kind"], row["removed"])
        if cell in contrast:
            found.setdefault(row["repetition"], {})[cell] = row
    name = column(test, measure)
    whole = {
        repetition: cells
        for repetition, cells in sorted(found.items())
        if len(cells) == len(contrast) and all(row[name] is not None for row in cells.values())
    }
    sign = -1.0 if measure in LOWER_IS_BETTER else 1.0
    values = [sign * sum(contrast[cell] * row[name] for cell, row in cells.items()) for cells in whole.values()]
    grain = _grain([row for cells in whole.values() for row in cells.values()], measure, test)
    return Difference(
        measure=measure,
        test=test,
        repetitions=tuple(whole),
        values=tuple(values),
        missing=len(found) - len(whole),
        bootstrap=replicates.interval(whole.values(), contrast, measure, sign) if replicates and whole else None,
        **summary(values, grain=grain),
    )


def _grain(rows: Sequence[Mapping[str, Any]], measure: str, test: str) -> float:
    """What one photograph of the smallest test set is worth; 0 for measures that don't count photographs."""
    if measure not in ("accuracy", "balanced_accuracy"):
        return 0.0
    tested = [row[column(test, "test_rows")] for row in rows]
    return 1 / min(tested) if tested and all(tested) else 0.0


def summary(values: Sequence[float], *, grain: float = 0.0) -> dict[str, Any]:
    """mean, sd, t interval and p of paired differences, and what as many could detect; the reason where undefined.

    grain: the smallest step that the values can make. Those that lie within one are the same: their small spread is
    that of the test sets' sizes, and a t test would take it for certainty.
    Not Wilcoxon's test: its p can't be below 2 / 2^n, .0625 for five repetitions.
    """
    if not values:
        return {"reason": "there is no repetition with both sides"}
    mean = float(np.mean(values))
    if len(values) < 2:
        return {"mean": mean, "reason": "a single repetition has no spread; run two at least, better ten"}
    sd = float(np.std(values, ddof=1))
    if sd <= 1e-12 or max(values) - min(values) < grain - 1e-12:
        return {
            "mean": mean,
            "sd": sd if sd > 1e-12 else 0.0,
            "reason": f"all {len(values)} differences are the same to less than one test photograph: no spread to "
            "judge by",
        }
    from scipy.stats import ttest_1samp

    tested = ttest_1samp(values, 0.0)
    low, high = tested.confidence_interval(LEVEL)
    return {
        "mean": mean,
        "sd": sd,
        "interval": (float(low), float(high)),
        "p_value": float(tested.pvalue),
        "detectable": detectable(len(values), sd),
    }


def detectable(count: int, sd: float) -> float:
    """The smallest true mean that a two-sided t test of `count` differences finds with 80 % power at 5 %."""
    return _detectable_effect(count) * sd


@lru_cache(maxsize=64)
def _detectable_effect(count: int) -> float:
    """The same in standard deviations."""
    from statsmodels.stats.power import TTestPower

    effect = TTestPower().solve_power(nobs=count, alpha=1 - LEVEL, power=POWER, alternative="two-sided")
    return float(np.asarray(effect).item())


def smallest_rank_p(count: int) -> float:
    """The smallest two-sided p that Wilcoxon's signed-rank test can give for `count` pairs: 2 / 2^count."""
    return min(1.0, 2.0 ** (1 - count))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's correction for the tests that there are; those without a p stay without and don't count."""
    from statsmodels.stats.multitest import multipletests

    there = [p for p in p_values if p is not None]
    # A single one needs no correction, and statsmodels collects the garbage of the whole process each time.
    corrected = iter(multipletests(there, method="holm")[1] if len(there) > 1 else there)
    return [None if p is None else float(next(corrected)) for p in p_values]


# ---- over test photographs ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Tested:
    """A run's predictions on one test set. group: (N,) int64 in [0, G). probabilities: (N, K)."""

    group: Integers
    label: Integers
    probabilities: Floats
    threshold: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicates:
    """The measures of each run in B replicates of the test photographs, all from the same draws of groups.

    values: by run id and measure, (B,); NaN where a replicate lacks a class.
    """

    values: Mapping[tuple[str, str], Floats]

    def interval(
        self, repetitions: Any, contrast: Contrast, measure: str, sign: float = 1.0, level: float = LEVEL
    ) -> Interval | None:
        """Percentile interval of a contrast's mean over repetitions; None without predictions of some run.

        repetitions: for each, the row of each cell.
        """
        totals = []
        for cells in repetitions:
            keys = {cell: (row["run_id"], measure) for cell, row in cells.items()}
            if any(key not in self.values for key in keys.values()):
                return None
            totals.append(np.sum([contrast[cell] * self.values[key] for cell, key in keys.items()], axis=0))
        values = sign * np.mean(totals, axis=0)
        finite = values[np.isfinite(values)]
        if len(finite) < len(values) / 2:
            return None
        low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)


def resample(runs: Mapping[str, Tested], *, count: int, seed: int) -> Replicates:
    """Draw test groups with replacement, `count` times, and measure every run on each draw.

    runs: by id; their `group` numbers mean the same groups.
    """
    groups = 1 + max((int(tested.group.max()) for tested in runs.values() if len(tested.group)), default=0)
    prepared = {name: _prepare(tested) for name, tested in runs.items() if len(tested.group)}
    widest = max([groups, *(len(tested.group) for tested in runs.values())])
    found: dict[tuple[str, str], list[Floats]] = {}
    for drawn_BG in _draws(groups, count, max(1, _CELLS_AT_ONCE // widest), np.random.default_rng([seed, groups])):
        for name, scorers in prepared.items():
            weights_BN = drawn_BG[:, runs[name].group]
            for measure, scorer in scorers.items():
                found.setdefault((name, measure), []).append(scorer(weights_BN))
    return Replicates(values={key: np.concatenate(parts) for key, parts in found.items()})


def _draws(groups: int, count: int, portion: int, random: np.random.Generator) -> Iterator[Floats]:
    even = np.full(groups, 1 / groups)
    for start in range(0, count, portion):
        yield random.multinomial(groups, even, size=min(portion, count - start)).astype(np.float64)


def _prepare(tested: Tested) -> dict[str, Any]:
    """For each measure a function of weights (B, N) to values (B,)."""
    label, probabilities = tested.label, tested.probabilities
    classes = probabilities.shape[1]
    right = (probabilities.argmax(1) == label).astype(np.float64)
    at_threshold = (predicted(probabilities, tested.threshold) == label).astype(np.float64)
    own = np.maximum(probabilities[np.arange(len(label)), label], _SMALLEST_PROBABILITY)
    scorers: dict[str, Any] = {
        "accuracy": lambda weights: _ratio(weights @ right, weights.sum(1)),
        "log_loss": lambda weights: _ratio(weights @ -np.log(own), weights.sum(1)),
        "auc": _auc_scorer(label, probabilities),
    }
    if classes > 2 or tested.threshold is not None:
        kinds = np.eye(classes)[label]
        scorers["balanced_accuracy"] = lambda weights: np.mean(
            _ratio(weights @ (kinds * at_threshold[:, None]), weights @ kinds), axis=1
        )
    return scorers


def _auc_scorer(label: Integers, probabilities: Floats) -> Any:
    classes = probabilities.shape[1]
    ones = [1] if classes == 2 else range(classes)
    sorted_by = []
    for one in ones:
        order = np.argsort(probabilities[:, one], kind="stable")
        score = probabilities[order, one]
        starts = np.flatnonzero(np.concatenate([[True], score[1:] != score[:-1]]))
        sorted_by.append((order, starts, (label[order] == one).astype(np.float64)))

    def scorer(weights: Floats) -> Floats:
        return np.mean([_weighted_auc(weights[:, order], starts, own) for order, starts, own in sorted_by], axis=0)

    return scorer


def _weighted_auc(weights: Floats, starts: Integers, positive: Floats) -> Floats:
    """(B,) AUC of photographs in ascending order of score with weights (B, N); equal scores begin at `starts`."""
    positives = np.add.reduceat(weights * positive, starts, axis=1)
    negatives = np.add.reduceat(weights * (1 - positive), starts, axis=1)
    below = np.cumsum(negatives, axis=1) - negatives / 2
    return _ratio((positives * below).sum(1), positives.sum(1) * negatives.sum(1))


def _ratio(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.full(np.shape(above), math.nan), where=below > 0)


def tested_runs(
    predictions: pa.Table, thresholds: Mapping[str, float | None], classes: Sequence[str], test: str
) -> dict[str, Tested]:
    """The predictions of a study on one of the test sets, by run id.

    predictions: `results.PREDICTIONS` of all runs. thresholds: of the runs that are wanted.
    """
    labels = {name: place for place, name in enumerate(classes)}
    groups: dict[str, int] = {}
    found = {}
    for run_id, table in _by_run(
        predictions.select(["run_id", "group", "label", "passed", "probabilities"]), thresholds
    ):
        if test != "all":
            passed = table["passed"].to_numpy(zero_copy_only=False).astype(bool)
            table = table.filter(pa.array(passed if test == "high" else ~passed))
        values = table["probabilities"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        found[run_id] = Tested(
            group=np.array(
                [groups.setdefault(name, len(groups)) for name in table["group"].to_pylist()], dtype=np.int64
            ),
            label=np.array([labels[name] for name in table["label"].to_pylist()], dtype=np.int64),
            probabilities=values.astype(np.float64).reshape(-1, len(labels)),
            threshold=thresholds[run_id],
        )
    return found


def _by_run(predictions: pa.Table, wanted: Mapping[str, Any]) -> Iterator[tuple[str, pa.Table]]:
    ids = np.array(predictions["run_id"].to_pylist(), dtype=object)
    order = np.argsort(ids.astype(str), kind="stable")
    names, starts = np.unique(ids[order].astype(str), return_index=True)
    for name, rows in zip(names, np.split(order, starts[1:]), strict=True):
        if str(name) in wanted:
            yield str(name), predictions.take(pa.array(rows))

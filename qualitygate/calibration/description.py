"""What the photographs show beside the cut-offs: quality against confidence, who passes, how the votes agree."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qualitygate.calibration.cutoffs import Fit
from qualitygate.calibration.heldout import oriented
from qualitygate.calibration.inputs import Photographs, Texts
from qualitygate.calibration.statistics import (
    Booleans,
    Floats,
    Integers,
    alike,
    bootstrap,
    codes,
    effective_size,
    generator,
    group_sums,
    mass_below,
    percentile_interval,
    replicates,
)

# Fewer photographs, or groups, than this have no correlation worth an interval.
_FEWEST = 10
_FEWEST_GROUPS = 5
# Parts are compared when they hold so many photographs, and at most so many of the largest are listed.
_COMPARED = 20
_PARTS = 50
_REPLICATES = 200
# A pass rate this far from the others', beyond chance, is worth a warning.
_NOTABLE = 0.05
CONFIDENT = 0.8
_LISTED = 50


# ---- quality against confidence --------------------------------------------------------------------------


def quality_confidence(photographs: Photographs, fits: Mapping[str, Fit], seed: int) -> dict[str, Any]:
    """Spearman's correlation of quality with the labelled class's confidence: overall, within classes, within strata.

    Positive where better photographs are classified more surely, whatever the sign of the raw score. Intervals by
    the clustered bootstrap.
    """
    found: dict[str, Any] = {}
    weight = photographs.weight
    for name, fit in fits.items():
        quality = fit.axis.quality(photographs.scores[name])
        known = ~np.isnan(quality)

        def correlate(chosen: Booleans, quality: Floats = quality, known: Booleans = known, name: str = name) -> Any:
            chosen = chosen & known
            return _spearman(
                quality[chosen],
                photographs.confidence[chosen],
                weight[chosen],
                photographs.group[chosen],
                generator(seed, name, "spearman"),
            )

        found[name] = {
            "overall": correlate(np.ones(len(photographs), dtype=np.bool_)),
            "within_class": {part: correlate(members) for part, members in parts(photographs.label).items()},
            "within_stratum": {part: correlate(members) for part, members in parts(photographs.stratum).items()},
        }
    return found


def parts(names: Texts) -> dict[str, Booleans]:
    """Members (N,) of each named part, the largest first; photographs without a name are in none."""
    known = [name for name in names if name is not None]
    distinct, times = np.unique(np.asarray(known, dtype=str), return_counts=True) if known else ((), ())
    largest = sorted(zip(distinct, times, strict=True), key=lambda part: (-part[1], part[0]))[:_PARTS]
    return {str(part): np.asarray(names == str(part), dtype=np.bool_) for part, _ in largest}


def _spearman(
    quality: Floats, confidence: Floats, weight: Floats, group: Integers, rng: np.random.Generator
) -> dict[str, Any]:
    number = len(quality)
    if number < _FEWEST or len(np.unique(quality)) < 2 or len(np.unique(confidence)) < 2:
        return {"spearman": None, "interval": None, "n": number}
    found = rank_correlation(quality, confidence, weight)
    result: dict[str, Any] = {"spearman": found, "interval": None, "n": number}
    group = codes(group)
    groups = int(group.max()) + 1
    if groups >= _FEWEST_GROUPS:
        order = np.argsort(group, kind="stable")
        drawn = []
        for portion in replicates(groups, _REPLICATES, rng):
            for times in portion.astype(np.int64):
                taken = np.repeat(order, times[group[order]])
                drawn.append(rank_correlation(quality[taken], confidence[taken], weight[taken]))
        interval = percentile_interval(drawn)
        result["interval"] = list(interval) if interval else None
    return result


def rank_correlation(a: Floats, b: Floats, weight: Floats) -> float:
    """Spearman's correlation in [-1, 1] of weighted photographs, ties at their mean rank; NaN where one is constant."""
    ranks = [mass_below(values, weight) for values in (a, b)]
    centred = [values - np.average(values, weights=weight) for values in ranks]
    scale = np.sqrt(np.sum(weight * centred[0] ** 2) * np.sum(weight * centred[1] ** 2))
    return float(np.sum(weight * centred[0] * centred[1]) / scale) if scale else float("nan")


def method_correlations(photographs: Photographs, fits: Mapping[str, Fit]) -> dict[str, Any]:
    """Spearman's correlation of the methods' qualities, each turned so that higher is better; None where undefined."""
    qualities = [fit.axis.quality(photographs.scores[name]) for name, fit in fits.items()]
    weight = photographs.weight
    table: list[list[float | None]] = []
    for a in qualities:
        row: list[float | None] = []
        for b in qualities:
            both = ~np.isnan(a) & ~np.isnan(b)
            value = rank_correlation(a[both], b[both], weight[both]) if both.sum() > 2 else float("nan")
            row.append(value if np.isfinite(value) else None)
        table.append(row)
    return {"methods": list(fits), "spearman": table}


# ---- who passes ------------------------------------------------------------------------------------------


def pass_rates(photographs: Photographs, passed: Booleans, seed: int) -> tuple[dict[str, Any], list[str]]:
    """Share that passes by class and by stratum, and a warning for each part that differs from the others.

    A part is named when the clustered bootstrap's interval of the difference, at 95 % over all parts of its kind
    (Bonferroni), lies beyond 0 and the difference is 5 points or more. Shares are weighted, n counts photographs.
    """
    rates: dict[str, Any] = {}
    warnings = []
    weight = photographs.weight

    def share(chosen: Booleans) -> float:
        return float(np.average(passed[chosen], weights=weight[chosen]))

    def enough(chosen: Booleans) -> bool:
        return effective_size(weight[chosen]) >= _COMPARED

    for kind, names in (("class", photographs.label), ("stratum", photographs.stratum)):
        members = parts(names)
        rates[kind] = {part: {"passed": share(chosen), "n": int(chosen.sum())} for part, chosen in members.items()}
        compared = [part for part, chosen in members.items() if enough(chosen) and enough(~chosen)]
        for part in compared:
            chosen = members[part]
            others = np.asarray([name is not None for name in names]) & ~chosen
            if not enough(others):
                continue
            difference = share(chosen) - share(others)
            interval = _difference(
                photographs, passed, chosen, others, 1 - 0.05 / len(compared), seed, f"{kind} {part}"
            )
            if abs(difference) >= _NOTABLE and interval and (interval[0] > 0 or interval[1] < 0):
                warnings.append(
                    f"{kind} {part}: {share(chosen):.0%} of {int(chosen.sum())} pass, of the others "
                    f"{share(others):.0%}: the gate treats it differently; look whether its photographs are "
                    f"{'better' if difference > 0 else 'worse'} or the methods only take them for it"
                )
    return rates, warnings


def _difference(
    photographs: Photographs, passed: Booleans, a: Booleans, b: Booleans, level: float, seed: int, purpose: str
) -> tuple[float, float] | None:
    columns = photographs.weight[:, None] * np.stack([a, a & passed, b, b & passed], axis=1)
    sums = group_sums(columns, photographs.group, photographs.groups)

    def read(totals: Floats) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(totals[:, 1] / totals[:, 0] - totals[:, 3] / totals[:, 2], dtype=np.float64)

    return percentile_interval(bootstrap(read, sums, 1000, generator(seed, purpose)), level)


# ---- how the votes agree ---------------------------------------------------------------------------------


def agreement(low: Mapping[str, Booleans], votes_needed: int, weight: Floats | None = None) -> dict[str, Any]:
    """How the voters agree: pairwise share and Cohen's kappa, the share where all agree, and each one's pivotal share,
    that is of photographs whose decision would turn with its vote. low: (N,) by voter; weight: (N,) of the
    photographs, None where all weigh alike."""
    from sklearn.metrics import cohen_kappa_score

    weight = None if weight is None or alike(weight) else weight

    def share(chosen: Booleans) -> float:
        return float(np.average(chosen, weights=weight))

    names = list(low)
    total = np.sum(list(low.values()), axis=0) if names else np.zeros(0)
    pairs = []
    for number, a in enumerate(names):
        for b in names[number + 1 :]:
            both = len(np.unique(low[a])) > 1 or len(np.unique(low[b])) > 1
            kappa = float(cohen_kappa_score(low[a], low[b], sample_weight=weight)) if both else None
            pairs.append({"a": a, "b": b, "agreement": share(low[a] == low[b]), "kappa": kappa})
    return {
        "pairs": pairs,
        "pivotal": {name: share(total - low[name] == votes_needed - 1) for name in names},
        "unanimous": share((total == 0) | (total == len(names))) if names else None,
    }


# ---- errors that quality doesn't explain -----------------------------------------------------------------


def confident_errors(
    photographs: Photographs, votes_low: npt.NDArray[np.int64], passed: Booleans, fits: Sequence[Fit]
) -> list[dict[str, Any]]:
    """Wrong predictions on good photographs of which the classifier is sure: candidates for another label.

    Sure: top1 of .8 or more, or, where that isn't known, at most .2 for the labelled class. Good: passed without a
    low vote, and in the better half by the methods' mean rank. Surest first, at most 50.
    """
    ranks = [_percent_rank(oriented(photographs, fit), photographs.weight) for fit in fits]
    mean_rank = np.mean(ranks, axis=0)
    known = ~np.isnan(photographs.top1)
    sure = np.where(known, photographs.top1 >= CONFIDENT, photographs.confidence <= 1 - CONFIDENT)
    good = passed & (votes_low == 0) & (mean_rank >= 0.5)
    chosen = np.flatnonzero(~photographs.correct & sure & good)
    order = chosen[np.lexsort((photographs.image_id[chosen].astype(str), photographs.confidence[chosen]))][:_LISTED]
    return [
        {
            "image_id": photographs.image_id[row],
            "label": photographs.label[row],
            "predicted": photographs.predicted[row],
            "confidence": float(photographs.confidence[row]),
            "top1": float(photographs.top1[row]) if known[row] else None,
            "votes_low": int(votes_low[row]),
            "uri": photographs.uri[row],
        }
        for row in order
    ]


def _percent_rank(values: Floats, weight: Floats) -> Floats:
    return np.asarray((mass_below(values, weight) + weight / 2) / weight.sum(), dtype=np.float64)

"""Statistics that know that photographs of one group are not independent: bootstrap, permutation, Holm.

Suffixes of arrays: N photographs, G groups, B replicates.
"""

import gc
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]

# Groups of different sizes share a stratum of the permutation test until it holds this many.
_GROUPS_PER_STRATUM = 10
_CELLS_AT_ONCE = 4_000_000


def generator(seed: int, *purpose: str) -> np.random.Generator:
    """A random generator that depends on the seed and the purpose alone: one more method changes no other's."""
    return np.random.default_rng([seed, *(zlib.crc32(part.encode()) for part in purpose)])


def codes(labels: Sequence[Any] | npt.NDArray[Any]) -> Integers:
    """(N,) numbers from 0 for the groups' names, in the order of the names."""
    return np.unique(np.asarray(labels), return_inverse=True)[1].astype(np.int64)


# ---- sampling weights ------------------------------------------------------------------------------------


def sampling_weights(probability: Floats) -> Floats:
    """(N,) weights of mean 1, inverse to the probabilities in (0, 1] of being labelled; exactly 1 where all are alike.

    Weighted so, a sample stands for the population that it was drawn from (Horvitz & Thompson 1952; with the mean
    taken out, Hajek 1971).
    """
    if alike(probability):
        return np.ones(len(probability))
    weight = 1 / probability
    return np.asarray(weight / weight.mean(), dtype=np.float64)


def alike(weight: Floats) -> bool:
    """Whether no weight differs from another, so that they mean nothing."""
    return not len(weight) or bool(weight.min() == weight.max())


def effective_size(weight: Floats) -> float:
    """(sum w)^2 / sum w^2, in [1, N], 0 of none: photographs of equal weight that tell a mean as well (Kish 1965)."""
    return float(len(weight) if alike(weight) else weight.sum() ** 2 / (weight**2).sum())


def mass_below(values: Floats, weight: Floats) -> Floats:
    """(N,) weight of all with a smaller value, and half the weight of those with the same: where all weigh 1, the
    mean rank less a half."""
    place = np.unique(values, return_inverse=True)[1]
    own = np.bincount(place, weights=weight)
    return np.asarray((np.cumsum(own) - own / 2)[place], dtype=np.float64)


def quantile(values: Floats, shares: float | Sequence[float], weight: Floats) -> Floats:
    """Values below which these shares of the weight lie; numpy's default where all weigh alike.

    With weights there is no interpolation, so that a whole weight of k is k copies.
    """
    if alike(weight):
        return np.asarray(np.quantile(values, shares), dtype=np.float64)
    return np.asarray(np.quantile(values, shares, weights=weight, method="inverted_cdf"), dtype=np.float64)


# ---- bootstrap -------------------------------------------------------------------------------------------


def replicates(groups: int, count: int, rng: np.random.Generator) -> Iterator[Floats]:
    """How often each group is drawn in each of `count` bootstrap replicates, in portions of (B, G).

    Groups are drawn with replacement, whole: the clustered bootstrap (Davison & Hinkley 1997, 3.8, strategy 1).
    """
    portion = max(1, _CELLS_AT_ONCE // groups)
    probabilities = np.full(groups, 1 / groups)
    while count > 0:
        drawn = min(portion, count)
        yield rng.multinomial(groups, probabilities, size=drawn).astype(np.float64)
        count -= drawn


def percentile_interval(values: npt.ArrayLike, level: float = 0.95) -> tuple[float, float] | None:
    """The central `level` of the replicates' values; those that aren't finite are left out. None if all are."""
    finite = np.asarray(values, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    if not finite.size:
        return None
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def symmetric_interval(
    value: float, drawn: npt.ArrayLike, groups: int, limits: tuple[float, float], level: float = 0.95
) -> tuple[float, float] | None:
    """The value and Student's t times the replicates' standard deviation on either side, within what is possible.

    For differences between two decisions that part on a handful of photographs only: there the percentiles are too
    narrow. None with fewer than two groups, or where most replicates are undefined.
    """
    from scipy.stats import t

    values = np.asarray(drawn, dtype=np.float64)
    finite = values[np.isfinite(values)]
    if groups < 2 or len(finite) < 2 or 2 * len(finite) < len(values) or not np.isfinite(value):
        return None
    reach = float(t.ppf((1 + level) / 2, groups - 1) * finite.std(ddof=1))
    return max(limits[0], value - reach), min(limits[1], value + reach)


def group_sums(values: npt.NDArray[Any], group: Integers, groups: int) -> Floats:
    """Sums over the photographs of each group: (N,) -> (G,), or (N, K) -> (G, K)."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim == 1:
        return np.bincount(group, weights=values, minlength=groups).astype(np.float64)
    return np.stack([np.bincount(group, weights=column, minlength=groups) for column in values.T], axis=1)


def bootstrap(
    statistic: Callable[[Floats], Floats],
    sums: Floats,
    count: int,
    rng: np.random.Generator,
) -> Floats:
    """A statistic of sums over photographs, in each replicate of the clustered bootstrap.

    sums: (G, K), each group's contributions. statistic: (B, K) totals -> (B, ...). Returns (count, ...).
    """
    return np.concatenate([statistic(drawn @ sums) for drawn in replicates(len(sums), count, rng)])


# ---- does a score separate? ------------------------------------------------------------------------------


def auroc(quality: Floats, correct: Booleans) -> float:
    """Probability that a right prediction has the higher quality than a wrong one, in [0, 1]; ties count half."""
    from sklearn.metrics import roc_auc_score

    # Ranks carry all there is to it, and make infinities (a score of 0 on a log scale) harmless.
    return float(roc_auc_score(correct, mass_below(quality, np.ones(len(quality)))))


def strata_of_sizes(sizes: Integers) -> list[Integers]:
    """Groups of similar size, by index: equal sizes together, neighbouring sizes merged up to ten groups."""
    strata: list[list[int]] = []
    for size in np.unique(sizes):
        members = np.flatnonzero(sizes == size).tolist()
        if strata and len(strata[-1]) < _GROUPS_PER_STRATUM:
            strata[-1] += members
        else:
            strata.append(members)
    if len(strata) > 1 and len(strata[-1]) < _GROUPS_PER_STRATUM:
        last = strata.pop()
        strata[-1] += last
    return [np.asarray(stratum, dtype=np.int64) for stratum in strata]


def permuted_labels(
    correct: Booleans, group: Integers, permutations: int, rng: np.random.Generator
) -> Iterator[Booleans]:
    """The labels (N,) under the hypothesis that scores and labels are independent of each other.

    Each group's labels move as a whole to another group, whatever the correlation within groups, and are shuffled
    within it. Groups exchange labels with those of their own size; rare sizes are pooled with the nearest, where a
    longer list gives a random part of itself and a shorter one is repeated. With groups of one photograph this is
    the plain permutation of labels. Equal sizes make it exact; repeating errs on the side of a larger p-value.
    """
    count = int(group.max()) + 1
    order = np.argsort(group, kind="stable")
    sizes = np.bincount(group, minlength=count)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    grouped, owner = correct[order], group[order]
    place = np.arange(len(grouped)) - starts[owner]
    strata = strata_of_sizes(sizes)
    alone = bool(np.all(sizes == 1))
    for _ in range(permutations):
        donor = np.empty(count, dtype=np.int64)
        for stratum in strata:
            donor[stratum] = rng.permutation(stratum)
        source = donor[owner]
        shuffled = grouped if alone else grouped[np.lexsort((rng.random(len(grouped)), owner))]
        moved = np.empty_like(correct)
        moved[order] = shuffled[starts[source] + place % sizes[source]]
        yield moved


def separation(
    quality: Floats,
    correct: Booleans,
    group: Integers,
    permutations: int,
    rng: np.random.Generator,
    weight: Floats | None = None,
) -> tuple[float, float]:
    """(AUROC, p-value): does higher quality go with right predictions? One-sided, by `permuted_labels`.

    weight: (N,) of the photographs, None where all weigh alike. They weigh the pairs of the AUROC, and stay with the
    qualities when labels move: labels that are independent of quality are so in the sample too, as long as being
    labelled depends on scores alone. p is (1 + permutations with as large an AUROC) / (1 + permutations), in (0, 1].
    """
    weight = np.ones(len(quality)) if weight is None else weight
    weighted = weight * mass_below(quality, weight)
    observed = _auroc_of_masses(weighted, weight, correct)
    as_large = 0
    for labels in permuted_labels(correct, group, permutations, rng):
        # Repeated lists may leave no label of one kind: no separation either way.
        value = _auroc_of_masses(weighted, weight, labels) if 0 < np.count_nonzero(labels) < len(labels) else 0.5
        as_large += value >= observed - 1e-12
    return observed, (1 + as_large) / (1 + permutations)


def _auroc_of_masses(weighted: Floats, weight: Floats, correct: Booleans) -> float:
    """weighted: each photograph's weight times `mass_below`."""
    right = float(weight[correct].sum())
    wrong = float(weight[~correct].sum())
    # Of the pairs among right predictions themselves half the weight counts, whatever their order.
    return float((weighted[correct].sum() - right**2 / 2) / (right * wrong))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values after Holm's correction for their number."""
    from statsmodels.stats.multitest import multipletests

    if not p_values:
        return []
    # It ends with a full garbage collection, which beside loaded libraries takes .4 s: with nothing to look at, none.
    gc.freeze()
    try:
        return [float(p) for p in multipletests(list(p_values), method="holm")[1]]
    finally:
        gc.unfreeze()

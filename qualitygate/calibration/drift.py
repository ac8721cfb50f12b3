"""Whether new scores, pass rates and error rates are still those of a reference window; per method and stratum.

With a million photographs every test is significant, with fifty every index is noisy. So a change counts as drift only
if it is both larger than chance allows (a test, by Holm over all that was tested together) and large enough to matter
(an index of its own: PSI for scores, points for rates).

Photographs of one subject resemble one another. Where groups are known, tests and the index's noise rest on effective
sizes: the count over the design effect, which any test then takes (Rao & Scott 1992, Biometrics 48, 577-585).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from qualitygate.calibration.statistics import Booleans, Floats, Integers, codes, group_sums, holm

Word = Literal["stable", "drifted", "too few"]
STABLE: Word = "stable"
DRIFTED: Word = "drifted"
TOO_FEW: Word = "too few"
OVERALL = "all photographs"
COVERAGE = "coverage"
ERRORS = "errors"
_BINS = 10
# Keeps a bin that one side lacks from making the index infinite: half a photograph.
_HALF = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When a change is drift.

    psi: population stability index; .25 is the usual line for a large shift (Siddiqi 2006). coverage, errors: change
    of the share that passes, and of a share that failed, that matters. significance: of Holm's correction over
    everything that is compared at once. fewest: photographs a side, by number and by effective size.
    """

    psi: float = 0.25
    coverage: float = 0.05
    errors: float = 0.01
    significance: float = 0.01
    fewest: int = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One comparison of current photographs with the reference.

    what: a method's name, `coverage`, `errors` (any), `error:<code>`, or `missing:<method>`: the share without its
    score among photographs without an error. stratum: which photographs. reference, current: how many; effective: of
    each side, what they count for when photographs of a group resemble one another. Scores have ks (largest
    difference of the two distribution functions), psi, psi_chance (what chance alone seldom exceeds) and wasserstein
    (in interquartile ranges of the reference; None where that is 0). before, after: of scores the medians, raw; of
    rates the shares, [0, 1].
    """

    what: str
    stratum: str
    reference: int
    current: int
    word: Word
    effective: tuple[float, ...] | None = None
    p_value: float | None = None
    p_holm: float | None = None
    psi: float | None = None
    psi_chance: float | None = None
    wasserstein: float | None = None
    ks: float | None = None
    before: float | None = None
    after: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Photographs of one side.

    scores: by method, (N,) raw, NaN where one failed: scores that a lazy run left out are no failures, so of such a
    run give its random sample alone. passed: (N,) by one gate for both sides, None without one. codes: (N,) error
    codes, empty where there is none. strata: by name, (N,) labels such as camera models, empty or None where unknown.
    group: (N,) subjects, None or empty where a photograph is one of its own; None for all: each is.
    """

    scores: Mapping[str, Floats]
    passed: Booleans | None
    codes: Sequence[str]
    strata: Mapping[str, Sequence[str | None]]
    group: Sequence[str | None] | None = None

    def __len__(self) -> int:
        return len(self.codes)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Side:
    """A stratum's photographs of one window, as indices, with the groups of the window."""

    window: Window
    rows: Integers
    group: Integers

    def scores(self, method: str) -> tuple[Floats, Integers]:
        values = self.window.scores[method][self.rows]
        there = np.isfinite(values)
        return values[there], self.group[self.rows][there]

    def errors(self) -> "np.ndarray[tuple[int], np.dtype[np.object_]]":
        return np.asarray(self.window.codes, dtype=object)[self.rows]


def compare(reference: Window, current: Window, limits: Limits = Limits()) -> list[Change]:
    """Every method, the coverage and each error code, over all photographs and in each stratum that both sides have.

    A stratum of one side only, such as a new camera, has nothing to be compared with: it counts in the whole.
    """
    made: list[Change] = []
    for stratum, before, after in _parts(reference, current):
        for method in reference.scores:
            if method in current.scores:
                made.append(of_scores(method, stratum, before.scores(method), after.scores(method), limits))
        made += _rates(reference, current, stratum, before, after, limits)
    return settle(made, limits)


def _rates(
    reference: Window, current: Window, stratum: str, before: _Side, after: _Side, limits: Limits
) -> Iterable[Change]:
    groups = before.group[before.rows], after.group[after.rows]
    if reference.passed is not None and current.passed is not None:
        shares = reference.passed[before.rows], current.passed[after.rows]
        yield of_rate(COVERAGE, stratum, (shares[0], groups[0]), (shares[1], groups[1]), limits)
    errors = before.errors(), after.errors()
    failed = errors[0] != "", errors[1] != ""
    yield of_rate(ERRORS, stratum, (failed[0], groups[0]), (failed[1], groups[1]), limits)
    for code in sorted({*errors[0], *errors[1]} - {""}):
        yield of_rate(f"error:{code}", stratum, (errors[0] == code, groups[0]), (errors[1] == code, groups[1]), limits)
    for method in reference.scores:
        if method not in current.scores:
            continue
        absent = [~np.isfinite(side.window.scores[method][side.rows]) for side in (before, after)]
        if any((none & ~bad).any() for none, bad in zip(absent, failed, strict=True)):
            sides = [(none[~bad], group[~bad]) for none, bad, group in zip(absent, failed, groups, strict=True)]
            yield of_rate(f"missing:{method}", stratum, sides[0], sides[1], limits)


def _parts(reference: Window, current: Window) -> Iterable[tuple[str, _Side, _Side]]:
    """(stratum, its photographs in the reference, in the current window)."""
    windows = reference, current
    groups = [_groups(window) for window in windows]

    def sides(chosen: Iterable[Booleans]) -> tuple[_Side, _Side]:
        before, after = (
            _Side(window=window, rows=np.flatnonzero(rows), group=group)
            for window, group, rows in zip(windows, groups, chosen, strict=True)
        )
        return before, after

    yield (OVERALL, *sides(np.ones(len(window), dtype=np.bool_) for window in windows))
    for name in reference.strata:
        if name not in current.strata:
            continue
        labels = [np.asarray(window.strata[name], dtype=object) for window in windows]
        for value in sorted(({*labels[0]} & {*labels[1]}) - {None, ""}):
            yield (f"{name} {value}", *sides(found == value for found in labels))


def _groups(window: Window) -> Integers:
    """(N,) numbers of the groups; a photograph without one is a group of its own."""
    if window.group is None:
        return np.arange(len(window), dtype=np.int64)
    return codes([f"g{name}" if name else f"n{row}" for row, name in enumerate(window.group)])


# ---- one comparison --------------------------------------------------------------------------------------


def of_scores(
    method: str, stratum: str, reference: tuple[Floats, Integers], current: tuple[Floats, Integers], limits: Limits
) -> Change:
    """A method's distribution: Kolmogorov-Smirnov's test, the population stability index, Wasserstein's distance.

    reference, current: (N,) finite scores and the groups' numbers. The test's p-value is that of the two-sample
    statistic at the effective sizes; with ties it errs on the large side.
    """
    from scipy.stats import ks_2samp, kstwo, rankdata, wasserstein_distance

    (before, its), (after, theirs) = reference, current
    made = Change(what=method, stratum=stratum, reference=before.size, current=after.size, word=TOO_FEW)
    if min(before.size, after.size) < limits.fewest:
        return made
    ranks = rankdata(np.concatenate([before, after]))
    effective = effective_sizes((ranks[: before.size], its), (ranks[before.size :], theirs))
    made = replace(made, effective=effective)
    if min(effective) < limits.fewest:
        return made
    ks = float(ks_2samp(before, after, method="asymp").statistic)
    low, high = np.quantile(before, [0.25, 0.75])
    distance = float(wasserstein_distance(before, after))
    psi, bins = stability_index(before, after)
    return replace(
        made,
        word=STABLE,
        # As scipy has it for large samples (tested), with the effective sizes in place of the numbers.
        p_value=float(kstwo.sf(ks, np.round(effective[0] * effective[1] / sum(effective)))),
        ks=ks,
        psi=psi,
        psi_chance=chance_index(effective[0], effective[1], limits.significance, bins),
        wasserstein=distance / float(high - low) if high > low else None,
        before=float(np.median(before)),
        after=float(np.median(after)),
    )


def stability_index(reference: Floats, current: Floats, bins: int = _BINS) -> tuple[float, int]:
    """(Population stability index over the reference's quantile bins, bins that were used); 0: the same shares.

    sum (q - p) ln(q / p) over bins of share p before and q after, [0, inf). A value that fills more than a bin by
    itself is a bin of its own, else what moves from it to the next one's side wouldn't show.
    """
    edges, times = np.unique(np.quantile(reference, np.linspace(0, 1, bins + 1)[1:-1]), return_counts=True)
    edges = np.union1d(edges, np.nextafter(edges[times > 1], np.inf))
    counts = np.stack(
        [
            np.bincount(np.searchsorted(edges, side, side="right"), minlength=edges.size + 1)
            for side in (reference, current)
        ]
    )
    counts = counts[:, counts.any(axis=0)]
    used = counts.shape[1]
    p, q = ((count + _HALF) / (count.sum() + _HALF * used) for count in counts)
    return float(((q - p) * np.log(q / p)).sum()), used


def chance_index(reference: float, current: float, significance: float, bins: int = _BINS) -> float:
    """The index that chance alone exceeds with this probability, for such effective sizes.

    Where nothing has changed the index is about (1/N + 1/M) times a chi-squared variable of bins - 1 degrees of
    freedom (Yurdakul 2018).
    """
    from scipy.stats import chi2

    return float((1 / reference + 1 / current) * chi2.ppf(1 - significance, bins - 1)) if bins > 1 else 0.0


def of_rate(
    what: str, stratum: str, reference: tuple[Booleans, Integers], current: tuple[Booleans, Integers], limits: Limits
) -> Change:
    """A share of photographs: Fisher's exact test of before against after, counts over their design effects.

    reference, current: (N,) whether, and the groups' numbers.
    """
    from scipy.stats import fisher_exact

    (before, its), (after, theirs) = reference, current
    made = Change(what=what, stratum=stratum, reference=before.size, current=after.size, word=TOO_FEW)
    if min(before.size, after.size) < limits.fewest:
        return made
    effective = effective_sizes((before, its), (after, theirs))
    made = replace(made, effective=effective)
    if min(effective) < limits.fewest:
        return made
    shares = float(before.mean()), float(after.mean())
    table = [
        [round(size * share), round(size) - round(size * share)] for size, share in zip(effective, shares, strict=True)
    ]
    return replace(made, word=STABLE, p_value=float(fisher_exact(table).pvalue), before=shares[0], after=shares[1])


def effective_sizes(*sides: tuple[Floats | Booleans, Integers]) -> tuple[float, ...]:
    """For each side how many independent photographs would tell the values' mean as well, in [1, N].

    sides: (N,) values and the groups' numbers. A side whose values are all alike shows nothing of its design effect
    and takes the largest of the others.
    """
    effects = [design_effect(values, group) for values, group in sides]
    largest = max((effect for effect in effects if effect is not None), default=1.0)
    return tuple(
        max(len(values) / (largest if effect is None else effect), 1.0)
        for (values, _), effect in zip(sides, effects, strict=True)
    )


def design_effect(values: Floats | Booleans, group: Integers) -> float | None:
    """Variance of the mean when groups are drawn, over that when photographs are, [1, N]; None of values all alike."""
    members = codes(group)
    groups = int(members.max()) + 1
    if groups in (1, len(members)):
        return len(members) / groups
    centred = np.asarray(values, dtype=np.float64) - np.mean(values)
    alone = float((centred**2).sum())
    if alone <= 0:
        return None
    together = float((group_sums(centred, members, groups) ** 2).sum()) * groups / (groups - 1)
    # Below 1, groups would make photographs more than independent: hardly ever more than noise.
    return max(1.0, together / alone)


# ---- together --------------------------------------------------------------------------------------------


def settle(changes: Sequence[Change], limits: Limits) -> list[Change]:
    """Holm over all that was tested; drifted is what is both significant and large."""
    by_test = iter(holm([one.p_value for one in changes if one.p_value is not None]))
    settled = []
    for one in changes:
        if one.p_value is None:
            settled.append(one)
            continue
        p_holm = next(by_test)
        drifted = p_holm <= limits.significance and _large(one, limits)
        settled.append(replace(one, p_holm=p_holm, word=DRIFTED if drifted else STABLE))
    return settled


def times_limit(one: Change, limits: Limits) -> float:
    """How many times as large as matters a change is, [0, inf): the index or the points, over their limit."""
    if one.psi is not None:
        return one.psi / max(limits.psi, one.psi_chance or 0.0)
    if one.before is None or one.after is None:
        return 0.0
    return abs(one.after - one.before) / (limits.coverage if one.what == COVERAGE else limits.errors)


def _large(one: Change, limits: Limits) -> bool:
    return times_limit(one, limits) >= 1

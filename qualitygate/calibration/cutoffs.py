"""Each method's cut-off: where it lies, how sure that is, and whether it may vote.

By default it is the crossing of the densities of right and wrong predictions (the paper's Figure 3); instead it may
be the lowest at which those above reach an accuracy, or one that a given share passes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from qualitygate.calibration import kde
from qualitygate.calibration.inputs import Photographs
from qualitygate.calibration.kde import Axis, Density, Direction
from qualitygate.calibration.statistics import (
    Booleans,
    Floats,
    Integers,
    alike,
    codes,
    effective_size,
    generator,
    holm,
    percentile_interval,
    quantile,
    replicates,
    separation,
)
from qualitygate.config import CalibrateConfig

Status = Literal["ok", "undefined", "fallback"]
RuleName = Literal["crossing", "target_accuracy", "min_coverage", "percentile"]

# Of the bootstrap replicates: so many must have exactly one crossing, or reach the target.
LEAST_SHARE = 0.9
LEVEL = 0.95
_PLACES = 200
# An accuracy that only a handful of photographs reaches is luck.
_FEWEST_PASSED = 20
_LEAST_PASSED = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How cut-offs are found. value: the target accuracy or the coverage. part: of the photographs, for the seed."""

    rule: RuleName = "crossing"
    value: float | None = None
    weighting: Literal["conditional", "counts"] = "conditional"
    bandwidth: kde.Rule = "scott"
    bootstrap: int = 500
    permutations: int = 1000
    significance: float = 0.05
    min_wrong: int = 20
    min_wrong_groups: int = 10
    fallback_percentile: float | None = None
    seed: int = 0
    part: str = ""

    @classmethod
    def of(cls, config: CalibrateConfig) -> "Settings":
        """The settings that a configuration asks for."""
        rule: RuleName = "crossing"
        if config.target_accuracy is not None:
            rule = "target_accuracy"
        elif config.min_coverage is not None:
            rule = "min_coverage"
        return cls(
            rule=rule,
            value=config.target_accuracy if rule == "target_accuracy" else config.min_coverage,
            **{name: getattr(config, name) for name in _SHARED},
        )

    def for_part(self, part: str, share: float, methods: int) -> "Settings":
        """For a fold that trains on this share: smaller minima, fewer replicates, random numbers of its own.

        Permutations stay as many as Holm's correction for this number of methods needs.
        """
        return replace(
            self,
            bootstrap=min(self.bootstrap, _FOLD_BOOTSTRAP),
            permutations=min(
                self.permutations, max(_FOLD_PERMUTATIONS, fewest_permutations(methods, self.significance))
            ),
            min_wrong=max(2, math.floor(self.min_wrong * share)),
            min_wrong_groups=max(2, math.floor(self.min_wrong_groups * share)),
            part=part,
        )

    def random(self, method: str, purpose: str) -> np.random.Generator:
        """The random numbers of one method's test or bootstrap."""
        return generator(self.seed, method, purpose, self.part)


_SHARED = (
    "weighting",
    "bandwidth",
    "bootstrap",
    "permutations",
    "significance",
    "min_wrong",
    "min_wrong_groups",
    "fallback_percentile",
    "seed",
)
_FOLD_BOOTSTRAP = 100
_FOLD_PERMUTATIONS = 199


def fewest_permutations(methods: int, significance: float) -> int:
    """Below this, not even the smallest p-value passes Holm's first step."""
    return math.ceil(methods / significance) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """Densities for a plot: (200,) places on the quality axis, densities of right and wrong predictions there."""

    quality: Floats
    right: Floats
    wrong: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """One method's line, or why there is none.

    cutoff, interval, crossings, bounds (smallest and largest score): raw. searched: the range of the line on the
    quality axis. share: of replicates with exactly one crossing (or that reach the target accuracy).
    """

    method: str
    axis: Axis
    rule: RuleName
    status: Status
    reasons: tuple[str, ...]
    notes: tuple[str, ...] = ()
    cutoff: float | None = None
    interval: tuple[float, float] | None = None
    crossings: tuple[float, ...] = ()
    searched: tuple[float, float] | None = None
    share: float | None = None
    auroc: float | None = None
    p_value: float | None = None
    p_value_holm: float | None = None
    bounds: tuple[float, float] | None = None
    wrong: int = 0
    wrong_groups: int = 0
    right: int = 0
    curves: Curves | None = None

    @property
    def reason(self) -> str | None:
        """Why it is undefined, in words."""
        return "; ".join(self.reasons) or None

    def low(self, raw: Floats) -> Booleans:
        """(N,) whether each score votes low; false where there is no score, or no cut-off."""
        if self.cutoff is None:
            return np.zeros(len(raw), dtype=np.bool_)
        return raw < self.cutoff if self.axis.direction == "higher" else raw > self.cutoff


def fit_all(photographs: Photographs, directions: Mapping[str, Direction], settings: Settings) -> dict[str, Fit]:
    """Every method's line, Holm's correction and fallbacks included."""
    weight = photographs.weight
    fits = [
        fit(name, raw, photographs.correct, photographs.group, directions[name], settings, weight)
        for name, raw in photographs.scores.items()
    ]
    return {one.method: one for one in settle(fits, photographs.scores, settings, weight)}


def fit(
    method: str,
    raw: Floats,
    correct: Booleans,
    group: Integers,
    direction: Direction,
    settings: Settings,
    weight: Floats | None = None,
) -> Fit:
    """One method's line before Holm's correction: `settle` says whether it may vote.

    raw: (N,), NaN where there is no score: those photographs are left out. weight: (N,) of the photographs, None
    where all weigh alike.
    """
    present = ~np.isnan(raw)
    weight = (np.ones(len(raw)) if weight is None else weight)[present]
    raw, correct, group = raw[present], correct[present], codes(group[present])
    axis = kde.axis_of(method, raw, direction, weight) if len(raw) else Axis(direction=direction, transform="identity")
    reasons = _too_few(correct, group, weight, settings)
    made = Fit(method=method, axis=axis, rule=settings.rule, status="ok", reasons=reasons)
    if not len(raw):
        return made
    made = replace(
        made,
        bounds=(float(raw.min()), float(raw.max())),
        wrong=int(np.count_nonzero(~correct)),
        wrong_groups=len(np.unique(group[~correct])),
        right=int(np.count_nonzero(correct)),
    )
    quality = axis.quality(raw)
    if min(made.wrong, made.right) < 2:
        return made
    rng = settings.random(method, "permutation")
    auroc, p_value = separation(quality, correct, group, settings.permutations, rng, weight)
    made = replace(made, auroc=auroc, p_value=p_value)
    try:
        densities = tuple(
            Density(quality[kind], settings.bandwidth, axis.ends, weight[kind]) for kind in (~correct, correct)
        )
    except kde.DegenerateScoresError as error:
        return replace(made, reasons=(*made.reasons, str(error)))
    wrong, right = densities
    places = np.linspace(quality[np.isfinite(quality)].min(), quality[np.isfinite(quality)].max(), _PLACES)
    made = replace(made, curves=Curves(quality=places, right=right(places), wrong=wrong(places)))
    rules: dict[RuleName, Callable[[Fit, Floats, Booleans, Integers, Floats, Settings], Fit]] = {
        "target_accuracy": _reach_accuracy,
        "min_coverage": _keep_coverage,
    }
    if settings.rule == "crossing":
        return _cross(made, quality, correct, group, weight, wrong, right, settings)
    return rules[settings.rule](made, raw, correct, group, weight, settings)


def _too_few(correct: Booleans, group: Integers, weight: Floats, settings: Settings) -> tuple[str, ...]:
    """By number, and by what so many count for when some weigh more than others."""
    reasons = []
    for kind, chosen in (("wrong", ~correct), ("right", correct)):
        number, groups = int(np.count_nonzero(chosen)), len(np.unique(group[chosen]))
        size, size_groups = effective_size(weight[chosen]), effective_size(_mean_weights(weight, group, chosen))
        if number < settings.min_wrong:
            reasons.append(f"{number} {kind} predictions with a score, {settings.min_wrong} are needed")
        elif groups < settings.min_wrong_groups:
            reasons.append(
                f"the {number} {kind} predictions lie in {groups} groups, {settings.min_wrong_groups} are needed"
            )
        elif size < settings.min_wrong:
            reasons.append(
                f"by their weights the {number} {kind} predictions count for {size:.1f}, {settings.min_wrong} are "
                "needed"
            )
        elif size_groups < settings.min_wrong_groups:
            reasons.append(
                f"by their weights the {groups} groups of the {number} {kind} predictions count for {size_groups:.1f}, "
                f"{settings.min_wrong_groups} are needed"
            )
    return tuple(reasons)


def _mean_weights(weight: Floats, group: Integers, chosen: Booleans) -> Floats:
    """The mean weight of the chosen photographs of each group that has some."""
    members = codes(group[chosen])
    return np.bincount(members, weights=weight[chosen]) / np.bincount(members)


# ---- the crossing ----------------------------------------------------------------------------------------


def _cross(
    made: Fit,
    quality: Floats,
    correct: Booleans,
    group: Integers,
    weight: Floats,
    wrong: Density,
    right: Density,
    settings: Settings,
) -> Fit:
    odds = float(weight[~correct].sum() / weight[correct].sum())
    log_odds = math.log(odds) if settings.weighting == "counts" else 0.0
    within = kde.search_range(quality[~correct], quality[correct], weight[~correct], weight[correct])
    finite = np.isfinite(quality)
    ends = quantile(quality[finite], [0.01, 0.99], weight[finite]).tolist()
    if within is not None:
        ends = [min(ends[0], within[0]), max(ends[1], within[1])]
    everywhere = kde.crossings(wrong, right, ends[0], ends[1], log_odds=log_odds) if ends[0] < ends[1] else []
    shown = tuple(sorted(made.axis.raw([one.quality for one in everywhere]).tolist()))
    made = replace(made, crossings=shown, searched=within)
    if within is None:
        return replace(made, reasons=(*made.reasons, "the quality of wrong predictions isn't the lower"))
    inside = [one for one in everywhere if within[0] <= one.quality <= within[1]]
    chosen = kde.choose(inside, wrong, right, log_odds)
    if chosen is None:
        return replace(
            made, share=0.0, reasons=(*made.reasons, "the densities don't cross between wrong and right predictions")
        )
    drawn = kde.bootstrap_crossings(
        quality,
        correct,
        group,
        within=within,
        rule=settings.bandwidth,
        weighting=settings.weighting,
        ends=made.axis.ends,
        count=settings.bootstrap,
        rng=settings.random(made.method, "bootstrap"),
        weight=weight,
    )
    share = float(np.mean(drawn.single))
    reasons, notes = list(made.reasons), list(made.notes)
    if share < LEAST_SHARE:
        reasons.append(f"exactly one crossing in {share:.0%} of the replicates, {LEAST_SHARE:.0%} are needed")
    if len(everywhere) > 1:
        notes.append(
            f"{made.method}: the densities cross {len(everywhere)} times, {len(inside)} of them between wrong and "
            "right predictions; the cut-off is the one that divides best there"
        )
    interval = percentile_interval(made.axis.raw(drawn.quality), LEVEL)
    return replace(
        made,
        cutoff=float(made.axis.raw(chosen.quality)),
        interval=interval,
        share=share,
        reasons=tuple(reasons),
        notes=tuple(notes),
    )


# ---- alternatives ----------------------------------------------------------------------------------------


def _reach_accuracy(
    made: Fit, raw: Floats, correct: Booleans, group: Integers, weight: Floats, settings: Settings
) -> Fit:
    """The lowest cut-off at which those that pass reach the accuracy, if enough of them do."""
    target = settings.value or 0.0
    order = np.argsort(made.axis.quality(raw), kind="stable")
    ordered, right, owner, own = raw[order], correct[order].astype(np.float64), group[order], weight[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))

    def lowest(times_BN: Floats) -> Floats:
        """(B,) raw cut-offs, NaN where the target isn't reached; times: how often each photograph was drawn."""
        passed = _from_each(times_BN * own, starts)
        good = _from_each(times_BN * own * right, starts)
        number = passed
        if not alike(own):
            with np.errstate(invalid="ignore"):
                effective = passed**2 / _from_each(times_BN * own**2, starts)
            number = np.fmin(_from_each(times_BN, starts), effective)
        enough = (number >= _FEWEST_PASSED) & (passed >= _LEAST_PASSED * passed[:, :1])
        reached = enough & (good >= target * passed - 1e-9)
        return np.where(reached.any(axis=1), ordered[starts][np.argmax(reached, axis=1)], np.nan)

    cutoff = float(lowest(np.ones((1, len(raw))))[0])
    found = _drawn(lowest, owner, made, settings)
    share = float(np.mean(np.isfinite(found)))
    reasons, notes = list(made.reasons), list(made.notes)
    if math.isnan(cutoff):
        reasons.append(f"no cut-off reaches an accuracy of {target:g}")
    elif share < LEAST_SHARE:
        reasons.append(f"{share:.0%} of the replicates reach an accuracy of {target:g}, {LEAST_SHARE:.0%} are needed")
    elif float(np.average(correct, weights=weight)) >= target:
        notes.append(
            f"{made.method}: all photographs together reach an accuracy of {target:g}: its cut-off rejects none"
        )
    return replace(
        made,
        cutoff=None if math.isnan(cutoff) else cutoff,
        interval=percentile_interval(found, LEVEL),
        share=share,
        reasons=tuple(reasons),
        notes=tuple(notes),
    )


def _keep_coverage(
    made: Fit, raw: Floats, correct: Booleans, group: Integers, weight: Floats, settings: Settings
) -> Fit:
    """The cut-off that rejects as many as it may while at least the given share passes."""
    coverage = settings.value or 0.0
    order = np.argsort(made.axis.quality(raw), kind="stable")
    ordered, owner, own = raw[order], group[order], weight[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))

    def highest(times_BN: Floats) -> Floats:
        passed = _from_each(times_BN * own, starts)
        kept = passed >= coverage * passed[:, :1] - 1e-9
        return ordered[starts][len(starts) - 1 - np.argmax(kept[:, ::-1], axis=1)]

    return replace(
        made,
        cutoff=float(highest(np.ones((1, len(raw))))[0]),
        interval=percentile_interval(_drawn(highest, owner, made, settings), LEVEL),
    )


def _from_each(values_BN: Floats, starts: Integers) -> Floats:
    """(B, starts) sums from each start to the end."""
    return np.asarray(np.cumsum(values_BN[:, ::-1], axis=1)[:, ::-1][:, starts], dtype=np.float64)


def _drawn(statistic: Callable[[Floats], Floats], owner: Integers, made: Fit, settings: Settings) -> Floats:
    """(B,) a statistic of how often each photograph is drawn (B, N), over the clustered bootstrap."""
    rng = settings.random(made.method, "bootstrap")
    found = []
    for drawn in replicates(int(owner.max()) + 1, settings.bootstrap, rng):
        for begin in range(0, len(drawn), 64):
            found.append(statistic(drawn[begin : begin + 64, owner]))
    return np.concatenate(found)


# ---- who may vote ----------------------------------------------------------------------------------------


def settle(
    fits: Sequence[Fit], scores: Mapping[str, Floats], settings: Settings, weight: Floats | None = None
) -> list[Fit]:
    """Statuses: Holm's correction over the methods that were tested, then fallbacks where they are asked for.

    scores, weight: (N,) of the photographs.
    """
    tested = [one for one in fits if one.p_value is not None]
    corrected = dict(zip([one.method for one in tested], holm([one.p_value or 0.0 for one in tested]), strict=True))
    settled = []
    for one in fits:
        p_value = corrected.get(one.method)
        reasons = list(one.reasons)
        if p_value is not None and p_value > settings.significance:
            reasons.append(_no_separation(one, p_value))
        status: Status = "undefined" if reasons else "ok"
        done = replace(one, p_value_holm=p_value, reasons=tuple(reasons), status=status)
        settled.append(done if status == "ok" else _fallen_back(done, scores[one.method], weight, settings))
    return settled


def _no_separation(one: Fit, p_value: float) -> str:
    said = f"its AUROC of {one.auroc:.2f} isn't above .5 (p = {p_value:.2g} after Holm's correction)"
    # The other tail of the same permutations: a score that divides, but the wrong way round.
    turned = one.auroc is not None and one.auroc < 0.5 and one.p_value is not None and one.p_value > 0.975
    if turned:
        other = "lower" if one.axis.direction == "higher" else "higher"
        said += f"; it divides the other way round: are {other} scores better?"
    return said


def _fallen_back(one: Fit, raw: Floats, weight: Floats | None, settings: Settings) -> Fit:
    """Undefined: no cut-off, but the lowest percentage of quality where that was asked for."""
    known = ~np.isnan(raw)
    present = raw[known]
    if settings.fallback_percentile is None or len(np.unique(present)) < 2:
        return replace(one, cutoff=None, interval=None)
    quality, share = present if one.axis.direction == "higher" else -present, settings.fallback_percentile / 100
    if weight is None or alike(weight[known]):
        place = float(np.quantile(quality, share, method="higher"))
    else:
        place = float(quantile(quality, share, weight[known]))
    cutoff = place if one.axis.direction == "higher" else -place
    return replace(one, status="fallback", rule="percentile", cutoff=cutoff, interval=None)

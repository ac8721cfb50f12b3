"""Class-conditional densities of a score, and where they cross.

Everything works on the quality axis: the score after its transform, its sign turned so that higher is better. A
crossing falls when wrong predictions prevail below it and right ones above: that is what a cut-off is.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt

from qualitygate.calibration.statistics import Booleans, Floats, Integers, alike, quantile, replicates
from qualitygate.metrics import CATALOGUE

Direction = Literal["higher", "lower"]
Transform = Literal["log", "identity"]
Rule = Literal["scott", "silverman"]

# Variances and sums of magnitudes, whose distributions are skewed: fitted on a log scale.
LOG_SCALED = frozenset({"lapv", "lapm", "wavs", "lapv-cv2", "wavs-coef"})
# More photographs of the score 0 than this, and its logarithm describes the scores no more.
MAX_SHARE_OF_ZEROS = 0.1
# A user's own score goes on a log scale when it is positive and at least so skewed.
SKEWED = 1.0
MIN_DISTINCT = 5

_GRID = 400
_CELLS, _MOST_CELLS = 2048, 16384
# Of the largest density: below it, what a Fourier transform computes is rounding.
_NOISE = 1e-9
_TERMS_AT_ONCE = 2_000_000


class DegenerateScoresError(ValueError):
    """These scores have no density: too few of them differ."""


# ---- the axis --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """How raw scores become quality, and back.

    bounds: smallest and largest raw score that the metric can have, where both are known: densities are reflected
    there, since a kernel that reaches over an end would lose part of its mass.
    """

    direction: Direction
    transform: Transform
    bounds: tuple[float, float] | None = None

    def quality(self, raw: npt.ArrayLike) -> Floats:
        """Quality of raw scores, higher is better; a score of 0 on a log scale is at infinity."""
        values = np.asarray(raw, dtype=np.float64)
        if self.transform == "log":
            with np.errstate(divide="ignore"):
                values = np.log(values)
        return values if self.direction == "higher" else -values

    def raw(self, quality: npt.ArrayLike) -> Floats:
        """Raw scores of this quality."""
        values = np.asarray(quality, dtype=np.float64)
        values = values if self.direction == "higher" else -values
        return np.exp(values) if self.transform == "log" else values

    @property
    def ends(self) -> tuple[float, float] | None:
        """The bounds as quality, in order."""
        if self.bounds is None:
            return None
        low, high = sorted(self.quality(self.bounds).tolist())
        return low, high


def axis_of(method: str, raw: Floats, direction: Direction, weight: Floats | None = None) -> Axis:
    """The axis on which a method's scores are fitted.

    LAPV, LAPM and WAVS are positive and skewed: log, as long as no more than a tenth of the scores is 0. The other
    metrics of the catalogue are taken as they are. Columns that are no metric go on a log scale when all values are
    positive and their skewness is 1 or more, which no change of unit alters. weight: (N,) of the photographs, for
    that tenth and that skewness.
    """
    metric = CATALOGUE.get(method)
    transform: Transform = "identity"
    if method in LOG_SCALED:
        if np.all(raw >= 0) and np.average(raw == 0, weights=weight) <= MAX_SHARE_OF_ZEROS:
            transform = "log"
    elif metric is None and np.all(raw > 0) and _skewness(raw, weight) >= SKEWED:
        transform = "log"
    bounds = metric.range if metric is not None else (None, None)
    within = bounds[0] is not None and bounds[1] is not None and transform == "identity"
    inside = within and bool(np.all((raw >= bounds[0]) & (raw <= bounds[1])))  # type: ignore[operator]
    return Axis(
        direction=direction,
        transform=transform,
        bounds=(float(bounds[0]), float(bounds[1])) if inside else None,  # type: ignore[arg-type]
    )


def _skewness(raw: Floats, weight: Floats | None) -> float:
    from scipy.stats import skew

    # Of a constant it is undefined, and scipy says so in a warning.
    if len(raw) <= 2 or np.ptp(raw) <= 1e-9 * np.abs(raw).max():
        return 0.0
    if weight is None or alike(weight):
        return float(skew(raw))
    centred = raw - np.average(raw, weights=weight)
    squares, cubes = (np.average(centred**power, weights=weight) for power in (2, 3))
    return float(cubes / squares**1.5)


# ---- one density -----------------------------------------------------------------------------------------


class Density:
    """Gaussian kernel density of one class on the quality axis, as scipy.stats.gaussian_kde fits it.

    Infinite qualities (a score of 0 on a log scale) count in the mass and have no place on the axis: the density
    integrates to the share of the others. weight: (N,) of the photographs; the bandwidth's rule then takes their
    effective size for their number, and their weighted variance. Raises DegenerateScoresError where there is no
    density.
    """

    def __init__(
        self, quality: Floats, rule: Rule, ends: tuple[float, float] | None = None, weight: Floats | None = None
    ) -> None:
        from scipy.stats import gaussian_kde

        finite = np.isfinite(quality)
        self.values = quality[finite]
        own = None if weight is None or alike(weight[finite]) else weight[finite]
        check_spread(self.values, own)
        self._share = float(np.average(finite, weights=weight))
        self._kernel = gaussian_kde(self.values, bw_method=rule, weights=own)
        self._weight = None if own is None else own / own.mean()
        self._ends = ends

    @property
    def bandwidth(self) -> float:
        """Standard deviation of the kernel."""
        return float(np.sqrt(self._kernel.covariance[0, 0]))

    def log(self, quality: npt.ArrayLike) -> Floats:
        """Logarithm of the density at these places; exact where the density itself would underflow."""
        places = np.atleast_1d(np.asarray(quality, dtype=np.float64))
        value = self._log_kernels(places)
        if self._ends is not None:
            for end in self._ends:
                value = np.logaddexp(value, self._log_kernels(2 * end - places))
            value = np.where((places < self._ends[0]) | (places > self._ends[1]), -np.inf, value)
        return np.asarray(value + np.log(self._share), dtype=np.float64)

    def _log_kernels(self, places: Floats) -> Floats:
        # gaussian_kde.logpdf, value for value (tested), but for its triangular solve: that wakes BLAS's threads for
        # each of some thousand calls, and took two thirds of a calibration's time.
        width, number = self.bandwidth, len(self.values)
        portion = max(1, _TERMS_AT_ONCE // number)
        sums = []
        for begin in range(0, len(places), portion):
            exponents = -0.5 * ((places[begin : begin + portion, None] - self.values) / width) ** 2
            largest = exponents.max(axis=1)
            terms = np.exp(exponents - largest[:, None])
            sums.append(largest + np.log((terms if self._weight is None else terms * self._weight).sum(axis=1)))
        return np.concatenate(sums) - np.log(number * width * np.sqrt(2 * np.pi))

    def __call__(self, quality: npt.ArrayLike) -> Floats:
        """The density at these places, per unit of quality."""
        return np.exp(self.log(quality))

    def below(self, quality: float) -> float:
        """The mass below, in [0, 1], but for what is at minus infinity."""
        ends = self._ends or (-np.inf, np.inf)
        mass = self._kernel.integrate_box_1d(ends[0], quality)
        for end in self._ends or ():
            mass += self._kernel.integrate_box_1d(2 * end - quality, 2 * end - ends[0])
        return float(mass * self._share)


def check_spread(values: Floats, weight: Floats | None = None) -> None:
    """DegenerateScoresError unless the values (N,), of these weights, differ enough to have a density."""
    distinct, place = np.unique(values, return_inverse=True)
    mass = np.bincount(place, weights=weight)
    if len(distinct) < MIN_DISTINCT:
        raise DegenerateScoresError(
            "the scores are constant" if len(distinct) == 1 else f"its scores have {len(distinct)} different values"
        )
    share = mass.max() / mass.sum()
    if share > 0.5:
        raise DegenerateScoresError(f"{share:.0%} of the scores are one value")
    if np.ptp(values) <= 1e-9 * np.abs(values).max():
        raise DegenerateScoresError("the scores are constant but for rounding")


# ---- crossings -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossing:
    """A place on the quality axis where the two densities are equal."""

    quality: float
    falling: bool


def search_range(
    wrong: Floats, right: Floats, wrong_weight: Floats | None = None, right_weight: Floats | None = None
) -> tuple[float, float] | None:
    """Where the line is sought: from the 5 % quantile of wrong predictions to the 75 % quantile of right ones.

    It holds the stretch between the two modes, which themselves won't do as ends: the mode of few wrong predictions
    jumps, and it lies among the right ones where most errors have another cause than quality. Beyond it one of the
    densities is its tail, and crossings are chance. None when the wrong ones' quality isn't the lower.
    """
    low, high = (_finite_quantile(*of) for of in ((wrong, wrong_weight, 0.05), (right, right_weight, 0.75)))
    return (low, high) if low < high else None


def _finite_quantile(quality: Floats, weight: Floats | None, share: float) -> float:
    finite = np.isfinite(quality)
    return float(quantile(quality[finite], share, (np.ones(len(quality)) if weight is None else weight)[finite]))


def crossings(wrong: Density, right: Density, low: float, high: float, log_odds: float = 0.0) -> list[Crossing]:
    """Every crossing between two places, in order: sign changes on a grid, refined by Brent's method.

    log_odds: logarithm of the weight of wrong predictions over that of right ones; 0 compares the densities alone.
    """
    from scipy.optimize import brentq

    def difference(place: float | Floats) -> Floats:
        return wrong.log(place) + log_odds - right.log(place)

    places = np.linspace(low, high, _GRID)
    signs = np.sign(difference(places))
    known = np.flatnonzero(np.isfinite(signs) & (signs != 0))
    found = []
    for before, after in pairwise(known):
        if signs[before] != signs[after]:
            place = brentq(lambda x: float(difference(x)[0]), places[before], places[after], xtol=1e-12)
            found.append(Crossing(quality=float(place), falling=bool(signs[before] > 0)))
    return found


def choose(found: list[Crossing], wrong: Density, right: Density, log_odds: float = 0.0) -> Crossing | None:
    """Of the falling crossings the one that divides best: most wrong predictions below for the right ones lost."""
    odds = np.exp(log_odds)
    falling = [one for one in found if one.falling]
    return max(falling, key=lambda one: odds * wrong.below(one.quality) - right.below(one.quality), default=None)


# ---- replicates ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicates:
    """What the bootstrap says. quality: (B,) of the chosen crossing, NaN where there is none. single: (B,) whether
    it is the only one."""

    quality: Floats
    single: Booleans


class _Binned:
    """One class's weighted scores by group on a grid, whose densities are smoothed for many replicates at once.

    Linear binning and a Fourier transform: within 1e-4 of the kernel density's largest value (tested).
    """

    def __init__(
        self,
        quality: Floats,
        weight: Floats,
        group: Integers,
        groups: int,
        places: Floats,
        rule: Rule,
        ends: tuple[float, float] | None,
    ) -> None:
        from scipy.sparse import csr_array

        finite = np.isfinite(quality)
        self._mass = np.bincount(group, weights=weight, minlength=groups).astype(np.float64)
        self._rule = rule
        values, weight, owner = quality[finite], weight[finite], group[finite]
        self._centre = float(np.average(values, weights=weight))
        moved = values - self._centre
        self._moments = np.stack(
            [np.bincount(owner, weights=weight * moved**power, minlength=groups) for power in (0, 1, 2)], axis=1
        )
        self._squared = np.bincount(owner, weights=weight**2, minlength=groups)
        if ends is not None:
            values = np.concatenate([values, 2 * ends[0] - values, 2 * ends[1] - values])
            weight, owner = np.tile(weight, 3), np.tile(owner, 3)
        step = places[1] - places[0]
        position = (values - places[0]) / step
        # What lies outside the grid is further from the range of interest than kernels reach.
        inside = (position >= 0) & (position < len(places) - 1)
        position, weight, owner = position[inside], weight[inside], owner[inside]
        lower = position.astype(np.int64)
        upper_share = position - lower
        self._cells = csr_array(
            (
                np.concatenate([weight * (1 - upper_share), weight * upper_share]),
                (np.concatenate([lower, lower + 1]), np.concatenate([owner, owner])),
            ),
            shape=(len(places), groups),
        )
        self._step = step

    def mass(self, drawn: Floats) -> Floats:
        """(B,) weight of the photographs in each replicate."""
        return drawn @ self._mass

    def densities(self, drawn: Floats) -> Floats:
        """(B, cells) densities of the replicates; zero where a replicate has none."""
        number, total, squares = (drawn @ self._moments).T
        with np.errstate(divide="ignore", invalid="ignore"):
            # As gaussian_kde has it with weights; a photograph drawn twice counts twice.
            squared = drawn @ self._squared
            variance = (squares - total**2 / number) / (number - squared / number)
            size = number**2 / squared
            factor = size**-0.2 if self._rule == "scott" else (size * 0.75) ** -0.2
            width = np.sqrt(np.maximum(variance, 0)) * factor
            counts = (self._cells @ drawn.T).T / (self.mass(drawn) * self._step)[:, None]
        usable = np.isfinite(width) & (width > 0)
        # Narrower than the grid can show, a kernel would ring.
        width = np.maximum(width, 2.5 * self._step)
        frequency = 2 * np.pi * np.fft.rfftfreq(counts.shape[1], self._step)
        kernel = np.exp(-0.5 * (np.where(usable, width, 0.0)[:, None] * frequency) ** 2)
        spectrum = np.fft.rfft(np.where(usable[:, None], counts, 0.0), axis=1)
        return np.asarray(np.fft.irfft(spectrum * kernel, n=counts.shape[1], axis=1), dtype=np.float64)


def bootstrap_crossings(
    quality: Floats,
    correct: Booleans,
    group: Integers,
    *,
    within: tuple[float, float],
    rule: Rule,
    weighting: Literal["conditional", "counts"],
    ends: tuple[float, float] | None,
    count: int,
    rng: np.random.Generator,
    weight: Floats | None = None,
) -> Replicates:
    """The crossing within a fixed range in replicates of the clustered bootstrap, bandwidths fitted in each.

    quality, correct, group, weight: (N,). In a replicate a photograph weighs its weight times the draws of its group.
    """
    groups = int(group.max()) + 1
    weight = np.ones(len(quality)) if weight is None else weight
    finite = np.isfinite(quality)
    widths = [
        Density(quality[finite & chosen], rule, weight=weight[finite & chosen]).bandwidth
        for chosen in (correct, ~correct)
    ]
    reach = 8 * max(widths)
    cells = _CELLS
    while cells < _MOST_CELLS and (within[1] - within[0] + 2 * reach) / cells > min(widths) / 4:
        cells *= 2
    places = np.linspace(within[0] - reach, within[1] + reach, cells)
    binned = [
        _Binned(quality[kind], weight[kind], group[kind], groups, places, rule, ends) for kind in (~correct, correct)
    ]
    inside = np.flatnonzero((places >= within[0]) & (places <= within[1]))
    shown = slice(max(int(inside[0]) - 1, 0), int(inside[-1]) + 2)
    chosen, single = [], []
    for drawn in _portions(replicates(groups, count, rng)):
        wrong, right = (one.densities(drawn)[:, shown] for one in binned)
        if weighting == "counts":
            wrong, right = (
                density * one.mass(drawn)[:, None] for density, one in zip((wrong, right), binned, strict=True)
            )
        for one_wrong, one_right in zip(wrong, right, strict=True):
            place, alone = _crossing_on_grid(places[shown], one_wrong, one_right, within)
            chosen.append(place)
            single.append(alone)
    return Replicates(quality=np.asarray(chosen), single=np.asarray(single, dtype=np.bool_))


def _portions(drawn: Iterator[Floats]) -> Iterator[Floats]:
    """No more than 128 replicates at once, whose densities fit in a few megabytes."""
    for portion in drawn:
        for begin in range(0, len(portion), 128):
            yield portion[begin : begin + 128]


def _crossing_on_grid(places: Floats, wrong: Floats, right: Floats, within: tuple[float, float]) -> tuple[float, bool]:
    """(quality of the best falling crossing or NaN, whether it is the only crossing) of densities on a grid."""
    peaks = wrong.max(), right.max()
    if not (peaks[0] > 0 and peaks[1] > 0):
        return np.nan, False
    difference = wrong - right
    noise = _NOISE * max(peaks)
    # In a gap between well separated classes both densities vanish: the sign on either side counts.
    known = np.flatnonzero(np.abs(difference) > noise)
    signs = difference[known] > 0
    changes = np.flatnonzero(signs[:-1] != signs[1:])
    before, after = known[changes], known[changes + 1]
    share = difference[before] / (difference[before] - difference[after])
    crossed = places[before] + share * (places[after] - places[before])
    kept = (crossed >= within[0]) & (crossed <= within[1])
    falling = signs[changes] & kept
    if not falling.any():
        return np.nan, False
    # Between two falling crossings the better one is told by the area between the densities.
    area = np.cumsum(difference)
    best = int(np.flatnonzero(falling)[np.argmax(area[before[falling]])])
    return float(crossed[best]), int(np.count_nonzero(kept)) == 1

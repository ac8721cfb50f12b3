"""What a gate's decisions are worth, in the measure that its cut-offs maximise; one gate's against another's.

Youden's J (Youden 1950, Cancer 3, 32-35) of a gate against correctness is the share of wrong predictions that it
rejects plus the share of right ones that it passes, less 1: 0 for rejecting at random, however much, 1 for rejecting
all that is wrong and nothing else. For one method with the cut-off c it is F_wrong(c) - F_right(c), the difference of
the two distribution functions. Its derivative is the difference of the two densities, so it is largest where they
cross from wrong to right (Fluss, Faraggi & Reiser 2005, Biometrical Journal 47, 458-472): the crossing is the estimate
of the cut-off that maximises J, and of several crossings calibration takes that with the largest. A gate that counts
votes of several methods needn't reach its own largest J, but is judged by the same measure.

J doesn't depend on how frequent wrong predictions are, so two nights with better and worse photographs compare. It
does depend on how photographs were drawn: where rejected ones are seldom labelled, unweighted shares are those of the
labelled and not of the feed.

A gate is worth less on new photographs than on those that it was made from. Give decisions on photographs that it has
not seen: for a gate just made, the share of the cross-fitting's repeats in which each photograph passed.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qualitygate.calibration.statistics import (
    Booleans,
    Floats,
    Integers,
    bootstrap,
    codes,
    effective_size,
    generator,
    group_sums,
    symmetric_interval,
)

REPLICATES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """One gate's worth. youden: in [-1, 1], higher is better; None without a wrong or without a right prediction.

    interval: at 95 %, None where replicates or groups are too few. wrong_rejected, right_passed: weighted shares.
    wrong, right: photographs; effective_wrong, effective_right: what they count for by their weights.
    """

    youden: float | None
    interval: tuple[float, float] | None
    wrong_rejected: float | None
    right_passed: float | None
    wrong: int
    right: int
    effective_wrong: float
    effective_right: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """J of one gate less that of another on the same photographs; above 0 the first is better.

    youden: in [-2, 2], None where J is. interval: at 95 %. changed: weighted share of photographs on which they part.
    """

    youden: float | None
    interval: tuple[float, float] | None
    changed: float


def value_of(
    passed: Booleans | Floats,
    correct: Booleans,
    weight: Floats | None,
    group: npt.ArrayLike,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Value:
    """Youden's J of a gate's decisions, with its interval over the bootstrap that draws whole groups.

    passed: (N,) whether each photograph passes, or in which share of the repeats. correct: (N,) whether the classifier
    was right. weight: (N,) positive, of any scale; None where all weigh alike. group: (N,) subjects. Raises ValueError
    for arrays of different lengths and for decisions outside [0, 1], such as NaN where no gate could decide.
    """
    accepted, own, members = _checked(correct, weight, group, passed)
    point, drawn = _replicated(accepted, correct, own, members, replicates, seed)
    shares = point[0]
    return Value(
        youden=_known(shares[2]),
        interval=symmetric_interval(float(shares[2]), drawn[:, 2], _telling(correct, members), (-1.0, 1.0)),
        wrong_rejected=_known(shares[0]),
        right_passed=_known(shares[1]),
        wrong=int(np.count_nonzero(~correct)),
        right=int(np.count_nonzero(correct)),
        effective_wrong=effective_size(own[~correct]),
        effective_right=effective_size(own[correct]),
    )


def compared(
    passed: Booleans | Floats,
    other: Booleans | Floats,
    correct: Booleans,
    weight: Floats | None,
    group: npt.ArrayLike,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Difference:
    """J of one gate's decisions less that of another's on the same photographs, with the interval of the difference.

    Paired: each replicate draws the same groups for both, so what both meet alike cancels. passed, other: (N,), the
    rest as of `value_of`.
    """
    accepted, own, members = _checked(correct, weight, group, passed, other)
    point, drawn = _replicated(accepted, correct, own, members, replicates, seed)
    difference = float(point[0, 2] - point[0, 5])
    return Difference(
        youden=_known(difference),
        interval=symmetric_interval(difference, drawn[:, 2] - drawn[:, 5], _telling(correct, members), (-2.0, 2.0)),
        changed=float(np.average(np.abs(accepted[:, 0] - accepted[:, 1]), weights=own)),
    )


def _checked(
    correct: Booleans, weight: Floats | None, group: npt.ArrayLike, *passed: Booleans | Floats
) -> tuple[Floats, Floats, Integers]:
    """(N, gates) shares accepted, (N,) weights, (N,) numbers of the groups."""
    members = codes(np.asarray(group)) if len(correct) else np.zeros(0, dtype=np.int64)
    own = np.ones(len(correct)) if weight is None else np.asarray(weight, dtype=np.float64)
    lengths = {len(correct), len(members), len(own), *map(len, passed)}
    if lengths != {len(correct)} or not lengths - {0}:
        raise ValueError(
            f"decisions, outcomes, weights and groups of {sorted(lengths)} photographs; give as many of each"
        )
    accepted = np.stack([np.asarray(one, dtype=np.float64) for one in passed], axis=1)
    if not np.all((accepted >= 0) & (accepted <= 1)):
        raise ValueError("some decisions are no share in [0, 1]; leave out photographs on which no gate could decide")
    return accepted, own, members


def _replicated(
    accepted: Floats, correct: Booleans, weight: Floats, group: Integers, replicates: int, seed: int
) -> tuple[Floats, Floats]:
    """((1, 3 gates), (B, 3 gates)): of each gate the wrong rejected, the right passed, and J; NaN where undefined."""
    wrong, right = weight * ~correct, weight * correct
    parts = [part for one in accepted.T for part in (wrong * (1 - one), right * one)]
    sums = group_sums(np.stack([wrong, right, *parts], axis=1), group, int(group.max()) + 1)

    def read(totals: Floats) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            columns = []
            for first in range(2, totals.shape[1], 2):
                rejected, passed = totals[:, first] / totals[:, 0], totals[:, first + 1] / totals[:, 1]
                columns += [rejected, passed, rejected + passed - 1]
        return np.stack(columns, axis=1)

    return read(sums.sum(axis=0, keepdims=True)), bootstrap(read, sums, replicates, generator(seed, "value"))


def _telling(correct: Booleans, group: Integers) -> int:
    """Groups with a wrong prediction, or with a right one if those are fewer: J knows no more than these tell."""
    return min(len(np.unique(group[~correct])), len(np.unique(group[correct])))


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None

"""Scores of one metric in two precisions, compared: errors as shares of the spread, ranks, and whether that passes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qualitygate.errors import Failure
from qualitygate.metrics.metric import Score
from qualitygate.metrics.precision import HALF

# Below, neither a spread nor a rank correlation says anything: among 20, one swapped pair is an SRCC of .9985; among
# 50 it is .9999.
FEWEST = 50
# The spread is the distance between these percentiles of the float32 scores: single odd photographs don't widen it.
LOW, HIGH = 5.0, 95.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How far half precision is from float32 for one metric.

    fingerprint: of the scores that half precision gives, of whole photographs.
    photographs: with a score in both.
    spread: of the float32 scores, from their 5th to their 95th percentile, in the metric's unit; deviation: their
        standard deviation.
    largest_error: of one photograph, in the metric's unit; error_share: of the spread.
    srcc: Spearman's rank correlation with float32.
    passed: whether it is within the bounds; reason: why not.
    """

    name: str
    fingerprint: str
    precision: str
    photographs: int
    spread: float | None
    deviation: float | None
    largest_error: float | None
    error_share: float | None
    srcc: float | None
    passed: bool
    reason: str | None


def judged(
    name: str, fingerprint: str, pairs: Sequence[tuple[Score, ...]], *, min_srcc: float, max_error: float
) -> Verdict:
    """The verdict on one metric.

    pairs: of each photograph its float32 score and its scores in half precision, one for each way to run it. A
    photograph without a score in float32 is left out; one that has lost its score fails the metric.
    """
    import numpy as np

    valid = [pair for pair in pairs if not isinstance(pair[0], Failure)]
    lost = sum(any(isinstance(score, Failure) for score in pair) for pair in valid)

    def verdict(reason: str | None, **numbers: float) -> Verdict:
        known = dict.fromkeys(("spread", "deviation", "largest_error", "error_share", "srcc")) | numbers
        return Verdict(
            name=name,
            fingerprint=fingerprint,
            precision=HALF,
            photographs=len(valid) - lost,
            passed=reason is None,
            reason=reason,
            **known,
        )

    if lost:
        return verdict(f"{lost} of {len(valid)} photographs have a score in float32 and none in half precision")
    if len(valid) < FEWEST:
        return verdict(f"{len(valid)} photographs with a score; {FEWEST} or more are needed")
    scores = np.array(valid, np.float64)
    exact, fast = scores[:, 0], scores[:, 1:]
    low, high = np.percentile(exact, [LOW, HIGH])
    spread = float(high - low)
    if spread <= 0:
        return verdict("the float32 scores don't differ", spread=spread)
    error = float(np.abs(fast - exact[:, None]).max())
    srcc = min(_rank_correlation(exact, column) for column in fast.T)
    reasons = []
    if not srcc >= min_srcc:
        reasons.append(f"SRCC {srcc:.5f} is below {min_srcc:g}")
    if not error <= max_error * spread:
        reasons.append(f"an error of {error / spread:.2%} of the spread is above {max_error:.2%}")
    return verdict(
        "; ".join(reasons) or None,
        spread=spread,
        deviation=float(exact.std()),
        largest_error=error,
        error_share=error / spread,
        srcc=srcc,
    )


def _rank_correlation(a: Any, b: Any) -> float:
    import scipy.stats

    found = float(scipy.stats.spearmanr(a, b).statistic)
    return found if math.isfinite(found) else 0.0

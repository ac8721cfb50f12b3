"""What a classifier's probabilities are worth on a test set: the paper's two measures and better ones.

Accuracy at the most probable class mixes two things up: how well a model orders photographs and where it draws the
line. The paper's 79 % accuracy at 96 % AUC shows the second. So the primary measures are balanced accuracy at a
threshold chosen on the evaluation set, AUC and log-loss.

Shapes: N photographs, K classes. probabilities: (N, K) float64, rows add up to 1. labels: (N,) int64 in [0, K).
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from qualitygate.errors import QualityGateError

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

ECE_BINS = 15
MEASURES = ("accuracy", "auc", "balanced_accuracy", "log_loss", "brier", "ece")
PRIMARY = ("balanced_accuracy", "auc", "log_loss")
LOWER_IS_BETTER = frozenset({"log_loss", "brier", "ece"})
# Shares that people read in percent.
SHARES = frozenset({"accuracy", "auc", "balanced_accuracy"})


class NotProbabilities(QualityGateError):
    """A model's outputs are no probabilities: not finite, or rows that don't add up to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The measures of one test set; None where one is undefined, with the reason in `notes` by its name.

    accuracy: share of photographs whose most probable class is right, [0, 1].
    auc: area under the ROC curve, [0, 1]; of several classes the mean of one against the rest.
    balanced_accuracy: mean over classes of the share of right predictions, [0, 1]; at the threshold for two classes,
        at the most probable class for more.
    log_loss: mean -ln of the probability of the label, nats, [0, 36.05]; probabilities below 2.2e-16 count as that.
    brier: mean squared error of the probabilities, [0, 1], half the sum over classes.
    ece: expected calibration error of the top probability, [0, 1], in 15 bins of equal width (Guo et al. 2017).
    """

    rows: int
    accuracy: float | None = None
    auc: float | None = None
    balanced_accuracy: float | None = None
    log_loss: float | None = None
    brier: float | None = None
    ece: float | None = None
    notes: dict[str, str] = field(default_factory=dict)


def measure(probabilities: Floats, labels: Integers, classes: tuple[str, ...], threshold: float | None) -> Measured:
    """All measures; a class that no photograph has makes some of them None, never an error.

    threshold: of the second class's probability, from `choose_threshold`; for two classes only.
    Raises NotProbabilities.
    """
    from sklearn.metrics import brier_score_loss, log_loss

    check_probabilities(probabilities, labels, classes)
    if not len(labels):
        return Measured(rows=0, notes=dict.fromkeys(MEASURES, "the test set is empty"))
    everything = np.arange(len(classes))
    auc, why_no_auc = _auc(probabilities, labels, classes)
    balanced, why_not_balanced = _balanced(probabilities, labels, classes, threshold)
    reasons = {"auc": why_no_auc, "balanced_accuracy": why_not_balanced}
    return Measured(
        rows=len(labels),
        accuracy=float(np.mean(probabilities.argmax(1) == labels)),
        auc=auc,
        balanced_accuracy=balanced,
        log_loss=float(log_loss(labels, probabilities, labels=everything)),
        brier=float(brier_score_loss(labels, _binary(probabilities), labels=everything, scale_by_half=True)),
        ece=expected_calibration_error(probabilities, labels),
        notes={name: reason for name, reason in reasons.items() if reason},
    )


def choose_threshold(probabilities: Floats, labels: Integers) -> tuple[float | None, str | None]:
    """(threshold of the second class's probability, why there is none): best balanced accuracy on these photographs.

    A photograph is given the second class where its probability is at least the threshold. Between two neighbouring
    probabilities all thresholds do the same: their middle is taken; of several best ones that nearest to .5.
    For two classes; with more there is none.
    """
    from sklearn.metrics import roc_curve

    if probabilities.shape[1] != 2:
        return None, "several classes have no single threshold"
    if len(np.unique(labels)) < 2:
        return None, "the evaluation set lacks a class"
    score = probabilities[:, 1]
    false, true, starts = roc_curve(labels, score, drop_intermediate=False)
    gain = true - false
    best = np.flatnonzero(gain >= gain.max() - 1e-12)
    # Each start is the lowest score that is given the class; down to the next lower score all thresholds do the same.
    upper = np.minimum(starts[best], np.nextafter(1.0, 2.0))
    lower = np.where(best + 1 < len(starts), starts[np.minimum(best + 1, len(starts) - 1)], 0.0)
    middle = (upper + lower) / 2
    # Where two scores are neighbouring floats their middle rounds to the lower.
    middle = np.where(middle > lower, middle, upper)
    return float(middle[np.argmin(np.abs(middle - 0.5))]), None


def predicted(probabilities: Floats, threshold: float | None) -> Integers:
    """(N,) classes: by the threshold where there is one, else the most probable."""
    if threshold is None:
        return probabilities.argmax(1).astype(np.int64)
    return (probabilities[:, 1] >= threshold).astype(np.int64)


def expected_calibration_error(probabilities: Floats, labels: Integers, bins: int = ECE_BINS) -> float:
    """Mean distance between the top probability and the accuracy of its bin, weighted by photographs, [0, 1]."""
    top = probabilities.max(1)
    right = probabilities.argmax(1) == labels
    place = np.minimum((top * bins).astype(np.int64), bins - 1)
    return float(np.abs(np.bincount(place, weights=right - top, minlength=bins)).sum() / len(labels))


def check_probabilities(probabilities: Floats, labels: Integers, classes: tuple[str, ...]) -> None:
    """Raises NotProbabilities: another shape than (N, K), not finite, outside [0, 1], rows that don't add up to 1."""
    wanted = (len(labels), len(classes))
    if probabilities.shape != wanted:
        raise NotProbabilities(f"probabilities have the shape {probabilities.shape}, {wanted} is expected")
    wrong = ~np.isfinite(probabilities).all(1) | (probabilities < 0).any(1)
    wrong |= ~np.isclose(np.where(wrong, 1, probabilities.sum(1)), 1, rtol=0, atol=1e-5)
    if wrong.any():
        raise NotProbabilities(
            f"{int(wrong.sum()):,} of {len(labels):,} rows are no probabilities (such as {probabilities[wrong][0]}): "
            "the training diverged; lower the learning rate"
        )


def _binary(probabilities: Floats) -> Floats:
    return probabilities[:, 1] if probabilities.shape[1] == 2 else probabilities


def _auc(probabilities: Floats, labels: Integers, classes: tuple[str, ...]) -> tuple[float | None, str | None]:
    from sklearn.metrics import roc_auc_score

    if reason := _absent(labels, classes):
        return None, reason
    if len(classes) == 2:
        return float(roc_auc_score(labels, probabilities[:, 1])), None
    # Scikit-learn wants rows that add up to 1 to the last digits.
    exact = probabilities / probabilities.sum(1, keepdims=True)
    return float(roc_auc_score(labels, exact, multi_class="ovr", average="macro", labels=np.arange(len(classes)))), None


def _balanced(
    probabilities: Floats, labels: Integers, classes: tuple[str, ...], threshold: float | None
) -> tuple[float | None, str | None]:
    from sklearn.metrics import balanced_accuracy_score

    if reason := _absent(labels, classes):
        return None, reason
    if len(classes) == 2 and threshold is None:
        return None, "no threshold could be chosen on the evaluation set"
    return float(balanced_accuracy_score(labels, predicted(probabilities, threshold))), None


def _absent(labels: Integers, classes: tuple[str, ...]) -> str | None:
    absent = [name for name in range(len(classes)) if not np.any(labels == name)]
    if not absent:
        return None
    return f"the test set has no photograph of {', '.join(repr(classes[name]) for name in absent)}"

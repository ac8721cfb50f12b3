"""The paper's Tables 2 and 3 as data, and what its own numbers say of its claims.

Numbers: Smith, Zuo, Stonehouse, Obara, "How Quality Affects Deep Neural Networks in Fine-Grained Image
Classification", VISAPP 2024, doi 10.5220/0012359200003660. Mean and standard deviation of five runs, in percent, each
trained on 1293 images for 40 epochs and tested on high-quality images.
"""

from dataclasses import dataclass

CITATION = "Smith et al., VISAPP 2024, doi 10.5220/0012359200003660"
RUNS = 5
TRAIN_IMAGES = 1293
EPOCHS = 40
VARYING_ARCHITECTURE = "resnet34"
# Abstract and Table 2 against Table 3: 85.4 on high-quality images, 84.1 with 30 % removed.
SACRIFICE = 1.3
BEST_LEVEL = 30.0


@dataclass(frozen=True, slots=True)
class Reported:
    """Mean and standard deviation over five runs, percent."""

    mean: float
    sd: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What the paper reports of one model and one training set."""

    accuracy: Reported
    auc: Reported


def _cell(accuracy: tuple[float, float], auc: tuple[float, float]) -> Cell:
    return Cell(accuracy=Reported(*accuracy), auc=Reported(*auc))


SPELT = {"alexnet": "AlexNet", "vgg19": "VGG19", "resnet18": "ResNet18", "resnet34": "ResNet34"}
ARCHITECTURES = tuple(SPELT)
# (architecture, kind of subset)
TABLE2 = {
    ("alexnet", "high"): _cell((79.3, 3.3), (96.1, 1.6)),
    ("alexnet", "all"): _cell((78.4, 4.2), (96.6, 1.9)),
    ("vgg19", "high"): _cell((83.3, 4.2), (96.3, 1.5)),
    ("vgg19", "all"): _cell((82.6, 6.7), (95.2, 2.0)),
    ("resnet18", "high"): _cell((86.6, 2.0), (94.4, 1.0)),
    ("resnet18", "all"): _cell((85.1, 2.9), (94.7, 0.5)),
    ("resnet34", "high"): _cell((85.4, 3.1), (94.8, 1.2)),
    ("resnet34", "all"): _cell((81.2, 2.1), (93.2, 1.3)),
}
# Percent removed; all of ResNet34.
TABLE3 = {
    0.0: _cell((81.5, 4.4), (96.9, 1.7)),
    10.0: _cell((82.0, 2.6), (96.7, 1.1)),
    20.0: _cell((81.9, 5.1), (95.4, 0.8)),
    30.0: _cell((84.1, 3.5), (96.8, 1.5)),
    40.0: _cell((82.4, 3.2), (95.1, 2.6)),
    50.0: _cell((82.6, 4.5), (94.5, 2.4)),
}


def reported(architecture: str, kind: str, removed: float) -> Cell | None:
    """The paper's cell for a kind of run; None where it has none."""
    if kind == "varying":
        return TABLE3.get(removed) if architecture == VARYING_ARCHITECTURE else None
    return TABLE2.get((architecture, kind))


def unpaired(better: Reported, other: Reported) -> tuple[float, float]:
    """(difference in points, two-sided p) of two of the paper's cells, as if their runs were independent.

    Student's t on the printed means and deviations: all that the paper gives. Table 2's accuracies: p = .72 (AlexNet),
    .85 (VGG19), .37 (ResNet18), .04 (ResNet34), before any correction for four comparisons.
    """
    from scipy.stats import ttest_ind_from_stats

    found = ttest_ind_from_stats(better.mean, better.sd, RUNS, other.mean, other.sd, RUNS)
    return better.mean - other.mean, float(found.pvalue)


def spelt(architecture: str) -> str:
    """An architecture as the paper writes it; others by their own name."""
    return SPELT.get(architecture, architecture)

"""How a metric's scores go along with cropping, rotating and blurring: correlations and effect sizes.

Correlation (the paper's eq. 1 and 2) asks whether scores are in order along a series, not how far they move: of six
rotations pure noise has an absolute Spearman correlation of .38 on average. The effect size asks how far: the
largest change under a nuisance as a share of the change over the blur range.

A series is one sample's scores in the order of its steps, the undisturbed photograph first. Scores that are missing
are NaN here and null in results; nothing returned is NaN.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Floats = npt.NDArray[np.float64]

CROP_CORNER, CROP_CENTRE = "crop_corner", "crop_centre"
ROTATION, ROTATION_SECOND = "rotation", "rotation_second"
BLUR = {"manifest": "blur_manifest", "rendered": "blur_rendered"}
# The rotations' window without interpolation: what 0 degrees is compared with to see interpolation alone.
WINDOW = "window"
NUISANCES = (CROP_CORNER, CROP_CENTRE, ROTATION, ROTATION_SECOND)

MIN_POINTS = 3  # a line through two points correlates by 1 whatever they are
LEVEL = 0.95
REPLICATES = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One sample under one nuisance. parameters, scores: (steps,), undisturbed first, NaN where there is no score."""

    parameters: Floats
    scores: Floats


# metric -> nuisance -> sample
Values = Mapping[str, Mapping[str, Mapping[str, Series]]]


def collect(table: pa.Table) -> Values:
    """The rows of `robustness.parquet` (sample, nuisance, step, parameter, metric, value) as ordered series."""
    found: dict[str, dict[str, dict[str, list[tuple[int, float, float]]]]] = {}
    columns = [table[name].to_pylist() for name in ("metric", "nuisance", "sample", "step", "parameter", "value")]
    for metric, nuisance, sample, step, parameter, value in zip(*columns, strict=True):
        series = found.setdefault(metric, {}).setdefault(nuisance, {}).setdefault(sample, [])
        series.append((step, parameter, math.nan if value is None else value))
    return {
        metric: {
            nuisance: {sample: _series(points) for sample, points in by_sample.items()}
            for nuisance, by_sample in by_nuisance.items()
        }
        for metric, by_nuisance in found.items()
    }


def _series(points: list[tuple[int, float, float]]) -> Series:
    ordered = sorted(points)
    return Series(
        parameters=np.array([parameter for _, parameter, _ in ordered]),
        scores=np.array([score for _, _, score in ordered]),
    )


def pearson(parameters: Floats, scores: Floats) -> float | None:
    """PCC of scores and parameters, [-1, 1]; 0 is no linear relation. The paper's eq. 1.

    Over the steps that have a score; None below three of them, or when either is constant.
    """
    return _correlation("pearsonr", parameters, scores)


def spearman(parameters: Floats, scores: Floats) -> float | None:
    """SRCC of scores and parameters, [-1, 1]; 1 or -1 is perfect order. The paper's eq. 2, ties by their mean rank.

    Over the steps that have a score; None below three of them, or when either is constant.
    """
    return _correlation("spearmanr", parameters, scores)


def _correlation(name: str, parameters: Floats, scores: Floats) -> float | None:
    from scipy import stats

    there = np.isfinite(scores)
    x, y = parameters[there], scores[there]
    if len(x) < MIN_POINTS or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    with warnings.catch_warnings():
        # Scores that differ in their last bits alone: the result is still what the numbers say, or undefined.
        warnings.simplefilter("ignore", stats.NearConstantInputWarning)
        found = float(getattr(stats, name)(x, y).statistic)
    # Rounded, for perfect order comes out as .9999999999999999 as well.
    return round(found, 12) if math.isfinite(found) else None


def readings(series: Mapping[str, Series], samples: Sequence[str], single: str, seed: int) -> dict[str, Any]:
    """Three readings of a correlation, for PCC and SRCC, as in `robustness.json`.

    per_sample_mean: mean over samples of the absolute correlation, [0, 1]; `interval` is its bootstrap interval.
    per_sample_values: each sample's, signed, in the order of `samples`.
    single: that of one sample, signed: the paper's crop and rotation rows are those of one clear photograph.
    of_average: that of the scores averaged over samples step by step, signed, over the steps that every sample
        has and the samples with a score at each of them: the paper's section 4.1.
    """
    found = {}
    average = _average([series[sample] for sample in samples if sample in series])
    for name, correlate in (("pcc", pearson), ("srcc", spearman)):
        values = [_of(correlate, series.get(sample)) for sample in samples]
        sizes = [abs(value) for value in values if value is not None]
        found[name] = {
            "per_sample_mean": float(np.mean(sizes)) if sizes else None,
            "interval": interval(sizes, np.mean, seed),
            "per_sample_values": values,
            "single": _of(correlate, series.get(single)),
            "of_average": _of(correlate, average),
        }
    return found


def _of(correlate: Callable[[Floats, Floats], float | None], series: Series | None) -> float | None:
    return None if series is None else correlate(series.parameters, series.scores)


def _average(several: Sequence[Series]) -> Series | None:
    steps = min((len(series.scores) for series in several), default=0)
    complete = [series for series in several if np.isfinite(series.scores[:steps]).all()]
    if not steps or not complete:
        return None
    return Series(
        parameters=np.mean([series.parameters[:steps] for series in complete], axis=0),
        scores=np.mean([series.scores[:steps] for series in complete], axis=0),
    )


def largest_change(series: Series) -> float | None:
    """Largest |score - score of the undisturbed photograph|, in the metric's unit; None where either is missing."""
    changes = np.abs(series.scores[1:] - series.scores[0])
    return float(np.nanmax(changes)) if np.isfinite(changes).any() else None


def blur_range(series: Series) -> float | None:
    """Highest minus lowest score along a blur series, in the metric's unit; None below three scores."""
    scores = series.scores[np.isfinite(series.scores)]
    return float(np.ptp(scores)) if len(scores) >= MIN_POINTS else None


def effect(nuisance: Mapping[str, Series], blur: Mapping[str, Series], samples: Sequence[str], seed: int) -> dict:
    """Effect size of a nuisance: its largest change over the blur range, [0, inf); 0 is ideal, 1 as bad as blur.

    ratio: median over samples, with its bootstrap `interval`; per_sample: in the order of `samples`, None where a
    score is missing or the metric doesn't react to blur at all.
    """
    ratios = [_ratio(nuisance.get(sample), blur.get(sample)) for sample in samples]
    there = [ratio for ratio in ratios if ratio is not None]
    return {
        "ratio": float(np.median(there)) if there else None,
        "interval": interval(there, np.median, seed),
        "per_sample": ratios,
    }


def _ratio(nuisance: Series | None, blur: Series | None) -> float | None:
    if nuisance is None or blur is None:
        return None
    change, span = largest_change(nuisance), blur_range(blur)
    return None if change is None or not span else change / span


def interval(values: Sequence[float], statistic: Callable[..., Any], seed: int) -> list[float] | None:
    """Percentile bootstrap interval of a statistic over samples, at 95 %; None below two samples.

    Few samples make it too narrow: at five its true coverage is about .84.
    """
    if len(values) < 2:
        return None
    from scipy.stats import bootstrap

    found = bootstrap(
        (np.asarray(values),),
        statistic,
        n_resamples=REPLICATES,
        # Bounds the memory: a batch of replicates holds some two million values.
        batch=max(1, 2_000_000 // len(values)),
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return [float(found.low), float(found.high)]


def redundancy(values: Values, metrics: Sequence[str]) -> list[dict[str, Any]]:
    """Spearman's correlation of each two metrics over all photographs and variants that both scored, [-1, 1].

    None below three common scores, or when one of the metrics is constant.
    """
    by_metric = {
        metric: {
            (nuisance, sample, step): score
            for nuisance, by_sample in values.get(metric, {}).items()
            for sample, series in by_sample.items()
            for step, score in enumerate(series.scores)
        }
        for metric in metrics
    }
    found = []
    for a, b in combinations(metrics, 2):
        both = [key for key in by_metric[a] if key in by_metric[b] and math.isfinite(by_metric[a][key])]
        x = np.array([by_metric[a][key] for key in both])
        y = np.array([by_metric[b][key] for key in both])
        found.append({"a": a, "b": b, "spearman": spearman(x, y)})
    return found


def blur_order(blur: Mapping[str, Series], samples: Sequence[str], *, higher_is_better: bool, seed: int) -> dict:
    """How well quality falls along blur: mean over samples of Spearman's correlation, signed so that 1 is right.

    srcc in [-1, 1], with its bootstrap `interval`. A metric that gets blur the wrong way round is near -1 here,
    while the paper's absolute values would praise it.
    """
    values = [_of(spearman, blur.get(sample)) for sample in samples]
    there = [-value if higher_is_better else value for value in values if value is not None]
    return {"srcc": float(np.mean(there)) if there else None, "interval": interval(there, np.mean, seed)}


def evaluate(
    values: Values,
    metric: str,
    *,
    higher_is_better: bool,
    samples: Sequence[str],
    blur: str,
    single: str,
    seed: int,
) -> dict[str, Any]:
    """All that `robustness.json` says of one metric's scores.

    blur: name of the blur nuisance. Keys: correlations, effects, blur_range, blur_order, missing (scores that
    are) and interpolation: the median relative change that interpolation alone makes, by rotation (0 degrees
    against the same window as it is); negative where it lowers the score.
    """
    of_metric = values.get(metric, {})
    shown = [name for name in (*NUISANCES, blur) if name in of_metric]
    blurred = of_metric.get(blur, {})
    ranges = [found for found in (blur_range(blurred[sample]) for sample in samples if sample in blurred) if found]
    return {
        "correlations": {name: readings(of_metric[name], samples, single, seed) for name in shown},
        "effects": {name: effect(of_metric[name], blurred, samples, seed) for name in shown if name != blur},
        "blur_range": {"median": float(np.median(ranges)) if ranges else None},
        "blur_order": blur_order(blurred, samples, higher_is_better=higher_is_better, seed=seed),
        "missing": sum(
            int((~np.isfinite(by_sample[sample].scores)).sum())
            for by_sample in of_metric.values()
            for sample in samples
            if sample in by_sample
        ),
        "interpolation": {
            name: _interpolation_change(of_metric[name], of_metric.get(WINDOW, {}))
            for name in (ROTATION, ROTATION_SECOND)
            if name in of_metric
        },
    }


def _interpolation_change(rotation: Mapping[str, Series], window: Mapping[str, Series]) -> float | None:
    changes = [
        (rotation[sample].scores[0] - plain.scores[0]) / abs(plain.scores[0])
        for sample, plain in window.items()
        if sample in rotation and plain.scores[0] != 0
    ]
    there = [change for change in changes if math.isfinite(change)]
    return float(np.median(there)) if there else None


def out_of_order(values: Values, metrics: Sequence[str], samples: Sequence[str], blur: str) -> list[str]:
    """Samples whose blur series doesn't start in focus: every one of these metrics is best two steps in or later.

    metrics: sharpness measures, higher is sharper. Such a series runs from blurred to sharp, or through focus.
    """
    found = []
    for sample in samples:
        series = [values[metric][blur][sample].scores for metric in metrics if sample in values[metric].get(blur, {})]
        if series and all(np.isfinite(scores).any() and np.nanargmax(scores) >= 2 for scores in series):
            found.append(sample)
    return found

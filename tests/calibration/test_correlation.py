"""Correlations and effect sizes: known truths, what is undefined, and that nothing is ever NaN."""

import json
import math
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.stats import rankdata

from qualitygate.calibration import correlation
from qualitygate.calibration.correlation import Floats, Series


def _series(*scores: float | None, parameters: list[float] | None = None) -> Series:
    values = np.array([math.nan if score is None else score for score in scores], float)
    return Series(parameters=np.array(parameters or range(len(scores)), float), scores=values)


def test_correlations_are_the_papers_equations() -> None:
    rng = np.random.default_rng(1)
    x, y = np.arange(10.0), rng.normal(size=10).cumsum()
    expected = np.cov(x, y)[0, 1] / (x.std(ddof=1) * y.std(ddof=1))
    assert correlation.pearson(x, y) == pytest.approx(expected)
    assert correlation.spearman(x, y) == pytest.approx(np.corrcoef(rankdata(x), rankdata(y))[0, 1])
    assert correlation.spearman(x, np.exp(-x)) == -1.0
    assert correlation.pearson(x, 3 - 2 * x) == -1.0


def test_what_is_undefined_is_none_and_gaps_are_left_out() -> None:
    steps = np.arange(5.0)
    for correlate in (correlation.pearson, correlation.spearman):
        assert correlate(steps, np.full(5, 7.0)) is None
        assert correlate(steps, np.array([1, math.nan, 3, math.nan, math.nan])) is None
        assert correlate(np.ones(5), steps) is None
        assert correlate(steps[:0], steps[:0]) is None
        assert correlate(steps, np.array([1, math.nan, 3, math.nan, 5])) == 1.0


@given(
    arrays.arrays(
        np.float64,
        st.integers(0, 12),
        elements=st.one_of(st.just(math.nan), st.floats(-1e6, 1e6), st.sampled_from([0.0, 1e-300, 1.0, 1 + 1e-16])),
    )
)
def test_a_correlation_is_in_range_or_none(scores: Floats) -> None:
    for correlate in (correlation.pearson, correlation.spearman):
        found = correlate(np.arange(len(scores), dtype=float), scores)
        assert found is None or -1 <= found <= 1


@given(st.lists(st.integers(-50, 50), min_size=3, max_size=10))
def test_ranks_do_not_see_a_monotone_change_of_scale(scores: list[int]) -> None:
    values, steps = np.array(scores, float), np.arange(len(scores), dtype=float)
    before = correlation.spearman(steps, values)
    assert correlation.spearman(steps, np.exp(values / 20)) == before
    flipped = correlation.spearman(steps, -values)
    assert flipped == (None if before is None else pytest.approx(-before))


def test_six_rotations_of_noise_correlate_by_38_hundredths() -> None:
    """The reason why correlation alone can't choose."""
    rng = np.random.default_rng(0)
    found = [correlation.spearman(np.arange(6.0), scores) for scores in rng.normal(size=(2000, 6))]
    assert np.mean(np.abs(np.array(found, float))) == pytest.approx(0.38, abs=0.015)


def test_the_three_readings_of_a_correlation() -> None:
    """Two samples in opposite order: perfect by sample, nothing on average of scores of one size."""
    series = {"a": _series(1, 2, 3, 4), "b": _series(40, 30, 20, 10), "flat": _series(5, 5, 5, 5)}
    found = correlation.readings(series, ["a", "b", "flat"], "a", seed=0)
    for name in ("pcc", "srcc"):
        assert found[name]["per_sample_values"] == [1.0, -1.0, None]
        assert found[name]["per_sample_mean"] == 1.0
        assert found[name]["single"] == 1.0
        # The larger scores decide the average.
        assert found[name]["of_average"] == -1.0
    assert correlation.readings(series, ["a", "b"], "flat", seed=0)["pcc"]["single"] is None


def test_scores_are_averaged_where_all_samples_have_them() -> None:
    """A shorter series bounds the steps; a sample with a gap would shift the mean from step to step, so it is out."""
    series = {"long": _series(1, 2, 3, 4, -100), "short": _series(2, 3, 4, 5), "gap": _series(900, None, 0, 0)}
    found = correlation.readings(series, ["long", "short", "gap"], "long", seed=0)
    assert found["pcc"]["of_average"] == 1.0
    assert correlation.readings({"gap": series["gap"]}, ["gap"], "gap", seed=0)["pcc"]["of_average"] is None
    assert correlation.readings({}, ["absent"], "absent", seed=0)["srcc"]["per_sample_values"] == [None]


def test_an_effect_size_is_the_largest_change_over_the_blur_range() -> None:
    blur = {"a": _series(10, 6, 2), "b": _series(5, 5, 5), "c": _series(10, None, 1), "d": _series(9, 5, 1)}
    nuisance = {"a": _series(10, 11, 8), "b": _series(1, 2, 3), "c": _series(1, 2, 3), "d": _series(None, 3, 4)}
    found = correlation.effect(nuisance, blur, ["a", "b", "c", "d", "e"], seed=0)
    # b doesn't react to blur, c has two blur scores only, d has no score to start from, e isn't there.
    assert found == {"ratio": 0.25, "interval": None, "per_sample": [0.25, None, None, None, None]}
    gaps = {"a": _series(10, None, 14)}
    assert correlation.effect(gaps, blur, ["a"], seed=0)["ratio"] == 0.5
    assert correlation.effect({}, blur, ["a"], seed=0)["ratio"] is None


def test_effects_do_not_depend_on_unit_or_direction() -> None:
    rng = np.random.default_rng(3)
    samples = [str(number) for number in range(6)]
    blur = {name: _series(*rng.normal(size=10)) for name in samples}
    nuisance = {name: _series(*rng.normal(size=6)) for name in samples}

    def rescaled(series: dict[str, Series]) -> dict[str, Series]:
        return {name: Series(parameters=one.parameters, scores=100 - 7 * one.scores) for name, one in series.items()}

    plain = correlation.effect(nuisance, blur, samples, seed=0)
    other = correlation.effect(rescaled(nuisance), rescaled(blur), samples, seed=0)
    assert other["per_sample"] == pytest.approx(plain["per_sample"])
    assert other["interval"] == pytest.approx(plain["interval"])


def test_intervals_are_seeded_hold_the_statistic_and_need_two_samples() -> None:
    values = list(np.random.default_rng(0).lognormal(size=30))
    first = correlation.interval(values, np.median, seed=5)
    assert first == correlation.interval(values, np.median, seed=5)
    assert first is not None
    assert first[0] <= np.median(values) <= first[1]
    assert correlation.interval(values[:1], np.median, seed=5) is None
    assert correlation.interval([], np.median, seed=5) is None
    assert correlation.interval([2.0, 2.0], np.mean, seed=5) == [2.0, 2.0]


def test_an_interval_of_the_median_covers_it_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(150):
        low, high = correlation.interval(list(rng.lognormal(size=20)), np.median, seed=0) or (0, 0)
        covered += low <= 1 <= high
    # Five standard errors about the nominal .95, and a little for the bootstrap of a median.
    assert 0.85 <= covered / 150 <= 1


def test_order_along_blur_is_one_for_either_direction_and_minus_one_for_the_wrong_one() -> None:
    blur = {"a": _series(9, 5, 1), "b": _series(7, 6, 2)}
    sharper = correlation.blur_order(blur, ["a", "b"], higher_is_better=True, seed=0)
    assert sharper == {"srcc": 1.0, "interval": [1.0, 1.0]}
    assert correlation.blur_order(blur, ["a", "b"], higher_is_better=False, seed=0)["srcc"] == -1.0
    assert correlation.blur_order({"a": _series(1, 1, 1)}, ["a"], higher_is_better=True, seed=0)["srcc"] is None


def _table(scores: dict[tuple[str, str, str], list[float | None]]) -> pa.Table:
    rows = [
        {
            "metric": metric,
            "nuisance": nuisance,
            "sample": sample,
            "step": step,
            "parameter": float(step),
            "value": value,
        }
        for (metric, nuisance, sample), values in scores.items()
        for step, value in enumerate(values)
    ]
    np.random.default_rng(0).shuffle(rows)  # type: ignore[arg-type]
    return pa.Table.from_pylist(rows)


def test_redundant_metrics_are_found_over_all_values() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(size=40)
    values = correlation.collect(
        _table(
            {
                ("a", "crop_corner", "s"): list(base[:20]),
                ("a", "blur_manifest", "s"): list(base[20:]),
                ("b", "crop_corner", "s"): list(np.exp(base[:20])),
                ("b", "blur_manifest", "s"): [None, *np.exp(base[21:])],
                ("c", "crop_corner", "s"): list(rng.normal(size=20)),
                ("flat", "crop_corner", "s"): [1.0] * 20,
            }
        )
    )
    found = {
        (pair["a"], pair["b"]): pair["spearman"] for pair in correlation.redundancy(values, ["a", "b", "c", "flat"])
    }
    assert found["a", "b"] == 1.0
    assert abs(found["a", "c"]) < 0.5
    assert found["a", "flat"] is None
    assert len(found) == 6


def test_all_that_is_said_of_a_metric_has_no_nan_and_counts_what_is_missing() -> None:
    values = correlation.collect(
        _table(
            {
                ("m", "crop_corner", "s"): [10, 11, None],
                ("m", "rotation", "s"): [8, 7, 9],
                ("m", "window", "s"): [10],
                ("m", "blur_manifest", "s"): [10, 5, None, 2],
                ("m", "crop_corner", "broken"): [None, None, None],
                ("m", "rotation", "broken"): [None, None, None],
                ("m", "window", "broken"): [None],
                ("m", "blur_manifest", "broken"): [None, None, None],
            }
        )
    )
    found = correlation.evaluate(
        values, "m", higher_is_better=True, samples=["s", "broken"], blur="blur_manifest", single="s", seed=0
    )
    json.dumps(found, allow_nan=False)
    assert found["missing"] == 2 + 3 + 3 + 1 + 3
    assert found["blur_range"] == {"median": 8.0}
    assert found["effects"]["crop_corner"]["per_sample"] == [1 / 8, None]
    assert found["effects"]["rotation"]["ratio"] == 1 / 8
    assert "blur_manifest" not in found["effects"]
    # Two of three crops have a score: too few to correlate.
    assert found["correlations"]["crop_corner"]["srcc"]["per_sample_values"] == [None, None]
    assert found["interpolation"] == {"rotation": pytest.approx(-0.2)}
    absent = correlation.evaluate(
        values, "other", higher_is_better=True, samples=["s"], blur="blur_manifest", single="s", seed=0
    )
    assert absent["effects"] == {}
    assert absent["blur_range"] == {"median": None}


def test_a_series_that_passes_through_focus_is_noticed() -> None:
    order = {
        "good": ([9, 8, 1, 0], [9, 8, 1, 0]),
        "nearly": ([8, 9, 1, 0], [9, 8, 1, 0]),
        "reversed": ([0, 1, 8, 9], [0, 1, 8, 9]),
        "through": ([3, 8, 9, 1], [3, 7, 8, 1]),
        "disputed": ([3, 8, 9, 1], [9, 8, 3, 1]),
    }
    scores: dict[tuple[str, str, str], list[float | None]] = {}
    for sample, (lapm, wavs) in order.items():
        scores["lapm", "blur_manifest", sample] = list(lapm)
        scores["wavs", "blur_manifest", sample] = list(wavs)
    found = correlation.out_of_order(
        correlation.collect(_table(scores)), ["lapm", "wavs"], list(order), "blur_manifest"
    )
    assert found == ["reversed", "through"]


def test_rows_come_in_any_order() -> None:
    values = correlation.collect(_table({("m", "rotation", "s"): [3, 1, 2, 5, 4, 0]}))
    series = values["m"]["rotation"]["s"]
    assert list(series.scores) == [3, 1, 2, 5, 4, 0]
    assert all(before < after for before, after in pairwise(series.parameters))

"""Densities and their crossings against SciPy, known truths and brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.stats import gaussian_kde, norm

from qualitygate.calibration import kde
from qualitygate.calibration.kde import Axis, DegenerateScoresError, Density


def _two(rng: np.random.Generator, wrong: int = 60, right: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Qualities of wrong and right predictions, N(0, 1) and N(2, 1): they cross at 1."""
    return rng.normal(0, 1, wrong), rng.normal(2, 1, right)


# ---- the axis ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "raw", "transform"),
    [
        ("lapv", [1.0, 2.0, 3.0], "log"),
        ("wavs-coef", [1.0, 2.0, 3.0], "log"),
        ("lapm", [0.0, *range(1, 20)], "log"),
        ("lapm", [0.0, 0.0, 1.0], "identity"),
        ("lapm", [-1.0, 2.0, 3.0], "identity"),
        ("brisque", np.exp(np.linspace(0, 9, 50)), "identity"),
        ("mine", np.exp(np.linspace(0, 9, 50)), "log"),
        ("mine", np.linspace(1, 9, 50), "identity"),
        ("mine", np.exp(np.linspace(0, 9, 50)) - 2, "identity"),
        ("mine", [3.0, 3.0, 3.0], "identity"),
    ],
)
def test_which_scores_are_fitted_on_a_log_scale(method: str, raw: list[float], transform: str) -> None:
    assert kde.axis_of(method, np.asarray(raw), "higher").transform == transform


def test_known_ranges_reflect() -> None:
    assert kde.axis_of("musiq", np.asarray([1.0, 99.0]), "higher").bounds == (0.0, 100.0)
    assert kde.axis_of("musiq", np.asarray([-5.0, 99.0]), "higher").bounds is None
    assert kde.axis_of("lapv", np.asarray([1.0, 99.0]), "higher").bounds is None
    assert Axis(direction="lower", transform="identity", bounds=(0.0, 100.0)).ends == (-100.0, 0.0)


@settings(deadline=None)
@given(
    raw=st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=20, unique=True),
    direction=st.sampled_from(["higher", "lower"]),
    transform=st.sampled_from(["log", "identity"]),
)
def test_quality_orders_scores_by_direction_and_leads_back(raw: list[float], direction: str, transform: str) -> None:
    axis = Axis(direction=direction, transform=transform)  # type: ignore[arg-type]
    quality = axis.quality(raw)
    assert np.allclose(axis.raw(quality), raw, rtol=1e-12)
    ordered = axis.quality(sorted(raw, reverse=direction == "lower"))
    assert np.all(np.diff(ordered) >= 0)


# ---- densities -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["scott", "silverman"])
def test_a_density_is_scipys(rule: str) -> None:
    values = _two(np.random.default_rng(0))[0]
    places = np.linspace(-4, 4, 50)
    density = Density(values, rule)  # type: ignore[arg-type]
    assert np.allclose(density(places), gaussian_kde(values, bw_method=rule)(places), rtol=1e-10)
    far = np.asarray([-300.0, 4000.0])
    assert np.allclose(density.log(far), gaussian_kde(values, bw_method=rule).logpdf(far), rtol=1e-10)
    assert density.bandwidth == pytest.approx(np.sqrt(gaussian_kde(values, bw_method=rule).covariance[0, 0]))


def test_no_mass_is_lost_at_a_known_end() -> None:
    values = np.random.default_rng(1).uniform(0, 1, 300)
    density = Density(values, "scott", (0.0, 1.0))
    assert quad(lambda x: density(x)[0], 0, 1)[0] == pytest.approx(1, abs=1e-4)
    assert density.below(1.0) == pytest.approx(1, abs=1e-4)
    assert density.below(0.3) == pytest.approx(quad(lambda x: density(x)[0], 0, 0.3)[0], abs=1e-4)
    assert density(0.0)[0] == pytest.approx(1, abs=0.25)
    assert Density(values, "scott")(0.0)[0] < 0.7
    assert density(-0.1)[0] == 0


def test_scores_of_zero_count_in_the_mass_only() -> None:
    values = np.concatenate([np.full(10, -np.inf), np.random.default_rng(2).normal(size=90)])
    density = Density(values, "scott")
    assert quad(lambda x: density(x)[0], -8, 8)[0] == pytest.approx(0.9, abs=1e-4)
    assert density.below(8.0) == pytest.approx(0.9, abs=1e-4)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([2.0] * 30, "constant"),
        ([1.0, 2.0, 3.0] * 10, "3 different values"),
        ([5.0] * 20 + list(range(15)), "one value"),
        (1e6 + 1e-5 * np.arange(30), "but for rounding"),
    ],
)
def test_scores_without_a_density_are_a_typed_error(values: list[float], words: str) -> None:
    with pytest.raises(DegenerateScoresError, match=words):
        Density(np.asarray(values, dtype=float), "scott")


# ---- crossings -----------------------------------------------------------------------------------------------


def test_the_crossing_is_that_of_an_independent_computation_on_log_scores() -> None:
    wrong, right = (np.exp(values) for values in _two(np.random.default_rng(3)))
    axis = Axis(direction="higher", transform="log")
    densities = [Density(axis.quality(raw), "scott") for raw in (wrong, right)]
    found = kde.crossings(*densities, -1.5, 2.5)
    ours = axis.raw(found[0].quality)
    theirs = [gaussian_kde(np.log(raw)) for raw in (wrong, right)]
    expected = np.exp(brentq(lambda x: theirs[0](x)[0] - theirs[1](x)[0], 0, 2))
    assert len(found) == 1
    assert found[0].falling
    assert ours == pytest.approx(expected, rel=1e-9)
    assert np.log(ours) == pytest.approx(1, abs=0.3)


def test_weights_by_count_move_the_crossing_down() -> None:
    densities = [Density(values, "scott") for values in _two(np.random.default_rng(4))]
    equal = kde.crossings(*densities, -2.0, 3.0)
    counted = kde.crossings(*densities, -2.0, 3.0, log_odds=np.log(60 / 400))
    expected = brentq(lambda x: norm.logpdf(x) + np.log(60 / 400) - norm.logpdf(x, 2), -2, 2)
    assert counted[0].quality < equal[0].quality
    assert counted[0].quality == pytest.approx(expected, abs=0.4)


def test_every_crossing_is_found_and_the_one_that_divides_is_chosen() -> None:
    rng = np.random.default_rng(5)
    # Wrong predictions on both sides: blurred ones, and errors of another cause far above.
    wrong = np.concatenate([rng.normal(0, 0.7, 200), rng.normal(7, 0.4, 60)])
    right = rng.normal(3.5, 1, 500)
    densities = Density(wrong, "scott"), Density(right, "scott")
    found = kde.crossings(*densities, -1.0, 8.0)
    assert [one.falling for one in found] == [True, False]
    chosen = kde.choose(found, *densities)
    assert chosen == found[0]
    assert 1 < found[0].quality < 2.5
    assert kde.choose(found[1:], *densities) is None


def test_far_apart_classes_cross_once_although_both_densities_vanish_between() -> None:
    rng = np.random.default_rng(6)
    quality = np.concatenate([rng.normal(0, 0.01, 50), rng.normal(50, 1, 300)])
    correct = np.arange(350) >= 50
    densities = Density(quality[~correct], "scott"), Density(quality[correct], "scott")
    within = kde.search_range(quality[~correct], quality[correct])
    assert within is not None
    found = kde.crossings(*densities, *within)
    assert [one.falling for one in found] == [True]
    drawn = _replicates(quality, correct, np.arange(350), within)
    assert drawn.single.all()


def test_the_range_of_the_line() -> None:
    wrong, right = np.linspace(0, 1, 101), np.linspace(1, 2, 101)
    assert kde.search_range(wrong, right) == pytest.approx((0.05, 1.75))
    assert kde.search_range(right + 2, wrong) is None
    assert kde.search_range(np.concatenate([np.full(9, -np.inf), wrong]), right) == pytest.approx((0.05, 1.75))


# ---- replicates ----------------------------------------------------------------------------------------------


def _replicates(
    quality: np.ndarray, correct: np.ndarray, group: np.ndarray, within: tuple[float, float], **options: object
) -> kde.Replicates:
    settings: dict = {
        "within": within,
        "rule": "scott",
        "weighting": "conditional",
        "ends": None,
        "count": 40,
        "rng": np.random.default_rng(7),
    }
    return kde.bootstrap_crossings(quality, correct, group, **(settings | options))


@pytest.mark.parametrize("rule", ["scott", "silverman"])
@pytest.mark.parametrize("weighting", ["conditional", "counts"])
@pytest.mark.parametrize("ends", [None, (-1.0, 3.2)])
def test_replicates_are_those_of_a_plain_bootstrap(rule: str, weighting: str, ends: tuple | None) -> None:
    rng = np.random.default_rng(8)
    wrong, right = _two(rng, 90, 300)
    quality = np.concatenate([wrong, right])
    if ends:
        quality = np.clip(quality, ends[0] + 0.01, ends[1] - 0.01)
    correct = np.arange(390) >= 90
    group = rng.permutation(np.repeat(np.arange(130), 3))
    within = (-0.9, 2.8)
    drawn = _replicates(quality, correct, group, within, rule=rule, weighting=weighting, ends=ends, count=12)
    times = next(kde.replicates(130, 12, np.random.default_rng(7))).astype(int)
    for replicate in range(12):
        taken = np.repeat(np.arange(390), times[replicate][group])
        parts = [quality[taken][correct[taken] == kind] for kind in (False, True)]
        densities = [Density(part, rule, ends) for part in parts]  # type: ignore[arg-type]
        odds = np.log(len(parts[0]) / len(parts[1])) if weighting == "counts" else 0.0
        found = kde.crossings(*densities, *within, log_odds=odds)
        chosen = kde.choose(found, *densities, log_odds=odds)
        assert drawn.single[replicate] == (len(found) == 1 and found[0].falling)
        if chosen is None:
            assert np.isnan(drawn.quality[replicate])
        else:
            assert drawn.quality[replicate] == pytest.approx(chosen.quality, abs=1e-3)


def test_a_replicate_without_wrong_predictions_has_no_crossing() -> None:
    rng = np.random.default_rng(9)
    quality = np.concatenate([rng.normal(0, 1, 30), rng.normal(2, 1, 300)])
    correct = np.arange(330) >= 30
    group = np.where(correct, np.arange(330), 0)  # all wrong predictions in one group: a third of the draws lack it
    drawn = _replicates(quality, correct, group, (-1.0, 2.0), count=60)
    assert 0.15 < np.mean(np.isnan(drawn.quality)) < 0.6
    assert not drawn.single[np.isnan(drawn.quality)].any()

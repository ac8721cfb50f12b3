"""Cut-offs of known truths: intervals that hold them, statuses that can be trusted, rules that do what they say."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.stats import gaussian_kde

from qualitygate.calibration import cutoffs
from qualitygate.calibration.cutoffs import Fit, Settings
from qualitygate.config import CalibrateConfig

QUICK = Settings(bootstrap=100, permutations=99)


def _two(seed: int, number: int = 800, wrong: float = 0.12, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Qualities N(0, spread) of wrong and N(2, 1) of right predictions, and which are right. They cross at 1 for
    equal spreads."""
    rng = np.random.default_rng(seed)
    correct = rng.random(number) >= wrong
    return np.where(correct, rng.normal(2, 1, number), rng.normal(0, spread, number)), correct


def _fit(raw: np.ndarray, correct: np.ndarray, settings: Settings = QUICK, **options: Any) -> Fit:
    """One method, singly tested."""
    group = options.pop("group", np.arange(len(raw)))
    method, direction = options.pop("method", "mine"), options.pop("direction", "higher")
    made = cutoffs.fit(method, raw, correct, group, direction, settings)
    return cutoffs.settle([made], {method: raw}, settings)[0]


# ---- known truths --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["two Gaussians", "two lognormals"])
def test_the_interval_holds_the_true_crossing_about_as_often_as_it_says(scale: str) -> None:
    covered = statuses = 0
    for seed in range(80):
        quality, correct = _two(seed, 400)
        lognormal = scale == "two lognormals"
        found = _fit(np.exp(quality) if lognormal else quality, correct, method="lapv" if lognormal else "brisque")
        statuses += found.status == "ok"
        assert found.interval is not None
        assert found.interval[0] <= found.cutoff <= found.interval[1]  # type: ignore[operator]
        covered += found.interval[0] <= (np.e if lognormal else 1.0) <= found.interval[1]
    assert statuses >= 79
    # Nominal: 76 of 80. Fewer than 69 would happen once in a thousand.
    assert covered >= 69


def test_the_crossing_and_its_interval_agree_with_an_independent_computation() -> None:
    quality, correct = _two(1)
    raw = np.exp(quality)
    found = _fit(raw, correct, Settings(bootstrap=300, permutations=99), method="lapv")
    grid = np.linspace(-1.5, 2.7, 1500)

    def crossing(chosen: np.ndarray) -> float:
        values, right = np.log(raw[chosen]), correct[chosen]
        difference = gaussian_kde(values[~right])(grid) - gaussian_kde(values[right])(grid)
        return float(np.exp(grid[np.flatnonzero((difference[:-1] > 0) & (difference[1:] <= 0))[0]]))

    rng = np.random.default_rng(2)
    drawn = [crossing(rng.integers(0, len(raw), len(raw))) for _ in range(150)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert found.cutoff == pytest.approx(crossing(np.arange(len(raw))), rel=0.005)
    assert found.interval == (pytest.approx(low, rel=0.08), pytest.approx(high, rel=0.08))


def test_a_score_scaled_turned_or_put_to_a_power_has_the_same_line() -> None:
    quality, correct = _two(3)
    base = _fit(quality, correct, method="brisque")
    scaled = _fit(10 * quality + 3, correct, method="brisque")
    turned = _fit(-quality, correct, method="brisque", direction="lower")
    assert scaled.cutoff == pytest.approx(10 * base.cutoff + 3, rel=1e-9)  # type: ignore[operator]
    assert scaled.interval == pytest.approx([10 * end + 3 for end in base.interval], rel=1e-6)  # type: ignore[union-attr]
    assert turned.cutoff == pytest.approx(-base.cutoff, rel=1e-9)  # type: ignore[operator]
    assert sorted(turned.interval) == pytest.approx([-end for end in reversed(base.interval)])  # type: ignore[arg-type]
    assert (base.share, base.auroc, base.p_value) == (turned.share, turned.auroc, turned.p_value)
    logarithmic = _fit(np.exp(quality), correct, method="lapv")
    squared = _fit(5 * np.exp(2 * quality), correct, method="lapv")
    assert squared.cutoff == pytest.approx(5 * logarithmic.cutoff**2, rel=1e-9)  # type: ignore[operator]
    assert np.log(logarithmic.cutoff or 0) == pytest.approx(base.cutoff, rel=1e-9)


def test_votes_are_low_on_the_worse_side_and_never_on_the_line() -> None:
    quality, correct = _two(4)
    for direction, sign in (("higher", 1), ("lower", -1)):
        found = _fit(sign * quality, correct, method="brisque", direction=direction)
        assert found.cutoff is not None
        raw = np.asarray([found.cutoff - sign, found.cutoff, found.cutoff + sign, np.nan])
        assert found.low(raw).tolist() == [True, False, False, False]


# ---- who is ok -----------------------------------------------------------------------------------------------


def test_over_200_shuffles_hardly_any_method_is_ok(simulate: Callable[..., Any]) -> None:
    directions = {"lapv": "higher", "wavs": "higher", "brisque": "lower"}
    falsely = 0
    for shuffle in range(200):
        simulated = simulate(groups=40, size=6, seed=shuffle, informative=False)
        fits = cutoffs.fit_all(
            simulated.photographs(),
            directions,  # type: ignore[arg-type]
            Settings(bootstrap=50, permutations=99, seed=shuffle),
        )
        falsely += any(fit.status == "ok" for fit in fits.values())
    # At a level of .05 over the three methods 10 are to be expected; more than 17 would happen once in 100.
    assert falsely <= 10


def test_a_healthy_method_is_ok_and_says_what_it_rests_on() -> None:
    quality, correct = _two(5)
    found = _fit(quality, correct)
    assert (found.status, found.reasons, found.rule) == ("ok", (), "crossing")
    assert found.share is not None
    assert found.share >= cutoffs.LEAST_SHARE
    assert found.crossings == (found.cutoff,)
    assert (found.wrong, found.right) == (np.count_nonzero(~correct), np.count_nonzero(correct))
    assert found.wrong_groups == found.wrong
    assert found.auroc is not None
    assert found.auroc > 0.85
    assert found.p_value == found.p_value_holm == 0.01
    assert found.searched is not None
    assert found.searched[0] < found.cutoff < found.searched[1]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda q, c: (q, np.arange(len(q)) >= 10, None), "10 wrong predictions with a score, 20 are needed"),
        (lambda q, c: (q, np.arange(len(q)) < 10, None), "10 right predictions with a score, 20 are needed"),
        (lambda q, c: (q, c, np.where(c, np.arange(len(q)), 0)), "lie in 1 groups, 10 are needed"),
        (lambda q, c: (np.zeros(len(q)), c, None), "the scores are constant"),
        (lambda q, c: (np.round(np.clip(q, 0, 1)), c, None), "2 different values"),
        (lambda q, c: (np.random.default_rng(0).permutation(q), c, None), "isn't above .5"),
        (lambda q, c: (-q, c, None), "it divides the other way round: are lower scores better?"),
        (lambda q, c: (np.full(len(q), np.nan), c, None), "0 wrong predictions"),
    ],
)
def test_an_undefined_method_says_why_and_has_no_cut_off(change: Callable[..., Any], reason: str) -> None:
    quality, correct = _two(6)
    quality, correct, group = change(quality, correct)
    found = _fit(quality, correct, group=np.arange(len(quality)) if group is None else group)
    assert found.status == "undefined"
    assert reason in (found.reason or "")
    assert found.cutoff is None
    assert found.interval is None


def test_densities_that_cross_to_and_fro_are_undefined_though_the_score_separates() -> None:
    rng = np.random.default_rng(7)
    correct = rng.random(800) >= 0.2
    first = rng.random(800) < 0.6
    wrong = np.where(first, rng.normal(-1.5, 0.4, 800), rng.normal(1.2, 0.3, 800))
    right = np.where(first, rng.normal(3, 0.4, 800), rng.normal(0, 0.4, 800))
    found = _fit(np.where(correct, right, wrong), correct)
    assert found.auroc is not None
    assert found.auroc > 0.8
    assert found.p_value_holm == 0.01
    assert len(found.crossings) == 3
    assert found.status == "undefined"
    assert found.reason is not None
    assert found.reason.startswith("exactly one crossing in 0% of the replicates")
    assert "cross 3 times" in found.notes[0]


def test_holm_counts_the_methods() -> None:
    quality, correct = _two(8)
    fits = [cutoffs.fit(name, quality, correct, np.arange(800), "higher", QUICK) for name in ("a", "b", "c")]
    settled = cutoffs.settle(fits, dict.fromkeys("abc", quality), QUICK)
    assert [one.p_value for one in settled] == [0.01] * 3
    assert [one.p_value_holm for one in settled] == pytest.approx([0.03] * 3)
    assert cutoffs.fewest_permutations(3, 0.05) == 59
    assert cutoffs.fewest_permutations(8, 0.05) == 159


def test_photographs_without_a_score_are_left_out() -> None:
    quality, correct = _two(9)
    holes = quality.copy()
    holes[::4] = np.nan
    kept = ~np.isnan(holes)
    assert _fit(holes, correct).cutoff == _fit(quality[kept], correct[kept]).cutoff


# ---- other rules ---------------------------------------------------------------------------------------------


def test_a_target_accuracy_is_reached_at_the_lowest_possible_cut_off() -> None:
    quality, correct = _two(10)
    for sign, direction in ((1, "higher"), (-1, "lower")):
        settings = Settings(rule="target_accuracy", value=0.95, bootstrap=100, permutations=99)
        found = _fit(sign * quality, correct, settings, method="brisque", direction=direction)
        assert (found.status, found.rule) == ("ok", "target_accuracy")
        assert found.cutoff is not None
        passed = quality >= sign * found.cutoff
        assert correct[passed].mean() >= 0.95
        lower = np.sort(quality[~passed])
        assert all(correct[quality >= place].mean() < 0.95 for place in lower)
        assert found.interval is not None
        assert min(found.interval) <= found.cutoff <= max(found.interval)
        assert found.share == 1.0


def test_an_accuracy_out_of_reach_is_undefined_and_one_that_is_there_is_noted() -> None:
    rng = np.random.default_rng(11)
    correct = rng.random(800) >= 0.4
    quality = np.where(correct, rng.normal(0.6, 1, 800), rng.normal(0, 1, 800))
    far = _fit(quality, correct, Settings(rule="target_accuracy", value=0.99, bootstrap=100, permutations=99))
    assert far.status == "undefined"
    assert "an accuracy of 0.99" in (far.reason or "")
    near = _fit(quality, correct, Settings(rule="target_accuracy", value=0.5, bootstrap=100, permutations=99))
    assert near.status == "ok"
    assert near.cutoff == quality.min()
    assert "rejects none" in near.notes[0]


@pytest.mark.parametrize("coverage", [0.6, 0.9])
def test_a_least_coverage_is_kept_and_used_up(coverage: float) -> None:
    quality, correct = _two(12)
    settings = Settings(rule="min_coverage", value=coverage, bootstrap=100, permutations=99)
    found = _fit(-quality, correct, settings, method="brisque", direction="lower")
    assert (found.status, found.rule, found.share) == ("ok", "min_coverage", None)
    passed = ~found.low(-quality)
    assert passed.mean() == pytest.approx(coverage, abs=1 / len(quality))
    assert passed.mean() >= coverage
    assert found.interval is not None
    assert min(found.interval) < found.cutoff < max(found.interval)  # type: ignore[operator]


def test_a_rule_without_a_crossing_still_needs_a_score_that_separates() -> None:
    quality, correct = _two(13)
    settings = Settings(rule="min_coverage", value=0.9, bootstrap=50, permutations=99)
    assert _fit(np.random.default_rng(0).permutation(quality), correct, settings).status == "undefined"


def test_a_fallback_comes_on_request_and_is_named() -> None:
    quality, correct = _two(14)
    noise = np.random.default_rng(0).permutation(quality)
    settings = Settings(bootstrap=50, permutations=99, fallback_percentile=20)
    found = _fit(noise, correct, settings)
    assert (found.status, found.rule, found.interval) == ("fallback", "percentile", None)
    assert "isn't above .5" in (found.reason or "")
    assert found.low(noise).mean() == pytest.approx(0.2)
    turned = _fit(-noise, correct, settings, method="brisque", direction="lower")
    assert turned.low(-noise).mean() == pytest.approx(0.2)
    assert _fit(quality, correct, settings).status == "ok"
    assert _fit(np.zeros(800), correct, settings).status == "undefined"


def test_settings_come_from_the_configuration() -> None:
    config = CalibrateConfig(scores="s", predictions="p", output="o", target_accuracy=0.9, bootstrap=70, seed=4)
    made = Settings.of(config)
    assert (made.rule, made.value, made.bootstrap, made.seed, made.permutations) == (
        "target_accuracy",
        0.9,
        70,
        4,
        1000,
    )
    fold = made.for_part("1/2", 0.8, 8)
    assert (fold.min_wrong, fold.min_wrong_groups, fold.bootstrap, fold.permutations) == (16, 8, 70, 199)
    assert fold.random("lapv", "x").random() != made.random("lapv", "x").random()

"""Bootstrap, permutation and Holm where photographs of one group resemble one another."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from qualitygate.calibration import statistics


def _rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def _null(rng: np.random.Generator, sizes: np.ndarray, correlation: float) -> tuple[np.ndarray, ...]:
    """Scores and labels that are independent of each other, each alike within groups."""
    group = np.repeat(np.arange(len(sizes)), sizes)

    def latent() -> np.ndarray:
        own = np.sqrt(1 - correlation) * rng.normal(size=len(group))
        return np.sqrt(correlation) * rng.normal(size=len(sizes))[group] + own

    return latent(), latent() > norm.ppf(0.15), group


@pytest.mark.parametrize("sizes", ["equal", "unequal"])
def test_the_permutation_test_keeps_its_level_where_groups_resemble_one_another(sizes: str) -> None:
    p_values, naive = [], []
    for draw in range(120):
        rng = _rng(draw, 3)
        size = np.full(40, 8) if sizes == "equal" else rng.geometric(0.12, size=45)
        quality, correct, group = _null(rng, size, 0.8)
        p_values.append(statistics.separation(quality, correct, group, 99, rng)[1])
        naive.append(statistics.separation(quality, correct, np.arange(len(group)), 99, rng)[1])
    # Of 120 draws at a level of .05, more than 13 have a probability of less than .5 %.
    assert np.sum(np.asarray(p_values) <= 0.05) <= 13
    # A test that takes photographs for independent finds what isn't there: that is why groups are respected.
    assert np.mean(np.asarray(naive) <= 0.05) > 0.15


def test_a_score_that_separates_has_the_smallest_p_value_and_sklearns_auroc() -> None:
    rng = _rng(1)
    group = np.repeat(np.arange(30), 5)
    correct = rng.random(150) < 0.8
    quality = correct + 0.3 * rng.normal(size=150)
    auroc, p_value = statistics.separation(quality, correct, group, 199, rng)
    assert auroc == pytest.approx(roc_auc_score(correct, quality))
    assert auroc == pytest.approx(statistics.auroc(quality, correct))
    assert p_value == 1 / 200
    assert statistics.separation(-quality, correct, group, 199, rng)[1] == 1.0


def test_infinite_qualities_rank_last() -> None:
    quality = np.asarray([-np.inf, -np.inf, 1.0, 2.0])
    assert statistics.auroc(quality, np.asarray([False, True, True, True])) == pytest.approx((0.5 + 1 + 1) / 3)


def test_labels_move_by_whole_groups() -> None:
    rng = _rng(2)
    group = np.repeat(np.arange(20), 4)[rng.permutation(80)]
    correct = np.isin(group, [3, 5, 8])  # three groups are all right, the others all wrong
    for moved in statistics.permuted_labels(correct, group, 20, rng):
        by_group = statistics.group_sums(moved, group, 20)
        assert sorted(by_group.tolist()) == [0.0] * 17 + [4.0] * 3
    assert len({tuple(moved) for moved in statistics.permuted_labels(correct, group, 20, rng)}) > 10


def test_single_photographs_are_permuted_plainly() -> None:
    correct = np.asarray([True] * 15 + [False] * 5)
    for moved in statistics.permuted_labels(correct, np.arange(20), 10, _rng(3)):
        assert moved.sum() == 15


def test_rare_sizes_share_a_stratum() -> None:
    sizes = np.asarray([1] * 30 + [2, 3, 4] + [7] * 12 + [40])
    strata = statistics.strata_of_sizes(sizes)
    assert sorted(np.concatenate(strata).tolist()) == list(range(len(sizes)))
    assert all(len(stratum) >= 10 for stratum in strata)
    assert set(sizes[strata[0]]) == {1}


def test_the_bootstrap_draws_whole_groups() -> None:
    rng = _rng(4)
    drawn = np.concatenate(list(statistics.replicates(25, 300, rng)))
    assert drawn.shape == (300, 25)
    assert np.all(drawn.sum(axis=1) == 25)


def test_the_bootstrap_sees_that_groups_resemble_one_another() -> None:
    rng = _rng(5)
    group = np.repeat(np.arange(100), 10)
    values = rng.normal(size=100)[group] + 0.1 * rng.normal(size=1000)
    sums = statistics.group_sums(np.stack([np.ones(1000), values], axis=1), group, 100)
    means = statistics.bootstrap(lambda totals: totals[:, 1] / totals[:, 0], sums, 800, rng)
    by_group = sums[:, 1] / 10
    assert np.std(means) == pytest.approx(by_group.std() / 10, rel=0.1)
    low, high = statistics.percentile_interval(means) or (0.0, 0.0)
    assert low < values.mean() < high


def test_intervals_leave_out_what_is_undefined() -> None:
    assert statistics.percentile_interval([np.nan, 1.0, 1.0, np.inf]) == (1.0, 1.0)
    assert statistics.percentile_interval([np.nan]) is None


def test_a_symmetric_interval_stays_within_what_is_possible() -> None:
    drawn = np.random.default_rng(6).normal(0.9, 0.1, 4000)
    low, high = statistics.symmetric_interval(0.9, drawn, 30, (0.0, 1.0)) or (0.0, 0.0)
    assert low == pytest.approx(0.9 - 2.045 * 0.1, abs=0.01)
    assert high == 1.0
    assert statistics.symmetric_interval(0.9, [0.9, np.nan, np.nan], 30, (0.0, 1.0)) is None
    assert statistics.symmetric_interval(0.9, drawn, 1, (0.0, 1.0)) is None


def test_holm() -> None:
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([]) == []


def test_random_numbers_depend_on_seed_and_purpose_alone() -> None:
    first = statistics.generator(1, "lapv", "bootstrap").random(3)
    assert np.array_equal(first, statistics.generator(1, "lapv", "bootstrap").random(3))
    assert not np.array_equal(first, statistics.generator(1, "wavs", "bootstrap").random(3))
    assert not np.array_equal(first, statistics.generator(2, "lapv", "bootstrap").random(3))

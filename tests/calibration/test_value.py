"""Youden's J of a gate and the difference of two: by hand, as the measure of the crossing, with honest intervals."""

import numpy as np
import pytest
from scipy.special import expit

from qualitygate.calibration import cutoffs, value
from qualitygate.calibration.cutoffs import Settings
from qualitygate.calibration.statistics import sampling_weights

# Six right predictions, then four wrong ones.
CORRECT = np.arange(10) < 6
PASSED = np.array([1, 1, 1, 1, 1, 0, 0, 0, 0, 1], dtype=bool)
OTHER = np.array([1, 1, 1, 1, 1, 1, 0, 0, 1, 1], dtype=bool)
WEIGHT = np.array([1.0, 1, 1, 1, 1, 5, 1, 1, 4, 2])
GROUP = np.array([0, 1, 2, 3, 4, 5, 0, 1, 2, 3])


def test_the_value_is_that_of_pencil_and_paper() -> None:
    found = value.value_of(PASSED, CORRECT, None, GROUP)
    assert (found.wrong_rejected, found.right_passed) == (3 / 4, 5 / 6)
    assert found.youden == pytest.approx(3 / 4 + 5 / 6 - 1)
    assert (found.wrong, found.right, found.effective_wrong, found.effective_right) == (4, 6, 4, 6)
    weighted = value.value_of(PASSED, CORRECT, WEIGHT, GROUP)
    assert (weighted.wrong_rejected, weighted.right_passed) == (pytest.approx(6 / 8), pytest.approx(5 / 10))
    assert weighted.youden == pytest.approx(6 / 8 + 5 / 10 - 1)
    assert weighted.effective_wrong == pytest.approx(8**2 / (1 + 1 + 16 + 4))
    assert (weighted.wrong, weighted.right) == (4, 6)


def test_the_difference_is_that_of_pencil_and_paper() -> None:
    found = value.compared(PASSED, OTHER, CORRECT, None, GROUP)
    assert found.youden == pytest.approx((3 / 4 + 5 / 6) - (2 / 4 + 6 / 6))
    assert found.changed == pytest.approx(2 / 10)
    weighted = value.compared(PASSED, OTHER, CORRECT, WEIGHT, GROUP)
    assert weighted.youden == pytest.approx((6 / 8 + 5 / 10) - (2 / 8 + 10 / 10))
    assert weighted.changed == pytest.approx(9 / 18)
    turned = value.compared(OTHER, PASSED, CORRECT, WEIGHT, GROUP)
    assert (turned.youden, turned.changed) == (pytest.approx(-(weighted.youden or 0)), weighted.changed)
    same = value.compared(PASSED, PASSED, CORRECT, WEIGHT, GROUP)
    assert (same.youden, same.interval, same.changed) == (0, (0, 0), 0)


def test_shares_of_repeats_count_in_part() -> None:
    half = value.value_of((PASSED * 1.0 + OTHER) / 2, CORRECT, WEIGHT, GROUP).youden
    both = [value.value_of(one, CORRECT, WEIGHT, GROUP).youden for one in (PASSED, OTHER)]
    assert half == pytest.approx(np.mean(both))  # type: ignore[arg-type]


def test_weights_are_copies_and_have_no_scale() -> None:
    rows = np.repeat(np.arange(10), WEIGHT.astype(int))
    copies = value.value_of(PASSED[rows], CORRECT[rows], None, GROUP[rows], 300, 3)
    for scale in (1.0, 100.0):
        found = value.value_of(PASSED, CORRECT, scale * WEIGHT, GROUP, 300, 3)
        assert found.youden == pytest.approx(copies.youden)
        # Groups are drawn, so copies within a group widen and narrow nothing.
        assert found.interval == pytest.approx(copies.interval)
        assert found.effective_wrong == pytest.approx(8**2 / 22)
    assert copies.effective_wrong == 8
    difference = value.compared(PASSED, OTHER, CORRECT, WEIGHT, GROUP, 300, 3)
    again = value.compared(PASSED[rows], OTHER[rows], CORRECT[rows], None, GROUP[rows], 300, 3)
    assert (difference.youden, difference.changed) == (pytest.approx(again.youden), pytest.approx(again.changed))
    assert difference.interval == pytest.approx(again.interval)


def test_rejecting_at_random_is_worth_nothing_however_much() -> None:
    for share in (0.0, 0.3, 1.0):
        found = value.value_of(np.full(10, share), CORRECT, WEIGHT, GROUP)
        assert found.youden == pytest.approx(0)
    perfect = value.value_of(CORRECT, CORRECT, WEIGHT, GROUP)
    assert (perfect.youden, perfect.interval) == (1, (1, 1))
    assert value.value_of(~CORRECT, CORRECT, WEIGHT, GROUP).youden == -1


def test_without_wrong_or_without_right_predictions_there_is_no_value() -> None:
    for outcome in (True, False):
        found = value.value_of(PASSED, np.full(10, outcome), None, GROUP)
        assert (found.youden, found.interval) == (None, None)
        assert value.compared(PASSED, OTHER, np.full(10, outcome), None, GROUP).youden is None
    one_group = value.value_of(PASSED, CORRECT, None, np.where(CORRECT, GROUP, 0))
    assert one_group.youden is not None
    assert one_group.interval is None


@pytest.mark.parametrize("number", [0, 9])
def test_arrays_of_different_lengths_are_refused(number: int) -> None:
    with pytest.raises(ValueError, match="give as many of each"):
        value.value_of(PASSED[:number], CORRECT, WEIGHT, GROUP)
    with pytest.raises(ValueError, match="give as many of each"):
        value.value_of(PASSED[:number], CORRECT[:number], WEIGHT[:number], GROUP)


@pytest.mark.parametrize("share", [np.nan, -0.1, 1.1])
def test_what_is_no_decision_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="no share"):
        value.value_of(np.where(np.arange(10) == 3, share, 1.0), CORRECT, None, GROUP)


def _labelled(seed: int) -> tuple[np.ndarray, ...]:
    """Quality, correctness, subject and weight of 80 subjects' photographs, the bad ones labelled one time in ten."""
    rng = np.random.default_rng([seed, 9])
    group = np.repeat(np.arange(80), 20)
    quality = np.sqrt(0.3) * rng.normal(size=80)[group] + np.sqrt(0.7) * rng.normal(size=1600)
    correct = rng.random(1600) < expit(2 + 2 * quality)
    probability = np.where(quality < -0.5, 0.1, 1.0)
    taken = rng.random(1600) < probability
    return quality[taken], correct[taken], group[taken], sampling_weights(probability[taken])


def test_intervals_hold_the_population_s_value_about_as_often_as_they_say() -> None:
    random = np.random.default_rng(1)
    quality = random.normal(size=1_000_000)
    correct = random.random(1_000_000) < expit(2 + 2 * quality)

    def worth(cutoff: float) -> float:
        return float(np.mean(quality[~correct] < cutoff) + np.mean(quality[correct] >= cutoff) - 1)

    held, paired, unweighted = 0, 0, 0
    for seed in range(80):
        some, right, group, weight = _labelled(seed)
        gate, other = some >= -0.3, some >= 0
        one = value.value_of(gate, right, weight, group, 200, seed)
        both = value.compared(gate, other, right, weight, group, 200, seed)
        plain = value.value_of(gate, right, None, group, 200, seed)
        assert one.interval is not None
        assert both.interval is not None
        assert plain.interval is not None
        held += one.interval[0] <= worth(-0.3) <= one.interval[1]
        paired += both.interval[0] <= worth(-0.3) - worth(0) <= both.interval[1]
        unweighted += plain.interval[0] <= worth(-0.3) <= plain.interval[1]
    # Nominal: 76 of 80. Fewer than 69 would happen once in a thousand.
    assert held >= 69
    assert paired >= 69
    assert unweighted <= 10


def test_the_crossing_is_worth_more_than_lines_beside_it() -> None:
    random = np.random.default_rng(2)
    correct = random.random(4000) < 0.8
    quality = np.where(correct, 2.0, 0.0) + random.normal(size=4000)
    line = cutoffs.fit("q", quality, correct, np.arange(4000), "higher", Settings(bootstrap=50, permutations=99)).cutoff
    assert line is not None
    for aside in (-0.5, 0.5):
        found = value.compared(quality >= line, quality >= line + aside, correct, None, np.arange(4000), 200)
        assert found.interval is not None
        assert found.interval[0] > 0

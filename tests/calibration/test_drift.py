"""Drift: scipy's statistics, no alarm by chance, an alarm for what matters, nothing said of too few."""

import dataclasses

import numpy as np
import pytest
from scipy.stats import fisher_exact, ks_2samp, wasserstein_distance

from qualitygate.calibration import drift
from qualitygate.calibration.drift import DRIFTED, OVERALL, STABLE, TOO_FEW, Limits, Window


def _window(count: int, seed: int, *, shift: float = 0.0, passed: float = 0.7, errors: float = 0.01) -> Window:
    random = np.random.default_rng(seed)
    return Window(
        scores={"lapm": np.exp(random.normal(shift, 1, count)), "niqe": random.normal(5 - shift, 1, count)},
        passed=random.random(count) < passed,
        codes=["truncated" if one < errors else "" for one in random.random(count)],
        strata={"model": [f"camera{number % 2}" for number in range(count)]},
    )


def _of_groups(groups: int, size: int, seed: int, alike: float) -> Window:
    """Groups whose photographs share this part of the variance."""
    random = np.random.default_rng(seed)
    group = np.repeat(np.arange(groups), size)
    quality = np.sqrt(alike) * random.normal(size=groups)[group]
    quality = quality + np.sqrt(1 - alike) * random.normal(size=len(group))
    return Window(
        scores={"niqe": quality},
        passed=quality > -0.5,
        codes=[""] * len(group),
        strata={},
        group=[f"subject{number}" for number in group],
    )


def _by(changes: list[drift.Change]) -> dict[tuple[str, str], drift.Change]:
    return {(one.what, one.stratum): one for one in changes}


def test_statistics_are_scipys_over_those_with_a_score() -> None:
    before, after = _window(400, 0), _window(300, 1, shift=0.5)
    before.scores["lapm"][:50] = np.nan
    found = _by(drift.compare(before, after))["lapm", OVERALL]
    there = before.scores["lapm"][50:]
    expected = ks_2samp(there, after.scores["lapm"], method="asymp")
    assert (found.reference, found.current, found.effective) == (350, 300, (350, 300))
    assert (found.ks, found.p_value) == (pytest.approx(expected.statistic), pytest.approx(expected.pvalue))
    range_ = np.subtract(*np.quantile(there, [0.75, 0.25]))
    assert found.wasserstein == pytest.approx(wasserstein_distance(there, after.scores["lapm"]) / range_)
    assert (found.before, found.after) == (np.median(there), np.median(after.scores["lapm"]))
    rate = _by(drift.compare(before, after))["coverage", OVERALL]
    assert before.passed is not None
    assert after.passed is not None
    table = [[before.passed.sum(), 400 - before.passed.sum()], [after.passed.sum(), 300 - after.passed.sum()]]
    assert rate.p_value == pytest.approx(fisher_exact(table).pvalue)


def test_the_index_is_its_definition() -> None:
    before = np.arange(100.0)
    after = np.concatenate([np.arange(50.0), np.arange(50.0)])
    p = np.full(10, 10.5 / 105)
    q = np.array([20.5] * 5 + [0.5] * 5) / 105
    assert drift.stability_index(before, after) == (pytest.approx(((q - p) * np.log(q / p)).sum()), 10)
    assert drift.stability_index(before, before)[0] == pytest.approx(0)


def test_the_index_sees_what_leaves_a_value_that_many_share() -> None:
    constant = np.zeros(60)
    assert drift.stability_index(constant, np.zeros(80)) == (pytest.approx(0), 1)
    assert drift.stability_index(constant, np.ones(80))[0] > 5
    assert drift.stability_index(constant, -np.ones(80))[0] > 5
    many = np.concatenate([np.zeros(50), np.linspace(0, 1, 51)[1:]])
    left = np.concatenate([np.full(50, 0.01), many[50:]])
    assert drift.stability_index(many, many)[0] == pytest.approx(0)
    assert drift.stability_index(many, left)[0] > 1


def test_chance_alone_seldom_alarms() -> None:
    alarms = sum(
        any(one.word == DRIFTED for one in drift.compare(_window(200, 2 * seed), _window(120, 2 * seed + 1)))
        for seed in range(100)
    )
    assert alarms <= 3
    # Nor does the index: what nothing explains exceeds its bound about as often as that says.
    random = np.random.default_rng(0)
    indices = [drift.stability_index(random.normal(size=200), random.normal(size=120))[0] for _ in range(400)]
    exceeded = np.mean(np.array(indices) > drift.chance_index(200, 120, 0.05))
    assert 0.01 < exceeded < 0.12


def test_alike_photographs_of_a_subject_are_no_evidence_of_their_own() -> None:
    found: dict[str, list[float]] = {"apart": [], "together": []}
    for seed in range(100):
        before, after = _of_groups(60, 10, 2 * seed, 0.6), _of_groups(50, 12, 2 * seed + 1, 0.6)
        apart = [dataclasses.replace(one, group=None) for one in (before, after)]
        for name, (a, b) in {"together": (before, after), "apart": (apart[0], apart[1])}.items():
            changes = _by(drift.compare(a, b))
            found[name] += [changes[what, OVERALL].p_value or 0.0 for what in ("niqe", "coverage")]
    low = {name: np.mean(np.array(values) < 0.05) for name, values in found.items()}
    assert low["apart"] > 0.3
    assert low["together"] < 0.09


def test_effective_sizes() -> None:
    group = np.repeat(np.arange(40), 5)
    random = np.random.default_rng(0)
    assert drift.effective_sizes((random.normal(size=200), np.arange(200))) == (200,)
    # Copies: each subject tells as much as one photograph of it, but for the groups' degree of freedom.
    copies = np.repeat(random.normal(size=40), 5)
    assert drift.effective_sizes((copies, group)) == (pytest.approx(39),)
    assert drift.effective_sizes((np.zeros(200), group), (copies, group))[0] == pytest.approx(39)
    assert drift.effective_sizes((np.zeros(200), group)) == (200,)
    assert drift.effective_sizes((copies, np.zeros(200, dtype=np.int64))) == (1,)


def test_photographs_without_a_group_are_groups_of_their_own() -> None:
    windows = [dataclasses.replace(_window(90, seed), group=[None, "", "n0"] * 30) for seed in (0, 1)]
    found = _by(drift.compare(windows[0], windows[1]))["niqe", OVERALL]
    assert found.effective is None or max(found.effective) <= 90
    alone = [dataclasses.replace(one, group=[None, ""] * 45) for one in windows]
    assert _by(drift.compare(alone[0], alone[1]))["niqe", OVERALL].effective == (90, 90)


def test_a_shift_that_matters_alarms_where_it_happened() -> None:
    before, after = _window(2000, 0), _window(1000, 1)
    half = np.array([label == "camera1" for label in after.strata["model"]])
    after.scores["lapm"][half] *= np.exp(1.5)
    found = _by(drift.compare(before, after))
    assert found["lapm", "model camera1"].word == DRIFTED
    assert found["lapm", "model camera0"].word == STABLE
    assert found["niqe", OVERALL].word == STABLE


def test_significance_without_size_is_no_drift() -> None:
    before, after = _window(60_000, 0), _window(60_000, 1, shift=0.05, passed=0.72)
    found = _by(drift.compare(before, after))
    assert (found["lapm", OVERALL].p_holm or 1) < 1e-6
    assert found["lapm", OVERALL].word == found["coverage", OVERALL].word == STABLE


def test_size_without_significance_is_no_drift() -> None:
    one = drift.Change(what="niqe", stratum=OVERALL, reference=60, current=60, word=STABLE, p_value=0.008)
    changes = [
        dataclasses.replace(one, psi=2.0, psi_chance=0.5),
        dataclasses.replace(one, what="coverage", before=0.9, after=0.6),
    ]
    assert [one.word for one in drift.settle(changes, Limits())] == [STABLE, STABLE]
    assert [one.p_holm for one in drift.settle(changes, Limits())] == [pytest.approx(0.016)] * 2
    assert [one.word for one in drift.settle(changes, Limits(significance=0.02))] == [DRIFTED, DRIFTED]
    # What chance alone reaches, at these sizes, isn't large.
    noisy = dataclasses.replace(changes[0], psi_chance=2.5)
    assert drift.settle([noisy], Limits())[0].word == STABLE


def test_a_broken_feed_is_drift_of_errors_and_coverage() -> None:
    found = _by(drift.compare(_window(500, 0), _window(400, 1, passed=0.4, errors=0.5)))
    assert found["error:truncated", OVERALL].word == found["coverage", OVERALL].word == DRIFTED
    assert found["errors", OVERALL].word == DRIFTED
    assert found["error:truncated", OVERALL].after == pytest.approx(0.5, abs=0.08)


def test_many_small_kinds_of_error_are_one_drift() -> None:
    before, after = _window(4000, 0, errors=0), _window(4000, 1, errors=0)
    after = dataclasses.replace(after, codes=[f"code{n // 40 % 5}" if n % 40 == 0 else "" for n in range(4000)])
    found = _by(drift.compare(before, after))
    assert found["error:code0", OVERALL].word == STABLE
    assert found["errors", OVERALL].word == DRIFTED


def test_scores_that_fail_without_an_error_are_drift() -> None:
    before, after = _window(500, 0), _window(400, 1)
    after.scores["niqe"][:100] = np.nan
    found = _by(drift.compare(before, after))
    missing = found["missing:niqe", OVERALL]
    assert (missing.word, missing.before) == (DRIFTED, 0)
    assert missing.after == pytest.approx(0.25, abs=0.02)
    assert ("missing:lapm", OVERALL) not in found


def test_few_photographs_say_nothing() -> None:
    found = drift.compare(_window(500, 0), _window(30, 1, shift=5), Limits(fewest=50))
    assert {one.word for one in found} == {TOO_FEW}
    assert all(one.p_value is one.p_holm is None for one in found)
    # Nor do many of a few subjects.
    few = drift.compare(_of_groups(40, 10, 0, 0.9), _of_groups(8, 100, 1, 0.9))
    assert _by(few)["niqe", OVERALL].word == TOO_FEW


def test_strata_of_one_side_only_are_left_to_the_whole() -> None:
    before, after = _window(200, 0), _window(200, 1)
    after.strata["model"][:] = ["camera9"] * 200  # type: ignore[index]
    assert {one.stratum for one in drift.compare(before, after)} == {OVERALL}
    assert {one.stratum for one in drift.compare(before, dataclasses.replace(after, strata={}))} == {OVERALL}

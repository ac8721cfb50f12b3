"""What the gate buys on unseen groups: splits without leaks, rivals at equal coverage, figures of known truth."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qualitygate.calibration import heldout
from qualitygate.calibration.cutoffs import Settings
from qualitygate.calibration.heldout import Outcome, Plan

DIRECTIONS: Any = {"lapv": "higher", "wavs": "higher", "brisque": "lower"}
QUICK = Settings(bootstrap=60, permutations=99)


def _crossed(simulated: Any, settings: Settings = QUICK, **options: Any) -> tuple[Any, Plan, Outcome]:
    photographs = simulated.photographs()
    plan = heldout.plan(photographs, 4, 2, 0)
    assert plan is not None
    arguments: dict[str, Any] = {
        "votes_needed": 2,
        "allow_fallback": False,
        "top1": photographs.top1,
        "advance": lambda: None,
    }
    return photographs, plan, heldout.cross_fit(photographs, DIRECTIONS, settings, plan, **(arguments | options))


# ---- splits --------------------------------------------------------------------------------------------------


def test_groups_stay_whole_and_each_photograph_is_held_out_once_a_repeat(simulate: Callable[..., Any]) -> None:
    photographs = simulate().photographs()
    plan = heldout.plan(photographs, 5, 3, 7)
    assert plan is not None
    assert (plan.folds, len(plan.splits), plan.note) == (5, 3, None)
    for splits in plan.splits:
        assert sorted(np.concatenate([test for _, test in splits]).tolist()) == list(range(len(photographs)))
        for train, test in splits:
            assert not set(photographs.group[train]) & set(photographs.group[test])
            assert not photographs.correct[test].all()
    assert not np.array_equal(plan.splits[0][0][1], plan.splits[1][0][1])


def test_there_are_no_more_folds_than_groups_with_wrong_predictions(simulate: Callable[..., Any]) -> None:
    photographs = simulate().photographs()
    few = replace(photographs, correct=~np.isin(photographs.group, [1, 5, 9]))
    plan = heldout.plan(few, 5, 2, 0)
    assert plan is not None
    assert plan.folds == 3
    assert "3 folds instead of 5" in (plan.note or "")
    one = replace(photographs, correct=photographs.group != 1)
    assert heldout.plan(one, 5, 2, 0) is None


def test_nothing_is_learned_from_photographs_that_are_held_out(
    simulate: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    learned: list[set[str]] = []
    fit_all = heldout.cutoffs.fit_all

    def watched(photographs: Any, *arguments: Any) -> Any:
        learned.append(set(photographs.group_name))
        return fit_all(photographs, *arguments)

    monkeypatch.setattr(heldout.cutoffs, "fit_all", watched)
    photographs, plan, _ = _crossed(simulate(groups=30))
    tested = [set(photographs.group_name[test]) for splits in plan.splits for _, test in splits]
    everyone = set(photographs.group_name)
    assert learned == [everyone - held for held in tested]


def test_labels_of_held_out_photographs_decide_nothing(simulate: Callable[..., Any]) -> None:
    photographs = simulate(groups=30).photographs()
    plan = heldout.plan(photographs, 3, 1, 0)
    assert plan is not None
    _, test = plan.splits[0][0]
    turned = photographs.correct.copy()
    turned[test] = ~turned[test]
    accepted = []
    for correct in (photographs.correct, turned):
        outcome = heldout.cross_fit(
            replace(photographs, correct=correct),
            DIRECTIONS,
            QUICK,
            plan,
            votes_needed=2,
            allow_fallback=False,
            top1=photographs.top1,
            advance=lambda: None,
        )
        accepted.append({name: values[0, test].tolist() for name, values in outcome.accepted.items()})
    assert accepted[0] == accepted[1]


# ---- equal coverage ------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(preference=st.lists(st.sampled_from([-np.inf, 0.0, 1.0, 2.0]), min_size=1, max_size=12), share=st.floats(0, 1))
def test_exactly_as_many_are_accepted_and_the_preferred_ones_first(preference: list[float], share: float) -> None:
    values = np.asarray(preference)
    number = round(share * len(values))
    accepted = heldout.accept(values, number)
    assert accepted.sum() == pytest.approx(number)
    assert np.all((accepted >= 0) & (accepted <= 1))
    for one in np.unique(values):
        assert len(np.unique(accepted[values == one])) == 1
        if np.any(accepted[values == one] > 0):
            assert np.all(accepted[values > one] == 1)


def test_rivals_reject_as_many_in_every_fold_as_the_gate(simulate: Callable[..., Any]) -> None:
    _, plan, outcome = _crossed(simulate())
    assert set(outcome.accepted) == {"gate", "random", "top1", "best_single", "logistic"}
    for repeat, splits in enumerate(plan.splits):
        for _, test in splits:
            accepted = {name: values[repeat, test].sum() for name, values in outcome.accepted.items()}
            assert accepted == pytest.approx(dict.fromkeys(accepted, accepted["gate"]))
            order = outcome.place["gate"][repeat, test]
            passed = outcome.accepted["gate"][repeat, test] == 1
            assert order[passed].min() > order[~passed].max()


def test_the_best_single_method_is_the_one_that_separated_best(simulate: Callable[..., Any]) -> None:
    simulated = simulate()
    simulated.scores["noise"] = np.random.default_rng(0).normal(size=len(simulated.image_id))
    simulated.scores["best"] = simulated.confidence * 10
    directions = DIRECTIONS | {"noise": "higher", "best": "higher"}
    photographs = simulated.photographs()
    fits = heldout.cutoffs.fit_all(photographs, directions, QUICK)
    assert np.array_equal(heldout._best_single(photographs, fits), simulated.scores["best"])
    together = heldout._logistic(photographs, photographs, fits)
    assert np.corrcoef(together, simulated.scores["best"])[0, 1] > 0.9


# ---- figures -------------------------------------------------------------------------------------------------


def test_a_gate_on_blur_buys_accuracy_that_chance_does_not(simulate: Callable[..., Any]) -> None:
    photographs, plan, outcome = _crossed(simulate())
    found = heldout.figures(photographs, outcome, plan, replicates=200, seed=0)
    by_name = {one["name"]: one for one in found["comparison"]}
    assert found["undefined_shares"] == dict.fromkeys(DIRECTIONS, 0.0)
    assert found["undecided_share"] == 0
    assert found["accuracy_passed"]["mean"] > found["accuracy_all"] + 0.1
    assert found["accuracy_rejected"]["mean"] < 0.6
    assert by_name["random"]["accuracy_at_coverage"]["mean"] == pytest.approx(found["accuracy_all"], abs=0.02)
    assert by_name["random"]["difference"]["interval"][0] > 0.1
    assert by_name["gate"]["difference"] is None
    for name, one in by_name.items():
        low, high = one["accuracy_at_coverage"]["interval"]
        assert low <= one["accuracy_at_coverage"]["mean"] <= high
        assert one["aurc"] <= by_name["random"]["aurc"] + 0.01, name


def test_a_gate_on_noise_is_worth_no_more_than_chance(simulate: Callable[..., Any]) -> None:
    better = 0
    for seed in range(8):
        settings = replace(QUICK, fallback_percentile=30, seed=seed)
        noise = simulate(groups=120, size=3, seed=seed, informative=False)
        photographs, plan, outcome = _crossed(noise, settings, allow_fallback=True)
        found = heldout.figures(photographs, outcome, plan, replicates=200, seed=seed)
        random = next(one for one in found["comparison"] if one["name"] == "random")
        better += random["difference"]["interval"][0] > 0
    # One in forty by chance, each.
    assert better <= 2


def test_where_too_few_methods_have_a_line_all_pass_and_it_is_counted(simulate: Callable[..., Any]) -> None:
    photographs, plan, outcome = _crossed(simulate(groups=30, seed=1, informative=False))
    found = heldout.figures(photographs, outcome, plan, replicates=60, seed=0)
    assert found["undecided_share"] == 1
    assert found["coverage"]["mean"] == 1
    assert found["precision"] == {"mean": None, "interval": None}
    assert found["accuracy_rejected"] == {"mean": None, "interval": None}
    assert found["recall"]["mean"] == pytest.approx(0)


def test_figures_are_what_their_names_say(simulate: Callable[..., Any]) -> None:
    photographs = simulate(groups=20, size=5).photographs()
    rng = np.random.default_rng(0)
    passed = rng.random((2, 100)) < 0.6
    rival = rng.random((2, 100)) < 0.6
    outcome = Outcome(
        accepted={"gate": passed * 1.0, "random": rival * 1.0},
        place={"gate": rng.random((2, 100)), "random": np.full((2, 100), 0.5)},
        undefined={},
        undecided=0.0,
        decided=np.ones((2, 100), dtype=np.bool_),
    )
    plan = Plan(folds=2, splits=(((), ()), ((), ())))  # type: ignore[arg-type]
    found = heldout.figures(photographs, outcome, plan, replicates=50, seed=0)
    correct = np.stack([photographs.correct] * 2)
    assert found["coverage"]["mean"] == pytest.approx(passed.mean())
    assert found["precision"]["mean"] == pytest.approx((~correct)[~passed].mean())
    assert found["recall"]["mean"] == pytest.approx((~passed)[~correct].mean())
    assert found["accuracy_passed"]["mean"] == pytest.approx(correct[passed].mean())
    assert found["accuracy_rejected"]["mean"] == pytest.approx(correct[~passed].mean())
    difference = found["comparison"][1]["difference"]["mean"]
    assert difference == pytest.approx(correct[passed].mean() - correct[rival].mean())


# ---- risk and coverage ---------------------------------------------------------------------------------------


def test_the_curve_of_a_perfect_of_a_reversed_and_of_no_order() -> None:
    correct = np.asarray([True] * 80 + [False] * 20)
    perfect = heldout.risk_coverage((np.arange(100)[::-1] / 100)[None], correct)
    reverse = heldout.risk_coverage((np.arange(100) / 100)[None], correct)
    none = heldout.risk_coverage(np.full((3, 100), 0.5), correct)
    assert perfect["curve"]["coverage"][-1] == 1.0
    for one in (perfect, reverse, none):
        assert one["curve"]["accuracy"][-1] == pytest.approx(0.8)
    at = dict(zip(perfect["curve"]["coverage"], perfect["curve"]["accuracy"], strict=True))
    assert at[0.8] == 1.0
    assert at[0.9] == pytest.approx(80 / 90)
    # Analytically: integral of (c - .8) / c from .8 to 1.
    assert perfect["aurc"] == pytest.approx(0.2 + 0.8 * np.log(0.8), abs=2e-3)
    assert none["aurc"] == pytest.approx(0.2)
    assert reverse["aurc"] > 0.45


# ---- the classifier's own certainty --------------------------------------------------------------------------


def test_the_certainty_is_never_the_labelled_classs_confidence(simulate: Callable[..., Any]) -> None:
    photographs = simulate().photographs()
    unknown = replace(photographs, top1=np.full(len(photographs), np.nan))
    assert heldout.top1_of(photographs, two_classes=False)[0] is photographs.top1
    two, note = heldout.top1_of(unknown, two_classes=True)
    assert note is None
    assert two is not None
    assert np.allclose(two, np.maximum(photographs.confidence, 1 - photographs.confidence))
    none, note = heldout.top1_of(unknown, two_classes=False)
    assert none is None
    assert "add a top1 column" in (note or "")


def test_a_failed_score_is_the_worst_for_every_contestant(simulate: Callable[..., Any]) -> None:
    simulated = simulate()
    for raw in simulated.scores.values():
        raw[:10] = np.nan
    _, _, outcome = _crossed(simulated)
    for name in ("gate", "best_single", "logistic"):
        assert np.all(outcome.accepted[name][:, :10] == 0), name


def test_repeats_without_a_gate_say_nothing_of_a_photograph() -> None:
    outcome = Outcome(
        accepted={"gate": np.asarray([[1.0, 0.0, 1.0, 1.0], [1.0, 1.0, 0.0, 1.0]])},
        place={},
        undefined={},
        undecided=0.5,
        decided=np.asarray([[True, True, False, False], [True, False, True, False]]),
    )
    np.testing.assert_array_equal(outcome.passed(), [1.0, 0.0, 0.0, np.nan])

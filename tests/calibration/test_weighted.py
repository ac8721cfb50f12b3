"""Calibration of a sample in which some stand for many: known truths, weights as copies, no weights as before."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.special import expit
from scipy.stats import gaussian_kde, norm, rankdata, skew, spearmanr
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from qualitygate.calibration import calibrate, cutoffs, description, gate, heldout, kde, statistics, value
from qualitygate.calibration.cutoffs import Fit, Settings
from qualitygate.calibration.heldout import Outcome, Plan
from qualitygate.calibration.kde import Density
from qualitygate.calibration.statistics import sampling_weights
from qualitygate.config import CalibrateConfig
from qualitygate.report import artefacts, sections
from qualitygate.report import calibration as said

QUICK = Settings(bootstrap=100, permutations=99)
METHODS = "lapv,wavs,brisque"


def _rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


# ---- a known truth -------------------------------------------------------------------------------------------

AUDITED = 0.02


def _population(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Quality N(0, 1), alike within 100 subjects; correctness by it; subjects; the chance of being labelled.

    A gate before this one passed what is better than -.5; of what it rejected an audit labels 2 %.
    """
    rng = _rng(seed, 7)
    group = np.repeat(np.arange(100), 40)
    quality = np.sqrt(0.1) * rng.normal(size=100)[group] + np.sqrt(0.9) * rng.normal(size=4000)
    correct = rng.random(4000) < expit(2 + 2 * quality)
    return quality, correct, group, np.where(quality < -0.5, AUDITED, 1.0)


def _true_line() -> float:
    """The densities of right and wrong cross where P(right | quality) is the accuracy, by Bayes."""
    places = np.linspace(-9, 9, 20_001)
    accuracy = np.trapezoid(norm.pdf(places) * expit(2 + 2 * places), places)
    return float((np.log(accuracy / (1 - accuracy)) - 2) / 2)


def test_weighted_the_labelled_give_the_line_of_all_and_unweighted_they_do_not() -> None:
    held = {"weighted": 0, "unweighted": 0, "everyone": 0, "everyone's": 0}
    truth = _true_line()
    for seed in range(12):
        quality, correct, group, probability = _population(seed)
        taken = _rng(seed, 8).random(4000) < probability
        everyone = cutoffs.fit("q", quality, correct, group, "higher", QUICK)
        weight = sampling_weights(probability[taken])
        fits = {
            name: cutoffs.fit("q", quality[taken], correct[taken], group[taken], "higher", QUICK, own)
            for name, own in (("weighted", weight), ("unweighted", None))
        }
        for name, found in (fits | {"everyone": everyone}).items():
            assert found.interval is not None
            held[name] += found.interval[0] <= truth <= found.interval[1]
        weighted, unweighted = fits["weighted"], fits["unweighted"]
        assert weighted.interval is not None
        held["everyone's"] += weighted.interval[0] <= everyone.cutoff <= weighted.interval[1]  # type: ignore[operator]
        # A fiftieth of the bad ones tells less than all of them, and the interval says so.
        assert weighted.interval[1] - weighted.interval[0] > everyone.interval[1] - everyone.interval[0]  # type: ignore[index]
        # What rejects too much looks better by the labelled alone.
        assert unweighted.cutoff > truth + 0.3  # type: ignore[operator]
    assert held["unweighted"] == 0
    # At 95 %, fewer than 10 of 12 happen twice in a hundred; the seeds are fixed.
    assert min(held["weighted"], held["everyone"], held["everyone's"]) >= 10


@pytest.mark.parametrize("informed", ["alike", "apart"])
def test_the_weighted_permutation_test_keeps_its_level_when_the_labelled_were_chosen_by_quality(informed: str) -> None:
    alike = 0.8 if informed == "alike" else 0.0
    p_values = []
    for seed in range(120):
        rng = _rng(seed, 3)
        group = np.repeat(np.arange(50), 12)
        quality, latent = (
            np.sqrt(alike) * rng.normal(size=50)[group] + np.sqrt(1 - alike) * rng.normal(size=600) for _ in range(2)
        )
        probability = np.where(quality < -0.5, 0.1, 1.0)
        taken = rng.random(600) < probability
        weight = sampling_weights(probability[taken])
        correct, members = latent[taken] > norm.ppf(0.15), statistics.codes(group[taken])
        p_values.append(statistics.separation(quality[taken], correct, members, 99, rng, weight)[1])
    # Of 120 draws at a level of .05, more than 13 have a probability of less than .5 %.
    assert np.sum(np.asarray(p_values) <= 0.05) <= 13


# ---- weights as copies ---------------------------------------------------------------------------------------


@pytest.fixture
def copied() -> dict[str, np.ndarray]:
    """120 photographs with whole weights of 1 to 5, and (as `rows`) each as often as it weighs."""
    rng = _rng(4)
    weight = rng.integers(1, 6, 120)
    correct = rng.random(120) < 0.6
    quality = np.round(rng.normal(1.2 * correct, 1), 1)
    return {
        "quality": quality,
        "other": np.round(quality + rng.normal(size=120), 1),
        "correct": correct,
        "weight": weight.astype(np.float64),
        "rows": np.repeat(np.arange(120), weight),
        "group": np.arange(120) // 3,
    }


def test_a_whole_weight_is_as_many_copies(copied: dict[str, np.ndarray]) -> None:
    quality, other, correct, weight, rows = (copied[name] for name in ("quality", "other", "correct", "weight", "rows"))
    assert statistics.mass_below(quality, weight)[rows] == pytest.approx(rankdata(quality[rows]) - 0.5)
    shares = [0.05, 0.2, 0.5, 0.75]
    plain = np.quantile(quality[rows], shares, method="inverted_cdf")
    assert statistics.quantile(quality, shares, weight).tolist() == plain.tolist()
    found = statistics.separation(quality, correct, np.arange(120), 99, _rng(0), weight)[0]
    assert found == pytest.approx(roc_auc_score(correct[rows], quality[rows]))
    assert description.rank_correlation(quality, other, weight) == pytest.approx(
        spearmanr(quality[rows], other[rows]).statistic
    )
    assert kde._skewness(np.exp(quality), weight) == pytest.approx(skew(np.exp(quality)[rows]))
    place = heldout._places(quality, weight)
    assert place[rows] == pytest.approx(heldout._places(quality[rows], np.ones(len(rows))))
    curves = (
        heldout.risk_coverage(place[None], correct, weight),
        heldout.risk_coverage(place[rows][None], correct[rows]),
    )
    assert curves[0]["aurc"] == pytest.approx(curves[1]["aurc"])
    assert curves[0]["curve"]["accuracy"] == pytest.approx(curves[1]["curve"]["accuracy"])
    for mass in (1, 100, 333, len(rows)):
        assert heldout.accept(quality, mass, weight)[rows] == pytest.approx(heldout.accept(quality[rows], mass))
    low = {"a": quality < 0.3, "b": other < 0.5, "c": quality + other < 1}
    agreed = description.agreement(low, 2, weight)
    again = description.agreement({name: values[rows] for name, values in low.items()}, 2)
    assert [one["kappa"] for one in agreed["pairs"]] == pytest.approx([one["kappa"] for one in again["pairs"]])
    assert agreed["pairs"][0]["agreement"] == pytest.approx(again["pairs"][0]["agreement"])
    assert agreed["pivotal"] == pytest.approx(again["pivotal"])
    assert agreed["unanimous"] == pytest.approx(again["unanimous"])
    assert again["pairs"][0]["kappa"] == pytest.approx(cohen_kappa_score(low["a"][rows], low["b"][rows]))


def test_a_density_of_weights_is_that_of_copies_at_its_bandwidth(copied: dict[str, np.ndarray]) -> None:
    quality, weight, rows = copied["quality"], copied["weight"], copied["rows"]
    for rule in ("scott", "silverman"):
        made = Density(quality, rule, weight=weight)  # type: ignore[arg-type]
        places = np.linspace(-3, 4, 31)
        kernels = norm.pdf(places[:, None], quality[rows], made.bandwidth)
        assert made(places) == pytest.approx(kernels.mean(axis=1), rel=1e-9)
        assert made(places) == pytest.approx(gaussian_kde(quality, rule, weights=weight)(places), rel=1e-9)
        assert made.below(0.4) == pytest.approx(norm.cdf(0.4, quality[rows], made.bandwidth).mean(), rel=1e-9)
        # Copies tell no more than what was copied.
        assert made.bandwidth > Density(quality[rows], rule).bandwidth  # type: ignore[arg-type]
        assert Density(quality, rule, weight=100 * weight).bandwidth == pytest.approx(made.bandwidth)  # type: ignore[arg-type]


def test_the_bandwidth_takes_the_effective_size_for_the_number(copied: dict[str, np.ndarray]) -> None:
    quality, weight = copied["quality"], copied["weight"]
    size = weight.sum() ** 2 / (weight**2).sum()
    assert statistics.effective_size(weight) == pytest.approx(size)
    assert 1 < size < 120
    assert statistics.effective_size(np.full(7, 0.3)) == 7
    mean = np.average(quality, weights=weight)
    variance = np.average((quality - mean) ** 2, weights=weight) * size / (size - 1)
    assert Density(quality, "scott", weight=weight).bandwidth == pytest.approx(np.sqrt(variance) * size**-0.2)


def test_weight_without_a_place_on_the_axis_counts_in_the_mass() -> None:
    quality = np.concatenate([[-np.inf, -np.inf], _rng(0).normal(size=50)])
    weight = np.concatenate([[5.0, 5.0], np.ones(50)])
    assert Density(quality, "scott", weight=weight).below(99) == pytest.approx(50 / 60)
    heavy = np.concatenate([[60.0], np.ones(50)])
    with pytest.raises(kde.DegenerateScoresError, match="55% of the scores are one value"):
        Density(quality[1:], "scott", weight=np.concatenate([[1.0], heavy[:1], np.ones(49)]))


def test_replicates_are_those_of_a_plain_bootstrap_with_weights() -> None:
    rng = _rng(8)
    correct = np.arange(390) >= 90
    quality = np.where(correct, 2.0, 0.0) + rng.normal(size=390)
    group = rng.permutation(np.repeat(np.arange(130), 3))
    weight = np.where(quality < 0.8, 6.0, 1.0) * rng.uniform(0.5, 1.5, 390)
    within = (-0.9, 2.8)
    for weighting in ("conditional", "counts"):
        drawn = kde.bootstrap_crossings(
            quality, correct, group, within=within, rule="scott", weighting=weighting, ends=None, count=12, rng=_rng(7),
            weight=weight,
        )  # fmt: skip
        times = next(kde.replicates(130, 12, _rng(7))).astype(int)
        for replicate in range(12):
            taken = np.repeat(np.arange(390), times[replicate][group])
            sides = [taken[correct[taken] == kind] for kind in (False, True)]
            densities = [Density(quality[side], "scott", weight=weight[side]) for side in sides]
            odds = np.log(weight[sides[0]].sum() / weight[sides[1]].sum()) if weighting == "counts" else 0.0
            chosen = kde.choose(kde.crossings(*densities, *within, log_odds=odds), *densities, log_odds=odds)
            assert chosen is not None
            assert drawn.quality[replicate] == pytest.approx(chosen.quality, abs=2e-3)


def test_with_counts_the_mass_of_either_class_counts() -> None:
    rng = _rng(6)
    correct = np.arange(600) >= 150
    quality = np.where(correct, 2.0, 0.0) + rng.normal(size=600)
    weight = np.where(quality < 0.5, 3.0, 1.0)
    found = cutoffs.fit("q", quality, correct, np.arange(600), "higher", replace(QUICK, weighting="counts"), weight)
    wrong, right = (Density(quality[side], "scott", weight=weight[side]) for side in (~correct, correct))
    assert found.cutoff is not None
    heights = weight[~correct].sum() * wrong(found.cutoff), weight[correct].sum() * right(found.cutoff)
    assert heights[0] == pytest.approx(heights[1], rel=1e-6)


def test_the_share_of_zeros_that_a_log_scale_bears_is_weighted() -> None:
    raw = np.concatenate([np.zeros(5), np.arange(1.0, 96.0)])
    for zero, transform in ((1.0, "log"), (3.0, "identity")):
        weight = np.where(raw == 0, zero, 1.0)
        assert kde.axis_of("lapv", raw, "higher", weight).transform == transform


@pytest.mark.parametrize(
    "settings",
    [
        replace(QUICK, rule="target_accuracy", value=0.8),
        replace(QUICK, rule="min_coverage", value=0.7),
        replace(QUICK, min_wrong=500, fallback_percentile=17.0),
    ],
)
def test_other_rules_cut_weights_as_copies(copied: dict[str, np.ndarray], settings: Settings) -> None:
    def cut(rows: np.ndarray, weight: np.ndarray | None) -> float | None:
        raw = copied["quality"][rows]
        made = cutoffs.fit("q", raw, copied["correct"][rows], copied["group"][rows], "higher", settings, weight)
        if settings.fallback_percentile is None:
            return made.cutoff
        return cutoffs.settle([made], {"q": raw}, settings, weight)[0].cutoff

    every = np.arange(120)
    weighted = cut(every, copied["weight"])
    assert weighted is not None
    assert weighted == cut(copied["rows"], None) == cut(every, copied["weight"] / 100)


def test_an_accuracy_that_few_in_effect_reach_is_luck() -> None:
    quality = np.arange(200.0)
    correct = (quality >= 120) | (quality % 2 == 0)
    settings = replace(QUICK, rule="target_accuracy", value=0.99)
    weight = np.where(quality >= 198, 200.0, 1.0)
    assert cutoffs.fit("q", quality, correct, np.arange(200), "higher", settings).cutoff == pytest.approx(119, abs=1)
    found = cutoffs.fit("q", quality, correct, np.arange(200), "higher", settings, weight)
    assert found.cutoff is None
    assert "no cut-off reaches" in (found.reason or "")


def test_minima_hold_by_number_and_by_effect() -> None:
    rng = _rng(5)
    correct = np.arange(300) >= 60
    quality = np.where(correct, 2.0, 0.0) + rng.normal(size=300)
    group = np.arange(300) // 2

    def fitted(weight: np.ndarray, **options: Any) -> Fit:
        return cutoffs.fit("q", quality, correct, group, "higher", replace(QUICK, **options), weight)

    even = np.ones(300)
    assert fitted(even, min_wrong=60, min_wrong_groups=30).reasons == ()
    assert "60 wrong predictions with a score, 61 are needed" in (fitted(even, min_wrong=61).reason or "")
    uneven = np.where(np.arange(300) < 5, 100.0, 1.0)
    size = (500 + 55) ** 2 / (5 * 100**2 + 55)
    words = f"by their weights the 60 wrong predictions count for {size:.1f}, 20 are needed"
    assert words in (fitted(uneven).reason or "")
    assert words in (fitted(uneven / 7).reason or "")
    # Many photographs, but nearly all of the weight is three subjects'.
    lumped = np.where(group < 3, 20.0, 1.0)
    lone = cutoffs.fit(
        "q", np.tile(quality, 9), np.tile(correct, 9), np.tile(group, 9), "higher", QUICK, np.tile(lumped, 9)
    )
    assert "by their weights the 30 groups of the 540 wrong predictions count for" in (lone.reason or "")
    assert "10 are needed" in (lone.reason or "")


# ---- held out, and beside ------------------------------------------------------------------------------------


def _weighted(simulate: Callable[..., Any], **options: Any) -> Any:
    """Simulated photographs of which the bad ones weigh ten times as much."""
    simulated = simulate(**options)
    return replace(simulated.photographs(), probability=np.where(simulated.scores["brisque"] > 48, 0.1, 1.0))


def test_some_of_the_photographs_keep_their_weights_in_proportion(simulate: Callable[..., Any]) -> None:
    photographs = _weighted(simulate, groups=20)
    assert photographs.weighted
    assert photographs.weight.mean() == pytest.approx(1)
    assert photographs.weight.max() / photographs.weight.min() == pytest.approx(10)
    low = photographs.probability == 0.1
    assert photographs.take(low).weight.tolist() == [1.0] * int(low.sum())
    assert not photographs.take(low).weighted
    assert photographs.take(np.arange(30)).weight * photographs.weight[0] == pytest.approx(
        photographs.weight[:30] * photographs.take(np.arange(30)).weight[0]
    )


def test_held_out_figures_are_those_of_what_the_photographs_stand_for(simulate: Callable[..., Any]) -> None:
    photographs = _weighted(simulate, groups=20, size=5)
    rng = _rng(0)
    passed, rival = rng.random((2, 100)) < 0.6, rng.random((2, 100)) < 0.6
    outcome = Outcome(
        accepted={"gate": passed * 1.0, "random": rival * 1.0},
        place={"gate": rng.random((2, 100)), "random": np.full((2, 100), 0.5)},
        undefined={},
        undecided=0.0,
        decided=np.ones((2, 100), dtype=np.bool_),
    )
    plan = Plan(folds=2, splits=(((), ()), ((), ())))  # type: ignore[arg-type]
    found = heldout.figures(photographs, outcome, plan, replicates=50, seed=0)
    rows = np.repeat(np.arange(100), np.where(photographs.probability < 1, 10, 1))
    correct = np.stack([photographs.correct[rows]] * 2)
    passed, rival = passed[:, rows], rival[:, rows]
    assert found["photographs"] == 100
    assert found["accuracy_all"] == pytest.approx(correct.mean())
    assert found["coverage"]["mean"] == pytest.approx(passed.mean())
    assert found["precision"]["mean"] == pytest.approx((~correct)[~passed].mean())
    assert found["recall"]["mean"] == pytest.approx((~passed)[~correct].mean())
    assert found["accuracy_passed"]["mean"] == pytest.approx(correct[passed].mean())
    assert found["comparison"][1]["difference"]["mean"] == pytest.approx(correct[passed].mean() - correct[rival].mean())
    assert found["comparison"][1]["aurc"] == pytest.approx(1 - correct.mean())


def test_rivals_reject_as_much_weight_in_every_fold_as_the_gate(simulate: Callable[..., Any]) -> None:
    photographs = _weighted(simulate)
    plan = heldout.plan(photographs, 3, 1, 0)
    assert plan is not None
    directions: Any = {"lapv": "higher", "wavs": "higher", "brisque": "lower"}
    settings = replace(QUICK, bootstrap=60)
    outcome = heldout.cross_fit(
        photographs,
        directions,
        settings,
        plan,
        votes_needed=2,
        allow_fallback=False,
        top1=photographs.top1,
        advance=lambda: None,
    )
    assert outcome.undecided == 0
    for _, test in plan.splits[0]:
        mass = {
            name: (accepted[0, test] * photographs.weight[test]).sum() for name, accepted in outcome.accepted.items()
        }
        assert mass == pytest.approx(dict.fromkeys(mass, mass["gate"]))
    plain = heldout.cross_fit(
        replace(photographs, probability=None),
        directions,
        settings,
        plan,
        votes_needed=2,
        allow_fallback=False,
        top1=photographs.top1,
        advance=lambda: None,
    )
    assert not np.array_equal(outcome.place["gate"], plain.place["gate"])


def test_what_learns_learns_from_the_weights(simulate: Callable[..., Any]) -> None:
    directions: Any = {"lapv": "higher", "wavs": "higher", "brisque": "lower"}
    photographs = _weighted(simulate)
    fits = cutoffs.fit_all(photographs, directions, QUICK)
    for name, raw in photographs.scores.items():
        alone = cutoffs.fit(
            name, raw, photographs.correct, photographs.group, directions[name], QUICK, photographs.weight
        )
        assert fits[name].cutoff == alone.cutoff
    weighted = heldout._logistic(photographs, photographs, fits)
    plain = heldout._logistic(replace(photographs, probability=None), photographs, fits)
    assert np.corrcoef(weighted, plain)[0, 1] > 0.9
    assert not np.allclose(weighted, plain)


def test_pass_rates_are_weighted_and_counted(simulate: Callable[..., Any]) -> None:
    photographs = _weighted(simulate)
    passed = photographs.scores["brisque"] < 50
    rates, _ = description.pass_rates(photographs, passed, 0)
    for label in ("a", "b"):
        chosen = photographs.label == label
        expected = np.average(passed[chosen], weights=photographs.weight[chosen])
        assert rates["class"][label] == {"passed": pytest.approx(expected), "n": int(chosen.sum())}


def test_descriptions_take_weights_for_copies(simulate: Callable[..., Any]) -> None:
    photographs = _weighted(simulate, groups=20)
    copies = replace(photographs, probability=None).take(
        np.repeat(np.arange(len(photographs)), np.where(photographs.probability < 1, 10, 1))
    )
    directions: Any = {"lapv": "higher", "wavs": "higher", "brisque": "lower"}
    fits = cutoffs.fit_all(photographs, directions, QUICK)
    ranks = [description.quality_confidence(one, fits, 0)["lapv"] for one in (photographs, copies)]
    for part in (("overall",), ("within_class", "a")):
        found, again = (rank[part[0]] if len(part) == 1 else rank[part[0]][part[1]] for rank in ranks)
        assert found["spearman"] == pytest.approx(again["spearman"])
        assert found["interval"] == pytest.approx(again["interval"])
        assert found["n"] < again["n"]
    tables = [description.method_correlations(one, fits)["spearman"] for one in (photographs, copies)]
    assert np.asarray(tables[0]) == pytest.approx(np.asarray(tables[1]))
    differences = [
        description._difference(one, one.scores["brisque"] < 50, one.label == "a", one.label == "b", 0.95, 0, "x")
        for one in (photographs, copies)
    ]
    assert differences[0] == pytest.approx(differences[1])


def test_the_better_half_is_half_of_what_the_photographs_stand_for(simulate: Callable[..., Any]) -> None:
    photographs = _weighted(simulate)
    directions: Any = {"brisque": "lower"}
    only = replace(photographs, scores={"brisque": photographs.scores["brisque"]}, correct=~photographs.correct)
    fit = cutoffs.fit_all(only, directions, QUICK)["brisque"]
    everyone = np.ones(len(only), dtype=bool)
    listed = description.confident_errors(only, np.zeros(len(only), dtype=np.int64), everyone, [fit])
    quality, weight = -only.scores["brisque"], only.weight
    below = np.asarray([weight[quality <= one].sum() / weight.sum() for one in quality])
    good = ~only.correct & (only.top1 >= 0.8) & (below >= 0.5)
    assert good.sum() > 0
    order = np.lexsort((only.image_id[good].astype(str), only.confidence[good]))[:50]
    assert [one["image_id"] for one in listed] == only.image_id[good][order].tolist()
    assert not np.array_equal(good, ~only.correct & (only.top1 >= 0.8) & (rankdata(quality) >= len(only) / 2))


# ---- the job -------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path, progress: Any) -> Callable[..., Any]:
    """A quick calibration of simulated photographs whose predictions have more columns."""

    def make(simulated: Any, name: str, columns: dict[str, Any], **options: Any) -> calibrate.Result:
        scores, predictions = simulated.write(tmp_path / name)
        pq.write_table(simulated.prediction_table(**columns), predictions)
        quick = {"bootstrap": 60, "permutations": 99, "repeats": 2, "folds": 3, "methods": METHODS}
        config = {"scores": scores, "predictions": predictions, "output": str(tmp_path / name / "out")}
        return calibrate.run(CalibrateConfig(**(config | quick | options)), progress)

    return make


def _written(result: calibrate.Result) -> list[Any]:
    """All that was written, but for the times and the configuration."""
    records = [json.loads((Path(result.output) / name).read_text()) for name in ("gate.json", "calibration.json")]
    kept = [{key: value for key, value in one.items() if key not in ("created", "config")} for one in records]
    return [*kept, pq.read_table(Path(result.output) / "calibration.parquet").to_pylist()]


@pytest.mark.parametrize("options", [{}, {"target_accuracy": 0.9}, {"min_coverage": 0.7, "fallback_percentile": 20}])
def test_equal_probabilities_change_not_a_bit(
    simulate: Callable[..., Any], run: Callable[..., Any], options: dict[str, Any]
) -> None:
    simulated = simulate(groups=30)
    number = len(simulated.image_id)
    plain = run(simulated, "plain", {}, **options)
    equal = run(simulated, "equal", {"sampling_probability": [0.3] * number}, **options)
    assert plain.gate.id == equal.gate.id
    assert _written(plain) == _written(equal)
    assert "sampling" not in plain.gate.content
    assert not {"weight", "sampling_probability"} & set(_written(equal)[2][0])
    assert "weight" not in said.of_run(equal)


def test_a_probability_of_another_scale_changes_nothing_but_its_range(
    simulate: Callable[..., Any], run: Callable[..., Any]
) -> None:
    simulated = simulate(groups=40)
    probability = np.where(simulated.scores["brisque"] > 48, 0.2, 1.0)
    first = run(simulated, "a", {"sampling_probability": probability})
    second = run(simulated, "b", {"chance": probability / 100}, sampling_column="chance")
    for name in METHODS.split(","):
        before, after = (one.gate.content["methods"][name] for one in (first, second))
        assert before["cutoff"] == pytest.approx(after["cutoff"], rel=1e-9)
        assert before["interval"] == pytest.approx(after["interval"], rel=1e-6)
        assert (before["status"], before["p_value"]) == (after["status"], after["p_value"])
    assert first.gate.content["coverage"] == pytest.approx(second.gate.content["coverage"])
    held = [one.record["held_out"] for one in (first, second)]
    assert held[0]["coverage"]["interval"] == pytest.approx(held[1]["coverage"]["interval"])
    assert held[0]["accuracy_passed"]["mean"] == pytest.approx(held[1]["accuracy_passed"]["mean"])
    samplings = [one.gate.content["sampling"] for one in (first, second)]
    assert [one["column"] for one in samplings] == ["sampling_probability", "chance"]
    assert samplings[1]["probability"] == pytest.approx([0.002, 0.01])
    assert samplings[0]["effective"] == pytest.approx(samplings[1]["effective"])


def test_weights_are_recorded_counted_and_said(simulate: Callable[..., Any], run: Callable[..., Any]) -> None:
    simulated = simulate(groups=40)
    probability = np.where(simulated.scores["brisque"] > 48, 0.2, 1.0)
    result = run(simulated, "a", {"sampling_probability": probability})
    content, record, rows = _written(result)
    weight = 1 / probability
    assert gate.load(result.output).id == content["id"]
    assert content["sampling"] == record["sampling"]
    found = content["sampling"]
    assert (found["column"], found["probability"]) == ("sampling_probability", [0.2, 1.0])
    assert found["effective"] == pytest.approx(weight.sum() ** 2 / (weight**2).sum())
    wrong = weight[~simulated.correct]
    assert found["classes"]["wrong"] == {
        "n": int((~simulated.correct).sum()),
        "effective": pytest.approx(wrong.sum() ** 2 / (wrong**2).sum()),
    }
    assert record["rows"] == len(weight)
    assert record["wrong"] == content["methods"]["lapv"]["wrong"] == int((~simulated.correct).sum())
    assert record["accuracy"] == pytest.approx(np.average(simulated.correct, weights=weight))
    passed = np.asarray([row["passed"] for row in rows])
    assert content["coverage"] == pytest.approx(np.average(passed, weights=weight))
    assert [row["sampling_probability"] for row in rows] == probability.tolist()
    assert [row["weight"] for row in rows] == pytest.approx(weight / weight.mean())
    votes = np.asarray([row["votes_low"] for row in rows])
    assert record["agreement"]["unanimous"] == pytest.approx(np.average(np.isin(votes, (0, 3)), weights=weight))
    words = f"1 / sampling_probability (0.2 to 1): together they tell as much as {found['effective']:,.0f}"
    assert words in " ".join(said.of_run(result).split())
    read = artefacts.read([result.output]).calibration
    assert read is not None
    assert words in (sections.sampling(read) or "")
    assert read.gate.sampling == read.record.sampling
    # The decisions of gates of other groups, for what the gate is worth.
    assert result.held_out is not None
    worth = value.value_of(
        result.held_out, result.photographs.correct, result.photographs.weight, result.photographs.group, 60
    )
    held_out = record["held_out"]
    assert worth.wrong_rejected == pytest.approx(held_out["recall"]["mean"])
    everyone = held_out["coverage"]["mean"] * held_out["accuracy_passed"]["mean"] / record["accuracy"]
    assert worth.right_passed == pytest.approx(everyone)


def test_a_fallback_rejects_its_share_of_what_the_photographs_stand_for(
    simulate: Callable[..., Any], run: Callable[..., Any]
) -> None:
    simulated = simulate(groups=40)
    probability = np.where(simulated.scores["brisque"] > 48, 0.2, 1.0)
    result = run(simulated, "a", {"sampling_probability": probability}, min_wrong=10_000, fallback_percentile=20)
    for name, found in result.gate.content["methods"].items():
        assert found["status"] == "fallback"
        raw = simulated.scores[name]
        low = raw > found["cutoff"] if name == "brisque" else raw < found["cutoff"]
        assert np.average(low, weights=1 / probability) == pytest.approx(0.2, abs=0.012)
        assert low.mean() < 0.17


def test_a_line_drawn_from_the_labelled_is_the_line_of_all(
    simulate: Callable[..., Any], run: Callable[..., Any]
) -> None:
    """The whole job: what lies beyond 48 of BRISQUE is labelled one time in five."""
    simulated = simulate(groups=400, size=6)
    probability = np.where(simulated.scores["brisque"] > 48, 0.2, 1.0)
    taken = np.flatnonzero(_rng(1).random(len(probability)) < probability)
    labelled = replace(
        simulated,
        **{
            name: [getattr(simulated, name)[row] for row in taken]
            for name in ("image_id", "group", "label", "predicted")
        },
        correct=simulated.correct[taken],
        confidence=simulated.confidence[taken],
        blurred=simulated.blurred[taken],
        scores={name: values[taken] for name, values in simulated.scores.items()},
    )
    everyone = run(simulated, "all", {}, repeats=1)
    weighted = run(labelled, "weighted", {"sampling_probability": probability[taken]}, repeats=1)
    unweighted = run(labelled, "unweighted", {}, repeats=1)
    truth, found, biased = (one.gate.content["methods"]["brisque"] for one in (everyone, weighted, unweighted))
    assert found["interval"][0] <= truth["cutoff"] <= found["interval"][1]
    assert not biased["interval"][0] <= truth["cutoff"] <= biased["interval"][1]
    # Accuracy by the weighted sample has a standard deviation of .017 here.
    accuracies = [one.record["accuracy"] for one in (everyone, weighted, unweighted)]
    assert accuracies[1] == pytest.approx(accuracies[0], abs=0.05)
    assert accuracies[2] > accuracies[0] + 0.1
    coverages = [one.gate.content["coverage"] for one in (everyone, weighted, unweighted)]
    assert coverages[1] == pytest.approx(coverages[0], abs=0.05)
    assert coverages[2] > coverages[0] + 0.1


# ---- refusals ------------------------------------------------------------------------------------------------


def test_a_column_of_nothing_is_null_everywhere(simulate: Callable[..., Any], run: Callable[..., Any]) -> None:
    simulated = simulate(groups=10)
    empty = pa.nulls(len(simulated.image_id), pa.float64())
    with pytest.raises(calibrate.ConfigurationError, match="rows without a sampling_probability"):
        run(simulated, "a", {"sampling_probability": empty})

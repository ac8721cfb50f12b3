"""Statistics against scipy and scikit-learn, and verdicts on studies whose truth is known."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics
from statsmodels.stats.multitest import multipletests
from study_maker import bare_row, invented_study

from qualitygate.training import claims, results, study_report, study_statistics
from qualitygate.training.claims import Question
from qualitygate.training.sampling import Sampling
from qualitygate.training.study_statistics import (
    Cell,
    Difference,
    Replicates,
    against,
    average,
    detectable,
    difference,
    holm,
    resample,
    rise,
    smallest_rank_p,
    summary,
)
from qualitygate.training.verdicts import (
    CONTRADICTED,
    INCONCLUSIVE,
    NOT_TESTABLE,
    SUPPORTED,
    Judgement,
    Judging,
    Verdict,
    judge,
    judge_part,
    together,
)

# ---- paired differences ------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-0.2, 0.2), min_size=2, max_size=12).filter(lambda values: np.std(values) > 1e-6))
def test_paired_statistics_are_scipys(values: list[float]) -> None:
    found = summary(values)
    tested = stats.ttest_1samp(values, 0)
    assert found["p_value"] == pytest.approx(tested.pvalue)
    assert found["interval"] == pytest.approx(tuple(tested.confidence_interval(0.95)))
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    assert found["interval"][1] - found["mean"] == pytest.approx(half)


def test_what_has_no_spread_has_no_interval() -> None:
    assert "no repetition with both sides" in summary([])["reason"]
    assert "single repetition" in summary([0.1])["reason"]
    same = summary([0.1, 0.1, 0.1])
    assert "interval" not in same
    assert "all 3 differences are the same" in same["reason"]


def test_differences_within_one_test_photograph_have_no_spread() -> None:
    # One photograph of 18, and one of 17: the same step, whose difference is no certainty.
    found = summary([-1 / 18, -1 / 17], grain=1 / 17)
    assert found["mean"] == pytest.approx(-0.0572, abs=1e-4)
    assert "interval" not in found
    assert "less than one test photograph" in found["reason"]
    assert "interval" in summary([-1 / 18, -2 / 17], grain=1 / 18)
    rows = [
        bare_row("resnet18", kind, repetition, accuracy=accuracy, log_loss=accuracy, test_rows=size)
        for repetition, size in ((0, 18), (1, 17))
        for kind, accuracy in (("high", 15 / size), ("all", 16 / size))
    ]
    contrast = against("resnet18", ("high", 0.0), ("all", 0.0))
    assert difference(rows, contrast, "accuracy").interval is None
    assert difference(rows, contrast, "log_loss").interval is not None


def test_differences_pair_repetitions_and_point_towards_the_better_side() -> None:
    rows = [
        bare_row("net", kind, number, accuracy=value, log_loss=1 - value)
        for kind, values in (("high", [0.8, 0.9, 0.7, 0.6]), ("all", [0.7, 0.7, 0.6]))
        for number, value in enumerate(values)
    ]
    contrast = against("net", ("high", 0.0), ("all", 0.0))
    found = difference(rows, contrast, "accuracy")
    assert found.values == pytest.approx((0.1, 0.2, 0.1))
    assert (found.repetitions, found.missing) == ((0, 1, 2), 1)
    assert difference(rows, contrast, "log_loss").values == pytest.approx((0.1, 0.2, 0.1))
    rows[0]["accuracy"] = None
    assert difference(rows, contrast, "accuracy").repetitions == (1, 2)


def test_the_rise_is_that_of_a_fitted_line() -> None:
    levels, values = [0.0, 10.0, 20.0, 30.0], [0.80, 0.83, 0.81, 0.86]
    contrast = rise("net", "varying", levels)
    found = sum(contrast[Cell("net", "varying", level)] * value for level, value in zip(levels, values, strict=True))
    assert found == pytest.approx(30 * stats.linregress(levels, values).slope)
    assert sum(average([contrast, rise("other", "varying", levels)]).values()) == pytest.approx(0)


def test_holm_leaves_what_was_not_tested_alone() -> None:
    p = [0.01, None, 0.04, 0.03]
    found = holm(p)
    assert found[1] is None
    expected = multipletests([0.01, 0.04, 0.03], method="holm")[1]
    assert [value for value in found if value is not None] == pytest.approx(list(expected))
    assert holm([None]) == [None]
    assert holm([0.03]) == [0.03]


def test_five_repetitions_can_not_reach_significance_by_ranks() -> None:
    assert smallest_rank_p(5) == stats.wilcoxon([1, 2, 3, 4, 5], method="exact").pvalue == 0.0625
    # Facts of the design: 40 % power for one standard deviation at n = 5; 80 % needs 1.68.
    assert detectable(5, 1.0) == pytest.approx(1.682, abs=0.001)
    assert detectable(20, 0.02) < detectable(5, 0.02)


# ---- bootstrap over test photographs -----------------------------------------------------------------------


def _tested(count: int, classes: int, seed: int, *, group: Any = None) -> study_statistics.Tested:
    random = np.random.default_rng(seed)
    label = np.arange(count) % classes
    # Rounded, so that scores tie.
    odds = np.exp((random.normal(size=(count, classes)) + np.eye(classes)[label]).round(1))
    return study_statistics.Tested(
        group=np.arange(count) if group is None else group,
        label=label,
        probabilities=odds / odds.sum(1, keepdims=True),
        threshold=0.45 if classes == 2 else None,
    )


@pytest.mark.parametrize("classes", [2, 3])
def test_replicates_are_scikit_learns_weighted_measures(classes: int) -> None:
    tested = _tested(60, classes, 0, group=np.arange(60) // 3)
    found = resample({"run": tested}, count=20, seed=5)
    drawn = np.random.default_rng([5, 20]).multinomial(20, np.full(20, 1 / 20), size=20)
    probabilities, label = tested.probabilities, tested.label
    classified = probabilities[:, 1] >= 0.45 if classes == 2 else probabilities.argmax(1)
    for number, counts in enumerate(drawn):
        weights = counts[tested.group]
        areas = [
            metrics.roc_auc_score(label == name, probabilities[:, name], sample_weight=weights)
            for name in ([1] if classes == 2 else range(classes))
        ]
        expected = {
            "accuracy": metrics.accuracy_score(label, probabilities.argmax(1), sample_weight=weights),
            "auc": np.mean(areas),
            "balanced_accuracy": metrics.balanced_accuracy_score(label, classified, sample_weight=weights),
            "log_loss": metrics.log_loss(label, probabilities, sample_weight=weights),
        }
        for measure, value in expected.items():
            assert found.values["run", measure][number] == pytest.approx(value)


def _interval(tested: dict[str, study_statistics.Tested]) -> tuple[float, float]:
    replicates = resample(tested, count=400, seed=0)
    cells = [{Cell("net", "high"): {"run_id": "high"}, Cell("net", "all"): {"run_id": "all"}}]
    found = replicates.interval(cells, against("net", ("high", 0.0), ("all", 0.0)), "accuracy")
    assert found is not None
    return found


def test_groups_that_go_wrong_together_widen_the_interval() -> None:
    alone = {name: _tested(200, 2, seed) for seed, name in enumerate(("high", "all"))}
    low, high = _interval(alone)
    right = {name: one.probabilities.argmax(1) == one.label for name, one in alone.items()}
    paired = right["high"].astype(float) - right["all"]
    assert (low + high) / 2 == pytest.approx(paired.mean(), abs=0.02)
    assert (high - low) / 2 == pytest.approx(1.96 * paired.std() / np.sqrt(200), rel=0.2)
    # Every photograph ten times: as many groups as before, ten times the photographs, the same knowledge.
    tenfold = {
        name: study_statistics.Tested(
            group=np.repeat(one.group, 10),
            label=np.repeat(one.label, 10),
            probabilities=np.repeat(one.probabilities, 10, axis=0),
            threshold=one.threshold,
        )
        for name, one in alone.items()
    }
    assert _interval(tenfold) == pytest.approx((low, high), abs=1e-9)


def test_a_run_without_predictions_has_no_bootstrap() -> None:
    cells = [{Cell("net", "high"): {"run_id": "x"}, Cell("net", "all"): {"run_id": "y"}}]
    contrast = against("net", ("high", 0.0), ("all", 0.0))
    assert Replicates(values={("x", "accuracy"): np.zeros(5)}).interval(cells, contrast, "accuracy") is None
    lost = Replicates(values={(name, "auc"): np.full(5, np.nan) for name in "xy"})
    assert lost.interval(cells, contrast, "auc") is None


# ---- verdicts on one difference ----------------------------------------------------------------------------


def _found(mean: float, half: float, *, p: float = 0.01, bootstrap: tuple[float, float] | None = None) -> Difference:
    return Difference(
        measure="accuracy",
        test="high",
        repetitions=(0, 1),
        values=(mean, mean),
        missing=0,
        mean=mean,
        sd=half,
        interval=(mean - half, mean + half),
        p_value=p,
        p_holm=p,
        bootstrap=bootstrap,
    )


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (_found(0.04, 0.02), SUPPORTED),
        (_found(0.04, 0.02, bootstrap=(0.01, 0.07)), SUPPORTED),
        # Other test photographs could turn it round.
        (_found(0.04, 0.02, bootstrap=(-0.01, 0.07)), INCONCLUSIVE),
        # By itself, not after Holm.
        (_found(0.04, 0.02, p=0.09), INCONCLUSIVE),
        # Sure, but smaller than a point.
        (_found(0.008, 0.004), INCONCLUSIVE),
        (_found(0.005, 0.004), CONTRADICTED),
        (_found(0.0, 0.005), CONTRADICTED),
        (_found(-0.05, 0.02), CONTRADICTED),
        (_found(-0.05, 0.02, bootstrap=(-0.1, 0.02)), INCONCLUSIVE),
        (_found(0.02, 0.05), INCONCLUSIVE),
    ],
)
def test_better_needs_both_intervals_and_a_size_that_matters(found: Difference, verdict: str) -> None:
    question = Question(subject="net", contrast={}, measure="accuracy")
    assert judge_part(question, found, Judging()).verdict == verdict


@pytest.mark.parametrize(
    ("mean", "half", "verdict"),
    [(0.0, 0.02, SUPPORTED), (0.02, 0.002, SUPPORTED), (0.02, 0.02, INCONCLUSIVE), (0.05, 0.02, CONTRADICTED)],
)
def test_a_loss_of_at_most_one_point_three(mean: float, half: float, verdict: str) -> None:
    question = Question(subject="net", contrast={}, measure="accuracy", rule="at_most", bound=0.013)
    judged = judge_part(question, _found(mean, half), Judging())
    assert judged.verdict == verdict
    assert judged.threshold == pytest.approx(0.023)


@pytest.mark.parametrize(
    ("mean", "half", "verdict"), [(0.02, 0.01, SUPPORTED), (0.02, 0.03, INCONCLUSIVE), (0.1, 0.01, CONTRADICTED)]
)
def test_a_range_holds_the_whole_interval(mean: float, half: float, verdict: str) -> None:
    question = Question(subject="net", contrast={}, measure="accuracy", rule="within", bounds=(0.007, 0.042))
    assert judge_part(question, _found(mean, half), Judging()).verdict == verdict


def test_a_claim_of_all_holds_only_where_all_parts_do() -> None:
    question = Question(subject="net", contrast={}, measure="accuracy")
    supported, worse, open_ = (
        judge_part(question, found, Judging()) for found in (_found(0.04, 0.02), _found(-0.05, 0.02), _found(0, 0.05))
    )
    absent = judge_part(
        question,
        Difference(measure="accuracy", test="high", repetitions=(), values=(), missing=0, reason="nothing"),
        Judging(),
    )
    assert together([supported, supported])[0] == SUPPORTED
    assert together([supported, open_])[0] == INCONCLUSIVE
    assert together([supported, absent])[0] == INCONCLUSIVE
    assert together([supported, open_, worse]) == (
        CONTRADICTED,
        "it is said of all 3: 1 supported, 1 contradicted, 1 inconclusive",
    )
    assert together([absent, absent])[0] == NOT_TESTABLE
    assert together([])[0] == NOT_TESTABLE


# ---- verdicts on studies -----------------------------------------------------------------------------------

NETS = ("alexnet", "vgg19", "resnet18", "resnet34")


def _study(effects: dict[tuple[str, float], float], *, noise: float = 0.002, seed: int = 0) -> pa.Table:
    """Runs whose measures have known means: a base, what a kind and level adds, and a little noise."""
    random = np.random.default_rng(seed)
    rows = []
    for architecture in NETS:
        for (kind, removed), effect in effects.items():
            if kind in ("varying", "random") and architecture != "resnet34":
                continue
            for number in range(5):
                value = 0.8 + effect + noise * random.normal()
                measured = {
                    f"{test}{name}": value
                    for test in ("", "all_", "rejected_")
                    for name in ("accuracy", "balanced_accuracy", "auc")
                }
                # So many that one of them is worth less than the noise.
                measured |= dict.fromkeys(("test_rows", "all_test_rows", "rejected_test_rows"), 5000)
                rows.append(
                    bare_row(architecture, kind, number, removed, **measured, log_loss=1 - value, all_log_loss=0.5)
                )
    return results.to_table(rows)


def _verdicts(judgement: Judgement) -> dict[str, Verdict]:
    return {f"{verdict.topic}-{verdict.measure}": verdict for verdict in judgement.verdicts}


def test_claims_that_are_true_are_supported() -> None:
    effects = {("high", 0.0): 0.02, ("all", 0.0): 0.0, ("balanced", 0.0): 0.0, ("full", 0.0): 0.0}
    effects |= {("varying", level): 0.02 - 0.001 * abs(level - 30) for level in (0.0, 10.0, 20.0, 30.0)}
    effects |= {("varying", level): 0.005 for level in (40.0, 50.0)}
    effects |= {("random", level): -0.02 for level in (10.0, 20.0, 30.0, 40.0, 50.0)}
    found = _verdicts(judge(_study(effects), judging=Judging(smallest_effect=0.004, smallest_log_loss=0.004)))
    for name in ("table2-high", "table3-rise", "table3-best", "control-balance", "control-full", "control-removal"):
        for measure in ("accuracy", "balanced_accuracy", "auc"):
            assert found[f"{name}-{measure}"].verdict == SUPPORTED, name
    assert found["abstract-range-accuracy"].verdict == SUPPORTED
    assert found["abstract-sacrifice-accuracy"].verdict == SUPPORTED
    assert found["table2-high-log_loss"].verdict == SUPPORTED
    # The other way round it is false.
    assert found["control-rejected-accuracy"].verdict == CONTRADICTED
    # All the same number, and no number at all.
    assert found["control-everyday-log_loss"].verdict == NOT_TESTABLE
    assert found["control-rejected-log_loss"].verdict == NOT_TESTABLE
    high = found["table2-high-accuracy"].parts
    assert [part.subject for part in high] == ["AlexNet", "VGG19", "ResNet18", "ResNet34"]
    assert [round(part.paper_p or 0, 2) for part in high] == [0.72, 0.85, 0.37, 0.04]
    assert all(0.015 < (part.difference.mean or 0) < 0.025 for part in high)
    assert "two of four" in found["table2-high-accuracy"].note


def test_claims_that_are_false_are_contradicted() -> None:
    effects = {("high", 0.0): 0.0, ("all", 0.0): 0.03}
    effects |= {("varying", level): -0.001 * level for level in (0.0, 10.0, 20.0, 30.0, 40.0)}
    found = _verdicts(judge(_study(effects)))
    for name in ("table2-high", "table3-rise", "table3-best"):
        assert found[f"{name}-accuracy"].verdict == CONTRADICTED, name
    assert found["abstract-range-accuracy"].verdict == CONTRADICTED
    assert found["abstract-sacrifice-accuracy"].verdict == CONTRADICTED
    assert found["control-rejected-accuracy"].verdict == SUPPORTED
    assert found["control-balance-accuracy"].verdict == NOT_TESTABLE


def test_noise_leaves_claims_open() -> None:
    effects = {("high", 0.0): 0.01, ("all", 0.0): 0.0, ("varying", 0.0): 0.0, ("varying", 30.0): 0.01}
    found = _verdicts(judge(_study(effects, noise=0.2, seed=1)))
    assert {found[f"{name}-accuracy"].verdict for name in ("table2-high", "table3-rise", "abstract-sacrifice")} == {
        INCONCLUSIVE
    }


def test_what_was_not_run_is_not_testable_and_the_caveats_say_what_was() -> None:
    rows = [
        bare_row("resnet18", kind, number, accuracy=0.5, from_scratch=True, epochs=2, test_rows=9, resample="seed")
        for kind in ("high", "all")
        for number in range(2)
    ]
    rows.append({**bare_row("resnet18", "high", 9), **results.failed("killed twice")})
    judgement = judge(results.to_table(rows))
    found = _verdicts(judgement)
    assert found["table3-rise-accuracy"].verdict == NOT_TESTABLE
    assert found["abstract-sacrifice-accuracy"].sentence == "there is no repetition with both sides"
    assert "all 2 differences are the same" in found["table2-high-accuracy"].sentence
    text = " ".join(judgement.caveats)
    for said in ("1 of 5 runs failed", "4 of 4 runs start from random", "2 epochs", "Not run here: AlexNet, VGG19"):
        assert said in text
    assert "9 photographs: one of them is 11.1 points" in text
    assert "--resample seed" in text
    assert "No bootstrap" in text
    assert judge(results.to_table([])).caveats == ("No run has finished.",)


def test_the_caveat_on_five_repetitions_has_the_known_power() -> None:
    effects = {("high", 0.0): 0.0, ("all", 0.0): 0.0}
    text = " ".join(judge(_study(effects)).caveats)
    assert "5 repetitions: a t test finds a true difference of one standard deviation in 40 % of studies" in text
    assert "p = 0.0625" in text


def test_a_study_with_predictions_is_judged_and_written(tmp_path: Path) -> None:
    strengths = {"high": 3.0, "all": 0.2, "varying": 2.0}
    sampling = Sampling(kinds=("high", "all", "varying"), removed=(0, 30), test_fraction=0.3)
    _, study, runs, predictions = invented_study(strengths, repetitions=4, sampling=sampling)
    judgement = judge(runs, predictions, Judging(bootstrap=200))
    found = _verdicts(judgement)
    part = found["table2-high-log_loss"].parts[0]
    assert found["table2-high-log_loss"].verdict == SUPPORTED
    assert part.difference.bootstrap is not None
    assert part.difference.interval is not None
    low, high = part.difference.bootstrap
    assert low < (part.difference.mean or 0) < high
    assert "No bootstrap" not in " ".join(judgement.caveats)
    without_one = predictions.filter(pa.compute.not_equal(predictions["run_id"], study.runs[0].run_id))
    fewer = judge(runs, without_one, Judging(bootstrap=50))
    assert "1 runs have no predictions" in " ".join(fewer.caveats)
    assert _verdicts(fewer)["table2-high-log_loss"].parts[0].difference.bootstrap is None
    again = judge(runs.take(list(reversed(range(runs.num_rows)))), predictions, Judging(bootstrap=200))
    assert _verdicts(again)["table2-high-log_loss"].verdict == SUPPORTED
    written = study_report.write(str(tmp_path), runs, judgement)
    assert [Path(uri).name for uri in written][-1] == "verdicts.json"
    document = json.loads((tmp_path / "verdicts.json").read_text())
    assert document["format"] == "qualitygate-verdicts"
    assert document["judging"]["smallest_effect"] == 0.01
    first = document["verdicts"][0]
    assert (first["topic"], first["parts"][0]["subject"]) == ("table2-high", "ResNet18")
    assert len(first["parts"][0]["difference"]["values"]) == 4
    text = (tmp_path / "verdicts.md").read_text()
    assert "4 repetitions" in text
    assert "Training on high-quality photographs beats" in text
    assert len({line.count(" | ") for line in text.splitlines() if line.startswith("| table2-high")}) == 1
    assert (tmp_path / "table3.md").read_text().count("| ResNet18 | 30 |") == 4
    assert len(study.runs) == 16


def test_every_claim_names_its_source_and_is_asked_by_the_primary_measures() -> None:
    study = claims.Study(
        architectures=NETS, varying=("resnet34",), levels=(0.0, 30.0), kinds=("high", "all", "varying", "random")
    )
    found = claims.claims(study)
    assert len({claim.key for claim in found}) == len(found)
    assert all(claim.source for claim in found)
    topics = {claim.topic for claim in found if claim.measure == "auc"}
    assert topics == {
        *("table2-high", "table3-rise", "table3-best"),
        *("control-balance", "control-removal", "control-full", "control-everyday", "control-rejected"),
    }

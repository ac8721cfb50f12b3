"""Measures against scikit-learn, run rows, and Tables 2 and 3 beside the paper's."""

import csv
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics
from study_maker import bare_row, invented_study, row_of

from qualitygate.errors import ConfigurationError
from qualitygate.training import paper, results, study_report
from qualitygate.training.measures import (
    NotProbabilities,
    choose_threshold,
    expected_calibration_error,
    measure,
    predicted,
)
from qualitygate.training.sampling import Sampling

TWO, THREE = ("a", "b"), ("a", "b", "c")


def _invented(classes: int, count: int = 90, seed: int = 0) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    odds = np.exp(random.normal(size=(count, classes)) + 1.5 * np.eye(classes)[labels])
    return odds / odds.sum(1, keepdims=True), labels


# ---- measures ----------------------------------------------------------------------------------------------


def test_measures_of_two_classes_are_scikit_learns() -> None:
    probabilities, labels = _invented(2)
    found = measure(probabilities, labels, TWO, 0.4)
    score = probabilities[:, 1]
    assert found.accuracy == metrics.accuracy_score(labels, score > 0.5)
    assert found.auc == metrics.roc_auc_score(labels, score)
    assert found.balanced_accuracy == metrics.balanced_accuracy_score(labels, score >= 0.4)
    assert found.log_loss == pytest.approx(metrics.log_loss(labels, score))
    assert found.brier == pytest.approx(np.mean((score - labels) ** 2))
    assert found.notes == {}


def test_measures_of_three_classes_are_means_of_one_against_the_rest() -> None:
    probabilities, labels = _invented(3)
    found = measure(probabilities, labels, THREE, None)
    each = [metrics.roc_auc_score(labels == name, probabilities[:, name]) for name in range(3)]
    assert found.auc == pytest.approx(np.mean(each))
    assert found.balanced_accuracy == metrics.balanced_accuracy_score(labels, probabilities.argmax(1))
    assert found.brier == pytest.approx(np.mean(np.sum((probabilities - np.eye(3)[labels]) ** 2, axis=1)) / 2)


def test_a_missing_class_gives_null_and_the_reason() -> None:
    probabilities, labels = _invented(3)
    found = measure(probabilities[labels < 2], labels[labels < 2], THREE, None)
    assert (found.auc, found.balanced_accuracy) == (None, None)
    assert found.notes["auc"] == "the test set has no photograph of 'c'"
    assert found.accuracy is not None
    assert found.log_loss is not None
    empty = measure(np.zeros((0, 2)), np.zeros(0, dtype=np.int64), TWO, 0.5)
    assert empty.rows == 0
    assert empty.accuracy is None
    assert empty.notes["accuracy"] == "the test set is empty"


def test_certain_and_wrong_costs_a_finite_log_loss() -> None:
    found = measure(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([1, 0]), TWO, 0.5)
    assert found.log_loss == pytest.approx(-math.log(2.220446e-16) / 2, rel=1e-6)


@pytest.mark.parametrize(
    "probabilities", [[[0.5, 0.6]], [[math.nan, 0.5]], [[1.5, -0.5]], [[0.2, 0.3, 0.5]], [[0.5, 0.5], [0.5, 0.5]]]
)
def test_what_is_no_probability_is_refused(probabilities: list[list[float]]) -> None:
    with pytest.raises(NotProbabilities):
        measure(np.array(probabilities), np.array([0]), TWO, 0.5)


def test_calibration_error_of_known_tables() -> None:
    # Sure and right: 0. Top probability .8 and half of them right: .3.
    assert expected_calibration_error(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 1])) == 0
    known = np.array([[0.8, 0.2]] * 10)
    assert expected_calibration_error(known, np.array([0, 1] * 5)) == pytest.approx(0.3)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10), st.booleans()), min_size=2, max_size=30))
def test_the_threshold_is_as_good_as_any(scored: list[tuple[int, bool]]) -> None:
    score = np.array([value / 10 for value, _ in scored])
    labels = np.array([int(label) for _, label in scored])
    probabilities = np.stack([1 - score, score], axis=1)
    threshold, reason = choose_threshold(probabilities, labels)
    if len(set(labels)) < 2:
        assert threshold is None
        assert reason == "the evaluation set lacks a class"
        return
    assert threshold is not None
    reached = metrics.balanced_accuracy_score(labels, predicted(probabilities, threshold))
    for other in np.arange(-0.05, 1.1, 0.1):
        assert reached >= metrics.balanced_accuracy_score(labels, predicted(probabilities, float(other))) - 1e-12


def test_the_threshold_stands_in_the_middle_and_nearest_to_a_half() -> None:
    score = np.array([0.1, 0.2, 0.8, 0.9])
    assert choose_threshold(np.stack([1 - score, score], axis=1), np.array([0, 0, 1, 1]))[0] == pytest.approx(0.5)
    assert choose_threshold(np.full((4, 3), 1 / 3), np.array([0, 1, 2, 0])) == (
        None,
        "several classes have no single threshold",
    )


# ---- run rows ----------------------------------------------------------------------------------------------


def test_a_study_leaves_a_row_for_each_run_and_each_test_photograph(tmp_path: Path) -> None:
    strengths = {"high": 2.0, "all": 1.0}
    pool, study, runs, predictions = invented_study(strengths, repetitions=2, sampling=Sampling(kinds=("high", "all")))
    uri = str(tmp_path / "runs.parquet")
    results.write_runs(uri, runs)
    rows = results.finished(results.read_runs(uri))
    assert len(rows) == len(study.runs) == 4
    run = study.runs[0]
    row = next(row for row in rows if row["run_id"] == run.run_id)
    assert row["train_rows"] == len(run.subset.train.rows)
    assert row["all_test_rows"] == row["test_rows"] + row["rejected_test_rows"] == len(run.tests["all"].rows)
    own = predictions.filter(pa.compute.equal(predictions["run_id"], run.run_id)).to_pylist()
    assert [one["image_id"] for one in own] == pool.image_id[run.tests["all"].rows].tolist()
    high = [one for one in own if one["passed"]]
    assert row["accuracy"] == pytest.approx(np.mean([one["predicted"] == one["label"] for one in high]))
    scored = [(one["label"] == "maker1", one["probabilities"][1]) for one in own if not one["passed"]]
    assert row["rejected_auc"] == metrics.roc_auc_score(*zip(*scored, strict=True))
    assert all(one["confidence"] == one["probabilities"][int(one["label"][-1])] for one in own)
    at = [one["predicted_at_threshold"] == f"maker{int(one['probabilities'][1] >= row['threshold'])}" for one in own]
    assert all(at)


def test_numbers_that_are_none_become_null_and_unknown_columns_are_refused() -> None:
    table = results.to_table(
        [bare_row("a", "high", 0, accuracy=math.nan, train_loss=[0.5, math.inf], versions={"torch": "2"})]
    )
    assert table.schema == results.RUNS
    row = table.to_pylist()[0]
    assert row["accuracy"] is None
    assert row["train_loss"] == [0.5, None]
    assert row["versions"] == [("torch", "2")]
    with pytest.raises(ValueError, match="unknown columns: acuracy"):
        results.to_table([bare_row("a", "high", 0, acuracy=1.0)])


def test_failed_runs_are_kept_as_rows_and_left_out_of_tables() -> None:
    lost = {**bare_row("resnet18", "high", 1), **results.failed(RuntimeError("CUDA out of\nmemory"))}
    table = results.to_table([bare_row("resnet18", "high", 0, accuracy=0.5), lost])
    assert table["error"].to_pylist() == [None, "RuntimeError: CUDA out of memory"]
    assert len(results.finished(table)) == 1
    with pytest.raises(ConfigurationError, match=r"1 runs are there twice \(.*resnet18-high-0-0.*own --output"):
        results.finished(pa.concat_tables([table, table]))


def test_absent_and_foreign_tables_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "runs.parquet"
    with pytest.raises(ConfigurationError, match="run 'qualitygate study' first"):
        results.read_runs(str(path))
    path.write_bytes(b"nothing")
    with pytest.raises(ConfigurationError, match="can't be read"):
        results.read_runs(str(path))
    results.write_runs(str(path), pa.table({"run_id": ["x"]}))
    with pytest.raises(ConfigurationError, match="lacks 'status', 'error'"):
        results.read_runs(str(path))


def test_spread_is_the_sample_standard_deviation() -> None:
    mean, sd = results.spread([1.0, None, 2.0, 4.0])
    assert (mean, sd) == (pytest.approx(7 / 3), pytest.approx(np.std([1, 2, 4], ddof=1)))
    assert results.spread([1.0]) == (1.0, None)
    assert results.spread([None]) == (None, None)


# ---- the paper's tables ------------------------------------------------------------------------------------


def test_the_papers_numbers_give_the_known_p_values() -> None:
    accuracy = {
        name: paper.unpaired(paper.TABLE2[name, "high"].accuracy, paper.TABLE2[name, "all"].accuracy)
        for name in paper.ARCHITECTURES
    }
    assert {name: round(p, 2) for name, (_, p) in accuracy.items()} == {
        "alexnet": 0.72,
        "vgg19": 0.85,
        "resnet18": 0.37,
        "resnet34": 0.04,
    }
    differences = [round(difference, 1) for difference, _ in accuracy.values()]
    assert (min(differences), max(differences)) == (0.7, 4.2)
    # Two of four AUCs favour all-quality training, and the abstract's loss is Table 2 minus Table 3.
    high, everything = ([paper.TABLE2[name, kind].auc.mean for name in paper.ARCHITECTURES] for kind in ("high", "all"))
    assert sum(a < b for a, b in zip(high, everything, strict=True)) == 2
    lost = paper.TABLE2["resnet34", "high"].accuracy.mean - paper.TABLE3[30.0].accuracy.mean
    assert lost == pytest.approx(paper.SACRIFICE)
    assert max(paper.TABLE3, key=lambda level: paper.TABLE3[level].accuracy.mean) == paper.BEST_LEVEL


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_table_2_stands_beside_the_papers() -> None:
    rows = [
        bare_row("resnet34", kind, number, accuracy=base + 0.01 * number, auc=0.9, epochs=40)
        for kind, base in (("high", 0.80), ("all", 0.70), ("full", 0.95))
        for number in range(3)
    ]
    text = study_report.table2_markdown(rows, failed=2)
    lines = [_cells(line) for line in text.splitlines() if line.startswith("| ResNet34")]
    assert lines[0][:6] == ["ResNet34", "High-quality", "**81.0 ± 1.0**", "**90.0 ± 0.0**", "85.4 ± 3.1", "94.8 ± 1.2"]
    # The control is higher, but no competitor; the paper has none.
    assert lines[1][2:6] == ["71.0 ± 1.0", "**90.0 ± 0.0**", "81.2 ± 2.1", "93.2 ± 1.3"]
    assert lines[2][1:6] == ["control: all, unfiltered", "96.0 ± 1.0", "90.0 ± 0.0", "–", "–"]
    assert lines[0][-1] == "3"
    assert "2 runs failed" in text
    assert paper.CITATION in text
    assert "FROM SCRATCH" not in text
    scratch = study_report.table2_markdown([{**rows[0], "from_scratch": True}])
    assert "FROM SCRATCH: 1 of 1 runs" in scratch
    assert "No finished run" in study_report.table3_markdown(rows)


def test_every_line_of_a_markdown_table_has_as_many_cells() -> None:
    rows = [
        bare_row("resnet34", kind, number, removed=removed, accuracy=0.8, auc=None)
        for kind, removed in (("varying", 0.0), ("varying", 30.0), ("random", 30.0), ("high", 0.0))
        for number in range(2)
    ]
    for text in (study_report.table2_markdown(rows), study_report.table3_markdown(rows)):
        tables = [block for block in text.split("\n\n") if block.startswith("|")]
        assert len(tables) == 4
        for table in tables:
            assert len({len(_cells(line)) for line in table.splitlines()}) == 1


def test_table_3_and_its_csv_hold_the_papers_levels() -> None:
    rows = [
        bare_row("resnet34", "varying", number, removed=removed, accuracy=0.8, auc=0.9, rejected_log_loss=0.7)
        for removed in (0.0, 30.0, 35.0)
        for number in range(2)
    ]
    lines = [_cells(line) for line in study_report.table3_markdown(rows).splitlines() if line.startswith("| ResNet34")]
    assert [line[1] for line in lines[:3]] == ["0", "30", "35"]
    assert [line[5] for line in lines[:3]] == ["81.5 ± 4.4", "84.1 ± 3.5", "–"]
    found = list(csv.DictReader(io.StringIO(study_report.table_csv(rows, "table3"))))
    assert len(found) == 3 * 3 * 6
    accuracy = [line for line in found if (line["test"], line["measure"]) == ("high", "accuracy")]
    assert [line["paper_mean"] for line in accuracy] == ["0.815", "0.841", ""]
    assert accuracy[0]["mean"] == "0.8"
    assert accuracy[0]["runs"] == "2"
    rejected = next(line for line in found if (line["test"], line["measure"]) == ("rejected", "log_loss"))
    assert (rejected["mean"], rejected["sd"], rejected["paper_mean"]) == ("0.7", "0", "")


def test_rows_of_a_plan_fit_the_schema() -> None:
    _, study, runs, _ = invented_study({"high": 2.0}, repetitions=1, sampling=Sampling(kinds=("high",)))
    table = results.to_table([row_of(study.runs[0], accuracy=0.5)])
    assert table.num_rows == runs.num_rows == 1
    assert table["from_scratch"].to_pylist() == [True]

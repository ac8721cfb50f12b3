"""Joining scores and predictions: what is accepted, and one message for all that is wrong."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from qualitygate.calibration import inputs
from qualitygate.config import CalibrateConfig
from qualitygate.errors import ConfigurationError
from qualitygate.tables import scores as tables

IDS = [f"p{number:02}" for number in range(20)]


@pytest.fixture
def files(tmp_path: Path) -> Callable[..., CalibrateConfig]:
    """Twenty photographs as Parquet files, columns changed as asked; a configuration that reads them."""

    def make(scores: Any = None, predictions: Any = None, suffix: str = "parquet", **options: Any) -> CalibrateConfig:
        rng = np.random.default_rng(0)
        of_scores = {"image_id": IDS, "lapv": rng.lognormal(size=20), "wavs": rng.lognormal(size=20)}
        of_predictions = {
            "image_id": IDS,
            "correct": [number % 4 != 0 for number in range(20)],
            "confidence": np.linspace(0.05, 0.95, 20),
            "group": [f"g{number // 2}" for number in range(20)],
        }
        paths = []
        for name, columns, change in (("s", of_scores, scores), ("p", of_predictions, predictions)):
            table = change if isinstance(change, pa.Table) else pa.table(columns | (change or {}))
            path = tmp_path / f"{name}.{suffix}"
            if suffix == "csv":
                pyarrow.csv.write_csv(table, path)
            else:
                pq.write_table(table, path)
            paths.append(str(path))
        return CalibrateConfig(
            **{"scores": paths[0], "predictions": paths[1], "output": str(tmp_path / "out"), "methods": "lapv,wavs"}
            | options
        )

    return make


def _refused(config: CalibrateConfig, *words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        inputs.read(config)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    assert not Path(config.output).exists()


# ---- what is accepted ----------------------------------------------------------------------------------------


def test_rows_are_joined_in_order_of_their_ids(files: Callable[..., CalibrateConfig]) -> None:
    shuffled = np.random.default_rng(1).permutation(20)
    config = files()
    for path in (config.scores, config.predictions):
        pq.write_table(pq.read_table(path).take(shuffled), path)
    found = inputs.read(config)
    photographs = found.photographs
    assert photographs.image_id.tolist() == IDS
    assert photographs.correct.tolist() == [number % 4 != 0 for number in range(20)]
    assert photographs.groups == 10
    assert photographs.group.tolist() == [number // 2 for number in range(20)]
    assert found.methods == ("lapv", "wavs")
    assert found.directions == {"lapv": "higher", "wavs": "higher"}
    assert found.fingerprints == {"lapv": "external", "wavs": "external"}
    assert found.classifier == "external"
    assert found.dropped == {}
    assert found.warnings == ()
    assert np.isnan(photographs.top1).all()


@pytest.mark.parametrize("words", [("true", "false"), ("True", "FALSE"), ("1", "0"), ("1.0", "0.0")])
def test_csv_takes_truth_in_its_usual_spellings(files: Callable[..., CalibrateConfig], words: tuple[str, str]) -> None:
    correct = [words[0] if number % 4 else words[1] for number in range(20)]
    found = inputs.read(files(predictions={"correct": correct}, suffix="csv"))
    assert found.photographs.correct.tolist() == [number % 4 != 0 for number in range(20)]
    assert found.photographs.scores["lapv"].dtype == np.float64


def test_ids_stay_what_they_are_in_csv(files: Callable[..., CalibrateConfig]) -> None:
    ids = {"image_id": [f"{number:03}" for number in range(20)]}
    found = inputs.read(files(scores=ids, predictions=ids, suffix="csv"))
    assert found.photographs.image_id[7] == "007"


def test_numbers_as_ids_meet_the_same_as_text(files: Callable[..., CalibrateConfig]) -> None:
    config = files(scores={"image_id": list(range(20))}, predictions={"image_id": [str(n) for n in range(20)]})
    assert len(inputs.read(config).photographs) == 20


def test_a_folder_stands_for_the_table_in_it(files: Callable[..., CalibrateConfig], tmp_path: Path) -> None:
    config = files()
    for name, path in (("scores", config.scores), ("predictions", config.predictions)):
        folder = tmp_path / f"{name}-folder"
        folder.mkdir()
        pq.write_table(
            pq.read_table(path), folder / ("predictions.parquet" if name == "predictions" else "any.parquet")
        )
    folders = {"scores": str(tmp_path / "scores-folder"), "predictions": str(tmp_path / "predictions-folder/")}
    assert len(inputs.read(config.model_copy(update=folders)).photographs) == 20
    _refused(config.model_copy(update={"scores": str(tmp_path)}), "holds 2 tables", "name the file")


def test_a_score_that_failed_is_left_out_of_its_methods_fit_alone(files: Callable[..., CalibrateConfig]) -> None:
    lapv = [None, None, *range(1, 19)]
    found = inputs.read(files(scores={"lapv": pa.array(lapv, pa.float64())}))
    assert len(found.photographs) == 20
    assert np.isnan(found.photographs.scores["lapv"]).tolist() == [True, True] + [False] * 18
    assert found.dropped == {"no_score_lapv": 2}


def test_photographs_without_a_prediction_are_counted_and_named(files: Callable[..., CalibrateConfig]) -> None:
    predictions = {"image_id": IDS[:12], "correct": [True] * 9 + [False] * 3, "confidence": [0.5] * 12}
    found = inputs.read(files(predictions=pa.table(predictions)))
    assert len(found.photographs) == 12
    assert found.dropped == {"without_prediction": 8}
    assert "8 of 20 scored photographs have no prediction" in found.warnings[0]
    assert "used once they are among the predictions" in found.warnings[0]
    assert "run 'qualitygate predict'" not in found.warnings[0]


def test_predictions_that_failed_are_dropped_and_counted(files: Callable[..., CalibrateConfig]) -> None:
    status = ["error"] * 2 + ["ok"] * 18
    confidence = pa.array([None, None] + [0.5] * 18, pa.float64())
    found = inputs.read(files(predictions={"status": status, "confidence": confidence}))
    assert len(found.photographs) == 18
    assert found.dropped == {"prediction_failed": 2}


def test_without_groups_each_photograph_is_its_own(files: Callable[..., CalibrateConfig]) -> None:
    nothing = inputs.read(files(predictions={"group": pa.nulls(20, pa.string())}))
    assert nothing.photographs.groups == 20
    assert "each photograph counts as one of its own" in nothing.warnings[0]
    # A group may bear a photograph's name without being it.
    some = inputs.read(files(predictions={"group": [None, "p00", "p00"] + [None] * 17}))
    assert some.photographs.groups == 19
    assert "18 photographs have no group" in some.warnings[0]


def test_a_constant_label_is_fine(files: Callable[..., CalibrateConfig]) -> None:
    found = inputs.read(files(predictions={"label": ["only"] * 20}))
    assert set(found.photographs.label) == {"only"}


def test_two_classes_are_told_from_the_record_or_from_the_labels(
    files: Callable[..., CalibrateConfig], tmp_path: Path
) -> None:
    correct = np.linspace(0.05, 0.95, 20) >= 0.5
    label = np.where(np.arange(20) % 2 == 0, "a", "b")
    predicted = np.where(correct, label, np.where(label == "a", "b", "a"))
    two = {"label": label.tolist(), "predicted": predicted.tolist(), "correct": correct}
    assert inputs.read(files(predictions=two)).two_classes
    assert not inputs.read(files(predictions=two | {"correct": ~correct})).two_classes
    record = {"format": "qualitygate-prediction", "classes": ["a", "b", "c"], "trained": False}
    (tmp_path / "prediction.json").write_text(json.dumps(record))
    found = inputs.read(files(predictions=two))
    assert not found.two_classes
    assert any("never trained" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    ("columns", "stratum", "expected"),
    [
        ({"make": ["A"] * 10 + ["B"] * 10, "model": ["x"] * 20}, None, ("camera", {"A x", "B x"})),
        (
            {"make": ["A"] * 20, "model": ["x"] * 20, "width": [10] * 20, "height": [5, 6] * 10},
            None,
            ("resolution", {"10x5", "10x6"}),
        ),
        ({"make": ["A"] * 20, "model": ["x"] * 20, "width": [10] * 20, "height": [5] * 20}, None, (None, {None})),
        ({"line": ["1", "2"] * 10}, "line", ("line", {"1", "2"})),
        ({}, "group", ("group", {f"g{number}" for number in range(10)})),
    ],
)
def test_what_divides_the_photographs(
    files: Callable[..., CalibrateConfig], columns: dict[str, Any], stratum: str | None, expected: tuple[Any, set[Any]]
) -> None:
    found = inputs.read(files(scores=columns, stratum=stratum))
    assert (found.stratum, set(found.photographs.stratum)) == expected


def test_directions_are_the_catalogues_or_the_users(files: Callable[..., CalibrateConfig]) -> None:
    own = {"mine": np.arange(20.0), "brisque": np.arange(20.0)}
    found = inputs.read(files(scores=own, methods="mine,brisque", directions={"mine": "lower"}))
    assert found.directions == {"mine": "lower", "brisque": "lower"}
    _refused(files(scores=own, methods="mine"), "'mine' is no metric of the catalogue", "--directions mine=higher")
    _refused(files(directions={"lapm": "higher"}), "'lapm'", "none of the methods lapv, wavs")
    assert inputs.read(files(directions={"lapv": "lower"})).directions["lapv"] == "lower"
    fingerprint = {"lapv_fingerprint": ["f"] * 20}
    _refused(files(scores=fingerprint, directions={"lapv": "lower"}), "of lapv higher scores are better")


# ---- what is refused -----------------------------------------------------------------------------------------

NUMBERS = list(np.linspace(0.05, 0.95, 20))


@pytest.mark.parametrize(
    ("predictions", "words"),
    [
        ({"image_id": ["x", "y", *IDS[2:]]}, ["2 of 20 rows with an id that the scores lack ('x', 'y')"]),
        ({"image_id": ["p01", *IDS[1:]]}, ["stands more than once: 'p01' (2 times)"]),
        ({"image_id": [None, *IDS[1:]]}, ["1 of 20 rows without an image_id"]),
        ({"correct": [None, None] + [True, False] * 9}, ["2 of 20 rows that are unlabelled", "'p00', 'p01'"]),
        ({"label": [None] + ["a"] * 19}, ["1 of 20 rows that are unlabelled"]),
        ({"correct": ["perhaps"] + ["true", "false"] * 9 + ["true"]}, ["1 of 20 rows whose `correct` is neither"]),
        ({"confidence": [None, *NUMBERS[1:]]}, ["1 of 20 rows without a confidence"]),
        ({"confidence": [np.nan, *NUMBERS[1:]]}, ["1 of 20 rows whose confidence is no number"]),
        ({"confidence": [1.5, -0.1, *NUMBERS[2:]]}, ["2 of 20 rows whose confidence lies outside [0, 1]"]),
        ({"top1": [1.5, *NUMBERS[1:]]}, ["1 of 20 rows whose top1 lies outside [0, 1]"]),
        ({"correct": [True] * 20}, ["all 20 predictions are right"]),
        ({"correct": [False] * 20}, ["all 20 predictions are wrong"]),
        ({"status": ["error"] * 20}, ["not one prediction succeeded"]),
        ({"model_fingerprint": ["m1"] * 10 + ["m2"] * 10}, ["2 classifiers, m1 and m2"]),
        ({"trained_on": [True] * 3 + [False] * 17}, ["trained on 3 of 20", "4 with the others", "--drop-trained"]),
        (
            {"image_id": ["x", *IDS[1:]], "confidence": [0.5, 7.0, *NUMBERS[2:]]},
            ["1 of 20 rows whose confidence lies outside", "1 of 20 rows with an id that the scores lack"],
        ),
    ],
)
@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_bad_predictions_are_named_with_counts_and_remedy(
    files: Callable[..., CalibrateConfig], predictions: dict[str, Any], words: list[str], suffix: str
) -> None:
    _refused(files(predictions=predictions, suffix=suffix), "--predictions", "; ", *words)


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ({"image_id": ["p01", *IDS[1:]]}, ["stands more than once: 'p01' (2 times)"]),
        ({"lapv": [np.nan, np.inf, *range(18)]}, ["lapv is NaN or infinite in 2 rows", "(null)"]),
        ({"lapv": ["sharp"] + ["1"] * 19}, ["1 scores of lapv aren't numbers"]),
        ({"lapv": pa.nulls(20, pa.float64())}, ["no single score of lapv"]),
        (
            {"lapv_fingerprint": ["aaa"] * 12 + ["bbb"] * 8},
            ["lapv under 2 fingerprints, aaa (12 rows) and bbb (8 rows)", "--backfill"],
        ),
        ({"lapv_fingerprint": ["untrained-abc"] * 20}, ["scores of lapv come from untrained", "--allow-untrained"]),
    ],
)
def test_bad_scores_are_named_with_counts_and_remedy(
    files: Callable[..., CalibrateConfig], scores: dict[str, Any], words: list[str]
) -> None:
    _refused(files(scores=scores), "--scores", *words)


def test_absent_columns_and_files_are_named(files: Callable[..., CalibrateConfig], tmp_path: Path) -> None:
    _refused(files(predictions=pa.table({"image_id": IDS})), "lacks the columns correct, confidence", "it has image_id")
    _refused(files(scores=pa.table({"id": IDS})), "lacks the column image_id")
    _refused(files(methods="lapv,niqe"), "niqe")
    _refused(files(stratum="camra"), "--stratum 'camra'", "lapv", "confidence")
    config = files()
    _refused(config.model_copy(update={"scores": str(tmp_path / "nothing")}), "does not exist")
    empty = tmp_path / "empty"
    empty.mkdir()
    _refused(config.model_copy(update={"scores": str(empty)}), "qualitygate score")
    _refused(config.model_copy(update={"predictions": str(empty)}), "qualitygate predict")
    (tmp_path / "broken.parquet").write_bytes(b"no parquet")
    _refused(config.model_copy(update={"predictions": str(tmp_path / "broken.parquet")}), "can't be read as a table")
    _refused(config.model_copy(update={"scores": "ftp://host/x"}), "--scores", "ftp")
    _refused(config.model_copy(update={"scores": ""}), "--scores is empty")


def test_untrained_scores_need_a_word_and_stay_marked(files: Callable[..., CalibrateConfig]) -> None:
    fingerprint = {"wavs_fingerprint": ["untrained-abc"] * 20}
    found = inputs.read(files(scores=fingerprint, allow_untrained=True))
    assert found.untrained == ("wavs",)
    assert found.fingerprints == {"lapv": "external", "wavs": "untrained-abc"}


def test_training_photographs_and_their_groups_are_dropped_on_request(files: Callable[..., CalibrateConfig]) -> None:
    trained = {"trained_on": [True] + [False] * 19}
    found = inputs.read(files(predictions=trained, drop_trained=True))
    assert found.photographs.image_id.tolist() == IDS[2:]
    assert found.dropped == {"trained_on": 2}
    assert "2 photographs are left out" in found.warnings[0]
    _refused(files(predictions={"trained_on": [True] * 20}, drop_trained=True), "trained on all 20 photographs")


# ---- our own tables ------------------------------------------------------------------------------------------


def _score_table(folder: Path, rows: list[dict[str, Any]], *, lazy: bool = False) -> str:
    writer = tables.Writer(str(folder), ["lapv", "wavs"], "run", lazy=lazy)
    common = {"uri": "/u", "status": "ok", "attempts": 1, "run_id": "r", "scored_at": datetime(2026, 1, 1, tzinfo=UTC)}
    filled = []
    for row in rows:
        methods = {}
        for name in ("lapv", "wavs"):
            methods |= {name: 1.0, f"{name}_state": "ok", f"{name}_fingerprint": "f1"}
        filled.append(common | methods | row)
    table = pa.Table.from_pylist(filled, schema=writer.schema)
    writer.commit(table, table.slice(0, 0))
    return str(folder)


def test_a_score_table_of_ours_carries_fingerprints(files: Callable[..., CalibrateConfig], tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    rows = [{"image_id": name, "lapv": rng.lognormal(), "wavs": rng.lognormal()} for name in IDS]
    rows[3] |= {"lapv": None, "lapv_state": "failed:flat", "lapv_fingerprint": None}
    folder = _score_table(tmp_path / "scored", rows)
    config = files()
    for location in (folder, f"{folder}/scores"):
        found = inputs.read(config.model_copy(update={"scores": location}))
        assert found.fingerprints == {"lapv": "f1", "wavs": "f1"}
        assert found.photographs.uri.tolist() == ["/u"] * 20
        assert found.dropped == {"no_score_lapv": 1}


def test_of_a_lazy_run_only_the_random_sample_calibrates(files: Callable[..., CalibrateConfig], tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"image_id": name, "lapv": 1.0 + n, "lazy_gate": "g"} for n, name in enumerate(IDS)]
    for number, row in enumerate(rows):
        row["lazy_sample"] = number >= 8
        if number < 5:
            row |= {"wavs": None, "wavs_state": "skipped_lazy"}
    # Photographs 5, 6 and 7 have all scores because their votes were open: a choice by quality.
    found = inputs.read(files().model_copy(update={"scores": _score_table(tmp_path / "lazy", rows, lazy=True)}))
    assert found.photographs.image_id.tolist() == IDS[8:]
    assert found.dropped == {"scored_lazily": 8}
    assert "random sample" in found.warnings[0]
    for row in rows:
        row["lazy_sample"] = False
    config = files().model_copy(update={"scores": _score_table(tmp_path / "all", rows, lazy=True)})
    _refused(config, "all 20 photographs", "without --lazy")


# ---- sampling probabilities ----------------------------------------------------------------------------------


def test_the_sampling_probability_is_read_where_there_is_one(files: Callable[..., CalibrateConfig]) -> None:
    chances = [1.0] * 15 + [0.25] * 5
    plain = inputs.read(files())
    assert (plain.sampling, plain.photographs.probability) == (None, None)
    assert plain.photographs.weight.tolist() == [1.0] * 20
    for name, options in (("sampling_probability", {}), ("chance", {"sampling_column": "chance"})):
        for suffix in ("parquet", "csv"):
            found = inputs.read(files(predictions={name: chances}, suffix=suffix, **options))
            assert found.sampling == name
            assert found.photographs.weight == pytest.approx(np.array([1.0] * 15 + [4.0] * 5) / 1.75)
    # Another name is another column, and what says the same of all says nothing.
    assert inputs.read(files(predictions={"chance": chances})).photographs.probability is None
    alike = inputs.read(files(predictions={"sampling_probability": [0.3] * 20}))
    assert alike.sampling is None
    assert alike.photographs.weight.tolist() == [1.0] * 20


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "1 of 20 rows without a chance ('p03')"),
        (0.0, "1 of 20 rows whose chance lies outside (0, 1] ('p03')"),
        (-0.5, "1 of 20 rows whose chance lies outside (0, 1] ('p03')"),
        (1.5, "1 of 20 rows whose chance lies outside (0, 1] ('p03')"),
        (np.nan, "1 of 20 rows whose chance is no number"),
        (np.inf, "1 of 20 rows whose chance is no number"),
        ("often", "1 of 20 rows whose chance is no number"),
    ],
)
def test_bad_sampling_probabilities_are_named(files: Callable[..., CalibrateConfig], value: Any, words: str) -> None:
    chances: list[Any] = ["0.5"] * 20 if isinstance(value, str) else [0.5] * 20
    chances[3] = value
    remedy = "chance is the chance with which a photograph was drawn to be labelled, 1 where all were"
    _refused(files(predictions={"chance": chances}, sampling_column="chance"), "--predictions", words, remedy)


def test_a_sampling_column_that_was_named_must_be_there(files: Callable[..., CalibrateConfig]) -> None:
    _refused(files(sampling_column="chance"), "lacks the column chance", "--sampling-column")
    _refused(files(sampling_column="sampling_probability"), "lacks the column sampling_probability")


def test_a_prediction_that_failed_needs_no_sampling_probability(files: Callable[..., CalibrateConfig]) -> None:
    failed = {"status": ["error"] + ["ok"] * 19, "sampling_probability": [None, 0.5] + [1.0] * 18}
    found = inputs.read(files(predictions=failed))
    assert found.dropped["prediction_failed"] == 1
    assert found.photographs.weight.max() == pytest.approx(2 * found.photographs.weight.min())


def test_a_method_is_not_called_as_a_column_of_the_results(files: Callable[..., CalibrateConfig]) -> None:
    _refused(files(scores={"passed": [1.0] * 20}, methods="passed"), "can't be called 'passed'", "rename")

"""The audit sample, and what labelled photographs stand for: by chance alone, and so that the truth comes out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import binom

from qualitygate.calibration.gate import Gate
from qualitygate.nightly import audit, record

pytestmark = pytest.mark.filterwarnings("error")

Write = Callable[..., None]
Many = Callable[..., list[dict[str, Any]]]
MakeGate = Callable[..., Gate]


def _drawn(output: Path, night: str) -> pa.Table:
    return pq.read_table(record.place(str(output), night, audit.FILE))


def _ids(table: pa.Table) -> list[str]:
    ids: list[str] = table["image_id"].to_pylist()
    return ids


def test_each_reject_is_drawn_with_the_stated_probability(
    tmp_path: Path, write: Write, many: Many, make_gate: MakeGate
) -> None:
    rows, share = many(20_000), 0.05
    write(str(tmp_path), rows)
    found = audit.draw(str(tmp_path), "n1", make_gate(0.5), share)
    sample = _drawn(tmp_path, "n1")
    rejects = {row["image_id"] for row in rows if row["lapm"] < 0.5}
    assert found == audit.Drawn(new=sample.num_rows, before=0)
    assert set(_ids(sample)) <= rejects
    # Chance leaves this range once in a million feeds, and this feed is always the same.
    low, high = binom.interval(1 - 1e-6, len(rejects), share)
    assert low <= sample.num_rows <= high
    assert set(sample["sampling_probability"].to_pylist()) == {share}
    assert set(sample["gate_id"].to_pylist()) == {make_gate(0.5).id}
    assert sample["uri"][0].as_py() == f"/photos/{_ids(sample)[0]}"
    # What is drawn doesn't hang together with the scores.
    values = {row["image_id"]: row["lapm"] for row in rows}
    assert np.mean([values[name] for name in _ids(sample)]) == pytest.approx(0.25, abs=0.03)


def test_a_second_start_draws_the_same_and_a_larger_share_more_of_them(
    tmp_path: Path, write: Write, many: Many, make_gate: MakeGate
) -> None:
    write(str(tmp_path), many(2000))
    audit.draw(str(tmp_path), "n1", make_gate(), 0.1)
    first = _drawn(tmp_path, "n1")
    audit.draw(str(tmp_path), "n1", make_gate(), 0.1)
    assert _drawn(tmp_path, "n1").equals(first)
    audit.draw(str(tmp_path), "n1", make_gate(), 1.0)
    everything = _ids(_drawn(tmp_path, "n1"))
    assert set(_ids(first)) < set(everything)
    assert len(everything) == sum(row["lapm"] < 0.5 for row in many(2000))


def test_what_was_drawn_or_labelled_before_is_not_drawn_again(
    tmp_path: Path, write: Write, many: Many, make_gate: MakeGate
) -> None:
    write(str(tmp_path), many(2000, "a"))
    audit.draw(str(tmp_path), "n1", make_gate(), 0.1)
    first = _ids(_drawn(tmp_path, "n1"))
    write(str(tmp_path), many(2000, "b", seed=1), "night-n2")
    assert audit.draw(str(tmp_path), "n2", make_gate(), 0.1) == audit.Drawn(
        new=_drawn(tmp_path, "n2").num_rows, before=len(first)
    )
    second = _ids(_drawn(tmp_path, "n2"))
    assert {name[0] for name in second} == {"b"}
    labelled = pa.table({"image_id": second[:50]})
    audit.draw(str(tmp_path), "n2", make_gate(), 0.1, labelled)
    assert _ids(_drawn(tmp_path, "n2")) == second[50:]
    # A number is an id too.
    audit.draw(str(tmp_path), "n2", make_gate(), 0.1, pa.table({"image_id": [1, 2]}))
    assert set(_ids(audit.known(str(tmp_path)))) == {*first, *second}


def test_nothing_to_draw_is_a_sample_too(tmp_path: Path, write: Write, make_gate: MakeGate) -> None:
    write(str(tmp_path), [{"image_id": "fine", "lapm": 0.9}, {"image_id": "unreadable", "lapm": None}])
    assert audit.draw(str(tmp_path), "n1", make_gate(), 1.0) == audit.Drawn(new=0, before=0)
    assert _drawn(tmp_path, "n1").schema.equals(audit.SCHEMA)


# ---- what the labelled stand for -------------------------------------------------------------------------


def _labels(ids: list[str], correct: list[bool] | None = None) -> pa.Table:
    return pa.table({"image_id": pa.array(ids, pa.string()), "correct": correct or [True] * len(ids)})


def test_weighted_labels_tell_the_truth_of_the_whole_feed(
    tmp_path: Path, write: Write, many: Many, make_gate: MakeGate
) -> None:
    """Photographs that pass are labelled at 30 %, of rejects an audit sample of 10 %, of which 6 in 10 come back."""
    random = np.random.default_rng(5)
    # Rejects are wrong more often; some photographs can't be read, which has no part in either.
    rows = [{**row, "right": bool(random.random() < 0.3 + 0.6 * row["lapm"])} for row in many(20_000)]
    truth = {row["image_id"]: row.pop("right") for row in rows}
    broken = [{"image_id": f"broken{number}", "lapm": None} for number in range(6000)]
    write(str(tmp_path), [*rows, *broken])
    gate = make_gate(0.6)
    audit.draw(str(tmp_path), "n1", gate, 0.1)
    passing = [row["image_id"] for row in rows if row["lapm"] >= 0.6]
    labelled = [name for name in passing if random.random() < 0.3]
    labelled += [name for name in _ids(_drawn(tmp_path, "n1")) if random.random() < 0.6]
    labels, kinds = audit.with_probabilities(
        _labels(labelled, [truth[name] for name in labelled]), str(tmp_path), gate, "chance"
    )
    assert kinds is not None
    assert (kinds.passed[1], kinds.rejected[1]) == (len(passing), len(rows) - len(passing))
    weight = 1 / np.asarray(labels["chance"])
    right = np.asarray(labels["correct"])
    whole = np.mean(list(truth.values()))
    assert np.average(right, weights=weight) == pytest.approx(whole, abs=0.02)
    # Without weights the rejects are missed.
    assert np.mean(right) > whole + 0.08
    passes = np.isin(labelled, passing)
    assert weight[passes].sum() == pytest.approx(len(passing))
    assert weight[~passes].sum() == pytest.approx(len(rows) - len(passing))


def test_a_column_that_is_there_stands(tmp_path: Path, write: Write, many: Many, make_gate: MakeGate) -> None:
    write(str(tmp_path), many(10))
    given = _labels(["p00001"]).append_column("chance", pa.array([0.5]))
    assert audit.with_probabilities(given, str(tmp_path), make_gate(), "chance") == (given, None)
    assert audit.with_probabilities(given, str(tmp_path), None, "other") == (given, None)
    assert audit.with_probabilities(given, str(tmp_path / "without a table"), make_gate(), "other") == (given, None)


def test_only_photographs_that_count_are_counted(tmp_path: Path, write: Write, many: Many, make_gate: MakeGate) -> None:
    write(str(tmp_path), many(100, "good"))
    write(str(tmp_path), many(300, "bad", seed=1), "night-n2")
    labels = pa.table({"image_id": ["good00001", "good00002", "good00003"], "status": ["ok", None, "error"]})
    found, kinds = audit.with_probabilities(labels, str(tmp_path), make_gate(0.0), "chance", ["night-n2"])
    assert kinds == audit.Labelled(passed=(2, 100), rejected=(0, 0))
    assert found["chance"].to_pylist() == [0.02, 0.02, 1.0]


def test_ids_that_are_numbers_are_found(tmp_path: Path, write: Write, make_gate: MakeGate) -> None:
    write(str(tmp_path), [{"image_id": str(number), "lapm": 0.9} for number in range(10)])
    labels = pa.table({"image_id": [3, 4], "correct": [True, False]})
    found, kinds = audit.with_probabilities(labels, str(tmp_path), make_gate(), "chance")
    assert kinds == audit.Labelled(passed=(2, 10), rejected=(0, 0))
    assert found["chance"].to_pylist() == [0.2, 0.2]

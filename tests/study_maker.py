"""Invented photographs, decisions and results for the tests of the study; no image and no network is involved."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from qualitygate.training import results
from qualitygate.training.pool import Direction, Pool, prepare
from qualitygate.training.study_plan import Design, Run, StudyPlan, plan

METHODS: dict[str, Direction] = {"sharp": "higher", "distance": "lower"}


def photographs(
    count: int = 120, *, per_group: int = 1, classes: int = 2, rejected: float = 0.4, seed: int = 0, groups: bool = True
) -> pa.Table:
    """Photographs whose two scores agree with a hidden quality; a gate of two votes needs both to be low to reject."""
    random = np.random.default_rng(seed)
    group = np.arange(count) // per_group
    quality = random.normal(size=count)
    sharp = quality + 0.3 * random.normal(size=count)
    distance = -quality + 0.3 * random.normal(size=count)
    low = (sharp < np.quantile(sharp, rejected)).astype(int) + (distance > np.quantile(distance, 1 - rejected))
    return pa.table(
        {
            "image_id": [f"p{number:05d}" for number in range(count)],
            "label": [f"maker{number % classes}" for number in group],
            "group": pa.array([f"g{number}" for number in group] if groups else [None] * count, pa.string()),
            "sharp": sharp,
            "distance": distance,
            "votes_low": low.astype(np.int64),
            "passed": low < 2,
        }
    )


def pool_of(count: int = 120, **more: Any) -> Pool:
    return prepare(photographs(count, **more), METHODS)


def design(architectures: Sequence[str] = ("resnet18",), **more: Any) -> Design:
    return Design(
        architectures=tuple(architectures),
        training={"epochs": 2, "batch_size": 8},
        weights=dict.fromkeys(architectures),
        **more,
    )


def row_of(run: Run, **measured: Any) -> dict[str, Any]:
    """A finished run row with the measures given."""
    return {**run.row(), "status": results.OK, "classes": ["a", "b"], "test_rows": 40, **measured}


def bare_row(architecture: str, kind: str, repetition: int, removed: float = 0.0, **measured: Any) -> dict[str, Any]:
    """The same without a plan; what is not given is null, as in a row that was read."""
    return {
        **dict.fromkeys(results.RUNS.names),
        "run_id": f"{architecture}-{kind}-{removed:g}-{repetition}",
        "status": results.OK,
        "architecture": architecture,
        "kind": kind,
        "removed": removed,
        "repetition": repetition,
        "seed": repetition,
        "resample": "split+seed",
        "from_scratch": False,
        "classes": ["a", "b"],
        "train_rows": 100,
        "test_rows": 40,
        "epochs": 40,
        **measured,
    }


def predicted_rows(run: Run, study: StudyPlan, pool: Pool, strength: float) -> tuple[dict[str, Any], pa.Table]:
    """A run row and its predictions, as a classifier of the given strength might give them."""
    random = np.random.default_rng([run.seed, int(1000 * strength)])
    probabilities = {
        name: _guessed(pool, rows, strength, random)
        for name, rows in (("tests", run.tests["all"].rows), ("eval", run.subset.evaluation.rows))
    }
    measured = results.evaluated(
        pool,
        run.tests,
        run.subset.evaluation,
        on_evaluation=probabilities["eval"],
        on_tests=probabilities["tests"],
    )
    table = results.prediction_rows(run.run_id, pool, run.tests, probabilities["tests"], measured["threshold"])
    curves = {
        "train_loss": [0.7, 0.5],
        "train_accuracy": [0.5, 0.6],
        "eval_loss": [0.8, 0.6 - 0.05 * strength],
        "eval_accuracy": [0.5, 0.6 + 0.1 * random.random()],
    }
    return {**run.row(), **measured, **curves, "status": results.OK, "seconds": 1.0}, table


def _guessed(pool: Pool, rows: Any, strength: float, random: np.random.Generator) -> Any:
    logits = random.normal(size=(len(rows), len(pool.classes)))
    logits[np.arange(len(rows)), pool.label[rows]] += strength
    odds = np.exp(logits)
    return odds / odds.sum(1, keepdims=True)


def invented_study(strengths: Mapping[str, float], **more: Any) -> tuple[Pool, StudyPlan, pa.Table, pa.Table]:
    """A whole study whose kinds of training set make classifiers of the given strengths."""
    pool = pool_of(240)
    study = plan(pool, design(**more))
    found = [predicted_rows(run, study, pool, strengths[run.kind]) for run in study.runs]
    return pool, study, results.to_table(row for row, _ in found), pa.concat_tables(table for _, table in found)

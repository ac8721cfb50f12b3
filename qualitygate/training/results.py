"""The rows that a study leaves: one for each run, one for each test photograph of each run."""

import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qualitygate.errors import ConfigurationError, ImageError
from qualitygate.tables import storage
from qualitygate.training.data import shown
from qualitygate.training.measures import MEASURES, Floats, Integers, Measured, choose_threshold, measure, predicted
from qualitygate.training.pool import Pool
from qualitygate.training.sampling import TESTS, Part

OK, FAILED = "ok", "failed"
_SERIES = ("train_loss", "train_accuracy", "eval_loss", "eval_accuracy")


def column(test: str, name: str) -> str:
    """The column of a measure on a test set: `auc` on high-quality photographs, `all_auc`, `rejected_auc`."""
    return name if test == "high" else f"{test}_{name}"


def _measured_fields() -> list[pa.Field]:
    fields = []
    for test in TESTS:
        fields.append(pa.field(column(test, "test_rows"), pa.int64()))
        fields += [pa.field(column(test, name), pa.float64()) for name in MEASURES]
    return fields


# The run row. Measures without a prefix are of the high-quality test set, the paper's; null where undefined, with the
# reason in `notes`. removed: percent. threshold: of the second class's probability, chosen on the evaluation set.
RUNS = pa.schema(
    [
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("architecture", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("removed", pa.float64(), nullable=False),
        pa.field("repetition", pa.int64(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("resample", pa.string()),
        pa.field("from_scratch", pa.bool_(), nullable=False),
        pa.field("weights_sha256", pa.string()),
        pa.field("classes", pa.list_(pa.string())),
        pa.field("train_rows", pa.int64()),
        pa.field("eval_rows", pa.int64()),
        pa.field("threshold", pa.float64()),
        *_measured_fields(),
        *(pa.field(name, pa.list_(pa.float64())) for name in _SERIES),
        pa.field("epochs", pa.int64()),
        pa.field("steps", pa.int64()),
        pa.field("seconds", pa.float64()),
        pa.field("attempts", pa.int64()),
        pa.field("hardware", pa.string()),
        pa.field("versions", pa.map_(pa.string(), pa.string())),
        pa.field("notes", pa.list_(pa.string())),
    ]
)
# A row for each held-out photograph of each run. passed: it belongs to the high-quality test set, else to the
# rejected one; both together are the all-quality one.
PREDICTIONS = pa.schema(
    [
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("group", pa.string(), nullable=False),
        pa.field("label", pa.string(), nullable=False),
        pa.field("passed", pa.bool_(), nullable=False),
        pa.field("predicted", pa.string(), nullable=False),
        pa.field("predicted_at_threshold", pa.string(), nullable=False),
        pa.field("confidence", pa.float64(), nullable=False),
        pa.field("probabilities", pa.list_(pa.float64()), nullable=False),
    ]
)


def evaluated(
    pool: Pool, tests: Mapping[str, Part], evaluation: Part, *, on_evaluation: Floats, on_tests: Floats
) -> dict[str, Any]:
    """The measured columns of a run row: threshold, the measures on all three test sets, notes.

    on_evaluation, on_tests: (N, K) probabilities for the rows of `evaluation` and of `tests["all"]`, in their order.
    Raises NotProbabilities for what a diverged training gives.
    """
    classes = pool.classes
    threshold, reason = choose_threshold(on_evaluation, pool.label[evaluation.rows])
    notes = [f"no threshold: {reason}"] if reason else []
    row: dict[str, Any] = {"threshold": threshold, "classes": list(classes), "eval_rows": len(evaluation.rows)}
    everything = tests["all"].rows
    for test in TESTS:
        chosen = np.isin(everything, tests[test].rows)
        found = measure(on_tests[chosen], pool.label[everything[chosen]], classes, threshold)
        row |= _columns(test, found)
        notes += [f"{column(test, name)}: {why}" for name, why in found.notes.items()]
    return {**row, "notes": notes}


def _columns(test: str, found: Measured) -> dict[str, Any]:
    return {
        column(test, "test_rows"): found.rows,
        **{column(test, name): getattr(found, name) for name in MEASURES},
    }


def prediction_rows(
    run_id: str, pool: Pool, tests: Mapping[str, Part], probabilities: Floats, threshold: float | None
) -> pa.Table:
    """PREDICTIONS of a run: every held-out photograph, in the order of `tests["all"]`.

    probabilities: (N, K) for those rows. confidence is the probability of the labelled class, as in `predict`.
    """
    rows = tests["all"].rows
    names = np.array(pool.classes, dtype=object)
    labels: Integers = pool.label[rows]
    return pa.table(
        {
            "run_id": [run_id] * len(rows),
            "image_id": pool.image_id[rows].tolist(),
            "group": pool.group[rows].tolist(),
            "label": names[labels].tolist(),
            "passed": pool.passed[rows].tolist(),
            "predicted": names[probabilities.argmax(1)].tolist(),
            "predicted_at_threshold": names[predicted(probabilities, threshold)].tolist(),
            "confidence": probabilities[np.arange(len(rows)), labels].tolist(),
            "probabilities": probabilities.tolist(),
        },
        schema=PREDICTIONS,
    )


def failed(error: BaseException | str) -> dict[str, Any]:
    """The columns of a run that came to nothing: its status and, in one line, why."""
    text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    return {"status": FAILED, "error": " ".join(text.split())[:500]}


def to_table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Run rows as RUNS, in the order architecture, kind, percent removed, repetition; what a row lacks is null.

    NaN and infinity become null: a number that isn't one is no result. Raises ValueError for an unknown column.
    """
    listed = [_cleaned(row) for row in rows]
    unknown = sorted({name for row in listed for name in row} - set(RUNS.names))
    if unknown:
        raise ValueError(f"run rows hold unknown columns: {', '.join(unknown)}")
    table = pa.Table.from_pylist(listed, schema=RUNS)
    return table.sort_by([(name, "ascending") for name in ("architecture", "kind", "removed", "repetition", "run_id")])


def _cleaned(row: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: _finite(value) for name, value in row.items()}
    if isinstance(found.get("versions"), Mapping):
        found["versions"] = list(found["versions"].items())
    return found


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return [_finite(item) for item in value] if isinstance(value, list) else value


def write_runs(uri: str, rows: Iterable[Mapping[str, Any]] | pa.Table) -> pa.Table:
    """Write `runs.parquet` whole or not at all; returns the table."""
    table = rows if isinstance(rows, pa.Table) else to_table(rows)
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    storage.write_bytes(uri, buffer.getvalue())
    return table


def read_runs(uri: str) -> pa.Table:
    """`runs.parquet`; ConfigurationError where there is none, or another table."""
    try:
        data = storage.read_bytes(uri)
        if data is None:
            raise ConfigurationError(f"{storage.redact(uri)!r} is not there; run 'qualitygate study' first")
        table = pq.read_table(io.BytesIO(data))
    except (ImageError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:160]
        raise ConfigurationError(
            f"{storage.redact(uri)!r} can't be read: {reason}; run 'qualitygate study' again"
        ) from error
    absent = [name for name in RUNS.names if name not in table.column_names]
    if absent:
        raise ConfigurationError(
            f"{storage.redact(uri)!r} lacks {shown(absent)}; it was written by another version: run the study again"
        )
    return table.select(RUNS.names)


def finished(runs: pa.Table) -> list[dict[str, Any]]:
    """The rows of runs that ended well, as dictionaries.

    Raises ConfigurationError where two of them stand for the same architecture, kind, level and repetition: results
    of two configurations can't be put into one table.
    """
    rows = [row for row in runs.to_pylist() if row["status"] == OK]
    cells = Counter((row["architecture"], row["kind"], row["removed"], row["repetition"]) for row in rows)
    twice = [cell for cell, times in cells.items() if times > 1]
    if twice:
        said = ["-".join(f"{part:g}" if isinstance(part, float) else str(part) for part in cell) for cell in twice]
        raise ConfigurationError(
            f"{len(twice):,} runs are there twice ({shown(said)}): the table mixes two configurations; give each study "
            "its own --output"
        )
    return rows


def spread(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """(mean, standard deviation with n - 1) of the values that are there; None for what there are too few for."""
    there = [value for value in values if value is not None]
    return (
        float(np.mean(there)) if there else None,
        float(np.std(there, ddof=1)) if len(there) > 1 else None,
    )

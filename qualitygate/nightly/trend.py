"""The table of all nights: what the report's trends are drawn from. Made anew from the nights' records each time."""

from collections.abc import Collection, Mapping, Sequence
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from qualitygate.calibration import outputs
from qualitygate.nightly.record import Night
from qualitygate.tables import storage

FILE = "nights.parquet"
_METHOD = pa.struct(
    [
        ("method", pa.string()),
        # Of the gate in force after the night, raw, with its 95 % interval.
        ("cutoff", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        # Of tonight's photographs against the reference: population stability index, and the word for it.
        ("psi", pa.float64()),
        # From which the index counts as large: the setting, or what chance alone seldom exceeds.
        ("psi_limit", pa.float64()),
        ("word", pa.string()),
    ]
)
SCHEMA = pa.schema(
    [
        pa.field("night", pa.string(), nullable=False),
        pa.field("started", pa.string(), nullable=False),
        pa.field("finished", pa.string()),
        # running, promoted, kept, refused or deadline.
        pa.field("state", pa.string(), nullable=False),
        pa.field("reasons", pa.list_(pa.string())),
        pa.field("gate_before", pa.string()),
        pa.field("gate_after", pa.string()),
        # Photographs that were scored tonight, how many failed, and how many the manifest holds.
        pa.field("scored", pa.int64()),
        pa.field("failed", pa.int64()),
        # Largest share that may fail.
        pa.field("error_limit", pa.float64()),
        pa.field("photographs", pa.int64()),
        pa.field("new", pa.int64()),
        pa.field("changed", pa.int64()),
        pa.field("gone", pa.int64()),
        # Shares that pass: of tonight's photographs by the gate before the night; of all that are trusted by the one
        # in force after it.
        pa.field("coverage_tonight", pa.float64()),
        pa.field("coverage", pa.float64()),
        pa.field("labelled", pa.int64()),
        pa.field("labelled_needed", pa.float64()),
        # Of those that the gate in force rejects; where there is none, the new one.
        pa.field("labelled_rejects", pa.int64()),
        pa.field("rejects_needed", pa.float64()),
        pa.field("drifted", pa.int64()),
        pa.field("methods", pa.list_(_METHOD)),
    ]
)


def write(output: str, nights: Sequence[Night], *, keep: Collection[str] = ()) -> None:
    """Put the table of these nights in place. keep: nights whose records can't be read; they stay as they were."""
    rows = [_row(night) for night in nights]
    if keep:
        rows = sorted([*rows, *_kept(output, keep)], key=lambda row: (row["started"], row["night"]))
    outputs.write_table(storage.join(output, FILE), pa.Table.from_pylist(rows, schema=SCHEMA))


def _kept(output: str, nights: Collection[str]) -> list[dict[str, Any]]:
    """The rows of some nights as the table has them; none of a table that can't be read itself."""
    try:
        data = storage.read_bytes(storage.join(output, FILE))
        table = pq.read_table(BytesIO(data)).cast(SCHEMA) if data is not None else SCHEMA.empty_table()
    except (pa.ArrowException, ValueError, KeyError, OSError):
        return []
    return [row for row in table.to_pylist() if row["night"] in nights]


def _row(night: Night) -> dict[str, Any]:
    steps: Mapping[str, Any] = night.steps
    manifest, drift = steps.get("manifest", {}), steps.get("drift", {})
    calibrated, ended = steps.get("calibrate", {}), steps.get("decide", {})
    limits = {check.name: check.limit for check in night.checks}
    rejects = next((check.value for check in night.checks if check.name == "rejects labelled"), None)
    return {
        "night": night.night,
        "started": night.started,
        "finished": night.finished,
        "state": night.state,
        "reasons": list(night.reasons),
        "gate_before": night.gate_before,
        "gate_after": night.gate_after,
        "scored": drift.get("rows"),
        "failed": drift.get("failed"),
        "error_limit": limits.get("errors"),
        "photographs": manifest.get("images"),
        "new": manifest.get("new"),
        "changed": manifest.get("changed"),
        "gone": manifest.get("gone"),
        "coverage_tonight": ended.get("coverage_tonight"),
        "coverage": ended.get("coverage"),
        "labelled": calibrated.get("labelled"),
        "labelled_needed": limits.get("labelled"),
        "labelled_rejects": (calibrated.get("kinds") or {}).get("rejected", [rejects])[0],
        "rejects_needed": limits.get("rejects labelled"),
        "drifted": drift.get("drifted"),
        "methods": ended.get("methods", []),
    }

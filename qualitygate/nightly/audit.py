"""The audit sample: rejected photographs drawn for labelling, since what is never labelled can't be calibrated on.

Whether a photograph is drawn is decided by a hash of its id, so the probability is the stated one, a second start
draws the same ones, and one that is rejected night after night is drawn once. Its probability goes with it: labelled,
it stands for all the others that weren't.
"""

from dataclasses import dataclass
from io import BytesIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from qualitygate.calibration import outputs
from qualitygate.calibration.gate import Gate
from qualitygate.nightly import record, windows
from qualitygate.tables import scores, storage
from qualitygate.tables.sql import connect, identifier, literal

FILE = "audit_sample.parquet"
SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("uri", pa.string()),
        pa.field("box", pa.list_(pa.int64())),
        pa.field("sampling_probability", pa.float64(), nullable=False),
        pa.field("gate_id", pa.string(), nullable=False),
        pa.field("night", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """How many photographs were drawn: tonight, and in nights before."""

    new: int
    before: int


def draw(output: str, night: str, gate: Gate, share: float) -> Drawn:
    """Write tonight's sample of what the gate in force rejects, of the whole table and without those drawn before."""
    drawn = known(output, without=night)
    table = scores.existing_table(output)
    methods = [name for name in scores.metrics_of(table) if name in gate.methods]
    values = "".join(f", {identifier(name)}" for name in methods)
    # The first 13 hexadecimal digits: whole numbers that a double holds exactly.
    chance = "CAST(('0x' || substr(md5('audit' || image_id), 1, 13)) AS BIGINT) / CAST(4503599627370496 AS DOUBLE)"
    with connect() as database:
        scores.register(database, table)
        database.register("drawn", drawn.select(["image_id"]))
        rows = database.sql(
            f"SELECT image_id, uri, box{values} FROM scores ANTI JOIN drawn USING (image_id) "
            # One that can't be read can't be labelled either.
            f"WHERE status <> {literal('error')} AND {chance} < {float(share)!r} ORDER BY image_id"
        ).to_arrow_table()
    rejected = rows.filter(pa.array(~windows.passes(rows, gate))) if rows.num_rows else rows
    count = rejected.num_rows
    sample = pa.table(
        {
            "image_id": rejected["image_id"],
            "uri": rejected["uri"],
            "box": rejected["box"],
            "sampling_probability": pa.array(np.full(count, share)),
            "gate_id": pa.array([gate.id] * count, pa.string()),
            "night": pa.array([night] * count, pa.string()),
        }
    ).cast(SCHEMA)
    outputs.write_table(record.place(output, night, FILE), sample)
    return Drawn(new=count, before=drawn.num_rows)


def known(output: str, without: str | None = None) -> pa.Table:
    """All that was drawn in any night, but for one."""
    parts = [SCHEMA.empty_table()]
    for night in storage.subfolders(storage.join(output, record.NIGHTS)):
        data = storage.read_bytes(record.place(output, night, FILE)) if night != without else None
        if data is not None:
            parts.append(pq.read_table(BytesIO(data)).cast(SCHEMA))
    return pa.concat_tables(parts)


def with_probabilities(predictions: pa.Table, drawn: pa.Table, column: str) -> tuple[pa.Table, int]:
    """(predictions with the probability of each to be labelled, how many were drawn by an audit).

    A probability that the table brings stands. Otherwise one of an audit sample has that sample's, others have 1.
    """
    ids = predictions["image_id"].cast(pa.string())
    by_id: dict[str, float] = dict(
        zip(drawn["image_id"].to_pylist(), drawn["sampling_probability"].to_pylist(), strict=True)
    )
    ours = [by_id.get(image_id) for image_id in ids.to_pylist()]
    audited = sum(value is not None for value in ours)
    if column in predictions.column_names:
        return predictions, audited
    if not audited:
        return predictions, 0
    return predictions.append_column(column, pc.fill_null(pa.array(ours, pa.float64()), 1.0)), audited

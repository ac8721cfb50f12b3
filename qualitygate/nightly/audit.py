"""The audit sample: rejected photographs drawn for labelling, since what is never labelled can't be calibrated on.

Whether a photograph is drawn is decided by a hash of its id, so the probability is the stated one, a second start
draws the same ones, and one that is rejected night after night is drawn once. What has a label already isn't drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import pyarrow as pa
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
_IDS = pa.schema([pa.field("image_id", pa.string())])


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """How many photographs were drawn: tonight, and in nights before."""

    new: int
    before: int


def draw(
    output: str,
    night: str,
    gate: Gate,
    share: float,
    labelled: pa.Table | None = None,
    untrusted: Sequence[str] = (),
) -> Drawn:
    """Write tonight's sample of what the gate in force rejects, of the whole table and without those drawn before.

    labelled: a table whose image_ids have labels already. untrusted: runs whose photographs aren't drawn.
    """
    drawn = known(output, without=night)
    table = scores.existing_table(output)
    methods = [name for name in scores.metrics_of(table) if name in gate.methods]
    values = "".join(f", {identifier(name)}" for name in methods)
    # The first 13 hexadecimal digits: whole numbers that a double holds exactly.
    chance = "CAST(('0x' || substr(md5('audit' || image_id), 1, 13)) AS BIGINT) / CAST(4503599627370496 AS DOUBLE)"
    with connect() as database:
        scores.register(database, table)
        done = [one.select(["image_id"]).cast(_IDS) for one in (drawn, labelled) if one is not None]
        database.register("done", pa.concat_tables(done))
        rows = database.sql(
            f"SELECT image_id, uri, box{values} FROM scores ANTI JOIN done USING (image_id) "
            f"WHERE {windows.READABLE} AND {windows.of_all_but(untrusted)} AND {chance} < {float(share)!r} "
            "ORDER BY image_id"
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """Labelled photographs by what the gate in force says of them, and how many there are of the kind in the table."""

    passed: tuple[int, int]
    rejected: tuple[int, int]


def with_probabilities(
    predictions: pa.Table, output: str, gate: Gate | None, column: str, untrusted: Sequence[str] = ()
) -> tuple[pa.Table, Labelled | None]:
    """(predictions with the probability of each to be labelled, from how many of which kind it was estimated).

    untrusted: runs whose photographs are none of those that the labelled ones stand for.

    A column that the table brings stands. Otherwise photographs that the gate in force passes, and those that it
    rejects, each have the share of their kind that is labelled: post-stratification (Holt & Smith 1979, JRSS A 142,
    33-46). It holds as long as within each kind chance decides who is labelled, as the audit sample does for rejects,
    and also when only some of the sample are labelled. Without a gate nothing was rejected, and there is no column.
    """
    if column in predictions.column_names or gate is None or scores.open_table(output) is None:
        return predictions, None
    table = scores.existing_table(output)
    methods = [name for name in scores.metrics_of(table) if name in gate.methods]
    values = "".join(f", {identifier(name)}" for name in methods)
    whole = f"SELECT image_id{values} FROM scores WHERE {windows.of_all_but(untrusted)} AND {windows.READABLE}"
    # A prediction that failed, of 'predict', tells nothing of its photograph.
    failed = f"coalesce(CAST(status AS VARCHAR) = {literal('error')}, false)"
    done = f"WHERE NOT {failed}" if "status" in predictions.column_names else ""
    with connect() as database:
        scores.register(database, table)
        database.register("predictions", predictions)
        total = database.sql(f"SELECT count(*) FROM ({whole})").fetchall()[0][0]
        rows = database.sql(
            f"SELECT * FROM ({whole}) SEMI JOIN (SELECT CAST(image_id AS VARCHAR) AS image_id FROM predictions {done}) "
            "USING (image_id) ORDER BY image_id"
        ).to_arrow_table()
    share = windows.coverage(output, gate, untrusted=untrusted, readable=True)
    if not rows.num_rows or share is None:
        return predictions, None
    passed = windows.passes(rows, gate)
    kinds = [(int(passed.sum()), round(share * total)), (int((~passed).sum()), total - round(share * total))]
    # The whole is counted by a sample, so it may come out smaller than its labelled part.
    chances = [min(1.0, labelled / max(whole, 1)) if labelled else 1.0 for labelled, whole in kinds]
    by_id = dict(zip(rows["image_id"].to_pylist(), np.where(passed, *chances).tolist(), strict=True))
    # One without a score is left out of calibration, whatever stands here.
    column_of = [by_id.get(str(image_id), 1.0) for image_id in predictions["image_id"].to_pylist()]
    found = Labelled(passed=kinds[0], rejected=kinds[1])
    return predictions.append_column(column, pa.array(column_of, pa.float64())), found

"""The audit sample: rejected photographs drawn for labelling, since what is never labelled can't be calibrated on.

Whether a photograph is drawn is decided by a hash of its id, so the probability is the stated one, a second start
draws the same ones, and one that is rejected night after night is drawn once. What has a label already isn't drawn.
"""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qualitygate.calibration import outputs
from qualitygate.calibration.gate import Gate
from qualitygate.errors import ImageError
from qualitygate.nightly import record, windows
from qualitygate.tables import scores, storage
from qualitygate.tables.sql import connect, identifier, literal

logger = logging.getLogger(__name__)

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
    gone: Path | None = None,
    note: Callable[[str], None] = logger.warning,
) -> Drawn:
    """Write tonight's sample of what the gate in force rejects, of the whole table and without those drawn before.

    labelled: a table whose image_ids have labels already. untrusted: runs whose photographs aren't drawn. gone: a file
    of photographs that are not in the input any more, which aren't drawn either. note: gets what can't be read.
    """
    drawn = known(output, without=night, note=note)
    table = scores.existing_table(output)
    methods = [name for name in scores.metrics_of(table) if name in gate.methods]
    values = "".join(f", {identifier(name)}" for name in methods)
    # The first 13 hexadecimal digits: whole numbers that a double holds exactly.
    chance = "CAST(('0x' || substr(md5('audit' || image_id), 1, 13)) AS BIGINT) / CAST(4503599627370496 AS DOUBLE)"
    with connect() as database:
        there = windows.counted(database, table, gone)
        done = [one.select(["image_id"]).cast(_IDS) for one in (drawn, labelled) if one is not None]
        database.register("done", pa.concat_tables(done))
        rows = database.sql(
            f"SELECT image_id, uri, box{values} FROM {there} ANTI JOIN done USING (image_id) "
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


def known(output: str, without: str | None = None, note: Callable[[str], None] = logger.warning) -> pa.Table:
    """All that was drawn in any night, but for one. A sample that is damaged is told and left out: its photographs may
    be drawn once more.
    """
    nights = [night for night in record.names(output) if night != without]
    with ThreadPoolExecutor(record.AT_ONCE, thread_name_prefix="samples") as pool:
        found = list(pool.map(lambda night: _sample(output, night), nights))
    for why in found:
        if isinstance(why, str):
            note(why)
    return pa.concat_tables([SCHEMA.empty_table(), *(one for one in found if isinstance(one, pa.Table))])


def _sample(output: str, night: str) -> pa.Table | str | None:
    """A night's sample, None without one; or in words why it can't be read."""
    uri = record.place(output, night, FILE)
    try:
        data = storage.read_bytes(uri)
        return pq.read_table(BytesIO(data)).cast(SCHEMA) if data is not None else None
    except ImageError as error:
        if record.may_pass(error):
            raise
        return f"{storage.redact(uri)!r} can't be read ({error.failure.message}): its photographs may be drawn again"
    except (pa.ArrowException, ValueError, KeyError, OSError) as error:
        reason = str(error).partition("\n")[0][:200]
        return f"{storage.redact(uri)!r} is damaged ({reason}): its photographs may be drawn again; restore it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """Labelled photographs by what the gate in force says of them, and how many there are of the kind in the input.

    gone: labelled photographs that are not in the input any more; they are among the first of each pair, not among the
    second.
    """

    passed: tuple[int, int]
    rejected: tuple[int, int]
    gone: int = 0


def with_probabilities(
    predictions: pa.Table,
    output: str,
    gate: Gate | None,
    column: str,
    untrusted: Sequence[str] = (),
    gone: Path | None = None,
) -> tuple[pa.Table, Labelled | None]:
    """(predictions with the probability of each to be labelled, from how many of which kind it was estimated).

    untrusted: runs whose photographs are none of those that the labelled ones stand for. gone: a file of photographs
    that are not in the input any more: they aren't stood for, but their labels still tell of their kind.

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
    counts = f"{windows.of_all_but(untrusted)} AND {windows.READABLE}"
    # A prediction that failed, of 'predict', tells nothing of its photograph.
    failed = f"coalesce(CAST(status AS VARCHAR) = {literal('error')}, false)"
    done = f"WHERE NOT {failed}" if "status" in predictions.column_names else ""
    with connect() as database:
        there = windows.counted(database, table, gone)
        database.register("predictions", predictions)
        total = database.sql(f"SELECT count(*) FROM {there} WHERE {counts}").fetchall()[0][0]
        labelled = f"SELECT CAST(image_id AS VARCHAR) AS image_id FROM predictions {done}"
        rows = database.sql(
            f"SELECT image_id{values} FROM scores SEMI JOIN ({labelled}) USING (image_id) WHERE {counts} "
            "ORDER BY image_id"
        ).to_arrow_table()
        still = database.sql(f"SELECT count(*) FROM {there} SEMI JOIN ({labelled}) USING (image_id) WHERE {counts}")
        absent = rows.num_rows - int(still.fetchall()[0][0])
    share = windows.coverage(output, gate, untrusted=untrusted, readable=True, gone=gone)
    if not rows.num_rows or share is None:
        return predictions, None
    passed = windows.passes(rows, gate)
    kinds = [(int(passed.sum()), round(share * total)), (int((~passed).sum()), total - round(share * total))]
    shares = [labelled / max(whole, 1) if labelled else 1.0 for labelled, whole in kinds]
    # More labels than photographs are left, where many are gone, and still one kind may stand for more than the other.
    # Without any gone, more than all can only be the sample's error by which the whole is counted.
    most = max(1.0, *shares) if absent else 1.0
    chances = [min(1.0, share / most) for share in shares]
    by_id = dict(zip(rows["image_id"].to_pylist(), np.where(passed, *chances).tolist(), strict=True))
    # One without a score is left out of calibration, whatever stands here.
    column_of = [by_id.get(str(image_id), 1.0) for image_id in predictions["image_id"].to_pylist()]
    found = Labelled(passed=kinds[0], rejected=kinds[1], gone=absent)
    return predictions.append_column(column, pa.array(column_of, pa.float64())), found

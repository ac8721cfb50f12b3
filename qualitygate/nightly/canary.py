"""The canary: some photographs whose scores are known, scored again before anything else each night.

The same bytes must give the same scores. Where they don't, a driver, a library or a machine has changed what is
measured, and everything that would be scored tonight would be measured with another stick.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qualitygate.calibration import outputs
from qualitygate.cluster import scoring
from qualitygate.cluster.planning import Progress
from qualitygate.config import ScoreConfig
from qualitygate.errors import ErrorBudgetExceeded, ErrorCode, Interrupted
from qualitygate.tables import scores, storage
from qualitygate.tables.scratch import scratch_folder
from qualitygate.tables.sql import connect, identifier, literal

FILE = "canary/canary.parquet"
_FOLDER = "canary"
_MANIFEST = ("image_id", "uri", "box", "etag")
# The store's answer tells nothing of what a score would have been.
_AWAY = tuple(code.value for code in (ErrorCode.MISSING, ErrorCode.DENIED, ErrorCode.TIMEOUT, ErrorCode.TRANSIENT))
# The photograph was the end of its worker, which then had no hash of it to tell.
_ENDED_IT = (ErrorCode.WORKER_CRASH.value, ErrorCode.OUT_OF_MEMORY.value)
_WITHHELD = tuple(code.value for code in (ErrorCode.DENIED, ErrorCode.TIMEOUT, ErrorCode.TRANSIENT))
_CPU, _GPU, _FAST = 1e-6, 1e-3, 5e-3
# So many of the photographs whose scores moved are kept, to be looked at.
_SHIFTS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """A photograph's score as it was known and as it is now; None where it has none any more."""

    image_id: str
    before: float
    after: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """How far a metric's scores moved.

    compared: photographs whose bytes are the same. largest: difference, as a share of the scores' 5 to 95 % spread.
    lost: photographs that had a score and have none now. definition: whether it is scored by another definition now.
    away: photographs that the store withheld though they may be there: denied, timed out. shifts: the photographs whose
    scores moved most, those that lost theirs first; sentences name none, so that a purge finds them all.
    """

    metric: str
    compared: int
    largest: float
    bound: float
    lost: int
    definition: bool
    away: int = 0
    shifts: tuple[Shift, ...] = ()

    @property
    def passed(self) -> bool:
        return self.largest <= self.bound and not self.lost and not self.definition and not self.unread

    @property
    def worst(self) -> str | None:
        """Id of the photograph whose score moved most."""
        return self.shifts[0].image_id if self.shifts else None

    @property
    def unread(self) -> bool:
        """Whether the store withheld so many that the others say too little."""
        return self.away > self.compared


def choose(output: str, count: int) -> pa.Table | None:
    """As many photographs with all scores as are wanted, the same ones for the same table; None without any.

    Of the output's manifest, where it has one: what is gone from the store can't be scored again. Columns: the
    manifest's, sha256, and for each metric its score and its fingerprint.
    """
    table = scores.open_table(output)
    if table is None:
        return None
    names = scores.metrics_of(table)
    columns = [*_MANIFEST, "sha256", *names, *(scores.fingerprint_column(name) for name in names)]
    with scratch_folder() as scratch, connect() as database:
        scores.register(database, table)
        listed = storage.join(output, "manifest.parquet")
        there = ""
        if storage.exists(listed):
            local = str(Path(scratch) / "manifest.parquet")
            if storage.is_local(listed):
                local = os.fsdecode(storage.local_path(listed))
            else:
                storage.download(listed, local)
            there = f"SEMI JOIN read_parquet({literal(local)}) USING (image_id)"
        # By a hash of their own, so that the canary is no stretch of one camera's or one day's photographs.
        found = database.sql(
            f"SELECT {', '.join(identifier(column) for column in columns)} FROM scores {there} "
            f"WHERE status = {literal('ok')} AND sha256 IS NOT NULL ORDER BY md5(image_id), image_id LIMIT {int(count)}"
        ).to_arrow_table()
    return found if found.num_rows else None


def metrics_in(chosen: pa.Table) -> tuple[str, ...]:
    """The metrics whose scores a canary holds."""
    names = chosen.column_names
    return tuple(name for name in names if scores.fingerprint_column(name) in names)


def read(output: str) -> pa.Table | None:
    """The canary as it was last written."""
    data = storage.read_bytes(storage.join(output, FILE))
    return pq.read_table(BytesIO(data)) if data is not None else None


def write(output: str, chosen: pa.Table) -> None:
    """Make these the canary."""
    outputs.write_table(storage.join(output, FILE), chosen)


def redefined(known: pa.Table, output: str) -> bool:
    """Whether somebody has scored the table's photographs by other definitions since, with --backfill: on purpose.

    Also when the table has metrics that the canary lacks.
    """
    table = scores.open_table(output)
    if table is None:
        return False
    names = scores.metrics_of(table)
    if set(names) != set(metrics_in(known)):
        return True
    with connect() as database:
        scores.register(database, table)
        database.register("canary", known)
        changed = " OR ".join(
            f"new.{identifier(column)} IS DISTINCT FROM old.{identifier(column)}"
            for column in map(scores.fingerprint_column, names)
        )
        same = "new.sha256 = old.sha256"
        return bool(
            database.sql(
                f"SELECT count(*) FROM scores AS new JOIN canary AS old USING (image_id) WHERE {same} AND ({changed})"
            ).fetchall()[0][0]
        )


def check(
    known: pa.Table, config: ScoreConfig, folder: str, *, tolerance: float | None, progress: Progress
) -> list[Moved]:
    """Score the canary anew, in a folder of its own, and compare metric by metric."""
    storage.delete_folder(storage.join(folder, _FOLDER))
    manifest = storage.join(folder, _FOLDER, "manifest.parquet")
    outputs.write_table(manifest, known.select(list(_MANIFEST)))
    names = metrics_in(known)
    again = config.model_copy(
        update={
            "input": manifest,
            "output": storage.join(folder, _FOLDER),
            "metrics": names if config.metrics is None else tuple(name for name in config.metrics if name in names),
            "limit": None,
            "lazy": False,
            "gate": None,
            "backfill": False,
            "retry": (),
            "max_error_rate": 1.0,
            "measure": False,
            # No run of its own: what it would say is not how the night went.
            "metrics_textfile": None,
        }
    )
    try:
        stats = scoring.run(again, progress).stats
    except ErrorBudgetExceeded as error:
        stats = error.stats
    except Interrupted as stop:
        # Its own words count the canary's rows.
        raise Interrupted("stopped while the canary was scored; run the same command again") from stop
    on_gpu = any(stats["workers"].values())
    bound = tolerance or (_FAST if config.precision == "fast" else _GPU if on_gpu else _CPU)
    found = scores.dataset(scores.existing_table(again.output)).to_table()
    return compare(known, found, again.metrics or names, bound)


def compare(known: pa.Table, found: pa.Table, metrics: Sequence[str], bound: float) -> list[Moved]:
    """Metric by metric, over photographs whose bytes are those that were known."""
    now: Mapping[str, Mapping[str, Any]] = {row["image_id"]: row for row in found.to_pylist()}
    return [_compared(known.to_pylist(), now, metric, bound) for metric in metrics]


def _compared(known: Sequence[Mapping[str, Any]], now: Mapping[str, Any], metric: str, bound: float) -> Moved:
    print_ = scores.fingerprint_column(metric)
    values = np.asarray([row[metric] for row in known if row[metric] is not None], dtype=np.float64)
    spread = float(np.subtract(*np.quantile(values, [0.95, 0.05]))) if values.size else 0.0
    # Without any spread, as of a single photograph, the score's own size is the scale.
    scale = spread or float(np.abs(values).max(initial=0.0)) or 1.0
    compared = lost = away = 0
    largest, definition = 0.0, False
    shifts: list[tuple[float, Shift]] = []
    for row in known:
        new = now.get(row["image_id"])
        if row[metric] is None or new is None or new["error_code"] in _AWAY:
            away += new is not None and new["error_code"] in _WITHHELD
            continue
        if new["sha256"] != row["sha256"] and not (new["sha256"] is None and new["error_code"] in _ENDED_IT):
            continue
        compared += 1
        definition |= new[print_] != row[print_]
        moved = abs(new[metric] - row[metric]) / scale if new[metric] is not None else float("inf")
        if moved:
            shifts.append((moved, Shift(image_id=row["image_id"], before=row[metric], after=new[metric])))
        if new[metric] is None:
            lost += 1
        else:
            largest = max(largest, moved)
    shifts.sort(key=lambda one: -one[0])
    return Moved(
        metric=metric,
        compared=compared,
        largest=largest,
        bound=bound,
        lost=lost,
        definition=definition,
        away=away,
        shifts=tuple(shift for _, shift in shifts[:_SHIFTS]),
    )


def remedy(found: Sequence[Moved]) -> str:
    """What to do about it."""
    if all(one.passed or one.unread for one in found):
        return "look at the store and at the credentials, and start the night again with --again"
    if any(one.definition for one in found):
        return (
            "if that is meant, 'qualitygate score --backfill' with the keys of the night's 'score' makes the whole "
            "table one definition (the report has the command); the next night then draws a new canary"
        )
    return (
        "a library, driver or machine has changed: go back to the one before, or score everything anew into another "
        "--output"
    )


def said(found: Sequence[Moved]) -> str:
    """In words, what moved: the worst metric first, as in short nothing but the first part is told."""
    parts = []
    failed = (one for one in found if not one.passed)
    for one in sorted(failed, key=lambda one: (not one.definition, -one.lost, -one.largest)):
        if one.unread:
            parts.append(f"{one.away} photographs could not be read, only {one.compared} of {one.metric} be compared")
        if one.definition:
            parts.append(f"{one.metric} is computed by another definition than before")
        if one.lost:
            parts.append(f"{one.lost} of {one.compared} photographs lost their {one.metric}")
        if one.largest > one.bound:
            parts.append(f"{one.metric} moved by up to {one.largest:.2g} of its spread, {one.bound:.2g} is allowed")
    return "; ".join(parts)

"""Tonight's photographs and those of the reference, as drift compares them: read from the score table."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from qualitygate.calibration import gate as gates
from qualitygate.calibration.drift import Window
from qualitygate.calibration.gate import Gate
from qualitygate.calibration.statistics import Booleans
from qualitygate.tables import scores
from qualitygate.tables.sql import connect, identifier, literal

if TYPE_CHECKING:
    import duckdb
    from deltalake import DeltaTable

# What a comparison needs of millions of photographs; by a hash, so that it is the same ones each time.
_MOST = 100_000
# Strata beyond these are too small to tell anything, and each costs tests.
_MOST_STRATA = 20
_EXAMPLES = 5
# A photograph that failed in so many runs before tonight was counted by the nights before.
_OLD_FAILURE = 3
_DAY_US = 86_400_000_000
CAMERA, FOLDER = "camera", "folder"
# SQL for a row's camera, empty where it isn't known.
_CAMERA = "CASE WHEN make IS NULL AND model IS NULL THEN '' ELSE concat_ws(' ', make, model) END"
# New cameras that are told by name.
_MOST_NEW = 5
# SQL for rows that have any score: what can't be read can't be labelled either.
READABLE = f"status <> {literal('error')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """reference: None where nothing was scored before. tonight: with the nights that it is pooled with.

    rows, failed: of all of tonight's photographs, without those of pooled nights. readable: how many of the window
    have a score, pooled ones included. passed: share of tonight's photographs that pass, None without any. new_strata:
    shares of tonight's photographs by camera, the most frequent of those never seen before. new_cameras: how many
    cameras these are, all of them, and of how many of tonight's photographs. examples: ids of some of tonight's, by
    chance.
    """

    reference: Window | None
    tonight: Window
    rows: int
    failed: int
    readable: int
    passed: float | None
    new_strata: dict[str, float]
    new_cameras: tuple[int, int] = (0, 0)
    examples: tuple[str, ...] = ()


def runs(output: str) -> list[str]:
    """Every run that rows of the table name."""
    with connect() as database:
        scores.register(database, scores.existing_table(output))
        found = database.sql("SELECT DISTINCT run_id FROM scores ORDER BY 1").fetchall()
    return [str(run) for (run,) in found]


def read(
    output: str,
    *,
    runs: Sequence[str],
    untrusted: Sequence[str],
    days: int,
    gate: Gate | None,
    fewest: int,
    metrics: Sequence[str] | None = None,
    pooled: Sequence[str] = (),
    failing: pa.Table | None = None,
) -> Windows:
    """The windows of a night.

    runs: of tonight's rows. pooled: of nights before, too small to be tested by themselves: they are compared together
    with tonight's. untrusted: runs whose rows are no reference. days: how far back the reference goes, from the first
    row that is compared with it; where too few rows (`fewest`) are as young, all older ones are taken. metrics: those
    that are scored tonight, None for all: one that isn't asked for any more hasn't failed. failing: image_ids of
    `failing_before`, whose failures are no news. A score that a lazy run left out is no failure either: such rows are
    compared with nothing.
    """
    table = scores.existing_table(output)
    with connect() as database:
        scores.register(database, table)
        names = [name for name in scores.metrics_of(table) if metrics is None or name in metrics]
        complete = f"NOT ({skipped(table, names)})"
        old = "false"
        if failing is not None:
            database.register("failing", failing)
            old = "status = 'error' AND image_id IN (SELECT image_id FROM failing)"
        tonight = f"NOT ({of_all_but(runs)}) AND NOT ({old}) AND {complete}"
        pool = f"NOT ({of_all_but((*runs, *pooled))}) AND NOT ({old}) AND {complete}"
        before = f"{of_all_but((*runs, *pooled, *untrusted))} AND {complete}"
        rows, failed = database.sql(
            f"SELECT count(*), count(*) FILTER (status = 'error') FROM scores WHERE {tonight}"
        ).fetchall()[0]
        readable, first = database.sql(
            f"SELECT count(*) FILTER ({READABLE}), min(epoch_us(scored_at)) FROM scores WHERE {pool}"
        ).fetchall()[0]
        young = before
        if first is not None:
            young += f" AND epoch_us(scored_at) >= {int(first) - int(days) * _DAY_US}"
        if _count(database, young) < fewest:
            young = before
        now = _window(database, pool, names, gate)
        own = _window(database, tonight, names, gate) if pooled else now
        reference = _window(database, young, names, gate) if _count(database, young) else None
        fresh, all_new = _new(database, tonight, before) if reference else ({}, (0, 0))
        some = database.sql(f"SELECT image_id FROM scores WHERE {tonight} ORDER BY md5(image_id) LIMIT {_EXAMPLES}")
        examples = tuple(str(image_id) for (image_id,) in some.fetchall())
    return Windows(
        reference=reference,
        tonight=now,
        rows=rows,
        failed=failed,
        readable=readable,
        passed=float(own.passed.mean()) if own.passed is not None and len(own) else None,
        new_strata=fresh,
        new_cameras=all_new,
        examples=examples,
    )


def failing_before(output: str, judged: Sequence[str], changed: pa.Table | None) -> pa.Table | None:
    """image_ids of photographs that failed for nights on end, before tonight's are scored; None without a table.

    judged: runs that some night has looked at: nobody has counted what failed in another one. changed: image_ids of
    other photographs than before, which fail anew if they do.
    """
    table = scores.open_table(output)
    if table is None:
        return None
    with connect() as database:
        scores.register(database, table)
        other = ""
        if changed is not None:
            database.register("changed", changed)
            other = "AND image_id NOT IN (SELECT image_id FROM changed WHERE image_id IS NOT NULL)"
        return database.sql(
            f"""SELECT image_id FROM scores WHERE status = 'error' AND attempts >= {_OLD_FAILURE}
            AND NOT ({of_all_but(judged)}) {other} ORDER BY image_id"""
        ).to_arrow_table()


def left_out_by(output: str, metrics: Sequence[str] | None, gone: Path | None = None) -> list[str]:
    """Runs of which some photographs still lack scores that a lazy run left out: what is there is no fair sample."""
    table = scores.existing_table(output)
    names = [name for name in scores.metrics_of(table) if metrics is None or name in metrics]
    if scores.LAZY_GATE not in scores.arrow_schema(table).names:
        return []
    with connect() as database:
        there = counted(database, table, gone)
        found = database.sql(f"SELECT DISTINCT run_id FROM {there} WHERE {skipped(table, names)} ORDER BY 1")
        return [str(run) for (run,) in found.fetchall()]


def skipped(table: "DeltaTable", metrics: Sequence[str]) -> str:
    """SQL for the rows that lack a score because a gate's vote didn't need it."""
    if scores.LAZY_GATE not in scores.arrow_schema(table).names:
        return "false"
    states = (f"{identifier(scores.state_column(name))} = {literal(scores.SKIPPED_LAZY)}" for name in metrics)
    return " OR ".join(f"coalesce({state}, false)" for state in states) or "false"


def counted(database: "duckdb.DuckDBPyConnection", table: "DeltaTable", gone: Path | None) -> str:
    """The name of the table's rows, without photographs that are gone from the input (a Parquet file of image_ids)."""
    scores.register(database, table)
    if gone is None:
        return "scores"
    database.sql(f"CREATE VIEW there AS SELECT * FROM scores ANTI JOIN read_parquet({literal(gone)}) USING (image_id)")
    return "there"


def coverage(
    output: str, gate: Gate, *, untrusted: Sequence[str] = (), readable: bool = False, gone: Path | None = None
) -> float | None:
    """Share of the table's photographs that a gate passes, by a sample of them; None without any row.

    untrusted: runs whose rows don't count. readable: count those with a score alone. gone: a file of those that are
    not in the input any more and don't count.
    """
    table = scores.existing_table(output)
    with connect() as database:
        there = counted(database, table, gone)
        known = [name for name in scores.metrics_of(table) if name in gate.methods]
        found = _rows(database, of_all_but(untrusted) + (f" AND {READABLE}" if readable else ""), known, there)
    passed = passes(found, gate)
    return float(passed.mean()) if len(passed) else None


def of_all_but(runs: Sequence[str]) -> str:
    """SQL for the table's rows without those of some runs."""
    return f"run_id NOT IN ({', '.join(map(literal, runs))})" if runs else "true"


def passes(rows: pa.Table, gate: Gate) -> Booleans:
    """(N,) whether each row's scores pass; a method without a column, or a score that failed, votes low."""
    voters = gate.voters(allow_fallback=True)
    votes = np.stack(
        [
            voter.votes(_numbers(rows, voter.name), np.zeros(rows.num_rows, dtype=np.bool_), "reject")
            for voter in voters
        ],
        axis=1,
    )
    return gates.decide(votes, gate.votes_needed).passed


def _numbers(rows: pa.Table, name: str) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    if name not in rows.column_names:
        return np.full(rows.num_rows, np.nan)
    return np.asarray(rows[name].to_numpy(zero_copy_only=False), dtype=np.float64)


def _count(database: "duckdb.DuckDBPyConnection", where: str) -> int:
    return int(database.sql(f"SELECT count(*) FROM scores WHERE {where}").fetchall()[0][0])


def _rows(database: "duckdb.DuckDBPyConnection", where: str, metrics: Sequence[str], of: str = "scores") -> pa.Table:
    values = "".join(f", {identifier(name)}" for name in metrics)
    return database.sql(
        f"""SELECT image_id, coalesce(error_code, '') AS code,
            {_CAMERA} AS camera,
            CASE WHEN contains(image_id, '/') THEN split_part(image_id, '/', 1) ELSE '' END AS folder{values}
        FROM {of} WHERE {where} ORDER BY md5(image_id), image_id LIMIT {_MOST}"""
    ).to_arrow_table()


def _window(database: "duckdb.DuckDBPyConnection", where: str, metrics: Sequence[str], gate: Gate | None) -> Window:
    rows = _rows(database, where, metrics)
    strata = {name: _largest(rows[name].to_pylist()) for name in (CAMERA, FOLDER)}
    return Window(
        scores={name: _numbers(rows, name) for name in metrics},
        passed=passes(rows, gate) if gate is not None else None,
        codes=rows["code"].to_pylist(),
        strata=strata,
    )


def _largest(labels: Sequence[str]) -> list[str]:
    """The labels, empty for those that are not among the most frequent."""
    names, counts = np.unique(np.asarray(labels, dtype=object).astype(str), return_counts=True)
    kept = set(names[np.argsort(-counts, kind="stable")][:_MOST_STRATA].tolist())
    return [label if label in kept else "" for label in labels]


def _new(database: "duckdb.DuckDBPyConnection", tonight: str, before: str) -> tuple[dict[str, float], tuple[int, int]]:
    """Shares of tonight's photographs by the most frequent new cameras; of all new ones, (cameras, photographs).

    Of the whole table: a camera that is rare in it isn't new. New folders are what a feed is made of.
    """
    found = database.sql(
        f"""SELECT camera, count(*) AS photographs, sum(count(*)) OVER () AS everything, camera <> '' AND camera NOT IN
            (SELECT DISTINCT {_CAMERA} FROM scores WHERE {before}) AS new
        FROM (SELECT {_CAMERA} AS camera FROM scores WHERE {tonight})
        GROUP BY camera ORDER BY photographs DESC, camera"""
    ).fetchall()
    new = [(str(camera), int(count), int(everything)) for camera, count, everything, is_new in found if is_new]
    shares = {f"{CAMERA} {camera}": count / everything for camera, count, everything in new[:_MOST_NEW]}
    return shares, (len(new), sum(count for _, count, _ in new))

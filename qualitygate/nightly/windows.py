"""Tonight's photographs and those of the reference, as drift compares them: read from the score table."""

from collections.abc import Sequence
from dataclasses import dataclass
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

# What a comparison needs of millions of photographs; by a hash, so that it is the same ones each time.
_MOST = 100_000
# Strata beyond these are too small to tell anything, and each costs tests.
_MOST_STRATA = 20
_EXAMPLES = 5
# A photograph that failed in so many runs was counted by the nights before.
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
    """reference: None where nothing was scored before. rows, failed: of all of tonight's photographs.

    new_strata: shares of tonight's photographs by camera, the most frequent of those never seen before. new_cameras:
    how many cameras these are, all of them, and of how many of tonight's photographs.
    examples: ids of some of tonight's, by chance.
    """

    reference: Window | None
    tonight: Window
    rows: int
    failed: int
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
) -> Windows:
    """The windows of a night.

    runs: of tonight's rows. untrusted: runs whose rows are no reference. days: how far back the reference goes, from
    tonight's first row; where too few rows (`fewest`) are as young, all older ones are taken. metrics: those that are
    scored tonight, None for all: one that isn't asked for any more hasn't failed. Failures that were tried again for
    nights on end are no news of tonight's.
    """
    table = scores.existing_table(output)
    with connect() as database:
        scores.register(database, table)
        tonight = f"NOT ({of_all_but(runs)}) AND NOT (status = 'error' AND attempts > {_OLD_FAILURE})"
        before = of_all_but((*runs, *untrusted))
        rows, failed, first = database.sql(
            f"SELECT count(*), count(*) FILTER (status = 'error'), min(epoch_us(scored_at)) FROM scores WHERE {tonight}"
        ).fetchall()[0]
        young = before
        if first is not None:
            young += f" AND epoch_us(scored_at) >= {int(first) - int(days) * _DAY_US}"
        if _count(database, young) < fewest:
            young = before
        names = [name for name in scores.metrics_of(table) if metrics is None or name in metrics]
        now = _window(database, tonight, names, gate)
        reference = _window(database, young, names, gate) if _count(database, young) else None
        fresh, all_new = _new(database, tonight, before) if reference else ({}, (0, 0))
        some = database.sql(f"SELECT image_id FROM scores WHERE {tonight} ORDER BY md5(image_id) LIMIT {_EXAMPLES}")
        examples = tuple(str(image_id) for (image_id,) in some.fetchall())
    return Windows(
        reference=reference,
        tonight=now,
        rows=rows,
        failed=failed,
        new_strata=fresh,
        new_cameras=all_new,
        examples=examples,
    )


def coverage(output: str, gate: Gate, *, untrusted: Sequence[str] = (), readable: bool = False) -> float | None:
    """Share of the table's photographs that a gate passes, by a sample of them; None without any row.

    untrusted: runs whose rows don't count. readable: count those with a score alone.
    """
    table = scores.existing_table(output)
    with connect() as database:
        scores.register(database, table)
        known = [name for name in scores.metrics_of(table) if name in gate.methods]
        found = _rows(database, of_all_but(untrusted) + (f" AND {READABLE}" if readable else ""), known)
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


def _rows(database: "duckdb.DuckDBPyConnection", where: str, metrics: Sequence[str]) -> pa.Table:
    values = "".join(f", {identifier(name)}" for name in metrics)
    return database.sql(
        f"""SELECT image_id, coalesce(error_code, '') AS code,
            {_CAMERA} AS camera,
            CASE WHEN contains(image_id, '/') THEN split_part(image_id, '/', 1) ELSE '' END AS folder{values}
        FROM scores WHERE {where} ORDER BY md5(image_id), image_id LIMIT {_MOST}"""
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

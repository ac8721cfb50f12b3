"""What the page needs of a scoring run's table, without reading all of it into memory."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from qualitygate.tables import scores
from qualitygate.tables.sql import connect, identifier, literal


def sample(folder: str, metrics: Sequence[str], *, rows: int, seed: int) -> dict[str, npt.NDArray[np.float64]]:
    """Raw scores of at most `rows` photographs by metric, NaN where there is none; empty without a table.

    Drawn by a hash of image_id and seed, so that the same table gives the same sample.
    """
    table = scores.open_table(folder)
    if table is None:
        return {}
    wanted = [name for name in metrics if name in scores.metrics_of(table)]
    if not wanted:
        return {}
    columns = ", ".join(identifier(name) for name in wanted)
    with connect() as database:
        scores.register(database, table)
        found = database.sql(
            f"SELECT {columns} FROM scores ORDER BY md5(image_id || {literal(str(seed))}) LIMIT {rows:d}"
        ).to_arrow_table()
    return {name: found[name].cast(pa.float64()).to_numpy(zero_copy_only=False) for name in wanted}


def of_runs(
    folder: str, runs: Sequence[str], *, most: int, failures: int
) -> tuple[list[str], list[dict[str, Any]], list[dict[str, Any]]]:
    """(metrics, rows without any score, rows with one) of some runs, by chance but the same each time.

    most: of rows with a score; failures: of the others, of each error code one after the other. Each row has image_id,
    uri, box, camera and folder as drift knows them, and its scores.
    """
    table = scores.open_table(folder)
    if table is None or not runs:
        return [], [], []
    metrics = list(scores.metrics_of(table))
    values = "".join(f", {identifier(name)}" for name in metrics)
    inside = f"run_id IN ({', '.join(map(literal, runs))})"
    with connect() as database:
        scores.register(database, table)
        failed = database.sql(
            f"""SELECT image_id, uri, box, error_code, error_message FROM scores WHERE {inside} AND status = 'error'
            ORDER BY row_number() OVER (PARTITION BY error_code ORDER BY md5(image_id)), md5(image_id)
            LIMIT {failures:d}"""
        ).to_arrow_table()
        some = database.sql(
            f"""SELECT image_id, uri, box, concat_ws(' ', make, model) AS camera,
                CASE WHEN contains(image_id, '/') THEN split_part(image_id, '/', 1) ELSE '' END AS folder{values}
            FROM scores WHERE {inside} AND status <> 'error' ORDER BY md5(image_id), image_id LIMIT {most:d}"""
        ).to_arrow_table()
    return metrics, failed.to_pylist(), some.to_pylist()


def places(folder: str, image_ids: Sequence[str]) -> Mapping[str, tuple[str | None, Any]]:
    """(uri, box) of these photographs by image_id, as far as the table has them."""
    table = scores.open_table(folder)
    if table is None or not image_ids:
        return {}
    with connect() as database:
        scores.register(database, table)
        database.register("ids", pa.table({"image_id": list(image_ids)}))
        found = database.sql("SELECT image_id, uri, box FROM scores SEMI JOIN ids USING (image_id)").fetchall()
    return {image_id: (uri, box) for image_id, uri, box in found}

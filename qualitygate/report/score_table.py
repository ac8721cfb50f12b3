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

"""What a task of the scoring pool is: a stretch of a file, read where it is scored."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qualitygate.cluster.pending import Reader, blocks, stretches
from qualitygate.errors import ImageError
from qualitygate.tables import storage

SCHEMA = pa.schema(
    [("image_id", pa.string()), ("uri", pa.string()), ("box", pa.list_(pa.int64())), ("etag", pa.string())]
)


@given(st.lists(st.integers(0, 40), max_size=5), st.integers(1, 50))
def test_every_row_is_in_one_stretch(sizes: list[int], task: int) -> None:
    found = stretches([(f"f{number}", rows) for number, rows in enumerate(sizes)], task)
    covered = [(one.file, row) for one in found for row in range(one.start, one.start + one.rows)]
    assert covered == [(f"f{number}", row) for number, rows in enumerate(sizes) for row in range(rows)]
    assert all(0 < one.rows <= task for one in found)


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    rows = [{"image_id": f"p{number}", "uri": f"/p{number}", "box": None, "etag": None} for number in range(25)]
    for name, part in (("a.parquet", rows[:15]), ("b.parquet", rows[15:])):
        pq.write_table(pa.Table.from_pylist(part, schema=SCHEMA), tmp_path / name, row_group_size=4)
    reader = Reader(str(tmp_path), storage.DEFAULT)
    handed = list(blocks(stretches([("a.parquet", 15), ("b.parquet", 10)], 4), most=3))
    assert [len(some) for some in handed] == [3, 3, 1]
    found = [reader.requests(block) for some in handed for block in some]
    assert [len(part) for part in found] == [4, 4, 4, 3, 4, 4, 2]
    assert [request.image_id for part in found for request in part] == [row["image_id"] for row in rows]


def test_a_file_that_is_gone_is_an_error_with_its_name(tmp_path: Path) -> None:
    reader = Reader(str(tmp_path), storage.Access(retry_seconds=0))
    ((block,),) = blocks(stretches([("a.parquet", 1)], 1))
    with pytest.raises(ImageError, match="missing"):
        reader.requests(block)

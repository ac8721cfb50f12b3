"""Rows that wait to be scored, as the pool takes them: each task is a stretch of one Parquet file, named and not sent.

No Ray task feeds the workers. One would need a CPU beside theirs, and where a cluster has lost the node that had it,
the pool would wait for ever without a word (ray#44687).
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from qualitygate.metrics.rows import Request
from qualitygate.tables import storage

_MAX_FILE = 1 << 30
# Handed to the pool at once: Ray takes a millisecond for each before the first one starts, and keeps them all.
MOST_TASKS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Rows [start, start + rows) of a file below the folder."""

    file: str
    start: int
    rows: int


def stretches(files: Sequence[tuple[str, int]], task: int) -> list[Stretch]:
    """Every row of the files (name, rows) once, in order, at most `task` at a time."""
    return [
        Stretch(file=name, start=start, rows=min(task, rows - start))
        for name, rows in files
        for start in range(0, rows, task)
    ]


def blocks(found: Sequence[Stretch], most: int = MOST_TASKS) -> Iterator[list[pa.Table]]:
    """A block for each, as a task takes one; as many at a time as the pool is handed."""
    for start in range(0, len(found), most):
        yield [pa.Table.from_pylist([asdict(one)]) for one in found[start : start + most]]


class Reader:
    """Reads stretches; keeps the file that it read last, since the next stretch is often of the same one."""

    def __init__(self, folder: str, access: storage.Access) -> None:
        self._folder = folder
        self._access = access
        self._name = ""
        self._table: pa.Table | None = None

    def requests(self, block: pa.Table) -> list[Request]:
        """The rows of a block's stretch. Raises ImageError when its file can't be read."""
        (named,) = block.to_pylist()
        stretch = Stretch(**named)
        rows: list[dict[str, Any]] = self._file(stretch.file).slice(stretch.start, stretch.rows).to_pylist()
        return [Request(**row) for row in rows]

    def _file(self, name: str) -> pa.Table:
        if self._table is None or self._name != name:
            self._table = None
            fetched = storage.fetch(storage.join(self._folder, name), max_bytes=_MAX_FILE, access=self._access)
            self._table = pq.read_table(pa.BufferReader(fetched.data))
            self._name = name
        return self._table

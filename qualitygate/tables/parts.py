"""Images inside larger files: members of tar archives (WebDataset shards) and cells of Parquet columns.

    s3://bucket/shard-000.tar#offset=1536&bytes=24817       the bytes of one member
    s3://bucket/part-0.parquet#column=image&row=17          one cell of a column of bytes
    s3://bucket/shard-001.tar#unreadable=truncated&offset=512   a file that couldn't be listed to its end

A manifest spells out where a member lies, so that it is read by one request for a range. What couldn't be listed
has its row too, whose error says so: nothing is left out silently.
"""

import re
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

from qualitygate.errors import ErrorCode, ImageError
from qualitygate.tables import reading
from qualitygate.tables.access import Access
from qualitygate.tables.reading import Fetched

# Strict, since a `#` may belong to a name.
_PART = re.compile(
    r"^(?P<file>.+)#(?:"
    r"offset=(?P<offset>\d+)&bytes=(?P<bytes>\d+)"
    r"|column=(?P<column>[^&#]+)&row=(?P<row>\d+)"
    r"|unreadable=(?P<code>[a-z_]+)&offset=(?P<from>\d+))$",
    re.DOTALL,
)
# A row group is read whole: of a column of pictures, at most this much is held.
MAX_GROUP_BYTES = 512 << 20
_TABLES_KEPT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A range of bytes in a file."""

    file: str
    offset: int
    bytes: int

    @property
    def uri(self) -> str:
        return f"{self.file}#offset={self.offset}&bytes={self.bytes}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One row of a column of bytes in a Parquet file; rows count from 0 over the whole file."""

    file: str
    column: str
    row: int

    @property
    def uri(self) -> str:
        return f"{self.file}#column={quote(self.column, safe='')}&row={self.row}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """What couldn't be listed of a file: all that lies from `offset` on."""

    file: str
    code: ErrorCode
    offset: int

    @property
    def uri(self) -> str:
        return f"{self.file}#unreadable={self.code.value}&offset={self.offset}"


Part = Member | Cell | Unreadable


def parse(uri: str) -> Part | None:
    """The part of a file that a URI names; None where it names the whole."""
    match = _PART.match(uri) if "#" in uri else None
    if match is None:
        return None
    file = match["file"]
    if match["offset"] is not None:
        return Member(file=file, offset=int(match["offset"]), bytes=int(match["bytes"]))
    if match["column"] is not None:
        return Cell(file=file, column=unquote(match["column"]), row=int(match["row"]))
    code = ErrorCode(match["code"]) if match["code"] in set(ErrorCode) else ErrorCode.UNSUPPORTED
    return Unreadable(file=file, code=code, offset=int(match["from"]))


def fetch(part: Part, *, max_bytes: int, access: Access, etag: str | None) -> Fetched:
    """A part's bytes. ImageError, among others `missing` where the file isn't the version with this etag."""
    if isinstance(part, Unreadable):
        raise ImageError(part.code, f"what follows byte {part.offset} couldn't be listed; write the file again")
    if isinstance(part, Member):
        reading.check_bytes(part.bytes, max_bytes)
        return Fetched(data=reading.part(part.file, part.offset, part.bytes, access=access, etag=etag), etag=etag)
    data = _cell(part, access, etag)
    reading.check_bytes(len(data), max_bytes)
    return Fetched(data=data, etag=etag)


# --- Parquet --------------------------------------------------------------------------------------------------


class _OpenTable:
    """A Parquet file that cells are read from. Neighbours are asked for one after another, so the last row group
    that was read is kept.
    """

    def __init__(self, file: str, access: Access, etag: str | None) -> None:
        self._file = file
        self._access = access
        self._etag = etag
        self._lock = threading.Lock()
        self._parquet: Any = None
        self._kept: tuple[int, str, Any] | None = None

    def cell(self, column: str, row: int) -> bytes | None:
        import pyarrow as pa

        with self._lock:
            try:
                if self._parquet is None:
                    opened, found = open_parquet(self._file, self._access)
                    reading.check_version(found, self._etag)
                    self._parquet = opened
                return self._value(column, row)
            except (pa.ArrowException, OSError) as error:
                self._parquet = None
                raise _damaged(error) from error

    def _value(self, column: str, row: int) -> bytes | None:
        metadata = self._parquet.metadata
        first = 0
        for group in range(metadata.num_row_groups):
            rows = metadata.row_group(group).num_rows
            if row < first + rows:
                value: bytes | None = self._column(group, column)[row - first].as_py()
                return value
            first += rows
        raise ImageError(ErrorCode.MISSING, f"row {row} isn't there: the file has {first}")

    def _column(self, group: int, column: str) -> Any:
        if self._kept is None or self._kept[:2] != (group, column):
            self._kept = None
            sizes = column_bytes(self._parquet.metadata.row_group(group))
            if column not in sizes:
                raise ImageError(ErrorCode.MISSING, f"the file has no column {column!r}")
            if sizes[column] > MAX_GROUP_BYTES:
                raise ImageError(
                    ErrorCode.TOO_LARGE,
                    f"row group {group} holds {sizes[column]:,} bytes of {column!r}, more than {MAX_GROUP_BYTES:,}: "
                    "write smaller row groups",
                )
            self._kept = (group, column, _only(self._parquet.read_row_group(group, columns=[column])))
        return self._kept[2]


def column_bytes(group: Any) -> dict[str, int]:
    """Bytes of each column of a row group, by its path (`image`, or `image.bytes` inside a structure)."""
    chunks = (group.column(index) for index in range(group.num_columns))
    return {chunk.path_in_schema: chunk.total_uncompressed_size for chunk in chunks}


def _only(table: Any) -> Any:
    """The one leaf that was read, out of the structures around it."""
    import pyarrow as pa
    import pyarrow.compute

    values = table.column(0)
    while pa.types.is_struct(values.type):
        values = pyarrow.compute.struct_field(values, [0])
    return values


def open_parquet(file: str, access: Access) -> tuple[Any, str | None]:
    """(pyarrow's ParquetFile, etag); ImageError for what is no Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet

    marks = reading.marks(file, access=access)
    try:
        # Not pre-buffered: that would read every column's chunks at once.
        return pyarrow.parquet.ParquetFile(reading.RangeFile(file, marks, access), pre_buffer=False), marks.etag
    except (pa.ArrowException, OSError) as error:
        raise _damaged(error) from error


def _damaged(error: Exception) -> ImageError:
    return ImageError(ErrorCode.TRUNCATED, f"no whole Parquet file: {' '.join(str(error).split())[:200]}")


_tables: "OrderedDict[tuple[str, str | None], _OpenTable]" = OrderedDict()
_tables_lock = threading.Lock()


def _cell(cell: Cell, access: Access, etag: str | None) -> bytes:
    with _tables_lock:
        table = _tables.setdefault((cell.file, etag), _OpenTable(cell.file, access, etag))
        _tables.move_to_end((cell.file, etag))
        while len(_tables) > _TABLES_KEPT:
            _tables.popitem(last=False)
    value = table.cell(cell.column, cell.row)
    if value is None:
        raise ImageError(ErrorCode.MISSING, f"row {cell.row} of {cell.column!r} is null")
    return value

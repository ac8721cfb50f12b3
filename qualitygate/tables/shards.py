"""What lies in larger files: tar archives (WebDataset shards) by their headers, Parquet tables by their footers.

A listing of images takes such files apart, so that each image has a row. See `parts` for the URIs.
"""

import io
import tarfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc

from qualitygate.errors import ConfigurationError, ErrorCode, ImageError
from qualitygate.tables import parts, reading
from qualitygate.tables.access import PASSING_CODES, Access
from qualitygate.tables.gather import Gathering
from qualitygate.tables.listing import THREADS, Listed, as_tables, hidden
from qualitygate.tables.uris import redact

SUFFIXES = (".tar", ".parquet")
# Members of a shard are a photograph and what belongs to it (.json, .cls, .txt): these are the photographs.
IMAGE_SUFFIXES = frozenset(
    {
        *(
            "jpg",
            "jpeg",
            "jpe",
            "jfif",
            "png",
            "webp",
            "tif",
            "tiff",
            "bmp",
            "dib",
            "gif",
            "avif",
            "heif",
            "heic",
            "hif",
        ),
        # Not decoded, but photographs: each gets its error row.
        *("jp2", "j2k", "jxl", "psd", "dng", "cr2", "cr3", "nef", "arw", "raf"),
    }
)
# Headers lie between the photographs: one request brings those of a few small ones, and little of a large one.
_HEADER_BYTES = 64 << 10
_BLOCK = tarfile.BLOCKSIZE


@dataclass(slots=True)
class Found:
    """What listing an input and taking its files apart has met so far. Threads may share it.

    left_out: members that aren't images by their name; damaged: names of files that couldn't be read to their end;
    special: pipes, sockets and devices, which aren't opened.
    """

    shards: int = 0
    left_out: int = 0
    special: int = 0
    damaged: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, *, shards: int = 0, left_out: int = 0, damaged: Sequence[str] = ()) -> None:
        """Count what one file held."""
        with self._lock:
            self.shards += shards
            self.left_out += left_out
            self.damaged += damaged

    def add_special(self) -> None:
        """Count a pipe, socket or device."""
        with self._lock:
            self.special += 1

    def notes(self) -> list[str]:
        """What the user should know, a line each."""
        notes = []
        if self.special:
            notes.append(f"pipes, sockets and devices are left out and not opened: {self.special:,}")
        if self.left_out:
            notes.append(f"{self.left_out:,} members of archives aren't images by their names and are left out")
        if self.damaged:
            shown = ", ".join(sorted(self.damaged)[:3]) + (", ..." if len(self.damaged) > 3 else "")
            notes.append(
                f"{len(self.damaged)} files couldn't be read to their end: {shown}; each has an error row for the rest"
            )
        return notes


def taken_apart(
    tables: Iterable[pa.Table], found: Found, *, access: Access, column: str | None, in_order: bool
) -> Iterator[pa.Table]:
    """A listing with the images of its archives and tables in their stead; in parallel, unless in order.

    tables: of the schema `listing.listed_schema`, as what is yielded.
    """
    if in_order:
        for table in tables:
            if pc.any(_shards(table)).as_py():
                rows = (Listed(**row) for row in table.to_pylist())
                yield from as_tables(
                    inner
                    for row in rows
                    for inner in (members(row, found, access, column) if is_shard(row.name) else [row])
                )
            else:
                yield table
        return
    with Gathering[pa.Table](THREADS, ahead=2 * THREADS) as gathering:

        def whole_files() -> Iterator[pa.Table]:
            for table in tables:
                inside = _shards(table)
                for row in table.filter(inside).to_pylist():
                    shard = Listed(**row)
                    gathering.add(partial(_members_in_tables, shard, found, access, column))
                yield table.filter(pc.invert(inside))

        gathering.add(whole_files)
        yield from gathering


def _members_in_tables(shard: Listed, found: Found, access: Access, column: str | None) -> Iterator[pa.Table]:
    return as_tables(members(shard, found, access, column))


def _shards(table: pa.Table) -> pa.ChunkedArray:
    return pc.match_substring_regex(table["name"], r"(?i)\.(tar|parquet)$")


def is_shard(name: str) -> bool:
    """Whether a file may hold images, by its name."""
    return name.lower().endswith(SUFFIXES)


def members(shard: Listed, found: Found, access: Access, column: str | None = None) -> Iterator[Listed]:
    """The images in one file, each under the file's name and its own; the file itself where it holds none.

    column: of a Parquet file, where its images are; None: its only column of bytes.

    What can't be read to its end has a row too, whose URI says so. ConfigurationError where a failure may pass:
    then the listing is to be made again, rather than to lack what is there.
    """
    try:
        if shard.name.lower().endswith(".tar"):
            yield from _of_tar(shard, found, access)
        else:
            yield from _of_parquet(shard, found, access, column)
    except ImageError as error:
        if error.failure.code in PASSING_CODES:
            raise ConfigurationError(
                f"{redact(shard.uri)!r} could not be listed ({error.failure.message}); run the same command again"
            ) from error
        yield _unreadable(shard, found, error.failure.code, 0)


def _unreadable(shard: Listed, found: Found, code: ErrorCode, offset: int) -> Listed:
    found.add(damaged=[shard.name])
    uri = parts.Unreadable(file=shard.uri, code=code, offset=offset).uri
    return Listed(name=shard.name, uri=uri, etag=shard.etag, bytes=None, modified=shard.modified)


def _inside(shard: Listed, name: str, uri: str, size: int | None, etag: str | None) -> Listed:
    return Listed(name=f"{shard.name}/{name}", uri=uri, etag=etag, bytes=size, modified=shard.modified)


# --- tar ------------------------------------------------------------------------------------------------------


def _of_tar(shard: Listed, found: Found, access: Access) -> Iterator[Listed]:
    marks = reading.marks(shard.uri, access=access)
    file = io.BufferedReader(reading.RangeFile(shard.uri, marks, access), _HEADER_BYTES)
    end = 0
    seen: dict[str, int] = {}
    damaged: ErrorCode | None = None
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            found.add(shards=1)
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # it would keep every header
                if member.offset_data + member.size > marks.bytes:
                    damaged = ErrorCode.TRUNCATED
                    break
                end = archive.offset
                name = member.name.removeprefix("./")
                if member.isdir() or any(hidden(part) for part in name.split("/")):
                    continue
                if not member.isreg() or member.issparse() or name.rpartition(".")[2].lower() not in IMAGE_SUFFIXES:
                    found.add(left_out=1)
                    continue
                # Two members of one name are two images, although unpacking keeps the last only.
                times = seen[name] = seen.get(name, 0) + 1
                uri = parts.Member(file=shard.uri, offset=member.offset_data, bytes=member.size).uri
                yield _inside(shard, _as_text(name if times == 1 else f"{name}~{times}"), uri, member.size, marks.etag)
    except tarfile.TarError:
        damaged = ErrorCode.TRUNCATED if end else ErrorCode.UNDECODABLE
    if damaged is None and not _ends(file, end):
        # tarfile takes a header that it can't read, or the end of the file, for the end of the archive.
        damaged = ErrorCode.TRUNCATED
    if damaged is not None:
        yield _unreadable(shard, found, damaged, end)


def _as_text(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _ends(file: IO[bytes], end: int) -> bool:
    """Whether zeros follow the last member, as every archive that was written to its end has them."""
    file.seek(end)
    block = file.read(_BLOCK)
    return len(block) == _BLOCK and not block.strip(b"\0")


# --- Parquet --------------------------------------------------------------------------------------------------


def _of_parquet(shard: Listed, found: Found, access: Access, wanted: str | None) -> Iterator[Listed]:
    table, etag = parts.open_parquet(shard.uri, access)
    schema = table.schema_arrow
    column = _column(schema, wanted, shard)
    if column is None:
        # No images in it: the row of the file itself will say what it is.
        yield shard
        return
    found.add(shards=1)
    first = 0
    named = _is_text(schema, "image_id")
    for group in range(table.num_row_groups):
        rows = table.metadata.row_group(group).num_rows
        ids = table.read_row_group(group, columns=["image_id"]).column(0).to_pylist() if named else [None] * rows
        for row, name in enumerate(ids, first):
            uri = parts.Cell(file=shard.uri, column=column, row=row).uri
            item = _inside(shard, str(row), uri, None, etag)
            yield item if not name else Listed(name=name, uri=uri, etag=etag, bytes=None, modified=shard.modified)
        first += rows


def _column(schema: pa.Schema, wanted: str | None, shard: Listed) -> str | None:
    """Path of the column that holds the images; None where there is none."""
    found = [path for one in schema for path in _of_bytes(one, one.name)]
    chosen = [path for path in found if path in (wanted, f"{wanted}.bytes")] if wanted is not None else found
    if len(chosen) > 1 or (wanted is not None and found and not chosen):
        raise ConfigurationError(
            f"{redact(shard.uri)!r} has the columns of bytes {', '.join(found)}; name the one that holds the images "
            "with --image-column"
        )
    return chosen[0] if chosen else None


def _of_bytes(one: pa.Field, path: str) -> Iterator[str]:
    if pa.types.is_binary(one.type) or pa.types.is_large_binary(one.type):
        yield path
    elif pa.types.is_struct(one.type):
        # As the Hugging Face hub writes pictures: {bytes, path}.
        for inner in one.type:
            yield from _of_bytes(inner, f"{path}.{inner.name}")


def _is_text(schema: pa.Schema, name: str) -> bool:
    if name not in schema.names:
        return False
    kind = schema.field(name).type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def holds_images(uri: str, access: Access) -> bool:
    """Whether a table holds the images themselves, rather than where they are: Parquet with bytes and no `uri`."""
    if not uri.lower().endswith(".parquet"):
        return False
    try:
        table, _ = parts.open_parquet(uri, access)
    except ImageError:
        return False  # reading it as a manifest will say what is wrong
    schema = table.schema_arrow
    return "uri" not in schema.names and any(True for one in schema for _ in _of_bytes(one, one.name))

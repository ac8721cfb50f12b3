"""Manifests: which images there are. A folder, a prefix, a glob, one file, or the user's own table.

Whatever the input, it becomes one Parquet file of the same five columns, in the input's order:
`image_id, uri, box, etag, bytes`. Rows stream through it: a manifest may be larger than memory.
"""

import fnmatch
import glob
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from qualitygate.errors import ConfigurationError, ImageError
from qualitygate.tables import storage
from qualitygate.tables.sql import connect, identifier, literal

SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("uri", pa.string()),
        # x, y, w, h in pixels of the oriented photograph; a value that is no such list is kept as an empty
        # list, which becomes the row's error: dropping it would score the whole photograph instead.
        pa.field("box", pa.list_(pa.int64())),
        pa.field("etag", pa.string()),
        pa.field("bytes", pa.int64()),
    ]
)
TABLE_SUFFIXES = (".parquet", ".csv", ".jsonl", ".ndjson")
_ROWS_AT_ONCE = 20_000
_WILDCARDS = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A normalised manifest on local disk. `has_box` tells whether regions, not whole photographs, are scored."""

    path: Path
    rows: int
    has_box: bool
    source: str


def load(source: str, spool: Path, *, limit: int | None = None, output: str | None = None) -> Manifest:
    """Normalise `source` into the Parquet file `spool`.

    output: where the results go; a listing leaves it out, since results are no images.

    Raises ConfigurationError, in one line with the remedy: nothing there, a table without its columns, an
    image_id twice or absent, an empty input.
    """
    source = storage.check_location(source, "--input")
    if storage.is_local(source):
        source = os.path.abspath(source)
    if output is not None and storage.is_local(output):
        output = os.path.abspath(os.fsdecode(storage.local_path(output)))
    if output is not None and output.rstrip("/") == source.rstrip("/"):
        raise ConfigurationError(f"--output {storage.redact(source)!r} is --input itself; choose another folder")
    try:
        found, has_box = _normalise(source, spool, limit, output)
    except ImageError as error:
        raise ConfigurationError(f"--input {storage.redact(source)!r}: {error.failure.message}") from error
    if not found:
        raise ConfigurationError(
            f"--input {storage.redact(source)!r} holds no images; "
            "give a folder, a glob, a file or a manifest with at least one row"
        )
    return Manifest(path=spool, rows=found, has_box=has_box, source=source)


def _normalise(source: str, spool: Path, limit: int | None, output: str | None) -> tuple[int, bool]:
    try:
        if storage.is_folder(source):
            return _spool_listing(storage.walk(source, leave_out=output), spool, limit), False
        if storage.exists(source):
            if source.lower().endswith(TABLE_SUFFIXES):
                return _spool_table(source, spool, limit)
            return _spool_listing(iter([_single(source)]), spool, limit), False
        if _WILDCARDS.search(source):
            return _spool_listing(_matching(source), spool, limit), False
    except OSError as error:
        reason = error.strerror or storage.redact(str(error)).splitlines()[0][:200]
        raise ConfigurationError(f"--input {storage.redact(source)!r} can't be read: {reason}") from error
    raise ConfigurationError(f"--input {storage.redact(source)!r} does not exist; check the path")


def _single(source: str) -> storage.Listed:
    name = source.rsplit("/", 1)[-1]
    image_id = os.fsencode(name).decode("utf-8", "backslashreplace")
    uri = storage.uri_of_path(source) if storage.is_local(source) else source
    return storage.Listed(name=image_id, uri=uri, etag=None, bytes=None)


def _matching(pattern: str) -> Iterator[storage.Listed]:
    """Files that match a glob; ids are relative to the part before the first wildcard."""
    start = _WILDCARDS.search(pattern)
    assert start is not None
    root = pattern[: start.start()].rpartition("/")[0] or "/"
    if storage.is_local(pattern):
        for path in sorted(glob.iglob(pattern, recursive=True)):
            if os.path.isfile(path) and not storage.hidden(os.path.basename(path)):
                name = os.fsencode(os.path.relpath(path, root)).decode("utf-8", "backslashreplace")
                yield storage.Listed(name=name, uri=storage.uri_of_path(path), etag=None, bytes=None)
    else:
        for listed in storage.walk(root):
            if fnmatch.fnmatchcase(listed.uri, pattern):
                yield listed


def _spool_listing(listing: Iterator[storage.Listed], spool: Path, limit: int | None) -> int:
    rows = 0
    with pq.ParquetWriter(spool, SCHEMA) as writer:
        listing = islice(listing, limit)
        while chunk := list(islice(listing, _ROWS_AT_ONCE)):
            writer.write_table(
                pa.table(
                    {
                        "image_id": [item.name for item in chunk],
                        "uri": [item.uri for item in chunk],
                        "box": [None] * len(chunk),
                        "etag": [item.etag for item in chunk],
                        "bytes": [item.bytes for item in chunk],
                    },
                    schema=SCHEMA,
                )
            )
            rows += len(chunk)
    _refuse_duplicates(spool, "the listing")
    return rows


def _spool_table(source: str, spool: Path, limit: int | None) -> tuple[int, bool]:
    with tempfile.TemporaryDirectory(prefix="qualitygate-") as scratch:
        local = source
        if not storage.is_local(source):
            local = str(Path(scratch) / ("manifest" + Path(source).suffix.lower()))
            storage.download(source, local)
        return _normalise_table(local, source, spool, limit)


def _normalise_table(local: str, source: str, spool: Path, limit: int | None) -> tuple[int, bool]:
    import duckdb

    name = storage.redact(source)
    relation = _reader(local)
    with connect() as database:
        try:
            described = database.sql(f"DESCRIBE SELECT * FROM {relation}").fetchall()
        except duckdb.Error as error:
            reason = str(error).splitlines()[0][:200]
            raise ConfigurationError(f"manifest {name!r} can't be read as a table: {reason}") from error
        types = {column[0]: column[1] for column in described}
        absent = [column for column in ("image_id", "uri") if column not in types]
        if absent:
            raise ConfigurationError(
                f"manifest {name!r} lacks the column{'s' * (len(absent) > 1)} {', '.join(absent)} "
                f"(it has {', '.join(types) or 'none'}); rename or add them"
            )
        folder = source.rsplit("/", 1)[0] if "/" in source else "."
        query = f"""
            SELECT {_text("image_id", types)} AS image_id, {_uri_expression(types, folder)} AS uri,
                   {_box_expression(types.get("box"))} AS box, {_text("etag", types)} AS etag,
                   TRY_CAST({_text("bytes", types)} AS BIGINT) AS bytes
            FROM {relation} {f"LIMIT {int(limit)}" if limit is not None else ""}"""
        try:
            database.sql(f"COPY ({query}) TO {literal(spool)} (FORMAT parquet)")
        except duckdb.Error as error:
            reason = str(error).splitlines()[0][:200]
            raise ConfigurationError(f"manifest {name!r} holds a row that can't be read: {reason}") from error
        rows, without_id, boxes = database.sql(
            "SELECT count(*), count(*) FILTER (image_id IS NULL OR image_id = ''), count(box) "
            f"FROM read_parquet({literal(spool)})"
        ).fetchall()[0]
    if without_id:
        raise ConfigurationError(f"manifest {name!r} has {without_id} rows without an image_id; give each row one")
    _refuse_duplicates(spool, f"manifest {name!r}")
    return rows, boxes > 0


def _reader(path: str) -> str:
    lowered = path.lower()
    if lowered.endswith(".parquet"):
        return f"read_parquet({literal(path)})"
    if lowered.endswith(".csv"):
        # Everything as text: an id such as 007 or 1e5 must stay what it is.
        return f"read_csv({literal(path)}, all_varchar = true, header = true, nullstr = '')"
    # Depth 1 keeps each value as it is written: detection would turn ids into dates, times or numbers.
    return (
        f"read_json({literal(path)}, format = 'newline_delimited', maximum_depth = 1, maximum_object_size = 16777216)"
    )


def _text(column: str, types: dict[str, str]) -> str:
    if column not in types:
        return "CAST(NULL AS VARCHAR)"
    if types[column] == "JSON":
        return f"json_extract_string({identifier(column)}, '$')"
    return f"CAST({identifier(column)} AS VARCHAR)"


def _uri_expression(types: dict[str, str], folder: str) -> str:
    """A relative URI is meant against the manifest's own folder."""
    uri = _text("uri", types)
    absolute = f"regexp_matches({uri}, '^([A-Za-z][A-Za-z0-9+.-]*://|/|(data|javascript|about|blob):)')"
    base = literal(folder.rstrip("/") + "/")
    return f"CASE WHEN coalesce({uri}, '') = '' THEN NULL WHEN {absolute} THEN {uri} ELSE {base} || {uri} END"


def _box_expression(sql_type: str | None) -> str:
    """Any usual spelling of a box as a list of integers; what is no box becomes an empty list, never null."""
    if sql_type is None:
        return "CAST(NULL AS BIGINT[])"
    absent = "box IS NULL"
    if sql_type.startswith("STRUCT"):
        value = "[box.x, box.y, box.w, box.h]"
    elif sql_type.endswith("]"):
        value = "box"
    elif sql_type == "JSON":
        absent = "box IS NULL OR json_type(box) = 'NULL'"
        members = ", ".join(f"json_extract_string(box, '$.{side}')" for side in "xywh")
        value = f"CASE WHEN json_type(box) = 'OBJECT' THEN [{members}] ELSE TRY_CAST(box AS VARCHAR[]) END"
    else:
        absent = "coalesce(trim(CAST(box AS VARCHAR)), '') = ''"
        text = "trim(regexp_replace(CAST(box AS VARCHAR), '[\\[\\]()]', '', 'g'))"
        value = f"regexp_split_to_array({text}, '\\s*[,;\\s]\\s*')"
    numbers = f"coalesce(TRY_CAST({value} AS BIGINT[]), [])"
    return f"CASE WHEN {absent} THEN NULL WHEN list_count({numbers}) < len({numbers}) THEN [] ELSE {numbers} END"


def _refuse_duplicates(spool: Path, what: str) -> None:
    with connect() as database:
        twice = database.sql(
            f"""SELECT image_id, count(*) AS times FROM read_parquet({literal(spool)})
                GROUP BY image_id HAVING count(*) > 1 ORDER BY image_id LIMIT 4"""
        ).fetchall()
    if twice:
        shown = ", ".join(f"{image_id!r} ({times} times)" for image_id, times in twice[:3])
        raise ConfigurationError(
            f"{what} names an image_id more than once: {shown}{', ...' if len(twice) > 3 else ''}; make them unique"
        )

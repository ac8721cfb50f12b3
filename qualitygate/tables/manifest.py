"""Manifests: which images there are. A folder, a prefix, a glob, one file, or the user's own table.

Whatever the input, it becomes one Parquet file of the same five columns, in the input's order:
`image_id, uri, box, etag, bytes`. Rows stream through it: a manifest may be larger than memory.
"""

import contextlib
import csv
import fnmatch
import glob
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from qualitygate.errors import ConfigurationError, ImageError, QualityGateError
from qualitygate.tables import listing, reading, shards, storage
from qualitygate.tables.access import DEFAULT, PASSING_CODES, Access
from qualitygate.tables.scratch import scratch_folder
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
ROW_GROUP = 122_880
_WILDCARDS = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A normalised manifest on local disk."""

    path: Path
    rows: int
    source: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What of an input is wanted, and how its store is asked.

    without: folders and files that listings leave out, such as the results: they are no images.
    image_column: of Parquet files that hold images; None: their only column of bytes.
    """

    limit: int | None = None
    without: tuple[str, ...] = ()
    image_column: str | None = None
    access: Access = DEFAULT


def load(
    source: str,
    spool: Path,
    *,
    limit: int | None = None,
    results: str | None = None,
    image_column: str | None = None,
    access: Access = DEFAULT,
) -> Manifest:
    """Normalise `source` into the Parquet file `spool`.

    results: the folder of the score table; listings leave it out, since results are no images.
    image_column: of Parquet files that hold images; None: their only column of bytes.

    Raises ConfigurationError, in one line with the remedy: nothing there, a table without its columns, an
    image_id twice or absent, an empty input. Raises StoreUnavailable where its store doesn't answer.
    """
    source = checked(source)
    wanted = Wanted(limit=limit, without=(results,) if results else (), image_column=image_column, access=access)
    try:
        found = shards.Found()
        rows = _normalise(source, spool, wanted, found)
    except ImageError as error:
        raise unlisted(source, error) from error
    if not rows:
        raise empty(source)
    return Manifest(path=spool, rows=rows, source=source, notes=tuple(found.notes()))


def checked(source: str) -> str:
    """An input's location, absolute where it is local. Raises ConfigurationError for what can't be one."""
    source = storage.check_location(source, "--input")
    if not source.strip():
        raise ConfigurationError("--input is empty; give a folder, a glob, a file or a manifest")
    return os.path.abspath(source) if storage.is_local(source) else source


def unlisted(source: str, error: ImageError) -> QualityGateError:
    """Why an input can't be listed: StoreUnavailable for what may pass."""
    said = f"--input {storage.redact(source)!r}"
    if error.failure.code in PASSING_CODES:
        return storage.unavailable(said, error.failure.message)
    return ConfigurationError(f"{said}: {error.failure.message}")


def empty(source: str) -> ConfigurationError:
    """What to say of an input without an image."""
    return ConfigurationError(
        f"--input {storage.redact(source)!r} holds no images; "
        "give a folder, a glob, a file or a manifest with at least one row"
    )


def read(source: str, extras: Sequence[str] = (), *, limit: int | None = None) -> pa.Table:
    """A manifest that fits in memory: the columns of SCHEMA, then the extras as text, null where it lacks them.

    extras: further columns such as label, group, series, step, split. A listing has none of them, nor have images
        inside Parquet files.
    Raises ConfigurationError as `load` does.
    """
    with scratch_folder() as scratch:
        spool = Path(scratch) / "manifest.parquet"
        source = load(source, spool, limit=limit).source
        base = pq.read_table(spool, memory_map=False)
        if (
            not source.lower().endswith(TABLE_SUFFIXES)
            or storage.is_folder(source)
            or shards.holds_images(source, DEFAULT)
        ):
            nothing = pa.nulls(base.num_rows, pa.string())
            for name in extras:
                base = base.append_column(name, nothing)
            return base
        local = source
        if not storage.is_local(source):
            local = str(Path(scratch) / ("manifest" + Path(source).suffix.lower()))
            storage.download(source, local)
        with connect() as database:
            relation = reader(local)
            types = {row[0]: row[1] for row in database.sql(f"DESCRIBE SELECT * FROM {relation}").fetchall()}
            columns = ", ".join(f"{_text(name, types)} AS {identifier(name)}" for name in extras)
            limited = f"LIMIT {int(limit)}" if limit is not None else ""
            if not extras:
                return base
            # Both were read in the file's order: rows correspond by position.
            more: pa.Table = database.sql(f"SELECT {columns} FROM {relation} {limited}").to_arrow_table()
    for name in extras:
        base = base.append_column(name, more[name])
    return base


def _normalise(source: str, spool: Path, wanted: Wanted, found: shards.Found) -> int:
    tables = list_images(source, wanted, found)
    if tables is None:
        return _spool_table(source, spool, wanted.limit)
    with pq.ParquetWriter(spool, SCHEMA) as writer:
        rows = write_rows(tables, writer, wanted.limit)
    if is_unordered(source, wanted):
        in_order(spool, SCHEMA)
    refuse_duplicates([spool], "the listing")
    return rows


def is_unordered(source: str, wanted: Wanted) -> bool:
    """Whether a listing comes in any order, and has to be sorted."""
    return not storage.is_local(source) and wanted.limit is None


def list_images(source: str, wanted: Wanted, found: shards.Found) -> Iterator[pa.Table] | None:
    """The images of an input in tables of the schema `listing.listed_schema`; None where it is a manifest itself.

    Raises ConfigurationError where nothing is there.
    """
    ordered = not is_unordered(source, wanted)
    try:
        if storage.is_folder(source):
            root, tables = (
                source,
                listing.batches(source, in_order=ordered, access=wanted.access, special=found.add_special),
            )
        elif storage.exists(source):
            if source.lower().endswith(TABLE_SUFFIXES) and not shards.holds_images(source, wanted.access):
                return None
            root, tables = source.rpartition("/")[0], listing.as_tables(iter([_single(source)]))
        elif _WILDCARDS.search(source):
            root = _root_of(source)
            tables = _matching(source, root, wanted.access, found, ordered=ordered)
        else:
            raise ConfigurationError(f"--input {storage.redact(source)!r} does not exist; check the path")
    except OSError as error:
        raise _unreadable(source, error) from error
    for unwanted in wanted.without:
        tables = _without(tables, root, unwanted)
    return _guarded(
        source,
        shards.taken_apart(tables, found, access=wanted.access, column=wanted.image_column, in_order=ordered),
    )


def _guarded(source: str, tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    try:
        yield from tables
    except OSError as error:
        raise _unreadable(source, error) from error


def _unreadable(source: str, error: OSError) -> ConfigurationError:
    reason = error.strerror or storage.redact(str(error)).splitlines()[0][:200]
    return ConfigurationError(f"--input {storage.redact(source)!r} can't be read: {reason}")


def _without(tables: Iterator[pa.Table], root: str, unwanted: str) -> Iterator[pa.Table]:
    """The listing of `root` without what lies at or below a place, also where links lead there."""
    if storage.is_local(root) != storage.is_local(unwanted):
        return tables
    if storage.is_local(root):
        below = os.path.relpath(os.path.realpath(unwanted), os.path.realpath(root))
    else:
        prefix = listing.split_options(root)[0] + "/"
        unwanted, _ = listing.split_options(unwanted)
        below = unwanted.removeprefix(prefix) if unwanted.startswith(prefix) else ".."
    if below.split("/")[0] == "..":
        return tables
    return (
        table.filter(
            pc.invert(pc.or_(pc.equal(table["name"], below), pc.starts_with(table["name"], below.rstrip("/") + "/")))
        )
        for table in tables
    )


def _single(source: str) -> storage.Listed:
    name = source.rsplit("/", 1)[-1]
    if storage.is_local(source):
        return storage.listed_file(source, name)
    marks = reading.marks(source, access=DEFAULT)
    return storage.Listed(name=name, uri=source, etag=marks.etag, bytes=marks.bytes)


def _root_of(pattern: str) -> str:
    start = _WILDCARDS.search(pattern)
    assert start is not None
    return pattern[: start.start()].rpartition("/")[0] or "/"


def _matching(pattern: str, root: str, access: Access, found: shards.Found, *, ordered: bool) -> Iterator[pa.Table]:
    """Files that match a glob; ids are relative to the part before the first wildcard."""
    if storage.is_local(pattern):
        return listing.as_tables(_matching_local(pattern, root, found))
    return (
        table.filter(pa.array([fnmatch.fnmatchcase(uri, pattern) for uri in table["uri"].to_pylist()], pa.bool_()))
        for table in listing.batches(root, in_order=ordered, access=access)
    )


def _matching_local(pattern: str, root: str, found: shards.Found) -> Iterator[storage.Listed]:
    for path in sorted(glob.iglob(pattern, recursive=True)):
        name = os.path.relpath(path, root)
        if any(storage.hidden(part) for part in name.split("/")):
            continue
        if os.path.isfile(path):
            yield storage.listed_file(path, name)
        elif listing.is_special(path):
            found.add_special()


def write_rows(tables: Iterator[pa.Table], writer: pq.ParquetWriter, limit: int | None = None) -> int:
    """Write listed images as rows of the writer's schema, the first `limit` of them; returns how many."""
    rows = 0
    waiting: list[pa.Table] = []
    for table in tables:
        if limit is not None:
            table = table.slice(0, limit - rows)
        rows += table.num_rows
        waiting.append(table)
        # A row group for every page of a listing would make a file that is mostly its own index.
        if sum(one.num_rows for one in waiting) >= _ROWS_AT_ONCE:
            _write(waiting, writer)
            waiting = []
        if limit is not None and rows >= limit:
            break
    if rows:
        _write(waiting, writer)
    return rows


def _write(tables: Sequence[pa.Table], writer: pq.ParquetWriter) -> None:
    if not tables:
        return
    table = pa.concat_tables(tables)
    columns = {
        "image_id": table["name"],
        "uri": table["uri"],
        "box": pa.nulls(table.num_rows, SCHEMA.field("box").type),
        "etag": table["etag"],
        "bytes": table["bytes"],
        "modified": table["modified"],
    }
    writer.write_table(pa.table([columns[name] for name in writer.schema.names], schema=writer.schema))


def in_order(spool: Path, schema: pa.Schema) -> None:
    """Sort the rows of a manifest by image_id, out of core: the same photographs give the same manifest."""
    columns = ", ".join(identifier(name) for name in schema.names)
    ordered = spool.with_name(f"{spool.name}.ordered")
    with connect() as database:
        database.sql(
            f"COPY (SELECT {columns} FROM read_parquet({literal(spool)}) ORDER BY image_id) "
            f"TO {literal(ordered)} (FORMAT parquet, ROW_GROUP_SIZE {ROW_GROUP})"
        )
    ordered.replace(spool)


def _spool_table(source: str, spool: Path, limit: int | None) -> int:
    with scratch_folder() as scratch:
        local = source
        if not storage.is_local(source):
            local = str(Path(scratch) / ("manifest" + Path(source).suffix.lower()))
            storage.download(source, local)
        rows, has_etags = _normalise_table(local, source, spool, limit)
        if not has_etags:
            _mark_changes(spool, Path(scratch) / "marked.parquet")
        return rows


def _mark_changes(spool: Path, marked: Path) -> None:
    """Give local files their change marks, so that another content behind the same path is noticed."""
    with pq.ParquetFile(spool) as unmarked, pq.ParquetWriter(marked, SCHEMA) as writer:
        for batch in unmarked.iter_batches(_ROWS_AT_ONCE):
            rows = batch.to_pylist()
            for row in rows:
                if row["uri"] and storage.is_local(row["uri"]):
                    with contextlib.suppress(ImageError):
                        row["etag"], _ = storage.change_marks(storage.local_path(row["uri"]))
            writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
    shutil.move(marked, spool)


def _normalise_table(local: str, source: str, spool: Path, limit: int | None) -> tuple[int, bool]:
    import duckdb

    name = storage.redact(source)
    with connect() as database:
        try:
            relation = reader(local)
            described = database.sql(f"DESCRIBE SELECT * FROM {relation}").fetchall() if relation else []
        except (duckdb.Error, UnicodeDecodeError, csv.Error) as error:
            raise ConfigurationError(f"manifest {name!r} can't be read as a table: {_reason(error)}") from error
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
            raise ConfigurationError(f"manifest {name!r} holds a row that can't be read: {_reason(error)}") from error
        rows, without_id = database.sql(
            f"SELECT count(*), count(*) FILTER (image_id IS NULL OR image_id = '') FROM read_parquet({literal(spool)})"
        ).fetchall()[0]
    if without_id:
        raise ConfigurationError(f"manifest {name!r} has {without_id} rows without an image_id; give each row one")
    refuse_duplicates([spool], f"manifest {name!r}")
    return rows, "etag" in types


def _reason(error: Exception) -> str:
    return " ".join(" ".join(str(error).splitlines()[:3]).split())[:300]


def reader(path: str) -> str | None:
    """A table function that reads the file; None for a CSV file without a header."""
    lowered = path.lower()
    if lowered.endswith(".parquet"):
        return f"read_parquet({literal(path)})"
    if lowered.endswith(".csv"):
        return _csv_reader(path)
    # Depth 1 keeps each value as it is written: detection would turn ids into dates, times or numbers. Keys
    # that only later rows have count too.
    return (
        f"read_json({literal(path)}, format = 'newline_delimited', maximum_depth = 1, sample_size = -1, "
        "maximum_object_size = 16777216)"
    )


def _csv_reader(path: str) -> str | None:
    """Everything as text (an id such as 007 must stay what it is), and nothing guessed but the delimiter.

    DuckDB's detection takes a ragged row for another header, or skips it.
    """
    with open(path, encoding="utf-8-sig", newline="") as file:
        first = file.readline()
    delimiter = max(",;\t|", key=first.count)
    header = next(csv.reader([first], delimiter=delimiter), [])
    if not first.strip():
        return None
    columns = ", ".join(f"{literal(name.strip())}: 'VARCHAR'" for name in header)
    return (
        f"read_csv({literal(path)}, auto_detect = false, header = true, delim = {literal(delimiter)}, quote = '\"', "
        f"escape = '\"', null_padding = true, nullstr = '', columns = {{{columns}}})"
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
    else:
        # JSON and text: a list, an object of x, y, w and h, or four numbers with commas or spaces.
        text = "trim(CAST(box AS VARCHAR), ' \"')"
        absent = f"coalesce({text}, '') IN ('', 'null')"
        bare = f"trim(regexp_replace({text}, '[\\[\\]()]', '', 'g'))"
        members = ", ".join(f"json_extract_string(TRY_CAST({text} AS JSON), '$.{side}')" for side in "xywh")
        value = (
            f"CASE WHEN {text} LIKE '{{%' THEN [{members}] ELSE regexp_split_to_array({bare}, '\\s*[,;\\s]\\s*') END"
        )
    numbers = f"coalesce(TRY_CAST({value} AS DOUBLE[]), [])"
    whole = f"len(list_filter({numbers}, lambda side: side IS NOT NULL AND side = trunc(side))) = len({numbers})"
    return f"CASE WHEN {absent} THEN NULL WHEN {whole} THEN TRY_CAST({numbers} AS BIGINT[]) ELSE [] END"


def refuse_duplicates(files: Sequence[Path], what: str) -> None:
    """Raise ConfigurationError where an image_id stands twice in these files together."""
    with connect() as database:
        twice = database.sql(
            f"""SELECT image_id, count(*) AS times FROM read_parquet([{", ".join(map(literal, files))}])
                GROUP BY image_id HAVING count(*) > 1 ORDER BY image_id LIMIT 4"""
        ).fetchall()
    if twice:
        shown = ", ".join(f"{image_id!r} ({times} times)" for image_id, times in twice[:3])
        raise ConfigurationError(
            f"{what} names an image_id more than once: {shown}{', ...' if len(twice) > 3 else ''}; make them unique"
        )

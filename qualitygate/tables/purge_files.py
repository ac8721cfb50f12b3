"""Taking photographs out of a file, by its kind: rows of tables, entries of records, mentions in text.

Each kind has one function that takes a file and returns the number of places that hold an id; given a target, it
writes there what is left of the file. What finds is thus what cleans, and asked once more afterwards it proves that
nothing is left.
"""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from qualitygate.tables.mentions import ID_KEYS, PURGED, Ids, without

# A location is an id where a table has no ids of its own.
_ID_COLUMNS = (*ID_KEYS, "uri")
# Where sentences stand, which may mention an id.
_SENTENCES = ("message", "error", "note", "reason", "warning", "text")

# Of a file: how many places hold an id; with a target, what is left of it is written there, unless nothing is.
Cleaner = Callable[[Path, Ids, Path | None], int]


def parquet(path: Path, ids: Ids, target: Path | None = None) -> int:
    """Rows of the photographs, and other cells that name one; the file's metadata as well."""
    with pq.ParquetFile(path) as file:
        schema, found = _metadata(_without_views(file.schema_arrow), ids)
        compression = _compression(file)
        writer = pq.ParquetWriter(target, schema, compression=compression) if target is not None else None
        try:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group)
                table = table.cast(_without_views(table.schema))
                kept, count = _rows(table, ids)
                found += count
                if writer is not None and kept.num_rows:
                    writer.write_table(kept.replace_schema_metadata(schema.metadata), row_group_size=kept.num_rows)
        finally:
            if writer is not None:
                writer.close()
    return found


def _without_views(schema: pa.Schema) -> pa.Schema:
    """The schema with texts for views of texts, as Delta's own deletes leave them: Arrow can't filter these."""
    fields = [field.with_type(pa.string()) if pa.types.is_string_view(field.type) else field for field in schema]
    return pa.schema(fields, metadata=schema.metadata)


def _compression(file: pq.ParquetFile) -> str:
    if file.num_row_groups and file.metadata.num_columns:
        name = file.metadata.row_group(0).column(0).compression
        return "none" if name == "UNCOMPRESSED" else str(name).lower()
    return "snappy"


def _metadata(schema: pa.Schema, ids: Ids) -> tuple[pa.Schema, int]:
    if not schema.metadata:
        return schema, 0
    cleaned, found = {}, 0
    for key, value in schema.metadata.items():
        text, count = _json_or_text(value.decode("utf-8", "surrogateescape"), ids)
        cleaned[key] = text.encode("utf-8", "surrogateescape")
        found += count
    return (schema.with_metadata(cleaned), found) if found else (schema, 0)


def _json_or_text(text: str, ids: Ids) -> tuple[str, int]:
    if not ids.inside(text) and not any(one in text for one in ids.indistinct):
        return text, 0
    try:
        value, count = without(json.loads(text), ids)
    except ValueError:
        cleaned = ids.replaced(text)
        return cleaned, int(cleaned != text)
    return (json.dumps(value), count) if count else (text, 0)


def _rows(table: pa.Table, ids: Ids) -> tuple[pa.Table, int]:
    exact = pa.array(sorted(ids.exact), pa.string())
    gone = pa.chunked_array([pa.repeat(False, table.num_rows)]) if table.num_rows else pa.chunked_array([], pa.bool_())
    for name in _ID_COLUMNS:
        if name in table.column_names and _is_text(table.schema.field(name).type):
            matches = pc.fill_null(pc.is_in(_plain(table[name]), exact), False)
            if pc.any(matches).as_py():
                ids.met.update(pc.unique(_plain(table[name]).filter(matches)).to_pylist())
                gone = pc.or_(gone, matches)
    count = pc.sum(gone).as_py() or 0
    table = table.filter(pc.invert(gone)) if count else table
    for place, field in enumerate(table.schema):
        if field.name in _ID_COLUMNS and _is_text(field.type):
            continue
        column, more = _cells(table.column(place), field, ids)
        if more:
            count += more
            table = table.set_column(place, field, column)
    return table, count


def _cells(column: pa.ChunkedArray, field: pa.Field, ids: Ids) -> tuple[pa.ChunkedArray, int]:
    """Cells of a column that isn't about ids: an id in one of them is replaced."""
    if _is_text(field.type):
        plain = _plain(column)
        if any(word in field.name.lower() for word in _SENTENCES):
            hit = {text for text in pc.unique(plain).to_pylist() if text and (text in ids.exact or ids.inside(text))}
        else:
            values = pa.array(sorted(ids.distinctive), pa.string())
            hit = set(pc.unique(plain.filter(pc.fill_null(pc.is_in(plain, values), False))).to_pylist())
        if not hit:
            return column, 0
        ids.met |= hit & ids.exact
        places = pc.fill_null(pc.is_in(plain, pa.array(sorted(hit), pa.string())), False)
        values = [
            text if text not in hit else PURGED if text in ids.exact else ids.replaced(text)
            for text in plain.to_pylist()
        ]
        return pa.chunked_array([pa.array(values, pa.string()).cast(field.type)]), int(pc.sum(places).as_py())
    if not _holds_text(field.type):
        return column, 0
    cleaned, found = [], 0
    for value in column.to_pylist():
        # A map comes as pairs, which lists hold as they hold others.
        left, count = without(_listed(value), ids)
        found += count
        cleaned.append(left if count else value)
    return (pa.chunked_array([pa.array(cleaned, field.type)]), found) if found else (column, 0)


def _listed(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_listed(one) for one in value]
    return value


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _holds_text(kind: pa.DataType) -> bool:
    if pa.types.is_map(kind):
        return _holds_text(kind.item_type) or _holds_text(kind.key_type)
    if pa.types.is_nested(kind):
        return any(_holds_text(kind.field(place).type) for place in range(kind.num_fields))
    return _is_text(kind)


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.string())


def record(path: Path, ids: Ids, target: Path | None = None) -> int:
    """Entries of a JSON file that are about the photographs, and mentions of them in its texts."""
    text = path.read_text(encoding="utf-8")
    try:
        value, found = without(json.loads(text), ids)
    except ValueError:
        return sentences(path, ids, target)
    if target is not None and value is not None:
        target.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return found


def lines(path: Path, ids: Ids, target: Path | None = None) -> int:
    """The same for JSON a line: a line that is about a photograph goes."""
    found, kept = 0, []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            value, count = without(json.loads(line), ids) if line.strip() else (line, 0)
        except ValueError:
            cleaned = ids.replaced(line)
            value, count = cleaned, int(cleaned != line)
            kept.append(cleaned)
            found += count
            continue
        found += count
        if not count:
            kept.append(line)
        elif value is not None:
            kept.append(json.dumps(value, ensure_ascii=False))
    if target is not None:
        target.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    return found


def comma_separated(path: Path, ids: Ids, target: Path | None = None) -> int:
    """Rows of a CSV file with a column of ids; without one, it is text."""
    found = 0
    with path.open(encoding="utf-8-sig", newline="") as source:
        reader = csv.reader(source)
        header = next(reader, [])
        places = [place for place, name in enumerate(header) if name.strip() in _ID_COLUMNS]
        if not places:
            return sentences(path, ids, target)
        out = io.StringIO() if target is None else target.open("w", encoding="utf-8", newline="")
        with out:
            writer = csv.writer(out, lineterminator="\n")
            writer.writerow(header)
            for row in reader:
                if any(place < len(row) and ids.is_one(row[place]) for place in places):
                    found += 1
                    continue
                cleaned = [
                    value if place in places or not ids.inside(value) else ids.replaced(value)
                    for place, value in enumerate(row)
                ]
                found += sum(before != after for before, after in zip(row, cleaned, strict=True))
                writer.writerow(cleaned)
    return found


def sentences(path: Path, ids: Ids, target: Path | None = None) -> int:
    """Lines that are an id go; mentions in others are replaced."""
    found, kept = 0, []
    for line in path.read_text(encoding="utf-8", errors="surrogateescape").splitlines(keepends=True):
        if ids.is_one(line.strip()):
            found += 1
            continue
        cleaned = ids.replaced(line)
        found += cleaned != line
        kept.append(cleaned)
    if target is not None:
        target.write_text("".join(kept), encoding="utf-8", errors="surrogateescape")
    return found


CLEANERS: dict[str, Cleaner] = {
    ".parquet": parquet,
    ".json": record,
    ".jsonl": lines,
    ".ndjson": lines,
    ".csv": comma_separated,
    ".txt": sentences,
    ".html": sentences,
    ".htm": sentences,
    ".md": sentences,
    ".yaml": sentences,
    ".yml": sentences,
    ".log": sentences,
    ".prom": sentences,
}


def binary(path: Path, ids: Ids) -> int:
    """Ids whose bytes any other file holds; these files aren't rewritten."""
    with path.open("rb") as stream:
        return len(ids.in_bytes(stream))

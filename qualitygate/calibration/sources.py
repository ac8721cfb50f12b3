"""Tables that calibration and gate read: an output folder of ours, or the user's own Parquet, CSV or JSONL file."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from qualitygate.errors import ConfigurationError, ImageError
from qualitygate.tables import manifest, scores, storage
from qualitygate.tables.sql import identifier, literal

if TYPE_CHECKING:
    import duckdb

SUFFIXES = manifest.TABLE_SUFFIXES
EXTERNAL = "external"
UNTRAINED = "untrained-"
_KINDS = "Parquet, CSV or JSONL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One table, readable in SQL under the name of its view.

    name: the role and the place, as messages name it. columns: SQL types by name. own: our score table, whose
    scores carry fingerprints. folder: where its records lie beside it; None for a single file.
    """

    view: str
    name: str
    columns: dict[str, str] = field(default_factory=dict)
    own: bool = False
    folder: str | None = None

    def text(self, column: str) -> str:
        """SQL for a column as text, null where the table lacks it; empty text counts as null."""
        if column not in self.columns:
            return "CAST(NULL AS VARCHAR)"
        return f"nullif(CAST({identifier(column)} AS VARCHAR), '')"

    def number(self, column: str) -> str:
        """SQL for a column as float64, null where the table lacks it or the value is no number."""
        return f"TRY_CAST({self.text(column)} AS DOUBLE)" if column in self.columns else "CAST(NULL AS DOUBLE)"

    def require(self, columns: Sequence[str], remedy: str) -> None:
        """ConfigurationError, naming what there is, when a column is absent."""
        absent = [column for column in columns if column not in self.columns]
        if absent:
            raise ConfigurationError(
                f"{self.name} lacks the column{'s' * (len(absent) > 1)} {', '.join(absent)} "
                f"(it has {', '.join(self.columns) or 'none'}); {remedy}"
            )


def open_scores(database: "duckdb.DuckDBPyConnection", location: str, scratch: Path) -> Source:
    """The scores as the view `scores`: an output folder of 'score', or a table with image_id and the methods.

    Raises ConfigurationError: nothing there, no table, one that can't be read or has no image_id.
    """
    role = "--scores"
    location = _checked(location, role)
    own = _output_of(location)
    if own is not None:
        table = scores.existing_table(own)
        scores.register(database, table, "scores")
        name = f"{role} {storage.redact(location)!r}"
        return Source(view="scores", name=name, columns=_columns(database, "scores"), own=True, folder=own)
    found = _file(location, role, ("scores.parquet",), "run 'qualitygate score' into it first")
    source = _open_file(database, found, role, "scores", scratch)
    source.require(["image_id"], "rename or add it")
    return source


def open_predictions(database: "duckdb.DuckDBPyConnection", location: str, scratch: Path) -> Source:
    """The predictions as the view `predictions`: an output folder of 'predict', or a table of the user's.

    Raises ConfigurationError: nothing there, no table, one that can't be read or lacks a column.
    """
    role = "--predictions"
    location = _checked(location, role)
    found = _file(location, role, ("predictions.parquet",), "run 'qualitygate predict' into it first")
    source = _open_file(database, found, role, "predictions", scratch)
    source.require(["image_id", "correct", "confidence"], "rename or add what is absent")
    return source


def _checked(location: str, role: str) -> str:
    if not location.strip():
        raise ConfigurationError(f"{role} is empty; give a folder or a table")
    try:
        location = storage.check_location(location, role).rstrip("/") or "/"
        if not storage.exists(location):
            raise ConfigurationError(f"{role} {storage.redact(location)!r} does not exist; check the path")
    except (ImageError, OSError) as error:
        reason = error.failure.message if isinstance(error, ImageError) else storage.redact(str(error))
        raise ConfigurationError(f"{role} {storage.redact(location)!r} can't be read: {reason}") from error
    return location


def _output_of(location: str) -> str | None:
    """The output folder whose score table this is: itself, or the folder above its scores/."""
    if storage.is_folder(storage.join(location, "scores", "_delta_log")):
        return location
    if storage.is_folder(storage.join(location, "_delta_log")) and location.rpartition("/")[2] == "scores":
        return location.rpartition("/")[0] or "."
    return None


def _file(location: str, role: str, usual: Sequence[str], remedy: str) -> str:
    """The table that a location names: itself, the usual file of a folder, or the only table in it."""
    if not storage.is_folder(location):
        if not location.lower().endswith(SUFFIXES):
            raise ConfigurationError(f"{role} {storage.redact(location)!r} is no table; give a {_KINDS} file")
        return location
    for name in usual:
        if storage.exists(storage.join(location, name)):
            return storage.join(location, name)
    tables = [one.uri for one in storage.walk(location) if "/" not in one.name and one.name.lower().endswith(SUFFIXES)]
    if len(tables) == 1:
        return tables[0]
    what = f"holds {len(tables)} tables; name the file" if tables else f"holds no table; {remedy}, or give a file"
    raise ConfigurationError(f"{role} {storage.redact(location)!r} {what}")


def _open_file(database: "duckdb.DuckDBPyConnection", location: str, role: str, view: str, scratch: Path) -> Source:
    import duckdb

    name = f"{role} {storage.redact(location)!r}"
    try:
        local = location
        if not storage.is_local(location):
            local = str(scratch / (view + Path(location).suffix.lower()))
            storage.download(location, local)
        relation = manifest.reader(local)
        if relation is None:
            raise ConfigurationError(f"{name} is empty; give a table with a header and rows")
        database.execute(f"CREATE VIEW {identifier(view)} AS SELECT * FROM {relation}")
        columns = _columns(database, view)
        # A row that can't be read shows only when it is read.
        database.sql(f"SELECT count(COLUMNS(*)) FROM {identifier(view)}").fetchall()
    except (duckdb.Error, UnicodeDecodeError, csv.Error, OSError) as error:
        reason = " ".join(" ".join(str(error).splitlines()[:3]).split())[:300]
        raise ConfigurationError(f"{name} can't be read as a table: {storage.redact(reason)}") from error
    folder = location.rpartition("/")[0] or "."
    return Source(view=view, name=name, columns=columns, folder=folder)


def _columns(database: "duckdb.DuckDBPyConnection", view: str) -> dict[str, str]:
    return {row[0]: row[1] for row in database.sql(f"DESCRIBE SELECT * FROM {identifier(view)}").fetchall()}


# ---- questions about scores ------------------------------------------------------------------------------


def methods_in(source: Source) -> list[str]:
    """Columns that may be a method's scores."""
    if source.own:
        return scores.metrics_of_columns(list(source.columns))
    known = {one.name for one in (*scores.COMMON_FIELDS, *scores.LAZY_FIELDS)}
    parts = {scores.state_column, scores.fingerprint_column}
    beside = {part(name) for name in source.columns for part in parts}
    return [name for name in source.columns if name not in known and name not in beside]


def fingerprints_of(database: "duckdb.DuckDBPyConnection", source: Source, method: str) -> dict[str, int]:
    """Rows that have a score, by the fingerprint it carries; "external" for those without."""
    column = f"coalesce({source.text(scores.fingerprint_column(method))}, {literal(EXTERNAL)})"
    found = database.sql(
        f"SELECT {column}, count(*) FROM {identifier(source.view)} "
        f"WHERE {source.text(method)} IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1"
    ).fetchall()
    return {str(name): int(rows) for name, rows in found}


def duplicates(database: "duckdb.DuckDBPyConnection", source: Source) -> str | None:
    """In words, which image_ids stand more than once; None when none does."""
    found = database.sql(
        f"SELECT {source.text('image_id')} AS id, count(*) AS times FROM {identifier(source.view)} "
        "GROUP BY 1 HAVING count(*) > 1 AND id IS NOT NULL ORDER BY 1 LIMIT 4"
    ).fetchall()
    if not found:
        return None
    shown = ", ".join(f"{name!r} ({times} times)" for name, times in found[:3])
    return f"an image_id stands more than once: {shown}{', ...' if len(found) > 3 else ''}"

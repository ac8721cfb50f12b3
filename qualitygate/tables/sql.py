"""DuckDB, for joins and aggregates over more rows than fit in memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from qualitygate.tables.scratch import scratch_folder

if TYPE_CHECKING:
    import duckdb

# Enough for a join of ten million ids; beyond it DuckDB spills to the temporary folder.
MEMORY_LIMIT = "1GB"


@contextmanager
def connect() -> "Iterator[duckdb.DuckDBPyConnection]":
    """An in-memory database with bounded memory, that keeps row order and reads only what it is told to."""
    import duckdb

    with (
        scratch_folder() as scratch,
        duckdb.connect(
            config={
                "memory_limit": MEMORY_LIMIT,
                "temp_directory": scratch,
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
            }
        ) as database,
    ):
        yield database


def literal(value: str | Path) -> str:
    """A quoted SQL string."""
    return "'" + str(value).replace("'", "''") + "'"


def identifier(name: str) -> str:
    """A quoted SQL identifier."""
    return '"' + name.replace('"', '""') + '"'

"""A listing that goes on while its first photographs are scored: what was found so far comes in portions.

A store that holds hundreds of millions of photographs takes an hour to list. A thread lists and writes small files;
each portion is what was written since the one before. Portions grow by themselves, since listing is much faster than
scoring, so few are made.
"""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from qualitygate.errors import ImageError
from qualitygate.tables import shards
from qualitygate.tables.manifest import (
    ROW_GROUP,
    SCHEMA,
    Manifest,
    Wanted,
    checked,
    empty,
    is_unordered,
    list_images,
    refuse_duplicates,
    unlisted,
    write_rows,
)
from qualitygate.tables.sql import connect, literal

_ROWS_A_FILE = 50_000
_SECONDS_A_FILE = 2.0
_PATIENCE_S = 5.0


def begin(source: str, folder: Path, wanted: Wanted) -> "Growing | None":
    """Start to list an input into files of a folder that isn't there yet; None where it is a manifest itself.

    Raises ConfigurationError as `manifest.load` where nothing is there.
    """
    source = checked(source)
    found = shards.Found()
    try:
        tables = list_images(source, wanted, found)
    except ImageError as error:
        raise unlisted(source, error) from error
    return Growing(source, tables, found, folder, sort=is_unordered(source, wanted)) if tables is not None else None


class Growing:
    """A listing under way. Use as a context, so that the thread ends with it."""

    def __init__(
        self, source: str, tables: Iterator[pa.Table], found: shards.Found, folder: Path, *, sort: bool
    ) -> None:
        self.source = source
        self._sort = sort
        self._tables = tables
        self._found = found
        self._folder = folder
        self._changed = threading.Condition()
        # Rows of each file that is whole, by number.
        self._files: list[int] = []
        self._taken = 0
        self._ended = False
        self._stopped = False
        self._error: Exception | None = None
        folder.mkdir(parents=True)
        self._thread = threading.Thread(target=self._list, name="listing", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Growing":
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._stopped = True
        # A request that hangs is not waited for: the thread ends with the process.
        self._thread.join(_PATIENCE_S)

    def wait(self, seconds: float) -> bool:
        """Whether the listing has ended, after so many seconds at most. Raises what ended it before its end."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended, seconds)
            self._raise()
            return self._ended

    @property
    def rows(self) -> int:
        """Listed so far."""
        with self._changed:
            return sum(self._files)

    @property
    def waiting(self) -> int:
        """Of these, in no portion yet."""
        with self._changed:
            return sum(self._files[self._taken :])

    def portion(self) -> Manifest | None:
        """What was listed since the last call, once there is anything; None when all has been handed out.

        Raises ConfigurationError as `manifest.load` when the listing failed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ended or len(self._files) > self._taken)
            self._raise()
            first, last = self._taken, len(self._files)
            self._taken = last
            rows = sum(self._files[first:last])
        if last == first:
            return None
        # An archive may name an image twice: better said before than after it is scored.
        refuse_duplicates([self._file(number) for number in range(last)], "the listing")
        return self._manifest(range(first, last), f"portion-{first:06}.parquet", rows)

    def all(self) -> Manifest:
        """All that was listed, so far or, after the last portion, altogether."""
        with self._changed:
            last, rows = len(self._files), sum(self._files)
        return self._manifest(range(last), "all.parquet", rows)

    def whole(self) -> Manifest:
        """An ended listing as `manifest.load` makes it, in the order of the ids."""
        if not self._files:
            raise empty(self.source)
        spool = self._folder / "whole.parquet"
        order = "ORDER BY image_id" if self._sort else ""
        with connect() as database:
            database.sql(
                f"COPY (SELECT * FROM {self._read(range(len(self._files)))} {order}) "
                f"TO {literal(spool)} (FORMAT parquet, ROW_GROUP_SIZE {ROW_GROUP})"
            )
        refuse_duplicates([spool], "the listing")
        return Manifest(path=spool, rows=sum(self._files), source=self.source, notes=tuple(self._found.notes()))

    def _manifest(self, numbers: range, name: str, rows: int) -> Manifest:
        path = self._folder / name
        if not numbers:
            pq.write_table(SCHEMA.empty_table(), path)
            return Manifest(path=path, rows=0, source=self.source)
        with connect() as database:
            database.sql(
                f"COPY (SELECT * FROM {self._read(numbers)}) "
                f"TO {literal(path)} (FORMAT parquet, ROW_GROUP_SIZE {ROW_GROUP})"
            )
        return Manifest(path=path, rows=rows, source=self.source, notes=tuple(self._found.notes()))

    def _read(self, numbers: range) -> str:
        files = ", ".join(literal(self._file(number)) for number in numbers)
        return f"read_parquet([{files}])"

    def _file(self, number: int) -> Path:
        return self._folder / f"{number:06}.parquet"

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    # ---- the thread ------------------------------------------------------------------------------------------

    def _list(self) -> None:
        try:
            waiting: list[pa.Table] = []
            since = time.monotonic()
            for table in self._tables:
                waiting.append(table)
                if self._stopped:
                    return
                if sum(map(len, waiting)) >= _ROWS_A_FILE or time.monotonic() - since >= _SECONDS_A_FILE:
                    self._write(waiting)
                    waiting, since = [], time.monotonic()
            self._write(waiting)
        except ImageError as error:
            self._error = unlisted(self.source, error)
        except Exception as error:  # told to whoever waits for the next portion
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _write(self, tables: list[pa.Table]) -> None:
        rows = sum(map(len, tables))
        if not rows:
            return
        with pq.ParquetWriter(self._file(len(self._files)), SCHEMA) as writer:
            write_rows(iter(tables), writer)
        with self._changed:
            self._files.append(rows)
            self._changed.notify_all()

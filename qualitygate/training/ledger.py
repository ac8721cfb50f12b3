"""The ledger of a study: one file for each finished run, and where an unfinished one goes on.

`DIR/ledger/<run id>.parquet` holds a run's predictions and, in the file's metadata, its row. It appears whole or not at
all, and what is finished is never written again. A failed run has `<run id>.failed.json` instead.
"""

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from qualitygate.errors import ConfigurationError, ImageError
from qualitygate.tables import storage
from qualitygate.tables.scratch import scratch_folder
from qualitygate.training.results import PREDICTIONS

FOLDER = "ledger"
CHECKPOINTS = "_work/checkpoints"
_ROW = b"qualitygate.run"
_SUFFIX, _FAILED = ".parquet", ".failed.json"
_READ_AT_ONCE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A run that came to an end. predictions: of `results.PREDICTIONS`; None for a run that failed."""

    row: dict[str, Any]
    predictions: pa.Table | None


@dataclass(frozen=True, slots=True)
class Ledger:
    """The ledger below a study's output folder, a path or a URI."""

    output: str

    def write(self, row: Mapping[str, Any], predictions: pa.Table) -> bool:
        """Keep a finished run; False, and nothing is changed, where it is there already."""
        table = predictions.cast(PREDICTIONS).replace_schema_metadata({_ROW: _json(row)})
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        written = _create(self._uri(row["run_id"], _SUFFIX), buffer.getvalue())
        storage_uri = self._uri(row["run_id"], _FAILED)
        if storage.exists(storage_uri):
            storage.delete(storage_uri)
        return written

    def write_failure(self, row: Mapping[str, Any]) -> None:
        """Keep why a run came to nothing; a later attempt may replace that."""
        if not storage.exists(self._uri(row["run_id"], _SUFFIX)):
            storage.write_bytes(self._uri(row["run_id"], _FAILED), _json(row))

    def read(self, run_ids: Iterable[str]) -> dict[str, Entry]:
        """The entries of those of the runs that have one.

        Raises ConfigurationError for a file that can't be read.
        """
        wanted = list(run_ids)
        there = self._there(set(wanted))
        with ThreadPoolExecutor(_READ_AT_ONCE, thread_name_prefix="ledger") as readers:
            found = readers.map(
                lambda run_id: self._read(run_id, there[run_id]), [one for one in wanted if one in there]
            )
            return {entry.row["run_id"]: entry for entry in found}

    def _there(self, wanted: set[str]) -> dict[str, str]:
        """The suffix of each run's file; a finished one counts before a failed one."""
        folder = storage.join(self.output, FOLDER)
        if not storage.is_folder(folder):
            return {}
        names = {one.name for one in storage.walk(folder)}
        return {run_id: suffix for suffix in (_FAILED, _SUFFIX) for run_id in wanted if f"{run_id}{suffix}" in names}

    def _read(self, run_id: str, suffix: str) -> Entry:
        uri = self._uri(run_id, suffix)
        try:
            data = storage.read_bytes(uri) or b""
            if suffix == _FAILED:
                return Entry(row=json.loads(data), predictions=None)
            table = pq.read_table(io.BytesIO(data))
            row = json.loads((table.schema.metadata or {})[_ROW])
            if row["run_id"] != run_id:
                raise ValueError(f"it is of run {row['run_id']}")
            return Entry(row=row, predictions=table.cast(PREDICTIONS).replace_schema_metadata(None))
        except (ImageError, pa.ArrowException, OSError, KeyError, ValueError) as error:
            reason = " ".join(str(error).split())[:160]
            raise ConfigurationError(
                f"{storage.redact(uri)!r} can't be read ({reason}); delete it and run the same command again"
            ) from error

    def _uri(self, run_id: str, suffix: str) -> str:
        return storage.join(self.output, FOLDER, run_id + suffix)

    # ---- where an unfinished run goes on -------------------------------------------------------------------

    def save_checkpoint(self, run_id: str, content: Mapping[str, Any]) -> None:
        """Keep the state after an epoch in place of an earlier one: wholly or not at all.

        It isn't forced to the disk, as a run without a checkpoint merely starts anew.
        """
        uri = self._checkpoint(run_id)
        if not storage.is_local(uri):
            buffer = io.BytesIO()
            _save(content, buffer)
            storage.write_bytes(uri, buffer.getvalue())
            return
        path = Path(os.fsdecode(storage.local_path(uri)))
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix="_writing")
        try:
            with open(descriptor, "wb") as file:
                _save(content, file)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise

    def load_checkpoint(self, run_id: str) -> dict[str, Any] | None:
        """The state after the last epoch that was kept; None where there is none that can be read."""
        import torch

        uri = self._checkpoint(run_id)
        try:
            if storage.is_local(uri):
                source: Any = os.fsdecode(storage.local_path(uri))
            else:
                with scratch_folder() as scratch:
                    copy = os.path.join(scratch, "checkpoint.pt")
                    if not storage.exists(uri):
                        return None
                    storage.download(uri, copy)
                    source = io.BytesIO(Path(copy).read_bytes())
            content: dict[str, Any] = torch.load(source, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            return None
        except Exception:
            # Whatever is wrong with it: the run starts anew, with the same result.
            return None
        return content

    def delete_checkpoint(self, run_id: str) -> None:
        """Remove it; absent is fine."""
        uri = self._checkpoint(run_id)
        if storage.is_local(uri) or storage.exists(uri):
            storage.delete(uri)

    def _checkpoint(self, run_id: str) -> str:
        return storage.join(self.output, CHECKPOINTS, f"{run_id}.pt")


class _Remembering:
    """A file that keeps the error of a write: torch makes another of it, which no longer says that the disk is full."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def _save(content: Mapping[str, Any], file: BinaryIO) -> None:
    """The checkpoint into an open file; OSError where it can't be written."""
    import torch

    remembering = _Remembering(file)
    try:
        torch.save(dict(content), cast(BinaryIO, remembering))
    except RuntimeError as error:
        if remembering.error is not None:
            raise remembering.error from error
        raise


def _json(row: Mapping[str, Any]) -> bytes:
    # NaN is kept as such here; the table of runs makes it null.
    return json.dumps(dict(row), ensure_ascii=False).encode()


def _create(uri: str, data: bytes) -> bool:
    """Write an object that isn't there yet, whole or not at all; False where it is."""
    if storage.exists(uri):
        return False
    if not storage.is_local(uri):
        storage.write_bytes(uri, data)
        return True
    path = Path(os.fsdecode(storage.local_path(uri)))
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"_writing-{os.getpid()}-{path.name}")
    try:
        storage.write_bytes(str(beside), data)
        # A link, unlike a rename, never takes the place of what is there.
        os.link(beside, path)
    except FileExistsError:
        return False
    finally:
        beside.unlink(missing_ok=True)
    return True

"""Upkeep of a score table: many small files made into few large ones, and what nothing needs any more removed.

Neither claims the table, so a run that is at work stays the one that may commit: it goes on from the version that
compaction made. Compaction in its turn gives way: where the run replaced rows of the same files meanwhile, Delta
refuses its commit and it starts over. Vacuum leaves alone what is younger than the time to keep, so also the files
that a run has written and not yet committed.
"""

import json
import logging
import math
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from qualitygate.errors import AuditFailed, ConfigurationError, Superseded
from qualitygate.tables import scores, storage
from qualitygate.tables.sql import connect, identifier

if TYPE_CHECKING:
    from deltalake import DeltaTable

logger = logging.getLogger(__name__)

TARGET_BYTES = 256 << 20
KEEP = timedelta(days=7)
# Below, a running job's files and the versions that other programs are reading would be at stake.
SHORTEST_KEEP = timedelta(days=1)
_TRIES = 5
_PAUSE_S = 2.0
# Rows that are held while a file is written: some hundred megabytes with every column.
_ROW_GROUP = 1 << 17
# Rows that are compared at a time.
_BATCH = 1 << 14
# Who opens the table reads every commit since the last checkpoint.
_COMMITS_WORTH_A_CHECKPOINT = 10
# What whole writes and probes leave behind when their process is killed: `storage`.
_UNFINISHED = ("_writing", "_probe")


@dataclass(frozen=True, slots=True, kw_only=True)
class Compacted:
    """What a compaction did; files and bytes of the whole table, before and after.

    rows: those in the files that were rewritten, the same before and after by their content. version: of the table.
    """

    files_before: int
    files_after: int
    bytes_before: int
    bytes_after: int
    rows: int
    version: int
    checkpoint: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Vacuumed:
    """What a vacuum removed, or, where it was only to look, would remove.

    files, bytes: of the table's folder. runs: folders of work that was left to do. leftovers: files half written.
    """

    files: int
    bytes: int
    runs: int
    leftovers: int
    dry_run: bool


def compact(output: str, target_bytes: int = TARGET_BYTES) -> Compacted:
    """Rewrite small files of the table as files of about `target_bytes`; no row is added, lost or changed.

    Raises Superseded when a running job kept replacing the same rows, ConfigurationError without a table,
    AuditFailed when the rows aren't the same after (both versions are there to look at).
    """
    from deltalake import CommitProperties, WriterProperties
    from deltalake.exceptions import CommitFailedError

    uri = scores.table_uri(output)
    for attempt in range(_TRIES):
        table = scores.existing_table(output)
        read, commit_id = table.version(), uuid.uuid4().hex
        try:
            table.optimize.compact(
                target_size=target_bytes,
                # One at a time: each holds a file's rows.
                max_concurrent_tasks=1,
                writer_properties=WriterProperties(compression="ZSTD", max_row_group_size=_ROW_GROUP),
                commit_properties=CommitProperties(custom_metadata={scores.COMMIT: commit_id}),
            )
        except CommitFailedError as error:
            # Refused, unless only the answer was lost.
            if _version_of(uri, read, commit_id) is None:
                logger.info("compaction gives way: %s", type(error).__name__)
                time.sleep(_PAUSE_S * attempt)
                continue
        made = _version_of(uri, read, commit_id)
        return _compacted(output, table if made is None else scores.at_version(uri, made), changed=made is not None)
    raise Superseded(
        f"a job at work in {storage.redact(output)!r} replaced rows while they were being compacted, {_TRIES} times "
        "over; nothing was changed, compact again when it has ended"
    )


def _version_of(uri: str, read: int, commit_id: str) -> int | None:
    """The version after `read` that this commit made."""
    version = read + 1
    while (entry := scores.log_entry(uri, version)) is not None:
        if commit_id.encode() in entry:
            return version
        version += 1
    return None


def _compacted(output: str, after: "DeltaTable", *, changed: bool) -> Compacted:
    version = after.version()
    before = scores.at_version(scores.table_uri(output), version - 1) if changed else after
    rows = _check_rows(output, before, after) if changed else 0
    (files_before, bytes_before), (files_after, bytes_after) = _size(before), _size(after)
    return Compacted(
        files_before=files_before,
        files_after=files_after,
        bytes_before=bytes_before,
        bytes_after=bytes_after,
        rows=rows,
        version=version,
        checkpoint=_checkpoint(output),
    )


def _check_rows(output: str, before: "DeltaTable", after: "DeltaTable") -> int:
    """The number of rows in what was rewritten; AuditFailed unless they are the same rows after."""
    old, new = set(before.file_uris()), set(after.file_uris())
    gone, made = _content(before, old - new), _content(after, new - old)
    if gone != made:
        raise AuditFailed(
            f"compacting {storage.redact(output)!r} changed rows ({gone[0]} in, {made[0]} out); the table was right at "
            f"version {before.version()}: restore that (DeltaTable.restore), and report this as a bug"
        )
    return gone[0]


def _content(table: "DeltaTable", files: set[str]) -> tuple[int, int]:
    """(rows, a sum over all their values that doesn't depend on their order) of some of a version's files."""
    if not files:
        return 0, 0
    names = ", ".join(identifier(name) for name in scores.arrow_schema(table).names)
    # A scanner of a data set reads many files ahead; these may be large.
    scanner = scores.dataset(table, files).scanner(
        batch_size=_BATCH, batch_readahead=1, fragment_readahead=1, use_threads=False
    )
    with connect() as database:
        database.register("rows", scanner.to_reader())
        rows, total = database.sql(f"SELECT count(*), coalesce(sum(hash({names})), 0) FROM rows").fetchall()[0]
    return int(rows), int(total)


def _size(table: "DeltaTable") -> tuple[int, int]:
    """(files, bytes) of one version."""
    sizes = pa.table(table.get_add_actions(flatten=True))["size_bytes"].to_pylist()
    return len(sizes), sum(sizes)


def _checkpoint(output: str) -> bool:
    """Sum up the log's commits in one file, where that spares readers some requests; whether it did."""
    uri = scores.table_uri(output)
    table = scores.at_version(uri)
    last = storage.read_bytes(storage.join(uri, "_delta_log", "_last_checkpoint"))
    since = table.version() - (json.loads(last)["version"] if last else 0)
    if since < _COMMITS_WORTH_A_CHECKPOINT:
        return False
    table.create_checkpoint()
    return True


def vacuum(output: str, keep: timedelta = KEEP, *, dry_run: bool = False) -> Vacuumed:
    """Remove the files of versions that were replaced longer ago than `keep`, and what killed runs left behind.

    The table's older versions can't be read any more afterwards. ConfigurationError for less than a day, or without
    a table.
    """
    if keep < SHORTEST_KEEP:
        raise ConfigurationError(
            f"keep {keep.total_seconds() / 86400:g} days: a job that is at work would lose files; keep one day at least"
        )
    table = scores.existing_table(output)
    folder = scores.table_uri(output)
    sizes: dict[str, int] = {}
    old: list[storage.Listed] = []
    limit = datetime.now(UTC) - keep
    epoch = table.transaction_version(scores.APPLICATION) or 0
    young: set[str] = set()
    for item in storage.everything(output):
        if item.name.startswith("scores/"):
            sizes[item.name.removeprefix("scores/")] = item.bytes or 0
        run = _run_of(item.name)
        if run is not None or item.name.rsplit("/", 1)[-1].startswith(_UNFINISHED):
            aged = item.modified is not None and item.modified < limit
            # A run writes what it has to do once, when it starts, and may be at work for longer than is kept.
            if run is not None and int(run) >= epoch:
                young.add(run)
            elif run is not None or aged:
                old.append(item)
    names: list[str] = table.vacuum(
        math.ceil(keep.total_seconds() / 3600), dry_run=dry_run, enforce_retention_duration=False, full=True
    )
    logger.info("%d files of %s are no longer needed", len(names), storage.redact(folder))
    # A run's folder goes whole or not at all: what is young in it belongs to a run at work.
    left = [item for item in old if _run_of(item.name) not in young]
    if not dry_run:
        for item in left:
            storage.delete(item.uri)
    runs = {run for item in left if (run := _run_of(item.name))}
    return Vacuumed(
        files=len(names),
        bytes=sum(sizes.get(name, 0) for name in names),
        runs=len(runs),
        leftovers=sum(_run_of(item.name) is None for item in left),
        dry_run=dry_run,
    )


def _run_of(name: str) -> str | None:
    """The epoch of the run whose pending rows a file below an output folder holds."""
    parts: Any = name.split("/")
    return parts[1] if len(parts) > 2 and parts[0] == "_runs" and parts[1].isdigit() else None

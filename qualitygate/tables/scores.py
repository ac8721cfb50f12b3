"""The score table: a Delta Lake table with one row for every image, always.

What isn't committed isn't there, so a killed run leaves whole commits or nothing. Each run claims the table
by an epoch (a Delta application transaction); a commit of an older epoch is refused by Delta itself, so a
zombie, a retry or a second start can't publish a row twice.
"""

import contextlib
import json
import logging
import os
import re
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from qualitygate.errors import RETRIED_CODES, AuditFailed, ConfigurationError, ErrorCode, ImageError, Superseded
from qualitygate.tables import storage, stores
from qualitygate.tables.manifest import Manifest
from qualitygate.tables.sql import connect, identifier, literal

if TYPE_CHECKING:
    import duckdb
    from deltalake import CommitProperties, DeltaTable

APPLICATION = "qualitygate"
# Key in a commit's metadata: which attempt it was.
COMMIT = "commit_id"
# What the run ids of purges begin with: they remove, and score nothing.
PURGE = "purge-"
# Operations of commits after which a run goes on as if they weren't there.
_UPKEEP = {"OPTIMIZE", "VACUUM START", "VACUUM END"}
logger = logging.getLogger(__name__)
# By metric and region ("whole" photograph, "box"), the fingerprint that its scores carry.
Fingerprints = Mapping[str, Mapping[str, str]]
# A photograph that killed its worker in two runs is left alone until it is asked for by --retry.
MAX_CRASHES = 2
FINGERPRINTS = "_fingerprints.json"
_REMOVED_AT_ONCE = 100
# delta-rs decodes %41 in a path twice and panics on brackets (seen with 1.6.6).
_UNUSABLE = re.compile(r"%[0-9A-Fa-f]{2}|[\[\]]")

COMMON_FIELDS: tuple[pa.Field, ...] = (
    pa.field("image_id", pa.string(), nullable=False),
    pa.field("uri", pa.string()),
    pa.field("etag", pa.string()),
    pa.field("sha256", pa.string()),
    pa.field("bytes", pa.int64()),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("make", pa.string()),
    pa.field("model", pa.string()),
    # As the camera recorded it: ISO 8601 local time without a zone, which a timestamp type would invent.
    pa.field("captured_at", pa.string()),
    pa.field("box", pa.list_(pa.int64())),
    pa.field("status", pa.string(), nullable=False),
    pa.field("error_code", pa.string()),
    pa.field("error_message", pa.string()),
    pa.field("attempts", pa.int32(), nullable=False),
    pa.field("run_id", pa.string(), nullable=False),
    pa.field("scored_at", pa.timestamp("us", tz="UTC"), nullable=False),
)

# Added by the first lazy run: the gate whose vote left metrics out (null: none was), and whether the row belongs
# to the random sample that got them all, which alone stands for the whole.
LAZY_GATE, LAZY_SAMPLE = "lazy_gate", "lazy_sample"
LAZY_FIELDS: tuple[pa.Field, ...] = (pa.field(LAZY_GATE, pa.string()), pa.field(LAZY_SAMPLE, pa.bool_()))

# Above, a median is a sketch's: exact ones hold every value.
_EXACT_MEDIAN = 2_000_000

OK = "ok"
NOT_REQUESTED = "not_requested"
SKIPPED_LAZY = "skipped_lazy"
FAILED = "failed:"


def failed(code: ErrorCode) -> str:
    """The state of a metric that has no score for a typed reason."""
    return f"{FAILED}{code.value}"


def state_column(metric: str) -> str:
    """Column that tells why a metric has or lacks a value: ok | failed:CODE | not_requested | skipped_lazy."""
    return f"{metric}_state"


def fingerprint_column(metric: str) -> str:
    """Column that tells under which definition a metric was scored; spelled out in `_fingerprints.json`."""
    return f"{metric}_fingerprint"


def metric_fields(metric: str) -> tuple[pa.Field, ...]:
    """The three columns of one metric."""
    return (
        pa.field(metric, pa.float64()),
        pa.field(state_column(metric), pa.string()),
        pa.field(fingerprint_column(metric), pa.string()),
    )


def schema(metrics: Iterable[str]) -> pa.Schema:
    """Columns of the score table for these metrics, in this order."""
    return pa.schema([*COMMON_FIELDS, *(field for metric in metrics for field in metric_fields(metric))])


def table_uri(output: str) -> str:
    """Where below an output folder its score table lies."""
    if not storage.is_local(output) and stores.address(output).options:
        raise ConfigurationError(
            f"{storage.redact(output)!r}: a table takes no options after a '?'; set AWS_ENDPOINT_URL and AWS_REGION"
        )
    uri = storage.join(output, "scores")
    if not storage.is_local(uri) and stores.address(uri).scheme not in stores.OBJECT_SCHEMES:
        raise ConfigurationError(
            f"{storage.redact(output)!r}: a table's commits need a store that writes on a condition, which this isn't; "
            "use a local folder or one of s3, gs, abfs, az"
        )
    if storage.is_local(uri):
        uri = os.path.abspath(os.fsdecode(storage.local_path(uri)))
        if _UNUSABLE.search(uri):
            raise ConfigurationError(
                f"the path {uri!r} holds one of the characters [ ] or a % code, with which the table format "
                "can't work; choose another folder"
            )
    return uri


def open_table(output: str) -> "DeltaTable | None":
    """The score table of an output folder, or None when there is none yet; ConfigurationError for a broken one.

    Raises ImageError when its store can't be reached for a minute.
    """
    from deltalake import DeltaTable
    from deltalake.exceptions import TableNotFoundError

    uri = table_uri(output)
    try:
        if storage.is_local(uri) and os.path.exists(uri) and not os.path.isdir(uri):
            raise NotADirectoryError("it is a file")
        return DeltaTable(uri, storage_options=stores.delta_options(uri))
    except TableNotFoundError:
        return None
    except BaseException as error:
        # delta-rs panics over some damaged logs, and its panic is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        # A store that is away for long says nothing of the table: what runs ends, and the same command goes on.
        away = None if storage.is_local(uri) else stores.out_of_reach(error)
        if away is not None:
            raise away from error
        reason = storage.redact(str(error)).splitlines()[0][:200]
        raise ConfigurationError(
            f"{storage.redact(uri)!r} is no score table that can be read ({reason}); "
            "restore it, or choose another --output"
        ) from error


def existing_table(output: str) -> "DeltaTable":
    """The score table of an output folder; ConfigurationError when there is none."""
    table = open_table(output)
    if table is None:
        raise ConfigurationError(f"{storage.redact(output)!r} holds no scores; run 'qualitygate score' into it first")
    return table


def arrow_schema(table: "DeltaTable") -> pa.Schema:
    """The table's columns as Arrow types."""
    return pa.schema(table.schema().to_arrow())


def metrics_of(table: "DeltaTable") -> list[str]:
    """Metrics that the table has columns for."""
    return metrics_of_columns(arrow_schema(table).names)


def metrics_of_columns(names: Sequence[str]) -> list[str]:
    """Those of the column names that are a metric's scores."""
    return [name for name in names if state_column(name) in names]


def dataset(table: "DeltaTable", files: Collection[str] | None = None) -> Any:
    """One version of the table, or some of its `file_uris()`, as a pyarrow data set (an empty table without files).

    Not `DeltaTable.to_pyarrow_dataset`: the statistics it attaches make filters on a column that was added
    after a file was written answer wrongly (seen with deltalake 1.6.6: IS NOT NULL kept the null rows).
    """
    import pyarrow.dataset
    import pyarrow.fs

    # Only the names are taken: file_uris() percent-encodes folders. The table has no partitions, so no subfolders.
    names = [uri.rsplit("/", 1)[1] for uri in (table.file_uris() if files is None else files)]
    if not names:
        return arrow_schema(table).empty_table()
    root = table.table_uri
    if storage.is_local(root):
        folder = os.fsdecode(storage.local_path(root))
        file_system: Any = pyarrow.fs.LocalFileSystem()
    else:
        file_system, folder = storage.file_system(root)
    paths = [storage.join(folder, name) for name in names]
    return pyarrow.dataset.dataset(paths, schema=arrow_schema(table), format="parquet", filesystem=file_system)


def register(
    database: "duckdb.DuckDBPyConnection",
    table: "DeltaTable",
    view: str = "scores",
    *,
    files: Collection[str] | None = None,
) -> None:
    """Make one version of the table, or some of its `file_uris()`, readable in SQL.

    Filters stay in DuckDB: handed down to pyarrow, a comparison of text fails on files that a merge wrote, whose
    strings are views (seen with deltalake 1.6.6, duckdb 2.0 and pyarrow 26).
    """
    database.execute("SET disabled_optimizers = 'filter_pushdown,join_filter_pushdown'")
    database.register(view, dataset(table, files))


# --- before a run ---------------------------------------------------------------------------------------------


def check_compatible(output: str, fingerprints: Fingerprints, *, backfill: bool) -> None:
    """Refuse to mix: scores under another fingerprint, or rows without a requested metric, unless backfilling."""
    table = open_table(output)
    if table is None:
        return
    present = [metric for metric in fingerprints if metric in metrics_of(table)]
    with connect() as database:
        register(database, table)
        rows = _count(database, "SELECT count(*) FROM scores")
        if backfill or not rows:
            return
        for metric in fingerprints:
            if metric not in present:
                raise ConfigurationError(_lacks(output, rows, metric))
            column, state = identifier(fingerprint_column(metric)), identifier(state_column(metric))
            found = database.sql(f"SELECT DISTINCT {column} FROM scores WHERE {column} IS NOT NULL").fetchall()
            others = sorted(value for (value,) in found if value not in fingerprints[metric].values())
            if others:
                raise ConfigurationError(_mixes(output, metric, others, " or ".join(fingerprints[metric].values())))
            unscored = _count(
                database, f"SELECT count(*) FROM scores WHERE {state} IS NULL OR {state} = '{NOT_REQUESTED}'"
            )
            if unscored:
                raise ConfigurationError(_lacks(output, unscored, metric))


def _lacks(output: str, rows: int, metric: str) -> str:
    return (
        f"{rows} rows in {storage.redact(output)!r} have no {metric}; add --backfill to score it there too, "
        "or leave it out of --metrics"
    )


def _mixes(output: str, metric: str, others: Sequence[str], wanted: str) -> str:
    known = read_fingerprints(output)
    return (
        f"{storage.redact(output)!r} holds {metric} as {', '.join(_spell(known, other) for other in others)}, "
        f"this run would write {metric} as {wanted}; add --backfill to score those rows again, "
        "or choose another --output"
    )


def _spell(known: Mapping[str, Any], fingerprint: str) -> str:
    definition = known.get(fingerprint)
    if not definition:
        return fingerprint
    decode = definition.get("decode", {})
    return (
        f"{fingerprint} (v{definition.get('version')}, {definition.get('backend')}, "
        f"{decode.get('resolution', '?')}, {definition.get('region', '?')})"
    )


def _count(database: "duckdb.DuckDBPyConnection", query: str) -> int:
    return int(database.sql(query).fetchall()[0][0])


def read_fingerprints(output: str) -> dict[str, Any]:
    """Definitions by fingerprint, from the output's sidecar."""
    uri = storage.join(output, FINGERPRINTS)
    try:
        data = storage.read_bytes(uri)
        return dict(json.loads(data)) if data else {}
    except (ImageError, ValueError, TypeError) as error:
        raise ConfigurationError(f"{storage.redact(uri)!r} can't be read; restore or remove it") from error


def record_fingerprints(output: str, definitions: Mapping[str, Mapping[str, Any]]) -> None:
    """Add definitions to the sidecar; known ones stay."""
    known = read_fingerprints(output)
    if any(fingerprint not in known for fingerprint in definitions):
        merged = {**known, **definitions}
        storage.write_bytes(storage.join(output, FINGERPRINTS), json.dumps(merged, indent=1, sort_keys=True).encode())


# --- writing --------------------------------------------------------------------------------------------------


class Writer:
    """The one run that may commit to an output's score table, until a newer run claims it.

    It keeps the version of its own last commit and never looks ahead of it: that is what lets Delta see a
    newer claim as a conflict.
    """

    def __init__(self, output: str, metrics: Sequence[str], run_id: str, *, lazy: bool = False) -> None:
        self._run_id = run_id
        self._commit_id = ""
        self._output = output
        self._table = _create_or_open(output, metrics)
        self._table, self.epoch = self._claim()
        self._add_columns([*LAZY_FIELDS] * lazy + [field for metric in metrics for field in metric_fields(metric)])
        self.schema = arrow_schema(self._table)

    @property
    def table(self) -> "DeltaTable":
        """The table at the version that this run sees."""
        return self._table

    def _properties(self, epoch: int) -> "CommitProperties":
        from deltalake import CommitProperties, Transaction

        return CommitProperties(
            app_transactions=[Transaction(APPLICATION, epoch)],
            custom_metadata={"run_id": self._run_id, COMMIT: self._commit_id},
            max_commit_retries=0,
        )

    def _claim(self) -> "tuple[DeltaTable, int]":
        from deltalake.exceptions import CommitFailedError

        uri = table_uri(self._output)
        for _ in range(10):
            table = at_version(uri)
            before = table.version()
            epoch = (table.transaction_version(APPLICATION) or 0) + 1
            self._commit_id = uuid.uuid4().hex
            # Another run that claims at the same moment makes this fail, unless only the answer got lost.
            with contextlib.suppress(CommitFailedError):
                table.create_write_transaction([], "append", table.schema(), commit_properties=self._properties(epoch))
            # Up to the claim itself and no further: what an older run committed before it is ours to count,
            # what a newer run claims after it must look like a conflict.
            if _is_commit(uri, before + 1, self._commit_id):
                return at_version(uri, version=before + 1), epoch
        raise Superseded(f"other runs keep claiming {storage.redact(self._output)!r}; stop them and run again")

    def _add_columns(self, wanted: Sequence[pa.Field]) -> None:
        from deltalake import Field, Schema

        names = set(arrow_schema(self._table).names)
        absent = [field for field in wanted if field.name not in names]
        if absent:
            fields: list[Field] = Schema.from_arrow(pa.schema(absent)).fields
            self._publish(lambda: self._table.alter.add_columns(fields, commit_properties=self._properties(self.epoch)))

    def check_current(self) -> None:
        """Raise Superseded when a newer run has claimed the table."""
        table = open_table(self._output)
        if table is None or (table.transaction_version(APPLICATION) or 0) != self.epoch:
            raise Superseded(self._taken_over())

    def _is_taken_over(self) -> bool:
        try:
            self.check_current()
        except Superseded:
            return True
        except Exception:  # it can't be asked: what went wrong first stands
            return False
        return False

    def _taken_over(self) -> str:
        return (
            f"another run has taken over {storage.redact(self._output)!r}; this one stopped, "
            "its committed rows are kept and the other run finishes the rest"
        )

    def commit(self, new: pa.Table, replacements: pa.Table) -> None:
        """Publish rows of ids that the table lacks, and rows that take the place of their id's old one."""
        from deltalake import write_deltalake

        if new.num_rows:
            self._publish(
                lambda: write_deltalake(self._table, new, mode="append", commit_properties=self._properties(self.epoch))
            )
        if replacements.num_rows:
            self._publish(
                lambda: (
                    self._table.merge(
                        replacements,
                        "old.image_id = new.image_id",
                        source_alias="new",
                        target_alias="old",
                        # Looks only into files whose ids may be among these: with it on, the whole table is read.
                        streamed_exec=False,
                        commit_properties=self._properties(self.epoch),
                    )
                    .when_matched_update_all()
                    .when_not_matched_insert_all()
                    .execute()
                )
            )

    def remove(self, image_ids: Sequence[str]) -> None:
        """Publish the table without the rows of these ids; some at a time, as neighbours share files."""
        ordered = sorted(image_ids)
        for start in range(0, len(ordered), _REMOVED_AT_ONCE):
            some = ordered[start : start + _REMOVED_AT_ONCE]
            self._publish(lambda some=some: delete_ids(self._table, some, self._properties(self.epoch)))

    def _publish(self, action: Any) -> None:
        from deltalake.exceptions import CommitFailedError

        while True:
            self._commit_id = uuid.uuid4().hex
            before = self._table.version()
            try:
                action()
                return
            except Exception as error:
                if self._landed(before + 1):
                    logger.warning("a commit was made although its answer was lost: %s", type(error).__name__)
                    return
                if not isinstance(error, CommitFailedError):
                    # A purge takes files away that an older run still builds on.
                    if self._is_taken_over():
                        raise Superseded(self._taken_over()) from error
                    raise
                if not self._moved_past_upkeep():
                    raise Superseded(self._taken_over()) from error

    def _moved_past_upkeep(self) -> bool:
        """Go on from the newest version, where all that was committed since ours is compaction and vacuum.

        Each version up to there has been looked at, so a newer claim still comes after it and is a conflict.
        """
        uri = table_uri(self._output)
        before = version = self._table.version()
        while (commit := log_entry(uri, version + 1)) is not None:
            if not _is_upkeep(commit):
                return False
            version += 1
        if version > before:
            self._table = at_version(uri, version=version)
        return version > before

    def _landed(self, version: int) -> bool:
        """Whether this version is the commit that was just tried.

        On the way to an object store an answer may be lost; the client then asks again, and is told that the
        version exists already.
        """
        uri = table_uri(self._output)
        try:
            if not _is_commit(uri, version, self._commit_id):
                return False
            self._table = at_version(uri, version=version)
        except Exception:  # the store can't be asked: the first error stands
            return False
        return True


def delete_ids(table: "DeltaTable", image_ids: Sequence[str], properties: "CommitProperties | None" = None) -> None:
    """Remove rows by id. The commit's note of its condition may name some of them."""
    gone = pa.table({"image_id": pa.array(image_ids, pa.string())})
    (
        table.merge(
            gone,
            "old.image_id = gone.image_id",
            source_alias="gone",
            target_alias="old",
            streamed_exec=False,
            commit_properties=properties,
        )
        .when_matched_delete()
        .execute()
    )


def _create_or_open(output: str, metrics: Sequence[str]) -> "DeltaTable":
    from deltalake import DeltaTable

    uri = table_uri(output)
    return DeltaTable.create(
        uri,
        schema(metrics),
        mode="ignore",
        name=APPLICATION,
        description="One row for every image",
        storage_options=stores.delta_options(uri),
    )


def at_version(uri: str, version: int | None = None) -> "DeltaTable":
    """The table at this URI, as it was at a version (None: as it is); that it exists is taken for granted."""
    from deltalake import DeltaTable

    return DeltaTable(uri, version=version, storage_options=stores.delta_options(uri))


def _is_commit(uri: str, version: int, commit_id: str) -> bool:
    """Whether this version of the table was made by the commit with this id.

    By the log's own file: `DeltaTable.history` numbers its entries from the version that was loaded, and is wrong by
    as many as have been committed since (seen with deltalake 1.6.6).
    """
    commit = log_entry(uri, version)
    return commit is not None and commit_id.encode() in commit


def log_entry(table_uri: str, version: int) -> bytes | None:
    """The log's own file of one version, lines of JSON; None when there is none."""
    return storage.read_bytes(storage.join(table_uri, "_delta_log", f"{version:020}.json"))


def _is_upkeep(commit: bytes) -> bool:
    """Whether a commit left every row as it was and claims nothing: compaction, or the notes of a vacuum."""
    actions = [json.loads(line) for line in commit.splitlines() if line.strip()]
    operations = {action["commitInfo"].get("operation") for action in actions if "commitInfo" in action}
    return bool(operations) and operations <= _UPKEEP and not any("txn" in action for action in actions)


# --- what is left to do ---------------------------------------------------------------------------------------


def write_pending(
    manifest: Manifest,
    table: "DeltaTable",
    fingerprints: Fingerprints,
    *,
    retry: Sequence[ErrorCode],
    folder: Path,
    lazy_gate: str | None = None,
) -> int:
    """Write manifest minus committed into Parquet files below `folder`; returns how many rows there are.

    A row is wanted when its image is new, when its etag, bytes, uri or box changed, when a requested metric
    is absent or was scored under another fingerprint, when it failed for a reason that may have passed, or when
    a metric was left out by another gate's vote than that of `lazy_gate` (None: this run leaves none out).
    `previous` carries the committed row, so that the worker can keep what is still true of the same bytes.
    """
    stale = {
        region: " OR ".join(
            f"{identifier(fingerprint_column(metric))} IS DISTINCT FROM {literal(by_region[region])}"
            for metric, by_region in fingerprints.items()
        )
        for region in ("whole", "box")
    }
    again = " OR ".join([_retried(retry, metrics_of(table)), *_left_out(table, fingerprints, lazy_gate)])
    # What the join carries for millions of rows is narrow: hashes of 64 bits for texts, and what follows from the old
    # row alone as one answer.
    old = f"""SELECT image_id, etag IS NOT NULL AS marked, hash(etag) AS etag, bytes, hash(uri) AS uri,
        contains(coalesce(uri, ''), '***') AS secret, box,
        {stale["whole"]} AS stale_whole, {stale["box"]} AS stale_box, {again} AS again FROM scores"""
    wanted = [
        "old.image_id IS NULL",
        "(new.etag IS NOT NULL AND (NOT old.marked OR hash(new.etag) <> old.etag))",
        # Without etags, a size that is known on both sides tells.
        "(new.etag IS NULL AND new.bytes IS NOT NULL AND old.bytes IS NOT NULL AND new.bytes <> old.bytes)",
        # A refused URI is stored without its secrets, so it can't be compared.
        "(hash(new.uri) <> old.uri AND NOT old.secret)",
        "new.box IS DISTINCT FROM old.box",
        "CASE WHEN new.box IS NULL THEN old.stale_whole ELSE old.stale_box END",
        "old.again",
    ]
    folder.mkdir(parents=True, exist_ok=True)
    with connect() as database:
        register(database, table)
        # First which, by the few columns that tell; then the whole rows of those that have one.
        database.sql(
            f"""CREATE TEMP TABLE wanted AS
                SELECT new.image_id, old.image_id IS NOT NULL AS known
                FROM read_parquet({literal(manifest.path)}) AS new LEFT JOIN ({old}) AS old USING (image_id)
                WHERE {" OR ".join(wanted)}"""
        )
        known = "FROM scores SEMI JOIN (SELECT image_id FROM wanted WHERE known) USING (image_id)"
        if not _count(database, "SELECT count(*) FROM wanted WHERE known"):
            known = "FROM scores LIMIT 0"
        database.sql(
            f"""COPY (
                SELECT new.image_id, new.uri, new.box, new.etag,
                       CASE WHEN old.image_id IS NULL THEN NULL ELSE old END AS previous
                FROM read_parquet({literal(manifest.path)}) AS new SEMI JOIN wanted USING (image_id)
                LEFT JOIN (SELECT * {known}) AS old USING (image_id)
            ) TO {literal(folder)} (FORMAT parquet, ROW_GROUP_SIZE 8192, FILE_SIZE_BYTES '4MB')"""
        )
        return _count(database, f"SELECT count(*) FROM read_parquet({literal(folder / '*.parquet')})")


def _left_out(table: "DeltaTable", metrics: Iterable[str], lazy_gate: str | None) -> list[str]:
    if LAZY_GATE not in arrow_schema(table).names:
        return []
    known = set(metrics_of(table))
    skipped = [f"{identifier(state_column(metric))} = '{SKIPPED_LAZY}'" for metric in metrics if metric in known]
    other = f"{LAZY_GATE} IS DISTINCT FROM {literal(lazy_gate)}" if lazy_gate else "true"
    return [f"(coalesce({clause}, false) AND {other})" for clause in skipped]


def _retried(asked: Sequence[ErrorCode], metrics: Sequence[str]) -> str:
    """Failures to try again: those that may pass, crashes until they are quarantined, and those asked for.

    A row's own code is the first that was met; the states of its metrics may hold others.
    """
    wanted = sorted({*asked, *(RETRIED_CODES - {ErrorCode.WORKER_CRASH})})
    columns = [f"{identifier(state_column(metric))}" for metric in metrics]
    states = ", ".join(literal(failed(code)) for code in wanted)
    clauses = [f"error_code IN ({', '.join(literal(code.value) for code in wanted)})"]
    clauses += [f"{column} IN ({states})" for column in columns]
    clauses.append(f"(error_code = '{ErrorCode.WORKER_CRASH}' AND attempts < {MAX_CRASHES})")
    return "(" + " OR ".join(f"coalesce({clause}, false)" for clause in clauses) + ")"


# --- after a run ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """Ids in against ids out: how the manifest's rows ended."""

    expected: int
    present: int
    duplicates: int
    by_status: dict[str, int]
    by_code: dict[str, int]
    errors_by_code: dict[str, int]
    examples: list[dict[str, str]]
    metrics: dict[str, dict[str, Any]]

    @property
    def error_rate(self) -> float:
        """Share of the manifest's images that have no score at all, in [0, 1]."""
        return self.by_status.get("error", 0) / self.expected if self.expected else 0.0


def audit(manifest: Manifest, output: str, metrics: Sequence[str], *, complete: bool) -> Audit:
    """Count the manifest's rows in the table. Raises AuditFailed when a finished run lacks an id or has one twice."""
    table = existing_table(output)
    with connect() as database:
        register(database, table)
        database.sql(f"CREATE TEMP TABLE ids AS SELECT image_id FROM read_parquet({literal(manifest.path)})")
        rows = "scores SEMI JOIN ids USING (image_id)"
        states = [f"coalesce({identifier(state_column(metric))}, {literal(NOT_REQUESTED)})" for metric in metrics]
        # One pass over the table: there are few combinations of states, however many rows.
        kinds = database.sql(
            f"SELECT {', '.join(['status', 'error_code', *states])}, count(*) FROM {rows} GROUP BY ALL"
        ).fetchall()
        distinct = _count(database, "SELECT count(*) FROM ids SEMI JOIN scores USING (image_id)")
        present = sum(kind[-1] for kind in kinds)
        by_status = _counted((kind[0], kind[-1]) for kind in kinds)
        by_code = _counted((kind[1], kind[-1]) for kind in kinds if kind[1] is not None)
        errors_by_code = _counted((kind[1], kind[-1]) for kind in kinds if kind[0] == "error")
        examples = (
            database.sql(
                f"SELECT image_id, error_code, error_message FROM {rows} WHERE status = 'error' "
                "ORDER BY image_id LIMIT 5"
            ).fetchall()
            if errors_by_code
            else []
        )
        ranges = _ranges(database, rows, metrics, present)
        by_state = {
            metric: _counted((kind[2 + number], kind[-1]) for kind in kinds) for number, metric in enumerate(metrics)
        }
        result = Audit(
            expected=manifest.rows,
            present=distinct,
            duplicates=present - distinct,
            by_status=by_status,
            by_code=by_code,
            errors_by_code=errors_by_code,
            examples=[dict(zip(("image_id", "code", "message"), found, strict=True)) for found in examples],
            metrics={metric: ranges[metric] | {"states": by_state[metric]} for metric in metrics},
        )
    if result.duplicates:
        raise AuditFailed(
            f"{result.duplicates} image_ids stand in {storage.redact(output)!r} twice; report this as a bug"
        )
    if complete and result.present != result.expected:
        raise AuditFailed(
            f"{result.expected - result.present} of {result.expected} images have no row in "
            f"{storage.redact(output)!r}; run the same command again"
        )
    return result


def _counted(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Sums by name, in the names' order."""
    totals: dict[str, int] = {}
    for name, rows in pairs:
        totals[name] = totals.get(name, 0) + rows
    return dict(sorted(totals.items()))


def _ranges(
    database: "duckdb.DuckDBPyConnection", rows: str, metrics: Sequence[str], count: int
) -> dict[str, dict[str, Any]]:
    """Each metric's smallest, median and largest score; the median of millions by a sketch, in bounded memory."""
    if not metrics:
        return {}
    median = "median({})" if count <= _EXACT_MEDIAN else "approx_quantile({}, 0.5)"
    columns = [identifier(metric) for metric in metrics]
    asked = ", ".join(f"min({name}), {median.format(name)}, max({name})" for name in columns)
    (found,) = database.sql(f"SELECT {asked} FROM {rows}").fetchall()
    parts = zip(*[iter(found)] * 3, strict=True)
    return {
        metric: dict(zip(("min", "median", "max"), part, strict=True))
        for metric, part in zip(metrics, parts, strict=True)
    }


def export(output: str, target: str) -> int:
    """Write the table as one Parquet or CSV file, by the target's suffix; returns the number of rows."""
    suffix = Path(target).suffix.lower()
    formats = {".parquet": "FORMAT parquet", ".csv": "FORMAT csv, HEADER true"}
    if suffix not in formats:
        raise ConfigurationError(f"--output {target!r}: name a file that ends in .parquet or .csv")
    if not storage.is_local(target):
        raise ConfigurationError(f"--output {storage.redact(target)!r}: export writes a local file; copy it from there")
    table = existing_table(output)
    storage.check_writable(str(Path(target).absolute().parent), "--output")
    unfinished = Path(target).with_name(f"_{Path(target).name}.unfinished")
    try:
        with connect() as database:
            register(database, table)
            database.sql(f"COPY (SELECT * FROM scores ORDER BY image_id) TO {literal(unfinished)} ({formats[suffix]})")
            rows = _count(database, "SELECT count(*) FROM scores")
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    return rows

"""`qualitygate manifest build`: list an input once, out of core, and tell what changed since the manifest before.

Beside the manifest M.parquet lies M.changes.parquet with a row for each image that is new, changed or gone. It is
written first: should the build be killed between the two, the next one compares with the same old manifest again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from qualitygate.config import ManifestBuildConfig
from qualitygate.errors import ConfigurationError, ImageError
from qualitygate.tables import access, manifest, shards, storage
from qualitygate.tables.scratch import scratch_folder
from qualitygate.tables.sql import connect, literal

SCHEMA = manifest.SCHEMA.append(pa.field("modified", pa.timestamp("us", tz="UTC")))
NEW, CHANGED, GONE = "new", "changed", "gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """How a build ended.

    bytes: of the images whose size is known; new, changed, gone: None where there was nothing to compare with.
    """

    output: str
    images: int
    bytes: int
    shards: int
    new: int | None
    changed: int | None
    gone: int | None
    changes: str | None
    notes: tuple[str, ...]


def build(config: ManifestBuildConfig, *, without: Sequence[str] = (), accept_manifest: bool = False) -> Built:
    """List the input into the output, whole or not at all.

    without: further folders and files that the listing leaves out. accept_manifest: an input that is a manifest
    already is taken over as it is.

    Raises ConfigurationError, in one line with the remedy, as `manifest.load` does, and, unless it is accepted, where
    the input is a manifest already.
    """
    try:
        return _build(config, tuple(without), accept_manifest)
    except ImageError as error:
        if error.failure.code in access.PASSING_CODES:
            raise storage.unavailable(f"--input {storage.redact(config.input)!r}", error.failure.message) from error
        raise ConfigurationError(
            f"a store can't be asked: {error.failure.message}; mend that and run the same command again"
        ) from error


def _build(config: ManifestBuildConfig, without: tuple[str, ...], accept_manifest: bool) -> Built:
    source = storage.check_location(config.input, "--input")
    output = storage.check_location(config.output, "--output")
    if not output.lower().endswith(".parquet"):
        raise ConfigurationError(f"--output {storage.redact(output)!r}: name a file that ends in .parquet")
    if storage.is_local(source):
        source = str(Path(source).absolute())
    if storage.is_local(output):
        output = str(Path(output).absolute())
    storage.check_writable(output.rpartition("/")[0] or "/", "--output")
    changes = output[: -len(".parquet")] + ".changes.parquet"
    wanted = manifest.Wanted(
        without=(output, changes, *without),
        image_column=config.image_column,
        access=access.of(config),
    )
    with scratch_folder() as folder:
        scratch = Path(folder)
        before = _previous(config, output, scratch)
        found = shards.Found()
        new, rows = _listed(source, wanted, found, scratch, accept_manifest)
        counts = _compare(new, before, scratch / "changes.parquet") if before else {}
        with connect() as database:
            size = database.sql(f"SELECT coalesce(sum(bytes), 0) FROM read_parquet({literal(new)})").fetchall()[0][0]
        if before:
            storage.publish(scratch / "changes.parquet", changes)
        else:
            storage.delete(changes)
        storage.publish(new, output)
    return Built(
        output=output,
        images=rows,
        bytes=int(size),
        shards=found.shards,
        new=counts.get(NEW, 0) if before else None,
        changed=counts.get(CHANGED, 0) if before else None,
        gone=counts.get(GONE, 0) if before else None,
        changes=changes if before else None,
        notes=tuple(found.notes()),
    )


def _listed(
    source: str, wanted: manifest.Wanted, found: shards.Found, scratch: Path, accept_manifest: bool
) -> tuple[Path, int]:
    spool = scratch / "manifest.parquet"
    named = storage.redact(source)
    tables = manifest.list_images(source, wanted, found)
    if tables is None and accept_manifest:
        return spool, manifest.load(source, spool, access=wanted.access).rows
    if tables is None:
        raise ConfigurationError(f"--input {named!r} is a manifest already; give the folder that it lists")
    with pq.ParquetWriter(spool, SCHEMA) as writer:
        rows = manifest.write_rows(tables, writer)
    if not rows:
        raise ConfigurationError(
            f"--input {named!r} holds no images; give a folder, a glob or a file with at least one image"
        )
    manifest.in_order(spool, SCHEMA)
    manifest.refuse_duplicates([spool], "the listing")
    return spool, rows


def _previous(config: ManifestBuildConfig, output: str, scratch: Path) -> Path | None:
    """The manifest to compare with, on this machine."""
    given = config.previous is not None
    location = storage.check_location(config.previous or output, "--previous")
    named = storage.redact(location)
    if not storage.exists(location):
        if given:
            raise ConfigurationError(f"--previous {named!r} does not exist; check the path, or leave it out")
        return None
    path = scratch / "previous.parquet"
    if storage.is_local(location):
        path = Path(location)
    else:
        storage.download(location, str(path))
    try:
        names = pq.read_schema(path).names
    except (pa.ArrowException, OSError) as error:
        raise ConfigurationError(f"{named!r} is no manifest that can be read; remove it, or choose another") from error
    absent = [name for name in manifest.SCHEMA.names if name not in names]
    if absent:
        raise ConfigurationError(f"{named!r} is no manifest of 'manifest build': it lacks {', '.join(absent)}")
    return path


def _compare(new: Path, old: Path, changes: Path) -> dict[str, int]:
    """Write what is new, changed and gone; returns how many of each."""
    with connect() as database:
        database.sql(
            f"""COPY (
                SELECT image_id, change, uri, etag, previous_etag FROM (
                    SELECT image_id,
                        CASE WHEN old.uri IS NULL THEN '{NEW}' WHEN new.uri IS NULL THEN '{GONE}'
                             WHEN new.uri <> old.uri OR new.etag IS DISTINCT FROM old.etag
                                  OR new.bytes IS DISTINCT FROM old.bytes THEN '{CHANGED}' END AS change,
                        coalesce(new.uri, old.uri) AS uri, new.etag AS etag, old.etag AS previous_etag
                    FROM read_parquet({literal(new)}) AS new
                    FULL JOIN read_parquet({literal(old)}) AS old USING (image_id)
                ) WHERE change IS NOT NULL ORDER BY image_id
            ) TO {literal(changes)} (FORMAT parquet)"""
        )
        counted = database.sql(
            f"SELECT change, count(*) FROM read_parquet({literal(changes)}) GROUP BY change"
        ).fetchall()
    return dict(counted)

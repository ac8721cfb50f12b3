"""What compaction and vacuum say in the terminal."""

import json
from dataclasses import asdict
from typing import Any

from qualitygate.report.costs import size


def of_compaction(done: Any) -> str:
    """Files and bytes before and after. done: a `tables.upkeep.Compacted`."""
    if not done.rows:
        return f"{done.files_after:,} files, {size(done.bytes_after)}: nothing to compact\n"
    return (
        f"{done.files_before:,} files, {size(done.bytes_before)}, are now {done.files_after:,} files, "
        f"{size(done.bytes_after)} (version {done.version}); the {done.rows:,} rows in them are the same, compared\n"
        "the files before stay until 'qualitygate vacuum'\n"
    )


def of_vacuum(done: Any) -> str:
    """What went, or would. done: a `tables.upkeep.Vacuumed`."""
    verb = "would remove" if done.dry_run else "removed"
    return (
        f"{verb} {done.files:,} files of the table, {size(done.bytes)}; {done.runs:,} folders of ended runs; "
        f"{done.leftovers:,} half-written files\n"
    )


def as_json(done: Any) -> str:
    """The same for programs."""
    return json.dumps(asdict(done), indent=1) + "\n"

"""What compaction, vacuum and purge say in the terminal."""

import json
from dataclasses import asdict
from typing import Any

from qualitygate.report.costs import size

_SHOWN = 20


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


def of_purge(done: Any) -> str:
    """What was erased, or would be, and what still holds an id. done: a `tables.purge.Purged`."""
    lines = [f"{done.ids:,} ids, {done.ids - len(done.absent):,} of them met"]
    if done.absent:
        lines.append(f"met nowhere: {_some(done.absent)}")
    if done.indistinct:
        lines.append(
            f"too like other words to search text for: {_some(done.indistinct)}; tables and records were searched"
        )
    verbs = ("rewritten", "deleted") if done.done else ("to rewrite", "to delete")
    for action, verb in zip(("rewrite", "delete"), verbs, strict=True):
        lines += [f"{verb}: {_file(one)}" for one in done.found if one.action == action]
    kept = done.remaining if done.done else [one for one in done.found if one.action == "keep"]
    lines += [f"STILL HOLDS AN ID: {_file(one)}" for one in kept]
    lines += [f"note: {note}" for note in dict.fromkeys(done.notes)]
    if not done.done:
        lines.append(
            "nothing was changed: add --yes to do it; a job that scores into a table named here is then stopped"
        )
    elif not kept:
        lines.append("searched again: no file holds one of them")
        lines.append(
            "not searched: the input, and tables of your own; what the input still has is scored again by the next run"
        )
    return "\n".join(lines) + "\n"


def _file(found: Any) -> str:
    return f"{found.name} ({found.places:,} place{'s' * (found.places != 1)}{'; ' * bool(found.why)}{found.why})"


def _some(names: Any) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else "")


def as_json(done: Any) -> str:
    """The same for programs."""
    return json.dumps(asdict(done), indent=1) + "\n"

"""What a night's listing of the input says: what is new, changed and gone, over all tries of the night.

A try that is done again has taken its listing over before: to the next one nothing is new any more. So what changed is
put together by photograph: one that was new in the first try and is gone in the second is neither.
"""

import filecmp
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from qualitygate.calibration import outputs
from qualitygate.nightly import record
from qualitygate.nightly.record import Night
from qualitygate.tables import manifest_build, scores, storage
from qualitygate.tables.manifest_build import CHANGED, GONE, NEW
from qualitygate.tables.scratch import scratch_folder
from qualitygate.tables.sql import connect, literal

FILE = "manifest.parquet"
CHANGES = "manifest.changes.parquet"
# Below a night's folder: its tries that were done again.
EARLIER = "earlier"


def listed(built: manifest_build.Built) -> dict[str, Any]:
    """Counts of a listing against the last one's; known: photographs that the last one had."""
    new = built.images if built.new is None else built.new
    return _counts(built.images, new, built.changed or 0, built.gone or 0)


def _counts(images: int, new: int, changed: int, gone: int) -> dict[str, Any]:
    return {"images": images, "known": images - new + gone, "new": new, "changed": changed, "gone": gone}


def changed_share(found: Mapping[str, Any]) -> float:
    """Share of the known photographs that are changed or gone."""
    return float((found["changed"] + found["gone"]) / found["known"]) if found["known"] else 0.0


def take_over(output: str, night: str) -> None:
    """Make a night's listing the output's own, in bounded memory: millions of photographs are more than one holds."""
    source, target = record.place(output, night, FILE), storage.join(output, FILE)
    with _here(source) as local:
        storage.publish(local, target)


class _here:
    """A file of the output on this machine, for the time of the block."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._stack = ExitStack()

    def __enter__(self) -> Path:
        if storage.is_local(self._uri):
            return Path(os.fsdecode(storage.local_path(self._uri)))
        local = Path(self._stack.enter_context(scratch_folder())) / "file.parquet"
        storage.download(self._uri, str(local))
        return local

    def __exit__(self, *_: object) -> None:
        self._stack.close()


# ---- photographs that are gone -----------------------------------------------------------------------------


def gone(output: str, scratch: Path) -> Path | None:
    """A file of the ids that have a row and are not in the listing that was taken over; None where there are none.

    One join, out of core; what is gone is then left out by a list that is mostly short.
    """
    uri, table = storage.join(output, FILE), scores.open_table(output)
    if table is None or not storage.exists(uri):
        return None
    found = scratch / "gone.parquet"
    with _here(uri) as local, connect() as database:
        scores.register(database, table)
        database.sql(
            f"COPY (SELECT image_id FROM scores ANTI JOIN read_parquet({literal(local)}) USING (image_id)) "
            f"TO {literal(found)} (FORMAT parquet)"
        )
        count = database.sql(f"SELECT count(*) FROM read_parquet({literal(found)})").fetchall()[0][0]
    return found if count else None


# ---- tries of a night --------------------------------------------------------------------------------------


def set_aside(output: str, before: Night, *, goes_on: bool) -> tuple[Mapping[str, Any], ...]:
    """Keep what an earlier try of a night recorded; returns all its tries so far, in short.

    goes_on: the next try goes on with this one's listing, and makes none of its own.
    """
    if not before.steps:
        return before.earlier
    number = len(before.earlier) + 1
    counts = not goes_on and _was_taken_over(output, before)
    changes = record.place(output, before.night, CHANGES)
    if counts and storage.exists(changes):
        with _here(changes) as local:
            storage.publish(local, _changes_of(output, before.night, number))
    record.write(output, before, EARLIER, f"{number}.json")
    found = before.steps.get("manifest", {})
    short = {
        "state": before.state,
        "finished": before.finished,
        "reasons": list(before.reasons),
        # Whether the next listing is compared with this try's, so that what this one found counts, too.
        "listing": counts,
        "first": counts and not found.get("known"),
    }
    return (*before.earlier, outputs.plain(short))


def _changes_of(output: str, night: str, number: int) -> str:
    return record.place(output, night, EARLIER, f"{number}.changes.parquet")


def _was_taken_over(output: str, before: Night) -> bool:
    if "manifest" not in before.steps or "score" in before.steps:
        return "score" in before.steps
    # Killed in between: it was if the two are the same.
    own, taken = record.place(output, before.night, FILE), storage.join(output, FILE)
    if not (storage.exists(own) and storage.exists(taken)):
        return False
    with _here(own) as one, _here(taken) as other:
        return filecmp.cmp(one, other, shallow=False)


def over_all_tries(output: str, night: Night, found: Mapping[str, Any]) -> dict[str, Any]:
    """The counts of this try's listing, together with what earlier tries of the night had found.

    Of a try whose list is no longer there nothing is known: it doesn't count.
    """
    images = found["images"]
    if any(one.get("first") for one in night.earlier):
        # There was nothing before the night.
        return _counts(images, images, 0, 0)
    with ExitStack() as stack:
        uris = [
            _changes_of(output, night.night, number)
            for number, one in enumerate(night.earlier, 1)
            if one.get("listing")
        ]
        uris.append(record.place(output, night.night, CHANGES))
        files = [stack.enter_context(_here(uri)) for uri in uris if storage.exists(uri)]
        return _counts(images, *_together(files)) if len(files) > 1 else dict(found)


def _together(files: Sequence[Path]) -> tuple[int, int, int]:
    """(new, changed, gone) by lists of changes, one after the other."""
    parts = " UNION ALL ".join(
        f"SELECT image_id, {{'change': change, 'etag': etag, 'before': previous_etag}} AS step, {number} AS number "
        f"FROM read_parquet({literal(file)})"
        for number, file in enumerate(files)
    )
    with connect() as database:
        found = database.sql(
            f"""SELECT CASE
                WHEN steps = 1 THEN first.change
                WHEN first.change <> '{NEW}' AND last.change <> '{GONE}'
                    THEN CASE WHEN coalesce(first.before = last.etag, false) THEN 'same' ELSE '{CHANGED}' END
                WHEN last.change <> '{GONE}' THEN '{NEW}'
                WHEN first.change <> '{NEW}' THEN '{GONE}'
                ELSE 'never' END AS change, count(*)
            FROM (
                SELECT image_id, arg_min(step, number) AS first, arg_max(step, number) AS last, count(*) AS steps
                FROM ({parts}) GROUP BY image_id
            ) GROUP BY 1"""
        ).fetchall()
    counts = {str(change): int(rows) for change, rows in found}
    return counts.get(NEW, 0), counts.get(CHANGED, 0), counts.get(GONE, 0)

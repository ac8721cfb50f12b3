"""What follows a night's decision: few files in the table, a canary that can tell, and no heavy files of old nights."""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa

from qualitygate.config import NightlyConfig
from qualitygate.nightly import canary, listing, record
from qualitygate.nightly.record import Check, Night
from qualitygate.tables import scores, storage, upkeep

REPORT = "report.html"
LABELLED = "labelled.parquet"
CANDIDATE = "gate"
LABELS = "labelled"
FAILING = "failing.parquet"
# Of a night's folder, what an old one needs no more. Its records, those of its tries and its audit sample stay: which
# photographs are trusted, and which have been drawn, rests on them.
_HEAVY = re.compile(
    "|".join(
        [
            *map(re.escape, (REPORT, LABELLED, FAILING, listing.FILE, listing.CHANGES)),
            *(rf"{folder}/.+" for folder in (CANDIDATE, LABELS, "canary")),
            rf"{listing.EARLIER}/\d+\.changes\.parquet",
        ]
    )
)


def keep_house(config: NightlyConfig, output: str, tonight: Night, others: Sequence[Night]) -> dict[str, Any]:
    """Compact and vacuum the table, draw a canary where one is wanted, and remove what old nights need no more."""
    removed = remove_old(output, [*others, tonight], tonight, config.keep_nights, datetime.now(UTC))
    if scores.open_table(output) is None:
        return {"removed_of_nights": removed}
    compacted = upkeep.compact(output, config.compact_mb << 20)
    vacuumed = upkeep.vacuum(output, timedelta(days=config.keep_days))
    known = canary.read(output)
    drawn = 0
    # Not where scores have moved: the known ones are what the next night is to be compared with.
    sound = all(Check(**one).passed for one in tonight.steps["canary"].get("checks", ()))
    if config.canary and sound and (known is None or _worn(known, output, tonight)):
        chosen = canary.choose(output, config.canary)
        if chosen is not None:
            canary.write(output, chosen)
            drawn = chosen.num_rows
    if tonight.state in ("promoted", "kept"):
        # As the output's own manifest has it; what changed stays. Other nights are looked at, or done again.
        storage.delete(record.place(output, tonight.night, listing.FILE))
    # The audit sample was drawn by it, and nothing reads it any more.
    storage.delete(record.place(output, tonight.night, LABELLED))
    if tonight.state == "promoted":
        # In force it lies among the gates, under its id.
        storage.delete_folder(record.place(output, tonight.night, CANDIDATE))
    return {
        "files": [compacted.files_before, compacted.files_after],
        "removed_files": vacuumed.files,
        "removed_of_nights": removed,
        "canary": drawn,
    }


def _worn(known: pa.Table, output: str, tonight: Night) -> bool:
    """Whether a canary can't tell any more: other definitions, or most of its photographs are gone or changed."""
    compared = tonight.steps["canary"].get("compared")
    return canary.redefined(known, output) or (compared is not None and 2 * compared < known.num_rows)


def remove_old(output: str, nights: Sequence[Night], tonight: Night, days: int, now: datetime) -> int:
    """Remove the heavy files of nights that ended so many days ago; returns how many files.

    Never tonight's, those of nights that haven't ended or whose record can't be read, and those of nights that were
    refused and after which none was in order yet: somebody may have to look at them.
    """
    good = max((record.order(night) for night in nights if night.state in ("promoted", "kept")), default=("", ""))
    limit = now - timedelta(days=days)
    old = {
        night.night
        for night in nights
        if night.ended
        and night.night != tonight.night
        and (night.state != "refused" or record.order(night) < good)
        and _ended_before(night, limit)
    }
    if not old:
        return 0
    root = storage.join(output, record.NIGHTS)
    found = []
    for item in storage.everything(root):
        night, _, name = item.name.partition("/")
        if night in old and _HEAVY.fullmatch(name):
            found.append(record.place(output, night, *name.split("/")))
    with ThreadPoolExecutor(record.AT_ONCE, thread_name_prefix="old-nights") as pool:
        list(pool.map(storage.delete, found))
    return len(found)


def _ended_before(night: Night, limit: datetime) -> bool:
    try:
        ended = datetime.fromisoformat(night.finished or "")
    except ValueError:
        return False
    return (ended if ended.tzinfo else ended.replace(tzinfo=UTC)) < limit

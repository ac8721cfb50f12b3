"""The records of a score table's earlier runs, `_history/`."""

import contextlib
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

from qualitygate.tables import storage

DONE = "done"
# So many are looked at for the last good one.
_NEWEST = 50
_AT_ONCE = 16


def last_good(output: str) -> datetime | None:
    """When the newest of the last fifty runs that was done ended; None where none of them was.

    In the order in which their records were written: names tell no time, a night's begins with a word. One that is
    damaged says nothing. ImageError where the store can't be asked.
    """
    history = storage.join(output, "_history")
    found = [item for item in storage.everything(history) if item.name.endswith(".json") and "/" not in item.name]
    found.sort(key=lambda item: item.modified.timestamp() if item.modified else 0.0, reverse=True)
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="runs") as pool:
        # Records that were copied together bear one time: the latest end among them counts, not the first that is met.
        ends = list(pool.map(lambda item: _good(storage.join(history, item.name)), found[:_NEWEST]))
    return max((end for end in ends if end is not None), default=None)


def _good(uri: str) -> datetime | None:
    """When the run of a record ended that was done."""
    with contextlib.suppress(ValueError):
        stats = json.loads(storage.read_bytes(uri) or b"{}")
        if isinstance(stats, dict) and stats.get("state") == DONE:
            return ended(stats)
    return None


def ended(stats: dict[str, Any]) -> datetime | None:
    """When the run of a `_stats.json` ended; None where it doesn't say."""
    try:
        started = datetime.fromisoformat(stats["started"])
        moment = started + timedelta(seconds=float(stats["seconds"]))
    except (KeyError, TypeError, ValueError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)

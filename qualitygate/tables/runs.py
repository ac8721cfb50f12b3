"""The records of a score table's earlier runs, `_history/`."""

import contextlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any

from qualitygate.tables import storage

DONE = "done"
# So many are looked at for the last good one.
_NEWEST = 50


def last_good(output: str) -> datetime | None:
    """When the newest of the last fifty runs that was done ended; None where none of them was.

    The records' names begin with the time at which their run began. One that is damaged says nothing. ImageError where
    the store can't be asked.
    """
    history = storage.join(output, "_history")
    names = sorted((item.name for item in storage.everything(history)), reverse=True)
    for name in [name for name in names if name.endswith(".json") and "/" not in name][:_NEWEST]:
        with contextlib.suppress(ValueError):
            stats = json.loads(storage.read_bytes(storage.join(history, name)) or b"{}")
            if stats.get("state") == DONE and (moment := ended(stats)) is not None:
                return moment
    return None


def ended(stats: dict[str, Any]) -> datetime | None:
    """When the run of a `_stats.json` ended; None where it doesn't say."""
    try:
        started = datetime.fromisoformat(stats["started"])
        moment = started + timedelta(seconds=float(stats["seconds"]))
    except (KeyError, TypeError, ValueError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)

"""How the nightly job of an output stands, for `qualitygate status`: the last nights, the gate in force, the lock."""

from collections.abc import Mapping
from datetime import UTC, datetime
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from qualitygate.calibration import gate as gates
from qualitygate.calibration import gate_store
from qualitygate.errors import ConfigurationError, ImageError
from qualitygate.nightly import lock, record, trend
from qualitygate.nightly.lock import Held
from qualitygate.nightly.record import RECORDS, Night
from qualitygate.report import wording
from qualitygate.report.status import Part, ago, iso, moment
from qualitygate.tables import storage

GOOD = ("promoted", "kept")
_SHOWN = 7


def nightly(folder: str, now: datetime) -> Part | None:
    """The part of the status that is the nightly job's; None where no night ever began.

    Good are nights that were promoted or kept. A problem is a last night that was refused, or that has begun and not
    ended while nobody is at work on it. The damaged record of another night is a warning. Raises ConfigurationError
    for the last night's record, a lock or a history that is damaged.
    """
    held, _ = lock.read(folder)
    nights, damaged = _nights(folder, held)
    if not nights:
        if damaged:
            raise ConfigurationError("; ".join(damaged.values()))
        return None
    history = gate_store.read(storage.join(folder, gates.FOLDER))
    last = nights[-1]
    good = next((night for night in reversed(nights) if night.state in GOOD), None)
    problem = _problem(last, held, now)
    lines = [_said(night, now) for night in nights[-_SHOWN:]]
    lines.append(f"last good night: {good.night}, {ago(moment(good.finished), now)}" if good else "no good night yet")
    lines += [_gate(history.current, now), _lock(held, now)]
    warnings = [f"night {name} counts as one that nobody trusts: {why}" for name, why in damaged.items()]
    # What the last night came upon: of nights that have ended long ago status reads the table alone.
    warnings += [check.said for check in last.checks if check.name == RECORDS and not damaged]
    lines += [f"warning: {warning}" for warning in warnings]
    return Part(
        verb="nightly",
        lines=tuple(lines),
        facts={
            "nights": [_facts(night) for night in nights[-_SHOWN:]],
            "last_good": {"night": good.night, "ended": iso(moment(good.finished))} if good else None,
            "gate": _gate_facts(history.current),
            "lock": _lock_facts(held, now),
            "warnings": warnings,
        },
        good=moment(good.finished) if good else None,
        problem=problem,
        runs=record.RUN,
    )


def _nights(folder: str, held: Held | None) -> tuple[list[Night], Mapping[str, str]]:
    """All nights, from their table; those that it may not have yet, or not as they are now, from their own records.

    Also, by night, why a record can't be read that would tell more than the table.
    """
    known = {night.night: night for night in _table(folder)}
    last = max(known.values(), key=record.order, default=None)
    fresh = {name for name in _names(folder) if name not in known or known[name].state == "running"}
    fresh |= {held.night} if held is not None else set()
    fresh |= {last.night} if last is not None else set()
    found = record.read_some(folder, sorted(fresh))
    if last is not None and last.night in found.damaged:
        raise ConfigurationError(found.damaged[last.night])
    known |= {night.night: night for night in found.nights}
    return record.in_order(known.values()), found.damaged


def _names(folder: str) -> list[str]:
    try:
        return record.names(folder)
    except (ImageError, OSError) as error:
        raise ConfigurationError(f"the nights can't be listed: {storage.redact(str(error))}") from error


def _table(folder: str) -> list[Night]:
    """The nights of the table, as far as it tells."""
    uri = storage.join(folder, trend.FILE)
    columns = ["night", "started", "finished", "state", "reasons", "gate_before", "gate_after"]
    try:
        data = storage.read_bytes(uri)
        rows = pq.read_table(BytesIO(data), columns=columns).to_pylist() if data is not None else []
        return [Night(**{**row, "reasons": tuple(row["reasons"] or ())}) for row in rows]
    except ImageError as error:
        raise ConfigurationError(f"{storage.redact(uri)!r} can't be read: {error.failure.message}") from error
    except (pa.ArrowException, OSError, TypeError, KeyError) as error:
        raise ConfigurationError(
            f"{storage.redact(uri)!r} is no table of nights; delete it, the next night makes it again"
        ) from error


def _problem(last: Night, held: Held | None, now: datetime) -> str | None:
    if last.state == "refused":
        return f"night {last.night} was refused: {_reasons(last)}; whole in {record.NIGHTS}/{last.night}/{record.FILE}"
    if last.state != "running" or (held is not None and held.night == last.night and held.alive(now.timestamp())):
        return None
    done = f"behind its step {list(last.steps)[-1]!r}" if last.steps else "where it was"
    remedy = f"see its log, mend what it says, and start it again: it goes on {done}"
    if held is None or held.night != last.night:
        return f"night {last.night} has begun and not ended, and is not at work; {remedy}"
    if held.released:
        return f"night {last.night} failed or was stopped; {remedy}"
    return f"night {last.night} has begun and not ended, and nobody holds its lock: it was killed; {remedy}"


def _reasons(night: Night) -> str:
    """In short: whole they stand in the night's record and in its report."""
    return wording.clauses(night.reasons) or "no reason is recorded"


def _said(night: Night, now: datetime) -> str:
    when = (
        f", ended {ago(moment(night.finished), now)}"
        if night.finished
        else f", began {ago(moment(night.started), now)}"
    )
    why = f": {_reasons(night)}" if night.reasons else ""
    return f"{night.night}: {'not ended' if night.state == 'running' else night.state}{when}{why}"


def _gate(change: gate_store.Change | None, now: datetime) -> str:
    if change is None:
        return "gate in force: none"
    by = f"night {change.night}" if change.night else change.by
    held = "; promotions are HELD until somebody promotes by hand" if change.held else ""
    why = storage.redact(change.reason)
    return (
        f"gate in force: {change.gate_id} since {change.at}, {ago(moment(change.at), now)}, "
        f"by {by} ({change.action}: {why}){held}"
    )


def _lock(held: Held | None, now: datetime) -> str:
    if held is None:
        return "lock: never taken"
    left = held.until - now.timestamp()
    who = f"{held.host} since {held.since}, night {held.night}"
    if held.released:
        return f"lock: free; the last was {who}"
    if held.alive(now.timestamp()):
        return f"lock: held by {who}; expires in {left:.0f} s unless renewed"
    return f"lock: {'expired' if left <= 0 else 'its process has ended'}; it was {who}"


def _facts(night: Night) -> dict[str, Any]:
    return {
        "night": night.night,
        "state": night.state,
        "started": night.started,
        "finished": night.finished,
        "gate_after": night.gate_after,
        "reasons": [storage.redact(reason) for reason in night.reasons],
    }


def _gate_facts(change: gate_store.Change | None) -> dict[str, Any] | None:
    if change is None:
        return None
    return {
        "id": change.gate_id,
        "since": change.at,
        "by": change.by,
        "night": change.night,
        "action": change.action,
        "reason": storage.redact(change.reason),
        "held": change.held,
    }


def _lock_facts(held: Held | None, now: datetime) -> dict[str, Any] | None:
    if held is None:
        return None
    return {
        "held": held.alive(now.timestamp()),
        "host": held.host,
        "night": held.night,
        "since": held.since,
        "until": iso(datetime.fromtimestamp(held.until, UTC)),
        "released": held.released,
    }

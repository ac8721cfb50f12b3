"""Which gate is in force: a folder of gates, each under its id, and one small file that says which and since when.

    STORE/<id>/gate.json and what it rests on     written once, never changed
    STORE/history.json                            every change in order; its last entry names the current gate

A change is one compare-and-swap of history.json: readers see the old gate or the new one, never a mixture, and of two
that change it at once one is told so. Rolling back is a change too: nothing is ever taken out of the history.
"""

import getpass
import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from qualitygate.calibration import gate, outputs
from qualitygate.calibration.gate import FOLDER, HISTORY, Gate
from qualitygate.errors import ConfigurationError, ImageError, Superseded
from qualitygate.tables import scores, storage

FORMAT = "qualitygate-gate-history"
VERSION = 1
# What 'calibrate' writes beside a gate, taken along.
_BESIDE = ("calibration.json", "calibration.parquet", "_config.yaml")
# Of a gate's content: when and from which it was made doesn't change what it decides.
_ORIGIN = ("id", "created", "parent", "versions")

Action = Literal["promote", "rollback"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One entry of the history.

    gate_id: in force since `at` (ISO 8601, UTC). replaces: the gate before. night: of the nightly job, or None.
    fence: the number of the nightly lock under which it was made; a smaller one comes too late. held: no nightly job
    may promote until somebody does by hand.
    """

    sequence: int
    action: Action
    gate_id: str
    replaces: str | None
    at: str
    by: str
    reason: str
    night: str | None = None
    fence: int | None = None
    held: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """All changes in order, and the version of the file that they were read from (None: there is none yet)."""

    store: str
    changes: tuple[Change, ...] = ()
    etag: str | None = field(default=None, compare=False)

    @property
    def current(self) -> Change | None:
        """The last change; None before the first."""
        return self.changes[-1] if self.changes else None

    @property
    def standing(self) -> tuple[Change, ...]:
        """Promotions that were not rolled back, oldest first; the last one is of the current gate."""
        kept: list[Change] = []
        for change in self.changes:
            if change.action == "promote":
                kept.append(change)
                continue
            # Back to the latest standing promotion of that gate; to one that was withdrawn is a promotion again.
            places = [number for number, one in enumerate(kept) if one.gate_id == change.gate_id]
            kept = kept[: places[-1] + 1] if places else [*kept, change]
        return tuple(kept)

    @property
    def withdrawn(self) -> frozenset[str]:
        """Gates that somebody rolled back from and that nobody has promoted since."""
        out: set[str] = set()
        for change in self.changes:
            if change.action == "rollback" and change.replaces:
                out.add(change.replaces)
            out.discard(change.gate_id)
        return frozenset(out)


# ---- reading ---------------------------------------------------------------------------------------------


def of(location: str) -> str:
    """The store that a location means: itself, or its gates/ where it is the output of 'nightly', also a new one."""
    location = storage.check_location(location, "--store").rstrip("/")
    if location.rpartition("/")[2] == FOLDER or storage.exists(storage.join(location, HISTORY)):
        return location
    return storage.join(location, FOLDER)


def read(store: str) -> History:
    """The store's history, empty where there is none. Raises ConfigurationError for a file that is none."""
    uri = storage.join(store, HISTORY)
    name = repr(storage.redact(uri))
    try:
        found = storage.read_version(uri)
    except (ImageError, OSError) as error:
        reason = error.failure.message if isinstance(error, ImageError) else storage.redact(str(error))
        raise ConfigurationError(f"{name} can't be read: {reason}") from error
    if found is None:
        return History(store=store)
    try:
        content = json.loads(found.data)
        if (content.get("format"), content.get("version")) != (FORMAT, VERSION):
            raise ConfigurationError(f"{name} is no history of gates that this release reads; give another --store")
        changes = tuple(Change(**entry) for entry in content["changes"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"{name} is damaged ({error}); restore it from a backup") from error
    return History(store=store, changes=changes, etag=found.etag)


def current(location: str) -> Gate | None:
    """The gate in force; None where no gate was ever promoted."""
    history = read(of(location))
    return None if history.current is None else load(history.store, history.current.gate_id)


def load(store: str, gate_id: str) -> Gate:
    """A gate of the store by its id, or by the first digits of it."""
    if not storage.exists(storage.join(store, gate_id, gate.FILE)):
        known = [name for name in storage.subfolders(store) if name.startswith(gate_id)]
        if len(known) != 1:
            raise ConfigurationError(
                f"{storage.redact(store)!r} has {'several gates that begin' if known else 'no gate'} {gate_id!r}; "
                "'qualitygate gate history' lists them"
            )
        gate_id = known[0]
    found = gate.load(storage.join(store, gate_id))
    if found.id != gate_id:
        raise ConfigurationError(
            f"{storage.redact(storage.join(store, gate_id))!r} holds gate {found.id}; restore it from a backup"
        )
    return found


def same(one: Gate, other: Gate) -> bool:
    """Whether they decide alike, for the same reasons: equal but for when, with what and after which they were made."""
    kept = [{key: value for key, value in each.content.items() if key not in _ORIGIN} for each in (one, other)]
    return kept[0] == kept[1]


# ---- changing --------------------------------------------------------------------------------------------


def promote(
    store: str,
    location: str,
    *,
    reason: str,
    night: str | None = None,
    fence: int | None = None,
    seen: History | None = None,
    allow_untrained: bool = False,
) -> Change:
    """Put the gate of a file or folder in force.

    seen: the history that speaks for it; whatever was changed since it was read, also from none to the first gate,
    stands. None: the history as it is now. Nothing changes when it is in force already, but that a hold is lifted.

    Raises ConfigurationError for no gate, one that can't decide or stems from untrained networks; Superseded when
    another change was first, or when a newer nightly job (of a higher fence) has made one.
    """
    made = gate.load(location)
    # Fallbacks are the business of those who apply it; a gate none of whose methods may vote is nobody's.
    made.require(allow_fallback=True, allow_untrained=allow_untrained)
    history = read(store)
    if seen is not None and history.etag != seen.etag:
        raise Superseded(_changed(history))
    now = history.current
    if now is not None and now.gate_id == made.id and not now.held:
        return now
    _keep(store, location, made)
    return _append(history, "promote", made.id, reason, night=night, fence=fence)


def refuse_unscored(store: str, made: Gate) -> None:
    """Raise ConfigurationError where the store is of an output whose table lacks a score that the gate votes by.

    With such a gate in force nothing could be decided there, and every night would be refused.
    """
    output, _, last = store.rpartition("/")
    table = scores.open_table(output) if last == FOLDER and output else None
    if table is None:
        return
    known = scores.metrics_of(table)
    lacking = [voter.name for voter in made.voters(allow_fallback=True) if voter.name not in known]
    if lacking:
        raise ConfigurationError(
            f"gate {made.id} votes by {', '.join(lacking)}, which {storage.redact(output)!r} doesn't score (it has "
            f"{', '.join(known)}); score it there first ('score: metrics' of the nightly settings, or 'qualitygate "
            "score --metrics ... --backfill'), or promote a gate of what is scored"
        )


def _changed(history: History) -> str:
    now = history.current
    stands = f"gate {now.gate_id} is in force by {now.by} ({now.action})" if now else "no gate is in force any more"
    return f"the history of gates was changed meanwhile: {stands}; look at it and start again from there"


def rollback(store: str, *, to: str | None = None, reason: str, held: bool = False) -> Change:
    """Put the gate back in force that was before the current one, or `to`.

    held: no nightly job promotes until somebody promotes by hand; with it, `to` may be the gate in force. Raises
    ConfigurationError when there is none.
    """
    history = read(store)
    if history.current is None:
        raise ConfigurationError(f"{storage.redact(store)!r} has no gate in force; promote one first")
    if to is not None:
        target = load(store, to).id
    else:
        standing = [one for one in history.standing if one.gate_id != history.current.gate_id]
        if not standing:
            raise ConfigurationError(
                f"gate {history.current.gate_id} is the first of {storage.redact(store)!r}: there is none before it; "
                "name one with --to, or promote another"
            )
        target = load(store, standing[-1].gate_id).id
    if target == history.current.gate_id and not (held and not history.current.held):
        raise ConfigurationError(f"gate {target} is in force already")
    return _append(history, "rollback", target, reason, held=held)


def _keep(store: str, location: str, made: Gate) -> None:
    """The gate under its id, gate.json last: what has one is whole."""
    place = storage.join(store, made.id)
    if storage.exists(storage.join(place, gate.FILE)):
        load(store, made.id)
        return
    if storage.is_folder(location):
        for name in _BESIDE:
            data = storage.read_bytes(storage.join(location, name))
            if data is not None:
                storage.write_bytes(storage.join(place, name), data)
    storage.write_bytes(storage.join(place, gate.FILE), gate.dump(made.content))


def _append(
    history: History,
    action: Action,
    gate_id: str,
    reason: str,
    *,
    night: str | None = None,
    fence: int | None = None,
    held: bool = False,
) -> Change:
    newest = max((one.fence for one in history.changes if one.fence is not None), default=0)
    if fence is not None and fence < newest:
        raise Superseded("a newer nightly job has changed the gate; this one stopped")
    change = Change(
        sequence=len(history.changes) + 1,
        action=action,
        gate_id=gate_id,
        replaces=history.current.gate_id if history.current else None,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        by=_whoever(),
        reason=reason,
        night=night,
        fence=fence,
        held=held,
    )
    entries = [asdict(one) for one in (*history.changes, change)]
    data = json.dumps({"format": FORMAT, "version": VERSION, "current": gate_id, "changes": entries}, indent=1)
    uri = storage.join(history.store, HISTORY)
    if storage.put_if(uri, (data + "\n").encode(), history.etag) is None:
        raise Superseded(f"{storage.redact(uri)!r} was changed at the same moment; look at it and try again")
    return change


def _whoever() -> str:
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        # A container's user may have no name.
        name = "somebody"
    return f"{name}@{socket.gethostname()}"


# ---- comparing -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One method in two gates; None for what a gate lacks. Cut-offs and intervals raw, in the method's unit.

    moved: of the cut-off, in widths of the old one's interval.
    """

    method: str
    status: tuple[str | None, str | None]
    cutoff: tuple[float | None, float | None]
    interval: tuple[Sequence[float] | None, Sequence[float] | None]
    moved: float | None
    within: bool | None


def differences(old: Gate, new: Gate) -> list[Difference]:
    """Method by method, those of the old gate first."""
    return [_difference(name, old, new) for name in dict.fromkeys([*old.methods, *new.methods])]


def _difference(name: str, old: Gate, new: Gate) -> Difference:
    records: list[Mapping[str, Any]] = [each.content["methods"].get(name, {}) for each in (old, new)]
    cutoffs = [record.get("cutoff") for record in records]
    intervals = [record.get("interval") for record in records]
    moved = within = None
    if cutoffs[0] is not None and cutoffs[1] is not None:
        within = cutoffs[0] == cutoffs[1] or _inside(cutoffs[1], intervals[0]) or _inside(cutoffs[0], intervals[1])
        if intervals[0] and intervals[0][1] > intervals[0][0]:
            moved = (cutoffs[1] - cutoffs[0]) / (intervals[0][1] - intervals[0][0])
    return Difference(
        method=name,
        status=(records[0].get("status"), records[1].get("status")),
        cutoff=(cutoffs[0], cutoffs[1]),
        interval=(intervals[0], intervals[1]),
        moved=moved,
        within=within,
    )


def _inside(value: float, interval: Sequence[float] | None) -> bool:
    return interval is not None and interval[0] <= value <= interval[1]


def as_record(history: History) -> dict[str, Any]:
    """The history for programs: JSON-ready."""
    plain: dict[str, Any] = outputs.plain(
        {
            "store": storage.redact(history.store),
            "current": history.current.gate_id if history.current else None,
            "withdrawn": sorted(history.withdrawn),
            "changes": [asdict(one) for one in history.changes],
        }
    )
    return plain

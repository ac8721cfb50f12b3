"""What a night has done: one file that each step is entered in when it is finished, so that a second start goes on."""

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

from qualitygate.calibration import outputs
from qualitygate.errors import ConfigurationError, ErrorCode, ImageError
from qualitygate.tables import storage

FORMAT = "qualitygate-night"
VERSION = 1
NIGHTS = "nights"
# In front of a night's name: the run of the score table that is the night's.
RUN = "night-"
FILE = "night.json"

ORDER = ("canary", "manifest", "score", "drift", "calibrate", "decide", "upkeep", "report", "notify")

State = Literal["running", "promoted", "kept", "refused", "deadline"]
STATES: tuple[State, ...] = ("running", "promoted", "kept", "refused", "deadline")
# What no second start does again.
ENDED: tuple[State, ...] = ("promoted", "kept", "refused", "deadline")
# The check that names records of other nights that can't be read.
RECORDS = "records"
# Small files of all nights, each a request to the store: asked for side by side.
AT_ONCE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One guardrail: what was measured, what it is held against, and in words why it holds or doesn't."""

    name: str
    passed: bool
    said: str
    value: float | None = None
    limit: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Night:
    """One night. steps: by name, what each found. gate_before, gate_after: ids of the gates in force.

    trusted: whether tonight's photographs passed the checks of their own. reasons: why it was refused, or what a
    deadline has left. earlier: in short, the tries of this night that were done again.
    """

    night: str
    started: str
    state: State = "running"
    finished: str | None = None
    gate_before: str | None = None
    gate_after: str | None = None
    trusted: bool = False
    reasons: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()
    steps: Mapping[str, Any] = field(default_factory=dict)
    earlier: tuple[Mapping[str, Any], ...] = ()

    @property
    def ended(self) -> bool:
        """Whether nothing of it is left to do but what follows the decision."""
        return self.state in ENDED

    @property
    def run_id(self) -> str:
        """What tonight's rows of the score table name as their run."""
        return f"{RUN}{self.night}"

    def with_step(self, name: str, found: Mapping[str, Any]) -> "Night":
        """The same with one more step finished; steps stand in their order, also where one was done again."""
        steps = {**self.steps, name: dict(found)}
        return replace(self, steps={step: steps[step] for step in sorted(steps, key=ORDER.index)})


def place(output: str, night: str, *names: str) -> str:
    """Where a night's files lie."""
    return storage.join(output, NIGHTS, night, *names)


def now() -> str:
    """This moment as records have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read(output: str, night: str) -> Night | None:
    """A night's record; None before its first step. Raises ConfigurationError for a file that is none."""
    uri = place(output, night, FILE)
    data = storage.read_bytes(uri)
    if data is None:
        return None
    try:
        content = json.loads(data)
        if (content.pop("format"), content.pop("version")) != (FORMAT, VERSION):
            raise ValueError("another format")
        content["checks"] = tuple(Check(**one) for one in content["checks"])
        content["reasons"] = tuple(content["reasons"])
        content["earlier"] = tuple(content.get("earlier", ()))
        made = Night(**content)
        if made.night != night or made.state not in STATES or not isinstance(made.started, str):
            raise ValueError("a night, a state or a beginning that can't be")
        if not all(isinstance(step, dict) for step in [*made.steps.values(), *made.earlier]):
            raise ValueError("steps of another kind")
        return made
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"{storage.redact(uri)!r} is damaged ({error}); delete it, and the night begins anew"
        ) from error


def write(output: str, made: Night, *names: str) -> None:
    """Put a night's record in place, whole; below the night's folder elsewhere, where names are given."""
    outputs.write_json(
        place(output, made.night, *(names or (FILE,))), {"format": FORMAT, "version": VERSION, **asdict(made)}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """nights: in the order in which they were started. damaged: by night, why its record can't be read."""

    nights: tuple[Night, ...] = ()
    damaged: Mapping[str, str] = field(default_factory=dict)


def read_all(output: str, *, without: str | None = None) -> Records:
    """Every night of an output but for one. A damaged record harms no other night: it is told beside them."""
    return read_some(output, [name for name in names(output) if name != without])


def read_some(output: str, wanted: Iterable[str]) -> Records:
    """The records of some nights, read side by side; a night without any is left out."""
    wanted = list(wanted)
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="nights") as pool:
        found = list(pool.map(lambda name: _read_or_why(output, name), wanted))
    return Records(
        nights=tuple(in_order(one for one in found if isinstance(one, Night))),
        damaged={name: one for name, one in zip(wanted, found, strict=True) if isinstance(one, str)},
    )


def _read_or_why(output: str, night: str) -> Night | str | None:
    try:
        return read(output, night)
    except ConfigurationError as error:
        return str(error)
    except ImageError as error:
        if may_pass(error):
            raise
        return f"{storage.redact(place(output, night, FILE))!r} can't be read: {error.failure.message}"


def may_pass(error: ImageError) -> bool:
    """Whether the store is to blame and not the one object: then another start is better than to go on without it."""
    return error.failure.code in (ErrorCode.TRANSIENT, ErrorCode.TIMEOUT)


def names(output: str) -> list[str]:
    """The nights that have a folder."""
    return storage.subfolders(storage.join(output, NIGHTS))


def in_order(nights: Iterable[Night]) -> list[Night]:
    """Nights in the order in which they were started."""
    return sorted(nights, key=order)


def order(night: Night) -> tuple[str, str]:
    """By what nights are put in order: their beginning, then their name."""
    return night.started, night.night

"""What a night has done: one file that each step is entered in when it is finished, so that a second start goes on."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

from qualitygate.calibration import outputs
from qualitygate.errors import ConfigurationError
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

    trusted: whether tonight's scores may serve as reference for later nights. reasons: why it was refused.
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
        return Night(**content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"{storage.redact(uri)!r} is damaged ({error}); delete it, and the night begins anew"
        ) from error


def write(output: str, made: Night) -> None:
    """Put a night's record in place, whole."""
    outputs.write_json(place(output, made.night, FILE), {"format": FORMAT, "version": VERSION, **asdict(made)})


def all_of(output: str) -> list[Night]:
    """Every night of an output, in the order in which they were started."""
    names = storage.subfolders(storage.join(output, NIGHTS))
    found = [read(output, name) for name in names]
    return in_order(one for one in found if one is not None)


def in_order(nights: Iterable[Night]) -> list[Night]:
    """Nights in the order in which they were started."""
    return sorted(nights, key=lambda one: (one.started, one.night))

"""Makes what the nightly job leaves behind, night by night and with known numbers, so that its trend can be tested."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from qualitygate.calibration import gate_store
from qualitygate.nightly import record, trend
from qualitygate.nightly.record import Check, Night

FIRST = date(2026, 1, 5)
SECRET = "T0K3N-very-secret"
METHODS = ("lapm", "wavs", "niqe")
DRIFT = (
    "tonight's photographs are unlike the reference's: lapm fell from a median of 8.41 to 3.1: worse quality "
    "(PSI 1.84, 400 photographs); look at them in the night's report, and if it is wanted, run the night again with "
    "--accept-drift"
)
# What of it is told where it is told in short.
DRIFT_CLAUSE = DRIFT.partition("; ")[0]
HOSTILE = "<script>alert(1)</script> %{y} s3://user:pass@bucket/x?X-Amz-Signature=abc"


def moment(number: int, hour: int = 2, *, seconds: int = 0) -> str:
    """ISO 8601 of a night."""
    found = datetime(FIRST.year, FIRST.month, FIRST.day, hour, tzinfo=UTC) + timedelta(days=number, seconds=seconds)
    return found.isoformat(timespec="seconds")


def name(number: int) -> str:
    """A night's name: its day."""
    return f"{FIRST + timedelta(days=number)}"


def gate(number: int) -> str:
    """A gate's id."""
    return f"{number:016x}"


def night(number: int, state: str, before: int | None, after: int | None, **more: Any) -> Night:
    """A night that ended as said. before, after: numbers of gates; more: fields of the record."""
    wave = math.sin(number / 5)
    drifted = state == "refused"
    checks = [
        Check(name="errors", passed=True, said="2 of tonight's 400 photographs have no score", value=0.005, limit=0.1),
        Check(name="drift", passed=not drifted, said=DRIFT if drifted else "like the reference's", value=0, limit=0),
        Check(name="labelled", passed=True, said="enough", value=300 + 10 * number, limit=200),
        Check(name="rejects labelled", passed=True, said="enough", value=40 + number, limit=30),
    ]
    methods = [
        {
            "method": method,
            "cutoff": 10.0 * (place + 1) + (after or 0) if after is not None else None,
            "low": 9.0 * (place + 1) + (after or 0) if after is not None else None,
            "high": 11.0 * (place + 1) + (after or 0) if after is not None else None,
            "psi": 1.84 if drifted and not place else 0.03 + 0.01 * (1 + wave),
            "psi_limit": 0.25,
            "word": "drifted" if drifted and not place else "stable",
        }
        for place, method in enumerate(METHODS)
    ]
    decide: dict[str, Any] = {"methods": methods, "audit": {"new": 4, "before": 2 * number}}
    drift: dict[str, Any] = {"rows": 400 + number, "failed": 2, "drifted": int(drifted), "new_strata": {}}
    if after is not None:
        decide["coverage"] = 0.8 + 0.02 * wave
    if before is not None:
        drift["coverage"] = decide["coverage_tonight"] = 0.78 + 0.04 * wave - 0.2 * drifted
    made = Night(
        night=name(number),
        started=moment(number),
        finished=moment(number, seconds=1200),
        state=state,  # type: ignore[arg-type]
        gate_before=gate(before) if before is not None else None,
        gate_after=gate(after) if after is not None else None,
        trusted=not drifted,
        reasons=(DRIFT,) if drifted else (),
        checks=tuple(checks),
        steps={
            "manifest": {"images": 1000 + 400 * number, "new": 398, "changed": 2, "gone": 1},
            "score": {"rows": 400, "deadline": state == "deadline"},
            "drift": drift,
            "calibrate": {"gate": "g", "labelled": 300 + 10 * number, "kinds": {"rejected": [40 + number, 90]}},
            "decide": decide,
        },
    )
    return replace(made, **more)


def stopped(number: int, in_force: int | None) -> Night:
    """A night that its canary refused: nothing was scored, so most is unknown."""
    said = "scores of the same photographs moved: niqe by 3.1"
    return Night(
        night=name(number),
        started=moment(number),
        finished=moment(number, seconds=60),
        state="refused",
        gate_before=gate(in_force) if in_force is not None else None,
        gate_after=gate(in_force) if in_force is not None else None,
        reasons=(said,),
        checks=(Check(name="canary", passed=False, said=said, value=3.1, limit=1e-6),),
        steps={"canary": {"photographs": 200}},
    )


def running(number: int, in_force: int | None) -> Night:
    """A night that was killed while it scored."""
    found = gate(in_force) if in_force is not None else None
    return Night(night=name(number), started=moment(number), gate_before=found, steps={"canary": {}})


def history(count: int) -> list[Night]:
    """So many nights with everything in them: promoted, kept, drifted, a canary, a deadline, a missing night."""
    nights: list[Night] = []
    in_force: int | None = None
    for number in range(count):
        day = number + (2 if number > 6 else 0)
        if number % 10 == 4:
            nights.append(night(day, "refused", in_force, in_force))
        elif number % 10 == 7:
            nights.append(stopped(day, in_force))
        elif number % 10 == 8:
            nights.append(night(day, "deadline", in_force, in_force))
        elif number % 5 == 0:
            nights.append(night(day, "promoted", in_force, number + 1))
            in_force = number + 1
        else:
            nights.append(night(day, "kept", in_force, in_force))
    return nights


def change(sequence: int, gate_id: str, replaces: str | None, at: str, **more: Any) -> dict[str, Any]:
    """An entry of the gates' history."""
    entry = {
        "sequence": sequence,
        "action": "promote",
        "gate_id": gate_id,
        "replaces": replaces,
        "at": at,
        "by": "quality@node-7",
        "reason": "every guardrail held",
        "night": None,
        "fence": sequence,
        "held": False,
    }
    return entry | more


def changes_of(nights: Sequence[Night]) -> list[dict[str, Any]]:
    """The promotions that nights have made."""
    found: list[dict[str, Any]] = []
    for one in nights:
        if one.state == "promoted" and one.gate_after:
            found.append(
                change(len(found) + 1, one.gate_after, one.gate_before, one.finished or one.started, night=one.night)
            )
    return found


def write(
    folder: Path, nights: Sequence[Night], *, changes: Sequence[dict[str, Any]] | None = None, table: bool = True
) -> Path:
    """An output of the nightly job. changes: of the gates' history, by default those of the nights."""
    folder.mkdir(parents=True, exist_ok=True)
    for one in nights:
        record.write(str(folder), one)
    if table:
        trend.write(str(folder), nights)
    entries = changes_of(nights) if changes is None else list(changes)
    if entries:
        store = folder / "gates"
        store.mkdir(exist_ok=True)
        content = {"format": gate_store.FORMAT, "version": gate_store.VERSION, "changes": entries}
        (store / "history.json").write_text(json.dumps(content))
    if nights:
        config = {
            "input": "s3://photographs/",
            "output": str(folder),
            "max_psi": 0.25,
            "notify_webhook": f"https://hooks.example.com/services/{SECRET}",
            "notify_command": ["/usr/bin/tell", f"--token={SECRET}"],
        }
        (folder / "nights" / nights[-1].night / "_config.yaml").write_text(yaml.safe_dump(config))
    return folder


def lock(folder: Path, night_name: str, *, until: datetime, released: bool = False, host: str = "node-7") -> None:
    """The nightly job's lock."""
    content = {
        "fence": 3,
        "holder": "abc",
        "host": host,
        "process": "17:1",
        "since": "2026-01-05T02:00:00+00:00",
        "until": until.timestamp(),
        "night": night_name,
        "released": released,
    }
    (folder / "_nightly_lock.json").write_text(json.dumps(content))

"""What somebody can do about a night that was refused: for each check that did not hold, the command."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qualitygate.report import records, wording
from qualitygate.report.artefacts import Artefacts
from qualitygate.tables import storage

# Whoever runs the job has its settings, and nobody else knows where.
SETTINGS = "nightly.yaml"
# Settings of 'score' that a score depends on, or without which a photograph has none.
_DEFINING = (
    "metrics",
    "longest_side",
    "max_pixels",
    "backend",
    "precision",
    "verified",
    "decoder",
    "formulas",
    "weights",
    "untrained",
    "image_column",
)
# Checks of a candidate that somebody who has looked at the labels may overrule.
_OVERRULED = ("cut-off", "methods", "coverage", "value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing to do: when and why, and the command that does it, where one does."""

    text: str
    command: str | None = None


def of(found: Artefacts) -> list[Step]:
    """The steps for the last night; none for one that was not refused."""
    night = found.nights.last if found.nights else None
    if night is None or night.state != "refused":
        return []
    failed = [check.name for check in night.checks if not check.passed]
    made = [step for name in failed for step in _steps(name, night, found)]
    if any(step.command and SETTINGS in step.command for step in made):
        settings = storage.join(_folder(found), "nights", night.night, "_config.yaml")
        made.append(
            Step(text=f"Here {SETTINGS} is the file that the scheduler gives; {settings} says what stood in it.")
        )
    # Several checks may ask for the same.
    return list(dict.fromkeys(made))


def _folder(found: Artefacts) -> str:
    return storage.redact(found.folders["nightly"])


def _steps(name: str, night: records.NightRecord, found: Artefacts) -> list[Step]:
    folder = _folder(found)
    again = f"qualitygate nightly --config {SETTINGS} --night {shlex.quote(night.night)}"
    if name == "errors":
        return [
            Step(text="See which errors there are.", command=f"qualitygate status {shlex.quote(folder)}"),
            Step(
                text="When the feed or the store is mended, do the night again: photographs that were replaced are "
                "scored anew.",
                command=f"{again} --again",
            ),
        ]
    if name == "drift":
        return [
            Step(
                text="Look at the photographs below. If the change is wanted, such as a new camera, accept it: "
                "tonight's photographs join the reference, and their labels count.",
                command=f"{again} --accept-drift",
            ),
            Step(
                text="If it isn't wanted, mend the feed: these photographs stay out of the reference and of any gate."
            ),
        ]
    if name == "manifest":
        return [Step(text="If the photographs were replaced on purpose, allow it.", command=f"{again} --allow-changes")]
    if name == "canary":
        return _of_canary(night, found, again)
    if name in ("labelled", "rejects labelled"):
        return [_label(night, found)]
    if name.startswith(_OVERRULED):
        return _of_candidate(night, folder)
    if name == "not withdrawn":
        return [
            Step(
                text="See who rolled back and why.",
                command=f"qualitygate gate history --store {shlex.quote(folder)}",
            ),
            *_of_candidate(night, folder)[1:],
        ]
    if name in ("gate in force", "calibrate", "decides"):
        return [Step(text="When what the reason names is mended, do the night again.", command=f"{again} --again")]
    return []


def _of_canary(night: records.NightRecord, found: Artefacts, again: str) -> list[Step]:
    folder, defining = _folder(found), _defining(found)
    moved = [one for one in night.steps.canary.moved if one.past]
    if not moved:
        return [
            Step(text="When the store answers and the credentials are right, try again.", command=f"{again} --again")
        ]
    if any(one.definition for one in moved):
        listed = shlex.quote(storage.join(folder, "manifest.parquet"))
        return [
            Step(
                text="If the new definition (a release, a setting) is meant, score the table anew by it; the next "
                "night draws a new canary.",
                command=f"qualitygate score --input {listed} --output {shlex.quote(folder)} --backfill{defining}",
            )
        ]
    return [
        Step(
            text="A library, driver or machine that changed makes other scores: go back to the one before, and do the "
            "night again.",
            command=f"{again} --again",
        ),
        Step(text="If it is to stay, begin another --output: scores of the two can't be compared."),
    ]


def _label(night: records.NightRecord, found: Artefacts) -> Step:
    samples = storage.join(_folder(found), "nights", "*", "audit_sample.parquet")
    predictions = _settings(found).get("predictions")
    into = f" to {predictions}" if isinstance(predictions, str) else " to the predictions"
    return Step(
        text=f"Have the audit samples labelled, {samples}, and add what the classifier says of them{into}; the next "
        "night uses them."
    )


def _of_candidate(night: records.NightRecord, folder: str) -> list[Step]:
    if night.steps.calibrate.gate is None:
        return []
    place, store = (shlex.quote(part) for part in (storage.join(folder, "nights", night.night, "gate"), folder))
    made = (
        [
            Step(
                text="Look at the new labels, and compare the candidate with the gate in force.",
                # The output stands for the gate in force.
                command=f"qualitygate gate diff {store} {place}",
            )
        ]
        if night.gate_after
        else []
    )
    return [
        *made,
        Step(
            text="If they are right, put the candidate in force by hand.",
            command=f"qualitygate gate promote {place} --store {store} --reason {shlex.quote('the labels are right')}",
        ),
    ]


def _settings(found: Artefacts) -> Mapping[str, Any]:
    """The night's own, as far as they can be read."""
    import yaml

    try:
        values = yaml.safe_load(found.configs.get("nightly", ""))
    except yaml.YAMLError:
        values = None
    return values if isinstance(values, Mapping) else {}


def _defining(found: Artefacts) -> str:
    """The night's settings of 'score' that scores depend on, as options; without them they'd be others."""
    score = _settings(found).get("score")
    values = score if isinstance(score, Mapping) else {}
    options = []
    for key in _DEFINING:
        value = values.get(key)
        if value is True:
            options.append(f"--{key.replace('_', '-')}")
        elif value is not None and value is not False:
            said = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            options.append(f"--{key.replace('_', '-')} {shlex.quote(said)}")
    return "".join(f" {option}" for option in options)


def candidate(found: Artefacts) -> list[str] | None:
    """Why the gate whose lines the page shows is not in force; None where it is, or where there are no nights."""
    nights, calibration = found.nights, found.calibration
    if nights is None or calibration is None or nights.in_force == calibration.gate.id:
        return None
    night = nights.last
    if night is None or night.steps.calibrate.gate != calibration.gate.id:
        return ["it is no candidate of the last night"]
    if night.state == "refused":
        return [wording.clause(check.said) for check in night.checks if not check.passed]
    if night.state == "kept":
        return ["it decides as the gate in force does, so nothing was changed"]
    if night.state == "promoted":
        change = nights.changes[-1] if nights.changes else None
        return [f"another was put in force since, by {change.by}: {change.reason}" if change else "another is by now"]
    return ["the night has not decided"]

"""From what the page was made: ids, fingerprints, seeds and versions of every record."""

from collections.abc import Iterable, Mapping
from typing import Any

from qualitygate.report import records, wording
from qualitygate.report.artefacts import Artefacts
from qualitygate.report.sections import pairs, text

Lines = list[tuple[str, str]]


def of(artefacts: Artefacts) -> list[tuple[str, Lines]]:
    """(title, lines) of each record, and at the end the versions of all."""
    found: list[tuple[str, Lines]] = []
    versions: dict[str, Mapping[str, Any]] = {}
    if calibration := artefacts.calibration:
        gate, record = calibration.gate, calibration.record
        found.append(("Gate", _gate(gate, record)))
        versions["calibrate"] = record.versions or gate.versions
        if "calibrate" not in artefacts.configs:
            found.append(("Calibration's settings", pairs(record.config)))
    if artefacts.robustness:
        robust = artefacts.robustness.record
        prints = {name: metric.fingerprint for name, metric in robust.metrics.items()}
        lines = [
            ("created", text(robust.created)),
            ("samples", wording.count(robust.samples)),
            ("the single clear image", text(robust.single_sample)),
            *_fingerprints(prints.items()),
        ]
        found.append(("Robustness", lines))
        versions["robustness"] = robust.versions
        if "robustness" not in artefacts.configs:
            found.append(("Robustness' settings", pairs(robust.config)))
    if stats := artefacts.scoring:
        lines = [
            ("run", stats.run_id),
            ("started", text(stats.started)),
            ("input", text(stats.input)),
            *_fingerprints(stats.fingerprints.items()),
        ]
        found.append(("Scoring run", lines))
        versions["score"] = stats.versions
    if prediction := artefacts.prediction:
        lines = [
            ("created", text(prediction.created)),
            ("model's fingerprint", text(prediction.model_fingerprint)),
            ("weights' sha256", text(prediction.weights_sha256)),
            ("input", text(prediction.input)),
        ]
        found.append(("Predictions", lines))
        versions["predict"] = prediction.versions
    if model := artefacts.model:
        lines = [
            ("created", text(model.created)),
            ("model's fingerprint", text(model.model_fingerprint)),
            ("weights' sha256", text(model.sha256)),
            ("started from", "random parameters" if model.from_scratch else text(model.pretrained)),
            ("photographs", text(model.rows)),
            ("seed", text(model.seed)),
            ("hardware", text(model.hardware)),
        ]
        found.append(("Classifier's training", lines))
        versions["train-baseline"] = model.versions
    if artefacts.study:
        study = artefacts.study.record
        lines = [
            ("created", text(study.created)),
            ("gate", text(study.gate_id)),
            ("photographs", wording.count(study.photographs)),
            ("workers", text(study.workers)),
            ("seconds", text(study.seconds)),
        ]
        found.append(("Training study", lines))
        versions["study"] = study.versions
        if "study" not in artefacts.configs:
            found.append(("Study's settings", pairs(study.design)))
    if nights := artefacts.nights:
        last = nights.rows[-1]
        lines = [
            ("nights", wording.count(len(nights.rows))),
            ("the last", last.night),
            ("began", text(last.started)),
            ("ended", text(last.finished)),
            ("gate before it", text(last.gate_before)),
            ("gate after it", text(last.gate_after)),
            ("gate in force", text(nights.in_force)),
        ]
        found.append(("Nightly job", lines))
    found.append(("Versions", _versions(versions)))
    return [(title, lines) for title, lines in found if lines]


def _gate(gate: records.Gate, record: records.CalibrationRecord) -> Lines:
    return [
        ("id", gate.id),
        ("created", text(gate.created)),
        ("follows", text(gate.parent) if gate.parent else "no earlier gate"),
        ("methods", f"{text(list(gate.methods))} (preset {text(gate.preset)})"),
        ("classifier", text(gate.classifier)),
        ("photographs, sha256 of their ids", text(gate.manifest)),
        ("photographs", wording.count(record.rows)),
        ("groups", wording.count(record.groups)),
        ("wrong predictions", wording.count(record.wrong)),
        ("left out", text(record.dropped)),
        ("seed", text(gate.seed)),
        *_fingerprints(gate.fingerprints.items()),
    ]


def _fingerprints(found: Iterable[tuple[str, Any]]) -> Lines:
    return [(f"fingerprint of {name}", text(value)) for name, value in found]


def _versions(found: Mapping[str, Mapping[str, Any]]) -> Lines:
    """Each library once; where the verbs ran on different versions, which verb on which."""
    names = dict.fromkeys(name for versions in found.values() for name in versions)
    lines = []
    for name in names:
        by_version: dict[str, list[str]] = {}
        for verb, versions in found.items():
            if name in versions:
                by_version.setdefault(text(versions[name]), []).append(verb)
        said = [
            version if len(by_version) == 1 else f"{version} ({wording.listing(verbs)})"
            for version, verbs in by_version.items()
        ]
        lines.append((name, ", ".join(said)))
    return lines

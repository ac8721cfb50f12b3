"""The calibration job: scores and predictions in, gate.json and what it rests on out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import numpy as np

from qualitygate.calibration import cutoffs, description, gate, heldout, inputs, outputs
from qualitygate.calibration.cutoffs import Fit, Settings
from qualitygate.calibration.gate import Gate
from qualitygate.calibration.inputs import Inputs, Photographs
from qualitygate.calibration.statistics import Booleans, Floats, Integers, effective_size
from qualitygate.config import CalibrateConfig, echo
from qualitygate.errors import ConfigurationError, GateRefused
from qualitygate.tables import storage

RECORD = "calibration.json"
TABLE = "calibration.parquet"


class Progress(Protocol):
    """Where a run tells how far it is."""

    def start(self, *, total: int, done: int) -> None:
        """`done` of `total` steps are behind."""

    def advance(self, *, rows: int, errors: int = 0) -> None:
        """So many more steps are done."""

    def note(self, message: str) -> None:
        """Something worth a line."""

    def stop(self) -> None:
        """No more steps will come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a calibration found. record: of calibration.json. refusal: why the gate can't decide, or None.

    photographs: those it was calibrated on. held_out: (N,) share of the repeats in which each of them passed a gate of
    other groups, of those whose gate could decide, NaN where none could, for `value`; None where nothing was held out.
    """

    output: str
    gate: Gate
    record: Mapping[str, Any]
    refusal: str | None
    photographs: Photographs
    held_out: Floats | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Votes:
    """Votes on the photographs that were calibrated on; None where too few methods can vote. low: by voter."""

    low: Mapping[str, Booleans]
    votes_low: Integers | None
    passed: Booleans | None


def run(config: CalibrateConfig, progress: Progress) -> Result:
    """Find each method's cut-off, measure what the gate buys, write gate.json last.

    Methods whose line isn't sure are `undefined` and don't vote; a gate that can't decide for want of voters is
    written all the same, with the reasons. Raises ConfigurationError before anything is written.
    """
    settings = _settings(config)
    robustness = _robustness(config)
    parent = gate.load(config.parent, "--parent").id if config.parent is not None else None
    found = inputs.read(config, robustness)
    votes_needed = gate.agreed(found.methods, config.votes_needed)
    _check_permutations(found.methods, settings)
    output = outputs.check_output(config.output)
    photographs = found.photographs

    plan = heldout.plan(photographs, config.folds, config.repeats, config.seed)
    folds = sum(len(splits) for splits in plan.splits) if plan else 0
    progress.start(total=len(found.methods) + folds, done=0)
    try:
        fits = _fits(found, settings, progress)
        allow_fallback = _needs_fallback(fits, votes_needed)
        votes = _votes(photographs, fits, votes_needed, allow_fallback)
        held_out, accepted, notes = None, None, _notes(found, fits, plan, allow_fallback)
        if votes.passed is not None and plan is not None:
            top1, note = heldout.top1_of(photographs, found.two_classes)
            notes += [note] if note else []
            outcome = heldout.cross_fit(
                photographs,
                found.directions,
                settings,
                plan,
                votes_needed=votes_needed,
                allow_fallback=allow_fallback,
                top1=top1,
                advance=lambda: progress.advance(rows=1),
            )
            accepted = outcome.passed()
            held_out = heldout.figures(photographs, outcome, plan, replicates=config.bootstrap, seed=config.seed)
            notes += _lessons(held_out)
        else:
            progress.advance(rows=folds)
    finally:
        progress.stop()

    content = _gate_content(config, found, fits, votes, held_out, votes_needed, parent)
    record = _record(config, found, fits, votes, held_out, notes, content["id"])
    made = gate.parse(content, "the new gate")
    _write(output, config, content, record, _table(found, fits, votes, accepted))
    try:
        made.require(allow_fallback=allow_fallback, allow_untrained=True)
        refusal = None
    except GateRefused as error:
        refusal = str(error)
    return Result(output=output, gate=made, record=record, refusal=refusal, photographs=photographs, held_out=accepted)


# ---- before --------------------------------------------------------------------------------------------------


def _settings(config: CalibrateConfig) -> Settings:
    if config.target_accuracy is not None and config.min_coverage is not None:
        raise ConfigurationError(
            "--target-accuracy and --min-coverage are two rules for one cut-off; give one of them, or neither for the "
            "crossing of the densities"
        )
    return Settings.of(config)


def _robustness(config: CalibrateConfig) -> dict[str, Any] | None:
    if config.robustness is None:
        return None
    location = storage.check_location(config.robustness, "--robustness")
    uri = storage.join(location, "robustness.json") if storage.is_folder(location) else location
    name = f"--robustness {storage.redact(location)!r}"
    return outputs.read_json(uri, name, "give the output folder of 'qualitygate robustness'")


def _check_permutations(methods: Sequence[str], settings: Settings) -> None:
    fewest = cutoffs.fewest_permutations(len(methods), settings.significance)
    if settings.permutations < fewest:
        raise ConfigurationError(
            f"--permutations {settings.permutations} can't reach a significance of {settings.significance:g} with "
            f"{len(methods)} methods; give {fewest} or more"
        )


# ---- fits and votes ------------------------------------------------------------------------------------------


def _fits(found: Inputs, settings: Settings, progress: Progress) -> dict[str, Fit]:
    photographs = found.photographs
    weight, direction = photographs.weight, found.directions
    made = []
    for method, raw in photographs.scores.items():
        made.append(
            cutoffs.fit(method, raw, photographs.correct, photographs.group, direction[method], settings, weight)
        )
        progress.advance(rows=1)
    return {one.method: one for one in cutoffs.settle(made, photographs.scores, settings, weight)}


def _needs_fallback(fits: Mapping[str, Fit], votes_needed: int) -> bool:
    """Whether only fallbacks make the gate decide: it is then measured with their votes, and says so."""
    alone, together = (len(heldout.voters(fits, allow)) for allow in (False, True))
    return alone < votes_needed <= together


def _votes(photographs: Photographs, fits: Mapping[str, Fit], votes_needed: int, allow_fallback: bool) -> _Votes:
    voting = heldout.voters(fits, allow_fallback)
    # A score that failed votes low here, as it does by default when the gate is applied.
    low = {name: fit.low(photographs.scores[name]) | np.isnan(photographs.scores[name]) for name, fit in voting.items()}
    if len(voting) < votes_needed:
        return _Votes(low=low, votes_low=None, passed=None)
    total = heldout.votes_low(photographs, voting)
    return _Votes(low=low, votes_low=total, passed=total < votes_needed)


# ---- what is worth knowing -----------------------------------------------------------------------------------


def _notes(found: Inputs, fits: Mapping[str, Fit], plan: heldout.Plan | None, allow_fallback: bool) -> list[str]:
    notes = list(found.warnings)
    if found.choice.note:
        notes.append(found.choice.note)
    if found.untrained:
        notes.append(f"{', '.join(found.untrained)}: UNTRAINED networks, whose scores mean nothing")
    for fit in fits.values():
        # Where there is no cut-off, how it was picked among crossings is no news.
        notes += fit.notes if fit.status == "ok" else ()
    if plan is None:
        notes.append("all wrong (or all right) predictions lie in one group: nothing can be held out")
    elif plan.note:
        notes.append(plan.note)
    if allow_fallback:
        notes.append(
            "too few methods have a sure cut-off: coverage and held-out figures count the fallbacks' votes, which "
            "'qualitygate gate' takes only with --allow-fallback"
        )
    return notes


def _lessons(held_out: Mapping[str, Any]) -> list[str]:
    """What the held-out figures say against the gate, in words."""
    said = {
        "random": "rejecting at random",
        "top1": "the classifier's own top-1 probability",
        "best_single": "the best single method",
        "logistic": "a logistic combination of the methods",
    }
    lessons = []
    if held_out["undecided_share"]:
        lessons.append(
            f"in {held_out['undecided_share']:.0%} of the folds too few methods had a cut-off and all passed"
        )
    for one in held_out["comparison"]:
        difference = one["difference"]
        if difference is None or difference["interval"] is None:
            continue
        low, high = difference["interval"]
        if high < 0:
            lessons.append(
                f"at equal coverage {said[one['name']]} does better than the gate, by {-difference['mean']:.3f} "
                f"[{-high:.3f}, {-low:.3f}] in accuracy"
            )
        elif one["name"] == "random" and low <= 0:
            lessons.append(
                f"on unseen groups the gate isn't surely better than rejecting at random: {difference['mean']:+.3f} "
                f"[{low:+.3f}, {high:+.3f}] in accuracy"
            )
    return lessons


# ---- records -------------------------------------------------------------------------------------------------


def _method_record(fit: Fit) -> dict[str, Any]:
    def normalised(raw: Any) -> Any:
        low, high = fit.bounds or (0.0, 0.0)
        return None if raw is None or high <= low else (np.asarray(raw) - low) / (high - low)

    densities = None
    if fit.curves is not None:
        raw = fit.axis.raw(fit.curves.quality)
        order = np.argsort(raw, kind="stable")
        densities = {
            "quality": outputs.significant(raw[order]),
            "quality_normalized": outputs.significant(normalised(raw[order])),
            "correct": outputs.significant(fit.curves.right[order]),
            "wrong": outputs.significant(fit.curves.wrong[order]),
            "axis": "log" if fit.axis.transform == "log" else "linear",
        }
    return {
        "direction": fit.axis.direction,
        "status": fit.status,
        "reason": fit.reason,
        "rule": fit.rule,
        "cutoff": fit.cutoff,
        "cutoff_normalized": normalised(fit.cutoff),
        "interval": sorted(fit.interval) if fit.interval else None,
        "interval_level": cutoffs.LEVEL,
        "bounds": fit.bounds,
        "transform": fit.axis.transform,
        "searched": sorted(fit.axis.raw(fit.searched).tolist()) if fit.searched else None,
        "crossings": fit.crossings,
        "share_single_crossing": fit.share,
        "auroc": fit.auroc,
        "p_value": fit.p_value,
        "p_value_holm": fit.p_value_holm,
        "wrong": fit.wrong,
        "wrong_groups": fit.wrong_groups,
        "correct": fit.right,
        "densities": densities,
    }


def _sampling_record(found: Inputs) -> dict[str, Any]:
    """`sampling` of both records where photographs have weights: nothing otherwise, not even the key.

    effective: what so many photographs of different weight count for, (sum w)^2 / sum w^2.
    """
    photographs, weight = found.photographs, found.photographs.weight
    if found.sampling is None or photographs.probability is None:
        return {}
    kinds = {"correct": photographs.correct, "wrong": ~photographs.correct}
    return {
        "sampling": {
            "column": found.sampling,
            "probability": [photographs.probability.min(), photographs.probability.max()],
            "effective": effective_size(weight),
            "classes": {
                kind: {"n": int(chosen.sum()), "effective": effective_size(weight[chosen])}
                for kind, chosen in kinds.items()
            },
        }
    }


def _gate_content(
    config: CalibrateConfig,
    found: Inputs,
    fits: Mapping[str, Fit],
    votes: _Votes,
    held_out: Mapping[str, Any] | None,
    votes_needed: int,
    parent: str | None,
) -> dict[str, Any]:
    content: dict[str, Any] = outputs.plain(
        {
            "format": gate.FORMAT,
            "version": gate.VERSION,
            "id": "",
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "parent": parent,
            "votes_needed": votes_needed,
            "methods": {name: _method_record(fit) for name, fit in fits.items()},
            "coverage": None
            if votes.passed is None
            else float(np.average(votes.passed, weights=found.photographs.weight)),
            "held_out": held_out,
            "fingerprints": dict(found.fingerprints),
            "untrained": found.untrained,
            "classifier": found.classifier,
            "manifest": found.photographs.identity(),
            "preset": found.choice.preset,
            "seed": config.seed,
            "versions": outputs.versions(),
            **_sampling_record(found),
        }
    )
    return content | {"id": gate.identity(content)}


def _record(
    config: CalibrateConfig,
    found: Inputs,
    fits: Mapping[str, Fit],
    votes: _Votes,
    held_out: Mapping[str, Any] | None,
    notes: Sequence[str],
    gate_id: str,
) -> dict[str, Any]:
    photographs = found.photographs
    rates: Mapping[str, Any] = {"class": {}, "stratum": {}}
    warnings, errors = list(notes), []
    if votes.passed is not None and votes.votes_low is not None:
        rates, unequal = description.pass_rates(photographs, votes.passed, config.seed)
        warnings += unequal
        errors = description.confident_errors(photographs, votes.votes_low, votes.passed, list(fits.values()))
    record: dict[str, Any] = outputs.plain(
        {
            "format": "qualitygate-calibration",
            "version": 1,
            "gate_id": gate_id,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "rows": len(photographs),
            "wrong": int(np.count_nonzero(~photographs.correct)),
            "groups": photographs.groups,
            "accuracy": float(np.average(photographs.correct, weights=photographs.weight)),
            **_sampling_record(found),
            "dropped": found.dropped,
            "choice": {"preset": found.choice.preset, "methods": found.methods, "rule": found.choice.rule},
            "stratum": found.stratum,
            "held_out": held_out,
            "quality_confidence": description.quality_confidence(photographs, fits, config.seed),
            "pass_rates": rates,
            "agreement": description.agreement(
                votes.low, gate.agreed(found.methods, config.votes_needed), photographs.weight
            ),
            "method_correlations": description.method_correlations(photographs, fits),
            "confident_errors": errors,
            "warnings": warnings,
            "config": config.model_dump(mode="json"),
        }
    )
    return record


def _table(found: Inputs, fits: Mapping[str, Fit], votes: _Votes, accepted: Floats | None) -> Any:
    """calibration.parquet: a row for each photograph.

    held_out_passed: share of the cross-fitting's repeats in which it passed, of those that could decide. weight: where
    photographs have one.
    """
    import pyarrow as pa

    photographs = found.photographs
    nothing = [None] * len(photographs)
    columns: dict[str, Any] = {"image_id": pa.array(photographs.image_id, pa.string())}
    texts = {"group": photographs.group_name, "label": photographs.label, "predicted": photographs.predicted}
    for name, values in (texts | {"stratum": photographs.stratum, "uri": photographs.uri}).items():
        columns[name] = pa.array(values, pa.string())
    columns["correct"] = pa.array(photographs.correct)
    columns["confidence"] = pa.array(photographs.confidence)
    columns["top1"] = pa.array(photographs.top1, mask=np.isnan(photographs.top1))
    if found.sampling is not None:
        columns["sampling_probability"] = pa.array(photographs.probability)
    for name, raw in photographs.scores.items():
        columns[name] = pa.array(raw, mask=np.isnan(raw))
    for name in fits:
        columns[f"low_{name}"] = pa.array(votes.low.get(name, nothing), pa.bool_())
    columns["votes_low"] = pa.array(nothing if votes.votes_low is None else votes.votes_low, pa.int64())
    columns["passed"] = pa.array(nothing if votes.passed is None else votes.passed, pa.bool_())
    shares = np.full(len(photographs), np.nan) if accepted is None else accepted
    columns["held_out_passed"] = pa.array(shares, mask=np.isnan(shares))
    if photographs.weighted:
        columns["weight"] = pa.array(photographs.weight)
    return pa.table(columns)


def _write(
    output: str, config: CalibrateConfig, content: Mapping[str, Any], record: Mapping[str, Any], table: Any
) -> None:
    # An older gate stays in force until this one stands whole: it is replaced last, at once. A run that is cut short
    # before leaves a record that names another gate, by which the mixture is known for one.
    outputs.write_json(storage.join(output, RECORD), record)
    outputs.write_table(storage.join(output, TABLE), table)
    storage.write_bytes(storage.join(output, "_config.yaml"), echo(config).encode())
    storage.write_bytes(storage.join(output, gate.FILE), gate.dump(content))

"""What each section of the page shows, ready for its template: sections without data are not there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qualitygate.report import album, figures, method_figures, night_section, records, verdict, wording
from qualitygate.report.artefacts import Artefacts, Calibration
from qualitygate.report.selection import Photographs, Selection, goodness

_MOST_RATES = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure. json: plotly's, inert inside a script element; label: what it shows, for those who can't see it."""

    json: str
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One method's part of the page.

    walk: row numbers of the figure's photographs from worst to best; start: the place in it that is shown first,
    which is the last photograph before the line.
    """

    name: str
    method: records.Method
    sketch: verdict.Sketch | None
    figure: Figure
    walk: Sequence[int]
    start: int
    missing: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RateTable:
    """Pass rates by one property, the lowest first."""

    title: str
    rates: Sequence[tuple[str, records.Rate]]
    left_out: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Margin:
    """Why a method was chosen or left out, with what was measured."""

    name: str
    chosen: bool | None
    why: str
    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRange:
    """One metric of a scoring run."""

    name: str
    found: records.Range
    scored: int
    without: int
    figure: Figure | None


def marked(names: Sequence[str], untrained: frozenset[str]) -> dict[str, str]:
    """Names for figures: an untrained method carries its warning in the label."""
    return {
        name: wording.plotted(wording.method(name)) + (" ⚠ untrained" if name in untrained else "") for name in names
    }


def _figure(figure: Any, label: str) -> Figure:
    return Figure(json=figures.as_json(figure), label=label)


def lines(calibration: Calibration, rows: Photographs, chosen: Selection) -> list[Line]:
    """Figure 3 of each method."""
    found = []
    for name, method in calibration.gate.methods.items():
        shown = chosen.scatter
        quality = rows.scores[name]
        figure = figures.scatter(name, method, quality[shown], rows.confidence[shown], rows.correct[shown], rows=shown)
        where = (
            f"The cut-off is {wording.number(method.cutoff)} {wording.interval(method.interval)}."
            if method.cutoff is not None
            else "There is no cut-off."
        )
        label = f"Confidence over {wording.method(name)} of {shown.size} photographs, right and wrong. {where}"
        walk = album.walk(rows, chosen, name, method)
        found.append(
            Line(
                name=name,
                method=method,
                sketch=verdict.sketch(method),
                figure=_figure(figure, label),
                walk=walk,
                start=_start(walk, quality, method),
                missing=int((~np.isfinite(quality)).sum()),
            )
        )
    return found


def _start(walk: Sequence[int], quality: Any, method: records.Method) -> int:
    if method.cutoff is None:
        return len(walk) // 2
    line = goodness(np.asarray([method.cutoff], dtype=np.float64), method)[0]
    return max(0, int((goodness(quality[list(walk)], method) < line).sum()) - 1)


def sampling(calibration: Calibration) -> str | None:
    """How the calibration's photographs were weighted, in a sentence; None where all weigh alike."""
    found = calibration.record.sampling
    if found is None:
        return None
    classes = {kind: (one.n, one.effective) for kind, one in found.classes.items()}
    return wording.sentence(wording.weighted(found.column, found.probability, found.effective, classes))


def coverage(held_out: records.HeldOut | None) -> dict[str, Any] | None:
    """The risk-coverage figure and the comparison behind it."""
    if held_out is None or not held_out.comparison:
        return None
    figure = figures.risk_coverage(held_out.comparison, held_out)
    label = "Share of wrong predictions among the photographs kept, over the share kept, for this gate and baselines."
    return {
        "held_out": held_out,
        "figure": _figure(figure, label) if figure else None,
        "sides": {
            compared.name: verdict.side(compared.difference)
            for compared in held_out.comparison
            if compared.difference and compared.difference.interval
        },
    }


def robustness(artefacts: Artefacts) -> dict[str, Any] | None:
    """Table 1, effect sizes, reactions and the choice of methods."""
    if artefacts.robustness is None:
        return None
    record = artefacts.robustness.record
    names = marked(list(record.metrics), artefacts.untrained)
    effects = method_figures.effects(record.metrics, names)
    values = artefacts.robustness.values
    moved = method_figures.reactions(values, record.metrics, names) if values is not None else None
    rows = record.table1.rows
    columns = [name for name in record.metrics if any(name in row.ours for row in rows)]
    columns += [name for row in rows for name in row.ours if name not in columns]
    return {
        "record": record,
        "columns": list(dict.fromkeys(columns)),
        "others": list(dict.fromkeys(name for row in rows for name in row.paper if name not in columns)),
        "effects": _figure(effects, "Effect sizes by method and nuisance as a heat map.") if effects else None,
        "reactions": _figure(moved, "Change of each score along each series, by the change under blur.")
        if moved
        else None,
        "nuisances": list(dict.fromkeys(name for one in record.metrics.values() for name in one.correlations)),
        "margins": [_margin(name, found) for name, found in (record.choice.margins if record.choice else {}).items()],
    }


def _margin(name: str, found: Any) -> Margin:
    """A margin's two best-known parts by name; the others are the rule's own."""
    parts = dict(found) if isinstance(found, Mapping) else {"": found}
    chosen, why = parts.pop("in", None), parts.pop("why", None)
    chosen = chosen if isinstance(chosen, bool) else None
    return Margin(name=name, chosen=chosen, why=wording.NOTHING if why is None else str(why), pairs=pairs(parts))


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested values as (name, text), for records whose inner layout is the writer's own."""
    if isinstance(value, Mapping):
        return [pair for key, part in value.items() for pair in _flat(part, f"{prefix} {key}".strip())]
    return [(str(prefix).replace("_", " "), text(value))]


def text(value: Any) -> str:
    """Any value of a record for reading."""
    if value is None:
        return wording.NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return wording.number(value)
    if isinstance(value, list | tuple):
        return ", ".join(text(part) for part in value) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {text(part)}" for key, part in value.items()) or "none"
    return wording.safe(str(value))


def pairs(value: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A record's part as (name, text) lines."""
    return [pair for key, part in value.items() for pair in _flat(part, str(key))]


def agreement(calibration: Calibration, untrained: frozenset[str]) -> dict[str, Any]:
    """How the methods go together, with confidence, and how evenly they pass classes and strata."""
    record = calibration.record
    matrix = record.method_correlations
    names = marked([*record.quality_confidence, *matrix.methods], untrained)
    heat = None
    if len(matrix.methods) > 1 and len(matrix.spearman) == len(matrix.methods):
        heat = _figure(
            method_figures.correlations(matrix.spearman, [names[name] for name in matrix.methods]),
            "Rank correlations among the methods as a heat map.",
        )
    ranks = method_figures.confidence_ranks(record.quality_confidence, names)
    tables = []
    for title, rates in record.pass_rates.items():
        ordered = sorted(rates.items(), key=lambda item: (item[1].passed is None, item[1].passed or 0.0, item[0]))
        shown = ordered if len(ordered) <= _MOST_RATES else [*ordered[: _MOST_RATES - 5], *ordered[-5:]]
        if shown:
            tables.append(RateTable(title=title, rates=shown, left_out=len(ordered) - len(shown)))
    return {
        "heat": heat,
        "matrix": matrix if heat else None,
        "ranks": _figure(ranks, "Rank correlations of quality with confidence, with intervals.") if ranks else None,
        "quality_confidence": record.quality_confidence,
        "agreement": record.agreement,
        "tables": tables,
    }


def scoring(artefacts: Artefacts, sample: Mapping[str, Any]) -> dict[str, Any] | None:
    """The scoring run. sample: by metric, the raw scores to draw."""
    stats = artefacts.scoring
    if stats is None:
        return None
    methods = artefacts.calibration.gate.methods if artefacts.calibration else {}
    ranges = []
    for name, found in stats.metrics.items():
        scored = found.states.get("ok", 0)
        values, drawn = sample.get(name), None
        if values is not None and np.isfinite(values).sum() > 1:
            figure = figures.histogram(name, values, method=methods.get(name))
            drawn = _figure(figure, f"Distribution of {wording.method(name)} over the run's photographs.")
        without = sum(found.states.values()) - scored
        ranges.append(ScoreRange(name=name, found=found, scored=scored, without=without, figure=drawn))
    stages = sorted(stats.seconds_by_stage.items(), key=lambda item: -item[1])
    return {"stats": stats, "ranges": ranges, "stages": stages, "longest": stages[0][1] if stages else 0.0}


def warnings(artefacts: Artefacts) -> list[str]:
    """What a reader must know before trusting a number, the gravest first."""
    found: list[str] = []
    if artefacts.untrained:
        names = wording.listing(sorted(wording.method(name) for name in artefacts.untrained))
        found.append(f"Untrained networks made the scores of {names}: they try the plumbing and mean nothing.")
    if artefacts.prediction and artefacts.prediction.trained is False:
        found.append("The classifier was never trained: its confidence means nothing.")
    calibration, decisions = artefacts.calibration, artefacts.decisions
    if calibration and decisions and calibration.gate.id != decisions.gate_id:
        found.append(
            f"The decisions were made by gate {decisions.gate_id}, but the lines shown are of gate "
            f"{calibration.gate.id}."
        )
    if calibration and artefacts.prediction:
        ours, theirs = calibration.gate.classifier, artefacts.prediction.model_fingerprint
        if ours and theirs and ours != "external" and ours != theirs:
            found.append(
                f"The gate was calibrated on the classifier {wording.short(ours)}, but the predictions shown are of "
                f"{wording.short(theirs)}."
            )
    if calibration and artefacts.scoring:
        other = [
            name
            for name, made_from in calibration.gate.fingerprints.items()
            if name in artefacts.scoring.fingerprints
            and made_from not in ("external", *artefacts.scoring.fingerprints[name].values())
        ]
        if other:
            names = wording.listing([wording.method(name) for name in other])
            found.append(f"The scoring run shown computes {names} by another definition than the gate was made from.")
    if other_gate := night_section.warning(artefacts):
        found.append(other_gate)
    if decisions and decisions.external:
        names = wording.listing([wording.method(name) for name in decisions.external])
        found.append(f"The gate was applied to scores that came from elsewhere, without fingerprints: {names}.")
    if artefacts.prediction and artefacts.prediction.trained_on_rows:
        found.append(
            f"{artefacts.prediction.trained_on_rows:,} of the predictions are on photographs that the classifier was "
            "trained on; calibration refuses such, or leaves them out."
        )
    if artefacts.scoring and artefacts.scoring.state not in (None, "done"):
        found.append(f"The scoring run is not complete: its state is {artefacts.scoring.state}.")
    if calibration:
        found += calibration.record.warnings
    return [wording.sentence(warning) for warning in found]

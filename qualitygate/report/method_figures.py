"""Figures that compare the methods: effect sizes, reactions, correlations, quality against confidence."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from qualitygate.report import figures, records, wording
from qualitygate.report.palette import LIGHT

_SERIES = ("line-gate", "line-best", "wrong", "right", "line-logistic", "line-random", "bad", "good")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "hexagon", "pentagon")
_MOST_ROWS = 40


def effects(metrics: Mapping[str, records.Reaction], marked: Mapping[str, str]) -> go.Figure | None:
    """Heat map of effect sizes: rows are methods, columns nuisances, 0 is ideal, 1 is as strong as all the blur."""
    nuisances = list(dict.fromkeys(nuisance for metric in metrics.values() for nuisance in metric.effects))
    if not nuisances:
        return None
    none = records.Effect()
    found = [[metric.effects.get(nuisance, none) for nuisance in nuisances] for metric in metrics.values()]
    values = [[effect.ratio for effect in line] for line in found]
    text = [[_effect_text(effect) for effect in line] for line in found]
    return _heat_map(
        values,
        text,
        columns=[wording.nuisance(nuisance).replace(", ", ",<br>") for nuisance in nuisances],
        rows=[marked[name] for name in metrics],
        scale=[(0, "scale-none"), (0.25, "scale-some"), (0.6, "scale-much"), (1, "scale-most")],
        ends=(0.0, 1.0),
        title="effect ÷<br>blur range",
        ticks=([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "≥ 1"]),
    )


def _effect_text(effect: records.Effect) -> str:
    if effect.ratio is None:
        return "–"
    ends = wording.interval(effect.interval, "coefficient")
    return f"<b>{wording.coefficient(effect.ratio)}</b>" + (f"<br>{ends}" if ends else "")


def correlations(matrix: Sequence[Sequence[float | None]], names: Sequence[str]) -> go.Figure:
    """Heat map of the methods' rank correlations, each oriented so that higher is better, in [-1, 1]."""
    return _heat_map(
        matrix,
        [[wording.coefficient(value) for value in line] for line in matrix],
        columns=names,
        rows=names,
        scale=[
            (0, "scale-opposed"),
            (0.25, "scale-half-opposed"),
            (0.5, "scale-zero"),
            (0.75, "scale-half-alike"),
            (1, "scale-alike"),
        ],
        ends=(-1.0, 1.0),
        title="Spearman",
        ticks=([-1, -0.5, 0, 0.5, 1], ["−1", "−0.5", "0", "0.5", "1"]),
    )


def _heat_map(
    values: Sequence[Sequence[float | None]],
    text: Sequence[Sequence[str]],
    *,
    columns: Sequence[str],
    rows: Sequence[str],
    scale: Sequence[tuple[float, str]],
    ends: tuple[float, float],
    title: str,
    ticks: tuple[Sequence[float], Sequence[str]],
) -> go.Figure:
    figure = go.Figure(
        go.Heatmap(
            z=values,
            x=columns,
            y=rows,
            text=text,
            texttemplate="%{text}",
            # One colour that is readable on all of the scale; plotly's own choice isn't in its middle.
            textfont={"color": LIGHT["ink"], "size": 12.5},
            zmin=ends[0],
            zmax=ends[1],
            xgap=3,
            ygap=3,
            colorscale=[[at, LIGHT[role]] for at, role in scale],
            hovertemplate="%{y}, %{x}: %{text}<extra></extra>",
            colorbar={
                "title": {"text": title, "font": {"size": 12, "color": LIGHT["muted"]}},
                "tickvals": ticks[0],
                "ticktext": ticks[1],
                "tickfont": {"size": 11, "color": LIGHT["muted"]},
                "outlinewidth": 0,
                "thickness": 12,
                "len": 0.9,
            },
        )
    )
    figure.update_xaxes(**figures.axis(type="category", side="top", showgrid=False, automargin=True))
    figure.update_yaxes(**figures.axis(type="category", autorange="reversed", showgrid=False, automargin=True))
    height = 110 + 46 * len(rows)
    figure.update_layout(**figures.base(height, margin={"l": 8, "r": 8, "t": 60, "b": 12}, meta={"kind": "heat"}))
    return figure


def confidence_ranks(found: Mapping[str, records.QualityConfidence], marked: Mapping[str, str]) -> go.Figure | None:
    """Rank correlation of quality with confidence: overall, within class and within stratum, with intervals."""
    labels: dict[tuple[str, str], str] = {("overall", ""): "<b>all photographs</b>"}
    for group, title in (("within_class", "class"), ("within_stratum", "stratum")):
        values = sorted({value for one in found.values() for value in getattr(one, group)})
        labels |= {(group, value): f"{title} {wording.plotted(value)}" for value in values[:_MOST_ROWS]}
    figure = go.Figure()
    seen: list[float] = []
    spread = 0.62 / max(1, len(found))
    for number, (name, one) in enumerate(found.items()):
        x, y, ends = [], [], []
        for line, (group, value) in enumerate(labels):
            rank = one.overall if group == "overall" else getattr(one, group).get(value)
            if rank is not None and rank.spearman is not None:
                x.append(rank.spearman)
                y.append(line + (number - (len(found) - 1) / 2) * spread)
                ends.append(rank.interval or (rank.spearman, rank.spearman))
        seen += [end for pair in ends for end in pair]
        figure.add_trace(
            go.Scatter(
                x=x,
                y=y,
                mode="markers",
                name=marked[name],
                marker={
                    "size": 9,
                    "color": LIGHT[_SERIES[number % len(_SERIES)]],
                    "symbol": _SYMBOLS[number % len(_SYMBOLS)],
                },
                error_x={
                    "type": "data",
                    "symmetric": False,
                    "array": [high - at for at, (_, high) in zip(x, ends, strict=True)],
                    "arrayminus": [at - low for at, (low, _) in zip(x, ends, strict=True)],
                    "color": LIGHT[_SERIES[number % len(_SERIES)]],
                    "thickness": 1.6,
                    "width": 0,
                },
                hovertemplate="%{x:.2f}<extra>%{fullData.name}</extra>",
            )
        )
    if not seen:
        return None
    ends_seen = [min(0.0, *seen) - 0.06, max(0.0, *seen) + 0.06]
    figure.update_xaxes(
        **figures.axis(text="Spearman", range=ends_seen, showline=True, nticks=6, tickangle=0)
        | {"zeroline": True, "zerolinewidth": 1.5}
    )
    figure.update_yaxes(
        **figures.axis(
            tickvals=list(range(len(labels))),
            ticktext=list(labels.values()),
            range=[len(labels) - 0.5, -0.5],
            automargin=True,
            showgrid=True,
        )
    )
    figure.update_layout(**figures.base(150 + len(labels) * max(30, 13 * len(found)), hovermode="closest"))
    return figure


def reactions(values: Any, metrics: Mapping[str, records.Reaction], marked: Mapping[str, str]) -> go.Figure | None:
    """How much each metric moves along each series, as a share of its change under blur; flat is robust.

    values: robustness.parquet. A point is the median over the samples of |score - first score|, divided by the
    median over the samples of the largest such change under blur.
    """
    moved = _moved(values)
    nuisances = [name for name in wording.NUISANCES if name in {nuisance for nuisance, _ in moved}]
    names = [name for name in metrics if any((nuisance, name) in moved for nuisance in nuisances)]
    if not nuisances or not names:
        return None
    figure = make_subplots(
        rows=1,
        cols=len(nuisances),
        shared_yaxes=True,
        horizontal_spacing=0.025,
        subplot_titles=[wording.nuisance(nuisance).replace(", ", ",<br>") for nuisance in nuisances],
    )
    blur = next((nuisance for nuisance in nuisances if nuisance.startswith("blur")), None)
    for number, name in enumerate(names):
        scale = max(moved.get((blur, name), {0: 0.0}).values(), default=0.0) if blur else 0.0
        if not scale:
            continue
        for column, nuisance in enumerate(nuisances, 1):
            steps = moved.get((nuisance, name), {})
            figure.add_trace(
                go.Scatter(
                    x=list(steps),
                    y=[change / scale for change in steps.values()],
                    mode="lines+markers",
                    name=marked[name],
                    legendgroup=name,
                    showlegend=column == 1,
                    line={"color": LIGHT[_SERIES[number % len(_SERIES)]], "width": 2},
                    marker={"symbol": _SYMBOLS[number % len(_SYMBOLS)], "size": 7},
                    hovertemplate="step %{x}: %{y:.2f} of the change under blur<extra>%{fullData.name}</extra>",
                ),
                row=1,
                col=column,
            )
    if not figure.data:
        return None
    figure.update_xaxes(**figures.axis(text="step", showline=True, dtick=3))
    figure.update_yaxes(**figures.axis(rangemode="tozero", tickformat=".1~f"))
    figure.update_yaxes(title={"text": "change ÷ blur range", "font": {"size": 12.5, "color": LIGHT["muted"]}}, col=1)
    figure.update_annotations(font={"size": 12.5, "color": LIGHT["ink"]})
    layout = figures.base(330, margin={"l": 56, "r": 12, "t": 52, "b": 92}, meta={"kind": "panels"})
    layout["legend"] |= {"y": -0.24, "yanchor": "top"}
    figure.update_layout(**layout)
    return figure


def _moved(values: Any) -> dict[tuple[str, str], dict[int, float]]:
    """(nuisance, metric) -> step -> median over samples of |score - score at the first step|."""
    series: dict[tuple[str, str, str], dict[int, float]] = {}
    for row in values.select(["sample", "nuisance", "step", "metric", "value"]).to_pylist():
        if row["value"] is not None and row["step"] is not None:
            key = (row["nuisance"], row["metric"], row["sample"])
            series.setdefault(key, {})[row["step"]] = row["value"]
    changes: dict[tuple[str, str], dict[int, list[float]]] = {}
    for (nuisance, metric, _), steps in sorted(series.items()):
        first = steps[min(steps)]
        for step, value in sorted(steps.items()):
            changes.setdefault((nuisance, metric), {}).setdefault(step, []).append(abs(value - first))
    return {
        key: {step: float(np.median(found)) for step, found in sorted(steps.items())} for key, steps in changes.items()
    }

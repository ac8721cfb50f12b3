"""Figures of a training study: learning curves, Table 3 as curves, and the differences behind the verdicts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from qualitygate.report import figures, records, wording
from qualitygate.report.palette import LIGHT
from qualitygate.training import paper
from qualitygate.training.measures import SHARES
from qualitygate.training.study_report import WORDS
from qualitygate.training.study_statistics import LEVEL, summary
from qualitygate.training.verdicts import architecture_order

Rows = Sequence[Mapping[str, Any]]

# Kind of training set -> its name, colour, dash and symbol: the same in every figure.
_STYLES = {
    "high": ("high-quality", "right", "solid", "circle"),
    "all": ("all-quality", "wrong", "dash", "square"),
    "balanced": ("control: same classes at random", "line-logistic", "dot", "diamond"),
    "full": ("control: all, unfiltered", "line-random", "dashdot", "triangle-up"),
    "varying": ("lowest quality removed", "right", "solid", "circle"),
    "random": ("control: removed at random", "wrong", "dash", "square"),
}
_CURVES = ("high", "all", "balanced", "full")
_LEVELS = ("varying", "random")
_LEVEL_MEASURES = ("accuracy", "auc", "balanced_accuracy")
_MOST_PANELS = 4


def learning_curves(rows: Rows) -> go.Figure | None:
    """Loss and accuracy on each run's evaluation photographs by epoch: a thick mean over thin repetitions.

    rows: finished runs. A column for each architecture; the training loss is dotted.
    """
    chosen = [row for row in rows if row["kind"] in _CURVES and row["eval_loss"]]
    names = sorted({row["architecture"] for row in chosen}, key=architecture_order)[:_MOST_PANELS]
    if not names:
        return None
    figure = make_subplots(
        rows=2,
        cols=len(names),
        shared_xaxes=True,
        shared_yaxes="rows",
        vertical_spacing=0.08,
        horizontal_spacing=0.03,
        subplot_titles=[wording.plotted(paper.spelt(name)) for name in names],
    )
    for column, name in enumerate(names, 1):
        for kind in _CURVES:
            runs = [row for row in chosen if (row["architecture"], row["kind"]) == (name, kind)]
            if runs:
                _add_curves(figure, runs, kind, column, legend=column == 1)
    epochs = max(len(row["eval_loss"]) for row in chosen)
    figure.update_xaxes(**figures.axis(showline=True, range=[0.5, epochs + 0.5], dtick=max(1, round(epochs / 8))))
    figure.update_xaxes(title={"text": "epoch", "font": {"size": 12.5, "color": LIGHT["muted"]}}, row=2)
    figure.update_yaxes(**figures.axis(showline=True))
    for line, text in enumerate(("loss, nats", "accuracy"), 1):
        figure.update_yaxes(title={"text": text, "font": {"size": 12.5, "color": LIGHT["muted"]}}, row=line, col=1)
    figure.update_yaxes(tickformat=".0%", row=2)
    figure.update_annotations(font={"size": 12.5, "color": LIGHT["ink"]})
    layout = figures.base(470, margin={"l": 60, "r": 12, "t": 40, "b": 92}, hovermode="closest")
    layout["legend"] |= {"y": -0.16, "yanchor": "top"}
    figure.update_layout(**layout)
    return figure


def _add_curves(figure: go.Figure, runs: Rows, kind: str, column: int, *, legend: bool) -> None:
    title, colour, dash, _ = _STYLES[kind]
    for line, series in enumerate(("eval_loss", "eval_accuracy"), 1):
        for row in runs:
            shown = [value if value is not None else np.nan for value in row[series]]
            trace = go.Scatter(
                x=np.arange(1, len(shown) + 1),
                y=np.asarray(shown, dtype=np.float32),
                mode="lines",
                legendgroup=kind,
                showlegend=False,
                hoverinfo="skip",
                opacity=0.28,
                line={"color": LIGHT[colour], "width": 1, "dash": dash},
            )
            figure.add_trace(trace, row=line, col=column)
        mean = _mean([row[series] for row in runs])
        figure.add_trace(
            go.Scatter(
                x=np.arange(1, len(mean) + 1),
                y=mean.astype(np.float32),
                mode="lines",
                name=title,
                legendgroup=kind,
                showlegend=legend and line == 1,
                line={"color": LIGHT[colour], "width": 2.6, "dash": dash},
                hovertemplate="epoch %{x}: " + ("%{y:.3f}" if line == 1 else "%{y:.1%}") + f"<extra>{title}</extra>",
            ),
            row=line,
            col=column,
        )


def _mean(curves: Sequence[Sequence[float | None]]) -> Any:
    """Mean by epoch over the curves, NaN where no curve has a value."""
    stacked = np.full((len(curves), max(map(len, curves))), np.nan)
    for number, curve in enumerate(curves):
        stacked[number, : len(curve)] = [np.nan if value is None else value for value in curve]
    count = np.isfinite(stacked).sum(0)
    return np.where(count > 0, np.nansum(stacked, axis=0) / np.maximum(count, 1), np.nan)


def levels(rows: Rows) -> go.Figure | None:
    """Table 3 as curves: results on high-quality test photographs over the percentage removed, beside the paper's.

    rows: finished runs. Bars are t intervals over repetitions. None with fewer than two levels.
    """
    chosen = [row for row in rows if row["kind"] in _LEVELS]
    if len({row["removed"] for row in chosen if row["kind"] == "varying"}) < 2:
        return None
    names = sorted({row["architecture"] for row in chosen}, key=architecture_order)
    figure = make_subplots(
        rows=1,
        cols=len(_LEVEL_MEASURES),
        horizontal_spacing=0.07,
        subplot_titles=[WORDS[measure] for measure in _LEVEL_MEASURES],
    )
    for column, measure in enumerate(_LEVEL_MEASURES, 1):
        for number, name in enumerate(names):
            for kind in _LEVELS:
                _add_levels(figure, chosen, name, kind, measure, column, shift=0.35 * number, several=len(names) > 1)
        _add_paper(figure, names, measure, column)
    removed = sorted({row["removed"] for row in chosen})
    figure.update_xaxes(**figures.axis(text="lowest quality removed, %", showline=True, tickvals=removed))
    figure.update_yaxes(**figures.axis(showline=True, tickformat=".0%", nticks=6))
    figure.update_annotations(font={"size": 12.5, "color": LIGHT["ink"]})
    layout = figures.base(350, margin={"l": 56, "r": 12, "t": 40, "b": 96}, meta={"kind": "panels"})
    layout["legend"] |= {"y": -0.26, "yanchor": "top"}
    figure.update_layout(**layout)
    return figure


def _add_levels(
    figure: go.Figure,
    rows: Rows,
    name: str,
    kind: str,
    measure: str,
    column: int,
    *,
    shift: float,
    several: bool,
) -> None:
    title, colour, dash, symbol = _STYLES[kind]
    cells: dict[float, list[float]] = {}
    for row in rows:
        if (row["architecture"], row["kind"]) == (name, kind) and row[measure] is not None:
            cells.setdefault(row["removed"], []).append(row[measure])
    if not cells:
        return
    at = sorted(cells)
    means = [float(np.mean(cells[level])) for level in at]
    ends = [_interval(cells[level], mean) for level, mean in zip(at, means, strict=True)]
    label = f"{paper.spelt(name)}, {title}" if several else title
    figure.add_trace(
        go.Scatter(
            x=[level + shift + (0.5 if kind == "random" else 0.0) for level in at],
            y=means,
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [high - mean for (_, high), mean in zip(ends, means, strict=True)],
                "arrayminus": [mean - low for (low, _), mean in zip(ends, means, strict=True)],
                "color": LIGHT[colour],
                "thickness": 1.4,
                "width": 4,
            },
            mode="lines+markers",
            name=wording.plotted(label, 60),
            legendgroup=f"{name} {kind}",
            showlegend=column == 1,
            line={"color": LIGHT[colour], "width": 2.2, "dash": dash},
            marker={"symbol": symbol, "size": 8, "color": LIGHT[colour]},
            hovertemplate="%{x:.0f} % removed: %{y:.1%}<extra>%{fullData.name}</extra>",
        ),
        row=1,
        col=column,
    )


def _interval(values: Sequence[float], mean: float) -> tuple[float, float]:
    """The t interval over repetitions, within what a share can be; the mean itself where there is none."""
    found = summary(values).get("interval")
    return (mean, mean) if found is None else (max(0.0, found[0]), min(1.0, found[1]))


def _add_paper(figure: go.Figure, names: Sequence[str], measure: str, column: int) -> None:
    if paper.VARYING_ARCHITECTURE not in names or measure not in ("accuracy", "auc"):
        return
    reported = {level: getattr(cell, measure) for level, cell in paper.TABLE3.items()}
    figure.add_trace(
        go.Scatter(
            x=list(reported),
            y=[found.mean / 100 for found in reported.values()],
            error_y={
                "type": "data",
                "array": [found.sd / 100 for found in reported.values()],
                "color": LIGHT["axis"],
                "thickness": 1.2,
                "width": 3,
            },
            mode="lines+markers",
            name=f"the paper's {paper.spelt(paper.VARYING_ARCHITECTURE)}, with deviations",
            legendgroup="paper",
            showlegend=column == 1,
            line={"color": LIGHT["muted"], "width": 1.6, "dash": "dot"},
            marker={"symbol": "x", "size": 7, "color": LIGHT["muted"]},
            hovertemplate="%{x:.0f} % removed: %{y:.1%}<extra>%{fullData.name}</extra>",
        ),
        row=1,
        col=column,
    )


def differences(verdicts: Sequence[records.Verdict], topics: Mapping[str, str]) -> go.Figure | None:
    """Paired differences behind the verdicts, in points, with t and bootstrap intervals; right is as claimed.

    topics: which claims, in order, each with what training is compared with. Shares alone: log-loss has another unit.
    """
    parts = [
        (verdict, part, 100 * part.difference.mean)
        for topic in topics
        for verdict in verdicts
        if verdict.topic == topic and verdict.measure in SHARES
        for part in verdict.parts
        if part.difference.mean is not None
    ]
    if not parts:
        return None
    labels = [
        f"{wording.plotted(part.subject)} against {topics[verdict.topic]}: {WORDS[verdict.measure]}"
        for verdict, part, _ in parts
    ]
    figure = go.Figure()
    for title, role, name, width, size in (
        ("bootstrap over test groups", "line-random", "bootstrap", 7, 7),
        (f"t over repetitions, {LEVEL:.0%}", "line-gate", "interval", 2.4, 11),
    ):
        means = [mean for _, _, mean in parts]
        ends = [_points(getattr(part.difference, name), mean) for _, part, mean in parts]
        figure.add_trace(
            go.Scatter(
                x=means,
                y=list(range(len(parts))),
                mode="markers",
                name=title,
                marker={
                    "size": size,
                    "color": LIGHT[role],
                    "symbol": "diamond" if role == "line-gate" else "square",
                },
                error_x={
                    "type": "data",
                    "symmetric": False,
                    "array": [high - mean for (_, high), mean in zip(ends, means, strict=True)],
                    "arrayminus": [mean - low for (low, _), mean in zip(ends, means, strict=True)],
                    "color": LIGHT[role],
                    "thickness": width,
                    "width": 5 if role == "line-gate" else 0,
                },
                customdata=[part.verdict for _, part, _ in parts],
                hovertemplate="%{x:+.1f} points: %{customdata}<extra></extra>",
            )
        )
    theirs = [(number, part.paper_difference) for number, (_, part, _) in enumerate(parts) if part.paper_difference]
    if theirs:
        figure.add_trace(
            go.Scatter(
                x=[difference for _, difference in theirs],
                y=[number for number, _ in theirs],
                mode="markers",
                name="the paper's",
                marker={"size": 10, "symbol": "x", "color": LIGHT["muted"]},
                hovertemplate="the paper: %{x:+.1f} points<extra></extra>",
            )
        )
    figure.update_xaxes(
        **figures.axis(text="difference in points; right of 0: as claimed", showline=True, automargin=True)
        | {"zeroline": True, "zerolinewidth": 1.5}
    )
    figure.update_yaxes(
        **figures.axis(
            tickvals=list(range(len(labels))), ticktext=labels, range=[len(labels) - 0.5, -0.5], automargin=True
        )
    )
    figure.update_layout(**figures.base(130 + 34 * len(labels), hovermode="closest"))
    return figure


def _points(interval: Sequence[float] | None, mean: float) -> tuple[float, float]:
    """An interval of shares in points; the mean itself where there is none."""
    return (mean, mean) if interval is None else (100 * interval[0], 100 * interval[1])

"""The page's figures, by plotly, in the light colours of `palette`; the page's script exchanges them for dark ones.

Every text that comes from a user goes through `wording.plotted`, for plotly reads tags in labels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go
from plotly.io import to_json
from plotly.subplots import make_subplots

from qualitygate.report import records, wording
from qualitygate.report.palette import LIGHT

Floats = npt.NDArray[np.float64]

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_LINES = {
    "gate": ("line-gate", "solid", 3.5),
    "random": ("line-random", "dash", 2),
    "top1": ("line-top1", "dot", 2.5),
    "best_single": ("line-best", "dashdot", 2),
    "logistic": ("line-logistic", "longdash", 2),
}


def as_json(figure: go.Figure) -> str:
    """Figure as JSON that can stand inside a script element: no `<` is left in it."""
    return inert(str(to_json(figure, validate=False, engine="json")))


def inert(text: str) -> str:
    """JSON that no HTML or script parser reads as anything else."""
    for character in ("<", ">", "&", "\u2028", "\u2029"):
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def base(height: int, **layout: Any) -> dict[str, Any]:
    """The layout that all figures share; height in pixels."""
    return {
        "template": go.layout.Template(),
        "height": height,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": _FONT, "size": 13, "color": LIGHT["ink"]},
        "margin": {"l": 56, "r": 16, "t": 36, "b": 52},
        "hoverlabel": {
            "bgcolor": LIGHT["card"],
            "bordercolor": LIGHT["axis"],
            "font": {"family": _FONT, "size": 13, "color": LIGHT["ink"]},
        },
        "legend": {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "font": {"size": 12.5}},
        **layout,
    }


def axis(**more: Any) -> dict[str, Any]:
    """An axis in the page's style; text: its title."""
    return {
        "gridcolor": LIGHT["grid"],
        "linecolor": LIGHT["axis"],
        "tickcolor": LIGHT["axis"],
        "zerolinecolor": LIGHT["axis"],
        "tickfont": {"color": LIGHT["muted"], "size": 12},
        "title": {"font": {"color": LIGHT["muted"], "size": 12.5}, "text": more.pop("text", ""), "standoff": 8},
        "zeroline": False,
        **more,
    }


def scatter(
    name: str, method: records.Method, quality: Floats, confidence: Floats, correct: Any, rows: Any
) -> go.Figure:
    """Figure 3 of the paper for one method: confidence over quality, right and wrong predictions' densities above.

    quality, confidence: (N,) of the shown photographs; correct: (N,) bool; rows: (N,) their numbers on the page.
    The axis runs from worse to better, whatever the method's sign; the side that gets a low vote is tinted.
    """
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.27, 0.73], vertical_spacing=0.025)
    _add_densities(figure, method)
    for outcome, right in (("right", True), ("wrong", False)):
        shown = np.isfinite(quality) & np.isfinite(confidence) & (correct == right)
        figure.add_trace(
            go.Scatter(
                x=quality[shown].astype(np.float32),
                y=confidence[shown].astype(np.float32),
                customdata=np.asarray(rows)[shown].astype(np.int32),
                mode="markers",
                name=f"{outcome} prediction",
                legendgroup=outcome,
                marker={
                    "symbol": "circle" if right else "x",
                    "size": 6.5 if right else 8,
                    "opacity": 0.5 if right else 0.9,
                    "color": LIGHT[outcome],
                    "line": {"width": 0},
                },
                hovertemplate=f"{wording.plotted(wording.method(name))} %{{x:.4g}}<br>"
                f"confidence %{{y:.4g}}<extra>{outcome}</extra>",
            ),
            row=2,
            col=1,
        )
    figure.add_trace(
        go.Scatter(
            x=[None],
            y=[None],
            mode="markers",
            name="shown",
            showlegend=False,
            hoverinfo="skip",
            marker={
                "symbol": "circle-open",
                "size": 19,
                "color": LIGHT["ink"],
                "line": {"width": 2.5, "color": LIGHT["ink"]},
            },
        ),
        row=2,
        col=1,
    )
    ends = _range(method, quality)
    kind = "log" if method.logarithmic else "linear"
    shared = axis(type=kind, range=_as_shown(ends, method), showline=True, ticks="outside", nticks=9)
    figure.update_xaxes(**shared)
    better = "lower" if method.direction == "lower" else "higher"
    title = f"worse ←   {wording.plotted(wording.method(name))}, {better} is better   → better"
    figure.update_xaxes(title={"text": title, "font": {"size": 12.5, "color": LIGHT["muted"]}}, row=2, col=1)
    figure.update_yaxes(**axis(visible=False, rangemode="tozero", fixedrange=True), row=1, col=1)
    figure.update_yaxes(
        **axis(text="confidence in the label", range=[-0.03, 1.03], tickformat=".1f", showline=True), row=2, col=1
    )
    figure.update_layout(**base(500, shapes=_line_of(method, ends), hovermode="closest", meta={"kind": "scatter"}))
    return figure


def _add_densities(figure: go.Figure, method: records.Method) -> None:
    densities = method.densities
    if densities is None:
        return
    for outcome, values in (("right", densities.correct), ("wrong", densities.wrong)):
        figure.add_trace(
            go.Scatter(
                x=np.asarray(densities.quality, dtype=np.float32),
                y=np.asarray(values, dtype=np.float32),
                mode="lines",
                name=f"{outcome}: density",
                legendgroup=outcome,
                showlegend=False,
                line={"color": LIGHT[outcome], "width": 2.2, "dash": "solid" if outcome == "right" else "dash"},
                fill="tozeroy",
                fillcolor=LIGHT[f"{outcome}-fill"],
                hoverinfo="skip",
            ),
            row=1,
            col=1,
        )


def _range(method: records.Method, quality: Floats) -> tuple[float, float]:
    """Smallest and largest raw quality that the figure shows, with a little room."""
    values: list[Any] = [quality[np.isfinite(quality)], method.bounds or (), method.interval or ()]
    if method.densities:
        values.append(method.densities.quality)
    known = np.concatenate([np.asarray(part, dtype=np.float64) for part in values])
    if method.logarithmic:
        known = known[known > 0]
    if not known.size:
        return (0.1, 1.0) if method.logarithmic else (0.0, 1.0)
    low, high = float(known.min()), float(known.max())
    if method.logarithmic:
        room = (high / low) ** 0.02 if high > low else 2.0
        return low / room, high * room
    room = 0.02 * (high - low) or 1.0
    return low - room, high + room


def _as_shown(ends: tuple[float, float], method: records.Method) -> list[float]:
    """The axis' range as plotly wants it: decades on a log axis; the better end on the right."""
    shown = [float(np.log10(end)) for end in ends] if method.logarithmic else list(ends)
    return shown[::-1] if method.direction == "lower" else shown


def _line_of(method: records.Method, ends: tuple[float, float]) -> list[dict[str, Any]]:
    """The cut-off, its interval and the side that is voted low."""
    if method.cutoff is None:
        return []
    worst = ends[1] if method.direction == "lower" else ends[0]
    low_side = {
        "type": "rect",
        "xref": "x",
        "yref": "paper",
        "x0": worst,
        "x1": method.cutoff,
        "y0": 0,
        "y1": 1,
        "layer": "below",
        "line": {"width": 0},
        "fillcolor": LIGHT["low-zone"],
    }
    line = {
        "type": "line",
        "xref": "x",
        "yref": "paper",
        "x0": method.cutoff,
        "x1": method.cutoff,
        "y0": 0,
        "y1": 1,
        "line": {"color": LIGHT["ink"], "width": 2.2, "dash": "dash" if method.status == "fallback" else "solid"},
    }
    shapes = [low_side, line]
    if method.interval:
        band = low_side | {"x0": method.interval[0], "x1": method.interval[1], "fillcolor": LIGHT["interval"]}
        shapes.insert(1, band)
    return shapes


def risk_coverage(comparison: Sequence[records.Compared], held_out: records.HeldOut) -> go.Figure | None:
    """Share of wrong predictions among those kept, over the share kept; lower is better. None without a curve."""
    curves = [compared for compared in comparison if compared.curve and compared.curve.coverage]
    if not curves:
        return None
    figure = go.Figure()
    for compared in sorted(curves, key=lambda compared: compared.name == "gate"):
        assert compared.curve is not None  # filtered above
        role, dash, width = _LINES.get(compared.name, ("line-random", "dot", 2))
        figure.add_trace(
            go.Scatter(
                x=np.asarray(compared.curve.coverage, dtype=np.float32),
                y=1 - np.asarray(compared.curve.accuracy, dtype=np.float32),
                mode="lines",
                name=wording.plotted(wording.baseline(compared.name), 40),
                line={"color": LIGHT[role], "dash": dash, "width": width},
                hovertemplate="%{x:.1%} kept, %{y:.2%} of them wrong<extra>%{fullData.name}</extra>",
            )
        )
    coverage, passed = held_out.coverage, held_out.accuracy_passed
    if coverage and passed and coverage.mean is not None and passed.mean is not None:
        figure.add_trace(
            go.Scatter(
                x=[coverage.mean],
                y=[1 - passed.mean],
                error_x=_bars(coverage),
                error_y=_bars(passed, mirrored=True),
                mode="markers",
                name="where this gate works",
                marker={"size": 12, "symbol": "diamond", "color": LIGHT["line-gate"]},
                hovertemplate="%{x:.1%} kept, %{y:.2%} of them wrong<extra>this gate</extra>",
            )
        )
    figure.update_xaxes(
        **axis(text="share of photographs kept (coverage)", tickformat=".0%", range=[0, 1.02], showline=True)
    )
    figure.update_yaxes(
        **axis(text="wrong among those kept (risk)", tickformat=".1~%", rangemode="tozero", showline=True)
    )
    figure.update_layout(**base(420, hovermode="closest"))
    return figure


def _bars(estimate: records.Estimated, *, mirrored: bool = False) -> dict[str, Any] | None:
    """An interval as error bars. mirrored: of one minus the estimate."""
    if estimate.interval is None or estimate.mean is None:
        return None
    above, below = estimate.interval[1] - estimate.mean, estimate.mean - estimate.interval[0]
    if mirrored:
        above, below = below, above
    widths = {"type": "data", "symmetric": False, "array": [max(0.0, above)], "arrayminus": [max(0.0, below)]}
    return widths | {"color": LIGHT["line-gate"], "thickness": 1.6, "width": 6}


def histogram(name: str, values: Floats, *, method: records.Method | None) -> go.Figure:
    """How a metric's raw scores are spread over the photographs of a scoring run; with the gate's line, if any."""
    known = values[np.isfinite(values)]
    # Scores of focus span decades: on a linear axis all but the sharpest would be one bar.
    logarithmic = method.logarithmic if method else bool((known > 0).all() and known.max() > 15 * np.median(known))
    known = known[known > 0] if logarithmic else known
    counts, edges = np.histogram(np.log10(known) if logarithmic else known, bins=min(50, max(10, int(known.size**0.5))))
    edges = 10**edges if logarithmic else edges
    figure = go.Figure(
        go.Bar(
            x=np.sqrt(edges[1:] * edges[:-1]) if logarithmic else (edges[1:] + edges[:-1]) / 2,
            y=counts,
            width=np.diff(edges) * 0.94,
            marker={"color": LIGHT["accent"], "line": {"width": 0}},
            hovertemplate="about %{x:.4g}: %{y}<extra></extra>",
        )
    )
    title = wording.plotted(wording.method(name))
    figure.update_xaxes(**axis(text=title, type="log" if logarithmic else "linear", showline=True, nticks=6))
    figure.update_yaxes(**axis(nticks=4))
    shapes = []
    if method and method.cutoff is not None:
        ends = {"x0": method.cutoff, "x1": method.cutoff, "y0": 0, "y1": 1}
        shapes.append({"type": "line", "yref": "paper", "line": {"color": LIGHT["ink"], "width": 2}} | ends)
    layout = base(210, margin={"l": 44, "r": 10, "t": 10, "b": 46}, meta={"kind": "small"}, shapes=shapes)
    figure.update_layout(**layout)
    return figure

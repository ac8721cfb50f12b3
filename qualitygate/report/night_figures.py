"""Figures of the nightly job over time: states, coverage, cut-offs, drift, what was scored and what is labelled.

All share one time axis: days where the nights are named by dates, so that a night that was left out leaves a gap, and
otherwise one night after the other.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from qualitygate.report import figures, records, wording
from qualitygate.report.palette import LIGHT

Rows = Sequence[records.NightRow]

# State -> the word for it, its sign in text, colour, symbol: never by colour alone.
STATES: Mapping[str, tuple[str, str, str, str]] = {
    "promoted": ("promoted", "▲", "good", "triangle-up"),
    "kept": ("kept", "●", "good", "circle"),
    "refused": ("refused", "✕", "bad", "x"),
    "deadline": ("deadline", "◆", "caution", "diamond"),
    "running": ("not ended", "○", "muted", "circle-open"),
}
# Below this an index says no more than that nothing changed; a logarithmic axis has no room for 0.
_LEAST_PSI = 1e-3
_TICKS = 5
_SMALL_TICKS = 3
# Lines for more changes would hide what they mark.
_MOST_LINES = 40
_SHORT_WIDTH = 8
_MANY_DAYS = 180
# Least height of the coverage's axis: a share that hardly changes is to look like one.
_LEAST_SPAN = 0.1
_DECADES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """Where nights stand. at: (N,) increasing, in days or in nights; names: of the nights."""

    at: Sequence[float]
    names: Sequence[str]

    @property
    def ends(self) -> tuple[float, float]:
        """What the axis shows: half a night more on both sides, or a little of many."""
        room = max(0.6, 0.015 * (self.at[-1] - self.at[0]))
        return self.at[0] - room, self.at[-1] + room

    def until(self, number: int) -> float:
        """Until when that which a night has decided is in force: the next night."""
        return self.at[number + 1] if number + 1 < len(self.at) else self.at[-1] + 0.5

    def axis(self, *, small: bool = False) -> dict[str, Any]:
        """The axis, with the names of a few nights, the last one among them: as many as a phone has room for."""
        most = _SMALL_TICKS if small else _TICKS
        shown = range(len(self.at) - 1, -1, -max(1, -(-len(self.at) // most)))
        return figures.axis(
            tickvals=[self.at[number] for number in shown],
            ticktext=[self._short(number) for number in shown],
            range=list(self.ends),
            showline=True,
            showgrid=False,
        )

    def _short(self, number: int) -> str:
        """The day and month of a date, or the month where nights are many."""
        if days_of(self.names) is None:
            return wording.plotted(self.names[number], _SHORT_WIDTH)
        return self.names[number][:7] if self.at[-1] - self.at[0] > _MANY_DAYS else self.names[number][5:]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A change of the gate in force: on the time axis, from which to which. by_hand: between two nights."""

    at: float
    before: str | None
    after: str | None
    by_hand: bool


def timeline(names: Sequence[str]) -> Timeline:
    """Where nights of these names stand, in their order."""
    days = days_of(names)
    at: Sequence[float] = [float(day - days[0]) for day in days] if days else [float(n) for n in range(len(names))]
    return Timeline(at=at, names=names)


def days_of(names: Sequence[str]) -> list[int] | None:
    """The days that the names are, by their ordinals; None unless all are dates, each after the one before."""
    try:
        days = [date.fromisoformat(name).toordinal() for name in names]
    except ValueError:
        return None
    return days if all(one < other for one, other in pairwise(days)) else None


def marks(rows: Rows, line: Timeline) -> list[Mark]:
    """Every change of the gate in force, in order: by the nights, and by hand between them."""
    found = []
    current = rows[0].gate_before
    for number, row in enumerate(rows):
        if row.gate_before != current:
            at = (line.at[number] + line.at[number - 1]) / 2
            found.append(Mark(at=at, before=current, after=row.gate_before, by_hand=True))
        current = row.gate_before
        # A night that hasn't ended has no gate after it.
        if row.state != "running" and row.gate_after != current:
            found.append(Mark(at=line.at[number], before=current, after=row.gate_after, by_hand=False))
            current = row.gate_after
    return found


def states(rows: Rows, line: Timeline) -> go.Figure:
    """A sign for each night at the height of its state, for more nights than can be read one by one."""
    order = [state for state in STATES if any(row.state == state for row in rows)]
    figure = go.Figure()
    for height, state in enumerate(order):
        word, _, colour, symbol = STATES[state]
        chosen = [number for number, row in enumerate(rows) if row.state == state]
        figure.add_trace(
            go.Scatter(
                x=[line.at[number] for number in chosen],
                y=[height] * len(chosen),
                mode="markers",
                name=word,
                showlegend=False,
                marker={"symbol": symbol, "size": 9, "color": LIGHT[colour], "line": {"width": 0}},
                text=[wording.plotted(rows[number].night, 64) for number in chosen],
                hovertemplate=f"%{{text}}: {word}<extra></extra>",
            )
        )
    figure.update_xaxes(**line.axis())
    labels = [f"{STATES[state][0]} ({sum(row.state == state for row in rows)})" for state in order]
    figure.update_yaxes(
        **figures.axis(
            tickvals=list(range(len(order))), ticktext=labels, range=[len(order) - 0.5, -0.5], automargin=True
        )
    )
    figure.update_layout(
        **figures.base(70 + 32 * len(order), margin={"l": 56, "r": 40, "t": 8, "b": 40}, hovermode="closest")
    )
    return figure


def coverage(rows: Rows, line: Timeline, changes: Sequence[Mark]) -> go.Figure | None:
    """Share that passes, of tonight's photographs and all trusted ones, with the gate's changes; None without any."""
    if not any(value is not None for row in rows for value in (row.coverage, row.coverage_tonight)):
        return None
    figure = go.Figure()
    for title, colour, dash, symbol, values in (
        ("all trusted ones, by the gate after the night", "line-gate", "solid", "circle", [r.coverage for r in rows]),
        ("tonight's, by the gate before it", "line-logistic", "dot", "diamond", [r.coverage_tonight for r in rows]),
    ):
        if any(value is not None for value in values):
            figure.add_trace(_line(title, values, rows, line, colour=colour, dash=dash, symbol=symbol, form="%{y:.1%}"))
    for by_hand, title, symbol in ((False, "new gate, by the night", "triangle-down"), (True, "by hand", "star")):
        if drawn := [mark for mark in changes if mark.by_hand == by_hand]:
            figure.add_trace(
                go.Scatter(
                    x=[mark.at for mark in drawn],
                    y=[1.0] * len(drawn),
                    yaxis="y2",
                    cliponaxis=False,
                    mode="markers",
                    name=title,
                    marker={"symbol": symbol, "size": 11, "color": LIGHT["good" if not by_hand else "caution"]},
                    text=[f"{wording.short(mark.before)} → {wording.short(mark.after)}" for mark in drawn],
                    hovertemplate="gate %{text}<extra></extra>",
                )
            )
    figure.update_xaxes(**line.axis())
    figure.update_layout(
        **figures.base(
            380,
            margin={"l": 56, "r": 40, "t": 12, "b": 84},
            shapes=_uprights(changes),
            hovermode="closest",
            yaxis=figures.axis(
                text="share that passes", tickformat=".0%", showline=True, nticks=6, range=_shares(rows)
            ),
            yaxis2={"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True},
        )
    )
    figure.update_layout(legend={"y": -0.16, "yanchor": "top"})
    return figure


def _shares(rows: Rows) -> list[float]:
    """The axis around all shares, no further than shares go."""
    known = [value for row in rows for value in (row.coverage, row.coverage_tonight) if value is not None]
    low, high = min(known), max(known)
    room = max(0.06 * (high - low), (_LEAST_SPAN - (high - low)) / 2)
    return [max(-0.01, low - room), min(1.01, high + room)]


def _uprights(changes: Sequence[Mark]) -> list[dict[str, Any]]:
    if len(changes) > _MOST_LINES:
        return []
    style = {"color": LIGHT["axis"], "width": 1.2, "dash": "dot"}
    ends = {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "layer": "below", "line": style}
    return [ends | {"x0": mark.at, "x1": mark.at} for mark in changes]


def _line(
    title: str,
    values: Sequence[float | None],
    rows: Rows,
    line: Timeline,
    *,
    colour: str,
    form: str,
    dash: str = "solid",
    symbol: str = "circle",
) -> go.Scatter:
    """Values over nights with a gap where there is none; signs as large as so many nights allow."""
    return go.Scatter(
        x=line.at,
        y=list(values),
        mode="lines+markers",
        connectgaps=False,
        name=title,
        line={"color": LIGHT[colour], "width": 2, "dash": dash},
        marker={"symbol": symbol, "size": sign_size(len(rows)), "color": LIGHT[colour]},
        text=[wording.plotted(row.night, 64) for row in rows],
        hovertemplate=f"%{{text}}: {form}<extra>{title}</extra>",
    )


def sign_size(nights: int) -> float:
    """Pixels of a sign, such that those of many nights stay apart."""
    return 8.0 if nights <= 60 else 5.0 if nights <= 150 else 3.0


def volume(rows: Rows, line: Timeline) -> go.Figure | None:
    """Photographs scored in each night, and the share of them that failed below; None where none was scored."""
    if not any(row.scored for row in rows):
        return None
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.6, 0.4], vertical_spacing=0.08)
    failed = [row.failed or 0 for row in rows]
    scored = [None if row.scored is None else row.scored - lost for row, lost in zip(rows, failed, strict=True)]
    for title, colour, pattern, counts in (
        ("with a score", "accent", "", scored),
        ("without any", "wrong", "/", failed),
    ):
        figure.add_trace(
            go.Bar(
                x=line.at,
                y=counts,
                name=title,
                width=0.8,
                marker={"color": LIGHT[colour], "line": {"width": 0}, "pattern": {"shape": pattern, "size": 5}},
                text=[wording.plotted(row.night, 64) for row in rows],
                textposition="none",
                hovertemplate=f"%{{text}}: %{{y:,}} {title}<extra></extra>",
            ),
            row=1,
            col=1,
        )
    rates = [row.error_rate for row in rows]
    figure.add_trace(
        _line("share without any", rates, rows, line, colour="wrong", symbol="x", form="%{y:.2%}"), row=2, col=1
    )
    if any(row.error_limit is not None for row in rows):
        figure.add_trace(_limit("most that may fail", [row.error_limit for row in rows], line), row=2, col=1)
    figure.update_xaxes(**line.axis())
    figure.update_xaxes(showticklabels=False, row=1)
    figure.update_yaxes(**figures.axis(text="photographs", showline=True, nticks=5), row=1)
    figure.update_yaxes(
        **figures.axis(text="error rate", tickformat=".1~%", rangemode="tozero", showline=True, nticks=5), row=2
    )
    layout = figures.base(400, margin={"l": 60, "r": 40, "t": 12, "b": 84}, hovermode="closest", barmode="stack")
    layout["legend"] |= {"y": -0.16, "yanchor": "top"}
    figure.update_layout(**layout)
    return figure


def _limit(title: str, values: Sequence[float | None], line: Timeline, *, legend: bool = True) -> go.Scatter:
    """A limit over nights, each night's until the next one's."""
    known = [(number, value) for number, value in enumerate(values) if value is not None]
    xs: list[float | None] = []
    ys: list[float | None] = []
    for number, value in known:
        xs += [line.at[number] - (0.5 if number == 0 else 0.0), line.until(number), None]
        ys += [value, value, None]
    return go.Scatter(
        x=xs,
        y=ys,
        mode="lines",
        name=title,
        showlegend=legend,
        line={"color": LIGHT["ink"], "width": 1.4, "dash": "dash"},
        hovertemplate=f"{title}: %{{y:.4g}}<extra></extra>",
    )


def counted(
    title: str, rows: Rows, line: Timeline, value: Callable[[records.NightRow], float | None], needed: str
) -> go.Figure | None:
    """A count over nights beside the least that is needed, in a small figure; None where there is none.

    needed: the row's field with the least.
    """
    values = [value(row) for row in rows]
    if all(one is None for one in values):
        return None
    figure = go.Figure(_line(title, values, rows, line, colour="accent", form="%{y:,}"))
    figure.add_trace(_limit("needed", [getattr(row, needed) for row in rows], line, legend=False))
    return _small(figure, line, title, figures.axis(rangemode="tozero", showline=True, nticks=5))


def cutoffs(name: str, title: str, rows: Rows, line: Timeline) -> go.Figure | None:
    """A method's line over nights, as the gates in force had it, with its interval; a sign where the gate changed.

    None where no night has one.
    """
    known = of_gates(rows, name)
    spans = _spans(rows, line, known)
    if not spans:
        return None
    figure = go.Figure()
    band_x: list[float | None] = []
    band_y: list[float | None] = []
    line_x: list[float | None] = []
    line_y: list[float | None] = []
    for start, end, one in spans:
        line_x += [start, end, None]
        line_y += [one.cutoff, one.cutoff, None]
        if one.interval:
            low, high = one.interval
            band_x += [start, end, end, start, start, None]
            band_y += [low, low, high, high, low, None]
    figure.add_trace(
        go.Scatter(
            x=band_x,
            y=band_y,
            mode="lines",
            fill="toself",
            fillcolor=LIGHT["interval"],
            line={"width": 0},
            hoverinfo="skip",
            name="95 % interval",
        )
    )
    figure.add_trace(
        go.Scatter(x=line_x, y=line_y, mode="lines", line={"color": LIGHT["ink"], "width": 2.2}, hoverinfo="skip")
    )
    figure.add_trace(
        go.Scatter(
            x=[start for start, _, _ in spans],
            y=[one.cutoff for _, _, one in spans],
            mode="markers",
            marker={"symbol": "diamond", "size": sign_size(len(spans)), "color": LIGHT["line-gate"]},
            text=[_said(one) for _, _, one in spans],
            hovertemplate="%{text}<extra></extra>",
            name="gate changed",
        )
    )
    return _small(figure, line, title, figures.axis(showline=True, nticks=5))


def of_gates(rows: Rows, name: str) -> dict[str, records.NightMethod]:
    """The method's part of each gate: a night that stopped early records none, but its gate is known from others."""
    found = {}
    for row in rows:
        for one in row.methods:
            if one.method == name and row.gate_after is not None and one.cutoff is not None:
                found[row.gate_after] = one
    return found


def _spans(
    rows: Rows, line: Timeline, known: Mapping[str, records.NightMethod]
) -> list[tuple[float, float, records.NightMethod]]:
    """(from, until, line) of the gates in force, neighbouring nights of one gate together."""
    spans: list[tuple[float, float, records.NightMethod]] = []
    last: str | None = None
    for number, row in enumerate(rows):
        # A night that hasn't ended still has the gate that it found.
        gate = row.gate_after or (row.gate_before if row.state == "running" else None)
        one = known.get(gate) if gate else None
        if one is not None and gate == last:
            start, _, _ = spans[-1]
            spans[-1] = (start, line.until(number), one)
        elif one is not None:
            spans.append((line.at[number], line.until(number), one))
        last = gate if one is not None else None
    return spans


def _said(one: records.NightMethod) -> str:
    return f"{wording.number(one.cutoff)} {wording.interval(one.interval)}"


def drift(name: str, title: str, rows: Rows, line: Timeline) -> go.Figure | None:
    """A method's stability index over nights on a logarithmic axis, with its limit; None where no night has one."""
    found = [next((one for one in row.methods if one.method == name), None) for row in rows]
    values = [one.psi if one is not None else None for one in found]
    if all(value is None for value in values):
        return None
    shown = [None if value is None else max(value, _LEAST_PSI) for value in values]
    drifted = [one is not None and one.word == "drifted" for one in found]
    trace = _line("PSI", shown, rows, line, colour="right", form="PSI %{customdata:.3g}")
    size = sign_size(len(rows))
    trace.update(
        customdata=values,
        line={"width": 1.4},
        marker={
            "symbol": ["x" if bad else "circle" for bad in drifted],
            "size": [size + 3 if bad else size for bad in drifted],
            "color": [LIGHT["wrong" if bad else "right"] for bad in drifted],
        },
    )
    figure = go.Figure(trace)
    figure.add_trace(_limit("limit", [one.psi_limit if one is not None else None for one in found], line, legend=False))
    return _small(figure, line, title, figures.axis(type="log", showline=True, tickvals=_DECADES))


def _small(figure: go.Figure, line: Timeline, title: str, axis: dict[str, Any]) -> go.Figure:
    figure.update_xaxes(**line.axis(small=True))
    figure.update_yaxes(**axis)
    heading = {"text": title, "x": 0.02, "xanchor": "left", "y": 0.97, "yanchor": "top"}
    font = {"size": 13.5, "color": LIGHT["ink"]}
    figure.update_layout(
        **figures.base(
            220,
            margin={"l": 52, "r": 26, "t": 34, "b": 34},
            meta={"kind": "small"},
            showlegend=False,
            hovermode="closest",
            title=heading | {"font": font},
        )
    )
    return figure

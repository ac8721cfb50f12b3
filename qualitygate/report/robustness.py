"""What a person reads after 'qualitygate robustness': Table 1, effect sizes, and which methods were chosen."""

from collections.abc import Mapping
from typing import Any, Protocol

from rich import box
from rich.table import Table

from qualitygate.report.terminal import rendered

# The second interpolation stands in table1.md: a terminal has no room for it.
_NUISANCES = {"crop_corner": "crop, corner", "crop_centre": "crop, centre", "rotation": "rotation"}


class Finished(Protocol):
    """A finished job: where its files are, and what robustness.json holds."""

    @property
    def output(self) -> str: ...

    @property
    def document(self) -> dict[str, Any]: ...


def of_run(result: Finished) -> str:
    """Table 1 beside the paper's numbers, effect sizes with intervals, the choice and what to know about it."""
    document = result.document
    chosen = document["choice"]
    said = [
        f"choice ({chosen['preset']}): {', '.join(chosen['methods']) or 'none'}",
        f"rule: {chosen['rule']}",
        *([f"note: {chosen['note']}"] if chosen["note"] else []),
        *(f"note: {note}" for note in document["notes"]),
        f"table:   {result.output}/table1.md, every value in robustness.parquet, the record in robustness.json",
        *(f"look at: {result.output}/{picture}" for picture in document["figures"].values()),
    ]
    return rendered(
        _correlations(document),
        _effects(document),
        *said,
    )


def _name(document: Mapping[str, Any], metric: str) -> str:
    trained = document["metrics"][metric]["trained"]
    return metric if trained else f"{metric} (UNTRAINED: no quality)"


def _correlations(document: Mapping[str, Any]) -> Table:
    """A line for each metric: |PCC| and |SRCC| by configuration, the paper's in brackets, the best marked."""
    kind = "photographed" if document["blur"] == "manifest" else "rendered"
    table = Table(
        title=f"Table 1: absolute correlations, mean of {document['samples']} samples, {kind} blur (in brackets: the "
        "paper's; * best)",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("metric")
    rows = document["table1"]["rows"]
    for row in rows:
        table.add_column(f"{row['nuisance']} {row['statistic']}", justify="right")
    for metric in document["metrics"]:
        cells = []
        for row in rows:
            ours, paper = row["ours"][metric], row["paper"].get(metric)
            mark = "*" if metric in row["best"] else ""
            beside = "" if paper is None else f" ({paper:.3f})"
            cells.append(("-" if ours is None else f"{mark}{ours:.3f}") + beside)
        table.add_row(_name(document, metric), *cells)
    return table


def _effects(document: Mapping[str, Any]) -> Table:
    """A line for each metric: how far each nuisance moves it, as a share of its blur range."""
    table = Table(
        title="Effect sizes: largest change as a share of the blur range, median and 95 % interval (0 is ideal)\n"
        "Blur order: how well quality falls along blur (1 is right)",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("metric")
    shown = [name for name in _NUISANCES if any(name in found["effects"] for found in document["metrics"].values())]
    for nuisance in shown:
        table.add_column(_NUISANCES[nuisance], justify="right")
    for title in ("blur order", "no score", "chosen"):
        table.add_column(title, justify="right")
    for metric, found in document["metrics"].items():
        order = found["blur_order"]["srcc"]
        table.add_row(
            _name(document, metric),
            *(_effect(found["effects"].get(nuisance)) for nuisance in shown),
            "-" if order is None else f"{order:+.3f}",
            f"{found['missing']:,}",
            "yes" if metric in document["choice"]["methods"] else "",
        )
    return table


def _effect(found: Mapping[str, Any] | None) -> str:
    if not found or found["ratio"] is None:
        return "-"
    interval = found["interval"]
    return f"{found['ratio']:.2f}" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")

"""What a person reads in the terminal: how a run ended, and what the metrics are."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rich import box
from rich.table import Table

from qualitygate.metrics import CATALOGUE, catalogue
from qualitygate.report.terminal import number, rendered, width

# Columns of a terminal that the whole table of metrics needs.
_WIDE = 150


def of_run(stats: Mapping[str, Any], output: str) -> str:
    """The end of a scoring run: counts by status and code, each metric's range, where things are."""
    manifest, scored = stats["manifest"], stats["scored"]
    lines = [
        f"scored {scored['rows']:,} of {manifest['rows']:,} images in {stats['seconds']:.1f} s"
        + (f", {scored['rows_per_second']:.1f} images/s" if scored["rows"] else ": every row was there already"),
        "status: " + (", ".join(f"{count:,} {status}" for status, count in manifest["by_status"].items()) or "none"),
    ]
    if manifest["by_code"]:
        lines.append("codes:  " + ", ".join(f"{count:,} {code}" for code, count in manifest["by_code"].items()))
        lines += [f"        {row['image_id']}: {row['code']}, {row['message']}" for row in manifest.get("examples", ())]
    if stats.get("lazy"):
        counts = stats["lazy"]["voters"].items()
        spared = ", ".join(f"{name} for {found['left_out']:,}" for name, found in counts if found["left_out"])
        lines.append(f"left out, because gate {stats['lazy']['gate_id']} had decided: {spared or 'nothing'}")
    lines.append(f"table:  {output}/scores (Delta Lake; 'qualitygate export' writes Parquet or CSV)")
    return rendered(metric_ranges(stats["metrics"], untrained=stats.get("untrained", ())), *lines)


def of_demo(stats: Mapping[str, Any], correlations: Mapping[str, float]) -> str:
    """The demo's table: each metric's range and its rank correlation with the true blur, counts by status."""
    column = {"Spearman with true blur": {name: f"{value:+.3f}" for name, value in correlations.items()}}
    status = ", ".join(f"{count:,} {status}" for status, count in stats["manifest"]["by_status"].items())
    return rendered(metric_ranges(stats["metrics"], column), f"status: {status}\n")


def metric_ranges(
    metrics: Mapping[str, Any],
    extra: Mapping[str, Mapping[str, str]] | None = None,
    *,
    untrained: Sequence[str] = (),
) -> Table:
    """A line for each metric: direction, median, range, how many have no score; further columns by title."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("metric")
    table.add_column("better")
    for title in ("median", "lowest", "highest", "scored", "without", *(extra or {})):
        table.add_column(title, justify="right")
    for name, found in metrics.items():
        done = found["states"].get("ok", 0)
        direction = CATALOGUE[name].direction if name in CATALOGUE else "?"
        table.add_row(
            f"{name} (UNTRAINED: no quality)" if name in untrained else name,
            direction,
            number(found["median"]),
            number(found["min"]),
            number(found["max"]),
            f"{done:,}",
            f"{sum(found['states'].values()) - done:,}",
            *(column.get(name, "-") for column in (extra or {}).values()),
        )
    return table


def describe_metrics(backend: Literal["native", "pyiqa"]) -> list[dict[str, Any]]:
    """What is known of each metric, ready for JSON."""
    described = []
    for metric in catalogue(backend).values():
        reason = metric.unavailable()
        described.append(
            {
                "name": metric.name,
                "version": metric.version,
                "direction": metric.direction,
                "range": list(metric.range),
                "unit": metric.unit,
                "reference": metric.reference,
                "device": metric.device,
                "code_license": metric.code_license,
                "weights_license": metric.weights_license,
                "parameters_present": reason is None,
                "unavailable": reason,
                "parameters_sha256": None if reason else metric.parameters_sha256(),
                "backend": metric.backend,
                "implementation": metric.implementation,
                "precision": metric.precision,
            }
        )
    return described


def metrics_table(described: Sequence[Mapping[str, Any]]) -> str:
    """The same for people; a narrow terminal gets the columns that fit it."""
    wide = width() >= _WIDE
    titles = ("metric", "better", "range", "unit", "present", "v", "device", "code", "parameters", "reference")
    shown = len(titles) if wide else titles.index("v")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in titles[:shown]:
        table.add_column(title, overflow="fold")
    for metric in described:
        low, high = metric["range"]
        cells = (
            metric["name"],
            metric["direction"],
            f"{'-inf' if low is None else format(low, 'g')}..{'inf' if high is None else format(high, 'g')}",
            metric["unit"],
            "yes" if metric["parameters_present"] else f"no: {metric['unavailable']}" if wide else "no",
            str(metric["version"]),
            metric["device"],
            metric["code_license"],
            metric["weights_license"] or "none needed",
            metric["reference"],
        )
        table.add_row(*cells[:shown])
    return rendered(table, *([] if wide else [f"More in a terminal of {_WIDE} columns, or with --json."]))

"""What a person reads after 'qualitygate plan score'."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table

from qualitygate.report import wording
from qualitygate.report.terminal import rendered

_DEAR_HOURS = 24.0


def of_score_plan(plan: Mapping[str, Any]) -> str:
    """Rows, bytes, hours by metric, and what the gate's methods alone would take."""
    measured, metrics = plan["measured"], plan["metrics"]
    lines = [
        f"{plan['to_do']:,} of {plan['rows']:,} photographs to score: {size(plan['bytes'])} in {plan['requests']:,} "
        f"requests, by {measured['photographs']} that were timed here",
        f"reading and decoding: {hours(plan['reading_cpu_hours'])} of one core",
    ]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("metric", "photographs", "one core", "one H100, at least", "one H100, as pyiqa"):
        table.add_column(title, justify="left" if title == "metric" else "right")
    for name, cost in metrics.items():
        gpu = [hours(value) for value in cost["gpu_hours"]] if cost["gpu_hours"] else ["", ""]
        table.add_row(wording.method(name), f"{cost['rows']:,}", hours(cost["cpu_hours"]), *gpu)
    parts: list[Any] = ["\n".join(lines), table, _total("all of them", list(metrics), plan)]
    if plan["gate"]:
        parts.append(_total("the gate's methods alone", plan["gate"], plan))
    parts.append(
        "networks are counted at the photographs' sizes: on a core at nine tenths of a plain product's rate, on an "
        "H100 at its measured 790 TFLOP/s (which nothing exceeds) and at what pyiqa reached there, one at a time"
    )
    cores = plan["cores"]
    parts += [
        f"note: {wording.method(name)} would take {hours(metrics[name]['cpu_hours'] / cores)} on this machine's "
        f"{cores} cores; use a GPU, or leave it out"
        for name in metrics
        if metrics[name]["gpu_hours"] and metrics[name]["cpu_hours"] / cores > _DEAR_HOURS
    ]
    parts += [f"note: {message}" for message in plan["messages"]]
    return rendered(*parts)


def of_night_plan(plan: Mapping[str, Any]) -> str:
    """The same of a night: first what changed since the last one."""
    night = plan["night"]
    lines = [
        f"{night['images']:,} photographs, {night['known']:,} of them known: {night['new']:,} new, "
        f"{night['changed']:,} changed, {night['gone']:,} gone"
    ]
    if night["changed_share"] > night["max_changed_share"]:
        lines.append(
            f"THE NIGHT WOULD STOP: {night['changed_share']:.0%} of the known ones are changed or gone, more than the "
            f"{night['max_changed_share']:.0%} of --max-changed-share; --allow-changes lets it go on"
        )
    lines.append(f"canary: {night['canary']:,} photographs are scored again")
    return "\n".join(lines) + "\n" + of_score_plan(plan)


def in_a_line(plan: Mapping[str, Any]) -> str:
    """What it takes, for a message."""
    return f"{plan['to_do']:,} photographs to score would take " + _total("all metrics", list(plan["metrics"]), plan)


def _total(what: str, names: list[str], plan: Mapping[str, Any]) -> str:
    metrics, cores = plan["metrics"], plan["cores"]
    cpu = sum(metrics[name]["cpu_hours"] for name in names) + plan["reading_cpu_hours"]
    ends = [sum(metrics[name]["gpu_hours"][end] for name in names if metrics[name]["gpu_hours"]) for end in (0, 1)]
    text = f"{what}: {hours(cpu)} of one core, so {hours(cpu / cores)} on this machine's {cores}"
    return text + (f"; their networks {hours(ends[0])} to {hours(ends[1])} of one H100" if ends[1] else "")


def hours(value: float) -> str:
    """A time in the unit that people would use."""
    for limit, unit, scale in ((1 / 60, "s", 3600.0), (1.0, "min", 60.0), (48.0, "h", 1.0)):
        if value < limit:
            return f"{value * scale:.3g} {unit}"
    return f"{value / 24:,.3g} days" if value < 24 * 1000 else f"{value / 24:,.0f} days"


def size(value: float) -> str:
    """Bytes in the unit that people would use."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.3g} TB"

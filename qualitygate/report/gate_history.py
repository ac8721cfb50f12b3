"""What `qualitygate gate history|diff|promote|rollback` say in the terminal."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

from qualitygate.calibration.gate import Gate
from qualitygate.calibration.gate_store import Change, Difference, History
from qualitygate.report import wording
from qualitygate.report.terminal import number, rendered
from qualitygate.tables import storage


def of_history(history: History) -> str:
    """Every change, the last one at the bottom, and what is in force."""
    store = storage.redact(history.store)
    if history.current is None:
        return f"no gate was ever promoted in {store}\n"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("", "when (UTC)", "what", "gate", "by", "why"):
        table.add_column(title, justify="right" if not title else "left")
    for one in history.changes:
        by = f"night {one.night}" if one.night else one.by
        what = one.action + (", held" if one.held else "")
        table.add_row(str(one.sequence), one.at[:16].replace("T", " "), what, one.gate_id, by, one.reason)
    said = f"in force: gate {history.current.gate_id} in {storage.join(store, history.current.gate_id)}"
    if history.current.held:
        said += "; HELD: no nightly job promotes until somebody does by hand"
    return rendered(table, said)


def of_change(change: Change) -> str:
    """A promotion or a rollback."""
    before = f", in place of {change.replaces}" if change.replaces else ""
    held = "; no nightly job promotes until somebody does by hand" if change.held else ""
    return f"gate {change.gate_id} is in force{before} ({change.action}, change {change.sequence}){held}\n"


def of_differences(old: Gate, new: Gate, found: Sequence[Difference]) -> str:
    """Two gates side by side."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("method", "line", "cut-off", "95 % interval", "moved by"):
        table.add_column(title, justify="left" if title in ("method", "line") else "right")
    for one in found:
        status = one.status[0] if one.status[0] == one.status[1] else f"{one.status[0]} -> {one.status[1]}"
        moved = "-" if one.moved is None else f"{one.moved:+.2f} widths"
        table.add_row(
            wording.method(one.method),
            str(status).replace("None", "absent"),
            _pair(*(number(value) for value in one.cutoff)),
            _pair(*(_interval(value) for value in one.interval)),
            moved + ("" if one.within is not False else ", past both intervals"),
        )
    lines = []
    for title, key in (("low votes that reject", "votes_needed"), ("share passed", "coverage")):
        lines.append(f"{title}: {_pair(*(_plain(each.content.get(key)) for each in (old, new)))}")
    for title, key in (("photographs", "manifest"), ("classifier", "classifier"), ("scores", "fingerprints")):
        if old.content.get(key) != new.content.get(key):
            lines.append(f"other {title}")
    return rendered(f"gate {old.id} -> gate {new.id}", table, "\n".join(lines))


def _pair(old: str, new: str) -> str:
    return old if old == new else f"{old} -> {new}"


def _interval(value: Sequence[float] | None) -> str:
    return "-" if value is None else f"{number(value[0])} to {number(value[1])}"


def _plain(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.1%}" if isinstance(value, float) else str(value)

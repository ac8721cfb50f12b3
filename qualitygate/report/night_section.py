"""What the page says of the nightly job: how the last night ended and why, and how things went from night to night."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from qualitygate.report import figures, next_steps, night_figures, records, wording
from qualitygate.report.artefacts import Artefacts, Nights
from qualitygate.report.night_figures import STATES, Timeline

if TYPE_CHECKING:
    from qualitygate.calibration.gate_store import Change

GOOD = ("promoted", "kept")
_TONES = {"promoted": "good", "kept": "good", "refused": "bad", "deadline": "caution", "running": "caution"}
# More than a year; before that a trend is history.
_MOST_NIGHTS = 400
_STRIP = 30
_OPEN_REASONS = 5
_CHANGES = 50
_UNSAID = {
    "refused": "No reason is recorded; the night's own record may have more.",
    "deadline": "The deadline came before all photographs were scored. Those that were are committed, and the next "
    "night goes on.",
    "running": "It was at work when this page was made, or it was killed: the same command goes on where it was.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Night:
    """One night for reading. number: its place among those shown; gap: days without a night before it."""

    number: int
    row: records.NightRow
    word: str
    sign: str
    tone: str
    reasons: Sequence[str]
    gap: int = 0

    @property
    def told(self) -> bool:
        """Whether there is something to say of it beyond its state."""
        return bool(self.reasons)


def of(artefacts: Artefacts) -> dict[str, Any] | None:
    """The section's content; None without nights."""
    nights = artefacts.nights
    if nights is None:
        return None
    rows = nights.rows[-_MOST_NIGHTS:]
    line = night_figures.timeline([row.night for row in rows])
    shown = _nights(rows)
    marks = night_figures.marks(rows, line)
    told = [night for night in reversed(shown) if night.told]
    methods = list(dict.fromkeys(one.method for row in reversed(rows) for one in row.methods))
    names = {name: wording.plotted(wording.method(name)) for name in methods}
    return {
        "last": shown[-1],
        "lede": lede(nights),
        "points": points(nights),
        "record": nights.last,
        "steps": next_steps.of(artefacts),
        "candidate": next_steps.candidate(artefacts),
        "force": in_force(nights),
        "nights": shown,
        "legend": [(word, sign, _TONES[state]) for state, (word, sign, _, _) in STATES.items()],
        "strip": shown[-_STRIP:],
        "total": len(nights.rows),
        "told": told[:_OPEN_REASONS],
        "told_before": told[_OPEN_REASONS:],
        "good": next((row for row in reversed(nights.rows) if row.state in GOOD), None),
        "in_force": nights.in_force,
        "change": nights.changes[-1] if nights.changes else None,
        "changes": list(reversed(nights.changes))[:_CHANGES],
        "changes_left": max(0, len(nights.changes) - _CHANGES),
        "methods": methods,
        "lines": {name: night_figures.of_gates(rows, name) for name in methods},
        "states": _figure(
            night_figures.states(rows, line) if len(rows) > _STRIP else None, "The state of each night, over time."
        ),
        "coverage": _figure(
            night_figures.coverage(rows, line, marks),
            "Share that passes, over nights: tonight's and all trusted ones, with the gate's changes marked.",
        ),
        "volume": _figure(
            night_figures.volume(rows, line),
            "Photographs scored in each night, and the share of them without any score beside its limit.",
        ),
        "counts": _counts(rows, line),
        "cutoffs": _each(methods, lambda name: night_figures.cutoffs(name, names[name], rows, line), "Cut-off of"),
        "drift": _each(
            methods, lambda name: night_figures.drift(name, names[name], rows, line), "Population stability index of"
        ),
    }


def _figure(figure: Any, label: str) -> dict[str, str] | None:
    return {"json": figures.as_json(figure), "label": label} if figure is not None else None


def _each(methods: Sequence[str], draw: Any, what: str) -> list[dict[str, str]]:
    drawn = (_figure(draw(name), f"{what} {wording.safe(wording.method(name))} over nights.") for name in methods)
    return [figure for figure in drawn if figure is not None]


def _counts(rows: Sequence[records.NightRow], line: Timeline) -> list[dict[str, str]]:
    found = (
        (
            night_figures.counted("labelled", rows, line, lambda row: row.labelled, "labelled_needed"),
            "Labelled photographs over nights, and how many are needed.",
        ),
        (
            night_figures.counted(
                "labelled, of those that the gate rejects",
                rows,
                line,
                lambda row: row.labelled_rejects,
                "rejects_needed",
            ),
            "Labelled photographs that the gate in force rejects, over nights, and how many are needed.",
        ),
    )
    return [drawn for figure, label in found if (drawn := _figure(figure, label)) is not None]


def _nights(rows: Sequence[records.NightRow]) -> list[Night]:
    gaps = _gaps([row.night for row in rows])
    found = []
    for number, (row, gap) in enumerate(zip(rows, gaps, strict=True)):
        word, sign, _, _ = STATES[row.state]
        unsaid = _UNSAID.get(row.state)
        reasons = [wording.sentence(reason) for reason in row.reasons] or ([unsaid] if unsaid else [])
        found.append(
            Night(number=number, row=row, word=word, sign=sign, tone=_TONES[row.state], reasons=reasons, gap=gap)
        )
    return found


def _gaps(names: Sequence[str]) -> list[int]:
    """Days without a night before each, where nights are named by dates: those beyond the usual distance."""
    days = night_figures.days_of(names)
    if days is None or len(days) < 3:
        return [0] * len(names)
    apart = [after - before for before, after in pairwise(days)]
    usual = sorted(apart)[len(apart) // 2]
    return [0, *(step - usual if step > usual else 0 for step in apart)]


def lede(nights: Nights) -> str:
    """How the last night ended, in a sentence that its name begins."""
    last = nights.rows[-1]
    gate = f"gate {wording.short(last.gate_after or last.gate_before)}"
    stays = f"{gate} stays in force" if last.gate_after or last.gate_before else "no gate is in force"
    said = {
        "promoted": f"{gate} is in force since this night",
        "kept": f"{stays}, and nothing speaks against it",
        "refused": f"{stays}",
        "deadline": f"some photographs are not scored yet; {stays}",
        "running": "this night has not ended",
    }[last.state]
    return f"{said}."


def points(nights: Nights) -> list[str]:
    """What else must be seen first."""
    found = []
    last = nights.rows[-1]
    ended = [row for row in nights.rows if row.state != "running"]
    good = [number for number, row in enumerate(ended) if row.state in GOOD]
    bad = len(ended) - 1 - good[-1] if good else len(ended)
    if bad > 1:
        since = f"; the last that did was {ended[good[-1]].night}" if good else ""
        found.append(f"{bad} nights in a row did not end well{since}.")
    if last.state != "running" and nights.changes and nights.in_force != last.gate_after:
        change = nights.changes[-1]
        found.append(
            f"Since then gate {wording.short(change.gate_id)} was put in force by {change.by}: {change.reason}."
        )
    if nights.later:
        newest = nights.later[-1]
        found.append(
            f"This is the page of night {nights.rows[-1].night}. {len(nights.later)} later night"
            f"{'s have' if len(nights.later) > 1 else ' has'} begun since; the last, {newest.night}, is "
            f"{'not ended' if newest.state == 'running' else newest.state}."
        )
    if nights.changes and nights.changes[-1].held:
        found.append("Promotions are held: no night promotes until somebody does by hand ('qualitygate gate promote').")
    if nights.last is not None:
        drift = nights.last.steps.drift
        found += wording.unseen(drift.new_strata, drift.new_cameras, drift.rows or 0)
        drawn = nights.last.steps.decide.audit
        if drawn is not None and drawn.new:
            found.append(
                f"{drawn.new:,} rejected photographs were drawn for labelling: "
                f"nights/{last.night}/audit_sample.parquet."
            )
    return [wording.sentence(one) for one in found]


def by_whom(change: "Change") -> str:
    """Who put a gate in force."""
    return f"night {change.night}" if change.night else change.by


def warning(artefacts: Artefacts) -> str | None:
    """That the page's lines are not those in force, which a refused night's candidate's are not."""
    nights, calibration = artefacts.nights, artefacts.calibration
    why = next_steps.candidate(artefacts)
    if nights is None or calibration is None or why is None:
        return None
    refused = ", as the night was refused" if nights.rows[-1].state == "refused" else ""
    return (
        f"The lines and the verdict below are of gate {calibration.gate.id}, which is NOT in force{refused}; "
        f"{in_force(nights)}."
    )


def in_force(nights: Nights) -> str:
    """Which gate is."""
    return f"gate {nights.in_force} is" if nights.in_force else "no gate is"

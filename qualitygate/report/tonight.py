"""The last night's photographs for the page: some that failed, drifted or were rejected, with their states."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qualitygate.calibration import gate as gates
from qualitygate.calibration import gate_store
from qualitygate.calibration.drift import DRIFTED, OVERALL
from qualitygate.errors import ConfigurationError
from qualitygate.report import records, score_table, thumbnails, wording
from qualitygate.report.artefacts import Artefacts
from qualitygate.tables import storage

# In front of a night's name: its run.
_RUN = "night-"
_EACH = 6
# Of millions, so many by chance are enough to choose from.
_LOOKED_AT = 5000
_METHODS_TOLD = 3
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Photograph:
    """One to look at. number: of its picture; word, tone: its state; facts: what else is told of it."""

    number: int
    image_id: str
    word: str
    tone: str
    facts: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """Some photographs of a kind."""

    title: str
    note: str
    photographs: Sequence[Photograph]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tonight:
    """What is shown of a night, and where the pictures are, by number."""

    strips: Sequence[Strip]
    sources: Mapping[int, thumbnails.Source]


def of(found: Artefacts) -> Tonight | None:
    """Some of the last night's photographs; None where nothing was scored or compared."""
    night = found.nights.last if found.nights else None
    if night is None:
        return None
    folder = found.folders["nightly"]
    chosen = _Chosen(_gate(folder, night))
    _canary(chosen, folder, night)
    drift = night.steps.drift
    runs = [f"{_RUN}{name}" for name in (night.night, *drift.unfinished, *drift.pooled)] + drift.by_hand
    if drift.rows:
        _scored(chosen, folder, night, runs)
    return Tonight(strips=chosen.strips, sources=chosen.sources) if chosen.strips else None


class _Chosen:
    """The strips so far; each photograph is in one of them."""

    def __init__(self, gate: gates.Gate | None) -> None:
        self.gate = gate
        self.strips: list[Strip] = []
        self.sources: dict[int, thumbnails.Source] = {}
        self._shown: set[str] = set()

    def add(self, title: str, note: str, rows: Sequence[Row], told: Any) -> None:
        """Up to six of these that aren't shown yet. told: gives the word, its tone and the facts of a row."""
        made = []
        for row in [row for row in rows if row["image_id"] not in self._shown][:_EACH]:
            number = len(self.sources)
            word, tone, facts = told(row)
            self._shown.add(row["image_id"])
            box = row.get("box")
            self.sources[number] = thumbnails.Source(uri=row.get("uri"), box=tuple(box) if box is not None else None)
            made.append(
                Photograph(number=number, image_id=wording.safe(row["image_id"]), word=word, tone=tone, facts=facts)
            )
        if made:
            self.strips.append(Strip(title=title, note=note, photographs=made))


def _canary(chosen: _Chosen, folder: str, night: records.NightRecord) -> None:
    for moved in night.steps.canary.moved:
        if not moved.past or not moved.shifts:
            continue
        shifts = {one.image_id: one for one in moved.shifts}
        places = score_table.places(folder, list(shifts))
        rows = [
            {"image_id": name, "uri": places.get(name, (None, None))[0], "box": places.get(name, (None, None))[1]}
            for name in shifts
        ]
        method = wording.method(moved.metric)

        def told(row: Row, shifts: Any = shifts, method: str = method) -> tuple[str, str, list[str]]:
            shift = shifts[row["image_id"]]
            word = "moved" if shift.after is not None else "lost its score"
            return (
                word,
                "bad",
                [
                    f"{method} was {shift.before:.6g}",
                    f"is {wording.NOTHING if shift.after is None else f'{shift.after:.6g}'}",
                ],
            )

        chosen.add(
            f"Of the canary, where {method} moved most",
            "Photographs whose bytes are the same as when their scores were known.",
            rows,
            told,
        )


def _scored(chosen: _Chosen, folder: str, night: records.NightRecord, runs: Sequence[str]) -> None:
    metrics, failed, some = score_table.of_runs(folder, runs, most=_LOOKED_AT, failures=_EACH)
    passed = _passed(chosen.gate, some)

    def judged(row: Row) -> tuple[str, str, list[str]]:
        verdict = passed.get(row["image_id"])
        facts = [_score(chosen.gate, name, row.get(name)) for name in metrics if row.get(name) is not None]
        if verdict is None:
            return "scored", "neutral", facts[:_METHODS_TOLD]
        return ("passes", "good", facts[:_METHODS_TOLD]) if verdict else ("rejected", "bad", facts[:_METHODS_TOLD])

    chosen.add(
        "Without any score",
        "One of each error code first.",
        failed,
        lambda row: (f"failed: {row['error_code']}", "bad", [wording.clause(row["error_message"] or "", 90)]),
    )
    told = _most_drifted(night.steps.drift.changes)
    if told is not None:
        beyond = _beyond(told, some)
        where = "" if told.stratum == OVERALL else f" of {told.stratum}"
        chosen.add(
            f"Typical of how {wording.method(told.what)} drifted{where}",
            f"The median was {told.before:.4g} in the reference and is {told.after:.4g} tonight; these are beyond that."
            if told.before is not None and told.after is not None
            else "",
            beyond,
            lambda row: (judged(row)[0], judged(row)[1], [_score(chosen.gate, told.what, row.get(told.what))]),
        )
    by = f"By gate {chosen.gate.id}." if chosen.gate is not None else ""
    chosen.add("Rejected", by, [row for row in some if passed.get(row["image_id"]) is False], judged)
    pooled = len(night.steps.drift.pooled)
    others = f", or of the {pooled} nights before that were tested with it" if pooled else ""
    chosen.add("By chance", f"Any others of tonight's{others}.", some, judged)


def _gate(folder: str, night: records.NightRecord) -> gates.Gate | None:
    """The gate that judged tonight's photographs: the one that the night found, or of the first night its own."""
    name = night.gate_before or night.gate_after
    try:
        return gate_store.load(storage.join(folder, gates.FOLDER), name) if name else None
    except ConfigurationError:
        # The page says elsewhere what is in force; photographs are shown without a verdict then.
        return None


def _passed(gate: gates.Gate | None, rows: Sequence[Row]) -> dict[str, bool]:
    if gate is None or not rows:
        return {}
    none = np.zeros(len(rows), dtype=np.bool_)
    columns = [
        voter.votes(
            np.asarray([np.nan if row.get(voter.name) is None else row[voter.name] for row in rows], dtype=np.float64),
            none,
            "reject",
        )
        for voter in gate.voters(allow_fallback=True)
    ]
    if not columns:
        return {}
    decided = gates.decide(np.stack(columns, axis=1), gate.votes_needed).passed
    return {row["image_id"]: bool(one) for row, one in zip(rows, decided, strict=True)}


def _score(gate: gates.Gate | None, name: str, value: float | None) -> str:
    voter = gate.methods.get(name) if gate is not None else None
    low = False
    if voter is not None and voter.cutoff is not None and value is not None:
        low = value > voter.cutoff if voter.direction == "lower" else value < voter.cutoff
    return f"{wording.method(name)} {wording.number(value)}{' low' if low else ''}"


def _most_drifted(changes: Sequence[records.NightChange]) -> records.NightChange | None:
    """Of the method whose index is largest, the largest stratum in which it drifted."""
    drifted = [one for one in changes if one.word == DRIFTED and one.psi is not None]
    if not drifted:
        return None
    by_what: dict[str, records.NightChange] = {}
    for one in drifted:
        known = by_what.get(one.what)
        if known is None or (one.current, one.stratum == OVERALL) > (known.current, known.stratum == OVERALL):
            by_what[one.what] = one
    return max(by_what.values(), key=lambda one: one.psi or 0.0)


def _beyond(change: records.NightChange, rows: Sequence[Row]) -> list[Row]:
    """Photographs on the far side of tonight's median, in the order in which they were drawn."""
    kind, _, value = change.stratum.partition(" ")
    inside = [row for row in rows if row.get(change.what) is not None]
    if change.stratum != OVERALL:
        inside = [row for row in inside if row.get(kind) == value]
    if change.before is None or change.after is None or change.before == change.after:
        return inside
    if change.after > change.before:
        return [row for row in inside if row[change.what] >= change.after]
    return [row for row in inside if row[change.what] <= change.after]

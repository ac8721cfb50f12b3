"""What must hold before a new gate comes into force. Each check says what it measured and what that is held against."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from qualitygate.calibration import gate_store, value
from qualitygate.calibration.drift import COVERAGE, DRIFTED, ERRORS, OVERALL, Change, Limits, times_limit
from qualitygate.calibration.gate import Gate
from qualitygate.calibration.gate_store import History
from qualitygate.calibration.statistics import Floats
from qualitygate.config import NightlyConfig
from qualitygate.metrics import CATALOGUE
from qualitygate.nightly import windows
from qualitygate.nightly.record import Check

# More than these are a wall of text; the report has all.
_SHOWN = 3
# A part is worth naming beside the whole where the change is so many times as large in it.
_MORE_THAN_THE_WHOLE = 1.2
_CODE, _MISSING = "error:", "missing:"
_SHARES = {COVERAGE: "the share that passes", ERRORS: "the share without any score"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A gate that was just made. photographs: of calibration.parquet, a row for each it was made on.

    seen: image_id and held_out_passed of those that the gate in force was made on; None where that isn't known.
    refusal: why it can't decide, or None. coverage, coverage_before: of the table's photographs, by it and by the gate
    in force.
    """

    gate: Gate
    photographs: pa.Table
    seen: pa.Table | None
    refusal: str | None
    coverage: float | None
    coverage_before: float | None


# ---- of tonight's photographs --------------------------------------------------------------------------------


def limits(config: NightlyConfig) -> Limits:
    """When tonight's photographs count as drifted."""
    return Limits(
        psi=config.max_psi,
        coverage=config.max_coverage_drift,
        errors=config.max_error_drift,
        significance=config.significance,
        fewest=config.min_drift,
    )


def of_tonight(config: NightlyConfig, rows: int, failed: int, changes: Sequence[Change]) -> Iterator[Check]:
    """Whether tonight's photographs can be trusted. No sentence names a photograph: the record does, to be erased."""
    rate = failed / rows if rows else 0.0
    yield Check(
        name="errors",
        passed=rate <= config.max_error_rate,
        said=f"{failed:,} of tonight's {rows:,} photographs have no score: {rate:.1%}, at most "
        f"{config.max_error_rate:.1%} is allowed"
        + ("" if rate <= config.max_error_rate else "; 'qualitygate status' names the codes"),
        value=rate,
        limit=config.max_error_rate,
    )
    told = drifts(changes, limits(config))
    more = f"; and {len(told) - _SHOWN} more" if len(told) > _SHOWN else ""
    shown = "; ".join(told[:_SHOWN]) + more
    if told and config.accept_drift:
        yield Check(name="drift", passed=True, said=f"drift, accepted: {shown}", value=len(told), limit=None)
    else:
        yield Check(
            name="drift",
            passed=not told,
            said=f"tonight's photographs are unlike the reference's: {shown}; look at them in the night's report, and "
            "if it is wanted, run the night again with --accept-drift"
            if told
            else "tonight's photographs are like the reference's"
            if any(one.p_value is not None for one in changes)
            else "too few photographs, tonight's or the reference's, to speak of drift",
            value=len(told),
            limit=0,
        )


def drifts(changes: Sequence[Change], limits: Limits) -> list[str]:
    """What has drifted, each thing in a sentence of the largest stratum in which it has: the largest change first."""
    by_what: dict[str, list[Change]] = {}
    for one in changes:
        if one.word == DRIFTED:
            by_what.setdefault(one.what, []).append(one)
    largest = [max(found, key=lambda one: (one.current, one.stratum == OVERALL)) for found in by_what.values()]
    # A code is told with all errors, where they have drifted too.
    all_errors = {one.stratum for one in largest if one.what == ERRORS}
    told = [one for one in largest if not (one.what.startswith(_CODE) and one.stratum in all_errors)]
    told.sort(key=lambda one: -times_limit(one, limits))
    return [said_of(one, by_what, limits) for one in told]


def said_of(change: Change, drifted: Mapping[str, Sequence[Change]], limits: Limits) -> str:
    """One drifted thing in words. drifted: all that has, by what: where else, and which errors."""
    whole = change.stratum == OVERALL
    where = "" if whole else f" of {change.stratum}"
    parts = [one for one in drifted.get(change.what, ()) if one.current < change.current] if whole else []
    worst = max(parts, key=lambda one: times_limit(one, limits), default=None)
    most = ""
    if worst is not None and times_limit(worst, limits) >= _MORE_THAN_THE_WHOLE * times_limit(change, limits):
        most = f", most in {worst.stratum}"
    if change.psi is not None:
        return f"{change.what}{where} {_moved(change)} (PSI {change.psi:.2f}, {change.current:,} photographs{most})"
    name = _SHARES.get(change.what, change.what)
    if change.what.startswith(_CODE):
        name = f"the share that fails as {change.what.removeprefix(_CODE)}"
    if change.what.startswith(_MISSING):
        name = f"the share without {change.what.removeprefix(_MISSING)}"
    before, after = change.before or 0.0, change.after or 0.0
    codes = [one for key, found in drifted.items() if key.startswith(_CODE) for one in found]
    codes = [one for one in codes if change.what == ERRORS and one.stratum == change.stratum]
    code = max(codes, key=lambda one: abs((one.after or 0.0) - (one.before or 0.0)), default=None)
    mostly = f", mostly {code.what.removeprefix(_CODE)}" if code is not None else ""
    verb = "rose" if after > before else "fell"
    return f"{name}{where} {verb} from {before:.1%} to {after:.1%} ({change.current:,} photographs{mostly}{most})"


def _moved(change: Change) -> str:
    """Where a method's scores went, in its own unit, and what that says of the photographs."""
    if change.before is None or change.after is None:
        return "is spread otherwise"
    before, after = f"{change.before:.4g}", f"{change.after:.4g}"
    if before == after:
        return f"is spread otherwise around its median of {before}"
    rose = change.after > change.before
    moved = f"{'rose' if rose else 'fell'} from a median of {before} to {after}"
    metric = CATALOGUE.get(change.what)
    return moved if metric is None else f"{moved}: {'better' if rose == metric.higher_is_better else 'worse'} quality"


# ---- of the new gate -----------------------------------------------------------------------------------------


def of_candidate(
    config: NightlyConfig, new: Candidate, old: Gate | None, history: History, drifted: bool
) -> Iterator[Check]:
    """Whether the new gate may come into force. drifted: a drift was accepted, which explains a move."""
    yield from _enough(config, new, old)
    yield Check(
        name="decides",
        passed=new.refusal is None,
        said=new.refusal or "enough of its methods have a cut-off",
    )
    if new.refusal is not None:
        return
    yield from _moves(new, old, drifted)
    yield from _coverage(config, new, drifted)
    if old is not None:
        yield _value(config, new, old)
    yield _standing(new, history)


def _enough(config: NightlyConfig, new: Candidate, old: Gate | None) -> Iterator[Check]:
    rows = new.photographs.num_rows
    yield Check(
        name="labelled",
        passed=rows >= config.min_labelled,
        said=f"{rows:,} labelled photographs, at least {config.min_labelled:,} are needed",
        value=rows,
        limit=config.min_labelled,
    )
    judge = old if old is not None and set(old.methods) <= set(new.photographs.column_names) else new.gate
    if new.refusal is not None and judge is new.gate:
        return
    rejected = int(np.count_nonzero(~windows.passes(new.photographs, judge)))
    whose = "the gate in force" if judge is old else "the new gate"
    yield Check(
        name="rejects labelled",
        passed=rejected >= config.min_audited,
        said=f"{rejected:,} of the labelled photographs are ones that {whose} rejects, at least {config.min_audited:,} "
        "are needed" + ("" if rejected >= config.min_audited else "; label the audit samples"),
        value=rejected,
        limit=config.min_audited,
    )


def _moves(new: Candidate, old: Gate | None, drifted: bool) -> Iterator[Check]:
    if old is None:
        return
    for one in gate_store.differences(old, new.gate):
        if one.within is None:
            continue
        moved = f"{one.method} {one.cutoff[0]:.4g} to {one.cutoff[1]:.4g}"
        if one.within:
            said = f"{moved}: within the intervals"
        elif drifted:
            said = f"{moved}: past both intervals, which the accepted drift explains"
        else:
            said = (
                f"{moved}: past both intervals, and no accepted drift explains it; look at the new labels, and if they "
                "are right, put the candidate in force by hand"
            )
        yield Check(
            name=f"cut-off {one.method}", passed=bool(one.within or drifted), said=said, value=one.moved, limit=None
        )
    lost = [name for name, voter in old.methods.items() if voter.status == "ok" and not _votes(new.gate, name)]
    yield Check(
        name="methods",
        passed=not lost,
        said=f"had a cut-off and has none now: {_lost(new.gate, lost)}"
        if lost
        else "every method that voted still does",
    )


def _lost(gate: Gate, names: Sequence[str]) -> str:
    reasons = {name: gate.methods[name].reason if name in gate.methods else "not asked for" for name in names}
    return "; ".join(f"{name} ({reason})" for name, reason in reasons.items())


def _votes(gate: Gate, name: str) -> bool:
    return name in gate.methods and gate.methods[name].status == "ok"


def _coverage(config: NightlyConfig, new: Candidate, drifted: bool) -> Iterator[Check]:
    if new.coverage is None:
        return
    yield Check(
        name="coverage",
        passed=config.min_coverage <= new.coverage <= config.max_coverage,
        said=f"the new gate passes {new.coverage:.1%} of the photographs that are trusted; "
        f"{config.min_coverage:.0%} to {config.max_coverage:.0%} is allowed",
        value=new.coverage,
        limit=config.min_coverage,
    )
    if new.coverage_before is None:
        return
    change = new.coverage - new.coverage_before
    small = abs(change) <= config.max_coverage_change
    excused = "" if small or not drifted else ", drift was accepted"
    yield Check(
        name="coverage change",
        passed=small or drifted,
        said=f"that is {100 * change:+.1f} points against the gate in force; "
        f"{100 * config.max_coverage_change:.0f} are allowed" + excused,
        value=change,
        limit=config.max_coverage_change,
    )


def _value(config: NightlyConfig, new: Candidate, old: Gate) -> Check:
    """On the same labelled photographs, each gate on those that it was made from as its cross-fitting has it.

    As it is, a gate does better on its own photographs than on others, and every new one would look worse.
    """
    rows = new.photographs
    if not set(old.methods) <= set(rows.column_names):
        return Check(name="value", passed=True, said="the gate in force has other methods: it can't be compared")
    known = pa.array(_decisions(rows, old, new.seen), from_pandas=True)
    both = pc.and_(pc.is_valid(rows["held_out_passed"]), pc.is_valid(known))
    rows, before = rows.filter(both), known.filter(both.combine_chunks()).to_numpy()
    if not rows.num_rows:
        return Check(name="value", passed=True, said="no gate of other groups could decide: it can't be compared")
    correct = np.asarray(rows["correct"].to_numpy(zero_copy_only=False), dtype=np.bool_)
    shares = np.asarray(rows["held_out_passed"].to_numpy(zero_copy_only=False), dtype=np.float64)
    found = value.compared(shares, before, correct, _weights(rows), _groups(rows))
    if found.youden is None:
        return Check(name="value", passed=True, said="without right and wrong predictions there is nothing to compare")
    # Worse by more than is allowed, and not by chance alone.
    worse = found.youden < -config.max_value_loss and (found.interval is None or found.interval[1] < 0)
    interval = f" [{found.interval[0]:+.3f}, {found.interval[1]:+.3f}]" if found.interval else ""
    return Check(
        name="value",
        passed=not worse,
        said=f"Youden's J on held-out photographs less that of the gate in force: {found.youden:+.3f}{interval}; "
        f"{-config.max_value_loss:+.3f} is allowed",
        value=found.youden,
        limit=-config.max_value_loss,
    )


def _decisions(rows: pa.Table, old: Gate, seen: pa.Table | None) -> Floats:
    """(N,) share in which each photograph passes the old gate; NaN where it was made on it and none other could say."""
    shares = windows.passes(rows, old).astype(np.float64)
    if seen is not None:
        held_out = dict(zip(seen["image_id"].to_pylist(), seen["held_out_passed"].to_pylist(), strict=True))
        for number, image_id in enumerate(rows["image_id"].to_pylist()):
            if image_id in held_out:
                share = held_out[image_id]
                shares[number] = np.nan if share is None else share
    return shares


def _weights(rows: pa.Table) -> Any:
    if "weight" not in rows.column_names:
        return None
    return np.asarray(rows["weight"].to_numpy(zero_copy_only=False), dtype=np.float64)


def _groups(rows: pa.Table) -> Any:
    pairs = zip(rows["group"].to_pylist(), rows["image_id"].to_pylist(), strict=True)
    return np.asarray([f"g{group}" if group is not None else f"i{image_id}" for group, image_id in pairs])


def _standing(new: Candidate, history: History) -> Check:
    held = history.current is not None and history.current.held
    same = [one for one in sorted(history.withdrawn) if gate_store.same(new.gate, gate_store.load(history.store, one))]
    if held:
        said = "promotions are held since somebody rolled back; 'qualitygate gate promote' by hand lifts that"
    elif same:
        said = f"it is gate {same[0]}, from which somebody rolled back"
    else:
        said = "nobody has rolled back from it"
    return Check(name="not withdrawn", passed=not held and not same, said=said)

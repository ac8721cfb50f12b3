"""The page's first words: whether the gate has a line, where it is, and what it buys."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from markupsafe import Markup

from qualitygate.report import records, wording
from qualitygate.report.artefacts import Calibration

Tone = Literal["good", "caution", "bad"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the gate is worth: a word and its tone, the sentence that says it, and why, point by point."""

    tone: Tone
    word: str
    sentence: Markup
    points: Sequence[Markup]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A share in [0, 1] with its interval, to be drawn."""

    name: str
    role: str
    estimate: records.Estimated


@dataclass(frozen=True, slots=True, kw_only=True)
class Sketch:
    """A method's line at a glance: paths in a box of 0..WIDTH by 0..HEIGHT, worse on the left."""

    right: str
    wrong: str
    cutoff: float | None
    band: tuple[float, float] | None


WIDTH, HEIGHT = 320.0, 64.0


def judge(calibration: Calibration, untrained: frozenset[str]) -> Verdict:
    """The verdict on one gate, in words that claim no more than the intervals show."""
    gate, held_out = calibration.gate, calibration.held_out
    voters = [name for name, method in gate.methods.items() if method.status == "ok"]
    fallbacks = [name for name, method in gate.methods.items() if method.status == "fallback"]
    marked = sorted(untrained & set(gate.methods))
    sentence = _sentence(gate, voters, fallbacks)
    points = [*_lines(gate), *_bought(held_out)]
    if marked:
        names = wording.listing([wording.method(name) for name in marked])
        points.insert(0, Markup("{} {} untrained: such scores mean nothing.").format(names, _are(marked)))
        return Verdict(tone="bad", word="Not for use", sentence=sentence, points=points)
    if len(voters) < gate.votes_needed:
        word = "No line yet" if len(voters) + len(fallbacks) < gate.votes_needed else "Only by fallback"
        return Verdict(tone="bad", word=word, sentence=sentence, points=points)
    gain = difference(held_out, "random")
    if gain is None:
        points.append(Markup("What it buys on unseen groups was not measured."))
        return Verdict(tone="caution", word="Not proven", sentence=sentence, points=points)
    if side(gain) == "better":
        return Verdict(tone="good", word="Works", sentence=sentence, points=points)
    word = "Does harm" if side(gain) == "worse" else "No clear gain"
    return Verdict(tone="bad" if word == "Does harm" else "caution", word=word, sentence=sentence, points=points)


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _sentence(gate: records.Gate, voters: Sequence[str], fallbacks: Sequence[str]) -> Markup:
    needed = gate.votes_needed
    if len(voters) >= needed:
        if len(voters) == 1:
            return Markup("Reject a photograph that falls on the low side of <b>one</b> line.")
        if needed == len(voters):
            least = "both" if needed == 2 else f"all {needed}"
        else:
            least = f"at least {needed} of {len(voters)}"
        return Markup("Reject a photograph when <b>{}</b> methods put it on the low side of their line.").format(least)
    have = "none" if not voters else f"only {len(voters)}"
    text = Markup("Rejecting takes {} low vote{}, and <b>{}</b> of {} methods {} a line that holds.").format(
        needed, "" if needed == 1 else "s", have, len(gate.methods), "has" if len(voters) == 1 else "have"
    )
    if len(voters) + len(fallbacks) >= needed:
        text += Markup(" With <code>--allow-fallback</code> a percentile votes in place of the others' line.")
    return text


def _lines(gate: records.Gate) -> list[Markup]:
    """A point for each method without a line that holds."""
    found = []
    for name, method in gate.methods.items():
        if method.status != "ok":
            what = "has no line" if method.status == "undefined" else "has only a fallback"
            reason = wording.safe(method.reason or "no reason was recorded")
            found.append(Markup("<b>{}</b> {}: {}.").format(wording.method(name), what, reason.rstrip(".")))
    return found


def _bought(held_out: records.HeldOut | None) -> list[Markup]:
    if held_out is None:
        return []
    points = []
    for name in ("random", "top1"):
        if gain := difference(held_out, name):
            said = {"better": "a clear gain", "worse": "clearly worse", "level": "no clear difference"}[side(gain)]
            points.append(
                Markup("With as many passed, that is <b>{}</b> {} against {}: {}.").format(
                    wording.points(gain.mean), wording.interval(gain.interval, "points"), wording.baseline(name), said
                )
            )
    return points


def difference(held_out: records.HeldOut | None, name: str) -> records.Estimated | None:
    """The gate's accuracy minus a baseline's at equal coverage, with an interval; None where not measured."""
    for compared in held_out.comparison if held_out else ():
        if compared.name == name and compared.difference and compared.difference.interval:
            return compared.difference
    return None


def side(gain: records.Estimated) -> Literal["better", "worse", "level"]:
    """Whether an interval lies above 0, below it, or on both sides."""
    assert gain.interval is not None  # `difference` gives no other
    return "better" if gain.interval[0] > 0 else "worse" if gain.interval[1] < 0 else "level"


def bars(held_out: records.HeldOut | None) -> list[Bar]:
    """Accuracy of those that pass, of all, and of the rejected."""
    if held_out is None:
        return []
    named: Mapping[str, tuple[str, records.Estimated | None]] = {
        "passed": ("good", held_out.accuracy_passed),
        "all": ("muted", held_out.accuracy_all),
        "rejected": ("wrong", held_out.accuracy_rejected),
    }
    return [
        Bar(name=name, role=role, estimate=estimate)
        for name, (role, estimate) in named.items()
        if estimate is not None and estimate.mean is not None
    ]


def sketch(method: records.Method) -> Sketch | None:
    """Both densities and the cut-off as paths; None without densities."""
    densities = method.densities
    if densities is None or len(densities.quality) < 2:
        return None
    quality = np.asarray(densities.quality, dtype=np.float64)
    logarithmic = densities.axis == "log" and bool((quality > 0).all())
    low, high = (float(end) for end in (np.log(quality) if logarithmic else quality)[[0, -1]])
    if not high > low:
        return None

    def at(raw: float) -> float:
        if logarithmic and raw <= 0:
            return 0.0
        share = ((float(np.log(raw)) if logarithmic else raw) - low) / (high - low)
        share = 1 - share if method.direction == "lower" else share
        return round(WIDTH * min(1.0, max(0.0, share)), 1)

    tallest = max(*densities.correct, *densities.wrong) or 1.0

    def path(values: Sequence[float]) -> str:
        tops = [f"{at(x)},{round(HEIGHT * (1 - 0.94 * y / tallest), 1)}" for x, y in zip(quality, values, strict=False)]
        return f"M{at(quality[0])},{HEIGHT}L{'L'.join(tops)}L{at(quality[-1])},{HEIGHT}Z"

    ends = sorted(at(end) for end in method.interval) if method.interval else None
    return Sketch(
        right=path(densities.correct),
        wrong=path(densities.wrong),
        cutoff=None if method.cutoff is None else at(method.cutoff),
        band=(ends[0], ends[1]) if ends else None,
    )

"""Which methods vote: the paper's three, a choice by measured robustness, or names.

No simple rule on the paper's Table 1 picks exactly LAPM, WAVS and MUSIQ, so that choice is a preset, and the rules
here are this program's own. They read `robustness.json` alone.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qualitygate.calibration.correlation import CROP_CENTRE, CROP_CORNER, ROTATION
from qualitygate.errors import ConfigurationError

PRESETS = ("auto", "paper", "classical")
PAPER = ("lapm", "wavs", "musiq")
_ALWAYS_CLASSICAL = ("lapm", "wavs")
_REST_OF_CLASSICAL = ("lapv", "brisque", "niqe")

# A method is trusted where its quality falls along blur at least so well ...
LEAST_BLUR_ORDER = 0.8
# ... and where no nuisance moves it by so much of its way from sharp to blurred.
LARGEST_EFFECT = 0.5
# Above this, two methods vote nearly as one.
REDUNDANT = 0.95
_WANTED = 3
_DECIDING = (CROP_CORNER, CROP_CENTRE, ROTATION)

_QUALIFIED = (
    f"quality falls along blur (mean Spearman correlation, lower end of its interval, at least {LEAST_BLUR_ORDER:g}) "
    f"and neither cropping nor rotating moves the score by {LARGEST_EFFECT:g} of its blur range (median effect size, "
    "upper end of its interval)"
)
# As people call what moves a score.
NUISANCES = {
    "crop_corner": "cropping at the corner",
    "crop_centre": "cropping around the centre",
    "rotation": "turning",
    None: "nothing",
}
RULES = {
    "auto": (
        f"trained methods that qualify: {_QUALIFIED}; least effect first, leaving out one that correlates above "
        f"{REDUNDANT:g} with one already taken (Spearman, absolute), unless fewer than {_WANTED} would remain"
    ),
    "paper": "LAPM, WAVS and MUSIQ, as in the paper, whatever was measured here",
    "classical": (
        "LAPM, WAVS and the best of LAPV, BRISQUE and NIQE: first one that follows blur, then one that nuisances "
        "leave alone, then one that isn't redundant, then the least effect. Not the paper's choice, which has MUSIQ"
    ),
    "list": "the methods that were named",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Methods that vote. margins: for each method measured, why it is in or out; note: what to know, or None."""

    preset: str
    methods: tuple[str, ...]
    rule: str
    margins: Mapping[str, Mapping[str, Any]]
    note: str | None


def resolve(methods: str, robustness: Mapping[str, Any] | None, available: Sequence[str]) -> Choice:
    """The choice that `--methods` asks for, among methods that have scores.

    methods: auto, paper, classical, or names with commas. robustness: content of `robustness.json`; auto and
    classical need it. available: methods that have scores.

    Raises ConfigurationError, one line with the remedy: nothing named, an unknown name, a method without scores,
    no robustness where it is needed, a rule that finds none.
    """
    preset, names = check(methods, available)
    if robustness is None:
        if preset in ("auto", "classical"):
            raise ConfigurationError(
                f"--methods {preset} decides by measured robustness; give --robustness DIR, the output of "
                "'qualitygate robustness', or name the methods"
            )
        return Choice(preset=preset, methods=names, rule=RULES[preset], margins={}, note=None)
    if robustness.get("format") != "qualitygate-robustness" or robustness.get("version") != 1:
        raise ConfigurationError(
            "--robustness: its robustness.json is not of this program's version 1; run 'qualitygate robustness' again"
        )
    choice = choose(methods, robustness)
    if not choice.methods:
        raise ConfigurationError(f"--methods {preset}: {choice.note}; name the methods instead")
    if absent := [name for name in choice.methods if name not in available]:
        raise ConfigurationError(
            f"--methods {preset} chose {', '.join(choice.methods)}, but the scores lack {', '.join(absent)}; run "
            f"'qualitygate score --metrics {','.join(absent)} --backfill', or name the methods"
        )
    return choice


def check(methods: str, available: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """(preset or "list", the methods known already), as far as names alone tell; ConfigurationError as `resolve`."""
    names = tuple(dict.fromkeys(part.strip() for part in methods.split(",") if part.strip()))
    if not names:
        raise ConfigurationError(f"--methods is empty; give one of {', '.join(PRESETS)}, or names with commas")
    if len(names) > 1 and (mixed := [name for name in names if name in PRESETS and name not in available]):
        raise ConfigurationError(f"--methods: {mixed[0]!r} is a preset and stands alone; leave it out or the names")
    if names == ("paper",):
        if absent := [name for name in PAPER if name not in available]:
            raise ConfigurationError(
                f"--methods paper wants {', '.join(PAPER)}, but there are no scores of {', '.join(absent)}; score "
                f"{'them' if len(absent) > 1 else 'it'} ('qualitygate weights list' says what musiq needs), or use "
                "'--methods classical' ('calibrate' wants it with --robustness DIR)"
            )
        return "paper", PAPER
    if names == ("classical",):
        absent = [name for name in _ALWAYS_CLASSICAL if name not in available]
        if absent or not any(name in available for name in _REST_OF_CLASSICAL):
            wanted = absent or ["any of " + ", ".join(_REST_OF_CLASSICAL)]
            raise ConfigurationError(
                f"--methods classical wants {', '.join(_ALWAYS_CLASSICAL)} and one of "
                f"{', '.join(_REST_OF_CLASSICAL)}, but there are no scores of {', '.join(wanted)}; score them, or "
                "name the methods"
            )
        return "classical", ()
    if names == ("auto",):
        return "auto", ()
    if absent := [name for name in names if name not in available]:
        close = difflib.get_close_matches(absent[0], [*available, *PRESETS], n=1)
        raise ConfigurationError(
            f"--methods: there are no scores of {', '.join(absent)}"
            + (f", did you mean {close[0]!r}?" if close else "")
            + f"; there are scores of {', '.join(available) or 'none'}"
        )
    return "list", names


def choose(methods: str, robustness: Mapping[str, Any]) -> Choice:
    """The choice by what was measured; `auto` and `classical` may find none, which their note says."""
    margins = weigh(robustness)
    correlated = _correlated(robustness)
    name = methods.strip()
    if name == "auto":
        chosen, note = _auto(margins, correlated)
    elif name == "classical":
        chosen, note = _classical(margins, correlated)
    elif name == "paper":
        chosen, note = PAPER, _said(_openly(PAPER, correlated))
    else:
        name = "list"
        chosen = tuple(dict.fromkeys(part.strip() for part in methods.split(",") if part.strip()))
        note = _said(_openly(chosen, correlated))
    shown = {method: {"in": method in chosen, **margin} for method, margin in margins.items()}
    return Choice(preset=name, methods=chosen, rule=RULES[name], margins=shown, note=note)


def weigh(robustness: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """For each method what decides: its order along blur, its largest effect, the limits, and whether it qualifies.

    With one sample there are no intervals, and the values themselves decide.
    """
    return {name: _weighed(measured) for name, measured in robustness["metrics"].items()}


def _weighed(measured: Mapping[str, Any]) -> dict[str, Any]:
    order = measured["blur_order"]
    lower = order["interval"][0] if order["interval"] else order["srcc"]
    effects = {
        nuisance: (found["interval"][1] if found["interval"] else found["ratio"], found["ratio"])
        for nuisance, found in measured["effects"].items()
        if nuisance in _DECIDING and found["ratio"] is not None
    }
    worst = max(effects, key=lambda nuisance: effects[nuisance]) if effects else None
    upper, ratio = effects[worst] if worst else (None, None)
    follows = lower is not None and lower >= LEAST_BLUR_ORDER
    steady = upper is not None and upper < LARGEST_EFFECT
    why = []
    if not measured["trained"]:
        why.append("untrained: its scores mean nothing")
    if lower is None:
        why.append("its order along blur is undefined")
    elif not follows:
        why.append(f"its order along blur may be as low as {lower:.2f}, below {LEAST_BLUR_ORDER:g}")
    if upper is None:
        why.append("its effect sizes are undefined")
    elif not steady:
        why.append(f"{NUISANCES[worst]} may move it by {upper:.2f} of its blur range, {LARGEST_EFFECT:g} or more")
    return {
        "qualified": not why,
        "why": "; ".join(why) or f"{NUISANCES[worst]} moves it most, by at most {upper:.2f} of its blur range",
        "blur_order": order["srcc"],
        "blur_order_lower": lower,
        "blur_order_limit": LEAST_BLUR_ORDER,
        "largest_effect": ratio,
        "largest_effect_upper": upper,
        "limit": LARGEST_EFFECT,
        "nuisance": worst,
        "follows_blur": follows,
        "steady": steady,
        "trained": measured["trained"],
    }


Correlated = Mapping[frozenset[str], float]


def _correlated(robustness: Mapping[str, Any]) -> Correlated:
    return {
        frozenset((pair["a"], pair["b"])): abs(pair["spearman"])
        for pair in robustness["redundancy"]
        if pair["spearman"] is not None
    }


def _partner(name: str, others: Sequence[str], correlated: Correlated) -> str | None:
    """The one of the others that the method is most redundant with, if any."""
    size = {other: correlated.get(frozenset((name, other)), 0.0) for other in others if other != name}
    nearest = max(size, key=lambda other: size[other], default=None)
    return nearest if nearest is not None and size[nearest] > REDUNDANT else None


def _auto(margins: Mapping[str, dict[str, Any]], correlated: Correlated) -> tuple[tuple[str, ...], str | None]:
    ranked = sorted(
        (name for name, margin in margins.items() if margin["qualified"]),
        key=lambda name: (margins[name]["largest_effect_upper"], name),
    )
    chosen: list[str] = []
    left_out: list[str] = []
    for name in ranked:
        partner = _partner(name, chosen, correlated)
        if partner is None:
            chosen.append(name)
        else:
            left_out.append(name)
            margins[name]["why"] = f"qualifies, but is redundant with {partner}"
    kept = left_out[: max(0, _WANTED - len(chosen))]
    chosen += kept
    for name in kept:
        margins[name]["why"] += f"; kept, for fewer than {_WANTED} would remain"
    notes = []
    if not chosen:
        notes.append("no trained method qualifies")
    elif len(chosen) < _WANTED:
        notes.append(f"only {len(chosen)} of {len(margins)} methods qualify")
    return tuple(chosen), _said(notes + _openly(chosen, correlated))


def _classical(margins: Mapping[str, dict[str, Any]], correlated: Correlated) -> tuple[tuple[str, ...], str | None]:
    rest = [name for name in _REST_OF_CLASSICAL if name in margins]
    if not rest or any(name not in margins for name in _ALWAYS_CLASSICAL):
        wanted = f"{', '.join(_ALWAYS_CLASSICAL)} and one of {', '.join(_REST_OF_CLASSICAL)}"
        return (), f"classical needs the robustness of {wanted}; it was measured for {', '.join(margins)}"

    def rank(name: str) -> tuple[bool, bool, bool, float, str]:
        margin = margins[name]
        redundant = _partner(name, _ALWAYS_CLASSICAL, correlated) is not None
        effect = margin["largest_effect_upper"]
        worst = effect if effect is not None else float("inf")
        return not margin["follows_blur"], not margin["steady"], redundant, worst, name

    third = min(rest, key=rank)
    chosen = (*_ALWAYS_CLASSICAL, third)
    notes = ["not the paper's methods, which are LAPM, WAVS and MUSIQ"]
    notes += [
        f"{name.upper()} would not have qualified: {margins[name]['why']}"
        for name in chosen
        if not margins[name]["qualified"]
    ]
    return chosen, _said(notes + _openly(chosen, correlated))


def _openly(chosen: Sequence[str], correlated: Correlated) -> list[str]:
    """What must be said of redundant methods that both vote."""
    found = {
        (a, b): correlated[frozenset((a, b))]
        for number, a in enumerate(chosen)
        for b in chosen[number + 1 :]
        if correlated.get(frozenset((a, b)), 0.0) > REDUNDANT
    }
    if not found:
        return []
    names = list(dict.fromkeys(name for pair in found for name in pair))
    low, high = min(found.values()), max(found.values())
    said = f"{low:.3f}" if len(found) == 1 else f"{low:.3f} to {high:.3f}"
    shown = [name.upper() for name in names]
    return [
        f"{', '.join(shown[:-1])} and {shown[-1]} rank photographs nearly alike (Spearman {said}): "
        f"their {len(names)} votes are hardly more than one"
    ]


def _said(notes: Sequence[str]) -> str | None:
    return "; ".join(notes) or None

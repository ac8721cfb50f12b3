"""How the page says things: numbers, intervals, names of methods, nuisances and baselines."""

from collections.abc import Mapping, Sequence

from qualitygate.metrics import CATALOGUE
from qualitygate.tables import storage

NOTHING = "–"
_SPACE = "\u202f"
_SPELT = {"hyperiqa": "HyperIQA"}
NUISANCES = {
    "crop_corner": "Cropping, corner",
    "crop_centre": "Cropping, centre",
    "rotation": "Rotating",
    "rotation_second": "Rotating, second interpolation",
    "blur_manifest": "Blurring",
    "blur_rendered": "Blurring, rendered",
    "cropping": "Cropping",
    "rotating": "Rotating",
    "blurring": "Blurring",
}
BASELINES = {
    "gate": "this gate",
    "random": "random rejection",
    "top1": "the classifier's top-1 confidence",
    "best_single": "the best single method",
    "logistic": "a logistic combination",
}
RULES = {
    "crossing": "where the densities cross",
    "target_accuracy": "for the accuracy asked for",
    "min_coverage": "for the coverage asked for",
    "percentile": "a low percentile of quality",
}


def method(name: str) -> str:
    """A method as people write it: LAPM for lapm; a column of the user's own as it is."""
    base = name.split("-")[0]
    if name in _SPELT:
        return _SPELT[name]
    return name.upper() if name in CATALOGUE or base in CATALOGUE else name


def number(value: float | None) -> str:
    """Three significant digits, without an exponent where that can be read."""
    if value is None:
        return NOTHING
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e6:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{mantissa.replace('-', '−')}×10{_superscript(int(exponent))}"
    text = f"{value:.3g}"
    return (f"{float(text):,.0f}" if "e" in text else text).replace("-", "−")


def _superscript(exponent: int) -> str:
    return str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def count(value: int | float | None) -> str:
    """A whole number with commas."""
    return NOTHING if value is None else f"{value:,.0f}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share in [0, 1] as a percentage."""
    return NOTHING if value is None else f"{100 * value:.{digits}f}{_SPACE}%"


def points(value: float | None) -> str:
    """A difference of shares in percentage points, with its sign."""
    if value is None:
        return NOTHING
    return f"{_signed(value)} points"


def _signed(share: float) -> str:
    """In percent with its sign, which nothing has not."""
    text = f"{100 * share:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def p_value(value: float | None) -> str:
    """A p-value; below .001 only that."""
    return NOTHING if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def interval(ends: Sequence[float] | None, form: str = "number") -> str:
    """An interval's two ends, `[low, high]`; nothing where there is none."""
    if ends is None:
        return ""
    low, high = ends
    if form == "percent":
        return f"[{100 * low:.1f}, {100 * high:.1f}]"
    if form == "points":
        return f"[{_signed(low)}, {_signed(high)}]"
    if form == "coefficient":
        return f"[{low:.2f}, {high:.2f}]".replace("-", "−")
    return f"[{number(low)}, {number(high)}]"


def coefficient(value: float | None, digits: int = 2) -> str:
    """A correlation or another number of about 1."""
    return NOTHING if value is None else f"{value:.{digits}f}".replace("-", "−")


def rejects(direction: str) -> str:
    """The side of a cut-off that gets a low vote."""
    return "reject above" if direction == "lower" else "reject below"


def nuisance(name: str) -> str:
    """A nuisance series as people call it."""
    return NUISANCES.get(name, name)


def baseline(name: str) -> str:
    """What the gate is compared with."""
    return BASELINES.get(name, name)


def listing(names: Sequence[str], last: str = "and") -> str:
    """`a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {last} {names[-1]}" if names else "none"


def short(text: str | None, width: int = 12) -> str:
    """The head of a hash."""
    return NOTHING if not text else text if len(text) <= width + 8 else f"{text[:width]}…"


def clipped(text: str, width: int) -> str:
    """A user's text, no longer than fits an axis."""
    return text if len(text) <= width else f"{text[: width - 1]}…"


def safe(text: str) -> str:
    """A user's text or a message without credentials, control characters and lone surrogates."""
    kept = "".join(character if character.isprintable() else "�" for character in text)
    return storage.redact(kept) if "://" in kept else kept


def plotted(text: str, width: int = 28) -> str:
    """A user's text inside a figure, where plotly would read tags and entities."""
    escaped = clipped(safe(text), width).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # Two dollar signs would be TeX, if ever a script for it were there.
    return escaped.replace("$", "＄")


def weighted(
    column: str, probability: Sequence[float], effective: float, classes: Mapping[str, tuple[int, float]]
) -> str:
    """How photographs were weighted. effective: what they count for; classes: (photographs, the same) of each."""
    low, high = probability
    each = listing(
        [f"{count(found)} {kind} predictions for {count(worth)}" for kind, (found, worth) in classes.items()]
    )
    return (
        f"each photograph stands for 1 / {safe(column)} ({number(low)} to {number(high)}): together they tell as much "
        f"as {count(effective)} of equal weight, {each}; all shares, densities and cut-offs are weighted"
    )


def sentence(text: str) -> str:
    """A message as a sentence of its own: a capital first, a full stop last."""
    said = safe(text).strip()
    return said if not said else said[0].upper() + said[1:] + ("" if said[-1] in ".!?" else ".")


def clause(text: str, width: int = 160) -> str:
    """The first clause of a message, of at most so many characters: where it is told in passing."""
    said = safe(text).strip().partition("; ")[0]
    return said if len(said) <= width else f"{said[: width - 4].rpartition(' ')[0]} ..."


def clauses(texts: Sequence[str], most: int = 3) -> str:
    """Several messages in passing: the first clause of the first ones, and how many more there are."""
    more = f"; and {len(texts) - most} more" if len(texts) > most else ""
    return "; ".join(clause(text) for text in texts[:most]) + more


def unseen(shares: Mapping[str, float], cameras: Sequence[int], photographs: int) -> list[str]:
    """Cameras never seen before. shares: of the night's photographs, by some; cameras: (all of them, photographs)."""
    said = [f"{name}, {share:.0%} of tonight's photographs, was never seen before" for name, share in shares.items()]
    count, of = (*cameras, 0, 0)[:2]
    if count > 1 and photographs:
        said.append(
            f"{of:,} of tonight's photographs ({of / photographs:.0%}) come from {count:,} cameras never seen before"
        )
    return said

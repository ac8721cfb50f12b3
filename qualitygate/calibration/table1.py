"""The paper's Table 1 as data, and the same table for what was measured here.

Numbers: Smith, Zuo, Stonehouse, Obara, "How Quality Affects Deep Neural Networks in Fine-Grained Image
Classification", VISAPP 2024, Table 1, doi 10.5220/0012359200003660.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from qualitygate.calibration.correlation import BLUR, CROP_CENTRE, CROP_CORNER, ROTATION, ROTATION_SECOND

CITATION = "Smith et al., VISAPP 2024, Table 1, doi 10.5220/0012359200003660"
METHODS = ("lapv", "lapm", "wavs", "brisque", "niqe", "musiq", "maniqa", "hyperiqa")
# Absolute values. Cropping and rotating: of one clear photograph; blurring: averaged over 14 samples.
PAPER: dict[str, dict[str, dict[str, float]]] = {
    configuration: {statistic: dict(zip(METHODS, values, strict=True)) for statistic, values in rows.items()}
    for configuration, rows in {
        "cropping": {
            "PCC": (0.337, 0.322, 0.345, 0.599, 0.774, 0.954, 0.937, 0.150),
            "SRCC": (0.358, 0.152, 0.164, 0.406, 0.969, 0.952, 0.927, 0.333),
        },
        "rotating": {
            "PCC": (0.406, 0.570, 0.050, 0.336, 0.279, 0.316, 0.062, 0.133),
            "SRCC": (0.486, 0.486, 0.086, 0.200, 0.200, 0.143, 0.200, 0.314),
        },
        "blurring": {
            "PCC": (0.770, 0.878, 0.845, 0.855, 0.053, 0.907, 0.695, 0.169),
            "SRCC": (1.000, 0.996, 0.973, 0.965, 0.165, 0.885, 0.626, 0.194),
        },
    }.items()
}
_SPELT = {"hyperiqa": "HyperIQA"}
_DIGITS = 3
_WORDS = {
    CROP_CORNER: "cropping from the corner",
    CROP_CENTRE: "cropping about the centre",
    ROTATION: "rotating",
    ROTATION_SECOND: "rotating, second interpolation",
    BLUR["manifest"]: "blurring",
    BLUR["rendered"]: "blurring, rendered",
}

Measured = Mapping[str, Mapping[str, Any]]  # the "metrics" of robustness.json


def rows(metrics: Measured, blur: str) -> list[dict[str, Any]]:
    """Table 1 as in `robustness.json`: nuisance, statistic, ours, paper, best. Absolute values in [0, 1].

    blur: name of the blur nuisance. ours: mean over samples of the absolute correlation. best: the names of the
    trained methods with the most desirable value, to three digits: low for cropping and rotating, high for blurring.
    """
    found = []
    for configuration, nuisance in (("cropping", CROP_CORNER), ("rotating", ROTATION), ("blurring", blur)):
        for statistic, paper in PAPER[configuration].items():
            ours = {
                name: _value(measured, nuisance, statistic, "per_sample_mean") for name, measured in metrics.items()
            }
            trained = {name: value for name, value in ours.items() if metrics[name]["trained"]}
            found.append(
                {
                    "nuisance": configuration,
                    "statistic": statistic,
                    "ours": ours,
                    "paper": paper,
                    "best": best(trained, highest=configuration == "blurring"),
                }
            )
    return found


def best(values: Mapping[str, float | None], *, highest: bool) -> list[str]:
    """The names of the most desirable value, as far as three digits show; none where there are no values."""
    shown = {name: round(value, _DIGITS) for name, value in values.items() if value is not None}
    if not shown:
        return []
    wanted = max(shown.values()) if highest else min(shown.values())
    return [name for name, value in shown.items() if value == wanted]


def _value(measured: Mapping[str, Any], nuisance: str, statistic: str, reading: str) -> float | None:
    found = measured["correlations"].get(nuisance)
    value = found[statistic.lower()][reading] if found else None
    return None if value is None else abs(value)


def label(name: str) -> str:
    """A method as the paper spells it."""
    base = name.split("-")[0]
    return _SPELT.get(name, name.upper() if base in METHODS else name)


def markdown(document: Mapping[str, Any]) -> str:
    """`table1.md`: the table beside the paper's, the paper's other readings, effect sizes and the choice."""
    metrics, blur = document["metrics"], BLUR[document["blur"]]
    names = sorted(metrics, key=lambda name: METHODS.index(name) if name in METHODS else len(METHODS))
    columns = [*METHODS, *(name for name in names if name not in METHODS)]
    parts = [
        "# Table 1: which methods react to cropping, rotating and blurring",
        f"{document['samples']} samples; {_blur_words(document)}. Absolute correlations of scores with the steps of "
        "each series, averaged over samples. Low is better for cropping and rotating, high for blurring; the best of "
        "each row is bold.",
        _table1(document["table1"]["rows"], columns, metrics),
        f"Paper: {CITATION}; other photographs, and its cropping and rotating rows are of one clear photograph.",
        *_untrained(metrics),
        "## The paper's readings on these photographs",
        f"One clear photograph (`{_code(document['single_sample'])}`), and the correlation of scores averaged over "
        "samples step by step.",
        _readings(metrics, names, blur),
        "## Effect sizes",
        "Largest change of the score under a nuisance, as a share of its change over the blur range: median over "
        "samples, with its 95 % bootstrap interval. 0 is ideal; at 1 a nuisance moves the score as far as the "
        "strongest blur. With six rotations pure noise has an absolute SRCC of .38 on average, so correlation alone "
        "can't choose.",
        _effects(metrics, names),
        "## Choice",
        _choice(document["choice"]),
        "\n".join(f"- {_plain(note)}" for note in document["notes"]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _blur_words(document: Mapping[str, Any]) -> str:
    if document["blur"] == "manifest":
        return "blur series as photographed"
    return "blur rendered by this program, not to be compared with photographed series"


def _untrained(metrics: Measured) -> list[str]:
    names = [label(name) for name, measured in metrics.items() if not measured["trained"]]
    return [f"UNTRAINED, seeded random networks whose numbers mean nothing: {', '.join(names)}."] if names else []


def _table1(table: Sequence[Mapping[str, Any]], columns: Sequence[str], metrics: Measured) -> str:
    lines = []
    for row in table:
        better = "↑" if row["nuisance"] == "blurring" else "↓"
        lines.append(
            [
                f"{row['nuisance']} {better}",
                row["statistic"],
                "here",
                *(_bold(row["ours"].get(name), name in row["best"]) for name in columns),
            ]
        )
        paper_best = best(row["paper"], highest=row["nuisance"] == "blurring")
        lines.append(["", "", "paper", *(_bold(row["paper"].get(name), name in paper_best) for name in columns)])
    heads = [
        label(name) + (" (UNTRAINED)" if name in metrics and not metrics[name]["trained"] else "") for name in columns
    ]
    return _grid(["configuration", "", "", *heads], lines)


def _readings(metrics: Measured, names: Sequence[str], blur: str) -> str:
    lines = []
    for nuisance in (CROP_CORNER, CROP_CENTRE, ROTATION, ROTATION_SECOND, blur):
        if not any(nuisance in metrics[name]["correlations"] for name in names):
            continue
        for statistic in ("PCC", "SRCC"):
            for reading, words in (("single", "one photograph"), ("of_average", "of the average")):
                values = [_value(metrics[name], nuisance, statistic, reading) for name in names]
                lines.append([_WORDS[nuisance], statistic, words, *(_bold(value, False) for value in values)])
    return _grid(["configuration", "", "", *map(label, names)], lines)


def _effects(metrics: Measured, names: Sequence[str]) -> str:
    lines = []
    for nuisance in (CROP_CORNER, CROP_CENTRE, ROTATION, ROTATION_SECOND):
        effects = {name: metrics[name]["effects"].get(nuisance) for name in names}
        if not any(effects.values()):
            continue
        trained = {name: found["ratio"] for name, found in effects.items() if found and metrics[name]["trained"]}
        bold = best(trained, highest=False)
        lines.append([_WORDS[nuisance], *(_effect(effects[name], name in bold) for name in names)])
    lines.append(
        ["order along blur (1 is right)", *(_signed(metrics[name]["blur_order"]["srcc"]) for name in names)],
    )
    for nuisance, words in ((ROTATION, "interpolation alone"), (ROTATION_SECOND, "second interpolation alone")):
        changes = [metrics[name]["interpolation"].get(nuisance) for name in names]
        if any(change is not None for change in changes):
            lines.append([words, *("–" if change is None else f"{100 * change:+.1f} %" for change in changes)])
    return _grid(["", *map(label, names)], lines)


def _effect(found: Mapping[str, Any] | None, bold: bool) -> str:
    if not found or found["ratio"] is None:
        return "–"
    low_high = "" if not found["interval"] else " [{:.2f}, {:.2f}]".format(*found["interval"])
    return _bold(found["ratio"], bold) + low_high


def _choice(choice: Mapping[str, Any]) -> str:
    chosen = ", ".join(label(name) for name in choice["methods"]) or "none"
    lines = [f"**{choice['preset']}: {chosen}.** Rule: {choice['rule']}."]
    if choice["note"]:
        lines.append(f"Note: {choice['note']}.")
    table = [
        [label(name), "in" if margin["in"] else "out", _plain(margin["why"])]
        for name, margin in choice["margins"].items()
    ]
    return "\n\n".join([*lines, _grid(["method", "", "measured"], table)])


def _grid(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    ruled = ["---"] * len(heads)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, ruled, *lines))


def _bold(value: float | None, bold: bool) -> str:
    if value is None:
        return "–"
    return f"**{value:.{_DIGITS}f}**" if bold else f"{value:.{_DIGITS}f}"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.{_DIGITS}f}"


def _code(text: str) -> str:
    """Ids come from manifests: what would break out of the line or the quotes is taken out."""
    return " ".join(text.split()).replace("`", "'")


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")

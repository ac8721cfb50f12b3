"""What the page says of a training study: verdicts, Tables 2 and 3, figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qualitygate.report import figures, records, study_figures, wording
from qualitygate.report.artefacts import Artefacts
from qualitygate.training import paper
from qualitygate.training.study_report import KINDS, WORDS, cells_of, shown_spread

_TONES = {"supported": "good", "contradicted": "bad", "inconclusive": "neutral", "not testable here": "neutral"}
_ANSWERS = {
    "supported": "Yes, on this data.",
    "contradicted": "No, not on this data.",
    "inconclusive": "This data can't tell.",
    "not testable here": "This study has no runs to tell by.",
}
_MEASURES = ("accuracy", "auc", "balanced_accuracy", "log_loss")
# The claims whose differences are drawn, each with what high-quality training is compared with: the paper's headline,
# and what may explain it away.
_DRAWN = {
    "table2-high": "all-quality",
    "control-balance": "same classes at random",
    "control-full": "all, unfiltered",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """A claim with its verdict by each measure. words: by measure, (verdict, tone of its badge)."""

    text: str
    source: str
    why: str
    note: str
    words: Mapping[str, tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the study's first question comes to."""

    word: str
    said: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TableLine:
    """One line of Table 2 or 3. values: mean ± deviation by measure, each with the paper's or nothing."""

    model: str
    trained_on: str
    control: bool
    runs: int
    photographs: str
    values: Sequence[tuple[str, str]]


def of(artefacts: Artefacts) -> dict[str, Any] | None:
    """The section's content; None without a study."""
    study = artefacts.study
    if study is None:
        return None
    curves = study_figures.learning_curves(study.runs)
    levels = study_figures.levels(study.runs)
    differences = study_figures.differences(study.verdicts.verdicts, _DRAWN)
    drawn = (
        ("differences", differences, "Paired differences between training sets with intervals, beside the paper's."),
        ("levels", levels, "Results over the percentage of lowest quality removed, beside random removal."),
        ("curves", curves, "Loss and accuracy on evaluation photographs by epoch, for each kind of training set."),
    )
    found = topics(study.verdicts.verdicts)
    return {
        "record": study.record,
        "claims": [topic for key, topic in found.items() if not key.startswith("control")],
        "controls": [topic for key, topic in found.items() if key.startswith("control")],
        "answer": answer(study.verdicts.verdicts),
        "measures": {measure: WORDS[measure] for measure in _MEASURES},
        "caveats": study.verdicts.caveats,
        "scratch": any(row["from_scratch"] for row in study.runs),
        "tables": [
            (title, lines)
            for title, name in (
                ("Table 2: high-quality against all-quality training", "table2"),
                ("Table 3: the lowest quality removed before training", "table3"),
            )
            if (lines := table(study.runs, name))
        ],
        **{
            name: {"json": figures.as_json(figure), "label": label} if figure else None for name, figure, label in drawn
        },
    }


def answer(verdicts: Sequence[records.Verdict]) -> Answer | None:
    """Whether high-quality training pays, by accuracy, in a sentence with each architecture's estimate."""
    for verdict in verdicts:
        if (verdict.topic, verdict.measure) == ("table2-high", "accuracy"):
            estimates = [
                f"{part.subject} {wording.points(part.difference.mean)} "
                f"{wording.interval(part.difference.interval, 'points')}".strip()
                for part in verdict.parts
                if part.difference.mean is not None
            ]
            said = (
                f"Accuracy against training on as many of all qualities: {'; '.join(estimates)}." if estimates else ""
            )
            return Answer(word=_ANSWERS.get(verdict.verdict, verdict.verdict), said=said)
    return None


def topics(verdicts: Sequence[records.Verdict]) -> dict[str, Topic]:
    """Verdicts gathered by claim, in the order of the record."""
    grouped: dict[str, list[records.Verdict]] = {}
    for verdict in verdicts:
        grouped.setdefault(verdict.topic, []).append(verdict)
    return {
        key: Topic(
            text=found[0].text,
            source=found[0].source,
            why=found[0].sentence,
            note=found[0].note,
            words={one.measure: (one.verdict, _TONES.get(one.verdict, "neutral")) for one in found},
        )
        for key, found in grouped.items()
    }


def table(rows: Sequence[Mapping[str, Any]], name: str) -> list[TableLine]:
    """Table 2 or 3 on high-quality test photographs, beside the paper's."""
    lines = []
    for (architecture, kind, removed), found in cells_of(rows, name).items():
        theirs = paper.reported(architecture, kind, removed)
        sizes = sorted({row["train_rows"] or 0 for row in found})
        lines.append(
            TableLine(
                model=paper.spelt(architecture),
                trained_on=KINDS[kind] + (f", {removed:g} % removed" if name == "table3" else ""),
                control=KINDS[kind].startswith("control"),
                runs=len(found),
                photographs=wording.count(sizes[0])
                + ("" if sizes[0] == sizes[-1] else f" to {wording.count(sizes[-1])}"),
                values=[
                    (shown_spread(found, "high", measure), _paper(getattr(theirs, measure, None)))
                    for measure in _MEASURES
                ],
            )
        )
    return lines


def _paper(found: paper.Reported | None) -> str:
    return "" if found is None else f"{found.mean:.1f} ± {found.sd:.1f}"

"""The paper's claims about training, and the questions of the controls, as contrasts that runs can answer.

A claim is a sentence that is true where a contrast is large enough (or small enough), with its place in the paper. It
is asked of accuracy, the paper's measure, and of the primary ones. One that speaks of several architectures or levels
has parts, and holds only where all of them do.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from qualitygate.training import paper
from qualitygate.training.measures import PRIMARY
from qualitygate.training.study_statistics import Contrast, against, average, rise

# better: the contrast is above 0, by as much as matters. at_most: it is no larger than `bound`. within: it lies in
# `bounds`.
Rule = Literal["better", "at_most", "within"]
MEASURES = ("accuracy", *PRIMARY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One contrast of one measure on one test set, and what it should be.

    subject: the architecture or level that tells it from its siblings. paper: (difference in points, unpaired p) by
    the paper's own tables, where they have both sides. bound, bounds: shares.
    """

    subject: str
    contrast: Contrast
    measure: str
    test: str = "high"
    rule: Rule = "better"
    bound: float = 0.0
    bounds: tuple[float, float] = (0.0, 0.0)
    paper: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A sentence to judge by one measure. parts: all must hold; they are corrected together (Holm)."""

    topic: str
    measure: str
    text: str
    source: str
    parts: tuple[Question, ...]
    note: str = ""

    @property
    def key(self) -> str:
        return f"{self.topic}-{self.measure}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What was run. varying: the architectures with levels. levels: percentages removed."""

    architectures: Sequence[str]
    varying: Sequence[str]
    levels: Sequence[float]
    kinds: Sequence[str]


def claims(study: Study) -> list[Claim]:
    """All claims and questions; those that the runs can't answer are there too, to be called not testable."""
    return [
        *_asked(study, "table2-high", _high_vs_all, HIGH_TEXT, "section 4.3, Table 2: 'in all cases'", note=HIGH_NOTE),
        _range(study),
        *_asked(study, "table3-rise", _rises, RISE_TEXT, "section 4.4, Table 3", note=RISE_NOTE),
        *_asked(study, "table3-best", _best, BEST_TEXT, "section 4.4, Table 3: 84.1 % is its highest accuracy"),
        _sacrifice(),
        *_asked(study, "control-balance", _two_kinds("high", "balanced"), BALANCE_TEXT),
        *_asked(study, "control-removal", _removal, REMOVAL_TEXT),
        *_asked(study, "control-full", _two_kinds("high", "full"), FULL_TEXT),
        *_asked(study, "control-everyday", _two_kinds("all", "high", "all"), EVERYDAY_TEXT),
        *_asked(study, "control-rejected", _two_kinds("all", "high", "rejected"), REJECTED_TEXT),
    ]


HIGH_TEXT = "Training on high-quality photographs beats training on as many of all qualities"
HIGH_NOTE = (
    "The paper's own AUC favours all-quality training in two of four: AlexNet 96.6 to 96.1, ResNet18 94.7 to 94.4. "
    "Sizes are equal, so this also compares the gate's choice with removing as many at random."
)
RISE_TEXT = "Results rise as up to 30 % of the lowest quality are removed"
RISE_NOTE = "The gain from 0 to 30 % of a line fitted to the levels in between."
BEST_TEXT = "Removing 30 % is best: better than every other level"
BALANCE_TEXT = "It is quality, not class balance: high-quality beats a random draw with its classes"
REMOVAL_TEXT = "It is quality, not chance: removing the lowest beats removing as many at random"
FULL_TEXT = "Filtering beats training on the full unfiltered set"
EVERYDAY_TEXT = "On photographs of all qualities, training on all qualities is better"
REJECTED_TEXT = "On photographs that the gate rejects, training on all qualities is better"

_Parts = Callable[[Study, str], list[Question]]


def _asked(
    study: Study, topic: str, parts: _Parts, text: str, source: str = "control", *, note: str = ""
) -> list[Claim]:
    """The same claim by each measure; the note stands once."""
    return [
        Claim(
            topic=topic,
            measure=measure,
            text=text,
            source=source,
            parts=tuple(parts(study, measure)),
            note=note if measure == MEASURES[0] else "",
        )
        for measure in MEASURES
    ]


def _two_kinds(first: str, second: str, test: str = "high") -> _Parts:
    def parts(study: Study, measure: str) -> list[Question]:
        if not {first, second} <= set(study.kinds):
            return []
        return [
            Question(
                subject=paper.spelt(name),
                contrast=against(name, (first, 0.0), (second, 0.0)),
                measure=measure,
                test=test,
            )
            for name in study.architectures
        ]

    return parts


def _high_vs_all(study: Study, measure: str) -> list[Question]:
    return [
        Question(
            subject=paper.spelt(name),
            contrast=against(name, ("high", 0.0), ("all", 0.0)),
            measure=measure,
            paper=_reported(measure, paper.TABLE2.get((name, "high")), paper.TABLE2.get((name, "all"))),
        )
        for name in study.architectures
    ]


def _reported(measure: str, first: paper.Cell | None, second: paper.Cell | None) -> tuple[float, float] | None:
    """What the paper's own numbers say of a difference; nothing of measures that it doesn't have."""
    if first is None or second is None or measure not in ("accuracy", "auc"):
        return None
    return paper.unpaired(getattr(first, measure), getattr(second, measure))


def _range(study: Study) -> Claim:
    contrast = average([against(name, ("high", 0.0), ("all", 0.0)) for name in study.architectures])
    part = Question(
        subject="mean of architectures", contrast=contrast, measure="accuracy", rule="within", bounds=(0.007, 0.042)
    )
    return Claim(
        topic="abstract-range",
        measure="accuracy",
        text="The improvement is 0.7 to 4.2 points of accuracy",
        source="abstract, from Table 2",
        parts=(part,) if study.architectures else (),
        note="Judged by the mean over architectures; the paper's is 1.8 points.",
    )


def _rises(study: Study, measure: str) -> list[Question]:
    rising = sorted(level for level in study.levels if level <= paper.BEST_LEVEL)
    if len(rising) < 2 or rising[-1] != paper.BEST_LEVEL:
        return []
    return [
        Question(subject=paper.spelt(name), contrast=rise(name, "varying", rising), measure=measure)
        for name in study.varying
    ]


def _best(study: Study, measure: str) -> list[Question]:
    best = paper.BEST_LEVEL
    if best not in study.levels:
        return []
    return [
        Question(
            subject=f"{paper.spelt(name)}, {best:g} against {level:g} %",
            contrast=against(name, ("varying", best), ("varying", level)),
            measure=measure,
            paper=_reported(measure, paper.reported(name, "varying", best), paper.reported(name, "varying", level)),
        )
        for name in study.varying
        for level in sorted(study.levels)
        if level != best
    ]


def _sacrifice() -> Claim:
    name, level = paper.VARYING_ARCHITECTURE, paper.BEST_LEVEL
    part = Question(
        subject=paper.spelt(name),
        contrast=against(name, ("high", 0.0), ("varying", level)),
        measure="accuracy",
        rule="at_most",
        bound=paper.SACRIFICE / 100,
        paper=_reported("accuracy", paper.TABLE2[name, "high"], paper.TABLE3[level]),
    )
    return Claim(
        topic="abstract-sacrifice",
        measure="accuracy",
        text="With the lowest 30 % removed, ResNet34 loses no more than 1.3 points against high-quality training",
        source="abstract: 85.4 % (Table 2) to 84.1 % (Table 3)",
        parts=(part,),
        note="The abstract says '70 % low-quality images'; what Table 3 keeps is the best 70 % of all qualities.",
    )


def _removal(study: Study, measure: str) -> list[Question]:
    if "random" not in study.kinds:
        return []
    return [
        Question(
            subject=f"{paper.spelt(name)}, {level:g} %",
            contrast=against(name, ("varying", level), ("random", level)),
            measure=measure,
        )
        for name in study.varying
        for level in sorted(study.levels)
        if level
    ]

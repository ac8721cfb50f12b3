"""Judging the paper's claims on this data: supported, contradicted, inconclusive, or not testable here.

A claim "A is better than B" is

supported       where both intervals of A - B (t over repetitions, bootstrap over test groups) lie above 0, Holm's p is
                below .05 and the mean is at least the smallest effect of interest;
contradicted    where both intervals lie below the smallest effect of interest: no difference worth having is left;
inconclusive    else: the data allow either;
not testable    where runs, repetitions or a measure are lacking, or where all differences are the same to the digit, as
                they may be with a handful of test photographs.

A claim "no more than x is lost" is judged the same way about x plus the smallest effect of interest. A claim of several
parts is supported where all are, contradicted where any is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pyarrow as pa

from qualitygate.metrics import weights_manifest
from qualitygate.training import paper
from qualitygate.training.claims import Claim, Question, Study, claims
from qualitygate.training.measures import SHARES
from qualitygate.training.results import FAILED, finished
from qualitygate.training.sampling import TESTS
from qualitygate.training.study_statistics import (
    LEVEL,
    Difference,
    Replicates,
    difference,
    holm,
    resample,
    smallest_rank_p,
    tested_runs,
)

Word = Literal["supported", "contradicted", "inconclusive", "not testable here"]
SUPPORTED: Word = "supported"
CONTRADICTED: Word = "contradicted"
INCONCLUSIVE: Word = "inconclusive"
NOT_TESTABLE: Word = "not testable here"

# One photograph of a smaller test set moves accuracy by more than 5 points.
_SMALL_TEST = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Judging:
    """How verdicts are reached.

    smallest_effect: what matters of accuracy, balanced accuracy and AUC, as a share (.01 is one point).
    smallest_log_loss: the same in nats. bootstrap: replicates of the test groups; 0 leaves it out.
    """

    smallest_effect: float = 0.01
    smallest_log_loss: float = 0.02
    bootstrap: int = 1000
    seed: int = 0

    def smallest(self, measure: str) -> float:
        return self.smallest_effect if measure in SHARES else self.smallest_log_loss


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One part of a claim: the architecture or level, its verdict, why in one sentence, and the numbers."""

    subject: str
    verdict: Word
    sentence: str
    difference: Difference
    smallest_effect: float
    threshold: float | None
    paper_difference: float | None = None
    paper_p: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The verdict on a claim, and on each of its parts."""

    topic: str
    measure: str
    text: str
    source: str
    verdict: Word
    sentence: str
    note: str
    parts: tuple[Judged, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """All verdicts of a study, and what to keep in mind when reading them."""

    verdicts: tuple[Verdict, ...]
    caveats: tuple[str, ...]
    judging: Judging = field(default_factory=Judging)


def judge(runs: pa.Table, predictions: pa.Table | None = None, judging: Judging = Judging()) -> Judgement:
    """The verdict on every claim of the paper and every question of the controls.

    runs: `results.RUNS`; failed ones are left out and counted. predictions: `results.PREDICTIONS` of all runs; without
    them there is no bootstrap over test photographs, and the caveats say so.
    Raises ConfigurationError where a run is there twice.
    """
    rows = finished(runs)
    architectures = sorted({row["architecture"] for row in rows}, key=architecture_order)
    varying = [row["architecture"] for row in rows if row["kind"] == "varying"]
    study = Study(
        architectures=architectures,
        varying=sorted(set(varying), key=architecture_order),
        levels=sorted({row["removed"] for row in rows if row["kind"] == "varying"}),
        kinds=sorted({row["kind"] for row in rows}),
    )
    replicates = _replicates(rows, predictions, judging)
    bare = {row["run_id"] for row in rows} - {run_id for run_id, _ in replicates["all"].values} if replicates else None
    verdicts = [_judge(claim, rows, replicates, judging) for claim in claims(study)]
    return Judgement(verdicts=tuple(verdicts), caveats=tuple(_caveats(runs, rows, bare)), judging=judging)


def architecture_order(name: str) -> tuple[int, str]:
    """Sorts architectures as the paper lists them, others behind by name."""
    known = paper.ARCHITECTURES
    return (known.index(name) if name in known else len(known), name)


def _replicates(
    rows: Sequence[Mapping[str, Any]], predictions: pa.Table | None, judging: Judging
) -> dict[str, Replicates] | None:
    if predictions is None or not judging.bootstrap or not rows:
        return None
    thresholds = {row["run_id"]: row["threshold"] for row in rows}
    return {
        test: resample(
            tested_runs(predictions, thresholds, rows[0]["classes"], test), count=judging.bootstrap, seed=judging.seed
        )
        for test in TESTS
    }


# ---- judging -----------------------------------------------------------------------------------------------


def _judge(
    claim: Claim,
    rows: Sequence[Mapping[str, Any]],
    replicates: Mapping[str, Replicates] | None,
    judging: Judging,
) -> Verdict:
    found = [
        difference(
            rows,
            part.contrast,
            part.measure,
            test=part.test,
            replicates=replicates.get(part.test) if replicates else None,
        )
        for part in claim.parts
    ]
    corrected = holm([one.p_value for one in found])
    parts = tuple(
        judge_part(part, _with_holm(one, p), judging)
        for part, one, p in zip(claim.parts, found, corrected, strict=True)
    )
    word, sentence = together(parts)
    return Verdict(
        topic=claim.topic,
        measure=claim.measure,
        text=claim.text,
        source=claim.source,
        verdict=word,
        sentence=sentence,
        note=claim.note,
        parts=parts,
    )


def _with_holm(found: Difference, p: float | None) -> Difference:
    return replace(found, p_holm=p)


def judge_part(question: Question, found: Difference, judging: Judging) -> Judged:
    """The verdict on one contrast, by the rules at the top of this module."""
    smallest = judging.smallest(question.measure)
    word: Word
    threshold: float | None = None
    if found.mean is None or found.interval is None:
        word, sentence = NOT_TESTABLE, f"{found.reason}"
    elif question.rule == "within":
        word, sentence = _within(question.bounds, found)
    elif question.rule == "at_most":
        threshold = question.bound + smallest
        word, sentence = _at_most(threshold, found)
    else:
        threshold = smallest
        word, sentence = _better(smallest, found)
    if found.missing:
        sentence += f"; {found.missing} of {found.missing + len(found.values)} repetitions lack a side"
    difference_, p = question.paper or (None, None)
    return Judged(
        subject=question.subject,
        verdict=word,
        sentence=sentence,
        difference=found,
        smallest_effect=smallest,
        threshold=threshold,
        paper_difference=difference_,
        paper_p=p,
    )


def _ends(found: Difference) -> tuple[float, float]:
    """The outermost ends of both intervals: what neither of them excludes."""
    assert found.interval is not None
    low, high = found.interval
    if found.bootstrap is not None:
        low, high = min(low, found.bootstrap[0]), max(high, found.bootstrap[1])
    return low, high


def _better(smallest: float, found: Difference) -> tuple[Word, str]:
    assert found.mean is not None
    low, high = _ends(found)
    sure = low > 0 and found.p_holm is not None and found.p_holm < 1 - LEVEL
    if sure and found.mean >= smallest:
        return SUPPORTED, "better, by at least as much as matters"
    if high < smallest:
        return CONTRADICTED, "worse" if high < 0 else "any advantage is smaller than what matters"
    if sure:
        return INCONCLUSIVE, "better, but perhaps by less than matters"
    if low > 0:
        return INCONCLUSIVE, "better by itself, but not after correction for several comparisons"
    return INCONCLUSIVE, "the intervals allow both an advantage and none"


def _at_most(threshold: float, found: Difference) -> tuple[Word, str]:
    low, high = _ends(found)
    if high <= threshold:
        return SUPPORTED, "a larger loss is excluded"
    if low > threshold:
        return CONTRADICTED, "the loss is larger"
    return INCONCLUSIVE, "the intervals allow a larger loss as well as a smaller one"


def _within(bounds: tuple[float, float], found: Difference) -> tuple[Word, str]:
    low, high = _ends(found)
    if low >= bounds[0] and high <= bounds[1]:
        return SUPPORTED, "the whole interval lies in the range"
    if high < bounds[0] or low > bounds[1]:
        return CONTRADICTED, "the whole interval lies outside the range"
    return INCONCLUSIVE, "the intervals reach beyond the range and into it"


def together(parts: Sequence[Judged]) -> tuple[Word, str]:
    """The verdict on a claim whose parts must all hold."""
    if not parts:
        return NOT_TESTABLE, "the runs that it compares are not part of this study"
    counts = {
        word: sum(part.verdict == word for part in parts)
        for word in (SUPPORTED, CONTRADICTED, INCONCLUSIVE, NOT_TESTABLE)
    }
    if len(parts) == 1:
        return parts[0].verdict, parts[0].sentence
    said = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    if counts[CONTRADICTED]:
        return CONTRADICTED, f"it is said of all {len(parts)}: {said}"
    if counts[NOT_TESTABLE] == len(parts):
        return NOT_TESTABLE, parts[0].sentence
    word = SUPPORTED if counts[SUPPORTED] == len(parts) else INCONCLUSIVE
    return word, f"of {len(parts)}: {said}"


# ---- what to keep in mind ----------------------------------------------------------------------------------


def _caveats(runs: pa.Table, rows: Sequence[Mapping[str, Any]], bare: set[str] | None) -> list[str]:
    if not rows:
        return ["No run has finished."]
    found = []
    lost = sum(status == FAILED for status in runs["status"].to_pylist())
    if lost:
        found.append(f"{lost:,} of {runs.num_rows:,} runs failed and are left out.")
    scratch = sum(row["from_scratch"] for row in rows)
    if scratch:
        found.append(
            f"{scratch:,} of {len(rows):,} runs start from random parameters; the paper's start from ImageNet's, "
            "and its claims are about such models."
        )
    own = sum(row["weights_sha256"] is not None and not _of_imagenet(row) for row in rows)
    if own:
        found.append(
            f"{own:,} of {len(rows):,} runs start from parameters other than ImageNet's as published; the paper's "
            "start from those."
        )
    epochs = sorted({row["epochs"] for row in rows if row["epochs"] is not None})
    if epochs and epochs[0] < paper.EPOCHS:
        found.append(f"Trained for {epochs[0]} epochs, the paper for {paper.EPOCHS}: models may not have settled.")
    strangers = sorted(set(paper.ARCHITECTURES) - {row["architecture"] for row in rows}, key=architecture_order)
    if strangers:
        names = ", ".join(paper.spelt(name) for name in strangers)
        found.append(f"Not run here: {names}. 'In all cases' is judged on the others.")
    sizes = sorted({row["train_rows"] for row in rows if row["kind"] not in ("full",) and row["train_rows"]})
    if sizes and sizes[-1] > sizes[0]:
        found.append(
            f"Training sets have {sizes[0]:,} to {sizes[-1]:,} photographs: within Table 2 and within Table 3 they are "
            "equal, between the two a difference is also one of size."
        )
    tested = sorted({row["test_rows"] for row in rows if row["test_rows"]})
    if tested and tested[0] < _SMALL_TEST:
        found.append(
            f"The smallest high-quality test set has {tested[0]} photographs: one of them is {100 / tested[0]:.1f} "
            "points."
        )
    repetitions = len({row["repetition"] for row in rows})
    found.append(
        f"{repetitions} repetition{'s' * (repetitions != 1)}: a t test finds a true difference of one standard "
        f"deviation in {_power(repetitions)} of studies; Wilcoxon's test could never fall below p = "
        f"{smallest_rank_p(repetitions):.3g} and is not used."
    )
    if any(row["resample"] == "seed" for row in rows):
        found.append(
            "Repetitions differ in the training seed alone (--resample seed): the t intervals show the noise of "
            "training, not that of which photographs were drawn."
        )
    if bare:
        found.append(f"{len(bare):,} runs have no predictions: what they are part of has no bootstrap interval.")
    if bare is None:
        found.append(
            "No bootstrap over test photographs: the intervals leave out that other photographs could be tested."
        )
    return found


def _of_imagenet(row: Mapping[str, Any]) -> bool:
    """Whether a run started from the published parameters of its architecture, by as much of their hash as is known."""
    entry = weights_manifest.manifest().get(row["architecture"])
    known = entry and (entry.sha256 or entry.sha256_prefix)
    return bool(known) and row["weights_sha256"].startswith(known)


def _power(count: int) -> str:
    if count < 2:
        return "none"
    from statsmodels.stats.power import TTestPower

    return f"{100 * float(TTestPower().power(effect_size=1.0, nobs=count, alpha=1 - LEVEL)):.0f} %"

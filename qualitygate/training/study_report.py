"""What a study says, as files: verdicts, Table 2 and Table 3 beside the paper's, in JSON, Markdown and CSV."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from qualitygate.tables import storage
from qualitygate.training import paper
from qualitygate.training.claims import MEASURES as JUDGED
from qualitygate.training.measures import MEASURES, SHARES
from qualitygate.training.results import FAILED, column, finished, spread
from qualitygate.training.sampling import TESTS
from qualitygate.training.study_statistics import LEVEL
from qualitygate.training.verdicts import Judgement, Verdict, architecture_order

FORMAT = "qualitygate-verdicts"
VERSION = 1
WORDS = {
    "accuracy": "accuracy",
    "auc": "AUC",
    "balanced_accuracy": "balanced accuracy",
    "log_loss": "log-loss",
    "brier": "Brier",
    "ece": "ECE",
}
KINDS = {
    "high": "High-quality",
    "all": "All-quality",
    "balanced": "control: same classes at random",
    "full": "control: all, unfiltered",
    "varying": "Varying quality",
    "random": "control: removed at random",
}
_TESTS = {"high": "high-quality", "all": "all-quality", "rejected": "rejected"}
_TABLES = {"table2": ("high", "all", "balanced", "full"), "table3": ("varying", "random")}
_UNITS = (
    "Mean ± standard deviation over repetitions. Accuracy, AUC and balanced accuracy in percent, log-loss in nats. "
    "Balanced accuracy is taken at a threshold chosen on the evaluation set, accuracy at the most probable class."
)


def write(folder: str, runs: pa.Table, judgement: Judgement) -> list[str]:
    """Write table2 and table3 as Markdown and CSV, `verdicts.md` and, last, `verdicts.json`; their URIs.

    folder: `DIR`, a path or a URI.
    """
    rows = finished(runs)
    lost = [row for row in runs.select(["status", "kind"]).to_pylist() if row["status"] == FAILED]
    files = {
        "table2.md": table2_markdown(rows, _lost(lost, "table2")).encode(),
        "table2.csv": table_csv(rows, "table2").encode(),
        "table3.md": table3_markdown(rows, _lost(lost, "table3")).encode(),
        "table3.csv": table_csv(rows, "table3").encode(),
        "verdicts.md": verdicts_markdown(judgement).encode(),
        "verdicts.json": verdicts_json(judgement),
    }
    for name, data in files.items():
        storage.write_bytes(storage.join(folder, name), data)
    return [storage.join(folder, name) for name in files]


def _lost(rows: Iterable[Mapping[str, Any]], table: str) -> int:
    return sum(row["kind"] in _TABLES[table] for row in rows)


# ---- Tables 2 and 3 ----------------------------------------------------------------------------------------

Cells = dict[tuple[str, str, float], list[Mapping[str, Any]]]


def cells_of(rows: Iterable[Mapping[str, Any]], table: str) -> Cells:
    """Run rows by architecture, kind and level, in the paper's order."""
    kinds = _TABLES[table]
    found: Cells = {}
    for row in rows:
        if row["kind"] in kinds:
            found.setdefault((row["architecture"], row["kind"], row["removed"]), []).append(row)
    ordered = sorted(found, key=lambda cell: (architecture_order(cell[0]), kinds.index(cell[1]), cell[2]))
    return {cell: found[cell] for cell in ordered}


def table2_markdown(rows: Sequence[Mapping[str, Any]], failed: int = 0) -> str:
    """`table2.md`: high- against all-quality training beside the paper's, then better measures and other test sets."""
    cells = cells_of(rows, "table2")
    return _page("Table 2: training on high- and on all-quality photographs", "table2", cells, failed)


def table3_markdown(rows: Sequence[Mapping[str, Any]], failed: int = 0) -> str:
    """`table3.md`: percentages of the lowest quality removed before training, beside the paper's."""
    cells = cells_of(rows, "table3")
    return _page("Table 3: training after the lowest quality was removed", "table3", cells, failed)


def _page(title: str, table: str, cells: Cells, failed: int) -> str:
    if not cells:
        return f"# {title}\n\nNo finished run of this study belongs here.\n"
    parts = [
        f"# {title}",
        _UNITS,
        "\n".join(f"- {note}" for note in _notes(cells, failed)),
        "## As in the paper: tested on high-quality photographs",
        _paper_table(cells, table),
        f"Paper: {paper.CITATION}, {title[:7]}; {paper.RUNS} runs, {paper.TRAIN_IMAGES:,} training images, "
        f"{paper.EPOCHS} epochs, other photographs. Bold: the highest of ours in each model, controls left out.",
        "## Primary outcomes, on high-quality photographs",
        _measure_table(cells, "high", ("balanced_accuracy", "auc", "log_loss", "brier", "ece")),
        *(
            part
            for test in ("all", "rejected")
            for part in (
                f"## On {_TESTS[test]} photographs",
                _measure_table(cells, test, ("accuracy", "balanced_accuracy", "auc", "log_loss")),
            )
        ),
        "–: undefined, such as the AUC of photographs of one class; the run's `notes` say why.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _notes(cells: Cells, failed: int) -> list[str]:
    rows = [row for found in cells.values() for row in found]
    notes = []
    scratch = sum(row["from_scratch"] for row in rows)
    if scratch:
        notes.append(
            f"FROM SCRATCH: {scratch:,} of {len(rows):,} runs start from random parameters, not from ImageNet's."
        )
    if failed:
        notes.append(f"{failed:,} runs failed and are left out.")
    epochs = sorted({row["epochs"] for row in rows if row["epochs"] is not None})
    if epochs:
        notes.append(
            f"Epochs: {_ranged(epochs)}. Test photographs: {_ranged([row['test_rows'] or 0 for row in rows])}."
        )
    return notes


def _ranged(values: Iterable[int]) -> str:
    found = sorted(set(values))
    return f"{found[0]:,}" if len(found) == 1 else f"{found[0]:,} to {found[-1]:,}"


def _paper_table(cells: Cells, table: str) -> str:
    heads = [
        "model",
        *_set_heads(table),
        "accuracy",
        "AUC",
        "accuracy, paper",
        "AUC, paper",
        "training photographs",
        "runs",
    ]
    best = _best(cells)
    lines = []
    for cell, rows in cells.items():
        theirs = paper.reported(*cell)
        lines.append(
            [
                *_set_cells(cell, table),
                *(shown_spread(rows, "high", measure, bold=(cell, measure) in best) for measure in ("accuracy", "auc")),
                *(_reported(getattr(theirs, measure) if theirs else None) for measure in ("accuracy", "auc")),
                _ranged([row["train_rows"] or 0 for row in rows]),
                str(len(rows)),
            ]
        )
    return grid(heads, lines)


def _measure_table(cells: Cells, test: str, measures: Sequence[str]) -> str:
    table = "table3" if next(iter(cells))[1] in _TABLES["table3"] else "table2"
    heads = ["model", *_set_heads(table), *(WORDS[measure] for measure in measures)]
    lines = [
        [*_set_cells(cell, table), *(shown_spread(rows, test, measure) for measure in measures)]
        for cell, rows in cells.items()
    ]
    return grid(heads, lines)


def _set_heads(table: str) -> list[str]:
    return ["training set"] if table == "table2" else ["removed, %", "training set"]


def _set_cells(cell: tuple[str, str, float], table: str) -> list[str]:
    architecture, kind, removed = cell
    return [paper.spelt(architecture), *([f"{removed:g}"] if table == "table3" else []), KINDS[kind]]


def _best(cells: Cells) -> set[tuple[tuple[str, str, float], str]]:
    """The highest mean of each architecture, to the digit that is shown; controls are no competitors."""
    found = set()
    for measure in ("accuracy", "auc"):
        means: dict[str, dict[tuple[str, str, float], float]] = {}
        for cell, rows in cells.items():
            mean, _ = spread([row[measure] for row in rows])
            if mean is not None and not KINDS[cell[1]].startswith("control"):
                means.setdefault(cell[0], {})[cell] = round(100 * mean, 1)
        for of_one in means.values():
            found |= {(cell, measure) for cell, mean in of_one.items() if mean == max(of_one.values())}
    return found


def shown_spread(rows: Sequence[Mapping[str, Any]], test: str, measure: str, *, bold: bool = False) -> str:
    """Mean and deviation over runs as people read them; – where no run has the measure."""
    mean, sd = spread([row[column(test, measure)] for row in rows])
    if mean is None:
        return "–"
    scale, digits = (100, 1) if measure in SHARES else (1, 3)
    text = f"{scale * mean:.{digits}f}" + ("" if sd is None else f" ± {scale * sd:.{digits}f}")
    return f"**{text}**" if bold else text


def _reported(found: paper.Reported | None) -> str:
    return "–" if found is None else f"{found.mean:.1f} ± {found.sd:.1f}"


def table_csv(rows: Sequence[Mapping[str, Any]], table: str) -> str:
    """`table2.csv` or `table3.csv`: a line for each cell, test set and measure; shares in [0, 1], log-loss in nats.

    runs: repetitions that have the measure. paper_mean, paper_sd: the paper's, as shares too.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        [
            "architecture",
            "kind",
            "removed",
            "test",
            "measure",
            "runs",
            "mean",
            "sd",
            "paper_mean",
            "paper_sd",
            "from_scratch",
        ]
    )
    for cell, found in cells_of(rows, table).items():
        for test in TESTS:
            for measure in MEASURES:
                values = [row[column(test, measure)] for row in found]
                theirs = paper.reported(*cell) if test == "high" and measure in ("accuracy", "auc") else None
                reported = getattr(theirs, measure) if theirs else None
                numbers = [*spread(values), reported and reported.mean / 100, reported and reported.sd / 100]
                writer.writerow(
                    [
                        cell[0],
                        cell[1],
                        f"{cell[2]:g}",
                        test,
                        measure,
                        sum(value is not None for value in values),
                        *("" if number is None else f"{number:.6g}" for number in numbers),
                        str(any(row["from_scratch"] for row in found)).lower(),
                    ]
                )
    return buffer.getvalue()


# ---- verdicts ----------------------------------------------------------------------------------------------


def verdicts_json(judgement: Judgement) -> bytes:
    """`verdicts.json`: shares in [-1, 1], log-loss in nats; positive differences favour the first side."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "judging": {**asdict(judgement.judging), "interval_level": LEVEL},
        "paper": paper.CITATION,
        "caveats": list(judgement.caveats),
        "verdicts": [asdict(verdict) for verdict in judgement.verdicts],
    }
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False).encode()


def verdicts_markdown(judgement: Judgement) -> str:
    """`verdicts.md`: each claim with its verdict by each measure, then the numbers of each part."""
    of_paper = [verdict for verdict in judgement.verdicts if not verdict.topic.startswith("control")]
    controls = [verdict for verdict in judgement.verdicts if verdict.topic.startswith("control")]
    judging = judgement.judging
    parts = [
        "# What this data says of the paper's claims",
        "Differences are paired by repetition; positive favours the side that the claim favours. Smallest effect of "
        f"interest, in points: {100 * judging.smallest_effect:g}; of log-loss, in nats: {judging.smallest_log_loss:g}. "
        f"Paper: {paper.CITATION}.",
        "\n".join(f"- {text}" for text in judgement.caveats),
        "## The paper's claims",
        _overview(of_paper),
        "\n".join(f"- {verdict.text}: {verdict.note}" for verdict in of_paper if verdict.note),
        "## The controls' questions",
        _overview(controls),
        "## Numbers",
        _numbers(judgement.verdicts),
        f"t: {100 * LEVEL:.0f} % interval over repetitions. bootstrap: over test photographs, by group. p: "
        "Holm-corrected within the claim and measure. detectable: the true difference that as many repetitions of this "
        "spread find with 80 % power. paper: its difference in points and the p of an unpaired t test on its printed "
        "means and deviations.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _overview(verdicts: Sequence[Verdict]) -> str:
    topics: dict[str, dict[str, Verdict]] = {}
    for verdict in verdicts:
        topics.setdefault(verdict.topic, {})[verdict.measure] = verdict
    lines = []
    for by_measure in topics.values():
        first = next(iter(by_measure.values()))
        words = [f"**{by_measure[measure].verdict}**" if measure in by_measure else "not claimed" for measure in JUDGED]
        lines.append([first.text, first.source, *words, f"accuracy: {first.sentence}"])
    return grid(["claim", "source", *(f"by {WORDS[measure]}" for measure in JUDGED), "why"], lines)


def _numbers(verdicts: Sequence[Verdict]) -> str:
    heads = ["claim", "by", "of", "verdict", "runs", "difference", "t", "bootstrap", "p", "detectable", "paper", "why"]
    lines = []
    for verdict in verdicts:
        for part in verdict.parts:
            found, units = part.difference, _Units(verdict.measure)
            theirs = "–"
            if part.paper_difference is not None and part.paper_p is not None:
                theirs = f"{part.paper_difference:+.1f}, p = {part.paper_p:.2f}"
            lines.append(
                [
                    verdict.topic,
                    WORDS[verdict.measure],
                    part.subject,
                    part.verdict,
                    str(len(found.values)),
                    units.signed(found.mean),
                    units.interval(found.interval),
                    units.interval(found.bootstrap),
                    "–" if found.p_holm is None else f"{found.p_holm:.3f}",
                    units.plain(found.detectable),
                    theirs,
                    part.sentence,
                ]
            )
    return grid(heads, lines) if lines else "None of the claims has runs to judge it by."


@dataclass(frozen=True, slots=True)
class _Units:
    """Differences of a measure as people read them: points, or nats."""

    measure: str

    def _text(self, value: float, sign: str) -> str:
        return f"{100 * value:{sign}.1f}" if self.measure in SHARES else f"{value:{sign}.3f}"

    def signed(self, value: float | None) -> str:
        return "–" if value is None else self._text(value, "+") + (" points" if self.measure in SHARES else " nats")

    def plain(self, value: float | None) -> str:
        return "–" if value is None else self._text(value, "")

    def interval(self, ends: tuple[float, float] | None) -> str:
        return "–" if ends is None else f"[{self._text(ends[0], '+')}, {self._text(ends[1], '+')}]"


def grid(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table; what would break out of a cell is taken out."""
    cells = [[" ".join(cell.split()).replace("|", "\\|").replace("<", "&lt;") for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in (list(heads), ["---"] * len(heads), *cells))

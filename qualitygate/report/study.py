"""What a person reads after 'qualitygate study', 'subsets' and 'plan study'."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import pyarrow as pa
from rich import box
from rich.table import Table

from qualitygate.report.terminal import rendered
from qualitygate.training import paper
from qualitygate.training.results import OK
from qualitygate.training.study_report import WORDS, cells_of, shown_spread
from qualitygate.training.verdicts import Judgement

_KINDS = {
    "high": "high-quality",
    "all": "all-quality",
    "balanced": "control: same classes",
    "full": "control: unfiltered",
    "varying": "removed",
    "random": "control: random",
}
_SHOWN_FAILURES = 5


class Finished(Protocol):
    """A finished study: where its files are, its runs, its verdicts and study.json's content."""

    @property
    def output(self) -> str: ...

    @property
    def runs(self) -> pa.Table: ...

    @property
    def judgement(self) -> Judgement: ...

    @property
    def record(self) -> dict[str, Any]: ...

    @property
    def messages(self) -> tuple[str, ...]: ...


class Drawn(Protocol):
    """Subsets on disk. subsets: training photographs of each, by name."""

    @property
    def index(self) -> str: ...

    @property
    def repetitions(self) -> int: ...

    @property
    def subsets(self) -> dict[str, int]: ...

    @property
    def photographs(self) -> int: ...

    @property
    def messages(self) -> tuple[str, ...]: ...


def of_run(result: Finished) -> str:
    """Both tables beside the paper's numbers, the verdicts, what failed and what to know."""
    record, rows = result.record, [row for row in result.runs.to_pylist() if row["status"] == OK]
    counts = record["runs"]
    head = f"{counts['finished']} of {counts['planned']} runs finished"
    head += f", {counts['failed']} failed" if counts["failed"] else ""
    head += f", {counts['reused']} of them by earlier commands" if counts["reused"] else ""
    head += f"; {record['photographs']:,} photographs, {record['seconds']['total']:,.0f} s"
    parts: list[Any] = [head]
    if any(row["from_scratch"] for row in rows):
        parts.append("FROM SCRATCH: these networks start from random parameters, the paper's from ImageNet's")
    parts += [_table(rows, "Table 2", "table2"), _table(rows, "Table 3", "table3")]
    parts += [_verdicts(result.judgement)]
    parts += [f"failed: {one['run']}: {one['error']}" for one in record["failed"][:_SHOWN_FAILURES]]
    if len(record["failed"]) > _SHOWN_FAILURES:
        parts.append(f"... and {len(record['failed']) - _SHOWN_FAILURES} more in runs.parquet")
    if record["failed"]:
        parts.append("the same command with --retry-failed tries these again")
    parts += [f"note: {message}" for message in (*result.messages, *result.judgement.caveats)]
    parts.append(f"tables:   {result.output}/table2.md, table3.md (and .csv); every run in runs.parquet")
    parts.append(f"verdicts: {result.output}/verdicts.md, with each statistic and why")
    return rendered(*parts)


def of_subsets(drawn: Drawn) -> str:
    """How many photographs each kind trains on, and what to know."""
    sizes: dict[str, set[int]] = {}
    for name, size in drawn.subsets.items():
        sizes.setdefault(name.rpartition("-")[0], set()).add(size)
    parts: list[Any] = [
        f"{drawn.repetitions} repetitions of {len(sizes)} subsets of {drawn.photographs:,} photographs; trained on:",
        "\n".join(f"  {name:<12} {_ranged(found)}" for name, found in sizes.items()),
        *(f"note: {message}" for message in drawn.messages),
        f"index: {drawn.index}",
    ]
    return rendered(*parts)


def of_plan(plan: Mapping[str, Any]) -> str:
    """Runs, passes over images, and how long they take here and there. plan: of `study_costs.estimate`."""
    lines = [
        f"{plan['runs']} runs: {', '.join(f'{count} of {name}' for name, count in plan['by_architecture'].items())}",
        f"training: {plan['training_images']:,} images through {plan['steps']:,} steps; evaluation and tests: "
        f"{plan['looked_at']:,} images",
        f"one H100 at {plan['gpu_basis']}: {plan['gpu_minutes']:.1f} GPU-minutes"
        + (f", without {', '.join(plan['without_rate'])}, of which no rate is known" if plan["without_rate"] else ""),
    ]
    if plan["cpu_hours"] is not None:
        lines.append(
            f"this machine's {plan['cores']} cores: some {_hours(plan['cpu_hours'])}, from a step of each network just "
            "timed on one thread"
        )
        lines += [f"  {name}: {rate:.1f} images/s a core" for name, rate in plan["cpu_rates"].items()]
    lines.append("decoding, start-up and checkpoints come on top")
    lines += [f"note: {message}" for message in plan["messages"]]
    return rendered(*lines)


def _hours(hours: float) -> str:
    return (
        f"{60 * hours:.0f} minutes" if hours < 2 else f"{hours:.0f} hours" if hours < 72 else f"{hours / 24:.0f} days"
    )


def _ranged(values: Iterable[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _table(rows: Sequence[Mapping[str, Any]], title: str, name: str) -> Any:
    cells = cells_of(rows, name)
    if not cells:
        return f"{title}: no finished run belongs there"
    table = Table(
        title=f"{title}: percent, mean ± deviation over runs, on high-quality test photographs (in brackets: the "
        "paper's)",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for head in ("network", "trained on", "runs", "accuracy", "AUC", "balanced", "log-loss"):
        table.add_column(head, justify="left" if head in ("network", "trained on") else "right")
    for (architecture, kind, removed), found in cells.items():
        theirs = paper.reported(architecture, kind, removed)
        trained_on = _KINDS[kind] + (f" {removed:g} %" if kind in ("varying", "random") else "")
        table.add_row(
            paper.spelt(architecture),
            trained_on,
            str(len(found)),
            shown_spread(found, "high", "accuracy") + (f" ({theirs.accuracy.mean:g})" if theirs else ""),
            shown_spread(found, "high", "auc") + (f" ({theirs.auc.mean:g})" if theirs else ""),
            shown_spread(found, "high", "balanced_accuracy"),
            shown_spread(found, "high", "log_loss"),
        )
    return table


def _verdicts(judgement: Judgement) -> Table:
    table = Table(title="verdicts on the paper's claims", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    by_topic: dict[str, dict[str, Any]] = {}
    for verdict in judgement.verdicts:
        by_topic.setdefault(verdict.topic, {})[verdict.measure] = verdict
    measures = list(dict.fromkeys(verdict.measure for verdict in judgement.verdicts))
    table.add_column("claim", ratio=3)
    for measure in measures:
        table.add_column(f"by {WORDS[measure]}", ratio=1)
    for found in by_topic.values():
        text = next(iter(found.values())).text
        table.add_row(text, *(found[measure].verdict if measure in found else "–" for measure in measures))
    return table

"""How much of the bare functions' speed the Ray job keeps, on the same cores.

    python benchmarks/pipeline.py                       600 public photographs at 1024 x 1024, JPEG
    python benchmarks/pipeline.py --input PHOTOS/       your own

Both sides fetch, decode and score the same files by the same code: the reference in a pool of as many processes as
there are cores, that does nothing else; the other as `qualitygate score` does it, with its journal, its watchdog, its
rows and its commits. They take turns. `at work` counts between a fifth and nine tenths of the rows, so neither side's
start and end; `in all` counts everything. Prints a Markdown table.
"""

import argparse
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
from cpu_scores import SUFFIXES, processor, public_photographs, versions

from qualitygate.metrics.rows import Plan, Request, RowScorer

_scorer: RowScorer | None = None


@dataclass(slots=True)
class Arrivals:
    """When rows arrived. A job's progress, too."""

    started: float = field(default_factory=time.perf_counter)
    rows: list[tuple[float, int]] = field(default_factory=list)
    errors: int = 0

    def start(self, *, total: int, done: int) -> None:
        """Nothing to prepare."""

    def advance(self, *, rows: int, errors: int) -> None:
        """So many more."""
        self.rows.append((time.perf_counter(), rows))
        self.errors += errors

    def note(self, message: str) -> None:
        """Not shown."""

    def stop(self) -> None:
        """Nothing to close."""

    def at_work(self) -> float:
        """Rows a second between a fifth and nine tenths of all rows: when every process is at work on both sides."""
        total = sum(rows for _, rows in self.rows)
        seen, marks = 0, []
        for moment, rows in self.rows:
            seen += rows
            if not marks and seen >= 0.2 * total:
                marks.append((moment, seen))
            elif marks and seen <= 0.9 * total:
                marks[1:] = [(moment, seen)]
        if len(marks) < 2:
            raise SystemExit("too few photographs to tell a rate: give more with --count")
        (first, before), (last, after) = marks
        return (after - before) / (last - first)

    def in_all(self, ended: float) -> float:
        """Rows a second with start and end."""
        return sum(rows for _, rows in self.rows) / (ended - self.started)


def _begin(plan: Plan) -> None:
    global _scorer
    cv2.setNumThreads(1)
    _scorer = RowScorer(plan, run_id="bare")


def _row(path: str) -> bool:
    assert _scorer is not None
    request = Request(image_id=path, uri=path)
    return _scorer.row(request, _scorer.fetch(request))["status"] != "ok"


def bare(plan: Plan, paths: Sequence[str], workers: int) -> tuple[float, float]:
    """(rows a second at work, in all) of a pool of processes."""
    # Read when libraries are loaded, so before the processes start: one thread each, as the job's workers have.
    os.environ |= dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"
    )
    arrivals = Arrivals()
    with multiprocessing.get_context("spawn").Pool(workers, _begin, (plan,)) as pool:
        for failed in pool.imap_unordered(_row, paths, chunksize=4):
            arrivals.advance(rows=1, errors=int(failed))
    return _rates(arrivals)


def job(plan: Plan, folder: str, paths: Sequence[str], workers: int, **settings: Any) -> tuple[float, float]:
    """The same of the job; its start includes Ray's."""
    from qualitygate.cluster import scoring
    from qualitygate.config import ScoreConfig

    arrivals = Arrivals()
    with tempfile.TemporaryDirectory(prefix="pipeline-") as output:
        config = ScoreConfig(
            input=folder,
            output=output,
            metrics=plan.metrics,
            device="cpu",
            limit=len(paths),
            workers=workers,
            **settings,
        )
        scoring.run(config, arrivals)
    return _rates(arrivals)


def _rates(arrivals: Arrivals) -> tuple[float, float]:
    if arrivals.errors:
        raise SystemExit(f"{arrivals.errors} photographs have no score: choose others")
    return arrivals.at_work(), arrivals.in_all(time.perf_counter())


def table(found: dict[str, list[tuple[float, float]]], reference: str) -> str:
    """Markdown: medians over the rounds, and the ratio to the reference's."""
    medians = {
        name: [statistics.median(column) for column in zip(*rates, strict=True)] for name, rates in found.items()
    }
    lines = ["| | rows/s at work | ratio | rows/s in all | ratio |", "|---|---|---|---|---|"]
    for name, (work, whole) in medians.items():
        ratios = [f"{mine / other:.2f}" for mine, other in zip((work, whole), medians[reference], strict=True)]
        lines.append(f"| {name} | {work:.1f} | {ratios[0]} | {whole:.1f} | {ratios[1]} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, help="a folder of photographs; public ones by default")
    parser.add_argument("--count", type=int, default=600, help="photographs (600)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side (3)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 2, help="processes of either side")
    parser.add_argument("--metrics", default="lapv,lapm,wavs,brisque,niqe")
    parser.add_argument("--task-size", type=int, help="of the job; it chooses by default")
    arguments = parser.parse_args()
    plan = Plan(metrics=tuple(arguments.metrics.split(",")))
    with tempfile.TemporaryDirectory(prefix="photographs-") as scratch:
        folder = arguments.input or _copies(Path(scratch), arguments.count)
        paths = sorted(str(path) for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)[: arguments.count]
        settings = {"task_size": arguments.task_size} if arguments.task_size else {}
        sides: dict[str, Callable[[], tuple[float, float]]] = {
            "bare process pool": lambda: bare(plan, paths, arguments.workers),
            "Ray job": lambda: job(plan, str(folder), paths, arguments.workers, **settings),
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for _ in range(arguments.rounds):
            for name, side in sides.items():
                found[name].append(side())
    print(f"{arguments.workers} processes on {os.cpu_count()} cores of {processor()} ({platform.system()}).")
    print(f"{versions()}.\n")
    print(f"{len(paths)} photographs, {arguments.metrics}; medians of {arguments.rounds} rounds in turns.\n")
    print(table(found, "bare process pool"))
    print("\nEach round: " + "; ".join(f"{name} " + ", ".join(f"{a:.1f}" for a, _ in r) for name, r in found.items()))


def _copies(folder: Path, count: int) -> Path:
    """`count` files of the public photographs: each another file, as a folder of photographs is."""
    files = public_photographs()
    for number in range(count):
        (folder / f"p{number:05}.jpg").write_bytes(files[number % len(files)])
    return folder


if __name__ == "__main__":
    main()

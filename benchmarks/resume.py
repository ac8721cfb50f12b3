"""What it takes to go on with a large run: a manifest of millions of rows, nine tenths of which are scored.

    python benchmarks/resume.py                       10 million rows, 9 million of them done
    python benchmarks/resume.py --rows 1000000        fewer

Makes the manifest and the table (of the real schema, with five metrics), then measures, each in a process of its own:
the join alone, as DuckDB does it over the same two tables with nothing but ids (the reference, in the same run); the
planning as `score` does it (manifest read and checked, pending rows written); and `score` itself for a minute, on
photographs that don't exist: seconds until the first rows are committed, and the driver's peak memory meanwhile.
Prints a Markdown table. Memory is the process's own, at its peak, in GiB.
"""

import argparse
import multiprocessing
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

METRICS = ("lapv", "lapm", "wavs", "brisque", "niqe")
_CHUNK = 250_000


def make(folder: Path, rows: int, done: int) -> None:
    """A manifest of so many rows, and a score table that holds the first `done` of them."""
    from deltalake import write_deltalake

    from qualitygate.cluster import planning
    from qualitygate.config import ScoreConfig
    from qualitygate.tables import manifest, scores

    output = folder / "out"
    plan, _ = planning.plan_scores(ScoreConfig(input="unused", output=str(output), metrics=METRICS))
    fingerprints = plan.fingerprints()
    writer = scores.Writer(str(output), METRICS, "benchmark")
    scored_at = datetime.now(UTC)
    random = np.random.default_rng(0)
    with pq.ParquetWriter(folder / "manifest.parquet", manifest.SCHEMA) as listed:
        for start in range(0, rows, _CHUNK):
            size = min(_CHUNK, rows - start)
            ids = [f"camera{number % 40:02}/{number:09}.jpg" for number in range(start, start + size)]
            uris = [f"/nowhere/{name}" for name in ids]
            etags = [f"{number:032x}" for number in range(start, start + size)]
            listed.write_table(
                pa.table(
                    [ids, uris, pa.nulls(size, pa.list_(pa.int64())), etags, np.full(size, 250_000)],
                    schema=manifest.SCHEMA,
                )
            )
            known = min(size, max(0, done - start))
            if not known:
                continue
            columns: dict[str, Any] = {field.name: pa.nulls(known, field.type) for field in writer.schema}
            columns |= {
                "image_id": ids[:known],
                "uri": uris[:known],
                "etag": etags[:known],
                "sha256": [f"{number:064x}" for number in range(start, start + known)],
                "bytes": np.full(known, 250_000),
                "status": ["ok"] * known,
                "attempts": np.ones(known, dtype=np.int64),
                "run_id": ["benchmark"] * known,
                "scored_at": [scored_at] * known,
            }
            for name in METRICS:
                columns[name] = random.random(known)
                columns[scores.state_column(name)] = [scores.OK] * known
                columns[scores.fingerprint_column(name)] = [fingerprints[name]["whole"]] * known
            arrays = [pa.array(columns[field.name]).cast(field.type) for field in writer.schema]
            write_deltalake(writer.table, pa.table(arrays, schema=writer.schema), mode="append")


def bare(folder: Path) -> int:
    """The reference: how many ids of the manifest the table lacks, in DuckDB."""
    from qualitygate.tables import scores
    from qualitygate.tables.sql import connect, literal

    table = scores.existing_table(str(folder / "out"))
    files = ", ".join(literal(uri.removeprefix("file://")) for uri in table.file_uris())
    with connect() as database:
        return int(
            database.sql(
                f"SELECT count(*) FROM read_parquet({literal(folder / 'manifest.parquet')}) ANTI JOIN "
                f"read_parquet([{files}]) USING (image_id)"
            ).fetchall()[0][0]
        )


def planned(folder: Path) -> int:
    """As `score` plans: read and check the manifest, claim the table, write what is pending."""
    from qualitygate.cluster import planning
    from qualitygate.config import ScoreConfig
    from qualitygate.tables import manifest as manifests
    from qualitygate.tables import scores

    output = str(folder / "out")
    with tempfile.TemporaryDirectory() as scratch:
        plan, _ = planning.plan_scores(ScoreConfig(input="unused", output=output, metrics=METRICS))
        manifest = manifests.load(str(folder / "manifest.parquet"), Path(scratch) / "manifest.parquet")
        scores.check_compatible(output, plan.fingerprints(), backfill=False)
        writer = scores.Writer(output, plan.metrics, "benchmark")
        return scores.write_pending(
            manifest, writer.table, plan.fingerprints(), retry=(), folder=Path(scratch) / "pending"
        )


def memory_gib(process: int | str = "self", kind: str = "VmHWM") -> float:
    """Resident memory of a process, in GiB: its peak, or with VmRSS now."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(kind):
            return int(line.split()[1]) / (1 << 20)
    return float("nan")


def _apart(job: Callable[[Path], int], folder: Path, answers: Any) -> None:
    started = time.perf_counter()
    found = job(folder)
    answers.put((found, time.perf_counter() - started, memory_gib()))


def measured(job: Callable[[Path], int], folder: Path) -> tuple[int, float, float]:
    """(what it found, seconds, GiB), in a new process."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=_apart, args=(job, folder, answers))
    process.start()
    found: tuple[int, float, float] = answers.get()
    process.join()
    return found


def running(folder: Path, seconds: float) -> tuple[float | None, float, float, int]:
    """(seconds until the first commit, the driver's peak until then and after it, rows committed) of `score`."""
    from qualitygate.tables import scores

    table = scores.existing_table(str(folder / "out"))
    before, log = table.version(), folder / "out" / "scores" / "_delta_log"
    started = time.monotonic()
    arguments = ["--input", str(folder / "manifest.parquet"), "--output", str(folder / "out")]
    arguments += ["--metrics", ",".join(METRICS), "--max-error-rate", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "qualitygate.cli", "score", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    first, before_it, after_it = None, 0.0, 0.0
    # The claim of the table is a version of its own.
    while process.poll() is None and (first is None or time.monotonic() - started < first + seconds):
        if first is None and len(list(log.glob("*.json"))) > before + 2:
            first = time.monotonic() - started
        if first is None:
            before_it = memory_gib(process.pid)
        else:
            after_it = max(after_it, memory_gib(process.pid, "VmRSS"))
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    process.wait()
    return first, before_it, after_it, scores.existing_table(str(folder / "out")).count() - table.count()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the run itself is watched")
    parser.add_argument("--folder", type=Path, help="where to make the tables; default: a temporary folder")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="qualitygate-resume-"))
    rows, done = arguments.rows, arguments.rows * 9 // 10
    print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}", flush=True)
    try:
        started = time.perf_counter()
        make(folder, rows, done)
        print(f"made {rows:,} rows, {done:,} of them scored, in {time.perf_counter() - started:.0f} s\n", flush=True)
        reference = measured(bare, folder)
        ours = measured(planned, folder)
        first, before_it, after_it, committed = running(folder, arguments.seconds)
        print("| | found | seconds | ratio | peak GiB |\n|---|---|---|---|---|")
        print(f"| bare join of ids | {reference[0]:,} | {reference[1]:.1f} | 1 | {reference[2]:.2f} |")
        print(f"| planned as by score | {ours[0]:,} | {ours[1]:.1f} | {ours[1] / reference[1]:.1f} | {ours[2]:.2f} |")
        shown = "never" if first is None else f"{first:.1f}"
        print(f"| score: until the first commit | | {shown} | | {before_it:.2f} |")
        print(f"| score: the minute after it | {committed:,} committed | | | {after_it:.2f} |")
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()

"""What a night over few new photographs costs beside a full one: photographs, seconds, requests, files.

    python benchmarks/nightly.py                 3,000 small photographs and 1 % new ones, in folders of this machine
    python benchmarks/nightly.py --s3            the same in a SeaweedFS that it starts, with the requests counted

Both nights are whole ones, by the command line and on a Ray of their own: canary, listing, scoring, drift, a new gate,
upkeep, report. Prints Markdown tables. The photographs are made here, 96 x 96; labels know the blurred.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from qualitygate.tables import storage

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

METRICS = ("lapv", "lapm", "wavs")
STEPS = ("canary", "manifest", "score", "drift", "calibrate", "decide", "upkeep", "report")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One night. files: those that it added, by kind. requests: to the store by method; None where not counted."""

    name: str
    photographs: int
    new: int
    canary: int
    busy: float
    steps: dict[str, float]
    files: Counter[str]
    requests: Counter[str] | None


def kind(name: str) -> str:
    """Which part of the output a file belongs to."""
    top = name.split("/", 1)[0]
    if name.startswith("scores/_delta_log/"):
        return "the table's log"
    return {"scores": "the table's rows", "nights": "the night's folder", "gates": "gates"}.get(top, "everything else")


def names(output: str) -> set[str]:
    """Files of the output folder, in whatever place."""
    return {item.name for item in storage.everything(output)} if storage.exists(output) else set()


def night(
    name: str, settings: dict[str, Any], photographs: int, requests: Callable[[], Counter[str]] | None
) -> Measured:
    """Do one night and measure it. Ends the benchmark where it fails."""
    output = settings["output"]
    before = names(output)
    if requests is not None:
        requests()
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(yaml.safe_dump(settings))
        file.flush()
        command = [sys.executable, "-m", "qualitygate.cli", "nightly", "--config", file.name, "--night", name]
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "RAY_ADDRESS": ""}, check=False
        )
    if done.returncode not in (0, 4):
        sys.exit(done.stdout + done.stderr)
    asked = requests() if requests is not None else None
    record = json.loads(storage.read_bytes(storage.join(output, "nights", name, "night.json")) or b"")
    stats = json.loads(storage.read_bytes(storage.join(output, "_stats.json")) or b"")
    return Measured(
        name=f"{name} ({record['state']})",
        photographs=photographs,
        new=stats["scored"]["rows"],
        canary=record["steps"]["canary"]["photographs"],
        busy=stats["busy_seconds"],
        steps={step: record["steps"][step]["seconds"] for step in STEPS if step in record["steps"]},
        files=Counter(kind(one) for one in names(output) - before),
        requests=asked,
    )


def table(full: Measured, small: Measured) -> str:
    """Both nights side by side, as Markdown."""

    def row(what: str, left: float, right: float, digits: int = 0) -> str:
        share = f"{right / left:.1%}" if left >= 0.1 else ""
        return f"| {what} | {left:,.{digits}f} | {right:,.{digits}f} | {share} |"

    lines = [f"| | {full.name} | {small.name} | share |", "|---|---:|---:|---:|"]
    lines.append(row("photographs there are", full.photographs, small.photographs))
    lines.append(row("photographs scored", full.new, small.new))
    lines.append(row("scored again as canary", full.canary, small.canary))
    passes = [(one.new + one.canary) * len(METRICS) for one in (full, small)]
    lines.append(row(f"passes of {len(METRICS)} metrics over an image", *passes))
    lines.append(row("workers' seconds at work, without the canary", full.busy, small.busy, 2))
    for step in STEPS:
        if step in full.steps and step in small.steps:
            lines.append(row(f"seconds of the step {step}", full.steps[step], small.steps[step], 1))
    if full.requests is not None and small.requests is not None:
        for method in sorted({*full.requests, *small.requests}):
            lines.append(row(f"requests: {method}", full.requests[method], small.requests[method]))
    for part in sorted({*full.files, *small.files}):
        lines.append(row(f"files added: {part}", full.files[part], small.files[part]))
    lines.append(row("files added in all", full.files.total(), small.files.total()))
    return "\n".join(lines)


def measure(root: str, options: argparse.Namespace, requests: Callable[[], Counter[str]] | None) -> None:
    """Fill a place, do a full night and one with few new photographs, print what they took."""
    from simulated_nights import Feed

    feed = Feed(seed=1)

    def arrive(name: str, count: int) -> None:
        made = feed.add(name, count, labelled=options.labelled)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda one: storage.write_bytes(storage.join(root, "feed", one[0]), one[1]), made.items()))
        storage.write_bytes(storage.join(root, "labels.parquet"), feed.predictions())

    settings: dict[str, Any] = {
        "input": storage.join(root, "feed"),
        "output": storage.join(root, "quality"),
        "predictions": storage.join(root, "labels.parquet"),
        "score": {"metrics": ",".join(METRICS), "workers": 1},
        "calibrate": {"methods": ",".join(METRICS), "bootstrap": 50, "permutations": 99, "folds": 2, "repeats": 1},
        "min_labelled": 100,
        "min_audited": 10,
        "thumbnails": False,
    }
    new = max(1, round(options.count * options.new))
    arrive("n1", options.count)
    full = night("1", settings, options.count, requests)
    arrive("n2", new)
    print(table(full, night("2", settings, options.count + new, requests)), flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=3000, help="photographs of the full night")
    parser.add_argument("--new", type=float, default=0.01, help="share that is new in the second night")
    parser.add_argument("--labelled", type=float, default=0.3, help="share that is labelled")
    parser.add_argument("--s3", action="store_true", help="in a SeaweedFS, behind a proxy that counts")
    options = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, {'S3 (SeaweedFS)' if options.s3 else 'a local disk'}\n")
    with tempfile.TemporaryDirectory() as folder:
        if not options.s3:
            measure(folder, options, None)
            return
        import seaweedfs
        from faulty_proxy import FaultyProxy

        server = seaweedfs.Server(Path(folder))
        server.start()
        os.environ.update(server.environment)
        seaweedfs.make_bucket("nights")
        proxy = FaultyProxy(server.port)
        os.environ["AWS_ENDPOINT_URL"] = proxy.endpoint

        def requests() -> Counter[str]:
            counted = Counter(method for method, *_ in proxy.requests())
            # A rule that matches nothing begins the count anew.
            proxy.fail("", times=0)
            return counted

        try:
            measure("s3://nights", options, requests)
        finally:
            proxy.close()
            server.kill()


if __name__ == "__main__":
    main()

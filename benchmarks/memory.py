"""How much memory scoring takes on photographs of 1, 12 and 50 megapixels, mixed.

    python benchmarks/memory.py                            on the CPU: seconds a photograph for the formulas, minutes
                                                           for the networks on large photographs
    python benchmarks/memory.py --device cuda              on a GPU
    python benchmarks/memory.py --metrics lapv,niqe        some metrics
    python benchmarks/memory.py --megapixels 1,1,12        other photographs

Prints a Markdown table. Each row is a process of its own, so that none inherits another's memory:

- of the GPU's memory what torch held at most, which leaves out CUDA's own and its libraries' (nvJPEG's, cuDNN's);
- what the driver says is taken at the end, all of that included: torch gives nothing back unless memory runs out. Other
  processes on the same GPU count, too, so there should be none;
- the peak of its resident memory, above what it held when the metrics were loaded, and the whole;
- photographs without a score of one of the metrics: a row with such says nothing of what the others would have taken.

Photographs are handed over as a worker does it: 64 megapixels at most together. Networks have seeded random
parameters.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

FORMULAS = ("lapv", "lapm", "wavs", "brisque", "niqe")
ROWS = (FORMULAS, ("musiq",), ("hyperiqa",), ("maniqa",), (*FORMULAS, "musiq", "maniqa", "hyperiqa"))
PIXELS_AT_ONCE = 64_000_000  # as rows.py has it
ASPECT = 4 / 3


def made_up(megapixels: float, seed: int) -> np.ndarray:
    """Noise of about so many pixels, 4:3: (H, W, 3) uint8."""
    height = round((megapixels * 1e6 / ASPECT) ** 0.5)
    return np.random.default_rng(seed).integers(0, 256, (height, round(height * ASPECT), 3), dtype=np.uint8)


def peak_gib() -> float:
    """Of this process' resident memory so far; Linux counts in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def taken_gib() -> float:
    """Of the GPU's memory, by all processes and for whatever, as its driver says."""
    import torch

    free, total = torch.cuda.mem_get_info()
    return (total - free) / 2**30


def measure(names: list[str], megapixels: list[float], device: Any, fast: bool) -> dict[str, Any]:
    """Score all photographs in groups, as a worker does; in this process."""
    import torch

    from qualitygate.errors import Failure
    from qualitygate.images.photograph import Photograph
    from qualitygate.metrics import Execution, Parameters, select

    execution = Execution(fast=tuple(names) if fast else ())
    metrics = select(names, parameters=Parameters(untrained=True), execution=execution)
    scorers = {metric.name: metric.load(device) for metric in metrics}
    before = peak_gib()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    begin, failed = time.perf_counter(), set[int]()
    reasons: dict[str, str] = {}
    group: list[Photograph] = []
    first = 0  # of the group, among all

    def finish() -> None:
        nonlocal first
        for name, scorer in scorers.items():
            for number, score in enumerate(scorer(group)):
                if isinstance(score, Failure):
                    failed.add(first + number)
                    reasons.setdefault(name, f"{score.code}: {score.message}")
        first += len(group)
        group.clear()

    for seed, size in enumerate(megapixels):
        photograph = Photograph(made_up(size, seed))
        if group and sum(p.width * p.height for p in group) + photograph.width * photograph.height > PIXELS_AT_ONCE:
            finish()
        group.append(photograph)
    finish()
    return {
        "loaded": before,
        "peak": peak_gib(),
        "gpu": torch.cuda.max_memory_reserved() / 2**30 if device == "cuda" else None,
        "taken": taken_gib() if device == "cuda" else None,
        "seconds": time.perf_counter() - begin,
        "failed": len(failed),
        "reasons": reasons,
    }


def measured_apart(names: tuple[str, ...], arguments: argparse.Namespace) -> dict[str, Any]:
    """`measure` in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--one", ",".join(names), "--device", arguments.device]
    command += ["--megapixels", arguments.megapixels, *(["--fast"] if arguments.fast else [])]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        return {"error": (finished.stderr.strip().splitlines() or [f"ended with {finished.returncode}"])[-1]}
    result: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--metrics", help="by name, with commas: one row of them together; default: five rows")
    parser.add_argument("--megapixels", default="1,1,1,1,1,1,1,1,12,12,50", help="of the photographs, with commas")
    parser.add_argument("--fast", action="store_true", help="networks in half precision, on a GPU")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    megapixels = [float(part) for part in arguments.megapixels.split(",")]
    if arguments.one:
        names = arguments.one.split(",")
        print(json.dumps(measure(names, megapixels, arguments.device, arguments.fast)))
        return

    import torch

    where = torch.cuda.get_device_name() if arguments.device == "cuda" else f"CPU ({platform.machine()})"
    print(f"{where}; torch {torch.__version__}; {len(megapixels)} photographs of {arguments.megapixels} megapixels.\n")
    heads = ["GPU: held by torch at the peak, GiB", "GPU: taken at the end by its driver, GiB"]
    heads += ["process above its start, GiB", "process at its peak, GiB", "seconds", "failed"]
    print(f"| metrics | {' | '.join(heads)} |\n|{'---|' * (len(heads) + 1)}", flush=True)
    reasons: dict[str, str] = {}
    for names in (tuple(arguments.metrics.split(",")),) if arguments.metrics else ROWS:
        found = measured_apart(names, arguments)
        if "error" in found:
            print(f"| {', '.join(names)} | - | - | - | - | - | all: {found['error']} |", flush=True)
            continue
        gpu = ["-" if found[which] is None else f"{found[which]:.1f}" for which in ("gpu", "taken")]
        above = f"{found['peak'] - found['loaded']:.2f} | {found['peak']:.2f}"
        failed = f"**{found['failed']} of {len(megapixels)}**" if found["failed"] else "0"
        print(f"| {', '.join(names)} | {' | '.join(gpu)} | {above} | {found['seconds']:.0f} | {failed} |", flush=True)
        reasons |= found["reasons"]
    if reasons:
        print(f"\nThe first failure of each: {'; '.join(f'{name}: {why}' for name, why in reasons.items())}.")


if __name__ == "__main__":
    main()

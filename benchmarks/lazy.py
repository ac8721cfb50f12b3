"""What a lazy gate spares: the gate's three metrics (LAPM, WAVS, MUSIQ) in full and only as far as the vote needs them.

    python benchmarks/lazy.py                       40 photographs of 512 x 512, untrained MUSIQ, on this CPU
    python benchmarks/lazy.py --device cuda --side 1024 --count 400

Both sides score the same photographs in turns. The gate's lines are laid so that LAPM and WAVS disagree on the share of
photographs that is asked for (20 %): there MUSIQ decides, elsewhere nothing waits for it. MUSIQ is untrained, which
changes its scores and not its cost. The decisions of both sides are compared; a difference is an error.

Needs the package with its dependencies, pyarrow among them, because rows are made as in a job, and scikit-image for the
photographs.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
from cpu_scores import processor, public_photographs, versions

from qualitygate.calibration.lazy import Cut, Vote
from qualitygate.images.decode import decode
from qualitygate.images.photograph import Photograph
from qualitygate.metrics import Parameters
from qualitygate.metrics.metric import Device
from qualitygate.metrics.rows import Plan, Row, RowScorer

METRICS = ("lapm", "wavs", "musiq")


def photographs(count: int, side: int) -> list[np.ndarray]:
    """(side, side, 3) uint8 of the public photographs, each sharpened or blurred by its own measure."""
    pixels = [decode(data).photograph.rgb for data in public_photographs()]
    found = []
    for number in range(count):
        image = cv2.resize(pixels[number % len(pixels)], (side, side), interpolation=cv2.INTER_AREA)
        found.append(cv2.GaussianBlur(image, (0, 0), 0.3 + 2.5 * number / count))
    return found


def lines(rows: Sequence[Row], share: float) -> Vote:
    """A gate whose first two voters disagree on this share of the photographs; MUSIQ's line is its median."""
    count = len(rows)
    ranks = {name: np.argsort(np.argsort([row[name] for row in rows])) for name in METRICS}
    split = min(
        ((low, high) for low in range(count) for high in range(count)),
        key=lambda pair: (
            abs(np.mean((ranks["lapm"] < pair[0]) != (ranks["wavs"] < pair[1])) - share),
            abs(pair[0] + pair[1] - count),
        ),
    )
    places = {"lapm": split[0], "wavs": split[1], "musiq": count // 2}
    cuts = {
        name: Cut(cutoff=float(np.sort([row[name] for row in rows])[place]), direction="higher")
        for name, place in places.items()
    }
    return Vote(gate_id="benchmark", votes_needed=2, cuts=cuts, sample_share=0.0)


def scored(scorer: RowScorer, images: Sequence[np.ndarray]) -> tuple[float, list[Row]]:
    """(photographs a second, rows)."""
    started = time.perf_counter()
    prepared = (scorer.prepare_photograph(f"p{number}", Photograph(rgb)) for number, rgb in enumerate(images))
    rows = list(scorer.finished(prepared))
    return len(images) / (time.perf_counter() - started), rows


def rejected(vote: Vote, row: Row) -> bool:
    """The gate's decision: as many low votes as reject, or not."""
    low = sum(cut.low(row[name]) for name, cut in vote.cuts.items() if row[name] is not None)
    return low >= vote.votes_needed


def hardware(device: Device) -> str:
    """The name of what computes; beside a GPU, of the processor that feeds it."""
    if device == "cpu":
        return processor()
    import torch

    facts = torch.cuda.get_device_properties(torch.cuda.current_device())
    gpu = f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    return f"{gpu}; {processor()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=40, help="photographs (40)")
    parser.add_argument("--side", type=int, default=512, help="pixels a side (512)")
    parser.add_argument("--open", type=float, default=0.2, help="share on which the first two disagree (.2)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    device: Device = arguments.device
    images = photographs(arguments.count, arguments.side)
    plan = Plan(metrics=METRICS, device=device, parameters=Parameters(untrained=True), at_once=32)
    full = RowScorer(plan, run_id="full")
    _, rows = scored(full, images)  # also warms up
    vote = lines(rows, arguments.open)
    lazy = RowScorer(replace(plan, lazy=vote), run_id="lazy")
    rates: dict[str, list[float]] = {"in full": [], "lazily": []}
    for _ in range(arguments.rounds):
        for name, scorer in (("in full", full), ("lazily", lazy)):
            rate, found = scored(scorer, images)
            rates[name].append(rate)
            if [rejected(vote, row) for row in found] != [rejected(vote, row) for row in rows]:
                raise SystemExit(f"{name}: another decision than the full vote's")
    asked = sum(row["musiq"] is not None for row in found)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(f"{hardware(device)}. {versions()}.\n")
    print(f"{arguments.count} photographs of {arguments.side} x {arguments.side}; MUSIQ asked for {asked} of them.\n")
    print("| the gate's three | photographs/s | ratio |\n|---|---|---|")
    for name, rate in medians.items():
        print(f"| {name} | {rate:.2f} | {rate / medians['in full']:.2f} |")
    print("\nThe same decisions on both sides.")


if __name__ == "__main__":
    main()

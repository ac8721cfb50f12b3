"""How fast the five classical metrics are on one core, beside the implementations that people use today.

    python benchmarks/cpu_scores.py                     public photographs at 1024 x 1024, JPEG
    python benchmarks/cpu_scores.py --input PHOTOS/     your own

Prints a Markdown table. Both sides are measured in the same run, on the same core, in turns: pyiqa's BRISQUE and
NIQE (if it is installed; it gets our parameters), WAVS with PyWavelets, LAPV and LAPM with OpenCV, decoding with
OpenCV. The figures are medians over photographs and repetitions, after one round that isn't counted.
"""

import argparse
import importlib.metadata
import os
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pywt

from qualitygate.errors import Failure, ImageError
from qualitygate.images.decode import decode
from qualitygate.images.photograph import Photograph
from qualitygate.metrics import reference, select

SKIMAGE = ("astronaut", "coffee", "chelsea", "rocket", "camera", "grass")
SIDE = 1024
STEPS = ("decode", "lapv + lapm", "wavs", "brisque", "niqe")
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"}


def public_photographs() -> list[bytes]:
    """JPEG files of scikit-image's photographs, enlarged or reduced to 1024 x 1024."""
    import skimage.data

    files = []
    for name in SKIMAGE:
        pixels = getattr(skimage.data, name)()
        pixels = np.stack([pixels] * 3, -1) if pixels.ndim == 2 else pixels[..., :3]
        resized = cv2.resize(np.ascontiguousarray(pixels[..., ::-1]), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        files.append(cv2.imencode(".jpg", resized, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes())
    return files


def their_luma(rgb: np.ndarray) -> np.ndarray:
    """Unrounded luma, (H, W) float64."""
    return cv2.transform(rgb.astype(np.float64), np.array([[0.299, 0.587, 0.114]]))


def their_laplacians(luma: np.ndarray) -> tuple[float, float]:
    """LAPV and LAPM by OpenCV in float64."""
    kernel = np.array([[1, 4, 1], [4, -20, 4], [1, 4, 1]]) / 6
    laplacian = cv2.filter2D(luma, cv2.CV_64F, kernel, borderType=cv2.BORDER_REPLICATE)
    second = np.array([[-1.0, 2.0, -1.0]])
    across = cv2.filter2D(luma, cv2.CV_64F, second, borderType=cv2.BORDER_REPLICATE)
    down = cv2.filter2D(luma, cv2.CV_64F, second.T, borderType=cv2.BORDER_REPLICATE)
    return float(laplacian.var(ddof=1)), float((np.abs(across) + np.abs(down)).mean())


def their_wavelets(luma: np.ndarray) -> float:
    """WAVS by PyWavelets: one decomposition, three reconstructions."""
    height, width = luma.shape
    _, (h, v, d) = pywt.dwt2(luma, "db6", "symmetric")
    bands = [(h, None, None), (None, v, None), (None, None, d)]
    alone = [pywt.idwt2((None, band), "db6", "symmetric")[:height, :width] for band in bands]
    return float((np.abs(alone[0]) + np.abs(alone[1]) + np.abs(alone[2])).mean())


class Clock:
    """Seconds by side ("ours", "theirs") and step."""

    def __init__(self) -> None:
        self.seconds: dict[tuple[str, str], list[float]] = defaultdict(list)

    def time(self, side: str, step: str, call: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = call()
        self.seconds[side, step].append(time.perf_counter() - start)
        return result

    def milliseconds(self, side: str, step: str) -> float | None:
        found = self.seconds.get((side, step))
        return 1000 * statistics.median(found) if found else None


def ours_in_turn(data: bytes, scorers: dict[str, Any], clock: Clock) -> dict[str, Any]:
    """Decode and the five scores, as one photograph in a scoring job: luma and sums are computed once."""
    photograph = clock.time("ours", "decode", lambda: decode(data).photograph)
    scores: dict[str, Any] = {}
    for name, group in (("lapv + lapm", ("lapv", "lapm")), ("wavs", ("wavs",))):
        found = clock.time("ours", name, lambda group=group: [scorers[each]([photograph])[0] for each in group])
        scores |= dict(zip(group, found, strict=True))
    for name in ("brisque", "niqe"):
        fresh = Photograph(photograph.rgb)  # each with its own luma: comparable to the other side's
        scores[name] = clock.time("ours", name, lambda name=name, fresh=fresh: scorers[name]([fresh])[0])
    return scores


def ours_together(data: bytes, scorers: dict[str, Any], clock: Clock) -> None:
    """The same from bytes to five scores, timed as a whole."""

    def run() -> None:
        photograph = decode(data).photograph
        for scorer in scorers.values():
            scorer([photograph])

    clock.time("ours", "together", run)


def theirs_in_turn(data: bytes, stock: dict[str, Any], clock: Clock) -> dict[str, Any]:
    """The same by the other implementations; luma is shared by the focus measures and not counted."""
    buffer = np.frombuffer(data, np.uint8)
    bgr = clock.time("theirs", "decode", lambda: cv2.imdecode(buffer, cv2.IMREAD_COLOR))
    rgb = np.ascontiguousarray(bgr[..., ::-1])
    luma = their_luma(rgb)
    scores = dict(
        zip(
            ("lapv", "lapm"),
            clock.time("theirs", "lapv + lapm", lambda: their_laplacians(luma)),
            strict=True,
        )
    )
    scores["wavs"] = clock.time("theirs", "wavs", lambda: their_wavelets(luma))
    for name, scorer in stock.items():
        scores[name] = clock.time("theirs", name, lambda scorer=scorer: scorer([Photograph(rgb)])[0])
    return scores


def versions() -> str:
    names = ["numpy", "numba", "opencv-python-headless", "PyWavelets", "torch", "pyiqa"]
    found = []
    for name in names:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} absent")
    return ", ".join([f"Python {platform.python_version()}", *found])


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def report(clock: Clock, differences: dict[str, float], with_stock: bool) -> str:
    rows = ["| step | others, ms | qualitygate, ms | ratio | largest difference |", "|---|---|---|---|---|"]
    total = 0.0
    for step in STEPS:
        ours, theirs = clock.milliseconds("ours", step), clock.milliseconds("theirs", step)
        assert ours is not None
        total += theirs or 0
        gaps = [f"{differences[name]:.1e}" for name in step.split(" + ") if name in differences]
        shown = f"{theirs:.2f} | {ours:.2f} | {theirs / ours:.1f}" if theirs else f"- | {ours:.2f} | -"
        rows.append(f"| {step} | {shown} | {', '.join(gaps) or '-'} |")
    together = clock.milliseconds("ours", "together")
    assert together is not None
    if with_stock:
        rows.append(f"| **the five, with decoding** | {total:.1f} | {together:.1f} | **{total / together:.1f}** | |")
    else:
        rows.append(f"| **the five, with decoding** | - | {together:.1f} | - | |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, help="a folder of photographs; public ones by default")
    parser.add_argument("--limit", type=int, default=20, help="photographs of that folder (20)")
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()

    # One core: also for libraries that have started their threads by now.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    cv2.setNumThreads(1)
    if arguments.input is None:
        files, what = public_photographs(), f"{len(SKIMAGE)} public photographs at {SIDE} x {SIDE}, JPEG"
    else:
        paths = sorted(path for path in arguments.input.rglob("*") if path.suffix.lower() in SUFFIXES)
        files = [path.read_bytes() for path in paths[: arguments.limit]]
        what = f"{len(files)} photographs of {arguments.input}"
    if not files:
        raise SystemExit(f"no photographs in {arguments.input}")

    start = time.perf_counter()
    scorers = {metric.name: metric.load("cpu") for metric in select(["lapv", "lapm", "wavs", "brisque", "niqe"])}
    loading = time.perf_counter() - start
    reason = reference.unavailable()
    stock = {}
    if reason is None:
        import torch

        torch.set_num_threads(1)
        stock = {metric.name: metric.load("cpu") for metric in select(["brisque", "niqe"], backend="pyiqa")}

    clock, differences = Clock(), dict.fromkeys(("lapv", "lapm", "wavs", *stock), 0.0)
    for repetition in range(arguments.repetitions + 1):
        if repetition == 1:
            clock = Clock()  # the first round warmed everything up
        for data in files:
            try:
                ours = ours_in_turn(data, scorers, clock)
            except ImageError as error:
                raise SystemExit(f"a photograph can't be decoded: {error}") from error
            theirs = theirs_in_turn(data, stock, clock)
            ours_together(data, scorers, clock)
            for name in differences:
                if not isinstance(ours[name], Failure) and not isinstance(theirs[name], Failure):
                    differences[name] = max(differences[name], abs(ours[name] - theirs[name]))

    print(f"One core of {processor()} ({platform.system()} {platform.machine()}). {versions()}.\n")
    print(f"{what}; medians of {arguments.repetitions} repetitions in turns. Loading ours took {loading:.2f} s.\n")
    print(report(clock, differences, bool(stock)))
    print(
        "\nOthers: cv2.imdecode; LAPV and LAPM with cv2.filter2D in float64; WAVS with pywt.dwt2 and three "
        "idwt2 (luma given); BRISQUE and NIQE of pyiqa. Their sum leaves out their luma."
    )
    if reason:
        print(f"\nWithout BRISQUE and NIQE of others: {reason}")


if __name__ == "__main__":
    main()

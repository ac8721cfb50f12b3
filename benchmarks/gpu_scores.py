"""How fast the eight metrics are on a GPU, beside pyiqa and the card's own matrix rate.

    python benchmarks/gpu_scores.py                   all tables, within 8 minutes
    python benchmarks/gpu_scores.py --input PHOTOS/   agreement on your own photographs instead of made-up ones
    python benchmarks/gpu_scores.py --quick           tiny, on a CPU: does the script itself run?

Prints Markdown tables, each as soon as it is measured; what the time doesn't suffice for is a dash. Needs torch, timm,
OpenCV, numpy, scipy and PyYAML; PyWavelets for WAVS; pyiqa for the other side. Neither Ray nor Delta Lake is imported.

Networks get seeded random parameters: the same work, meaningless scores. Photographs are decoded pixels in the CPU's
memory; their upload counts, decoding doesn't. Rates are photographs a second, the best of the repetitions.
"""

import argparse
import functools
import importlib.metadata
import importlib.util
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from qualitygate.errors import Failure
from qualitygate.images.photograph import Photograph
from qualitygate.metrics import (
    PAPER,
    Execution,
    Parameters,
    comparison,
    focus_tensors,
    networks,
    reference,
    scene_tensors,
    select,
)
from qualitygate.metrics.metric import Device, Score, Scorer

UNTRAINED = Parameters(untrained=True)
NETWORKS = ("musiq", "maniqa", "hyperiqa")
GATE = ("lapm", "wavs", "musiq")
TENSORS = {"lapv": focus_tensors, "lapm": focus_tensors, "wavs": focus_tensors}
TENSORS |= {"brisque": scene_tensors, "niqe": scene_tensors}
AT_ONCE = 32  # photographs that a worker hands to a metric together
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"}
Size = tuple[int, int]  # height, width


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way in which ours is run."""

    title: str
    fast: bool
    compiled: bool

    @property
    def execution(self) -> Execution:
        return Execution(fast=NETWORKS if self.fast else (), compiled=self.compiled)


EXACT = Way(title="float32", fast=False, compiled=False)
FAST = Way(title="fast", fast=True, compiled=False)
FAST_COMPILED = Way(title="fast, compiled", fast=True, compiled=True)


class Clock:
    """What is left of the time that the benchmark may take."""

    def __init__(self, minutes: float) -> None:
        self._end = time.perf_counter() + 60 * minutes

    def left(self) -> float:
        """Seconds."""
        return self._end - time.perf_counter()


# ---- photographs -----------------------------------------------------------------------------------------


def made_up(size: Size, seed: int) -> np.ndarray:
    """A picture with structure at every scale, more or less blurred and noisy: (H, W, 3) uint8."""
    random = np.random.default_rng(seed)
    total = np.zeros((*size, 3), np.float32)
    for octave in range(1, 9):
        cells = random.standard_normal((2**octave, 2**octave, 3)).astype(np.float32)
        total += cv2.resize(cells, size[::-1], interpolation=cv2.INTER_CUBIC) / octave
    total = cv2.GaussianBlur(total, (0, 0), 0.3 + 0.4 * (seed % 7))
    total = 128 + 50 * total / total.std() + (1 + seed % 5) * random.standard_normal(total.shape, np.float32)
    return np.clip(total, 0, 255).astype(np.uint8)


def pictures(sizes: Sequence[Size]) -> list[np.ndarray]:
    """One picture for each size; beyond 16 of one size they repeat, mirrored."""
    made: dict[tuple[Size, int], np.ndarray] = {}
    found = []
    for index, size in enumerate(sizes):
        key = (size, index % 16)
        if key not in made:
            made[key] = made_up(size, index % 16)
        found.append(made[key] if index < 16 else np.ascontiguousarray(made[key][:, ::-1]))
    return found


def read(folder: Path, limit: int) -> list[np.ndarray]:
    """Photographs of a folder, decoded by OpenCV."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)[:limit]
    decoded = [cv2.imread(str(path), cv2.IMREAD_COLOR) for path in paths]
    return [np.ascontiguousarray(one[..., ::-1]) for one in decoded if one is not None]


# ---- measuring -------------------------------------------------------------------------------------------


def synchronise(device: Device) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


@dataclass(frozen=True, slots=True)
class Rate:
    """The best rate, in photographs a second, and how long the first run took, which isn't counted."""

    best: float | None = None
    first_s: float = 0.0


def measure(run: Callable[[], Any], photographs: int, device: Device, clock: Clock, seconds: float) -> Rate:
    """Runs for some seconds; nothing when there is no time left."""
    if clock.left() <= 0:
        return Rate()

    def timed() -> float:
        synchronise(device)
        begin = time.perf_counter()
        run()
        synchronise(device)
        return time.perf_counter() - begin

    first = timed()
    least, start = timed(), time.perf_counter()
    while time.perf_counter() - start < seconds and clock.left() > 0:
        least = min(least, timed())
    return Rate(photographs / least, first)


def ours(scorers: Sequence[Scorer], rgbs: Sequence[np.ndarray]) -> list[list[Score]]:
    """Scores by scorer and photograph, as a worker makes them: a group of photographs, metric after metric."""
    scores: list[list[Score]] = [[] for _ in scorers]
    for begin in range(0, len(rgbs), AT_ONCE):
        group = [Photograph(rgb) for rgb in rgbs[begin : begin + AT_ONCE]]
        for found, scorer in zip(scores, scorers, strict=True):
            found += scorer(group)
    return scores


def matrix_rates(device: Device, side: int) -> dict[str, float]:
    """TFLOP/s of dense square products, by type."""
    kinds = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
    rates = {}
    for name, kind in kinds.items():
        a, b = (torch.randn(side, side, device=device).to(kind) for _ in range(2))

        def multiply(a: torch.Tensor = a, b: torch.Tensor = b) -> None:
            for _ in range(10):
                torch.mm(a, b)

        multiply()
        best = 0.0
        for _ in range(5):
            synchronise(device)
            begin = time.perf_counter()
            multiply()
            synchronise(device)
            best = max(best, 20 * side**3 / (time.perf_counter() - begin) / 1e12)
        rates[name] = best
    return rates


def work(scorer: Scorer, size: Size) -> float | None:
    """TFLOP of one photograph: products counted while it is scored, two for each multiplication."""
    from torch.utils.flop_counter import FlopCounterMode

    try:
        with FlopCounterMode(display=False) as counter:
            scorer([Photograph(made_up(size, 0))])
    except Exception as error:
        print(f"(work can't be counted: {error})", file=sys.stderr)
        return None
    return counter.get_total_flops() / 1e12


class Stock:
    """pyiqa's implementations with our parameters, one photograph at a time or several of one size."""

    def __init__(self, device: Device) -> None:
        import tempfile

        import pyiqa

        self._device = device
        self._networks: dict[str, Any] = {}
        with tempfile.TemporaryDirectory() as folder:
            for name, write in (("brisque", reference._write_brisque), ("niqe", reference._write_niqe)):
                path = write(Path(folder))
                metric = pyiqa.create_metric(name, device=device, pretrained_model_path=str(path))
                self._networks[name] = metric.net
        for name in NETWORKS:
            network = networks.NETWORKS[name]
            stock = reference._build(network)
            stock.load_state_dict(networks.state_dict(network, UNTRAINED), strict=True)
            self._networks[name] = stock.to(device).eval()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._networks)

    def forget(self) -> None:
        """Give its memory back."""
        self._networks.clear()

    def run(self, name: str, rgbs: Sequence[np.ndarray], batch: int) -> None:
        """Networks in several at once compute in half precision by autocast, as their users would."""
        network = self._networks[name]
        halved = batch > 1 and name in NETWORKS and self._device == "cuda"
        with torch.inference_mode(), torch.autocast(self._device, torch.float16, enabled=halved):
            for begin in range(0, len(rgbs), batch):
                pixels = torch.from_numpy(np.stack(rgbs[begin : begin + batch])).to(self._device)
                network(pixels.permute(0, 3, 1, 2).float() / 255).reshape(-1).cpu()


# ---- tables ----------------------------------------------------------------------------------------------


def shown(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def say(text: str = "") -> None:
    print(text, flush=True)


def table(heads: Sequence[str]) -> None:
    say("\n| " + " | ".join(heads) + " |")
    say("|" + "---|" * len(heads))


def together(rates: Sequence[float | None]) -> float | None:
    """The rate of one after another."""
    return None if None in rates or not rates else 1 / sum(1 / rate for rate in rates if rate)


def load(names: Sequence[str], way: Way, device: Device) -> dict[str, Scorer]:
    """Scorers by metric. On a CPU the formulas on tensors, too: those that a GPU runs."""
    metrics = select(names, parameters=UNTRAINED, execution=way.execution)
    return {
        metric.name: TENSORS[metric.name].load(metric.name, device)
        if device == "cpu" and metric.name in TENSORS
        else metric.load(device)
        for metric in metrics
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    device: Device
    names: tuple[str, ...]
    side: int
    count: int
    few: int
    seconds: float
    sizes: dict[str, list[Size]]
    agreeing: list[np.ndarray]
    with_reference: bool


def measure_references(settings: Settings, clock: Clock) -> dict[str, tuple[float | None, float | None]]:
    """By metric: pyiqa's rates one at a time and batched."""
    reason = reference.unavailable()
    if reason is not None:
        say(f"\nWithout the other side: {reason}")
        return {}
    try:
        stock = Stock(settings.device)
    except Exception as error:
        say(f"\nWithout the other side: pyiqa can't be used here: {type(error).__name__}: {error}")
        return {}
    rgbs = pictures([(settings.side, settings.side)] * settings.few)
    found = {}
    for name in [name for name in settings.names if name in stock.names]:
        rates = []
        for batch in (1, min(16 if name in NETWORKS else 8, settings.few)):
            try:
                run = functools.partial(stock.run, name, rgbs, batch)
                rates.append(measure(run, len(rgbs), settings.device, clock, settings.seconds).best)
            except Exception as error:
                print(f"(pyiqa's {name} in {batch}: {type(error).__name__}: {error})", file=sys.stderr)
                rates.append(None)
        found[name] = (rates[0], rates[1])
    stock.forget()
    if settings.device == "cuda":
        torch.cuda.empty_cache()
    return found


def rates_table(
    settings: Settings, ways: Sequence[Way], clock: Clock, half_rate: float
) -> dict[str, dict[str, Scorer]]:
    """Metric by metric at one size; returns the scorers, loaded, by way."""
    references = measure_references(settings, clock) if settings.with_reference else {}
    rgbs = pictures([(settings.side, settings.side)] * settings.count)
    loaded: dict[str, dict[str, Scorer]] = {}
    measured: dict[str, dict[str, float | None]] = {}
    flops: dict[str, float | None] = {}
    compiling: dict[str, float] = {}
    for way in ways:
        loaded[way.title] = load(settings.names, way, settings.device)
        for name, scorer in loaded[way.title].items():
            few = rgbs[: settings.few] if way is EXACT and name == "maniqa" else rgbs
            run = functools.partial(ours, [scorer], few)
            rate = measure(run, len(few), settings.device, clock, settings.seconds)
            measured.setdefault(name, {})[way.title] = rate.best
            if way.compiled:
                compiling[name] = rate.first_s
            print(f"({way.title}: {name} {shown(rate.best)} img/s)", file=sys.stderr, flush=True)
            if way is EXACT and name in NETWORKS and clock.left() > 0:
                flops[name] = work(scorer, (settings.side, settings.side))
        groups = {" + ".join(group): group for group in groups_of(settings.names)}
        for title, group in groups.items():
            scorers = [loaded[way.title][name] for name in group]
            few = rgbs[: settings.few] if way is EXACT and "maniqa" in group else rgbs
            run = functools.partial(ours, scorers, few)
            rate = measure(run, len(few), settings.device, clock, settings.seconds)
            measured.setdefault(title, {})[way.title] = rate.best
    say(f"\n{settings.side} x {settings.side}, photographs a second:")
    table(
        [
            "metric",
            "pyiqa, one at a time",
            "pyiqa, batched",
            *(way.title for way in ways),
            "ratio",
            "TFLOP",
            "of the rate",
        ]
    )
    for title, by_way in measured.items():
        members = title.split(" + ")
        single, batched = (
            together([references.get(name, (None, None))[i] for name in members if name in networks_and_two(members)])
            for i in (0, 1)
        )
        best = max((rate for rate in by_way.values() if rate), default=None)
        ratio = f"{best / single:.1f}" if best and single else "-"
        total = flops.get(title)
        share = f"{best * total / half_rate:.0%}" if best and total else "-"
        cells = [shown(by_way.get(way.title)) for way in ways]
        say("| " + " | ".join([named(title), shown(single), shown(batched), *cells, ratio, shown(total), share]) + " |")
    if compiling:
        told = ", ".join(f"{name} {shown(seconds)}" for name, seconds in compiling.items())
        say(f"\nSeconds of the first run, compiling included where the cache was empty: {told}.")
    return loaded


def networks_and_two(members: Sequence[str]) -> list[str]:
    """What pyiqa has of these; it has no focus measures, so a group's reference is the time of the others."""
    return [name for name in members if name in (*NETWORKS, "brisque", "niqe")]


def named(title: str) -> str:
    special = {" + ".join(PAPER): "**all eight**", " + ".join(GATE): f"**the gate's three** ({', '.join(GATE)})"}
    return special.get(title, title)


def groups_of(names: Sequence[str]) -> list[tuple[str, ...]]:
    """The groups of which all metrics are measured."""
    return [group for group in (("brisque", "niqe"), GATE, PAPER) if set(group) <= set(names)]


def sizes_table(settings: Settings, loaded: dict[str, Scorer], way: Way, clock: Clock) -> None:
    """Sizes against metrics, for one way, with the peak of the GPU's memory."""
    columns = [*[(name,) for name in settings.names], *groups_of(settings.names)]
    say(f"\nSizes, {way.title}, photographs a second (GiB of GPU memory at the peak):")
    table(["size", *(named(" + ".join(column)) for column in columns)])
    for title, sizes in settings.sizes.items():
        rgbs = pictures(sizes)
        cells = []
        for column in columns:
            if settings.device == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            run = functools.partial(ours, [loaded[name] for name in column], rgbs)
            rate = measure(run, len(rgbs), settings.device, clock, settings.seconds / 2).best
            peak = torch.cuda.max_memory_reserved() / 2**30 if settings.device == "cuda" else None
            cells.append(f"{shown(rate)} ({shown(peak)})" if rate else "-")
        say("| " + " | ".join([title, *cells]) + " |")


def formula_on_cpu(name: str, rgbs: Sequence[np.ndarray]) -> tuple[list[Score], str]:
    """Scores of a formula by its compiled kernel or, without Numba, by the tensors' way; and which."""
    (metric,) = select([name])
    try:
        return ours([metric.load("cpu")], rgbs)[0], "compiled kernels on the CPU"
    except ImportError:
        return ours([TENSORS[name].load(name, "cpu")], rgbs)[0], "the same on the CPU (Numba is absent)"


def agreement_table(
    settings: Settings, loaded: dict[str, dict[str, Scorer]], ways: Sequence[Way], clock: Clock
) -> None:
    """Half precision against float32 on seeded parameters, and each formula against its CPU kernel."""
    say(f"\nAgreement on {len(settings.agreeing)} photographs, seeded parameters:")
    table(["metric", "compared", "largest error, share of the 5-95 % range", "of the standard deviation", "SRCC"])
    for name in settings.names:
        if clock.left() <= 0:
            say(f"| {name} | - | - | - | - |")
            continue
        if name in NETWORKS:
            exact, what = ours([loaded[EXACT.title][name]], settings.agreeing)[0], "float32"
            others = {way.title: ours([loaded[way.title][name]], settings.agreeing)[0] for way in ways[1:]}
        else:
            exact, what = formula_on_cpu(name, settings.agreeing)
            others = {f"on {settings.device}": ours([loaded[EXACT.title][name]], settings.agreeing)[0]}
        for title, scores in others.items():
            pairs = list(zip(exact, scores, strict=True))
            verdict = comparison.judged(name, "", pairs, min_srcc=0, max_error=float("inf"))
            if verdict.largest_error is None or not verdict.deviation:
                kept = [pair for pair in pairs if not any(isinstance(score, Failure) for score in pair)]
                gap = max((abs(a - b) for a, b in kept), default=float("nan"))
                say(f"| {name} | {title} / {what} | {gap:.2g} absolute | {verdict.reason} | - |")
                continue
            deviations = f"{verdict.largest_error / verdict.deviation:.2e}"
            cells = [f"{title} / {what}", f"{verdict.error_share:.2e}", deviations, f"{verdict.srcc:.5f}"]
            say("| " + " | ".join([name, *cells]) + " |")


# ---- the run ---------------------------------------------------------------------------------------------


def versions() -> str:
    found = [f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    for name in ("timm", "numpy", "opencv-python-headless", "PyWavelets", "triton", "pyiqa"):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} absent")
    return ", ".join(found)


def hardware(device: Device) -> str:
    if device == "cuda":
        facts = torch.cuda.get_device_properties(0)
        return f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    return f"CPU only ({platform.machine()}), {torch.get_num_threads()} threads"


def settings_of(arguments: argparse.Namespace, device: Device) -> Settings:
    if arguments.metrics:
        names = tuple(name.strip() for name in arguments.metrics.split(","))
    else:
        names = tuple(name for name in PAPER if not arguments.quick or name != "maniqa")
    if "wavs" in names and importlib.util.find_spec("pywt") is None:
        say("Without WAVS: PyWavelets, which has its filter, is absent.")
        names = tuple(name for name in names if name != "wavs")
    if arguments.quick:
        sizes = {"96": [(96, 96)] * 2, "mixed": [(96, 120), (130, 100)]}
        agreeing = pictures([(100, 110)] * 3)
        return Settings(
            device=device,
            names=names,
            side=128,
            count=2,
            few=2,
            seconds=0,
            sizes=sizes,
            agreeing=agreeing,
            with_reference=not arguments.no_reference,
        )
    sizes = {
        "512 x 512": [(512, 512)] * 64,
        "1024 x 1024": [(1024, 1024)] * 64,
        "12 MP": [(3000, 4000)] * 8,
        "mixed 1-12 MP": [(1024, 1024), (1000, 1500), (2000, 3000), (3000, 4000)] * 4,
    }
    agreeing = (
        read(arguments.input, 128) if arguments.input else pictures([(512 + 16 * (i % 9), 640) for i in range(64)])
    )
    if not agreeing:
        raise SystemExit(f"no photographs in {arguments.input}")
    return Settings(
        device=device,
        names=names,
        side=1024,
        count=64,
        few=16,
        seconds=1.5,
        sizes=sizes,
        agreeing=agreeing,
        with_reference=not arguments.no_reference,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny, on a CPU: only to see the script run")
    parser.add_argument("--metrics", help="by name, with commas; default: all eight")
    parser.add_argument("--input", type=Path, help="a folder of photographs for the agreement")
    parser.add_argument("--minutes", type=float, default=6.5, help="after which nothing more is begun (6.5)")
    parser.add_argument("--no-reference", action="store_true", help="leave out pyiqa")
    parser.add_argument("--no-compile", action="store_true", help="leave out the compiled networks")
    arguments = parser.parse_args()
    if not arguments.quick and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device: run it on a machine with a GPU, or --quick to see the script run")

    clock = Clock(arguments.minutes)
    device: Device = "cpu" if arguments.quick else "cuda"
    say(f"{hardware(device)}. {versions()}.")
    if arguments.quick:
        say("\n**Quick: tiny photographs on a CPU. These figures say nothing.**")
    settings = settings_of(arguments, device)
    rates = matrix_rates(device, 256 if arguments.quick else 8192)
    said = ", ".join(f"{name} {shown(rate)}" for name, rate in rates.items())
    say(f"\nDense products, TFLOP/s: {said} (float32 without TF32). Shares below are of float16's.")
    ways = [EXACT, FAST] + ([] if arguments.no_compile or arguments.quick else [FAST_COMPILED])
    loaded = rates_table(settings, ways, clock, rates["float16"])
    agreement_table(settings, loaded, ways, clock)
    sizes_table(settings, loaded[ways[-1].title], ways[-1], clock)
    say(
        f"\n{AT_ONCE} photographs at a time, metric after metric; pixels are uploaded once for all metrics. Groups of "
        "pyiqa's: one metric after another, without the focus measures, which it lacks. `ratio`: the fastest of ours "
        "to pyiqa one at a time (float32). `of the rate`: TFLOP counted in our float32 network times the fastest rate, "
        "to the dense float16 products of this run."
    )


if __name__ == "__main__":
    main()

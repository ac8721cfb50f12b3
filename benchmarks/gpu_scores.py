"""How fast the eight metrics are on a GPU, beside pyiqa and the card's own matrix rate.

    python benchmarks/gpu_scores.py                   all tables, within 8 minutes
    python benchmarks/gpu_scores.py --input PHOTOS/   agreement on your own photographs instead of made-up ones
    python benchmarks/gpu_scores.py --quick           tiny, on a CPU: does the script itself run?

Prints Markdown tables, row by row as they are measured: memory on mixed sizes first, what compiles last. What the time
doesn't suffice for is a dash; where photographs fail, how many and why stands in the rate's place. What is absent is
said before anything is measured. Needs torch, timm, OpenCV, numpy, scipy and PyYAML; PyWavelets for WAVS; pyiqa for the
other side, with its dependencies or, as a wheel alone, with what stand_ins.py has in their place. Neither Ray nor Delta
Lake is imported.

Networks get seeded random parameters: the same work, meaningless scores. Photographs are decoded pixels in the CPU's
memory; their upload counts, decoding doesn't but in a table of its own. Rates are photographs a second, the best of the
repetitions.
"""

import argparse
import functools
import importlib.metadata
import importlib.util
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import stand_ins
import torch

from qualitygate.errors import ConfigurationError, ErrorCode, Failure
from qualitygate.images.decode import DecodePolicy, decode, for_a_gpu
from qualitygate.images.photograph import Photograph
from qualitygate.metrics import (
    PAPER,
    Execution,
    Parameters,
    comparison,
    focus_tensors,
    networks,
    nvjpeg,
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
SHARE_OF_SIZES = 0.35  # of the time, for the table of sizes: the rates beside pyiqa's need the most
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

    def part(self, share: float) -> "Clock":
        """A clock of this share of what is left."""
        return Clock(share * max(self.left(), 0) / 60)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """How fast something ran.

    best: photographs a second; None where there was no time, or where any of them failed.
    first_s: of the first run, which isn't counted.
    peak: GiB of the GPU's memory that torch held at most.
    failed: of how many photographs how many failed in the worst run, and why the first did.
    """

    best: float | None = None
    first_s: float = 0.0
    peak: float | None = None
    failed: str | None = None

    @property
    def cell(self) -> str:
        """As it stands in a table."""
        return self.failed or shown(self.best)


def failures(found: object) -> list[Failure]:
    """One for each photograph that has any; found: scores or pictures by scorer and photograph, or anything else."""
    if not isinstance(found, list):
        return []
    by_photograph = ([one for one in of_one if isinstance(one, Failure)] for of_one in zip(*found, strict=True))
    return [failed[0] for failed in by_photograph if failed]


def measure(run: Callable[[], object], photographs: int, device: Device, clock: Clock, seconds: float) -> Rate:
    """Runs for some seconds; nothing when there is no time left. What fails is no rate, however fast it does."""
    if clock.left() <= 0:
        return Rate()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    worst: list[Failure] = []

    def timed() -> float:
        nonlocal worst
        synchronise(device)
        begin = time.perf_counter()
        found = run()
        synchronise(device)
        took = time.perf_counter() - begin
        worst = max(worst, failures(found), key=len)
        return took

    first = timed()
    least, start = timed(), time.perf_counter()
    while time.perf_counter() - start < seconds and clock.left() > 0:
        least = min(least, timed())
    peak = torch.cuda.max_memory_reserved() / 2**30 if device == "cuda" else None
    if worst:
        return Rate(first_s=first, peak=peak, failed=f"{len(worst)} of {photographs} failed: {worst[0].code}")
    return Rate(best=photographs / least, first_s=first, peak=peak)


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
            (score,) = scorer([Photograph(made_up(size, 0))])
        if isinstance(score, Failure):
            raise RuntimeError(score.message)
    except Exception as error:
        # Not among the rows of a table that is being printed.
        print(f"(work can't be counted: {error})", file=sys.stderr)
        return None
    return counter.get_total_flops() / 1e12


class Stock:
    """pyiqa's implementations with our parameters, one photograph at a time or several of one size.

    Made on the CPU, so that what it lacks is known before anything is timed and its memory counts for nothing else;
    `move` takes them to where they run.
    stood_in: modules that pyiqa imports and that are absent here; see stand_ins.py.
    """

    def __init__(self) -> None:
        self._device: Device = "cpu"
        self._networks: dict[str, Any] = {}
        with stand_ins.for_pyiqa() as self.stood_in, tempfile.TemporaryDirectory() as folder:
            import pyiqa

            for name, write in (("brisque", reference._write_brisque), ("niqe", reference._write_niqe)):
                path = write(Path(folder))
                metric = pyiqa.create_metric(name, device="cpu", pretrained_model_path=str(path))
                self._networks[name] = metric.net
            for name in NETWORKS:
                network = networks.NETWORKS[name]
                stock = reference._build(network)
                stock.load_state_dict(networks.state_dict(network, UNTRAINED), strict=True)
                self._networks[name] = stock.eval()

    def move(self, device: Device) -> None:
        """All of them to the device."""
        self._device = device
        for network in self._networks.values():
            network.to(device)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._networks)

    def run(self, name: str, rgbs: Sequence[np.ndarray], batch: int) -> None:
        """Keeps no score. Networks take several at once in half precision by autocast, as their users would."""
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


class References:
    """pyiqa's side, if it can be had: its rates one at a time and batched, each metric's measured when it is asked."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        """Says what of it is absent."""
        self._settings, self._clock = settings, clock
        self._stock: Stock | None = None
        reason = reference.unavailable() if settings.with_reference else "--no-reference"
        if reason is None:
            try:
                self._stock = Stock()
            except Exception as error:
                reason = f"pyiqa can't be used here: {type(error).__name__}: {error}"
        if reason is not None:
            say(f"\nWithout the other side: {reason}. Its columns and `ratio` will be dashes.")
        elif self._stock and self._stock.stood_in:
            said = " and ".join(self._stock.stood_in)
            say(f"\npyiqa imports {said}, absent here: benchmarks/stand_ins.py stands in, to the same scores.")
        self._rgbs: list[np.ndarray] = []
        self._found: dict[str, tuple[float | None, float | None]] = {}
        self._missing: list[str] = []

    def rates(self, members: Sequence[str]) -> tuple[float | None, float | None]:
        """Of these metrics, one after another: one photograph at a time, and batched."""
        known = [self._measured(name) for name in networks_and_two(members)]
        return together([single for single, _ in known]), together([batched for _, batched in known])

    def forget(self) -> None:
        """Give its memory back and say what couldn't be measured; what was stays known."""
        self._stock = None
        if self._missing:
            say(f"\npyiqa failed: {'; '.join(self._missing)}.")

    def _measured(self, name: str) -> tuple[float | None, float | None]:
        if name not in self._found and self._stock is not None and self._clock.left() > 0:
            if not self._rgbs:
                self._stock.move(self._settings.device)
                self._rgbs = pictures([(self._settings.side, self._settings.side)] * self._settings.few)
            most = min(16 if name in NETWORKS else 8, self._settings.few)
            self._found[name] = (self._rate(self._stock, name, 1), self._rate(self._stock, name, most))
        return self._found.get(name, (None, None))

    def _rate(self, stock: Stock, name: str, batch: int) -> float | None:
        run = functools.partial(stock.run, name, self._rgbs, batch)
        try:
            return measure(run, len(self._rgbs), self._settings.device, self._clock, self._settings.seconds).best
        except Exception as error:
            said = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
            self._missing.append(f"{name} in {batch}: {said}")
            return None


def columns_of(names: Sequence[str]) -> list[tuple[str, ...]]:
    """What is measured: each metric, and the groups of which all metrics are there."""
    return [*((name,) for name in names), *groups_of(names)]


def rates_table(
    settings: Settings,
    ways: Sequence[Way],
    loaded: dict[str, dict[str, Scorer]],
    references: References,
    clock: Clock,
    half_rate: float,
) -> None:
    """Metric by metric at one size, beside pyiqa; a row is printed once it is measured."""
    size = (settings.side, settings.side)
    rgbs = pictures([size] * settings.count) if clock.left() > 0 else []
    titles = [way.title for way in ways]
    say(f"\n{settings.side} x {settings.side}, {' and '.join(titles)}, photographs a second:")
    table(["metric", "pyiqa, one at a time", "pyiqa, batched", *titles, "ratio", "TFLOP", "of the rate"])
    first_runs: dict[str, float] = {}
    for members in columns_of(settings.names):
        title = " + ".join(members)
        measured: list[Rate] = []
        for way in ways:
            few = rgbs[: settings.few] if way is EXACT and "maniqa" in members else rgbs
            run = functools.partial(ours, [loaded[way.title][name] for name in members], few)
            rate = measure(run, len(few), settings.device, clock, settings.seconds)
            measured.append(rate)
            if way.compiled and rate.best and len(members) == 1:
                first_runs[title] = rate.first_s
        counted = title in NETWORKS and clock.left() > 0
        total = work(loaded[EXACT.title][title], size) if counted else None
        single, batched = references.rates(members)
        best = max((rate.best for rate in measured if rate.best), default=None)
        ratio = f"{best / single:.1f}" if best and single else "-"
        share = f"{best * total / half_rate:.0%}" if best and total else "-"
        cells = [named(title), shown(single), shown(batched), *(rate.cell for rate in measured)]
        cells += [ratio, shown(total), share]
        say("| " + " | ".join(cells) + " |")
    if first_runs:
        told = ", ".join(f"{name} {shown(seconds)}" for name, seconds in first_runs.items())
        say(f"\nSeconds of the first run, compiling included where the cache was empty: {told}.")


def networks_and_two(members: Sequence[str]) -> list[str]:
    """What pyiqa has of these; it has no focus measures, so a group's reference is the time of the others."""
    return [name for name in members if name in (*NETWORKS, "brisque", "niqe")]


def named(title: str) -> str:
    special = {" + ".join(PAPER): "**all eight**", " + ".join(GATE): f"**the gate's three** ({', '.join(GATE)})"}
    return special.get(title, title)


def groups_of(names: Sequence[str]) -> list[tuple[str, ...]]:
    """The groups of which all metrics are measured."""
    return [group for group in (("brisque", "niqe"), GATE, PAPER) if set(group) <= set(names)]


def sizes_table(
    settings: Settings, sizes: dict[str, list[Size]], loaded: dict[str, Scorer], way: Way, clock: Clock
) -> None:
    """Sizes against metrics, for one way, with the peak of the GPU's memory."""
    columns = columns_of(settings.names)
    say(f"\nSizes, {way.title}, photographs a second (GiB that torch held at the peak):")
    table(["size", *(named(" + ".join(column)) for column in columns)])
    for title, size in sizes.items():
        # Large pictures take seconds to make: none where there is no time to score them.
        rgbs = pictures(size) if clock.left() > 0 else []
        cells = []
        for column in columns:
            run = functools.partial(ours, [loaded[name] for name in column], rgbs)
            rate = measure(run, len(rgbs), settings.device, clock, settings.seconds / 2)
            cells.append(f"{rate.cell} ({shown(rate.peak)})" if rate.best or rate.failed else "-")
        say("| " + " | ".join([title, *cells]) + " |")


def formula_on_cpu(name: str, rgbs: Sequence[np.ndarray]) -> tuple[list[Score], str]:
    """Scores of a formula by its compiled kernel or, without Numba, by the tensors' way; and which."""
    (metric,) = select([name])
    try:
        return ours([metric.load("cpu")], rgbs)[0], "compiled kernels on the CPU"
    except ImportError:
        return ours([TENSORS[name].load(name, "cpu")], rgbs)[0], "the same on the CPU (Numba is absent)"


def agreement_table(
    settings: Settings, names: Sequence[str], ways: Sequence[Way], loaded: dict[str, dict[str, Scorer]], clock: Clock
) -> None:
    """Half precision against float32 on seeded parameters, and each formula against its CPU kernel."""
    say(f"\nAgreement on {len(settings.agreeing)} photographs, seeded parameters:")
    table(["metric", "compared", "largest error, share of the 5-95 % range", "of the standard deviation", "SRCC"])
    for name in names:
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


def decode_table(settings: Settings, loaded: dict[str, Scorer], clock: Clock) -> None:
    """JPEGs by the CPU's decoder and by nvJPEG, photographs a second, and how far apart the formulas' scores are."""
    if importlib.util.find_spec("torchvision") is None:
        say("\nWithout decoding: torchvision, which has nvJPEG, is absent.")
        return
    if clock.left() <= 0:
        say("\nWithout decoding: no time is left.")
        return
    options = [cv2.IMWRITE_JPEG_QUALITY, 92, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420]
    size = (settings.side, settings.side)
    rgbs = pictures([size] * min(settings.count, 2 * AT_ONCE))
    files = [cv2.imencode(".jpg", np.ascontiguousarray(rgb[..., ::-1]), options)[1].tobytes() for rgb in rgbs]
    strict = importlib.util.find_spec("simplejpeg") is not None

    def on_a_core() -> list[Photograph]:
        if strict:
            return [decode(file).photograph for file in files]
        found = [cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR) for file in files]
        return [Photograph(np.ascontiguousarray(one[..., ::-1])) for one in found]

    try:
        decoder = nvjpeg.GpuDecoder(None if settings.device == "cuda" else by_torchvisions_cpu)
    except ConfigurationError as error:
        say(f"\nWithout decoding on the GPU: {error}")
        return
    policy = DecodePolicy(decoder="nvjpeg")

    def on_the_gpu() -> list[Photograph | Failure]:
        found: list[Photograph | Failure] = []
        for begin in range(0, len(files), AT_ONCE):
            plain = [for_a_gpu(file, policy) for file in files[begin : begin + AT_ONCE]]
            decoded = decoder([one for one in plain if one])
            # Left to the strict decoder in a job: here that would be the other row's rate.
            found += [one or Failure(ErrorCode.UNDECODABLE, "nvJPEG refuses it") for one in decoded]
        return found

    kilobytes = sum(map(len, files)) / len(files) / 1024
    say(f"\nDecode, {settings.side} x {settings.side}, 4:2:0, {kilobytes:,.0f} KiB a file, photographs a second:")
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    table(["decoder", "rate", "to one core"])
    core = measure(lambda: [on_a_core()], len(files), settings.device, clock, settings.seconds)
    cv2.setNumThreads(threads)
    one_core = f"one CPU core, {'the strict decoder' if strict else 'OpenCV (simplejpeg is absent)'}"
    say(f"| {one_core} | {core.cell} | {1 if core.best else '-'} |")
    gpu = measure(lambda: [on_the_gpu()], len(files), settings.device, clock, settings.seconds)
    name = "nvJPEG, markers checked on the CPU" if settings.device == "cuda" else "torchvision on the CPU in its place"
    say(f"| {name} | {gpu.cell} | {shown(gpu.best / core.best if gpu.best and core.best else None)} |")
    if clock.left() <= 0:
        return
    both = zip(on_a_core(), on_the_gpu(), strict=True)
    pairs = [(one, other) for one, other in both if not isinstance(other, Failure)]
    if not pairs:
        say("\nBetween the two: nothing to compare, because none was decoded by both.")
        return
    gaps = [np.abs(one.rgb.astype(int) - other.rgb) for one, other in pairs]
    said = [f"pixels {max(gap.max() for gap in gaps)} levels at most, {np.mean([gap.mean() for gap in gaps]):.3f} mean"]
    for name in (name for name in settings.names if name not in NETWORKS):
        before, after = (loaded[name]([pair[side] for pair in pairs]) for side in (0, 1))
        kept = [two for two in zip(before, after, strict=True) if not any(isinstance(one, Failure) for one in two)]
        if kept:
            said.append(f"{name} {max(abs(a - b) / max(abs(a), 1e-9) for a, b in kept):.2%}")
    say(f"\nBetween the two, largest difference over {len(pairs)} photographs: {', '.join(said)}.")


def by_torchvisions_cpu(files: list[torch.Tensor]) -> list[torch.Tensor]:
    import warnings

    from torchvision.io import ImageReadMode, decode_jpeg

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return [decode_jpeg(file, mode=ImageReadMode.RGB) for file in files]


def attention_table(settings: Settings, clock: Clock) -> None:
    """MANIQA's channel attention in half precision: as it is, and by the one fused kernel that takes heads of 784."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    on_gpu = settings.device == "cuda"
    crops, channels, patches = (20, 3072, 784) if on_gpu else (1, 64, 48)
    kind = torch.float16 if on_gpu else torch.float32
    q, k, v = (torch.randn(crops, 1, channels, patches, device=settings.device).to(kind) for _ in range(3))

    def products() -> torch.Tensor:
        shares = torch.bmm(q[:, 0], k[:, 0].transpose(1, 2)).softmax(dim=-1)
        return torch.bmm(shares, v[:, 0])

    def fused() -> torch.Tensor:
        with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION if on_gpu else SDPBackend.FLASH_ATTENTION):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=1.0)

    say(f"\nChannel attention, {channels} tokens of {patches}, ms a crop and layer (GiB at the peak):")
    table(["way", "ms"])
    for title, way in (("two products around a softmax, as it is", products), ("one fused kernel", fused)):
        try:
            rate = measure(way, crops, settings.device, clock, settings.seconds / 2)
        except RuntimeError as error:
            say(f"| {title} | refused: {str(error).partition(chr(10))[0][:100]} |")
            continue
        say(f"| {title} | {shown(1000 / rate.best)} ({shown(rate.peak)}) |" if rate.best else f"| {title} | - |")


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
        sizes = {"mixed": [(96, 120), (130, 100)], "96": [(96, 96)] * 2}
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
        "mixed 1-12 MP": [(1024, 1024), (1000, 1500), (2000, 3000), (3000, 4000)] * 4,
        "12 MP": [(3000, 4000)] * 8,
        "512 x 512": [(512, 512)] * 64,
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
    references = References(settings, clock)
    rates = matrix_rates(device, 256 if arguments.quick else 8192)
    said = ", ".join(f"{name} {shown(rate)}" for name, rate in rates.items())
    say(f"\nDense products, TFLOP/s: {said} (float32 without TF32). Shares below are of float16's.")
    ways = [EXACT, FAST] + ([] if arguments.no_compile or arguments.quick else [FAST_COMPILED])
    loaded = {way.title: load(settings.names, way, device) for way in ways}
    # What compiles comes last: it takes minutes, and a run that is cut short has the rest. Memory on mixed sizes first.
    sizes_table(settings, settings.sizes, loaded[FAST.title], FAST, clock.part(SHARE_OF_SIZES))
    rates_table(settings, (EXACT, FAST), loaded, references, clock, rates["float16"])
    references.forget()
    decode_table(settings, loaded[EXACT.title], clock)
    attention_table(settings, clock)
    agreement_table(settings, settings.names, (EXACT, FAST), loaded, clock)
    if FAST_COMPILED in ways:
        # Networks first: they take the time, and gain the most.
        settings = replace(settings, names=tuple(sorted(settings.names, key=lambda name: name not in NETWORKS)))
        rates_table(settings, (FAST_COMPILED,), loaded, references, clock, rates["float16"])
        mixed = {title: sizes for title, sizes in settings.sizes.items() if title.startswith("mixed")}
        sizes_table(settings, mixed, loaded[FAST_COMPILED.title], FAST_COMPILED, clock)
        only = tuple(name for name in settings.names if name in NETWORKS)
        agreement_table(settings, only, (EXACT, FAST_COMPILED), loaded, clock)
    say(
        f"\n{AT_ONCE} photographs at a time, metric after metric; pixels are uploaded once for all metrics. Groups of "
        "pyiqa's: one metric after another, without the focus measures, which it lacks. `ratio`: the fastest of ours "
        "to pyiqa one at a time (float32). `of the rate`: TFLOP counted in our float32 network times the fastest rate, "
        "to the dense float16 products of this run."
    )


if __name__ == "__main__":
    main()

"""printed_codes: the embedded data set, rendered photographs whose true blur and noise are known.

It stands in for the private photographs of Smith et al. 2024 (section 2.1): tight crops around dot-matrix
codes on bottle bottoms, by two manufacturers whose prints differ in tiny ways (see `dot_matrix`).

    plan(name)  →  Shots, what is photographed and how     cheap, deterministic, a shorter plan is a prefix
    render(shot, size)  →  JPEG bytes                      bottle → light → camera
    write(name, folder)  →  photographs and manifest       in parallel, restartable

What a photograph shows is drawn from (seed, name, specimen, photograph), never from the label, the size, the
process or the order: both manufacturers' bottles come from one distribution, and the same bytes come out of
any run with the same versions of NumPy, SciPy, OpenCV and Pillow.
"""

import difflib
import json
import math
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache, partial
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import fft

from qualitygate.errors import ConfigurationError
from qualitygate.images import bottle, camera, dot_matrix
from qualitygate.images.camera import CameraState
from qualitygate.images.dot_matrix import LABELS

RENDERER_VERSION = 1  # raised whenever any byte of any photograph changes
NAMES = ("sharpness", "calibration", "study", "baseline")
COUNTS = {"sharpness": 140, "calibration": 700, "study": 2800, "baseline": 3090}
SERIES_LENGTH = 10
MIN_SIZE, MAX_SIZE = 32, 4096
SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),  # relative to the manifest's folder
        pa.field("label", pa.string(), nullable=False),
        pa.field("group", pa.string(), nullable=False),
        pa.field("series", pa.string()),
        pa.field("step", pa.int32()),
        pa.field("split", pa.string()),
        pa.field("true_blur", pa.float64(), nullable=False),
        pa.field("true_noise", pa.float64(), nullable=False),
    ]
)
MANIFEST, SIDECAR, IMAGES = "manifest.parquet", "_rendering.json", "images"

# The first day of each data set: the study is later than the calibration, the baseline earlier.
_FIRST_DAY = {
    "sharpness": datetime(2023, 2, 6, 9),
    "calibration": datetime(2023, 3, 1, 8),
    "study": datetime(2023, 6, 1, 8),
    "baseline": datetime(2022, 3, 1, 8),
}
_PREFIX = {"sharpness": "s", "calibration": "c", "study": "t", "baseline": "b"}
_PLAN, _BOTTLE, _VIEW, _SENSOR = range(4)  # what a random stream is for
_WORK_SIZE = 384  # pixels: smaller photographs are rendered at a multiple that reaches this, then averaged
_LEAST_FOR_PROCESSES = 16  # photographs: below, starting processes takes longer than rendering


@dataclass(frozen=True, slots=True, kw_only=True)
class Specimen:
    """A physical bottle. `group` names it; no two data sets share one."""

    dataset: str
    seed: int
    number: int
    label: str

    @property
    def group(self) -> str:
        return f"{self.dataset}-{_PREFIX[self.dataset]}{self.number:05d}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """One photograph of a specimen.

    view: which pose and light; the photographs of a series share one, as on a tripod. take: which noise.
    series, step: only in `sharpness`; step 0 is the sharpest. split: "train" or "eval", only in `baseline`.
    """

    image_id: str
    specimen: Specimen
    view: int
    take: int
    camera: CameraState
    series: str | None = None
    step: int | None = None
    split: str | None = None

    @property
    def file_name(self) -> str:
        return self.image_id.rpartition("/")[2]

    @property
    def label(self) -> str:
        return self.specimen.label

    @property
    def group(self) -> str:
        return self.specimen.group

    @property
    def true_blur(self) -> float:
        """RMS radius of the point spread, in pixels of a photograph 1024 wide; see `CameraState.rms_blur`."""
        return self.camera.rms_blur

    @property
    def true_noise(self) -> float:
        """Standard deviation of a pixel's channel at mid-grey, in 8-bit levels before JPEG; at any size."""
        return self.camera.noise


def plan(name: str, *, count: int | None = None, seed: int = 0) -> list[Shot]:
    """The first `count` photographs of a data set; default: as many as the paper has.

    Deterministic and cheap (nothing is rendered). A shorter plan is the head of a longer one: series come
    whole, one after another, and elsewhere the two labels alternate.
    """
    _check_name(name)
    if count is None:
        count = COUNTS[name]
    if not _is_integer(count) or count < 1:
        raise ConfigurationError(f"count is {count!r}; give a whole number of photographs, 1 or more")
    if not _is_integer(seed) or seed < 0:
        raise ConfigurationError(f"seed is {seed!r}; give a whole number, 0 or more")
    shots = _series(seed) if name == "sharpness" else _pairs(name, seed)
    return [next(shots) for _ in range(count)]


def render(shot: Shot, size: int) -> bytes:
    """The photograph as JPEG bytes, `size` x `size` pixels.

    Deterministic by (shot, size). At every size it is the same scene through the same optics.
    """
    _check_size(size)
    specimen, state = shot.specimen, shot.camera
    plate, dots = _print(specimen)
    view = _random(specimen.seed, specimen.dataset, _VIEW, specimen.number, shot.view)
    pose, light = bottle.random_pose(view), bottle.random_light(view)

    supersampling = math.ceil(_WORK_SIZE / size)
    frame = size * supersampling
    scale = frame / camera.REFERENCE_SIZE
    margin = math.ceil(state.reach * scale) + 2
    side = fft.next_fast_len(frame + 2 * margin, real=True)
    canvas = bottle.Canvas(side=side, frame=frame, margin=margin)

    scene = bottle.radiance(plate, dots, light, pose, canvas)
    cast = camera.blur(scene, scale, state)[margin : margin + frame, margin : margin + frame]
    if supersampling > 1:  # a pixel gathers all the light that falls on its square
        cast = cv2.resize(cast, (size, size), interpolation=cv2.INTER_AREA)
    exposed = camera.expose(cast, state)
    sensor = _random(specimen.seed, specimen.dataset, _SENSOR, specimen.number, shot.take)
    return camera.encode_jpeg(camera.develop(camera.add_noise(exposed, state, sensor), state), state)


def write(
    name: str,
    output: Path,
    *,
    size: int = 1024,
    count: int | None = None,
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Render a data set into a folder; returns the path of its manifest.

    The folder gets images/*.jpg, each renamed into place when complete, and manifest.parquet last (columns:
    `SCHEMA`). A second call does only what is missing; a folder that holds another rendering, or anything
    else, is refused. workers: processes, by default one for each core this process may use; they are
    spawned, so a script that calls this needs `if __name__ == "__main__":`, and 1 stays in this process.
    progress: called with (photographs done, photographs in all).
    """
    shots = plan(name, count=count, seed=seed)
    _check_size(size)
    if workers is not None and (not _is_integer(workers) or workers < 1):
        raise ConfigurationError(f"workers is {workers!r}; give a whole number of processes, 1 or more")
    output = Path(output)
    rendering: dict[str, int | str] = {
        "dataset": name,
        "count": len(shots),
        "size": size,
        "seed": seed,
        "renderer_version": RENDERER_VERSION,
    }
    try:
        _claim(output, rendering)
        present = {entry.name for entry in os.scandir(output / IMAGES)}
        missing = [shot for shot in shots if shot.file_name not in present]
        done = len(shots) - len(missing)
        if progress is not None:
            progress(done, len(shots))
        for _ in _render_all(missing, output / IMAGES, size, workers):
            done += 1
            if progress is not None:
                progress(done, len(shots))
        _write_manifest(shots, output / MANIFEST, rendering)
    except OSError as error:
        raise ConfigurationError(
            f"output {str(output)!r} can't be written ({error.strerror or error}); "
            "give a folder you may write to, with space left"
        ) from error
    except BrokenProcessPool as error:
        raise ConfigurationError(
            "a rendering process died; call write() under 'if __name__ == \"__main__\":', "
            "give it more memory, or pass workers=1"
        ) from error
    return output / MANIFEST


def _series(seed: int) -> Iterator[Shot]:
    """Data set 1: each sample focused, then defocused by a set increment nine times; nothing else changes."""
    number = 0
    while True:
        draw = _random(seed, "sharpness", _PLAN, number)
        if number % 2 == 0:
            first = int(draw.integers(2))
        specimen = Specimen(dataset="sharpness", seed=seed, number=number, label=LABELS[(first + number) % 2])
        start = _FIRST_DAY["sharpness"] + timedelta(minutes=25 * number)
        focused, increment = draw.uniform(0.3, 1.0), draw.uniform(4.5, 7.0)
        model = camera.MODELS[draw.integers(len(camera.MODELS))]
        exposure, noise = _clipped_normal(draw, 0.2, 0.5), draw.uniform(0.4, 0.9)
        quality = int(draw.integers(90, 96))
        for step in range(SERIES_LENGTH):
            state = CameraState(
                model=model,
                captured_at=start + timedelta(seconds=40 * step),
                defocus=focused + step * increment,
                motion=0.0,
                motion_angle=0.0,
                exposure=exposure,
                noise=noise,
                jpeg_quality=quality,
            )
            yield Shot(
                image_id=f"sharpness/s{number:02d}-{step:02d}.jpg",
                specimen=specimen,
                view=0,
                take=step,
                camera=state,
                series=f"s{number:02d}",
                step=step,
            )
        number += 1


def _pairs(name: str, seed: int) -> Iterator[Shot]:
    """The other data sets: a bottle of each manufacturer at a time, each photographed one to three times."""
    pair = 0
    while True:
        draw = _random(seed, name, _PLAN, pair)
        first, takes = int(draw.integers(2)), int(draw.integers(1, 4))
        start = _FIRST_DAY[name] + timedelta(minutes=20 * pair)
        split = ("eval" if pair % 5 == 1 else "train") if name == "baseline" else None
        for take in range(takes):
            for half in range(2):
                number = 2 * pair + half
                moment = start + timedelta(seconds=180 * take + 90 * half + int(draw.integers(60)))
                yield Shot(
                    image_id=f"{name}/{_PREFIX[name]}{number:05d}-{take}.jpg",
                    specimen=Specimen(dataset=name, seed=seed, number=number, label=LABELS[(first + half) % 2]),
                    view=take,
                    take=take,
                    camera=_snapshot(name, moment, draw),
                    split=split,
                )
        pair += 1


def _snapshot(name: str, moment: datetime, draw: np.random.Generator) -> CameraState:
    """A hand-held phone's photograph: mostly sharp, with a tail of failures that the baseline lacks."""
    sharp, soft = (0.92, 0.08) if name == "baseline" else (0.60, 0.18)
    kind = draw.random()
    if kind < sharp:
        rms = float(np.clip(draw.lognormal(math.log(2.5), 0.5), 0.8, 8))
    elif kind < sharp + soft:
        rms = math.exp(draw.uniform(math.log(6), math.log(18)))
    else:
        rms = math.exp(draw.uniform(math.log(18), math.log(80)))
    moved = draw.uniform(0.2, 0.9) if draw.random() < 0.25 else 0.0  # share of the variance that is motion
    spread = max(rms * rms - 2 * camera.LENS_SIGMA**2, 0.0)
    return CameraState(
        model=camera.MODELS[draw.integers(len(camera.MODELS))],
        captured_at=moment,
        defocus=math.sqrt(2 * spread * (1 - moved)),
        motion=math.sqrt(12 * spread * moved),
        motion_angle=draw.uniform(0, math.pi),
        exposure=_clipped_normal(draw, 0.30, 1.0),
        noise=float(np.clip(draw.lognormal(math.log(1.6), 0.55), 0.4, 12)),
        jpeg_quality=int(draw.integers(70, 96)),
    )


@lru_cache(maxsize=4)
def _print(specimen: Specimen) -> tuple[bottle.Bottle, dot_matrix.Dots]:
    """A bottle with its code; kept for the next photographs of the same one."""
    draw = _random(specimen.seed, specimen.dataset, _BOTTLE, specimen.number)
    plate = bottle.random_bottle(draw)
    return plate, dot_matrix.lay_out(dot_matrix.random_text(draw), specimen.label, draw)


def _random(seed: int, name: str, purpose: int, number: int, photograph: int = 0) -> np.random.Generator:
    key = (NAMES.index(name), purpose, number, photograph)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _clipped_normal(draw: np.random.Generator, deviation: float, limit: float) -> float:
    return float(np.clip(draw.normal(0, deviation), -limit, limit))


def _render_all(shots: list[Shot], folder: Path, size: int, workers: int | None) -> Iterator[None]:
    """Render into the folder; yields once for each photograph that is in place."""
    render_one = partial(_render_to, folder=folder, size=size)
    if workers is None:
        workers = _usable_cores() if len(shots) >= _LEAST_FOR_PROCESSES else 1
    workers = min(workers, len(shots))
    # A daemonic process (a worker of another pool) may not have children.
    if workers <= 1 or multiprocessing.current_process().daemon:
        yield from map(render_one, shots)
        return
    # Spawned, not forked: the caller may run threads (Arrow, torch), whose locks a fork would copy locked.
    executor = ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=cv2.setNumThreads, initargs=(1,)
    )
    try:
        # Neighbouring shots share a specimen, which a worker keeps; but few enough for progress to move.
        yield from executor.map(render_one, shots, chunksize=min(10, math.ceil(len(shots) / workers)))
    finally:
        executor.shutdown(cancel_futures=True)


def _usable_cores() -> int:
    # Not every system can say which cores a process may use.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _render_to(shot: Shot, *, folder: Path, size: int) -> None:
    _put(folder / shot.file_name, render(shot, size))


def _put(path: Path, content: bytes) -> None:
    """The file appears complete or not at all; a name with a dot in front is not data."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _claim(output: Path, rendering: dict[str, int | str]) -> None:
    """Make the folder ours, or find that it is already; refuse any other content."""
    sidecar = output / SIDECAR
    output.mkdir(parents=True, exist_ok=True)
    if sidecar.exists():
        try:
            found = json.loads(sidecar.read_bytes())
        except ValueError:
            found = None
        if found != rendering:
            held = ", ".join(f"{key} {value}" for key, value in found.items()) if isinstance(found, dict) else "?"
            asked = ", ".join(f"{key} {value}" for key, value in rendering.items())
            raise ConfigurationError(
                f"output {str(output)!r} holds another rendering ({held}; asked for: {asked}); "
                "give another folder or delete this one"
            )
    elif any(not entry.name.startswith(".") for entry in os.scandir(output)):
        raise ConfigurationError(f"output {str(output)!r} holds other files; give a new or an empty folder")
    else:
        _put(sidecar, json.dumps(rendering, indent=1).encode() + b"\n")
    (output / IMAGES).mkdir(exist_ok=True)


def _write_manifest(shots: list[Shot], path: Path, rendering: dict[str, int | str]) -> None:
    """The manifest is written last: its presence means that every photograph is there."""
    columns = {
        "image_id": [shot.image_id for shot in shots],
        "uri": [f"{IMAGES}/{shot.file_name}" for shot in shots],
    }
    for column in SCHEMA.names[len(columns) :]:
        columns[column] = [getattr(shot, column) for shot in shots]
    described = SCHEMA.with_metadata({"printed_codes": json.dumps(rendering)})
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, schema=described), sink)
    _put(path, sink.getvalue().to_pybytes())


def _check_name(name: str) -> None:
    if name not in NAMES:
        close = difflib.get_close_matches(str(name), NAMES, n=1)
        meant = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigurationError(f"there is no data set {name!r}; {meant}choose one of {', '.join(NAMES)}")


def _check_size(size: int) -> None:
    if not _is_integer(size) or not MIN_SIZE <= size <= MAX_SIZE:
        raise ConfigurationError(f"size is {size!r}; give a whole number of pixels from {MIN_SIZE} to {MAX_SIZE}")


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)

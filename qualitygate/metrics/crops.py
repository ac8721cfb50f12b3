"""Networks that see 224-px crops: where the crops of a photograph lie, and one batch for those of many.

MANIQA and HyperIQA score a photograph by crops on a uniform grid. Crops of different photographs share a
batch, and crops that coincide (the grid's step is zero along a side under about 229 px) are computed once
and counted as often as the grid has them. Crops are made on the CPU, so they are the same on every device.

Suffixes: N crops, C channels, H and W pixels, K values a crop. Everything here needs torch.
"""

import hashlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import numpy.typing as npt
import torch

from qualitygate.errors import ConfigurationError, ErrorCode, Failure
from qualitygate.images.photograph import Photograph
from qualitygate.metrics.memory import is_out_of_memory, made_up, pixels, upload
from qualitygate.metrics.metric import Device, Score
from qualitygate.metrics.naming import shown
from qualitygate.metrics.precision import Precision
from qualitygate.metrics.reference import full_precision

logger = logging.getLogger(__name__)

SIDE = 224
# On which no two crops of a grid coincide.
_SIDE_OF_MADE_UP = 256

# A CPU computes one crop after another: oneDNN and MKL choose their kernels by the shape of the batch, and a
# score must not depend on its neighbours. A crop alone is work enough for the cores of one worker.
CPU_BATCH = 1


# ---- where crops lie -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Crop:
    """One distinct crop of a photograph's grid; `times` is how often the grid has it."""

    top: int
    left: int
    times: int


def enlarged(height: int, width: int) -> tuple[int, int, float]:
    """Size at which crops are taken, and the factor: 1 unless a side is 224 px or less.

    Then the shorter side becomes 225 (224 where the product rounds down), as in pyiqa's uniform_crop, whose
    comparison includes 224 itself.
    """
    shorter = min(height, width)
    if shorter > SIDE:
        return height, width, 1.0
    factor = (SIDE + 1) / shorter
    return int(height * factor), int(width * factor), factor


def grid(height: int, width: int, count: int) -> list[Crop]:
    """The distinct ones of `count` crops of a photograph, row by row.

    The grid is square with ceil(sqrt(count)) crops on a side, of which the first `count` are taken; its step
    is the free length divided by floor(sqrt(count)), so that 20 crops are four rows of five, and neither 20
    nor 25 reach the lower and right edges of a large photograph. These are pyiqa's choices since August 2024
    (the originals draw crops at random).
    """
    height, width, _ = enlarged(height, width)
    across, divisor = math.isqrt(count - 1) + 1, math.isqrt(count)
    down_step, across_step = (height - SIDE) // divisor, (width - SIDE) // divisor
    times: dict[tuple[int, int], int] = {}
    for index in range(count):
        row, column = divmod(index, across)
        position = (row * down_step, column * across_step)
        times[position] = times.get(position, 0) + 1
    return [Crop(top=top, left=left, times=n) for (top, left), n in times.items()]


def _sources(start: int, length: int, factor: float) -> tuple[slice, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Where 224 pixels from `start` on the enlarged axis come from.

    Returns the slice of the photograph's axis (of `length` pixels), the index of the lower and of the upper
    neighbour in that slice, and the upper one's weight. Positions are those of torch's interpolation: the
    ratio is rounded to float32, and so is the result, once (a fused multiply-add).
    """
    ratio = torch.tensor(1 / factor, dtype=torch.float32).double()
    centres = torch.arange(start, start + SIDE, dtype=torch.float64) + 0.5
    position = (ratio * centres - 0.5).float().clamp(min=0)
    lower = position.long().clamp(max=length - 1)
    upper = (lower + 1).clamp(max=length - 1)
    first = int(lower[0])
    return slice(first, int(upper[-1]) + 1), lower - first, upper - first, (position - lower).clamp(0, 1)


def cut(photograph: Photograph, crop: Crop, device: Device = "cpu") -> torch.Tensor:
    """A crop on the device: (224, 224, 3), uint8 pixels as they are, or float32 in [0, 1] where they are enlarged.

    On a GPU the photograph is uploaded once, and crops are views of it. What is enlarged comes from the CPU, so
    that it is the same everywhere; such photographs are small.

    Enlarging is bilinear with half-pixel centres (torch's interpolate, mode bilinear, by a scale factor), but
    only for the crop itself: enlarged as a whole, a strip of 3000 x 1 would take 1.8 GB.
    """
    _, _, factor = enlarged(photograph.height, photograph.width)
    if factor == 1:
        return pixels(photograph, device)[crop.top : crop.top + SIDE, crop.left : crop.left + SIDE]
    rows, above, below, down = _sources(crop.top, photograph.height, factor)
    columns, before, after, right = _sources(crop.left, photograph.width, factor)
    window = pixels(photograph, "cpu")[rows, columns].float() / 255
    down, right = down[:, None, None], right[:, None]
    across = window[:, before] * (1 - right) + window[:, after] * right
    return upload(across[above] * (1 - down) + across[below] * down, device)


def stack(crops: Sequence[torch.Tensor]) -> torch.Tensor:
    """Crops from `cut` as NCHW float32 in [0, 1], channels last in memory, on the device where they are."""
    if any(crop.is_floating_point() for crop in crops):
        crops = [crop if crop.is_floating_point() else crop.float() / 255 for crop in crops]
    pixels_NHWC = torch.stack(list(crops))
    if not pixels_NHWC.is_floating_point():
        pixels_NHWC = pixels_NHWC.float() / 255
    return pixels_NHWC.permute(0, 3, 1, 2)


# ---- from crops to scores --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Task:
    owner: int  # index of the photograph among those asked for
    crop: Crop


@dataclass(frozen=True, slots=True)
class _Done:
    tasks: Sequence[_Task]
    values_NK: torch.Tensor  # float64, on the device


class CropScorer:
    """Scores photographs of mixed sizes by a network on their crops; a Scorer (see metric.py).

    evaluate: (N, 3, 224, 224) normalised float32 -> (N, K).
    combine: (K,) float64, the values' sum over a photograph's grid -> its score.
    count: crops in the grid.
    mean, std: of R, G, B in [0, 1], for the normalisation.
    batch: most crops in one call of the network. It halves, and stays so, when memory doesn't suffice.
    padded: call the network with `batch` crops or a quarter of them and nothing else, the last ones filled up with
        zeros: a compiled network is compiled for each shape.
    """

    def __init__(
        self,
        evaluate: Callable[[torch.Tensor], torch.Tensor],
        combine: Callable[[npt.NDArray[np.float64]], float],
        *,
        name: str,
        count: int,
        mean: Sequence[float],
        std: Sequence[float],
        device: Device,
        batch: int,
        padded: bool = False,
    ) -> None:
        self._evaluate = evaluate
        self._combine = combine
        self._name = name
        self._count = count
        self._mean = torch.tensor(mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(std, device=device).view(1, 3, 1, 1)
        self._device = device
        self._padded = padded
        self.batch = batch

    def __call__(self, photographs: Sequence[Photograph]) -> list[Score]:
        """The score of each photograph, or why there is none."""
        failures: dict[int, Failure] = {}
        waiting: list[_Task] = []
        done: list[_Done] = []
        with torch.inference_mode(), full_precision():
            for task in self._tasks(photographs, failures):
                waiting.append(task)
                if len(waiting) >= self.batch:
                    self._run(waiting, photographs, done, failures)
                    waiting = []
            if waiting:
                self._run(waiting, photographs, done, failures)
            totals = _totals(done, len(photographs))
        return [failures[i] if i in failures else self._score(np.asarray(total)) for i, total in enumerate(totals)]

    def warm_up(self) -> None:
        """Score made-up photographs: a full batch of crops, and a quarter of one."""
        for size in (self.batch, -(-self.batch // 4)):
            self(made_up(-(-size // self._count), _SIDE_OF_MADE_UP))

    def _tasks(self, photographs: Sequence[Photograph], failures: dict[int, Failure]) -> Iterator[_Task]:
        for owner, photograph in enumerate(photographs):
            if min(photograph.height, photograph.width) < 1:
                failures[owner] = Failure(ErrorCode.TOO_SMALL, "the photograph has no pixels")
                continue
            for crop in grid(photograph.height, photograph.width, self._count):
                if owner in failures:
                    break
                yield _Task(owner, crop)

    def _run(
        self,
        tasks: list[_Task],
        photographs: Sequence[Photograph],
        done: list[_Done],
        failures: dict[int, Failure],
    ) -> None:
        """Compute the crops' values; in halves of the batch where memory ends."""
        tasks = [task for task in tasks if task.owner not in failures]
        begin = 0
        while begin < len(tasks):
            size = self._size(len(tasks) - begin)
            part = tasks[begin : begin + size]
            values = self._attempt(part, photographs, size)
            if isinstance(values, str):
                # The failed attempt's tensors are gone with its frame: now its memory can be given back.
                if self._device == "cuda":
                    torch.cuda.empty_cache()
                if (size if self._padded else len(part)) == 1:
                    failures[part[0].owner] = Failure(
                        ErrorCode.OUT_OF_MEMORY, f"{self._name}: no memory for a single crop: {values}"
                    )
                else:
                    # What was computed, padding included, was too much.
                    computed = size if self._padded else len(part)
                    self.batch = max(1, computed // 2)
                    logger.warning("%s: no memory for %d crops; going on with %d", self._name, computed, self.batch)
                self._run(tasks[begin:], photographs, done, failures)
                return
            done.append(_Done(part, values))
            begin += len(part)

    def _size(self, left: int) -> int:
        """Crops of the next call, where so many are left."""
        quarter = -(-self.batch // 4)
        return quarter if self._padded and -(-left // quarter) * quarter < self.batch else self.batch

    def _attempt(self, tasks: Sequence[_Task], photographs: Sequence[Photograph], size: int) -> torch.Tensor | str:
        """(N, K) on the device, or in words that there was not enough memory.

        On a GPU the values are still being computed when this returns, while the CPU prepares the next ones.
        """
        try:
            cuts = [cut(photographs[task.owner], task.crop, self._device) for task in tasks]
            pixels_NCHW = (stack(cuts) - self._mean) / self._std
            if self._padded and len(tasks) < size:
                pixels_NCHW = filled_up(pixels_NCHW, size)
            return self._evaluate(pixels_NCHW)[: len(tasks)].double()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return f"{error}".partition("\n")[0][:200]

    def _score(self, total: npt.NDArray[np.float64]) -> Score:
        score = self._combine(total) if np.isfinite(total).all() else math.nan
        return score if math.isfinite(score) else Failure(ErrorCode.NON_FINITE, f"{self._name} gave {total.tolist()}")


def filled_up(x_NCHW: torch.Tensor, size: int) -> torch.Tensor:
    """The same with zeros behind, (size, C, H, W), in the same order in memory."""
    filled = x_NCHW.new_zeros((size, *x_NCHW.shape[1:])).contiguous(memory_format=torch.channels_last)
    filled[: len(x_NCHW)] = x_NCHW
    return filled


def _totals(done: Sequence[_Done], photographs: int) -> list[npt.NDArray[np.float64] | float]:
    """The sum of each photograph's values over its grid."""
    totals: list[npt.NDArray[np.float64] | float] = [0.0] * photographs
    for part in done:
        for task, value in zip(part.tasks, part.values_NK.cpu().numpy(), strict=True):
            totals[task.owner] = totals[task.owner] + task.crop.times * value
    return totals


# ---- parameters ------------------------------------------------------------------------------------------


# Counts the batches of a training: no score depends on it, and files of before 2018 lack it. torch's strict loading
# makes one where there is none.
_COUNTER = "num_batches_tracked"


def load_strictly(network: torch.nn.Module, state: Mapping[str, torch.Tensor], name: str) -> None:
    """Give the network these parameters without copying them; ConfigurationError unless they are its own."""
    check_state(network, state, name)
    network.load_state_dict(state, strict=True, assign=True)


def check_state(network: torch.nn.Module, state: Mapping[str, torch.Tensor], name: str) -> None:
    """ConfigurationError unless keys and shapes match, and numbers are real, or indices, where the network's are."""
    expected = network.state_dict()
    needed = {key: tensor for key, tensor in expected.items() if not key.endswith(_COUNTER)}
    missing = [key for key in needed if key not in state]
    unexpected = [shown(key, quoted=False) for key in state if key not in expected]
    misshapen = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        if key in state and state[key].shape != tensor.shape
    ]
    mistyped: dict[bool, list[str]] = {True: [], False: []}
    for key, tensor in needed.items():
        given = state[key].dtype if key in state else tensor.dtype
        real = tensor.is_floating_point()
        if not given.is_floating_point if real else given != tensor.dtype:
            mistyped[real].append(f"{key} {str(given).removeprefix('torch.')}")
    problems = [
        f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for what, keys in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", misshapen),
            ("no real numbers", mistyped[True]),
            ("of another type", mistyped[False]),
        )
        if keys
    ]
    if problems:
        raise ConfigurationError(
            f"these weights are not those of {name}: of its {len(expected)} parameters {'; '.join(problems)}; "
            "check which file belongs to it with 'qualitygate weights list'"
        )


def check_precision(precision: str, name: str) -> None:
    """ConfigurationError unless the precision is one that networks are computed in."""
    if precision not in get_args(Precision):
        raise ConfigurationError(
            f"{name} has no precision {precision!r}; choose one of {', '.join(get_args(Precision))}"
        )


def seeded_uniform(key: str, shape: Sequence[int], seed: int, low: float, high: float) -> torch.Tensor:
    """float32 values in [low, high) that depend on the key and the seed alone.

    Uniform rather than normal: no transcendental function, so the same bits on every machine.
    """
    digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.rand(tuple(shape), generator=generator) * (high - low) + low


def seeded_weight(key: str, shape: Sequence[int], seed: int, gain: float = 1.0) -> torch.Tensor:
    """A weight of (out, in, ...) whose outputs have `gain` times the root mean square of its inputs."""
    bound = gain * math.sqrt(3 / math.prod(shape[1:]))
    return seeded_uniform(key, shape, seed, -bound, bound)

"""The five formulas on a GPU: photographs of one size together, each uploaded once, one read-out a group.

A formula there is a function of a batch of pixels that returns one row of numbers for each photograph; this module
gives it photographs of mixed sizes, bounds what it holds, and halves the group where memory ends. Scores are those
of the compiled kernels on a CPU: the same integers or float64 in another order. Everything here needs torch.

Suffixes: B photographs of one size, H and W pixels, K numbers.
"""

import logging
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from qualitygate.errors import ErrorCode, Failure
from qualitygate.images.photograph import Photograph
from qualitygate.metrics import memory
from qualitygate.metrics.compiling import Compiled
from qualitygate.metrics.metric import Device, Score
from qualitygate.metrics.reference import full_precision

logger = logging.getLogger(__name__)

# Pixels in work at once. Each costs some 150 bytes at the peak: a dozen planes of float64 and what they make.
PIXELS = 1 << 24
# Several of NIQE's blocks.
_SIDE_OF_MADE_UP = 256

Numbers = npt.NDArray[np.float64] | npt.NDArray[np.int64]


class BatchScorer:
    """A formula on tensors as a Scorer (see metric.py).

    measure: (B, H, W, 3) uint8 on the device -> (B, K).
    score: a photograph and its K numbers -> its score.
    refuse: why a photograph has no score whatever its pixels, if so.
    known: the score of a photograph for which another formula has left all that is needed, if so.
    """

    def __init__(
        self,
        measure: Callable[[torch.Tensor], torch.Tensor],
        score: Callable[[Photograph, Numbers], Score],
        refuse: Callable[[Photograph], Failure | None],
        *,
        known: Callable[[Photograph], Score | None] = lambda _: None,
        name: str,
        device: Device,
        compiled: bool = False,
        pixels: int = PIXELS,
    ) -> None:
        self._measure = Compiled(measure, name, dynamic=True) if compiled else measure
        self._score = score
        self._refuse = refuse
        self._known = known
        self._name = name
        self._device = device
        self._pixels = pixels

    def __call__(self, photographs: Sequence[Photograph]) -> list[Score]:
        """The score of each photograph, or why there is none."""
        scores: dict[int, Score] = {}
        sizes: dict[tuple[int, int], list[int]] = {}
        for index, photograph in enumerate(photographs):
            if failure := self._refuse(photograph):
                scores[index] = failure
            elif (score := self._known(photograph)) is not None:
                scores[index] = score
            else:
                sizes.setdefault((photograph.height, photograph.width), []).append(index)
        waiting = list(sizes.values())
        done: list[tuple[list[int], torch.Tensor]] = []
        with torch.inference_mode(), full_precision():
            while waiting:
                group = waiting.pop()
                area = photographs[group[0]].height * photographs[group[0]].width
                most = max(self._pixels // area, 1)
                if len(group) > most:
                    waiting.append(group[most:])
                    group = group[:most]
                values_BK = self._attempt([photographs[index] for index in group])
                if values_BK is not None:
                    done.append((group, values_BK))
                    continue
                if self._device == "cuda":
                    torch.cuda.empty_cache()
                if len(group) == 1:
                    scores[group[0]] = self._out_of_memory(photographs[group[0]])
                    continue
                self._pixels = area * (len(group) // 2)
                logger.warning("%s: no memory for %d photographs at once; halving", self._name, len(group))
                waiting.append(group)
            # Now the GPU is waited for, once.
            for group, values_BK in done:
                for index, row in zip(group, values_BK.cpu().numpy(), strict=True):
                    scores[index] = self._score(photographs[index], row)
        return [scores[index] for index in range(len(photographs))]

    def warm_up(self) -> None:
        """Score made-up photographs: two at once, which compiles, and one alone, which runs interpreted."""
        for count in (2, 1):
            self(memory.made_up(count, _SIDE_OF_MADE_UP))

    def _attempt(self, photographs: Sequence[Photograph]) -> torch.Tensor | None:
        try:
            pixels = [memory.pixels(photograph, self._device) for photograph in photographs]
            return self._measure(torch.stack(pixels))
        except (MemoryError, RuntimeError) as error:
            if not memory.is_out_of_memory(error):
                raise
            return None

    def _out_of_memory(self, photograph: Photograph) -> Failure:
        size = f"{photograph.width} x {photograph.height} pixels"
        return Failure(ErrorCode.OUT_OF_MEMORY, f"{self._name}: no memory for {size}")


def reflected(start: int, stop: int, step: int, size: int, device: torch.device) -> torch.Tensor:
    """Indices start, start + step, ... below stop into a symmetrically extended signal: ... 1 0 | 0 1 2 ..."""
    index = torch.arange(start, stop, step, device=device) % (2 * size)
    return torch.where(index < size, index, 2 * size - 1 - index)


def leading(x: torch.Tensor, dim: int, size: int) -> torch.Tensor:
    """The first `size` of x along `dim`.

    Compiled it is a gather, which is the same graph whether that is all of x or not; a view would be compiled once for
    each. Interpreted it is the view.
    """
    if torch.compiler.is_compiling():
        return x.index_select(dim, torch.arange(size, device=x.device))
    return x.narrow(dim, 0, size)

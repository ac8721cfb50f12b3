"""From a photograph to MUSIQ's tokens: patches of 32 x 32 pixels at three sizes, and where each patch was.

Ke 2021, section 3.1 and 3.2; google-research/musiq, preprocessing.py (Apache-2.0). The published PyTorch
checkpoints are used with bicubic resizing without antialiasing, where the release in TensorFlow resizes with
a Gaussian; this follows the former, because scores are compared with it. docs/metrics.md has the departures.

Suffixes of tensors: B photographs of one size, T tokens (n: some of them), C channels, H rows, W columns.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from qualitygate.errors import ErrorCode, ImageError
from qualitygate.images.photograph import Photograph

PATCH = 32  # pixels on a side, and the distance between patches: they don't overlap
GRID = 10  # positions are hashed to GRID x GRID, so that a photograph may have any number of patches
LONGER_SIDES = (224, 384)  # pixels to which the longer side is resized, besides the photograph as it is


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """One of the sizes at which a photograph is cut into patches, of `height` x `width` pixels."""

    index: int
    height: int
    width: int

    @property
    def rows(self) -> int:
        """Rows of patches; the first and the last may reach beyond the photograph."""
        return math.ceil(self.height / PATCH)

    @property
    def columns(self) -> int:
        """Columns of patches."""
        return math.ceil(self.width / PATCH)

    @property
    def count(self) -> int:
        """Patches at this scale."""
        return self.rows * self.columns


def scales(height: int, width: int) -> tuple[Scale, ...]:
    """The scales of a photograph of this size: longer side 224, longer side 384, as it is.

    Small photographs are enlarged. ImageError (too_small) where the shorter side is rounded to nothing at
    224: strips of 448 times their breadth and longer, for which the reference raises.
    """
    longer = max(height, width)
    found = []
    for index, side in enumerate(LONGER_SIDES):
        # round() takes halves to the even number, as the reference does.
        resized = [round(length * (side / longer)) if length else 0 for length in (height, width)]
        if 0 in resized:
            raise ImageError(
                ErrorCode.TOO_SMALL,
                f"{width} x {height} px: MUSIQ makes the longer side {side} px, where the shorter one vanishes; "
                f"the longer must be less than {2 * side} times the shorter",
            )
        found.append(Scale(index=index, height=resized[0], width=resized[1]))
    return (*found, Scale(index=len(LONGER_SIDES), height=height, width=width))


def count(layout: Sequence[Scale]) -> int:
    """Patches at all scales: the length of the sequence without its class token."""
    return sum(scale.count for scale in layout)


@functools.lru_cache(maxsize=64)
def places(layout: tuple[Scale, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Position in the hashed grid, 0 to 99, and scale index of each token: (T,) int64 both."""
    positions, indices = [], []
    for scale in layout:
        across = _hashed(scale.columns)
        positions.append((_hashed(scale.rows)[:, None] * GRID + across).ravel())
        indices.append(np.full(scale.count, scale.index, np.int64))
    return torch.from_numpy(np.concatenate(positions)), torch.from_numpy(np.concatenate(indices))


def _hashed(length: int) -> np.ndarray:
    """Cell of the grid for each of `length` patches (Ke 2021, eq. 1): (length,) int64.

    In float32, as where the checkpoints were trained: the 42nd of 205 patches falls into cell 1, where exact
    arithmetic says 2.
    """
    step = np.float32(GRID) / np.float32(length)
    return np.minimum(np.floor(np.arange(length, dtype=np.float32) * step), GRID - 1).astype(np.int64)


def patches(pixels_BHWC: torch.Tensor, layout: Sequence[Scale], most: int) -> Iterator[torch.Tensor]:
    """Patches in the order of their tokens, some at a time: (B, n, 3, 32, 32) float32 in [-1, 1].

    pixels_BHWC: uint8 RGB on the device that is to cut them. What is beyond the photograph is 0, mid-grey;
    it is shared out to both sides, the odd pixel below and to the right (TensorFlow's "SAME"). The
    photograph itself is never in memory as floats at once: only a band of rows of about `most` patches, or
    one channel.
    """
    *smaller, full = layout
    for scale in smaller:
        yield _cut(_resized(pixels_BHWC, scale), scale, 0, scale.rows)
    step = max(most // (len(pixels_BHWC) * full.columns), 1)
    top = (full.rows * PATCH - full.height) // 2
    for first in range(0, full.rows, step):
        last = min(first + step, full.rows)
        band = pixels_BHWC[:, max(first * PATCH - top, 0) : last * PATCH - top]
        yield _cut(_signed(band.permute(0, 3, 1, 2)), full, first, last)


def _signed(values: torch.Tensor) -> torch.Tensor:
    """Grey levels 0 to 255 to [-1, 1], in the reference's order of operations."""
    return (values.float() / 255 - 0.5) * 2


def _resized(pixels_BHWC: torch.Tensor, scale: Scale) -> torch.Tensor:
    """(B, 3, height, width) of the scale: bicubic with a = -0.75, pixel centres aligned, not antialiased."""
    size = (scale.height, scale.width)
    channels = [
        functional.interpolate(_signed(pixels_BHWC[None, ..., c]), size, mode="bicubic", align_corners=False)[0]
        for c in range(3)
    ]
    return torch.stack(channels, dim=1)


def _cut(band_BCHW: torch.Tensor, scale: Scale, first: int, last: int) -> torch.Tensor:
    """Rows `first` to `last` of a scale's patches, from the pixels of those rows: (B, n, 3, 32, 32)."""
    left = (scale.columns * PATCH - scale.width) // 2
    right = scale.columns * PATCH - scale.width - left
    above = (scale.rows * PATCH - scale.height) // 2 if first == 0 else 0
    below = (last - first) * PATCH - above - band_BCHW.shape[2]
    padded = functional.pad(band_BCHW, (left, right, above, below))
    cells = padded.unflatten(3, (scale.columns, PATCH)).unflatten(2, (last - first, PATCH))
    return cells.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """One photograph as the network's input.

    patches (T, 3 * 32 * 32) float32 in [-1, 1], channel by channel; positions (T,) int64, 0 to 99;
    scales (T,) int64, 0 to 2.
    """

    patches: torch.Tensor
    positions: torch.Tensor
    scales: torch.Tensor


def tokens(photograph: Photograph) -> Tokens:
    """All tokens of a photograph at once; ImageError (too_small) for strips, as `scales` has it."""
    layout = scales(photograph.height, photograph.width)
    positions, indices = places(layout)
    pixels = torch.from_numpy(photograph.rgb.copy())[None]
    cut = torch.cat(list(patches(pixels, layout, most=count(layout))), dim=1)
    return Tokens(patches=cut[0].flatten(1), positions=positions, scales=indices)

"""LAPV, LAPM and WAVS on tensors, for GPUs: what focus.py computes, for several photographs of one size.

The Laplacians' sums are the same integers, so their scores are equal to the bit; WAVS adds the same float64 numbers
in another order. Everything here needs torch.

Suffixes: B photographs of one size, H and W pixels.
"""

from collections.abc import Callable
from typing import Any

import torch

from qualitygate.errors import ErrorCode, Failure
from qualitygate.images.photograph import Photograph
from qualitygate.metrics import focus
from qualitygate.metrics.metric import Device, Score, Scorer
from qualitygate.metrics.tensors import BatchScorer, Numbers, leading, reflected

REACH = 5  # pairs beyond its own that a db6 projection needs on either side
LOW_BITS = (1 << 32) - 1


def luma(rgb_BHWC: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
    """1000 times Y = .299 R + .587 G + .114 B, whole numbers up to 255000: (B, H, W)."""
    red, green, blue = (rgb_BHWC[..., channel].to(kind) for channel in range(3))
    return 299 * red + 587 * green + 114 * blue


def laplacian_sums(rgb_BHWC: torch.Tensor) -> torch.Tensor:
    """Exact sums over the pixels: (B, 4) int64.

    Of 6000 L; of the upper and the lower 32 bits of each (6000 L)^2, because their sum overflows;
    of 1000 (|Lx| + |Ly|). L, Lx and Ly as in focus.py, borders replicated.
    """
    luma_BHW = luma(rgb_BHWC, torch.int32)
    luma_BHW = torch.cat([luma_BHW[:, :1], luma_BHW, luma_BHW[:, -1:]], dim=1)
    luma_BHW = torch.cat([luma_BHW[..., :1], luma_BHW, luma_BHW[..., -1:]], dim=2)
    above, here, below = luma_BHW[:, :-2], luma_BHW[:, 1:-1], luma_BHW[:, 2:]
    twice = 2 * here[..., 1:-1]
    upright = above[..., 1:-1] + below[..., 1:-1]
    side = here[..., :-2] + here[..., 2:]
    corners = above[..., :-2] + above[..., 2:] + below[..., :-2] + below[..., 2:]
    full = (corners + 4 * (upright + side) - 10 * twice).long()
    modified = (twice - side).abs() + (twice - upright).abs()
    squares_BHW = full * full
    return torch.stack(
        [
            full.sum(dim=(1, 2)),
            (squares_BHW >> 32).sum(dim=(1, 2)),
            (squares_BHW & LOW_BITS).sum(dim=(1, 2)),
            modified.sum(dim=(1, 2), dtype=torch.int64),
        ],
        dim=1,
    )


def high_pass(x: torch.Tensor, dim: int, high: list[float], back: list[float]) -> torch.Tensor:
    """The part of x that db6's high-pass filters keep along `dim`, symmetrically extended; x's shape.

    high: 12 analysis taps. back: 12 synthesis taps, even ones backwards, then odd ones (focus.py).
    """
    size = x.shape[dim]
    pairs = (size + 1) // 2
    held = pairs + 2 * REACH
    even, odd = (
        x.index_select(dim, reflected(first, first + 2 * held, 2, size, x.device))
        for first in (-2 * REACH, -2 * REACH + 1)
    )
    count = pairs + REACH
    detail = high[0] * odd.narrow(dim, 5, count) + high[1] * even.narrow(dim, 5, count)
    for tap in range(1, 6):
        detail = detail + high[2 * tap] * odd.narrow(dim, 5 - tap, count)
        detail = detail + high[2 * tap + 1] * even.narrow(dim, 5 - tap, count)
    parts = []
    for taps in (back[:6], back[6:]):
        part = taps[0] * detail.narrow(dim, 0, pairs)
        for place in range(1, 6):
            part = part + taps[place] * detail.narrow(dim, place, pairs)
        parts.append(part)
    return leading(torch.stack(parts, dim=dim + 1).flatten(dim, dim + 1), dim, size)


def wavelet_sum(rgb_BHWC: torch.Tensor, high: list[float], back: list[float]) -> torch.Tensor:
    """1000 times the sum of |H| + |V| + |D| over the pixels, as in focus_kernels.py: (B, 1) float64."""
    luma_BHW = luma(rgb_BHWC, torch.float64)
    luma_BHW = luma_BHW - luma_BHW[:, :1, :1]
    across = high_pass(luma_BHW, 2, high, back)
    diagonal = high_pass(across, 1, high, back)
    down = high_pass(luma_BHW, 1, high, back)
    return ((down - diagonal).abs() + (across - diagonal).abs() + diagonal.abs()).sum(dim=(1, 2))[:, None]


def _laplacians(
    score: Callable[[Photograph], Score], refuse: Callable[[Photograph], Failure | None], more: dict[str, Any]
) -> Scorer:
    """LAPV or LAPM, from sums that they share: whichever comes second finds them with the photograph."""

    def finish(photograph: Photograph, row: Numbers) -> Score:
        first, upper, lower, modified = (int(number) for number in row)
        photograph.once(focus.SUMS, lambda _: (first, (upper << 32) + lower, modified))
        return score(photograph)

    def known(photograph: Photograph) -> Score | None:
        return score(photograph) if photograph.has(focus.SUMS) else None

    return BatchScorer(laplacian_sums, finish, refuse, known=known, **more)


def _wavs(photograph: Photograph, row: Numbers) -> Score:
    return float(row[0]) / (1000 * photograph.height * photograph.width)


def _refuse_a_pixel(photograph: Photograph) -> Failure | None:
    if photograph.height * photograph.width < 2:
        return Failure(ErrorCode.TOO_SMALL, "1 pixel; a sample variance needs 2 or more")
    return None


def load(name: str, device: Device, *, compiled: bool = False) -> Scorer:
    """The scorer of `lapv`, `lapm` or `wavs` on tensors."""
    more: dict[str, Any] = {"name": name, "device": device, "compiled": compiled}
    if name == "wavs":
        high, back = (taps.tolist() for taps in focus.wavelet_filters())
        return BatchScorer(lambda rgb: wavelet_sum(rgb, high, back), _wavs, lambda _: None, **more)
    if name == "lapv":
        return _laplacians(focus.lapv, _refuse_a_pixel, more)
    return _laplacians(focus.lapm, lambda _: None, more)

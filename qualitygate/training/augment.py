"""Small changes of photographs while training: shift, scale, brightness. Never a flip or a quarter turn.

Mirror images and turned ones may be another class: which way a dot matrix slants tells two printers apart.
What is drawn follows from (seed, epoch, position) alone, so a resumed training sees what an undisturbed one does.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

MAX_SHIFT = 0.02  # of a side
MAX_SCALE = 0.03
MAX_BRIGHTNESS = 0.1
# What a random stream is for.
_ORDER, _CHANGES, _NETWORK = range(3)


def order(count: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """The positions 0 to count - 1 in an epoch's own order."""
    return np.random.default_rng((seed, epoch, _ORDER)).permutation(count)


def network_seed(seed: int, epoch: int, rank: int = 0) -> int:
    """For torch's own generator, which dropout draws from."""
    return int(np.random.default_rng((seed, epoch, _NETWORK, rank)).integers(2**63))


def changes(count: int, seed: int, epoch: int) -> Tensor:
    """(count, 4) float32 for an epoch: shift right and down in half sides, scale, brightness, by position."""
    random = np.random.default_rng((seed, epoch, _CHANGES))
    most = np.array((2 * MAX_SHIFT, 2 * MAX_SHIFT, MAX_SCALE, MAX_BRIGHTNESS))
    drawn = np.array((0, 0, 1, 1)) + most * random.uniform(-1, 1, (count, 4))
    return torch.from_numpy(drawn.astype(np.float32))


def altered(x_NCHW: Tensor, changed_N4: Tensor) -> Tensor:
    """Photographs of values in [0, 1], each with its own change; what comes in from outside repeats the border."""
    right, down, scale, brightness = changed_N4.unbind(1)
    nothing = torch.zeros_like(scale)
    theta = torch.stack([1 / scale, nothing, -right, nothing, 1 / scale, -down], dim=1).reshape(-1, 2, 3)
    grid = functional.affine_grid(theta, list(x_NCHW.shape), align_corners=False)
    moved = functional.grid_sample(x_NCHW, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return (moved * brightness[:, None, None, None]).clamp_(0, 1)

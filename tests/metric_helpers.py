"""Photographs and scorers that tests of metrics share."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import skimage.data
import torch

from qualitygate.metrics import crops
from qualitygate.metrics.metric import Device

Pixels = npt.NDArray[np.uint8]

CLEAN = ("astronaut", "coffee", "chelsea", "brick", "grass", "gravel", "moon", "coins", "clock")
WITH_FLAT_PARTS = ("camera", "rocket", "immunohistochemistry", "text")


def load(name: str) -> Pixels:
    """(H, W, 3) uint8 RGB of a photograph that needs no download."""
    pixels = getattr(skimage.data, name)()
    return np.ascontiguousarray(np.stack([pixels] * 3, -1) if pixels.ndim == 2 else pixels[..., :3])


def crop_scorer(
    evaluate: Callable[[torch.Tensor], torch.Tensor],
    batch: int = 8,
    count: int = 20,
    *,
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0),
    device: Device = "cpu",
    padded: bool = False,
) -> crops.CropScorer:
    """A scorer of 20 crops whose score is the mean of the first value over them."""
    return crops.CropScorer(
        evaluate,
        lambda total: float(total[0]) / count,
        name="mean red",
        count=count,
        mean=mean,
        std=(1.0, 1.0, 1.0),
        device=device,
        batch=batch,
        padded=padded,
    )

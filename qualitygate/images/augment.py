"""Series of one sharp photograph: cropped, rotated and blurred step by step, to see what a metric reacts to.

    crops_from_corner   the paper's: 1/20 of each side less at a time, from the bottom and the right
    crops_centred       the same sizes about the middle, where the subject stays in the frame
    rotations           0 to 75 degrees through one window, every angle interpolated, 0 degrees too
    rendered_blur       a defocus disk that grows by a set increment

The first step of each series is the undisturbed photograph, as far as that series can have it. Nothing is random.

Shapes: H, W = rows and columns; photographs are (H, W, 3) uint8 RGB.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from qualitygate.images import camera

UInt8 = npt.NDArray[np.uint8]
Interpolation = Literal["lanczos", "cubic", "linear"]

CROP_STEPS = 10  # the photograph itself and nine crops
CROP_PARTS = 20  # each takes 1/20 of the photograph's sides: the last keeps 11/20
ANGLES = (0, 15, 30, 45, 60, 75)  # degrees
BLUR_SIGMAS = tuple(0.5 * step for step in range(10))  # pixels, standard deviation of the disk along one axis

# Smaller windows hold too little of a photograph to be called one.
MIN_WINDOW = 16
# Lanczos reaches 4 pixels; the rest is for the shift and for a window that lies off the centre by half a pixel.
_MARGIN = 6
# Where 0 degrees samples between pixels. Interpolation softens by an amount that depends on this phase p, and a
# turned photograph meets all phases alike. Linear interpolation loses power as p (1 - p), whose mean, 1/6, is met at
# .211 (a node of two-point Gauss quadrature); Lanczos and cubic nearly as sin^2(pi p), whose mean is met at 1/4
# (computed from the kernels, for white noise and for its Laplacian: .250 and .245). So 0 degrees loses what the other
# angles lose.
_PHASE = {"lanczos": 0.25, "cubic": 0.25, "linear": (1 - math.sqrt(1 / 3)) / 2}
_TABLE = 1 << 16
_SUBSAMPLES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One step of a series. parameter: remaining share of the sides, degrees, or sigma in pixels."""

    step: int
    parameter: float
    rgb: UInt8


def crops_from_corner(rgb: UInt8) -> Iterator[Variant]:
    """Ten photographs that keep 20/20 to 11/20 of each side, cut from the bottom and the right.

    The paper's section 2.1 by its step; its text says that the last has 1/4 of the resolution, while nine
    steps of 1/20 leave .55 of each side, .30 of the area. A cut changes the content too.
    """
    for step, (height, width) in enumerate(_crop_sizes(rgb)):
        yield Variant(step=step, parameter=_share(step), rgb=_copied(rgb[:height, :width]))


def crops_centred(rgb: UInt8) -> Iterator[Variant]:
    """Ten photographs of the same sizes as `crops_from_corner`, about the middle."""
    for step, (height, width) in enumerate(_crop_sizes(rgb)):
        top, left = (rgb.shape[0] - height) // 2, (rgb.shape[1] - width) // 2
        yield Variant(step=step, parameter=_share(step), rgb=_copied(rgb[top : top + height, left : left + width]))


def _share(step: int) -> float:
    return (CROP_PARTS - step) / CROP_PARTS


def _crop_sizes(rgb: UInt8) -> Iterator[tuple[int, int]]:
    height, width = rgb.shape[:2]
    for step in range(CROP_STEPS):
        yield _kept(height, step), _kept(width, step)


def _kept(side: int, step: int) -> int:
    """Rounded half up in whole numbers, so that no float decides a size."""
    return max(1, (2 * side * (CROP_PARTS - step) + CROP_PARTS) // (2 * CROP_PARTS))


def window_side(height: int, width: int) -> int:
    """Side in pixels of the largest square inside the photograph at every angle; 0 if there is none to speak of.

    At 45 degrees half its diagonal must fit into half the shorter side. That binds any rectangle by the sum of its
    sides, so the square is the largest of them.
    """
    side = int((min(height, width) - 2 * _MARGIN) / math.sqrt(2))
    return side if side >= MIN_WINDOW else 0


def window(rgb: UInt8) -> UInt8 | None:
    """The pixels of the rotations' window, not interpolated; None where the photograph is too small for one."""
    side = window_side(*rgb.shape[:2])
    if not side:
        return None
    top, left = (rgb.shape[0] - side) // 2, (rgb.shape[1] - side) // 2
    return _copied(rgb[top : top + side, left : left + side])


def rotations(rgb: UInt8, interpolation: Interpolation = "lanczos") -> Iterator[Variant]:
    """The photograph turned by 0, 15, ... 75 degrees, seen through one square window; nothing if it is too small.

    Every angle goes through the same interpolation: 0 degrees is shifted by about a quarter of a pixel, where the
    loss equals the mean loss of the other angles. No pixel from outside the photograph enters.
    """
    import cv2

    flags = {"lanczos": cv2.INTER_LANCZOS4, "cubic": cv2.INTER_CUBIC, "linear": cv2.INTER_LINEAR}[interpolation]
    height, width = rgb.shape[:2]
    side = window_side(height, width)
    if not side:
        return
    # Only the middle square matters, and OpenCV refuses sides above 32,767.
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    middle = np.ascontiguousarray(rgb[top : top + short, left : left + short])
    x, y = (width - side) // 2 - left, (height - side) // 2 - top  # the window's corner at 0 degrees
    half, phase = (side - 1) / 2, _PHASE[interpolation]
    for step, angle in enumerate(ANGLES):
        cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        # From a pixel of the window to a place in the photograph, about the window's centre.
        transform = np.array(
            [
                [cosine, -sine, x + half + phase - cosine * half + sine * half],
                [sine, cosine, y + half + phase - sine * half - cosine * half],
            ]
        )
        turned = cv2.warpAffine(
            middle, transform, (side, side), flags=flags | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT_101
        )
        yield Variant(step=step, parameter=float(angle), rgb=_copied(turned))


def rendered_blur(rgb: UInt8) -> Iterator[Variant]:
    """The photograph itself, then nine defocus disks whose sigma grows by half a pixel each, up to 4.5.

    A disk of radius R has sigma R / 2 along each axis; the pixels that a small one is drawn in widen it (.63 for the
    nominal .5, 1.06 for 1, 4.51 for 4.5). Light is linear while it is blurred (sRGB's curve taken
    off and put back), as behind a lens. Unlike a lens it also blurs the sensor's noise, the file's artefacts and
    clipped highlights: the reason never to pool it with photographed series.
    """
    for step, sigma in enumerate(BLUR_SIGMAS):
        yield Variant(step=step, parameter=sigma, rgb=_copied(rgb) if sigma == 0 else _defocused(rgb, 2 * sigma))


def _defocused(rgb: UInt8, radius: float) -> UInt8:
    import cv2

    to_light, to_levels = _tables()
    kernel = _disk(radius)
    blurred = np.empty_like(rgb)
    for channel in range(3):  # one at a time: linear light takes 4 bytes a value
        light = to_light[rgb[..., channel]]
        light = cv2.filter2D(light, cv2.CV_32F, kernel, borderType=cv2.BORDER_REFLECT_101)
        steps = np.clip(light * np.float32(_TABLE - 1) + np.float32(0.5), 0, _TABLE - 1)
        blurred[..., channel] = to_levels[steps.astype(np.uint16)]
    return blurred


@lru_cache(maxsize=1)
def _tables() -> tuple[npt.NDArray[np.float32], UInt8]:
    """sRGB levels to linear light, and light in 65,536 steps to levels."""
    to_light = camera.linearise(np.arange(256, dtype=np.uint8), 0.0).astype(np.float32)
    levels = camera.tone(np.arange(_TABLE) / (_TABLE - 1), 0.0)
    return to_light, np.floor(levels * 255 + 0.5).astype(np.uint8)


@lru_cache(maxsize=16)
def _disk(radius: float) -> npt.NDArray[np.float32]:
    """Share of each pixel that a disk about the middle one covers; sums to 1."""
    reach = math.ceil(radius - 0.5)
    pixels = 2 * reach + 1
    places = (np.arange(pixels * _SUBSAMPLES) + 0.5) / _SUBSAMPLES - reach - 0.5
    inside = np.hypot(places[:, None], places[None, :]) <= radius
    covered = inside.reshape(pixels, _SUBSAMPLES, pixels, _SUBSAMPLES).mean(axis=(1, 3))
    kernel: npt.NDArray[np.float32] = (covered / covered.sum()).astype(np.float32)
    return kernel


def _copied(rgb: UInt8) -> UInt8:
    """An array of its own, C-contiguous and writable: what compiled kernels are built for."""
    return np.array(rgb, dtype=np.uint8, order="C")

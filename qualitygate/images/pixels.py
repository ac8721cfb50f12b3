"""Arithmetic from stored samples to 8-bit RGB: 16 to 8 bits, alpha on white, orientation.

Large arrays are worked on in bands of about a million pixels, so that intermediate values of wider types
don't multiply the peak memory.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL.Image import Image

UInt8 = npt.NDArray[np.uint8]
UInt16 = npt.NDArray[np.uint16]

_BAND_PIXELS = 1 << 20


def bands(height: int, width: int) -> Iterator[slice]:
    """Row ranges of about a million pixels each that cover `height` rows."""
    rows = max(1, _BAND_PIXELS // max(1, width))
    for top in range(0, height, rows):
        yield slice(top, min(top + rows, height))


def to_eight_bits(samples: UInt16) -> UInt8:
    """round(v * 255 / 65535), which is round(v / 257), exactly."""
    out = np.empty(samples.shape, np.uint8)
    for rows in bands(samples.shape[0], samples[0].size):
        out[rows] = (samples[rows].astype(np.uint32) + 128) // 257
    return out


def on_white(rgba: UInt8) -> UInt8:
    """Composites (H, W, 4) with straight alpha on white: round((c * a + 255 * (255 - a)) / 255)."""
    out = np.empty((*rgba.shape[:2], 3), np.uint8)
    for rows in bands(*rgba.shape[:2]):
        if rgba[rows, :, 3].min() == 255:
            out[rows] = rgba[rows, :, :3]
            continue
        alpha = rgba[rows, :, 3:].astype(np.uint16)
        mixed = rgba[rows, :, :3] * alpha + 255 * (255 - alpha) + 128
        out[rows] = (mixed + (mixed >> 8)) >> 8  # an exact division by 255 for every value met here
    return out


def on_white_16(rgba: UInt16) -> UInt8:
    """Composites (H, W, 4) 16-bit samples on white, then scales to 8 bits, with one rounding."""
    out = np.empty((*rgba.shape[:2], 3), np.uint8)
    for rows in bands(*rgba.shape[:2]):
        alpha = rgba[rows, :, 3:].astype(np.uint64)
        mixed = rgba[rows, :, :3] * alpha + 65535 * (65535 - alpha)
        out[rows] = (mixed + 65535 * 257 // 2) // (65535 * 257)
    return out


def cmyk_to_rgb(inks: UInt8, *, inverted: bool) -> UInt8:
    """(H, W, 4) to RGB without a profile: round((255 - ink) * (255 - black) / 255).

    inverted: samples count paper left white, as Adobe writes them into JPEG.
    """
    out = np.empty((*inks.shape[:2], 3), np.uint8)
    for rows in bands(*inks.shape[:2]):
        light = inks[rows] if inverted else 255 - inks[rows]
        mixed = light[..., :3].astype(np.uint16) * light[..., 3:] + 128
        out[rows] = (mixed + (mixed >> 8)) >> 8
    return out


def grey_to_rgb(grey: UInt8) -> UInt8:
    """(H, W) to (H, W, 3)."""
    out = np.empty((*grey.shape, 3), np.uint8)
    out[...] = grey[..., None]
    return out


def white_canvas(height: int, width: int, part: UInt8, left: int, top: int) -> UInt8:
    """`part` placed on a white canvas; returned as it is where it covers the canvas."""
    if part.shape[:2] == (height, width) and (left, top) == (0, 0):
        return part
    canvas = np.full((height, width, 3), 255, np.uint8)
    canvas[top : top + part.shape[0], left : left + part.shape[1]] = part
    return canvas


def view_upright(rgb: UInt8, orientation: int) -> UInt8:
    """The photograph as EXIF orientation 1-8 means it to be seen; a view, without a copy."""
    if orientation >= 5:
        rgb = rgb.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        rgb = rgb[::-1]
    if orientation in (2, 3, 6, 7):
        rgb = rgb[:, ::-1]
    return rgb


def view_as_stored(upright: UInt8, orientation: int) -> UInt8:
    """Undoes `view_upright`."""
    # Rotations by a quarter turn undo each other; all the others undo themselves.
    return view_upright(upright, {6: 8, 8: 6}.get(orientation, orientation))


def turn_upright(rgb: UInt8, orientation: int) -> UInt8:
    """`view_upright` as a C-contiguous array: flips in place where possible, one copy for quarter turns."""
    import cv2

    if orientation == 1:
        return np.ascontiguousarray(rgb)
    if orientation >= 5:
        rgb = cv2.transpose(rgb)
    elif not (rgb.flags.c_contiguous and rgb.flags.writeable):
        rgb = rgb.copy()
    upside_down, mirrored = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    if upside_down or mirrored:
        cv2.flip(rgb, -1 if upside_down and mirrored else 0 if upside_down else 1, dst=rgb)
    return rgb


def from_pillow(image: "Image") -> UInt8:
    """(H, W, C) or (H, W) samples of a loaded Pillow image in its own mode, without a second full copy."""
    first: npt.NDArray[np.uint8] | None = None
    for rows in bands(image.height, image.width):
        # The core's crop: Image.crop applies Pillow's own global pixel bound, which isn't ours.
        part = np.asarray(image._new(image.im.crop((0, rows.start, image.width, rows.stop))))
        if first is None:
            first = np.empty((image.height, *part.shape[1:]), part.dtype)
        first[rows] = part
    assert first is not None  # an image has at least one row: Bound.admit
    return first

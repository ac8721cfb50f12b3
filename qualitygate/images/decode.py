"""Bytes to a photograph: format by content, orientation and box applied, strict about anything missing.

    decode(bytes) → sniff.py (which format) → formats/*.py (stored pixels) → upright → box → resolution

A photograph is scored from all its pixels or not at all: a file that ends early is `truncated`, also where
the decoder would have filled the rest with grey in silence. Each format's module says what is complete.

Not applied: ICC profiles and gamma (scores are of the stored values, as in the published implementations of
the metrics), XMP orientation. Alpha goes on white; 16 bits are scaled to 8.

Peak memory beside the file's own bytes, per pixel of the whole photograph: 3 bytes for a baseline JPEG, 6-9
for a progressive one, 3-15 for other formats (their modules say; a TIFF's single strip of LZW, PackBits or JPEG
comes on top); a quarter turn or a box adds 3.

Thread-safe: no global of a library is changed, none is read but the number of OpenCV's threads, which doesn't
change a pixel. Nothing is printed.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import numpy as np

from qualitygate.errors import ConfigurationError, ErrorCode, ImageError
from qualitygate.images import sniff
from qualitygate.images.formats import bmp, gif, heif, jpeg, png, tiff, webp
from qualitygate.images.photograph import Photograph
from qualitygate.images.pixels import (
    UInt8,
    grey_to_rgb,
    on_white,
    turn_upright,
    view_as_stored,
    view_upright,
)
from qualitygate.images.raster import Bound, Raster
from qualitygate.images.sniff import Format

# Raised whenever the same bytes may give other pixels; part of every metric's fingerprint.
DECODER_VERSION = 1
# The same for what a GPU decodes, under --decoder nvjpeg.
NVJPEG_VERSION = 1

Box = tuple[int, int, int, int]  # x, y, w, h in pixels of the oriented, full-resolution photograph

_READERS: dict[Format, Callable[[bytes, Bound], Raster]] = {
    Format.JPEG: jpeg.read,
    Format.PNG: png.read,
    Format.WEBP: webp.read,
    Format.TIFF: tiff.read,
    Format.BMP: bmp.read,
    Format.GIF: gif.read,
    Format.AVIF: heif.read_avif,
    Format.HEIF: heif.read_heif,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodePolicy:
    """What may be decoded, and at which resolution it is scored.

    Attributes:
        max_pixels: width times height above which a photograph is `too_large`, decided from its header.
        longest_side: None scores native resolution. N averages areas down to a longest side of at most N
            (OpenCV's INTER_AREA; never up); changes scores, hence part of the fingerprint.
        decoder: "nvjpeg" lets a GPU decode plain JPEGs, where there is one, and this module the rest. Its pixels are
            others, hence part of the fingerprint.
    """

    max_pixels: int = 100_000_000
    longest_side: int | None = None
    decoder: Literal["strict", "nvjpeg"] = "strict"

    def __post_init__(self) -> None:
        if self.max_pixels < 1:
            raise ConfigurationError(f"max_pixels is {self.max_pixels}; give at least 1")
        if self.longest_side is not None and self.longest_side < 1:
            raise ConfigurationError(f"longest_side is {self.longest_side}; give at least 1, or leave it out")
        if self.longest_side is not None and self.decoder == "nvjpeg":
            raise ConfigurationError(
                f"longest_side is {self.longest_side}, and what nvjpeg decodes stays on the GPU, where nothing resizes "
                "it: leave one of the two out"
            )

    def describe(self) -> dict[str, Any]:
        """What of this changes a score, as JSON: for the fingerprint."""
        resolution = "native" if self.longest_side is None else f"longest_side={self.longest_side}"
        if self.decoder == "nvjpeg":
            return {"decoder": f"nvjpeg {NVJPEG_VERSION}, else {DECODER_VERSION}", "resolution": resolution}
        return {"decoder": DECODER_VERSION, "resolution": resolution}


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """A photograph and what its file says about it.

    Attributes:
        photograph: RGB uint8, C-contiguous, after orientation, box and resolution policy.
        width, height: of the whole oriented photograph, before box and resolution.
        make, model: of the camera, from EXIF; bounded, without control characters.
        captured_at: local time as recorded, without a zone; None where absent or malformed.
    """

    photograph: Photograph
    width: int
    height: int
    make: str | None
    model: str | None
    captured_at: datetime | None


def decode(data: bytes, policy: DecodePolicy = DecodePolicy(), box: Box | None = None) -> Decoded:
    """The photograph in `data`, or in `box` of it. Raises `ImageError`, whatever the bytes."""
    bound = Bound(policy.max_pixels)
    try:
        raster = _READERS[sniff.identify(data)](data, bound)
        return _finish(raster, policy, box)
    except MemoryError as error:
        message = "not enough memory to decode it"
        raise ImageError(ErrorCode.OUT_OF_MEMORY, message, width=bound.width, height=bound.height) from error
    except ImageError as error:
        if error.width is None:
            error.width, error.height = bound.width, bound.height
        raise


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """A JPEG that a GPU may decode: data[:end] is the picture, to be turned by `orientation` and cut to `box`.

    Attributes:
        width, height: of the whole oriented photograph.
        make, model, captured_at: as in `Decoded`.
    """

    data: bytes
    end: int
    orientation: int
    box: Box | None
    width: int
    height: int
    make: str | None
    model: str | None
    captured_at: datetime | None

    @property
    def pixels(self) -> int:
        """Of the whole photograph."""
        return self.width * self.height


def for_a_gpu(data: bytes, policy: DecodePolicy, box: Box | None = None) -> Encoded | None:
    """The file as a GPU may decode it; None for what `decode` must. Raises `ImageError` as `decode` for headers."""
    if policy.decoder != "nvjpeg" or sniff.identify(data) is not Format.JPEG:
        return None
    bound = Bound(policy.max_pixels)
    try:
        found = jpeg.plain(data, bound)
    except ImageError as error:
        error.width, error.height = bound.width, bound.height
        raise
    if found is None:
        return None
    orientation = found.exif.orientation
    width, height = (found.width, found.height) if orientation < 5 else (found.height, found.width)
    if box is not None:
        _check_box(box, width, height)
    return Encoded(
        data=data,
        end=found.end,
        orientation=orientation,
        box=box,
        width=width,
        height=height,
        make=found.exif.make,
        model=found.exif.model,
        captured_at=found.exif.captured_at,
    )


def pixels_by_header(data: bytes) -> int:
    """How many pixels the file's header promises, by what its reader would ask for; 0 where it will refuse the file.

    Nothing is decoded: a fraction of a millisecond, most of it for walking over a JPEG's markers.
    """
    bound = _HeaderOnly()
    with suppress(ImageError, MemoryError):
        _READERS[sniff.identify(data)](data, bound)
    return (bound.width or 0) * (bound.height or 0)


class _HeaderOnly(Bound):
    """Admits nothing: readers ask before any pixel is decoded."""

    def __init__(self) -> None:
        super().__init__(max_pixels=0)


def photograph_of(pixels: UInt8, policy: DecodePolicy) -> Photograph:
    """Pixels that were never a file, as a decoder would hand them over.

    pixels: (H, W) grey, (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA, uint8; alpha is composited on white.
    Raises `ImageError` (`too_large`, `undecodable` for an empty array).
    """
    height, width = pixels.shape[:2]
    Bound(policy.max_pixels).admit(width, height)
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        rgb = grey_to_rgb(pixels.reshape(height, width))
    elif pixels.shape[2] == 4:
        rgb = on_white(pixels)
    else:
        # Writable too: compiled kernels are built for such arrays alone. A read-only one is copied.
        rgb = np.require(pixels, requirements=["C", "W"])
    return Photograph(rgb=_at_resolution(rgb, policy.longest_side))


def _finish(raster: Raster, policy: DecodePolicy, box: Box | None) -> Decoded:
    height, width = view_upright(raster.rgb, raster.orientation).shape[:2]
    rgb = _upright_part(raster, box, width, height)
    return Decoded(
        photograph=Photograph(rgb=_at_resolution(rgb, policy.longest_side)),
        width=width,
        height=height,
        make=raster.exif.make,
        model=raster.exif.model,
        captured_at=raster.exif.captured_at,
    )


def _upright_part(raster: Raster, box: Box | None, width: int, height: int) -> UInt8:
    """Cuts before it turns, so that the copy is of the box alone."""
    if box is None:
        return turn_upright(raster.rgb, raster.orientation)
    _check_box(box, width, height)
    x, y, w, h = box
    part = view_upright(raster.rgb, raster.orientation)[y : y + h, x : x + w]
    return turn_upright(view_as_stored(part, raster.orientation).copy(), raster.orientation)


def _check_box(box: Box, width: int, height: int) -> None:
    x, y, w, h = box
    if w < 1 or h < 1 or x < 0 or y < 0 or x + w > width or y + h > height:
        raise ImageError(
            ErrorCode.UNSUPPORTED,
            f"the box x={x} y={y} {w}x{h} doesn't lie inside the photograph of {width}x{height}",
            width=width,
            height=height,
        )


def _at_resolution(rgb: UInt8, longest_side: int | None) -> UInt8:
    """Area-averaged to a longest side of at most `longest_side`; sides are rounded, never below 1."""
    height, width = rgb.shape[:2]
    if longest_side is None or max(height, width) <= longest_side:
        return rgb
    import cv2

    scale = longest_side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    try:
        return cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError from error
        raise

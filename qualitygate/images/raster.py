"""What a format's reader returns, and the pixel bound that it asks before it decodes."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qualitygate.errors import ErrorCode, ImageError
from qualitygate.images.exif import NONE, Exif


@dataclass(frozen=True, slots=True, kw_only=True)
class Raster:
    """Decoded pixels as stored in the file.

    rgb: (H, W, 3) uint8 RGB, C-contiguous, writable, not yet oriented.
    orientation: 1 to 8, still to be applied.
    """

    rgb: npt.NDArray[np.uint8]
    orientation: int = 1
    exif: Exif = NONE


class Bound:
    """Admits a header's width and height or raises; remembers them, so that an error can carry them."""

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self.width: int | None = None
        self.height: int | None = None

    def admit(self, width: int, height: int) -> None:
        """Raises `too_large` above the bound and `undecodable` for a side of zero, before any pixel is."""
        self.width, self.height = width, height
        if width < 1 or height < 1:
            raise ImageError(ErrorCode.UNDECODABLE, f"the header says {width}x{height}: no pixels")
        if width * height > self._max_pixels:
            raise ImageError(
                ErrorCode.TOO_LARGE,
                f"{width}x{height} is {width * height} pixels; the bound is {self._max_pixels} (max_pixels)",
            )

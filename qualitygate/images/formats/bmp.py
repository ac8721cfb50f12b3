"""BMP: header checked here, pixels by Pillow, which refuses files with too few rows.

Samples of zero are black: a download filled up with zeros can't be told from a black picture.
Run-length compressed bitmaps are decoded in Python by Pillow, so large ones are unsupported. Alpha counts
only where the header names a mask for it. Peak memory per pixel: 7 bytes.
"""

import struct

from qualitygate.errors import ErrorCode, ImageError
from qualitygate.images import libraries
from qualitygate.images.pixels import UInt8, from_pillow, grey_to_rgb, on_white
from qualitygate.images.raster import Bound, Raster

_OS2_HEADER = 12
_RUN_LENGTH = (1, 2)
_MAX_RUN_LENGTH_BYTES = 1 << 20
_EMBEDDED = {4: "JPEG", 5: "PNG"}


def read(data: bytes, bound: Bound) -> Raster:
    """Decodes an uncompressed or small run-length compressed bitmap."""
    if len(data) < 26:
        raise ImageError(ErrorCode.TRUNCATED, "BMP: the file ends within its header")
    header_size = int.from_bytes(data[14:18], "little")
    if len(data) < 14 + header_size:
        raise ImageError(ErrorCode.TRUNCATED, "BMP: the file ends within its header")
    compression = 0
    if header_size == _OS2_HEADER:
        width, height = struct.unpack_from("<HH", data, 18)
    else:
        width, height = struct.unpack_from("<ii", data, 18)
        if header_size >= 40:
            compression = int.from_bytes(data[30:34], "little")
    bound.admit(max(width, 0), abs(height))  # a negative height means rows from the top
    if compression in _EMBEDDED:
        raise ImageError(ErrorCode.UNSUPPORTED, f"BMP that wraps a {_EMBEDDED[compression]}")
    if compression in _RUN_LENGTH:
        _check_run_lengths(data, width * abs(height))
    return Raster(rgb=_decode(data))


def _check_run_lengths(data: bytes, pixels: int) -> None:
    if len(data) > _MAX_RUN_LENGTH_BYTES or pixels > 64 * _MAX_RUN_LENGTH_BYTES:
        raise ImageError(ErrorCode.UNSUPPORTED, f"run-length compressed BMP of {len(data)} bytes")


def _decode(data: bytes) -> UInt8:
    from PIL.BmpImagePlugin import BmpImageFile

    with libraries.decoder_errors("BMP"):
        image = libraries.open_pillow(BmpImageFile, data)
        image.load()
        plain = image if image.mode in ("RGB", "RGBA", "L") else image.convert("RGB")
    samples = from_pillow(plain)
    if samples.ndim == 2:
        return grey_to_rgb(samples)
    return on_white(samples) if samples.shape[2] == 4 else samples

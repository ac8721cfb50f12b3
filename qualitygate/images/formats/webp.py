"""WebP: chunks walked here, pixels by OpenCV's libwebp from a file of the first frame's chunks alone.

OpenCV decodes straight into the array, where Pillow's animation decoder holds two canvases and a copy, and it
is silent for WebP. A file shorter than its RIFF header says, or whose bit stream ends early, is truncated;
libwebp refuses the latter by itself. It also decodes a stream filled up with one byte value, as by a download
cut short: where a run at the end is needed for all rows, but not up to its end, it is such a fill (flat areas
need it all). A lossy stream has no checksum: damage inside it may decode.

Animated WebP: the first frame on white. Peak memory per pixel: 4 bytes, 8 with alpha.
"""

import struct
from dataclasses import dataclass

import numpy as np

from qualitygate.errors import ErrorCode, ImageError
from qualitygate.images import exif, libraries
from qualitygate.images.pixels import UInt8, bands, on_white, white_canvas
from qualitygate.images.raster import Bound, Raster

_ANIMATED, _ALPHA = 0x02, 0x10
_MAX_CHUNKS = 100_000
_SHORTEST_FILL = 16
# Beyond the last bit that libwebp needs, encoders write less than that.
_FLUSHED = 8
_OPENCV_LEAST = 32


@dataclass(slots=True)
class Still:
    """The chunks of one picture, and where it lies on the canvas."""

    left: int = 0
    top: int = 0
    alpha: bytes | None = None
    picture: bytes = b""
    lossless: bool = False


def read(data: bytes, bound: Bound) -> Raster:
    """Decodes the picture or the first frame."""
    if len(data) < 20:
        raise _truncated()
    end = 8 + int.from_bytes(data[4:8], "little")
    # The last padding byte is often left out.
    if len(data) < end - 1:
        raise _truncated()
    canvas: tuple[int, int] | None = None
    if data[12:16] == b"VP8X":
        if len(data) < 30:
            raise _truncated()
        canvas = (1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little"))
        bound.admit(*canvas)
    still, exif_block = _first_picture(data, min(end, len(data)))
    width, height = _size(still)
    bound.admit(width, height)
    if canvas is None:
        canvas = (width, height)
    bound.admit(*canvas)
    if still.left + width > canvas[0] or still.top + height > canvas[1]:
        raise ImageError(ErrorCode.UNDECODABLE, "WebP: a picture larger than its canvas")
    metadata = exif.parse(exif_block)
    rgb = white_canvas(canvas[1], canvas[0], _decode(still, width, height), still.left, still.top)
    return Raster(rgb=rgb, orientation=metadata.orientation, exif=metadata)


def _first_picture(data: bytes, end: int) -> tuple[Still, bytes]:
    """The first picture's chunks and the EXIF block; every chunk must end inside the file."""
    still, exif_block = Still(), b""
    for kind, start, stop in _chunks(data, 12, end):
        if kind == b"ANMF" and not still.picture and stop - start >= 16:
            left, top = data[start : start + 3], data[start + 3 : start + 6]
            still.left, still.top = (2 * int.from_bytes(at, "little") for at in (left, top))
            for inner, inner_start, inner_stop in _chunks(data, start + 16, stop):
                _keep(still, inner, data[inner_start:inner_stop])
        elif kind == b"EXIF" and not exif_block:
            exif_block = data[start:stop]
        elif kind in (b"ALPH", b"VP8 ", b"VP8L"):
            _keep(still, kind, data[start:stop])
    if not still.picture:
        raise ImageError(ErrorCode.UNDECODABLE, "WebP: no picture")
    return still, exif_block


def _keep(still: Still, kind: bytes, body: bytes) -> None:
    if kind == b"ALPH" and still.alpha is None and not still.picture:
        still.alpha = body
    elif kind in (b"VP8 ", b"VP8L") and not still.picture:
        still.picture, still.lossless = body, kind == b"VP8L"


def _chunks(data: bytes, position: int, end: int) -> list[tuple[bytes, int, int]]:
    """(kind, start, stop) of each chunk's body."""
    found = []
    while position + 8 <= end:
        length = int.from_bytes(data[position + 4 : position + 8], "little")
        if position + 8 + length > end:
            raise _truncated()
        found.append((data[position : position + 4], position + 8, position + 8 + length))
        if len(found) > _MAX_CHUNKS:
            raise ImageError(ErrorCode.UNDECODABLE, f"WebP: more than {_MAX_CHUNKS} chunks")
        position += 8 + length + (length & 1)
    return found


def _size(still: Still) -> tuple[int, int]:
    """Width and height in the bit stream's own header."""
    if still.lossless and len(still.picture) >= 5 and still.picture[0] == 0x2F:
        bits = int.from_bytes(still.picture[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if not still.lossless and len(still.picture) >= 10 and still.picture[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", still.picture, 6)
        return width & 0x3FFF, height & 0x3FFF
    raise ImageError(ErrorCode.UNDECODABLE, "WebP: damaged bit stream header")


def _decode(still: Still, width: int, height: int) -> UInt8:
    import cv2

    body = _chunk(b"VP8L" if still.lossless else b"VP8 ", still.picture)
    if still.alpha is not None and not still.lossless:
        size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        body = _chunk(b"VP8X", bytes((_ALPHA, 0, 0, 0)) + size) + _chunk(b"ALPH", still.alpha) + body
    with libraries.decoder_errors("WebP"):
        pixels = cv2.imdecode(_alone(body), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.shape[:2] != (height, width):
        raise ImageError(ErrorCode.TRUNCATED, "WebP: the bit stream ends early or is damaged")
    run = len(still.picture) - len(still.picture.rstrip(still.picture[-1:]))
    if run >= _SHORTEST_FILL and not _complete(still, run) and _complete(still, _FLUSHED):
        raise ImageError(ErrorCode.TRUNCATED, f"WebP: filled up with {run} equal bytes in the place of its last rows")
    conversion = cv2.COLOR_BGRA2RGBA if pixels.shape[2] == 4 else cv2.COLOR_BGR2RGB
    for rows in bands(height, width):
        pixels[rows] = cv2.cvtColor(pixels[rows], conversion)
    return on_white(pixels) if pixels.shape[2] == 4 else pixels


def _complete(still: Still, less: int) -> bool:
    """Whether all rows are there without so many of the picture's last bytes."""
    import cv2

    body = _chunk(b"VP8L" if still.lossless else b"VP8 ", still.picture[:-less])
    with libraries.decoder_errors("WebP"):
        return cv2.imdecode(_alone(body), cv2.IMREAD_UNCHANGED) is not None


def _alone(body: bytes) -> UInt8:
    """A file of these chunks. OpenCV refuses files under 32 bytes, so something follows that libwebp ignores."""
    riff = b"RIFF" + (4 + len(body)).to_bytes(4, "little") + b"WEBP" + body
    return np.frombuffer(riff + bytes(max(0, _OPENCV_LEAST - len(riff))), np.uint8)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return kind + len(body).to_bytes(4, "little") + body + b"\x00" * (len(body) & 1)


def _truncated() -> ImageError:
    return ImageError(ErrorCode.TRUNCATED, "WebP: the file is shorter than its header says")

"""The compressions of TIFF: bytes of one strip or tile in, exactly the bytes expected out, or `ImageError`.

Written here because libtiff, in Pillow and in OpenCV alike, prints what it finds wrong on stderr, and fills
or skips some of it. Data that end early are `truncated`, data that contradict themselves `undecodable`; bytes
beyond those expected are ignored, as every reader does.
"""

import functools
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from qualitygate.errors import ErrorCode, ImageError
from qualitygate.images.pixels import UInt8

_INFLATED_AT_ONCE = 1 << 16
# Bytes that hold the end of a deflate stream and its checksum.
_CHECKSUM = 16
_CLEAR, _END, _FIRST_FREE, _TABLE = 256, 257, 258, 4096


def deflate(packed: memoryview, sizes: list[int]) -> Iterator[UInt8]:
    """zlib, as many bytes at a time as asked for; its checksum is compared where the stream ends as expected."""
    inflater = zlib.decompressobj()
    position, waiting = 0, b""
    try:
        for size in sizes:
            out = bytearray()
            while len(out) < size and not inflater.eof:
                if not waiting:
                    waiting = bytes(packed[position : position + _INFLATED_AT_ONCE])
                    position += len(waiting)
                starved = not waiting
                piece = inflater.decompress(waiting, size - len(out))
                waiting = inflater.unconsumed_tail
                out += piece
                if starved and not piece:
                    break
            yield _exactly(np.frombuffer(out, np.uint8), size)
        inflater.decompress(waiting + packed[position : position + _CHECKSUM], 1)
    except zlib.error as error:
        raise _undecodable(str(error)) from error


def pack_bits(packed: memoryview, size: int) -> UInt8:
    """Apple's byte runs: n < 128 is n + 1 literals, n > 128 repeats the next byte 257 - n times."""
    out = bytearray()
    position = 0
    while len(out) < size and position < len(packed):
        count = packed[position]
        if count < 128:
            out += packed[position + 1 : position + 2 + count]
            position += 2 + count
        elif count > 128:
            out += bytes(packed[position + 1 : position + 2]) * (257 - count)
            position += 2
        else:
            position += 1
    return _exactly(np.frombuffer(out, np.uint8), size)


def lzw(packed: memoryview, size: int) -> UInt8:
    """TIFF 6.0's LZW: codes of 9 to 12 bits, highest bit first, widened one code early."""
    source = np.frombuffer(packed, np.uint8)
    if len(source) >= 2 and source[0] == 0 and source[1] & 1:
        raise ImageError(ErrorCode.UNSUPPORTED, "TIFF with LZW compression of before 1992")
    out = np.empty(size, np.uint8)
    written = _compiled_lzw()(source, out)
    if written < 0:
        raise _undecodable("an LZW code that isn't in the table")
    return _exactly(out[:written], size)


def _exactly(unpacked: UInt8, size: int) -> UInt8:
    if len(unpacked) < size:
        message = f"TIFF: {len(unpacked)} bytes of image data where {size} were expected"
        raise ImageError(ErrorCode.TRUNCATED, message)
    return unpacked[:size]


@functools.cache
def _compiled_lzw() -> Callable[[UInt8, UInt8], int]:
    """Compiled when the first LZW file comes: Numba takes longer to import than most files to decode."""
    import numba

    try:
        kernel: Any = numba.njit(nogil=True, cache=True)(_lzw)
    except (RuntimeError, OSError):  # nowhere to keep the cache
        kernel = numba.njit(nogil=True)(_lzw)
    compiled: Callable[[UInt8, UInt8], int] = kernel
    return compiled


def _lzw(source: UInt8, out: UInt8) -> int:
    """Bytes written to `out`, or -1 for a code that can't be."""
    prefix = np.zeros(_TABLE, np.int32)
    last = np.zeros(_TABLE, np.uint8)
    first = np.zeros(_TABLE, np.uint8)
    length = np.ones(_TABLE, np.int32)
    for byte in range(256):
        last[byte] = first[byte] = byte
    free, width, previous = _FIRST_FREE, 9, -1
    written, position, window, held = 0, 0, 0, 0
    while written < len(out):
        while held < width:
            if position >= len(source):
                return written
            window = ((window << 8) | source[position]) & 0xFFFFFF
            position += 1
            held += 8
        held -= width
        code = (window >> held) & ((1 << width) - 1)
        if code == _END:
            return written
        if code == _CLEAR:
            free, width, previous = _FIRST_FREE, 9, -1
            continue
        if previous < 0:
            if code > 255:
                return -1
        else:
            if code > free or code >= _TABLE or (code == free and free == _TABLE):
                return -1
            if free < _TABLE:
                # A code that is about to be defined stands for the previous string and its own first byte.
                prefix[free] = previous
                first[free] = first[previous]
                last[free] = first[previous] if code == free else first[code]
                length[free] = length[previous] + 1
                free += 1
                if free == (1 << width) - 1 and width < 12:
                    width += 1
        end = written + length[code]
        at, part = end - 1, code
        while at >= written:
            if at < len(out):
                out[at] = last[part]
            part = prefix[part]
            at -= 1
        written = min(end, len(out))
        previous = code
    return written


def undo_differences(values: npt.NDArray[Any]) -> None:
    """Predictor 2, in place: each sample was stored as the difference from its left neighbour."""
    np.add.accumulate(values, axis=1, dtype=values.dtype, out=values)


def undo_float_differences(rows: UInt8, channels: int) -> npt.NDArray[np.float32]:
    """Predictor 3: byte differences of a row whose floats were split into planes of equal significance."""
    height, size = rows.shape
    pixels = rows.reshape(height, size // channels, channels).copy()
    undo_differences(pixels)
    planes = pixels.reshape(height, 4, size // 4)
    return np.ascontiguousarray(planes.transpose(0, 2, 1)).view(">f4")[..., 0].astype(np.float32)


def _undecodable(what: str) -> ImageError:
    return ImageError(ErrorCode.UNDECODABLE, f"TIFF: {what}")

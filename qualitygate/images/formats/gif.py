"""GIF: blocks walked here, the first frame's indices by Pillow from a file that holds nothing else.

Transparent pixels, and those of the canvas that the first frame doesn't cover, are white. A file that ends
inside a block is truncated, in a later frame as well; a missing trailer alone is fine.

Peak memory per pixel: 5 bytes.
"""

import struct
from dataclasses import dataclass

import numpy as np

from qualitygate.errors import ErrorCode, ImageError
from qualitygate.images import libraries
from qualitygate.images.pixels import UInt8, from_pillow, on_white, white_canvas
from qualitygate.images.raster import Bound, Raster

_TRAILER, _EXTENSION, _IMAGE = 0x3B, 0x21, 0x2C
_GRAPHIC_CONTROL = 0xF9
# Sub-blocks hold up to 255 bytes; walking more than this would take seconds.
_MAX_BLOCKS = 4_000_000


@dataclass(frozen=True, slots=True)
class Frame:
    """The first image: where it lies, its palette, and its compressed data."""

    left: int
    top: int
    width: int
    height: int
    interlaced: bool
    palette: bytes
    transparent: int | None
    compressed: bytes


def read(data: bytes, bound: Bound) -> Raster:
    """Decodes the first frame on a white canvas."""
    if len(data) < 13:
        raise _truncated()
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    bound.admit(width, height)
    frame = _first_frame(data, flags)
    # Files exist whose frame reaches beyond the logical screen; viewers then enlarge the canvas.
    width, height = max(width, frame.left + frame.width), max(height, frame.top + frame.height)
    bound.admit(width, height)
    part = _colours(frame)[_indices(frame)]
    return Raster(rgb=white_canvas(height, width, part, frame.left, frame.top))


def _first_frame(data: bytes, flags: int) -> Frame:
    """Walks all blocks, keeping the first image."""
    global_palette, position = _palette(data, 13, flags)
    transparent: int | None = None
    frame: Frame | None = None
    for _ in range(_MAX_BLOCKS // 16):
        if position >= len(data) or data[position] == _TRAILER:
            break
        kind = data[position]
        if kind == _EXTENSION:
            if data[position + 1 : position + 3] == bytes((_GRAPHIC_CONTROL, 4)) and frame is None:
                control = data[position + 3 : position + 7]
                transparent = control[3] if len(control) == 4 and control[0] & 1 else None
            position = _after_sub_blocks(data, position + 2)
        elif kind == _IMAGE:
            start = position
            if start + 10 > len(data):
                raise _truncated()
            palette, position = _palette(data, start + 10, data[start + 9])
            stop = _after_sub_blocks(data, position + 1)
            if frame is None:
                left, top, width, height, local = struct.unpack_from("<HHHHB", data, start + 1)
                frame = Frame(
                    left,
                    top,
                    width,
                    height,
                    bool(local & 0x40),
                    palette or global_palette,
                    transparent,
                    data[position:stop],
                )
            position = stop
        elif kind == 0:
            position += 1  # stray terminators are common
        elif frame is not None:
            break  # trailing junk
        else:
            raise ImageError(ErrorCode.UNDECODABLE, f"GIF: no such block (0x{kind:02x})")
    if frame is None:
        if position >= len(data):
            raise _truncated()
        raise ImageError(ErrorCode.UNDECODABLE, "GIF: no image")
    if not frame.width or not frame.height:
        raise ImageError(ErrorCode.UNDECODABLE, f"GIF: a frame of {frame.width}x{frame.height}")
    return frame


def _palette(data: bytes, start: int, flags: int) -> tuple[bytes, int]:
    if not flags & 0x80:
        return b"", start
    stop = start + 3 * (2 << (flags & 7))
    if stop > len(data):
        raise _truncated()
    return data[start:stop], stop


def _after_sub_blocks(data: bytes, position: int) -> int:
    for _ in range(_MAX_BLOCKS):
        if position >= len(data):
            raise _truncated()
        length = data[position]
        position += 1 + length
        if length == 0:
            return position
    raise ImageError(ErrorCode.UNDECODABLE, f"GIF: more than {_MAX_BLOCKS} sub-blocks")


def _indices(frame: Frame) -> UInt8:
    """(H, W) palette indices."""
    from PIL.GifImagePlugin import GifImageFile

    # Any palette but the identity of greys, for which Pillow would choose another mode.
    palette = bytes(range(256)) * 3
    alone = b"".join(
        (
            b"GIF89a",
            struct.pack("<HHBBB", frame.width, frame.height, 0xF7, 0, 0),
            palette,
            struct.pack("<BHHHHB", _IMAGE, 0, 0, frame.width, frame.height, 0x40 if frame.interlaced else 0),
            frame.compressed,
            b";",
        )
    )
    with libraries.decoder_errors("GIF"):
        image = libraries.open_pillow(GifImageFile, alone)
        image.load()
    return from_pillow(image)


def _colours(frame: Frame) -> UInt8:
    """(256, 3) colours, the transparent one white; without any palette, greys; beyond the palette, black."""
    table = np.zeros((1, 256, 4), np.uint8)
    table[..., 3] = 255
    if frame.palette:
        colours = np.frombuffer(frame.palette, np.uint8).reshape(-1, 3)
        table[0, : len(colours), :3] = colours
    else:
        table[0, :, :3] = np.arange(256, dtype=np.uint8)[:, None]
    if frame.transparent is not None:
        table[0, frame.transparent, 3] = 0
    return on_white(table)[0]


def _truncated() -> ImageError:
    return ImageError(ErrorCode.TRUNCATED, "GIF: the file ends inside a block")

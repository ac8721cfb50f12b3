"""PNG: chunks walked and checksummed here, pixels by Pillow from the chunks that make pixels, and only those.

Text, profiles and animation never reach a decoder, so they can neither inflate to gigabytes nor warn. The
compressed rows are counted, since Pillow takes a stream that ends between two rows for complete.

    every row there, IEND absent or cut     decodes
    the file ends inside any other chunk    truncated
    fewer rows than the header says         truncated
    a checksum that doesn't match           undecodable, in ancillary chunks as well: the file was damaged

Animated PNG: the default image. Grey and colour keys (tRNS) are compared at full depth; an index beyond the
palette is black, as browsers show it. Gamma and colour chunks are ignored, like ICC profiles.

Peak memory per pixel: 8 bytes (RGB), 9 (RGBA), 11 (16-bit RGB), 13 (16-bit RGBA).
"""

import struct
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from qualitygate.errors import ErrorCode, ImageError
from qualitygate.images import exif, libraries
from qualitygate.images.pixels import (
    UInt8,
    UInt16,
    bands,
    from_pillow,
    grey_to_rgb,
    on_white,
    on_white_16,
    to_eight_bits,
)
from qualitygate.images.raster import Bound, Raster

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB, _PALETTE, _GREY_ALPHA, _RGB_ALPHA = 0, 2, 3, 4, 6
_CHANNELS = {_GREY: 1, _RGB: 3, _PALETTE: 1, _GREY_ALPHA: 2, _RGB_ALPHA: 4}
_DEPTHS = {
    _GREY: (1, 2, 4, 8, 16),
    _RGB: (8, 16),
    _PALETTE: (1, 2, 4, 8),
    _GREY_ALPHA: (8, 16),
    _RGB_ALPHA: (8, 16),
}
_MAX_CHUNKS = 250_000
# Deflate expands a thousandfold at the most: 16 MB of rows at a time.
_INFLATED_AT_ONCE = 1 << 14
_IEND = b"\x00\x00\x00\x00IEND\xaeB`\x82"
# Adam7: first column, first row, column step, row step.
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


@dataclass(slots=True)
class Chunks:
    """The parts of a file that matter."""

    header: bytes = b""
    palette: bytes = b""
    transparency: bytes = b""
    exif_block: bytes = b""
    rows: list[memoryview] = field(default_factory=list)  # payloads of IDAT


@dataclass(frozen=True, slots=True)
class Header:
    """IHDR."""

    width: int
    height: int
    depth: int
    colour: int
    interlaced: bool


def read(data: bytes, bound: Bound) -> Raster:
    """Decodes the default image."""
    header = _header(data, bound)
    chunks = _walk(data)
    if header.colour == _PALETTE and not chunks.palette:
        raise ImageError(ErrorCode.UNDECODABLE, "PNG: no palette")
    _check_rows(header, chunks)
    metadata = exif.parse(chunks.exif_block)
    return Raster(rgb=_pixels(header, chunks), orientation=metadata.orientation, exif=metadata)


def _header(data: bytes, bound: Bound) -> Header:
    if len(data) < 33:
        raise ImageError(ErrorCode.TRUNCATED, "PNG: the file ends within its header")
    if data[12:16] == b"CgBI":
        raise ImageError(ErrorCode.UNSUPPORTED, "PNG in Apple's private variant (CgBI)")
    if data[8:16] != b"\x00\x00\x00\x0dIHDR":
        raise ImageError(ErrorCode.UNDECODABLE, "PNG: doesn't start with a header chunk")
    if zlib.crc32(data[12:29]) != int.from_bytes(data[29:33], "big"):
        raise ImageError(ErrorCode.UNDECODABLE, "PNG: wrong checksum in IHDR")
    width, height, depth, colour, compression, filtering, interlace = struct.unpack_from(">IIBBBBB", data, 16)
    bound.admit(width, height)
    if depth not in _DEPTHS.get(colour, ()) or compression or filtering or interlace > 1:
        raise ImageError(ErrorCode.UNDECODABLE, f"PNG: no such pixel format ({depth} bits, colour {colour})")
    return Header(width, height, depth, colour, bool(interlace))


def _walk(data: bytes) -> Chunks:
    """Collects the chunks up to IEND, every checksum compared."""
    chunks = Chunks()
    view = memoryview(data)
    position = len(SIGNATURE)
    for _ in range(_MAX_CHUNKS):
        rest = len(data) - position
        if rest < 12:
            # Only of the end marker may something be missing.
            if chunks.rows and _IEND.startswith(data[position:]):
                return chunks
            raise ImageError(ErrorCode.TRUNCATED, "PNG: the file ends between chunks")
        length = int.from_bytes(view[position : position + 4], "big")
        kind = data[position + 4 : position + 8]
        if not kind.isalpha():
            raise ImageError(ErrorCode.UNDECODABLE, "PNG: damaged chunk")
        if kind == b"IEND":
            break
        body = position + 8
        if body + length + 4 > len(data):
            raise ImageError(ErrorCode.TRUNCATED, f"PNG: the file ends inside {kind.decode()}")
        checksum = int.from_bytes(view[body + length : body + length + 4], "big")
        if zlib.crc32(view[position + 4 : body + length]) != checksum:
            raise ImageError(ErrorCode.UNDECODABLE, f"PNG: wrong checksum in {kind.decode()}")
        _keep(chunks, kind, view[body : body + length])
        position = body + length + 4
    else:
        raise ImageError(ErrorCode.UNDECODABLE, f"PNG: more than {_MAX_CHUNKS} chunks")
    if not chunks.rows:
        raise ImageError(ErrorCode.UNDECODABLE, "PNG: no image data")
    return chunks


def _keep(chunks: Chunks, kind: bytes, body: memoryview) -> None:
    if kind == b"IHDR":
        if chunks.header:
            raise ImageError(ErrorCode.UNDECODABLE, "PNG: two headers")
        chunks.header = bytes(body)
    elif kind == b"IDAT":
        chunks.rows.append(body)
    elif kind == b"PLTE" and not chunks.palette:
        if not 3 <= len(body) <= 768 or len(body) % 3:
            raise ImageError(ErrorCode.UNDECODABLE, f"PNG: a palette of {len(body)} bytes")
        chunks.palette = bytes(body)
    elif kind == b"tRNS" and not chunks.transparency:
        chunks.transparency = bytes(body[:256])
    elif kind == b"eXIf" and not chunks.exif_block:
        chunks.exif_block = bytes(body)


def _check_rows(header: Header, chunks: Chunks) -> None:
    """Inflates without keeping anything, to see whether all rows are there."""
    expected = _stream_length(header)
    inflater = zlib.decompressobj()
    length = 0
    try:
        for piece in chunks.rows:
            for start in range(0, len(piece), _INFLATED_AT_ONCE):
                if length >= expected or inflater.eof:
                    break
                length += len(inflater.decompress(piece[start : start + _INFLATED_AT_ONCE]))
    except zlib.error as error:
        raise ImageError(ErrorCode.UNDECODABLE, f"PNG: {error}") from error
    if length < expected:
        share = 100 * length // expected
        raise ImageError(ErrorCode.TRUNCATED, f"PNG: the image data end after {share} % of the rows")


def _stream_length(header: Header) -> int:
    """Bytes of all filtered rows, each led by its filter type."""
    bits = header.depth * _CHANNELS[header.colour]

    def rows(width: int, height: int) -> int:
        return height * (1 + (width * bits + 7) // 8) if width else 0

    if not header.interlaced:
        return rows(header.width, header.height)
    return sum(
        rows(max(0, -(-(header.width - x) // dx)), max(0, -(-(header.height - y) // dy))) for x, y, dx, dy in _PASSES
    )


def _pixels(header: Header, chunks: Chunks) -> UInt8:
    if header.depth == 16:
        return _sixteen_bits(header, chunks)
    samples = _samples(chunks)
    if header.colour == _PALETTE:
        return _palette(chunks)[samples]
    if header.colour in (_GREY_ALPHA, _RGB_ALPHA):
        return on_white(samples if samples.shape[2] == 4 else samples[..., (0, 0, 0, 1)])
    rgb = grey_to_rgb(samples) if samples.ndim == 2 else samples
    key = _colour_key(header, chunks)
    if key is not None:
        # Samples under 8 bits come scaled to 0-255, the key doesn't.
        scaled = key * 255 // ((1 << header.depth) - 1)
        for rows in bands(*rgb.shape[:2]):
            rgb[rows][(rgb[rows] == scaled).all(axis=-1)] = 255
    return rgb


def _sixteen_bits(header: Header, chunks: Chunks) -> UInt8:
    """Pillow keeps the high byte alone, so it is asked twice, for the high bytes and for the low ones."""
    if header.colour == _GREY:
        grey = _samples(chunks)
        eight = to_eight_bits(grey)
        key = _colour_key(header, chunks)
        if key is not None:
            eight[grey == key[0]] = 255
        return grey_to_rgb(eight)
    if header.colour == _GREY_ALPHA:
        # Four bytes a pixel: read as if they were RGBA, they are grey high, low, alpha high, low.
        both = _samples(chunks, "RGBA").view(">u2")
        return on_white_16(both[..., (0, 0, 0, 1)])
    high = _samples(chunks, "RGB;16B" if header.colour == _RGB else "RGBA;16B")
    low = _samples(chunks, "RGB;16L" if header.colour == _RGB else "RGBA;16L")
    key = _colour_key(header, chunks) if header.colour == _RGB else None
    rgb = np.empty((header.height, header.width, 3), np.uint8)
    for rows in bands(header.height, header.width):
        wide = _join(high[rows], low[rows])
        rgb[rows] = to_eight_bits(wide) if header.colour == _RGB else on_white_16(wide)
        if key is not None:
            rgb[rows][(wide == key).all(axis=-1)] = 255
    return rgb


def _join(high: UInt8, low: UInt8) -> UInt16:
    wide = high.astype(np.uint16)
    wide <<= 8
    wide |= low
    return wide


def _samples(chunks: Chunks, raw_mode: str | None = None) -> npt.NDArray[Any]:
    """Pillow's samples of a file made anew from IHDR, PLTE and IDAT."""
    from PIL.PngImagePlugin import PngImageFile

    parts = [SIGNATURE, _chunk(b"IHDR", chunks.header)]
    if chunks.palette:
        parts.append(_chunk(b"PLTE", chunks.palette))
    parts += [_chunk(b"IDAT", b"".join(chunks.rows)), _IEND]
    with libraries.decoder_errors("PNG"):
        image = libraries.open_pillow(PngImageFile, b"".join(parts))
        if raw_mode is not None:
            image.tile = [tile._replace(args=raw_mode) for tile in image.tile]
        image.load()
        plain = image.convert("L") if image.mode == "1" else image
    return from_pillow(plain)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(body, zlib.crc32(kind)).to_bytes(4, "big")


def _palette(chunks: Chunks) -> UInt8:
    """(256, 3) colours, transparency already on white; entries beyond the palette are black."""
    table = np.zeros((1, 256, 4), np.uint8)
    table[..., 3] = 255
    colours = np.frombuffer(chunks.palette, np.uint8).reshape(-1, 3)
    table[0, : len(colours), :3] = colours
    table[0, : len(chunks.transparency), 3] = np.frombuffer(chunks.transparency, np.uint8)
    return on_white(table)[0]


def _colour_key(header: Header, chunks: Chunks) -> UInt16 | None:
    """The one grey or colour that is transparent, at the file's own depth."""
    count = _CHANNELS[header.colour]
    if len(chunks.transparency) < 2 * count:
        return None
    return np.frombuffer(chunks.transparency, ">u2", count).astype(np.uint16)

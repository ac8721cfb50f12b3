"""TIFF and BigTIFF, read here from the first directory to the samples (why: see tiff_codecs.py).

Decoded: 1, 2, 4, 8, 16 bits and float (0 to 1); grey either way up, RGB, palette, CMYK; alpha, straight or
premultiplied, on white; strips or tiles, interleaved or planar; no compression, LZW, deflate, PackBits, or
JPEG with its own strictness (jpeg.py). A strip that lies outside the file, or is too short, is truncated.
Uncompressed samples of zero are black: a download filled up with zeros can't be told from a black picture.

Unsupported: raw camera files that are TIFF inside (DNG, NEF, ARW: their first page is a thumbnail, and
scoring that in silence would be wrong), Lab, fax compression, signed and 32-bit integers, floats outside 0
to 1.

Unpacked samples above 12 bytes per pixel of the bound are too large. Peak memory per pixel: 8-bit RGB 3
bytes, with alpha 7, 16-bit and float RGB 9, 16-bit with alpha or CMYK 12-15; and of LZW, PackBits and JPEG one
strip or tile, which is the picture's samples again, 12 bytes at most, where it is a single strip.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from qualitygate.errors import ErrorCode, ImageError
from qualitygate.images import exif
from qualitygate.images.formats import jpeg, tiff_codecs
from qualitygate.images.pixels import (
    UInt8,
    bands,
    cmyk_to_rgb,
    grey_to_rgb,
    on_white,
    on_white_16,
    to_eight_bits,
)
from qualitygate.images.raster import Bound, Raster

Samples = npt.NDArray[Any]

_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 256, 257, 258, 259, 262
_FILL_ORDER, _STRIP_OFFSETS, _ORIENTATION, _SAMPLES, _ROWS_PER_STRIP = 266, 273, 274, 277, 278
_STRIP_COUNTS, _PLANAR, _PREDICTOR, _COLOURS, _TILE_WIDTH, _TILE_HEIGHT = 279, 284, 317, 320, 322, 323
_TILE_OFFSETS, _TILE_COUNTS, _SUB_DIRECTORIES, _EXTRA, _FORMAT = 324, 325, 330, 338, 339
_JPEG_TABLES, _DNG_VERSION = 347, 50706

_TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
_INTEGER_TYPES = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8"}
_NONE, _LZW, _JPEG, _DEFLATE, _OLD_DEFLATE, _PACK_BITS = 1, 5, 7, 8, 32946, 32773
_UNPACKERS: dict[int, Callable[[memoryview, int], UInt8]] = {
    _NONE: lambda packed, size: np.frombuffer(packed, np.uint8, size),
    _LZW: tiff_codecs.lzw,
    _PACK_BITS: tiff_codecs.pack_bits,
}
_PREDICTED = frozenset({_LZW, _DEFLATE, _OLD_DEFLATE})
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_COLOUR_CHANNELS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4, _YCBCR: 3}
_RAW_PHOTOMETRICS = (32803, 34892)
_UNSIGNED, _FLOAT = 1, 3
_MAX_ENTRIES = 4096
_MAX_CHANNELS = 5
# A pixel of three floats. Bytes come a thousandfold out of deflate, pixels alone don't bound them.
_ADMITTED_BYTES = 12
# Tiles may be larger than the picture, but not without end: their memory is asked for before they are read.
_MAX_TILE_PIXELS = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """The first directory's values, checked."""

    order: str
    width: int
    height: int
    bits: int
    sample_format: int
    samples: int
    photometric: int
    compression: int
    predictor: int
    planar: bool
    alpha: int  # 0 none, 1 premultiplied, 2 straight
    chunk_width: int
    chunk_height: int
    tiled: bool
    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    orientation: int
    colours: tuple[int, ...]
    jpeg_tables: bytes


class Directory:
    """One image file directory: integer values by tag, every read inside the file."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.order = "<" if data[:2] == b"II" else ">"
        self._big = data[2:4] in (b"+\x00", b"\x00+")
        self._entries: dict[int, tuple[int, int, int]] = {}  # tag -> type, count, offset of the value
        try:
            self._read()
        except struct.error as error:
            raise _truncated("the file ends inside its directory") from error

    def _read(self) -> None:
        data, order = self._data, self.order
        if self._big:
            (start,) = struct.unpack_from(order + "Q", data, 8)
            if start > len(data):
                raise _truncated("its directory lies outside the file")
            (count,) = struct.unpack_from(order + "Q", data, start)
            first, size, item, inline = start + 8, 20, order + "HHQ", 8
        else:
            (start,) = struct.unpack_from(order + "I", data, 4)
            if start > len(data):
                raise _truncated("its directory lies outside the file")
            (count,) = struct.unpack_from(order + "H", data, start)
            first, size, item, inline = start + 2, 12, order + "HHI", 4
        if not 1 <= count <= _MAX_ENTRIES:
            raise ImageError(ErrorCode.UNDECODABLE, f"TIFF: a directory of {count} entries")
        for index in range(count):
            at = first + index * size
            tag, kind, items = struct.unpack_from(item, data, at)
            value = at + size - inline
            if items * _TYPE_SIZES.get(kind, 1) > inline:
                (value,) = struct.unpack_from(order + ("Q" if self._big else "I"), data, value)
            self._entries.setdefault(tag, (kind, items, value))

    def __contains__(self, tag: int) -> bool:
        return tag in self._entries

    def integers(self, tag: int, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """All values of an integer tag; `default` where absent. Raises where they lie outside the file."""
        if tag not in self._entries:
            return default
        kind, count, offset = self._entries[tag]
        if kind not in _INTEGER_TYPES or count == 0:
            raise ImageError(ErrorCode.UNDECODABLE, f"TIFF: tag {tag} isn't a whole number")
        dtype = np.dtype(self.order + _INTEGER_TYPES[kind])
        if offset + count * dtype.itemsize > len(self._data):
            raise _truncated(f"tag {tag} lies outside the file")
        return tuple(np.frombuffer(self._data, dtype, count, offset).tolist())

    def integer(self, tag: int, default: int | None = None) -> int:
        """The first value of an integer tag."""
        values = self.integers(tag, () if default is None else (default,))
        if not values:
            raise ImageError(ErrorCode.UNDECODABLE, f"TIFF: tag {tag} is missing")
        return values[0]

    def raw(self, tag: int) -> bytes:
        """A tag's bytes; empty where absent or outside the file."""
        kind, count, offset = self._entries.get(tag, (1, 0, 0))
        return self._data[offset : offset + count * _TYPE_SIZES.get(kind, 1)]


def read(data: bytes, bound: Bound) -> Raster:
    """Decodes the first page."""
    directory = Directory(data)
    _refuse_raw(directory)
    bound.admit(directory.integer(_WIDTH), directory.integer(_HEIGHT))
    page = _page(directory)
    _admit_bytes(page, bound)
    metadata = replace(exif.parse(data), orientation=page.orientation)
    return Raster(rgb=_to_rgb(_samples(data, page), page), orientation=page.orientation, exif=metadata)


def _refuse_raw(directory: Directory) -> None:
    """Raw camera files show a thumbnail as their first page."""
    thumbnail_first = directory.integer(_SUBFILE, 0) & 1 and _SUB_DIRECTORIES in directory
    if _DNG_VERSION in directory or thumbnail_first or directory.integer(_PHOTOMETRIC, _RGB) in _RAW_PHOTOMETRICS:
        kind = "DNG" if _DNG_VERSION in directory else "a TIFF whose first page is a thumbnail or sensor data"
        raise ImageError(ErrorCode.UNSUPPORTED, f"a raw camera file ({kind}): this image format isn't decoded")


def _page(directory: Directory) -> Page:
    """Reads and checks all that decoding needs."""
    width, height = directory.integer(_WIDTH), directory.integer(_HEIGHT)
    photometric = directory.integer(_PHOTOMETRIC)
    samples = directory.integer(_SAMPLES, 1)
    bits = directory.integers(_BITS, (1,))
    formats = directory.integers(_FORMAT, (_UNSIGNED,))
    tiled = _TILE_OFFSETS in directory
    page = Page(
        order=directory.order,
        width=width,
        height=height,
        bits=bits[0],
        sample_format=formats[0],
        samples=samples,
        photometric=photometric,
        compression=directory.integer(_COMPRESSION, _NONE),
        predictor=directory.integer(_PREDICTOR, 1),
        planar=directory.integer(_PLANAR, 1) == 2 and samples > 1,
        alpha=_alpha(photometric, samples, directory.integers(_EXTRA)),
        chunk_width=directory.integer(_TILE_WIDTH) if tiled else width,
        chunk_height=(
            directory.integer(_TILE_HEIGHT) if tiled else min(directory.integer(_ROWS_PER_STRIP, height), height)
        ),
        tiled=tiled,
        offsets=directory.integers(_TILE_OFFSETS if tiled else _STRIP_OFFSETS),
        counts=directory.integers(_TILE_COUNTS if tiled else _STRIP_COUNTS),
        orientation=_valid_orientation(directory.integer(_ORIENTATION, 1)),
        colours=directory.integers(_COLOURS),
        jpeg_tables=directory.raw(_JPEG_TABLES),
    )
    mixed = len(set(bits)) > 1 or len(set(formats)) > 1
    unsupported = "samples of mixed types" if mixed else _why_unsupported(page, directory.integer(_FILL_ORDER, 1))
    if unsupported:
        raise ImageError(ErrorCode.UNSUPPORTED, f"TIFF with {unsupported}")
    if page.chunk_width * page.chunk_height > max(_MAX_TILE_PIXELS, 2 * width * height):
        message = f"TIFF: tiles of {page.chunk_width}x{page.chunk_height} for {width}x{height}"
        raise ImageError(ErrorCode.UNDECODABLE, message)
    if page.chunk_width < 1 or page.chunk_height < 1 or not page.offsets:
        raise ImageError(ErrorCode.UNDECODABLE, "TIFF: no image data")
    return page


def _valid_orientation(value: int) -> int:
    return value if value in range(1, 9) else 1


def _alpha(photometric: int, samples: int, extra: tuple[int, ...]) -> int:
    """Which kind of alpha the first sample after the colours is."""
    if samples <= _COLOUR_CHANNELS.get(photometric, samples):
        return 0
    # Without the tag a fourth sample beside RGB is taken for alpha, as other readers do.
    kind = extra[0] if extra else 2 if photometric == _RGB else 0
    return kind if kind in (1, 2) else 0


def _why_unsupported(page: Page, fill_order: int) -> str:
    """What isn't decoded about this page; empty when it is."""
    depth = (page.bits, page.sample_format)
    if page.photometric not in _COLOUR_CHANNELS:
        return f"photometric interpretation {page.photometric}"
    if page.compression not in {_JPEG, *_PREDICTED, *_UNPACKERS}:
        return f"compression {page.compression}"
    if not _COLOUR_CHANNELS[page.photometric] <= page.samples <= _MAX_CHANNELS:
        return f"{page.samples} samples a pixel for photometric interpretation {page.photometric}"
    if depth not in {(1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (32, _FLOAT)}:
        return f"{page.bits}-bit samples of format {page.sample_format}"
    if page.bits < 8 and page.samples > 1:
        return f"{page.samples} samples of {page.bits} bits"
    if fill_order != 1:
        return "reversed bit order"
    if page.photometric == _PALETTE and (page.bits > 8 or page.samples > 1 or len(page.colours) < 3 << page.bits):
        return "an incomplete palette"
    if (page.photometric == _CMYK or page.alpha) and page.bits == 32:
        return "float ink or alpha"
    if page.compression == _JPEG:
        plain = page.bits == 8 and page.samples == (1 if page.photometric == _BLACK_IS_ZERO else 3)
        if not plain or (page.photometric == _YCBCR and page.planar) or page.photometric == _PALETTE:
            return f"JPEG compression of photometric interpretation {page.photometric}"
    elif page.photometric == _YCBCR:
        return "YCbCr samples outside JPEG compression"
    return _why_not_predicted(page)


def _why_not_predicted(page: Page) -> str:
    """Predictors exist for LZW and deflate alone."""
    if page.predictor == 1 or page.compression not in _PREDICTED:
        return ""
    if (page.predictor == 2 and page.bits >= 8) or (page.predictor == 3 and page.bits == 32):
        return ""
    return f"predictor {page.predictor} of {page.bits}-bit samples"


def _admit_bytes(page: Page, bound: Bound) -> None:
    """Bounds the bytes that the samples unpack to: as many as the largest picture has at _ADMITTED_BYTES each."""
    row = (page.width * page.samples * page.bits + 7) // 8
    try:
        bound.admit(1, -(-row * page.height // _ADMITTED_BYTES))
    except ImageError as error:
        message = (
            f"TIFF of {page.width}x{page.height} with {page.samples} samples of {page.bits} bits: "
            f"{row * page.height} bytes; the bound is {_ADMITTED_BYTES} for each of max_pixels"
        )
        raise ImageError(ErrorCode.TOO_LARGE, message) from error
    finally:
        bound.width, bound.height = page.width, page.height


def _samples(data: bytes, page: Page) -> Samples:
    """(H, W, S) samples in native byte order, floats as 16 bits, without those that mean nothing here."""
    planes = page.samples if page.planar else 1
    channels = page.samples // planes
    across, down = -(-page.width // page.chunk_width), -(-page.height // page.chunk_height)
    if len(page.offsets) < planes * across * down:
        raise _truncated(f"{len(page.offsets)} strips or tiles of {planes * across * down}")
    kept = _COLOUR_CHANNELS[page.photometric] + (page.alpha > 0 and page.photometric != _CMYK)
    out: Samples = np.empty((page.height, page.width, kept), np.uint8 if page.bits <= 8 else np.uint16)
    for index in range((kept if page.planar else 1) * across * down):
        plane, place = divmod(index, across * down)
        top, left = place // across * page.chunk_height, place % across * page.chunk_width
        rows = page.chunk_height if page.tiled else min(page.chunk_height, page.height - top)
        for band in _chunk(data, page, index, rows, channels):
            target = out[top : top + len(band), left : left + page.chunk_width, plane if page.planar else slice(None)]
            source = band[: len(target), : target.shape[1], 0 if page.planar else slice(kept)]
            target[...] = _unit_floats_to_16_bits(source) if page.bits == 32 else source
            top += len(band)
    return out


def _chunk(data: bytes, page: Page, index: int, rows: int, channels: int) -> Iterator[Samples]:
    """(rows, chunk width, channels) samples of one strip or tile, some rows at a time."""
    row_bytes = (page.chunk_width * channels * page.bits + 7) // 8
    size = rows * row_bytes
    if page.compression == _NONE:
        packed = _stored(data, page, index, size)
    else:
        if index >= len(page.counts):
            raise ImageError(ErrorCode.UNDECODABLE, "TIFF: compressed data of unknown size")
        packed = _stored(data, page, index, page.counts[index])
    if page.compression == _JPEG:
        yield _jpeg_chunk(packed, page, rows, channels)
        return
    parts = list(bands(rows, row_bytes))
    if page.compression in _UNPACKERS:
        unpacked = _UNPACKERS[page.compression](packed, size).reshape(rows, row_bytes)
        pieces: Iterator[UInt8] = (unpacked[part] for part in parts)
    else:
        pieces = tiff_codecs.deflate(packed, [(part.stop - part.start) * row_bytes for part in parts])
    for piece in pieces:
        yield _meaning(piece.reshape(-1, row_bytes), page, channels)


def _meaning(unpacked: UInt8, page: Page, channels: int) -> Samples:
    """(rows, chunk width, channels) samples of (rows, bytes)."""
    rows = len(unpacked)
    if page.bits < 8:
        return _unpack_bits(unpacked, page.bits)[:, : page.chunk_width].reshape(rows, page.chunk_width, 1)
    predictor = page.predictor if page.compression in _PREDICTED else 1
    if predictor == 3:
        floats = tiff_codecs.undo_float_differences(unpacked, channels)
        return floats.reshape(rows, page.chunk_width, channels)
    stored = unpacked.view(f"{page.order}u{page.bits // 8}")
    values = stored.reshape(rows, page.chunk_width, channels)
    if predictor == 2:
        values = values.astype(values.dtype.newbyteorder("="))
        tiff_codecs.undo_differences(values)
    return values.astype(np.uint32, copy=False).view(np.float32) if page.bits == 32 else values


def _stored(data: bytes, page: Page, index: int, size: int) -> memoryview:
    """The bytes of one strip or tile, which must lie inside the file."""
    offset = page.offsets[index]
    declared = page.counts[index] if index < len(page.counts) else size
    if offset + size > len(data) or declared < size:
        raise _truncated("its image data end early")
    return memoryview(data)[offset : offset + size]


def _jpeg_chunk(packed: memoryview, page: Page, rows: int, channels: int) -> Samples:
    """One strip or tile, with the tables that all share, as a JPEG file of its own."""
    tables, strip = page.jpeg_tables, bytes(packed)
    if strip[:2] != b"\xff\xd8":
        raise ImageError(ErrorCode.UNDECODABLE, "TIFF: a strip isn't JPEG")
    # Adobe's marker tells the decoder what TIFF's own tag says: whether colours are YCbCr or RGB.
    colour = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes((page.photometric == _YCBCR,))
    shared = tables[2:-2] if tables[:2] == b"\xff\xd8" and tables[-2:] == b"\xff\xd9" else b""
    bound = Bound(page.chunk_width * page.chunk_height)
    try:
        rgb = jpeg.read(b"".join((b"\xff\xd8", colour, shared, strip[2:])), bound).rgb
    except ImageError as error:
        if error.failure.code != ErrorCode.TOO_LARGE:
            raise
        raise ImageError(ErrorCode.UNDECODABLE, "TIFF: a strip holds a larger JPEG than it may") from error
    if rgb.shape[0] < rows or rgb.shape[1] != page.chunk_width:
        raise ImageError(ErrorCode.UNDECODABLE, "TIFF: a strip holds a JPEG of another size")
    return rgb[:rows, :, :channels]


def _unpack_bits(packed: UInt8, bits: int) -> UInt8:
    """(rows, bytes) to one value of 1, 2 or 4 bits per byte."""
    shifts = np.arange(8 - bits, -1, -bits, dtype=np.uint8)
    values: UInt8 = (packed[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    return values.reshape(len(packed), -1)


def _to_rgb(samples: Samples, page: Page) -> UInt8:
    """Gives samples their meaning."""
    if page.bits < 8 and page.photometric != _PALETTE:
        samples = samples * np.uint8(255 // ((1 << page.bits) - 1))
    if page.photometric == _PALETTE:
        return _palette(page)[samples[..., 0]]
    if page.photometric == _WHITE_IS_ZERO:
        samples = samples.copy()
        samples[..., 0] = np.iinfo(samples.dtype).max - samples[..., 0]
    if page.photometric == _CMYK:
        inks = samples[..., :4]
        return cmyk_to_rgb(to_eight_bits(inks) if inks.dtype == np.uint16 else inks, inverted=False)
    colours = 1 if page.photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO) else 3
    if page.alpha:
        return _composite(samples, colours, page.alpha)
    plain = samples[..., :colours]
    eight = to_eight_bits(plain) if plain.dtype == np.uint16 else plain
    return grey_to_rgb(eight[..., 0]) if colours == 1 else np.ascontiguousarray(eight)


def _composite(samples: Samples, colours: int, alpha: int) -> UInt8:
    """Grey or RGB with alpha on white."""
    rgba = samples[..., (0, 0, 0, 1)] if colours == 1 else samples[..., :4]
    top = np.iinfo(rgba.dtype).max
    if alpha == 1:
        # Premultiplied: what is missing to opaque is white.
        full = np.empty((*rgba.shape[:2], 3), rgba.dtype)
        for rows in bands(*rgba.shape[:2]):
            full[rows] = np.minimum(rgba[rows, :, :3].astype(np.uint32) + (top - rgba[rows, :, 3:]), top)
        return to_eight_bits(full) if full.dtype == np.uint16 else full
    return on_white_16(rgba) if rgba.dtype == np.uint16 else on_white(rgba)


def _unit_floats_to_16_bits(samples: Samples) -> Samples:
    """Floats of 0 to 1; others have no range that could be shown."""
    out = np.empty(samples.shape, np.uint16)
    for rows in bands(samples.shape[0], samples[0].size):
        band = samples[rows].astype(np.float64)
        if not (np.isfinite(band).all() and band.min() >= 0 and band.max() <= 1):
            raise ImageError(ErrorCode.UNSUPPORTED, "TIFF with float samples outside 0 to 1: no range to show")
        out[rows] = np.rint(band * 65535)
    return out


def _palette(page: Page) -> UInt8:
    """(2**bits, 3): all reds, then greens, then blues, as 16-bit values.

    Writers scale 8 bits up by 257 or by 256, or not at all; the high byte is right for the first two.
    """
    table = np.array(page.colours[: 3 << page.bits], np.uint16).reshape(3, -1).T
    return (table if table.max() < 256 else table >> 8).astype(np.uint8)


def _truncated(what: str) -> ImageError:
    return ImageError(ErrorCode.TRUNCATED, f"TIFF: {what}")

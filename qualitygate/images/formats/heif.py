"""AVIF and HEIF: boxes walked here, pixels by Pillow's libavif and by pi-heif's libheif.

Both formats say how a picture is to be turned with properties of their own (irot, imir) and declare the EXIF
orientation to be informative only. libheif applies them while decoding; Pillow reports libavif's as an
orientation, which is applied like any other. EXIF's own is ignored in both, so nothing is turned twice.

An AV1 or HEVC item that ends in 16 equal bytes is truncated: a bit of its own ends the data, so these were
filled up, as by a download cut short. Sequences (moov) that were filled up can't be told.

Every item must lie inside the file, else it is truncated: the libraries notice only what they touch. libheif
conceals some damage inside an HEVC stream; that can't be told here.

The bound is compared with the largest picture that the file declares (ispe) before a library sees it.
Peak memory per pixel, measured on 8-bit 4:2:0: 8 bytes.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from qualitygate.errors import ErrorCode, ImageError
from qualitygate.images import exif, libraries
from qualitygate.images.pixels import UInt8, from_pillow, grey_to_rgb, on_white
from qualitygate.images.raster import Bound, Raster

_PICTURE_TYPES = frozenset(
    {b"hvc1", b"hev1", b"av01", b"avc1", b"vvc1", b"jpeg", b"j2k1", b"unci", b"grid", b"iden", b"iovl", b"tmap"}
)
_ENDED_BY_A_BIT = frozenset({b"hvc1", b"hev1", b"av01"})
_SHORTEST_FILL = 16
_MAX_BOXES = 20_000
_MAX_EXTENTS = 100_000


@dataclass(slots=True)
class Items:
    """What the meta box says."""

    largest: tuple[int, int] = (0, 0)
    exif_items: set[int] = field(default_factory=set)
    coded_items: set[int] = field(default_factory=set)  # AV1 and HEVC
    other_types: list[int] = field(default_factory=list)  # where the types of items without pixels stand
    extents: dict[int, list[tuple[int, int]]] = field(default_factory=dict)  # item -> (offset, length)


def read_avif(data: bytes, bound: Bound) -> Raster:
    """Decodes AVIF; of a sequence, the first frame."""
    from PIL.AvifImagePlugin import AvifImageFile

    items, metadata = _describe(data, bound)
    with libraries.decoder_errors("AVIF"):
        image = libraries.open_pillow(AvifImageFile, _without_metadata(data, items))
        bound.admit(*image.size)
        orientation = image.getexif().get(0x0112, 1)
        image.load()
    rgb = _to_rgb(from_pillow(image))
    return Raster(rgb=rgb, orientation=orientation, exif=metadata)


def read_heif(data: bytes, bound: Bound) -> Raster:
    """Decodes the primary picture of HEIC or HEIF."""
    import pi_heif

    items, metadata = _describe(data, bound)
    with libraries.decoder_errors("HEIF"):
        image = pi_heif.open_heif(_without_metadata(data, items))
        bound.admit(*image.size)
        samples = np.asarray(image)[:, : image.size[0]]
        premultiplied = image.premultiplied_alpha
    if samples.dtype != np.uint8:
        raise ImageError(ErrorCode.UNSUPPORTED, f"HEIF decoded to {samples.dtype} samples")
    rgb = _premultiplied_on_white(samples) if premultiplied else _to_rgb(samples)
    return Raster(rgb=rgb, exif=metadata)


def _without_metadata(data: bytes, items: Items) -> bytes:
    """The file with all items but pictures given a type that says nothing.

    Metadata have been read here. Pillow would parse EXIF and print warnings about malformed blocks; pi-heif 1.4
    crashes the process at an item type that isn't UTF-8.
    """
    if not items.other_types:
        return data
    hidden = bytearray(data)
    for position in items.other_types:
        hidden[position : position + 4] = b"none"
    return bytes(hidden)


def _to_rgb(samples: UInt8) -> UInt8:
    if samples.ndim == 2 or samples.shape[2] == 1:
        return grey_to_rgb(samples.reshape(samples.shape[:2]))
    if samples.shape[2] == 2:
        return on_white(samples[..., (0, 0, 0, 1)])
    if samples.shape[2] == 4:
        return on_white(samples)
    return samples if samples.flags.writeable and samples.flags.c_contiguous else samples.copy()


def _premultiplied_on_white(samples: UInt8) -> UInt8:
    colours = samples[..., :3].astype(np.uint16) + (255 - samples[..., 3:])
    return np.minimum(colours, 255).astype(np.uint8)


def _describe(data: bytes, bound: Bound) -> tuple[Items, exif.Exif]:
    """Bounds the size, finds every item inside the file, reads EXIF."""
    items = Items()
    boxes = list(_boxes(data, 0, len(data), top=True))
    for kind, start, stop in boxes:
        if kind == b"meta":
            _read_meta(data, start + 4, stop, items)
    if items.largest != (0, 0):
        bound.admit(*items.largest)
    for extents in items.extents.values():
        if any(offset + length > len(data) for offset, length in extents):
            raise ImageError(ErrorCode.TRUNCATED, "the file ends inside an item (AVIF or HEIF)")
    for item in items.coded_items & items.extents.keys():
        if any(_filled(data, offset, length) for offset, length in items.extents[item][-1:]):
            raise ImageError(ErrorCode.TRUNCATED, "an item filled up with equal bytes (AVIF or HEIF)")
    if not any(kind in (b"meta", b"moov") for kind, _, _ in boxes):
        raise ImageError(ErrorCode.TRUNCATED, "the file ends before its description (AVIF or HEIF)")
    return items, _exif(data, items)


def _filled(data: bytes, offset: int, length: int) -> bool:
    # A length of zero means up to the end of the file.
    tail = data[offset : offset + length if length else None][-_SHORTEST_FILL:]
    return len(tail) == _SHORTEST_FILL and len(set(tail)) == 1


def _boxes(data: bytes, position: int, end: int, *, top: bool = False) -> Iterator[tuple[bytes, int, int]]:
    """(type, start, stop) of each box's body. At the top level a box that the file cuts is an error."""
    for _ in range(_MAX_BOXES):
        if position + 8 > end:
            return
        size, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        header = 8
        if size == 1:
            size, header = int.from_bytes(data[position + 8 : position + 16], "big"), 16
        elif size == 0:
            size = end - position
        if size < header:
            return
        if position + size > end:
            if top and kind in (b"ftyp", b"meta", b"mdat", b"moov", b"idat"):
                raise ImageError(ErrorCode.TRUNCATED, f"the file ends inside its {kind.decode()} box")
            return
        yield kind, position + header, position + size
        position += size


def _read_meta(data: bytes, start: int, stop: int, items: Items) -> None:
    idat: tuple[int, int] | None = None
    locations: tuple[int, int] | None = None
    for kind, body, end in _boxes(data, start, stop):
        if kind == b"iprp":
            for inner, inner_body, inner_end in _boxes(data, body, end):
                if inner == b"ipco":
                    _read_sizes(data, inner_body, inner_end, items)
        elif kind == b"iinf" and body + 8 <= end:
            _read_types(data, body + (6 if data[body] == 0 else 8), end, items)
        elif kind == b"iloc":
            locations = (body, end)
        elif kind == b"idat":
            idat = (body, end)
    if locations is not None:
        try:
            _read_locations(data[locations[0] : locations[1]], idat[0] if idat else len(data), items)
        except (struct.error, IndexError) as error:
            raise ImageError(ErrorCode.UNDECODABLE, "damaged item locations (AVIF or HEIF)") from error


def _read_sizes(data: bytes, start: int, stop: int, items: Items) -> None:
    for kind, body, end in _boxes(data, start, stop):
        if kind == b"ispe" and body + 12 <= end:
            width, height = struct.unpack_from(">II", data, body + 4)
            if width * height > items.largest[0] * items.largest[1]:
                items.largest = (width, height)


def _read_types(data: bytes, start: int, stop: int, items: Items) -> None:
    for kind, body, end in _boxes(data, start, stop):
        if kind != b"infe" or body + 12 > end or data[body] not in (2, 3):
            continue
        id_size = 2 if data[body] == 2 else 4
        at = body + 4 + id_size + 2
        item = int.from_bytes(data[body + 4 : body + 4 + id_size], "big")
        if data[at : at + 4] == b"Exif":
            items.exif_items.add(item)
        if data[at : at + 4] in _ENDED_BY_A_BIT:
            items.coded_items.add(item)
        if data[at : at + 4] not in _PICTURE_TYPES:
            items.other_types.append(at)


def _read_locations(box: bytes, idat: int, items: Items) -> None:
    """iloc, versions 0 to 2: fields of 0, 4 or 8 bytes as the box itself says."""
    version = box[0]
    sizes = (box[4] >> 4, box[4] & 15, box[5] >> 4, box[5] & 15 if version else 0)
    offset_size, length_size, base_size, index_size = sizes
    id_size = 4 if version == 2 else 2
    position = 6

    def number(size: int) -> int:
        nonlocal position
        position += size
        if position > len(box):
            raise IndexError
        return int.from_bytes(box[position - size : position], "big")

    total = 0
    for _ in range(number(id_size)):
        item = number(id_size)
        method = number(2) & 15 if version else 0
        number(2)  # which file: this one
        base = number(base_size)
        extents = []
        for _ in range(number(2)):
            number(index_size)
            offset, length = number(offset_size), number(length_size)
            extents.append((base + offset + (idat if method == 1 else 0), length))
            total += 1
            if total > _MAX_EXTENTS:
                raise IndexError
        if method <= 1:  # 2 is an offset into another item
            items.extents[item] = extents


def _exif(data: bytes, items: Items) -> exif.Exif:
    """The first Exif item: four bytes say where in it the TIFF header starts."""
    for item in sorted(items.exif_items):
        block = b"".join(data[offset : offset + length] for offset, length in items.extents.get(item, [])[:16])
        start = 4 + int.from_bytes(block[:4], "big")
        return replace(exif.parse(block[start : start + (1 << 20)]), orientation=1)
    return exif.NONE

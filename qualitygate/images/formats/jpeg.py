"""JPEG: libjpeg-turbo with every warning an error, after a look at the markers for what it doesn't warn of.

Pixels are libjpeg's defaults, the accurate integer IDCT and smooth ("fancy") chroma upsampling, so they equal
Pillow's and OpenCV's. libjpeg fills what is missing with grey and only warns; TurboJPEG, stopped at the first
warning, tells. What becomes of each:

    all rows there, end marker absent       decodes: an end marker is supplied and nothing else is missing
    anything after the end marker           decodes: makers' data, further pictures
    data end early, an end marker or not    truncated
    a scan that is absent                   truncated: libjpeg says nothing, so it is read off the markers:
                                            each coefficient must arrive at its last bit in each component
    junk between header segments            decodes: libjpeg skips it; some cameras write it
    padding, one byte value, before the end decodes: MJPEG cameras fill their buffers so
    the same in the place of missing rows   truncated: a download cut short, in a file of its full size
    other bytes left over after the last    undecodable: a damaged stream loses step and ends too soon
    row, or between restart markers
    bad Huffman code, lost restart marker   undecodable

JPEG has no checksum: a flipped bit after which the decoder falls into step again without a byte left over (up
to seven are held in its bit buffer) can't be told from a picture that was meant so.

A fill is told from padding by decoding once more without it, and from data by its end: flat areas may end in a
run of equal bytes, but need the last of them. Not told: a fill of the last two or three bytes alone, or one that
happens to end with the last code. A flat picture whose own data end in whole bytes of the padding's value (with
Huffman tables made for it) is taken for one filled up.

Unsupported: 12-bit, lossless, hierarchical, a height given after the scan (DNL), two components, and
arithmetic coding, whose decoder takes missing data for zeros by definition: truncation would go unseen.

Peak memory per pixel: 3 bytes for RGB; progressive files add their coefficients, 3 (4:2:0) to 6 (4:4:4)
bytes; CMYK 8 in all.
"""

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from qualitygate.errors import ErrorCode, ImageError
from qualitygate.images import exif, libraries
from qualitygate.images.pixels import UInt8, cmyk_to_rgb, from_pillow, grey_to_rgb
from qualitygate.images.raster import Bound, Raster

_SOI, _EOI, _SOS, _APP0, _APP1, _APP14 = 0xD8, 0xD9, 0xDA, 0xE0, 0xE1, 0xEE
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BASELINE, _EXTENDED, _PROGRESSIVE = 0xC0, 0xC1, 0xC2
_UNSUPPORTED_FRAMES = {
    **dict.fromkeys((0xC3, 0xC7, 0xCB, 0xCF), "lossless JPEG"),
    **dict.fromkeys((0xC5, 0xC6, 0xCD, 0xCE), "hierarchical JPEG"),
    **dict.fromkeys((0xC9, 0xCA), "JPEG with arithmetic coding"),
}
# A legal file needs a few dozen at the most; each empty one still walks over the whole image.
_MAX_SCANS = 100
_NOT_SENT = -1
# Of luma, beside chroma of 1x1: 4:4:4, 4:2:2, 4:2:0, 4:4:0.
_USUAL_SAMPLINGS = ((1, 1), (2, 1), (2, 2), (1, 2))
_MAX_SEGMENTS = 20_000
# In a scan a marker is 0xFF and neither a stuffed zero, a restart marker nor a fill byte.
_MARKER_IN_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_MARKER_IN_HEADER = re.compile(rb"\xff[^\x00\xff]")
# Warnings about fields that libjpeg then ignores.
_HARMLESS = ("JFIF revision", "Invalid SOS parameters", "Adobe color transform")
_MAX_REPAIRS = 4
# As many bytes as libjpeg's bit buffer may want beyond the last code.
_LOOK_AHEAD = 16
_TAILS = (b"\x00" * _LOOK_AHEAD, b"\xff\x00" * _LOOK_AHEAD)
# Of a run of padding, so many bytes may be the data's own that happen to be the same.
_KEPT = 2
_EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker 0x(..)")


@dataclass(frozen=True, slots=True)
class Segment:
    """One marker, with its parameters and, for a scan, the entropy-coded data: data[start:stop]."""

    marker: int
    start: int
    body: int
    stop: int


@dataclass(slots=True)
class Layout:
    """What the markers say, without decoding."""

    segments: list[Segment] = field(default_factory=list)
    frame_marker: int | None = None
    precision: int = 0
    height: int = 0
    width: int = 0
    samplings: dict[int, tuple[int, int]] = field(default_factory=dict)
    # Component -> for each of 64 coefficients, how many low bits are still to come, or _NOT_SENT.
    missing_bits: dict[int, list[int]] = field(default_factory=dict)
    scans: int = 0
    exif_block: bytes = b""
    end: int | None = None  # where the end marker starts
    cut: bool = False  # the file ends inside a segment
    disorder: bool = False  # a scan refines what hasn't come or repeats what has


def read(data: bytes, bound: Bound) -> Raster:
    """Decodes strictly; see the top of this module for what that means."""
    layout = parse(data)
    _check_frame(layout, bound)
    _check_complete(layout)
    metadata = exif.parse(layout.exif_block)
    rgb = _decode_or_repair(data, layout)
    return Raster(rgb=rgb, orientation=metadata.orientation, exif=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plain:
    """A picture that other decoders read as this one does: data[:end] is all of it, `width` x `height` as stored."""

    end: int
    width: int
    height: int
    exif: exif.Exif


def plain(data: bytes, bound: Bound) -> Plain | None:
    """What the markers say of a file that needs none of this module's care, without decoding; None for all others.

    Plain are grey and YCbCr pictures in one baseline scan, with an end marker, nothing between their segments and no
    run of equal bytes at their end. Raises `ImageError` as `read` does for what the markers tell. Not looked at are the
    coded data themselves: what is damaged or missing inside them, decoders that don't mind decode.
    """
    layout = parse(data)
    _check_frame(layout, bound)
    _check_complete(layout)
    if layout.end is None or not _is_plain(data, layout):
        return None
    metadata = exif.parse(layout.exif_block)
    return Plain(end=layout.end + 2, width=layout.width, height=layout.height, exif=metadata)


def _is_plain(data: bytes, layout: Layout) -> bool:
    starts = [segment.start for segment in layout.segments]
    adjacent = [2, *(segment.stop for segment in layout.segments)] == [*starts, layout.end]
    once = layout.frame_marker == _BASELINE and layout.scans == 1
    samplings = list(layout.samplings.values())
    usual = samplings in ([(1, 1)], *([luma, (1, 1), (1, 1)] for luma in _USUAL_SAMPLINGS))
    return adjacent and once and usual and _is_ycbcr(data, layout) and _last_run(data, layout) <= _KEPT


def _is_ycbcr(data: bytes, layout: Layout) -> bool:
    """Whether all that says how colours are stored says grey or YCbCr: decoders weigh what contradicts differently."""
    bodies = [(segment.marker, data[segment.body : segment.stop]) for segment in layout.segments]
    adobe = [body for marker, body in bodies if marker == _APP14 and body.startswith(b"Adobe")]
    jfif = any(marker == _APP0 and body.startswith(b"JFIF\x00") for marker, body in bodies)
    if len(layout.samplings) == 1:
        return not adobe
    transformed = all(len(body) >= 12 and body[11] == 1 for body in adobe)
    return transformed and (jfif or bool(adobe) or list(layout.samplings) == [1, 2, 3])


def parse(data: bytes) -> Layout:
    """Walks the markers from the start of image to its end, or to the end of the data."""
    layout = Layout()
    position = 2
    while len(layout.segments) < _MAX_SEGMENTS:
        found = _MARKER_IN_HEADER.search(data, position)
        if found is None:
            return layout
        marker, body = data[found.end() - 1], found.end()
        if marker == _EOI:
            layout.end = found.start()
            return layout
        if 0xD0 <= marker <= _SOI or marker == 0x01:  # without parameters
            position = body
            continue
        if marker < 0xC0:
            raise ImageError(ErrorCode.UNDECODABLE, f"JPEG: no such marker (0x{marker:02x})")
        position = body + (int.from_bytes(data[body : body + 2], "big") if body + 2 <= len(data) else 2)
        if position > len(data) or position < body + 2:
            layout.cut = position > len(data)
            return layout
        if marker == _SOS:
            following = _MARKER_IN_SCAN.search(data, position)
            stop = following.start() if following else len(data)
        else:
            stop = position
        segment = Segment(marker, found.start(), body + 2, stop)
        layout.segments.append(segment)
        _note(layout, segment, data[body + 2 : position])
        position = stop
    raise ImageError(ErrorCode.UNDECODABLE, f"JPEG: more than {_MAX_SEGMENTS} segments")


def _note(layout: Layout, segment: Segment, body: bytes) -> None:
    """Takes in what one segment says."""
    if segment.marker in _FRAMES and layout.frame_marker is None and len(body) >= 6:
        layout.frame_marker = segment.marker
        layout.precision, layout.height, layout.width, count = struct.unpack_from(">BHHB", body)
        for at in range(6, min(6 + 3 * count, len(body) - 2), 3):
            layout.samplings[body[at]] = (body[at + 1] >> 4, body[at + 1] & 15)
            layout.missing_bits[body[at]] = [_NOT_SENT] * 64
    elif segment.marker == _SOS:
        layout.scans += 1
        _note_scan(layout, body)
    elif segment.marker == _APP1 and body.startswith(exif.HEADER) and not layout.exif_block:
        layout.exif_block = body


def _note_scan(layout: Layout, body: bytes) -> None:
    count = body[0] if body else 0
    if len(body) < 4 + 2 * count:
        return
    first, last, approximation = body[1 + 2 * count : 4 + 2 * count]
    if layout.frame_marker != _PROGRESSIVE:
        first, last, approximation = 0, 63, 0
    before, after = approximation >> 4, approximation & 15
    for at in range(1, 1 + 2 * count, 2):
        bits = layout.missing_bits.get(body[at], [])
        for coefficient in range(first, min(last + 1, len(bits))):
            layout.disorder |= bits[coefficient] != (before or _NOT_SENT)
            bits[coefficient] = after


def _check_frame(layout: Layout, bound: Bound) -> None:
    """Everything that the header decides, the pixel bound included."""
    if layout.frame_marker is None:
        raise ImageError(ErrorCode.TRUNCATED, "JPEG: the file ends within its header")
    if layout.frame_marker in _UNSUPPORTED_FRAMES:
        raise ImageError(ErrorCode.UNSUPPORTED, f"{_UNSUPPORTED_FRAMES[layout.frame_marker]}")
    if layout.height == 0 and layout.width:
        raise ImageError(ErrorCode.UNSUPPORTED, "JPEG: its height is given after the scan (DNL)")
    bound.admit(layout.width, layout.height)
    if layout.precision != 8:
        raise ImageError(ErrorCode.UNSUPPORTED, f"JPEG with {layout.precision} bits a sample; 8 are decoded")
    if len(layout.samplings) not in (1, 3, 4):
        raise ImageError(ErrorCode.UNSUPPORTED, f"JPEG with {len(layout.samplings)} components")
    if layout.scans > _MAX_SCANS:
        raise ImageError(ErrorCode.UNSUPPORTED, f"JPEG with {layout.scans} scans; at most {_MAX_SCANS}")


def _check_complete(layout: Layout) -> None:
    """Scans that never come leave no trace in the decoder's warnings."""
    if layout.cut or layout.scans == 0:
        where = "inside a segment" if layout.cut else "before the first scan"
        raise ImageError(ErrorCode.TRUNCATED, f"JPEG: the file ends {where}")
    if any(bits != 0 for component in layout.missing_bits.values() for bits in component):
        raise ImageError(ErrorCode.TRUNCATED, f"JPEG: scans are missing after the first {layout.scans}")
    if layout.disorder:
        # libjpeg tolerates that a coefficient is sent anew, again and again: a bomb of a few bytes, since each
        # scan walks over the whole image.
        raise ImageError(ErrorCode.UNDECODABLE, "JPEG: scans out of order")


def _decode_or_repair(data: bytes, layout: Layout) -> UInt8:
    """Decodes; after a warning about something harmless, again without it."""
    stream = data
    if layout.end is None:
        # Supplying the end marker tells "only the marker is missing" from "rows are missing".
        stream = data.rstrip(b"\xff") + bytes((0xFF, _EOI))
    run = _last_run(data, layout)
    drop = 0
    for _ in range(_MAX_REPAIRS):
        try:
            pixels = _decode(stream, layout)
        except ImageError as error:
            message = error.failure.message
            if "subsampling" in message:
                return _decode_unusual_sampling(data, layout, run)
            extraneous = _EXTRANEOUS.search(message)
            if extraneous and int(extraneous[2], 16) == _EOI:
                # Without the bytes that the decoder's bit buffer holds. All of the run goes, whatever of it the
                # decoder took for codes: where rows are missing then, it was put in the place of data.
                if run < int(extraneous[1]):
                    raise
                drop = run if drop else max(run - _KEPT, 1)
            elif not extraneous and not any(harmless in message for harmless in _HARMLESS):
                raise
            rewritten = _rewrite(data, layout, drop)
            if rewritten == stream:
                raise
            stream = rewritten
        else:
            if not drop:
                _check_run(run, lambda less: _complete(_rewrite(data, layout, less), layout))
            return pixels
    return _decode(stream, layout)


def _last_run(data: bytes, layout: Layout) -> int:
    """How many equal bytes the last scan's data end in; fill bytes (0xFF) before a marker aren't data."""
    scan = layout.segments[_last_scan(layout)]
    coded = data[_coded(data, scan) : scan.stop].rstrip(b"\xff")
    run = len(coded) - len(coded.rstrip(coded[-1:]))
    # After 0xFF the first zero is stuffing.
    return run - (coded[-1:] == b"\x00" and coded[: len(coded) - run].endswith(b"\xff"))


def _last_scan(layout: Layout) -> int:
    return max(index for index, segment in enumerate(layout.segments) if segment.marker == _SOS)


def _coded(data: bytes, scan: Segment) -> int:
    """Where a scan's entropy-coded data start."""
    return scan.body - 2 + int.from_bytes(data[scan.body - 2 : scan.body], "big")


def _check_run(run: int, complete_without: Callable[[int], bool]) -> None:
    """Raises where the data's last `run` bytes, all equal, stand in the place of missing ones.

    complete_without: whether all rows are there without so many of the last bytes. Where they are without the
    run, it is padding. Where the very last byte is needed the run is data: flat areas end so. A fill that the
    decoder took for codes leaves bytes over.
    """
    if run > _KEPT and not complete_without(run - _KEPT) and complete_without(1):
        raise ImageError(ErrorCode.TRUNCATED, f"JPEG: filled up with {run} equal bytes in the place of its last rows")


def _complete(stream: bytes, layout: Layout) -> bool:
    try:
        _decode(stream, layout)
    except ImageError as error:
        if error.failure.code == ErrorCode.OUT_OF_MEMORY:
            raise
        return error.failure.code != ErrorCode.TRUNCATED
    return True


def _decode(stream: bytes, layout: Layout) -> UInt8:
    import simplejpeg  # type: ignore[import-untyped]

    colours = {1: "GRAY", 3: "RGB", 4: "CMYK"}[len(layout.samplings)]
    with libraries.decoder_errors("JPEG"):
        pixels = simplejpeg.decode_jpeg(stream, colours, fastdct=False, fastupsample=False, strict=True)
    if colours == "RGB":
        return pixels
    # Adobe stores inks inverted. Files without its marker are ambiguous; common viewers invert them too.
    return cmyk_to_rgb(pixels, inverted=True) if colours == "CMYK" else grey_to_rgb(pixels[..., 0])


def _rewrite(data: bytes, layout: Layout, drop: int) -> bytes:
    """The same picture without what is odd but harmless, and without the last scan's last `drop` bytes."""
    parts = [bytes((0xFF, _SOI))]
    for segment in layout.segments[: _last_scan(layout) + 1]:
        # Joining segments leaves out the junk between them.
        parts.append(bytes((0xFF, segment.marker)))
        parts.append(_normal(segment, data[segment.body - 2 : segment.stop], layout))
    if drop:
        parts[-1] = parts[-1].rstrip(b"\xff")[:-drop]
    parts.append(bytes((0xFF, _EOI)))
    return b"".join(parts)


def _normal(segment: Segment, body: bytes, layout: Layout) -> bytes:
    """A segment (from its length on) with the fields regular that libjpeg warns of and then ignores."""
    if segment.marker == _APP0 and body[2:7] == b"JFIF\x00":
        return body[:7] + b"\x01\x01" + body[9:]
    if segment.marker == _APP14 and body[2:7] == b"Adobe" and len(body) >= 14 and body[13] > 2:
        return body[:13] + bytes((1 if len(layout.samplings) == 3 else 2,)) + body[14:]
    if segment.marker == _SOS and layout.frame_marker in (_BASELINE, _EXTENDED):
        at = 3 + 2 * body[2]
        return body[:at] + b"\x00\x3f\x00" + body[at + 3 :]
    return body


def _decode_unusual_sampling(data: bytes, layout: Layout, run: int) -> UInt8:
    """Chroma subsampling that TurboJPEG has no name for: Pillow, which passes on no warnings.

    Without an end marker Pillow starves where libjpeg would otherwise fill with grey, but it needs a few bytes
    to look ahead. Two different tails of them tell the rest: pixels that depend on the tail are missing ones.
    Works for a single scan alone; damage inside the data passes unseen here.
    """
    if layout.scans != 1:
        samplings = " ".join(f"{h}x{v}" for h, v in layout.samplings.values())
        raise ImageError(ErrorCode.UNSUPPORTED, f"JPEG with chroma subsampling {samplings} in several scans")
    parts = [bytes((0xFF, _SOI))]
    for segment in layout.segments[: _last_scan(layout) + 1]:
        if not 0xE0 <= segment.marker <= 0xEF or segment.marker in (_APP0, _APP14):
            parts += [bytes((0xFF, segment.marker)), data[segment.body - 2 : segment.stop]]
    stream = b"".join(parts).rstrip(b"\xff")

    def complete_without(less: int) -> bool:
        try:
            first, second = (_by_pillow(stream[: len(stream) - less] + tail) for tail in _TAILS)
        except ImageError as error:
            if error.failure.code == ErrorCode.OUT_OF_MEMORY:
                raise
            return False
        return np.array_equal(first, second)

    pixels = _by_pillow(stream + _TAILS[0])
    if not np.array_equal(pixels, _by_pillow(stream + _TAILS[1])):
        raise ImageError(ErrorCode.TRUNCATED, "JPEG: its last rows are missing")
    _check_run(run, complete_without)
    return pixels


def _by_pillow(stream: bytes) -> UInt8:
    from PIL.JpegImagePlugin import JpegImageFile

    with libraries.decoder_errors("JPEG"):
        image = libraries.open_pillow(JpegImageFile, stream)
        image.load()
    pixels = from_pillow(image)
    if image.mode == "CMYK":
        return cmyk_to_rgb(pixels, inverted=False)  # Pillow has inverted it
    return pixels if pixels.ndim == 3 else grey_to_rgb(pixels)

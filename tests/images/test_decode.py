"""Decoding: what each format must give, what is refused and as what, and that no bytes at all break it."""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import cv2
import malformed
import numpy as np
import numpy.typing as npt
import pytest
import skimage.data
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from malformed import chunk, encode, exif, png, png_16, stored_for
from PIL import Image

from qualitygate.errors import ConfigurationError, ErrorCode, ImageError
from qualitygate.images.decode import DecodePolicy, decode, pixels_by_header
from qualitygate.images.exif import parse as parse_exif
from qualitygate.images.formats import tiff_codecs

UInt8 = npt.NDArray[np.uint8]

ASTRONAUT: UInt8 = skimage.data.astronaut()
SMALL: UInt8 = np.ascontiguousarray(ASTRONAUT[:93, :117])  # sides that no block size divides
PHOTOGRAPHS = {"astronaut": ASTRONAUT, "coffee": skimage.data.coffee(), "chelsea": skimage.data.chelsea()}
CORPUS = malformed.build(ASTRONAUT)


def pixels(data: bytes, **options: Any) -> UInt8:
    return decode(data, **options).photograph.rgb


def code(data: bytes, **options: Any) -> str:
    """The error code; "ok" where it decodes."""
    return outcome(data, **options)[0]


def outcome(data: bytes, **options: Any) -> tuple[str, UInt8 | None]:
    try:
        return "ok", pixels(data, **options)
    except ImageError as error:
        assert error.failure.message  # noqa: PT017
        return str(error.failure.code), None


def by_pillow(data: bytes) -> UInt8:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def on_white(rgba: npt.NDArray[Any], top: int = 255) -> UInt8:
    """The defining formula, in floats."""
    alpha = rgba[..., 3:].astype(float) / top
    return np.rint((rgba[..., :3] * alpha + top * (1 - alpha)) * (255 / top)).astype(np.uint8)


def scaled(samples: npt.NDArray[Any]) -> UInt8:
    return np.rint(samples * (255 / 65535)).astype(np.uint8)


@pytest.fixture(scope="module")
def ramp() -> npt.NDArray[np.uint16]:
    """(93, 117) with values over the whole 16-bit range, neighbours far apart."""
    return (np.arange(93 * 117, dtype=np.uint32) * 40503 % 65536).astype(np.uint16).reshape(93, 117)


# --- the corpus -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CORPUS)
def test_each_odd_file_has_its_outcome(name: str) -> None:
    data, expected = CORPUS[name]
    assert code(data) == expected
    if expected != "ok":
        return
    decoded = decode(data)
    rgb = decoded.photograph.rgb
    assert rgb.dtype == np.uint8
    assert rgb.shape == (decoded.height, decoded.width, 3)
    assert rgb.flags.c_contiguous
    assert rgb.flags.writeable


@pytest.mark.parametrize("name", CORPUS)
def test_the_header_promises_the_pixels_that_come(name: str) -> None:
    """As stored, so that what is decoded ahead can be bounded before it is decoded."""
    data, expected = CORPUS[name]
    promised = pixels_by_header(data)
    if expected == "ok":
        decoded = decode(data)
        assert promised == decoded.width * decoded.height
    if name.startswith("bomb"):
        assert promised > DecodePolicy().max_pixels


def test_the_corpus_is_large_and_the_same_each_time(tmp_path: Path) -> None:
    outcomes = malformed.write(tmp_path, ASTRONAUT)
    assert len(outcomes) >= 60
    assert {path.name for path in tmp_path.iterdir()} == set(outcomes)
    again = malformed.build(ASTRONAUT)
    assert all((tmp_path / name).read_bytes() == data for name, (data, _) in again.items())


@pytest.mark.parametrize("name", [n for n in CORPUS if n.startswith("bomb")])
def test_a_bomb_is_refused_at_once_and_without_memory(name: str) -> None:
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(ImageError) as caught:
        decode(CORPUS[name][0])
    seconds = time.perf_counter() - start
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.failure.code == ErrorCode.TOO_LARGE
    assert (caught.value.width or 0) * (caught.value.height or 0) > 100_000_000
    assert seconds < 0.1
    assert peak < 1_000_000


def test_nothing_is_printed_for_any_file(capfd: pytest.CaptureFixture[str]) -> None:
    for data, _ in CORPUS.values():
        for damaged in (data, data[: len(data) * 3 // 4], _flip(data, len(data) // 2), _flip(data, 60)):
            outcome(damaged)
    assert capfd.readouterr() == ("", "")


def _flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes(b ^ 0x2D for b in data[at : at + 3]) + data[at + 3 :]


# --- JPEG -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PHOTOGRAPHS)
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0", "4:4:0", "4:1:1"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_equals_pillow_and_opencv(name: str, subsampling: str, progressive: bool) -> None:
    factors = {"4:4:4": 0x111111, "4:2:2": 0x211111, "4:2:0": 0x221111, "4:4:0": 0x121111, "4:1:1": 0x411111}
    parameters = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factors[subsampling], cv2.IMWRITE_JPEG_QUALITY, 85]
    parameters += [cv2.IMWRITE_JPEG_PROGRESSIVE, int(progressive)]
    encoded = cv2.imencode(".jpg", PHOTOGRAPHS[name][:301, :411, ::-1], parameters)[1]
    decoded = pixels(encoded.tobytes())
    assert np.array_equal(decoded, by_pillow(encoded.tobytes()))
    assert np.array_equal(decoded, cv2.imdecode(encoded, cv2.IMREAD_COLOR)[..., ::-1])


def _in_header(data: bytes, cut: int) -> bool:
    """Whether `cut` falls into a segment other than a scan's data."""
    segments = [(at, int.from_bytes(data[at + 2 : at + 4], "big")) for at, _ in malformed.jpeg_markers(data)]
    return any(at <= cut < at + 2 + length for at, length in segments)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}])
def test_a_jpeg_cut_anywhere_never_gives_other_pixels(options: dict[str, Any]) -> None:
    data = encode(SMALL, "JPEG", quality=80, **options)
    whole = pixels(data)
    for cut in range(2, len(data), 3):
        for ending in (b"", b"\xff\xd9"):
            result, part = outcome(data[:cut] + ending)
            if part is None:
                # A table cut short swallows the end marker after it and then makes no sense.
                assert result == "truncated" or (ending and _in_header(data, cut))
            else:
                # Nothing but the marker itself may be missing.
                assert cut >= len(data) - 2
                assert np.array_equal(part, whole)


def test_a_progressive_jpeg_needs_every_scan() -> None:
    data = encode(SMALL, "JPEG", quality=80, progressive=True)
    scans = [at for at, marker in malformed.jpeg_markers(data) if marker == 0xDA]
    for scan in scans[1:]:
        assert code(data[:scan] + malformed.EOI) == "truncated"


def test_repeated_scans_are_no_bomb() -> None:
    data = encode(SMALL, "JPEG", quality=80, progressive=True)
    scans = [at for at, marker in malformed.jpeg_markers(data) if marker == 0xDA]
    first = data[scans[0] : scans[1]]
    assert code(data[: scans[1]] + first * 90 + data[scans[1] :]) == "undecodable"


def test_a_sequential_jpeg_needs_a_scan_of_every_component() -> None:
    data = encode(SMALL, "JPEG", quality=80, progressive=True)
    frame = malformed.jpeg_frame(data)
    # A sequential frame of three components with a single scan, of the first one.
    scan = next(at for at, marker in malformed.jpeg_markers(data) if marker == 0xDA)
    one_component = data[: scan + 4] + b"\x01" + data[scan + 5 : scan + 7] + b"\x00\x3f\x00"
    stream = malformed.patched(one_component, frame + 1, b"\xc0")
    stream = malformed.patched(stream, scan + 2, b"\x00\x08") + bytes(400) + malformed.EOI
    assert code(stream) == "truncated"


@pytest.mark.parametrize("padding", [b"\x00", b"\x7f", b"\xff"])
@pytest.mark.parametrize("length", [1, 5, 100, 5000])
def test_padding_before_the_end_marker_is_harmless(padding: bytes, length: int) -> None:
    data = encode(SMALL, "JPEG", quality=80)
    assert np.array_equal(pixels(data[:-2] + padding * length + malformed.EOI), pixels(data))


@pytest.mark.parametrize(
    "options",
    [
        {"quality": 80},
        {"quality": 80, "optimize": True},
        {"quality": 50, "subsampling": 0},
        {"quality": 80, "progressive": True},
        {"quality": 80, "restart_marker_blocks": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("grey", [False, True])
def test_a_cut_jpeg_filled_up_with_one_byte_is_truncated(options: dict[str, Any], grey: bool) -> None:
    """As a preallocated download leaves it: the decoder takes the fill for codes and is content."""
    data = encode(Image.fromarray(SMALL).convert("L") if grey else SMALL, "JPEG", **options)
    first = data.rindex(b"\xff\xda") + 14
    for fill in (b"\x00", b"\xff", b"\xaa", b"\x11", b"\x0a"):
        for cut in range(first, len(data) - 64, (len(data) - first) // 10):
            missing = len(data) - cut
            for tail in (fill * missing, fill * (missing + 3000), fill * (missing - 2) + malformed.EOI):
                # 0xFF, 0x11 is a marker that doesn't exist.
                assert code(data[:cut] + tail) in {"truncated", "undecodable" if data[cut - 1] == 0xFF else "truncated"}


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_a_jpeg_that_ends_in_a_run_of_its_own_is_whole(subsampling: int, progressive: bool) -> None:
    """With tables made for it, a flat area is zero bits."""
    lower = SMALL.copy()
    runs = 0
    for value in (0, 128, 129, 255):
        lower[40:] = value
        for picture in (np.full((256, 320, 3), value, np.uint8), lower):
            for quality in (30, 75, 95):
                data = encode(
                    picture,
                    "JPEG",
                    quality=quality,
                    subsampling=subsampling,
                    optimize=True,
                    progressive=progressive,
                )
                runs += len(data) - 2 - len(data[:-2].rstrip(data[-3:-2])) > 3
                assert np.array_equal(pixels(data), by_pillow(data))
    assert runs or progressive or subsampling == 1


def test_harmless_oddities_of_real_files() -> None:
    data = encode(SMALL, "JPEG", quality=80)
    whole = pixels(data)
    frame = malformed.jpeg_frame(data)
    scan = next(at for at, marker in malformed.jpeg_markers(data) if marker == 0xDA)
    odd = {
        "JFIF 9.9": malformed.patched(data, 11, b"\x09\x09"),
        "unknown Adobe transform": data[:20] + _adobe(7) + data[20:],
        "scan parameters of zero": malformed.patched(data, scan + 11, b"\x00\x00\x00"),
        "fill bytes before a marker": data[:frame] + b"\xff" * 9 + data[frame:],
        "junk between segments": data[:frame] + b"\x00\x01junk" + data[frame:],
        "all of them": _all_oddities(data),
    }
    for name, stream in odd.items():
        assert np.array_equal(pixels(stream), whole), name


def _adobe(transform: int) -> bytes:
    return b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes((transform,))


def _all_oddities(data: bytes) -> bytes:
    frame = malformed.jpeg_frame(data)
    stream = malformed.patched(data[:-2], 11, b"\x09\x09") + bytes(77) + malformed.EOI + b"more"
    return stream[:frame] + b"junk" + stream[frame:]


@pytest.mark.parametrize("transform", [0, 2])
def test_inverted_inks_of_adobe(transform: int) -> None:
    """Pillow writes plain CMYK with Adobe's marker; with transform 2 the same data mean YCCK."""
    inks = Image.fromarray(SMALL).convert("CMYK")
    data = encode(inks, "JPEG", quality=95, subsampling=0)
    marker = data.index(b"Adobe")
    data = malformed.patched(data, marker + 11, bytes((transform,)))
    assert np.array_equal(pixels(data), by_pillow(data))
    if transform == 0:
        assert np.abs(pixels(data).astype(int) - SMALL).mean() < 4


def _three_luma_blocks_a_unit() -> bytes:
    """A JPEG of 3x1 subsampling, which no encoder at hand makes: random luma averages, neutral colours.

    Header and standard Huffman tables are Pillow's, the scan is put together here: 00 and 010x are luma
    differences of 0 and of one step, 1010 ends a luma block, 0000 is an empty chroma block.
    """
    header = encode(SMALL[:48, :48], "JPEG", quality=50, subsampling=0)
    frame = malformed.jpeg_frame(header)
    scan = next(at for at, marker in malformed.jpeg_markers(header) if marker == 0xDA)
    steps = np.random.default_rng(4).integers(0, 3, (12, 3))
    luma = [[("00", "0100", "0101")[step] + "1010" for step in unit] for unit in steps]
    bits = "".join("".join(blocks) + "0000" * 2 for blocks in luma)
    bits += "1" * (-len(bits) % 8)
    body = bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)).replace(b"\xff", b"\xff\x00")
    return malformed.patched(header[: scan + 14], frame + 11, b"\x31") + body + malformed.EOI


def test_subsampling_that_turbojpeg_cannot_name() -> None:
    data = _three_luma_blocks_a_unit()
    assert np.array_equal(pixels(data), by_pillow(data))
    assert len(np.unique(pixels(data))) > 3
    assert np.array_equal(pixels(data[:-2]), pixels(data))
    for cut in range(len(data) - 30, len(data) - 3):
        assert code(data[:cut]) == "truncated"
        assert code(data[:cut] + malformed.EOI) == "truncated"
    assert np.array_equal(pixels(data[:-2] + bytes(300) + malformed.EOI), pixels(data))
    assert code(data[:-25] + bytes(300) + malformed.EOI) == "truncated"


# --- PNG ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [0, 2, 3, 4])
def test_png_16_bits_are_scaled_and_rounded(ramp: npt.NDArray[np.uint16], channels: int) -> None:
    planes = [ramp, ramp[::-1], ramp[:, ::-1], np.roll(ramp, 7)]
    if channels == 0:
        expected = np.repeat(scaled(ramp)[..., None], 3, axis=2)
        data = png_16(ramp)
    else:
        samples = np.stack(planes[:channels], -1)
        data = png_16(samples)
        rgba = samples[..., (0, 0, 0, 1)] if channels == 2 else samples
        expected = scaled(samples) if channels == 3 else on_white(rgba, 65535)
    assert np.array_equal(pixels(data), expected)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_png_grey_and_its_transparent_key_at_every_depth(depth: int) -> None:
    levels = 1 << depth
    values = np.arange(64).reshape(4, 16) % levels
    bits = ((values[..., None] >> np.arange(depth - 1, -1, -1)) & 1).astype(np.uint8).reshape(4, -1)
    rows = [np.packbits(row).tobytes() for row in bits]
    grey = (values * 255 // (levels - 1)).astype(np.uint8)
    assert np.array_equal(pixels(png(rows, 16, 4, depth, 0))[..., 1], grey)
    keyed = png(rows, 16, 4, depth, 0, ancillary=chunk(b"tRNS", struct.pack(">H", 1)))
    assert np.array_equal(pixels(keyed)[..., 2], np.where(values == 1, 255, grey))
    colours = np.random.default_rng(depth).integers(0, 256, (levels, 4), np.uint8)
    palette = chunk(b"PLTE", colours[:, :3].tobytes()) + chunk(b"tRNS", colours[:, 3].tobytes())
    assert np.array_equal(pixels(png(rows, 16, 4, depth, 3, ancillary=palette)), on_white(colours[values]))


def test_png_16_bit_keys_are_compared_at_full_depth(ramp: npt.NDArray[np.uint16]) -> None:
    grey = chunk(b"tRNS", struct.pack(">H", int(ramp[5, 5])))
    expected = np.where(ramp == ramp[5, 5], 255, scaled(ramp))
    assert np.array_equal(pixels(png_16(ramp, ancillary=grey))[..., 0], expected)
    colours = np.stack([ramp, ramp + 1, ramp + 2], -1)
    colour = chunk(b"tRNS", struct.pack(">HHH", *colours[5, 5].tolist()))
    decoded = pixels(png_16(colours, ancillary=colour))
    assert decoded[5, 5].tolist() == [255, 255, 255]
    assert np.array_equal(decoded[6], scaled(colours[6]))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA"])
def test_png_alpha_goes_on_white(mode: str) -> None:
    image = Image.fromarray(SMALL).convert(mode)
    if "A" in mode:
        image.putalpha(Image.fromarray(np.roll(SMALL[..., 0], 9, axis=1)))
    assert np.array_equal(pixels(encode(image, "PNG")), on_white(np.asarray(image.convert("RGBA"))))


def _interlaced(samples: UInt8) -> bytes:
    """An Adam7 RGB PNG, its seven passes unfiltered."""
    passes = (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    )
    rows = b""
    for x, y, dx, dy in passes:
        part = samples[y::dy, x::dx]
        rows += b"".join(b"\x00" + row.tobytes() for row in part) if part.size else b""
    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], 8, 2, 0, 0, 1)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return malformed.PNG_SIGNATURE + b"".join(parts)


@pytest.mark.parametrize("shape", [(93, 117), (1, 1), (2, 3), (5, 1), (1, 9)])
def test_interlaced_png(shape: tuple[int, int]) -> None:
    samples = np.ascontiguousarray(SMALL[: shape[0], : shape[1]])
    assert np.array_equal(pixels(_interlaced(samples)), samples)


def test_a_png_cut_anywhere_never_gives_other_pixels() -> None:
    data = encode(SMALL, "PNG")
    for cut in [*range(8, len(data), 41), *range(len(data) - 14, len(data))]:
        if cut >= len(data) - 12:
            assert np.array_equal(pixels(data[:cut]), SMALL)  # of the end chunk anything may be missing
        else:
            assert code(data[:cut]) == "truncated"


def test_png_rows_are_counted_even_when_the_stream_ends_properly() -> None:
    rows = [row.tobytes() for row in SMALL]
    assert code(png(rows[:-1], 117, 93, 8, 2)) == "truncated"
    assert code(png(rows[:46], 117, 93, 8, 2)) == "truncated"
    assert np.array_equal(pixels(png(rows + rows[:5], 117, 93, 8, 2)), SMALL)


# --- the other formats ----------------------------------------------------------------------------


def _tiff(samples: npt.NDArray[Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, samples, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"rowsperstrip": 7},
        {"tile": (32, 48)},
        {"planarconfig": "separate"},
        {"planarconfig": "separate", "tile": (32, 48)},
        {"compression": "zlib"},
        {"compression": "zlib", "rowsperstrip": 7},
    ],
    ids=str,
)
def test_tiff_layouts_in_8_and_16_bits(order: Any, big: bool, layout: dict[str, Any]) -> None:
    for samples, expected in ((SMALL, SMALL), (_wide(), scaled(_wide()))):
        stored = np.moveaxis(samples, -1, 0) if "planarconfig" in layout else samples
        data = _tiff(stored, photometric="rgb", byteorder=order, bigtiff=big, **layout)
        assert np.array_equal(pixels(data), expected)


def _wide() -> npt.NDArray[np.uint16]:
    return (SMALL.astype(np.uint16) << 8) + np.roll(SMALL, 1, axis=0)


@pytest.mark.parametrize(
    ("compression", "predictor"),
    [
        (None, 1),
        ("packbits", 1),
        *((name, n) for name in ("tiff_lzw", "tiff_adobe_deflate", "tiff_deflate") for n in (1, 2)),
    ],
)
def test_tiff_compressions(compression: str | None, predictor: int) -> None:
    info = {317: predictor} if compression else {}
    for samples in (ASTRONAUT, SMALL, np.zeros_like(ASTRONAUT)):
        assert np.array_equal(pixels(encode(samples, "TIFF", compression=compression, tiffinfo=info)), samples)
    wide = _wide()[..., 0]
    data = encode(Image.fromarray(wide), "TIFF", compression=compression, tiffinfo=info)
    assert np.array_equal(pixels(data)[..., 0], scaled(wide))


def test_tiff_float_predictor() -> None:
    grey = np.asarray(Image.fromarray(SMALL).convert("L"))
    fraction = Image.fromarray(grey.astype(np.float32) / 255)
    data = encode(fraction, "TIFF", compression="tiff_adobe_deflate", tiffinfo={317: 3})
    assert np.array_equal(pixels(data)[..., 0], grey)


def _inflated(packed: memoryview, size: int) -> UInt8:
    return np.concatenate(list(tiff_codecs.deflate(packed, [size // 3, size - size // 3])))


@pytest.mark.parametrize(
    ("compression", "unpack"),
    [
        ("tiff_lzw", tiff_codecs.lzw),
        ("tiff_adobe_deflate", _inflated),
        ("packbits", tiff_codecs.pack_bits),
    ],
)
def test_a_tiff_strip_cut_anywhere_is_truncated(compression: str, unpack: Any) -> None:
    data = encode(SMALL, "TIFF", compression=compression)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        start, length = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
        rows = file.pages[0].rowsperstrip
    strip, expected = data[start : start + length], SMALL[:rows].reshape(-1)
    assert np.array_equal(unpack(memoryview(strip), expected.size), expected)
    for cut in range(0, length - 8, 37):
        with pytest.raises(ImageError) as caught:
            unpack(memoryview(strip[:cut]), expected.size)
        assert caught.value.failure.code == ErrorCode.TRUNCATED


def test_a_tiff_is_bounded_by_its_bytes_too() -> None:
    def floats(channels: int) -> bytes:
        samples = np.linspace(0, 1, 1000 * 700 * channels, dtype="<f4")
        return malformed.tiff_of_floats(1000, 700, channels, zlib.compress(samples.tobytes(), 1))

    policy = DecodePolicy(max_pixels=1_000_000)
    assert code(floats(4), policy=policy) == "ok"
    with pytest.raises(ImageError, match="bytes; the bound is 12") as caught:
        decode(floats(5), policy)
    assert (caught.value.failure.code, caught.value.width, caught.value.height) == ("too_large", 1000, 700)
    data = floats(5)
    tracemalloc.start()
    rgb = pixels(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 700_000 * 9 + 40_000_000  # bands of 1 MB are unpacked, not 14 MB of samples
    expected = np.linspace(0, 1, 1000 * 700 * 5, dtype="<f4").reshape(700, 1000, 5)[..., :3]
    assert np.abs(rgb - expected * 255).max() < 0.51


def test_tiff_jpeg_is_as_strict_as_jpeg() -> None:
    data = encode(ASTRONAUT, "TIFF", compression="jpeg", quality=90)
    # libtiff hands over the same samples; its chroma upsampling is libjpeg's, too.
    assert np.abs(pixels(data).astype(int) - by_pillow(data)).max() <= 1
    assert code(_with_short_strip(data)) == "truncated"


def _with_short_strip(data: bytes) -> bytes:
    """The end of the first JPEG strip replaced by its end marker and zeros."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        start, length = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    kept = start + length * 2 // 3
    return data[:kept] + malformed.EOI + bytes(start + length - kept - 2) + data[start + length :]


def test_tiff_sample_meanings() -> None:
    grey = np.asarray(Image.fromarray(SMALL).convert("L"))
    wide = _wide()[..., 0]
    as_rgb = np.repeat(grey[..., None], 3, axis=2)
    assert np.array_equal(pixels(_tiff(255 - grey, photometric="miniswhite")), as_rgb)
    assert np.array_equal(pixels(_tiff(65535 - wide, photometric="miniswhite"))[..., 0], scaled(wide))
    bilevel = encode(Image.fromarray(grey).convert("1"), "TIFF")
    assert np.array_equal(pixels(bilevel), by_pillow(bilevel))
    palette = encode(Image.fromarray(SMALL).quantize(32), "TIFF")
    assert np.array_equal(pixels(palette), by_pillow(palette))
    inks = encode(Image.fromarray(SMALL).convert("CMYK"), "TIFF")
    assert np.array_equal(pixels(inks), by_pillow(inks))
    rgba = np.concatenate([SMALL, np.roll(SMALL[..., :1], 5, axis=0)], axis=2)
    straight = _tiff(rgba, photometric="rgb", extrasamples=["unassalpha"])
    assert np.array_equal(pixels(straight), on_white(rgba))
    flattened = rgba.copy()
    flattened[..., :3] = np.rint(rgba[..., :3] * (rgba[..., 3:] / 255.0))
    premultiplied = pixels(_tiff(flattened, photometric="rgb", extrasamples=["assocalpha"]))
    assert np.abs(premultiplied.astype(int) - on_white(rgba)).max() <= 1
    unspecified = _tiff(rgba, photometric="rgb", extrasamples=["unspecified"])
    assert np.array_equal(pixels(unspecified), SMALL)
    fraction = SMALL.astype(np.float32) / 255
    assert np.array_equal(pixels(_tiff(fraction, photometric="rgb")), SMALL)
    assert code(_tiff(fraction * 255, photometric="rgb")) == "unsupported"
    assert code(_tiff(grey.astype(np.int16), photometric="minisblack")) == "unsupported"
    assert code(_tiff(grey.astype(np.uint32), photometric="minisblack")) == "unsupported"


def test_a_raw_camera_file_is_not_scored_by_its_thumbnail() -> None:
    dng = _tiff(SMALL, photometric="rgb", extratags=[(50706, 1, 4, (1, 4, 0, 0), True)])
    assert code(dng) == "unsupported"
    nef = _tiff(SMALL, photometric="rgb", subfiletype=1, extratags=[(65001, 4, 1, 8, True)])
    assert code(nef) == "ok"
    assert code(nef.replace(struct.pack("<H", 65001), struct.pack("<H", 330))) == "unsupported"


@pytest.mark.parametrize("options", [{"quality": 80}, {"lossless": True}])
@pytest.mark.parametrize("alpha", [False, True])
def test_webp_equals_pillow(options: dict[str, Any], alpha: bool) -> None:
    image = Image.fromarray(SMALL)
    if alpha:
        image.putalpha(Image.fromarray(np.roll(SMALL[..., 0], 9, axis=1)))
    data = encode(image, "WEBP", exact=True, **options)
    assert np.array_equal(pixels(data), on_white(np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))))


@pytest.mark.parametrize("options", [{"quality": 80}, {"lossless": True}], ids=str)
def test_a_cut_webp_filled_up_with_one_byte_is_truncated(options: dict[str, Any]) -> None:
    data = encode(SMALL, "WEBP", **options)
    for fill in (b"\x00", b"\xff", b"\xaa"):
        for cut in range(len(data) // 5, len(data) - 64, len(data) // 9):
            assert code(data[:cut].ljust(len(data), fill)) == "truncated"


def test_flat_webps_are_whole() -> None:
    for shape in ((8, 8), (300, 400)):
        for value in (0, 128, 255):
            for options in ({"quality": 20}, {"quality": 95, "method": 6}, {"lossless": True}):
                picture = np.full((*shape, 3), value, np.uint8)
                assert np.ptp(pixels(encode(picture, "WEBP", **options))) == 0


def test_a_webp_without_width() -> None:
    data = encode(SMALL, "WEBP", quality=80)
    at = data.index(b"\x9d\x01\x2a") + 3
    assert code(malformed.patched(data, at, b"\x00\x00")) == "undecodable"


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.fromarray(np.roll(SMALL, 20 * shift, axis=1)) for shift in range(3)]
    webp = encode(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert np.array_equal(pixels(webp), SMALL)
    reduced = [frame.quantize(64) for frame in frames]
    gif = encode(reduced[0], "GIF", save_all=True, append_images=reduced[1:])
    assert np.array_equal(pixels(gif), np.asarray(reduced[0].convert("RGB")))
    animated_png = encode(frames[0], "PNG", save_all=True, append_images=frames[1:])
    assert np.array_equal(pixels(animated_png), SMALL)


@pytest.mark.parametrize("interlace", [0, 1])
def test_gif_transparency_and_uncovered_canvas_are_white(interlace: int) -> None:
    image = Image.fromarray(SMALL).quantize(16)
    data = encode(image, "GIF", transparency=3, interlace=interlace)
    indices = np.asarray(Image.open(io.BytesIO(data)))
    expected = by_pillow(encode(image, "GIF", interlace=interlace)).copy()
    expected[np.asarray(image) == 3] = 255
    assert indices.shape == expected.shape[:2]
    assert np.array_equal(pixels(data), expected)
    # The logical screen made larger than its only frame.
    larger = malformed.patched(data, 6, struct.pack("<HH", 200, 150))
    decoded = decode(larger)
    assert (decoded.width, decoded.height) == (200, 150)
    assert np.array_equal(decoded.photograph.rgb[:93, :117], expected)
    assert decoded.photograph.rgb[93:].min() == 255


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_bmp(mode: str) -> None:
    image = Image.fromarray(SMALL).convert(mode)
    data = encode(image, "BMP")
    assert np.array_equal(pixels(data), on_white(np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))))
    assert code(data[:-4]) == "truncated"  # less may be the padding of the last row


@pytest.mark.parametrize("orientation", range(1, 9))
def test_avif_is_turned_once(orientation: int) -> None:
    data = encode(stored_for(SMALL, orientation), "AVIF", quality=100, subsampling="4:4:4", exif=exif(orientation))
    assert np.abs(pixels(data).astype(int) - SMALL).max() <= 3


@pytest.mark.parametrize("fill", [b"\x00", b"\xff", b"\xaa", b"\x11"])
def test_a_cut_avif_or_heic_filled_up_with_one_byte_is_truncated(fill: bytes) -> None:
    for data in (encode(SMALL, "AVIF", speed=10), malformed.HEIC_ALPHA):
        for missing in (30, 100, 200):
            assert code(data[:-missing] + fill * missing) == "truncated"
    flat = np.full((300, 400, 3), fill[0], np.uint8)
    assert code(encode(flat, "AVIF", speed=10)) == "ok"


def test_heic() -> None:
    decoded = decode(malformed.HEIC_TURNED)
    assert (decoded.width, decoded.height) == (96, 128)  # stored as 128x96, turned by irot, not again by EXIF
    assert np.abs(decoded.photograph.rgb[20, 75].astype(int) - (230, 30, 30)).max() < 12
    assert (decoded.make, decoded.model) == ("Maker", "Model 7")
    assert decoded.captured_at == datetime(2024, 2, 3, 4, 5, 6)
    translucent = pixels(malformed.HEIC_ALPHA)
    assert translucent[:, 0].min() >= 250  # alpha 0 at the left: white
    assert translucent.mean(axis=(0, 2))[-8:].mean() < 200


def test_a_heic_item_type_that_is_not_text() -> None:
    """pi-heif 1.4 crashed the process at it; in a process of its own, should it ever reach pi-heif again."""
    script = (
        "import sys, malformed\n"
        "from qualitygate.images.decode import decode\n"
        "data = malformed.HEIC_TURNED\n"
        "at = data.index(b'Exif')\n"
        "print(decode(malformed.patched(data, at + 2, bytes([0x80, 0]))).width)\n"
    )
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tests), str(tests.parent)))}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "96", "")


# --- orientation, EXIF, box, resolution -----------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_turned_copies_are_bit_equal(kind: str, orientation: int) -> None:
    options: dict[str, Any] = {"exif": exif(orientation), **({"lossless": True} if kind == "WEBP" else {})}
    data = encode(stored_for(SMALL, orientation), kind, **options)
    assert np.array_equal(pixels(data), SMALL)
    box = (11, 23, 50, 31)
    assert np.array_equal(pixels(data, box=box), SMALL[23:54, 11:61])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_jpeg_orientation_is_the_turned_stored_picture(orientation: int) -> None:
    plain = pixels(encode(SMALL, "JPEG", quality=90))
    data = encode(SMALL, "JPEG", quality=90, exif=exif(orientation))
    assert np.array_equal(stored_for(pixels(data), orientation), plain)


def test_camera_and_date() -> None:
    block = exif(1, make="  ACME\x07 Corp\x00junk", model="M" * 500, taken="2023:12:31 23:59:58")
    decoded = decode(encode(SMALL, "JPEG", exif=block))
    assert (decoded.make, decoded.model) == ("ACME Corp", "M" * 64)
    assert decoded.captured_at == datetime(2023, 12, 31, 23, 59, 58)
    for date in ("0000:00:00 00:00:00", "2023:02:30 10:00:00", "yesterday", "2023:12:31 24:00:00", " "):
        assert decode(encode(SMALL, "JPEG", exif=exif(1, taken=date))).captured_at is None
    bare = decode(encode(SMALL, "PNG"))
    assert (bare.make, bare.model, bare.captured_at) == (None, None, None)


@given(st.binary(max_size=400))
def test_exif_never_fails(block: bytes) -> None:
    parse_exif(block)
    parse_exif(b"II*\x00\x08\x00\x00\x00" + block)
    parse_exif(b"MM\x00*\x00\x00\x00\x08" + block)


@pytest.mark.parametrize("box", [(0, 0, 118, 93), (-1, 0, 5, 5), (0, 0, 0, 5), (0, 0, 5, 0), (117, 0, 1, 1)])
def test_a_box_must_lie_inside(box: tuple[int, int, int, int]) -> None:
    with pytest.raises(ImageError, match="117x93") as caught:
        decode(encode(SMALL, "PNG"), box=box)
    assert caught.value.failure.code == ErrorCode.UNSUPPORTED
    assert f"{box[2]}x{box[3]}" in caught.value.failure.message


def test_box_then_resolution() -> None:
    policy = DecodePolicy(longest_side=40)
    decoded = decode(encode(SMALL, "PNG"), policy, (10, 20, 80, 60))
    expected = cv2.resize(SMALL[20:80, 10:90], (40, 30), interpolation=cv2.INTER_AREA)
    assert np.array_equal(decoded.photograph.rgb, expected)
    assert (decoded.width, decoded.height) == (117, 93)
    # Exactly halved, an area average is the mean of 2x2.
    halved = pixels(encode(ASTRONAUT, "PNG"), policy=DecodePolicy(longest_side=256)).astype(float)
    means = ASTRONAUT.reshape(256, 2, 256, 2, 3).mean(axis=(1, 3))
    assert np.abs(halved - means).max() <= 0.5


@pytest.mark.parametrize(
    ("shape", "longest", "expected"),
    [
        ((93, 117), 117, (93, 117)),
        ((93, 117), 5000, (93, 117)),
        ((1, 117), 10, (1, 10)),
        ((93, 2), 9, (9, 1)),
    ],
)
def test_sides_after_the_policy(shape: tuple[int, int], longest: int, expected: tuple[int, int]) -> None:
    data = encode(np.ascontiguousarray(SMALL[: shape[0], : shape[1]]), "PNG")
    assert pixels(data, policy=DecodePolicy(longest_side=longest)).shape == (*expected, 3)


def test_the_policy_describes_what_changes_a_score() -> None:
    native, reduced = DecodePolicy().describe(), DecodePolicy(longest_side=512).describe()
    assert json.loads(json.dumps(native))["resolution"] == "native"
    assert reduced["resolution"] == "longest_side=512"
    assert DecodePolicy(max_pixels=5).describe() == native
    for wrong in ({"max_pixels": 0}, {"longest_side": 0}):
        with pytest.raises(ConfigurationError):
            DecodePolicy(**wrong)


def test_the_bound_is_the_policy_s_own() -> None:
    data = encode(SMALL, "PNG")
    assert code(data, policy=DecodePolicy(max_pixels=117 * 93 - 1)) == "too_large"
    assert pixels(data, policy=DecodePolicy(max_pixels=117 * 93)).shape == SMALL.shape
    # Pillow's own global bound, however small, plays no part.
    before = Image.MAX_IMAGE_PIXELS
    try:
        Image.MAX_IMAGE_PIXELS = 10
        for kind in ("PNG", "GIF", "BMP", "WEBP", "TIFF", "AVIF", "JPEG"):
            assert pixels(encode(SMALL, kind)).shape == SMALL.shape
    finally:
        Image.MAX_IMAGE_PIXELS = before


# --- errors, threads, memory, import --------------------------------------------------------------


def test_an_image_error_survives_pickling_and_knows_the_size() -> None:
    with pytest.raises(ImageError) as caught:
        decode(encode(SMALL, "PNG"), DecodePolicy(max_pixels=100))
    copy = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
    assert (copy.failure, copy.width, copy.height) == (caught.value.failure, 117, 93)


def test_messages_name_what_was_found() -> None:
    expected = {
        "empty.jpg": "empty file",
        "text.jpg": "text, not an image",
        "page_not_found.jpg": "HTML",
        "document.pdf": "PDF",
        "video.mp4": "video",
        "photoshop.psd": "PSD",
        "drawing.svg": "SVG",
        "jpeg_2000.jp2": "JPEG 2000",
        "jpeg_xl.jxl": "JPEG XL",
        "canon.cr2": "raw camera file",
        "icon.ico": "ICO",
    }
    for name, words in expected.items():
        with pytest.raises(ImageError, match=words):
            decode(CORPUS[name][0])


def test_out_of_memory_is_its_own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("simplejpeg.decode_jpeg", fail)
    assert code(encode(SMALL, "JPEG")) == "out_of_memory"
    monkeypatch.setattr("qualitygate.images.decode.turn_upright", fail)
    assert code(encode(SMALL, "PNG")) == "out_of_memory"


def test_threads_see_the_same_pixels() -> None:
    names = [name for name, (_, outcome) in CORPUS.items() if outcome == "ok"]
    alone = [pixels(CORPUS[name][0]) for name in names]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda name: pixels(CORPUS[name][0]), names * 3))
    assert all(np.array_equal(a, b) for a, b in zip(alone * 3, together, strict=True))


def test_importing_leaves_the_decoders_alone() -> None:
    """Each library is loaded by the first file that needs it."""
    script = (
        "import sys, qualitygate.images.decode\n"
        "assert not {'PIL', 'cv2', 'simplejpeg', 'pi_heif', 'numba'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])


# --- any bytes at all -----------------------------------------------------------------------------

SEEDS: dict[str, list[bytes]] = {
    "jpeg": [encode(SMALL, "JPEG", exif=exif(6, make="M")), encode(SMALL, "JPEG", progressive=True)],
    "png": [encode(SMALL[:40, :40], "PNG", exif=exif(6)), png_16(_wide()[:20, :20])],
    "webp": [encode(SMALL, "WEBP"), encode(Image.fromarray(SMALL).convert("RGBA"), "WEBP", lossless=True)],
    "tiff": [encode(SMALL, "TIFF", compression=name) for name in (None, "tiff_lzw", "packbits", "jpeg")],
    "bmp": [encode(SMALL[:30, :30], "BMP"), encode(Image.fromarray(SMALL).quantize(16), "BMP")],
    "gif": [encode(Image.fromarray(SMALL).quantize(16), "GIF")],
    "avif": [encode(SMALL, "AVIF", speed=10, exif=exif(6))],
    "heif": [malformed.HEIC_TURNED, malformed.HEIC_ALPHA],
}
POLICY = DecodePolicy(max_pixels=1_000_000)


def _checksummed(data: bytes) -> bytes:
    """PNG chunks with their checksums made right again, so that damage reaches the decoder."""
    out, at = data[:8], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        out += chunk(data[at + 4 : at + 8], data[at + 8 : at + 8 + min(length, len(data))])
        at += 12 + length
    return out


@st.composite
def damaged(draw: Callable[..., Any], kind: str) -> bytes:
    """A valid file with bytes changed, inserted, removed or repeated, and perhaps cut."""
    data = bytearray(draw(st.sampled_from(SEEDS[kind])))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(data) - 1 if draw(st.booleans()) else min(len(data) - 1, 300)))
        how = draw(st.sampled_from(["set", "word", "insert", "remove", "repeat"]))
        if how == "set":
            data[at] = draw(st.integers(0, 255))
        elif how == "word":
            data[at : at + 4] = draw(st.sampled_from([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", bytes(4)]))
        elif how == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=16))
        elif how == "remove" and len(data) > 64:
            del data[at : at + draw(st.integers(1, 32))]
        else:
            data[at:at] = data[at : at + draw(st.integers(1, 64))]
    if draw(st.booleans()):
        del data[draw(st.integers(0, len(data))) :]
    return _checksummed(bytes(data)) if kind == "png" and draw(st.booleans()) else bytes(data)


@pytest.mark.parametrize("kind", SEEDS)
def test_damaged_files_give_an_image_error_or_a_bounded_photograph(kind: str) -> None:
    @settings(max_examples=120, deadline=2000, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(damaged(kind))
    def check(data: bytes) -> None:
        try:
            decoded = decode(data, POLICY)
        except ImageError:
            return
        assert 0 < decoded.width * decoded.height <= POLICY.max_pixels
        assert decoded.photograph.rgb.shape == (decoded.height, decoded.width, 3)

    decode(SEEDS[kind][0], POLICY)  # libraries load outside the deadline
    if kind == "tiff":
        decode(SEEDS[kind][1], POLICY)
    check()


@given(st.binary(max_size=300))
@settings(max_examples=200)
def test_arbitrary_bytes(data: bytes) -> None:
    with pytest.raises(ImageError):
        decode(data)


def test_what_signatures_promise_and_nothing_follows() -> None:
    for start in _signatures():
        for tail in (b"", b"\x00", bytes(40), b"\xff" * 40, os.urandom(0) + b"abc" * 20):
            with pytest.raises(ImageError):
                decode(start + tail)


def _signatures() -> Iterator[bytes]:
    yield from (b"\xff\xd8", b"\xff\xd8\xff", b"\xff\xd8\xff\xe0", malformed.PNG_SIGNATURE, b"GIF89a", b"BM")
    yield from (b"II*\x00", b"MM\x00*", b"II+\x00\x08\x00\x00\x00", b"RIFF\x20\x00\x00\x00WEBP")
    yield from (b"\x00\x00\x00\x18ftypheic", b"\x00\x00\x00\x18ftypavif", b"\x00\x00\x00\x18ftypmif1")

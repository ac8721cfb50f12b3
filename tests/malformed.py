"""A corpus of odd and malformed image files, each with what must become of it.

    outcomes = write(folder, photograph)   # {relative name: "ok" or an error code}

Deterministic for one photograph and one version of the encoders. Names tell the oddity.
"""

import base64
import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

UInt8 = npt.NDArray[np.uint8]
Files = dict[str, tuple[bytes, str]]

OK, TRUNCATED, UNDECODABLE, UNSUPPORTED, TOO_LARGE = (
    "ok",
    "truncated",
    "undecodable",
    "unsupported",
    "too_large",
)
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
EOI = b"\xff\xd9"

# Pictures of our own making (a gradient, a checkerboard, two rectangles), encoded by x265, as pi-heif
# only decodes.
# 128x96, to be turned by a quarter (irot) and with an EXIF orientation that says the same once more.
HEIC_TURNED = base64.b85decode(
    "0000SW^{RQXk}?*00000ZE0pPXk}?*ZE0a<0004@ZDn*}000000000XXk=`10000000000aA{+700000000000000000000G-"
    "+&aV*mgE07O6l0ssL300001#Q*^S0000000G+o0ssI200W=^0RR9100000d;kCdIB98aW&i*H00062000$fZf0cy000000RRAK"
    "c4ILB0000LX>Mj^0ssI300IC2MR;ju000004sdC7Z2$lO00031007`=aB^?}006*gaAR)(004Msc4I>U18@KU0FVFx0000U@Bs"
    "Y%`1k+-4+CHT0RR|40Sp2E{{wIU00RJ!0009300RIXx&lC90096iLID8-"
    "Z~y=U0FVFx0{{R603M(aAYo;?l1givfQEwt00093G5`Pr00IzV00968L;=Baup&SJ000wXZ)|dIV{CW;0RRmE27mwn02FC+aAg"
    "1h000000Du4h0AK(B01$9#cxeCt0009B2nYZG010VwZ*&6y000<iaBX1#00000000310R@2q0|bQt000_ka%E-"
    "!00000000hSWOHKx0ssL30RR93Uu|SzbN~PW*C+w62w?oURR{Q}ApE7Lgy2USs>%b>D1!$khlvKhM8bW?8`j7Rx_*ID1y%_ln$"
    "{6i$!G2RE`=xR5$WMJpYZ0yI&&*heF<h3ILjn*CillA2k_D~YcG9(7lh1~rC_>jh48xe(OzN(&}{bSX(73I9>ZV_pJ0E3RE5!j"
    "xrdaoPtp2{_vX+~5l{#q?KT(S;pj<Y!{pMV0?my&*5G$+$ly}c!qbGm$%C^{n@$I@iSmjEzPlId&|9!eVu*NM2p?bVBaAi2ZTh"
    "}RIvOE+l6oJj)6EE!d1T{1EBjslUbjOir!WTLGt{`Z)?Hg@8*E-"
    "AUp9H%pGigoNXMflBhY;_L@(@=$@>jeax#5&x)0VE04R@^j(cZfD99Q>E3gJ8t1Y#DOo8BZH=Qu1BC)JxC#fp#WP(Iyo+A8tRC"
    "il+YebbK=AflGGn3Qej@6H|LhQ|4{tirJ6i)KkQQGOt$#GF7>#Sg32RZ<&_fv>)3ux<LQQ!Q~#H6g7a}gcXS)}0FWI#S-"
    "NQ|6hf!sQ+h8_5`er+GB_=rgP(b(-ByP-K_$eWU|_m%2Fj9@1{{tk)Q)Jv!HHq!m7fp>dE!?3-"
    "teHZJpiLl!#(HRk700006MR;ju002!*04e|g00;mC0S^EI000060000!0T2KJ000080000)0TKWM0000100sa6hiL!=0000100"
    "00?00000O<`+gasW+lWMyn1Hvj+ukOKe$0000K0001900000GB7eUIxsRiFf$-9G&(RfIxsc>"
)
# 128x96 with alpha that grows from left to right.
HEIC_ALPHA = base64.b85decode(
    "0000SW^{RQXk}?*00000ZE0pPXk}?*ZE0a<0006;ZDn*}000000000XXk=`10000000000aA{+700000000000000000000G-"
    "+&aV*mgE07O6l0ssL300002Y5)NM0000000G+o0ssI200cz<0RR9100000CIA2cIB98aW&i*H00062000$fZf0cy000000RRAK"
    "c4ILB0000LX>Mj^0ssI200IC2Xm(>U000004sdC7Z2$lO0003100D(*aB^?}00CcVaAR)(004Msc4I>U18@KU0FVFx0000U@Bs"
    "Y%`1k+-4+CHT0RR|40Sp2E{{wIU00RJ!0009300RIXx&lC90096iLID8-"
    "Z~y=U0FVFx0{{R603M(aAYo;?l1givfQEwt00093G5`Pr00IzV00968L;=Baup&SJ000wXZ)|dIV{CW;0RRmE27mwn02FC+aAg"
    "1h000000Du4h0AK(B01$9#cxeCt0009B2nYZG0CQ+|V?zN12mk;8pZEX(0018F0Q~&;_y7P817H9F02e?33<3ZD1PA~C0|1}+0"
    "009303NymKw$s@04G8L0R#vD00RJ@_y7O{0017qK!Jsp>PacCYzP1V0|3YX00RIBKw<y^00%??!E&%7KmY&$4sdCBX#fBK009U"
    "9001Xpb$CMn0001Wa&9_paAjvYXk~U|Ix;XZH9BE+cxhxhF#rGn03K;@ZD9Za0000000IC31c3qr1ONgAg#!kM0000QX>w&|00"
    "0000000EVRd+H00IC3009610tszoVRQfh0oN!2uLxlLxK#)Es382Mr-a}~8mh_z(kO!mCWnazzC^-"
    "(#~aqj3%Y)RQUz8CAez<@RLN)U`!0ni>JjPTHlOh3#5!{;Qhf<#7C6f!awhl3BnR-"
    ")G;1$?fER?!mZf02Y=!W;_R(Hq2GDHw=V>9icpk%G4WD3tgH(mlfw_m2u}{(ZiudNwPZ3ZEAni66;Nj>=W5eXqqXNy1I@aKKY{"
    "=kJ)WXw*zsZBMP@7H%v5E4E2fn)(>d;%TOJaz4T?ijv?IVme$8Gw)Nje%Kdy;w|tJBR0lzC+1KP&rP|6aF4D5o$6;WN~@x7J--"
    "Xd7%^Bwsdp+@DEC14zfCCL_>&Gej@!l*#)IRdO<Yb-EAM7yu}bmX3R8VkpQOKr65YCaW#AeoTSjbT^$arXsPdWhbdB?qq^QW}Y"
    "Jac~o~>bZbPFB<7%{I5U&e;*QmivqJ36T>cJBWE4*F*iqW)%gJ$3CF`tUUk5q>tM^lga0_VbU{T-"
    "v(8Q#yn{yEz)LEq9+GIdJWJrvhWP#i|t%e==vwm$Ks`!XV`O(<z9lN19W5}D5u=kbfL5yH0J^l`f*wjm>^ET4`s)2WVM8mMXuY"
    "DKmvWc+UDbX1bU;qFBA}9f_5WwjNUgb~Y$i0WZK{%WtkK%^^KlSh0^ZkyU>j;1"
)


def write(folder: Path, photograph: UInt8) -> dict[str, str]:
    """Writes the corpus into `folder`; photograph: (H, W, 3) uint8 RGB, of which 192x256 are used."""
    folder.mkdir(parents=True, exist_ok=True)
    files = build(photograph)
    for name, (data, _) in files.items():
        (folder / name).write_bytes(data)
    return {name: outcome for name, (_, outcome) in files.items()}


def build(photograph: UInt8) -> Files:
    """Name -> (bytes, outcome)."""
    small = Image.fromarray(photograph).resize((256, 192), Image.Resampling.BICUBIC)
    picture = np.asarray(small)
    return {
        **_jpegs(picture),
        **_pngs(picture),
        **_other_formats(picture),
        **_sizes_and_contents(picture),
        **_bombs(),
        **_not_decoded(),
        **_names(picture),
    }


def encode(picture: UInt8 | Image.Image, kind: str, **options: Any) -> bytes:
    """Encodes with Pillow."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    """A PNG chunk with its checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(rows: list[bytes], width: int, height: int, depth: int, colour: int, *, ancillary: bytes = b"") -> bytes:
    """A PNG of unfiltered rows; as many as given, whatever the header says."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    compressed = zlib.compress(b"".join(b"\x00" + row for row in rows))
    return PNG_SIGNATURE + chunk(b"IHDR", header) + ancillary + chunk(b"IDAT", compressed) + chunk(b"IEND", b"")


def png_16(samples: npt.NDArray[np.uint16], *, ancillary: bytes = b"") -> bytes:
    """A 16-bit PNG of (H, W) grey or (H, W, 2 | 3 | 4) samples."""
    height, width, *channels = samples.shape
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels[0] if channels else 1]
    return png([row.astype(">u2").tobytes() for row in samples], width, height, 16, colour, ancillary=ancillary)


def png_bomb(side: int, colour: int = 2) -> bytes:
    """A valid black PNG of side x side; its deflate stream repeats one block, so it is built in no time."""
    length = side * (1 + side * {0: 1, 2: 3}[colour])
    unit = 1 << 20

    def deflated(size: int) -> bytes:
        compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
        return compressor.compress(bytes(size)) + compressor.flush(zlib.Z_FULL_FLUSH)

    adler = (length % 65521) << 16 | 1
    stream = b"\x78\xda" + deflated(unit) * (length // unit) + deflated(length % unit) + b"\x03\x00"
    header = struct.pack(">IIBBBBB", side, side, 8, colour, 0, 0, 0)
    return (
        PNG_SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", stream + struct.pack(">I", adler)) + chunk(b"IEND", b"")
    )


def exif(orientation: int, **texts: str) -> Image.Exif:
    """An EXIF block with an orientation, and make, model, taken where given."""
    block = Image.Exif()
    block[0x0112] = orientation
    for name, tag in (("make", 0x010F), ("model", 0x0110)):
        if name in texts:
            block[tag] = texts[name]
    if "taken" in texts:
        block.get_ifd(0x8769)[0x9003] = texts["taken"]
    return block


def stored_for(picture: UInt8, orientation: int) -> UInt8:
    """The pixels to store so that `orientation` shows `picture`."""
    method = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }.get(orientation)
    return picture if method is None else np.asarray(Image.fromarray(picture).transpose(method))


def jpeg_frame(data: bytes) -> int:
    """Where the frame header (SOF0 or SOF2) starts."""
    return next(at for at, marker in jpeg_markers(data) if marker in (0xC0, 0xC2))


def jpeg_markers(data: bytes) -> Iterator[tuple[int, int]]:
    """(offset, marker) of each segment, scans followed to their end."""
    at = 2
    while at + 4 <= len(data):
        marker = data[at + 1]
        yield at, marker
        if marker == 0xD9:
            return
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA:
            while data[at] != 0xFF or data[at + 1] in (0, *range(0xD0, 0xD8)):
                at += 1


def patched(data: bytes, at: int, replacement: bytes) -> bytes:
    """`data` with bytes overwritten."""
    return data[:at] + replacement + data[at + len(replacement) :]


def _jpegs(picture: UInt8) -> Files:
    base = encode(picture, "JPEG", quality=90)
    progressive = encode(picture, "JPEG", quality=90, progressive=True)
    restarts = encode(picture, "JPEG", quality=90, restart_marker_blocks=4)
    grey = encode(Image.fromarray(picture).convert("L"), "JPEG")
    cmyk = encode(Image.fromarray(picture).convert("CMYK"), "JPEG", quality=90)
    frame = jpeg_frame(base)
    scans = [at for at, marker in jpeg_markers(progressive) if marker == 0xDA]
    thirds, middle = len(base) * 2 // 3, len(base) // 2
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 256, 4000, np.uint8).tobytes()
    comment = b"\xff\xfe\x00\x06note"
    files: Files = {
        "jpeg.jpg": (base, OK),
        "jpeg_progressive.jpg": (progressive, OK),
        "jpeg_restart_markers.jpg": (restarts, OK),
        "jpeg_grey.jpg": (grey, OK),
        "jpeg_cmyk.jpg": (cmyk, OK),
        "jpeg_rgb_without_transform.jpg": (encode(picture, "JPEG", quality=90, keep_rgb=True), OK),
        "jpeg_end_marker_missing.jpg": (base[:-2], OK),
        "jpeg_progressive_end_marker_missing.jpg": (progressive[:-2], OK),
        "jpeg_half_an_end_marker.jpg": (base[:-1], OK),
        "jpeg_trailing_junk.jpg": (base + noise, OK),
        "jpeg_second_picture_after_the_end.jpg": (base + grey, OK),
        "jpeg_padded_before_the_end.jpg": (base[:-2] + bytes(300) + EOI, OK),
        "jpeg_junk_between_segments.jpg": (base[:frame] + b"junk" * 5 + comment + base[frame:], OK),
        "jpeg_unknown_jfif_revision.jpg": (patched(base, 11, b"\x05"), OK),
        "jpeg_cut_at_two_thirds.jpg": (base[:thirds], TRUNCATED),
        "jpeg_cut_and_end_marker_appended.jpg": (base[:thirds] + EOI, TRUNCATED),
        "jpeg_filled_up_with_zeros.jpg": (base[:thirds].ljust(len(base), b"\x00"), TRUNCATED),
        "jpeg_filled_up_and_end_marker.jpg": (base[:thirds] + b"\xaa" * len(base) + EOI, TRUNCATED),
        "jpeg_progressive_filled_up.jpg": (progressive[:-200].ljust(len(progressive), b"\x00"), TRUNCATED),
        "jpeg_cut_in_header.jpg": (base[: frame + 6], TRUNCATED),
        "jpeg_start_marker_only.jpg": (base[:2], TRUNCATED),
        "jpeg_progressive_cut.jpg": (progressive[: len(progressive) * 2 // 3], TRUNCATED),
        "jpeg_progressive_cut_and_end_marker.jpg": (progressive[: len(progressive) // 2] + EOI, TRUNCATED),
        "jpeg_progressive_last_scan_missing.jpg": (progressive[: scans[-1]] + EOI, TRUNCATED),
        "jpeg_progressive_first_scan_only.jpg": (progressive[: scans[1]] + EOI, TRUNCATED),
        "jpeg_restart_markers_cut.jpg": (restarts[: len(restarts) // 2] + EOI, TRUNCATED),
        "jpeg_more_rows_than_data.jpg": (patched(base, frame + 5, struct.pack(">H", 400)), TRUNCATED),
        "jpeg_cmyk_cut.jpg": (cmyk[: len(cmyk) // 2] + EOI, TRUNCATED),
        "jpeg_fewer_rows_than_data.jpg": (patched(base, frame + 5, struct.pack(">H", 64)), UNDECODABLE),
        "jpeg_hole_of_noise.jpg": (
            patched(base, middle, noise[:1500].replace(b"\xff", b"\x00")),
            UNDECODABLE,
        ),
        "jpeg_noise_left_over.jpg": (base[:-2] + noise[:400].replace(b"\xff", b"\x01") + EOI, UNDECODABLE),
        "jpeg_header_then_noise.jpg": (base[: frame - 40] + noise, UNDECODABLE),
        "jpeg_no_width.jpg": (patched(base, frame + 7, b"\x00\x00"), UNDECODABLE),
        "jpeg_height_after_scan.jpg": (patched(base, frame + 5, b"\x00\x00"), UNSUPPORTED),
        "jpeg_12_bit.jpg": (patched(base, frame + 4, b"\x0c"), UNSUPPORTED),
        "jpeg_lossless.jpg": (patched(base, frame + 1, b"\xc3"), UNSUPPORTED),
        "jpeg_arithmetic.jpg": (patched(base, frame + 1, b"\xc9"), UNSUPPORTED),
    }
    for orientation in range(1, 9):
        block = exif(orientation, make="Maker", model="Model", taken="2024:02:03 04:05:06")
        turned = encode(stored_for(picture, orientation), "JPEG", quality=90, exif=block)
        files[f"jpeg_exif_{orientation}.jpg"] = (turned, OK)
    return files


def _pngs(picture: UInt8) -> Files:
    height, width = picture.shape[:2]
    base = encode(picture, "PNG")
    image = Image.fromarray(picture)
    ramp = np.linspace(0, 65535, width * height).reshape(height, width).astype(np.uint16)
    translucent = image.copy()
    translucent.putalpha(Image.linear_gradient("L").resize(image.size))
    rows = [row.tobytes() for row in picture]
    damaged = patched(base, len(base) // 2, bytes((base[len(base) // 2] ^ 0x55,)))
    huge_text = chunk(b"zTXt", b"Comment\x00\x00" + zlib.compress(bytes(50_000_000)))
    palette = image.quantize(16)
    return {
        "png.png": (base, OK),
        "png_grey_16_bit.png": (png_16(ramp), OK),
        "png_rgb_16_bit.png": (png_16(np.stack([ramp, ramp[::-1], ramp[:, ::-1]], -1)), OK),
        "png_grey_alpha_16_bit.png": (png_16(np.stack([ramp, ramp[::-1]], -1)), OK),
        "png_rgba_16_bit.png": (png_16(np.stack([ramp, ramp, ramp, ramp[::-1]], -1)), OK),
        "png_1_bit.png": (encode(image.convert("1"), "PNG"), OK),
        "png_palette.png": (encode(palette, "PNG"), OK),
        "png_palette_transparency.png": (encode(palette, "PNG", transparency=bytes(range(0, 256, 16))), OK),
        "png_alpha.png": (encode(translucent, "PNG"), OK),
        "png_colour_key.png": (png(rows, width, height, 8, 2, ancillary=chunk(b"tRNS", bytes(6))), OK),
        "png_end_chunk_missing.png": (base[:-12], OK),
        "png_trailing_junk.png": (base + b"junk" * 100, OK),
        "png_text_bomb.png": (base[:33] + huge_text + base[33:], OK),
        "png_exif_6.png": (encode(stored_for(picture, 6), "PNG", exif=exif(6)), OK),
        "png_cut_in_half.png": (base[: len(base) // 2], TRUNCATED),
        "png_cut_in_header.png": (base[:20], TRUNCATED),
        "png_cut_before_end.png": (base[:-20], TRUNCATED),
        "png_too_few_rows.png": (png(rows[: height // 2], width, height, 8, 2), TRUNCATED),
        "png_wrong_checksum.png": (damaged, UNDECODABLE),
        "png_no_palette.png": (png([b"\x00"], 1, 1, 8, 3), UNDECODABLE),
        "png_no_data.png": (base[:33] + chunk(b"IEND", b""), UNDECODABLE),
        "png_no_width.png": (png([], 0, 5, 8, 2), UNDECODABLE),
        "png_no_such_depth.png": (png(rows, width, height, 3, 2), UNDECODABLE),
    }


def _other_formats(picture: UInt8) -> Files:
    image = Image.fromarray(picture)
    translucent = image.copy()
    translucent.putalpha(Image.linear_gradient("L").resize(image.size))
    frames = [image.quantize(32), image.transpose(Image.Transpose.ROTATE_180).quantize(32)]
    webp, avif = encode(picture, "WEBP", quality=80), encode(picture, "AVIF", quality=60, speed=10)
    tiff, bmp, gif = encode(picture, "TIFF"), encode(picture, "BMP"), encode(frames[0], "GIF")
    lzw = encode(picture, "TIFF", compression="tiff_lzw")
    grey_16 = np.arange(192 * 256, dtype=np.uint16).reshape(192, 256)
    files: Files = {
        "webp.webp": (webp, OK),
        "webp_lossless.webp": (encode(picture, "WEBP", lossless=True), OK),
        "webp_alpha.webp": (encode(translucent, "WEBP"), OK),
        "webp_animation.webp": (
            encode(image, "WEBP", save_all=True, append_images=[translucent], duration=100),
            OK,
        ),
        "tiff.tif": (tiff, OK),
        "tiff_lzw.tif": (lzw, OK),
        "tiff_deflate.tif": (encode(picture, "TIFF", compression="tiff_adobe_deflate"), OK),
        "tiff_jpeg.tif": (encode(picture, "TIFF", compression="jpeg"), OK),
        "tiff_grey_16_bit.tif": (encode(grey_16, "TIFF"), OK),
        "tiff_cmyk.tif": (encode(image.convert("CMYK"), "TIFF"), OK),
        "tiff_alpha.tif": (encode(translucent, "TIFF"), OK),
        "tiff_float.tif": (encode(np.asarray(image.convert("L"), np.float32) / 255, "TIFF"), OK),
        "tiff_two_pages.tif": (encode(image, "TIFF", save_all=True, append_images=[translucent]), OK),
        "tiff_float_without_range.tif": (
            encode(np.asarray(image.convert("L"), np.float32), "TIFF"),
            UNSUPPORTED,
        ),
        "tiff_lab.tif": (encode(image.convert("YCbCr"), "TIFF"), UNSUPPORTED),
        "bmp.bmp": (bmp, OK),
        "bmp_palette.bmp": (encode(frames[0], "BMP"), OK),
        "gif.gif": (gif, OK),
        "gif_animation.gif": (encode(frames[0], "GIF", save_all=True, append_images=frames[1:]), OK),
        "gif_transparent.gif": (encode(frames[0], "GIF", transparency=3), OK),
        "gif_trailer_missing.gif": (gif[:-1], OK),
        "avif.avif": (avif, OK),
        "avif_alpha.avif": (encode(translucent, "AVIF", quality=60, speed=10), OK),
        "avif_turned.avif": (encode(stored_for(picture, 6), "AVIF", speed=10, exif=exif(6)), OK),
        "heic_turned.heic": (HEIC_TURNED, OK),
        "heic_alpha.heic": (HEIC_ALPHA, OK),
    }
    for name, data in (
        ("webp", webp),
        ("tiff", tiff),
        ("tiff_lzw", lzw),
        ("bmp", bmp),
        ("gif", gif),
        ("avif", avif),
        ("heic", HEIC_TURNED),
    ):
        if name in ("webp", "avif"):
            files[f"{name}_filled_up.{name}"] = (data[: len(data) // 2].ljust(len(data), b"\x00"), TRUNCATED)
        for percent in (5, 50, 95):
            files[f"{name}_cut_at_{percent}_percent.{name[:4]}"] = (
                data[: len(data) * percent // 100],
                TRUNCATED,
            )
    return files


def _sizes_and_contents(picture: UInt8) -> Files:
    """Decodable all of them; whether a metric is defined for them is another question."""
    flat = np.zeros((120, 160, 3), np.uint8)
    noise = np.random.default_rng(2).integers(0, 256, (120, 160, 3), np.uint8)
    pictures = {
        "tiny_1x1": picture[:1, :1],
        "tiny_8x8": picture[:8, :8],
        "small_95x95": picture[:95, :95],
        "strip_3000x1": np.tile(picture[:1], (1, 12, 1))[:, :3000],
        "strip_1x3000": np.tile(picture[:, :1], (16, 1, 1))[:3000],
        "all_black": flat,
        "all_white": flat + 255,
        "all_grey": flat + 128,
        "saturated": np.where(noise > 127, 255, 0).astype(np.uint8),
        "noise": noise,
        "half_black": np.concatenate([flat[:60], noise[:60]]),
    }
    return {
        f"{name}.{kind}": (encode(np.ascontiguousarray(pixels), kind), OK)
        for name, pixels in pictures.items()
        for kind in ("png", "jpeg")
    }


def _bombs() -> Files:
    """A few bytes that ask for gigabytes."""
    jpeg = encode(np.zeros((16, 16, 3), np.uint8), "JPEG")
    jpeg = patched(jpeg, jpeg_frame(jpeg) + 5, struct.pack(">HH", 30000, 30000))
    gif = b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b";"
    vp8x = b"VP8X" + struct.pack("<IB3x", 10, 0x02) + (30000 - 1).to_bytes(3, "little") * 2
    bmp = bytearray(encode(np.zeros((4, 4, 3), np.uint8), "BMP"))
    bmp[18:26] = struct.pack("<ii", 30000, -30000)
    tiff = encode(np.zeros((4, 4), np.uint8), "TIFF")
    for tag in (256, 257):
        for kind in (3, 4):
            entry = struct.pack("<HHI", tag, kind, 1)
            if entry in tiff:
                tiff = patched(tiff, tiff.index(entry), struct.pack("<HHII", tag, 4, 1, 30000))
    avif = encode(np.zeros((16, 16, 3), np.uint8), "AVIF", speed=10)
    avif = patched(avif, avif.index(b"ispe") + 8, struct.pack(">II", 30000, 30000))
    heic = patched(HEIC_TURNED, HEIC_TURNED.index(b"ispe") + 8, struct.pack(">II", 30000, 30000))
    return {
        "bomb.png": (png_bomb(30000), TOO_LARGE),
        "bomb.jpg": (jpeg, TOO_LARGE),
        "bomb.gif": (gif, TOO_LARGE),
        "bomb.webp": (b"RIFF" + struct.pack("<I", 4 + len(vp8x)) + b"WEBP" + vp8x, TOO_LARGE),
        "bomb.bmp": (bytes(bmp), TOO_LARGE),
        "bomb.tif": (tiff, TOO_LARGE),
        "many_bytes_a_pixel.tif": (tiff_of_floats(9990, 9990, 5), TOO_LARGE),
        "bomb.avif": (avif, TOO_LARGE),
        "bomb.heic": (heic, TOO_LARGE),
    }


def tiff_of_floats(width: int, height: int, samples: int, compressed: bytes = b"") -> bytes:
    """A float RGB TIFF with as many samples a pixel, in a single deflated strip."""
    tags = {
        256: width,
        257: height,
        258: 32,
        259: 8,
        262: 2,
        273: 8 + 2 + 12 * 11 + 4,
        277: samples,
        278: height,
        279: len(compressed),
        338: 0,
        339: 3,
    }
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\x00" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + compressed


def _not_decoded() -> Files:
    """Other kinds of image, and what isn't an image."""
    svg = b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
    mp4 = b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isomiso2" + bytes(100)
    random = np.random.default_rng(3).integers(0, 256, 5000, np.uint8).tobytes()
    return {
        "photoshop.psd": (b"8BPS\x00\x01" + bytes(60), UNSUPPORTED),
        "drawing.svg": (svg, UNSUPPORTED),
        "jpeg_2000.jp2": (b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(60), UNSUPPORTED),
        "jpeg_xl.jxl": (b"\xff\x0a" + bytes(60), UNSUPPORTED),
        "icon.ico": (encode(np.zeros((16, 16, 3), np.uint8), "ICO"), UNSUPPORTED),
        "canon.cr2": (b"II*\x00\x10\x00\x00\x00CR\x02\x00" + bytes(60), UNSUPPORTED),
        "canon.cr3": (b"\x00\x00\x00\x18ftypcrx \x00\x00\x00\x01crx isom" + bytes(60), UNSUPPORTED),
        "plain.ppm": (b"P6\n2 2\n255\n" + bytes(12), UNSUPPORTED),
        "empty.jpg": (b"", UNDECODABLE),
        "text.jpg": ("Ein Text über Bilder, kein Bild.\n".encode() * 100, UNDECODABLE),
        "page_not_found.jpg": (b"<!DOCTYPE html><html><body>404</body></html>", UNDECODABLE),
        "access_denied.jpg": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', UNDECODABLE),
        "document.pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n", UNDECODABLE),
        "video.mp4": (mp4, UNDECODABLE),
        "random_bytes.png": (b"\x01" + random, UNDECODABLE),
        "zero_bytes_throughout.jpg": (bytes(5000), UNDECODABLE),
        "numbers.csv": (b"a,b\n1,2\n", UNDECODABLE),
    }


def _names(picture: UInt8) -> Files:
    """Wrong extensions, and names that break URLs, shells and code pages."""
    jpeg, as_png, webp = encode(picture, "JPEG"), encode(picture, "PNG"), encode(picture, "WEBP")
    return {
        "a_jpeg_called.png": (jpeg, OK),
        "a_png_called.jpg": (as_png, OK),
        "a_webp_called.jpeg": (webp, OK),
        "without_extension": (jpeg, OK),
        "UPPER CASE AND SPACES.JPG": (jpeg, OK),
        "100%25 percent.jpg": (jpeg, OK),
        "hash#and?question&mark=1.jpg": (jpeg, OK),
        "plus+tilde~quote's(1)[2]{3}.jpg": (jpeg, OK),
        "Größe_日本語_🙂.jpg": (jpeg, OK),
        ".hidden.jpg": (jpeg, OK),
        "two.dots.tar.gz": (jpeg, OK),
    }

"""What some bytes are, by content alone: names, extensions and declared types are never asked."""

from enum import StrEnum

from qualitygate.errors import ErrorCode, ImageError


class Format(StrEnum):
    """The formats that are decoded."""

    JPEG = "JPEG"
    PNG = "PNG"
    WEBP = "WebP"
    TIFF = "TIFF"
    BMP = "BMP"
    GIF = "GIF"
    AVIF = "AVIF"
    HEIF = "HEIF"


_DECODED = (
    (b"\xff\xd8", Format.JPEG),
    (b"\x89PNG\r\n\x1a\n", Format.PNG),
    (b"GIF87a", Format.GIF),
    (b"GIF89a", Format.GIF),
    (b"II+\x00", Format.TIFF),
    (b"MM\x00*", Format.TIFF),
    (b"MM\x00+", Format.TIFF),
)
_UNSUPPORTED = (
    (b"8BPS", "a Photoshop document (PSD)"),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000 (codestream)"),
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL (codestream)"),
    (b"II\xbc\x01", "JPEG XR"),
    (b"\x00\x00\x01\x00", "an icon (ICO)"),
    (b"\x00\x00\x02\x00", "a cursor (CUR)"),
    (b"icns", "an Apple icon (ICNS)"),
    (b"FUJIFILMCCD-RAW", "a raw camera file (Fujifilm RAF)"),
    (b"IIU\x00", "a raw camera file (Panasonic RW2)"),
    (b"IIRO", "a raw camera file (Olympus ORF)"),
    (b"IIRS", "a raw camera file (Olympus ORF)"),
    (b"MMOR", "a raw camera file (Olympus ORF)"),
    (b"FOVb", "a raw camera file (Sigma X3F)"),
    (b"\x00MRM", "a raw camera file (Minolta MRW)"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"#?RGBE", "Radiance HDR"),
    (b"gimp xcf", "a GIMP document (XCF)"),
    (b"DDS ", "a DirectDraw surface (DDS)"),
    (b"qoif", "QOI"),
    (b"BPG\xfb", "BPG"),
    (b"FLIF", "FLIF"),
    (b"\x8aMNG\r\n\x1a\n", "MNG"),
    (b"\x8bJNG\r\n\x1a\n", "JNG"),
    (b"SIMPLE  =", "FITS"),
    (b"SDPX", "DPX"),
    (b"XPDS", "DPX"),
    (b"AT&TFORM", "DjVu"),
    (b"\xd7\xcd\xc6\x9a", "a Windows metafile (WMF)"),
    (b"\x01\xda\x01\x01", "an SGI image"),
    (b"\x01\xda\x00\x01", "an SGI image"),
    (b"\x59\xa6\x6a\x95", "a Sun raster"),
    (b"PF\n", "a portable float map (PFM)"),
    (b"Pf\n", "a portable float map (PFM)"),
    (b"P7\n", "a portable any-map (PAM)"),
    *((b"P%d%c" % (n, gap), "a portable any-map (PNM)") for n in range(1, 7) for gap in b" \t\r\n"),
)
_OTHER = (
    (b"%!PS", "PostScript"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"PK\x05\x06", "a ZIP archive"),
    (b"\x1f\x8b", "gzip data"),
    (b"BZh", "bzip2 data"),
    (b"\xfd7zXZ\x00", "xz data"),
    (b"\x28\xb5\x2f\xfd", "zstd data"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"\x1aE\xdf\xa3", "video (Matroska or WebM)"),
    (b"\x00\x00\x01\xba", "video (MPEG)"),
    (b"\x00\x00\x01\xb3", "video (MPEG)"),
    (b"FLV\x01", "video (Flash)"),
    (b"OggS", "audio or video (Ogg)"),
    (b"ID3", "audio (MP3)"),
    (b"fLaC", "audio (FLAC)"),
    (b"PAR1", "a Parquet table"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF", "HDF5"),
    (b"SQLite format 3", "an SQLite database"),
    (b"\xd0\xcf\x11\xe0", "an Office document"),
)
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"mif2", b"msf1"})
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_BMP_HEADERS = frozenset({12, 16, 40, 52, 56, 64, 108, 124})
_TEXT_BYTES = 1024


def identify(data: bytes) -> Format:
    """The format to decode. Raises `unsupported` for other images, `undecodable` for anything else."""
    if not data:
        raise ImageError(ErrorCode.UNDECODABLE, "empty file")
    for signature, kind in _DECODED:
        if data.startswith(signature):
            return kind
    if data.startswith(b"II*\x00"):
        if data[8:10] == b"CR":
            raise _unsupported("a raw camera file (Canon CR2)")
        return Format.TIFF
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return Format.WEBP
    if data[4:8] == b"ftyp":
        return _base_media(data)
    if _is_bmp(data):
        return Format.BMP
    for signature, name in _UNSUPPORTED:
        if data.startswith(signature):
            raise _unsupported(name)
    raise _not_an_image(data)


def _is_bmp(data: bytes) -> bool:
    return (
        data[:2] == b"BM"
        and int.from_bytes(data[14:18], "little") in _BMP_HEADERS
        and int.from_bytes(data[14:18], "little") <= int.from_bytes(data[10:14], "little")
    )


def _base_media(data: bytes) -> Format:
    """Tells AVIF, HEIF, raw and video apart by the brands of an ISO base media file."""
    size = int.from_bytes(data[:4], "big")
    major = data[8:12]
    brands = [data[at : at + 4] for at in range(16, min(size, len(data), 512), 4)]
    if major in _AVIF_BRANDS:
        return Format.AVIF
    if major in _HEIF_BRANDS:
        # "mif1" alone says image file; which codec, the compatible brands say.
        return Format.AVIF if major in (b"mif1", b"mif2", b"msf1") and b"avif" in brands else Format.HEIF
    if major == b"crx ":
        raise _unsupported("a raw camera file (Canon CR3)")
    if major in (b"jp2 ", b"jpx "):
        raise _unsupported("JPEG 2000")
    if _AVIF_BRANDS.intersection(brands):
        return Format.AVIF
    if (_HEIF_BRANDS - {b"msf1"}).intersection(brands):
        return Format.HEIF
    if len(major) < 4:
        raise ImageError(ErrorCode.TRUNCATED, "the file ends within its first bytes")
    raise ImageError(ErrorCode.UNDECODABLE, f"video ({_printable(major)}), not an image")


def _not_an_image(data: bytes) -> ImageError:
    """Names what isn't an image as well as can be told."""
    if b"%PDF-" in data[:1024]:
        return _undecodable("PDF")
    if data[:4] == b"RIFF":
        names = {b"AVI ": "video (AVI)", b"WAVE": "audio (WAV)"}
        if len(data) < 12:
            return ImageError(ErrorCode.TRUNCATED, "the file ends within its first bytes")
        return _undecodable(names.get(data[8:12], "RIFF data"))
    if data[4:8] in (b"moov", b"mdat", b"wide", b"free", b"skip") and data[0] < 32:
        return _undecodable("video (QuickTime)")
    for signature, name in _OTHER:
        if data.startswith(signature):
            return _undecodable(name)
    if len(data) >= 4 and any(signature.startswith(data) for signature, _ in _DECODED):
        return ImageError(ErrorCode.TRUNCATED, "the file ends within its first bytes")
    if data[128:132] == b"DICM":
        return _unsupported("DICOM")
    if not any(data[:_TEXT_BYTES]):
        return _undecodable("zero bytes")
    return _text_or_bytes(data)


def _text_or_bytes(data: bytes) -> ImageError:
    head = data[:_TEXT_BYTES]
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return _undecodable("text (UTF-16)")
    try:
        text = head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The window may end in the middle of a character.
        if error.start < len(head) - 4 or len(data) <= _TEXT_BYTES:
            return ImageError(ErrorCode.UNDECODABLE, _unrecognised(data))
        text = head[: error.start].decode("utf-8-sig")
    if any(not c.isprintable() and c not in "\t\r\n\f" for c in text):
        return ImageError(ErrorCode.UNDECODABLE, _unrecognised(data))
    start = text.lstrip().lower()
    if start.startswith("<svg") or (start.startswith(("<?xml", "<!doctype svg", "<!--")) and "<svg" in start):
        return _unsupported("SVG")
    if start.startswith("/* xpm"):
        return _unsupported("XPM")
    if start.startswith("<!doctype html") or "<html" in start or "<body" in start:
        return _undecodable("HTML")
    if start.startswith("<?xml"):
        return _undecodable("XML")
    if start.startswith("version https://git-lfs"):
        return _undecodable("a Git LFS pointer")
    return _undecodable("text")


def _unsupported(name: str) -> ImageError:
    return ImageError(ErrorCode.UNSUPPORTED, f"{name}: this image format isn't decoded")


def _undecodable(name: str) -> ImageError:
    return ImageError(ErrorCode.UNDECODABLE, f"{name}, not an image")


def _unrecognised(data: bytes) -> str:
    return f"unrecognised data, not an image (starts with {data[:8].hex(' ')})"


def _printable(raw: bytes) -> str:
    return "".join(chr(b) if 32 < b < 127 else "?" for b in raw)

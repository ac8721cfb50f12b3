"""The four things that are wanted from EXIF: orientation, camera make and model, and when it was taken.

A small reader of its own, since libraries print warnings for malformed blocks, follow makers' notes and load
thumbnails. It looks at two directories, bounds every count, and never raises: what can't be read is absent.
"""

import re
import struct
from dataclasses import dataclass
from datetime import datetime

_ORIENTATION, _MAKE, _MODEL, _MODIFIED = 0x0112, 0x010F, 0x0110, 0x0132
_EXIF_DIRECTORY, _ORIGINAL, _DIGITISED = 0x8769, 0x9003, 0x9004
_BYTE_TYPES = frozenset({1, 2, 7})  # BYTE, ASCII, UNDEFINED
_SHORT, _LONG = 3, 4
_MAX_ENTRIES = 1024
_MAX_TEXT = 64
_DATE = re.compile(r"(\d{4})[:\-/.](\d{2})[:\-/.](\d{2})[ T](\d{2}):(\d{2}):(\d{2})")

HEADER = b"Exif\x00\x00"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exif:
    """What a photograph's EXIF says, as far as scoring and slicing by camera need it.

    Attributes:
        orientation: 1 to 8 as in TIFF 6.0; 1 where absent or invalid.
        make, model: of the camera; at most 64 characters, no control characters.
        captured_at: local time as recorded, without a zone: DateTimeOriginal, else DateTimeDigitized, else
            DateTime, which old phones write alone.
    """

    orientation: int = 1
    make: str | None = None
    model: str | None = None
    captured_at: datetime | None = None


NONE = Exif()


def parse(block: bytes) -> Exif:
    """Reads an EXIF block: a TIFF header and directories, with or without the "Exif\\0\\0" before it."""
    block = block.removeprefix(HEADER)
    order = {b"II*\x00": "<", b"MM\x00*": ">"}.get(bytes(block[:4]))
    if order is None or len(block) < 8:
        return NONE
    main = _directory(block, order, struct.unpack_from(order + "I", block, 4)[0])
    sub_offset = _integer(main, _EXIF_DIRECTORY, order)
    sub = _directory(block, order, sub_offset) if sub_offset else {}
    orientation = _integer(main, _ORIENTATION, order)
    return Exif(
        orientation=orientation if orientation in range(1, 9) else 1,
        make=_text(main, _MAKE),
        model=_text(main, _MODEL),
        captured_at=_date(sub, _ORIGINAL) or _date(sub, _DIGITISED) or _date(main, _MODIFIED),
    )


def clean_text(raw: bytes) -> str | None:
    """Text of a metadata field up to its first NUL: printable characters only, bounded, None when empty."""
    text = raw.split(b"\x00", 1)[0][: 4 * _MAX_TEXT].decode("utf-8", "replace")
    printable = "".join(c for c in text if c.isprintable() and c != "\N{REPLACEMENT CHARACTER}")
    return printable.strip()[:_MAX_TEXT].strip() or None


def parse_date(text: str | None) -> datetime | None:
    """A date as EXIF writes it, "YYYY:MM:DD HH:MM:SS"; None where malformed or impossible."""
    match = _DATE.match(text or "")
    if match is None:
        return None
    try:
        return datetime(*(int(part) for part in match.groups()))  # type: ignore[arg-type]
    except ValueError:
        return None


def _directory(block: bytes, order: str, offset: int) -> dict[int, tuple[int, bytes]]:
    """Tag -> (type, value bytes) of the directory at `offset`; entries that point outside are left out."""
    if offset < 8 or offset + 2 > len(block):
        return {}
    (count,) = struct.unpack_from(order + "H", block, offset)
    entries: dict[int, tuple[int, bytes]] = {}
    for index in range(min(count, _MAX_ENTRIES)):
        start = offset + 2 + 12 * index
        if start + 12 > len(block):
            break
        tag, kind, items = struct.unpack_from(order + "HHI", block, start)
        size = items * (1 if kind in _BYTE_TYPES else 2 if kind == _SHORT else 4)
        at = start + 8 if size <= 4 else struct.unpack_from(order + "I", block, start + 8)[0]
        if at + size <= len(block):
            entries.setdefault(tag, (kind, bytes(block[at : at + min(size, 4096)])))
    return entries


def _integer(entries: dict[int, tuple[int, bytes]], tag: int, order: str) -> int:
    kind, value = entries.get(tag, (0, b""))
    if kind == _SHORT and len(value) >= 2:
        return int(struct.unpack_from(order + "H", value)[0])
    if kind == _LONG and len(value) >= 4:
        return int(struct.unpack_from(order + "I", value)[0])
    return 0


def _text(entries: dict[int, tuple[int, bytes]], tag: int) -> str | None:
    return clean_text(entries[tag][1]) if tag in entries else None


def _date(entries: dict[int, tuple[int, bytes]], tag: int) -> datetime | None:
    return parse_date(_text(entries, tag))

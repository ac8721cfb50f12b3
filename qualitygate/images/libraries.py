"""Calling third-party decoders on bytes that nobody vouches for."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from qualitygate.errors import ErrorCode, ImageError

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

_MAX_MESSAGE = 200
# How Pillow and libjpeg put it; the last is the end of a JPEG where a further restart interval was due.
_ENDS_EARLY = ("truncated", "premature end", "found marker 0xd9 instead of rst")


@contextmanager
def decoder_errors(kind: str) -> Iterator[None]:
    """Turns whatever a decoder raises into an `ImageError` that names the format.

    Every exception type has been seen from decoders on damaged bytes (struct.error, IndexError, SyntaxError,
    ...), so this one place catches all of them; it must surround library calls only, never code of ours.
    """
    try:
        yield
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(ErrorCode.OUT_OF_MEMORY, f"{kind}: not enough memory to decode it") from error
    except Exception as error:
        message = " ".join(str(error).split())[:_MAX_MESSAGE] or type(error).__name__
        lowered = message.lower()
        if "insufficient memory" in lowered or "failed to allocate" in lowered:
            code = ErrorCode.OUT_OF_MEMORY
        elif any(words in lowered for words in _ENDS_EARLY):
            code = ErrorCode.TRUNCATED
        else:
            code = ErrorCode.UNDECODABLE
        raise ImageError(code, f"{kind}: {message}") from error


def open_pillow(plugin: "type[ImageFile]", data: bytes) -> "ImageFile":
    """Opens with one plugin class, header only.

    Image.open would try every plugin, and apply Image.MAX_IMAGE_PIXELS: a process-wide setting that warns on
    stderr, raises below the caller's own bound and isn't ours to change.
    """
    return plugin(io.BytesIO(data))

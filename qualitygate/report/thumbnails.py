"""Small pictures of photographs for the page; one that can't be read becomes the reason why not."""

import base64
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from qualitygate.errors import ImageError
from qualitygate.images.decode import Box, decode
from qualitygate.report import wording
from qualitygate.tables import storage

if TYPE_CHECKING:
    from PIL import Image

UInt8 = npt.NDArray[np.uint8]

_MAX_BYTES = 512 << 20
# A page is made without the photographs that can't be had at once.
_ACCESS = storage.Access(retry_seconds=1)
_THREADS = 4
# A store that fails this often without a single success isn't asked for every photograph.
_TRIES = 48


class Progress(Protocol):
    """What a caller may watch while photographs are read."""

    def start(self, *, total: int, done: int) -> None: ...

    def advance(self, *, rows: int, errors: int = 0) -> None: ...

    def stop(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a photograph is. detailed: whether its middle is wanted at full size too."""

    uri: str | None
    box: Box | None = None
    detailed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """whole: (H, W, 3) uint8 RGB, shrunk to a longest side of at most `WHOLE`; detail: of at most `DETAIL`
    pixels a side, cut from the middle at full size, or None where the whole shows all there is."""

    whole: UInt8
    detail: UInt8 | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How small: longest sides in pixels, WebP quality. detail 0 leaves the middles out."""

    hover: int
    whole: int
    detail: int
    quality: int


WHOLE, DETAIL = 224, 288
# From the best to the smallest; the page takes the first that fits.
SIZES = (
    Size(hover=192, whole=WHOLE, detail=DETAIL, quality=66),
    Size(hover=144, whole=176, detail=256, quality=50),
    Size(hover=96, whole=128, detail=160, quality=40),
    Size(hover=64, whole=112, detail=0, quality=30),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """Data URIs by row; reasons of those that have none."""

    whole: Mapping[int, str]
    detail: Mapping[int, str]
    problems: Mapping[int, str]


def read(sources: Mapping[int, Source], progress: Progress | None = None) -> dict[int, Picture | str]:
    """A picture of each, or why there is none. Never raises for a photograph."""
    found: dict[int, Picture | str] = {}
    rows = list(sources)
    if progress:
        progress.start(total=len(rows), done=0)
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(rows), _TRIES):
            part = rows[start : start + _TRIES]
            found |= zip(part, pool.map(_picture, [sources[row] for row in part]), strict=True)
            failures = sum(isinstance(found[row], str) for row in part)
            if progress:
                progress.advance(rows=len(part), errors=failures)
            if start == 0 and failures == _TRIES:
                skipped = f"not tried, as none of the first {_TRIES} could be read ({found[part[-1]]})"
                found |= dict.fromkeys(rows[_TRIES:], skipped)
                break
    if progress:
        progress.stop()
    return found


def _picture(source: Source) -> Picture | str:
    from PIL import Image

    try:
        data = storage.fetch(source.uri, max_bytes=_MAX_BYTES, access=_ACCESS).data
        pixels = decode(data, box=source.box).photograph.rgb
    except ImageError as error:
        return wording.safe(f"{error.failure.code}: {error.failure.message}")
    height, width = pixels.shape[:2]
    detail = None
    if source.detailed and max(height, width) > WHOLE:
        h, w = min(height, DETAIL), min(width, DETAIL)
        top, left = (height - h) // 2, (width - w) // 2
        detail = pixels[top : top + h, left : left + w].copy()
    whole = np.asarray(_shrunk(Image.fromarray(pixels), WHOLE))
    return Picture(whole=whole, detail=detail)


def _shrunk(image: "Image.Image", side: int) -> "Image.Image":
    from PIL import Image

    if max(image.size) <= side:
        return image
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def encode(
    pictures: Mapping[int, Picture | str], *, gallery: Sequence[int], hovered: Sequence[int], size: Size
) -> Encoded:
    """The pictures as data URIs: those of the gallery larger, with their middles; of the others, those hovered."""
    from PIL import Image

    whole, detail = {}, {}
    large = set(gallery)
    for row in dict.fromkeys([*gallery, *hovered]):
        picture = pictures.get(row)
        if not isinstance(picture, Picture):
            continue
        image = Image.fromarray(picture.whole)
        whole[row] = data_uri(_shrunk(image, size.whole if row in large else size.hover), size.quality)
        if row in large and size.detail and picture.detail is not None:
            detail[row] = data_uri(_middle(Image.fromarray(picture.detail), size.detail), size.quality)
    problems = {row: picture for row, picture in pictures.items() if isinstance(picture, str)}
    return Encoded(whole=whole, detail=detail, problems=problems)


def _middle(image: "Image.Image", side: int) -> "Image.Image":
    left, top = max(0, (image.width - side) // 2), max(0, (image.height - side) // 2)
    return image.crop((left, top, min(image.width, left + side), min(image.height, top + side)))


def data_uri(image: "Image.Image", quality: int) -> str:
    """The image as WebP inside a data URI."""
    buffer = BytesIO()
    image.convert("RGB").save(buffer, "WEBP", quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def montage_uri(data: bytes, *, most_bytes: int) -> str | None:
    """A picture of the robustness run as a data URI of at most so many bytes; None where it can't be read or fit."""
    from PIL import Image

    try:
        image = Image.fromarray(decode(data).photograph.rgb)
    except ImageError:
        return None
    for side in (1800, 1400, 1000, 700):
        uri = data_uri(_shrunk(image, side), 80)
        if len(uri) <= most_bytes:
            return uri
    return None

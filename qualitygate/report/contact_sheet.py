"""A picture of the best and the worst photographs under each metric: what a score means, at a glance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL import Image

_TILE = 132
_GAP = 6
_LABEL = 18
_LEFT = 118
_TOP = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One photograph on the sheet. pixels: (H, W, 3) uint8 RGB."""

    pixels: npt.NDArray[np.uint8]
    caption: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """One metric's line on the sheet."""

    title: str
    direction: str
    best: Sequence[Tile]
    worst: Sequence[Tile]


def draw(strips: Sequence[Strip], *, title: str) -> bytes:
    """The sheet as a PNG: a line for each metric, its best photographs on the left, its worst on the right."""
    from PIL import Image, ImageDraw, ImageFont

    columns = max((max(len(strip.best), len(strip.worst)) for strip in strips), default=1)
    half = columns * (_TILE + _GAP)
    width = _LEFT + 2 * half + 3 * _GAP
    line = _TILE + _LABEL + _GAP
    sheet = Image.new("RGB", (width, _TOP + line * len(strips) + _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(17), ImageFont.load_default(12)
    pen.text((_GAP, _GAP), title, "black", large)
    right = _LEFT + half + 2 * _GAP
    pen.text((_LEFT, _TOP - 24), "best", "#1a7f37", large)
    pen.text((right, _TOP - 24), "worst", "#b42318", large)
    for number, strip in enumerate(strips):
        top = _TOP + number * line
        pen.text((_GAP, top + 8), strip.title, "black", large)
        pen.text((_GAP, top + 32), strip.direction, "#555555", small)
        for left, tiles in ((_LEFT, strip.best), (right, strip.worst)):
            for column, tile in enumerate(tiles):
                corner = (left + column * (_TILE + _GAP), top)
                sheet.paste(_thumbnail(tile.pixels), corner)
                pen.text((corner[0], top + _TILE + 1), tile.caption, "#333333", small)
    pen.line([(right - _GAP, _TOP - 24), (right - _GAP, sheet.height - _GAP)], "#cccccc", 2)
    buffer = BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _thumbnail(pixels: npt.NDArray[np.uint8]) -> "Image.Image":
    """A square of one tile's size from the photograph's middle, so that blur shows as it is, not shrunk away."""
    from PIL import Image

    height, width = pixels.shape[:2]
    side = min(height, width, 2 * _TILE)
    top, left = (height - side) // 2, (width - side) // 2
    middle = Image.fromarray(pixels[top : top + side, left : left + side])
    return middle.resize((_TILE, _TILE), Image.Resampling.LANCZOS)


def extremes(scores: Mapping[str, float | None], *, higher_is_better: bool, count: int) -> tuple[list[str], list[str]]:
    """(ids of the best, ids of the worst), each from the outside in; images without a score stand in neither."""
    ranked = sorted(
        (image_id for image_id, score in scores.items() if score is not None),
        key=lambda image_id: (scores[image_id], image_id),
        reverse=higher_is_better,
    )
    count = min(count, len(ranked) // 2) or min(1, len(ranked))
    return ranked[:count], ranked[::-1][:count]

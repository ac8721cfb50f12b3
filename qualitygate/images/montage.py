"""A picture of one sample's series, as the paper's Figure 1: a line for each way to change a photograph."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL import Image

UInt8 = npt.NDArray[np.uint8]

_TILE = 132
_GAP = 6
_LINE = 15
_LEFT = 150
_TOP = 38


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One step. pixels: (H, W, 3) uint8 RGB; captions: lines below it."""

    pixels: UInt8
    captions: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """One series. detail: show where the first tile has most detail, at full resolution, so that blur can be seen.

    Otherwise tiles are whole, scaled down by one factor for the strip: a smaller photograph is a smaller tile.
    """

    title: str
    notes: Sequence[str]
    tiles: Sequence[Tile]
    detail: bool = False


def draw(strips: Sequence[Strip], *, title: str) -> bytes:
    """The picture as a PNG."""
    from PIL import Image, ImageDraw, ImageFont

    shown = [_pictures(strip) for strip in strips]
    captions = max((len(tile.captions) for strip in strips for tile in strip.tiles), default=1)
    heights = [max((picture.height for picture in line), default=_TILE) for line in shown]
    columns = max((len(line) for line in shown), default=1)
    below = captions * _LINE + 2 * _GAP
    size = (_LEFT + columns * (_TILE + _GAP) + _GAP, _TOP + sum(height + below for height in heights))
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(17), ImageFont.load_default(12)
    pen.text((_GAP, _GAP), title, "black", large)
    top = _TOP
    for strip, line, height in zip(strips, shown, heights, strict=True):
        pen.text((_GAP, top + 8), strip.title, "black", large)
        for place, note in enumerate(strip.notes):
            pen.text((_GAP, top + 34 + place * _LINE), note, "#555555", small)
        for column, (tile, picture) in enumerate(zip(strip.tiles, line, strict=True)):
            left = _LEFT + column * (_TILE + _GAP)
            sheet.paste(picture, (left, top))
            for place, caption in enumerate(tile.captions):
                pen.text((left, top + height + 1 + place * _LINE), caption, "#333333", small)
        top += height + below
    buffer = BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _pictures(strip: Strip) -> "list[Image.Image]":
    if not strip.tiles:
        return []
    if strip.detail:
        place = most_detailed(strip.tiles[0].pixels, _TILE)
        return [_cut(tile.pixels, *place) for tile in strip.tiles]
    largest = max(max(tile.pixels.shape[:2]) for tile in strip.tiles)
    return [_whole(tile.pixels, largest) for tile in strip.tiles]


def most_detailed(pixels: UInt8, side: int) -> tuple[int, int]:
    """(top, left) of the square of `side` pixels that holds the steepest edges; 0 along sides that are shorter."""
    import cv2

    grey = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY).astype(np.float32)
    steepness = np.zeros_like(grey)
    steepness[:, 1:] += np.abs(np.diff(grey, axis=1))
    steepness[1:] += np.abs(np.diff(grey, axis=0))
    sums = cv2.integral(steepness)
    height, width = grey.shape
    tall, wide = min(side, height), min(side, width)
    inside = sums[tall:, wide:] - sums[:-tall, wide:] - sums[tall:, :-wide] + sums[:-tall, :-wide]
    top, left = np.unravel_index(int(np.argmax(inside)), inside.shape)
    return int(top), int(left)


def _whole(pixels: UInt8, largest: int) -> "Image.Image":
    from PIL import Image

    height, width = pixels.shape[:2]
    size = (max(1, round(width * _TILE / largest)), max(1, round(height * _TILE / largest)))
    return Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)


def _cut(pixels: UInt8, top: int, left: int) -> "Image.Image":
    from PIL import Image

    # Photographs of a series may differ in size.
    top, left = max(0, min(top, pixels.shape[0] - _TILE)), max(0, min(left, pixels.shape[1] - _TILE))
    return Image.fromarray(np.ascontiguousarray(pixels[top : top + _TILE, left : left + _TILE]))

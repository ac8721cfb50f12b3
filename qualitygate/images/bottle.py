"""The bottom of a plastic bottle with a printed code, as light that reaches the lens.

Everything is linear light. The plate (the bottle's bottom) has coordinates of its own, centred on the code,
in widths of a photograph's frame; a pose maps them to the frame. Relief is kept as slope, not as height:
rings, mould marks and grain tilt the surface, and tilt is what light shows.

Shapes: canvases are square, (N, N) or (N, N, 3) float32.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from qualitygate.images.dot_matrix import CHARACTER_ADVANCE, LINE_LENGTH, Dots

Floats = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float64]

# Linear-light reflectance of plastics, and how much light travels inside (0 opaque, 1 milky and translucent).
_PLASTICS = (
    ((0.74, 0.73, 0.70), 0.2),
    ((0.56, 0.57, 0.55), 0.9),
    ((0.45, 0.46, 0.47), 0.1),
    ((0.30, 0.47, 0.66), 0.5),
    ((0.35, 0.55, 0.40), 0.5),
    ((0.66, 0.52, 0.34), 0.6),
    ((0.62, 0.42, 0.55), 0.3),
    ((0.68, 0.62, 0.30), 0.2),
)
_INKS = ((0.020, 0.020, 0.022), (0.015, 0.020, 0.050), (0.035, 0.025, 0.020))
_GRAIN_TILE = 512  # pixels of the tile of grain
_GRAIN_SPAN = 1.6  # frame widths that the tile covers before it repeats


@dataclass(frozen=True, slots=True, kw_only=True)
class Canvas:
    """A square of pixels around the frame: `frame` pixels wide, with `margin` more on each side.

    side: frame + 2 margin, or a little more at the right and the bottom.
    """

    side: int
    frame: int
    margin: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pose:
    """How the plate lies in the frame: frame = linear @ plate / (1 + tilt · plate) + shift, frame widths."""

    linear: Matrix  # (2, 2)
    tilt: Matrix  # (2,)
    shift: Matrix  # (2,)

    def to_frame(self, points: Matrix) -> Matrix:
        """(N, 2) frame coordinates, (0, 0) its middle, of (N, 2) plate coordinates."""
        return points @ self.linear.T / (1 + points @ self.tilt)[:, None] + self.shift

    def jacobian(self, points: Matrix) -> Matrix:
        """(N, 2, 2): how the frame coordinates move with the plate coordinates."""
        depth = (1 + points @ self.tilt)[:, None, None]
        mapped = (points @ self.linear.T)[:, :, None]
        return self.linear[None] / depth - mapped * self.tilt[None, None, :] / depth**2


@dataclass(frozen=True, slots=True, kw_only=True)
class Light:
    """Where light comes from. Directions and positions in plate coordinates.

    azimuth: (2,) unit vector towards the lamp. relief: strength of shading by slope. gradient: (2,) change of
    irradiance for one frame width. gleam_at: (2,) where a flat surface mirrors the lamp; gleam: its strength
    in units of white; gleam_width: in slope.
    """

    azimuth: Matrix
    relief: float
    gradient: Matrix
    gleam_at: Matrix
    gleam: float
    gleam_width: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bottle:
    """A bottle's bottom without its print; positions in plate coordinates, in frame widths."""

    plastic: tuple[float, float, float]
    translucence: float
    ink: tuple[float, float, float]
    centre: Matrix  # (2,) axis of the bottle
    ring_slope: Floats  # slope outwards by distance from the axis, over `ring_reach` frame widths
    ring_reach: float
    ticks: tuple[float, float, float, float]  # knurls: radius, width, number in a turn, slope
    grain: Floats  # (T, T, 2) slope of the grain, a tile that repeats
    mottle: Floats  # (T', T') relative reflectance - 1, a tile that repeats
    scratches: tuple[tuple[Matrix, float], ...]  # (K, 2) points, brightness
    marks: tuple[tuple[Matrix, float], ...]  # raised mould marks: (K, 2) points, slope
    pitch: float  # frame widths from a dot to the next


def random_pose(rng: np.random.Generator) -> Pose:
    """A hand-held, tight shot: a few degrees of roll and tilt, a few per cent of scale and shift."""
    roll = math.radians(float(np.clip(rng.normal(0, 2.0), -5, 5)))
    scale = 1 + float(np.clip(rng.normal(0, 0.025), -0.06, 0.04))
    across = rng.uniform(0, math.pi)
    squeeze = math.cos(math.radians(abs(float(np.clip(rng.normal(0, 6), -14, 14)))))
    turn = np.array([[math.cos(roll), -math.sin(roll)], [math.sin(roll), math.cos(roll)]])
    axes = np.array([[math.cos(across), -math.sin(across)], [math.sin(across), math.cos(across)]])
    linear = scale * turn @ axes @ np.diag([1.0, squeeze]) @ axes.T
    return Pose(
        linear=linear,
        tilt=np.clip(rng.normal(0, 0.05, 2), -0.12, 0.12),
        shift=np.clip(rng.normal(0, 0.010, 2), -0.025, 0.025),
    )


def random_light(rng: np.random.Generator) -> Light:
    """A lamp to one side, a soft gradient, and a gleam that is often near the frame's edge."""
    azimuth = rng.uniform(0, 2 * math.pi)
    falloff = rng.uniform(0, 2 * math.pi)
    bearing = rng.uniform(0, 2 * math.pi)
    return Light(
        azimuth=np.array([math.cos(azimuth), math.sin(azimuth)]),
        relief=rng.uniform(0.6, 1.3),
        gradient=rng.uniform(0.05, 0.45) * np.array([math.cos(falloff), math.sin(falloff)]),
        gleam_at=rng.uniform(0.25, 0.75) * np.array([math.cos(bearing), math.sin(bearing)]),
        gleam=rng.uniform(0.05, 0.5),
        gleam_width=rng.uniform(0.10, 0.22),
    )


def random_bottle(rng: np.random.Generator) -> Bottle:
    """A bottle from the same few moulds and plastics for both manufacturers."""
    colour, translucence = _PLASTICS[rng.integers(len(_PLASTICS))]
    tinted = np.clip(np.array(colour) * np.exp(rng.normal(0, 0.06, 3)) * np.exp(rng.normal(0, 0.08)), 0, 0.9)
    bearing = rng.uniform(0, 2 * math.pi)
    centre = rng.uniform(0, 0.30) * np.array([math.cos(bearing), math.sin(bearing)])
    ring_slope, reach = _random_rings(rng)
    ticks = (
        rng.uniform(0.42, 0.75),
        rng.uniform(0.02, 0.04),
        float(rng.integers(40, 110)),
        rng.uniform(0.1, 0.5) * float(rng.random() < 0.6),
    )
    fill = rng.uniform(0.85, 0.93)  # of the frame's width, by a full line of the code
    return Bottle(
        plastic=(float(tinted[0]), float(tinted[1]), float(tinted[2])),
        translucence=translucence,
        ink=_INKS[rng.integers(len(_INKS))],
        centre=centre,
        ring_slope=ring_slope,
        ring_reach=reach,
        ticks=ticks,
        grain=_random_grain(rng),
        mottle=_random_mottle(rng),
        scratches=tuple(_random_scratch(rng) for _ in range(rng.integers(2, 12))),
        marks=_random_marks(rng, centre),
        pitch=fill / (LINE_LENGTH * CHARACTER_ADVANCE),
    )


def radiance(bottle: Bottle, dots: Dots, light: Light, pose: Pose, canvas: Canvas) -> Floats:
    """Light from the printed bottle: (N, N, 3), linear, [0, inf), 1 = a white sheet in full light."""
    x, y = _plate_coordinates(pose, canvas)
    slope_x, slope_y = _slopes(bottle, pose, canvas, x, y)
    ink = _ink_cover(bottle.pitch, dots, pose, canvas)

    # Relief: a slope that faces the lamp is brighter.
    shade = slope_x * np.float32(light.azimuth[0] * light.relief)
    shade += slope_y * np.float32(light.azimuth[1] * light.relief)
    shade *= np.float32(1 - 0.5 * bottle.translucence)
    shade += 1
    np.maximum(shade, np.float32(0.15), out=shade)
    shade *= np.maximum(1 + x * np.float32(light.gradient[0]) + y * np.float32(light.gradient[1]), np.float32(0.2))
    if bottle.translucence > 0:  # light from inside: brighter where the plastic is thin, near the axis
        off_axis = np.square(x - np.float32(bottle.centre[0])) + np.square(y - np.float32(bottle.centre[1]))
        shade += np.float32(0.35 * bottle.translucence) * cv2.exp(off_axis * np.float32(-4.0))
    shade *= 1 + _sample(bottle.mottle, x, y)
    _draw_scratches(bottle, pose, canvas, shade)

    # Gleam: the mirror image of the lamp, broken up by the relief.
    miss_x = slope_x + (x - np.float32(light.gleam_at[0])) * np.float32(0.5)
    miss_y = slope_y + (y - np.float32(light.gleam_at[1])) * np.float32(0.5)
    miss = np.square(miss_x)
    miss += np.square(miss_y)
    gleam = cv2.exp(miss * np.float32(-0.5 / light.gleam_width**2))
    gleam *= np.float32(light.gleam)
    gleam *= 1 - np.float32(0.6) * ink  # ink is duller than the plastic

    scene = np.empty((canvas.side, canvas.side, 3), np.float32)
    for channel in range(3):
        plastic = np.float32(bottle.plastic[channel])
        plane = ink * (np.float32(bottle.ink[channel]) - plastic)
        plane += plastic
        plane *= shade
        plane += gleam
        scene[:, :, channel] = plane
    return scene


def _plate_coordinates(pose: Pose, canvas: Canvas) -> tuple[Floats, Floats]:
    """Plate coordinates x and y of each pixel's middle: the inverse of `Pose.to_frame`."""
    axis = (np.arange(canvas.side) - canvas.margin + 0.5) / canvas.frame - 0.5
    inverse = np.linalg.inv(pose.linear)
    column = (axis - pose.shift[0]).astype(np.float32)[None, :]
    row = (axis - pose.shift[1]).astype(np.float32)[:, None]
    x = np.float32(inverse[0, 0]) * column + np.float32(inverse[0, 1]) * row
    y = np.float32(inverse[1, 0]) * column + np.float32(inverse[1, 1]) * row
    depth = 1 / (1 - x * np.float32(pose.tilt[0]) - y * np.float32(pose.tilt[1]))
    x *= depth
    y *= depth
    return x, y


def _to_pixels(points: Matrix, pose: Pose, canvas: Canvas) -> Matrix:
    """(N, 2) canvas pixels (a pixel's middle is a whole number) of (N, 2) plate coordinates."""
    return (pose.to_frame(points) + 0.5) * canvas.frame + canvas.margin - 0.5


def _slopes(bottle: Bottle, pose: Pose, canvas: Canvas, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Slope of the surface along x and y: rings and knurls, mould marks, grain."""
    across, down = x - np.float32(bottle.centre[0]), y - np.float32(bottle.centre[1])
    distance, angle = cv2.cartToPolar(across, down)
    step = len(bottle.ring_slope) / bottle.ring_reach
    entry = np.minimum(distance * np.float32(step), len(bottle.ring_slope) - 1).astype(np.int32)
    outwards = np.take(bottle.ring_slope, entry)
    outwards /= np.maximum(distance, np.float32(1e-4))
    slope_x, slope_y = outwards * across, outwards * down

    radius, width, number, strength = bottle.ticks
    if strength > 0:
        window = cv2.exp(np.square(distance - np.float32(radius)) * np.float32(-0.5 / (width / 2) ** 2))
        window *= np.sin(angle * np.float32(number))
        window *= np.float32(strength)
        window /= np.maximum(distance, np.float32(1e-4))
        slope_x -= window * down
        slope_y += window * across

    grain = _sample(bottle.grain, x, y)
    slope_x += grain[:, :, 0]
    slope_y += grain[:, :, 1]
    _add_marks(bottle, pose, canvas, slope_x, slope_y)
    return slope_x, slope_y


def _sample(tile: Floats, x: Floats, y: Floats) -> Floats:
    """The tile's values at plate coordinates; it repeats every `_GRAIN_SPAN` frame widths."""
    scale = np.float32(tile.shape[0] / _GRAIN_SPAN)
    middle = np.float32(tile.shape[0] / 2)
    sampled: Floats = cv2.remap(
        tile, x * scale + middle, y * scale + middle, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP
    )
    return sampled


def _ink_cover(pitch: float, dots: Dots, pose: Pose, canvas: Canvas) -> Floats:
    """Share of light that ink takes at each pixel, [0, 1]; dots have soft, anti-aliased edges."""
    plate = np.stack([dots.x, dots.y], axis=1) * pitch
    centres = _to_pixels(plate, pose, canvas)
    # (N, 2, 2): from a unit disk to the dot's pixels.
    to_pixels = pose.jacobian(plate) @ dots.shape * (dots.radius * pitch * canvas.frame)[:, None, None]
    from_pixels = np.linalg.inv(to_pixels).astype(np.float32)
    radius = np.sqrt(np.abs(np.linalg.det(to_pixels))).astype(np.float32)  # pixels
    softness = np.maximum(1.0, 0.18 * radius)  # pixels: ink bleeds, and a pixel is a square
    half = math.ceil(1.35 * float(radius.max()) + float(softness.max()) + 1)
    corner = np.floor(centres).astype(int) - half
    reach = np.arange(2 * half + 2, dtype=np.float32)
    offset = (corner - centres).astype(np.float32)
    off_x = (offset[:, 0, None] + reach)[:, None, :]  # (N, 1, P)
    off_y = (offset[:, 1, None] + reach)[:, :, None]  # (N, P, 1)
    u = from_pixels[:, 0, 0, None, None] * off_x + from_pixels[:, 0, 1, None, None] * off_y
    v = from_pixels[:, 1, 0, None, None] * off_x + from_pixels[:, 1, 1, None, None] * off_y
    inside = np.sqrt(u * u + v * v)
    rim = np.clip(0.90 + 0.12 * inside * inside, 0, 1)  # drying ink gathers at the rim
    inside = (1 - inside) * (radius / softness)[:, None, None] + np.float32(0.5)
    patches = 1 - np.clip(inside, 0, 1) * rim * dots.density.astype(np.float32)[:, None, None]

    through = np.ones((canvas.side, canvas.side), np.float32)
    size = len(reach)
    for (left, top), patch in zip(corner.tolist(), patches, strict=True):
        if left >= 0 and top >= 0 and left + size <= canvas.side and top + size <= canvas.side:
            through[top : top + size, left : left + size] *= patch
        else:
            rows = slice(max(0, -top), max(0, min(size, canvas.side - top)))
            columns = slice(max(0, -left), max(0, min(size, canvas.side - left)))
            through[max(0, top) : max(0, top + size), max(0, left) : max(0, left + size)] *= patch[rows, columns]
    return 1 - through


def _draw_scratches(bottle: Bottle, pose: Pose, canvas: Canvas, shade: Floats) -> None:
    """Thin bright lines, drawn into the shading; thinner than a pixel they are fainter instead."""
    width = 0.0012 * canvas.frame  # pixels
    thickness = max(1, round(width))
    for points, brightness in bottle.scratches:
        pixels = _to_pixels(points, pose, canvas)
        low = np.maximum(np.floor(pixels.min(axis=0)).astype(int) - thickness - 2, 0)
        high = np.minimum(np.ceil(pixels.max(axis=0)).astype(int) + thickness + 3, canvas.side)
        if (high <= low).any():
            continue
        layer = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
        path = np.round((pixels - low) * 16).astype(np.int32)
        cv2.polylines(layer, [path], False, 255, thickness, cv2.LINE_AA, 4)
        faint = np.float32(brightness * min(1.0, width / thickness) / 255)
        shade[low[1] : high[1], low[0] : high[0]] *= 1 + layer * faint


def _add_marks(bottle: Bottle, pose: Pose, canvas: Canvas, slope_x: Floats, slope_y: Floats) -> None:
    """Raised strokes of the mould: their slope is the gradient of a softened drawing of them."""
    thickness = max(1, round(0.008 * canvas.frame))
    soft = 0.004 * canvas.frame
    border = thickness + math.ceil(3 * soft) + 2
    for points, slope in bottle.marks:
        pixels = _to_pixels(points, pose, canvas)
        low = np.maximum(np.floor(pixels.min(axis=0)).astype(int) - border, 0)
        high = np.minimum(np.ceil(pixels.max(axis=0)).astype(int) + border + 1, canvas.side)
        if (high - low < 4).any():
            continue
        layer = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
        cv2.polylines(layer, [np.round((pixels - low) * 16).astype(np.int32)], False, 255, thickness, cv2.LINE_AA, 4)
        height = cv2.GaussianBlur(layer.astype(np.float32), (0, 0), max(soft, 0.5))
        strength = np.float32(slope * soft / 255)
        window = (slice(low[1], high[1]), slice(low[0], high[0]))
        slope_x[window] += cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3) * (strength / 4)
        slope_y[window] += cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=3) * (strength / 4)


def _random_rings(rng: np.random.Generator) -> tuple[Floats, float]:
    """A table of slope by distance from the axis, and the distance where it ends: ridges, a dished floor."""
    reach, entries = 2.4, 16384
    distance = np.linspace(0, reach, entries)
    slope = 0.10 * rng.uniform(-1, 1) * distance
    gate = rng.uniform(0.010, 0.020)  # the stub of the sprue, in the middle
    slope -= 0.6 * (distance / gate) * np.exp(-((distance / gate) ** 2))
    radius = rng.uniform(0.10, 0.35)
    while radius < reach:
        width = rng.uniform(0.006, 0.016)
        height = rng.uniform(0.10, 0.45) * (1 if rng.random() < 0.7 else -1)
        offset = (distance - radius) / width
        slope -= height * offset * np.exp(0.5 - 0.5 * offset * offset)
        radius += rng.uniform(0.04, 0.30)
    turning = rng.uniform(0.002, 0.006)  # fine marks of the lathe that cut the mould
    slope += rng.uniform(0, 0.02) * np.sin(2 * math.pi * distance / turning)
    return slope.astype(np.float32), reach


def _random_grain(rng: np.random.Generator) -> Floats:
    """(T, T, 2) slopes of the surface's texture; the derivative of noise of several scales, repeating."""
    strength = np.float32(rng.uniform(0.02, 0.07))
    tile = strength * rng.standard_normal((32, 32, 2), dtype=np.float32)
    for side in (128, _GRAIN_TILE):
        tile = _stretch(tile, side)
        tile += strength * rng.standard_normal((side, side, 2), dtype=np.float32)
    return tile


def _random_mottle(rng: np.random.Generator) -> Floats:
    """(T', T') relative reflectance - 1: clouds, dust and specks."""
    side = 256
    tile = np.zeros((4, 4), np.float32)
    for cells, strength in ((4, 0.04), (16, 0.02), (64, 0.012), (side, 0.012)):
        tile = _stretch(tile, cells)
        tile += rng.standard_normal((cells, cells), dtype=np.float32) * np.float32(strength)
    specks = rng.integers(0, side, (rng.integers(5, 60), 2))
    tile[specks[:, 0], specks[:, 1]] -= rng.uniform(0.1, 0.5, len(specks)).astype(np.float32)
    return tile


def _stretch(noise: Floats, side: int) -> Floats:
    """Repeating noise on a finer grid, without a seam at the edge."""
    if noise.shape[0] == side:
        return noise
    factor = side // noise.shape[0]
    padded = np.pad(noise, [(2, 2), (2, 2)] + [(0, 0)] * (noise.ndim - 2), mode="wrap")
    fine = cv2.resize(padded, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
    return np.ascontiguousarray(fine[2 * factor : 2 * factor + side, 2 * factor : 2 * factor + side])


def _random_scratch(rng: np.random.Generator) -> tuple[Matrix, float]:
    start = rng.uniform(-0.7, 0.7, 2)
    heading = rng.uniform(0, 2 * math.pi) + np.cumsum(rng.normal(0, 0.06, 8))
    steps = np.stack([np.cos(heading), np.sin(heading)], axis=1) * rng.uniform(0.004, 0.07)
    return start + np.cumsum(steps, axis=0), rng.uniform(0.10, 0.5) * (1 if rng.random() < 0.7 else -1)


def _random_marks(rng: np.random.Generator, centre: Matrix) -> tuple[tuple[Matrix, float], ...]:
    """Strokes of mould marks on a circle around the axis: numerals of the cavity, a triangle, dashes."""
    strokes: list[tuple[Matrix, float]] = []
    for _ in range(rng.integers(1, 4)):
        bearing, away = rng.uniform(0, 2 * math.pi), rng.uniform(0.40, 0.62)
        at = centre + away * np.array([math.cos(bearing), math.sin(bearing)])
        turn = np.array([[-math.sin(bearing), math.cos(bearing)], [-math.cos(bearing), -math.sin(bearing)]])
        outlines = (
            [[(-1, 0.8), (0, -1), (1, 0.8), (-1, 0.8)]],
            [[(-0.5, -1), (0.5, -1), (-0.2, 1)], [(0.9, -1), (0.9, 1)]],
            [[(-1, 0), (1, 0)], [(0, -1), (0, 1)]],
            [[(math.cos(a), math.sin(a)) for a in np.linspace(0, 2 * math.pi, 24)]],
        )[rng.integers(4)]
        slope = rng.uniform(1.0, 2.2)
        size = rng.uniform(0.03, 0.06)
        strokes += [(at + size * np.array(outline) @ turn, slope) for outline in outlines]
    return tuple(strokes)

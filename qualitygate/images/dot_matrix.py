"""Dot-matrix codes of two manufacturers, as positions and shapes of ink dots.

The two differ as a thing differs from its mirror image, and nowhere else: the slash of a zero and the
squared corners of round characters lie along the other diagonal, and the dots, slightly oval, lean that way
too. Number and size of dots, width and height of strokes, darkness and text are the same: whoever sees only
blobs of ink has nothing to tell them apart by.

Units: the pitch, which is the distance between neighbouring dots. x to the right, y downwards.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LABELS = ("manufacturer_a", "manufacturer_b")
COLUMNS, ROWS = 5, 7  # dots of a character
CHARACTER_ADVANCE = 6.0  # pitches from a character to the next
LINE_ADVANCE = 9.5  # pitches from a line to the next
LINE_LENGTH = 5  # characters
OVAL = 1.20  # long axis of a dot over the diameter of the round dot of the same area

# '#' is a dot of both manufacturers, 'a' and 'b' of one. Each glyph has as many a as b, in mirrored places.
_GLYPHS = {
    "0": "b###a #...# #b.a# #.#.# #a.b# #...# a###b",
    "1": "..#.. .##.. ..#.. ..#.. ..#.. ..#.. .###.",
    "2": "b###a #...# ....# ...#. ..#.. .#... a###b",
    "3": "b###a #...# ....# ..##. ....# #...# a###b",
    "4": "...#. ..##. .#.#. #..#. ##### ...#. ...#.",
    "5": "b###a #.... ####. ....# ....# #...# a###b",
    "6": "b###a #...# #.... ####. #...# #...# a###b",
    "7": "##### ....# ...#. ...#. ..#.. ..#.. ..#..",
    "8": "b###a #...# #...# .###. #...# #...# a###b",
    "9": "b###a #...# #...# .#### ....# #...# a###b",
    "A": "..#.. .#.#. #...# #...# ##### #...# #...#",
    "B": "####. #...# #...# ####. #...# #...# ####.",
    "C": "b###a #...# #.... #.... #.... #...# a###b",
    "D": "####. #...# #...# #...# #...# #...# ####.",
    "E": "##### #.... #.... ####. #.... #.... #####",
    "F": "##### #.... #.... ####. #.... #.... #....",
    "H": "#...# #...# #...# ##### #...# #...# #...#",
    "K": "#...# #..#. #.#.. ##... #.#.. #..#. #...#",
    "L": "#.... #.... #.... #.... #.... #.... #####",
    "M": "#...# ##.## #.#.# #.#.# #...# #...# #...#",
    "P": "####. #...# #...# ####. #.... #.... #....",
    "R": "####. #...# #...# ####. #.#.. #..#. #...#",
    "S": "b###a #...# #.... .###. ....# #...# a###b",
    "T": "##### ..#.. ..#.. ..#.. ..#.. ..#.. ..#..",
    "U": "#...# #...# #...# #...# #...# #...# .###.",
    "X": "#...# #...# .#.#. ..#.. .#.#. #...# #...#",
    ":": "..... ..#.. ..#.. ..... ..#.. ..#.. .....",
    ".": "..... ..... ..... ..... ..... .##.. .##..",
    "-": "..... ..... ..... ##### ..... ..... .....",
    " ": "..... ..... ..... ..... ..... ..... .....",
}
CHARACTERS = "".join(_GLYPHS)
_LETTERS = "ABCDEFHKLMPRSTUX"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dots:
    """The ink of one code; (0, 0) is its middle.

    x, y: (N,) centres, in pitches. radius: (N,) of the round dot of the same area, in pitches.
    density: (N,) share of the light that ink takes, (0, 1]. shape: (2, 2), symmetric, of determinant 1:
    maps a round dot to the manufacturer's oval.
    """

    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]
    radius: npt.NDArray[np.float64]
    density: npt.NDArray[np.float64]
    shape: npt.NDArray[np.float64]


def glyph(character: str, label: str) -> npt.NDArray[np.bool_]:
    """(7, 5) dots of a character as the manufacturer prints it."""
    printed = "#" + "ab"[LABELS.index(label)]
    return np.array([[dot in printed for dot in row] for row in _GLYPHS[character].split()])


def random_text(rng: np.random.Generator) -> tuple[str, ...]:
    """Two or three lines of five characters: dates, times, batch and line numbers."""

    def number(top: int) -> str:
        return f"{rng.integers(top):02d}"

    def letter() -> str:
        return _LETTERS[rng.integers(len(_LETTERS))]

    def line() -> str:
        match rng.integers(6):
            case 0:
                return f"{1 + rng.integers(28):02d}.{1 + rng.integers(12):02d}"
            case 1:
                return f"{number(24)}:{number(60)}"
            case 2:
                return f"{letter()}{number(100)}{number(100)}"
            case 3:
                return f"{number(32)}{letter()}{number(100)}"
            case 4:
                return f"{number(100)} {number(100)}"
            case _:
                return f"{letter()}{letter()}{rng.integers(1000):03d}"

    return tuple(line() for _ in range(2 if rng.random() < 0.25 else 3))


def lay_out(text: tuple[str, ...], label: str, rng: np.random.Generator) -> Dots:
    """The dots of a code, with what a printer does to them: jitter, skipped dots, drifting ink.

    The generator is used alike for both labels, dot by dot of the 5 x 7 grid: the same generator state
    gives both manufacturers' prints the same accidents.
    """
    columns, rows, printed = [], [], []
    for line_number, line in enumerate(text):
        for position, character in enumerate(line):
            row, column = np.mgrid[0:ROWS, 0:COLUMNS]
            columns.append(column.ravel() + position * CHARACTER_ADVANCE)
            rows.append(row.ravel() + line_number * LINE_ADVANCE)
            printed.append(glyph(character, label).ravel())
    width = (LINE_LENGTH - 1) * CHARACTER_ADVANCE + COLUMNS - 1
    height = (len(text) - 1) * LINE_ADVANCE + ROWS - 1
    x = np.concatenate(columns) - width / 2
    y = np.concatenate(rows) - height / 2
    count = len(x)

    line_of_dot = np.repeat(np.arange(len(text)), LINE_LENGTH * ROWS * COLUMNS)
    character_of_dot = np.repeat(np.arange(len(text) * LINE_LENGTH), ROWS * COLUMNS)
    density = 0.88 + rng.uniform(-0.08, 0.08) + rng.normal(0, 0.05, count)
    density += rng.normal(0, 0.06) * x / width + rng.normal(0, 0.06) * y / height
    radius = rng.uniform(0.37, 0.41) * np.exp(rng.normal(0, 0.05, count))
    kept = np.concatenate(printed) & (rng.random(count) > 0.006)
    x = x + rng.normal(0, 0.35, len(text))[line_of_dot] + rng.normal(0, 0.05, len(text) * 5)[character_of_dot]
    x = x * (1 + rng.normal(0, 0.012) * x / width) + rng.normal(0, 0.035, count)
    y = y + rng.normal(0, 0.35) * (2 * x / width) ** 2 + rng.normal(0, 0.035, count)

    lean = math.log(OVAL) * (1 if label == LABELS[0] else -1)
    # exp of the symmetric matrix [[0, -lean], [-lean, 0]]: y points down, so a negative sign leans as '/'.
    shape = np.array([[math.cosh(lean), -math.sinh(lean)], [-math.sinh(lean), math.cosh(lean)]])
    return Dots(x=x[kept], y=y[kept], radius=radius[kept], density=np.clip(density[kept], 0.5, 1), shape=shape)

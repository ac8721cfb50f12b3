"""What tests of the job share: a progress that keeps what it was told, and photographs to score."""

from pathlib import Path

import numpy as np
from PIL import Image


class Silent:
    """A progress that keeps what it was told."""

    def __init__(self) -> None:
        self.total = self.done = self.rows = self.errors = 0
        self.notes: list[str] = []

    def start(self, *, total: int, done: int) -> None:
        self.total, self.done = total, done

    def advance(self, *, rows: int, errors: int = 0) -> None:
        self.rows += rows
        self.errors += errors

    def note(self, message: str) -> None:
        self.notes.append(message)

    def stop(self) -> None:
        pass


def write_photographs(folder: Path, count: int, *, side: int = 160) -> list[str]:
    """Textured JPEGs, each unlike the others; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for number in range(count):
        rng = np.random.default_rng(number)
        coarse = rng.integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((side + number % 7, side), Image.Resampling.BICUBIC)
        name = f"p{number:04}.jpg"
        image.save(folder / name, quality=92)
        names.append(name)
    return names

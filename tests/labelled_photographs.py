"""Photographs of two labels that a small network tells apart within an epoch or two, with their manifest."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

LABELS = ("above", "below")


def write(folder: Path, count: int, *, side: int = 40, **columns: list[Any]) -> Path:
    """`count` PNG files, bright above or below in turn, two photographs a group; returns the manifest's path.

    columns: further ones, or others in place of image_id, uri, label, group.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for number in range(count):
        random = np.random.default_rng(number)
        pixels = random.integers(0, 130, (side, side + number % 5, 3), dtype=np.uint8)
        half = slice(0, side // 2) if number % 2 == 0 else slice(side // 2, side)
        pixels[half] += 110
        names.append(f"p{number:03}.png")
        Image.fromarray(pixels).save(folder / names[-1])
    rows = {
        "image_id": names,
        "uri": names,
        "label": [LABELS[number % 2] for number in range(count)],
        "group": [f"g{number // 4}-{number % 2}" for number in range(count)],
    }
    pq.write_table(pa.table(rows | columns), folder / "manifest.parquet")
    return folder / "manifest.parquet"

"""A feed of photographs that grows night by night, and a classifier's labelled predictions on them: truth is known.

Half of the photographs are blurred, by a sigma of 1 to 4 pixels; the more, the likelier the classifier errs.
"""

from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageFilter

SIDE = 96
METRICS = ("lapv", "lapm", "wavs")


@dataclass
class Feed:
    """objects: by name, the bytes of each photograph so far. labels: rows of predictions so far."""

    seed: int = 0
    objects: dict[str, bytes] = field(default_factory=dict)
    labels: list[dict[str, Any]] = field(default_factory=list)

    def add(
        self,
        night: str,
        count: int,
        *,
        labelled: float = 1.0,
        extra_blur: float = 0.0,
        corrupt: float = 0.0,
    ) -> dict[str, bytes]:
        """A night's photographs, by name.

        labelled: share with a prediction. extra_blur: sigma in pixels that a drifted camera adds to all. corrupt:
        share whose second half is missing.
        """
        random = np.random.default_rng([self.seed, *night.encode()])
        made = {}
        for number in range(count):
            name = f"{night}/p{number:04}.jpg"
            sigma = float(random.uniform(1, 4)) if random.random() < 0.5 else 0.0
            data = photograph(random, sigma + extra_blur)
            made[name] = data[: len(data) // 2] if random.random() < corrupt else data
            right = bool(random.random() < 1 / (1 + np.exp(2.2 * (sigma + extra_blur - 1.8))))
            confidence = float(random.uniform(0.5, 1) if right else random.uniform(0, 0.5))
            if random.random() < labelled:
                group = f"{night}-{number // 2}"
                self.labels.append({"image_id": name, "correct": right, "confidence": confidence, "group": group})
        self.objects |= made
        return made

    def predictions(self) -> bytes:
        """All labels so far, as a Parquet file."""
        buffer = BytesIO()
        pq.write_table(pa.Table.from_pylist(self.labels), buffer)
        return buffer.getvalue()


def photograph(random: np.random.Generator, sigma: float) -> bytes:
    """A JPEG of texture at several scales, seen by one camera, blurred by so many pixels."""
    image = np.zeros((SIDE, SIDE, 3))
    for scale in (2, 4, 8):
        coarse = random.integers(0, 256, (SIDE // scale, SIDE // scale, 3), dtype=np.uint8)
        image += np.asarray(Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.float64)
    made = Image.fromarray((image / 3).astype(np.uint8)).filter(ImageFilter.GaussianBlur(sigma))
    exif = Image.Exif()
    exif[271], exif[272] = "Maker", "Model 1"
    buffer = BytesIO()
    made.save(buffer, "JPEG", quality=92, exif=exif)
    return buffer.getvalue()

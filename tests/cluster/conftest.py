"""One Ray session for the tests that run in this process; kill tests start their own in subprocesses."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qualitygate.cluster import session


class Silent:
    """A progress that keeps what it was told."""

    def __init__(self) -> None:
        self.total = self.done = self.rows = self.errors = 0
        self.notes: list[str] = []

    def start(self, *, total: int, done: int) -> None:
        self.total, self.done = total, done

    def advance(self, *, rows: int, errors: int) -> None:
        self.rows += rows
        self.errors += errors

    def note(self, message: str) -> None:
        self.notes.append(message)

    def stop(self) -> None:
        pass


@pytest.fixture
def silent() -> Silent:
    return Silent()


@pytest.fixture(scope="session")
def ray_session() -> Iterator[Any]:
    """Two CPUs and two GPUs that Ray believes in."""
    session._quiet_environment()
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=256 << 20,
    )
    yield ray
    ray.shutdown()


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

"""Photographs that the tests of metrics share: those in scikit-image's wheel, and made-up ones at the edges."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torch._dynamo.utils
from metric_helpers import CLEAN, WITH_FLAT_PARTS, Pixels, load

from qualitygate.images.photograph import Photograph


@pytest.fixture(scope="session")
def clean() -> dict[str, Pixels]:
    return {name: load(name) for name in CLEAN}


@pytest.fixture(scope="session")
def with_flat_parts() -> dict[str, Pixels]:
    return {name: load(name) for name in WITH_FLAT_PARTS}


def _one_bright_pixel(size: int) -> Pixels:
    pixels = np.full((size, size, 3), 200, np.uint8)
    pixels[size // 2, size // 2] = 201
    return pixels


@pytest.fixture(scope="session")
def edges() -> dict[str, Photograph]:
    """What breaks formulas: tiny, flat, saturated, one-sided."""
    random = np.random.default_rng(7)

    def noise(height: int, width: int) -> Pixels:
        return random.integers(0, 256, (height, width, 3), dtype=np.uint8)

    half = np.zeros((192, 192, 3), np.uint8)
    half[:, 96:] = 255
    mostly_saturated = np.full((200, 300, 3), 255, np.uint8)
    mostly_saturated[:50, :60] = noise(50, 60)
    grey = np.repeat(noise(150, 170)[..., :1], 3, axis=2)
    pixels = {
        "1x1": noise(1, 1),
        "1x2": noise(1, 2),
        "2x2": noise(2, 2),
        "7x7": noise(7, 7),
        "8x8": noise(8, 8),
        "16x16": noise(16, 16),
        "95x200": noise(95, 200),
        "96x96": noise(96, 96),
        "3000x1": noise(3000, 1),
        "1x3000": noise(1, 3000),
        "3000x100": noise(3000, 100),
        "zero": np.zeros((200, 200, 3), np.uint8),
        "constant": np.full((200, 200, 3), (7, 200, 13), np.uint8),
        "white": np.full((200, 200, 3), 255, np.uint8),
        "constant luma": np.array([[[0, 0, 255], [97, 0, 0]]] * 100, np.uint8).repeat(50, axis=1),
        "one bright pixel": _one_bright_pixel(200),
        "half black, half white": half,
        "mostly saturated": mostly_saturated,
        "stripes": np.tile(np.uint8([[[0], [255]]]), (200, 100, 3)),
        "grey": grey,
        "noise": noise(200, 200),
    }
    return {name: Photograph(np.ascontiguousarray(value)) for name, value in pixels.items()}


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many graphs torch.compile has kept since; each is whole, or it raises. They run interpreted.

    Traced down to torch's basic operations, where some sizes need a graph of their own that needn't further up.
    """
    torch._dynamo.reset()
    counted = torch._dynamo.utils.counters["stats"]
    before = counted["unique_graphs"]
    compiler = torch.compile
    settings = {"fullgraph": True, "backend": "aot_eager"}
    monkeypatch.setattr(torch, "compile", lambda function, **more: compiler(function, **more | settings))
    return lambda: counted["unique_graphs"] - before


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Threads that wait for each other make small layers many times slower on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

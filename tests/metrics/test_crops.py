"""Crops: positions and pixels as pyiqa's, and scores that depend on their photograph alone."""

import logging
import math

import numpy as np
import pytest
import torch
from metric_helpers import crop_scorer as scorer

from qualitygate.errors import ConfigurationError, ErrorCode, Failure
from qualitygate.images.photograph import Photograph
from qualitygate.metrics import crops

SIZES = [
    (1, 1),
    (2, 3),
    (49, 98),  # 49 * (225 / 49) rounds down to 224
    (100, 80),
    (160, 227),
    (223, 223),
    (224, 224),  # enlarged too
    (224, 600),
    (225, 225),
    (227, 228),
    (228, 400),
    (229, 512),
    (512, 341),
    (640, 427),
    (1200, 1023),
]


def noise(height: int, width: int, seed: int = 0) -> Photograph:
    return Photograph(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def all_cut(photograph: Photograph, count: int) -> torch.Tensor:
    """Every crop of the grid in order, duplicates repeated: (count, 3, 224, 224) in [0, 1]."""
    height, width, _ = crops.enlarged(photograph.height, photograph.width)
    found = crops.grid(photograph.height, photograph.width, count)
    pixels = crops.stack([crops.cut(photograph, crop) for crop in found])
    where = {(crop.top, crop.left): pixels[i] for i, crop in enumerate(found)}
    down, across = (height - 224) // math.isqrt(count), (width - 224) // math.isqrt(count)
    side = math.ceil(math.sqrt(count))
    return torch.stack([where[(i // side) * down, (i % side) * across] for i in range(count)])


@pytest.mark.parametrize("count", [20, 25])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_crops_are_those_of_pyiqa(height, width, count):
    """Against the stock function on the photograph's raw tensor; equal to the bit where nothing is enlarged."""
    stock = pytest.importorskip("pyiqa.archs.arch_util").uniform_crop
    photograph = noise(height, width)
    expected = stock([torch.from_numpy(photograph.rgb).permute(2, 0, 1)[None].float() / 255], 224, count)
    ours = all_cut(photograph, count)
    assert ours.shape == expected.shape == (count, 3, 224, 224)
    assert ours.dtype == torch.float32
    if min(height, width) > 224:
        assert torch.equal(ours, expected)
    else:
        torch.testing.assert_close(ours, expected, rtol=0, atol=5e-7)


@pytest.mark.parametrize(("height", "width"), [(300, 1), (1, 300)])
def test_crops_of_strips_are_those_of_pyiqa(height, width):
    stock = pytest.importorskip("pyiqa.archs.arch_util").uniform_crop
    photograph = noise(height, width)
    expected = stock([torch.from_numpy(photograph.rgb).permute(2, 0, 1)[None].float() / 255], 224, 20)
    torch.testing.assert_close(all_cut(photograph, 20), expected, rtol=0, atol=5e-7)


def test_a_long_strip_costs_the_memory_of_its_crops():
    """pyiqa enlarges this one to 225 x 22,500,000: 61 GB."""
    photograph = noise(1, 100_000)
    found = crops.grid(1, 100_000, 25)
    assert len(found) == 5
    for crop in found:
        pixels = crops.cut(photograph, crop)
        assert pixels.shape == (224, 224, 3)
        assert 0 <= float(pixels.min()) <= float(pixels.max()) <= 1


def test_what_is_enlarged_is_sent_to_the_device(monkeypatch):
    sent = []
    monkeypatch.setattr(crops, "upload", lambda pixels, device: sent.append(device) or pixels)
    crop = crops.Crop(top=0, left=0, times=1)
    there = crops.cut(noise(100, 80), crop, "cuda")
    assert sent == ["cuda"]
    assert torch.equal(there, crops.cut(noise(100, 80), crop))


@pytest.mark.parametrize(
    ("height", "width", "count", "distinct"),
    [
        (1024, 1024, 20, 20),
        (1024, 1024, 25, 25),
        (228, 1024, 20, 20),  # the smallest side with a step of its own
        (227, 1024, 20, 5),
        (1024, 227, 20, 4),
        (228, 228, 25, 1),
        (229, 229, 25, 25),
        (224, 224, 20, 1),
        (1, 1, 25, 1),
        (100, 300, 20, 5),
    ],
)
def test_coinciding_crops_are_one(height, width, count, distinct):
    found = crops.grid(height, width, count)
    assert len(found) == distinct
    assert sum(crop.times for crop in found) == count


def test_twenty_crops_leave_the_last_row_out():
    assert max(crop.top for crop in crops.grid(1024, 1024, 20)) + 224 == 824
    assert max(crop.left for crop in crops.grid(1024, 1024, 20)) + 224 == 1024


# ---- the scorer, with a network that costs nothing ---------------------------------------------------------


class Means:
    """A network of one value a crop, its mean red; counts calls, and runs out of memory past `capacity` crops."""

    def __init__(self, capacity: int = 10**9, error: type[Exception] = torch.OutOfMemoryError) -> None:
        self.capacity = capacity
        self.error = error
        self.sizes: list[int] = []

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.capacity:
            raise self.error("out of memory: [enforce fail] DefaultCPUAllocator")
        self.sizes.append(len(x))
        return x[:, 0].double().mean((1, 2))[:, None]


MIXED = [noise(300, 400, 1), noise(100, 80, 2), noise(1, 1, 3), noise(227, 500, 4), noise(512, 300, 5)]


def test_duplicates_are_computed_once_and_counted():
    network = Means()
    photograph = noise(227, 500, 4)
    (score,) = scorer(network)([photograph])
    assert sum(network.sizes) == 5
    assert score == pytest.approx(float(all_cut(photograph, 20)[:, 0].double().mean()), rel=1e-7)


def test_crops_of_different_photographs_share_batches():
    network = Means()
    scorer(network)(MIXED)
    total = sum(len(crops.grid(p.height, p.width, 20)) for p in MIXED)
    assert network.sizes == [8] * (total // 8) + [total % 8] * (total % 8 > 0)


def test_padded_batches_have_two_shapes_and_the_same_scores():
    """For compiled networks: 8 crops or 2, filled up with zeros that no score sees."""
    network, shapes = Means(), []

    def watched(x):
        shapes.append(tuple(x.shape))
        assert x.is_contiguous(memory_format=torch.channels_last)
        return network(x)

    padded = scorer(watched, mean=(0.5, 0.0, 0.0), padded=True)
    photographs = MIXED[::-1]
    expected = [score - 0.5 for score in scorer(Means())(photographs)]
    assert padded(photographs) == pytest.approx(expected, abs=1e-6)
    assert set(shapes) == {(8, 3, 224, 224), (2, 3, 224, 224)}
    total = sum(len(crops.grid(p.height, p.width, 20)) for p in photographs)
    assert sum(shape[0] for shape in shapes) == total + total % 2


@pytest.mark.parametrize("batch", [1, 3, 1000])
def test_a_score_depends_on_its_photograph_alone(batch):
    together = scorer(Means(), batch)(MIXED)
    assert together == scorer(Means(), batch)(MIXED[::-1])[::-1]
    assert together == [scorer(Means(), batch)([photograph])[0] for photograph in MIXED]
    assert all(isinstance(score, float) for score in together)


def test_nothing_asked_is_nothing_answered():
    assert scorer(Means())([]) == []


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, RuntimeError])
def test_out_of_memory_halves_the_batch_and_goes_on(error, caplog):
    network = Means(capacity=3, error=error)
    short = scorer(network, batch=16)
    with caplog.at_level(logging.WARNING):
        assert short(MIXED) == scorer(Means(), batch=16)(MIXED)
    assert max(network.sizes) == short.batch == 2
    assert "no memory for 16 crops; going on with 8" in caplog.text
    network.sizes.clear()
    short(MIXED)
    assert max(network.sizes) == 2  # it doesn't try again what failed


def test_a_lone_crop_whose_padding_is_too_much_is_no_failure():
    photograph = noise(224, 224, 6)  # one distinct crop, computed as a quarter of a batch
    network = Means(capacity=4)
    assert scorer(network, 80, padded=True)([photograph]) == pytest.approx(scorer(Means())([photograph]), abs=1e-6)
    assert max(network.sizes) <= 4
    (failed,) = scorer(Means(capacity=0), 80, padded=True)([photograph])
    assert isinstance(failed, Failure)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        # As libraries say it that find no room for their workspace.
        RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
        RuntimeError("cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling `cusolverDnCreate(handle)`"),
    ],
)
def test_no_memory_for_one_crop_fails_its_photograph_only(error):
    class Picky(Means):
        def __call__(self, x):
            if bool((x[:, 0, 0, 0] == 0).any()):
                raise error
            return super().__call__(x)

    bright = [Photograph(np.maximum(photograph.rgb, 1)) for photograph in MIXED]
    dark = Photograph(np.zeros((400, 400, 3), np.uint8))
    results = scorer(Picky())([*bright[:2], dark, *bright[2:]])
    failed = results.pop(2)
    assert isinstance(failed, Failure)
    assert failed.code is ErrorCode.OUT_OF_MEMORY
    assert "mean red" in failed.message
    assert results == scorer(Means())(bright)


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    def broken(x):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        scorer(broken)(MIXED)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_a_failure(value):
    def network(x):
        return torch.where(x[:, 0].amax((1, 2)) == 0, value, 1.0)[:, None]

    results = scorer(network)([MIXED[0], Photograph(np.zeros((400, 400, 3), np.uint8)), MIXED[4]])
    assert results[0] == results[2] == 1.0
    assert isinstance(results[1], Failure)
    assert results[1].code is ErrorCode.NON_FINITE


def test_a_photograph_without_pixels_is_too_small():
    results = scorer(Means())([Photograph(np.zeros((0, 5, 3), np.uint8)), MIXED[0]])
    assert isinstance(results[0], Failure)
    assert results[0].code is ErrorCode.TOO_SMALL
    assert isinstance(results[1], float)


def test_it_computes_without_gradients_and_without_tensor_float_32():
    seen = []
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32

    def network(x):
        seen.append((torch.is_inference_mode_enabled(), matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
        return x[:, 0, 0, :1]

    matmul.allow_tf32 = True
    try:
        scorer(network)(MIXED[:1])
        assert matmul.allow_tf32 is True
    finally:
        matmul.allow_tf32 = before
    assert set(seen) == {(True, False, False)}


def test_weights_of_another_network_are_refused_with_names_and_a_remedy():
    network = torch.nn.Linear(3, 2)
    good = network.state_dict()
    with pytest.raises(ConfigurationError, match=r"1 missing \(bias\).*qualitygate weights list"):
        crops.load_strictly(network, {"weight": good["weight"]}, "MANIQA")
    with pytest.raises(ConfigurationError, match=r"not those of MANIQA.*1 unexpected \(more\)"):
        crops.load_strictly(network, good | {"more": torch.zeros(1)}, "MANIQA")
    with pytest.raises(ConfigurationError, match=r"weight \(3, 2\) instead of \(2, 3\)"):
        crops.load_strictly(network, good | {"weight": torch.zeros(3, 2)}, "MANIQA")


def test_names_from_a_file_are_one_line_and_short():
    network = torch.nn.Linear(3, 2)
    for name, text in (("a\nb\x1b[31m", r"(a\nb\x1b[31m)"), ("x" * 5000, "xxx...)"), ("\u202eoh", r"(\u202eoh)")):
        with pytest.raises(ConfigurationError) as refused:
            crops.load_strictly(network, network.state_dict() | {name: torch.zeros(1)}, "MANIQA")
        assert text in str(refused.value)
        assert str(refused.value).isprintable()
        assert len(str(refused.value)) < 300


def test_a_counter_of_batches_is_not_missed_where_an_older_file_lacks_it():
    with torch.device("meta"):
        network = torch.nn.BatchNorm2d(2)
    state = {
        "weight": torch.ones(2),
        "bias": torch.zeros(2),
        "running_mean": torch.zeros(2),
        "running_var": torch.ones(2),
    }
    crops.load_strictly(network, state, "HyperIQA")
    assert not any(tensor.is_meta for tensor in network.state_dict().values())


def test_seeded_values_depend_on_key_and_seed():
    first = crops.seeded_uniform("a", (50, 40), 1, -2, 3)
    assert torch.equal(first, crops.seeded_uniform("a", (50, 40), 1, -2, 3))
    assert not torch.equal(first, crops.seeded_uniform("b", (50, 40), 1, -2, 3))
    assert not torch.equal(first, crops.seeded_uniform("a", (50, 40), 2, -2, 3))
    assert -2 <= float(first.min()) < -1.9 < 2.9 < float(first.max()) <= 3
    # These bits on every machine: a table scored with seeded weights compares across machines.
    assert crops.seeded_uniform("key", (3,), 5, 0, 1).tolist() == PINNED


PINNED = [0.24476224184036255, 0.9860845804214478, 0.1926736831665039]

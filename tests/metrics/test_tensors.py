"""The five formulas on tensors, as a GPU computes them, against the compiled kernels; run on the CPU's torch."""

import numpy as np
import pytest
import torch

from qualitygate.errors import ErrorCode, Failure
from qualitygate.images.photograph import Photograph
from qualitygate.metrics import CATALOGUE, Execution, catalogue, focus, focus_tensors, rows, scene_tensors, tensors
from qualitygate.metrics.metric import Scorer

FORMULAS = ("lapv", "lapm", "wavs", "brisque", "niqe")


def on_tensors(name: str, **more: bool) -> Scorer:
    module = scene_tensors if name in ("brisque", "niqe") else focus_tensors
    return module.load(name, "cpu", **more)


@pytest.fixture(scope="module")
def photographs(clean, with_flat_parts, edges) -> dict[str, Photograph]:
    pixels = clean | with_flat_parts | {name: photograph.rgb for name, photograph in edges.items()}
    return {name: Photograph(rgb) for name, rgb in pixels.items()}


def fresh(photographs) -> list[Photograph]:
    """Without what other metrics have left."""
    return [Photograph(photograph.rgb) for photograph in photographs]


@pytest.mark.parametrize("name", FORMULAS)
def test_scores_and_failures_are_those_of_the_kernels(photographs, name):
    expected = CATALOGUE[name].load("cpu")(fresh(photographs.values()))
    found = on_tensors(name)(fresh(photographs.values()))
    assert sum(isinstance(score, float) for score in expected) >= 19
    for which, theirs, ours in zip(photographs, expected, found, strict=True):
        if isinstance(theirs, Failure) or name in ("lapv", "lapm"):
            assert ours == theirs, which  # exact integers: equal to the bit
        else:
            assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-9), which


@pytest.mark.parametrize("name", FORMULAS)
def test_a_score_hardly_depends_on_its_neighbours(photographs, name):
    chosen = [photographs[key] for key in ("coffee", "noise", "grey", "noise", "96x96")]
    scorer = on_tensors(name)
    together = scorer(fresh(chosen))
    alone = [scorer(fresh([photograph]))[0] for photograph in chosen]
    assert together == pytest.approx(alone, rel=1e-9)
    assert scorer(fresh(chosen[::-1]))[::-1] == pytest.approx(together, rel=1e-9)
    assert scorer([]) == []


@pytest.mark.parametrize("order", [("lapv", "lapm"), ("lapm", "lapv")])
def test_laplacians_are_summed_once_for_both(photographs, monkeypatch, order):
    """In a worker as on a GPU: both metrics for a group of photographs, one pass over each."""
    passes, sums, load = [], focus_tensors.laplacian_sums, focus_tensors.load
    monkeypatch.setattr(focus_tensors, "laplacian_sums", lambda rgb: passes.append(tuple(rgb.shape)) or sums(rgb))
    monkeypatch.setattr(focus_tensors, "load", lambda name, device, **more: load(name, "cpu", **more))
    worker = rows.RowScorer(rows.Plan(metrics=order, device="cuda"), run_id="test")
    group = fresh(photographs[key] for key in ("coffee", "noise", "zero", "1x1", "coffee"))
    found = list(worker.finished(worker.prepare_photograph(str(n), one) for n, one in enumerate(group)))
    for name in order:
        expected = CATALOGUE[name].load("cpu")(fresh(group))
        assert [row[name] for row in found] == [None if isinstance(score, Failure) else score for score in expected]
    assert sum(shape[0] for shape in passes) == len(group), "a photograph was gone over twice"
    assert {shape[1:3] for shape in passes} == {(one.height, one.width) for one in group}


def test_squares_of_a_large_photograph_do_not_overflow():
    """Lines that alternate between black and white: their squares' sum is beyond 63 bits."""
    rgb = np.zeros((2000, 2000, 3), np.uint8)
    rgb[::2] = 255
    expected = CATALOGUE["lapv"].load("cpu")([Photograph(rgb)])
    photograph = Photograph(rgb)
    assert on_tensors("lapv")([photograph]) == expected
    assert photograph._memo[focus.SUMS][1] > 2**63


def test_squares_of_a_long_row_do_not_overflow():
    rgb = np.zeros((1, 1_000_000, 3), np.uint8)
    rgb[:, ::2] = 255
    (found,) = on_tensors("lapv")([Photograph(rgb)])
    assert found == CATALOGUE["lapv"].load("cpu")([Photograph(rgb)])[0]
    assert found > 0


class Counting:
    """A formula of one number, the mean, that runs out of memory past `capacity` photographs."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.sizes: list[tuple[int, int]] = []

    def __call__(self, rgb: torch.Tensor) -> torch.Tensor:
        self.sizes.append((len(rgb), rgb.shape[1]))
        if len(rgb) > self.capacity:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return rgb.double().mean(dim=(1, 2, 3))[:, None]


def batches(capacity: int, pixels: int) -> tuple[tensors.BatchScorer, Counting]:
    measure = Counting(capacity)
    scorer = tensors.BatchScorer(
        measure, lambda _, row: float(row[0]), lambda _: None, name="mean", device="cpu", pixels=pixels
    )
    return scorer, measure


def plain(level: int, side: int) -> Photograph:
    return Photograph(np.full((side, side, 3), level, np.uint8))


def test_photographs_of_one_size_share_batches_within_the_bound():
    scorer, measure = batches(100, pixels=300)
    photographs = [plain(level, side) for level, side in enumerate([10, 5, 10, 10, 5, 10, 40])]
    assert scorer(photographs) == [float(level) for level in range(7)]
    assert sorted(measure.sizes) == [(1, 10), (1, 40), (2, 5), (3, 10)]


def test_short_memory_halves_the_batch_and_keeps_the_order():
    scorer, measure = batches(2, pixels=10_000)
    assert scorer([plain(level, 10) for level in range(9)]) == [float(level) for level in range(9)]
    assert [size for size, _ in measure.sizes][:3] == [9, 4, 2]
    measure.sizes.clear()
    scorer([plain(1, 10)] * 9)
    assert max(size for size, _ in measure.sizes) == 2, "it forgot what didn't fit"


def test_one_photograph_too_large_fails_alone():
    scorer, _ = batches(0, pixels=100)
    (failure,) = scorer([plain(1, 10)])
    assert failure.code is ErrorCode.OUT_OF_MEMORY
    assert "10 x 10" in failure.message


def test_other_errors_are_errors():
    def broken(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("shapes do not match")

    scorer = tensors.BatchScorer(broken, lambda _, row: 0.0, lambda _: None, name="x", device="cpu")
    with pytest.raises(RuntimeError, match="shapes"):
        scorer([plain(1, 10)])


@pytest.mark.parametrize("name", FORMULAS)
def test_one_graph_serves_all_sizes(photographs, name, graphs):
    """Of several: square, wide, tall, odd, even, in whole blocks; squares first. One photograph alone needs none."""
    scorer = on_tensors(name, compiled=True)
    astronaut = photographs["astronaut"].rgb
    sizes = ((200, 200), (201, 211), (192, 210), (330, 197), (288, 288), (201, 201))
    square, *others = (astronaut[:height, :width] for height, width in sizes)
    groups = [[square] * 3, *([one] * count for count in (2, 3, 1) for one in others), [square]]
    for group in groups:
        chosen = [Photograph(np.ascontiguousarray(rgb)) for rgb in group]
        assert scorer(fresh(chosen)) == pytest.approx(on_tensors(name)(fresh(chosen)), rel=1e-12)
    assert graphs() == 1


def test_niqes_graphs_stay_within_torchs_limit(photographs, graphs):
    """Where blocks have one row or one column it compiles again: past the limit, it would run interpreted."""
    scorer = on_tensors("niqe", compiled=True)
    for height, width in ((192, 192), (96, 200), (200, 96), (96, 96), (100, 191)):
        pair = [Photograph(np.ascontiguousarray(photographs["astronaut"].rgb[:height, :width])) for _ in range(2)]
        assert all(isinstance(score, float) for score in scorer(pair))
    assert torch._dynamo.config.recompile_limit >= graphs() == 4


def test_the_catalogue_gives_them_to_gpus_only():
    assert {name for name, metric in CATALOGUE.items() if metric.batched} == set(FORMULAS)
    assert all(metric.takes_several("cuda") for metric in CATALOGUE.values() if metric.batched)
    assert not CATALOGUE["lapv"].takes_several("cpu")
    assert not CATALOGUE["wavs-coef"].takes_several("cuda")
    compiled = catalogue(execution=Execution(compiled=True))
    assert compiled["niqe"].precision == CATALOGUE["niqe"].precision == "float64"
    photograph = plain(1, 100)
    assert compiled["lapm"].load("cpu")([photograph]) == CATALOGUE["lapm"].load("cpu")([photograph])

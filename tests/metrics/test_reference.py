"""The stock implementation as a backend, and how close ours is to it."""

import importlib.util
import math
import socket

import numpy as np
import pytest

from qualitygate.errors import ConfigurationError, ErrorCode, Failure
from qualitygate.images.photograph import Photograph
from qualitygate.metrics import CATALOGUE, catalogue, default_names, reference, select

installed = pytest.mark.skipif(importlib.util.find_spec("pyiqa") is None, reason="pyiqa isn't installed")


def test_it_has_the_same_names_and_tells_itself_apart():
    for name, metric in reference.catalogue().items():
        ours = CATALOGUE[name]
        assert (metric.name, metric.direction, metric.unit) == (name, ours.direction, ours.unit)
        assert metric.backend == "pyiqa"
        assert metric.implementation.startswith("pyiqa")
        assert metric.implementation != ours.implementation
        assert metric.precision == "float32"
        assert "Noncommercial" in metric.code_license
        assert metric.parameters_sha256() == ours.parameters_sha256()


def test_focus_measures_do_not_exist_there():
    with pytest.raises(ConfigurationError, match=r"pyiqa has no lapv.*--backend native"):
        select(["brisque", "lapv"], backend="pyiqa")
    names, skipped = default_names("pyiqa")
    assert not {"lapv", "lapm", "wavs"} & {*names, *skipped}
    assert not set(names) & set(skipped)


def test_an_unknown_name_is_unknown_there_too():
    with pytest.raises(ConfigurationError, match="unknown metric 'niqee'; did you mean niqe"):
        select(["niqee"], backend="pyiqa")


def test_its_absence_is_explained_with_the_remedy(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for metric in catalogue("pyiqa").values():
        assert "pip install 'qualitygate[reference]'" in metric.unavailable()
    names, skipped = default_names("pyiqa")
    assert names == []
    assert "not installed" in skipped["niqe"]


@pytest.fixture(scope="module")
def stock():
    pytest.importorskip("pyiqa")
    before = socket.socket.connect

    def refuse(*args):
        raise AssertionError("the stock implementation tried to use the network")

    socket.socket.connect = refuse
    try:
        return {metric.name: metric.load("cpu") for metric in select(["brisque", "niqe"], backend="pyiqa")}
    finally:
        socket.socket.connect = before


@pytest.fixture(scope="module")
def ours():
    return {metric.name: metric.load("cpu") for metric in select(["brisque", "niqe"])}


@installed
def test_ours_is_close_to_it_on_clean_photographs(stock, ours, clean):
    for name, pixels in clean.items():
        photographs = [Photograph(pixels)]
        for metric in ("brisque", "niqe"):
            assert ours[metric](photographs)[0] == pytest.approx(stock[metric](photographs)[0], abs=0.03), name


@installed
def test_ours_is_close_to_it_where_parts_are_flat(stock, ours, with_flat_parts):
    for name, pixels in with_flat_parts.items():
        photographs = [Photograph(pixels)]
        for metric in ("brisque", "niqe"):
            assert ours[metric](photographs)[0] == pytest.approx(stock[metric](photographs)[0], abs=0.3), name


@installed
def test_what_breaks_it_is_a_typed_failure(stock, edges):
    for metric, scorer in stock.items():
        for edge, score in zip(edges, scorer(list(edges.values())), strict=True):
            if isinstance(score, Failure):
                assert score.code in {ErrorCode.TOO_SMALL, ErrorCode.FLAT, ErrorCode.NON_FINITE}, (
                    metric,
                    edge,
                )
            else:
                assert math.isfinite(score), (metric, edge)
    assert stock["niqe"]([edges["constant"], edges["95x200"]])[1].code is ErrorCode.TOO_SMALL
    assert stock["brisque"]([edges["constant"]])[0].code is ErrorCode.FLAT


@installed
def test_one_photograph_does_not_touch_another(stock, edges, clean):
    good = Photograph(clean["coffee"])
    for scorer in stock.values():
        (expected,) = scorer([good])
        assert scorer([edges["zero"], good, edges["1x1"]])[1] == expected


@installed
def test_tensor_float_32_is_off_during_the_call_only():
    torch = pytest.importorskip("torch")
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        with reference.full_precision():
            assert not torch.backends.cuda.matmul.allow_tf32
            assert not torch.backends.cudnn.allow_tf32
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@installed
def test_a_large_grey_photograph_is_one_number(stock):
    pixels = np.repeat(np.random.default_rng(1).integers(0, 256, (300, 200, 1), dtype=np.uint8), 3, axis=2)
    for scorer in stock.values():
        (score,) = scorer([Photograph(pixels)])
        assert isinstance(score, float)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError("CUDA driver error: out of memory"), ErrorCode.OUT_OF_MEMORY),
        (MemoryError(), ErrorCode.OUT_OF_MEMORY),
        (RuntimeError("The size of tensor a must match"), ErrorCode.NON_FINITE),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), None),
    ],
)
@pytest.mark.parametrize("network", [False, True])
def test_what_it_raises_is_short_memory_a_lost_gpu_or_the_photographs_own(error, code, network):
    import torch

    def stock(pixels: torch.Tensor) -> torch.Tensor:
        raise error

    photograph = Photograph(np.random.default_rng(0).integers(0, 256, (120, 120, 3), np.uint8))

    def score():
        if network:
            return reference._network_score(stock, photograph, "cpu")
        return reference._score(stock, photograph, "cpu", 96)

    if code is None:
        # Not a photograph's failure: whoever asked has to tell of the GPU.
        with pytest.raises(RuntimeError, match="illegal memory access"):
            score()
    else:
        assert score().code is code

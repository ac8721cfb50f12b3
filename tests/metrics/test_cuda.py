"""On a GPU the numbers are those of a CPU; without one these tests say that they were left out."""

import numpy as np
import pytest
import skimage.data
import torch

import qualitygate
from qualitygate.images.photograph import Photograph
from qualitygate.metrics import PAPER, Execution, Parameters, select

NETWORKS = ("musiq", "maniqa", "hyperiqa")
_PHOTOGRAPHS = [
    np.ascontiguousarray(skimage.data.astronaut()[:300, :340]),
    np.ascontiguousarray(skimage.data.coffee()[:180, :200]),
    np.ascontiguousarray(skimage.data.chelsea()[:290, :260]),
]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here: equality with it is unchecked")
def test_all_eight_in_one_process_equal_the_cpu() -> None:
    on_cpu = qualitygate.score(_PHOTOGRAPHS, list(PAPER), untrained=True).to_pylist()
    on_gpu = qualitygate.score(_PHOTOGRAPHS, list(PAPER), untrained=True, device="cuda").to_pylist()
    one_by_one = [
        qualitygate.score(photograph, list(PAPER), untrained=True, device="cuda").to_pylist()[0]
        for photograph in _PHOTOGRAPHS
    ]
    for cpu, together, alone in zip(on_cpu, on_gpu, one_by_one, strict=True):
        for name in PAPER:
            assert together[name] == pytest.approx(cpu[name], rel=1e-3)
            assert alone[name] == pytest.approx(together[name], rel=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here: half precision is unchecked")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_half_precision_is_near_float32(name: str, compiled: bool) -> None:
    parameters = Parameters(untrained=True)
    photographs = [Photograph(pixels) for pixels in _PHOTOGRAPHS]
    (exact,) = select([name], parameters=parameters)
    (fast,) = select([name], parameters=parameters, execution=Execution(fast=(name,), compiled=compiled))
    expected = np.array(exact.load("cpu")(photographs))
    found = np.array(fast.load("cuda")([Photograph(pixels) for pixels in _PHOTOGRAPHS]))
    assert (found != expected).any()
    assert abs(found - expected).max() < 0.02 * np.ptp(expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here: the formulas are unchecked")
@pytest.mark.parametrize("name", ["lapv", "lapm", "wavs", "brisque", "niqe"])
def test_formulas_are_those_of_the_compiled_kernels(name: str) -> None:
    (metric,) = select([name])
    expected, found = (metric.load(device)([Photograph(p) for p in _PHOTOGRAPHS]) for device in ("cpu", "cuda"))
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_the_cpu_computes_and_says_so() -> None:
    small = _PHOTOGRAPHS[1][:60, :70]
    with pytest.warns(UserWarning, match="no CUDA device"):
        (asked,) = qualitygate.score(small, "hyperiqa", untrained=True, device="cuda").to_pylist()
    (expected,) = qualitygate.score(small, "hyperiqa", untrained=True).to_pylist()
    assert asked["hyperiqa"] == expected["hyperiqa"]

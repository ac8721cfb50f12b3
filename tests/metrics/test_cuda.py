"""On a GPU the numbers are those of a CPU; without one these tests say that they were left out.

Two bounds, for two things. Between devices, float32 rounds in another order in every layer: 1e-3 of a score. On one
device, ours and pyiqa's differ by less: 1e-4, for the networks; BRISQUE and NIQE depart from pyiqa in how luma is
rounded and flat areas are counted (docs/metrics.md).
"""

import importlib.util

import numpy as np
import pytest
import skimage.data
import torch

import qualitygate
from qualitygate.images.photograph import Photograph
from qualitygate.metrics import PAPER, Execution, Parameters, select
from qualitygate.metrics.metric import Device

NETWORKS = ("musiq", "maniqa", "hyperiqa")
BETWEEN_DEVICES, TO_PYIQA = 1e-3, 1e-4
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
            assert together[name] == pytest.approx(cpu[name], rel=BETWEEN_DEVICES)
            assert alone[name] == pytest.approx(together[name], rel=BETWEEN_DEVICES)


@pytest.mark.skipif(importlib.util.find_spec("pyiqa") is None, reason="pyiqa isn't installed")
@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("musiq", "cpu"),
        ("hyperiqa", "cpu"),  # MANIQA there: test_maniqa.py, a minute a photograph
        *((name, "cuda") for name in NETWORKS),
    ],
)
def test_float32_is_pyiqas_on_the_same_device(name: str, device: Device) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device here: agreement with pyiqa on one is unchecked")
    parameters = Parameters(untrained=True)
    scores = []
    for backend in ("native", "pyiqa"):
        (metric,) = select([name], backend, parameters)  # type: ignore[arg-type]
        scores.append(metric.load(device)([Photograph(pixels) for pixels in _PHOTOGRAPHS[:2]]))
    ours, theirs = scores
    assert ours == pytest.approx(theirs, rel=TO_PYIQA)


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

"""Compiled networks: the same numbers, one graph, a shared cache, and a way on where compiling fails."""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from qualitygate.metrics import compiling, hyperiqa, maniqa, memory, musiq
from qualitygate.metrics.precision import COMPILE_FROM, WARM_FROM, worth_compiling, worth_warming


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch._dynamo.reset()
    monkeypatch.setenv(compiling.CACHE_VARIABLE, "restored afterwards")
    monkeypatch.delenv(compiling.CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_the_cache_is_shared_unless_the_user_says_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiling.Compiled(torch.sin, "sine", dynamic=False, backend="eager")
    place = Path(compiling.os.environ[compiling.CACHE_VARIABLE])
    assert place.is_relative_to(tmp_path)
    assert place.name == "compiled"
    mine = str(tmp_path / "mine")
    monkeypatch.setenv(compiling.CACHE_VARIABLE, mine)
    compiling.Compiled(torch.sin, "sine", dynamic=False, backend="eager")
    assert compiling.os.environ[compiling.CACHE_VARIABLE] == mine


def test_what_can_not_be_compiled_runs_interpreted_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    def broken(graph: object, inputs: object) -> object:
        raise RuntimeError("no compiler here")

    double = compiling.Compiled(lambda x: x * 2, "double", dynamic=False, backend=broken)  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING, logger="qualitygate"):
        assert double(torch.tensor(2.0)) == 4
        assert double(torch.tensor(3.0)) == 6
    assert not double.compiled
    assert caplog.text.count("double can't be compiled") == 1


def failing(double: compiling.Compiled, *errors: Exception | None) -> None:
    """Let its next compiled calls raise these in turn; None: go well."""
    given = iter(errors)
    well = double._compiled
    assert well is not None

    def call(*arguments: object) -> object:
        error = next(given)
        if error is not None:
            raise error
        return well(*arguments)

    double._compiled = call


MISHAP = torch.AcceleratorError("CUDA error: invalid argument")


def test_a_call_that_the_gpu_refuses_runs_interpreted_and_the_next_one_compiled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    double = compiling.Compiled(lambda x: x * 2, "double", dynamic=False, backend="eager")
    # Asked for, the GPU answers: there is none, and these words are not those of a loss.
    failing(double, MISHAP, None, RuntimeError("Triton Error [CUDA]: invalid argument"), None)
    with caplog.at_level(logging.WARNING, logger="qualitygate"), compiling.noting_failures() as failures:
        assert [double(torch.tensor(float(n))).item() for n in range(4)] == [0, 2, 4, 6]
    assert double.compiled
    assert "can't be compiled" not in caplog.text
    assert caplog.text.count("this call ran interpreted") == 2
    assert failures == {}


def test_calls_that_the_gpu_refuses_again_and_again_stay_interpreted(caplog: pytest.LogCaptureFixture) -> None:
    double = compiling.Compiled(lambda x: x * 2, "double", dynamic=False, backend="eager")
    failing(double, MISHAP, MISHAP)
    with caplog.at_level(logging.WARNING, logger="qualitygate"), compiling.noting_failures() as failures:
        assert [double(torch.tensor(float(n))).item() for n in range(4)] == [0, 2, 4, 6]
    assert not double.compiled
    assert failures == {"double": "AcceleratorError: CUDA error: invalid argument"}
    assert caplog.text.count("double fails compiled again and again and runs interpreted: Accel") == 1


def test_what_fails_interpreted_too_is_no_fault_of_compiling() -> None:
    def picky(x: torch.Tensor) -> torch.Tensor:
        if x.sum() < 0:
            raise ValueError("negative")
        return x

    network = compiling.Compiled(picky, "picky", dynamic=False, backend="eager")
    failing(network, ValueError("negative"), None)
    with compiling.noting_failures() as failures:
        with pytest.raises(ValueError, match="negative"):
            network(-torch.ones(2))
        assert network(torch.ones(2)).sum() == 2
    assert network.compiled
    assert failures == {}


def test_short_memory_is_no_reason_to_give_compiling_up() -> None:
    def short(x: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    network = compiling.Compiled(short, "network", dynamic=False, backend="eager")
    network._compiled = short
    with pytest.raises(torch.OutOfMemoryError):
        network(torch.ones(2))
    assert network.compiled


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory"),
        MemoryError(),
    ],
)
def test_memory_that_ends_in_the_compiler_is_short_memory(error: Exception) -> None:
    """torch wraps whatever its compiler raises."""
    tries = []

    def short(graph: object, inputs: object) -> object:
        tries.append(graph)
        raise error

    network = compiling.Compiled(lambda x: x * 2, "network", dynamic=False, backend=short)  # type: ignore[arg-type]
    for _ in range(2):
        with pytest.raises(torch._dynamo.exc.BackendCompilerFailed) as caught:
            network(torch.ones(2))
        assert memory.is_out_of_memory(caught.value)
        assert not memory.is_device_lost(caught.value)
    assert network.compiled
    assert len(tries) == 2


def test_a_lost_gpu_is_no_reason_to_give_compiling_up() -> None:
    def lost(graph: object, inputs: object) -> object:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    network = compiling.Compiled(lambda x: x * 2, "network", dynamic=False, backend=lost)  # type: ignore[arg-type]
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed) as caught:
        network(torch.ones(2))
    assert memory.is_device_lost(caught.value)
    assert not memory.is_out_of_memory(caught.value)
    assert network.compiled


@pytest.mark.parametrize(("dynamic", "expected"), [(True, 1), (False, 2)])
def test_a_batch_of_one_is_compiled_only_where_each_shape_is(
    dynamic: bool, expected: int, graphs: Callable[[], int]
) -> None:
    double = compiling.Compiled(lambda factor, x: factor * x, "double", dynamic=dynamic)
    for size in (1, 3, 1):
        assert torch.equal(double(2.0, torch.ones(size, 2)), torch.full((size, 2), 2.0))
    assert graphs() == expected


@pytest.mark.parametrize("halved", [False, True])
def test_musiq_is_two_graphs_for_all_lengths(halved: bool, graphs: Callable[[], int]) -> None:
    """Of several photographs without and with a mask; one alone needs none."""
    preset = dataclasses.replace(musiq.PRESETS["musiq"], width=64, hidden=96, depth=2)
    network = musiq.network(musiq.seeded_state_dict(0, preset), preset)
    network.freeze(halved=halved)
    score = compiling.Compiled(network.score, "musiq", dynamic=True)
    # 64 tokens are as many as channels, 7 as many as photographs.
    shapes = [(7, 7), (2, 30), (64, 64), (3, 64), (5, 41), (1, 30), (1, 64), (1, 91)]
    masked = [(4, 39), (39, 39), (2, 64), (3, 47)]
    with torch.inference_mode():
        for batch, length in shapes + masked:
            x = torch.randn(batch, length, 64)
            zeros = torch.zeros(batch, length, dtype=torch.int64)
            mask = (
                torch.arange(length) < length - torch.arange(batch)[:, None] % 3 if (batch, length) in masked else None
            )
            torch.testing.assert_close(score(x, zeros, zeros, mask), network.score(x, zeros, zeros, mask))
    assert score.compiled
    assert graphs() == 2


@pytest.mark.parametrize("halved", [False, True])
def test_networks_of_crops_are_one_graph_for_each_of_their_two_shapes(halved: bool, graphs: Callable[[], int]) -> None:
    """As large as they are, on the device that holds no numbers."""
    for name, network in (("maniqa", maniqa._empty(0.13)), ("hyperiqa", hyperiqa._empty())):
        if isinstance(network, maniqa.Maniqa):
            network.drop_unused()
        network.requires_grad_(False).eval()
        if halved:
            network.halve()
        evaluate = network.sums if isinstance(network, maniqa.Maniqa) else network
        compiled = compiling.Compiled(evaluate, name, dynamic=False)
        before = graphs()
        with torch.inference_mode():
            for crops in (8, 2, 8):
                x = torch.empty(crops, 3, 224, 224, device="meta")
                assert compiled(x).shape == evaluate(x).shape
        assert compiled.compiled
        assert graphs() - before == 2


def test_a_compiled_network_gives_the_same_numbers() -> None:
    network = hyperiqa._empty()
    network.load_state_dict(hyperiqa.seeded_state_dict(0), assign=True)
    network.requires_grad_(False).eval()
    network.halve()
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    x = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(x), network(x))


def test_short_runs_are_not_compiled() -> None:
    assert not worth_compiling(COMPILE_FROM - 1, workers=1)
    assert worth_compiling(COMPILE_FROM, workers=1)
    assert not worth_compiling(COMPILE_FROM, workers=2)
    assert not worth_warming(WARM_FROM - 1, workers=1)
    assert worth_warming(WARM_FROM, workers=1)
    assert not worth_warming(WARM_FROM, workers=2)

"""Errors of memory and of a lost GPU are told from each other and from all others, also where another wraps them."""

from collections.abc import Callable
from typing import NoReturn

import pytest
import torch

from qualitygate.errors import DeviceLost
from qualitygate.metrics import memory

LOST = [
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"),
    RuntimeError("CUDA error: device-side assert triggered\nCompile with `TORCH_USE_CUDA_DSA`"),
    RuntimeError("CUDA error: unspecified launch failure"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"),
    RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
    RuntimeError("CUDA driver error: an illegal memory access was encountered"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED_CUDART"),
    RuntimeError("cusolver error: CUSOLVER_STATUS_EXECUTION_FAILED, when calling `cusolverDnDsyevd`"),
]
# Said of a full GPU by libraries that can't start on it, and of a lost one.
NO_ROOM = [
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_INTERNAL_ERROR when calling `cublasCreate(handle)`"),
    RuntimeError("cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling `cusolverDnCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
]
# Said of a call that failed and of a GPU that was lost before it.
DOUBTFUL = [
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling `cusolverDnDsyevd`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"),
    RuntimeError("Error while decoding JPEG images: Failed to decode batch: 6"),
    RuntimeError("Failed to initialize nvjpeg with hardware backend: 1"),
    torch.AcceleratorError("CUDA error: unknown error"),
]
SHORT = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("backend='inductor' raised:\nOutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    *NO_ROOM,
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("Error while decoding JPEG images: Failed to decode batch: 5"),
    RuntimeError("Failed to initialize nvjpeg with hardware backend: 5"),
    RuntimeError(
        "Error while decoding JPEG images: CUDA out of memory. Tried to allocate 2.00 GiB (originally from "
        'torch_call_dispatcher("aten::empty") API call failed at ops.h, line 631)'
    ),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
]
OTHERS = [
    RuntimeError("shapes do not match"),
    ValueError("CUDA error: quoted by what never spoke to a GPU"),
    RuntimeError("Triton Error [CUDA]: invalid argument"),
    torch.AcceleratorError("CUDA error: invalid configuration argument"),
    torch.AcceleratorError("CUDA error: too many resources requested for launch"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx`"),
    RuntimeError("Error while decoding JPEG images: Failed to decode batch: 3"),
    RuntimeError("Error while decoding JPEG images: Failed to synchronize CUDA stream: 5"),
]


def wrapped(inner: Exception, *, said_so: bool) -> Exception:
    """As raised over it: `from` it, or while it was handled."""
    try:
        try:
            raise inner
        except Exception as error:
            if said_so:
                raise RuntimeError("the network failed") from error
            raise RuntimeError("the network failed")  # noqa: B904
    except RuntimeError as outer:
        return outer


@pytest.mark.parametrize("wrap", [lambda e: e, lambda e: wrapped(e, said_so=True), lambda e: wrapped(e, said_so=False)])
@pytest.mark.parametrize(
    ("errors", "short", "lost"), [(LOST, False, True), (SHORT, True, False), (OTHERS, False, False)]
)
def test_each_error_is_taken_for_what_it_is(errors, short, lost, wrap) -> None:
    for error in map(wrap, errors):
        assert (memory.is_out_of_memory(error), memory.is_device_lost(error)) == (short, lost), error


def test_a_gpu_that_was_lost_over_short_memory_is_lost() -> None:
    error = LOST[0].with_traceback(None)
    outer = RuntimeError("no more")
    outer.__cause__ = error
    error.__context__ = SHORT[1]
    try:
        assert memory.is_device_lost(outer)
        assert not memory.is_out_of_memory(outer)
    finally:
        error.__context__ = None


def test_what_was_raised_from_none_stands_for_itself() -> None:
    error = wrapped(MemoryError(), said_so=False)
    assert memory.is_out_of_memory(error)
    error.__suppress_context__ = True
    assert not memory.is_out_of_memory(error)


# ---- where there is a GPU to ask -------------------------------------------------------------------------


def raising(error: Exception) -> Callable[[], NoReturn]:
    def synchronise() -> NoReturn:
        raise error

    return synchronise


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Gives this process a GPU in use, which does this when it is waited for."""

    def in_use(synchronise: Callable[[], None]) -> None:
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "synchronize", synchronise)

    return in_use


@pytest.mark.parametrize("error", [*DOUBTFUL, *NO_ROOM, wrapped(DOUBTFUL[0], said_so=True)])
def test_a_gpu_that_does_not_answer_is_lost_whatever_noticed_it_first(error, gpu) -> None:
    gpu(raising(torch.AcceleratorError("CUDA error: an illegal memory access was encountered")))
    assert memory.is_device_lost(error)
    assert not memory.is_out_of_memory(error)
    with pytest.raises(DeviceLost, match="noticed by niqe"), memory.telling_of_a_lost_gpu("niqe"):
        raise error


@pytest.mark.parametrize(("errors", "short"), [(DOUBTFUL, False), (NO_ROOM, True)])
def test_a_gpu_that_answers_is_not_lost(errors, short, gpu) -> None:
    gpu(lambda: None)
    for error in errors:
        assert not memory.is_device_lost(error), error
        assert memory.is_out_of_memory(error) == short, error


def test_a_gpu_that_has_no_memory_to_answer_with_is_not_lost(gpu) -> None:
    gpu(raising(torch.AcceleratorError("CUDA error: out of memory")))
    assert not memory.is_device_lost(DOUBTFUL[0])


@pytest.mark.parametrize(("error", "lost"), [(LOST[0], True), (SHORT[1], False), (OTHERS[0], False)])
def test_what_speaks_for_itself_waits_for_no_gpu(error, lost, gpu) -> None:
    gpu(lambda: pytest.fail("waited for the GPU"))
    assert memory.is_device_lost(error) == lost
    assert memory.is_out_of_memory(error) == (error is SHORT[1])

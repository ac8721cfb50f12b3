"""Errors of memory and of a lost GPU are told from each other and from all others, also where another wraps them."""

import pytest
import torch

from qualitygate.metrics import memory

LOST = [
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"),
    RuntimeError("CUDA error: device-side assert triggered\nCompile with `TORCH_USE_CUDA_DSA`"),
    RuntimeError("CUDA error: unspecified launch failure"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"),
    RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
]
SHORT = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("backend='inductor' raised:\nOutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
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

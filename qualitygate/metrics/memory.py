"""What every scorer on tensors does about memory: photographs uploaded once, lack of it recognised."""

import torch

from qualitygate.images.photograph import Photograph
from qualitygate.metrics.metric import Device

# Where torch has no exception of its own: its CPU allocator, oneDNN, cuBLAS, cuSOLVER, cuDNN (under two names).
_OUT_OF_MEMORY = (
    "DefaultCPUAllocator",
    "could not create a memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "ALLOCATION_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that memory, the CPU's or the GPU's, didn't suffice."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def pixels(photograph: Photograph, device: Device) -> torch.Tensor:
    """The photograph's pixels on the device, (H, W, 3) uint8; uploaded once for all metrics."""
    if device == "cpu":
        return torch.from_numpy(photograph.rgb)
    return photograph.once("pixels on the GPU", lambda _: upload(torch.from_numpy(photograph.rgb), device))


def upload(host: torch.Tensor, device: Device) -> torch.Tensor:
    """The same on the device; on a CPU itself. Nothing waits for the GPU, which fetches it in its turn.

    It does so from page-locked memory alone: from other memory the call may wait until all work before it is done.
    """
    return host if device == "cpu" else page_locked(host).to("cuda", non_blocking=True)


def page_locked(host: torch.Tensor) -> torch.Tensor:
    """A copy that the GPU can fetch by itself; torch keeps its memory until then, and for the next one."""
    return host.pin_memory()

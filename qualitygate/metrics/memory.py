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
    return photograph.once("pixels on the GPU", _uploaded)


def _uploaded(photograph: Photograph) -> torch.Tensor:
    return torch.from_numpy(photograph.rgb).to("cuda", non_blocking=True)

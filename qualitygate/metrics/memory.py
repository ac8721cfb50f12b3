"""What every scorer on tensors does about memory: photographs uploaded once, lack of it recognised, a lost GPU too."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from qualitygate.errors import DeviceLost
from qualitygate.images.photograph import Photograph
from qualitygate.metrics.metric import Device

# What a photograph's pixels are called once they are there.
ON_GPU = "pixels on the GPU"

# Where torch has no exception of its own: its CPU allocator, oneDNN, cuBLAS, cuSOLVER, cuDNN (under two names); and
# its own one, quoted by the compiler in whose hands memory ended.
_OUT_OF_MEMORY = (
    "DefaultCPUAllocator",
    "could not create a memory",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    # What cuBLAS says first when a full GPU has no room for its workspace.
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "Triton Error [CUDA]: out of memory",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "ALLOCATION_FAILED",
)
# Of torch, cuBLAS and cuDNN; and of compiled networks' own kernels, whose other errors are about their launch alone.
_CUDA = (
    "CUDA error",
    "Triton Error [CUDA]: an illegal memory access",
    "Triton Error [CUDA]: unspecified launch failure",
)
# A call that CUDA or cuBLAS refused before anything ran: the next one may go well.
_REFUSED = (
    "CUDA error: invalid argument",
    "CUDA error: invalid configuration argument",
    "CUDA error: no kernel image is available",
    "CUDA error: too many resources requested for launch",
    "CUBLAS_STATUS_INVALID_VALUE",
    "CUBLAS_STATUS_NOT_SUPPORTED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error, or one behind it, says that memory, the CPU's or the GPU's, didn't suffice.

    False where the GPU is lost besides: less work would not help.
    """
    return not is_device_lost(error) and any(_lacks_memory(one) for one in _chain(error))


def is_device_lost(error: BaseException) -> bool:
    """Whether the error, or one behind it, is CUDA's and leaves this process without its GPU.

    After an illegal memory access, a failed launch or assertion, or an uncorrectable memory error every further call
    fails; only a new process gets the GPU back. What CUDA says is taken for that unless it is known to be less.
    """
    return any(_ends_the_context(one) for one in _chain(error))


@contextmanager
def telling_of_a_lost_gpu(during: str) -> Iterator[None]:
    """Raises DeviceLost, in one line with the remedy, where what is done inside leaves the process without its GPU."""
    try:
        yield
    except Exception as error:
        if isinstance(error, DeviceLost) or not is_device_lost(error):
            raise
        said = f"{error}".partition("\n")[0][:200]
        raise DeviceLost(
            f"this process has lost its GPU, as noticed by {during} ({type(error).__name__}: {said}); "
            "start it again, and look at the driver's log (dmesg, Xid) should it come back"
        ) from error


def _lacks_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def _ends_the_context(error: BaseException) -> bool:
    said = str(error)
    from_cuda = isinstance(error, RuntimeError) and any(words in said for words in _CUDA)
    if not (from_cuda or isinstance(error, torch.AcceleratorError)):
        return False
    return not _lacks_memory(error) and not any(words in said for words in _REFUSED)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and those that led to it, as a traceback shows them; torch's compiler hides them in an attribute."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        hidden = getattr(current, "inner_exception", None)
        shown = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
        current = hidden if isinstance(hidden, BaseException) else shown


def made_up(count: int, side: int) -> list[Photograph]:
    """Photographs of noise, each with pixels of its own to upload, to make a GPU ready with."""
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return [Photograph(noise) for _ in range(count)]


def pixels(photograph: Photograph, device: Device) -> torch.Tensor:
    """The photograph's pixels on the device, (H, W, 3) uint8; uploaded once for all metrics."""
    if device == "cpu":
        return torch.from_numpy(photograph.rgb)
    return photograph.once(ON_GPU, lambda _: upload(torch.from_numpy(photograph.rgb), device))


def upload(host: torch.Tensor, device: Device) -> torch.Tensor:
    """The same on the device; on a CPU itself. Nothing waits for the GPU, which fetches it in its turn.

    It does so from page-locked memory alone: from other memory the call may wait until all work before it is done.
    """
    return host if device == "cpu" else page_locked(host).to("cuda", non_blocking=True)


def page_locked(host: torch.Tensor) -> torch.Tensor:
    """A copy that the GPU can fetch by itself; torch keeps its memory until then, and for the next one."""
    return host.pin_memory()

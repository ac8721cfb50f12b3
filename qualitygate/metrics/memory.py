"""What every scorer on tensors does about memory: photographs uploaded once, lack of it recognised, a lost GPU too."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from qualitygate.errors import DeviceLost
from qualitygate.images.photograph import Photograph
from qualitygate.metrics.metric import Device

# What a photograph's pixels are called once they are there.
ON_GPU = "pixels on the GPU"

# Where torch has no exception of its own: its CPU allocator, oneDNN, cuBLAS, cuSOLVER, cuDNN (under two names), the
# driver; and its own one, quoted by the compiler in whose hands memory ended.
_OUT_OF_MEMORY = (
    "DefaultCPUAllocator",
    "could not create a memory",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "Triton Error [CUDA]: out of memory",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "ALLOCATION_FAILED",
)
# What a library says first that finds no room for its own workspace on a full GPU. It says the same of a GPU that is
# lost: it has to be asked.
_NO_ROOM_TO_START = (
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "cublasCreate(",
    "cublasLtCreate(",
    "CUSOLVER_STATUS_NOT_INITIALIZED",
    "cusolverDnCreate(",
    "CUDNN_STATUS_NOT_INITIALIZED",
    # cuDNN doesn't say in which call; public reports put it down to a full GPU, too.
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR",
)
# nvJPEG's ALLOCATOR_FAILURE, which torchvision passes on as a number after what it was doing.
_NVJPEG_WITHOUT_MEMORY = re.compile(
    r"Failed to (?:attach|create|decode|get|initialize|parse|set|transfer)[\w ]*: 5(?!\d)"
)
# Who speaks for the GPU: torch, the driver, the libraries, compiled networks' own kernels, torchvision's nvJPEG.
_SPEAKERS = (
    "CUDA error",
    "CUDA driver error",
    "cuDNN error",
    "cuDNN Frontend error",
    "cusolver error",
    "cuFFT error",
    "Triton Error [CUDA]",
    "Error while decoding JPEG images",
    "Failed to initialize nvjpeg",
    "Failed to create nvjpeg",
)
# After these every further call fails, as CUDA's documentation says of all but uncorrectable memory errors, which leave
# nothing to rely on: there is no need to ask.
_LOST = (
    "an illegal memory access was encountered",
    "an illegal instruction was encountered",
    "device-side assert triggered",
    "hardware stack error",
    "invalid program counter",
    "misaligned address",
    "operation not supported on global/shared address space",
    "the launch timed out and was terminated",
    "uncorrectable ECC error encountered",
    "unspecified launch failure",
)
# Without a GPU that could be asked, what else is taken for a loss ...
_LOST_BY_WORDS = ("CUDA error", "STATUS_EXECUTION_FAILED")
# ... but for a call that was refused before anything ran: the next one may go well.
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
    short = any(_lacks_memory(one) or _had_no_room_to_start(one) for one in _chain(error))
    return short and not is_device_lost(error)


def is_device_lost(error: BaseException) -> bool:
    """Whether the error, or one behind it, is the GPU's and leaves this process without it.

    After an illegal memory access, a failed launch or assertion, or an uncorrectable memory error every further call
    fails; only a new process gets the GPU back. A library that notices it first says merely that its call failed, as it
    does of a call that is to blame itself: then the GPU is waited for, which raises where it is lost.
    """
    return any(_ends_the_context(one) for one in _chain(error))


def is_of_the_gpu(error: BaseException) -> bool:
    """Whether the error, or one behind it, is CUDA's, its libraries' or the driver's, lost or not."""
    return any(_from_cuda(one) for one in _chain(error))


def gpu_answers() -> bool | None:
    """Whether this process's GPU does what it is asked, waiting for all that it was; None without one in use."""
    if not torch.cuda.is_initialized():
        return None
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        return _lacks_memory(error)
    return True


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
    """Said by whoever asked for memory itself."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    said = str(error)
    if not isinstance(error, RuntimeError):
        return False
    return any(words in said for words in _OUT_OF_MEMORY) or _NVJPEG_WITHOUT_MEMORY.search(said) is not None


def _had_no_room_to_start(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_ROOM_TO_START)


def _from_cuda(error: BaseException) -> bool:
    if isinstance(error, torch.AcceleratorError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _SPEAKERS)


def _ends_the_context(error: BaseException) -> bool:
    said = str(error)
    if not _from_cuda(error) or _lacks_memory(error):
        return False
    if any(words in said for words in _LOST):
        return True
    answers = gpu_answers()
    if answers is not None:
        return not answers
    by_words = isinstance(error, torch.AcceleratorError) or any(words in said for words in _LOST_BY_WORDS)
    return by_words and not _had_no_room_to_start(error) and not any(words in said for words in _REFUSED)


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

"""A process's first use of its GPU: what CUDA says against that is about the GPU, and never about a photograph."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from qualitygate.errors import ConfigurationError, DeviceLost
from qualitygate.metrics import memory

# CUDA's own words in torch's exceptions, its libraries' included; and torch's about a driver that it can't start.
_CUDA = (
    "CUDA error",
    "CUDA driver",
    "CUDA unknown error",
    "CUDA call failed lazily",
    "No CUDA GPUs are available",
    "cudaGetDeviceCount",
    "NVIDIA driver",
    "CUBLAS_STATUS",
    "CUDNN_STATUS",
    "CUSOLVER_STATUS",
)
_NO_CODE = "no kernel image is available"


@contextmanager
def starting_on_a_gpu(during: str) -> Iterator[None]:
    """Raises DeviceLost, in one line with the remedy, where CUDA fails inside, be it for want of memory.

    Nothing has been scored yet, so there is no batch to halve and no photograph to blame; a new process may find the
    GPU in order, or its memory free. ConfigurationError where it can't, as what is installed has no code for that GPU.
    What isn't CUDA's is raised as it is.
    """
    try:
        with memory.telling_of_a_lost_gpu(during):
            yield
    except DeviceLost:
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {f'{error}'.partition(chr(10))[0][:200]}"
        if memory.is_out_of_memory(error):
            told = f"no memory for {during} ({said}); end what else takes it, or have fewer workers share this GPU"
            raise DeviceLost(told, full=True) from error
        if _NO_CODE in str(error):
            raise ConfigurationError(
                f"torch or torchvision has no code for this GPU, as noticed by {during} ({said}): install one that has"
            ) from error
        if isinstance(error, torch.AcceleratorError) or any(words in str(error) for words in _CUDA):
            raise DeviceLost(
                f"this process can't use its GPU, as noticed by {during} ({said}); start it again, and look at the "
                "driver's log (dmesg, Xid) should it come back"
            ) from error
        raise

"""Where networks run: on the cluster's GPUs when they are wanted and really there."""

from collections.abc import Callable
from typing import Any

from qualitygate.cluster.planning import Progress
from qualitygate.cluster.session import Cluster
from qualitygate.errors import ConfigurationError

# A cluster that starts machines on demand takes minutes.
_WAIT_FOR_GPU_S = 600.0


def on_gpu(device: str, cluster: Cluster, workers: int, progress: Progress) -> bool:
    """Whether each of so many workers is to have a GPU.

    device: `cpu`; `cuda`, which is refused where there are too few; `auto`, which takes them where there are enough.
    Needs a session.
    """
    if device == "cpu" or (device == "auto" and cluster.gpus < workers):
        return False
    if cluster.gpus < workers:
        raise ConfigurationError(
            f"--device cuda wants a GPU for each of {workers} workers, the Ray cluster has {cluster.gpus:g}; use "
            "--device cpu, or fewer --workers"
        )
    if _torch_sees_one():
        return True
    if device == "cuda":
        raise ConfigurationError("--device cuda: torch finds no CUDA on the cluster's GPUs; use --device cpu")
    progress.note("torch finds no CUDA on the cluster's GPUs; using CPUs")
    return False


def model() -> str | None:
    """What a GPU of the cluster is called; None where torch finds none. Needs a session."""
    found: str | None = _asked_on_a_gpu(_model)
    return found


def _torch_sees_one() -> bool:
    return bool(_asked_on_a_gpu(_sees_cuda))


def _asked_on_a_gpu(question: Callable[[], Any]) -> Any:
    """Asked where a GPU is: the driver's machine may have none, and a cluster may have GPUs in name only."""
    import ray

    asked = ray.remote(question).options(num_cpus=0, num_gpus=1).remote()
    try:
        return ray.get(asked, timeout=_WAIT_FOR_GPU_S)
    except ray.exceptions.GetTimeoutError as error:
        ray.cancel(asked)
        raise ConfigurationError(
            f"no GPU of the cluster became free within {_WAIT_FOR_GPU_S:.0f} s; wait, or use --device cpu"
        ) from error


def _sees_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _model() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None

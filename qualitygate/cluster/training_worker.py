"""What runs inside Ray Train's workers: epochs from the last checkpoint on, a checkpoint after each."""

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import ray.train
import torch
from torch import Tensor, nn

from qualitygate import logs
from qualitygate.cluster.photographs import assemble
from qualitygate.errors import DeviceLost, QualityGateError
from qualitygate.metrics.memory import telling_of_a_lost_gpu
from qualitygate.tables.scratch import scratch_folder
from qualitygate.training import loop, models
from qualitygate.training.loop import Photographs, Recipe, Share

CHECKPOINT = "checkpoint.pt"
_ASK_AGAIN_S = 0.5
# A GPU takes the photographs as a whole when they leave it this share of its free memory.
_PIXELS_SHARE = 0.5


@ray.remote(num_cpus=0)
class Mailbox:
    """What workers have to say to the driver, and whether it wants them to stop."""

    def __init__(self) -> None:
        self._messages: list[tuple[str, Any]] = []
        self._stopped = False

    def post(self, kind: str, content: Any) -> None:
        """Keep a message until it is taken."""
        self._messages.append((kind, content))

    def take(self) -> list[tuple[str, Any]]:
        """All messages since the last call."""
        taken, self._messages = self._messages, []
        return taken

    def stop(self) -> None:
        """Ask the workers to stop soon."""
        self._stopped = True

    def stopped(self) -> bool:
        """Whether they are to stop."""
        return self._stopped


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One training: network, recipe, and references to initial parameters and pixels in the object store."""

    architecture: str
    classes: int
    image_size: int
    recipe: Recipe
    initial: Any
    chunks: Sequence[Any]
    labels: npt.NDArray[np.int64]
    train: npt.NDArray[np.int64]
    evaluation: npt.NDArray[np.int64]
    mailbox: Any
    # As the driver logs: Ray keeps what workers log in files of each node.
    log_format: str = logs.TEXT


class _Stop(Exception):
    """The driver wants no more."""


def train(settings: dict[str, Any]) -> None:
    """The function of each worker. What it can foresee to fail again is posted instead of raised, which would retry."""
    work: Work = settings["work"]
    logs.set_up(work.log_format, verb="train-baseline")
    try:
        with telling_of_a_lost_gpu("training"):
            _train(work)
    except _Stop:
        return
    except DeviceLost:
        # Only a new process may have its GPU back: raised, Ray Train starts one.
        raise
    except QualityGateError as error:
        ray.get(work.mailbox.post.remote("failure", str(error)))
    except torch.cuda.OutOfMemoryError:
        message = f"the GPU's memory is too small for --batch-size {work.recipe.batch_size}; use a smaller one"
        ray.get(work.mailbox.post.remote("failure", message))


def _train(work: Work) -> None:
    context = ray.train.get_context()
    share = Share(rank=context.get_world_rank(), world=context.get_world_size())
    device = _prepare_process(context.get_local_world_size())
    state = {name: torch.tensor(value) for name, value in ray.get(work.initial).items()}
    model = models.build(work.architecture, work.classes, image_size=work.image_size, state=state).to(device)
    optimizer = loop.optimizer_of(model, work.recipe)
    history: list[dict[str, Any]] = []
    done = 0
    if (checkpoint := ray.train.get_checkpoint()) is not None:
        with checkpoint.as_directory() as folder:
            saved = read_checkpoint(folder)
        done, history = loop.restore(model, optimizer, saved), saved["history"]
    if share.rank == 0:
        ray.get(work.mailbox.post.remote("begin", done))
    if done >= work.recipe.epochs:
        return
    photographs = _photographs(work, device)
    together = nn.parallel.DistributedDataParallel(model) if share.world > 1 else model
    for epoch in range(done, work.recipe.epochs):
        started = time.perf_counter()
        # Several processes have to stop at the same step, or those left wait for the others for ever.
        ask = _asking(work.mailbox) if share.world == 1 else None
        totals = loop.train_epoch(
            together, optimizer, photographs, work.train, work.recipe, epoch, share=share, on_step=ask
        )
        loss_sum, right, count = _added(totals, share).tolist()
        metrics: dict[str, Any] = {"epoch": epoch + 1}
        if share.rank == 0:
            kept_out = loop.evaluate(model, photographs, work.evaluation, batch_size=work.recipe.batch_size)
            metrics |= {
                "train_loss": loss_sum / count,
                "train_accuracy": right / count,
                "eval_loss": kept_out.loss,
                "eval_accuracy": kept_out.accuracy,
                "seconds": round(time.perf_counter() - started, 3),
            }
            history.append(metrics)
        _report(work, model, optimizer, epoch + 1, history, photographs, device, share, metrics)
        if share.world > 1 and _any_stopped(work.mailbox, device):
            raise _Stop


def _prepare_process(neighbours: int) -> torch.device:
    """Deterministic, on the worker's GPU if it has one, else with its share of the node's cores as threads."""
    loop.deterministic()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // neighbours))
    device: torch.device = ray.train.torch.get_device()
    return device


def _photographs(work: Work, device: torch.device) -> Photographs:
    """The photographs where the batches are made: on the GPU if they fit, else in this node's memory."""
    pixels = torch.from_numpy(assemble(work.chunks, len(work.labels), work.image_size))
    if device.type == "cuda" and pixels.nbytes < _PIXELS_SHARE * torch.cuda.mem_get_info(device)[0]:
        pixels = pixels.to(device)
    return Photographs(pixels=pixels, labels=torch.from_numpy(work.labels).to(pixels.device))


def _asking(mailbox: Any) -> Callable[[int], None]:
    """Raises _Stop within a second or so of the driver's wish."""
    last = time.monotonic()

    def ask(_photographs: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _ASK_AGAIN_S:
            if ray.get(mailbox.stopped.remote()):
                raise _Stop
            last = time.monotonic()

    return ask


def _any_stopped(mailbox: Any, device: torch.device) -> bool:
    flag = torch.tensor(float(ray.get(mailbox.stopped.remote())), device=device)
    torch.distributed.all_reduce(flag)
    return bool(flag > 0)


def _added(totals: Tensor, share: Share) -> Tensor:
    if share.world > 1:
        torch.distributed.all_reduce(totals)
    return totals


def _report(
    work: Work,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    done: int,
    history: list[dict[str, Any]],
    photographs: Photographs,
    device: torch.device,
    share: Share,
    metrics: dict[str, Any],
) -> None:
    """Keep the checkpoint of an epoch, which is there for good once this returns, and tell the driver."""
    if share.rank:
        ray.train.report(metrics)
        return
    content = loop.snapshot(model, optimizer, done) | {"history": history, "hardware": _hardware(device, share)}
    if done == work.recipe.epochs:
        seen = loop.evaluate(model, photographs, work.train, batch_size=work.recipe.batch_size)
        content["train_accuracy"] = seen.accuracy
    with scratch_folder() as folder:
        torch.save(content, Path(folder) / CHECKPOINT)
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
    ray.get(work.mailbox.post.remote("epoch", metrics))


def _hardware(device: torch.device, share: Share) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": device.type,
        "name": name,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "workers": share.world,
    }


def read_checkpoint(folder: str | Path) -> dict[str, Any]:
    """A checkpoint's content, on the CPU: tensors, numbers and text, nothing that could run."""
    content: dict[str, Any] = torch.load(Path(folder) / CHECKPOINT, map_location="cpu", weights_only=True)
    return content

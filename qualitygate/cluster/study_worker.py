"""What runs inside the worker group of a study: take a run, train it, write it, take the next."""

import contextlib
import functools
import platform
import time
import uuid
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import ray.train
import torch
from torch import Tensor, nn

from qualitygate import logs
from qualitygate.cluster.losses import MOST_LOSSES, Losses, gone
from qualitygate.cluster.workers import gpu_name
from qualitygate.errors import DeviceLost, QualityGateError
from qualitygate.metrics.memory import telling_of_a_lost_gpu
from qualitygate.training import loop, record, results, study_run
from qualitygate.training.ledger import Ledger
from qualitygate.training.loop import Photographs, Share
from qualitygate.training.pool import Pool
from qualitygate.training.run_queue import RunQueue
from qualitygate.training.study_plan import Run
from qualitygate.training.study_run import Hooks, Material, Settings

_ASK_AGAIN_S = 0.5
# A GPU takes the photographs as a whole when they leave it this share of what is free, shared among its workers.
_PIXELS_SHARE = 0.5


@ray.remote(num_cpus=0)
class Queue(RunQueue):
    """The queue in a process of its own, which outlives workers; it knows when it last heard of any."""

    def __init__(self, count: int, *, together: bool) -> None:
        super().__init__(count, together=together)
        self._heard = time.monotonic()
        self._losses = Losses()

    def lost(self, gpu: str, said: str) -> None:
        """A worker has lost its GPU. Ends the study where that has happened too often without an epoch in between."""
        times = self._losses.lost(gpu)
        if times >= MOST_LOSSES:
            self.tell("fatal", f"{gone(gpu, times, said)}; run the same command again to go on")

    def worked(self, gpu: str) -> None:
        """This GPU has finished an epoch."""
        self._losses.worked(gpu)

    def heard(self) -> None:
        """A worker is alive."""
        self._heard = time.monotonic()

    def stopped(self) -> bool:
        """Whether workers are to stop; asked every second or so by those at work."""
        self.heard()
        return super().stopped()

    def take(self, group: str, rank: int, turn: int = 0) -> Any:
        """The next run, also a sign of life."""
        self.heard()
        return super().take(group, rank, turn)

    def tell(self, kind: str, content: Any) -> None:
        """Word for the driver, also a sign of life."""
        self.heard()
        super().tell(kind, content)

    def report(self) -> tuple[list[tuple[str, Any]], float]:
        """(messages, seconds since any worker was heard)."""
        return list(self.messages()), time.monotonic() - self._heard


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """All that workers share. pixels: reference to (N, 3, S, S) uint8. states: references to pretrained parameters.

    place: (photographs of the pool,) int64, where the pixels of each lie.
    """

    runs: tuple[Run, ...]
    pool: Pool
    settings: Settings
    place: npt.NDArray[np.int64]
    pixels: Any
    states: dict[str, Any]
    output: str
    threads: int
    together: bool
    queue: Any
    # As the driver logs: Ray keeps what workers log in files of each node.
    log_format: str = logs.TEXT


class _Stop(Exception):
    """The driver wants no more."""


def work(settings: dict[str, Any]) -> None:
    """The function of each worker: runs until the queue has none."""
    study: Study = ray.get(settings["study"])
    logs.set_up(study.log_format, verb="study")
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = _prepare_process(study.threads)
    group = _name_of_group(world, device)
    ask = functools.partial(_ask, study.queue)
    ask("begin", group)
    material = _material(study, device, context.get_local_world_size())
    ledger, turn = Ledger(study.output), 0
    while (number := ask("take", group, rank, turn)) is not None:
        if number == "wait":
            time.sleep(_ASK_AGAIN_S)
            continue
        turn += 1
        try:
            outcome = _one(study, study.runs[number], number, material, device, ledger, rank, world, group)
        except _Stop:
            return
        except OSError as error:
            ask("tell", "fatal", _unwritable(study.output, error))
            return
        if rank == 0 or not study.together:
            ask("done", group, rank, outcome)


def _ask(queue: Any, method: str, *arguments: Any) -> Any:
    return ray.get(getattr(queue, method).remote(*arguments))


def _one(
    study: Study,
    run: Run,
    number: int,
    material: Material,
    device: torch.device,
    ledger: Ledger,
    rank: int,
    world: int,
    group: str,
) -> str:
    """Train a run and write what came of it; returns its status. A failure of its own is its result."""
    ask = functools.partial(_ask, study.queue)
    share = Share(rank=rank, world=world) if study.together else Share()

    def on_epoch(done: int, seconds: float) -> None:
        ask("tell", "epoch", (number, done, seconds))
        if device.type == "cuda":
            ask("worked", gpu_name())

    hooks = Hooks(
        # Several processes have to stop at the same step, or those left wait for the others for ever.
        on_step=_asking(study.queue, stopping=share.world == 1),
        on_epoch=on_epoch,
        share=share,
    )
    if share.world > 1:
        hooks = replace(
            hooks,
            together=nn.parallel.DistributedDataParallel,
            add=_added,
            after_epoch=lambda: _stop_together(study.queue, device),
        )
    facts = {"hardware": _hardware(device, study.threads, share), "versions": record.versions()}
    try:
        state = _state(study, run.architecture)
        with telling_of_a_lost_gpu(f"the run {run.name}"):
            found = study_run.execute(run, study.settings, material, state, device, ledger, hooks)
        if found is not None:
            row, predictions = found
            ledger.write({**row, "attempts": ask("attempts", number), **facts}, predictions)
            ledger.delete_checkpoint(run.run_id)
        return results.OK
    except (_Stop, OSError):
        raise
    except DeviceLost as error:
        # Not this run's end: a new process may have its GPU back, and a run that loses it each time is found out as
        # one that kills its worker.
        ask("tell", "error", (number, str(error)))
        ask("lost", gpu_name(), str(error))
        raise
    except Exception as error:
        if share.world > 1 and not isinstance(error, QualityGateError):
            # The other processes of this run wait for this one: only their end helps, and a new group. A process that
            # merely lost its neighbour says so too, but later.
            ask("tell", "error", (number, results.failed(_reason(error, study))["error"]))
            raise
        if rank == 0 or not study.together:
            ledger.write_failure(
                {**run.row(), **results.failed(_reason(error, study)), "attempts": ask("attempts", number), **facts}
            )
            ledger.delete_checkpoint(run.run_id)
        return results.FAILED
    finally:
        if device.type == "cuda":
            # After a lost GPU this says so too, and is no news.
            with contextlib.suppress(RuntimeError):
                torch.cuda.empty_cache()


def _reason(error: Exception, study: Study) -> BaseException | str:
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return (
            f"the GPU's memory is too small for --batch-size {study.settings.batch_size} with as many workers on it; "
            "use a smaller one, or more --gpus-per-worker"
        )
    return str(error) if isinstance(error, QualityGateError) else error


def _unwritable(output: str, error: OSError) -> str:
    from qualitygate.tables import storage

    reason = error.strerror or storage.redact(str(error))[:200]
    return (
        f"--output {storage.redact(output)!r} can't be written to ({reason}); what is finished is kept: make room or "
        "mend it, and run the same command again"
    )


def _prepare_process(threads: int) -> torch.device:
    """Deterministic, on the worker's GPU if it has one, with a number of threads that doesn't depend on the machine."""
    loop.deterministic()
    torch.set_num_threads(threads)
    device: torch.device = ray.train.torch.get_device()
    return device


def _name_of_group(world: int, device: torch.device) -> str:
    """A name that all workers of a group share and no other group has."""
    name = uuid.uuid4().int & (2**62 - 1)
    if world == 1:
        return f"{name:x}"
    on = device if torch.distributed.get_backend() == "nccl" else torch.device("cpu")
    said = torch.tensor([name], dtype=torch.int64, device=on)
    torch.distributed.broadcast(said, 0)
    return f"{int(said.item()):x}"


def _material(study: Study, device: torch.device, neighbours: int) -> Material:
    """The photographs where batches are made: on the GPU if they fit, else in this node's shared memory."""
    with warnings.catch_warnings():
        # They can't be written to, and nobody does.
        warnings.simplefilter("ignore", UserWarning)
        pixels = torch.from_numpy(ray.get(study.pixels))
    labels = np.empty(len(study.place), dtype=np.int64)
    labels[study.place] = study.pool.label
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        if pixels.nbytes * neighbours < _PIXELS_SHARE * free:
            pixels = pixels.to(device)
    photographs = Photographs(pixels=pixels, labels=torch.from_numpy(labels).to(pixels.device))
    return Material(pool=study.pool, photographs=photographs, place=study.place)


def _state(study: Study, architecture: str) -> dict[str, Tensor] | None:
    reference = study.states.get(architecture)
    if reference is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return {name: torch.from_numpy(value) for name, value in ray.get(reference).items()}


def _asking(queue: Any, *, stopping: bool) -> Callable[[int], None]:
    """Asks now and then, which shows that this worker is alive; `stopping`: raises _Stop when the driver wishes."""
    last = time.monotonic()

    def ask(_photographs: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _ASK_AGAIN_S:
            if ray.get(queue.stopped.remote()) and stopping:
                raise _Stop
            last = time.monotonic()

    return ask


def _added(totals: Tensor) -> Tensor:
    torch.distributed.all_reduce(totals)
    return totals


def _stop_together(queue: Any, device: torch.device) -> None:
    flag = torch.tensor(float(ray.get(queue.stopped.remote())), device=device)
    torch.distributed.all_reduce(flag)
    if bool(flag > 0):
        raise _Stop


def _hardware(device: torch.device, threads: int, share: Share) -> str:
    """In words, for the run row: results on GPUs are equal on the same model only."""
    if device.type == "cuda":
        name = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    else:
        name = f"{platform.machine()} CPU, {threads} thread{'s' * (threads > 1)}"
    return name + (f", {share.world} processes" if share.world > 1 else "")

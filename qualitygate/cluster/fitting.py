"""One training on Ray Train: its worker group started, watched and, on Ctrl-C, stopped after the last whole step."""

import contextlib
import logging
import os
import re
import threading
from collections.abc import Callable
from typing import Any

from qualitygate.cluster.planning import Progress
from qualitygate.errors import ConfigurationError, QualityGateError
from qualitygate.tables import storage

_RUN = "run"
_MAX_WORKER_DEATHS = 2
_POLL_S = 0.2
# After Ctrl-C: long enough for a step, short enough for a person.
_GRACE_S = 15.0
# The last line of a traceback.
_ERROR = re.compile(r"(?:\w+\.)*\w+(?:Error|Exception): ")
# Says all that its causes say, and what to do.
_LOST = re.compile(r"(?:\w+\.)*DeviceLost: ")


def fit(work: Any, place: str, *, workers: int, on_gpu: bool, progress: Progress) -> dict[str, Any]:
    """Train as `work` (a training_worker.Work) says and return the content of the last checkpoint.

    place: folder or prefix of the checkpoints, one of which is kept; one that is there is gone on from.

    A worker that dies is started again from the last checkpoint, twice. Raises QualityGateError with the reason.
    """
    import ray.train
    from ray.train.torch import TorchTrainer

    from qualitygate.cluster.training_worker import read_checkpoint, train

    logging.getLogger("ray.train").setLevel(logging.ERROR)
    # Ray Train gives up after 60 s, which a busy machine takes to import torch.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "600")
    # How soon the end of the training, or of a worker, is noticed.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    trainer = TorchTrainer(
        train,
        train_loop_config={"work": work},
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers,
            use_gpu=on_gpu,
            resources_per_worker={"CPU": 1.0, "GPU": 1.0} if on_gpu else {"CPU": 1.0},
        ),
        run_config=ray.train.RunConfig(
            name=_RUN,
            **_store(place),
            failure_config=ray.train.FailureConfig(max_failures=_MAX_WORKER_DEATHS),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
            # Threads that spin while they wait stall each other for minutes where others use the cores too.
            worker_runtime_env={"env_vars": {"OMP_WAIT_POLICY": "PASSIVE"}},
        ),
    )
    try:
        result = _watched(trainer.fit, work.mailbox, work.recipe.epochs, progress)
    finally:
        progress.stop()
    if result.checkpoint is None:
        raise QualityGateError("the training ended without a checkpoint; run the same command again")
    with result.checkpoint.as_directory() as folder:
        return read_checkpoint(folder)


def _store(place: str) -> dict[str, Any]:
    if storage.is_local(place):
        return {"storage_path": place}
    file_system, path = storage.file_system(place)
    return {"storage_path": path, "storage_filesystem": file_system}


def _watched(fit: Callable[[], Any], mailbox: Any, epochs: int, progress: Progress) -> Any:
    """`fit()` in a thread of its own, while this one tells of each epoch and minds Ctrl-C.

    In the main thread Ray Train would take the signal over, and keep it.
    """
    import ray

    ended: dict[str, Any] = {}

    def target() -> None:
        try:
            ended["result"] = fit()
        except BaseException as error:
            ended["error"] = error

    thread = threading.Thread(target=target, name="fit", daemon=True)
    thread.start()
    listener = _Listener(epochs, progress)
    try:
        while thread.is_alive():
            thread.join(_POLL_S)
            listener.hear(ray.get(mailbox.take.remote()))
    except KeyboardInterrupt:
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(mailbox.stop.remote(), timeout=_GRACE_S)
        thread.join(_GRACE_S)
        raise
    listener.hear(ray.get(mailbox.take.remote()))
    if listener.failure is not None:
        raise QualityGateError(listener.failure)
    if "error" in ended:
        raise _explained(ended["error"]) from ended["error"]
    return ended["result"]


class _Listener:
    """Turns what workers post into progress."""

    def __init__(self, epochs: int, progress: Progress) -> None:
        self._epochs = epochs
        self._progress = progress
        self._told = -1
        self.failure: str | None = None

    def hear(self, messages: list[tuple[str, Any]]) -> None:
        for kind, content in messages:
            if kind == "begin":
                if self._told >= 0:
                    self._progress.note(f"a training worker died; going on after epoch {content}")
                else:
                    self._progress.start(total=self._epochs, done=content)
                self._told = max(self._told, content)
            elif kind == "failure":
                self.failure = content
            elif content["epoch"] > self._told:
                self._told = content["epoch"]
                self._progress.note(
                    f"epoch {content['epoch']} of {self._epochs}, {content['seconds']:.1f} s: loss "
                    f"{content['train_loss']:.3f}; kept out: loss {content['eval_loss']:.3f}, accuracy "
                    f"{content['eval_accuracy']:.3f}"
                )
                self._progress.advance(rows=1, errors=0)


def reason_of(error: BaseException) -> str:
    """What went wrong first, in one line, of the pages that Ray writes about an error in a worker."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lost := [line for line in lines if _LOST.match(line)]:
        return storage.redact(_LOST.sub("", lost[-1]))[:600]
    told = [line for line in lines if _ERROR.match(line)]
    return storage.redact((told or lines[-1:] or [type(error).__name__])[0])[:300]


def _explained(error: BaseException) -> QualityGateError:
    reason = reason_of(error)
    if "marker" in str(error):
        return ConfigurationError(
            f"the training's workers can't see --output ({reason}); on a cluster give a shared folder or a URI"
        )
    return QualityGateError(f"the training failed: {reason}; run the same command again to go on after the last epoch")

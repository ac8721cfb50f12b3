"""The worker group of a study on Ray Train: started once, watched, and on Ctrl-C stopped within a step."""

import contextlib
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from qualitygate.cluster.planning import Progress
from qualitygate.errors import ConfigurationError, QualityGateError
from qualitygate.tables import storage

WORK = "_work"
_POLL_S = 0.2
# After Ctrl-C: long enough for a step, short enough for a person.
_GRACE_S = 15.0
# A busy machine takes minutes to import torch in several processes; a step of a large network on a CPU half a minute.
_START_S = 600
_SILENCE_S = 1800.0
_NEWS_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Of how many workers, and what each takes. together: all train one run (DistributedDataParallel)."""

    workers: int
    gpus_per_worker: float = 0.0
    together: bool = False


@dataclass(slots=True, kw_only=True)
class Watched:
    """What was seen of a group. began: seconds until its workers were ready, None if they never were."""

    began: float | None = None
    finished: int = 0
    failed: int = 0
    deaths: int = 0
    epochs: int = 0


def train(
    study: Any,
    group: Group,
    progress: Progress,
    on_killer: Callable[[int, int, str | None], None],
    epochs: dict[int, int],
) -> Watched:
    """Let the group work through the study's queue (study: a study_worker.Study).

    on_killer: called with the number of a run whose worker died time and again, how often, and what it said first the
        last time, if anything.
    epochs: of each run by its number, to tell the time left.

    Raises KeyboardInterrupt when stopped, QualityGateError where workers can't go on.
    """
    import ray
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    from qualitygate.cluster.study_worker import work

    logging.getLogger("ray.train").setLevel(logging.ERROR)
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(_START_S))
    place = storage.join(study.output, WORK, "ray")
    name = uuid.uuid4().hex[:12]
    on_gpu = group.gpus_per_worker > 0
    resources = {"CPU": 1.0} | ({"GPU": group.gpus_per_worker} if on_gpu else {})
    trainer = TorchTrainer(
        work,
        train_loop_config={"study": ray.put(study)},
        # Workers of a queue exchange one number; several of them may share a GPU, which NCCL refuses.
        torch_config=TorchConfig(backend="nccl" if on_gpu and group.together else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=group.workers, use_gpu=on_gpu, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name=name,
            **_store(place),
            # A death costs some run an attempt, so the queue bounds them; this bounds those that hit no run.
            failure_config=ray.train.FailureConfig(max_failures=4 * len(study.runs) + 4, controller_failure_limit=2),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
            # Threads that spin while they wait stall each other for minutes where others use the cores too.
            worker_runtime_env={"env_vars": {"OMP_WAIT_POLICY": "PASSIVE"}},
        ),
    )
    listener = _Listener(progress, epochs, on_killer, group.workers)
    try:
        with _without_ray_messages():
            _watch(trainer.fit, study.queue, listener)
    finally:
        progress.stop()
        with contextlib.suppress(OSError):
            storage.delete_folder(storage.join(place, name))
    return listener.seen


@contextlib.contextmanager
def _without_ray_messages() -> Iterator[None]:
    """Ray prints a paragraph about each process that dies, whatever its log level; we say it in a line."""
    import ray._private.worker as internals

    name = "print_to_stdstream"
    before = getattr(internals, name, None)
    if before is None:
        yield
        return
    setattr(internals, name, lambda *_arguments, **_options: None)
    try:
        yield
    finally:
        setattr(internals, name, before)


def _store(place: str) -> dict[str, Any]:
    if storage.is_local(place):
        return {"storage_path": place}
    file_system, path = storage.file_system(place)
    return {"storage_path": path, "storage_filesystem": file_system}


def _watch(fit: Callable[[], Any], queue: Any, listener: "_Listener") -> None:
    """`fit()` in a thread of its own, while this one listens and minds Ctrl-C.

    In the main thread Ray Train would take the signal over, and keep it.
    """
    import ray

    ended: dict[str, BaseException] = {}

    def target() -> None:
        try:
            fit()
        except BaseException as error:
            ended["error"] = error

    thread = threading.Thread(target=target, name="fit", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(_POLL_S)
            messages, silence = ray.get(queue.report.remote())
            listener.hear(messages)
            if silence > _SILENCE_S:
                raise QualityGateError(
                    f"no worker of the study was heard for {silence / 60:.0f} minutes; see whether the cluster has the "
                    "CPUs, GPUs and memory that it needs, and run the same command again"
                )
    except KeyboardInterrupt:
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(queue.stop.remote(), timeout=_GRACE_S)
        thread.join(_GRACE_S)
        raise
    except ray.exceptions.RayActorError as error:
        raise QualityGateError("the study's queue died; run the same command again to go on") from error
    listener.hear(ray.get(queue.report.remote())[0])
    if listener.fatal is not None:
        raise QualityGateError(listener.fatal)
    if "error" in ended:
        raise _explained(ended["error"]) from ended["error"]


def _explained(error: BaseException) -> QualityGateError:
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    reason = storage.redact(lines[-1])[:300] if lines else type(error).__name__
    if "marker" in str(error):
        return ConfigurationError(
            f"the study's workers can't see --output ({reason}); on a cluster give a shared folder or a URI"
        )
    return QualityGateError(f"the study stopped: {reason}; run the same command again to go on")


@dataclass(slots=True)
class _Listener:
    """Turns what workers tell into progress."""

    progress: Progress
    epochs: dict[int, int]
    on_killer: Callable[[int, int, str | None], None]
    workers: int
    seen: Watched = field(default_factory=Watched)
    fatal: str | None = None
    _started: float = field(default_factory=time.monotonic)
    _told: float = field(default_factory=time.monotonic)
    _running: dict[int, int] = field(default_factory=dict)
    _errors: dict[int, str] = field(default_factory=dict)
    _seconds: float = 0.0
    _done: int = 0

    def hear(self, messages: list[tuple[str, Any]]) -> None:
        for kind, content in messages:
            getattr(self, f"_hear_{kind}")(content)
        now = time.monotonic()
        if self._running and now - self._told > _NEWS_S:
            self._told = now
            self.progress.note(self._news())

    def _hear_group(self, content: dict[str, Any]) -> None:
        if self.seen.began is None:
            self.seen.began = time.monotonic() - self._started
        if content["again"]:
            self.seen.deaths += 1
            self._running.clear()
            cut = len(content["interrupted"])
            self.progress.note(f"a worker died; going on with {cut} run{'s' * (cut != 1)} after the last epoch kept")

    def _hear_start(self, content: tuple[int, int]) -> None:
        self._running[content[0]] = 0
        self._errors.pop(content[0], None)

    def _hear_error(self, content: tuple[int, str]) -> None:
        self._errors.setdefault(*content)

    def _hear_epoch(self, content: tuple[int, int, float]) -> None:
        number, done, seconds = content
        self._running[number] = done
        self._seconds += seconds
        self._done += 1
        self.seen.epochs += 1

    def _hear_done(self, content: tuple[int, str]) -> None:
        number, outcome = content
        self._end(number, failed=outcome != "ok")

    def _hear_killer(self, content: tuple[int, int]) -> None:
        number, deaths = content
        self.on_killer(number, deaths, self._errors.get(number))
        self._end(number, failed=True)

    def _hear_fatal(self, content: str) -> None:
        self.fatal = content

    def _end(self, number: int, *, failed: bool) -> None:
        self._running.pop(number, None)
        self.epochs.pop(number, None)
        self.seen.finished += not failed
        self.seen.failed += failed
        self.progress.advance(rows=1, errors=int(failed))

    def _news(self) -> str:
        """Runs at work, their epochs, and the time left by the mean epoch so far."""
        at_work = len(self._running)
        ended = self.seen.finished + self.seen.failed
        said = f"{ended} runs ended, {at_work} running"
        if self._done:
            left = sum(self.epochs.values()) - sum(self._running.values())
            minutes = left * self._seconds / self._done / max(1, min(self.workers, len(self.epochs))) / 60
            said += f", {left:,} epochs left: some {minutes:.0f} min"
        return said

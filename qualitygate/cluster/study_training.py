"""Training what is missing of a study: how many workers, the queue, and what the ledger then holds."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qualitygate import logs
from qualitygate.calibration import outputs
from qualitygate.cluster import devices, session, study_inputs
from qualitygate.cluster.planning import Progress
from qualitygate.cluster.study_group import Group, Watched
from qualitygate.cluster.study_inputs import Inputs, Pixels
from qualitygate.config import StudyConfig, echo
from qualitygate.errors import ConfigurationError, QualityGateError
from qualitygate.tables import storage
from qualitygate.training import record, results, study_plan, subset_files
from qualitygate.training.ledger import Entry, Ledger
from qualitygate.training.pool import Pool
from qualitygate.training.study_plan import Run, StudyPlan

RECORD = "study.json"
# Resident, with torch, of a worker without its network.
_WORKER_BYTES = 1 << 30


@dataclass(slots=True, kw_only=True)
class Times:
    """Seconds of each stage, for the record."""

    started: float = field(default_factory=time.monotonic)
    stages: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.stages[name] = self.stages.get(name, 0.0) + time.monotonic() - began

    @property
    def total(self) -> float:
        return time.monotonic() - self.started


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Pretrained parameters: the hash of each architecture's, and how to read them again."""

    sha256: dict[str, str | None]
    place: str | None

    @property
    def seen(self) -> str | None:
        """Where the ids are that these parameters were trained on, if that is known."""
        return record.ids_beside(self.place)

    def state(self, architecture: str) -> dict[str, Any]:
        """NumPy arrays, which workers of a node share."""
        state, _ = record.pretrained(architecture, self.place)
        return {name: value.numpy() for name, value in state.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """The plan and what the ledger holds of it."""

    plan: StudyPlan
    pool: Pool
    entries: dict[str, Entry]
    watched: Watched
    workers: int
    reused: int
    messages: tuple[str, ...]


def trained(
    config: StudyConfig,
    output: str,
    inputs: Inputs,
    weights: Weights,
    cluster: session.Cluster,
    progress: Progress,
    times: Times,
) -> Made:
    import ray

    with times.stage("decoding"):
        group = _group(config, cluster, progress)
        pool, pixels, messages = study_inputs.pool_of(
            config, inputs, cluster, config.image_size, progress, seen=weights.seen
        )
    with times.stage("planning"):
        plan = study_plan.plan(pool, study_inputs.design(config, weights.sha256, on_gpu=group.gpus_per_worker > 0))
        said = tuple(dict.fromkeys([*messages, *plan.messages]))
        for message in said:
            progress.note(message)
        subset_files.write(
            storage.join(output, subset_files.FOLDER),
            pool,
            plan.repetitions,
            plan.design.sampling,
            inputs.methods,
        )
        storage.write_bytes(storage.join(output, "_config.yaml"), echo(config).encode())
        ledger = Ledger(output)
        known = ledger.read([one.run_id for one in plan.runs])
    settled = [run_id for run_id, entry in known.items() if entry.predictions is not None or not config.retry_failed]
    missing = plan.missing(settled)
    progress.start(total=len(plan.runs), done=len(plan.runs) - len(missing))
    watched, workers = Watched(), 0
    try:
        if missing:
            # Its presence means that the study is complete.
            outputs.discard(storage.join(output, RECORD))
            group = _fitting(group, len(missing), cluster, config)
            workers = group.workers
            with times.stage("pixels"):
                reference = ray.put(_array(pixels, config.image_size))
                states = {
                    name: ray.put(weights.state(name))
                    for name in dict.fromkeys(one.architecture for one in missing)
                    if weights.sha256[name] is not None
                }
            with times.stage("training"):
                watched = _on_group(
                    config, output, tuple(missing), pool, pixels, reference, states, group, plan, progress
                )
    finally:
        progress.stop()
    entries = ledger.read([one.run_id for one in plan.runs])
    lost = [one.name for one in plan.missing(list(entries))]
    if lost:
        raise QualityGateError(
            f"{len(lost)} of {len(plan.runs)} runs came to no end (such as {lost[0]}); run the same command again"
        )
    return Made(
        plan=plan,
        pool=pool,
        entries=entries,
        watched=watched,
        workers=workers,
        reused=len(plan.runs) - len(missing),
        messages=said,
    )


def _group(config: StudyConfig, cluster: session.Cluster, progress: Progress) -> Group:
    """How many workers where, before the number of runs is known."""
    together = config.ddp > 1
    if together or config.gpus_per_worker >= 1:
        wanted = config.ddp if together else (config.workers or 1)
        on_gpu = devices.on_gpu(config.device, cluster, wanted, progress)
        share = 1.0
    else:
        whole = max(1, int(np.ceil((config.workers or 1) * config.gpus_per_worker)))
        on_gpu = devices.on_gpu(config.device, cluster, whole, progress)
        share = config.gpus_per_worker
    if not on_gpu:
        most = int(cluster.cpus // 1)
        workers = config.ddp if together else (config.workers or max(1, most // config.threads))
    else:
        most = int(min(cluster.gpus / share, cluster.cpus))
        workers = config.ddp if together else (config.workers or max(1, most))
    if workers > most:
        what = f"{cluster.gpus:g} GPUs and " if on_gpu else ""
        raise ConfigurationError(
            f"{workers} workers need as many CPUs{' and GPUs' * on_gpu}, the Ray cluster has {what}{cluster.cpus:g} "
            "CPUs; use fewer --workers"
        )
    return Group(workers=workers, gpus_per_worker=share if on_gpu else 0.0, together=together)


def _fitting(group: Group, runs: int, cluster: session.Cluster, config: StudyConfig) -> Group:
    """No more workers than runs, nor, unless they were asked for, than the memory holds."""
    if group.together:
        return group
    workers = min(group.workers, runs)
    if config.workers is None:
        workers = max(1, min(workers, int(min(cluster.memory / _WORKER_BYTES, runs))))
    return Group(workers=workers, gpus_per_worker=group.gpus_per_worker)


def _array(pixels: Pixels, image_size: int) -> Any:
    from qualitygate.cluster.photographs import assemble

    # As a plain array: Ray shares its bytes with all workers of a node, and sends them to others.
    return np.asarray(assemble(pixels.chunks, len(pixels.place), image_size))


def _on_group(
    config: StudyConfig,
    output: str,
    missing: tuple[Run, ...],
    pool: Pool,
    pixels: Pixels,
    reference: Any,
    states: dict[str, Any],
    group: Group,
    plan: StudyPlan,
    progress: Progress,
) -> Watched:
    from qualitygate.cluster import study_group
    from qualitygate.cluster.study_worker import Queue, Study
    from qualitygate.training.study_run import Settings

    ledger = Ledger(output)
    queue = Queue.options(scheduling_strategy=session.beside_driver()).remote(  # type: ignore[attr-defined]
        len(missing), together=group.together
    )
    study = Study(
        runs=missing,
        pool=pool,
        settings=Settings(
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            image_size=config.image_size,
            augment=config.augment,
            precision=str(plan.design.training["precision"]),
            checkpoint_share=config.checkpoint_share,
        ),
        place=pixels.place,
        pixels=reference,
        states=states,
        output=output,
        threads=config.threads,
        together=group.together,
        queue=queue,
        log_format=logs.form(),
    )

    def on_killer(number: int, deaths: int, said: str | None) -> None:
        error = f"its worker died {deaths} times while it ran, at last with nothing else at work"
        error += f": {said}" if said else ""
        ledger.write_failure({**missing[number].row(), **results.failed(error), "attempts": deaths})
        ledger.delete_checkpoint(missing[number].run_id)

    progress.note(
        f"{len(missing)} runs to train with {group.workers} worker{'s' * (group.workers > 1)}"
        + (" together" if group.together else "")
        + (f", each with {group.gpus_per_worker:g} GPU" if group.gpus_per_worker else " on CPUs")
    )
    epochs = {number: one.epochs for number, one in enumerate(missing)}
    return study_group.train(study, group, progress, on_killer, epochs)

"""The baseline's training job: photographs decoded once, a classifier trained on Ray Train, a checkpoint an epoch.

A killed driver's training goes on from its last epoch when the same command is run again, and ends, on a CPU, with the
same bits as one that wasn't disturbed.
"""

import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from qualitygate import logs
from qualitygate.cluster import devices, session
from qualitygate.cluster.planning import Progress
from qualitygate.config import BaselineConfig, echo
from qualitygate.errors import ConfigurationError, Failure, Interrupted
from qualitygate.tables import access, storage
from qualitygate.training import data, record

WORK = "_train"
PLAN = "plan.json"
# Not part of what a training is: where it runs, and what the photographs themselves say.
_ELSEWHERE = (
    *("output", "ray_address", "device", "workers", "limit", "input"),
    *("max_requests_per_second", "retry_seconds", "request_timeout_s"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How a training ended: `record` is model.json's content, `history` an entry an epoch.

    trained: False where the folder held the finished training already.
    """

    output: str
    record: dict[str, Any]
    history: list[dict[str, Any]]
    trained: bool
    seconds: float


def run(config: BaselineConfig, progress: Progress) -> Result:
    """Train a classifier, or go on where an earlier run of the same configuration stopped.

    A finished folder is left as it is. Raises ConfigurationError (there is no model then), Interrupted (resumable),
    QualityGateError (the training failed).
    """
    started = time.time()
    output = storage.check_location(config.output, "--output")
    if not output.strip():
        raise ConfigurationError("--output is empty; give a folder for the model")
    if storage.is_local(output):
        output = os.path.abspath(output)
    if config.weights is not None and config.from_scratch:
        raise ConfigurationError("--weights and --from-scratch contradict each other; give one of them")
    photographs = data.labelled(config.input, limit=config.limit)
    classes = data.classes_of(photographs["label"].to_pylist())
    # What is wrong with the column is said before Ray starts and photographs are decoded.
    data.given_split(photographs)
    plan = _plan(config, photographs)
    if (result := _finished(output, plan, progress, started)) is not None:
        return result
    initial = _initial_state(config, len(classes))
    storage.check_writable(output, "--output")
    with _alone(output):
        if (result := _finished(output, plan, progress, started)) is not None:
            return result
        trained = _train(config, output, plan, photographs, initial, progress)
        written = _write(config, output, plan, trained, initial, started)
        storage.delete_folder(storage.join(output, WORK))
    history = trained.checkpoint["history"]
    return Result(output=output, record=written, history=history, trained=True, seconds=time.time() - started)


# ---- what is to be done, and whether it was -----------------------------------------------------------------


def _plan(config: BaselineConfig, photographs: pa.Table) -> dict[str, Any]:
    """All that decides the result: the settings, and which photographs by id, label, group, split and change mark."""
    settings = {key: value for key, value in config.model_dump(mode="json").items() if key not in _ELSEWHERE}
    if settings["weights"] is not None:
        settings["weights"] = storage.redact(settings["weights"])
    columns = ("image_id", "label", "group", "split", "box", "etag")
    return {"settings": settings, "photographs": record.digest([photographs[name].to_pylist() for name in columns])}


def _finished(output: str, plan: dict[str, Any], progress: Progress, started: float) -> Result | None:
    """The training that the folder holds, if it is this one and complete; ConfigurationError if it is another."""
    finished = record.read_record(output)
    if finished is not None:
        _refuse_other(output, finished.get("plan") or {}, plan, "a training")
        progress.note("trained already with these photographs and settings; nothing to do")
        history = json.loads(storage.read_bytes(storage.join(output, record.HISTORY)) or b"[]")
        return Result(output=output, record=finished, history=history, trained=False, seconds=time.time() - started)
    begun = storage.read_bytes(storage.join(output, WORK, PLAN))
    if begun is not None:
        _refuse_other(output, json.loads(begun), plan, "an unfinished training")
    return None


def _refuse_other(output: str, before: dict[str, Any], plan: dict[str, Any], what: str) -> None:
    known = before.get("settings", {})
    changed = [
        f"{key} {known.get(key)!r} instead of {value!r}"
        for key, value in plan["settings"].items()
        if known.get(key) != value
    ]
    if before.get("photographs") != plan["photographs"]:
        changed.append("other photographs or labels")
    if changed:
        raise ConfigurationError(
            f"--output {storage.redact(output)!r} holds {what} with {', '.join(changed)}; give another folder, or "
            "delete this one"
        )


@contextmanager
def _alone(output: str) -> Iterator[None]:
    """No other training on this machine writes to the same folder."""
    if not storage.is_local(output):
        yield
        return
    from filelock import FileLock, Timeout

    lock = FileLock(storage.join(output, "_train.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ConfigurationError(
            f"another training is at work in --output {output!r}; wait for it, or give another folder"
        ) from error
    try:
        yield
        # Only once all is done: who waits at the old file finds the finished model.
        with contextlib.suppress(OSError):
            os.unlink(lock.lock_file)
    finally:
        lock.release()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Initial:
    """The parameters that a training starts from, as NumPy arrays, and where they are from: None for a seed."""

    state: dict[str, Any]
    pretrained: dict[str, str] | None


def _initial_state(config: BaselineConfig, classes: int) -> _Initial:
    from qualitygate.training import models

    models.check_name(config.architecture)
    size, seed = config.image_size, config.seed
    pretrained = None
    if config.from_scratch:
        model = models.build(config.architecture, classes, image_size=size, seed=seed)
    else:
        state, pretrained = record.pretrained(config.architecture, config.weights)
        model = models.transfer(config.architecture, classes, state, image_size=size, seed=seed)
    return _Initial(
        state={name: value.detach().numpy() for name, value in model.state_dict().items()}, pretrained=pretrained
    )


# ---- training ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trained:
    """What came out: the last checkpoint, and the photographs that were used with their split."""

    checkpoint: dict[str, Any]
    table: pa.Table
    split: data.Split
    classes: tuple[str, ...]
    failures: tuple[Failure, ...]


def _train(
    config: BaselineConfig,
    output: str,
    plan: dict[str, Any],
    photographs: pa.Table,
    initial: _Initial,
    progress: Progress,
) -> _Trained:
    progress.note("starting Ray, which takes some ten seconds")
    try:
        with session.connect(config.ray_address) as cluster:
            return _on_ray(config, output, plan, photographs, initial, cluster, progress)
    except KeyboardInterrupt as stop:
        raise Interrupted("stopped; run the same command again to go on after the last finished epoch") from stop


def _on_ray(
    config: BaselineConfig,
    output: str,
    plan: dict[str, Any],
    photographs: pa.Table,
    initial: _Initial,
    cluster: session.Cluster,
    progress: Progress,
) -> _Trained:
    import ray

    from qualitygate.cluster import fitting
    from qualitygate.cluster import photographs as decoding
    from qualitygate.cluster.training_worker import Mailbox, Work
    from qualitygate.training.loop import Recipe

    if cluster.cpus < config.workers:
        raise ConfigurationError(
            f"--workers {config.workers} needs as many CPUs, the Ray cluster has {cluster.cpus:g}; use fewer workers"
        )
    on_gpu = devices.on_gpu(config.device, cluster, config.workers, progress)
    started = time.time()
    decoded = decoding.decode(
        photographs.select(["uri", "box"]).to_pylist(), config.image_size, cluster, access.of(config)
    )
    progress.note(f"decoded {len(decoded.rows):,} photographs in {time.time() - started:.1f} s")
    failures = tuple(failure for _, failure in decoded.failures)
    unread = data.unread(photographs["image_id"].to_pylist(), decoded.failures)
    if said := data.refuse_unreadable(unread, photographs.num_rows):
        progress.note(said)
    table = photographs.take(pa.array(decoded.rows)).append_column("sha256", pa.array(decoded.sha256, pa.string()))
    split = data.split(table, fraction=config.eval_fraction, seed=config.seed)
    for note in split.notes:
        progress.note(note)
    classes = data.classes_of(table["label"].to_pylist())
    if gone := sorted(set(photographs["label"].to_pylist()) - set(classes)):
        raise ConfigurationError(f"no photograph labelled {data.shown(gone)} can be read; leave that label out")
    position = {label: place for place, label in enumerate(classes)}
    _keep_plan(config, output, plan, table, split)
    progress.note(
        f"training {config.architecture} on {len(split.train):,} photographs of {len(classes)} classes, "
        f"{len(split.evaluation):,} are kept out"
    )
    work = Work(
        architecture=config.architecture,
        classes=len(classes),
        image_size=config.image_size,
        recipe=Recipe(
            epochs=config.epochs,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            augment=config.augment,
            seed=config.seed,
        ),
        initial=ray.put(initial.state),
        chunks=decoded.chunks,
        labels=np.array([position[label] for label in table["label"].to_pylist()], dtype=np.int64),
        train=split.train,
        evaluation=split.evaluation,
        mailbox=Mailbox.options(scheduling_strategy=session.beside_driver()).remote(),  # type: ignore[attr-defined]
        log_format=logs.form(),
    )
    place = storage.join(output, WORK)
    checkpoint = fitting.fit(work, place, workers=config.workers, on_gpu=on_gpu, progress=progress)
    return _Trained(checkpoint=checkpoint, table=table, split=split, classes=classes, failures=failures)


def _keep_plan(config: BaselineConfig, output: str, plan: dict[str, Any], table: pa.Table, split: data.Split) -> None:
    """Note what is being trained beside its checkpoints; refuse to go on with files that have changed since."""
    content = record.digest([table["image_id"].to_pylist(), table["sha256"].to_pylist(), split.train.tolist()])
    place = storage.join(output, WORK, PLAN)
    held = storage.read_bytes(place)
    if held is not None and json.loads(held).get("content") != content:
        raise ConfigurationError(
            f"the photographs aren't those that the training in {storage.redact(output)!r} began with (their bytes, or "
            "which of them can be read); give another folder, or delete this one"
        )
    storage.write_bytes(storage.join(output, "_config.yaml"), echo(config).encode())
    storage.write_bytes(place, record.as_json({**plan, "content": content}))


# ---- what is left ------------------------------------------------------------------------------------------


def _write(
    config: BaselineConfig,
    output: str,
    plan: dict[str, Any],
    trained: _Trained,
    initial: _Initial,
    started: float,
) -> dict[str, Any]:
    subsets = np.full(trained.table.num_rows, "eval", dtype=object)
    subsets[trained.split.train] = "train"
    ids = trained.table.select(["image_id", "group", "sha256"]).append_column("subset", pa.array(subsets, pa.string()))
    checkpoint = trained.checkpoint
    facts = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "architecture": config.architecture,
        "classes": list(trained.classes),
        "image_size": config.image_size,
        "from_scratch": config.from_scratch,
        "pretrained": initial.pretrained,
        "epochs": config.epochs,
        "hyperparameters": {
            "optimizer": "Adam",
            "loss": "cross-entropy",
            "learning_rate": config.learning_rate,
            "weight_decay": config.weight_decay,
            "batch_size": config.batch_size,
            "augment": config.augment,
        },
        "seed": config.seed,
        "accuracy": {"train": checkpoint["train_accuracy"], "eval": checkpoint["history"][-1]["eval_accuracy"]},
        "rows": {
            "train": len(trained.split.train),
            "eval": len(trained.split.evaluation),
            "unreadable": dict(Counter(failure.code.value for failure in trained.failures)),
            "by_label": dict(sorted(Counter(trained.table["label"].to_pylist()).items())),
        },
        "input": storage.redact(config.input),
        "plan": plan,
        "hardware": checkpoint["hardware"],
        "seconds": round(time.time() - started, 1),
    }
    return record.write(output, checkpoint["model"], ids, checkpoint["history"], facts)

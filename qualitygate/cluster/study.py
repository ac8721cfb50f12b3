"""The training study as one job: subsets, a queue of runs for one Ray Train worker group, tables, verdicts.

What is finished is in the ledger and is never computed again: the same command after a crash runs what is missing.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from qualitygate.cluster import session, study_inputs
from qualitygate.cluster.planning import Progress
from qualitygate.cluster.study_group import WORK
from qualitygate.cluster.study_inputs import Inputs
from qualitygate.cluster.study_training import RECORD, Made, Times, Weights, trained
from qualitygate.config import StudyConfig, SubsetsConfig, echo
from qualitygate.errors import ConfigurationError, Interrupted
from qualitygate.tables import storage
from qualitygate.training import record, results, study_report, subset_files
from qualitygate.training.subsets import draw
from qualitygate.training.verdicts import Judgement, judge

RUNS = "runs.parquet"
PREDICTIONS = "predictions.parquet"
FORMAT, VERSION = "qualitygate-study", 1
# Enough to see whether a photograph can be read; the subsets alone need no pixels.
_GLANCE_PIXELS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How a study ended: runs is `runs.parquet`, record `study.json`."""

    output: str
    runs: pa.Table
    judgement: Judgement
    record: dict[str, Any]
    messages: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """How `subsets` ended."""

    output: str
    index: str
    repetitions: int
    subsets: dict[str, int]
    photographs: int
    messages: tuple[str, ...]


def subsets(config: SubsetsConfig, progress: Progress) -> Drawn:
    """Draw and write the subsets of all repetitions, as `run` would.

    Raises ConfigurationError as `run` does.
    """
    output = _output(config.output)
    inputs = study_inputs.read(config, output)
    with _connected(config.ray_address, progress) as cluster:
        pool, _, messages = study_inputs.pool_of(config, inputs, cluster, _GLANCE_PIXELS, progress)
    sampling = study_inputs.sampling(config)
    repetitions = tuple(draw(pool, sampling, number) for number in range(config.seeds))
    storage.write_bytes(storage.join(output, "_config.yaml"), echo(config).encode())
    index = subset_files.write(storage.join(output, subset_files.FOLDER), pool, repetitions, sampling, inputs.methods)
    said = [*messages, *pool.notes, *(text for found in repetitions for text in found.messages)]
    return Drawn(
        output=output,
        index=index,
        repetitions=len(repetitions),
        subsets={subset.name: len(subset.train.rows) for found in repetitions for subset in found.subsets},
        photographs=len(pool.image_id),
        messages=tuple(dict.fromkeys(said)),
    )


def run(config: StudyConfig, progress: Progress) -> Result:
    """Train, test and judge whatever isn't finished yet, then write tables and verdicts over all of it.

    Raises ConfigurationError (nothing is trained), GateRefused, Interrupted (resumable), QualityGateError (workers
    can't go on; what is finished is kept).
    """
    times = Times()
    output = _output(config.output)
    _check(config)
    with times.stage("inputs"):
        inputs = study_inputs.read(config, output)
        weights = _weights(config)
    with _alone(output):
        try:
            with _connected(config.ray_address, progress) as cluster:
                made = trained(config, output, inputs, weights, cluster, progress, times)
        except KeyboardInterrupt as stop:
            raise Interrupted("stopped; run the same command again: what is finished is kept") from stop
        with times.stage("judging"):
            found = _judged(config, output, inputs, made, times)
        storage.delete_folder(storage.join(output, WORK))
    return found


# ---- before anything is trained ----------------------------------------------------------------------------


def _output(place: str) -> str:
    output = storage.check_location(place, "--output")
    if not output.strip():
        raise ConfigurationError("--output is empty; give a folder for the study")
    if storage.is_local(output):
        output = os.path.abspath(output)
    storage.check_writable(output, "--output")
    return output


def _check(config: StudyConfig) -> None:
    from qualitygate.training import models

    if config.weights is not None and config.from_scratch:
        raise ConfigurationError("--weights and --from-scratch contradict each other; give one of them")
    if config.ddp > 1 and config.workers not in (None, config.ddp):
        raise ConfigurationError(
            f"--ddp {config.ddp} makes all workers train one run, --workers {config.workers} wants another number; "
            "leave --workers out"
        )
    for name in config.architectures:
        models.check_name(name)
        # Fails here, not in the first run, where the photographs are too small for a network.
        models.check_size(name, config.image_size)


def _weights(config: StudyConfig) -> Weights:
    if config.from_scratch:
        return Weights(sha256=dict.fromkeys(config.architectures), place=None)
    if config.weights is not None and len(config.architectures) > 1 and not _of_several(config.weights):
        raise ConfigurationError(
            f"--weights {storage.redact(config.weights)!r} is no folder, but there are {len(config.architectures)} "
            "architectures; give the folder that holds the parameters of each, or --from-scratch"
        )
    return Weights(
        sha256={name: record.pretrained(name, config.weights)[1]["sha256"] for name in config.architectures},
        place=config.weights,
    )


def _of_several(place: str) -> bool:
    """Whether a folder may hold the parameters of more than one architecture: a trained classifier's doesn't."""
    return storage.is_folder(place) and not storage.exists(storage.join(place, record.RECORD))


@contextmanager
def _alone(output: str) -> Iterator[None]:
    """No other study on this machine works on the same folder."""
    if not storage.is_local(output):
        yield
        return
    from filelock import FileLock, Timeout

    lock = FileLock(storage.join(output, "_study.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ConfigurationError(
            f"another study is at work in --output {output!r}; wait for it, or give another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _connected(address: str, progress: Progress) -> Iterator[session.Cluster]:
    progress.note("starting Ray, which takes some ten seconds")
    with session.connect(address) as cluster:
        yield cluster


# ---- what is left ------------------------------------------------------------------------------------------


def _judged(config: StudyConfig, output: str, inputs: Inputs, made: Made, times: Times) -> Result:
    ordered = [made.entries[one.run_id] for one in made.plan.runs]
    runs = results.write_runs(storage.join(output, RUNS), [entry.row for entry in ordered])
    predicted = [entry.predictions for entry in ordered if entry.predictions is not None]
    predictions = pa.concat_tables(predicted) if predicted else results.PREDICTIONS.empty_table()
    storage.write_bytes(storage.join(output, PREDICTIONS), record.parquet(predictions))
    judgement = judge(runs, predictions)
    study_report.write(output, runs, judgement)
    failed = [
        {"run": one.name, "run_id": one.run_id, "error": made.entries[one.run_id].row["error"]}
        for one in made.plan.runs
        if made.entries[one.run_id].predictions is None
    ]
    trained = [one.row["seconds"] for one in ordered if one.predictions is not None]
    content = {
        "format": FORMAT,
        "version": VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "gate_id": inputs.gate_id,
        "photographs": len(made.pool.image_id),
        "classes": made.pool.counts(np.arange(len(made.pool.image_id))),
        "runs": {
            "planned": len(made.plan.runs),
            "finished": len(trained),
            "failed": len(failed),
            "reused": made.reused,
        },
        "failed": failed,
        "design": {
            "architectures": list(made.plan.design.architectures),
            "repetitions": made.plan.design.repetitions,
            "training": dict(made.plan.design.training),
            "weights": dict(made.plan.design.weights),
            "code_version": made.plan.design.code_version,
        },
        "messages": list(made.messages),
        "workers": made.workers,
        "worker_deaths": made.watched.deaths,
        # Of this command alone; start-up is the worker group's, which is paid once.
        "seconds": {
            "total": round(times.total, 1),
            "start_up_of_workers": None if made.watched.began is None else round(made.watched.began, 1),
            **{name: round(seconds, 1) for name, seconds in times.stages.items()},
        },
        "training_seconds_of_all_runs": round(sum(trained), 1),
        "versions": record.versions(),
    }
    storage.write_bytes(storage.join(output, RECORD), record.as_json(content))
    return Result(output=output, runs=runs, judgement=judgement, record=content, messages=made.messages)

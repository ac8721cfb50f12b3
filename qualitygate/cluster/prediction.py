"""The prediction job: a classifier's confidence on every photograph of a labelled manifest, a row for each."""

import logging
import math
import time
from collections import Counter
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from qualitygate import logs
from qualitygate.cluster import devices, session
from qualitygate.cluster.fitting import reason_of
from qualitygate.cluster.planning import Progress
from qualitygate.config import PredictConfig, echo
from qualitygate.errors import ConfigurationError, Interrupted, QualityGateError
from qualitygate.tables import access, storage
from qualitygate.training import data, record

FORMAT, VERSION = "qualitygate-prediction", 1
TABLE, RECORD = "predictions.parquet", "prediction.json"
SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("uri", pa.string()),
        pa.field("label", pa.string(), nullable=False),
        pa.field("predicted", pa.string()),
        pa.field("confidence", pa.float64()),  # probability of the labelled class
        pa.field("top1", pa.float64()),
        pa.field("correct", pa.bool_()),
        pa.field("group", pa.string()),
        pa.field("trained_on", pa.bool_()),  # null: nobody knows
        pa.field("model_fingerprint", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),  # ok | error
        pa.field("error_code", pa.string()),
        pa.field("error_message", pa.string()),
    ]
)
# What a worker may need: torch, a network and the largest photograph that is let in.
_WORKER_BYTES = 2 << 30
# Blocks a worker, so that a dying one costs little and the last ones end together.
_BLOCKS_A_WORKER = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How a prediction ended: `record` is prediction.json's content, `table` the rows."""

    output: str
    record: dict[str, Any]
    table: pa.Table
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """How many workers, what each takes of the cluster, and with how many threads it computes."""

    workers: int
    cpus_per_worker: float
    gpus_per_worker: float
    threads: int


def run(config: PredictConfig, progress: Progress) -> Result:
    """Ask a classifier about every photograph of the manifest; a row for each, in the manifest's order.

    Raises ConfigurationError (nothing was written), Interrupted (nor then).
    """
    started = time.time()
    output = storage.check_location(config.output, "--output")
    if not output.strip():
        raise ConfigurationError("--output is empty; give a folder for the predictions")
    photographs = data.labelled(config.input, limit=config.limit)
    classifier = record.load(
        config.weights,
        photographs["label"].to_pylist(),
        architecture=config.architecture,
        classes=config.classes,
        image_size=config.image_size,
    )
    for note in classifier.notes:
        progress.note(note)
    storage.check_writable(output, "--output")
    progress.note("starting Ray and the workers, which takes some ten seconds")
    try:
        found = _predicted(config, classifier, photographs, progress)
    except KeyboardInterrupt as stop:
        raise Interrupted("stopped; nothing was written, run the same command again") from stop
    table = _table(photographs, found, classifier)
    facts = _facts(config, classifier, table, started)
    # The old record first: what it says mustn't stand beside another table.
    storage.delete(storage.join(output, RECORD))
    storage.write_bytes(storage.join(output, "_config.yaml"), echo(config).encode())
    storage.write_bytes(storage.join(output, TABLE), record.parquet(table))
    storage.write_bytes(storage.join(output, RECORD), record.as_json(facts))
    return Result(output=output, record=facts, table=table, seconds=time.time() - started)


# ---- on Ray ------------------------------------------------------------------------------------------------


def _predicted(
    config: PredictConfig, classifier: record.Classifier, photographs: pa.Table, progress: Progress
) -> pa.Table:
    """What the workers found, in the manifest's order."""
    rows = photographs.num_rows
    with session.connect(config.ray_address) as cluster:
        on_gpu = devices.on_gpu(config.device, cluster, config.workers or 1, progress)
        pool = plan_pool(config, cluster, rows, on_gpu=on_gpu)
        blocks = []
        progress.start(total=rows, done=0)
        try:
            # Closed before Ray is shut down: its executor, still at work then, may end this process without a word.
            with closing(_blocks(config, classifier, photographs, pool, on_gpu=on_gpu)) as arriving:
                for block in arriving:
                    errors = block.num_rows - block["error_code"].null_count
                    progress.advance(rows=block.num_rows, errors=errors)
                    blocks.append(block)
        except QualityGateError:
            raise
        except Exception as error:
            raise _explained(error) from error
        finally:
            progress.stop()
    found = pa.concat_tables(blocks).sort_by("position")
    if found["position"].to_pylist() != list(range(rows)):
        raise QualityGateError(f"{rows:,} photographs went in, {found.num_rows:,} rows came out; nothing was written")
    return found


def plan_pool(config: PredictConfig, cluster: session.Cluster, rows: int, *, on_gpu: bool) -> Pool:
    """A worker for each core, or each GPU, and always a CPU left for Ray's own tasks."""
    if cluster.cpus < 2:
        raise ConfigurationError(
            f"the Ray cluster has {cluster.cpus:g} CPUs; predicting needs 2 at least: one for a worker, one for "
            "Ray's own tasks"
        )
    most = int(cluster.gpus) if on_gpu else int(min(cluster.workers, cluster.memory / _WORKER_BYTES))
    workers = min(config.workers or max(1, most), math.ceil(rows / config.batch_size))
    return Pool(
        workers=workers,
        cpus_per_worker=cluster.share(workers),
        gpus_per_worker=float(on_gpu),
        threads=max(1, int(cluster.cpus / workers)),
    )


def _blocks(
    config: PredictConfig, classifier: record.Classifier, photographs: pa.Table, pool: Pool, *, on_gpu: bool
) -> Generator[pa.Table, None, None]:
    """Rows as they come out of the pool, in any order, with their `position`."""
    import ray
    import ray.data

    from qualitygate.cluster.predicting_worker import PredictingWorker, Task
    from qualitygate.cluster.workers import CrashJournal

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    state = ray.put({name: value.numpy() for name, value in classifier.state.items()})
    journal = CrashJournal.options(  # type: ignore[attr-defined]
        scheduling_strategy=session.beside_driver()
    ).remote()
    task = Task(
        architecture=classifier.architecture,
        classes=classifier.classes,
        image_size=classifier.image_size,
        batch_size=config.batch_size,
        threads=pool.threads,
        on_gpu=on_gpu,
        log_format=logs.form(),
        access=access.of(config).shared_by(pool.workers),
    )
    rows = photographs.select(["image_id", "uri", "box", "label"])
    rows = rows.append_column("position", pa.array(range(rows.num_rows), pa.int64())).combine_chunks()
    batches = max(1, rows.num_rows // (config.batch_size * pool.workers * _BLOCKS_A_WORKER))
    size = config.batch_size * batches
    data_set = ray.data.from_arrow([rows.slice(start, size) for start in range(0, rows.num_rows, size)]).map_batches(
        PredictingWorker,
        fn_constructor_args=(task, state, journal),
        batch_size=config.batch_size,
        batch_format="pyarrow",
        num_cpus=pool.cpus_per_worker,
        num_gpus=pool.gpus_per_worker or None,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=pool.workers, initial_size=pool.workers),
    )
    yield from data_set.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)


def _explained(error: Exception) -> QualityGateError:
    return QualityGateError(f"the Ray pipeline failed: {reason_of(error)}; nothing was written")


# ---- what is left ------------------------------------------------------------------------------------------


def _table(photographs: pa.Table, found: pa.Table, classifier: record.Classifier) -> pa.Table:
    failed = pc.is_valid(found["error_code"])
    if pc.all(failed).as_py():
        raise ConfigurationError(
            f"none of {found.num_rows:,} photographs can be read; the first: {found['error_message'][0].as_py()}. "
            "Check the manifest's uri column"
        )
    seen = photographs.select(["image_id", "group"]).append_column("sha256", found["sha256"])
    columns = {
        "image_id": photographs["image_id"],
        "uri": pa.array([uri and storage.without_secrets(uri) for uri in photographs["uri"].to_pylist()], pa.string()),
        "label": photographs["label"],
        "predicted": found["predicted"],
        "confidence": found["confidence"],
        "top1": found["top1"],
        "correct": pc.equal(found["predicted"], photographs["label"]),
        "group": photographs["group"],
        "trained_on": record.trained_on(classifier.ids, seen),
        "model_fingerprint": pa.repeat(pa.scalar(classifier.fingerprint), found.num_rows),
        "status": pc.if_else(failed, "error", "ok"),
        "error_code": found["error_code"],
        "error_message": found["error_message"],
    }
    return pa.table(columns).cast(SCHEMA)


def _facts(config: PredictConfig, classifier: record.Classifier, table: pa.Table, started: float) -> dict[str, Any]:
    codes = Counter(table["error_code"].drop_null().to_pylist())
    accuracy = pc.mean(table["correct"]).as_py()
    return {
        "format": FORMAT,
        "version": VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "architecture": classifier.architecture,
        "classes": list(classifier.classes),
        "model_fingerprint": classifier.fingerprint,
        "weights_sha256": classifier.sha256,
        "trained": classifier.trained,
        "image_size": classifier.image_size,
        "rows": table.num_rows,
        "errors": sum(codes.values()),
        "errors_by_code": dict(codes.most_common()),
        "accuracy": accuracy,
        "trained_on_rows": None if classifier.ids is None else pc.sum(table["trained_on"]).as_py(),
        "input": storage.redact(config.input),
        "seconds": round(time.time() - started, 1),
        "versions": record.versions(),
    }

"""The scoring job: manifest minus committed, through a pool of workers, into the score table while it runs."""

import json
import logging
import shutil
import signal
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from qualitygate import logs
from qualitygate.cluster import devices, measurement, planning, score_costs, session
from qualitygate.cluster.fitting import reason_of
from qualitygate.cluster.pending import blocks as blocks_of
from qualitygate.cluster.pending import stretches
from qualitygate.cluster.planning import Progress
from qualitygate.cluster.scoring_input import Input
from qualitygate.cluster.telemetry import Telemetry
from qualitygate.config import ScoreConfig, echo
from qualitygate.errors import ConfigurationError, DeadlineReached, ErrorBudgetExceeded, Interrupted, QualityGateError
from qualitygate.metrics.precision import check_gpu
from qualitygate.metrics.rows import Plan
from qualitygate.tables import access, runs, scores, storage
from qualitygate.tables.scratch import scratch_folder, sweep

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_NOTES = 20.0
# After the deadline: tasks at work may end, and are looked for so often.
_OVERDUE_S = 60.0
_SECONDS_BETWEEN_LOOKS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """How a run ended; also the content of `_stats.json`."""

    run_id: str
    output: str
    stats: dict[str, Any]


def run(
    config: ScoreConfig,
    progress: Progress,
    *,
    worker: type | None = None,
    run_id: str | None = None,
    deadline: float | None = None,
    telemetry: Telemetry | None = None,
) -> Summary:
    """Score every image of the input that has no valid row yet.

    worker: another class than `ScoringWorker` for the pool, of the same constructor. run_id: what the rows name as
    their run; default: a new one. deadline: seconds since 1970 after which no more rows are waited for. telemetry: of
    a job that this run is a step of, and that says itself how it ended and writes the text file.

    Raises ConfigurationError (nothing was written), Superseded (another run took over), Interrupted and
    DeadlineReached (resumable), ErrorBudgetExceeded (all rows are kept), AuditFailed.
    """
    started = time.time()
    output = storage.check_location(config.output, "--output")
    if not output.strip():
        raise ConfigurationError("--output is empty; give a folder for the results")
    run_id = run_id or f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}"
    logs.bind(run_id=run_id)
    sweep()
    step, telemetry = telemetry is not None, telemetry or Telemetry(output)
    with (
        telemetry.written(None if step else config.metrics_textfile),
        scratch_folder() as scratch,
        ExitStack() as stack,
    ):
        plan, notes = planning.plan_scores(config)
        plan = replace(plan, access=access.of(config))
        listed = stack.enter_context(Input(config, plan.access, Path(scratch), progress))
        storage.check_writable(output, "--output")
        scores.check_compatible(output, plan.fingerprints(), backfill=config.backfill)
        for note in notes:
            progress.note(note)

        writer = scores.Writer(output, plan.metrics, run_id, lazy=plan.lazy is not None)
        scores.record_fingerprints(
            output,
            {
                fingerprint: plan.definitions()[name][region]
                for name, by_region in plan.fingerprints().items()
                for region, fingerprint in by_region.items()
            },
        )
        storage.write_bytes(storage.join(output, "_config.yaml"), echo(config).encode())
        recorder = _Recorder(config, writer, progress, telemetry)
        run_ = _Run(
            config=config,
            plan=plan,
            run_id=run_id,
            writer=writer,
            recorder=recorder,
            worker=worker,
            progress=progress,
            deadline=deadline,
        )
        cluster: session.Cluster | None = None
        wanted = 0
        try:
            for number, portion in enumerate(listed.portions()):
                spool = Path(scratch) / f"pending-{number}"
                rows = scores.write_pending(
                    portion,
                    writer.table,
                    plan.fingerprints(),
                    retry=config.retry,
                    folder=spool,
                    lazy_gate=plan.lazy.gate_id if plan.lazy else None,
                )
                wanted += rows
                progress.start(total=portion.rows, done=portion.rows - rows)
                if rows and run_.late():
                    raise _TimeIsUp
                if rows:
                    if cluster is None:
                        progress.note("starting Ray and the workers, which takes some ten seconds")
                        cluster = stack.enter_context(session.connect(config.ray_address))
                    _stream(run_, cluster, spool, rows, listed.beyond())
                progress.stop()
                shutil.rmtree(spool)
            manifest = listed.all()
        except (KeyboardInterrupt, _TimeIsUp) as stop:
            recorder.commit()
            audit = scores.audit(listed.all(), output, plan.metrics, complete=False)
            telemetry.set("rows_pending", audit.expected - audit.present)
            _write_stats(output, run_id, config, plan, recorder, audit, started, state="interrupted")
            said = (
                f"stopped with {audit.present} of {audit.expected} rows committed; "
                "run the same command again to score the rest"
            )
            if isinstance(stop, _TimeIsUp):
                raise DeadlineReached(said, done=recorder.rows, left=wanted - recorder.rows) from stop
            raise Interrupted(said) from stop
        finally:
            progress.stop()
        audit = scores.audit(manifest, output, plan.metrics, complete=True)
        exceeded = audit.error_rate > config.max_error_rate
        state = "error_budget_exceeded" if exceeded else runs.DONE
        stats = _write_stats(output, run_id, config, plan, recorder, audit, started, state=state)
        if not step:
            telemetry.ended(good=not exceeded)
    if exceeded:
        codes = ", ".join(f"{count} {code}" for code, count in audit.errors_by_code.items())
        raise ErrorBudgetExceeded(
            f"{audit.by_status.get('error', 0)} of {audit.expected} images have no score ({codes}): more than "
            f"--max-error-rate {config.max_error_rate:g}; all rows are kept in {storage.redact(output)!r}",
            stats=stats,
        )
    return Summary(run_id=run_id, output=output, stats=stats)


class _TimeIsUp(Exception):
    """The deadline has passed."""


class _Recorder:
    """Collects arriving rows, commits them in portions, and keeps count."""

    def __init__(self, config: ScoreConfig, writer: scores.Writer, progress: Progress, telemetry: Telemetry) -> None:
        self._config = config
        self.telemetry = telemetry
        self.pending = 0
        self._writer = writer
        self._progress = progress
        self._waiting: list[pa.Table] = []
        self._last_commit = time.monotonic()
        self.rows = 0
        self.commits = 0
        self.batches_lost = 0
        self.by_status: Counter[str] = Counter()
        self.by_code: Counter[str] = Counter()
        self.stages: dict[str, float] = defaultdict(float)
        self.workers: dict[str, list[str]] = {}
        self.busy_seconds = 0.0
        self.pool: planning.Pool | None = None
        self.cost: measurement.Cost | None = None
        self.cost_on_cpu: list[str] = []
        self._told = False

    def add(self, block: pa.Table) -> None:
        for trace in block["_trace"].drop_null().to_pylist():
            self._add_trace(json.loads(trace))
        states = Counter(block["status"].to_pylist())
        self.rows += block.num_rows
        self.by_status += states
        codes = Counter(block["error_code"].drop_null().to_pylist())
        self.by_code += codes
        for status, count in states.items():
            self.telemetry.count("rows", count, status=status)
        for code, count in codes.items():
            self.telemetry.count("errors", count, code=code)
        self.telemetry.set("rows_pending", max(0, self.pending - self.rows))
        self._progress.advance(rows=block.num_rows, errors=states["error"])
        self._waiting.append(block.drop_columns(["_trace"]))
        full = sum(table.num_rows for table in self._waiting) >= self._config.commit_rows
        if full or time.monotonic() - self._last_commit >= self._config.commit_seconds:
            self.commit()

    def _add_trace(self, trace: dict[str, Any]) -> None:
        self.workers[trace["worker"]] = trace["gpus"]
        if self.pool and self.pool.gpus_per_worker and trace["device"] == "cpu" and not self._told:
            self._told = True
            for note in ("a worker found no CUDA device where Ray has a GPU: it scores on its CPU", *self.cost_on_cpu):
                self._progress.note(note)
        self.busy_seconds += trace["seconds"]
        self.telemetry.count("busy_seconds", trace["seconds"])
        self.batches_lost += trace["lost"]
        self.telemetry.count("batches_lost", trace["lost"])
        self.telemetry.observe("task_rows", trace["rows"])
        if trace["gpu_memory_bytes"] is not None:
            self.telemetry.set("gpu_memory_bytes", trace["gpu_memory_bytes"], worker=trace["worker"])
        for stage, seconds in trace["stages"].items():
            self.stages[stage] += seconds
            self.telemetry.count("stage_seconds", seconds, stage=stage)

    def commit(self) -> None:
        """Publish what has arrived."""
        waiting, self._waiting = self._waiting, []
        self._last_commit = time.monotonic()
        if not waiting:
            return
        arrived = pa.concat_tables(waiting)
        replaces = arrived["_replaces"]
        arrived = arrived.drop_columns(["_replaces"]).cast(self._writer.schema)
        self._writer.commit(arrived.filter(pa.compute.invert(replaces)), arrived.filter(replaces))
        self.commits += 1
        self.telemetry.count("commits")
        logger.info("committed %d rows", arrived.num_rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """What all portions of a run share."""

    config: ScoreConfig
    plan: Plan
    run_id: str
    writer: scores.Writer
    recorder: _Recorder
    worker: type | None
    progress: Progress
    deadline: float | None

    def late(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and time.time() >= self.deadline


def _stream(run: _Run, cluster: session.Cluster, spool: Path, rows: int, beyond: int) -> None:
    """Score the rows of a folder of Parquet files, and commit them as they arrive.

    beyond: photographs that are known of and come in later portions.
    """
    config, recorder, writer = run.config, run.recorder, run.writer
    recorder.pending += rows
    recorder.telemetry.started(recorder.pending - recorder.rows)
    plan, notes = planning.on_device(config, run.plan, cluster)
    for note in notes:
        run.progress.note(note)
    if plan.device == "cuda" and plan.execution.fast and (model := devices.model()) is not None:
        # Each worker looks at its own, too; here it is said before they start.
        check_gpu(plan.execution, model)
    files = [(path.name, pq.read_metadata(path).num_rows) for path in sorted(spool.glob("*.parquet"))]
    expected = score_costs.check_budget(config, plan, spool)
    if expected is not None:
        run.progress.note(str(expected))
    pending = _reachable(spool, config, writer.epoch, cluster)
    cost = measurement.measure(plan, pending) if planning.worth_measuring(config, rows) else None
    recorder.cost = cost
    pool = recorder.pool = planning.plan_pool(config, plan, cluster, rows, cost)
    run.progress.note("; ".join(str(said) for said in (cost, pool) if said))
    recorder.cost_on_cpu = planning.cost_on_cpu(planning.networks_of(plan))
    plan = replace(plan, at_once=pool.batch_size, access=plan.access.shared_by(pool.workers))
    plan = planning.compiled(plan, pool, recorder.pending + beyond)
    if plan.execution.compiled:
        # Also in a small portion of a long run: else compiling would count against its first photographs.
        pool = recorder.pool = replace(pool, warm_up=True)
    before, alarm = recorder.rows, _Alarm()
    try:
        # Closed here whatever happens: Ray's executor, still at work when Ray is shut down, may end this process
        # with exit code 1 before it has said why.
        stream = closing(_blocks(config, plan, run.run_id, writer.schema, pending, files, pool, run.worker))
        with stream as blocks, _patience(run.progress) as arrived, _alarm(alarm, run.deadline):
            for block in blocks:
                alarm.waiting.clear()
                arrived.set()
                recorder.add(block)
                if run.late() and recorder.rows - before < rows:
                    raise _TimeIsUp
                alarm.waiting.set()
        recorder.commit()
    except (QualityGateError, _TimeIsUp):
        raise
    except KeyboardInterrupt as stop:
        if alarm.rang.is_set():
            raise _TimeIsUp from stop
        raise
    except Exception as error:
        # A run that was superseded may find its pending rows gone: say what happened, not where it hurt.
        writer.check_current()
        recorder.commit()
        raise _explained(error) from error
    finally:
        if pending != str(spool):
            storage.delete_folder(pending)


@dataclass(frozen=True, slots=True)
class _Alarm:
    """waiting: whether a block is waited for. rang: whether that was interrupted, for the deadline."""

    waiting: threading.Event = field(default_factory=threading.Event)
    rang: threading.Event = field(default_factory=threading.Event)


@contextmanager
def _alarm(alarm: _Alarm, deadline: float | None) -> Iterator[None]:
    """Interrupts this thread, as Ctrl-C does, when nothing has arrived some time after the deadline.

    A task that hangs, a node that never comes and a store that is away send no block after which to look at the clock.
    Without a deadline, and in another thread than the main one, which alone can be interrupted, it does nothing.
    """
    ended = threading.Event()
    alarm.waiting.set()
    main = threading.main_thread()

    def watch(moment: float) -> None:
        if ended.wait(max(0.0, moment - time.time())):
            return
        while not ended.wait(_SECONDS_BETWEEN_LOOKS):
            if alarm.waiting.is_set():
                alarm.rang.set()
                signal.pthread_kill(main.ident or 0, signal.SIGUSR2)
                return

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    watcher, before = None, None
    if deadline is not None and threading.current_thread() is main:
        # Not SIGINT, which a job that was started in the background ignores.
        before = signal.signal(signal.SIGUSR2, interrupt)
        watcher = threading.Thread(target=watch, args=(deadline + _OVERDUE_S,), name="alarm", daemon=True)
        watcher.start()
    try:
        yield
    finally:
        ended.set()
        if watcher is not None:
            watcher.join()
            signal.signal(signal.SIGUSR2, before)


@contextmanager
def _patience(progress: Progress) -> Iterator[threading.Event]:
    """Says now and then that workers are still starting, until the event is set or the block ends."""
    arrived, started = threading.Event(), time.monotonic()

    def tell() -> None:
        while not arrived.wait(_SECONDS_BETWEEN_NOTES):
            progress.note(f"still starting, or at the first photographs: {time.monotonic() - started:.0f} s")

    teller = threading.Thread(target=tell, name="patience", daemon=True)
    teller.start()
    try:
        yield arrived
    finally:
        arrived.set()
        teller.join()


def _explained(error: Exception) -> QualityGateError:
    return QualityGateError(
        f"the Ray pipeline failed: {reason_of(error)}; what arrived is committed, run the same command again"
    )


def _reachable(spool: Path, config: ScoreConfig, epoch: int, cluster: session.Cluster) -> str:
    """The pending rows where every node of the cluster can read them: beside the table, unless all is here."""
    if cluster.local:
        return str(spool)
    runs = storage.join(config.output, "_runs")
    for name in storage.subfolders(runs):
        # What an older run had to do is waste paper since our claim; a newer one's is not ours to remove.
        if name.isdigit() and int(name) < epoch:
            storage.delete_folder(storage.join(runs, name))
    target = storage.join(runs, str(epoch))
    for file in sorted(spool.glob("*.parquet")):
        storage.write_bytes(storage.join(target, file.name), file.read_bytes())
    return target


def _blocks(
    config: ScoreConfig,
    plan: Plan,
    run_id: str,
    schema: pa.Schema,
    pending: str,
    files: Sequence[tuple[str, int]],
    pool: planning.Pool,
    worker: type | None,
) -> Generator[pa.Table, None, None]:
    """Score rows as they come out of the pool, in blocks of a task each."""
    import ray.data

    from qualitygate.cluster.workers import CrashJournal, ScoringWorker, WorkerSettings

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    journal = CrashJournal.options(  # type: ignore[attr-defined]
        scheduling_strategy=session.beside_driver()
    ).remote()
    settings = WorkerSettings(
        run_id=run_id,
        image_timeout_s=config.image_timeout_s,
        threads=pool.threads,
        decoders=pool.decoders,
        prefetch=pool.prefetch,
        gpu_share=min(1.0, pool.gpus_per_worker) or 1.0,
        warm_up=pool.warm_up,
        log_format=logs.form(),
    )
    # Of millions of photographs the pool is started anew after hours: no run waits long for its first one.
    for blocks in blocks_of(stretches(files, pool.task)):
        data = ray.data.from_blocks(blocks).map_batches(
            worker or ScoringWorker,
            fn_constructor_args=(plan, settings, schema, journal, pending),
            # A task is a stretch of rows, and what a dying worker costs: seconds of work.
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=pool.cpus_per_worker,
            num_gpus=pool.gpus_per_worker or None,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=pool.workers, initial_size=pool.workers),
        )
        yield from data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)


def _write_stats(
    output: str,
    run_id: str,
    config: ScoreConfig,
    plan: Plan,
    recorder: _Recorder,
    audit: scores.Audit,
    started: float,
    *,
    state: str,
) -> dict[str, Any]:
    seconds = time.time() - started
    stats = {
        "run_id": run_id,
        "state": state,
        "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "input": storage.redact(config.input),
        "scored": {
            "rows": recorder.rows,
            "rows_per_second": round(recorder.rows / seconds, 3),
            "by_status": dict(recorder.by_status),
            "by_code": dict(recorder.by_code),
            "commits": recorder.commits,
            "batches_lost": recorder.batches_lost,
        },
        "manifest": {
            "rows": audit.expected,
            "present": audit.present,
            "duplicates": audit.duplicates,
            "error_rate": round(audit.error_rate, 6),
            "by_status": audit.by_status,
            "by_code": audit.by_code,
            "examples": audit.examples,
        },
        "metrics": audit.metrics,
        "fingerprints": plan.fingerprints(),
        "untrained": [metric.name for metric in plan.selected() if not metric.trained],
        "lazy": _left_out(plan, config, audit),
        "seconds_by_stage": {stage: round(value, 3) for stage, value in sorted(recorder.stages.items())},
        "bottleneck": _bottleneck(recorder),
        "busy_seconds": round(recorder.busy_seconds, 3),
        "measured": asdict(recorder.cost) if recorder.cost else None,
        "pool": asdict(recorder.pool) if recorder.pool else None,
        "workers": recorder.workers,
        "versions": planning.versions(),
    }
    text = (json.dumps(stats, indent=1) + "\n").encode()
    storage.write_bytes(storage.join(output, "_stats.json"), text)
    storage.write_bytes(storage.join(output, "_history", f"{run_id}.json"), text)
    return stats


def _bottleneck(recorder: _Recorder) -> str | None:
    """The stage that took longest by the clock.

    Fetching goes on in many threads beside the work: what workers waited for it counts. Warming up comes once.
    Decoding in several threads counts by their share, and waiting for it without what was waited for bytes.
    """
    from qualitygate.cluster.workers import FETCHING, WAITING

    decoders = recorder.pool.decoders if recorder.pool else 1
    clock = {stage: seconds for stage, seconds in recorder.stages.items() if stage not in ("fetch", "warm_up")}
    if decoders > 1 and "decode" in clock:
        clock["decode"] /= decoders
    if WAITING in clock:
        clock[WAITING] -= clock.get(FETCHING, 0.0)
    return max(clock, key=lambda stage: clock[stage], default=None)


def _left_out(plan: Plan, config: ScoreConfig, audit: scores.Audit) -> dict[str, Any] | None:
    """What the gate's vote spared: photographs scored and left out by each voter, in the order of asking."""
    if plan.lazy is None:
        return None
    return {
        "gate_id": plan.lazy.gate_id,
        "sample_share": config.lazy_sample,
        "voters": {
            name: {
                "scored": audit.metrics[name]["states"].get(scores.OK, 0),
                "left_out": audit.metrics[name]["states"].get(scores.SKIPPED_LAZY, 0),
            }
            for name in plan.lazy.voters
        },
    }

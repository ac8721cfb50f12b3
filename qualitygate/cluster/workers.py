"""The scoring worker: a Ray actor that loads the metrics once and turns manifest rows into score rows.

A photograph that kills its process can't report it. So each batch is entered in a journal before it is
scored. A batch that comes back, because the worker that had it died, is scored with care: each photograph is
entered by itself, and one that was begun twice and never finished gets the row that says so.
"""

import hashlib
import json
import logging
import os
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import pyarrow as pa
import ray

from qualitygate import logs
from qualitygate.cluster import planning
from qualitygate.cluster.pending import Reader
from qualitygate.errors import ConfigurationError, DeviceLost, ErrorCode, Failure
from qualitygate.metrics.rows import Plan, Prepared, Request, Row, RowScorer, to_table
from qualitygate.tables import storage

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")
# Columns beside the score row that only the driver reads.
REPLACES = "_replaces"
TRACE = "_trace"
EXIT_OVER_TIME = 71
EXIT_DEVICE_LOST = 72
# Begun this often without an end, a photograph is taken to kill its worker. Once may be a lost machine.
_STARTS_THAT_CONVICT = 2
# Seconds by the clock in which a worker had nothing to compute on; with several decoders the first are part of the
# second, which are all that a GPU stood still for.
FETCHING = "wait_for_fetch"
WAITING = "wait_for_decode"


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """How often a photograph was begun without an end, whether it took too long, whether the networks had it."""

    times: int = 0
    over_time: bool = False
    in_networks: bool = False


@ray.remote(num_cpus=0)
class CrashJournal:
    """What was begun and not finished, remembered outside the processes that may die."""

    def __init__(self) -> None:
        self._batches: dict[str, int] = {}
        self._images: dict[str, Begun] = {}

    def begin_batch(self, key: str) -> int:
        """How often the batch has been begun, this time included."""
        self._batches[key] = self._batches.get(key, 0) + 1
        return self._batches[key]

    def end_batch(self, key: str) -> None:
        """The batch is done; nothing of it need be remembered."""
        self._batches.pop(key, None)

    def begin_image(self, image_id: str) -> "Begun":
        """How it went before, when it was begun and not finished."""
        before = self._images.get(image_id, Begun())
        self._images[image_id] = replace(before, times=before.times + 1, in_networks=False)
        return before

    def enter_networks(self, image_id: str) -> None:
        """It has been read and its formulas are done: what happens now is due to a network."""
        self._images[image_id] = replace(self._images[image_id], in_networks=True)

    def end_image(self, image_id: str) -> None:
        """The photograph has its row."""
        self._images.pop(image_id, None)

    def took_too_long(self, image_id: str) -> None:
        """The worker is about to end itself because of this photograph."""
        self._images[image_id] = replace(self._images.get(image_id, Begun()), over_time=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """What a worker needs to know besides its plan."""

    run_id: str
    image_timeout_s: float
    # Of the networks, which would leave cores idle where workers are fewer; formulas use one.
    threads: int = 1
    # Of its GPU's memory, so that workers that share one don't take each other's.
    gpu_share: float = 1.0
    # Photographs decoded at a time while the GPU is at work; 1: one after another, by the worker itself.
    decoders: int = 1
    # Photographs whose bytes are on their way; None: by where they are.
    prefetch: int | None = None
    # As the driver logs: Ray keeps what workers log in files of each node.
    log_format: str = logs.TEXT


class ScoringWorker:
    """Callable class of the actor pool: a stretch of the rows in `pending` in, score rows of `schema` out."""

    def __init__(self, plan: Plan, settings: WorkerSettings, schema: pa.Schema, journal: Any, pending: str) -> None:
        logs.set_up(settings.log_format, verb="score", run_id=settings.run_id)
        use_threads(settings.threads)
        self._schema = schema.append(pa.field(REPLACES, pa.bool_())).append(pa.field(TRACE, pa.string()))
        self._journal = journal
        self._reader = Reader(pending, plan.access)
        self._watchdog = Watchdog(settings.image_timeout_s, self._report_over_time)
        plan = on_this_machine(plan, settings)
        self._device = plan.device
        self._scorer = RowScorer(plan, run_id=settings.run_id)
        self._timeout_s = settings.image_timeout_s
        self._settings = settings
        self._at_once = plan.at_once
        fetchers = max(settings.decoders, planning.prefetch_of(settings.prefetch, local=False))
        self._fetchers = ThreadPoolExecutor(fetchers, thread_name_prefix="fetch")
        self._decoders = ThreadPoolExecutor(settings.decoders, thread_name_prefix="decode")
        self._waited: dict[str, float] = defaultdict(float)

    def __call__(self, batch: pa.Table) -> pa.Table:
        started = time.perf_counter()
        requests = self._reader.requests(batch)
        key = hashlib.sha1("\0".join(request.image_id for request in requests).encode()).hexdigest()
        times_begun = ray.get(self._journal.begin_batch.remote(key))
        with ending_with_its_gpu():
            rows = self._with_care(requests) if times_begun > 1 else self._straight(requests)
        ray.get(self._journal.end_batch.remote(key))
        for row, request in zip(rows, requests, strict=True):
            row[REPLACES] = request.previous is not None
        if rows:
            trace = self._trace(time.perf_counter() - started)
            rows[0][TRACE] = json.dumps({**trace, "rows": len(rows), "lost": times_begun - 1})
        return to_table(rows, self._schema)

    def _straight(self, requests: Sequence[Request]) -> list[Row]:
        return list(self._scorer.finished(self._prepared(requests), self._watchdog.watching))

    def _prepared(self, requests: Sequence[Request]) -> Iterator[Prepared]:
        """In order; with several decoders the next ones are prepared while the networks have those before."""
        fetched = self._fetched_ahead(requests)
        if self._settings.decoders == 1:
            yield from map(self._prepare, fetched)
            return
        # A group's photographs are taken at once: the next group is to be decoded while the GPU has this one.
        ahead = _ahead(self._decoders, self._prepare, fetched, self._at_once + self._settings.decoders)
        while True:
            # Bytes are waited for in here as well, before the next photograph can be handed to a decoder.
            with self._stalled(WAITING):
                future = next(ahead, None)
                prepared = future.result() if future else None
            if prepared is None:
                return
            yield prepared

    @contextmanager
    def _stalled(self, *stages: str) -> Iterator[None]:
        """Time spent inside counts for these stages. Only for the one thread that scores."""
        started = time.perf_counter()
        try:
            yield
        finally:
            for stage in stages:
                self._waited[stage] += time.perf_counter() - started

    def _prepare(self, item: tuple[Request, storage.Fetched | Failure]) -> Prepared:
        request, fetched = item
        with self._watchdog.watching([request.image_id]):
            return self._scorer.prepare(request, fetched)

    def _with_care(self, requests: Sequence[Request]) -> list[Row]:
        rows = []
        for request in requests:
            before = ray.get(self._journal.begin_image.remote(request.image_id))
            rows.append(self._one_with_care(request, before))
            ray.get(self._journal.end_image.remote(request.image_id))
        return rows

    def _one_with_care(self, request: Request, before: Begun) -> Row:
        convicted = self._conviction(before)
        if convicted and not before.in_networks:
            return self._scorer.failed_row(request, convicted)
        # Outside the watch: a store that is away for a while is no photograph that takes too long.
        with self._stalled(*((FETCHING, WAITING) if self._settings.decoders > 1 else (FETCHING,))):
            fetched = self._scorer.fetch(request)
        with self._watchdog.watching([request.image_id]):
            prepared = self._scorer.prepare(request, fetched)
        if convicted:
            # A network was its end: what the formulas say stands.
            return self._scorer.without_networks(prepared, convicted)
        ray.get(self._journal.enter_networks.remote(request.image_id))
        (row,) = self._scorer.finished([prepared], self._watchdog.watching)
        return row

    def _conviction(self, before: Begun) -> Failure | None:
        if before.over_time:
            message = f"took longer than image_timeout_s={self._timeout_s:g} and was stopped"
            return Failure(ErrorCode.WORKER_CRASH, message)
        if before.times >= _STARTS_THAT_CONVICT:
            return Failure(ErrorCode.WORKER_CRASH, f"its worker process died {before.times} times while scoring it")
        return None

    def _fetched_ahead(self, requests: Sequence[Request]) -> Iterator[tuple[Request, storage.Fetched | Failure]]:
        """Each request with its bytes, while the next ones are on their way; few at a time bounds the memory."""
        waiting: deque[tuple[Request, Future[storage.Fetched | Failure]]] = deque()
        for request in requests:
            waiting.append((request, self._fetchers.submit(self._scorer.fetch, request)))
            local = storage.is_local(request.uri or "")
            ahead = max(self._settings.decoders - 1, planning.prefetch_of(self._settings.prefetch, local=local))
            while len(waiting) > ahead:
                yield self._arrived(*waiting.popleft())
        while waiting:
            yield self._arrived(*waiting.popleft())

    def _arrived(
        self, request: Request, future: "Future[storage.Fetched | Failure]"
    ) -> tuple[Request, storage.Fetched | Failure]:
        with self._stalled(FETCHING):
            return request, future.result()

    def _report_over_time(self, image_id: str) -> None:
        ray.get(self._journal.took_too_long.remote(image_id), timeout=10)

    def _trace(self, seconds: float) -> dict[str, Any]:
        context = ray.get_runtime_context()
        stages = self._scorer.take_seconds() | self._waited
        self._waited.clear()
        return {
            "worker": f"{context.get_node_id()[:8]}-{os.getpid()}",
            "device": self._device,
            "gpus": context.get_accelerator_ids().get("GPU", []),
            "seconds": seconds,
            "stages": stages,
            "gpu_memory_bytes": _gpu_memory() if self._device == "cuda" else None,
        }


def _gpu_memory() -> int:
    """Bytes that this process holds of its GPU's memory, in use and kept for the next batch."""
    import torch

    return int(torch.cuda.memory_reserved())


def _ahead(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterator[Item], most: int
) -> Iterator["Future[Result]"]:
    """The function's results as futures in the order of the items, with at most so many under way or waiting."""
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) >= most:
            yield waiting.popleft()
    yield from waiting


class Watchdog:
    """Ends the process when photographs take too long: a decoder can't be interrupted, a process can.

    The worker is started again by Ray, and the journal, told before, knows whose fault it was. Of several
    photographs nobody is accused: they come back one by one.
    """

    def __init__(self, timeout_s: float, report: Any) -> None:
        self._timeout_s = timeout_s
        self._report = report
        # Several when photographs are decoded side by side.
        self._current: dict[object, tuple[Sequence[str], float]] = {}
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    @contextmanager
    def watching(self, image_ids: Sequence[str]) -> Iterator[None]:
        """Time spent inside counts for these photographs; each has `timeout_s`."""
        key = object()
        self._current[key] = (image_ids, time.monotonic() + self._timeout_s * len(image_ids))
        try:
            yield
        finally:
            del self._current[key]

    def _watch(self) -> None:
        while True:
            time.sleep(min(1.0, self._timeout_s / 4))
            for image_ids, deadline in list(self._current.values()):
                if time.monotonic() > deadline:
                    try:
                        if len(image_ids) == 1:
                            self._report(image_ids[0])
                    finally:
                        os._exit(EXIT_OVER_TIME)


@contextmanager
def ending_with_its_gpu() -> Iterator[None]:
    """Ends the process when it has lost its GPU: Ray starts the worker again, and nothing else gives it one.

    What was begun stays begun, so a photograph that does this each time is found out like one that kills its worker.
    """
    try:
        yield
    except DeviceLost as error:
        logger.critical("%s", error)
        os._exit(EXIT_DEVICE_LOST)


def use_threads(networks: int) -> None:
    """The pool has a worker for every core: more threads than that would only fight each other.

    Must come before torch is imported, which reads the variables once.
    """
    import cv2

    cv2.setNumThreads(1)
    for variable in ("OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[variable] = "1"
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(networks)


def on_this_machine(plan: Plan, settings: WorkerSettings) -> Plan:
    """The plan with the CPU as its device where the GPU that Ray assigned isn't really there."""
    if any(metric.device == "gpu" for metric in plan.selected()):
        import torch

        torch.set_num_threads(settings.threads)
    if plan.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            if plan.execution.fast:
                raise ConfigurationError("--precision fast: a node to which Ray gives a GPU has no CUDA device")
            logger.warning("no CUDA device on this node; scoring on its CPU")
            return replace(plan, device="cpu")
        if settings.gpu_share < 1:
            torch.cuda.set_per_process_memory_fraction(settings.gpu_share)
    return plan

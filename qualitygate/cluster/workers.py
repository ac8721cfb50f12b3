"""The scoring worker: a Ray actor that loads the metrics once and turns manifest rows into score rows.

A photograph that kills its process can't report it. So each batch is entered in a journal before it is
scored. A batch that comes back once, because the worker that had it died, is scored as before: a machine was lost,
most likely. Only photographs under suspicion, and all of a batch that comes back again, are scored with care: each is
entered by itself, and one that was begun twice and never finished gets the row that says so. That verdict stands until
the batch is delivered, which may come back over another photograph.
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
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import pyarrow as pa
import ray

from qualitygate import logs
from qualitygate.cluster import planning
from qualitygate.cluster.losses import MOST_LOSSES, Losses, gone
from qualitygate.cluster.pending import Reader
from qualitygate.errors import ConfigurationError, DeviceLost, ErrorCode, Failure
from qualitygate.images.decode import pixels_by_header
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
# Begun more often, a batch has a photograph that kills workers: each is then begun by itself, to find out which.
_STARTS_TOGETHER = 2
# What decoders may hold for the networks, decoded, each: 64 megapixels of three bytes.
_DECODED_BYTES_A_DECODER = 192 << 20
# Seconds by the clock in which a worker had nothing to compute on; with several decoders the first are part of the
# second, which are all that a GPU stood still for.
FETCHING = "wait_for_fetch"
WAITING = "wait_for_decode"


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """How often a photograph was begun without an end, whether it took too long, whether the networks had it.

    suspected: one of a group that took too long.
    """

    times: int = 0
    over_time: bool = False
    in_networks: bool = False
    suspected: bool = False


@ray.remote(num_cpus=0)
class CrashJournal:
    """What was begun and not finished, remembered outside the processes that may die."""

    def __init__(self) -> None:
        self._batches: dict[str, int] = {}
        self._images: dict[str, Begun] = {}
        self._losses = Losses()

    def begin_batch(self, key: str) -> int:
        """How often the batch has been begun, this time included."""
        self._batches[key] = self._batches.get(key, 0) + 1
        return self._batches[key]

    def end_batch(self, key: str, image_ids: Sequence[str] = ()) -> None:
        """The batch is done; nothing of it need be remembered, nor of its photographs, where any were entered."""
        self._batches.pop(key, None)
        for image_id in image_ids:
            self._images.pop(image_id, None)

    def begin_image(self, image_id: str) -> "Begun":
        """How it went before, when it was begun and not finished."""
        before = self._images.get(image_id, Begun())
        self._images[image_id] = replace(before, times=before.times + 1, in_networks=False)
        return before

    def enter_networks(self, image_id: str) -> None:
        """It has been read and its formulas are done: what happens now is due to a network."""
        self._images[image_id] = replace(self._images[image_id], in_networks=True)

    def end_image(self, image_id: str, convicted: "Begun | None" = None) -> None:
        """The photograph has its row.

        convicted: by what it got the row of a failure. That is kept for when its batch comes back over another one:
        found out anew each time, photographs that kill would multiply their deaths instead of adding them.
        """
        if convicted is None:
            self._images.pop(image_id, None)
        else:
            self._images[image_id] = convicted

    def took_too_long(self, image_ids: Sequence[str], *, in_networks: bool = False) -> None:
        """The worker is about to end itself because of this photograph, or one of these; in_networks: they had it."""
        alone = len(image_ids) == 1
        for image_id in image_ids:
            known = self._images.get(image_id, Begun())
            self._images[image_id] = replace(
                known, over_time=known.over_time or alone, in_networks=known.in_networks or in_networks, suspected=True
            )

    def suspects(self, image_ids: Sequence[str]) -> list[str]:
        """Those of the photographs that may be why a worker ended."""
        return [image_id for image_id in image_ids if image_id in self._images]

    def lost(self, gpu: str, *, starting: bool = False) -> int:
        """A worker has lost this GPU; how often that has happened since it last scored anything, or at starts."""
        return self._losses.lost(gpu, starting=starting)

    def worked(self, gpu: str) -> None:
        """This GPU has scored something."""
        self._losses.worked(gpu)

    def known(self, gpu: str) -> bool:
        """Whether a worker has had this GPU before."""
        return self._losses.known(gpu)


@dataclass(frozen=True, slots=True)
class _Arrived:
    """A request with its bytes or why there are none, and the pixels that they promise."""

    request: Request
    fetched: storage.Fetched | Failure
    pixels: int


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
    # Whether its GPU is made ready before the first photographs.
    warm_up: bool = False
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
        self._lost: DeviceLost | None = None
        try:
            plan = on_this_machine(plan, settings, journal)
            self._scorer = RowScorer(plan, run_id=settings.run_id)
        except DeviceLost as error:
            # For the first task to end over.
            self._lost = error
        self._device = plan.device
        self._timeout_s = settings.image_timeout_s
        self._settings = settings
        self._at_once = plan.at_once
        fetchers = max(settings.decoders, planning.prefetch_of(settings.prefetch, local=False))
        self._fetchers = ThreadPoolExecutor(fetchers, thread_name_prefix="fetch")
        self._decoders = ThreadPoolExecutor(settings.decoders, thread_name_prefix="decode")
        self._waited: dict[str, float] = defaultdict(float)
        self._cold = settings.warm_up

    def __call__(self, batch: pa.Table) -> pa.Table:
        started = time.perf_counter()
        # Before the batch is entered, which isn't to blame.
        end_if_lost(self._lost, self._journal)
        requests = self._reader.requests(batch)
        key = hashlib.sha1("\0".join(request.image_id for request in requests).encode()).hexdigest()
        times_begun = ray.get(self._journal.begin_batch.remote(key))
        with ending_with_its_gpu(self._journal):
            rows = self._rows(requests, times_begun)
        # Of what came at once nothing was entered but the batch itself.
        entered = [request.image_id for request in requests] if times_begun > 1 else []
        ray.get(self._journal.end_batch.remote(key, entered))
        for row, request in zip(rows, requests, strict=True):
            row[REPLACES] = request.previous is not None
        if rows:
            trace = self._trace(time.perf_counter() - started)
            rows[0][TRACE] = json.dumps({**trace, "rows": len(rows), "lost": times_begun - 1})
        return to_table(rows, self._schema)

    def _rows(self, requests: Sequence[Request], times_begun: int) -> list[Row]:
        """In order; photographs under suspicion one by one, and first: what they take with them is done again."""
        suspects: set[str] = set()
        if times_begun > _STARTS_TOGETHER:
            suspects = {request.image_id for request in requests}
        elif times_begun > 1:
            suspects = set(ray.get(self._journal.suspects.remote([request.image_id for request in requests])))
        alone = iter(self._with_care([request for request in requests if request.image_id in suspects]))
        others = [request for request in requests if request.image_id not in suspects]
        together = iter(self._straight(others))
        if others and self._device == "cuda":
            ray.get(self._journal.worked.remote(gpu_name()))
        return [next(alone if request.image_id in suspects else together) for request in requests]

    def _straight(self, requests: Sequence[Request]) -> list[Row]:
        return list(self._scorer.finished(self._prepared(requests), self._watching_networks))

    def _prepared(self, requests: Sequence[Request]) -> Iterator[Prepared]:
        """In order; with several decoders the next ones are prepared while the networks have those before."""
        fetched = self._fetched_ahead(requests)
        if self._settings.decoders == 1:
            self._warm_up()
            yield from map(self._prepare, fetched)
            return
        # A group's photographs are taken at once: the next group is to be decoded while the GPU has this one.
        ahead = _ahead(
            self._decoders,
            self._prepare,
            fetched,
            most=self._at_once + self._settings.decoders,
            size=lambda item: 3 * item.pixels,
            most_bytes=self._settings.decoders * _DECODED_BYTES_A_DECODER,
        )
        while True:
            # Bytes are waited for in here as well, before the next photograph can be handed to a decoder.
            with self._stalled(WAITING):
                future = next(ahead, None)
            if future is None:
                return
            # Here the first photographs are being decoded, and nothing is watched yet.
            self._warm_up()
            with self._stalled(WAITING):
                prepared = future.result()
            yield prepared

    def _warm_up(self) -> None:
        """Make the GPU ready, once in a worker's life."""
        if self._cold:
            self._cold = False
            self._scorer.warm_up()

    @contextmanager
    def _stalled(self, *stages: str) -> Iterator[None]:
        """Time spent inside counts for these stages. Only for the one thread that scores."""
        started = time.perf_counter()
        try:
            yield
        finally:
            for stage in stages:
                self._waited[stage] += time.perf_counter() - started

    def _prepare(self, item: "_Arrived") -> Prepared:
        with self._watchdog.watching([item.request.image_id]):
            return self._scorer.prepare(item.request, item.fetched)

    def _with_care(self, requests: Sequence[Request]) -> list[Row]:
        rows = []
        if requests:
            self._warm_up()
        for request in requests:
            before = ray.get(self._journal.begin_image.remote(request.image_id))
            convicted = self._conviction(before)
            rows.append(self._one_with_care(request, before, convicted))
            ray.get(self._journal.end_image.remote(request.image_id, before if convicted else None))
        return rows

    def _one_with_care(self, request: Request, before: Begun, convicted: Failure | None) -> Row:
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
        (row,) = self._scorer.finished([prepared], self._watching_networks)
        if self._device == "cuda":
            ray.get(self._journal.worked.remote(gpu_name()))
        return row

    def _conviction(self, before: Begun) -> Failure | None:
        if before.over_time:
            message = f"took longer than image_timeout_s={self._timeout_s:g} and was stopped"
            return Failure(ErrorCode.WORKER_CRASH, message)
        if before.times >= _STARTS_THAT_CONVICT:
            return Failure(ErrorCode.WORKER_CRASH, f"its worker process died {before.times} times while scoring it")
        return None

    def _fetched_ahead(self, requests: Sequence[Request]) -> "Iterator[_Arrived]":
        """Each request with its bytes, while the next ones are on their way; few at a time bounds the memory."""
        waiting: deque[Future[_Arrived]] = deque()
        for request in requests:
            waiting.append(self._fetchers.submit(self._fetch, request))
            local = storage.is_local(request.uri or "")
            ahead = max(self._settings.decoders - 1, planning.prefetch_of(self._settings.prefetch, local=local))
            while len(waiting) > ahead:
                yield self._arrived(waiting.popleft())
        while waiting:
            yield self._arrived(waiting.popleft())

    def _fetch(self, request: Request) -> "_Arrived":
        fetched = self._scorer.fetch(request)
        # Here rather than where the next one is handed to a decoder: the GPU waits there.
        if self._settings.decoders > 1 and isinstance(fetched, storage.Fetched):
            return _Arrived(request, fetched, pixels_by_header(fetched.data))
        return _Arrived(request, fetched, 0)

    def _arrived(self, future: "Future[_Arrived]") -> "_Arrived":
        with self._stalled(FETCHING):
            return future.result()

    def _watching_networks(self, image_ids: Sequence[str]) -> AbstractContextManager[None]:
        return self._watchdog.watching(image_ids, in_networks=True)

    def _report_over_time(self, image_ids: Sequence[str], in_networks: bool) -> None:
        ray.get(self._journal.took_too_long.remote(list(image_ids), in_networks=in_networks), timeout=10)

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
    pool: ThreadPoolExecutor,
    function: Callable[[Item], Result],
    items: Iterator[Item],
    *,
    most: int,
    size: Callable[[Item], int],
    most_bytes: int,
) -> Iterator["Future[Result]"]:
    """The function's results as futures in the order of the items.

    At most so many are under way or waiting, and no more bytes, by the items' size, unless one alone has more.
    """
    waiting: deque[tuple[Future[Result], int]] = deque()
    held = 0
    for item in items:
        needed = size(item)
        while waiting and held + needed > most_bytes:
            future, freed = waiting.popleft()
            held -= freed
            yield future
        waiting.append((pool.submit(function, item), needed))
        held += needed
        if len(waiting) >= most:
            future, freed = waiting.popleft()
            held -= freed
            yield future
    yield from (future for future, _ in waiting)


class Watchdog:
    """Ends the process when photographs take too long: a decoder can't be interrupted, a process can.

    The worker is started again by Ray, and the journal, told before, knows whose fault it was. Of several
    photographs nobody is accused: they come back one by one.

    report: is told of the photographs, and whether the networks had them.
    """

    def __init__(self, timeout_s: float, report: Callable[[Sequence[str], bool], None]) -> None:
        self._timeout_s = timeout_s
        self._report = report
        # Several when photographs are decoded side by side.
        self._current: dict[object, tuple[Sequence[str], bool, float]] = {}
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    @contextmanager
    def watching(self, image_ids: Sequence[str], *, in_networks: bool = False) -> Iterator[None]:
        """Time spent inside counts for these photographs; each has `timeout_s`."""
        key = object()
        self._current[key] = (image_ids, in_networks, time.monotonic() + self._timeout_s * len(image_ids))
        try:
            yield
        finally:
            del self._current[key]

    def _watch(self) -> None:
        while True:
            time.sleep(min(1.0, self._timeout_s / 4))
            for image_ids, in_networks, deadline in list(self._current.values()):
                if time.monotonic() > deadline:
                    try:
                        self._report(image_ids, in_networks)
                    finally:
                        os._exit(EXIT_OVER_TIME)


@contextmanager
def ending_with_its_gpu(journal: Any, *, starting: bool = False) -> Iterator[None]:
    """Ends the process when it has lost its GPU: Ray starts the worker again, and nothing else gives it one.

    What was begun stays begun, so a photograph that does this each time is found out like one that kills its worker.
    A GPU that is lost again and again without a score in between ends the run: raises DeviceLost then.

    journal: an actor that counts, by `lost`. starting: before anything could be scored.
    """
    try:
        yield
    except DeviceLost as error:
        logger.critical("%s", error)
        gpu = gpu_name()
        times = ray.get(journal.lost.remote(gpu, starting=starting))
        if times >= MOST_LOSSES:
            raise DeviceLost(gone(gpu, times, error, starting=starting)) from error
        os._exit(EXIT_DEVICE_LOST)


def end_if_lost(lost: DeviceLost | None, journal: Any) -> None:
    """The same over what a worker found at its start, by its first task: Ray starts none again that fails there."""
    if lost is not None:
        with ending_with_its_gpu(journal, starting=True):
            raise lost


def gpu_name() -> str:
    """Which GPU this process has: its node and its number there."""
    context = ray.get_runtime_context()
    return f"{','.join(context.get_accelerator_ids().get('GPU', []))} of node {context.get_node_id()[:8]}"


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


def finds_its_gpu(journal: Any) -> bool:
    """Whether CUDA has the GPU that Ray assigned; raises DeviceLost where it is gone and was there before in this run.

    journal: an actor that knows, by `known`.
    """
    import torch

    if torch.cuda.is_available():
        return True
    gpu = gpu_name()
    if ray.get(journal.known.remote(gpu)):
        raise DeviceLost(
            f"CUDA doesn't find GPU {gpu} any more; look at the driver's log (dmesg, Xid) and nvidia-smi on its node"
        )
    return False


def on_this_machine(plan: Plan, settings: WorkerSettings, journal: Any) -> Plan:
    """The plan with the CPU as its device where the GPU that Ray assigned isn't really there.

    Raises DeviceLost where it was there before in this run, or can't be used.
    """
    if any(metric.device == "gpu" for metric in plan.selected()):
        import torch

        torch.set_num_threads(settings.threads)
    if plan.device == "cuda":
        import torch

        from qualitygate.metrics.starting import starting_on_a_gpu

        if not finds_its_gpu(journal):
            if plan.execution.fast:
                raise ConfigurationError("--precision fast: a node to which Ray gives a GPU has no CUDA device")
            if plan.policy.decoder == "nvjpeg":
                raise ConfigurationError("--decoder nvjpeg: a node to which Ray gives a GPU has no CUDA device")
            logger.warning("no CUDA device on this node; scoring on its CPU")
            return replace(plan, device="cpu")
        if settings.gpu_share < 1:
            with starting_on_a_gpu("its share of the memory"):
                torch.cuda.set_per_process_memory_fraction(settings.gpu_share)
    return plan

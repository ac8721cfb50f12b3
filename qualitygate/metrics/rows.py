"""From an image to its row: fetch, decode once, score with every metric, and say what went wrong where.

On a CPU formulas are computed photograph by photograph; networks, and on a GPU all metrics, take several at once:

    fetch → prepare (decode, formulas) ─┐
    fetch → prepare                    ─┼→ finished (networks, for the group) → rows
    fetch → prepare                    ─┘

The same code makes the rows of the distributed job and of the call in process, so their numbers are equal.
"""

import hashlib
import json
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import pyarrow as pa

from qualitygate.errors import RETRIED_CODES, DeviceLost, ErrorCode, Failure, ImageError
from qualitygate.images.decode import Box, Decoded, DecodePolicy, Encoded, decode, for_a_gpu
from qualitygate.images.photograph import Photograph
from qualitygate.metrics import PUBLISHED, REFERENCE, Execution, Parameters, select
from qualitygate.metrics.metric import Device, Metric, Score, Scorer, Warming
from qualitygate.metrics.precision import check_gpu
from qualitygate.tables import scores, storage

if TYPE_CHECKING:
    from qualitygate.metrics.nvjpeg import GpuDecoder

logger = logging.getLogger(__name__)

Read = TypeVar("Read")
Row = dict[str, Any]
MAX_BYTES = 512 << 20
REGIONS = ("whole", "box")
# Photographs that wait for the networks are held decoded: 3 bytes a pixel.
_PIXELS_AT_ONCE = 64_000_000


class LazyVote(Protocol):
    """A gate that knows when its decision needs no further score; see `calibration.lazy`."""

    @property
    def gate_id(self) -> str:
        """The gate's id."""

    @property
    def voters(self) -> tuple[str, ...]:
        """Metrics with a vote."""

    def sampled(self, image_id: str) -> bool:
        """Whether this photograph belongs to the random sample that gets every score."""

    def settled(self, scores: Mapping[str, float]) -> bool:
        """Whether the decision stands, whatever the voters that are not in `scores` would say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that decides a score, and what one image may cost. Travels to the workers.

    at_once: photographs that networks are given together; changes no score.
    execution: how networks are run on a GPU; a CPU knows the reference only, and fingerprints say what it computes.
    lazy: leaves out what a gate's vote doesn't need; metrics are then best in order of their cost.
    access: how stores are asked for photographs; changes no score.
    formulas: where they run when `device` is a GPU; changes no more than the last digits of a score.
    """

    metrics: tuple[str, ...]
    backend: Literal["native", "pyiqa"] = "native"
    device: Device = "cpu"
    policy: DecodePolicy = field(default_factory=DecodePolicy)
    max_bytes: int = MAX_BYTES
    parameters: Parameters = PUBLISHED
    at_once: int = 8
    lazy: LazyVote | None = None
    execution: Execution = REFERENCE
    access: storage.Access = storage.DEFAULT
    formulas: Literal["gpu", "cpu"] = "gpu"

    def selected(self) -> list[Metric]:
        """The metrics themselves, in order."""
        execution = self.execution if self.device == "cuda" else REFERENCE
        chosen = select(self.metrics, self.backend, self.parameters, execution)
        return chosen if self.formulas == "gpu" else [_on_cpu(metric) for metric in chosen]

    def definitions(self) -> dict[str, dict[str, dict[str, Any]]]:
        """By metric and region, all that a score depends on besides the bytes: what its fingerprint stands for."""
        return {
            metric.name: {region: _definition(metric, self, region) for region in REGIONS} for metric in self.selected()
        }

    def fingerprints(self) -> dict[str, dict[str, str]]:
        """By metric and region, the 16 hexadecimal digits that scores of one definition share."""
        return {
            name: {region: fingerprint(definition) for region, definition in by_region.items()}
            for name, by_region in self.definitions().items()
        }


def _on_cpu(metric: Metric) -> Metric:
    """A formula that a GPU would compute too, on the CPU all the same; others as they are."""
    return replace(metric, batched=False, load=lambda _: metric.load("cpu")) if metric.batched else metric


def region_of(box: Sequence[int] | None) -> str:
    """Which of REGIONS a row scores: a box of a photograph isn't comparable with a whole one."""
    return "whole" if box is None else "box"


def _definition(metric: Metric, plan: Plan, region: str) -> dict[str, Any]:
    return {
        "metric": metric.name,
        "version": metric.version,
        "backend": metric.backend,
        "implementation": metric.implementation,
        "parameters_sha256": metric.parameters_sha256(),
        "precision": metric.precision,
        "decode": plan.policy.describe(),
        "region": region,
        # Only where it must be said, so that trained definitions read as they always did.
        **({} if metric.trained else {"trained": False}),
    }


def fingerprint(definition: Mapping[str, Any]) -> str:
    """First 16 hexadecimal digits of the SHA-256 of the definition's canonical JSON.

    That of an untrained network says so, and with it every row that carries it.
    """
    canonical = json.dumps(definition, sort_keys=True, separators=(",", ":"))
    digits = hashlib.sha256(canonical.encode()).hexdigest()[:16]
    return digits if definition.get("trained", True) else f"untrained-{digits}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One image to score: where it is, which part of it, and the row that it already has, if any."""

    image_id: str
    uri: str | None
    box: list[int] | None = None
    etag: str | None = None
    previous: Row | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A row that lacks the networks' scores, or nothing.

    photograph: its pixels; None when no network is waiting for them.
    encoded: in their place the file, where the GPU is to decode it; all metrics are waiting then.
    """

    row: Row
    previous: Row | None = None
    photograph: Photograph | None = None
    encoded: Encoded | None = None
    waiting: tuple[Metric, ...] = ()

    @property
    def pixels(self) -> int:
        """Pixels held until the networks have seen them."""
        if self.encoded:
            return self.encoded.pixels
        return self.photograph.width * self.photograph.height if self.photograph else 0


# Guards a stretch of work on these images, as the worker's watchdog does.
Watch = Callable[[Sequence[str]], AbstractContextManager[None]]


def _unwatched(_: Sequence[str]) -> AbstractContextManager[None]:
    return nullcontext()


class RowScorer:
    """Scorers of one plan, loaded once, and the rows that they make.

    Raises ConfigurationError where half precision was verified on another model of GPU than this process has, and where
    its GPU is to decode JPEGs and can't; DeviceLost where its GPU can't be used or has no room for the metrics, and, as
    the only error of its methods, once the GPU is lost.
    `seconds` adds up the time spent by stage (`fetch`, `decode`, each metric) since the last `take_seconds`.
    """

    def __init__(self, plan: Plan, *, run_id: str) -> None:
        self._plan = plan
        self._run_id = run_id
        if plan.device == "cuda" and plan.execution.fast:
            import torch

            with self._starting("its model's name"):
                model = torch.cuda.get_device_name()
            check_gpu(plan.execution, model)
        self._metrics = plan.selected()
        self._scorers: dict[str, Scorer] = {}
        for metric in self._metrics:
            with self._starting(f"{metric.name}'s load"):
                self._scorers[metric.name] = metric.load(plan.device)
        self._on_gpu: GpuDecoder | None = None
        if plan.device == "cuda" and plan.policy.decoder == "nvjpeg":
            from qualitygate.metrics import nvjpeg

            self._on_gpu = nvjpeg.GpuDecoder()
        self._fingerprints = plan.fingerprints()
        self._seconds: dict[str, float] = defaultdict(float)
        # Photographs may be fetched and prepared in several threads.
        self._counting = threading.Lock()

    def warm_up(self) -> None:
        """Make the GPU ready for the shapes that are to come; its time counts as `warm_up`. Nothing on a CPU.

        What goes wrong but for the GPU's loss is left to the photographs, which say it better.
        """
        if self._plan.device != "cuda":
            return
        for name, scorer in self._scorers.items():
            if not isinstance(scorer, Warming):
                continue
            try:
                with self._timed("warm_up"), self._telling(f"{name}'s warm-up"):
                    scorer.warm_up()
            except DeviceLost:
                raise
            except Exception as error:
                logger.warning("%s was not warmed up: %s: %s", name, type(error).__name__, error)

    def take_seconds(self) -> dict[str, float]:
        """Seconds by stage since the last call."""
        with self._counting:
            taken, self._seconds = dict(self._seconds), defaultdict(float)
        return taken

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._count(stage, time.perf_counter() - start)

    def _count(self, stage: str, seconds: float) -> None:
        with self._counting:
            self._seconds[stage] += seconds

    def fetch(self, request: Request) -> storage.Fetched | Failure:
        """The image's bytes or why there are none; safe to call from other threads."""
        start = time.perf_counter()
        try:
            return storage.fetch(
                request.uri, max_bytes=self._plan.max_bytes, access=self._plan.access, etag=request.etag
            )
        except ImageError as error:
            return error.failure
        except MemoryError:
            return Failure(ErrorCode.OUT_OF_MEMORY, "no memory for the file's bytes")
        finally:
            self._count("fetch", time.perf_counter() - start)

    def row(self, request: Request, fetched: storage.Fetched | Failure) -> Row:
        """The image's row. Never raises for an image, but DeviceLost."""
        (row,) = self.finished([self.prepare(request, fetched)])
        return row

    def prepare(self, request: Request, fetched: storage.Fetched | Failure) -> Prepared:
        """The image's row but for the networks, which `finished` adds. Never raises for an image, but DeviceLost."""
        if isinstance(fetched, Failure):
            return Prepared(row=self.failed_row(request, fetched))
        digest = hashlib.sha256(fetched.data).hexdigest()
        row = self._blank(request) | {
            "sha256": digest,
            "bytes": len(fetched.data),
            "etag": request.etag or fetched.etag,
        }
        wanted = self._keep_what_holds(row, request, digest)
        if not wanted:
            return Prepared(row=_with_status(row, request.previous))
        try:
            with self._timed("decode"):
                if self._on_gpu and (encoded := _guarded(for_a_gpu, fetched.data, self._plan.policy, request.box)):
                    row |= _seen(encoded)
                    return Prepared(row=row, previous=request.previous, encoded=encoded, waiting=tuple(wanted))
                decoded = _guarded(decode, fetched.data, self._plan.policy, request.box)
        except ImageError as error:
            # Of the same bytes they may be known from before.
            row |= {"width": error.width or row.get("width"), "height": error.height or row.get("height")}
            return Prepared(row=self._unread(row, request.previous, wanted, error.failure))
        row |= _seen(decoded)
        return self._formulas(row, request.previous, decoded.photograph, wanted)

    def prepare_photograph(self, image_id: str, photograph: Photograph) -> Prepared:
        """The same for pixels that were never a file."""
        row = self._blank(Request(image_id=image_id, uri=None))
        row["width"], row["height"] = photograph.width, photograph.height
        return self._formulas(row, None, photograph, self._metrics)

    def photograph_row(self, image_id: str, photograph: Photograph) -> Row:
        """The row of pixels that were never a file."""
        (row,) = self.finished([self.prepare_photograph(image_id, photograph)])
        return row

    def _formulas(self, row: Row, previous: Row | None, photograph: Photograph, wanted: Sequence[Metric]) -> Prepared:
        for metric in wanted:
            if not metric.takes_several(self._plan.device) and not self._needless(row, metric):
                self._store(row, metric, self._scores(metric, [photograph])[0])
        networks = [metric for metric in wanted if metric.takes_several(self._plan.device)]
        waiting = tuple(metric for metric in networks if not self._needless(row, metric))
        if not waiting:
            return Prepared(row=_with_status(row, previous))
        # A photograph without what the formulas shared: only its pixels wait.
        return Prepared(row=row, previous=previous, photograph=Photograph(photograph.rgb), waiting=waiting)

    def finished(self, prepared: Iterable[Prepared], watch: Watch = _unwatched) -> Iterator[Row]:
        """The complete rows in the same order; networks are given `at_once` photographs, fewer of large ones."""
        group: list[Prepared] = []
        for item in prepared:
            if group and sum(member.pixels for member in group) + item.pixels > _PIXELS_AT_ONCE:
                yield from self._finish(group, watch)
                group = []
            group.append(item)
            if not any(member.waiting for member in group) or len(group) >= self._plan.at_once:
                yield from self._finish(group, watch)
                group = []
        yield from self._finish(group, watch)

    def without_networks(self, prepared: Prepared, failure: Failure) -> Row:
        """The row with what the formulas gave; the networks that were to follow have failed."""
        row, previous = prepared.row, prepared.previous
        for metric in prepared.waiting:
            self._store(row, metric, failure)
        if previous and previous["error_code"] == failure.code and previous["sha256"] == row["sha256"]:
            # Counted although it has scores: after a second crash it is left alone.
            row["attempts"] = previous["attempts"] + 1
        return _with_status(prepared.row, prepared.previous) if prepared.waiting else prepared.row

    def _needless(self, row: Row, metric: Metric) -> bool:
        """Whether the gate's decision stands without this metric, whose score is then left out and said to be."""
        lazy = self._plan.lazy
        if lazy is None or metric.name not in lazy.voters or row[scores.LAZY_SAMPLE]:
            return False
        known = {name: row[name] for name in lazy.voters if row.get(name) is not None}
        if not lazy.settled(known):
            return False
        row[metric.name] = None
        row[scores.state_column(metric.name)] = scores.SKIPPED_LAZY
        row[scores.fingerprint_column(metric.name)] = self._fingerprint(metric, row["box"])
        return True

    def _decoded(self, group: Sequence[Prepared]) -> list[Prepared]:
        """The group with the pixels that it lacks, from the GPU or, where that refuses, as ever."""
        files = [item.encoded for item in group if item.encoded]
        if not files or self._on_gpu is None:
            return list(group)
        try:
            with self._timed("decode_on_gpu"), self._telling("nvJPEG"):
                made = self._on_gpu(files)
        except DeviceLost:
            raise
        except Exception:
            # It promises to halve and to leave alone. If it raises, that is our bug, but no reason to lose the run.
            logger.exception("nvJPEG raised for %d files; they are decoded as ever", len(files))
            made = [None] * len(files)
        found = iter(made)
        return [self._with_pixels(item, item.encoded, next(found)) if item.encoded else item for item in group]

    def _with_pixels(self, item: Prepared, encoded: Encoded, found: Photograph | Failure | None) -> Prepared:
        if isinstance(found, Failure):
            return Prepared(row=self._unread(item.row, item.previous, item.waiting, found))
        photograph = found
        if photograph is None:
            try:
                with self._timed("decode"):
                    photograph = _guarded(decode, encoded.data, self._plan.policy, encoded.box).photograph
            except ImageError as error:
                return Prepared(row=self._unread(item.row, item.previous, item.waiting, error.failure))
        return replace(item, photograph=photograph, encoded=None)

    def _finish(self, group: Sequence[Prepared], watch: Watch) -> list[Row]:
        waiting = [item for item in group if item.waiting]
        if waiting:
            with watch([item.row["image_id"] for item in waiting]):
                group = self._decoded(group)
                waiting = [item for item in group if item.waiting]
                for metric in self._metrics:
                    members = [
                        item for item in waiting if metric in item.waiting and not self._needless(item.row, metric)
                    ]
                    found = self._scores(metric, [item.photograph for item in members if item.photograph])
                    for item, score in zip(members, found, strict=True):
                        self._store(item.row, metric, score)
        return [_with_status(item.row, item.previous) if item.waiting else item.row for item in group]

    def failed_row(self, request: Request, failure: Failure) -> Row:
        """The row of an image without pixels.

        A failure that may pass doesn't take the place of scores: their row stays until the image can be read.
        """
        previous = request.previous
        if previous and previous["status"] != "error":
            if failure.code is ErrorCode.WORKER_CRASH and previous["etag"] == request.etag:
                return self._crashed_again(previous, failure)
            if _may_pass(failure):
                return _kept(previous, failure)
        return self._fail(self._blank(request), self._metrics, failure)

    def _unread(self, row: Row, previous: Row | None, wanted: Sequence[Metric], failure: Failure) -> Row:
        """The row of an image whose bytes are there and whose pixels aren't; what `row` has of the same bytes stays.

        The old row stays as a whole where a failure that may pass would take the place of one of its scores.
        """
        failed = self._fail(row, wanted, failure)
        if previous and _may_pass(failure) and _scored(previous) - _scored(failed):
            return _kept(previous, failure)
        return failed

    def _crashed_again(self, previous: Row, failure: Failure) -> Row:
        """The row of unchanged content that killed its worker over a metric it lacked: other scores stay.

        The attempts count the crashes, so that the next run but one leaves it alone.
        """
        before = previous["attempts"] if previous["error_code"] == failure.code else 0
        row = previous | {"attempts": before + 1, "run_id": self._run_id, "scored_at": datetime.now(UTC)}
        for metric in self._metrics:
            state, known = scores.state_column(metric.name), scores.fingerprint_column(metric.name)
            fingerprint_now = self._fingerprint(metric, previous["box"])
            if previous.get(state) != scores.OK or previous.get(known) != fingerprint_now:
                row |= {metric.name: None, state: scores.failed(failure.code), known: fingerprint_now}
        row |= {"error_code": failure.code.value, "error_message": failure.message}
        return _with_status(row, None)

    def _fingerprint(self, metric: Metric, box: Sequence[int] | None) -> str:
        return self._fingerprints[metric.name][region_of(box)]

    def _blank(self, request: Request) -> Row:
        previous = request.previous
        tried_before = previous["attempts"] if previous and previous["status"] == "error" else 0
        row: Row = {
            "image_id": request.image_id,
            "uri": storage.without_secrets(request.uri) if request.uri else None,
            "etag": request.etag,
            "box": request.box,
            "attempts": tried_before + 1,
            "run_id": self._run_id,
            "scored_at": datetime.now(UTC),
        }
        if self._plan.lazy is not None:
            row[scores.LAZY_GATE] = self._plan.lazy.gate_id
            row[scores.LAZY_SAMPLE] = self._plan.lazy.sampled(request.image_id)
        for metric in self._metrics:
            row[scores.state_column(metric.name)] = scores.NOT_REQUESTED
        return row

    def _keep_what_holds(self, row: Row, request: Request, digest: str) -> list[Metric]:
        """Copy from the previous row what is still true of the same bytes; returns the metrics left to score."""
        previous = request.previous
        if not previous or previous["sha256"] != digest or previous["box"] != request.box:
            return self._metrics
        if previous["status"] != "error":
            # The run that judged these bytes first: scored again they are no new photograph, and what a nightly job
            # thinks of that run's goes for them, too.
            row["run_id"] = previous["run_id"]
        for name in previous:
            # Metrics of the table that this run doesn't ask for keep their scores.
            if scores.state_column(name) in previous and name not in self._fingerprints:
                for column in scores.metric_fields(name):
                    row[column.name] = previous[column.name]
                if previous[scores.state_column(name)] == scores.SKIPPED_LAZY and self._plan.lazy is None:
                    row |= {column.name: previous[column.name] for column in scores.LAZY_FIELDS}
        wanted = []
        for metric in self._metrics:
            state, known = scores.state_column(metric.name), scores.fingerprint_column(metric.name)
            holds = previous.get(known) == self._fingerprint(metric, request.box)
            if holds and previous.get(state) == scores.OK:
                row |= {name: previous[name] for name in (metric.name, state, known)}
            else:
                wanted.append(metric)
        row |= {name: previous[name] for name in ("width", "height", "make", "model", "captured_at")}
        return wanted

    def _scores(self, metric: Metric, photographs: Sequence[Photograph]) -> list[Score]:
        """The metric's scores; should it raise for several photographs, each is tried by itself.

        Not so where the GPU is lost: every photograph would fail after the one that is to blame.
        """
        if not photographs:
            return []
        try:
            with self._timed(metric.name), self._telling(metric.name):
                found = self._scorers[metric.name](photographs)
        except DeviceLost:
            raise
        except Exception as error:
            if len(photographs) == 1 and self._lacks_memory(error):
                size = _size(photographs[0])
                return [Failure(ErrorCode.OUT_OF_MEMORY, f"{metric.name}: no memory for {size}")]
            # A scorer promises not to raise. If one does, that is our bug, but no reason to lose the run.
            if len(photographs) == 1:
                logger.exception("%s raised for a photograph of %s", metric.name, _size(photographs[0]))
                return [Failure(ErrorCode.UNSUPPORTED, f"{metric.name} raised {type(error).__name__}: {error}"[:300])]
        else:
            return [_finite(metric, score) for score in found]
        return [score for photograph in photographs for score in self._scores(metric, [photograph])]

    def _starting(self, during: str) -> AbstractContextManager[None]:
        """Raises DeviceLost where the GPU can't be used before anything is scored; a CPU's errors are what they are."""
        if self._plan.device != "cuda":
            return nullcontext()
        from qualitygate.metrics.starting import starting_on_a_gpu

        return starting_on_a_gpu(during)

    def _telling(self, during: str) -> AbstractContextManager[None]:
        """Raises DeviceLost where the GPU is lost inside; a CPU has none to lose."""
        if self._plan.device != "cuda":
            return nullcontext()
        from qualitygate.metrics.memory import telling_of_a_lost_gpu

        return telling_of_a_lost_gpu(during)

    def _lacks_memory(self, error: Exception) -> bool:
        """Also as a GPU's libraries say it."""
        if self._plan.device != "cuda":
            return isinstance(error, MemoryError)
        from qualitygate.metrics.memory import is_out_of_memory

        return is_out_of_memory(error)

    def _store(self, row: Row, metric: Metric, score: Score) -> None:
        row[scores.fingerprint_column(metric.name)] = self._fingerprint(metric, row["box"])
        if isinstance(score, Failure):
            row[metric.name] = None
            row[scores.state_column(metric.name)] = scores.failed(score.code)
            row.setdefault("error_code", score.code.value)
            row.setdefault("error_message", f"{metric.name}: {score.message}")
        else:
            row[metric.name] = float(score)
            row[scores.state_column(metric.name)] = scores.OK

    def _fail(self, row: Row, wanted: Sequence[Metric], failure: Failure) -> Row:
        for metric in wanted:
            row[metric.name] = None
            row[scores.state_column(metric.name)] = scores.failed(failure.code)
            row[scores.fingerprint_column(metric.name)] = self._fingerprint(metric, row["box"])
        row |= {"error_code": failure.code.value, "error_message": storage.redact(failure.message)}
        return _with_status(row, None)


def _finite(metric: Metric, score: Score) -> Score:
    if isinstance(score, float) and not isfinite(score):
        return Failure(ErrorCode.NON_FINITE, f"{metric.name} gave {score}")
    return score


def _guarded(
    read: Callable[[bytes, DecodePolicy, Box | None], Read],
    data: bytes,
    policy: DecodePolicy,
    box: Sequence[int] | None,
) -> Read:
    if box is not None and len(box) != 4:
        raise ImageError(ErrorCode.UNSUPPORTED, f"box {list(box)} isn't four integers x, y, w, h")
    region: Box | None = (box[0], box[1], box[2], box[3]) if box is not None else None
    try:
        return read(data, policy, region)
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(ErrorCode.OUT_OF_MEMORY, "no memory to decode it") from error
    except Exception as error:
        # As for scorers: our bug, but the image gets its row.
        logger.exception("decode raised for %d bytes", len(data))
        raise ImageError(ErrorCode.UNDECODABLE, f"decoder raised {type(error).__name__}: {error}"[:300]) from error


def _seen(decoded: Decoded | Encoded) -> Row:
    return {
        "width": decoded.width,
        "height": decoded.height,
        "make": decoded.make,
        "model": decoded.model,
        "captured_at": decoded.captured_at.isoformat() if decoded.captured_at else None,
    }


def _may_pass(failure: Failure) -> bool:
    """Whether the same image may well be read the next time; a crash is the image's own doing, until it is known."""
    return failure.code in RETRIED_CODES and failure.code is not ErrorCode.WORKER_CRASH


def _kept(previous: Row, failure: Failure) -> Row:
    logger.warning("%s: kept its scores, could not read it again: %s", previous["image_id"], failure.message)
    return previous


def _scored(row: Row) -> set[str]:
    """The states' columns of the metrics that have a score."""
    return {name for name, state in row.items() if name.endswith("_state") and state == scores.OK}


def _with_status(row: Row, previous: Row | None) -> Row:
    """`ok` when every metric that was asked for, now or before, has a score; `partial` for some; `error` for none."""
    states = {name: state for name, state in row.items() if name.endswith("_state") and state is not None}
    states = {name: state for name, state in states.items() if state not in (scores.NOT_REQUESTED, scores.SKIPPED_LAZY)}
    done = sum(state == scores.OK for state in states.values())
    row["status"] = "ok" if done == len(states) else "partial" if done else "error"
    if row["status"] != "ok" and row.get("error_code") is None:
        # What was kept of an earlier row has failed then: its reason still stands.
        name, state = next((name, state) for name, state in states.items() if state != scores.OK)
        row["error_code"] = state.removeprefix(scores.FAILED)
        row["error_message"] = previous["error_message"] if previous else name.removesuffix("_state")
    return row


def _size(photograph: Photograph) -> str:
    return f"{photograph.width}x{photograph.height}"


def to_table(rows: Sequence[Row], schema: pa.Schema) -> pa.Table:
    """Rows as a table of the schema; columns that a row lacks are null."""
    return pa.Table.from_pylist(list(rows), schema=schema)

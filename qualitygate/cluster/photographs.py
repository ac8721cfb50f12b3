"""Labelled photographs decoded once, in parallel, into pixels of one size that lie in Ray's object store."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from qualitygate.cluster.session import Cluster
from qualitygate.errors import ErrorCode, Failure
from qualitygate.tables import storage
from qualitygate.tables.access import Access
from qualitygate.training.data import Prepared, UInt8, prepare

logger = logging.getLogger(__name__)

# Bytes of decoded pixels a task returns: large enough to be worth a task, small enough to fit between others.
_CHUNK_BYTES = 16 << 20
_TASKS_A_CPU = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """The photographs that could be read, in the order of their rows.

    chunks: references to (n, 3, S, S) uint8 arrays, one after another. rows: (N,) which row each photograph is.
    sha256: of the files of these N. failures: of the others, with their row numbers.
    """

    chunks: tuple[Any, ...]
    rows: np.ndarray[Any, np.dtype[np.int64]]
    sha256: tuple[str, ...]
    failures: tuple[tuple[int, Failure], ...]


def decode(
    rows: Sequence[Mapping[str, Any]], image_size: int, cluster: Cluster, access: Access = storage.DEFAULT
) -> Decoded:
    """Fetch and decode every row's photograph on all CPUs of the cluster.

    rows: with `uri` and `box`. Needs a session; the pixels live as long as it does. A photograph that kills its
    process fails by itself, its neighbours don't.
    """
    most = max(1, _CHUNK_BYTES // (3 * image_size * image_size))
    size = min(most, max(1, math.ceil(len(rows) / (_TASKS_A_CPU * max(1, int(cluster.cpus))))))
    parts = [range(start, min(start + size, len(rows))) for start in range(0, len(rows), size)]
    # As many tasks are at work as there are CPUs.
    access = access.shared_by(int(cluster.cpus))
    tasks = [_submit([rows[row] for row in part], image_size, access) for part in parts]
    chunks: list[Any] = []
    kept: list[int] = []
    hashes: list[str] = []
    failures: list[tuple[int, Failure]] = []
    try:
        for part, task in zip(parts, tasks, strict=True):
            for first, (pixels, facts) in _results([rows[row] for row in part], part.start, image_size, task, access):
                for row, (sha256, failure) in enumerate(facts, first):
                    if failure is None:
                        kept.append(row)
                        hashes.append(sha256)
                    else:
                        failures.append((row, failure))
                chunks.append(pixels)
    except BaseException:
        for _, facts in tasks:
            ray.cancel(facts)
        raise
    return Decoded(
        chunks=tuple(chunks), rows=np.array(kept, dtype=np.int64), sha256=tuple(hashes), failures=tuple(failures)
    )


Facts = list[tuple[str, Failure | None]]
Task = tuple[Any, Any]  # references to the pixels and to the facts


def _submit(rows: list[Mapping[str, Any]], image_size: int, access: Access) -> Task:
    pixels, facts = _decode.remote(rows, image_size, access)
    return pixels, facts


def _results(
    rows: list[Mapping[str, Any]], first: int, image_size: int, task: Task, access: Access
) -> list[tuple[int, tuple[Any, Facts]]]:
    """(number of its first row, (reference to the pixels, facts)) of a task, or of several smaller ones if it died."""
    pixels, facts = task
    try:
        return [(first, (pixels, ray.get(facts)))]
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        if len(rows) == 1:
            failure = Failure(ErrorCode.WORKER_CRASH, f"its worker process died ({type(error).__name__})")
            return [(first, (ray.put(_stacked([], image_size)), [("", failure)]))]
    logger.warning("a process that decoded %d photographs died; decoding each by itself", len(rows))
    again = [_submit([row], image_size, access) for row in rows]
    return [
        result
        for offset, (row, one) in enumerate(zip(rows, again, strict=True))
        for result in _results([row], first + offset, image_size, one, access)
    ]


@ray.remote(num_cpus=1, num_returns=2, max_retries=1)
def _decode(rows: list[Mapping[str, Any]], image_size: int, access: Access) -> tuple[UInt8, Facts]:
    import cv2

    cv2.setNumThreads(1)
    prepared = list(prepare(rows, image_size, access))
    return _stacked(prepared, image_size), [(one.sha256 or "", one.failure) for one in prepared]


def _stacked(prepared: Sequence[Prepared], image_size: int) -> UInt8:
    pixels = [one.pixels for one in prepared if one.pixels is not None]
    return np.stack(pixels) if pixels else np.empty((0, 3, image_size, image_size), dtype=np.uint8)


def assemble(chunks: Sequence[Any], count: int, image_size: int) -> UInt8:
    """(count, 3, S, S) uint8: all chunks in one array, backed by an unnamed file of this node.

    The system may drop its pages from memory and read them again, so it can be larger than memory; it is gone when
    its process ends, however that ends.
    """
    import tempfile

    with tempfile.TemporaryFile(prefix="qualitygate-") as file:
        pixels = np.memmap(file, dtype=np.uint8, mode="w+", shape=(count, 3, image_size, image_size))
    start = 0
    for chunk in chunks:
        part = ray.get(chunk)
        pixels[start : start + len(part)] = part
        start += len(part)
    return pixels

"""The predicting worker: a Ray actor that loads the classifier once and turns manifest rows into predictions.

Photographs that kill its process are found as in scoring: each batch is entered in a journal before it is begun, and
one that comes back is done photograph by photograph; a verdict stands until the batch is delivered.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch

from qualitygate import logs
from qualitygate.cluster.workers import Watchdog, end_if_lost, ending_with_its_gpu, finds_its_gpu, gpu_name
from qualitygate.errors import DeviceLost, ErrorCode, Failure
from qualitygate.metrics.memory import telling_of_a_lost_gpu
from qualitygate.metrics.starting import starting_on_a_gpu
from qualitygate.tables import storage
from qualitygate.training import loop, models
from qualitygate.training.data import Prepared, prepare

SCHEMA = pa.schema(
    [
        pa.field("position", pa.int64()),
        pa.field("sha256", pa.string()),
        pa.field("predicted", pa.string()),
        pa.field("confidence", pa.float64()),
        pa.field("top1", pa.float64()),
        pa.field("error_code", pa.string()),
        pa.field("error_message", pa.string()),
    ]
)
# Begun this often without an end, a photograph is taken to kill its worker. Once may be a lost machine.
_STARTS_THAT_CONVICT = 2
_IMAGE_TIMEOUT_S = 300.0

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Which network, and how a worker runs it."""

    architecture: str
    classes: tuple[str, ...]
    image_size: int
    batch_size: int
    threads: int
    on_gpu: bool
    # As the driver logs: Ray keeps what workers log in files of each node.
    log_format: str = logs.TEXT
    access: storage.Access = storage.DEFAULT


class PredictingWorker:
    """Callable class of the actor pool: rows of image_id, uri, box, label, position in; rows of SCHEMA out."""

    def __init__(self, task: Task, state: Any, journal: Any) -> None:
        import cv2

        logs.set_up(task.log_format, verb="predict")
        cv2.setNumThreads(1)
        loop.deterministic()
        torch.set_num_threads(min(task.threads, len(os.sched_getaffinity(0))))
        self._task = task
        self._journal = journal
        self._watchdog = Watchdog(_IMAGE_TIMEOUT_S, self._report_over_time)
        tensors = {name: torch.tensor(value) for name, value in ray.get(state).items()}
        model = models.build(task.architecture, len(task.classes), image_size=task.image_size, state=tensors)
        self._device = torch.device("cpu")
        self._lost: DeviceLost | None = None
        try:
            if task.on_gpu and finds_its_gpu(journal):
                self._device = torch.device("cuda")
                with starting_on_a_gpu("the classifier's load"):
                    model = model.to(self._device)
        except DeviceLost as error:
            # For the first task to end over.
            self._lost = error
        self._model = model

    def __call__(self, batch: pa.Table) -> pa.Table:
        end_if_lost(self._lost, self._journal)
        rows = batch.to_pylist()
        key = hashlib.sha1("\0".join(row["image_id"] for row in rows).encode()).hexdigest()
        again = ray.get(self._journal.begin_batch.remote(key)) > 1
        prepared = self._with_care(rows) if again else self._straight(rows)
        with ending_with_its_gpu(self._journal), telling_of_a_lost_gpu("the classifier"):
            found = self._found(rows, prepared)
        if self._device.type == "cuda":
            ray.get(self._journal.worked.remote(gpu_name()))
        ray.get(self._journal.end_batch.remote(key, [row["image_id"] for row in rows] if again else []))
        return pa.Table.from_pylist(found, schema=SCHEMA)

    def _straight(self, rows: Sequence[Row]) -> list[Prepared]:
        prepared = []
        decoding = prepare(rows, self._task.image_size, self._task.access)
        for row in rows:
            with self._watchdog.watching([row["image_id"]]):
                prepared.append(next(decoding))
        return prepared

    def _with_care(self, rows: Sequence[Row]) -> list[Prepared]:
        prepared = []
        for row in rows:
            before = ray.get(self._journal.begin_image.remote(row["image_id"]))
            convicted = before.over_time or before.times >= _STARTS_THAT_CONVICT
            if convicted:
                why = (
                    f"took longer than {_IMAGE_TIMEOUT_S:g} s"
                    if before.over_time
                    else f"its worker process died {before.times} times"
                )
                prepared.append(Prepared(failure=Failure(ErrorCode.WORKER_CRASH, why)))
            else:
                with self._watchdog.watching([row["image_id"]]):
                    prepared += prepare([row], self._task.image_size, self._task.access)
            ray.get(self._journal.end_image.remote(row["image_id"], before if convicted else None))
        return prepared

    def _report_over_time(self, image_ids: Sequence[str], in_networks: bool) -> None:
        ray.get(self._journal.took_too_long.remote(list(image_ids), in_networks=in_networks), timeout=10)

    def _found(self, rows: Sequence[Row], prepared: Sequence[Prepared]) -> list[dict[str, Any]]:
        pixels = [one.pixels for one in prepared if one.pixels is not None]
        answers = iter(())
        if pixels:
            logits = loop.logits_of(self._model, torch.from_numpy(np.stack(pixels)), self._task.batch_size)
            answers = iter(loop.probabilities(logits))
        found = []
        for row, one in zip(rows, prepared, strict=True):
            result: dict[str, Any] = {"position": row["position"], "sha256": one.sha256}
            if one.failure is None:
                result |= self._answer(next(answers), row["label"])
            else:
                message = storage.redact(one.failure.message)
                result |= {"error_code": one.failure.code.value, "error_message": message}
            found.append(result)
        return found

    def _answer(self, probabilities: Any, label: str) -> dict[str, Any]:
        if not np.isfinite(probabilities).all():
            return {"error_code": ErrorCode.NON_FINITE.value, "error_message": "the classifier gave no numbers"}
        best = int(np.argmax(probabilities))
        classes = self._task.classes
        return {
            "predicted": classes[best],
            "confidence": float(probabilities[classes.index(label)]),
            "top1": float(probabilities[best]),
        }

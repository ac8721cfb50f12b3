"""What a photograph of this input costs, by a short measurement before the pool starts: a few photographs, one core.

It runs in a task of its own, so that no photograph can take the job with it; whatever goes wrong there, the job starts
with what it would choose without it.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from qualitygate.metrics.rows import Plan, Request, RowScorer
from qualitygate.tables import storage

logger = logging.getLogger(__name__)

# So many photographs are measured, after one that warms up, or as many as fit the time.
PHOTOGRAPHS = 8
SECONDS = 4.0
_PATIENCE_S = 30.0
_COLUMNS = ("image_id", "uri", "box", "etag")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Seconds a photograph on one core: until its bytes are here, and to decode it and compute the formulas."""

    photographs: int
    fetch: float
    compute: float

    def __str__(self) -> str:
        return (
            f"measured on {self.photographs} photographs: {1000 * self.fetch:.3g} ms to fetch, "
            f"{1000 * self.compute:.3g} ms to decode and for formulas"
        )


def measure(plan: Plan, pending: str) -> Cost | None:
    """The cost of some of the rows that wait in a folder of Parquet files; None where none could be measured."""
    import ray

    # What networks cost on a CPU dwarfs all else, and on a GPU this core says nothing of it.
    formulas = tuple(metric.name for metric in plan.selected() if not metric.takes_several(plan.device))
    # A plan without formulas still decodes: any cheap one stands for none.
    light = replace(plan, metrics=formulas or ("lapm",), device="cpu", lazy=None)
    task = ray.remote(max_retries=0, num_cpus=1)(_measured).remote(light, pending)
    try:
        cost: Cost | None = ray.get(task, timeout=_PATIENCE_S)
    except ray.exceptions.RayError as error:
        logger.info("not measured: %s", type(error).__name__)
        ray.cancel(task, force=True)
        return None
    return cost


def _measured(plan: Plan, pending: str) -> Cost | None:
    from qualitygate.cluster.workers import use_threads

    use_threads(1)
    return cost_of(plan, some(pending))


def cost_of(plan: Plan, requests: Sequence[Request], seconds: float = SECONDS) -> Cost | None:
    """The mean cost of those of the requests that can be read, but for the first; None without any."""
    scorer = RowScorer(plan, run_id="measurement")
    fetch = compute = 0.0
    count = -1
    began = time.monotonic()
    for request in requests:
        started = time.perf_counter()
        fetched = scorer.fetch(request)
        arrived = time.perf_counter()
        if scorer.row(request, fetched).get("sha256") is None:
            continue
        count += 1
        if count:
            fetch += arrived - started
            compute += time.perf_counter() - arrived
        if count and time.monotonic() - began > seconds:
            break
    return Cost(photographs=count, fetch=fetch / count, compute=compute / count) if count > 0 else None


def some(rows: str, photographs: int = PHOTOGRAPHS) -> list[Request]:
    """Photographs from all over a Parquet file, or a folder of them: one to warm up and so many to measure."""
    import pyarrow.dataset

    store, path = storage.file_system(rows) if not storage.is_local(rows) else (None, rows)
    data = pyarrow.dataset.dataset(path, format="parquet", filesystem=store)
    total = data.count_rows()
    chosen = sorted({round(place * (total - 1) / photographs) for place in range(photographs + 1)})
    return [Request(**row) for row in data.take(chosen, columns=list(_COLUMNS)).to_pylist()]

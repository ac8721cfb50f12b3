"""What scoring will take, before it starts: rows, bytes, and hours on CPUs and GPUs for each metric.

Formulas and decoding are timed on some of the photographs themselves; networks are counted, at the photographs' sizes,
and divided by the rate of a plain product on this machine, or by what a GPU can do. The photographs are decoded in a
process of their own, so that none of them can end the plan.
"""

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from qualitygate.calibration import gate as gates
from qualitygate.cluster import measurement
from qualitygate.cluster.planning import gate_voters
from qualitygate.config import ScoreConfig, ScorePlanConfig
from qualitygate.errors import RETRIED_CODES, ConfigurationError
from qualitygate.images.decode import DecodePolicy
from qualitygate.metrics import CATALOGUE, PAPER, by_cost
from qualitygate.metrics.rows import Plan, Request, RowScorer
from qualitygate.tables import manifest as manifests
from qualitygate.tables import scores
from qualitygate.tables.scratch import scratch_folder
from qualitygate.tables.sql import connect, identifier, literal

# An H100's dense half-precision products, measured; no program does better.
GPU_LIMIT = 790e12
# pyiqa's photographs of 1024 x 1024 a second on an H100, one at a time in float32, measured; ours aren't timed yet.
GPU_STOCK = {"musiq": 66.0, "maniqa": 6.8, "hyperiqa": 123.0}
_STOCK_SIDE = 1024
# Of a plain product's rate, networks reach nine tenths on a CPU.
_OF_A_PRODUCT = 0.9
_PRODUCT = (768, 768, 3072)
_PATIENCE_S = 300.0
# So many of the rows that wait are timed for a budget, as for 'plan score'.
_PHOTOGRAPHS = int(ScorePlanConfig.model_fields["photographs"].default)


def estimate(config: ScorePlanConfig) -> dict[str, Any]:
    """Counts and times; nothing is written, and no weights are needed.

    Raises ConfigurationError as `score` does for its input, unknown metrics and the gate.
    """
    names, voters = _metrics(config)
    with scratch_folder() as scratch:
        manifest = manifests.load(config.input, Path(scratch) / "manifest.parquet", limit=config.limit)
        left, to_do = _left(config, names, manifest)
        sample = measurement.some(str(manifest.path), config.photographs)
    policy = DecodePolicy(max_pixels=config.max_pixels, longest_side=config.longest_side)
    by_metric, measured, messages = _by_metric(Plan(metrics=tuple(names), policy=policy), left, sample)
    return {
        "rows": manifest.rows,
        "to_do": to_do,
        "bytes": to_do * measured["bytes"],
        "requests": to_do,
        "measured": measured,
        "cores": len(os.sched_getaffinity(0)),
        "metrics": by_metric,
        "reading_cpu_hours": to_do * measured["reading"] / 3600,
        "gate": list(voters),
        "messages": [*messages, *manifest.notes],
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Hours:
    """What scoring some rows will take: hours of one core, and of one GPU; metrics: the same by metric, dearest first.

    gpu: (at least, at most): what no program exceeds on an H100, and what pyiqa reaches there. Zero without a GPU.
    """

    rows: int
    cpu: float
    gpu: tuple[float, float]
    metrics: Mapping[str, float]

    def __str__(self) -> str:
        gpu = f"{self.gpu[0]:.3g} to {self.gpu[1]:.3g} GPU-hours and " if self.gpu[1] else ""
        return f"{self.rows:,} photographs will take {gpu}about {self.cpu:.3g} hours of one core: within the budget"


def hours(plan: Plan, pending: Path) -> Hours:
    """By the rows that wait in a folder of Parquet files, some of which are timed here.

    Scores that a lazy vote will leave out are counted. Raises ConfigurationError where none can be timed.
    """
    rows, left = _pending(plan, pending)
    by_metric, measured, _ = _by_metric(plan, left, measurement.some(str(pending), _PHOTOGRAPHS))
    on_gpu = plan.device == "cuda"
    cpu, gpu = rows * measured["reading"] / 3600, (0.0, 0.0)
    dearest = {}
    for name, cost in by_metric.items():
        if on_gpu and cost["gpu_hours"]:
            gpu = (gpu[0] + cost["gpu_hours"][0], gpu[1] + cost["gpu_hours"][1])
            dearest[name] = cost["gpu_hours"][1]
        elif not (on_gpu and plan.formulas == "gpu"):
            # Formulas on a GPU take a fraction of what decoding does; nobody has timed them there.
            cpu += cost["cpu_hours"]
            dearest[name] = cost["cpu_hours"]
    ordered = dict(sorted(dearest.items(), key=lambda item: -item[1]))
    return Hours(rows=rows, cpu=cpu, gpu=gpu, metrics=ordered)


def check_budget(config: ScoreConfig, plan: Plan, pending: Path) -> Hours | None:
    """Refuse, by a ConfigurationError, what would take more than --max-gpu-hours or --max-cpu-hours.

    plan: on the device that will be used. Returns the estimate; None where there is no budget, and nothing is timed.
    """
    if config.max_gpu_hours is None and config.max_cpu_hours is None:
        return None
    found = hours(plan, pending)
    least, most = found.gpu
    for said, estimate, unit, budget, flag in (
        (f"{least:.3g} to {most:.3g}", most, "GPU-hours", config.max_gpu_hours, "--max-gpu-hours"),
        (f"about {found.cpu:.3g}", found.cpu, "hours of a core", config.max_cpu_hours, "--max-cpu-hours"),
    ):
        if budget is not None and estimate > budget:
            dearest = next(iter(found.metrics), "reading them")
            raise ConfigurationError(
                f"scoring {found.rows:,} photographs would take {said} {unit}, more than {flag} {budget:g}, most of it "
                f"{dearest}; nothing was scored: take fewer (--limit), fewer --metrics, --gate with "
                "--lazy, or raise the budget; 'qualitygate plan score' shows it by metric"
            )
    return found


def _pending(plan: Plan, folder: Path) -> tuple[int, dict[str, int]]:
    """(rows that wait, of them by metric those that need it: the others have it, as far as is known of these bytes)."""
    with connect() as database:
        database.sql(f"CREATE VIEW pending AS SELECT * FROM read_parquet({literal(folder / '*.parquet')})")
        rows = int(database.sql("SELECT count(*) FROM pending").fetchall()[0][0])
        counts = {}
        for name, by_region in plan.fingerprints().items():
            known = ", ".join(literal(value) for value in by_region.values())
            state, print_ = (
                f"previous.{identifier(column(name))}" for column in (scores.state_column, scores.fingerprint_column)
            )
            has = (
                f"{state} = {literal(scores.OK)} AND {print_} IN ({known}) AND uri = previous.uri "
                "AND etag IS NOT DISTINCT FROM previous.etag AND box IS NOT DISTINCT FROM previous.box"
            )
            query = f"SELECT count(*) FROM pending WHERE NOT coalesce({has}, false)"
            counts[name] = int(database.sql(query).fetchall()[0][0])
    return rows, counts


def _by_metric(
    plan: Plan, left: Mapping[str, int], sample: Sequence[Request]
) -> tuple[dict[str, dict[str, Any]], dict[str, Any], list[str]]:
    """(each metric's hours, cheapest first; what was timed; what is to be said about that)."""
    formulas = tuple(name for name in plan.metrics if CATALOGUE[name].device == "cpu")
    light = replace(plan, metrics=formulas or ("lapm",), device="cpu", lazy=None)
    measured, messages = _measured(light, sample)
    return {name: _cost(name, left[name], measured) for name in by_cost(plan.metrics)}, measured, messages


def _metrics(config: ScorePlanConfig) -> tuple[list[str], list[str]]:
    """(all that are asked about, those of them that the gate votes with)."""
    voters = gate_voters(gates.load(config.gate)) if config.gate else []
    names = list(dict.fromkeys([*(config.metrics or PAPER), *voters]))
    if unknown := [name for name in names if name not in CATALOGUE]:
        raise ConfigurationError(f"unknown metric {unknown[0]!r}; 'qualitygate metrics' lists them")
    return names, voters


def _left(config: ScorePlanConfig, names: Sequence[str], manifest: manifests.Manifest) -> tuple[dict[str, int], int]:
    """By metric, the input's photographs that have no score of it yet in --output; and those that lack any.

    Those that changed since count as without; those that failed for good don't: 'score' leaves both so.
    """
    table = scores.open_table(config.output) if config.output else None
    if table is None:
        return dict.fromkeys(names, manifest.rows), manifest.rows
    known = scores.metrics_of(table)
    again = ", ".join(literal(scores.failed(code)) for code in sorted(RETRIED_CODES))

    def done_by(state: str) -> str:
        kept = f"{state} = {literal(scores.OK)} OR (starts_with({state}, 'failed:') AND {state} NOT IN ({again}))"
        return f"coalesce({kept}, false)"

    done = {name: done_by(identifier(scores.state_column(name))) if name in known else "false" for name in names}
    counts = [f"count(*) FILTER ({has})" for has in (*done.values(), " AND ".join(done.values()))]
    with connect() as database:
        scores.register(database, table)
        *by_metric, by_all = database.sql(
            f"SELECT {', '.join(counts)} FROM scores "
            f"SEMI JOIN read_parquet({literal(manifest.path)}) AS new ON scores.image_id = new.image_id "
            "AND (new.etag IS NULL OR new.etag IS NOT DISTINCT FROM scores.etag)"
        ).fetchall()[0]
    left = {name: manifest.rows - count for name, count in zip(names, by_metric, strict=True)}
    return left, manifest.rows - by_all


def _measured(plan: Plan, sample: Sequence[Request]) -> tuple[dict[str, Any], list[str]]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        try:
            found: dict[str, Any] = process.submit(measure, plan, sample).result(timeout=_PATIENCE_S)
        except (BrokenProcessPool, TimeoutError) as error:
            # What takes for ever would be waited for.
            for one in (process._processes or {}).values():
                one.kill()
            raise ConfigurationError(
                "a photograph of --input ended the measurement: it crashes its decoder, or takes for ever; 'score' "
                "finds it and gives it its row, or plan with another part of the input"
            ) from error
    messages = []
    if found["unread"]:
        messages.append(
            f"{found['unread']} of {len(sample)} photographs could not be read: the means are of the others"
        )
    if not found["sizes"]:
        raise ConfigurationError(
            f"none of {len(sample)} photographs of --input could be read ({found['reason']}); check the input"
        )
    return found, messages


def measure(plan: Plan, sample: Sequence[Request]) -> dict[str, Any]:
    """Mean seconds of a photograph on this core by stage, sizes, bytes, and the rate of a plain product."""
    from qualitygate.cluster.workers import use_threads

    use_threads(1)
    scorer = RowScorer(plan, run_id="plan")
    alone = {name: RowScorer(replace(plan, metrics=(name,)), run_id="plan") for name in plan.metrics}
    sizes, nbytes, reading, reason, unread = [], 0, 0.0, None, 0
    formulas = dict.fromkeys(plan.metrics, 0.0)
    warm = False
    for request in sample:
        fetched = scorer.fetch(request)
        row = scorer.row(request, fetched)
        if row["status"] == "error" and row.get("width") is None:
            scorer.take_seconds()
            unread, reason = unread + 1, reason or row["error_message"]
            continue
        if not warm:
            # The first that can be read warms everything up, and is then measured like the others.
            warm = True
            for one in alone.values():
                one.row(request, fetched)
                one.take_seconds()
            scorer.take_seconds()
            fetched = scorer.fetch(request)
            scorer.row(request, fetched)
        seconds = scorer.take_seconds()
        reading += seconds.get("fetch", 0.0) + seconds.get("decode", 0.0)
        for name, one in alone.items():
            # By itself: together, metrics share what they have in common, and the first would pay for the others.
            one.row(request, fetched)
            formulas[name] += one.take_seconds().get(name, 0.0)
        sizes.append((row["height"], row["width"]))
        nbytes += row["bytes"]
    count = max(1, len(sizes))
    return {
        "photographs": len(sizes),
        "unread": unread,
        "reason": reason,
        "sizes": sizes,
        "bytes": nbytes / count,
        "reading": reading / count,
        "formulas": {name: seconds / count for name, seconds in formulas.items()},
        "operations_per_second": _product_rate(),
    }


def _product_rate() -> float:
    """Floating point operations a second of one thread's float32 product."""
    import time

    import torch

    torch.set_num_threads(1)
    rows, inner, columns = _PRODUCT
    left, right = torch.rand(rows, inner), torch.rand(inner, columns)
    moments = [time.perf_counter()]
    for _ in range(4):
        torch.mm(left, right)
        moments.append(time.perf_counter())
    best = min(after - before for before, after in itertools.pairwise(moments))
    return 2 * rows * inner * columns / best


def _cost(name: str, rows: int, measured: dict[str, Any]) -> dict[str, Any]:
    """A metric's hours for so many photographs of the measured sizes."""
    from qualitygate.metrics import costs

    base = name.split("-")[0]
    if CATALOGUE[name].device == "cpu":
        return {"rows": rows, "cpu_hours": rows * measured["formulas"][name] / 3600, "gpu_hours": None}
    each = _mean(costs.operations(name, height, width) for height, width in measured["sizes"])
    stock = GPU_STOCK[base] * costs.operations(name, _STOCK_SIDE, _STOCK_SIDE)
    return {
        "rows": rows,
        "cpu_hours": rows * each / (_OF_A_PRODUCT * measured["operations_per_second"]) / 3600,
        "gpu_hours": (rows * each / GPU_LIMIT / 3600, rows * each / stock / 3600),
    }


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)

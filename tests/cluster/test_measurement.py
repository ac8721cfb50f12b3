"""The measurement before a run: it reads what can be read, chooses sensibly, and can't take the run with it."""

import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from job_helpers import Silent, write_photographs

from qualitygate.cluster import measurement, planning, scoring, session, workers
from qualitygate.cluster.measurement import Cost
from qualitygate.config import ScoreConfig
from qualitygate.metrics.rows import Plan, Request

pytestmark = [pytest.mark.cluster]

FOCUS = ("lapv", "lapm", "wavs")
MACHINE = session.Cluster(cpus=4, gpus=0, local=True)


def _pending(folder: Path, uris: list[str]) -> str:
    folder.mkdir()
    rows = {"image_id": uris, "uri": uris, "box": [None] * len(uris), "etag": [None] * len(uris)}
    schema = pa.schema({"image_id": "string", "uri": "string", "box": pa.list_(pa.int64()), "etag": "string"})
    pq.write_table(pa.table(rows, schema=schema), folder / "a.parquet")
    return str(folder)


def test_what_cant_be_read_is_not_measured(tmp_path: Path) -> None:
    names = write_photographs(tmp_path / "in", 3)
    uris = [str(tmp_path / "in" / name) for name in names] + [str(tmp_path / "absent.jpg")]
    cost = measurement.cost_of(Plan(metrics=FOCUS), [Request(image_id=uri, uri=uri) for uri in uris])
    assert cost is not None
    assert cost.photographs == 2  # the first warmed up
    assert cost.fetch > 0
    assert cost.compute > 0
    absent = [Request(image_id=str(number), uri=uris[-1]) for number in range(3)]
    assert measurement.cost_of(Plan(metrics=FOCUS), absent) is None


def test_a_measurement_that_dies_leaves_the_choice_as_it_was(
    ray_session: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = write_photographs(tmp_path / "in", 3)
    pending = _pending(tmp_path / "pending", [str(tmp_path / "in" / name) for name in names])
    found = measurement.measure(Plan(metrics=FOCUS), pending)
    assert found is not None
    assert found.photographs >= 1
    monkeypatch.setattr(measurement, "_measured", lambda plan, pending: os._exit(139))
    assert measurement.measure(Plan(metrics=FOCUS), pending) is None


@pytest.mark.parametrize(
    ("cost", "task", "prefetch"),
    [
        (Cost(photographs=8, fetch=0.0, compute=0.02), 100, 1),
        (Cost(photographs=8, fetch=0.08, compute=0.02), 20, 5),  # a slow store
        (Cost(photographs=8, fetch=0.0, compute=10.0), 1, 1),  # a gigantic photograph each
        (Cost(photographs=8, fetch=9.0, compute=1e-9), 1, 64),
        (Cost(photographs=8, fetch=0.0, compute=1e-6), 512, 1),  # the longest task there is
        (None, 32, None),
    ],
)
def test_tasks_are_seconds_of_work_and_slow_stores_are_asked_ahead(
    cost: Cost | None, task: int, prefetch: int | None
) -> None:
    config, plan = ScoreConfig(input="i", output="o"), Plan(metrics=FOCUS)
    pool = planning.plan_pool(config, plan, MACHINE, 100_000, cost)
    assert (pool.task, pool.prefetch) == (task, prefetch)
    # The user's word and the end of the run count for more.
    assert planning.plan_pool(config.model_copy(update={"task_size": 7}), plan, MACHINE, 100_000, cost).task == 7
    # How many the networks get at once is another matter.
    batches = planning.plan_pool(config.model_copy(update={"batch_size": 7}), plan, MACHINE, 100_000, cost)
    assert (batches.task, batches.batch_size) == (task if cost else 7, 7)
    assert planning.plan_pool(config, plan, MACHINE, 16, cost).task == 1
    # nvJPEG outruns the decoding that was timed: what is fetched ahead is all that it can get.
    outrun = replace(plan, policy=replace(plan.policy, decoder="nvjpeg"))
    assert planning.plan_pool(config, outrun, MACHINE, 100_000, cost).prefetch == (64 if cost else None)
    assert f"tasks of {task} photograph" in str(pool)


def test_the_bottleneck_goes_by_the_clock() -> None:
    recorder = scoring._Recorder.__new__(scoring._Recorder)
    recorder.stages = {"decode": 40.0, "maniqa": 10.0, "wait_for_decode": 1.0}
    recorder.pool = planning.Pool(workers=1, cpus_per_worker=1, gpus_per_worker=1, batch_size=32, task=256, decoders=8)
    assert scoring._bottleneck(recorder) == "maniqa"
    recorder.pool = replace(recorder.pool, decoders=1)
    assert scoring._bottleneck(recorder) == "decode"


@dataclass
class _Clock:
    """Seconds that pass only where the simulation says so."""

    now: float = 0.0

    def perf_counter(self) -> float:
        return self.now


@dataclass
class _Pending:
    """What a thread will have finished at `ready`; asking before waits until then."""

    clock: _Clock
    ready: float
    value: Any

    def result(self) -> Any:
        self.clock.now = max(self.clock.now, self.ready)
        return self.value


@dataclass
class _Threads:
    """A pool with a thread for each task, which takes `latency` after what it is given is there."""

    clock: _Clock
    latency: float

    def submit(self, function: Any, argument: Any) -> _Pending:
        return _Pending(self.clock, self.clock.now + self.latency, function(argument))


@pytest.mark.parametrize("decoders", [1, 4])
@pytest.mark.parametrize(
    ("fetch", "compute", "bottleneck"),
    [
        # 8 are on their way: after the start none is waited for. Many threads' seconds, hardly any by the clock.
        (5.0, 1.0, "lapm"),
        # 8 come every 5 seconds, and are done at once.
        (5.0, 0.01, "wait_for_fetch"),
    ],
)
def test_a_store_is_the_bottleneck_only_where_workers_wait_for_it(
    monkeypatch: pytest.MonkeyPatch, decoders: int, fetch: float, compute: float, bottleneck: str
) -> None:
    clock, count = _Clock(), 80
    stages: dict[str, float] = defaultdict(float)

    def fetched(_: Request) -> str:
        stages["fetch"] += fetch
        return "bytes"

    def finished(prepared: Iterator[Any], watch: object) -> Iterator[dict[str, Any]]:
        for _ in prepared:
            clock.now += compute
            stages["lapm"] += compute
            yield {}

    monkeypatch.setattr(workers, "time", clock)
    worker = workers.ScoringWorker.__new__(workers.ScoringWorker)
    worker._settings = workers.WorkerSettings(run_id="r", image_timeout_s=9, decoders=decoders, prefetch=8)
    worker._scorer = SimpleNamespace(fetch=fetched, prepare=lambda *_: "photograph", finished=finished)  # type: ignore[assignment]
    worker._watchdog = SimpleNamespace(watching=lambda _: nullcontext())  # type: ignore[assignment]
    worker._fetchers, worker._decoders = _Threads(clock, fetch), _Threads(clock, 0.0)  # type: ignore[assignment]
    worker._waited, worker._at_once, worker._cold = defaultdict(float), 4, False
    worker._straight([Request(image_id=str(number), uri=f"s3://b/{number}") for number in range(count)])
    if bottleneck == "lapm":
        assert fetch <= worker._waited["wait_for_fetch"] <= 2 * fetch
    assert stages["fetch"] == fetch * count > stages["lapm"]
    # All of the clock is accounted for: several decoders' waiting includes the store's.
    waiting = worker._waited["wait_for_decode" if decoders > 1 else "wait_for_fetch"]
    assert waiting + stages["lapm"] == pytest.approx(clock.now)
    recorder = scoring._Recorder.__new__(scoring._Recorder)
    recorder.stages = {**stages, **worker._waited}
    recorder.pool = planning.Pool(
        workers=1, cpus_per_worker=1, gpus_per_worker=0, batch_size=4, task=count, decoders=decoders
    )
    assert scoring._bottleneck(recorder) == bottleneck


def test_only_runs_that_can_gain_are_measured() -> None:
    config = ScoreConfig(input="i", output="o")
    assert planning.worth_measuring(config, 1000)
    assert not planning.worth_measuring(config, 999)
    assert not planning.worth_measuring(config.model_copy(update={"measure": False}), 10_000)


def test_a_measured_run_says_what_it_measured_and_chose(
    ray_session: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "_FEWEST_TO_MEASURE", 12)
    write_photographs(tmp_path / "in", 12)
    told = Silent()
    config = ScoreConfig(input=str(tmp_path / "in"), output=str(tmp_path / "out"), metrics=FOCUS)
    stats = scoring.run(config, told).stats
    assert stats["manifest"]["by_status"] == {"ok": 12}
    assert stats["measured"]["photographs"] == 8
    assert stats["bottleneck"] in stats["seconds_by_stage"]
    assert any("measured on 8 photographs" in note and "tasks of" in note for note in told.notes)

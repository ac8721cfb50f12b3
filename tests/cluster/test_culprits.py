"""Several photographs of one task that end their workers: what finding them out costs. Processes are played here."""

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from job_helpers import write_photographs

from qualitygate.cluster import losses, predicting_worker, workers
from qualitygate.errors import DeviceLost
from qualitygate.images.photograph import Photograph
from qualitygate.metrics import focus_tensors
from qualitygate.metrics.rows import Plan, Prepared, Request
from qualitygate.tables import scores
from qualitygate.training.data import Prepared as Decoded

COUNT = 7
LOST = "CUDA error: an illegal memory access was encountered"
TASK = pa.table({"name": ["0.parquet"]})


class Died(BaseException):
    """The process is gone: nothing may catch this."""


@dataclass(kw_only=True)
class Machine:
    """The journal, and a worker that is started again whenever it dies."""

    start: Callable[[Any], Any]
    journal: Any = field(default_factory=lambda: workers.CrashJournal.__ray_metadata__.modified_class())
    deaths: int = 0

    def table(self, most: int) -> pa.Table:
        """What the task gives in the end; `most` deaths are waited for."""
        names = [name for name in dir(self.journal) if not name.startswith("_")]
        answering = {name: SimpleNamespace(remote=getattr(self.journal, name)) for name in names}
        while self.deaths <= most:
            try:
                return self.start(SimpleNamespace(**answering))(TASK)
            except Died:
                self.deaths += 1
        raise AssertionError(f"more than {most} deaths")


@pytest.fixture(autouse=True)
def played(monkeypatch: pytest.MonkeyPatch) -> None:
    context = SimpleNamespace(get_node_id=lambda: "a" * 8, get_accelerator_ids=lambda: {"GPU": ["0"]})
    ray = SimpleNamespace(get=lambda answer, **_: answer, get_runtime_context=lambda: context)

    def end(code: int) -> None:
        raise Died(code)

    monkeypatch.setattr(workers, "ray", ray)
    monkeypatch.setattr(predicting_worker, "ray", ray)
    monkeypatch.setattr(workers.os, "_exit", end)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("photographs")
    write_photographs(made, COUNT, side=48)
    return made


def _worker(folder: Path, journal: Any, plan: Plan) -> workers.ScoringWorker:
    settings = workers.WorkerSettings(run_id="r", image_timeout_s=600)
    made = workers.ScoringWorker(plan, settings, scores.schema(plan.metrics), journal, str(folder))
    requests = [Request(image_id=path.name, uri=str(path)) for path in sorted(folder.iterdir())]
    made._reader = SimpleNamespace(requests=lambda _: requests)  # type: ignore[assignment]
    return made


def _states(table: pa.Table) -> list[str]:
    return [code or "ok" for code in table["error_code"].to_pylist()]


# ---- photographs that kill their process, or hang ------------------------------------------------------------


@pytest.mark.parametrize("killers", range(1, COUNT))
def test_each_further_photograph_that_kills_costs_two_deaths(folder: Path, killers: int) -> None:
    deadly = {f"p{number:04}.jpg" for number in range(COUNT - killers, COUNT)}

    def start(journal: Any) -> workers.ScoringWorker:
        worker = _worker(folder, journal, Plan(metrics=("lapm",)))
        prepare = worker._scorer.prepare

        def dying(request: Request, fetched: Any) -> Prepared:
            if request.image_id in deadly:
                raise Died
            return prepare(request, fetched)

        worker._scorer.prepare = dying  # type: ignore[method-assign]
        return worker

    machine = Machine(start=start)
    table = machine.table(most=2 * killers + 2)
    assert machine.deaths == 2 * killers + 2
    assert _states(table) == ["ok"] * (COUNT - killers) + ["worker_crash"] * killers
    assert {message for message in table["error_message"].to_pylist() if message} == {
        "its worker process died 2 times while scoring it"
    }
    # Delivered, and nothing of it is remembered.
    assert (machine.journal._images, machine.journal._batches) == ({}, {})


def _hanging(worker: workers.ScoringWorker, at_network: Callable[[Sequence[str]], bool], stuck: set[str]) -> None:
    """Plays the watchdog: what is watched and would hang ends the process at once, and is told of as ever."""

    @contextmanager
    def watching(image_ids: Sequence[str], *, in_networks: bool = False) -> Any:
        if stuck & set(image_ids) and at_network(image_ids) == in_networks:
            worker._report_over_time(image_ids, in_networks)
            raise Died
        yield

    worker._watchdog.watching = watching  # type: ignore[method-assign]


@pytest.mark.parametrize("in_networks", [False, True])
@pytest.mark.parametrize("hanging", [1, 2, 5])
def test_each_photograph_that_hangs_is_waited_for_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, hanging: int, in_networks: bool
) -> None:
    """And once more the group that it was in."""
    _on_a_gpu_in_name(monkeypatch)
    stuck = {f"p{number:04}.jpg" for number in range(COUNT - hanging, COUNT)}
    plan = Plan(metrics=("lapm",), device="cuda" if in_networks else "cpu", at_once=COUNT)

    def start(journal: Any) -> workers.ScoringWorker:
        worker = _worker(folder, journal, plan)
        _hanging(worker, lambda _: in_networks, stuck)
        return worker

    machine = Machine(start=start)
    table = machine.table(most=hanging + in_networks)
    assert machine.deaths == hanging + in_networks
    assert _states(table) == ["ok"] * (COUNT - hanging) + ["worker_crash"] * hanging
    assert machine.journal._images == {}


def test_formulas_that_kill_once_the_networks_have_are_not_tried_for_ever(folder: Path) -> None:
    """What convicted a photograph in the networks lets its formulas be computed; that they fail is noticed, too."""
    journal = workers.CrashJournal.__ray_metadata__.modified_class()
    begun = workers.Begun(times=2, in_networks=True)
    journal.end_image("a", begun)
    assert journal.begin_image("a") == begun
    # It died before it was said to be in the networks again.
    again = journal.begin_image("a")
    assert (again.times, again.in_networks) == (3, False)


def test_predicting_finds_several_out_at_two_deaths_each(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"p{number}" for number in range(COUNT)]
    deadly = set(names[1:4])

    def prepare(rows: Sequence[Any], *_: Any) -> Any:
        for row in rows:
            if row["image_id"] in deadly:
                raise Died
            yield Decoded(sha256="0")

    monkeypatch.setattr(predicting_worker, "prepare", prepare)

    def start(journal: Any) -> Any:
        worker = predicting_worker.PredictingWorker.__new__(predicting_worker.PredictingWorker)
        worker._journal, worker._lost = journal, None
        worker._task = SimpleNamespace(image_size=8, access=None)  # type: ignore[assignment]
        worker._watchdog = workers.Watchdog(600, lambda *_: None)
        worker._device = SimpleNamespace(type="cpu")  # type: ignore[assignment]
        found = [{"position": number} for number in range(COUNT)]
        worker._found = lambda rows, prepared: [  # type: ignore[method-assign]
            row | {"error_code": one.failure.code.value if one.failure else None}
            for row, one in zip(found, prepared, strict=True)
        ]
        return lambda _: worker(pa.table({"image_id": names}))

    machine = Machine(start=start)
    table = machine.table(most=7)
    assert machine.deaths == 7
    assert _states(table) == ["ok", "worker_crash", "worker_crash", "worker_crash", "ok", "ok", "ok"]
    assert machine.journal._images == {}


# ---- photographs that take the GPU away ----------------------------------------------------------------------


def _on_a_gpu_in_name(monkeypatch: pytest.MonkeyPatch) -> None:
    load = focus_tensors.load
    monkeypatch.setattr(focus_tensors, "load", lambda name, device, **more: load(name, "cpu", **more))
    monkeypatch.setattr(workers, "on_this_machine", lambda plan, *_: plan)
    monkeypatch.setattr(workers, "_gpu_memory", lambda: 0)


def _losing(folder: Path, deadly: Callable[[int], bool]) -> Callable[[Any], workers.ScoringWorker]:
    def start(journal: Any) -> workers.ScoringWorker:
        worker = _worker(folder, journal, Plan(metrics=("lapm",), device="cuda", at_once=4))
        score = worker._scorer._scorers["lapm"]
        lost: list[bool] = []

        def losing(photographs: Sequence[Photograph]) -> Sequence[Any]:
            # Photographs of the folder are told apart by their width.
            if lost or any(deadly(photograph.width - 48) for photograph in photographs):
                lost.append(True)
                raise RuntimeError(LOST)
            return score(photographs)

        worker._scorer._scorers["lapm"] = losing
        return worker

    return start


@pytest.mark.parametrize("killers", [1, 2, 3])
def test_up_to_three_that_take_the_gpu_away_first_in_a_task_are_found_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch, killers: int
) -> None:
    _on_a_gpu_in_name(monkeypatch)
    machine = Machine(start=_losing(folder, lambda number: number < killers))
    table = machine.table(most=losses.MOST_LOSSES)
    assert machine.deaths == 2 * killers + 2 < losses.MOST_LOSSES
    assert _states(table) == ["worker_crash"] * killers + ["ok"] * (COUNT - killers)


def test_more_of_them_are_found_out_where_others_stand_between(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each score says that the GPU works."""
    _on_a_gpu_in_name(monkeypatch)
    machine = Machine(start=_losing(folder, lambda number: number not in (0, 3)))
    table = machine.table(most=2 * (COUNT - 2) + 2)
    assert machine.deaths == 2 * (COUNT - 2) + 2 > losses.MOST_LOSSES
    assert _states(table).count("worker_crash") == COUNT - 2


@pytest.mark.parametrize("broken", [4, COUNT])
def test_more_than_that_is_taken_for_a_broken_gpu(folder: Path, monkeypatch: pytest.MonkeyPatch, broken: int) -> None:
    _on_a_gpu_in_name(monkeypatch)
    machine = Machine(start=_losing(folder, lambda number: number < broken))
    with pytest.raises(DeviceLost, match=f"GPU 0 of node a+ was lost {losses.MOST_LOSSES} times without a result"):
        machine.table(most=2 * losses.MOST_LOSSES)
    assert machine.deaths == losses.MOST_LOSSES - 1

"""Workers that die, lose their GPU or get large photographs: what is done again, how often, how much is held."""

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import ray
from job_helpers import Silent, write_photographs

from qualitygate.cluster import (
    fitting,
    losses,
    predicting_worker,
    scoring,
    study_worker,
    training_worker,
    variants,
    workers,
)
from qualitygate.config import ScoreConfig
from qualitygate.errors import ConfigurationError, DeviceLost, QualityGateError
from qualitygate.metrics import CATALOGUE, Execution
from qualitygate.metrics.rows import Plan, Request, Row

pytestmark = [pytest.mark.cluster]
LOST = "CUDA error: an illegal memory access was encountered"


def _plain(actor: Any, *arguments: Any, **options: Any) -> Any:
    """The class of an actor without Ray."""
    return actor.__ray_metadata__.modified_class(*arguments, **options)


def _answering(journal: Any) -> Any:
    """The same journal with `remote` on each method, which answers at once."""
    names = [name for name in dir(journal) if not name.startswith("_")]
    return SimpleNamespace(**{name: SimpleNamespace(remote=getattr(journal, name)) for name in names})


# ---- what is done again ----------------------------------------------------------------------------------


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> workers.ScoringWorker:
    """Notes which photographs were scored together, and which alone."""
    monkeypatch.setattr(workers, "ray", SimpleNamespace(get=lambda answer, **_: answer))
    made = workers.ScoringWorker.__new__(workers.ScoringWorker)
    made._journal = _answering(_plain(workers.CrashJournal))
    made._device = "cpu"
    made.together, made.alone = [], []  # type: ignore[attr-defined]

    def straight(requests: Sequence[Request]) -> list[Row]:
        made.together.extend(request.image_id for request in requests)  # type: ignore[attr-defined]
        return [{"image_id": request.image_id} for request in requests]

    def care(requests: Sequence[Request]) -> list[Row]:
        made.alone.extend(request.image_id for request in requests)  # type: ignore[attr-defined]
        return [{"image_id": request.image_id} for request in requests]

    made._straight, made._with_care = straight, care  # type: ignore[method-assign]
    return made


@pytest.mark.parametrize(
    ("begun", "too_long", "alone"),
    [
        (1, (), ""),
        (2, (), ""),  # a node was lost, most likely: as before
        (3, (), "abcd"),  # twice: one of them kills workers
        (2, ("c",), "c"),
        (2, ("b", "d"), "bd"),  # a group that took too long
    ],
)
def test_what_comes_back_is_scored_alone_only_under_suspicion(
    worker: Any, begun: int, too_long: tuple[str, ...], alone: str
) -> None:
    if too_long:
        worker._journal.took_too_long.remote(too_long)
    rows = worker._rows([Request(image_id=name, uri=name) for name in "abcd"], begun)
    assert [row["image_id"] for row in rows] == list("abcd")
    assert worker.alone == list(alone)
    assert worker.together == [name for name in "abcd" if name not in alone]


def test_only_a_photograph_by_itself_is_convicted_of_taking_too_long(worker: Any) -> None:
    journal = worker._journal
    journal.took_too_long.remote(["a", "b"])
    journal.took_too_long.remote(["b"])
    worker._timeout_s = 5.0
    before = {name: journal.begin_image.remote(name) for name in "ab"}
    assert worker._conviction(before["a"]) is None
    assert worker._conviction(before["b"]).code == "worker_crash"
    journal.end_image.remote("a")
    assert journal.suspects.remote(["a", "b"]) == ["b"]


def test_a_photograph_alone_in_its_group_keeps_what_the_formulas_said(worker: Any, monkeypatch: Any) -> None:
    """Also where it was never scored with care: what was over time was a network."""
    reported: list[Any] = []
    monkeypatch.setattr(workers.os, "_exit", lambda code: reported.append(code))
    watchdog = workers.Watchdog(0.05, lambda ids, in_networks: reported.append((list(ids), in_networks)))
    worker._watchdog = watchdog
    with worker._watching_networks(["a"]):
        deadline = workers.time.monotonic() + 10
        while workers.EXIT_OVER_TIME not in reported and workers.time.monotonic() < deadline:
            workers.time.sleep(0.01)
    assert reported[:2] == [(["a"], True), workers.EXIT_OVER_TIME]
    worker._journal.took_too_long.remote(["a"], in_networks=True)
    before = worker._journal.begin_image.remote("a")
    assert before.over_time
    assert before.in_networks
    worker._journal.took_too_long.remote(["b"])
    assert not worker._journal.begin_image.remote("b").in_networks


# ---- how much is held ------------------------------------------------------------------------------------


class _Slots:
    """A pool whose tasks are done at once, and which knows how much of them nobody has taken yet."""

    def __init__(self) -> None:
        self.held: list[int] = []
        self.most = self.longest = 0

    def submit(self, function: Any, item: int) -> "Any":
        self.held.append(item)
        self.most, self.longest = max(self.most, sum(self.held)), max(self.longest, len(self.held))
        return SimpleNamespace(result=lambda: function(self.held.pop(0)))


@pytest.mark.parametrize(
    ("sizes", "most", "longest"),
    [
        ([1] * 40, 6, 6),  # small ones: by their number
        ([50] * 12, 100, 2),  # large ones: by their bytes
        ([1, 300, 1, 1, 50, 60, 1], 300, 3),  # one alone may have more
    ],
)
def test_what_is_decoded_ahead_is_bounded_by_bytes(sizes: list[int], most: int, longest: int) -> None:
    pool = _Slots()
    ahead = workers._ahead(pool, lambda item: item, iter(sizes), most=6, size=lambda item: item, most_bytes=100)  # type: ignore[arg-type]
    assert [future.result() for future in ahead] == sizes
    assert (pool.most, pool.longest) == (most, longest)


@pytest.mark.parametrize(("side", "most"), [(64, 10), (400, 3)])
def test_a_worker_holds_few_large_photographs_and_many_small_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, side: int, most: int
) -> None:
    """The sizes are those of the files' headers: fetched and decoded through the worker's own pools."""
    names = write_photographs(tmp_path, 12, side=side)
    worker = workers.ScoringWorker.__new__(workers.ScoringWorker)
    worker._settings = workers.WorkerSettings(run_id="r", image_timeout_s=9, decoders=2)
    scorer = worker._scorer = workers.RowScorer(Plan(metrics=("lapm",)), run_id="r")
    worker._at_once, worker._waited, worker._cold = 8, workers.defaultdict(float), False
    worker._watchdog = workers.Watchdog(60, lambda *_: None)
    worker._fetchers, worker._decoders = ThreadPoolExecutor(2), ThreadPoolExecutor(2)
    # Three photographs of 400 pixels a side, which are up to 406 wide.
    monkeypatch.setattr(workers, "_DECODED_BYTES_A_DECODER", 3 * 3 * 400 * 406 // 2)
    held, ahead = [], workers._ahead

    def noted(pool: Any, *arguments: Any, **options: Any) -> Iterator[Any]:
        submitted: list[Any] = []

        def submit(function: Any, item: Any) -> Any:
            submitted.append(pool.submit(function, item))
            return submitted[-1]

        for taken, future in enumerate(ahead(SimpleNamespace(submit=submit), *arguments, **options)):  # type: ignore[arg-type]
            held.append(len(submitted) - taken)
            yield future

    monkeypatch.setattr(workers, "_ahead", noted)
    rows = list(scorer.finished(worker._prepared([Request(image_id=n, uri=str(tmp_path / n)) for n in names])))
    assert [row["status"] for row in rows] == ["ok"] * 12
    assert max(held) == most


# ---- GPUs that are lost ----------------------------------------------------------------------------------


def test_losses_count_in_a_row_by_gpu() -> None:
    found = losses.Losses()
    assert [found.lost("a"), found.lost("b"), found.lost("a")] == [1, 1, 2]
    found.worked("a")
    assert [found.lost("a"), found.lost("b")] == [1, 2]


class LosesItsGpuEachTime(workers.ScoringWorker):
    """Believes in a GPU that is broken."""

    def __init__(self, plan: Plan, settings: workers.WorkerSettings, *others: Any) -> None:
        super().__init__(plan, settings, *others)
        # In this process alone: each start of a worker takes seconds.
        workers.MOST_LOSSES = 3
        self._scorer._plan, self._device = replace(plan, device="cuda"), "cuda"

        def score(photographs: Any) -> list[Any]:
            raise RuntimeError(LOST)

        self._scorer._scorers["lapm"] = score


def test_a_broken_gpu_ends_the_run_with_one_line(
    ray_session: object, tmp_path: Path, silent: Silent, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    write_photographs(tmp_path / "in", 6)
    config = ScoreConfig(
        input=str(tmp_path / "in"), output=str(tmp_path / "out"), metrics=("lapm",), workers=1, commit_rows=2
    )
    with pytest.raises(QualityGateError) as caught:
        scoring.run(config, silent, worker=LosesItsGpuEachTime)
    told = str(caught.value)
    assert "\n" not in told
    assert int(re.findall(r"was lost (\d+) times without a result", told)[0]) >= 3
    assert "illegal memory access" in told
    assert told.endswith("repair it; what arrived is committed, run the same command again")
    assert silent.rows == 0
    assert "Traceback" not in told


def test_a_studys_queue_ends_it_after_as_many_losses_without_an_epoch() -> None:
    queue = _plain(study_worker.Queue, 40, together=False)
    for _ in range(losses.MOST_LOSSES - 1):
        queue.lost("0 of node a", LOST)
    queue.worked("0 of node a")
    for _ in range(losses.MOST_LOSSES - 1):
        queue.lost("0 of node a", LOST)
    assert not queue.stopped()
    queue.lost("0 of node a", LOST)
    assert queue.stopped()
    ((kind, said),) = queue.report()[0]
    assert kind == "fatal"
    assert "GPU 0 of node a was lost" in said


def test_a_training_worker_tells_of_its_lost_gpu_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(_: object) -> None:
        raise RuntimeError(f"{LOST}\nCUDA kernel errors might be asynchronously reported")

    monkeypatch.setattr(training_worker, "_train", lost)
    with pytest.raises(DeviceLost, match=r"lost its GPU.*training.*illegal memory access.*dmesg") as caught:
        training_worker.train({"work": SimpleNamespace(log_format="text")})
    page = f"Worker 0 failed\nTraceback\nRuntimeError: {LOST}\n\nqualitygate.errors.DeviceLost: {caught.value}\n"
    assert fitting.reason_of(RuntimeError(page)) == str(caught.value)
    short = RuntimeError("Worker 0 failed\nRuntimeError: shapes do not match\n")
    assert fitting.reason_of(short) == "RuntimeError: shapes do not match"


def test_a_predicting_worker_ends_over_its_lost_gpu_and_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended(Exception):
        pass

    def end(code: int) -> None:
        raise Ended(code)

    fake = SimpleNamespace(get=lambda answer, **_: answer)
    monkeypatch.setattr(workers, "ray", fake)
    monkeypatch.setattr(predicting_worker, "ray", fake)
    monkeypatch.setattr(workers, "gpu_name", lambda: "0 of node a")
    monkeypatch.setattr(workers.os, "_exit", end)
    worker = predicting_worker.PredictingWorker.__new__(predicting_worker.PredictingWorker)
    journal = _plain(workers.CrashJournal)
    worker._journal, worker._lost = _answering(journal), None
    worker._straight = worker._with_care = lambda rows: []  # type: ignore[method-assign, assignment]

    def found(*_: object) -> Any:
        raise RuntimeError(LOST)

    worker._found = found  # type: ignore[method-assign]
    block = pa.table({"image_id": ["a"]})
    for _ in range(losses.MOST_LOSSES - 1):
        with pytest.raises(Ended, match=str(workers.EXIT_DEVICE_LOST)):
            worker(block)
    with pytest.raises(DeviceLost, match=f"GPU 0 of node a was lost {losses.MOST_LOSSES} times"):
        worker(block)


def test_a_gpu_lost_while_a_worker_starts_is_counted_with_its_first_task(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ray doesn't start a worker again whose constructor failed."""

    def end(code: int) -> None:
        raise SystemExit(code)

    def lost(*_: object, **__: object) -> None:
        raise DeviceLost("this process has lost its GPU")

    monkeypatch.setattr(workers, "ray", SimpleNamespace(get=lambda answer, **_: answer))
    monkeypatch.setattr(workers, "gpu_name", lambda: "0 of node a")
    monkeypatch.setattr(workers.os, "_exit", end)
    monkeypatch.setattr(workers, "RowScorer", lost)
    journal = _answering(_plain(workers.CrashJournal))
    settings = workers.WorkerSettings(run_id="r", image_timeout_s=9)
    worker = workers.ScoringWorker(Plan(metrics=("lapm",)), settings, pa.schema([]), journal, str(tmp_path))
    worker._reader = SimpleNamespace(requests=lambda _: [Request(image_id="a", uri="a.jpg")])  # type: ignore[assignment]
    with pytest.raises(SystemExit, match=str(workers.EXIT_DEVICE_LOST)):
        worker(pa.table({"name": ["0.parquet"]}))


ECC = "CUDA error: uncorrectable ECC error encountered"
FULL = "CUDA out of memory. Tried to allocate 2.00 GiB"


def _raising(error: Exception) -> Any:
    def call(*_: object, **__: object) -> Any:
        raise error

    return call


@pytest.fixture
def in_name(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A GPU that is there and does nothing; a function that says how the worker's first task ends."""
    import torch

    def end(code: int) -> None:
        raise SystemExit(code)

    fake = SimpleNamespace(get=lambda answer, **_: answer)
    for module in (workers, variants, predicting_worker):
        monkeypatch.setattr(module, "ray", fake)
    monkeypatch.setattr(workers, "gpu_name", lambda: "0 of node a")
    monkeypatch.setattr(workers.os, "_exit", end)
    monkeypatch.setattr(predicting_worker.loop, "deterministic", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda _: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H100")
    return torch


PLAN = Plan(metrics=("lapm",), device="cuda", execution=Execution(fast=("musiq",), gpu="H100"))
SHARED = workers.WorkerSettings(run_id="r", image_timeout_s=9, gpu_share=0.5)


def _scoring(journal: Any) -> Any:
    return workers.ScoringWorker(PLAN, SHARED, pa.schema([]), journal, "pending")


def _sampling(journal: Any) -> Any:
    settings = variants.VariantSettings(blur="rendered", interpolation="nearest", second_interpolation=None)  # type: ignore[arg-type]
    return variants.SampleScorer(PLAN, SHARED, settings, journal)


def _predicting(journal: Any) -> Any:
    task = predicting_worker.Task(
        architecture="resnet18", classes=("a", "b"), image_size=32, batch_size=4, threads=1, on_gpu=True
    )
    return predicting_worker.PredictingWorker(task, {}, journal)


def _ends_with(start: Any, journal: Any) -> str:
    """What the run's last line would say: nine starts, each in a new process."""
    answering = _answering(journal)
    for _ in range(losses.MOST_LOSSES - 1):
        # What another worker does on the same GPU tells nothing of whether this one can start.
        journal.worked("0 of node a")
        with pytest.raises(SystemExit, match=str(workers.EXIT_DEVICE_LOST)):
            start(answering)(pa.table({"name": ["0.parquet"]}))
    with pytest.raises(DeviceLost) as caught:
        start(answering)(pa.table({"name": ["0.parquet"]}))
    return str(caught.value)


@pytest.mark.parametrize("start", [_scoring, _sampling])
@pytest.mark.parametrize("touch", ["set_per_process_memory_fraction", "get_device_name"])
def test_whatever_first_touches_a_gpu_that_fails_counts(
    in_name: Any, monkeypatch: pytest.MonkeyPatch, start: Any, touch: str
) -> None:
    """Not even the batch is entered, which has nothing to do with it."""
    monkeypatch.setattr(in_name.cuda, touch, _raising(in_name.AcceleratorError(ECC)))
    journal = _plain(workers.CrashJournal if start is _scoring else variants.Attempts)
    told = _ends_with(start, journal)
    assert told.startswith(
        "GPU 0 of node a was lost 9 times by workers that were starting (this process has lost its GPU"
    )
    assert "uncorrectable ECC error" in told
    assert not getattr(journal, "_batches", None)


def test_a_full_gpu_at_the_start_counts_and_has_a_remedy_of_its_own(
    in_name: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    metric = replace(CATALOGUE["lapm"], load=_raising(in_name.OutOfMemoryError(FULL)))
    monkeypatch.setattr("qualitygate.metrics.rows.select", lambda *_: [metric])
    told = _ends_with(_scoring, _plain(workers.CrashJournal))
    assert "(no memory for lapm's load (OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB))" in told
    assert told.endswith(": free its memory")


@pytest.mark.parametrize("error", [RuntimeError(FULL), RuntimeError("No CUDA GPUs are available")])
def test_a_classifier_that_does_not_get_onto_its_gpu_counts(
    in_name: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(predicting_worker.models, "build", lambda *_, **__: SimpleNamespace(to=_raising(error)))
    assert "the classifier's load" in _ends_with(_predicting, _plain(workers.CrashJournal))


@pytest.mark.parametrize("start", [_scoring, _sampling, _predicting])
def test_a_gpu_that_is_gone_counts_where_it_was_there_before(
    in_name: Any, monkeypatch: pytest.MonkeyPatch, start: Any
) -> None:
    """One that never was leaves its work to the CPU, and the driver says so."""
    built = SimpleNamespace(to=lambda _: None)
    monkeypatch.setattr(predicting_worker.models, "build", lambda *_, **__: built)
    monkeypatch.setattr(in_name.cuda, "is_available", lambda: False)
    journal = _plain(variants.Attempts if start is _sampling else workers.CrashJournal)
    plan = replace(PLAN, execution=Execution())
    assert workers.on_this_machine(plan, SHARED, _answering(journal)).device == "cpu"
    journal.worked("1 of node a")
    assert not workers.finds_its_gpu(_answering(journal))
    journal.worked("0 of node a")
    assert "CUDA doesn't find GPU 0 of node a any more" in _ends_with(start, journal)


def test_what_is_no_gpus_fault_ends_the_start_as_it_is(in_name: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for error, kind in (
        (KeyError("weights"), KeyError),
        (RuntimeError("CUDA error: no kernel image is available for execution on the device"), ConfigurationError),
    ):
        metric = replace(CATALOGUE["lapm"], load=_raising(error))
        monkeypatch.setattr("qualitygate.metrics.rows.select", lambda *_, metric=metric: [metric])
        with pytest.raises(kind):
            _scoring(_answering(_plain(workers.CrashJournal)))


class FailsAtItsFirstStart(workers.ScoringWorker):
    """Its GPU is out of order once."""

    def __init__(self, plan: Plan, settings: workers.WorkerSettings, schema: Any, journal: Any, pending: str) -> None:
        import torch

        from qualitygate.metrics.starting import starting_on_a_gpu

        def first(plan: Plan, *_: object) -> Plan:
            if not ray.get(journal.known.remote(workers.gpu_name())):
                with starting_on_a_gpu("the test"):
                    raise torch.AcceleratorError(ECC)
            return plan

        workers.on_this_machine = first
        super().__init__(plan, settings, schema, journal, pending)


def test_a_worker_whose_gpu_fails_at_its_start_is_started_again(
    ray_session: object, tmp_path: Path, silent: Silent
) -> None:
    import sys

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    write_photographs(tmp_path / "in", 6)
    config = ScoreConfig(input=str(tmp_path / "in"), output=str(tmp_path / "out"), metrics=("lapm",), workers=1)
    stats = scoring.run(config, silent, worker=FailsAtItsFirstStart).stats
    assert (stats["state"], stats["scored"]["by_status"]) == ("done", {"ok": 6})
    assert stats["scored"]["batches_lost"] == 0


def test_a_run_that_loses_its_gpu_has_not_failed_for_that(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its worker dies, and the queue says what becomes of a run whose worker died."""
    import torch

    told: list[tuple[Any, ...]] = []
    monkeypatch.setattr(study_worker, "_ask", lambda _, method, *more: told.append((method, *more)))
    monkeypatch.setattr(study_worker, "gpu_name", lambda: "0 of node a")
    monkeypatch.setattr(study_worker, "_state", lambda *_: None)
    monkeypatch.setattr(study_worker, "_hardware", lambda *_: "a GPU")
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: (_ for _ in ()).throw(RuntimeError(LOST)))

    def execute(*_: object) -> None:
        raise torch.AcceleratorError(LOST)

    monkeypatch.setattr(study_worker.study_run, "execute", execute)
    study = SimpleNamespace(queue=None, together=False, settings=None, threads=1)
    run = SimpleNamespace(architecture="resnet18", name="resnet18-high-0", run_id="r")
    ledger = SimpleNamespace()  # nothing may be written
    with pytest.raises(DeviceLost, match="resnet18-high-0"):
        study_worker._one(study, run, 3, None, torch.device("cuda"), ledger, 0, 1, "g")  # type: ignore[arg-type]
    assert [one[0] for one in told] == ["tell", "lost"]
    assert told[1][1] == "0 of node a"

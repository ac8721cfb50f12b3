"""A GPU made ready before the first photographs: by which shapes, when, and what it may not break."""

import dataclasses
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from metric_helpers import crop_scorer

from qualitygate.cluster import planning, session, workers
from qualitygate.config import ScoreConfig
from qualitygate.errors import DeviceLost
from qualitygate.images.photograph import Photograph
from qualitygate.metrics import CATALOGUE, musiq, rows, tensors
from qualitygate.metrics.metric import Score, Warming
from qualitygate.metrics.rows import Plan, Request, RowScorer

SMALL = dataclasses.replace(musiq.PRESETS["musiq"], width=64, hidden=96, depth=2)


# ---- by which shapes -------------------------------------------------------------------------------------


def test_networks_of_crops_see_their_batch_and_a_quarter() -> None:
    sizes: list[int] = []

    def evaluate(x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        return x.mean((2, 3))

    scorer = crop_scorer(evaluate, padded=True, batch=80)
    assert isinstance(scorer, Warming)
    scorer.warm_up()
    assert sizes == [80, 20]


def test_musiq_sees_its_encoders_two_shapes_and_tokens_with_and_without_a_mask(monkeypatch: Any) -> None:
    monkeypatch.setitem(musiq.ENCODER_PATCHES, "cpu", 256)
    monkeypatch.setitem(musiq.BATCH_TOKENS, "cpu", 100_000)
    scorer: Any = musiq.load(musiq.seeded_state_dict(3, SMALL), SMALL, "cpu")
    scorer._padded = True
    embed, score, sizes, masks = scorer._embed, scorer._score, set(), []
    monkeypatch.setattr(scorer, "_embed", lambda patches: sizes.add(len(patches)) or embed(patches))
    monkeypatch.setattr(scorer, "_score", lambda *inputs: masks.append((len(inputs[0]), inputs[3])) or score(*inputs))
    assert isinstance(scorer, Warming)
    scorer.warm_up()
    assert sizes == {256, 32}
    assert [(count, mask is not None) for count, mask in masks] == [(4, False), (2, True)]


def test_formulas_see_two_photographs_and_one() -> None:
    shapes = []
    scorer = tensors.BatchScorer(
        lambda rgb: shapes.append(len(rgb)) or rgb[:, 0, 0].double(),
        lambda *_: 0.0,
        lambda _: None,
        name="x",
        device="cpu",
    )
    assert isinstance(scorer, Warming)
    scorer.warm_up()
    assert shapes == [2, 1]


# ---- what it may not break -------------------------------------------------------------------------------


class Fake:
    """A scorer that counts, and raises when it is warmed up, if told to."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.warmed = 0

    def __call__(self, photographs: Sequence[Photograph]) -> list[Score]:
        return [1.0 for _ in photographs]

    def warm_up(self) -> None:
        self.warmed += 1
        if self.error:
            raise self.error


def scorer_of(monkeypatch: pytest.MonkeyPatch, device: Any, *scorers: Any) -> RowScorer:
    metrics = [
        dataclasses.replace(CATALOGUE["lapm"], name=f"m{number}", load=lambda _, scorer=scorer: scorer)
        for number, scorer in enumerate(scorers)
    ]
    monkeypatch.setattr(rows, "select", lambda *_: metrics)
    return RowScorer(Plan(metrics=tuple(metric.name for metric in metrics), device=device), run_id="r")


def test_its_seconds_are_a_stage_and_a_cpu_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    warmed, plain = Fake(), lambda photographs: [1.0 for _ in photographs]
    scorer = scorer_of(monkeypatch, "cuda", warmed, plain)
    scorer.warm_up()
    assert warmed.warmed == 1
    assert set(scorer.take_seconds()) == {"warm_up"}
    on_cpu = scorer_of(monkeypatch, "cpu", warmed)
    on_cpu.warm_up()
    assert warmed.warmed == 1
    assert on_cpu.take_seconds() == {}


def test_what_goes_wrong_is_left_to_the_photographs_but_a_lost_gpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken, fine = Fake(ValueError("no such kernel")), Fake()
    with caplog.at_level(logging.WARNING, logger="qualitygate"):
        scorer_of(monkeypatch, "cuda", broken, fine).warm_up()
    assert fine.warmed == 1
    assert "m0 was not warmed up: ValueError: no such kernel" in caplog.text
    lost = Fake(RuntimeError("CUDA error: unspecified launch failure"))
    with pytest.raises(DeviceLost, match="m0's warm-up"):
        scorer_of(monkeypatch, "cuda", lost).warm_up()


# ---- when ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoders", [1, 2])
def test_a_worker_warms_up_once_while_photographs_are_decoded_and_outside_their_time_limit(decoders: int) -> None:
    told: list[str] = []

    @contextmanager
    def watching(ids: Sequence[str]) -> Iterator[None]:
        told.append("watched")
        yield
        told.append("left")

    class Pool:
        def submit(self, function: Any, item: Any) -> Any:
            told.append(f"{function.__name__} begun")
            answer = function(item) if function.__name__ == "_fetch" else None
            return SimpleNamespace(result=lambda: answer or function(item))

    worker = workers.ScoringWorker.__new__(workers.ScoringWorker)
    worker._settings = workers.WorkerSettings(run_id="r", image_timeout_s=9, decoders=decoders, warm_up=True)
    worker._scorer = SimpleNamespace(  # type: ignore[assignment]
        fetch=lambda _: "bytes",
        prepare=lambda *_: "photograph",
        finished=lambda prepared, _: ({} for _ in prepared),
        warm_up=lambda: told.append("warmed up"),
    )
    worker._watchdog = SimpleNamespace(watching=watching)  # type: ignore[assignment]
    worker._fetchers = worker._decoders = Pool()  # type: ignore[assignment]
    worker._waited, worker._at_once, worker._cold = defaultdict(float), 1, True
    for _ in range(2):
        assert (
            len(worker._straight([Request(image_id=str(number), uri=f"s3://b/{number}") for number in range(8)])) == 8
        )
    assert told.count("warmed up") == 1
    before = told[: told.index("warmed up")]
    assert "watched" not in before
    if decoders > 1:
        # As many as decode side by side are at work.
        assert before.count("_prepare begun") >= decoders
        assert before.count("_fetch begun") >= decoders


def test_runs_that_are_too_short_are_not_warmed_up_for() -> None:
    machine = session.Cluster(cpus=16, gpus=2, local=True)
    on_gpu, on_cpu = (Plan(metrics=("lapm",), device=device) for device in ("cuda", "cpu"))
    config = ScoreConfig(input="i", output="o")
    assert planning.plan_pool(config, on_gpu, machine, rows=512).warm_up
    assert not planning.plan_pool(config, on_gpu, machine, rows=511).warm_up
    assert not planning.plan_pool(config, on_cpu, machine, rows=100_000).warm_up

"""One run of a study, from its first epoch or its last checkpoint to its row and predictions; no Ray.

Everything follows from the run: its subset, its seed, and settings that are part of its id. On a CPU the same machine
and number of threads give the same bits, however often the run was interrupted.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor, nn

from qualitygate.training import loop, models, results
from qualitygate.training.ledger import Ledger
from qualitygate.training.loop import Evaluation, Photographs, Recipe, Share
from qualitygate.training.pool import Pool
from qualitygate.training.study_plan import Run

_SERIES = ("train_loss", "train_accuracy", "eval_loss", "eval_accuracy")
FLOAT32, BFLOAT16 = "float32", "bfloat16"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What all runs of a study have in common.

    checkpoint_share: most of a run's time that its checkpoints may take, (0, 1]; 1: one after each epoch.
    precision: of the arithmetic on a GPU; parameters and losses are float32 always.
    """

    batch_size: int
    learning_rate: float
    weight_decay: float
    image_size: int
    augment: bool
    precision: str = FLOAT32
    checkpoint_share: float = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What runs are made from. place: (N,) int64, where the pixels of each photograph of the pool lie."""

    pool: Pool
    photographs: Photographs
    place: npt.NDArray[np.int64]


@dataclass(slots=True, kw_only=True)
class Hooks:
    """What a run tells and asks while it is at work.

    on_step: after each step; may raise to stop. on_epoch: epochs done of this run, and seconds of the last.
    together: the model as several processes train it. add: sums over these processes. after_epoch: may raise to stop.
    """

    on_step: Callable[[int], None] | None = None
    on_epoch: Callable[[int, float], None] = lambda _done, _seconds: None
    together: Callable[[nn.Module], nn.Module] = lambda model: model
    add: Callable[[Tensor], Tensor] = lambda totals: totals
    after_epoch: Callable[[], None] = lambda: None
    share: Share = field(default_factory=Share)


def execute(
    run: Run,
    settings: Settings,
    material: Material,
    state: "dict[str, Tensor] | None",
    device: torch.device,
    ledger: Ledger,
    hooks: Hooks,
) -> tuple[dict[str, Any], pa.Table] | None:
    """Train and test; returns the run row without attempts, hardware and versions, and its predictions.

    state: pretrained parameters, of any number of classes; None: from scratch. Of several processes only the first
    returns something. Raises Diverged, NotProbabilities, and whatever a device raises.
    """
    recipe = Recipe(
        epochs=run.epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        augment=settings.augment,
        seed=run.seed,
    )
    model = _model(run, len(material.pool.classes), settings.image_size, state).to(device)
    optimizer = _optimizer(model, recipe, device)
    history: list[dict[str, Any]] = []
    done, spent = 0, 0.0
    if (saved := ledger.load_checkpoint(run.run_id)) is not None:
        done, history, spent = loop.restore(model, optimizer, saved), saved["history"], saved["seconds"]
    _check_agreement(done, hooks, device)
    training = hooks.together(_in_precision(model, settings.precision, device))
    testing = _in_precision(model, settings.precision, device)
    train, evaluation = (material.place[part.rows] for part in (run.subset.train, run.subset.evaluation))
    found: Evaluation | None = None
    saving = _Saving(share=settings.checkpoint_share)
    first = hooks.share.rank == 0
    for epoch in range(done, run.epochs):
        started = time.perf_counter()
        totals = _epoch(training, optimizer, material.photographs, train, recipe, epoch, hooks)
        if first:
            found = loop.evaluate(testing, material.photographs, evaluation, batch_size=settings.batch_size)
            loss, right, count = totals.tolist()
            values = (loss / count, right / count, found.loss, found.accuracy)
            history.append(dict(zip(_SERIES, values, strict=True)))
            seconds = time.perf_counter() - started
            spent += seconds
            if epoch + 1 < run.epochs and saving.due():
                content = loop.snapshot(model, optimizer, epoch + 1) | {"history": history, "seconds": spent}
                saving.timed(lambda content=content: ledger.save_checkpoint(run.run_id, content))  # type: ignore[misc]
            hooks.on_epoch(epoch + 1, seconds)
        hooks.after_epoch()
    if not first:
        return None
    assert found is not None, "a run has an epoch at least, and the last one leaves no checkpoint"
    started = time.perf_counter()
    tested = loop.evaluate(
        testing, material.photographs, material.place[run.tests["all"].rows], batch_size=settings.batch_size
    )
    measured = results.evaluated(
        material.pool,
        run.tests,
        run.subset.evaluation,
        on_evaluation=found.probabilities,
        on_tests=tested.probabilities,
    )
    predictions = results.prediction_rows(
        run.run_id, material.pool, run.tests, tested.probabilities, measured["threshold"]
    )
    row = {
        **run.row(),
        **measured,
        **{name: [entry[name] for entry in history] for name in _SERIES},
        "status": results.OK,
        "seconds": spent + time.perf_counter() - started,
    }
    return row, predictions


def _epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    photographs: Photographs,
    train: npt.NDArray[np.int64],
    recipe: Recipe,
    epoch: int,
    hooks: Hooks,
) -> Tensor:
    """(loss, right, photographs) of an epoch over all processes; Diverged in all of them if in one."""
    try:
        totals = loop.train_epoch(
            model, optimizer, photographs, train, recipe, epoch, share=hooks.share, on_step=hooks.on_step
        )
    except loop.Diverged:
        if hooks.share.world == 1:
            raise
        totals = torch.full((3,), torch.nan, dtype=torch.float64, device=next(model.parameters()).device)
    totals = hooks.add(totals)
    if not bool(torch.isfinite(totals[0])):
        raise loop.Diverged(f"the loss is not finite in epoch {epoch + 1}; train with a lower --learning-rate")
    return totals


def _check_agreement(done: int, hooks: Hooks, device: torch.device) -> None:
    """Processes that went on from different epochs would wait for each other for ever."""
    total = hooks.add(torch.tensor([done], dtype=torch.float64, device=device))
    if total.item() != done * hooks.share.world:
        raise RuntimeError(f"the processes read different checkpoints: this one epoch {done}")


def _model(run: Run, classes: int, image_size: int, state: "dict[str, Tensor] | None") -> nn.Module:
    if state is None:
        return models.build(run.architecture, classes, image_size=image_size, seed=run.seed)
    return models.transfer(run.architecture, classes, state, image_size=image_size, seed=run.seed)


def _optimizer(model: nn.Module, recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    """Adam; on a GPU in one kernel for all parameters."""
    if device.type != "cuda":
        return loop.optimizer_of(model, recipe)
    return torch.optim.Adam(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)


class _Autocast(nn.Module):
    """A model on a GPU in bfloat16 and channels last, with float32 logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.to(memory_format=torch.channels_last)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        with torch.autocast(x_NCHW.device.type, dtype=torch.bfloat16):
            logits: Tensor = self.model(x_NCHW.contiguous(memory_format=torch.channels_last))
        return logits.float()


def _in_precision(model: nn.Module, precision: str, device: torch.device) -> nn.Module:
    return _Autocast(model) if precision == BFLOAT16 and device.type == "cuda" else model


@dataclass(slots=True, kw_only=True)
class _Saving:
    """Whether a checkpoint is worth its time: it depends on the network's size, the disk and the epochs' length."""

    share: float
    _took: float = 0.0
    _last: float = field(default_factory=time.perf_counter)

    def due(self) -> bool:
        since = time.perf_counter() - self._last
        return self.share >= 1 or self._took <= self.share * (since + self._took)

    def timed(self, save: Callable[[], None]) -> None:
        started = time.perf_counter()
        save()
        self._last = time.perf_counter()
        self._took = self._last - started

"""One epoch after another: pure functions of model, photographs and numbers; nothing of files, clocks or Ray.

Everything random follows from (seed, epoch), so a training that is stopped after any epoch and goes on from its
`snapshot` ends with the same bits on a CPU as one that ran through (same machine, same number of threads).
"""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from qualitygate.errors import QualityGateError
from qualitygate.training import augment
from qualitygate.training.models import MEAN, STD

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a classifier is trained: Adam on the cross-entropy. The paper's: 1e-4, no weight decay, 40 epochs."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.0
    augment: bool = True
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Photographs:
    """Pixels and labels of all photographs at hand; subsets are row numbers into them.

    pixels: (N, 3, S, S) uint8 RGB, on the model's device or in memory. labels: (N,) int64, beside them.
    """

    pixels: Tensor
    labels: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Which part of each batch this process works on: every `world`-th photograph from `rank` on."""

    rank: int = 0
    world: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """loss: mean cross-entropy in nats; accuracy: share of right predictions, [0, 1]; probabilities: (n, classes)."""

    loss: float
    accuracy: float
    probabilities: npt.NDArray[np.float64]


class Diverged(QualityGateError):
    """The loss is no number any more."""


def optimizer_of(model: nn.Module, recipe: Recipe) -> torch.optim.Adam:
    """Adam over all parameters."""
    return torch.optim.Adam(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)


def deterministic() -> None:
    """Ask this process's torch for the same bits each time; on a GPU, before CUDA is first used."""
    import os

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False


def batches(count: int, recipe: Recipe, epoch: int) -> list[Indices]:
    """An epoch's batches of positions, in order: all of nearly the same size, at most `batch_size`.

    So none is left over of a size that batch normalisation can't work with.
    """
    positions = augment.order(count, recipe.seed, epoch)
    return np.array_split(positions, math.ceil(count / recipe.batch_size))


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    photographs: Photographs,
    subset: Indices,
    recipe: Recipe,
    epoch: int,
    *,
    share: Share = Share(),
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """One pass over the subset; returns this process's (sum of losses, right predictions, photographs), float64.

    model: of all processes together where `share` is a part (DistributedDataParallel); gradients are then those of
        the whole batch's mean, whatever the parts' sizes.
    on_step: called after each step with the photographs that it took; may raise to stop.

    Raises Diverged where the loss is not finite.
    """
    device, held = _device_of(model), photographs.pixels.device
    changed = augment.changes(len(subset), recipe.seed, epoch).to(device) if recipe.augment else None
    totals = torch.zeros(3, dtype=torch.float64, device=device)
    model.train()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(augment.network_seed(recipe.seed, epoch, share.rank))
        # All that steps need is sent once: a copy in each step would make a GPU wait for the host.
        whole = batches(len(subset), recipe, epoch)
        own = [batch[share.rank :: share.world] for batch in whole]
        positions = torch.from_numpy(np.concatenate(own))
        sizes = [len(part) for part in own]
        rows_of = torch.from_numpy(subset)[positions].to(held)
        labels_of = photographs.labels[rows_of].to(device).split(sizes)
        changes_of = None if changed is None else changed[positions.to(device)].split(sizes)
        for number, (batch, rows, labels) in enumerate(zip(whole, rows_of.split(sizes), labels_of, strict=True)):
            x_NCHW = photographs.pixels[rows].to(device).float() / 255
            if changes_of is not None:
                x_NCHW = augment.altered(x_NCHW, changes_of[number])
            logits = model(normalised(x_NCHW))
            losses = functional.cross_entropy(logits, labels, reduction="none")
            optimizer.zero_grad(set_to_none=True)
            # Processes' gradients are averaged: scaled so that the average is that of the whole batch's mean.
            (losses.sum() * share.world / len(batch)).backward()
            optimizer.step()
            with torch.no_grad():
                right = (logits.argmax(1) == labels).sum()
                totals[:2] += torch.stack([losses.sum().double(), right.double()])
                totals[2] += len(rows)
            if on_step is not None:
                on_step(len(rows))
    if not bool(torch.isfinite(totals[0])):
        raise Diverged(f"the loss is not finite in epoch {epoch + 1}; train with a lower --learning-rate")
    return totals


def _device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def normalised(x_NCHW: Tensor) -> Tensor:
    """Values in [0, 1] to what the networks expect: ImageNet's mean and deviation, per channel."""
    mean, deviation = _normalisation(x_NCHW.device)
    return (x_NCHW - mean) / deviation


@functools.cache
def _normalisation(device: torch.device) -> tuple[Tensor, Tensor]:
    # Whoever asks first: what inference mode makes, training couldn't use.
    with torch.inference_mode(False):
        mean, deviation = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (MEAN, STD))
    return mean, deviation


def logits_of(model: nn.Module, pixels: Tensor, batch_size: int) -> Tensor:
    """(N, 3, S, S) uint8 to (N, classes) float32 logits on the CPU, in evaluation mode.

    Every batch has `batch_size` rows, padded with black ones: a library's choice of kernel goes by the shape, and
    with one shape a photograph's logits don't depend on how many others came with it.
    """
    device = _device_of(model)
    training = model.training
    model.eval()
    found = []
    with torch.inference_mode():
        for part in _parts(pixels, batch_size):
            padded = part.new_zeros((batch_size, *part.shape[1:]))
            padded[: len(part)] = part
            found.append(model(normalised(padded.to(device).float() / 255))[: len(part)].float().cpu())
    model.train(training)
    return torch.cat(found)


def _parts(pixels: Tensor, size: int) -> Iterator[Tensor]:
    for start in range(0, len(pixels), size):
        yield pixels[start : start + size]


def probabilities(logits: Tensor) -> npt.NDArray[np.float64]:
    """(N, classes) float64 that add up to 1: the softmax of float32 logits, computed in float64."""
    found: npt.NDArray[np.float64] = torch.softmax(logits.double(), dim=1).numpy()
    return found


def evaluate(model: nn.Module, photographs: Photographs, subset: Indices, *, batch_size: int) -> Evaluation:
    """Loss, accuracy and probabilities on a subset, in its order, without augmentation."""
    held = photographs.pixels.device
    logits = torch.cat(
        [
            logits_of(model, photographs.pixels[torch.from_numpy(rows).to(held)], batch_size)
            for rows in np.array_split(subset, math.ceil(len(subset) / (8 * batch_size)))
        ]
    )
    labels = photographs.labels[torch.from_numpy(subset).to(held)].cpu()
    return Evaluation(
        loss=float(functional.cross_entropy(logits.double(), labels)),
        accuracy=float((logits.argmax(1) == labels).double().mean()),
        probabilities=probabilities(logits),
    )


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer, epoch: int) -> dict[str, Any]:
    """All that the next epoch starts from; random numbers need no state, as they follow from (seed, epoch).

    epoch: how many are done.
    """
    return {"epoch": epoch, "model": model.state_dict(), "optimizer": optimizer.state_dict()}


def restore(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> int:
    """Put a snapshot back; returns how many epochs are done."""
    model.load_state_dict(state["model"], strict=True)
    optimizer.load_state_dict(state["optimizer"])
    return int(state["epoch"])

"""Simulated photographs with known truth: groups that resemble one another, and a classifier that errs on blur."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.special import expit

from qualitygate.calibration.inputs import Photographs
from qualitygate.calibration.statistics import codes

METHODS = ("lapv", "wavs", "brisque")


@dataclass
class Simulated:
    """Photographs of subjects (groups): half of them blurred, which lowers scores and the classifier's confidence."""

    image_id: list[str]
    group: list[str]
    blurred: np.ndarray
    correct: np.ndarray
    confidence: np.ndarray
    label: list[str]
    predicted: list[str]
    scores: dict[str, np.ndarray]
    extra: dict[str, Any] = field(default_factory=dict)

    def score_table(self, **columns: Any) -> pa.Table:
        """As a user would bring it."""
        values = {"image_id": self.image_id, "uri": [f"/photos/{one}" for one in self.image_id]}
        return pa.table(values | {name: pa.array(raw, pa.float64()) for name, raw in self.scores.items()} | columns)

    def prediction_table(self, **columns: Any) -> pa.Table:
        """The same of predictions."""
        values = {
            "image_id": self.image_id,
            "correct": self.correct,
            "confidence": self.confidence,
            "top1": np.maximum(self.confidence, 1 - self.confidence),
            "group": self.group,
            "label": self.label,
            "predicted": self.predicted,
        }
        return pa.table(values | columns)

    def write(self, folder: Path, *, order: np.ndarray | None = None) -> tuple[str, str]:
        """Paths of a score and a prediction table."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = str(folder / "scores.parquet"), str(folder / "predictions.parquet")
        for path, table in zip(paths, (self.score_table(), self.prediction_table()), strict=True):
            pq.write_table(table if order is None else table.take(order), path)
        return paths

    def photographs(self) -> Photographs:
        """As calibration sees them."""
        nothing = np.full(len(self.image_id), None, dtype=object)
        return Photographs(
            image_id=np.asarray(self.image_id, dtype=object),
            group=codes(self.group),
            correct=self.correct,
            confidence=self.confidence,
            top1=np.maximum(self.confidence, 1 - self.confidence),
            label=np.asarray(self.label, dtype=object),
            predicted=np.asarray(self.predicted, dtype=object),
            group_name=np.asarray(self.group, dtype=object),
            stratum=nothing,
            uri=nothing,
            scores=self.scores,
        )


def _simulate(groups: int = 60, size: int = 7, seed: int = 0, *, informative: bool = True) -> Simulated:
    """`informative=False`: groups still resemble one another in scores and in correctness, but independently."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(groups), size)
    number = len(group)
    blurred = rng.random(number) < 0.5
    sharpness = np.where(blurred, -1.5, 1.0) + rng.normal(0, 0.7, number) + rng.normal(0, 0.4, groups)[group]
    margin = 2.2 + 1.6 * sharpness + rng.normal(0, 0.8, groups)[group] + rng.normal(0, 1, number)
    confidence = expit(margin)
    correct = confidence >= 0.5
    if not informative:
        sharpness = 1.3 * rng.normal(0, 1, groups)[group] + rng.normal(0, 0.6, number)
    label = np.where(rng.random(number) < 0.5, "a", "b")
    return Simulated(
        image_id=[f"photo-{n:05}" for n in range(number)],
        group=[f"subject-{n:04}" for n in group],
        blurred=blurred,
        correct=correct,
        confidence=confidence,
        label=label.tolist(),
        predicted=np.where(correct, label, np.where(label == "a", "b", "a")).tolist(),
        scores={
            "lapv": np.exp(4 + 1.2 * sharpness + rng.normal(0, 0.35, number)),
            "wavs": np.exp(1 + 0.6 * sharpness + rng.normal(0, 0.3, number)),
            "brisque": 45 - 9 * sharpness + rng.normal(0, 5, number),
        },
    )


@pytest.fixture(scope="session")
def simulate() -> Callable[..., Simulated]:
    return _simulate


class Silent:
    """A progress that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.total = self.done = 0

    def start(self, *, total: int, done: int) -> None:
        self.total, self.done = total, done

    def advance(self, *, rows: int, errors: int = 0) -> None:
        self.done += rows

    def note(self, message: str) -> None:
        self.notes.append(message)

    def stop(self) -> None:
        pass


@pytest.fixture
def progress() -> Silent:
    return Silent()

"""Which runs a study consists of, before any of them starts: each with an id that changes whenever its result could."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qualitygate import __version__
from qualitygate.errors import ConfigurationError
from qualitygate.training import paper
from qualitygate.training.pool import Pool
from qualitygate.training.sampling import FULL, LEVELLED, Part, Repetition, Sampling, Subset
from qualitygate.training.subsets import draw

# Raise it whenever training, evaluation or measures change their results: finished runs are then run again.
CODE_VERSION = f"{__version__}+study1"
# Training images per second of one H100: bf16, channels_last, fused Adam, 224 px, photographs already on the device.
H100_RATES = {"alexnet": 39_011.0, "vgg19": 2_805.0, "resnet18": 11_915.0, "resnet34": 8_137.0}
# A forward pass is about a third of a training step.
_FORWARD_SHARE = 1 / 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """What a study varies and what it holds fixed.

    repetitions: how often everything is drawn and trained anew; the training seed of repetition r is
        `sampling.seed + r`, the same for all kinds, so that differences are paired.
    varying_architectures: those that are trained on the levels of `varying` and `random`; the paper: ResNet34. None:
        that one where it is among the architectures, else their last.
    training: everything else that a result depends on, as plain values: epochs, batch_size, learning_rate,
        image_size, precision, device, augmentation, ... `epochs` and `batch_size` must be there.
    weights: SHA-256 of each architecture's pretrained parameters; None for one trained from scratch.
    equal_steps: give `full` only as many optimizer steps as the others; else as many epochs, thus more steps.
    """

    architectures: tuple[str, ...] = paper.ARCHITECTURES
    varying_architectures: tuple[str, ...] | None = None
    repetitions: int = 5
    sampling: Sampling = field(default_factory=Sampling)
    training: Mapping[str, Any]
    weights: Mapping[str, str | None]
    equal_steps: bool = False
    code_version: str = CODE_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training: what on, with which seed, and what it is tested on.

    tests: `high`, `all`, `rejected`; the first and the last are parts of the second.
    """

    run_id: str
    architecture: str
    subset: Subset
    tests: Mapping[str, Part]
    seed: int
    resample: str
    epochs: int
    steps: int
    weights_sha256: str | None

    @property
    def kind(self) -> str:
        return self.subset.kind

    @property
    def removed(self) -> float:
        return self.subset.removed

    @property
    def repetition(self) -> int:
        return self.subset.repetition

    @property
    def name(self) -> str:
        """Such as `resnet34-varying-30-2`, for people; the id is what counts."""
        return f"{self.architecture}-{self.subset.name}"

    def row(self) -> dict[str, Any]:
        """The columns of the run row that are known before it starts."""
        return {
            "run_id": self.run_id,
            "architecture": self.architecture,
            "kind": self.kind,
            "removed": self.removed,
            "repetition": self.repetition,
            "seed": self.seed,
            "resample": self.resample,
            "from_scratch": self.weights_sha256 is None,
            "weights_sha256": self.weights_sha256,
            "train_rows": len(self.subset.train.rows),
            "eval_rows": len(self.subset.evaluation.rows),
            "epochs": self.epochs,
            "steps": self.steps,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyPlan:
    """All runs of a study, repetition by repetition, and the subsets that they refer to."""

    design: Design
    runs: tuple[Run, ...]
    repetitions: tuple[Repetition, ...]
    messages: tuple[str, ...]

    def missing(self, finished: Sequence[str]) -> list[Run]:
        """The runs whose ids are not among the finished ones."""
        done = set(finished)
        return [run for run in self.runs if run.run_id not in done]

    def photographs(self) -> list[int]:
        """Rows of the pool that any run needs, sorted: what has to be decoded."""
        needed = {int(row) for found in self.repetitions for part in _parts(found) for row in part.rows}
        return sorted(needed)


def plan(pool: Pool, design: Design) -> StudyPlan:
    """Draw all subsets and list the runs; follows from the photographs and the design alone.

    Runs come repetition by repetition, so that a study that is stopped has whole pairs to compare.
    Raises ConfigurationError as `draw` does, and for a design that can't be meant.
    """
    _check(design)
    repetitions = tuple(draw(pool, design.sampling, number) for number in range(design.repetitions))
    levelled = _levelled(design)
    runs = [
        _run(design, architecture, subset, found)
        for found in repetitions
        for architecture in design.architectures
        for subset in found.subsets
        if subset.kind not in LEVELLED or architecture in levelled
    ]
    messages = [*pool.notes, *(text for found in repetitions for text in found.messages)]
    return StudyPlan(design=design, runs=tuple(runs), repetitions=repetitions, messages=tuple(dict.fromkeys(messages)))


def run_id(
    *,
    architecture: str,
    subset: Subset,
    tests: Mapping[str, Part],
    seed: int,
    training: Mapping[str, Any],
    weights_sha256: str | None,
    code_version: str,
) -> str:
    """SHA-256 over all that decides a run's row: settings, the hashes of its five sets, weights, code version."""
    known = {
        "architecture": architecture,
        "kind": subset.kind,
        "removed": subset.removed,
        "repetition": subset.repetition,
        "seed": seed,
        "training": dict(training),
        "train": subset.train.sha256,
        "eval": subset.evaluation.sha256,
        "tests": {name: part.sha256 for name, part in tests.items()},
        "weights": weights_sha256,
        "code": code_version,
    }
    return hashlib.sha256(
        json.dumps(known, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    ).hexdigest()


def gpu_minutes(study: StudyPlan, rates: Mapping[str, float] = H100_RATES) -> tuple[float, list[str]]:
    """(minutes of computing on one GPU, architectures without a rate, which are left out).

    rates: training images per second. Decoding, start-up and checkpoints come on top.
    """
    seconds, unknown = 0.0, set[str]()
    for run in study.runs:
        if run.architecture not in rates:
            unknown.add(run.architecture)
            continue
        looked_at = run.epochs * len(run.subset.evaluation.rows) + len(run.tests["all"].rows)
        images = run.epochs * len(run.subset.train.rows) + _FORWARD_SHARE * looked_at
        seconds += images / rates[run.architecture]
    return seconds / 60, sorted(unknown)


def _run(design: Design, architecture: str, subset: Subset, found: Repetition) -> Run:
    seed = design.sampling.seed + subset.repetition
    weights = design.weights[architecture]
    batch = int(design.training["batch_size"])
    epochs = int(design.training["epochs"])
    a_pass = math.ceil(len(subset.train.rows) / batch)
    if design.equal_steps and subset.kind == FULL:
        others = [math.ceil(len(other.train.rows) / batch) for other in found.subsets if other.kind in ("high", "all")]
        epochs = max(1, round(epochs * max(others, default=a_pass) / a_pass))
    training = {**design.training, "epochs": epochs}
    return Run(
        run_id=run_id(
            architecture=architecture,
            subset=subset,
            tests=found.tests,
            seed=seed,
            training=training,
            weights_sha256=weights,
            code_version=design.code_version,
        ),
        architecture=architecture,
        subset=subset,
        tests=found.tests,
        seed=seed,
        resample=design.sampling.resample,
        epochs=epochs,
        steps=epochs * a_pass,
        weights_sha256=weights,
    )


def _levelled(design: Design) -> tuple[str, ...]:
    if design.varying_architectures is not None:
        return design.varying_architectures
    named = paper.VARYING_ARCHITECTURE
    return (named if named in design.architectures else design.architectures[-1],)


def _check(design: Design) -> None:
    if not design.architectures or len(set(design.architectures)) < len(design.architectures):
        said = ", ".join(design.architectures) or "none"
        raise ConfigurationError(f"architectures: {said}; give one at least, each once, such as resnet18,resnet34")
    strangers = sorted(set(_levelled(design)) - set(design.architectures))
    if strangers:
        raise ConfigurationError(
            f"varying_architectures: {', '.join(strangers)} not among the architectures "
            f"({', '.join(design.architectures)}); add them there"
        )
    if design.repetitions < 1:
        raise ConfigurationError(
            f"repetitions (--seeds): {design.repetitions}; give 1 at least, 5 as the paper, better 10"
        )
    absent = [name for name in design.architectures if name not in design.weights]
    if absent:
        raise ConfigurationError(
            f"no pretrained parameters are known for {', '.join(absent)}; name them in the weights manifest or give "
            "--from-scratch"
        )


def _parts(found: Repetition) -> list[Part]:
    return [found.tests["all"], *(part for subset in found.subsets for part in (subset.train, subset.evaluation))]

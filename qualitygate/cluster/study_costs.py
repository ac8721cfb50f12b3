"""What a study will take, before it starts: runs, images, GPU-minutes at stated rates, and this machine's CPUs."""

import math
import os
import time
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa

from qualitygate.cluster import study_inputs
from qualitygate.cluster.study_inputs import design
from qualitygate.config import StudyPlanConfig
from qualitygate.errors import ConfigurationError
from qualitygate.training import paper, study_plan
from qualitygate.training import pool as pools
from qualitygate.training.pool import Pool
from qualitygate.training.study_plan import H100_RATES, StudyPlan

_DATA = ("manifest", "scores", "gate")
# Of which the rates were measured; the cost of most networks goes with the area.
_RATE_PIXELS = 224
_TIMED_BATCH = 4
_TIMED_STEPS = 1
_FORWARD_SHARE = 1 / 3


def estimate(config: StudyPlanConfig) -> dict[str, Any]:
    """Counts and times of a study; nothing is trained, decoded or written.

    Without manifest, scores and gate enough photographs are assumed. Raises ConfigurationError as `study.run` does
    for its settings and, where photographs are given, for those.
    """
    pool, messages = _pool(config)
    study = study_plan.plan(pool, design(config, dict.fromkeys(config.architectures), on_gpu=False))
    messages += [message for message in study.messages if any(getattr(config, name) for name in _DATA)]
    minutes, unknown = study_plan.gpu_minutes(study, _rates(config.image_size))
    looked_at = sum(_looked_at(one) for one in study.runs)
    rates = _cpu_rates(config, len(pool.classes)) if config.measure else {}
    cores = len(os.sched_getaffinity(0))
    return {
        "runs": len(study.runs),
        "by_architecture": dict(Counter(one.architecture for one in study.runs)),
        "training_images": sum(one.epochs * len(one.subset.train.rows) for one in study.runs),
        "looked_at": looked_at,
        "steps": sum(one.steps for one in study.runs),
        "gpu_minutes": minutes,
        "gpu_basis": f"rates measured at {_RATE_PIXELS} px, scaled by area" * (config.image_size != _RATE_PIXELS)
        or "assumed rates (bare model steps measured on one, not this code)",
        "without_rate": unknown,
        "cpu_rates": rates,
        "cpu_hours": _cpu_hours(study, rates, cores) if rates else None,
        "cores": cores,
        "messages": messages,
    }


def _pool(config: StudyPlanConfig) -> tuple[Pool, list[str]]:
    given = [name for name in _DATA if getattr(config, name)]
    if given and len(given) < len(_DATA):
        absent = ", ".join(f"--{name}" for name in _DATA if name not in given)
        raise ConfigurationError(f"{absent} missing; give --manifest, --scores and --gate together, or none of them")
    if given:
        # Nothing is decoded, so a photograph that can't be read still counts here.
        inputs = study_inputs.read(config, None)
        return pools.prepare(inputs.table, inputs.methods), list(inputs.messages)
    wanted = config.train_images or paper.TRAIN_IMAGES
    if config.train_images is None:
        config_images = f"{wanted:,} training photographs, as in the paper"
    else:
        config_images = f"{wanted:,} training photographs"
    return _enough(config, wanted), [
        f"no photographs are given: {config_images}, two classes and enough of all assumed"
    ]


def _enough(config: StudyPlanConfig, train_images: int) -> Pool:
    """Invented photographs, of which no draw is short where `train_images` are asked for; half as many pass."""
    draw = train_images / (1 - config.eval_fraction)
    most = 1 - max(config.removed, default=0.0) / 100
    passing = math.ceil(1.02 * draw / (1 - config.test_fraction)) + 8
    count = math.ceil(1.02 * max(draw / most, 2 * draw) / (1 - config.test_fraction)) + 16
    count = max(count, passing + 8)
    numbers = np.arange(count)
    table = pa.table(
        {
            "image_id": [f"{number:09d}" for number in numbers],
            "label": [f"class {number % 2}" for number in numbers],
            "group": [f"{number:09d}" for number in numbers],
            "score": -numbers.astype(np.float64),
            "votes_low": (numbers >= passing).astype(np.int64),
            "passed": numbers < passing,
        }
    )
    return pools.prepare(table, {"score": "higher"})


def _looked_at(one: study_plan.Run) -> int:
    return one.epochs * len(one.subset.evaluation.rows) + len(one.tests["all"].rows)


def _rates(image_size: int) -> dict[str, float]:
    return {name: rate * (_RATE_PIXELS / image_size) ** 2 for name, rate in H100_RATES.items()}


def _cpu_rates(config: StudyPlanConfig, classes: int) -> dict[str, float]:
    """Training images per second on one thread, by architecture, from a few steps on made-up pixels."""
    import torch

    from qualitygate.training import loop, models

    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        found = {}
        for name in config.architectures:
            count = min(_TIMED_BATCH, config.batch_size)
            recipe = loop.Recipe(epochs=1, batch_size=count, learning_rate=config.learning_rate, augment=config.augment)
            model = models.build(name, classes, image_size=config.image_size)
            optimizer = loop.optimizer_of(model, recipe)
            pixels = torch.randint(0, 256, (count, 3, config.image_size, config.image_size), dtype=torch.uint8)
            photographs = loop.Photographs(pixels=pixels, labels=torch.arange(count) % classes)
            times = []
            for epoch in range(1 + _TIMED_STEPS):
                started = time.perf_counter()
                loop.train_epoch(model, optimizer, photographs, np.arange(count), recipe, epoch)
                times.append(time.perf_counter() - started)
            found[name] = count / min(times[1:])
        return found
    finally:
        torch.set_num_threads(threads)


def _cpu_hours(study: StudyPlan, rates: dict[str, float], cores: int) -> float:
    seconds = sum(
        (one.epochs * len(one.subset.train.rows) + _FORWARD_SHARE * _looked_at(one)) / rates[one.architecture]
        for one in study.runs
    )
    threads = int(study.design.training["threads"])
    return seconds / max(1, min(len(study.runs), cores // threads)) / 3600

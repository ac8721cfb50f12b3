"""Scores without Ray: the same rows, from paths, bytes or arrays, in this process."""

import os
import warnings
from collections.abc import Iterable, Sequence, Sized
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from qualitygate.errors import ConfigurationError, Failure, ImageError
from qualitygate.images.decode import DecodePolicy, photograph_of
from qualitygate.metrics import Parameters, default_names, verification
from qualitygate.metrics.metric import Device
from qualitygate.metrics.networks import pinned
from qualitygate.metrics.precision import Precision, worth_compiling
from qualitygate.metrics.rows import MAX_BYTES, Plan, Prepared, Request, RowScorer, to_table
from qualitygate.tables import scores, storage

# Enough that batches are full; what they hold is bounded by pixels.
_AT_ONCE_ON_GPU = 32


def score(
    images: Any,
    metrics: Sequence[str] | str | None = None,
    *,
    backend: Literal["native", "pyiqa"] = "native",
    longest_side: int | None = None,
    max_pixels: int = 100_000_000,
    max_bytes: int = MAX_BYTES,
    weights: str | None = None,
    untrained: bool = False,
    device: Literal["auto", "cpu", "cuda"] = "cpu",
    precision: Precision = "float32",
    verified: str | None = None,
    decoder: Literal["strict", "nvjpeg"] = "strict",
    formulas: Literal["gpu", "cpu"] = "gpu",
) -> pa.Table:
    """One row for each image, in order, with the columns and the numbers of the score table.

    images: paths or URIs (`str`, `Path`), encoded files (`bytes`), or pixels (numpy arrays: (H, W) grey,
        (H, W, 3) RGB or (H, W, 4) RGBA, uint8; or PIL images), mixed as you like; or a single one of these.
    metrics: names, or several in one string with commas; default: all whose parameters are present.
    longest_side: scoring resolution in pixels; default: each image's own.
    weights: file or folder of the networks' parameters; default: the user cache.
    untrained: seeded random networks, to try the plumbing; such scores mean nothing, and their fingerprint says so.
    device: `cpu`; `cuda` for all metrics on a GPU, or without one on the CPU with a warning; `auto` takes a GPU where
        there is one and a network is asked for.
    precision: `fast` for half precision on a GPU, of the metrics that passed in the file `verified` of
        'qualitygate verify'; others, and all on a CPU, are float32, and every row says by its fingerprint which.
    decoder: `nvjpeg` decodes plain JPEGs on the GPU, with other pixels and so under another fingerprint; refused where
        there is none.
    formulas: `cpu` leaves the five formulas on the CPU where the networks are on a GPU; changes no more than the last
        digits of a score.

    `image_id` is the path as given, or the position for images without one. An image that can't be read or
    scored gets a row that says why, as in the job. Raises ConfigurationError for unknown metrics and for things
    that are no images.
    """
    names = tuple(metrics.split(",")) if isinstance(metrics, str) else metrics
    policy = DecodePolicy(max_pixels=max_pixels, longest_side=longest_side, decoder=decoder)
    parameters = Parameters(weights=weights, untrained=untrained)
    asked = tuple(name.strip() for name in (default_names(backend, parameters)[0] if names is None else names))
    plan = Plan(
        metrics=asked,
        backend=backend,
        policy=policy,
        max_bytes=max_bytes,
        parameters=pinned(asked, parameters),
        formulas=formulas,
    )
    networks = any(metric.device == "gpu" for metric in plan.selected())
    if device == "cuda" or (device == "auto" and networks):
        plan = replace(plan, device=_present(device))
    if decoder == "nvjpeg" and plan.device != "cuda":
        raise ConfigurationError(
            f"decoder='nvjpeg' needs a GPU, and with device={device!r} these metrics run on the CPU here; leave it out"
        )
    if decoder == "nvjpeg" and formulas == "cpu":
        raise ConfigurationError(
            "formulas='cpu': the pixels that decoder='nvjpeg' makes are on the GPU; leave one of the two out"
        )
    if precision == "fast":
        execution, notes = verification.execution(plan, verified)
        for note in notes:
            warnings.warn(note, stacklevel=3)
        plan = replace(plan, execution=execution)
    several = _several(images)
    if plan.device == "cuda":
        count = len(several) if isinstance(several, Sized) else 0
        compiled = worth_compiling(count, workers=1)
        plan = replace(plan, at_once=_AT_ONCE_ON_GPU, execution=replace(plan.execution, compiled=compiled))
    for metric in plan.selected():
        if reason := metric.unavailable():
            raise ConfigurationError(f"{metric.name} can't be computed: {reason}")
    scorer = RowScorer(plan, run_id="in-process")
    prepared = (_prepared(scorer, policy, position, image) for position, image in enumerate(several))
    return to_table(list(scorer.finished(prepared)), scores.schema(metric.name for metric in plan.selected()))


def _present(asked: Literal["auto", "cuda"]) -> Device:
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if asked == "cuda":
        warnings.warn("there is no CUDA device: everything runs on the CPU, networks slowly", stacklevel=4)
    return "cpu"


def _several(images: Any) -> Iterable[Any]:
    single = isinstance(images, str | Path | bytes) or hasattr(images, "getexif")
    if isinstance(images, np.ndarray) and images.dtype != object:
        single = images.ndim <= 3 and not (images.ndim == 3 and images.shape[2] not in (1, 3, 4))
    if not single and not hasattr(images, "__iter__"):
        raise ConfigurationError(f"images: {type(images).__name__} is no image and no sequence of images")
    return [images] if single else images


def _prepared(scorer: RowScorer, policy: DecodePolicy, position: int, image: Any) -> Prepared:
    if isinstance(image, str | Path):
        uri = os.fspath(image)
        request = Request(image_id=os.fsencode(uri).decode("utf-8", "backslashreplace"), uri=storage.uri_of_path(uri))
        return scorer.prepare(request, scorer.fetch(request))
    request = Request(image_id=str(position), uri=None)
    if isinstance(image, bytes):
        return scorer.prepare(request, storage.Fetched(data=image, etag=None))
    try:
        photograph = photograph_of(_pixels(image, position), policy)
    except ImageError as error:
        failure: Failure = error.failure
        return scorer.prepare(request, failure)
    return scorer.prepare_photograph(request.image_id, photograph)


def _pixels(image: Any, position: int) -> npt.NDArray[np.uint8]:
    if hasattr(image, "getexif"):
        transparent = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
        image = np.asarray(image.convert("RGBA" if transparent else "RGB"))
    if not isinstance(image, np.ndarray):
        raise ConfigurationError(
            f"image {position} is a {type(image).__name__}; give paths, bytes, uint8 arrays or PIL images"
        )
    shape_fits = image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 3, 4))
    if image.dtype != np.uint8 or not shape_fits:
        raise ConfigurationError(
            f"image {position} is {image.dtype} of shape {image.shape}; give uint8 of shape (H, W), (H, W, 3) or "
            "(H, W, 4), grey levels 0-255"
        )
    return image

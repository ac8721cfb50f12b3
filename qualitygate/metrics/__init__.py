"""The catalogue of metrics: name -> what it is and how to load it.

Importing this package is cheap: compiled kernels, SciPy and torch are imported by a metric's `load`.
A ninth metric is one module and one line in `CATALOGUE`.
"""

import dataclasses
import difflib
from collections.abc import Iterable
from typing import Literal

from qualitygate.errors import ConfigurationError
from qualitygate.metrics import focus, networks, reference, scene_statistics
from qualitygate.metrics.loading import on_either
from qualitygate.metrics.metric import Metric
from qualitygate.metrics.networks import PUBLISHED, Parameters
from qualitygate.metrics.precision import REFERENCE, Execution

__all__ = [
    "CATALOGUE",
    "PAPER",
    "PUBLISHED",
    "REFERENCE",
    "Execution",
    "Metric",
    "Parameters",
    "by_cost",
    "catalogue",
    "default_names",
    "select",
]

Backend = Literal["native", "pyiqa"]

CATALOGUE: dict[str, Metric] = {
    "lapv": focus.LAPV,
    "lapm": focus.LAPM,
    "wavs": focus.WAVS,
    "brisque": scene_statistics.BRISQUE,
    "niqe": scene_statistics.NIQE,
    "lapv-cv2": focus.LAPV_CV2,
    "wavs-coef": focus.WAVS_COEF,
    **networks.catalogue(),
}

# From cheap to dear, by the seconds of a 1024 px photograph on a core (see docs/metrics.md).
_BY_COST = ("lapv", "lapm", "wavs", "brisque", "niqe", "hyperiqa", "musiq", "maniqa")

# The eight that the paper compares.
PAPER = ("lapv", "lapm", "wavs", "brisque", "niqe", "musiq", "maniqa", "hyperiqa")


def catalogue(
    backend: Backend = "native", parameters: Parameters = PUBLISHED, execution: Execution = REFERENCE
) -> dict[str, Metric]:
    """The metrics that a backend has, by name; ConfigurationError for an unknown backend.

    execution: how our networks are run; the others know one way only.
    """
    if backend == "native":
        formulas = {name: _formula(metric, execution) for name, metric in CATALOGUE.items() if metric.batched}
        return CATALOGUE | formulas | networks.catalogue(parameters, execution)
    if backend == "pyiqa":
        return reference.catalogue(parameters)
    raise ConfigurationError(f"unknown backend {backend!r}; choose one of native, pyiqa")


def _formula(metric: Metric, execution: Execution) -> Metric:
    """A formula as it is run on a GPU; nothing changes on a CPU."""
    if not execution.compiled:
        return metric
    module = "scene_tensors" if metric.name in ("brisque", "niqe") else "focus_tensors"
    load = on_either(metric.load, metric.name, f"qualitygate.metrics.{module}", compiled=True)
    return dataclasses.replace(metric, load=load)


def default_names(backend: Backend = "native", parameters: Parameters = PUBLISHED) -> tuple[list[str], dict[str, str]]:
    """Those of the paper's eight that can be loaded now, and for the others why not.

    Variants such as lapv-cv2 are computed only on request.
    """
    networks.check_named(parameters)
    found, skipped = [], {}
    available = catalogue(backend, parameters)
    for name in PAPER:
        if name in available:
            reason = available[name].unavailable()
            if reason is None:
                found.append(name)
            else:
                skipped[name] = reason
    return found, skipped


def by_cost(names: Iterable[str]) -> list[str]:
    """The names from cheap to dear; a variant costs what its metric does, an unknown name most."""
    bases = {name: name.split("-")[0] for name in names}
    return sorted(bases, key=lambda name: _BY_COST.index(bases[name]) if bases[name] in _BY_COST else len(_BY_COST))


def select(
    names: Iterable[str],
    backend: Backend = "native",
    parameters: Parameters = PUBLISHED,
    execution: Execution = REFERENCE,
) -> list[Metric]:
    """The metrics of these names in this order, duplicates dropped; ConfigurationError for an unknown one."""
    available = catalogue(backend, parameters, execution)
    chosen: dict[str, Metric] = {}
    for name in (name.strip() for name in names):
        if name not in available:
            raise ConfigurationError(_absent(name, backend))
        chosen[name] = available[name]
    if not chosen:
        raise ConfigurationError(f"no metric is named; choose among {', '.join(available)}")
    return list(chosen.values())


def _absent(name: str, backend: str) -> str:
    if name in CATALOGUE:
        others = ", ".join(reference.NAMES)
        return f"{backend} has no {name}, only {others}: leave it out or use --backend native"
    close = difflib.get_close_matches(name.lower(), CATALOGUE, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return f"unknown metric {name!r}; {hint}The metrics are {', '.join(CATALOGUE)}"

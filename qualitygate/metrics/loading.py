"""A metric's `load`: from a function of one photograph, or on a GPU from one of many."""

import importlib
from collections.abc import Callable, Sequence

from qualitygate.errors import ErrorCode, Failure
from qualitygate.images.photograph import Photograph
from qualitygate.metrics.metric import Device, Score, Scorer


def one_by_one(
    score: Callable[[Photograph], Score], *modules: str, prepare: Callable[[], object] | None = None
) -> Callable[[Device], Scorer]:
    """A `load` whose scorer takes photographs one after another on the CPU.

    `modules` are imported and `prepare` is called by `load`, so that compiling and reading parameters is over
    before the first photograph.
    """

    def score_or_failure(photograph: Photograph) -> Score:
        try:
            return score(photograph)
        except MemoryError:
            return Failure(ErrorCode.OUT_OF_MEMORY, f"no memory for {photograph.width} x {photograph.height} pixels")

    def load(device: Device) -> Scorer:
        for module in modules:
            importlib.import_module(module)
        if prepare is not None:
            prepare()

        def scorer(photographs: Sequence[Photograph]) -> list[Score]:
            return [score_or_failure(photograph) for photograph in photographs]

        return scorer

    return load


def on_either(
    on_cpu: Callable[[Device], Scorer], name: str, module: str, *, compiled: bool = False
) -> Callable[[Device], Scorer]:
    """A `load` that takes `on_cpu` on a CPU, and on a GPU the `load` of a module that computes on tensors."""

    def load(device: Device) -> Scorer:
        if device == "cpu":
            return on_cpu(device)
        scorer: Scorer = importlib.import_module(module).load(name, device, compiled=compiled)
        return scorer

    return load

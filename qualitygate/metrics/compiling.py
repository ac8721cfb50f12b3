"""Networks compiled by torch on a GPU: a cache that the workers of a node share, and a way on where it fails.

What is compiled lies in `compiled/` in the package's cache folder, beside the staged parameters, unless
TORCHINDUCTOR_CACHE_DIR says otherwise: the first worker of a node compiles, later ones and later runs read.
"""

import logging
import os
from collections.abc import Callable, Iterable
from typing import Any

import torch

from qualitygate.metrics import weights_manifest
from qualitygate.metrics.memory import is_device_lost, is_out_of_memory

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


class Compiled:
    """A function of tensors, compiled when it is first called; interpreted from then on should that fail.

    dynamic: one compilation for all shapes. torch would compile again for a batch of one, as a photograph has that is
        handled by itself, while a watchdog waits: it runs interpreted instead. Its scores are within the bound that
        docs/performance.md states of those compiled. Without `dynamic` there is a compilation for each shape, so there
        must be few.
    backend: torch's; the tests name others than its own.
    """

    def __init__(
        self, function: Callable[..., torch.Tensor], name: str, *, dynamic: bool, backend: str = "inductor"
    ) -> None:
        os.environ.setdefault(CACHE_VARIABLE, str(weights_manifest.cache_folder() / "compiled"))
        self._plain = function
        self._name = name
        self._dynamic = dynamic
        self._compiled: Callable[..., Any] | None = torch.compile(function, dynamic=dynamic, backend=backend)

    @property
    def compiled(self) -> bool:
        """Whether it hasn't failed to compile."""
        return self._compiled is not None

    def __call__(self, *arguments: Any) -> torch.Tensor:
        if self._compiled is not None and not (self._dynamic and _alone(arguments)):
            try:
                if self._dynamic:
                    _mark_sizes(arguments)
                result: torch.Tensor = self._compiled(*arguments)
                return result
            except Exception as error:
                if is_out_of_memory(error) or is_device_lost(error):
                    raise
                # No compiler, no Triton, a graph it can't do: the interpreted network gives the same scores.
                reason = f"{type(error).__name__}: {error}".partition("\n")[0][:300]
                logger.warning("%s can't be compiled and runs interpreted: %s", self._name, reason)
                self._compiled = None
        return self._plain(*arguments)


def _alone(arguments: Iterable[Any]) -> bool:
    """Whether the first tensor is a batch of one."""
    first = next((argument for argument in arguments if isinstance(argument, torch.Tensor)), None)
    return first is not None and first.dim() > 0 and len(first) == 1


def _mark_sizes(arguments: Iterable[Any]) -> None:
    """Say that each size may be any: else two that are equal at first, as of a square photograph, must stay so."""
    for argument in arguments:
        if isinstance(argument, torch.Tensor):
            torch._dynamo.maybe_mark_dynamic(argument, list(range(argument.dim())))

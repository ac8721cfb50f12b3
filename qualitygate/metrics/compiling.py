"""Networks compiled by torch on a GPU: a cache that the workers of a node share, and a way on where it fails.

What is compiled lies in `compiled/` in the package's cache folder, beside the staged parameters, unless
TORCHINDUCTOR_CACHE_DIR says otherwise: the first worker of a node compiles, later ones and later runs read.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from qualitygate.metrics import weights_manifest
from qualitygate.metrics.memory import is_device_lost, is_of_the_gpu, is_out_of_memory

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
# Calls in a row that the GPU refused compiled and did interpreted: one may be a mishap.
_MISHAPS_THAT_CONVICT = 2

_noted: list[dict[str, str]] = []


@contextmanager
def noting_failures() -> Iterator[dict[str, str]]:
    """By name, why compiled functions failed inside and were run interpreted."""
    failures: dict[str, str] = {}
    _noted.append(failures)
    try:
        yield failures
    finally:
        _noted.remove(failures)


class Compiled:
    """A function of tensors, compiled when it is first called; a call that fails compiled is run interpreted.

    It stays interpreted where the compiler failed, and where the GPU has refused two compiled calls in a row. Not where
    the call fails interpreted, too: then what it was given is to blame.

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
        self._mishaps = 0
        self._compiled: Callable[..., Any] | None = torch.compile(function, dynamic=dynamic, backend=backend)

    @property
    def compiled(self) -> bool:
        """Whether it hasn't been given up."""
        return self._compiled is not None

    def __call__(self, *arguments: Any) -> torch.Tensor:
        if self._compiled is None or (self._dynamic and _alone(arguments)):
            return self._plain(*arguments)
        try:
            if self._dynamic:
                _mark_sizes(arguments)
            result: torch.Tensor = self._compiled(*arguments)
        except Exception as error:
            if is_out_of_memory(error) or is_device_lost(error):
                raise
            of_the_gpu = is_of_the_gpu(error)
            # In one line: torch tells on the second what its compiler met.
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        else:
            self._mishaps = 0
            return result
        # What the failed attempt held is gone with the error: the interpreted network gives the same scores.
        result = self._plain(*arguments)
        self._failed(reason, of_the_gpu=of_the_gpu)
        return result

    def _failed(self, reason: str, *, of_the_gpu: bool) -> None:
        self._mishaps += 1
        if of_the_gpu and self._mishaps < _MISHAPS_THAT_CONVICT:
            logger.warning("%s failed compiled, and this call ran interpreted: %s", self._name, reason)
            return
        what = "fails compiled again and again" if of_the_gpu else "can't be compiled"
        logger.warning("%s %s and runs interpreted: %s", self._name, what, reason)
        for failures in _noted:
            failures.setdefault(self._name, reason)
        self._compiled = None


def _alone(arguments: Iterable[Any]) -> bool:
    """Whether the first tensor is a batch of one."""
    first = next((argument for argument in arguments if isinstance(argument, torch.Tensor)), None)
    return first is not None and first.dim() > 0 and len(first) == 1


def _mark_sizes(arguments: Iterable[Any]) -> None:
    """Say that each size may be any: else two that are equal at first, as of a square photograph, must stay so."""
    for argument in arguments:
        if isinstance(argument, torch.Tensor):
            torch._dynamo.maybe_mark_dynamic(argument, list(range(argument.dim())))

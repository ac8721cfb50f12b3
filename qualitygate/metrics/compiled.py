"""How this package compiles its kernels: ahead of use, cached on disk, with the same bits on any x86 CPU.

No kernel uses fast-math, so LLVM never reorders a floating-point sum and never contracts a product and a
sum into one rounding. Sums run over columns side by side (`acc[j] += v`), which vectorises without
reordering: the width of the CPU's vectors changes the speed and no bit of the result.
"""

import logging
from collections.abc import Callable
from typing import Any

import numba

log = logging.getLogger(__name__)


def compiled(*signatures: str) -> Callable[[Callable[..., Any]], Any]:
    """`numba.njit` for these signatures (none: on first call), without the GIL, cached where possible.

    Numba writes its cache beside the module or, where that folder is read-only, to the user's cache folder.
    In a container that has neither, it refuses to decorate; then each process compiles for itself.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        chosen = [list(signatures)] if signatures else []
        try:
            return numba.njit(*chosen, nogil=True, cache=True)(function)
        except (RuntimeError, OSError) as error:
            log.warning("kernel %s is not cached and will be compiled again: %s", function.__name__, error)
            return numba.njit(*chosen, nogil=True)(function)

    return decorate

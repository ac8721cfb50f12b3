"""What lets pyiqa be imported where it was installed without its dependencies, for the five metrics compared here.

Two of the modules that it imports are not there then: `requests`, which only downloads, and `einops`, of which MANIQA
takes `rearrange` alone. The benchmarks stand in for them while pyiqa is imported; the package never does.
"""

import importlib.machinery
import importlib.util
import math
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch


def rearrange(x: torch.Tensor, pattern: str, **sizes: int) -> torch.Tensor:
    """x with its axes split, exchanged and joined, as in 'b (h w) c -> b c h w'; a size that isn't given follows."""
    before, after = (
        [axis.strip("()").split() for axis in re.findall(r"\([^)]*\)|\S+", side)] for side in pattern.split("->")
    )
    for names, length in zip(before, x.shape, strict=True):
        unknown = [name for name in names if name not in sizes]
        if len(unknown) > 1:
            raise ValueError(f"{pattern!r}: the sizes of {', '.join(unknown)} don't follow; name all but one")
        sizes |= {name: length // math.prod(sizes[other] for other in names if other != name) for name in unknown}
    flat = [name for names in before for name in names]
    split = x.reshape([sizes[name] for name in flat])
    exchanged = split.permute([flat.index(name) for names in after for name in names])
    return exchanged.reshape([math.prod(sizes[name] for name in names) for names in after])


_PROVIDED = {"einops": {"rearrange": rearrange}, "requests": {}}


@contextmanager
def for_pyiqa() -> Iterator[list[str]]:
    """Inside, pyiqa can be imported; yields the names of the modules that are stood in for.

    Afterwards they are absent again: others, torch's compiler among them, look for the real ones.
    """
    absent = [name for name in _PROVIDED if importlib.util.find_spec(name) is None]
    for name in absent:
        module = ModuleType(name, "Stands in for what isn't installed.")
        module.__spec__ = importlib.machinery.ModuleSpec(name, loader=None)
        vars(module).update(_PROVIDED[name])
        sys.modules[name] = module
    try:
        yield absent
    finally:
        for name in absent:
            del sys.modules[name]

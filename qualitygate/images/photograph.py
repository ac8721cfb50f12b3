"""A decoded photograph and what is computed from it once for all metrics."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Photograph:
    """Pixels as every metric sees them.

    rgb: (H, W, 3) uint8 RGB, C-contiguous and writable (though never written to), orientation and box applied,
        resized by the policy.
    """

    rgb: npt.NDArray[np.uint8]
    _memo: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def height(self) -> int:
        return int(self.rgb.shape[0])

    @property
    def width(self) -> int:
        return int(self.rgb.shape[1])

    def once(self, key: str, compute: Callable[["Photograph"], T]) -> T:
        """The value of `compute(self)`, computed at most once: metrics share luma and statistics by key."""
        if key not in self._memo:
            self._memo[key] = compute(self)
        value: T = self._memo[key]
        return value

    def has(self, key: str) -> bool:
        """Whether `once` knows the value already."""
        return key in self._memo

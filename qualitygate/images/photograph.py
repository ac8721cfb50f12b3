"""A decoded photograph and what is computed from it once for all metrics."""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")
UInt8 = npt.NDArray[np.uint8]


class Photograph:
    """Pixels as every metric sees them.

    rgb: (H, W, 3) uint8 RGB, C-contiguous and writable (though never written to), orientation and box applied,
        resized by the policy.
    """

    __slots__ = ("_bring", "_memo", "_rgb", "height", "width")

    def __init__(self, rgb: UInt8) -> None:
        self._rgb: UInt8 | None = rgb
        self._bring: Callable[[], UInt8] = lambda: rgb
        self._memo: dict[str, Any] = {}
        self.height, self.width = int(rgb.shape[0]), int(rgb.shape[1])

    @classmethod
    def elsewhere(cls, height: int, width: int, bring: Callable[[], UInt8], **known: Any) -> "Photograph":
        """One whose pixels are on another device; `bring` fetches them, at most once, should someone want them here.

        known: what `once` knows from the beginning, by key.
        """
        made = cls.__new__(cls)
        made._rgb, made._bring, made._memo = None, bring, dict(known)
        made.height, made.width = height, width
        return made

    @property
    def rgb(self) -> UInt8:
        """The pixels in this process's memory."""
        if self._rgb is None:
            self._rgb = self._bring()
        return self._rgb

    def once(self, key: str, compute: Callable[["Photograph"], T]) -> T:
        """The value of `compute(self)`, computed at most once: metrics share luma and statistics by key."""
        if key not in self._memo:
            self._memo[key] = compute(self)
        value: T = self._memo[key]
        return value

    def has(self, key: str) -> bool:
        """Whether `once` knows the value already."""
        return key in self._memo

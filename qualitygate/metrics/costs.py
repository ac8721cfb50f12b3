"""What the networks cost, counted: floating point operations of a photograph, by its size.

Two operations for each multiplication with addition. docs/performance.md has the rates at which processors do them.
"""

from qualitygate.errors import ImageError
from qualitygate.metrics import crops, hyperiqa, maniqa, musiq_tokens

TERA = 1e12
# A crop of 224 x 224, without the blocks that nothing reads.
_CROP = {"maniqa": (maniqa.CROPS, 0.277 * TERA), "hyperiqa": (hyperiqa.CROPS, 0.2145 / 25 * TERA)}
# MUSIQ's grow with its tokens: layers with their number, attention with its square. Solved for two counted sizes.
_MUSIQ_COUNTED = ((1024, 1024, 0.115 * TERA), (3000, 4000, 3.88 * TERA))


def operations(name: str, height: int, width: int) -> float:
    """Floating point operations of a network's score of one photograph; 0 for a formula, whose cost is measured."""
    base = name.split("-")[0]
    if base in _CROP:
        count, each = _CROP[base]
        return each * len(crops.grid(height, width, count))
    if base != "musiq":
        return 0.0
    (few, at_few), (many, at_many) = ((_tokens(h, w), cost) for h, w, cost in _MUSIQ_COUNTED)
    squared = (at_many - at_few * many / few) / (many**2 - many * few)
    tokens = _tokens(height, width)
    return (at_few / few - squared * few) * tokens + squared * tokens**2


def _tokens(height: int, width: int) -> int:
    try:
        return musiq_tokens.count(musiq_tokens.scales(height, width))
    except ImageError:
        return 0  # a strip, for which there is no score

"""What a metric is: a value that says what its number means and how to load the scorer that computes it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from qualitygate.errors import Failure
from qualitygate.images.photograph import Photograph

# A scorer takes photographs of mixed sizes and returns, for each, a finite float64 or why there is none.
# It never raises for one photograph, and a score depends on its photograph alone: not on the batch,
# the order, the neighbours or the number of workers.
Score = float | Failure
Scorer = Callable[[Sequence[Photograph]], list[Score]]

Device = Literal["cpu", "cuda"]


@runtime_checkable
class Warming(Protocol):
    """A scorer whose first photographs would wait for kernels to be chosen, loaded and compiled."""

    def warm_up(self) -> None:
        """Score made-up photographs, by the shapes that are to come, so that the first real ones don't."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One no-reference quality metric.

    Attributes:
        name: column name in the score table.
        version: raised whenever a score may change for the same pixels; part of the fingerprint.
        higher_is_better: direction of the raw score. Scores are stored raw and never flipped.
        range: smallest and largest possible raw score; None where unbounded.
        unit: of the raw score.
        reference: the paper that defines it, and the implementation whose reading is followed.
        code_license: of this implementation.
        weights_license: of the parameters; None for a metric without any.
        device: where it runs best: "gpu" metrics go to GPU pools when there are GPUs.
        parameters_sha256: content hash of the parameters; None for a metric without any.
        unavailable: why it can't be loaded now, with the remedy; None when it can.
        load: device -> scorer. Called once in each worker.
        trained: False for seeded random parameters, whose scores mean nothing; marked wherever they show.
        implementation: whose code computes it, with its version where it isn't ours; part of the fingerprint.
        precision: of the arithmetic; part of the fingerprint.
        batched: a "cpu" metric that a GPU computes too, for several photographs at once, to the same scores.
    """

    name: str
    version: int
    higher_is_better: bool
    range: tuple[float | None, float | None]
    unit: str
    reference: str
    code_license: str
    weights_license: str | None
    device: Literal["cpu", "gpu"]
    parameters_sha256: Callable[[], str | None]
    unavailable: Callable[[], str | None]
    load: Callable[[Device], Scorer]
    precision: str = "float64"
    backend: Literal["native", "pyiqa"] = "native"
    implementation: str = "qualitygate"
    trained: bool = True
    batched: bool = False

    def takes_several(self, device: Device) -> bool:
        """Whether it gains from several photographs at once on this device."""
        return self.device == "gpu" or (self.batched and device == "cuda")

    @property
    def direction(self) -> Literal["higher", "lower"]:
        """Which raw scores are better."""
        return "higher" if self.higher_is_better else "lower"

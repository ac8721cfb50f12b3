"""How exactly and how fast networks compute: float32, or half precision on a GPU, interpreted or compiled.

`float32` is the reference. `fast` multiplies float16 numbers and adds them up in float32 on a GPU's matrix units; the
transformers' residual sums, layer norms and the last sums stay float32. A CPU has no faster arithmetic that is near
enough, so `fast` is float32 there, and the fingerprint says so: it tells what was computed, not what was asked for.

How far `fast` is from float32 depends on the parameters and the photographs: `qualitygate verify` measures it, and
`score --precision fast` takes the metrics that passed. docs/metrics.md has the rule.

Importing this needs no torch.
"""

from dataclasses import dataclass
from typing import Literal

from qualitygate.errors import ConfigurationError

Precision = Literal["float32", "fast"]

# As it stands in fingerprints.
HALF = "float16"
EXACT = "float32"

# Photographs that a worker must have before it for compiling to pay: an estimate, from 6 ms a photograph (MANIQA, on
# an H100) and a minute of compiling. docs/performance.md says what was measured of it.
COMPILE_FROM = 10_000

# Photographs that a worker must have before it for a warm-up: it does the work of ten at most (a full batch and a
# quarter of one, of HyperIQA's crops), so 4 % of these, where nothing else hides it.
WARM_FROM = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """How networks are run. Travels to the workers.

    fast: names of the metrics in half precision; they are float32 on a CPU all the same.
    compiled: let torch compile the networks, which changes no more than the last digits. On a GPU only.
    gpu: the model on which those in half precision were verified; None where nothing was, as in `verify` itself.
    """

    fast: tuple[str, ...] = ()
    compiled: bool = False
    gpu: str | None = None


REFERENCE = Execution()


def stored(precision: Precision) -> str:
    """The precision as a fingerprint has it, on a GPU."""
    return HALF if precision == "fast" else EXACT


def check_gpu(execution: Execution, gpu: str) -> None:
    """ConfigurationError where half precision was verified on another model of GPU, whose kernels round elsewhere."""
    if execution.fast and execution.gpu not in (None, gpu):
        raise ConfigurationError(
            f"--precision fast was verified on {execution.gpu!r}, and this GPU is {gpu!r}: run 'qualitygate verify' on "
            "it, or leave --precision fast out"
        )


def worth_warming(photographs: int, workers: int) -> bool:
    """Whether each worker has enough photographs before it that made-up ones before them don't count."""
    return photographs / max(workers, 1) >= WARM_FROM


def worth_compiling(photographs: int, workers: int) -> bool:
    """Whether each worker has enough photographs before it that compiling pays."""
    return photographs / max(workers, 1) >= COMPILE_FROM

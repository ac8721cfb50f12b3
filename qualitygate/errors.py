"""Everything that can go wrong, in two kinds: a command that can't go on, and an image that can't be scored.

QualityGateError                exit code 1
├── ConfigurationError          exit code 2: the user's input or environment; the message says the remedy
├── ErrorBudgetExceeded         exit code 3: too many images failed; their rows are kept
├── RunsFailed                  exit code 3: runs of a study failed; the others are finished and kept
├── DeadlineReached             exit code 3: a night ended before all was scored; what was is kept
├── GateRefused                 exit code 4: the gate can't be applied: too few of its methods have a cut-off
├── NightRefused                exit code 4: a guardrail of the nightly job kept the old gate
├── Locked                      exit code 2: another nightly job is at work on the output
├── Superseded                  exit code 2: another run took over the output
├── Interrupted                 exit code 130: stopped by the user or the system; resumable
├── AuditFailed                 exit code 1: ids in are not ids out
├── StoreUnavailable            exit code 1: the store doesn't answer; the same command goes on
├── DeviceLost                  exit code 1: this process can't use its GPU any more; a job's worker is started anew
└── ImageError                  one image; becomes its row's error_code and error_message, never stops a run
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class ErrorCode(StrEnum):
    """Why an image, or one of its metrics, has no score."""

    MISSING = "missing"
    DENIED = "denied"
    TIMEOUT = "timeout"
    TRANSIENT = "transient"
    TRUNCATED = "truncated"
    UNDECODABLE = "undecodable"
    UNSUPPORTED = "unsupported"
    TOO_LARGE = "too_large"
    TOO_SMALL = "too_small"
    FLAT = "flat"
    NON_FINITE = "non_finite"
    OUT_OF_MEMORY = "out_of_memory"
    WORKER_CRASH = "worker_crash"


# Worth trying again on the next run without being asked: the same bytes may well succeed.
# The others are properties of the content or of the manifest; `score --retry CODE` selects them.
RETRIED_CODES = frozenset({ErrorCode.TIMEOUT, ErrorCode.TRANSIENT, ErrorCode.OUT_OF_MEMORY, ErrorCode.WORKER_CRASH})


@dataclass(frozen=True, slots=True)
class Failure:
    """The typed reason for a missing score: what a scorer returns in place of a float."""

    code: ErrorCode
    message: str


class QualityGateError(Exception):
    """Base of every error this package raises on purpose."""

    exit_code = 1


class ConfigurationError(QualityGateError):
    """The command can't start as asked; the message is one line and names the remedy."""

    exit_code = 2


class GateRefused(QualityGateError):
    """The gate is sound but can't decide here: fewer methods can vote than votes are needed to reject."""

    exit_code = 4


class NightRefused(QualityGateError):
    """The nightly job ended in order, and the gate stays as it was; the message says why."""

    exit_code = 4


class Locked(QualityGateError):
    """Another nightly job holds the lock of this output; nothing was done."""

    exit_code = 2


class DeadlineReached(QualityGateError):
    """The time was up before all was scored; what arrived is committed and the same command goes on.

    done, left: photographs that were scored until then, and that are not yet; None where that isn't known.
    """

    exit_code = 3

    def __init__(self, message: str, *, done: int | None = None, left: int | None = None) -> None:
        super().__init__(message)
        self.done = done
        self.left = left


class Superseded(QualityGateError):
    """A newer run has claimed the same output; this one stopped without publishing more."""

    exit_code = 2


class ErrorBudgetExceeded(QualityGateError):
    """More images failed than `max_error_rate` allows; every row was kept. `stats` is the run's `_stats.json`."""

    exit_code = 3

    def __init__(self, message: str, *, stats: dict[str, Any]) -> None:
        super().__init__(message)
        self.stats = stats


class RunsFailed(QualityGateError):
    """Some of a study's runs failed; tables and verdicts are of the others."""

    exit_code = 3


class Interrupted(QualityGateError):
    """Stopped by Ctrl-C or SIGTERM; what arrived is committed and the same command goes on."""

    exit_code = 130


class AuditFailed(QualityGateError):
    """The finished table doesn't hold exactly the manifest's ids."""


class StoreUnavailable(QualityGateError):
    """The store hasn't answered for as long as it was asked; nothing needs mending here, the same command goes on."""


class DeviceLost(QualityGateError):
    """CUDA has failed in a way that leaves this process without its GPU, whatever it is asked for next.

    A job's worker ends itself over it and is started again; in process only starting again helps.

    full: at its start, for want of memory, which may be free the next time.
    """

    def __init__(self, message: str, *, full: bool = False) -> None:
        super().__init__(message)
        self.full = full


class ImageError(QualityGateError):
    """One image can't be fetched, decoded or scored.

    width, height: of the image as stored, where its header could be read before things went wrong.
    """

    def __init__(self, code: ErrorCode, message: str, *, width: int | None = None, height: int | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.failure = Failure(code, message)
        self.width = width
        self.height = height

    def __reduce__(self) -> tuple[object, ...]:
        # An exception is pickled as its class and `args`, which here hold the joined text, not the
        # parameters: without this an ImageError couldn't leave the process it was raised in.
        state = {"width": self.width, "height": self.height}
        return (type(self), (self.failure.code, self.failure.message), state)

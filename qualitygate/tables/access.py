"""How stores are asked: how long to wait, how often to try again, how many requests a second.

What may pass is tried again until `retry_seconds` are over; what won't pass (missing, denied) is not.
"""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol, TypeVar

from qualitygate.errors import ErrorCode, ImageError

T = TypeVar("T")

# Failures of a store or of the way to it. The same request may well succeed in a moment.
PASSING_CODES = frozenset({ErrorCode.TIMEOUT, ErrorCode.TRANSIENT})
# Exponential backoff with full jitter: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
_FIRST_PAUSE_S = 0.2
# A store that says "slow down" is hurt by a quick second try.
_FIRST_PAUSE_THROTTLED_S = 1.0
_LONGEST_PAUSE_S = 10.0


class Throttled(ImageError):
    """The store asks for fewer requests (429, 503): transient, and worth a longer pause."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.TRANSIENT, message)

    def __reduce__(self) -> tuple[object, ...]:
        return (Throttled, (self.failure.message,))


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How stores are asked. Travels to the workers.

    retry_seconds: how long a failure that may pass is tried again, from the first attempt.
    timeout_seconds: of connecting, and of waiting for the next bytes of an answer.
    max_requests_per_second: of this process, retries included; None: as many as it can.
    """

    retry_seconds: float = 60.0
    timeout_seconds: float = 30.0
    max_requests_per_second: float | None = None

    def shared_by(self, processes: int) -> "Access":
        """What each of so many processes may do, so that together they keep the rate."""
        if self.max_requests_per_second is None:
            return self
        return replace(self, max_requests_per_second=self.max_requests_per_second / max(1, processes))

    def wait_for_turn(self) -> None:
        """Return when the rate allows one more request."""
        if self.max_requests_per_second is not None:
            _bucket(self.max_requests_per_second).take()


class Asks(Protocol):
    """A verb's configuration, as far as it says how stores are asked."""

    @property
    def retry_seconds(self) -> float: ...
    @property
    def request_timeout_s(self) -> float: ...
    @property
    def max_requests_per_second(self) -> float | None: ...


def of(config: Asks) -> Access:
    """How a verb asks stores, by its configuration; the rate is that of all its processes together."""
    return Access(
        retry_seconds=config.retry_seconds,
        timeout_seconds=config.request_timeout_s,
        max_requests_per_second=config.max_requests_per_second,
    )


DEFAULT = Access()
# A local disk that fails is tried again a few times, not for a minute.
LOCAL = Access(retry_seconds=1.0)


class TokenBucket:
    """Lets `rate` calls a second through, after a pause a second's worth at once. Threads may share it."""

    def __init__(
        self, rate: float, *, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._rate = rate
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._tokens = 1.0
        self._filled = clock()

    def take(self) -> None:
        """Take one token, waiting for it where there is none."""
        with self._lock:
            now = self._clock()
            self._tokens = min(max(1.0, self._rate), self._tokens + (now - self._filled) * self._rate)
            self._filled = now
            # A debt stands for the calls that are already waiting: the next one waits behind them.
            self._tokens -= 1
            wait = -self._tokens / self._rate
        if wait > 0:
            self._sleep(wait)


@lru_cache(maxsize=8)
def _bucket(rate: float) -> TokenBucket:
    return TokenBucket(rate)


class Patience:
    """Decides after each failure whether to try again, and pauses before it. One for each thing that is tried."""

    def __init__(
        self,
        access: Access,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._access = access
        self._clock = clock
        self._sleep = sleep
        self.succeeded()

    def succeeded(self) -> None:
        """Something arrived: the next failure counts as the first."""
        self._deadline = self._clock() + self._access.retry_seconds
        self._failures = 0

    def after(self, error: ImageError) -> None:
        """Pause, or raise `error` when it won't pass or has been tried for long enough."""
        if error.failure.code not in PASSING_CODES:
            raise error
        left = self._deadline - self._clock()
        if left <= 0:
            raise error
        first = _FIRST_PAUSE_THROTTLED_S if isinstance(error, Throttled) else _FIRST_PAUSE_S
        longest = min(_LONGEST_PAUSE_S, first * 2**self._failures)
        self._failures += 1
        # At least half: pauses near zero would spend the attempts while the store is still down.
        self._sleep(min(left, random.uniform(longest / 2, longest)))


def retrying(
    request: Callable[[], T],
    access: Access,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """`request()`, again after each failure that may pass; each attempt waits for its turn."""
    patience = Patience(access, clock=clock, sleep=sleep)
    while True:
        access.wait_for_turn()
        try:
            return request()
        except ImageError as error:
            patience.after(error)

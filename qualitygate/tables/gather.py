"""What several threads find, in one stream: no order, bounded memory, and no failure overlooked."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class Gathering(Generic[T]):
    """Runs generators in threads and yields what they yield, as it comes; each may add further ones.

    A generator that is ahead of the reader waits. The first failure is raised to the reader, and the rest stopped.
    """

    def __init__(self, threads: int, *, ahead: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="gather")
        self._arrived: queue.Queue[tuple[T | None, Exception | None]] = queue.Queue(ahead)
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._open = 0

    def add(self, produce: Callable[[], Iterable[T]]) -> None:
        """One more generator; before iteration, or from inside a generator."""
        with self._lock:
            self._open += 1
        self._pool.submit(self._run, produce)

    def __iter__(self) -> Iterator[T]:
        while True:
            item, error = self._arrived.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _run(self, produce: Callable[[], Iterable[T]]) -> None:
        try:
            for item in produce():
                self._put(item, None)
                if self._stopped.is_set():
                    return
        except Exception as error:  # raised again by the reader
            self._put(None, error)
        with self._lock:
            self._open -= 1
            last = self._open == 0
        if last:
            self._put(None, None)

    def _put(self, item: T | None, error: Exception | None) -> None:
        while not self._stopped.is_set():
            try:
                return self._arrived.put((item, error), timeout=0.5)
            except queue.Full:
                continue

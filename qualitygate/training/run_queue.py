"""Which run each worker trains next, and what to do with one whose worker died; no Ray, no clock.

Workers come in groups that live and die together: a worker's death ends its whole group, and a new one of the same size
begins. So of the runs at work any may have killed its worker. A run that was at work in two deaths is tried once more
when nothing else is at work: if its worker dies then, it is the run's doing, and the run has failed.
"""

from collections import Counter, deque
from collections.abc import Sequence
from typing import Any, Literal

# Deaths of its worker after which a run is suspected.
SUSPECTED_AFTER = 2

Wait = Literal["wait"]


class RunQueue:
    """Runs by number, 0 to `count` - 1, given out in that order.

    `together`: all workers of the group work on one run at a time, in lockstep.
    """

    def __init__(self, count: int, *, together: bool = False) -> None:
        self._pending = deque(range(count))
        self._together = together
        self._suspects: deque[int] = deque()
        self._leased: dict[int, int] = {}
        self._deaths: Counter[int] = Counter()
        self._group: str | None = None
        self._rounds: list[int | None] = []
        self._stopped = False
        self._messages: list[tuple[str, Any]] = []

    def begin(self, group: str) -> None:
        """A worker of a group begins. The first of a new group tells that the one before is dead."""
        if group == self._group:
            return
        again = self._group is not None
        self._group = group
        dead = sorted(set(self._leased.values()))
        self._leased = {}
        self._rounds = []
        for run in dead:
            self._deaths[run] += 1
        for run in reversed(dead):
            if self._deaths[run] < SUSPECTED_AFTER:
                self._pending.appendleft(run)
            elif len(dead) == 1:
                self._messages.append(("killer", (run, self._deaths[run])))
            else:
                self._suspects.appendleft(run)
        self._messages.append(("group", {"again": again, "interrupted": dead}))

    def take(self, group: str, rank: int, turn: int = 0) -> "int | Wait | None":
        """The next run of a worker; "wait": ask again soon; None: there is nothing more for it.

        turn: with `together`, how many runs this worker has had; all workers get the same run in a turn.
        """
        if group != self._group or self._stopped:
            return None
        if not self._together:
            return self._next(rank)
        if turn < len(self._rounds):
            return self._rounds[turn]
        if rank:
            return "wait"
        chosen = self._next(rank)
        if chosen != "wait":
            self._rounds.append(chosen)
        return chosen

    def _next(self, rank: int) -> "int | Wait | None":
        alone = [run for run in self._leased.values() if self._deaths[run] >= SUSPECTED_AFTER]
        if self._pending and not alone:
            return self._lease(rank, self._pending.popleft())
        if self._suspects and not self._leased:
            return self._lease(rank, self._suspects.popleft())
        return "wait" if (self._suspects or self._pending) and self._leased else None

    def _lease(self, rank: int, run: int) -> int:
        self._leased[rank] = run
        self._messages.append(("start", (run, rank)))
        return run

    def attempts(self, run: int) -> int:
        """How often the run was begun, this time included."""
        return self._deaths[run] + 1

    def done(self, group: str, rank: int, outcome: str) -> None:
        """The worker's run has ended and its outcome is written; word from a dead group is ignored."""
        if group == self._group and rank in self._leased:
            self._messages.append(("done", (self._leased.pop(rank), outcome)))

    def tell(self, kind: str, content: Any) -> None:
        """Word for whoever watches: an epoch, a note, a failure that ends the study."""
        self._messages.append((kind, content))
        if kind == "fatal":
            self._stopped = True

    def stop(self) -> None:
        """Give no more runs out."""
        self._stopped = True

    def stopped(self) -> bool:
        """Whether workers are to stop within a run."""
        return self._stopped

    def messages(self) -> Sequence[tuple[str, Any]]:
        """All that was told since the last call."""
        told, self._messages = self._messages, []
        return told

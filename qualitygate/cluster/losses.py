"""GPUs that are lost again and again: counted outside the processes that lose them, so that a broken one ends the run.

A photograph that takes its GPU away is found out after four losses, and each further one of its task after two more.
So three before all others of a task cost eight losses in a row. One more is what no three photographs explain: the GPU
is taken to be broken, as each new process would lose it again. Four such photographs in a row end the run, too.
"""

MOST_LOSSES = 9


class Losses:
    """How often each GPU was lost since it last did anything."""

    def __init__(self) -> None:
        self._times: dict[str, int] = {}
        self._starts: dict[str, int] = {}
        self._known: set[str] = set()

    def lost(self, gpu: str, *, starting: bool = False) -> int:
        """Count a loss; how many there were in a row.

        starting: before the worker could do anything, as for want of memory. Those are counted over the whole run: what
        other workers do on the same GPU tells nothing of whether this one can.
        """
        self._known.add(gpu)
        if starting:
            self._starts[gpu] = self._starts.get(gpu, 0) + 1
            return self._starts[gpu]
        self._times[gpu] = self._times.get(gpu, 0) + 1
        return self._times[gpu]

    def worked(self, gpu: str) -> None:
        """It has done something."""
        self._known.add(gpu)
        self._times.pop(gpu, None)

    def known(self, gpu: str) -> bool:
        """Whether it was ever there: a process that doesn't find it has lost it, then."""
        return gpu in self._known


def gone(gpu: str, times: int, error: object, *, starting: bool = False) -> str:
    """What the user is told of such a GPU, in a line."""
    said = f"{error}".partition(";")[0]
    when = "by workers that were starting" if starting else "without a result in between"
    lost = f"GPU {gpu} was lost {times} times {when}"
    remedy = "free its memory" if getattr(error, "full", False) else "take it out of the cluster or repair it"
    return f"{lost} ({said}): {remedy}"

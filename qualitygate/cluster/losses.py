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
        self._known: set[str] = set()

    def lost(self, gpu: str) -> int:
        """Count a loss; how many there were in a row."""
        self._known.add(gpu)
        self._times[gpu] = self._times.get(gpu, 0) + 1
        return self._times[gpu]

    def worked(self, gpu: str) -> None:
        """It has done something."""
        self._known.add(gpu)
        self._times.pop(gpu, None)

    def known(self, gpu: str) -> bool:
        """Whether it was ever there: a process that doesn't find it has lost it, then."""
        return gpu in self._known


def gone(gpu: str, times: int, error: object) -> str:
    """What the user is told of such a GPU, in a line."""
    said = f"{error}".partition(";")[0]
    lost = f"GPU {gpu} was lost {times} times without a result in between"
    remedy = "free its memory" if getattr(error, "full", False) else "take it out of the cluster or repair it"
    return f"{lost} ({said}): {remedy}"

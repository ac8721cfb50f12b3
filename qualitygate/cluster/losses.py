"""GPUs that are lost again and again: counted outside the processes that lose them, so that a broken one ends the run.

A photograph that takes its GPU away is found out after four losses; another one may come next. A GPU that was lost more
often than two of them explain, without a score in between, is broken: each new process would lose it again.
"""

MOST_LOSSES = 9


class Losses:
    """How often each GPU was lost since it last did anything."""

    def __init__(self) -> None:
        self._times: dict[str, int] = {}

    def lost(self, gpu: str) -> int:
        """Count a loss; how many there were in a row."""
        self._times[gpu] = self._times.get(gpu, 0) + 1
        return self._times[gpu]

    def worked(self, gpu: str) -> None:
        """It has done something."""
        self._times.pop(gpu, None)


def gone(gpu: str, times: int, error: object) -> str:
    """What the user is told of such a GPU, in a line."""
    said = f"{error}".partition(";")[0]
    lost = f"GPU {gpu} was lost {times} times without a result in between"
    return f"{lost} ({said}): take it out of the cluster or repair it"

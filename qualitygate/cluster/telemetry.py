"""Numbers of a scoring run, and of a night, for Prometheus: by Ray's own metrics while it is at work, as a text file
when it has ended.

The driver counts, from the blocks and traces that arrive anyway, so workers do nothing for it. Ray exports them where
it has its metrics agent (`ray[default]`), under the prefix `ray_`. Whatever goes wrong here is logged and ends no run.
docs/operations.md lists the numbers.
"""

import logging
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from qualitygate.tables import runs, storage

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One number: what it counts or measures, in which unit, and the labels that divide it besides `output`."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    description: str
    labels: tuple[str, ...] = ()
    boundaries: tuple[float, ...] = ()

    @property
    def exported(self) -> str:
        """The name in Prometheus' format, to which Ray adds `ray_` in front."""
        return f"qualitygate_{self.name}" + "_total" * (self.kind == "counter")


SERIES = (
    Series(name="rows", kind="counter", unit="rows", description="Rows scored, by status", labels=("status",)),
    Series(
        name="errors", kind="counter", unit="rows", description="Rows scored that carry an error code", labels=("code",)
    ),
    Series(
        name="stage_seconds",
        kind="counter",
        unit="seconds",
        description="Time of all workers, by stage: fetch, decode, each metric",
        labels=("stage",),
    ),
    Series(name="busy_seconds", kind="counter", unit="seconds", description="Time of all workers in tasks"),
    Series(name="commits", kind="counter", unit="commits", description="Commits to the score table"),
    Series(
        name="batches_lost",
        kind="counter",
        unit="tasks",
        description="Tasks begun again because their worker or its machine died",
    ),
    Series(name="rows_pending", kind="gauge", unit="rows", description="Rows of this run that have not arrived yet"),
    Series(
        name="task_rows",
        kind="histogram",
        unit="rows",
        description="Rows of a task",
        boundaries=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
    ),
    Series(
        name="gpu_memory_bytes",
        kind="gauge",
        unit="bytes",
        description="GPU memory that a worker holds",
        labels=("worker",),
    ),
    Series(
        name="last_success_timestamp_seconds",
        kind="gauge",
        unit="seconds since 1970",
        description="End of the last run that was done; of nights, of the last one that was promoted or kept",
    ),
    Series(
        name="last_run_good",
        kind="gauge",
        unit="0 or 1",
        description="Whether the run that ended last was done; of nights, whether the last was promoted or kept",
    ),
    Series(
        name="night_outcome",
        kind="gauge",
        unit="0 or 1",
        description="How the last night ended",
        labels=("state",),
    ),
    Series(
        name="night_started_timestamp_seconds",
        kind="gauge",
        unit="seconds since 1970",
        description="Beginning of the last night",
    ),
    Series(
        name="night_finished_timestamp_seconds",
        kind="gauge",
        unit="seconds since 1970",
        description="End of the last night, however it ended",
    ),
    Series(
        name="gate_since_timestamp_seconds",
        kind="gauge",
        unit="seconds since 1970",
        description="When the gate in force was put in force",
    ),
    Series(
        name="night_coverage",
        kind="gauge",
        unit="share",
        description="Photographs that pass: tonight's by the gate before, all by the gate in force",
        labels=("photographs",),
    ),
    Series(
        name="night_drifted",
        kind="gauge",
        unit="comparisons",
        description="Methods and rates that drifted, in all photographs or in a stratum",
    ),
    Series(
        name="night_photographs_left",
        kind="gauge",
        unit="photographs",
        description="Listed photographs without a row when the night ended",
    ),
)
_BY_NAME = {series.name: series for series in SERIES}
_Labels = tuple[tuple[str, str], ...]


class Telemetry:
    """Counts one run, for Ray's metrics and for the text file. No method raises.

    known: puts to their values what is known before the run begins; default: the end of the last good run.
    """

    def __init__(self, output: str, known: "Callable[[Telemetry], None] | None" = None) -> None:
        self._folder = output
        self._known = known or Telemetry._set_last_good
        self._output = storage.redact(output)
        self._values: dict[tuple[str, _Labels], float] = defaultdict(float)
        self._observed: dict[tuple[str, _Labels], list[float]] = defaultdict(list)
        self._metrics: dict[str, Any] = {}
        self._broken = False

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to a counter."""
        self._values[name, self._labels(labels)] += amount
        self._tell(name, "inc", amount, labels)

    def value(self, name: str, **labels: str) -> float:
        """What a number stands at; 0 where it was never told."""
        return self._values.get((name, self._labels(labels)), 0.0)

    def set(self, name: str, value: float, **labels: str) -> None:
        """Put a gauge to a value."""
        self._values[name, self._labels(labels)] = value
        self._tell(name, "set", value, labels)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """One more value of a histogram."""
        self._observed[name, self._labels(labels)].append(value)
        self._tell(name, "observe", value, labels)

    def started(self, pending: int) -> None:
        """The session is there and so many rows wait."""
        self.set("rows_pending", pending)
        self.recall()

    def ended(self, *, good: bool) -> None:
        """The run has ended, and its record is written."""
        self.set("last_run_good", float(good))
        if good:
            self.set("last_success_timestamp_seconds", time.time())

    def recall(self, known: "Callable[[Telemetry], None] | None" = None) -> None:
        """Put to their values what is known by now; what can't be read is left out."""
        try:
            (known or self._known)(self)
        except Exception as error:
            logger.warning("metrics of what was before can't be told: %s", storage.redact(str(error)))

    def _set_last_good(self) -> None:
        if (good := runs.last_good(self._folder)) is not None:
            self.set("last_success_timestamp_seconds", good.timestamp())

    def _labels(self, labels: dict[str, str]) -> _Labels:
        return tuple(sorted({"output": self._output, **labels}.items()))

    def _tell(self, name: str, method: str, value: float, labels: dict[str, str]) -> None:
        if self._broken or (method == "inc" and value <= 0):
            return
        try:
            import ray

            # Without a session Ray would keep it for the next one.
            if ray.is_initialized():
                metric = self._metrics.get(name) or self._metrics.setdefault(name, _made(_BY_NAME[name]))
                getattr(metric, method)(value, tags={"output": self._output, **labels})
        except Exception as error:
            self._broken = True
            logger.warning("Ray takes no metrics (%s): none are exported", type(error).__name__)

    @contextmanager
    def written(self, path: str | None) -> Iterator[None]:
        """Write the text file when the block has ended, however it ended."""
        if path is not None:
            # Until this run ends well, what was good before stands.
            self.recall()
            self.set("last_run_good", 0.0)
        try:
            yield
        finally:
            self.write(path)

    def write(self, path: str | None) -> None:
        """Write the text file, where one is wanted."""
        if path is None:
            return
        try:
            storage.write_bytes(path, self.text().encode())
        except Exception as error:
            logger.warning("%s can't be written: %s", storage.redact(path), storage.redact(str(error)))

    def text(self) -> str:
        """Everything counted so far in Prometheus' text format."""
        lines = []
        for series in SERIES:
            found = [(labels, value) for (name, labels), value in sorted(self._values.items()) if name == series.name]
            observed = [(labels, values) for (name, labels), values in self._observed.items() if name == series.name]
            if not found and not observed:
                continue
            lines.append(f"# HELP {series.exported} {series.description}")
            lines.append(f"# TYPE {series.exported} {series.kind}")
            lines += [f"{series.exported}{_braces(labels)} {value:.17g}" for labels, value in found]
            for labels, values in observed:
                lines += _histogram(series, labels, values)
        return "".join(f"{line}\n" for line in lines)


def _histogram(series: Series, labels: _Labels, values: list[float]) -> list[str]:
    counts = [0] * (len(series.boundaries) + 1)
    for value in values:
        counts[bisect_left(series.boundaries, value)] += 1
    lines, below = [], 0
    for boundary, count in zip([*(f"{one:g}" for one in series.boundaries), "+Inf"], counts, strict=True):
        below += count
        lines.append(f"{series.exported}_bucket{_braces((*labels, ('le', boundary)))} {below}")
    lines.append(f"{series.exported}_sum{_braces(labels)} {sum(values):.17g}")
    lines.append(f"{series.exported}_count{_braces(labels)} {len(values)}")
    return lines


def _braces(labels: _Labels) -> str:
    def escaped(value: str) -> str:
        return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    return "{" + ",".join(f'{name}="{escaped(value)}"' for name, value in labels) + "}"


def _made(series: Series) -> Any:
    from ray.util import metrics

    kinds: dict[str, Callable[..., Any]] = {"counter": metrics.Counter, "gauge": metrics.Gauge}
    name, tags = f"qualitygate_{series.name}", ("output", *series.labels)
    if series.kind == "histogram":
        return metrics.Histogram(name, series.description, boundaries=list(series.boundaries), tag_keys=tags)
    return kinds[series.kind](name, series.description, tag_keys=tags)

"""How far a run is: a live line on a terminal, plain lines in a log."""

import sys
import time
from collections.abc import Callable
from typing import TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from qualitygate import logs
from qualitygate.report.terminal import has_command

_SECONDS_BETWEEN_LINES = 10.0


class TerminalProgress:
    """A bar with rows, rate, errors and the time left, redrawn in place."""

    def __init__(self, unit: str = "rows", console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._unit = unit
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._counts = _Counts()

    def start(self, *, total: int, done: int) -> None:
        """Show the bar, with what earlier runs have done."""
        self._counts = _Counts(total=total, done=done)
        if done:
            self.note(f"{done:,} of {total:,} {self._unit} are done already")
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("elapsed"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task = self._bar.add_task(self._unit, total=total, completed=done, rate="")
        self._bar.start()

    def advance(self, *, rows: int, errors: int = 0) -> None:
        """Move the bar."""
        self._counts.add(rows, errors)
        if self._bar:
            self._bar.update(self._task, advance=rows, rate=self._counts.rate_and_errors(self._unit))

    def note(self, message: str) -> None:
        """A line above the bar."""
        self._console.print(message, highlight=False, markup=False, soft_wrap=has_command(message))

    def stop(self) -> None:
        """Leave the bar as it is."""
        if self._bar:
            self._bar.stop()
            self._bar = None


class LogProgress:
    """A line now and then, for logs that are read later."""

    def __init__(self, unit: str = "rows", stream: TextIO | None = None) -> None:
        self._unit = unit
        self._stream = stream or sys.stderr
        self._counts = _Counts()
        self._last = time.monotonic()

    def start(self, *, total: int, done: int) -> None:
        """Say what there is to do."""
        self._counts = _Counts(total=total, done=done)
        self._last = time.monotonic()
        self.note(f"{total:,} {self._unit}, {done:,} done already, {total - done:,} to do")

    def advance(self, *, rows: int, errors: int = 0) -> None:
        """Say how far it is, when the last line is some seconds old or all is done."""
        self._counts.add(rows, errors)
        now = time.monotonic()
        if now - self._last >= _SECONDS_BETWEEN_LINES or self._counts.finished:
            self._last = now
            self.note(self._counts.so_far(self._unit))

    def note(self, message: str) -> None:
        """One line."""
        print(message, file=self._stream, flush=True)

    def stop(self) -> None:
        """Nothing to tidy up."""


class JsonProgress:
    """The lines of a log as JSON: `note`, and `progress` with its numbers."""

    def __init__(self, unit: str = "rows") -> None:
        self._unit = unit
        self._counts = _Counts()
        self._last = time.monotonic()

    def start(self, *, total: int, done: int) -> None:
        """Say what there is to do."""
        self._counts = _Counts(total=total, done=done)
        self._last = time.monotonic()
        self._tell(f"{total:,} {self._unit}, {done:,} done already, {total - done:,} to do")

    def advance(self, *, rows: int, errors: int = 0) -> None:
        """Say how far it is, when the last line is some seconds old or all is done."""
        self._counts.add(rows, errors)
        now = time.monotonic()
        if now - self._last >= _SECONDS_BETWEEN_LINES or self._counts.finished:
            self._last = now
            self._tell(self._counts.so_far(self._unit))

    def _tell(self, message: str) -> None:
        counts = self._counts
        logs.write(
            "progress",
            message,
            unit=self._unit,
            total=counts.total,
            done=counts.done + counts.new,
            errors=counts.errors,
            rate=None if counts.rate is None else round(counts.rate, 3),
        )

    def note(self, message: str) -> None:
        """One line."""
        logs.write("note", message)

    def stop(self) -> None:
        """Nothing to tidy up."""


class _Counts:
    """The rate counts from the first rows on: what came before was starting up."""

    def __init__(self, *, total: int = 0, done: int = 0) -> None:
        self.total, self.done, self.new, self.errors = total, done, 0, 0
        self._first: tuple[float, int] | None = None

    def add(self, rows: int, errors: int) -> None:
        self.new += rows
        self.errors += errors
        if self._first is None:
            self._first = (time.monotonic(), self.new)

    @property
    def finished(self) -> bool:
        return self.done + self.new >= self.total

    @property
    def rate(self) -> float | None:
        if self._first is None or self.new == self._first[1]:
            return None
        return (self.new - self._first[1]) / max(time.monotonic() - self._first[0], 1e-9)

    def so_far(self, unit: str) -> str:
        """How many of how many, the rate and the time left."""
        return f"{self.done + self.new:,} of {self.total:,} {unit}, {self.rate_and_errors(unit)}{self.time_left()}"

    def rate_and_errors(self, unit: str) -> str:
        rate = "" if self.rate is None else f"{self.rate:.1f} {unit}/s, "
        return f"{rate}{self.errors:,} error{'s' * (self.errors != 1)}"

    def time_left(self) -> str:
        """Hours, minutes and seconds after a comma; nothing before there is a rate."""
        if self.rate is None:
            return ""
        seconds = round((self.total - self.done - self.new) / self.rate)
        return f", {seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} left"


def for_stream(unit: str = "rows", stream: TextIO | None = None) -> TerminalProgress | LogProgress | JsonProgress:
    """The kind that suits where it is written: a terminal or anything else; JSON where logs are to be that."""
    if stream is None and logs.form() == logs.JSON:
        return JsonProgress(unit)
    stream = stream or sys.stderr
    if stream.isatty():
        return TerminalProgress(unit, Console(file=stream))
    return LogProgress(unit, stream)


def as_callback(bar: TerminalProgress | LogProgress | JsonProgress) -> Callable[[int, int], None]:
    """The bar as a function of (photographs done, photographs in all), as renderers report."""
    last: int | None = None

    def report(done: int, total: int) -> None:
        nonlocal last
        if last is None:
            # What the first report already counts was there before: a restart's finished files.
            bar.start(total=total, done=done)
            last = done
        bar.advance(rows=done - last)
        last = done
        if done >= total:
            bar.stop()

    return report

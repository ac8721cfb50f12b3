"""What is said in a terminal or a log: progress and summaries."""

import io
import sys

import pytest
from rich.console import Console

from qualitygate.report import progress, summary, terminal

PLACE = "s3://quality/a/rather/long/prefix/of/a/line/whose/name/goes/on/nights/2026-11-23"
COMMAND = f"candidate:   0123456789ab; by hand: qualitygate gate promote {PLACE}/gate --store {PLACE}"
PROSE = "note: " + "photographs are told from one another by their names, " * 4 + "and by nothing else"


class Terminal(io.StringIO):
    """A stream that says that somebody looks at it."""

    def isatty(self) -> bool:
        return True


def test_a_log_gets_plain_lines() -> None:
    stream = io.StringIO()
    bar = progress.for_stream("images", stream)
    bar.start(total=10, done=4)
    bar._last = 0.0
    bar.advance(rows=2, errors=1)
    # Nothing is known yet of the time left, so nothing is said of it.
    assert stream.getvalue().splitlines()[-1] == "6 of 10 images, 1 error"
    bar.advance(rows=4, errors=0)
    bar.stop()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "10 images, 4 done already, 6 to do"
    assert lines[-1].startswith("10 of 10 images,")
    assert lines[-1].endswith("images/s, 1 error, 0:00:00 left")
    assert "\x1b" not in stream.getvalue()


def test_a_terminal_gets_a_bar() -> None:
    stream = Terminal()
    report = progress.as_callback(progress.for_stream("images", stream))
    report(1, 3)
    report(3, 3)
    assert "3/3" in stream.getvalue()


def test_nothing_is_wrapped_in_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert terminal.rendered(f"{COMMAND}\n{PROSE}", PROSE) == f"{COMMAND}\n{PROSE}\n{PROSE}\n"


def test_a_terminal_folds_prose_and_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("COLUMNS", "90")
    lines = terminal.rendered(f"{PROSE}\n\n{COMMAND}").splitlines()
    assert lines[-2:] == ["", COMMAND]
    assert len(lines) > 4
    assert all(len(line) <= 90 for line in lines[:-1])
    assert " ".join(line.strip() for line in lines[:-2]) == PROSE


def test_a_command_above_the_bar_is_not_cut() -> None:
    stream = Terminal()
    bar = progress.TerminalProgress(console=Console(file=stream, width=80))
    bar.note(COMMAND)
    assert stream.getvalue() == f"{COMMAND}\n"


def test_the_summary_names_ranges_codes_and_where_the_table_is() -> None:
    stats = {
        "seconds": 2.0,
        "scored": {"rows": 3, "rows_per_second": 1.5},
        "manifest": {"rows": 3, "by_status": {"ok": 2, "error": 1}, "by_code": {"missing": 1}},
        "metrics": {"lapv": {"min": 1.0, "median": 2.5, "max": 123456.0, "states": {"ok": 2, "failed:missing": 1}}},
    }
    shown = summary.of_run(stats, "results")
    for part in ("lapv", "higher", "123,456", "1 missing", "2 ok", "results/scores"):
        assert part in shown

"""What is said in a terminal or a log: progress and summaries."""

import io

from qualitygate.report import progress, summary


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
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    report = progress.as_callback(progress.for_stream("images", stream))
    report(1, 3)
    report(3, 3)
    assert "3/3" in stream.getvalue()


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

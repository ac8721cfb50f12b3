"""The picture of best and worst, the progress lines, the terminal summary."""

import io

import numpy as np
from PIL import Image

from qualitygate.report import contact_sheet, progress, summary


def test_extremes_follow_the_direction_and_leave_out_the_unscored() -> None:
    scores = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0, "e": None}
    assert contact_sheet.extremes(scores, higher_is_better=True, count=2) == (["d", "c"], ["a", "b"])
    assert contact_sheet.extremes(scores, higher_is_better=False, count=2) == (["a", "b"], ["d", "c"])
    assert contact_sheet.extremes({"a": None}, higher_is_better=True, count=2) == ([], [])
    assert contact_sheet.extremes({"a": 1.0}, higher_is_better=True, count=2) == (["a"], ["a"])


def test_the_sheet_shows_the_photographs() -> None:
    red = np.full((300, 200, 3), (255, 0, 0), np.uint8)
    blue = np.full((40, 60, 3), (0, 0, 255), np.uint8)
    strip = contact_sheet.Strip(
        title="lapv",
        direction="higher is better",
        best=[contact_sheet.Tile(pixels=red, caption="9")],
        worst=[contact_sheet.Tile(pixels=blue, caption="1")],
    )
    sheet = np.asarray(Image.open(io.BytesIO(contact_sheet.draw([strip, strip], title="two"))).convert("RGB"))
    is_red = (sheet == (255, 0, 0)).all(axis=2)
    is_blue = (sheet == (0, 0, 255)).all(axis=2)
    assert is_red.sum() == is_blue.sum() == 2 * contact_sheet._TILE**2
    assert is_red.nonzero()[1].max() < is_blue.nonzero()[1].min()


def test_a_log_gets_plain_lines() -> None:
    stream = io.StringIO()
    bar = progress.for_stream("images", stream)
    bar.start(total=10, done=4)
    bar.advance(rows=2, errors=1)
    bar.advance(rows=4, errors=0)
    bar.stop()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "10 images, 4 done already, 6 to do"
    assert lines[-1].startswith("10 of 10 images,")
    assert "1 errors" in lines[-1]
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

"""The page's section on the nights shows what the nights' records hold: states and reasons first, then the trend."""

import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import artefacts_maker
import nights_maker as maker
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_page import Parsed, assert_asks_for_nothing

from qualitygate.config import NightlyConfig, ReportConfig, echo
from qualitygate.errors import ConfigurationError
from qualitygate.nightly import record, trend
from qualitygate.nightly.record import Check
from qualitygate.report import artefacts, night_figures, night_section, page
from qualitygate.report.artefacts import Nights

CHECK = Check(name="rejects labelled", passed=False, said="17 of them", value=17, limit=30)


def _page(tmp_path: Path, *inputs: Path) -> str:
    output = tmp_path / "report.html"
    page.write(ReportConfig(input=tuple(map(str, inputs)), output=str(output)))
    return output.read_text(encoding="utf-8")


def _text(html: str) -> str:
    """What can be read without pointing at anything."""
    html = re.sub(r"<(script|style).*?</\1>", "", html, flags=re.S)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


def _found(folder: Path) -> Nights:
    found = artefacts.read([str(folder)]).nights
    assert found is not None
    return found


def _section(folder: Path) -> dict[str, Any]:
    found = night_section.of(artefacts.read([str(folder)]))
    assert found is not None
    return found


@pytest.mark.parametrize("count", [1, 2, 30, 400])
def test_any_number_of_nights_makes_a_page(tmp_path: Path, count: int) -> None:
    html = _page(tmp_path, maker.write(tmp_path / "out", maker.history(count)))
    parsed = Parsed(html)
    assert not parsed.open
    assert_asks_for_nothing(parsed)
    assert parsed.headings() == ["tonight", "nights", "provenance"]
    ids = [attributes["id"] for _, attributes in parsed.elements if attributes.get("id")]
    assert len(ids) == len(set(ids))
    links = {attributes["href"] for tag, attributes in parsed.elements if tag == "a"}
    assert {link[1:] for link in links if link} <= set(ids)
    cells = [attributes["class"] for tag, attributes in parsed.elements if tag == "li" and attributes.get("class")]
    assert len([kind for kind in cells if kind.split()[0] == "night" and "gap" not in kind]) == min(count, 30)
    # Coverage, volume, two counts; a cut-off and a drift for each method; the states of more than the strip holds.
    assert len(parsed.figures()) == 4 + 2 * len(maker.METHODS) + (count > 30)
    for figure in parsed.figures():
        drawn = [y for trace in figure["data"] for y in trace["y"] if y is not None]
        assert drawn
        low, high = figure["layout"]["xaxis"]["range"]
        assert all(low <= x <= high for trace in figure["data"] for x in trace["x"] if x is not None)
    assert f"Night {maker.history(count)[-1].night}" in _text(html)


def test_the_newest_nights_state_and_reasons_are_read_without_pointing(tmp_path: Path) -> None:
    nights = [*maker.history(10), maker.night(12, "refused", 6, 6)]
    text = _text(_page(tmp_path, maker.write(tmp_path / "out", nights)))
    assert f"✕ refused Night 2026-01-17 : gate {maker.gate(6)} stays in force." in text
    # Above all, and again beside the other nights.
    said = maker.DRIFT[0].upper() + maker.DRIFT[1:]
    assert text.index(said) < text.index("All nights")
    assert text.count(said) == 4  # also as the check, and for the fifth night
    for night, word in zip(nights, ("▲ promoted", "● kept"), strict=False):
        assert f"{night.night} {word}" in text
    assert "2026-01-15 ◆ deadline" in text
    assert "Scores of the same photographs moved: niqe by 3.1." in text
    assert "2 days without" in text
    assert "4 rejected photographs were drawn for labelling: nights/2026-01-17/audit_sample.parquet." in text


def test_nights_that_went_wrong_in_a_row_are_counted(tmp_path: Path) -> None:
    def points(*states: str) -> list[str]:
        nights = [maker.night(number, state, 1, 1) for number, state in enumerate(states)]
        folder = maker.write(tmp_path / "-".join(states), [*nights, maker.running(len(nights), 1)], changes=[])
        return night_section.points(_found(folder))

    assert points("kept", "refused") == []
    assert points("kept", "refused", "deadline") == [
        "2 nights in a row did not end well; the last that did was 2026-01-05."
    ]
    assert points("refused", "refused", "refused") == ["3 nights in a row did not end well."]


def test_figures_draw_what_the_nights_found(tmp_path: Path) -> None:
    nights = maker.history(30)
    rows = _found(maker.write(tmp_path / "out", nights)).rows
    line = night_figures.timeline([row.night for row in rows])
    assert line.at[:8] == [0, 1, 2, 3, 4, 5, 6, 9]  # days, of which two were left out
    changes = night_figures.marks(rows, line)
    assert [mark.after for mark in changes] == [night.gate_after for night in nights if night.state == "promoted"]
    coverage = night_figures.coverage(rows, line, changes)
    assert coverage is not None
    whole, tonight, promoted = coverage.data
    expected = [night.steps.get("decide", {}).get("coverage") for night in nights]
    assert list(whole.y) == expected
    assert None in expected  # the canary's nights
    assert list(tonight.y)[4] == nights[4].steps["decide"]["coverage_tonight"]
    assert list(promoted.x) == [mark.at for mark in changes]
    assert not whole.connectgaps
    low, high = coverage.layout.yaxis.range
    assert low < min(y for y in (*whole.y, *tonight.y) if y is not None)
    assert max(y for y in (*whole.y, *tonight.y) if y is not None) < high <= 1.01
    volume = night_figures.volume(rows, line)
    assert volume is not None
    good, failed, rate, limit = volume.data
    assert (good.y[0], failed.y[0], rate.y[0]) == (398, 2, 2 / 400)
    assert {y for y in limit.y if y is not None} == {0.1}
    states = night_figures.states(rows, line)
    assert {trace.name: len(trace.x) for trace in states.data} == {
        word: sum(night.state == state for night in nights)
        for state, word in (
            ("promoted", "promoted"),
            ("kept", "kept"),
            ("refused", "refused"),
            ("deadline", "deadline"),
        )
    }


def test_a_cut_off_stands_until_the_gate_changes_also_through_nights_that_recorded_none(tmp_path: Path) -> None:
    nights = [
        maker.night(0, "promoted", None, 1),
        maker.stopped(1, 1),
        maker.night(2, "promoted", 1, 2),
        maker.running(3, 2),
    ]
    rows = _found(maker.write(tmp_path / "out", nights)).rows
    figure = night_figures.cutoffs("lapm", "LAPM", rows, night_figures.timeline([row.night for row in rows]))
    assert figure is not None
    band, line, signs = figure.data
    assert list(line.x) == [0, 2, None, 2, 3.5, None]
    assert list(line.y) == [11, 11, None, 12, 12, None]
    assert list(band.y)[:5] == [10, 10, 12, 12, 10]
    assert (list(signs.x), list(signs.y)) == ([0, 2], [11, 12])
    assert figure.layout.meta == {"kind": "small"}


def test_drift_stands_beside_its_limit_and_what_drifted_has_another_sign(tmp_path: Path) -> None:
    tiny = {"method": "lapm", "psi": 0.0, "psi_limit": 0.31, "word": "stable"}
    unknown = {"method": "lapm", "psi": None, "psi_limit": 0.25, "word": "too few"}
    nights = [
        maker.night(0, "refused", 1, 1),
        maker.night(1, "kept", 1, 1, steps={"decide": {"methods": [tiny]}}),
        maker.night(2, "kept", 1, 1, steps={"decide": {"methods": [unknown]}}),
    ]
    rows = _found(maker.write(tmp_path / "out", nights)).rows
    line = night_figures.timeline([row.night for row in rows])
    figure = night_figures.drift("lapm", "LAPM", rows, line)
    assert figure is not None
    psi, limit = figure.data
    assert list(psi.y) == [1.84, 0.001, None]
    assert list(psi.customdata) == [1.84, 0.0, None]
    assert list(psi.marker.symbol)[:2] == ["x", "circle"]
    assert [y for y in limit.y if y is not None] == [0.25, 0.25, 0.31, 0.31, 0.25, 0.25]
    assert night_figures.drift("musiq", "MUSIQ", rows, line) is None


def test_a_change_by_hand_between_two_nights_is_marked_apart(tmp_path: Path) -> None:
    nights = [maker.night(0, "promoted", None, 1), maker.running(1, 1), maker.night(2, "promoted", 4, 5)]
    found = _found(maker.write(tmp_path / "out", nights))
    line = night_figures.timeline([row.night for row in found.rows])
    marks = night_figures.marks(found.rows, line)
    assert [(mark.at, mark.by_hand) for mark in marks] == [(0, False), (1.5, True), (2, False)]
    figure = night_figures.coverage(found.rows, line, marks)
    assert figure is not None
    assert {trace.name for trace in figure.data} >= {"new gate, by the night", "by hand"}
    assert len(figure.layout.shapes) == 3


def test_who_put_the_gate_in_force_is_said_and_what_came_after_the_last_night(tmp_path: Path) -> None:
    nights = maker.history(7)
    back = maker.change(
        3, maker.gate(1), maker.gate(6), maker.moment(8), action="rollback", reason="rejects new bottles", held=True
    )
    folder = maker.write(tmp_path / "out", nights, changes=[*maker.changes_of(nights), back])
    text = _text(_page(tmp_path, folder))
    assert f"Since then gate {maker.gate(1)} was put in force by quality@node-7: rejects new bottles." in text
    assert "Promotions are held" in text
    assert f"gate in force {maker.gate(1)} since 2026-01-13 02:00 UTC, by quality@node-7" in text
    assert "rollback, held" in text
    assert "night 2026-01-10" in text


def test_nights_without_a_gate_have_drift_and_no_cut_offs(tmp_path: Path) -> None:
    folder = maker.write(tmp_path / "out", [maker.night(0, "kept", None, None), maker.night(1, "kept", None, None)])
    section = _section(folder)
    assert section["coverage"] is None
    assert section["cutoffs"] == []
    assert len(section["drift"]) == len(maker.METHODS)
    text = _text(_page(tmp_path, folder))
    assert "no gate is in force, and nothing speaks against it" in text
    assert "gate in force none" in text


def test_a_night_that_found_nothing_has_no_figures_but_says_why(tmp_path: Path) -> None:
    folder = maker.write(tmp_path / "out", [maker.stopped(0, None), maker.running(1, None)])
    section = _section(folder)
    drawn = [section[name] for name in ("coverage", "volume", "counts", "cutoffs", "drift", "states")]
    assert not any(drawn)
    text = _text(_page(tmp_path, folder))
    assert "○ not ended Night 2026-01-06 : this night has not ended." in text
    assert "or it was killed" in text


def test_nights_that_are_no_dates_stand_one_after_the_other() -> None:
    assert night_figures.timeline(["b", "a", "2026-01-05"]).at == [0, 1, 2]
    assert night_figures.timeline(["2026-01-05", "2026-01-04"]).at == [0, 1]
    line = night_figures.timeline([f"<b>{number}" for number in range(12)])
    assert line.axis()["ticktext"][0] == "&lt;b&gt;11"
    assert len(line.axis()["tickvals"]) <= 5
    assert line.axis()["tickvals"][0] == 11


def test_hostile_reasons_and_methods_are_text(tmp_path: Path) -> None:
    steps = {"decide": {"methods": [{"method": maker.HOSTILE, "cutoff": 1.0, "psi": 0.2, "psi_limit": 0.25}]}}
    folder = maker.write(
        tmp_path / "out", [maker.night(0, "refused", 1, 1, reasons=(maker.HOSTILE,), steps=steps)], changes=[]
    )
    html = _page(tmp_path, folder)
    assert "<script>alert" not in html
    assert "user:pass" not in html
    assert "X-Amz-Signature" not in html
    titles = [figure["layout"].get("title", {}).get("text", "") for figure in Parsed(html).figures()]
    assert not any("<" in title for title in titles)


def test_a_gate_that_is_not_in_force_is_said_before_its_lines(tmp_path: Path) -> None:
    folder = maker.write(tmp_path / "out", maker.history(5))
    candidate = artefacts_maker.calibration(tmp_path / "gate")
    gate_id = json.loads((candidate / "gate.json").read_text())["id"]
    html = _page(tmp_path, folder, candidate)
    assert Parsed(html).headings()[:3] == ["tonight", "nights", "verdict"]
    assert html.count("<h1") == 1
    text = _text(html)
    force = f"gate {maker.gate(1)} is."
    refused = "which is NOT in force, as the night was refused"
    assert text.count(f"The lines and the verdict below are of gate {gate_id}, {refused}; {force}") == 1
    changes = [maker.change(1, gate_id, None, maker.moment(9))]
    same = maker.write(tmp_path / "same", maker.history(5), changes=changes)
    assert "not in force" not in _text(_page(tmp_path, same, candidate))


def test_the_configuration_is_shown_without_what_may_be_a_password(tmp_path: Path) -> None:
    html = _page(tmp_path, maker.write(tmp_path / "out", maker.history(3)))
    text = _text(html)
    assert "Configuration of nightly" in text
    assert "max_psi: 0.25" in text
    assert "notify_webhook: https://hooks.example.com/***" in text
    assert "/usr/bin/tell" in text
    assert maker.SECRET not in html


def test_the_echo_itself_has_none_either() -> None:
    config = NightlyConfig(
        input="in",
        output="out",
        notify_webhook=f"https://hooks.example.com/services/{maker.SECRET}?key={maker.SECRET}",
        notify_command=("tell", maker.SECRET),
    )
    assert maker.SECRET not in echo(config)
    assert "hooks.example.com/***" in echo(config)


def test_the_table_has_every_column_that_the_page_reads(tmp_path: Path) -> None:
    maker.write(tmp_path, maker.history(2))
    (row, _) = _found(tmp_path).rows
    table = pq.read_table(tmp_path / "nights.parquet")
    assert set(type(row).model_fields) == set(table.schema.names) == set(trend.SCHEMA.names)
    assert (row.error_limit, row.labelled_needed, row.rejects_needed) == (0.1, 200, 30)
    assert (row.scored, row.failed, row.error_rate) == (400, 2, 0.005)
    assert row.labelled_rejects == 40
    # Without a gate before, what the new one rejects is all there is.
    first = maker.night(0, "promoted", None, 1)
    steps = {**first.steps, "calibrate": {"labelled": 300, "kinds": None}}
    maker.write(tmp_path, [replace(first, steps=steps, checks=(CHECK,))])
    assert _found(tmp_path).rows[0].labelled_rejects == 17
    assert set(record.STATES) == set(night_figures.STATES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": ["gone"]}, "state: Input should be"),
        ({"night": ["../../etc"]}, "night: String should match"),
        ({"coverage": [1.5]}, "coverage: Input should be less"),
    ],
)
def test_a_table_with_other_values_is_refused(tmp_path: Path, change: dict[str, list[Any]], message: str) -> None:
    maker.write(tmp_path, maker.history(1))
    path = tmp_path / "nights.parquet"
    table = pq.read_table(path)
    for name, values in change.items():
        column = pa.array(values)
        table = table.set_column(table.schema.get_field_index(name), name, column)
    pq.write_table(table, path)
    with pytest.raises(ConfigurationError, match=rf"nights.parquet': {message}.*the next night makes it again"):
        artefacts.read([str(tmp_path)])


def test_a_night_whose_record_is_gone_has_no_checks_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    folder = maker.write(tmp_path / "out", maker.history(2))
    path = folder / "nights" / maker.name(1) / "night.json"
    path.write_text("{}")
    with pytest.raises(ConfigurationError, match=r"night.json' is None version None.*run 'qualitygate nightly'"):
        artefacts.read([str(folder)])
    path.unlink()
    assert _found(folder).last is None
    assert "The night's record isn't there." in _text(_page(tmp_path, folder))


def test_a_table_without_a_night_is_no_section(tmp_path: Path) -> None:
    maker.write(tmp_path, [])
    assert artefacts.read([str(tmp_path)]).nights is None
    assert Parsed(_page(tmp_path, tmp_path)).headings() == ["verdict", "provenance"]

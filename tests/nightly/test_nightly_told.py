"""What the pages of real nights tell: a candidate that isn't in force, photographs to look at, commands that work."""

import copy
import re
import shlex
import shutil
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest
import without_ray
from nights_here import METRIC, Nights

from qualitygate import cli
from qualitygate.calibration import gate
from qualitygate.config import ReportConfig
from qualitygate.errors import ConfigurationError
from qualitygate.nightly import canary
from qualitygate.nightly.record import Night
from qualitygate.report import artefacts, next_steps
from qualitygate.report import page as report

FIRST = 200
ROW = re.compile(r'<img src="data:image/webp;base64,[^"]+" alt="([^"]+)">')


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nights]:
    made = Nights(tmp_path_factory.mktemp("told"))
    made.add("n1", FIRST)
    with pytest.MonkeyPatch.context() as patch:
        without_ray.install(patch)
        made.run("n1", thumbnails=True)
        yield made


@pytest.fixture
def nights(first: Nights, tmp_path: Path) -> Iterator[Nights]:
    shutil.copytree(first.output, tmp_path / "out")
    made = Nights(first.root, output=str(tmp_path / "out"))
    made.feed.labels = list(first.feed.labels)
    yield made
    for folder in (first.root / "in").iterdir():
        if folder.name != "n1":
            shutil.rmtree(folder)


def _page(nights: Nights, night: str) -> str:
    return Path(nights.output, "nights", night, "report.html").read_text()


def _text(html: str) -> str:
    html = re.sub(r"<(script|style).*?</\1>", "", html, flags=re.S)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


def _strip(html: str, title: str) -> str:
    """One card of the night's photographs, by its heading."""
    found = re.search(rf"<h3>{title}.*?</ul>", html, re.S)
    assert found is not None, title
    return found[0]


def _commands(html: str) -> list[str]:
    return [unescape(found) for found in re.findall(r'<code class="command">(.*?)</code>', html)]


def _call(command: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(shlex.split(command)[1:])
    return int(ended.value.code or 0)


def test_a_refused_candidate_is_not_told_as_if_it_were_in_force(nights: Nights) -> None:
    nights.add("n2", 60, extra_blur=2.5)
    night: Night = nights.run("n2", thumbnails=True).night
    candidate, force = night.steps["calibrate"]["gate"], night.gate_after
    assert candidate != force
    html = _page(nights, "n2")
    text = _text(html)
    top, section = text[: text.index("Photographs of night n2")], text[text.index("The candidate, which is not in") :]
    assert f"of gate {candidate}, which is NOT in force, as the night was refused; gate {force} is." in top
    assert f"NOT in force: gate {force} is. Tonight's photographs are unlike the reference's" in section
    assert "✓ Works" not in text
    assert "not in force Reject a photograph" in section
    assert section.count("of the candidate, not in force") == 4
    # What can be done, and nothing that would be of no use.
    assert _commands(html) == ["qualitygate nightly --config nightly.yaml --night n2 --accept-drift"]
    assert f"{nights.output}/nights/n2/_config.yaml" in top
    assert "run 'qualitygate predict'" not in text
    assert "60 of 260 scored photographs have no prediction and are left out; those with a label are used" in text


def test_the_photographs_that_drifted_are_shown(nights: Nights) -> None:
    nights.add("n2", 60, extra_blur=2.5)
    night = nights.run("n2", thumbnails=True).night
    (change,) = [one for one in night.steps["drift"]["changes"] if (one["what"], one["word"]) == (METRIC, "drifted")][
        :1
    ]
    strip = _strip(_page(nights, "n2"), "Typical of how LAPM drifted")
    assert f"The median was {change['before']:.4g} in the reference and is {change['after']:.4g} tonight" in strip
    shown = ROW.findall(strip)
    assert len(shown) == 6
    assert all(name.startswith("n2/") for name in shown)
    scores = [float(value) for value in re.findall(r"LAPM ([\d.]+) low", strip)]
    assert len(scores) == 6
    # Numbers on the page have three digits.
    assert max(scores) <= change["after"] + 0.005


def test_what_failed_and_what_was_rejected_is_shown_with_its_state(nights: Nights) -> None:
    nights.add("n2", 60, corrupt=0.5)
    nights.run("n2", thumbnails=True)
    html = _page(nights, "n2")
    failed = _strip(html, "Without any score")
    assert failed.count("failed: truncated") == 6
    assert ROW.findall(failed) == []
    rejected, chance = _strip(html, "Rejected"), _strip(html, "By chance")
    assert len(ROW.findall(rejected)) == rejected.count("</span> rejected") == 6
    shown = ROW.findall(chance)
    assert len(shown) == 6
    assert not set(shown) & set(ROW.findall(rejected))
    # A promoted night's are shown too; the first night's by the gate that it made.
    assert len(ROW.findall(_strip(_page(nights, "n1"), "Rejected"))) == 6
    assert "The gate in force" in _text(_page(nights, "n1"))


def test_without_thumbnails_ids_and_states_are_told(nights: Nights) -> None:
    nights.add("n2", 60, extra_blur=2.5)
    nights.run("n2")
    html = _page(nights, "n2")
    assert ROW.findall(html) == []
    assert len(re.findall(r"n2/p\d{4}\.jpg", _text(_strip(html, "Typical of how LAPM drifted")))) == 6
    assert "left out of this page on request; these are their ids" in _text(html)


def test_a_canary_that_moved_shows_old_and_new_scores(nights: Nights) -> None:
    known = canary.read(nights.output)
    assert known is not None
    place = known.column_names.index(METRIC)
    before = {row["image_id"]: 1.01 * row[METRIC] for row in known.to_pylist()}
    canary.write(nights.output, known.set_column(place, METRIC, [list(before.values())]))
    nights.run("n2", thumbnails=True)
    html = _page(nights, "n2")
    strip = _strip(html, "Of the canary, where LAPM moved most")
    shown = ROW.findall(strip)
    # The difference is one in a hundred of the score, so the sharpest moved most.
    assert shown == sorted(before, key=lambda name: -before[name])[:6]
    was, now = re.findall(r"LAPM was ([\d.]+)", strip), re.findall(r">is ([\d.]+)", strip)
    assert [float(value) for value in was] == pytest.approx([before[name] for name in shown], rel=1e-5)
    assert [float(value) for value in now] == pytest.approx([before[name] / 1.01 for name in shown], rel=1e-5)
    assert _commands(html) == ["qualitygate nightly --config nightly.yaml --night n2 --again"]


def test_the_commands_for_a_candidate_do_what_they_say(nights: Nights, capsys: pytest.CaptureFixture[str]) -> None:
    nights.add("n2", 60)
    night = nights.run("n2", max_coverage_change=1e-9).night
    assert (night.state, nights.failed("n2")) == ("refused", ["coverage change"])
    compare, promote = _commands(_page(nights, "n2"))
    assert _call(compare) == 0
    assert f"gate {night.gate_after} -> gate {night.steps['calibrate']['gate']}" in capsys.readouterr().out
    assert _call(promote) == 0
    assert gate.load(nights.output).id == night.steps["calibrate"]["gate"]
    # From then on the page of the same night says that it is in force.
    found = artefacts.read([nights.output, f"{nights.output}/nights/n2/gate"])
    assert next_steps.candidate(found) is None


def test_a_report_of_a_night_is_small(nights: Nights) -> None:
    """Two megabytes are plotly's; photographs shrink for the rest."""
    nights.add("n2", 60)
    nights.run("n2", thumbnails=True)
    assert Path(nights.output, "nights", "n2", "report.html").stat().st_size < 4_000_000


def test_the_page_of_an_older_night_that_is_done_again_is_its_own(nights: Nights) -> None:
    nights.add("n2", 60)
    assert nights.run("n2", min_labelled=10_000).night.state == "refused"
    nights.add("n3", 60)
    nights.run("n3")
    again = nights.run("n2", again=True).night
    assert again.state in ("promoted", "kept")
    page = _page(nights, "n2")
    assert "This is the page of night n2. 1 later night has begun since; the last, n3" in page
    assert "Photographs of night n2" in page
    # So is one that is made again, and that of the last night is still to be had.
    for name, shown in (("n2", "night n2"), (None, "night n3")):
        made = f"{nights.output}/{name}.html"
        report.write(ReportConfig(input=(nights.output,), output=made, thumbnails=False, night=name))
        assert f"Photographs of {shown}" in Path(made).read_text()


def test_a_page_of_no_night_is_refused(nights: Nights, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"there is no night 'n9'.*the last are n1"):
        report.write(ReportConfig(input=(nights.output,), output=str(tmp_path / "a.html"), night="n9"))
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "_stats.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="needs a nightly output"):
        report.write(ReportConfig(input=(str(tmp_path / "scores"),), output=str(tmp_path / "a.html"), night="n1"))


def test_a_gate_by_hand_votes_by_what_is_scored_or_is_refused(
    nights: Nights, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    in_force = gate.load(nights.output)
    content = copy.deepcopy(dict(in_force.content))
    content["methods"]["lapv"] = dict(content["methods"][METRIC])
    content["fingerprints"]["lapv"] = "f"
    content["id"] = gate.identity(content)
    (tmp_path / gate.FILE).write_bytes(gate.dump(content))
    assert _call(f"qualitygate gate promote {tmp_path} --store {nights.output}") == 2
    said = capsys.readouterr().err
    assert f"votes by lapv, which '{nights.output}' doesn't score" in said
    assert gate.load(nights.output).id == in_force.id

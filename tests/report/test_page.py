"""The report: one file that asks for nothing, whatever stood in the inputs; every part of it may be missing."""

import base64
import gzip
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import artefacts_maker as maker
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from plotly.offline import get_plotlyjs
from pydantic import ValidationError

from qualitygate.config import ReportConfig
from qualitygate.errors import ConfigurationError
from qualitygate.report import page, thumbnails
from qualitygate.tables import scores

VOID = {"meta", "link", "img", "input", "br", "hr", "line", "path", "rect"}
FETCHING = {"src", "href", "srcset", "poster", "data", "action", "formaction", "background", "xlink:href", "ping"}
PAGE = "report.html"


class Parsed(HTMLParser):
    """What a browser would see: elements with attributes, texts, and the contents of scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.styles: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            attributes, content = self.scripts[-1]
            self.scripts[-1] = (attributes, content + data)
        elif self.open and self.open[-1] == "style":
            self.styles.append(data)
        else:
            self.text += data

    def album(self) -> Any:
        """What the page's script knows of the photographs."""
        return json.loads(next(content for attributes, content in self.scripts if attributes.get("id") == "album"))

    def figures(self) -> list[Any]:
        """The figures' JSON."""
        return [json.loads(content) for attributes, content in self.scripts if attributes.get("class") == "figure"]

    def headings(self) -> list[str]:
        """The sections that are there."""
        return [str(attributes["id"]) for tag, attributes in self.elements if tag == "section"]


def write(folder: Path, *inputs: Path, **settings: Any) -> tuple[bytes, Parsed]:
    config = ReportConfig(input=tuple(map(str, inputs)), output=str(folder / PAGE), **settings)
    written = page.write(config)
    assert written == folder / PAGE
    data = written.read_bytes()
    return data, Parsed(data.decode("utf-8"))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Everything that a page can tell of, with photographs."""
    folder = tmp_path_factory.mktemp("inputs")
    qualities = np.random.default_rng(5).normal(0, 1, 120)
    paths = maker.photographs(folder / "photographs", qualities)
    return {
        "calibrate": maker.calibration(
            folder / "gate", uris=paths, qualities=qualities, warnings=["mind the <camera>"]
        ),
        "robustness": maker.robustness(folder / "robustness"),
        "gate": maker.gate_run(folder / "decisions"),
        "score": maker.scoring(folder / "scores"),
        "predict": maker.prediction(folder / "predictions"),
        "train-baseline": maker.training(folder / "model"),
        "study": maker.study(folder / "study"),
    }


@pytest.fixture(scope="module")
def whole(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Parsed]:
    return write(tmp_path_factory.mktemp("page"), *inputs.values())


def assert_asks_for_nothing(parsed: Parsed) -> None:
    for tag, attributes in parsed.elements:
        for name, value in attributes.items():
            if name in FETCHING:
                assert (value or "").startswith(("#", "data:")), (tag, name, value)
            assert not name.startswith("on"), (tag, name)
            assert "url(" not in (value or "") or name not in {"style", "fill", "clip-path"}, (tag, name, value)
    for style in parsed.styles:
        assert "url(" not in style
        assert "@import" not in style
    own = next(content for attributes, content in reversed(parsed.scripts) if not attributes)
    assert not re.search(
        r"fetch\(|XMLHttpRequest|WebSocket|EventSource|sendBeacon|https?://|import\(|innerHTML|eval\(", own
    )


# ---- the whole page ----------------------------------------------------------------------------------------


def test_the_whole_page_is_one_bounded_file_with_every_section(whole: tuple[bytes, Parsed]) -> None:
    data, parsed = whole
    assert len(data) < 20_000_000
    assert data.decode("utf-8").rstrip().endswith("</html>")
    assert not parsed.open
    assert parsed.headings() == [
        "verdict",
        "methods",
        "photographs",
        "coverage",
        "robustness",
        "study",
        "agreement",
        "runs",
        "provenance",
    ]
    links = {attributes["href"] for tag, attributes in parsed.elements if tag == "a"}
    ids = {attributes["id"] for _, attributes in parsed.elements if "id" in attributes}
    assert {link[1:] for link in links if link} <= ids


def test_nothing_in_the_page_can_ask_for_anything(whole: tuple[bytes, Parsed]) -> None:
    assert_asks_for_nothing(whole[1])


def test_only_the_pages_own_scripts_may_run(whole: tuple[bytes, Parsed]) -> None:
    _, parsed = whole
    policy = next(
        str(attributes["content"])
        for tag, attributes in parsed.elements
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe-eval" not in policy
    allowed = re.search(r"script-src ([^;]+)", policy)
    assert allowed is not None
    (own,) = [content for attributes, content in parsed.scripts if not attributes]
    # Plotly's comes packed, and is run as what it is unpacked.
    packed = next(content for attributes, content in parsed.scripts if attributes.get("id") == "plotly")
    plotly = gzip.decompress(base64.b64decode(packed)).decode()
    assert plotly == get_plotlyjs()
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in (plotly, own)]
    assert allowed[1].split() == [f"'sha256-{digest}'" for digest in hashes]
    types = {attributes.get("type") for attributes, _ in parsed.scripts}
    assert types == {None, "application/json", "application/gzip"}


def test_the_first_words_say_where_the_line_is_and_what_it_buys(
    whole: tuple[bytes, Parsed], inputs: dict[str, Path]
) -> None:
    text = " ".join(whole[1].text.split())
    gate = json.loads((inputs["calibrate"] / "gate.json").read_text())
    held_out = json.loads((inputs["calibrate"] / "calibration.json").read_text())["held_out"]
    start = text[text.index("Where the line is") :]
    for name, method in gate["methods"].items():
        low, high = method["interval"]
        assert f"{name.upper()} holds reject below {method['cutoff']:.3g} [{low:.3g}, {high:.3g}]" in start
    assert "Reject a photograph when at least 2 of 3 methods put it on the low side of their line." in text
    assert f"passed {100 * held_out['accuracy_passed']['mean']:.1f} %" in start
    assert "random rejection: a clear gain" in start
    assert "against the classifier's top-1 confidence: " in start
    assert "Mind the <camera>." in text


def test_every_table_has_named_columns_or_rows_and_every_picture_a_text(whole: tuple[bytes, Parsed]) -> None:
    headers = [attributes for tag, attributes in whole[1].elements if tag == "th"]
    assert headers
    assert all(attributes.get("scope") in ("col", "row") for attributes in headers)
    for tag, attributes in whole[1].elements:
        if tag == "img":
            assert "alt" in attributes
        if attributes.get("role") == "img":
            assert attributes.get("aria-label")


def test_the_same_inputs_give_the_same_bytes_in_any_order_of_rows(
    inputs: dict[str, Path], whole: tuple[bytes, Parsed], tmp_path: Path
) -> None:
    copy = tmp_path / "gate"
    shutil.copytree(inputs["calibrate"], copy)
    table = pq.read_table(copy / "calibration.parquet")
    pq.write_table(table.take(np.random.default_rng(1).permutation(table.num_rows)), copy / "calibration.parquet")
    others = [folder for verb, folder in inputs.items() if verb != "calibrate"]
    data, _ = write(tmp_path, copy, *others)
    assert data == whole[0]


# ---- photographs -------------------------------------------------------------------------------------------


def test_each_photograph_that_a_figure_shows_is_there(whole: tuple[bytes, Parsed]) -> None:
    _, parsed = whole
    album = parsed.album()
    pictures = {
        attributes["data-row"] for tag, attributes in parsed.elements if tag == "img" and "data-row" in attributes
    }
    assert set(album["photographs"]) == set(album["whole"]) | pictures
    assert len(album["photographs"]) == 120
    assert not album["problems"]
    for uri in album["whole"].values():
        assert uri.startswith("data:image/webp;base64,")


def test_without_thumbnails_no_photograph_is_read_or_shown(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("a photograph was read")

    monkeypatch.setattr(thumbnails, "read", fail)
    monkeypatch.setattr(thumbnails, "montage_uri", fail)
    data, parsed = write(tmp_path, *inputs.values(), thumbnails=False)
    assert "data:image/" not in data.decode("utf-8")
    assert "img" not in {tag for tag, _ in parsed.elements}
    assert "Photographs were left out of this page on request" in parsed.text
    assert len(parsed.album()["photographs"]) == 120


def test_a_photograph_that_cant_be_read_is_a_reason_not_an_end(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0 no photograph")
    good = maker.photographs(tmp_path / "photographs", np.zeros(1))[0]
    uris = [good, str(broken), str(tmp_path / "missing.jpg"), None, "s3://key:secret@bucket/a.jpg"] * 4
    folder = maker.calibration(tmp_path / "gate", rows=20, uris=uris)
    data, parsed = write(tmp_path, folder)
    reasons = list(parsed.album()["problems"].values())
    assert len(reasons) == 16
    assert {reason.partition(":")[0] for reason in reasons} == {"truncated", "missing", "denied"}
    assert b"secret" not in data


def test_a_store_that_gives_nothing_isnt_asked_for_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    original = thumbnails.storage.fetch

    def counted(uri: str | None, **settings: Any) -> Any:
        asked.append(uri or "")
        return original(uri, **settings)

    monkeypatch.setattr(thumbnails.storage, "fetch", counted)
    rows = 200
    folder = maker.calibration(tmp_path / "gate", rows=rows, uris=[f"{tmp_path}/{row}.jpg" for row in range(rows)])
    _, parsed = write(tmp_path, folder)
    assert len([uri for uri in asked if uri.endswith(".jpg")]) == 48
    reasons = parsed.album()["problems"]
    assert len(reasons) == rows
    assert sum(reason.startswith("not tried") for reason in reasons.values()) == rows - 48


def test_photographs_shrink_until_the_page_fits(
    inputs: dict[str, Path], whole: tuple[bytes, Parsed], tmp_path: Path
) -> None:
    bare, _ = write(tmp_path, inputs["calibrate"], thumbnails=False)
    full, _ = write(tmp_path, inputs["calibrate"])
    limit = (len(bare) + 0.3 * (len(full) - len(bare))) / 1e6
    fitted, parsed = write(tmp_path, inputs["calibrate"], max_megabytes=limit)
    assert len(bare) < len(fitted) <= limit * 1e6
    assert len(parsed.album()["photographs"]) == 120
    with pytest.raises(
        ConfigurationError, match=r"max_megabytes is 1\.5, but the page takes [2-3]\.\d without a single"
    ):
        write(tmp_path, inputs["calibrate"], max_megabytes=1.5)


def test_photographs_shrink_for_a_size_that_is_aimed_at_but_are_not_left_out(
    inputs: dict[str, Path], whole: tuple[bytes, Parsed], tmp_path: Path
) -> None:
    bare, _ = write(tmp_path, inputs["calibrate"], thumbnails=False)
    full, _ = write(tmp_path, inputs["calibrate"])
    aim = (len(bare) + 0.5 * (len(full) - len(bare))) / 1e6
    fitted, _ = write(tmp_path, inputs["calibrate"], aim_megabytes=aim)
    assert len(bare) < len(fitted) <= aim * 1e6
    # Nothing can be as small as this: what is shown is small, and shown.
    least, parsed = write(tmp_path, inputs["calibrate"], aim_megabytes=1.5)
    assert len(bare) < len(least) <= len(fitted)
    assert [tag for tag, _ in parsed.elements].count("img") > 10


def test_photographs_and_boxes_are_looked_up_in_the_scores(tmp_path: Path) -> None:
    paths = maker.photographs(tmp_path / "photographs", np.zeros(40), side=128)
    folder = maker.calibration(tmp_path / "gate", rows=40, ids=[f"p{row}" for row in range(40)])
    run = maker.scoring(tmp_path / "scores")
    score_table(run, [f"p{row}" for row in range(40)], paths, box=[10, 20, 64, 32])
    _, parsed = write(tmp_path, folder, run)
    album = parsed.album()
    assert not album["problems"]
    first = next(iter(album["whole"].values()))
    assert picture_size(first) == (64, 32)
    assert len([figure for figure in parsed.figures() if figure["layout"].get("meta") == {"kind": "small"}]) == 2


def score_table(folder: Path, ids: list[str], uris: list[str], box: list[int] | None = None) -> None:
    """A score table as a run leaves it, of two metrics."""
    from deltalake import write_deltalake

    schema = scores.schema(["lapm", "wavs"])
    rows = [
        {
            "image_id": image_id,
            "uri": uri,
            "box": box,
            "status": "ok",
            "attempts": 1,
            "run_id": "r",
            "scored_at": 0,
            "lapm": 1.0 + number,
            "wavs": 2.0 + number,
        }
        for number, (image_id, uri) in enumerate(zip(ids, uris, strict=True))
    ]
    write_deltalake(str(folder / "scores"), pa.Table.from_pylist(rows, schema=schema))


def picture_size(uri: str) -> tuple[int, int]:
    from io import BytesIO

    from PIL import Image

    return Image.open(BytesIO(base64.b64decode(uri.partition(",")[2]))).size


# ---- what users may have called things ---------------------------------------------------------------------


def test_hostile_names_stay_text_everywhere(tmp_path: Path) -> None:
    ids = [f"{row:03} {maker.HOSTILE}" for row in range(60)]
    folder = maker.calibration(
        tmp_path / "gate", rows=60, ids=ids, labels=("</script><b>a", "$x$ & %{y}"), warnings=[maker.HOSTILE]
    )
    data, parsed = write(tmp_path, folder, maker.scoring(tmp_path / "run"), title=maker.HOSTILE)
    assert_asks_for_nothing(parsed)
    assert not parsed.open
    assert not [tag for tag, attributes in parsed.elements if tag == "b" and not attributes and "onerror" in attributes]
    assert "<script>alert(1)</script>" in parsed.text  # as text: the parser took it for nothing else
    assert all(tag != "img" or attributes.get("src") != "x" for tag, attributes in parsed.elements)
    assert len([script for script in parsed.scripts if not script[0].get("type")]) == 1
    shown = parsed.album()["photographs"]["0"]
    assert shown["image_id"] == f"000 {maker.HOSTILE}".replace("\u2028", "�")
    assert "\u2028" not in data.decode("utf-8")
    labels = [text for figure in parsed.figures() for text in figure["layout"]["yaxis"].get("ticktext", ())]
    assert "class &lt;/script&gt;&lt;b&gt;a" in labels
    assert "class ＄x＄ &amp; %{y}" in labels


def test_secrets_of_uris_and_settings_are_not_shown(tmp_path: Path) -> None:
    uris = ["https://me:hunter2@host/p.jpg?sig=abc123"] * 30
    folder = maker.calibration(tmp_path / "gate", rows=30, uris=uris, ids=[f"p{row}" for row in range(30)])
    data, parsed = write(tmp_path, folder)
    for secret in (b"hunter2", b"abc123", b"key:secret"):
        assert secret not in data
    assert parsed.album()["photographs"]["0"]["uri"] == "https://***@host/p.jpg?***"


# ---- what the gate may be ----------------------------------------------------------------------------------


def test_an_undefined_method_says_why_and_has_no_line(tmp_path: Path) -> None:
    reason = "its AUROC of .52 is not above .5"
    folder = maker.calibration(tmp_path / "gate", undefined={"musiq": reason})
    _, parsed = write(tmp_path, folder)
    text = " ".join(parsed.text.split())
    assert "Undefined, so it has no vote. Its AUROC of .52 is not above .5." in text
    assert "MUSIQ undefined no line" in text
    assert "when both methods put it on the low side" in text
    scatters = [figure["layout"] for figure in parsed.figures() if figure["layout"].get("meta") == {"kind": "scatter"}]
    assert [len(layout.get("shapes", ())) for layout in scatters] == [3, 3, 0]
    assert "musiq" not in re.findall(r"Either side of (\w+)", text.lower())


def test_a_gate_that_cant_decide_says_so_first(tmp_path: Path) -> None:
    folder = maker.calibration(tmp_path / "gate", undefined={"wavs": "constant", "musiq": "constant"})
    _, parsed = write(tmp_path, folder)
    text = " ".join(parsed.text.split())
    assert "No line yet Rejecting takes 2 low votes, and only 1 of 3 methods has a line that holds." in text
    assert "coverage" not in parsed.headings()


def test_a_fallback_is_named_and_dashed(tmp_path: Path) -> None:
    folder = maker.calibration(tmp_path / "gate")
    change(folder / "gate.json", lambda gate: gate["methods"]["lapm"].update(status="fallback", reason="no crossing"))
    _, parsed = write(tmp_path, folder)
    assert "A fallback: it votes only with --allow-fallback. No crossing." in " ".join(parsed.text.split())
    first = next(figure for figure in parsed.figures() if figure["layout"].get("meta") == {"kind": "scatter"})
    assert [shape["line"].get("dash") for shape in first["layout"]["shapes"]] == [None, None, "dash"]


@pytest.mark.parametrize("lower", [False, True])
def test_the_axis_runs_from_worse_to_better_whatever_the_sign(tmp_path: Path, lower: bool) -> None:
    name = "brisque" if lower else "musiq"
    folder = maker.calibration(tmp_path / "gate", methods=(name, "wavs"))
    _, parsed = write(tmp_path, folder)
    text = " ".join(parsed.text.split())
    assert ("reject above" if lower else "reject below") in text
    figure = parsed.figures()[0]["layout"]
    start, end = figure["xaxis"]["range"]
    assert (start > end) == lower
    tinted = figure["shapes"][0]
    assert tinted["x0"] == start
    assert tinted["x1"] == json.loads((folder / "gate.json").read_text())["methods"][name]["cutoff"]
    logarithmic = parsed.figures()[1]["layout"]
    assert logarithmic["xaxis"]["type"] == "log"
    assert 10 ** logarithmic["xaxis"]["range"][0] == pytest.approx(logarithmic["shapes"][0]["x0"])


def test_untrained_scores_are_marked_wherever_they_show(tmp_path: Path) -> None:
    folders = (
        maker.calibration(tmp_path / "gate", untrained=("musiq",)),
        maker.robustness(tmp_path / "robustness", untrained=("musiq",)),
    )
    _, parsed = write(tmp_path, *folders)
    text = " ".join(parsed.text.split())
    assert "✕ Not for use" in text
    assert "Untrained networks made the scores of MUSIQ" in text
    assert text.count("MUSIQ untrained") >= 8
    heat = [figure for figure in parsed.figures() if figure["layout"].get("meta") == {"kind": "heat"}]
    assert len(heat) == 2
    assert all("MUSIQ ⚠ untrained" in figure["data"][0]["y"] for figure in heat)
    assert parsed.album()["methods"][2]["untrained"] is True


def test_decisions_of_another_gate_and_external_scores_are_named(tmp_path: Path) -> None:
    folders = (
        maker.calibration(tmp_path / "gate"),
        maker.gate_run(tmp_path / "decisions", gate_id="feedfeedfeedfeed", external=["lapm"]),
    )
    text = " ".join(write(tmp_path, *folders)[1].text.split())
    assert "The decisions were made by gate feedfeedfeedfeed, but the lines shown are of gate 0000000000000000." in text
    assert "scores that came from elsewhere, without fingerprints: LAPM." in text


def test_scores_of_another_definition_are_named(tmp_path: Path) -> None:
    folders = (maker.calibration(tmp_path / "gate"), maker.scoring(tmp_path / "run"))
    said = "The scoring run shown computes WAVS by another definition than the gate was made from."
    assert said not in " ".join(write(tmp_path, *folders)[1].text.split())
    change(folders[1] / "_stats.json", lambda stats: stats["fingerprints"]["wavs"].update(whole="ff"))
    assert said in " ".join(write(tmp_path, *folders)[1].text.split())


def test_versions_stand_once_and_name_the_verbs_where_they_differ(tmp_path: Path) -> None:
    folders = (maker.calibration(tmp_path / "gate"), maker.scoring(tmp_path / "run"))
    change(folders[1] / "_stats.json", lambda stats: stats["versions"].update(scipy="1.16.0"))
    text = " ".join(write(tmp_path, *folders)[1].text.split())
    assert "Versions qualitygate0.1.0 scipy1.17.1 (calibrate), 1.16.0 (score)" in text


# ---- any subset --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "sections"),
    [
        ("calibrate", ["verdict", "methods", "photographs", "coverage", "agreement", "provenance"]),
        ("robustness", ["verdict", "robustness", "provenance"]),
        ("gate", ["verdict", "runs", "provenance"]),
        ("score", ["verdict", "runs", "provenance"]),
        ("predict", ["verdict", "runs", "provenance"]),
        ("train-baseline", ["verdict", "runs", "provenance"]),
    ],
)
def test_a_page_of_one_verb_leaves_the_other_sections_out(
    inputs: dict[str, Path], tmp_path: Path, verb: str, sections: list[str]
) -> None:
    _, parsed = write(tmp_path, inputs[verb])
    assert parsed.headings() == sections
    assert "None" not in parsed.text
    assert "nan" not in parsed.text.split()


def test_table_1_stands_beside_the_papers_with_the_best_in_bold(inputs: dict[str, Path], tmp_path: Path) -> None:
    data, parsed = write(tmp_path, inputs["robustness"])
    record = json.loads((inputs["robustness"] / "robustness.json").read_text())
    text = data.decode("utf-8")
    for row in record["table1"]["rows"]:
        for name, value in row["ours"].items():
            assert (f"<strong>{value:.3f}</strong>" in text) or name not in row["best"]
            assert f"the paper's: </span>{row['paper'][name]:.3f}" in text
    assert "Sample s1, cropped, rotated and blurred" in parsed.text
    assert "LAPM and WAVS rank photographs nearly alike" in " ".join(parsed.text.split())


def test_a_calibration_without_held_out_numbers_says_that_they_are_not_there(tmp_path: Path) -> None:
    _, parsed = write(tmp_path, maker.calibration(tmp_path / "gate", held_out=False))
    assert "coverage" not in parsed.headings()
    assert "What it buys on unseen groups was not measured." in parsed.text


# ---- refusals ----------------------------------------------------------------------------------------------


def change(path: Path, edit: Callable[[Any], Any]) -> None:
    """Edit a JSON file in place."""
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def refused(tmp_path: Path, *inputs: Path, output: str = "out/report.html") -> str:
    with pytest.raises(ConfigurationError) as caught:
        page.write(ReportConfig(input=tuple(map(str, inputs)), output=str(tmp_path / output)))
    assert not (tmp_path / output).is_file()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_an_output_that_no_browser_opens_is_refused(tmp_path: Path) -> None:
    folder = maker.gate_run(tmp_path / "decisions")
    assert "must end in .html" in refused(tmp_path, folder, output="report.pdf")
    (tmp_path / "folder.html").mkdir()
    assert "is a folder; name a file" in refused(tmp_path, folder, output="folder.html")


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = maker.gate_run(tmp_path / "decisions")
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr(page, "render", lambda *_: pytest.fail("drawn"))
    assert "can't be written to (File exists)" in refused(tmp_path, folder, output="file/report.html")


def test_a_folder_with_nothing_known_is_named_with_what_was_meant(tmp_path: Path) -> None:
    maker.gate_run(tmp_path / "demo" / "decisions")
    maker.scoring(tmp_path / "demo" / "results")
    message = refused(tmp_path, tmp_path / "demo")
    assert "holds none of gate.json, robustness.json" in message
    assert message.endswith(f"did you mean '{tmp_path}/demo/decisions' and '{tmp_path}/demo/results'?")
    assert "doesn't exist" in refused(tmp_path, tmp_path / "nowhere")
    assert "is no folder" in refused(tmp_path, tmp_path / "demo" / "results" / "_stats.json")


def test_two_calibrations_are_named(tmp_path: Path) -> None:
    one, other = maker.calibration(tmp_path / "one"), maker.calibration(tmp_path / "other", seed=1)
    message = refused(tmp_path, one, other)
    assert f"'{one}' and '{other}' are both outputs of 'calibrate', and one page tells of one" in message


def test_the_same_folder_twice_is_one(tmp_path: Path) -> None:
    folder = maker.gate_run(tmp_path / "decisions")
    write(tmp_path, folder, folder)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "gate.json").unlink(), "calibration.json but no gate.json: that run didn't finish"),
        (lambda folder: (folder / "calibration.json").unlink(), "calibration.json' isn't there, so that run didn't"),
        (lambda folder: (folder / "calibration.parquet").unlink(), "calibration.parquet' isn't there"),
        (lambda folder: (folder / "gate.json").write_text("{"), "gate.json' is no JSON"),
        (lambda folder: (folder / "gate.json").write_text("[]"), "gate.json' must hold an object"),
        (
            lambda folder: change(folder / "gate.json", lambda gate: gate.update(version=2)),
            "version 2, and this release",
        ),
        (
            lambda folder: change(folder / "gate.json", lambda gate: gate["methods"]["lapm"].update(cutoff="low")),
            "gate.json': methods.lapm.cutoff: Input should be a valid number",
        ),
        (
            lambda folder: change(folder / "gate.json", lambda gate: gate.update(id="ff")),
            "belongs to gate 0000000000000000",
        ),
        (
            lambda folder: change(folder / "gate.json", lambda gate: gate.update(sampling={"column": "chance"})),
            "gate.json': sampling.probability: Field required",
        ),
        (lambda folder: (folder / "calibration.parquet").write_bytes(b"x"), "calibration.parquet' is no Parquet"),
        (
            lambda folder: pq.write_table(
                pq.read_table(folder / "calibration.parquet").drop_columns(["wavs"]), folder / "calibration.parquet"
            ),
            "calibration.parquet' lacks the column 'wavs'",
        ),
    ],
)
def test_a_damaged_calibration_is_refused_in_one_line(tmp_path: Path, damage: Callable[[Path], Any], said: str) -> None:
    folder = maker.calibration(tmp_path / "gate", rows=40)
    damage(folder)
    message = refused(tmp_path, folder)
    assert said in message
    assert message.endswith(("again", "finish; run it again"))


def test_weights_are_said_where_there_are_any(tmp_path: Path) -> None:
    folder = maker.calibration(tmp_path / "gate", rows=40)
    assert "stands for" not in write(tmp_path, folder, thumbnails=False)[1].text
    classes = {"correct": {"n": 30, "effective": 21.3}, "wrong": {"n": 10, "effective": 4.6}}
    sampling = {"column": "chance <b>", "probability": [0.02, 1.0], "effective": 25.2, "classes": classes}
    for name in ("gate.json", "calibration.json"):
        change(folder / name, lambda record: record.update(sampling=sampling))
    text = write(tmp_path, folder, thumbnails=False)[1].text
    assert (
        "Each photograph stands for 1 / chance <b> (0.02 to 1): together they tell as much as 25 of equal weight, "
        "30 correct predictions for 21 and 10 wrong predictions for 5; all shares, densities and cut-offs are weighted."
    ) in text


def test_a_report_of_nothing_is_no_report() -> None:
    with pytest.raises(ValidationError):
        ReportConfig(input=(), output=PAGE)

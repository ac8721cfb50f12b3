"""The page's section on a training study shows what the study's files hold, and nothing that they don't."""

import json
import re
from pathlib import Path
from typing import Any

import artefacts_maker as maker
import numpy as np
import pytest

from qualitygate.config import ReportConfig
from qualitygate.errors import ConfigurationError
from qualitygate.report import artefacts, page, study_figures, study_section


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return maker.study(tmp_path_factory.mktemp("studied") / "study")


@pytest.fixture(scope="module")
def found(folder: Path) -> artefacts.Artefacts:
    return artefacts.read([str(folder)])


def _runs(found: artefacts.Artefacts, kind: str) -> list[Any]:
    assert found.study is not None
    return [row for row in found.study.runs if row["kind"] == kind]


def test_a_study_alone_makes_a_page_with_each_verdict(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "report.html"
    page.write(ReportConfig(input=(str(folder),), output=str(output)))
    text = re.sub(r"<script.*?</script>", "", output.read_text(), flags=re.S)
    text = " ".join(re.sub(r"<[^>]+>", " ", text).split())
    verdicts = json.loads((folder / "verdicts.json").read_text())
    for verdict in verdicts["verdicts"]:
        assert verdict["text"].replace("'", "&#39;") in text
    for word in ("supported", "not testable here"):
        assert text.count(word) >= sum(one["verdict"] == word for one in verdicts["verdicts"]) > 0
    assert "Does it pay to train on what passes? Yes, on this data." in text
    assert re.search(r"of all qualities: ResNet18 \+\d+\.\d points \[", text)
    assert "1 failed" in text
    assert "1 photograph can&#39;t be read &amp; is left out." in text
    assert all(caveat.replace("'", "&#39;") in text for caveat in verdicts["caveats"])


def test_the_tables_are_the_studys_and_the_papers(found: artefacts.Artefacts) -> None:
    section = study_section.of(found)
    assert section is not None
    (_, second), (_, third) = section["tables"]
    assert [line.trained_on for line in second] == ["High-quality", "All-quality"]
    accuracy = [row["accuracy"] for row in _runs(found, "high")]
    ours, theirs = second[0].values[0]
    assert ours == f"{100 * np.mean(accuracy):.1f} ± {100 * np.std(accuracy, ddof=1):.1f}"
    assert theirs == "86.6 ± 2.0"  # the paper's Table 2, ResNet18
    assert [(line.trained_on, line.control) for line in third] == [
        ("Varying quality, 0 % removed", False),
        ("Varying quality, 30 % removed", False),
        ("control: removed at random, 30 % removed", True),
    ]


def test_the_figures_draw_the_runs(found: artefacts.Artefacts) -> None:
    assert found.study is not None
    curves = study_figures.learning_curves(found.study.runs)
    assert curves is not None
    mean = next(trace for trace in curves.data if trace.name == "high-quality" and trace.yaxis == "y")
    assert mean.y == pytest.approx(np.mean([row["eval_loss"] for row in _runs(found, "high")], axis=0), rel=1e-6)
    levels = study_figures.levels(found.study.runs)
    assert levels is not None
    drawn = next(trace for trace in levels.data if trace.name == "lowest quality removed" and trace.yaxis == "y")
    expected = [np.mean([row["accuracy"] for row in _runs(found, "varying") if row["removed"] == at]) for at in (0, 30)]
    assert drawn.y == pytest.approx(expected)
    assert all(above >= 0 for above in drawn.error_y.array)
    differences = study_figures.differences(found.study.verdicts.verdicts, {"table2-high": "all-quality"})
    assert differences is not None
    part = next(one for one in found.study.verdicts.verdicts if one.topic == "table2-high").parts[0]
    assert differences.data[1].x[0] == pytest.approx(100 * (part.difference.mean or 0))
    assert differences.data[2].x[0] == pytest.approx(1.5)  # the paper's ResNet18: 86.6 - 85.1


def test_what_a_study_lacks_has_no_figure(tmp_path: Path) -> None:
    found = artefacts.read([str(maker.study(tmp_path / "study", removed=(0,)))])
    assert found.study is not None
    assert study_figures.levels(found.study.runs) is None
    assert study_figures.learning_curves([]) is None
    assert study_figures.differences([], {"table2-high": "all-quality"}) is None


@pytest.mark.parametrize("name", ["verdicts.json", "runs.parquet"])
def test_a_study_that_isnt_whole_is_refused(tmp_path: Path, name: str) -> None:
    folder = maker.study(tmp_path / "study")
    (folder / name).unlink()
    with pytest.raises(ConfigurationError, match=rf"{name}' .*run 'qualitygate study'"):
        artefacts.read([str(folder)])

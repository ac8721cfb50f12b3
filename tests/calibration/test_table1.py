"""Table 1: the paper's numbers, which values are best, and the page that people read."""

import re
from typing import Any

from qualitygate.calibration import choice, table1

NUISANCES = ("crop_corner", "crop_centre", "rotation", "rotation_second", "blur_manifest")


def _measured(value: float | None, *, trained: bool = True) -> dict[str, Any]:
    reading = {"per_sample_mean": value, "single": None if value is None else -value, "of_average": value}
    return {
        "trained": trained,
        "correlations": {nuisance: {"pcc": reading, "srcc": reading} for nuisance in NUISANCES},
        "effects": {
            nuisance: {"ratio": value, "interval": None if value is None else [value / 2, value * 2]}
            for nuisance in NUISANCES[:-1]
        },
        "blur_order": {"srcc": value, "interval": None},
        "interpolation": {"rotation": -0.17, "rotation_second": None},
    }


def _document(metrics: dict[str, dict[str, Any]], sample: str = "s1", note: str = "few") -> dict[str, Any]:
    document: dict[str, Any] = {
        "samples": 3,
        "blur": "manifest",
        "metrics": metrics,
        "table1": {"rows": table1.rows(metrics, "blur_manifest")},
        "redundancy": [],
        "single_sample": sample,
        "notes": [note],
    }
    chosen = choice.choose("auto", document)
    document["choice"] = {
        "preset": chosen.preset,
        "methods": chosen.methods,
        "rule": chosen.rule,
        "margins": chosen.margins,
        "note": chosen.note,
    }
    return document


def test_the_papers_numbers() -> None:
    assert table1.PAPER["cropping"]["SRCC"]["lapm"] == 0.152
    assert table1.PAPER["rotating"]["PCC"]["wavs"] == 0.050
    assert table1.PAPER["blurring"]["SRCC"]["hyperiqa"] == 0.194
    for rows in table1.PAPER.values():
        assert list(rows) == ["PCC", "SRCC"]
        assert all(len(values) == 8 and all(0 <= value <= 1 for value in values.values()) for values in rows.values())
    # What the paper's text says of it, 4.1.1 to 4.1.3.
    assert table1.best(table1.PAPER["rotating"]["SRCC"], highest=False) == ["wavs"]
    assert table1.best(table1.PAPER["blurring"]["PCC"], highest=True) == ["musiq"]
    assert table1.best(table1.PAPER["blurring"]["SRCC"], highest=True) == ["lapv"]


def test_the_best_is_low_for_nuisances_high_for_blur_and_never_untrained() -> None:
    metrics = {
        "lapv": _measured(0.5001),
        "lapm": _measured(0.4999),
        "wavs": _measured(0.7),
        "niqe": _measured(None),
        "musiq": _measured(0.0, trained=False),
        "maniqa": _measured(1.0, trained=False),
    }
    rows = table1.rows(metrics, "blur_manifest")
    assert [(row["nuisance"], row["statistic"]) for row in rows] == [
        (nuisance, statistic) for nuisance in ("cropping", "rotating", "blurring") for statistic in ("PCC", "SRCC")
    ]
    for row in rows:
        assert row["best"] == (["wavs"] if row["nuisance"] == "blurring" else ["lapv", "lapm"])
        assert row["ours"]["niqe"] is None
        assert row["paper"] == table1.PAPER[row["nuisance"]][row["statistic"]]
    assert table1.best({"a": None}, highest=True) == []


def test_the_page_shows_ours_beside_the_papers_with_the_best_bold() -> None:
    metrics = {"lapm": _measured(0.25), "mine": _measured(0.5), "musiq": _measured(0.1, trained=False)}
    text = table1.markdown(_document(metrics))
    assert "| blurring ↑ | SRCC | here | – | 0.250 | – | – | – | 0.100 | – | – | **0.500** |" in text
    assert "|  |  | paper | **1.000** | 0.996 | 0.973 | 0.965 | 0.165 | 0.885 | 0.626 | 0.194 | – |" in text
    assert "| rotating | SRCC | one photograph | 0.250 |" in text
    assert "| cropping about the centre | **0.250** [0.12, 0.50] |" in text
    assert "| interpolation alone | -17.0 % |" in text
    assert "MUSIQ (UNTRAINED)" in text
    assert "mean nothing: MUSIQ" in text
    assert table1.CITATION in text
    # Every line of a table has as many cells as its head.
    for block in re.findall(r"(?:^\|.*\n?)+", text, flags=re.MULTILINE):
        assert len({line.replace("\\|", "").count("|") for line in block.strip().splitlines()}) == 1


def test_names_from_a_manifest_cannot_break_the_page() -> None:
    text = table1.markdown(_document({"lapm": _measured(0.25)}, sample="a`|\n# b", note="x|y\n<script>"))
    assert "`a'| # b`" in text
    assert "- x\\|y &lt;script>" in text

"""The report's parts: which photographs it shows, what it says of a gate, how numbers read, colours that show."""

from pathlib import Path
from typing import Any

import artefacts_maker as maker
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qualitygate.report import artefacts, figures, palette, records, selection, verdict, wording

# ---- selection ---------------------------------------------------------------------------------------------


def read(folder: Path) -> artefacts.Calibration:
    found = artefacts.read([str(folder)]).calibration
    assert found is not None
    return found


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> artefacts.Calibration:
    return read(maker.calibration(tmp_path_factory.mktemp("gate"), rows=300, methods=("lapm", "brisque", "musiq")))


@settings(max_examples=30, deadline=None)
@given(sample=st.integers(50, 400), seed=st.integers(0, 5))
def test_wrong_predictions_are_kept_up_to_half_of_the_sample(
    calibration: artefacts.Calibration, sample: int, seed: int
) -> None:
    rows = selection.photographs(calibration)
    chosen = selection.choose(rows, calibration, sample=sample, seed=seed)
    again = selection.choose(rows, calibration, sample=sample, seed=seed)
    assert chosen.scatter.tolist() == again.scatter.tolist() == sorted(set(chosen.scatter.tolist()))
    assert chosen.scatter.size == min(sample, 300)
    assert chosen.wrong_shown == (~rows.correct[chosen.scatter]).sum()
    assert chosen.right_shown == rows.correct[chosen.scatter].sum()
    assert (chosen.wrong, chosen.right) == ((~rows.correct).sum(), rows.correct.sum())
    assert chosen.wrong_shown >= min(chosen.wrong, sample // 2)


def test_those_beside_the_line_are_the_nearest_on_either_side(calibration: artefacts.Calibration) -> None:
    rows = selection.photographs(calibration)
    chosen = selection.choose(rows, calibration, sample=100, seed=0)
    for name, method in calibration.gate.methods.items():
        beside, raw = chosen.beside[name], rows.scores[name]
        assert method.cutoff is not None
        low = raw > method.cutoff if method.direction == "lower" else raw < method.cutoff
        for side, members in ((beside.low, low), (beside.passing, ~low)):
            distance = np.abs(raw - method.cutoff)
            if method.logarithmic:
                distance = np.abs(np.log(raw) - np.log(method.cutoff))
            nearest = np.flatnonzero(members)[np.argsort(distance[members], kind="stable")][:6]
            assert side == nearest.tolist()


def test_the_extremes_are_low_in_both_and_high_in_both(calibration: artefacts.Calibration) -> None:
    rows = selection.photographs(calibration)
    chosen = selection.choose(rows, calibration, sample=100, seed=0)
    quality = selection.mean_rank(
        [selection.goodness(rows.scores[name], method) for name, method in calibration.gate.methods.items()]
    )
    confidence = selection.mean_rank([rows.confidence])
    assert max(quality[chosen.low_low]) < 0.25
    assert max(confidence[chosen.low_low]) < 0.25
    assert min(quality[chosen.high_high]) > 0.75
    assert min(confidence[chosen.high_high]) > 0.75


def test_ranks_share_ties_and_leave_out_what_is_missing() -> None:
    ranks = selection.mean_rank([np.array([1.0, 2.0, 2.0, np.nan]), np.array([np.nan, 5.0, 7.0, np.nan])])
    assert ranks[:3].tolist() == [0.0, 0.375, 0.875]
    assert np.isnan(ranks[3])


def test_a_photograph_without_a_score_is_beside_no_line(tmp_path: Path) -> None:
    folder = maker.calibration(tmp_path / "gate", rows=60, methods=("lapm", "wavs"))
    table = pq.read_table(folder / "calibration.parquet")
    holed = [None if row % 3 == 0 else value for row, value in enumerate(table["lapm"].to_pylist())]
    table = table.set_column(table.column_names.index("lapm"), "lapm", pa.array(holed, pa.float64()))
    pq.write_table(table, folder / "calibration.parquet")
    found = read(folder)
    beside = selection.choose(selection.photographs(found), found, sample=50, seed=0).beside["lapm"]
    assert len(beside.low) == len(beside.passing) == 6
    assert all(row % 3 for row in (*beside.low, *beside.passing))


# ---- the verdict -------------------------------------------------------------------------------------------


def judged(folder: Path, gain: tuple[float, float] | None = (0.01, 0.03), **settings: Any) -> verdict.Verdict:
    untrained = frozenset(settings.get("untrained", ()))
    found = read(maker.calibration(folder, rows=80, **settings))
    held_out = None
    if gain is not None:
        mean = sum(gain) / 2
        against = {"name": "random", "difference": {"mean": mean, "interval": list(gain)}}
        held_out = records.HeldOut.model_validate({"comparison": [against]})
    record = found.record.model_copy(update={"held_out": held_out})
    gate = found.gate.model_copy(update={"held_out": None})
    return verdict.judge(artefacts.Calibration(gate=gate, record=record, table=found.table), untrained)


@pytest.mark.parametrize(
    ("gain", "word", "tone"),
    [
        ((0.01, 0.03), "Works", "good"),
        ((-0.01, 0.03), "No clear gain", "caution"),
        ((-0.03, -0.01), "Does harm", "bad"),
        (None, "Not proven", "caution"),
    ],
)
def test_the_verdict_claims_what_the_interval_shows(
    tmp_path: Path, gain: tuple[float, float] | None, word: str, tone: str
) -> None:
    found = judged(tmp_path / "gate", gain)
    assert (found.word, found.tone) == (word, tone)


def test_a_gate_of_untrained_networks_is_for_nothing_however_well_it_does(tmp_path: Path) -> None:
    found = judged(tmp_path / "gate", untrained=("musiq",))
    assert (found.word, found.tone) == ("Not for use", "bad")
    assert "MUSIQ is untrained" in str(found.points[0])


def test_reasons_are_text_in_the_verdict(tmp_path: Path) -> None:
    found = judged(tmp_path / "gate", undefined={"musiq": maker.HOSTILE})
    assert "<script>" not in str(found.points[0])
    assert "&lt;script&gt;" in str(found.points[0])


def test_the_sketch_has_the_worse_side_on_the_left(tmp_path: Path) -> None:
    found = read(maker.calibration(tmp_path / "gate", methods=("brisque", "lapm")))
    for method in found.gate.methods.values():
        drawn = verdict.sketch(method)
        assert drawn is not None
        assert drawn.cutoff is not None
        assert drawn.band is not None
        assert 0 < drawn.band[0] < drawn.cutoff < drawn.band[1] < verdict.WIDTH
        tops = {
            name: np.array([[float(part) for part in pair.split(",")] for pair in path[1:-1].split("L")[1:-1]])
            for name, path in (("right", drawn.right), ("wrong", drawn.wrong))
        }
        peaks = {name: points[np.argmin(points[:, 1]), 0] for name, points in tops.items()}
        assert peaks["wrong"] < drawn.cutoff < peaks["right"]


# ---- words and numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0"),
        (0.20649, "0.206"),
        (34.44, "34.4"),
        (1234.5, "1,230"),
        (532_584.3, "533,000"),
        (-0.5, "−0.5"),
        (0.00001847, "1.85×10⁻⁵"),
        (2.5e9, "2.50×10⁹"),
    ],
)
def test_numbers_read_well(value: float | None, text: str) -> None:
    assert wording.number(value) == text


def test_differences_carry_their_sign_unless_they_are_nothing() -> None:
    assert wording.points(0.0234) == "+2.3 points"
    assert wording.points(-0.0234) == "−2.3 points"
    assert wording.points(-0.0001) == "0.0 points"
    assert wording.interval((-0.012, 0.0002), "points") == "[−1.2, 0.0]"


@given(st.text(max_size=60))
def test_a_users_text_is_no_markup_in_a_figure(text: str) -> None:
    shown = wording.plotted(text)
    assert "<" not in shown
    assert ">" not in shown
    assert "$" not in shown
    assert all(part.split(";")[0] in ("amp", "lt", "gt") for part in shown.split("&")[1:])


@given(st.text(max_size=60))
def test_json_in_a_script_ends_no_script(text: str) -> None:
    import json

    written = figures.inert(json.dumps({"text": text}, ensure_ascii=False))
    assert not set(written) & set("<>&\u2028\u2029")
    assert json.loads(written) == {"text": text}


def test_a_sentence_begins_and_ends_as_one() -> None:
    assert wording.sentence("only 2 of 5 qualify") == "Only 2 of 5 qualify."
    assert wording.sentence("Why?") == "Why?"
    assert wording.sentence("") == ""


# ---- colours -----------------------------------------------------------------------------------------------

TEXTS = ("ink", "muted", "accent", "right", "wrong", "good", "caution", "bad")
BADGES = {"good": "good-soft", "caution": "caution-soft", "bad": "bad-soft", "muted": "neutral-soft"}
LINES = ("line-gate", "line-random", "line-top1", "line-best", "line-logistic")


@pytest.mark.parametrize("scheme", [palette.LIGHT, palette.DARK], ids=["light", "dark"])
def test_every_text_can_be_read_in_both_schemes(scheme: dict[str, str]) -> None:
    for text in TEXTS:
        for ground in ("card", "page"):
            assert palette.contrast(scheme[text], scheme[ground]) >= 4.5, (text, ground)
    for text, ground in BADGES.items():
        assert palette.contrast(scheme[text], scheme[ground]) >= 4.5, (text, ground)
    for ground in ("accent-soft", "caution-soft", "neutral-soft", "bad-soft"):
        assert palette.contrast(scheme["ink"], scheme[ground]) >= 4.5, ground
    for step in (role for role in scheme if role.startswith("scale-")):
        assert palette.contrast(scheme["ink"], scheme[step]) >= 4.5, step
    for line in LINES:
        assert palette.contrast(scheme[line], scheme["card"]) >= 3, line


def test_each_light_colour_has_one_dark_one() -> None:
    assert set(palette.LIGHT) == set(palette.DARK)
    assert len(palette.exchange()) == len(palette.LIGHT)


def test_contrast_is_as_the_standard_defines_it() -> None:
    assert palette.contrast("#000000", "#ffffff") == pytest.approx(21)
    assert palette.contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)

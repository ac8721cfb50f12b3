"""Which methods vote: the rule of `auto` case by case, the presets, and one line for whatever can't be."""

import itertools
from typing import Any

import pytest

from qualitygate.calibration import choice
from qualitygate.errors import ConfigurationError

CLASSICAL = ("lapv", "lapm", "wavs", "brisque", "niqe")


def _measured(
    effect: float | None = 0.1,
    order: float | None = 1.0,
    *,
    upper: float | None = None,
    lower: float | None = None,
    trained: bool = True,
    one_sample: bool = False,
) -> dict[str, Any]:
    upper, lower = (effect if upper is None else upper), (order if lower is None else lower)
    effects = {
        nuisance: {
            "ratio": effect if nuisance == "rotation" else None if effect is None else effect / 2,
            "interval": None if one_sample or upper is None else [0.0, upper if nuisance == "rotation" else upper / 2],
        }
        for nuisance in ("crop_corner", "crop_centre", "rotation")
    }
    # Only reported: it must not decide.
    effects["rotation_second"] = {"ratio": 9.0, "interval": [8.0, 10.0]}
    interval = None if one_sample or lower is None else [lower, 1.0]
    return {"trained": trained, "effects": effects, "blur_order": {"srcc": order, "interval": interval}}


def _document(metrics: dict[str, dict[str, Any]], **spearman: float) -> dict[str, Any]:
    """Pairs as lapm_wavs=.99; all others are unrelated."""
    return {
        "format": "qualitygate-robustness",
        "version": 1,
        "metrics": metrics,
        "redundancy": [
            {"a": a, "b": b, "spearman": spearman.get(f"{a}_{b}", spearman.get(f"{b}_{a}", 0.1))}
            for a, b in itertools.combinations(metrics, 2)
        ],
    }


def test_auto_takes_what_follows_blur_and_nothing_else_moves() -> None:
    document = _document(
        {
            "steady": _measured(0.1),
            "good": _measured(0.2),
            "fair": _measured(0.3, 0.9),
            "moved": _measured(0.6),
            "perhaps moved": _measured(0.4, upper=0.55),
            "deaf": _measured(0.1, 0.4),
            "perhaps deaf": _measured(0.1, 0.9, lower=0.7),
            "wrong way": _measured(0.1, -1.0),
            "untrained": _measured(0.01, trained=False),
            "flat": _measured(None, None),
        }
    )
    found = choice.choose("auto", document)
    assert found.preset == "auto"
    assert found.methods == ("steady", "good", "fair")
    assert found.note is None
    why = {name: margin["why"] for name, margin in found.margins.items()}
    assert {name for name, margin in found.margins.items() if margin["in"]} == set(found.methods)
    assert "turning may move it by 0.60" in why["moved"]
    assert "0.55" in why["perhaps moved"]
    assert "as low as 0.70, below 0.8" in why["perhaps deaf"]
    assert "-1.00" in why["wrong way"]
    assert "untrained" in why["untrained"]
    assert "undefined" in why["flat"]


def test_the_limits_themselves() -> None:
    at_the_limits = _document({name: _measured(0.49999, 0.8) for name in "abc"})
    assert choice.choose("auto", at_the_limits).methods == ("a", "b", "c")
    assert choice.choose("auto", _document({"a": _measured(0.5)})).methods == ()
    assert choice.choose("auto", _document({"a": _measured(0.1, 0.79999)})).methods == ()


def test_a_redundant_method_gives_way_to_the_steadier_one() -> None:
    metrics = {"lapm": _measured(0.2), "wavs": _measured(0.1), "niqe": _measured(0.3), "musiq": _measured(0.4)}
    for sign in (1, -1):
        found = choice.choose("auto", _document(metrics, lapm_wavs=sign * 0.99))
        assert found.methods == ("wavs", "niqe", "musiq")
        assert found.margins["lapm"]["why"] == "qualifies, but is redundant with wavs"
        assert found.note is None
    assert choice.choose("auto", _document(metrics, lapm_wavs=0.95)).methods == ("wavs", "lapm", "niqe", "musiq")


def test_redundant_methods_stay_where_fewer_than_three_would_remain_and_that_is_said() -> None:
    metrics = {"lapm": _measured(0.2), "wavs": _measured(0.1), "lapv": _measured(0.3), "niqe": _measured(0.3, 0.2)}
    found = choice.choose("auto", _document(metrics, lapm_wavs=0.993, lapv_wavs=0.96))
    assert found.methods == ("wavs", "lapm", "lapv")
    assert found.note is not None
    assert "WAVS, LAPM and LAPV rank photographs nearly alike (Spearman 0.960 to 0.993): their 3 votes" in found.note
    assert "kept" in found.margins["lapm"]["why"]


def test_too_few_that_qualify_are_said_and_none_is_no_choice() -> None:
    found = choice.choose("auto", _document({"lapm": _measured(0.2), "niqe": _measured(0.2, 0.1)}))
    assert found.methods == ("lapm",)
    assert found.note == "only 1 of 2 methods qualify"
    nothing = _document({"niqe": _measured(0.2, 0.1)})
    assert choice.choose("auto", nothing).methods == ()
    with pytest.raises(ConfigurationError, match=r"--methods auto: no trained method qualifies; name the methods"):
        choice.resolve("auto", nothing, ["niqe"])


def test_with_one_sample_the_values_themselves_decide() -> None:
    document = _document({name: _measured(0.4, 0.85, one_sample=True) for name in "abc"})
    assert choice.choose("auto", document).methods == ("a", "b", "c")


def test_the_order_of_metrics_does_not_matter() -> None:
    metrics = {name: _measured(effect) for name, effect in zip("abcd", (0.3, 0.1, 0.2, 0.1), strict=True)}
    expected = choice.choose("auto", _document(metrics, a_b=0.99))
    shuffled = choice.choose("auto", _document(dict(reversed(metrics.items())), a_b=0.99))
    assert shuffled.methods == expected.methods == ("b", "d", "c")


@pytest.mark.parametrize(
    ("lapv", "brisque", "niqe", "correlated", "third"),
    [
        (_measured(0.1), _measured(0.3), _measured(0.2), {}, "lapv"),
        (_measured(0.1), _measured(0.3), _measured(0.2), {"lapv_lapm": 0.98}, "niqe"),
        (_measured(0.1), _measured(0.7), _measured(0.2, 0.3), {"lapv_lapm": 0.98}, "lapv"),
        (_measured(0.6), _measured(0.1, 0.3), _measured(0.1, 0.2), {}, "lapv"),
        (_measured(0.1, trained=True), _measured(None, None), _measured(None, None), {}, "lapv"),
    ],
    ids=["least effect", "not redundant", "redundant before moved", "follows blur first", "undefined last"],
)
def test_classical_is_lapm_wavs_and_the_best_of_the_rest(
    lapv: dict[str, Any], brisque: dict[str, Any], niqe: dict[str, Any], correlated: dict[str, float], third: str
) -> None:
    metrics = {"lapv": lapv, "lapm": _measured(0.9), "wavs": _measured(0.2), "brisque": brisque, "niqe": niqe}
    found = choice.resolve("classical", _document(metrics, **correlated), CLASSICAL)
    assert (found.preset, found.methods) == ("classical", ("lapm", "wavs", third))
    assert found.note is not None
    assert found.note.startswith("not the paper's methods")
    assert "LAPM would not have qualified: turning may move it by 0.90" in found.note


def test_the_paper_and_lists_need_no_robustness() -> None:
    paper = choice.resolve("paper", None, ["musiq", "lapm", "wavs", "niqe"])
    assert (paper.preset, paper.methods, paper.margins) == ("paper", ("lapm", "wavs", "musiq"), {})
    named = choice.resolve(" lapm, mine ,lapm", None, ["mine", "lapm"])
    assert (named.preset, named.methods) == ("list", ("lapm", "mine"))
    measured = choice.resolve(
        "lapm,wavs", _document({"lapm": _measured(), "wavs": _measured()}, lapm_wavs=0.99), CLASSICAL
    )
    assert measured.preset == "list"
    assert measured.note is not None
    assert "0.990" in measured.note


@pytest.mark.parametrize(
    ("methods", "available", "message"),
    [
        (
            "paper",
            CLASSICAL,
            r"wants lapm, wavs, musiq, but there are no scores of musiq.*--methods classical.*--robust",
        ),
        ("paper", ("niqe",), r"no scores of lapm, wavs, musiq; score them"),
        ("auto", CLASSICAL, r"give --robustness DIR"),
        ("classical", CLASSICAL, r"give --robustness DIR"),
        ("classical", ("lapm", "niqe"), r"no scores of wavs; score them"),
        ("classical", ("lapm", "wavs"), r"no scores of any of lapv, brisque, niqe"),
        ("lapmm,wavs", CLASSICAL, r"no scores of lapmm, did you mean 'lapm'\?; there are scores of lapv, lapm"),
        ("papr", CLASSICAL, r"did you mean 'paper'\?"),
        ("auto,lapm", CLASSICAL, r"'auto' is a preset and stands alone"),
        (" , ", CLASSICAL, r"--methods is empty; give one of auto, paper, classical"),
    ],
)
def test_what_cannot_be_is_one_line_with_the_remedy(methods: str, available: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        choice.resolve(methods, None, available)
    assert "\n" not in str(caught.value)


def test_a_choice_without_scores_names_the_command() -> None:
    document = _document({name: _measured() for name in ("lapm", "niqe", "brisque")})
    with pytest.raises(
        ConfigurationError, match=r"the scores lack niqe; run 'qualitygate score --metrics niqe --backf"
    ):
        choice.resolve("auto", document, ["lapm", "brisque"])
    with pytest.raises(ConfigurationError, match=r"classical needs the robustness of lapm, wavs"):
        choice.resolve("classical", document, CLASSICAL)


def test_another_file_is_no_robustness() -> None:
    for wrong in ({}, {"format": "qualitygate-gate", "version": 1}, {"format": "qualitygate-robustness", "version": 2}):
        with pytest.raises(ConfigurationError, match="run 'qualitygate robustness' again"):
            choice.resolve("auto", wrong, CLASSICAL)

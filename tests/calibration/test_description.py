"""Correlations, pass rates, agreement and confident errors against brute force and known truths."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score

from qualitygate.calibration import cutoffs, description
from qualitygate.calibration.cutoffs import Settings

DIRECTIONS: Any = {"lapv": "higher", "wavs": "higher", "brisque": "lower"}


@pytest.fixture(scope="module")
def fitted(simulate: Callable[..., Any]) -> Any:
    photographs = simulate().photographs()
    return photographs, cutoffs.fit_all(photographs, DIRECTIONS, Settings(bootstrap=50, permutations=99))


def test_quality_goes_with_confidence_whatever_the_sign_of_the_score(fitted: Any) -> None:
    photographs, fits = fitted
    stratum = np.where(np.arange(len(photographs)) < 12, "few", "many").astype(object)
    found = description.quality_confidence(replace(photographs, stratum=stratum), fits, 0)
    for name, sign in (("lapv", 1), ("wavs", 1), ("brisque", -1)):
        overall = found[name]["overall"]
        expected = spearmanr(sign * photographs.scores[name], photographs.confidence)[0]
        assert overall["spearman"] == pytest.approx(expected)
        assert overall["spearman"] > 0.5
        assert overall["interval"][0] < overall["spearman"] < overall["interval"][1]
        assert overall["n"] == len(photographs)
        within = found[name]["within_class"]["a"]
        chosen = photographs.label == "a"
        assert within["n"] == chosen.sum()
        assert within["spearman"] == pytest.approx(
            spearmanr(sign * photographs.scores[name][chosen], photographs.confidence[chosen])[0]
        )
        assert found[name]["within_stratum"]["few"]["interval"] is None  # two groups
    tiny = description.quality_confidence(photographs.take(np.arange(5)), fits, 0)
    assert tiny["lapv"]["overall"] == {"spearman": None, "interval": None, "n": 5}


def test_methods_correlate_by_quality(fitted: Any) -> None:
    photographs, fits = fitted
    holes = dict(photographs.scores) | {"constant": np.ones(len(photographs))}
    holes["lapv"] = np.where(np.arange(len(photographs)) % 9 == 0, np.nan, holes["lapv"])
    found = description.method_correlations(
        replace(photographs, scores=holes), fits | {"constant": replace(fits["wavs"], method="constant")}
    )
    assert found["methods"] == ["lapv", "wavs", "brisque", "constant"]
    table = found["spearman"]
    known = ~np.isnan(holes["lapv"])
    assert table[0][2] == pytest.approx(-spearmanr(holes["lapv"][known], holes["brisque"][known])[0])
    assert table[0][2] > 0.5
    assert table[0][3] is None
    assert table[1][1] == pytest.approx(1)


def test_pass_rates_warn_where_a_part_is_treated_differently(fitted: Any) -> None:
    photographs, _ = fitted
    rng = np.random.default_rng(0)
    number = len(photographs)
    stratum = np.where(photographs.group % 3 == 0, "phone", "camera").astype(object)
    some = replace(photographs, stratum=stratum)
    fair = rng.random(number) < 0.7
    rates, warnings = description.pass_rates(some, fair, 0)
    assert warnings == []
    assert rates["stratum"]["phone"] == {
        "passed": pytest.approx(fair[stratum == "phone"].mean()),
        "n": int(np.sum(stratum == "phone")),
    }
    assert set(rates["class"]) == {"a", "b"}
    unfair = np.where(stratum == "phone", rng.random(number) < 0.4, rng.random(number) < 0.8)
    _, warnings = description.pass_rates(some, unfair, 0)
    assert len(warnings) == 2
    assert any(warning.startswith("stratum phone") and "worse" in warning for warning in warnings)


def test_a_part_that_is_one_subject_is_no_ground_for_a_warning(fitted: Any) -> None:
    photographs, _ = fitted
    # Forty photographs of four subjects, one of which fails: chance, as the groups tell.
    group = np.concatenate([np.arange(40) // 10, 10 + np.arange(len(photographs) - 40) // 7])
    stratum = np.where(np.arange(len(photographs)) < 40, "odd", "rest").astype(object)
    passed = np.where(group < 4, group != 0, (group % 10) < 9)
    some = replace(photographs, group=np.unique(group, return_inverse=True)[1], stratum=stratum)
    rates, warnings = description.pass_rates(some, passed, 0)
    assert rates["stratum"]["odd"]["passed"] == 0.75
    assert warnings == []


def test_agreement_is_counted_right() -> None:
    rng = np.random.default_rng(1)
    low = {name: rng.random(200) < 0.4 for name in "abc"}
    found = description.agreement(low, 2)
    total = sum(values.astype(int) for values in low.values())
    for pair in found["pairs"]:
        a, b = low[pair["a"]], low[pair["b"]]
        assert pair["agreement"] == np.mean(a == b)
        assert pair["kappa"] == pytest.approx(cohen_kappa_score(a, b))
    assert len(found["pairs"]) == 3
    assert found["unanimous"] == np.mean((total == 0) | (total == 3))
    for name, values in low.items():
        turned = total + np.where(values, -1, 1)
        assert found["pivotal"][name] == np.mean((turned >= 2) != (total >= 2))
    assert description.agreement({}, 2) == {"pairs": [], "pivotal": {}, "unanimous": None}
    assert description.agreement({"a": np.zeros(5, bool), "b": np.zeros(5, bool)}, 2)["pairs"][0]["kappa"] is None


def test_sure_errors_on_good_photographs_are_listed_surest_first(fitted: Any) -> None:
    photographs, fits = fitted
    number = len(photographs)
    quality = fits["lapv"].axis.quality(photographs.scores["lapv"])
    best = np.argsort(-quality)[:3]
    correct, confidence, top1 = np.ones(number, bool), np.full(number, 0.9), np.full(number, 0.9)
    correct[best] = False
    confidence[best] = [0.15, 0.01, 0.4]
    top1[best] = [0.85, 0.99, 0.6]
    worst = int(np.argmin(quality))
    correct[worst], confidence[worst], top1[worst] = False, 0.01, 0.99
    some = replace(photographs, correct=correct, confidence=confidence, top1=top1)
    votes = np.zeros(number, dtype=np.int64)
    passed = np.ones(number, dtype=bool)
    found = description.confident_errors(some, votes, passed, list(fits.values()))
    assert [one["image_id"] for one in found] == [photographs.image_id[best[1]], photographs.image_id[best[0]]]
    assert found[0]["confidence"] == 0.01
    assert found[0]["top1"] == 0.99
    unknown = replace(some, top1=np.full(number, np.nan))
    assert len(description.confident_errors(unknown, votes, passed, list(fits.values()))) == 2
    votes[best[1]] = 1
    assert len(description.confident_errors(some, votes, passed, list(fits.values()))) == 1

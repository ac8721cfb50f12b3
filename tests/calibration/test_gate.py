"""The gate: votes by definition, a file that round-trips and notices changes, refusals with reasons."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qualitygate.calibration import gate
from qualitygate.calibration.gate import ABSTAINED, HIGH, LOW, OPEN, Gate
from qualitygate.calibration.lazy import Cut, Vote
from qualitygate.errors import ConfigurationError, GateRefused

POLICIES = ("reject", "pass", "abstain")


def _method(cutoff: float | None, direction: str = "higher", status: str = "ok") -> dict[str, Any]:
    return {"cutoff": cutoff, "direction": direction, "status": status, "reason": None if status == "ok" else "why"}


def _content(methods: dict[str, Any], votes_needed: int = 2, **changed: Any) -> dict[str, Any]:
    content: dict[str, Any] = {
        "format": gate.FORMAT,
        "version": gate.VERSION,
        "created": "2026-01-02T03:04:05+00:00",
        "votes_needed": votes_needed,
        "methods": methods,
        "fingerprints": dict.fromkeys(methods, "external"),
        "untrained": [],
    } | changed
    return content | {"id": gate.identity(content)}


def _gate(*args: Any, **changed: Any) -> Gate:
    return gate.parse(_content(*args, **changed), "test")


THREE = {"lapv": _method(10.0), "wavs": _method(2.0), "brisque": _method(50.0, "lower")}


class Decision(NamedTuple):
    """What is decided on one photograph."""

    votes_low: int
    passed: bool
    settled: bool


def _decided(
    made: Gate,
    values: Mapping[str, float | None],
    skipped: Collection[str] = (),
    *,
    on_null: gate.Policy = "reject",
    allow_fallback: bool = False,
) -> Decision:
    """On one photograph, from the scores that are known: None failed, what is absent or skipped is open."""
    votes = [
        voter.votes(
            np.array([values.get(voter.name)], np.float64),
            np.array([voter.name not in values or voter.name in skipped]),
            on_null,
        )
        for voter in made.voters(allow_fallback=allow_fallback)
    ]
    found = gate.decide(np.stack(votes, axis=1), made.votes_needed, on_null)
    return Decision(int(found.votes_low[0]), bool(found.passed[0]), bool(found.settled[0]))


# ---- votes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "votes_low", "passed"),
    [
        ({"lapv": 11.0, "wavs": 3.0, "brisque": 40.0}, 0, True),
        ({"lapv": 9.0, "wavs": 3.0, "brisque": 40.0}, 1, True),
        ({"lapv": 9.0, "wavs": 3.0, "brisque": 60.0}, 2, False),
        ({"lapv": 9.0, "wavs": 1.0, "brisque": 60.0}, 3, False),
        ({"lapv": 10.0, "wavs": 2.0, "brisque": 50.0}, 0, True),
    ],
)
def test_as_many_low_votes_as_are_needed_reject(values: dict[str, float], votes_low: int, passed: bool) -> None:
    found = _decided(_gate(THREE), values)
    assert (found.votes_low, found.passed, found.settled) == (votes_low, passed, True)


@pytest.mark.parametrize(
    ("policy", "votes_low", "passed"), [("reject", 2, False), ("pass", 1, True), ("abstain", 1, True)]
)
def test_a_failed_score_votes_by_policy(policy: Any, votes_low: int, passed: bool) -> None:
    found = _decided(_gate(THREE), {"lapv": 9.0, "wavs": None, "brisque": 40.0}, on_null=policy)
    assert (found.votes_low, found.passed) == (votes_low, passed)


@pytest.mark.parametrize(("policy", "passed"), [("reject", False), ("pass", True), ("abstain", False)])
def test_a_photograph_that_nobody_judged(policy: Any, passed: bool) -> None:
    found = _decided(_gate(THREE), dict.fromkeys(THREE), on_null=policy)
    assert found.passed is passed
    assert found.settled


def test_open_votes_are_settled_by_the_others_or_not() -> None:
    made = _gate(THREE)
    assert _decided(made, {"lapv": 9.0, "wavs": 1.0}).settled
    assert _decided(made, {"lapv": 9.0, "wavs": 1.0, "brisque": None}, ["brisque"]).settled
    assert _decided(made, {"lapv": 11.0, "wavs": 3.0}).settled
    assert not _decided(made, {"lapv": 9.0, "wavs": 3.0}).settled
    assert not _decided(made, {"lapv": 9.0}).settled
    # A network that wasn't asked is no failure, whatever the policy.
    assert _decided(made, {"lapv": 11.0, "wavs": 3.0, "brisque": None}, ["brisque"]).passed


votes = st.lists(st.lists(st.sampled_from([HIGH, LOW, ABSTAINED]), min_size=3, max_size=3), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(full=votes, hidden=st.lists(st.booleans(), min_size=36, max_size=36), needed=st.integers(1, 3))
def test_a_settled_decision_is_that_of_the_full_vote(full: list[list[int]], hidden: list[bool], needed: int) -> None:
    for policy in POLICIES:
        table = np.asarray(full, dtype=np.int8)
        if policy != "abstain":
            table = np.where(table == ABSTAINED, LOW if policy == "reject" else HIGH, table).astype(np.int8)
        everything = gate.decide(table, needed, policy)
        assert everything.settled.all()
        low = np.count_nonzero(table == LOW, axis=1)
        judged = np.any(table != ABSTAINED, axis=1)
        assert np.array_equal(everything.passed, (low < needed) & judged)
        partly = np.where(np.reshape(hidden, (12, 3))[: len(table)], OPEN, table).astype(np.int8)
        some = gate.decide(partly, needed, policy)
        assert np.array_equal(some.passed[some.settled], everything.passed[some.settled])


scores = st.fixed_dictionaries({name: st.sampled_from([None, 1.0, 2.0, 10.0, 50.0, 60.0]) for name in THREE})


@settings(max_examples=150, deadline=None)
@given(table=st.lists(scores, min_size=1, max_size=8), order=st.permutations(list(THREE)), needed=st.integers(1, 3))
def test_asking_one_method_after_the_other_decides_as_asking_all(
    table: list[dict[str, float | None]], order: list[str], needed: int
) -> None:
    made = _gate(THREE, needed)
    for policy in POLICIES:
        for row in table:
            known: dict[str, float | None] = {}
            for name in order:
                if _decided(made, known, on_null=policy).settled:
                    break
                known[name] = row[name]
            lazy = _decided(made, known, on_null=policy)
            assert lazy.settled
            assert lazy.passed == _decided(made, row, on_null=policy).passed


@settings(max_examples=150, deadline=None)
@given(row=scores, needed=st.integers(1, 3), asked=st.sets(st.sampled_from(list(THREE))))
def test_what_the_scoring_job_leaves_out_is_settled_here(
    row: dict[str, float | None], needed: int, asked: set[str]
) -> None:
    made = _gate(THREE, needed)
    cuts = {name: Cut(cutoff=one["cutoff"], direction=one["direction"]) for name, one in THREE.items()}
    vote = Vote(gate_id=made.id, votes_needed=needed, cuts=cuts)
    known = {name: row[name] for name in asked}
    if vote.settled({name: score for name, score in known.items() if score is not None}):
        for policy in POLICIES:
            found = _decided(made, known, on_null=policy)
            assert found.settled
            assert found.passed == _decided(made, row, on_null=policy).passed


# ---- who votes -----------------------------------------------------------------------------------------------


def test_undefined_methods_never_vote_and_fallbacks_only_where_allowed() -> None:
    made = _gate({"a": _method(1.0), "b": _method(2.0, status="fallback"), "c": _method(None, status="undefined")}, 1)
    assert [one.name for one in made.voters()] == ["a"]
    assert [one.name for one in made.voters(allow_fallback=True)] == ["a", "b"]
    assert _decided(made, {"a": 2.0, "b": 0.0, "c": 0.0}).passed
    assert not _decided(made, {"a": 2.0, "b": 0.0, "c": 0.0}, allow_fallback=True).passed


def test_fewer_voters_than_votes_needed_is_refused_with_the_reasons() -> None:
    made = _gate({"a": _method(1.0), "b": _method(2.0, status="fallback"), "c": _method(None, status="undefined")}, 2)
    with pytest.raises(GateRefused, match=r"1 of its methods.*b is fallback \(why\); c is undefined.*--allow-fallback"):
        made.require()
    assert len(made.require(allow_fallback=True)) == 2
    assert GateRefused.exit_code == 4


def test_untrained_voters_need_a_word() -> None:
    made = _gate(THREE, untrained=["wavs"])
    with pytest.raises(ConfigurationError, match=r"untrained networks \(wavs\).*--allow-untrained"):
        made.require()
    assert len(made.require(allow_untrained=True)) == 3


def test_a_majority_is_needed_unless_told_otherwise() -> None:
    assert [gate.agreed(["m"] * number, None) for number in (1, 2, 3, 4, 5)] == [1, 2, 2, 3, 3]
    assert gate.agreed(["a", "b", "c"], 3) == 3
    with pytest.raises(ConfigurationError, match="--votes-needed 4 is more than the 3 methods"):
        gate.agreed(["a", "b", "c"], 4)


# ---- the file ------------------------------------------------------------------------------------------------


def test_a_gate_survives_its_file(tmp_path: Path) -> None:
    content = _content(THREE | {"undefined": _method(None, status="undefined")}, coverage=1 / 3)
    path = tmp_path / gate.FILE
    path.write_bytes(gate.dump(content))
    for location in (str(path), str(tmp_path)):
        made = gate.load(location)
        assert made == gate.parse(content, "test")
        assert gate.dump(made.content) == path.read_bytes()


def test_the_id_is_of_the_content_but_not_of_its_time_or_order() -> None:
    content = _content(THREE)
    assert len(content["id"]) == 16
    assert gate.identity(content | {"created": "later"}) == content["id"]
    assert gate.identity(dict(reversed(content.items()))) == content["id"]
    assert gate.identity(content | {"votes_needed": 3}) != content["id"]


def _tampered(content: dict[str, Any]) -> str:
    content["methods"]["lapv"]["cutoff"] = 11.0
    return json.dumps(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_tampered, "was changed after it was made"),
        (lambda content: json.dumps(content | {"version": 2}), "version 2, this program reads version 1"),
        (lambda content: json.dumps({"format": "other"}), "is no gate"),
        (lambda content: "[1]", "is no gate"),
        (lambda content: "{", "is no JSON"),
        (lambda content: json.dumps(_content({"lapv": {}})), "lacks what a gate holds"),
    ],
)
def test_a_file_that_is_no_gate_is_refused_with_the_remedy(tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / gate.FILE
    path.write_text(change(json.loads(json.dumps(_content(THREE)))))
    with pytest.raises(ConfigurationError, match=message) as caught:
        gate.load(str(path))
    assert "calibrate'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_absent_gate_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no gate\.json; run 'qualitygate calibrate'"):
        gate.load(str(tmp_path))

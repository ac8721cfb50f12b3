"""A lazy vote decides as the full one does, with every policy for failed scores, on any table."""

from collections.abc import Mapping

from hypothesis import given, settings
from hypothesis import strategies as st

from qualitygate.calibration.lazy import Cut, Vote

METRICS = ("a", "b", "c", "d")
POLICIES = ("reject", "pass", "abstain")


def _low(vote: Vote, scores: Mapping[str, float | None], *, policy: str, optional: bool) -> int:
    """Low votes when every score was asked for."""
    low = 0
    for name, cut in vote.cuts.items():
        score = scores[name]
        if cut.optional and not optional:
            continue
        low += cut.low(score) if score is not None else policy == "reject"
    return low


def _asked(vote: Vote, scores: Mapping[str, float | None]) -> dict[str, float]:
    """The scores that a lazy run computes, in order, until nothing can change."""
    known: dict[str, float] = {}
    for name in vote.voters:
        if vote.settled(known):
            break
        score = scores[name]
        if score is not None:
            known[name] = score
    return known


cuts = st.builds(
    lambda cutoff, direction, optional: Cut(cutoff=cutoff, direction=direction, optional=optional),
    st.sampled_from([0.3, 0.5]),
    st.sampled_from(["higher", "lower"]),
    st.booleans(),
)
votes = st.builds(
    lambda needed, made: Vote(gate_id="g", votes_needed=needed, cuts=dict(zip(METRICS, made, strict=False))),
    st.integers(1, 4),
    st.lists(cuts, min_size=1, max_size=4),
)
tables = st.fixed_dictionaries({name: st.sampled_from([None, 0.1, 0.3, 0.4, 0.5, 0.9]) for name in METRICS})


@settings(max_examples=400)
@given(vote=votes, scores=tables, policy=st.sampled_from(POLICIES), optional=st.booleans())
def test_the_decision_is_that_of_the_full_vote(
    vote: Vote, scores: dict[str, float | None], policy: str, optional: bool
) -> None:
    full = _low(vote, scores, policy=policy, optional=optional) >= vote.votes_needed
    known = _asked(vote, scores)
    if vote.settled(known):
        # Whatever the rest says, also nothing.
        for filling in (0.0, 1.0, None):
            rest = {name: known.get(name, filling) for name in METRICS}
            assert (_low(vote, rest, policy=policy, optional=optional) >= vote.votes_needed) is full
    else:
        assert set(known) == {name for name in vote.voters if scores[name] is not None}


def test_agreeing_cheap_votes_leave_the_dear_one_out_and_open_ones_ask_it() -> None:
    cut = Cut(cutoff=0.5, direction="higher")
    vote = Vote(gate_id="g", votes_needed=2, cuts={"lapm": cut, "wavs": cut, "musiq": cut})
    assert vote.settled({"lapm": 0.1, "wavs": 0.2})
    assert vote.settled({"lapm": 0.9, "wavs": 0.8})
    assert not vote.settled({"lapm": 0.9, "wavs": 0.2})
    assert not vote.settled({"lapm": 0.9})
    assert not vote.settled({"lapm": 0.5, "musiq": 0.4})
    assert Cut(cutoff=3.0, direction="lower").low(3.1)
    assert not Cut(cutoff=3.0, direction="lower").low(3.0)


def test_the_sample_is_the_stated_share_and_the_same_everywhere() -> None:
    cut = Cut(cutoff=0.5, direction="higher")
    vote = Vote(gate_id="g", votes_needed=1, cuts={"lapm": cut}, sample_share=0.05)
    drawn = [vote.sampled(f"photo-{number}") for number in range(20_000)]
    assert 0.04 < sum(drawn) / len(drawn) < 0.06
    assert drawn[:50] == [vote.sampled(f"photo-{number}") for number in range(50)]
    other = Vote(gate_id="h", votes_needed=1, cuts={"lapm": cut}, sample_share=0.05)
    assert drawn != [other.sampled(f"photo-{number}") for number in range(20_000)]
    assert not any(Vote(gate_id="g", votes_needed=1, cuts={}, sample_share=0).sampled(str(n)) for n in range(99))
    assert all(Vote(gate_id="g", votes_needed=1, cuts={}, sample_share=1).sampled(str(n)) for n in range(99))

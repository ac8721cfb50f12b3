"""Which photographs count: whose runs of the score table a night judges with its own, which are a reference for it, and
which are set aside.

All of it follows from the records of the other nights, so a night that is killed or done again finds the same. Nobody
writes another night's record: what became of its photographs stands in the record of the night that judged them.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from qualitygate.nightly import record
from qualitygate.nightly.record import RUN, Check, Night

# Checks of a night's own photographs. Those of nights that it was tested together with are judged by its drift alone.
SOUND = ("canary", "manifest", "errors", "drift")
_DRIFT = "drift"

Word = Literal["trusted", "untested", "untrusted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """What a night judges with its own photographs.

    unfinished: nights that never ended; nobody has looked at theirs. by_hand: runs of 'score' that no night has
    judged. pooled: nights that ended well, with too few photographs to be tested.
    """

    unfinished: tuple[str, ...] = ()
    by_hand: tuple[str, ...] = ()
    pooled: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubts:
    """Runs that are no reference. untested: not looked at yet by any test. untrusted: they count for nothing at all."""

    untested: tuple[str, ...] = ()
    untrusted: tuple[str, ...] = ()


def is_sound(checks: Iterable[Check]) -> bool:
    """Whether a night's own photographs can be trusted."""
    return all(check.passed for check in checks if check.name in SOUND)


def beside_its_own(night: Night) -> Beside:
    """What a night has judged with its own photographs, by its record."""
    found = night.steps.get(_DRIFT, {})
    return Beside(**{kind: tuple(found.get(kind, ())) for kind in ("unfinished", "by_hand", "pooled")})


def settled(night: Night) -> bool:
    """Whether a night had photographs enough for them, and those tested with them, to be judged for good."""
    return bool(night.steps.get(_DRIFT, {}).get("settled", True))


def beside(tonight: Night, others: Sequence[Night], runs: Sequence[str]) -> Beside:
    """What tonight judges with its own. runs: all that rows of the table name.

    Nights that were started later are no concern of one that is done again: it finds what it found at first.
    """
    before = [night for night in others if record.order(night) < record.order(tonight)]
    judged = {name for night in before if _is_final(night) for name in beside_its_own(night).unfinished}
    pooled = {name for night in before if _has_tested(night) for name in beside_its_own(night).pooled}
    return Beside(
        unfinished=tuple(one.night for one in before if not one.ended and one.night not in judged),
        by_hand=tuple(_by_hand(others, runs)),
        pooled=tuple(
            one.night
            for one in before
            if one.ended and one.trusted and not settled(one) and _rows(one) and one.night not in pooled
        ),
    )


def _by_hand(others: Sequence[Night], runs: Sequence[str]) -> list[str]:
    """Runs of 'score' by hand that no night has judged: they get past no guardrail, tonight's hold for them too.

    What was there before the first night is what nights are compared with.
    """
    ended = [night for night in others if night.ended and _DRIFT in night.steps]
    if not ended:
        return []
    first = ended[0]
    known = {*first.steps[_DRIFT].get("runs", ())} - {*beside_its_own(first).by_hand}
    known |= {run for night in ended if _is_final(night) for run in beside_its_own(night).by_hand}
    return [run for run in runs if not run.startswith(RUN) and run not in known]


def doubts(tonight: Night, others: Sequence[Night], runs: Sequence[str]) -> Doubts:
    """Which runs of others are no reference, and which of them count for nothing. runs: all that the table names."""
    words = _words(others)
    recorded = {tonight.run_id, *(night.run_id for night in others)}
    # Nobody vouches for a night whose record is gone or can't be read.
    lost = [run for run in runs if run.startswith(RUN) and run not in recorded]
    return Doubts(
        untested=tuple(run for run, word in words.items() if word == "untested"),
        untrusted=(*(run for run, word in words.items() if word == "untrusted"), *lost),
    )


def set_aside(tonight: Night, others: Sequence[Night], runs: Sequence[str]) -> list[str]:
    """Runs whose photographs count for nothing: a gate made of them is one for what nobody wanted.

    Tonight's own and those judged with them are among these where tonight's checks didn't hold.
    """
    found = beside_its_own(tonight)
    own = [tonight.run_id, *map(run_of, found.unfinished), *found.by_hand]
    pooled = [run_of(name) for name in found.pooled]
    checks = [Check(**one) for step in tonight.steps.values() for one in step.get("checks", ())]
    aside = [run for run in doubts(tonight, others, runs).untrusted if run not in (*own, *pooled)]
    if not is_sound(checks):
        aside += own
    if any(check.name == _DRIFT and not check.passed for check in checks):
        aside += pooled
    return aside


def judged(others: Sequence[Night]) -> list[str]:
    """Runs whose photographs some night has looked at, whatever it found."""
    ended = [night for night in others if night.ended and _DRIFT in night.steps]
    by_hand = {run for night in ended for run in night.steps[_DRIFT].get("runs", ()) if not run.startswith(RUN)}
    return sorted({night.run_id for night in ended} | by_hand)


def run_of(night: str) -> str:
    """The run that a night's rows name."""
    return f"{RUN}{night}"


def _words(nights: Sequence[Night]) -> dict[str, Word]:
    """What is to be thought of the photographs of each night, and of each run by hand that a night has judged."""
    with_its_own: dict[str, list[Word]] = defaultdict(list)
    with_others: dict[str, list[Word]] = defaultdict(list)
    for night in nights:
        if not night.ended:
            continue
        found = beside_its_own(night)
        for run in (*map(run_of, found.unfinished), *found.by_hand):
            with_its_own[run].append("untrusted" if not night.trusted else "trusted" if settled(night) else "untested")
        for name in found.pooled if _has_tested(night) else ():
            with_others[run_of(name)].append("trusted" if _drift_held(night) else "untrusted")
    words: dict[str, Word] = {}
    for night in nights:
        run = night.run_id
        if not night.ended:
            words[run] = _best(with_its_own[run], otherwise="untrusted")
        elif night.trusted and not settled(night):
            words[run] = _best(with_others[run], otherwise="untested")
        else:
            words[run] = "trusted" if night.trusted else "untrusted"
    return words | {run: _best(found, otherwise="untested") for run, found in with_its_own.items() if run not in words}


def _best(found: Sequence[Word], *, otherwise: Word) -> Word:
    """One that was tested and held stands, then one that didn't hold."""
    return next((word for word in ("trusted", "untrusted", "untested") if word in found), otherwise)


def _is_final(night: Night) -> bool:
    """Whether what a night has judged with its own needs no other night to judge it again."""
    return night.ended and (settled(night) or not night.trusted)


def _has_tested(night: Night) -> bool:
    """Whether a night has tested those that were pooled with it."""
    return night.ended and (settled(night) or not _drift_held(night))


def _drift_held(night: Night) -> bool:
    return all(check.passed for check in night.checks if check.name == _DRIFT)


def _rows(night: Night) -> int:
    return int(night.steps.get(_DRIFT, {}).get("rows", 0))

"""Which gate is in force: one atomic change at a time, a history that keeps everything, and the way back."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from qualitygate.calibration import gate, gate_store
from qualitygate.calibration.gate_store import Change
from qualitygate.cli import main
from qualitygate.errors import ConfigurationError, GateRefused, Superseded

pytestmark = pytest.mark.filterwarnings("error")


def _made(folder: Path, cutoff: float, *, interval: list[float] | None = None, **changed: Any) -> str:
    """A gate in a folder of its own; returns the folder."""
    method = {"direction": "higher", "status": "ok", "cutoff": cutoff, "reason": None, "interval": interval}
    content: dict[str, Any] = {
        "format": gate.FORMAT,
        "version": gate.VERSION,
        "created": "2026-01-02T03:04:05+00:00",
        "parent": None,
        "votes_needed": 1,
        "coverage": 0.5,
        "methods": {"lapm": method},
        "fingerprints": {"lapm": "f"},
        "untrained": [],
    } | changed
    content["id"] = gate.identity(content)
    place = folder / content["id"]
    place.mkdir(parents=True, exist_ok=True)
    (place / gate.FILE).write_bytes(gate.dump(content))
    return str(place)


def _id(place: str) -> str:
    return place.rpartition("/")[2]


@pytest.fixture
def store(tmp_path: Path) -> str:
    return gate_store.of(str(tmp_path / "quality"))


def test_the_gate_in_force_is_found_by_every_verb_that_takes_a_gate(tmp_path: Path, store: str) -> None:
    first, second = _made(tmp_path / "a", 1.0), _made(tmp_path / "a", 2.0)
    assert gate_store.current(store) is None
    assert gate_store.promote(store, first, reason="begin").replaces is None
    change = gate_store.promote(store, second, reason="better", night="2026-11-23", fence=4)
    assert (change.gate_id, change.replaces, change.sequence, change.night) == (
        _id(second),
        _id(first),
        2,
        "2026-11-23",
    )
    for location in (store, str(tmp_path / "quality"), str(tmp_path / "quality") + "/"):
        assert gate.load(location).id == _id(second)
    assert gate_store.load(store, _id(first)[:6]).id == _id(first)


def test_a_gate_in_force_is_promoted_no_second_time(tmp_path: Path, store: str) -> None:
    place = _made(tmp_path, 1.0)
    gate_store.promote(store, place, reason="begin")
    gate_store.promote(store, place, reason="again")
    assert [one.reason for one in gate_store.read(store).changes] == ["begin"]


def test_back_and_back_again(tmp_path: Path, store: str) -> None:
    places = [_made(tmp_path, cutoff) for cutoff in (1.0, 2.0, 3.0)]
    for place in places:
        gate_store.promote(store, place, reason="next")
    ids = [_id(place) for place in places]
    assert gate_store.rollback(store, reason="bad").gate_id == ids[1]
    assert gate_store.read(store).withdrawn == {ids[2]}
    assert gate_store.rollback(store, reason="bad too").gate_id == ids[0]
    with pytest.raises(ConfigurationError, match="there is none before it"):
        gate_store.rollback(store, reason="and on")
    # Promoted by hand it is in force, and no longer withdrawn.
    gate_store.promote(store, places[2], reason="it was right")
    history = gate_store.read(store)
    assert history.withdrawn == {ids[1]}
    assert [one.gate_id for one in history.changes] == [*ids, ids[1], ids[0], ids[2]]
    assert gate_store.rollback(store, to=ids[1][:5], reason="this one", held=True).held
    assert gate.load(store).id == ids[1]


def test_a_hold_is_laid_on_the_gate_in_force_and_lifted_by_hand(tmp_path: Path, store: str) -> None:
    place = _made(tmp_path, 1.0)
    gate_store.promote(store, place, reason="begin")
    assert gate_store.rollback(store, to=_id(place), reason="wait", held=True).held
    with pytest.raises(ConfigurationError, match="in force already"):
        gate_store.rollback(store, to=_id(place), reason="wait", held=True)
    change = gate_store.promote(store, place, reason="go on")
    assert (change.gate_id, change.reason, change.held) == (_id(place), "go on", False)
    history = gate_store.read(store)
    assert [one.action for one in history.changes] == ["promote", "rollback", "promote"]
    assert history.withdrawn == frozenset()


def test_of_two_at_once_one_is_told(tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = (_made(tmp_path, cutoff) for cutoff in (1.0, 2.0, 3.0))
    gate_store.promote(store, first, reason="begin")
    seen = gate_store.read(store)
    gate_store.promote(store, second, reason="quicker")
    monkeypatch.setattr(gate_store, "read", lambda _: seen)
    with pytest.raises(Superseded, match="changed at the same moment"):
        gate_store.promote(store, third, reason="slower")
    monkeypatch.undo()
    assert gate.load(store).id == _id(second)


def test_many_at_once_leave_a_history_of_those_that_were_told_so(tmp_path: Path, store: str) -> None:
    places = [_made(tmp_path, float(cutoff)) for cutoff in range(8)]

    def attempt(place: str) -> str | None:
        try:
            return gate_store.promote(store, place, reason="race").gate_id
        except Superseded:
            return None

    with ThreadPoolExecutor(8) as pool:
        won = [one for one in pool.map(attempt, places) if one]
    changes = gate_store.read(store).changes
    assert sorted(one.gate_id for one in changes) == sorted(won)
    assert [one.sequence for one in changes] == list(range(1, len(won) + 1))
    assert [one.replaces for one in changes] == [None, *(one.gate_id for one in changes[:-1])]


def test_an_old_nightly_job_comes_too_late(tmp_path: Path, store: str) -> None:
    gate_store.promote(store, _made(tmp_path, 1.0), reason="new", fence=7)
    with pytest.raises(Superseded, match="newer nightly job"):
        gate_store.promote(store, _made(tmp_path, 2.0), reason="old", fence=6)


def test_whatever_was_changed_since_the_history_was_read_stands(tmp_path: Path, store: str) -> None:
    first, second, third = (_made(tmp_path, cutoff) for cutoff in (1.0, 2.0, 3.0))
    # No gate is a state that can be changed, too.
    seen = gate_store.read(store)
    gate_store.promote(store, first, reason="by hand")
    with pytest.raises(Superseded, match=f"gate {_id(first)} is in force by .* start again from there"):
        gate_store.promote(store, second, reason="late", seen=seen)
    seen = gate_store.read(store)
    gate_store.rollback(store, to=_id(first), reason="wait", held=True)
    with pytest.raises(Superseded, match="was changed meanwhile"):
        gate_store.promote(store, second, reason="late", seen=seen)
    seen = gate_store.read(store)
    assert gate_store.promote(store, third, reason="in time", seen=seen).gate_id == _id(third)


def test_what_may_not_come_into_force(tmp_path: Path, store: str) -> None:
    undefined = {"lapm": {"direction": "higher", "status": "undefined", "cutoff": None, "reason": "too few"}}
    with pytest.raises(GateRefused, match="can't decide"):
        gate_store.promote(store, _made(tmp_path, 1.0, methods=undefined), reason="no")
    with pytest.raises(ConfigurationError, match="untrained"):
        gate_store.promote(store, _made(tmp_path, 1.0, untrained=["lapm"]), reason="no")
    assert gate_store.read(store).changes == ()


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"format": "other"}', '{"format": "qualitygate-gate-history", "version": 1}']
)
def test_a_damaged_history_is_said_and_left(tmp_path: Path, store: str, text: str) -> None:
    Path(store).mkdir(parents=True)
    path = Path(store) / gate.HISTORY
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=r"history|damaged"):
        gate_store.promote(store, _made(tmp_path, 1.0), reason="begin")
    assert path.read_text() == text


def test_how_far_a_cutoff_moved(tmp_path: Path) -> None:
    old = gate.load(_made(tmp_path, 10.0, interval=[9.0, 11.0]))
    near = gate.load(_made(tmp_path, 10.5, interval=[9.5, 11.5]))
    far = gate.load(_made(tmp_path, 14.0, interval=[13.0, 15.0]))
    (found,) = gate_store.differences(old, near)
    assert (found.moved, found.within) == (0.25, True)
    (found,) = gate_store.differences(old, far)
    assert (found.moved, found.within) == (2.0, False)


def test_gates_are_the_same_whenever_they_were_made(tmp_path: Path) -> None:
    one, other = (gate.load(_made(tmp_path, 1.0, parent=parent)) for parent in (None, "abc"))
    assert one.id != other.id
    assert gate_store.same(one, other)
    assert not gate_store.same(one, gate.load(_made(tmp_path, 1.5)))


def _run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as end:
        main(["gate", *arguments])
    said = capsys.readouterr()
    return int(end.value.code or 0), said.out + said.err


def test_the_verbs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "quality")
    first, second = _made(tmp_path / "a", 1.0, interval=[0.5, 1.5]), _made(tmp_path / "a", 2.0, interval=[1.8, 2.2])
    assert _run(capsys, "history", "--store", output)[1].startswith("no gate was ever promoted")
    assert _run(capsys, "promote", first, "--store", output, "--reason", "the first")[0] == 0
    assert _run(capsys, "promote", f"{second}/gate.json", "--store", output)[0] == 0
    code, said = _run(capsys, "diff", _id(first), _id(second)[:8], "--store", output)
    assert code == 0
    assert "1 -> 2" in said
    assert "+1.00 widths, past both intervals" in said
    code, said = _run(capsys, "rollback", "--store", output, "--reason", "pager", "--hold")
    assert code == 0
    assert f"gate {_id(first)} is in force, in place of {_id(second)}" in said
    code, said = _run(capsys, "history", "--store", output)
    assert code == 0
    assert "pager" in said
    assert "HELD" in said
    told = json.loads(_run(capsys, "history", "--store", output, "--json")[1])
    assert told["current"] == _id(first)
    assert [Change(**entry).action for entry in told["changes"]] == ["promote", "promote", "rollback"]
    # The gate that was rolled back from can be named by its id.
    assert _run(capsys, "promote", _id(second), "--store", output)[0] == 0
    code, said = _run(capsys, "promote", "0123", "--store", output)
    assert code == 2
    assert "lists them" in said

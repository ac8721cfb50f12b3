"""The lock: one holder at a time, of whom others learn, whose time runs out, and whose number counts up."""

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from qualitygate.errors import ConfigurationError, Locked, Superseded
from qualitygate.nightly import lock
from qualitygate.tables import storage

pytestmark = pytest.mark.filterwarnings("error")

# Takes the lock of its first argument, says so, and holds it until it is killed or told to go on.
HOLDER = """
import sys
from qualitygate.nightly import lock
with lock.held(sys.argv[1], night="of another process", ttl_s=600):
    print("taken", flush=True)
    sys.stdin.readline()
"""


def _written(output: Path, **changed: object) -> None:
    """The lock's file as it is, but for some of it."""
    path = output / lock.FILE
    content = json.loads(path.read_text()) | changed
    storage.write_bytes(str(path), json.dumps(content).encode())


def _left_behind(output: Path, **changed: object) -> None:
    """A lock that somebody took and didn't give back."""
    with lock.held(str(output), night="a night before", ttl_s=600):
        pass
    _written(output, released=False, until=time.time() + 600, **changed)


def _until(condition: object, seconds: float = 20) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_who_holds_it_is_said_to_the_next(tmp_path: Path) -> None:
    with (
        lock.held(str(tmp_path), night="n1", ttl_s=600) as held,
        pytest.raises(Locked, match=r"on .+ since 2.*, night n1; its lock expires in (600|5\d\d) s"),
        lock.held(str(tmp_path), night="n2", ttl_s=600),
    ):
        pass
    assert held.fence == 1
    with lock.held(str(tmp_path), night="n3", ttl_s=600) as later:
        assert later.fence == 2
        later.check()


def test_it_is_renewed_while_it_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_RENEWALS", 100)
    with lock.held(str(tmp_path), night="n1", ttl_s=3) as held:
        first, _ = lock.read(str(tmp_path))
        assert first is not None
        _until(lambda: (lock.read(str(tmp_path))[0] or first).until > first.until + 0.1)
        held.check()
        now, _ = lock.read(str(tmp_path))
        assert now is not None
        assert replace(now, until=first.until) == first
    after, _ = lock.read(str(tmp_path))
    assert after is not None
    assert after.released


def test_one_that_is_not_renewed_runs_out_and_its_holder_learns_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock.Lock, "_keep", lambda _: None)
    with lock.held(str(tmp_path), night="n1", ttl_s=0.2) as first:
        first.check()
        _until(lambda: time.time() >= first._held.until)
        with pytest.raises(Superseded, match="was lost"):
            first.check()
        with lock.held(str(tmp_path), night="n2", ttl_s=600) as second:
            assert second.fence == 2
            # The first wakes up: it can neither renew it nor give it back.
            first._write(until=time.time() + 600, released=False)
            with pytest.raises(Superseded, match="another nightly job may have it"):
                first.check()
            first.release()
            second.check()
            kept, _ = lock.read(str(tmp_path))
            assert kept is not None
            assert (kept.night, kept.released) == ("n2", False)


def test_a_failing_store_is_tried_again_before_the_time_is_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lock, "_RENEWALS", 200)
    with lock.held(str(tmp_path), night="n1", ttl_s=4) as held:
        before = held._held.until
        monkeypatch.setattr(lock.storage, "put_if", _away)
        _until(lambda: "could not be renewed" in caplog.text)
        held.check()
        monkeypatch.undo()
        _until(lambda: held._held.until > before)
    assert "secret" not in caplog.text


def _away(*_: object) -> None:
    raise OSError("s3://somebody:secret@bucket is away")


def test_the_lock_of_a_process_that_has_ended_is_taken_at_once(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "taken\n"
        with pytest.raises(Locked, match="night of another process"), lock.held(str(tmp_path), night="n", ttl_s=600):
            pass
        holder.kill()
        # Ended, though nobody has asked yet how: its number stays in the list of processes.
        _until(lambda: Path(f"/proc/{holder.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
        with lock.held(str(tmp_path), night="n", ttl_s=600) as held:
            assert held.fence == 2
    finally:
        holder.kill()
        holder.communicate()


def test_a_later_process_of_the_same_number_is_not_the_holder(tmp_path: Path) -> None:
    _left_behind(tmp_path, process=f"{os.getpid()}:1")
    with lock.held(str(tmp_path), night="n", ttl_s=600) as held:
        assert held.fence == 2


@pytest.mark.parametrize("changed", [{"host": "elsewhere"}, {"process": "what is this"}, {"process": "1:"}])
def test_a_holder_that_cannot_be_looked_at_keeps_it_until_its_time_is_up(
    tmp_path: Path, changed: dict[str, str]
) -> None:
    _left_behind(tmp_path, **({"process": "1:1"} | changed))
    with pytest.raises(Locked), lock.held(str(tmp_path), night="n", ttl_s=600):
        pass
    _written(tmp_path, until=time.time() - 0.001)
    with lock.held(str(tmp_path), night="n", ttl_s=600) as held:
        assert held.fence == 2


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"fence": 1}', "null"])
def test_a_damaged_lock_is_nobodys_to_take(tmp_path: Path, text: str) -> None:
    (tmp_path / lock.FILE).write_text(text)
    with pytest.raises(ConfigurationError, match="is damaged; make sure that no nightly job runs, then delete it"):
        lock.read(str(tmp_path))


def test_a_lock_whose_time_is_no_number_is_damaged(tmp_path: Path) -> None:
    _left_behind(tmp_path)
    _written(tmp_path, until="soon")
    with pytest.raises(ConfigurationError, match="is damaged"):
        lock.read(str(tmp_path))


def test_it_is_given_back_when_the_block_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), lock.held(str(tmp_path), night="n", ttl_s=600):
        raise ZeroDivisionError
    found, _ = lock.read(str(tmp_path))
    assert found is not None
    assert found.released
    assert "nightly-lock" not in {thread.name for thread in threading.enumerate()}


def test_of_many_that_begin_at_once_one_has_it(tmp_path: Path) -> None:
    for round_ in range(1, 6):
        begin, decided = threading.Barrier(8), threading.Barrier(8)

        def attempt(number: int, begin: threading.Barrier = begin, decided: threading.Barrier = decided) -> int | None:
            begin.wait()
            try:
                with lock.held(str(tmp_path), night=f"n{number}", ttl_s=600) as held:
                    decided.wait()
                    held.check()
                    return held.fence
            except Locked:
                decided.wait()
                return None

        with ThreadPoolExecutor(8) as pool:
            fences = [fence for fence in pool.map(attempt, range(8)) if fence is not None]
        assert fences == [round_]


def test_of_processes_that_begin_at_once_one_has_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    holders = [subprocess.Popen(command, text=True, **pipes) for _ in range(2)]  # type: ignore[call-overload]
    try:
        _until(lambda: any(one.poll() is not None for one in holders), 60)
        (loser,) = [one for one in holders if one.poll() is not None]
        (winner,) = [one for one in holders if one is not loser]
        assert winner.stdout.readline() == "taken\n"
        assert "Locked: another nightly job is at work" in loser.stderr.read()
        winner.communicate("go on\n", timeout=60)
        assert winner.returncode == 0
    finally:
        for one in holders:
            one.kill()
            one.communicate()


def test_a_lock_whose_file_was_lost_counts_on_from_what_is_published(tmp_path: Path) -> None:
    with lock.held(str(tmp_path), night="n", ttl_s=600, above=7) as held:
        assert held.fence == 8
    with lock.held(str(tmp_path), night="n", ttl_s=600, above=7) as held:
        assert held.fence == 9

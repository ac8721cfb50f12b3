"""The queue of a study: every run ends once, whatever dies, and only what kills its worker is given up."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qualitygate.training.run_queue import SUSPECTED_AFTER, RunQueue


def told(queue: RunQueue, kind: str) -> list[Any]:
    return [content for said, content in queue.messages() if said == kind]


def test_runs_come_in_order_and_each_once() -> None:
    queue = RunQueue(3)
    queue.begin("a")
    assert [queue.take("a", 0), queue.take("a", 1)] == [0, 1]
    queue.done("a", 0, "ok")
    assert queue.take("a", 0) == 2
    queue.done("a", 1, "ok")
    assert queue.take("a", 1) is None


def test_an_interrupted_run_comes_first_in_the_next_group() -> None:
    queue = RunQueue(3)
    queue.begin("a")
    queue.take("a", 0)
    queue.begin("b")
    assert queue.take("b", 0) == 0
    assert queue.attempts(0) == 2
    assert queue.attempts(1) == 1


def test_a_run_that_kills_its_only_worker_twice_is_given_up() -> None:
    queue = RunQueue(2)
    for group in "ab":
        queue.begin(group)
        assert queue.take(group, 0) == 0
    queue.begin("c")
    assert told(queue, "killer") == [(0, SUSPECTED_AFTER)]
    assert queue.take("c", 0) == 1


def test_of_two_runs_at_work_only_the_killer_is_given_up() -> None:
    queue = RunQueue(2)
    for group in "ab":
        queue.begin(group)
        assert {queue.take(group, 0), queue.take(group, 1)} == {0, 1}
    queue.begin("c")
    assert not told(queue, "killer")
    # Both are suspects now: one at a time, alone.
    assert queue.take("c", 0) == 0
    assert queue.take("c", 1) == "wait"
    queue.begin("d")
    assert told(queue, "killer") == [(0, 3)]
    assert queue.take("d", 1) == 1
    assert queue.take("d", 0) is None


def test_word_from_a_dead_group_is_ignored() -> None:
    queue = RunQueue(1)
    queue.begin("a")
    queue.take("a", 0)
    queue.begin("b")
    assert queue.take("b", 0) == 0
    queue.done("a", 0, "ok")
    assert not told(queue, "done")
    assert queue.take("a", 0) is None


def test_workers_together_get_the_same_run_in_each_turn() -> None:
    queue = RunQueue(2, together=True)
    queue.begin("a")
    assert queue.take("a", 1, 0) == "wait"
    assert queue.take("a", 0, 0) == 0
    assert queue.take("a", 1, 0) == 0
    assert queue.take("a", 1, 1) == "wait"
    queue.done("a", 0, "ok")
    assert [queue.take("a", rank, 1) for rank in (0, 1)] == [1, 1]
    queue.done("a", 0, "ok")
    assert [queue.take("a", rank, 2) for rank in (0, 1)] == [None, None]


@pytest.mark.parametrize("stop", [lambda queue: queue.stop(), lambda queue: queue.tell("fatal", "full")])
def test_a_stopped_queue_gives_nothing_out(stop: Any) -> None:
    queue = RunQueue(2)
    queue.begin("a")
    stop(queue)
    assert queue.stopped()
    assert queue.take("a", 0) is None


@given(
    count=st.integers(1, 12),
    workers=st.integers(1, 4),
    killers=st.sets(st.integers(0, 11), max_size=3),
    seed=st.integers(0, 1000),
)
def test_every_run_ends_once_and_only_killers_fail(count: int, workers: int, killers: set[int], seed: int) -> None:
    """Workers at random speed; a killer ends its whole group, now and then chance does as well."""
    chance = random.Random(seed)
    queue = RunQueue(count)
    finished: list[int] = []
    given_up: list[int] = []
    for group in range(1000):
        name = str(group)
        queue.begin(name)
        given_up += [run for run, _ in told(queue, "killer")]
        held: dict[int, int] = {}
        idle: set[int] = set()
        dead = False
        for _ in range(10_000):
            rank = chance.randrange(workers)
            if rank in held:
                run = held.pop(rank)
                # One accident is forgiven; after a killer's death beside it, it would be one too many.
                if run in killers or (not killers and group == 0 and chance.random() < 0.3):
                    dead = True
                    break
                finished.append(run)
                queue.done(name, rank, "ok")
                idle.clear()
                continue
            taken = queue.take(name, rank)
            if taken is None:
                idle.add(rank)
                if len(idle) == workers and not held:
                    break
            elif taken != "wait":
                held[rank] = taken
        if not dead:
            break
    assert sorted([*finished, *given_up]) == list(range(count))
    assert set(given_up) == killers & set(range(count))

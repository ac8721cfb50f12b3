"""Threads' findings in one stream."""

import threading
from collections.abc import Iterator

import pytest

from qualitygate.tables.gather import Gathering


def test_everything_arrives_once_also_from_those_added_later() -> None:
    with Gathering[int](4, ahead=3) as gathering:

        def tree(number: int) -> Iterator[int]:
            if number < 64:
                gathering.add(lambda: tree(2 * number))
                gathering.add(lambda: tree(2 * number + 1))
            yield number

        gathering.add(lambda: tree(1))
        assert sorted(gathering) == list(range(1, 128))


def test_the_first_failure_reaches_the_reader_and_stops_the_rest() -> None:
    made: list[int] = []

    def endless() -> Iterator[int]:
        while True:
            made.append(1)
            yield 1

    def failing() -> Iterator[int]:
        yield 1
        raise KeyError("broken")

    def read_all() -> None:
        with Gathering[int](3, ahead=2) as gathering:
            gathering.add(endless)
            gathering.add(failing)
            for _ in gathering:
                pass

    with pytest.raises(KeyError, match="broken"):
        read_all()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("gather")]


def test_a_generator_that_is_ahead_waits_for_the_reader() -> None:
    made: list[int] = []

    def many() -> Iterator[int]:
        for number in range(1000):
            made.append(number)
            yield number

    with Gathering[int](1, ahead=5) as gathering:
        gathering.add(many)
        for seen, _ in enumerate(gathering, 1):
            # What was read, what waits, and the one in hand.
            assert len(made) <= seen + 5 + 2
            if seen == 50:
                break
    assert len(made) < 100

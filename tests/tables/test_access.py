"""When a store is asked again, and how often at all."""

import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qualitygate import config
from qualitygate.errors import ErrorCode, ImageError
from qualitygate.metrics import verification
from qualitygate.tables import access, storage
from qualitygate.tables.access import Access, Throttled, TokenBucket, retrying
from qualitygate.training import data


class Clock:
    """Time that passes only while something sleeps."""

    def __init__(self) -> None:
        self.now = 100.0
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


def _try(errors: list[ImageError], access: Access) -> tuple[str | ErrorCode, Clock, int]:
    """(result or code, the clock, attempts) of a request that fails with each error in turn, then works."""
    clock, left, attempts = Clock(), list(errors), 0

    def request() -> str:
        nonlocal attempts
        attempts += 1
        if left:
            raise left.pop(0)
        return "done"

    try:
        return retrying(request, access, clock=clock, sleep=clock.sleep), clock, attempts
    except ImageError as error:
        return error.failure.code, clock, attempts


@pytest.mark.parametrize("code", [ErrorCode.TRANSIENT, ErrorCode.TIMEOUT])
def test_what_may_pass_is_tried_again(code: ErrorCode) -> None:
    assert _try([ImageError(code, "no")] * 3, Access())[::2] == ("done", 4)


@pytest.mark.parametrize("code", sorted(set(ErrorCode) - {ErrorCode.TRANSIENT, ErrorCode.TIMEOUT}))
def test_what_will_not_pass_is_tried_once(code: ErrorCode) -> None:
    result, clock, attempts = _try([ImageError(code, "no")], Access())
    assert (result, attempts, clock.pauses) == (code, 1, [])


@settings(deadline=None)
@given(st.floats(0, 500))
def test_trying_ends_when_its_time_is_over(retry_seconds: float) -> None:
    result, clock, attempts = _try(
        [ImageError(ErrorCode.TRANSIENT, "no")] * 10_000, Access(retry_seconds=retry_seconds)
    )
    assert result is ErrorCode.TRANSIENT
    assert clock.now - 100 == pytest.approx(retry_seconds)
    assert attempts == len(clock.pauses) + 1
    assert all(pause <= 10 for pause in clock.pauses)


def test_pauses_grow_and_are_longer_for_a_store_that_asks_for_less() -> None:
    _, usual, _ = _try([ImageError(ErrorCode.TRANSIENT, "no")] * 5, Access())
    _, throttled, _ = _try([Throttled("slow down")] * 5, Access(retry_seconds=600))
    for number, (short, long) in enumerate(zip(usual.pauses, throttled.pauses, strict=True)):
        assert 0.1 * 2**number <= short <= 0.2 * 2**number
        assert min(5.0, 0.5 * 2**number) <= long <= min(10.0, 2**number)


@settings(deadline=None)
@given(st.floats(0.5, 1000), st.lists(st.floats(0, 3), min_size=2, max_size=60))
def test_no_stretch_of_time_has_more_requests_than_the_rate_allows(rate: float, gaps: list[float]) -> None:
    clock = Clock()
    bucket = TokenBucket(rate, clock=clock, sleep=clock.sleep)
    times = []
    for gap in gaps:
        clock.now += gap
        bucket.take()
        times.append(clock.now)
    for start in range(len(times)):
        for end in range(start, len(times)):
            # A second's worth may have been saved up.
            assert end - start + 1 <= (times[end] - times[start]) * rate + max(1.0, rate) + 1e-6


def test_threads_share_one_rate() -> None:
    waits: list[float] = []
    bucket = TokenBucket(10, clock=lambda: 0.0, sleep=waits.append)
    threads = [threading.Thread(target=bucket.take) for _ in range(21)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(waits) == pytest.approx([number / 10 for number in range(1, 21)])


def test_workers_divide_the_rate() -> None:
    assert Access(max_requests_per_second=100).shared_by(8).max_requests_per_second == 12.5
    assert Access().shared_by(8).max_requests_per_second is None


def test_a_throttled_failure_can_leave_its_process() -> None:
    error = pickle.loads(pickle.dumps(Throttled("slow down")))  # noqa: S301
    assert isinstance(error, Throttled)
    assert error.failure.code is ErrorCode.TRANSIENT


VERBS = [
    config.ScoreConfig,
    config.ManifestBuildConfig,
    config.VerifyConfig,
    config.RobustnessConfig,
    config.BaselineConfig,
    config.PredictConfig,
    config.SubsetsConfig,
    config.StudyConfig,
]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_that_reads_photographs_says_how_stores_are_asked(verb: Any) -> None:
    usual = {name: verb.model_fields[name].default for name in ("retry_seconds", "request_timeout_s")}
    asked = verb.model_construct(**usual, max_requests_per_second=None)
    assert access.of(asked) == access.DEFAULT
    asked = verb.model_construct(retry_seconds=1, request_timeout_s=2, max_requests_per_second=3)
    assert access.of(asked) == Access(retry_seconds=1, timeout_seconds=2, max_requests_per_second=3)


def test_photographs_for_classifiers_and_of_verify_are_read_as_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def fetch(uri: str, *, max_bytes: int, access: Access) -> Any:
        seen.append(access)
        raise ImageError(ErrorCode.MISSING, uri)

    monkeypatch.setattr(storage, "fetch", fetch)
    asked = Access(retry_seconds=1, timeout_seconds=2, max_requests_per_second=3)
    (found,) = data.prepare([{"uri": "x.jpg"}], 32, asked)
    assert found.failure is not None
    (tmp_path / "x.jpg").write_bytes(b"none")
    where = {"input": str(tmp_path / "x.jpg"), "output": "p.json"}
    verify = config.VerifyConfig(**where, retry_seconds=1, request_timeout_s=2, max_requests_per_second=3)
    assert list(verification._groups(verify)) == [([], 1)]
    assert seen == [asked, asked]

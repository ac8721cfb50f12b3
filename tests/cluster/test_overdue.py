"""A deadline is kept also when nothing arrives any more."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from job_helpers import Silent, write_photographs

from qualitygate.cluster import scoring, session
from qualitygate.config import ScoreConfig
from qualitygate.errors import DeadlineReached, Interrupted
from qualitygate.tables import scores


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Workers that never send anything, and a job that soon looks for them. Says what was waited for."""
    seen = []

    @contextmanager
    def two(_: str) -> Iterator[session.Cluster]:
        yield session.Cluster(cpus=2.0, gpus=0.0, local=True)

    def blocks(*_: Any) -> Iterator[pa.Table]:
        seen.append("workers")
        for _ in range(600):
            time.sleep(0.1)
        yield from ()
        raise AssertionError("it was waited for the workers")

    monkeypatch.setattr(session, "connect", two)
    monkeypatch.setattr(scoring, "_blocks", blocks)
    monkeypatch.setattr(scoring, "_OVERDUE_S", 0.5)
    monkeypatch.setattr(scoring, "_SECONDS_BETWEEN_LOOKS", 0.1)
    return seen


def _config(tmp_path: Path) -> ScoreConfig:
    write_photographs(tmp_path / "in", 3)
    return ScoreConfig(input=str(tmp_path / "in"), output=str(tmp_path / "out"), metrics=("lapm",), device="cpu")


def test_a_deadline_ends_a_run_to_which_nothing_comes(
    tmp_path: Path, waited: list[str], request: pytest.FixtureRequest
) -> None:
    config = _config(tmp_path)
    # As a shell's background jobs have it.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with pytest.raises(DeadlineReached, match=r"stopped with 0 of 3 rows") as caught:
        scoring.run(config, Silent(), deadline=time.time() + 3)
    assert (caught.value.done, caught.value.left) == (0, 3)
    assert waited == ["workers"]
    assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL
    assert scores.open_table(config.output) is not None


def test_a_person_who_stops_it_is_no_deadline(tmp_path: Path, waited: list[str]) -> None:
    config = _config(tmp_path)
    timer = threading.Timer(3.0, lambda: signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT))
    timer.start()
    with pytest.raises(Interrupted):
        scoring.run(config, Silent(), deadline=time.time() + 3600)
    timer.join()
    assert waited == ["workers"]

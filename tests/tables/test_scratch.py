"""Scratch folders: a killed process's are removed by the next start; nobody's who lives, or who is somebody else."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from job_helpers import Silent

from qualitygate.cluster import scoring
from qualitygate.config import NightlyConfig, ScoreConfig
from qualitygate.errors import ConfigurationError
from qualitygate.nightly import job
from qualitygate.tables import scratch

ROOT = Path(__file__).parents[2]
HOLDER = """
import time
from pathlib import Path
from qualitygate.tables.scratch import scratch_folder
with scratch_folder() as made:
    (Path(made) / "spool").mkdir()
    (Path(made) / "spool" / "rows.parquet").write_bytes(b"rows")
    print(made, flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary directory of the machine that only this test uses."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def hold(temporary: Path) -> Iterator[Callable[[], tuple[subprocess.Popen[str], Path]]]:
    """Starts processes with a scratch folder: (process, its folder)."""
    started: list[subprocess.Popen[str]] = []

    def start() -> tuple[subprocess.Popen[str], Path]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)},
        )
        started.append(process)
        assert process.stdout is not None
        return process, Path(process.stdout.readline().strip())

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _killed(process: "subprocess.Popen[str]") -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_folder_lives_as_long_as_its_block(temporary: Path) -> None:
    with scratch.scratch_folder() as made:
        (Path(made) / "x").write_bytes(b"1")
        assert [str(path) for path in temporary.iterdir()] == [made]
        # Also this process's own.
        scratch.sweep()
        assert (Path(made) / "x").exists()
    assert list(temporary.iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_what_a_live_one_has_is_not(hold: Callable[[], Any]) -> None:
    (killed, left), (_, used) = hold(), hold()
    scratch.sweep()
    assert left.exists()
    _killed(killed)
    assert (left / "spool" / "rows.parquet").exists()
    scratch.sweep()
    assert not left.exists()
    assert (used / "spool" / "rows.parquet").exists()


def _score(absent: str, output: str) -> None:
    scoring.run(ScoreConfig(input=absent, output=output, metrics=("lapv",)), Silent())


def _night(absent: str, output: str) -> None:
    job.run(NightlyConfig(input=absent, output=output, night="n1"), lambda _: Silent())


@pytest.mark.parametrize("start", [_score, _night])
def test_a_start_removes_them(temporary: Path, tmp_path: Path, start: Callable[[str, str], None]) -> None:
    (temporary / f"{scratch.PREFIX}left").mkdir()
    with pytest.raises(ConfigurationError, match="absent"):
        start(str(tmp_path / "absent"), str(tmp_path / "out"))
    assert list(temporary.iterdir()) == []


def test_other_users_other_programs_and_links_are_left_alone(
    temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (temporary / "qualitygate-older").mkdir()
    (temporary / f"{scratch.PREFIX}file").write_bytes(b"")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").write_bytes(b"")
    (temporary / f"{scratch.PREFIX}link").symlink_to(elsewhere)
    scratch.sweep()
    assert len(list(temporary.iterdir())) == 3
    assert (elsewhere / "kept").exists()
    other = temporary / f"{scratch.PREFIX}other"
    other.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: os.stat(other).st_uid + 1)
        scratch.sweep()
        assert other.exists()
    scratch.sweep()
    assert not other.exists()


def test_one_that_cannot_be_removed_stops_nothing(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        (temporary / f"{scratch.PREFIX}{name}").mkdir()
    remove = shutil.rmtree

    def fails(path: str) -> None:
        if path.endswith("b"):
            raise PermissionError(13, "no")
        remove(path)

    monkeypatch.setattr(shutil, "rmtree", fails)
    scratch.sweep()
    assert [path.name for path in temporary.iterdir()] == [f"{scratch.PREFIX}b"]
    monkeypatch.setattr(tempfile, "tempdir", str(temporary / "absent"))
    scratch.sweep()


def test_a_folder_that_was_swept_before_it_was_locked_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    hold, taken = scratch._held, []

    def late(folder: str) -> int | None:
        if not taken:
            taken.append(folder)
            scratch.sweep()
        return hold(folder)

    monkeypatch.setattr(scratch, "_held", late)
    with scratch.scratch_folder() as made:
        assert os.path.isdir(made)
        assert not os.path.exists(taken[0])


def test_there_is_no_other_way_to_a_scratch_folder() -> None:
    """One that isn't locked is never removed after a kill."""
    sources = [path for path in (ROOT / "qualitygate").rglob("*.py") if path != Path(scratch.__file__)]
    assert len(sources) > 100
    others = re.compile(r"TemporaryDirectory\(|mkdtemp\(")
    assert [path.name for path in sources if others.search(path.read_text(encoding="utf-8"))] == []

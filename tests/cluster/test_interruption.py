"""Drivers that are killed, stopped or started twice: compared by sets of ids and by scores, never by exit codes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from job_helpers import write_photographs

from qualitygate.tables import scores

pytestmark = pytest.mark.cluster

METRICS = "lapv,brisque"
COUNT = 90


def _start(source: Path, output: Path, *more: str) -> "subprocess.Popen[str]":
    command = [
        sys.executable,
        "-m",
        "qualitygate.cli",
        "score",
        "--input",
        str(source),
        "--output",
        str(output),
    ]
    return subprocess.Popen(
        [*command, "--metrics", METRICS, "--commit-rows", "10", "--batch-size", "5", *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "RAY_ADDRESS": ""},
        start_new_session=True,
    )


def _committed(output: Path) -> list[dict[str, Any]]:
    table = scores.open_table(str(output))
    if table is None or not table.file_uris():
        return []
    found: list[dict[str, Any]] = scores.dataset(table).to_table().to_pylist()
    return found


def _wait_for_rows(output: Path, process: "subprocess.Popen[str]", more_than: int) -> int:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        rows = len(_committed(output))
        if rows > more_than:
            return rows
        time.sleep(0.05)
    raise AssertionError(f"no more than {more_than} rows: {process.communicate()[1][-2000:]}")


def _scores(output: Path) -> dict[str, tuple[Any, ...]]:
    rows = _committed(output)
    assert len({row["image_id"] for row in rows}) == len(rows), "an id stands twice"
    return {row["image_id"]: (row["sha256"], row["lapv"], row["brisque"], row["status"]) for row in rows}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    # Large enough that a run lasts for some seconds after its first commit.
    write_photographs(folder, COUNT, side=900)
    return folder


@pytest.fixture(scope="module")
def undisturbed(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, ...]]:
    output = tmp_path_factory.mktemp("undisturbed")
    process = _start(photographs, output)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-2000:]
    found = _scores(output)
    assert len(found) == COUNT
    return found


def test_a_driver_killed_twice_is_resumed_to_the_same_table(
    photographs: Path, undisturbed: dict[str, tuple[Any, ...]], tmp_path: Path
) -> None:
    committed = 0
    for _ in range(2):
        process = _start(photographs, tmp_path)
        committed = _wait_for_rows(tmp_path, process, committed)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        assert committed < COUNT, "the run was over before it could be killed: the test shows nothing"
    process = _start(photographs, tmp_path)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-2000:]
    assert f"{COUNT} rows, 0 done" not in errors
    assert _scores(tmp_path) == undisturbed


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_says_how_to_go_on_and_goes_on(photographs: Path, tmp_path: Path, stop: signal.Signals) -> None:
    process = _start(photographs, tmp_path)
    _wait_for_rows(tmp_path, process, 0)
    process.send_signal(stop)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors[-2000:]
    assert "run the same command again" in errors
    assert "Traceback" not in errors
    kept = _scores(tmp_path)
    assert 0 < len(kept) < COUNT
    process = _start(photographs, tmp_path)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-2000:]
    after = _scores(tmp_path)
    assert len(after) == COUNT
    assert {key: after[key] for key in kept} == kept


def test_of_two_drivers_at_once_one_finishes_and_no_row_stands_twice(
    photographs: Path, undisturbed: dict[str, tuple[Any, ...]], tmp_path: Path
) -> None:
    first = _start(photographs, tmp_path, "--workers", "1", "--batch-size", "1", "--commit-rows", "1")
    # Its claim is made; Ray and the photographs are before it. The second's claim comes before its Ray, so it takes
    # over however busy the machine is.
    deadline = time.monotonic() + 120
    while not (tmp_path / "_config.yaml").exists():
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    second = _start(photographs, tmp_path)
    _, first_errors = first.communicate(timeout=300)
    _, second_errors = second.communicate(timeout=300)
    assert second.returncode == 0, second_errors[-2000:]
    assert first.returncode == 2, first_errors[-2000:]
    assert "another run has taken over" in first_errors
    assert _scores(tmp_path) == undisturbed

"""Nights from a bucket into a bucket, by the command line and on a real Ray: a week, and jobs that are stopped."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import obstore
import pyarrow.parquet as pq
import pytest
import seaweedfs
import without_ray
import yaml
from job_helpers import Silent
from nights_here import METRIC, SETTINGS, rows_of, state_of
from simulated_nights import Feed

from qualitygate.calibration import gate, gate_store
from qualitygate.cli import main
from qualitygate.cluster import session
from qualitygate.config import NightlyConfig
from qualitygate.nightly import canary, job, lock, record, trend
from qualitygate.nightly.record import Night
from qualitygate.tables import scores, storage, stores

pytestmark = pytest.mark.cluster

SECRETS = (seaweedfs.ACCESS_KEY, seaweedfs.SECRET_KEY)
Put = Callable[[str, dict[str, bytes]], None]


@dataclass
class Project:
    """A feed below s3://BUCKET/feed, its labels and settings, and everything that nights make of them."""

    bucket: str
    put: Put
    folder: Path
    settings: dict[str, Any]
    feed: Feed = field(default_factory=lambda: Feed(seed=1))
    name: str = "quality"

    @property
    def output(self) -> str:
        return f"s3://{self.bucket}/{self.name}"

    @property
    def store(self) -> str:
        return f"{self.output}/gates"

    def add(self, night: str, count: int, *, labels: int | None = None, **kind: Any) -> None:
        """A night's photographs arrive, and the labels; labels: so many are left of what was labelled, of all."""
        made = self.feed.add(night, count, **kind)
        self.put(self.bucket, {f"feed/{name}": data for name, data in made.items()})
        kept = Feed(labels=self.feed.labels[:labels])
        self.put(self.bucket, {"labels/predictions.parquet": kept.predictions()})

    def config(self) -> dict[str, Any]:
        """A night's settings."""
        usual = {"input": f"s3://{self.bucket}/feed", "output": self.output}
        return self.settings | usual | {"predictions": f"s3://{self.bucket}/labels/predictions.parquet"}

    def command(self, night: str, *more: str) -> list[str]:
        """The arguments of a night's command, with its settings in a file."""
        path = self.folder / "nightly.yaml"
        path.write_text(yaml.safe_dump(self.config()))
        return ["nightly", "--config", str(path), "--night", night, *more]

    def undisturbed(self, night: str) -> "Project":
        """The same night in another output, in this process, where nothing happens to it."""
        calm = replace(self, name="undisturbed")
        with pytest.MonkeyPatch.context() as patch:
            without_ray.install(patch)
            outcome = job.run(NightlyConfig(**calm.config(), night=night), lambda _: Silent())
        assert (outcome.night.state, outcome.night.reasons) == ("promoted", ())
        return calm

    def night(self, name: str) -> Night:
        found = record.read(self.output, name)
        assert found is not None
        return found

    def failed(self, name: str) -> list[str]:
        """Names of the checks that a night failed."""
        return [check.name for check in self.night(name).checks if not check.passed]

    def written(self) -> dict[str, bytes]:
        """All objects of the output."""
        store, _ = stores.object_store(f"s3://{self.bucket}")
        return {
            item["path"]: bytes(obstore.get(store, item["path"]).bytes())
            for page in obstore.list(store, self.name)
            for item in page
        }


@pytest.fixture
def project(bucket: str, put: Put, tmp_path: Path) -> Project:
    return Project(bucket, put, tmp_path, dict(SETTINGS))


# ---- six nights ----------------------------------------------------------------------------------------------


@pytest.fixture
def one_ray(server: seaweedfs.Server, environment: None) -> Iterator[None]:
    """One Ray for all nights of a test, as on a cluster: a night starts none of its own then.

    Another test's, if it is still there, would be used in its place, and doesn't know the store's credentials.
    """
    import ray

    ray.shutdown()
    with session.connect("local"):
        yield


def _said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """(exit code, what a command says)."""
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    said = capsys.readouterr()
    return int(end.value.code or 0), said.out + said.err


def _regress(output: str) -> bytes:
    """As if another library had made the known scores: each 1 % larger than what is measured now.

    Of a metric nothing but the numbers in the canary says what it gave before, so to change these is to change the
    metric since. Returns the canary as it was.
    """
    uri = storage.join(output, canary.FILE)
    before = storage.read_bytes(uri)
    known = canary.read(output)
    assert before is not None
    assert known is not None
    moved = [1.01 * score for score in known[METRIC].to_pylist()]
    canary.write(output, known.set_column(known.column_names.index(METRIC), METRIC, [moved]))
    return before


@pytest.mark.timeout(600)
def test_six_nights(project: Project, one_ray: None, capsys: pytest.CaptureFixture[str]) -> None:
    said = ""

    def run(night: str, code: int) -> str:
        nonlocal said
        ended, here = _said(capsys, *project.command(night))
        assert ended == code, here[-3000:]
        said += here
        return here

    # Normal: the first gate.
    project.add("n1", 200)
    here = run("1-normal", 0)
    assert "night 1-normal: a new gate is in force" in here
    first = gate.load(project.output).id
    assert gate_store.read(project.store).current == gate_store.read(project.store).changes[0]
    assert project.night("1-normal").gate_after == first

    # A drifted camera: everything is blurred.
    project.add("n2", 60, extra_blur=2.5)
    here = run("2-drifted", 4)
    assert f"night 2-drifted is refused, gate {first} stays in force: tonight's photographs are unlike" in here
    assert f"{METRIC} fell from a median of" in " ".join(here.split())
    assert project.failed("2-drifted") == ["drift"]

    # A broken feed: of half of the files the second half is missing.
    project.add("n3", 60, corrupt=0.5)
    here = run("3-broken", 4)
    assert "of tonight's 60 photographs have no score" in here
    assert "mostly truncated" in " ".join(here.split())
    assert project.failed("3-broken") == ["errors", "drift"]

    # Too little data: the photographs are sound, but most labels went missing.
    project.add("n4", 60, labels=60)
    here = run("4-few-labels", 4)
    assert "60 labelled photographs, at least 100 are needed" in here
    assert project.failed("4-few-labels")[0] == "labelled"
    assert project.night("4-few-labels").trusted

    # A regression: refused before anything is scored.
    known = _regress(project.output)
    project.add("n5", 60)
    here = run("5-regression", 4)
    assert f"scores of the same photographs moved: {METRIC} moved by up to" in here
    assert project.failed("5-regression") == ["canary"]
    assert set(project.night("5-regression").steps) & {"manifest", "score", "decide"} == set()
    assert rows_of(project.output, "night-5-regression") == []
    assert gate.load(project.output).id == first

    # Recovery: the library is what it was, and all labels are back.
    storage.write_bytes(storage.join(project.output, canary.FILE), known)
    project.add("n6", 60)
    here = run("6-recovery", 0)
    assert "night 6-recovery: a new gate is in force" in here
    night = project.night("6-recovery")
    assert (night.steps["drift"]["rows"], night.steps["calibrate"]["labelled"], night.trusted) == (120, 380, True)
    second = gate.load(project.output).id
    assert (night.gate_before, night.gate_after) == (first, second)
    assert second != first

    # Every reason is in the record and on the page too; a night that has ended is not done again.
    for name in ("2-drifted", "3-broken", "4-few-labels", "5-regression"):
        assert project.night(name).state == "refused"
        page = storage.read_bytes(record.place(project.output, name, "report.html")) or b""
        assert name in page.decode()
    assert run("6-recovery", 0).count("had ended before, nothing was done") == 1
    assert run("2-drifted", 4).count("had ended before, nothing was done") == 1
    table = storage.read_bytes(storage.join(project.output, trend.FILE)) or b""
    states = [row["state"] for row in pq.read_table(BytesIO(table)).to_pylist()]
    assert states == ["promoted", "refused", "refused", "refused", "refused", "promoted"]

    # And back.
    code, here = _said(capsys, "gate", "rollback", "--store", project.output, "--reason", "it rejects the new bottles")
    assert (code, gate.load(project.output).id) == (0, first)
    assert f"gate {first} is in force, in place of {second}" in here
    code, here = _said(capsys, "gate", "history", "--store", project.output)
    assert "it rejects the new bottles" in here
    assert [change.gate_id for change in gate_store.read(project.store).changes] == [first, second, first]

    for secret in SECRETS:
        assert secret not in said
        assert not [name for name, data in project.written().items() if secret.encode() in data]


# ---- jobs that are stopped -----------------------------------------------------------------------------------


def _started(project: Project, night: str, *more: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "qualitygate.cli", *project.command(night, *more)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "RAY_ADDRESS": ""},
        start_new_session=True,
    )


def _ended(process: "subprocess.Popen[str]", code: int) -> str:
    try:
        said, _ = process.communicate(timeout=240)
    finally:
        _kill(process)
    assert process.returncode == code, said[-3000:]
    return said


def _kill(process: "subprocess.Popen[str]") -> None:
    """The job and all that it started, as when its machine is switched off."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _wait_for_rows(project: Project, night: str, process: "subprocess.Popen[str]") -> int:
    """Return when some of a night's rows are committed."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        table = scores.open_table(project.output)
        rows = len(rows_of(project.output, f"night-{night}")) if table is not None else 0
        if rows:
            return rows
        time.sleep(0.2)
    _kill(process)
    raise AssertionError(f"no rows: {process.communicate()[0][-3000:]}")


@pytest.mark.timeout(600)
def test_jobs_that_are_stopped(project: Project) -> None:
    """Two at once, SIGKILL, SIGTERM and a deadline; what is left behind is what undisturbed nights leave behind."""
    project.settings |= {"canary": 0}
    project.settings["score"] = SETTINGS["score"] | {"commit_rows": 4, "batch_size": 4, "workers": 1}
    project.add("n1", 200)
    project.undisturbed("1")

    # Two at once: the second says who is at work. The first is killed with all its processes.
    killed = _started(project, "1", "--score", "max_requests_per_second=8")
    rows = _wait_for_rows(project, "1", killed)
    said = _ended(_started(project, "1"), 2)
    assert "another nightly job is at work: on " in said
    assert ", night 1; its lock expires in " in said
    _kill(killed)
    killed.communicate()
    assert rows < 200
    assert project.night("1").state == "running"
    _ended(_started(project, "1"), 0)
    first = gate.load(project.output).id

    # Stopped in an orderly way: the lock is free.
    project.add("n2", 40)
    calm = project.undisturbed("2")
    stopped = _started(project, "2", "--score", "max_requests_per_second=2")
    rows = _wait_for_rows(project, "2", stopped)
    stopped.send_signal(signal.SIGTERM)
    said = _ended(stopped, 130)
    assert "run the same command again to score the rest" in said
    assert rows < 40
    free, _ = lock.read(project.output)
    assert free is not None
    assert free.released

    # A deadline: at one photograph in two seconds the others would take a minute.
    said = _ended(_started(project, "2", "--deadline", "15s", "--score", "max_requests_per_second=.5"), 3)
    assert "night 2: the deadline came before all photographs were scored" in said
    assert 200 + rows <= len(rows_of(project.output)) < 240
    assert project.night("2").state == "deadline"
    assert gate.load(project.output).id == first

    _ended(_started(project, "2"), 0)
    assert state_of(project.output) == state_of(calm.output)


# ---- a store that goes away ----------------------------------------------------------------------------------

AWAY_S = 20


def _wait_for_step(project: Project, night: str, step: str, process: "subprocess.Popen[str]") -> None:
    """Return when a step of a night is entered in its record."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        found = record.read(project.output, night)
        if found is not None and step in found.steps:
            return
        time.sleep(0.1)
    _kill(process)
    raise AssertionError(f"no step {step}: {process.communicate()[0][-3000:]}")


@pytest.mark.timeout(600)
def test_the_store_goes_away_for_a_while(project: Project, server: seaweedfs.Server) -> None:
    """Once in the middle of the scoring, once while the night decides: it ends as it would have."""
    project.settings["score"] = SETTINGS["score"] | {"commit_rows": 4, "batch_size": 4, "workers": 1}
    project.add("n1", 200)
    calm = project.undisturbed("1")

    process = _started(project, "1", "--score", "max_requests_per_second=8")
    rows = _wait_for_rows(project, "1", process)
    server.kill()
    assert rows < 200
    time.sleep(AWAY_S)
    assert process.poll() is None
    server.start()
    # What is written from here on: the candidate, the record, the gate in force, the table's upkeep, the report.
    _wait_for_step(project, "1", "drift", process)
    server.kill()
    time.sleep(AWAY_S)
    assert process.poll() is None
    server.start()
    said = _ended(process, 0)
    assert "night 1: a new gate is in force" in said
    assert [row["image_id"] for row in rows_of(project.output)] == sorted(project.feed.objects)
    assert state_of(project.output) == state_of(calm.output)

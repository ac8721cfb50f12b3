"""The study on real Ray: killed workers and drivers change nothing, a failed run stops no other, inputs are checked."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import study_on_disk
import torch
from filelock import FileLock
from job_helpers import Silent

from qualitygate.cluster import study, study_costs, study_group
from qualitygate.config import StudyConfig, StudyPlanConfig, SubsetsConfig, load
from qualitygate.errors import ConfigurationError, QualityGateError
from qualitygate.tables import storage
from qualitygate.training import models, record
from qualitygate.training.ledger import CHECKPOINTS, FOLDER, Ledger

pytestmark = pytest.mark.cluster

SETTINGS: dict[str, Any] = {
    "architectures": ("squeezenet1_1",),
    "epochs": 3,
    "image_size": 32,
    "seeds": 2,
    "removed": (0.0,),
    "controls": False,
    "learning_rate": 1e-3,
    "batch_size": 4,
    "device": "cpu",
    "checkpoint_share": 1.0,
}
# What tells when, how often and where, not what came out.
OF_THE_ATTEMPT = ["seconds", "attempts", "hardware", "versions"]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("given")
    torch.save(models.build("squeezenet1_1", 5, image_size=32, seed=7).state_dict(), folder / "pretrained.pth")
    return {**study_on_disk.write(folder, 96), "weights": str(folder / "pretrained.pth")}


def config(given: dict[str, str], output: Path, **more: Any) -> StudyConfig:
    return StudyConfig(**{**given, "output": str(output), **SETTINGS, **more})


@pytest.fixture(scope="module")
def undisturbed(
    ray_session: Any, given: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, study.Result]:
    output = tmp_path_factory.mktemp("undisturbed")
    return output, study.run(config(given, output, workers=2), Silent())


def same(one: Path, other: Path) -> None:
    first, second = (pq.read_table(folder / "runs.parquet").drop_columns(OF_THE_ATTEMPT) for folder in (one, other))
    assert first.equals(second)
    tables = [pq.read_table(folder / "predictions.parquet") for folder in (one, other)]
    assert tables[0].equals(tables[1])
    for name in ("table2.csv", "table3.csv", "verdicts.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


# ---- processes that the tests kill -------------------------------------------------------------------------


def workers_of(ancestor: int) -> list[int]:
    """Process ids of the training workers below one of our own processes."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                named = b"RayTrainWorker" in (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if named and ancestor in ancestors(int(folder.name)):
                found.append(int(folder.name))
    return found


def ancestors(process: int) -> Iterator[int]:
    while process > 1:
        try:
            process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return
        yield process


def wait_for(what: Callable[[], Any], seconds: float = 180) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.02)
    raise AssertionError("it didn't happen in time")


def checkpoints(output: Path) -> dict[str, int]:
    """Run ids with a checkpoint, and when it was written."""
    found = {}
    for path in (output / CHECKPOINTS).glob("*.pt"):
        try:
            found[path.stem] = path.stat().st_mtime_ns
        except FileNotFoundError:
            continue
    return found


def entries(output: Path) -> set[str]:
    return {path.name for path in (output / FOLDER).glob("[!_]*")}


# ---- tests -------------------------------------------------------------------------------------------------


def test_a_study_leaves_everything_that_it_promises(undisturbed: tuple[Path, study.Result]) -> None:
    output, _ = undisturbed
    runs = pq.read_table(output / "runs.parquet")
    assert runs.num_rows == 6
    assert set(runs["status"].to_pylist()) == {"ok"}
    assert {len(series) for series in runs["train_loss"].to_pylist()} == {3}
    assert all(said.endswith(" CPU, 1 thread") for said in runs["hardware"].to_pylist())
    record = json.loads((output / "study.json").read_bytes())
    assert record["runs"] == {"planned": 6, "finished": 6, "failed": 0, "reused": 0}
    assert {row["kind"] for row in runs.to_pylist()} == {"high", "all", "varying"}
    assert not any(runs["from_scratch"].to_pylist())
    assert pc.count_distinct(runs["weights_sha256"]).as_py() == 1
    names = {path.name for path in output.iterdir()}
    assert {"table2.md", "table3.md", "verdicts.md", "subsets", "decisions", "_config.yaml"} <= names
    assert "_work" not in names
    predictions = pq.read_table(output / "predictions.parquet")
    for number in range(2):
        tests = set(pq.read_table(output / f"subsets/tests-{number}-all.parquet")["group"].to_pylist())
        for path in (output / "subsets").glob(f"*-{number}-train.parquet"):
            assert not tests & set(pq.read_table(path)["group"].to_pylist())
    assert set(pc.unique(predictions["run_id"]).to_pylist()) == set(runs["run_id"].to_pylist())


def test_a_finished_study_is_not_trained_again(
    undisturbed: tuple[Path, study.Result], given: dict[str, str], silent: Silent
) -> None:
    output, before = undisturbed
    written = {path: path.stat().st_mtime_ns for path in (output / FOLDER).iterdir()}
    result = study.run(config(given, output), silent)
    assert result.record["runs"]["reused"] == 6
    assert result.runs.equals(before.runs)
    assert {path: path.stat().st_mtime_ns for path in (output / FOLDER).iterdir()} == written


def test_killed_worker_and_killed_driver_change_nothing(
    undisturbed: tuple[Path, study.Result], given: dict[str, str], tmp_path: Path, silent: Silent
) -> None:
    """A worker is killed within a run, later the driver; what a driver of another number of workers adds fits."""
    path = tmp_path / "study.yaml"
    path.write_text(json.dumps({**given, "output": str(tmp_path / "out"), **SETTINGS, "workers": 1}))
    output = tmp_path / "out"
    driver = subprocess.Popen(
        [sys.executable, "-m", "qualitygate.cli", "study", "--config", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "RAY_ADDRESS": ""},
        start_new_session=True,
    )
    try:
        interrupted = set(wait_for(lambda: checkpoints(output)))
        for process in workers_of(driver.pid):
            os.kill(process, signal.SIGKILL)
        wait_for(lambda: entries(output))
        wait_for(lambda: checkpoints(output).keys() - interrupted)
        driver.kill()
    finally:
        driver.kill()
        said = driver.communicate(timeout=60)[0]
    assert "a worker died; going on with 1 run" in said
    assert "(raylet)" not in said
    assert "Traceback" not in said
    kept = entries(output)
    assert 0 < len(kept) < 6, said
    result = study.run(config(given, output, workers=2), silent)
    # Workers notice after a moment that their driver is dead: what they finish until then counts too.
    assert len(kept) <= silent.done < 6
    assert result.record["runs"]["reused"] == silent.done
    attempts = dict(zip(result.runs["run_id"].to_pylist(), result.runs["attempts"].to_pylist(), strict=True))
    assert {attempts[run_id] for run_id in interrupted} == {2}
    same(undisturbed[0], output)


def test_a_stopped_study_says_how_to_go_on(given: dict[str, str], tmp_path: Path) -> None:
    path, output = tmp_path / "study.yaml", tmp_path / "out"
    path.write_text(json.dumps({**given, "output": str(output), **SETTINGS, "epochs": 500}))
    driver = subprocess.Popen(
        [sys.executable, "-m", "qualitygate.cli", "study", "--config", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "RAY_ADDRESS": ""},
        start_new_session=True,
    )
    try:
        wait_for(lambda: checkpoints(output))
        driver.send_signal(signal.SIGINT)
        said = driver.communicate(timeout=120)[0]
    finally:
        driver.kill()
    assert driver.returncode == 130, said
    assert "run the same command again: what is finished is kept" in said
    assert "Traceback" not in said
    assert checkpoints(output)


def test_an_output_that_cant_be_written_to_stops_the_study(
    ray_session: Any, given: dict[str, str], tmp_path: Path, silent: Silent
) -> None:
    asked = config(given, tmp_path, seeds=1, kinds=("high",))
    (tmp_path / FOLDER).write_text("a file where the ledger's folder should be")
    with pytest.raises(QualityGateError, match=r"can't be written to .* run the same command again"):
        study.run(asked, silent)
    assert not (tmp_path / "study.json").exists()
    (tmp_path / FOLDER).unlink()
    assert study.run(asked, silent).record["runs"]["finished"] == 1


def test_a_run_that_kills_its_worker_twice_fails_and_stops_no_other(
    undisturbed: tuple[Path, study.Result], given: dict[str, str], tmp_path: Path, silent: Silent
) -> None:
    output, ended = tmp_path, threading.Event()
    seen: dict[str, int] = {}
    culprit: list[str] = []

    def kill() -> None:
        """Whoever trains the first run dies at each of its checkpoints."""
        while not ended.is_set():
            for run_id, written in checkpoints(output).items():
                culprit[:] = culprit or [run_id]
                if run_id == culprit[0] and seen.get(run_id) != written:
                    seen[run_id] = written
                    for process in workers_of(os.getpid()):
                        os.kill(process, signal.SIGKILL)
            time.sleep(0.01)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        # Long enough that each attempt leaves a checkpoint before it ends.
        result = study.run(config(given, output, workers=1, seeds=1, epochs=12), silent)
    finally:
        ended.set()
        killer.join()
    failed = [row for row in result.runs.to_pylist() if row["status"] == "failed"]
    assert [row["run_id"] for row in failed] == culprit
    assert "its worker died 2 times" in failed[0]["error"]
    assert failed[0]["attempts"] == 2
    assert result.record["runs"] == {"planned": 3, "finished": 2, "failed": 1, "reused": 0}
    assert silent.errors == 1
    assert "1 runs failed" in (output / "table2.md").read_text()


def test_what_a_worker_said_before_it_died_is_kept_with_the_run() -> None:
    told: list[Any] = []
    listener = study_group._Listener(Silent(), {0: 3, 1: 3}, lambda *said: told.append(said), 2)
    listener.hear([("start", (0, 0)), ("error", (0, "RuntimeError: before")), ("start", (0, 0))])
    listener.hear([("error", (0, "RuntimeError: the cause")), ("error", (0, "RuntimeError: lost a neighbour"))])
    listener.hear([("killer", (0, 2)), ("start", (1, 0)), ("killer", (1, 2))])
    assert told == [(0, 2, "RuntimeError: the cause"), (1, 2, None)]


def test_a_run_that_raises_is_recorded_and_can_be_tried_again(
    ray_session: Any, given: dict[str, str], tmp_path: Path, undisturbed: tuple[Path, study.Result]
) -> None:
    run_id = undisturbed[1].runs["run_id"].to_pylist()[0]
    # A checkpoint of another network: it can be read, but doesn't fit.
    Ledger(str(tmp_path)).save_checkpoint(run_id, {"epoch": 1, "model": {"a": torch.zeros(1)}, "optimizer": {}})
    result = study.run(config(given, tmp_path), Silent())
    assert result.record["runs"] == {"planned": 6, "finished": 5, "failed": 1, "reused": 0}
    assert (
        "size mismatch" in result.record["failed"][0]["error"] or "Missing key" in result.record["failed"][0]["error"]
    )
    again = study.run(config(given, tmp_path, retry_failed=True), Silent())
    assert again.record["runs"] == {"planned": 6, "finished": 6, "failed": 0, "reused": 5}
    same(undisturbed[0], tmp_path)


def test_two_workers_on_one_run_do_as_well_as_one(
    undisturbed: tuple[Path, study.Result], given: dict[str, str], tmp_path: Path
) -> None:
    # Gentle enough that dropout, which differs, doesn't decide what is learnt.
    more = {"seeds": 1, "kinds": ("high",), "epochs": 8, "batch_size": 8, "learning_rate": 3e-4}
    alone = study.run(config(given, tmp_path / "one", **more), Silent())
    together = study.run(config(given, tmp_path / "two", ddp=2, **more), Silent())
    assert together.runs["hardware"].to_pylist()[0].endswith("2 processes")
    assert together.runs["run_id"].to_pylist() != alone.runs["run_id"].to_pylist()
    losses = [np.array(result.runs["train_loss"].to_pylist()[0]) for result in (alone, together)]
    np.testing.assert_allclose(losses[0][:2], losses[1][:2], atol=0.1)
    assert losses[1][-1] < 0.8 * losses[1][0], losses
    assert abs(alone.runs["auc"].to_pylist()[0] - together.runs["auc"].to_pylist()[0]) < 0.2


def test_unreadable_photographs_are_dropped_from_every_subset_or_refused(
    ray_session: Any, tmp_path: Path, silent: Silent
) -> None:
    given = study_on_disk.write(tmp_path / "given", 96)
    broken = tmp_path / "given" / "photographs" / "p003.png"
    broken.write_bytes(broken.read_bytes()[:100])
    settings = {key: SETTINGS[key] for key in ("seeds", "removed", "controls")}
    asked = SubsetsConfig(**given, **settings, output=str(tmp_path / "out"))
    drawn = study.subsets(asked, silent)
    assert drawn.photographs == 95
    named = r"1 of 96 photographs can't be read \(1 truncated: '[^']*p003.png'; the first: "
    assert any(re.search(named, message) for message in drawn.messages), drawn.messages
    for path in (tmp_path / "out" / "subsets").glob("*.parquet"):
        assert "p003.png" not in pq.read_table(path)["image_id"].to_pylist()
    with pytest.raises(ConfigurationError, match=named + ".*--on-unreadable drop"):
        study.subsets(asked.model_copy(update={"on_unreadable": "refuse"}), silent)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"architectures": ("resnet81",)}, "unknown architecture 'resnet81'; did you mean resnet18"),
        ({"architectures": ("alexnet",)}, "alexnet can't take photographs of 32 x 32 pixels"),
        ({"from_scratch": True}, "--weights and --from-scratch contradict"),
        ({"ddp": 2, "workers": 3}, "leave --workers out"),
        ({"workers": 99}, "99 workers need as many CPUs"),
        ({"train_images": 5000, "strict_size": True}, "5,000"),
        ({"weights": "nowhere.pth"}, "is neither a file or folder nor a name"),
        ({"architectures": ("resnet18", "resnet34")}, "is no folder, but there are 2 architectures"),
        ({"output": " "}, "--output is empty"),
        ({"gate": "nowhere/gate.json"}, "there is no gate.json"),
    ],
)
def test_what_cant_be_done_is_said_in_one_line(
    ray_session: Any, given: dict[str, str], tmp_path: Path, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        study.run(StudyConfig(**{**given, "output": str(tmp_path), **SETTINGS, **more}), Silent())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "study.json").exists()


def test_parameters_that_have_seen_the_photographs_are_refused(
    ray_session: Any, given: dict[str, str], tmp_path: Path
) -> None:
    state = models.build("squeezenet1_1", 2, image_size=32, seed=7).state_dict()
    for subset in ("eval", "train"):
        ids = pa.table({"image_id": ["p003.png"], "group": ["other"], "sha256": ["0"], "subset": [subset]})
        facts = {"architecture": "squeezenet1_1", "classes": ["above", "below"], "image_size": 32}
        record.write(str(tmp_path / subset), state, ids.cast(record.IDS_SCHEMA), [], facts)
    with pytest.raises(ConfigurationError, match=r"trained on 1 of these photographs, or on others of their groups"):
        study.run(config(given, tmp_path / "out", weights=str(tmp_path / "train")), Silent())
    fine = config(given, tmp_path / "out", weights=str(tmp_path / "eval"), epochs=1, seeds=1, kinds=("high",))
    found = study.run(fine, Silent())
    assert found.runs["status"].to_pylist() == ["ok"]
    assert any("other than ImageNet's" in caveat for caveat in found.judgement.caveats)


def test_a_folder_that_is_at_work_or_full_is_said(ray_session: Any, given: dict[str, str], tmp_path: Path) -> None:
    with FileLock(tmp_path / "_study.lock"), pytest.raises(ConfigurationError, match="another study is at work"):
        study.run(config(given, tmp_path), Silent())


def test_a_plan_says_what_a_study_takes_before_it_starts(given: dict[str, str], tmp_path: Path) -> None:
    paper = Path(__file__).parents[2] / "manifests" / "studies" / "paper.yaml"
    planned = study_costs.estimate(load(StudyPlanConfig, paper, {"measure": False}))
    assert planned["runs"] == 70
    assert planned["training_images"] == 70 * 40 * 1293
    assert 6 < planned["gpu_minutes"] < 12
    own = study_costs.estimate(StudyPlanConfig(**given, **SETTINGS))
    assert own["runs"] == 6
    assert own["cpu_hours"] > 0
    assert not storage.exists(str(tmp_path / "out"))
    with pytest.raises(ConfigurationError, match="--gate missing"):
        study_costs.estimate(StudyPlanConfig(manifest="m", scores="s"))

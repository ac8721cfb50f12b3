"""A RayJob's entrypoint runs as it is written, from the installed wheel, with the settings that are mounted."""

import json
import shlex
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from commands import manifests
from image import run

DOCUMENTS = {(document["kind"], document["metadata"]["name"]): document for _, document in manifests()}


def as_written(site: Path, folder: Path, job: str, places: dict[str, str], code: int = 0) -> str:
    """Run a RayJob's entrypoint with the settings that are mounted for it, but for the places that are given.

    Returns what it says; asserts the exit code.
    """
    settings = yaml.safe_load(DOCUMENTS["ConfigMap", "qualitygate"]["data"][f"{job}.yaml"])
    for name in places:
        assert settings[name].startswith("s3://"), name
    (folder / f"{job}.yaml").write_text(yaml.safe_dump(settings | places))
    entrypoint = DOCUMENTS["RayJob", f"qualitygate-{job}"]["spec"]["entrypoint"]
    assert entrypoint.count("/etc/qualitygate") == 1
    words = shlex.split(entrypoint.replace("/etc/qualitygate", str(folder)))
    assert words[0] == "python"
    done = run(site, sys.executable, *words[1:])
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def photographs(site: Path, tmp_path: Path) -> str:
    """Five photographs in a folder, with their manifest."""
    command = f"dataset render --name calibration --count 5 --size 256 --output {tmp_path}/in"
    done = run(site, "qualitygate", *shlex.split(command))
    assert done.returncode == 0, done.stderr
    return f"{tmp_path}/in"


@pytest.mark.cluster
def test_the_scoring_job_runs_as_written(site: Path, photographs: str, tmp_path: Path) -> None:
    """Only the buckets are other ones: folders with five photographs."""
    places = {"input": f"{photographs}/manifest.parquet", "output": f"{tmp_path}/out"}
    as_written(site, tmp_path, "score", places)
    stats = json.loads((tmp_path / "out" / "_stats.json").read_text())
    assert stats["manifest"]["by_status"] == {"ok": 5}


@pytest.mark.cluster
def test_the_nightly_job_runs_as_written(site: Path, photographs: str, tmp_path: Path) -> None:
    """Five photographs and few labels are no gate, so it refuses; a second start finds that, without scoring."""
    labels = [{"image_id": f"images/c{number:05}-1.jpg", "correct": True, "confidence": 0.9} for number in range(5)]
    pq.write_table(pa.Table.from_pylist(labels), tmp_path / "labels.parquet")
    places = {
        "input": f"{photographs}/images",
        "output": f"{tmp_path}/night",
        "predictions": f"{tmp_path}/labels.parquet",
    }
    said = as_written(site, tmp_path, "nightly", places, code=4)
    assert "is refused, no gate is in force" in said
    stats = json.loads((tmp_path / "night" / "_stats.json").read_text())
    assert stats["manifest"]["by_status"] == {"ok": 5}
    assert "had ended before, nothing was done" in as_written(site, tmp_path, "nightly", places, code=4)


def test_the_nights_pod_runs_as_written(site: Path, tmp_path: Path) -> None:
    """Outside of a pod it says what it lacks; before that it has read the RayJob which is mounted."""
    pod = DOCUMENTS["CronJob", "qualitygate-nightly"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    data = DOCUMENTS["ConfigMap", "qualitygate-rayjob-nightly"]["data"]
    (tmp_path / "rayjob.yaml").write_text(data["rayjob.yaml"])
    words = [word.replace("/etc/rayjob", str(tmp_path)) for word in container["command"]]
    assert words != container["command"]
    done = run(site, sys.executable, *words[1:])
    assert (done.returncode, "JOB_NAME isn't set" in done.stderr) == (2, True), done.stderr
    (tmp_path / "rayjob.yaml").write_text("kind: RayService")
    done = run(site, sys.executable, *words[1:])
    assert (done.returncode, "is no RayJob" in done.stderr) == (2, True), done.stderr

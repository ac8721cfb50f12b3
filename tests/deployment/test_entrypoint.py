"""A RayJob's entrypoint runs as it is written, from the installed wheel, with the settings that are mounted."""

import json
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from commands import manifests
from image import run


@pytest.mark.cluster
def test_the_scoring_job_runs_as_written(site: Path, tmp_path: Path) -> None:
    """Only the buckets are other ones: folders with five photographs."""
    done = run(
        site,
        "qualitygate",
        *shlex.split(f"dataset render --name calibration --count 5 --size 256 --output {tmp_path}/in"),
    )
    assert done.returncode == 0, done.stderr
    documents = {(document["kind"], document["metadata"]["name"]): document for _, document in manifests()}
    settings = yaml.safe_load(documents["ConfigMap", "qualitygate"]["data"]["score.yaml"])
    assert settings["input"].startswith("s3://")
    assert settings["output"].startswith("s3://")
    (tmp_path / "score.yaml").write_text(
        yaml.safe_dump(settings | {"input": f"{tmp_path}/in/manifest.parquet", "output": f"{tmp_path}/out"})
    )
    entrypoint = documents["RayJob", "qualitygate-score"]["spec"]["entrypoint"]
    assert entrypoint.count("/etc/qualitygate") == 1
    words = shlex.split(entrypoint.replace("/etc/qualitygate", str(tmp_path)))
    assert words[0] == "python"
    done = run(site, sys.executable, *words[1:])
    assert done.returncode == 0, done.stdout + done.stderr
    stats = json.loads((tmp_path / "out" / "_stats.json").read_text())
    assert stats["manifest"]["by_status"] == {"ok": 5}

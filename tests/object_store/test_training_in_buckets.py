"""Training, prediction and a study that read from a bucket and write into it, by the command line."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import study_on_disk
import torch

from qualitygate.tables import storage
from qualitygate.training import models

pytestmark = pytest.mark.cluster

ARCHITECTURE = "squeezenet1_1"
# As little as is trained at all: what comes out is tested elsewhere.
BRIEFLY = ["--epochs", "1", "--image-size", "32", "--batch-size", "4", "--device", "cpu"]


def _qualitygate(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "qualitygate.cli", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "RAY_ADDRESS": ""},
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout + done.stderr


def _given(folder: Path, bucket: str) -> dict[str, str]:
    """The inputs of a study, all in the bucket: photographs, manifest, scores, gate and pretrained parameters."""
    made = study_on_disk.write(folder, 96)
    manifest = pq.read_table(made["manifest"])
    uris = []
    for name, uri in zip(manifest["image_id"].to_pylist(), manifest["uri"].to_pylist(), strict=True):
        uris.append(f"s3://{bucket}/in/{name}")
        storage.write_bytes(uris[-1], (Path(made["manifest"]).parent / uri).read_bytes())
    manifest = manifest.set_column(manifest.column_names.index("uri"), "uri", [uris])
    buffer = io.BytesIO()
    pq.write_table(manifest, buffer)
    torch.save(models.build(ARCHITECTURE, 5, image_size=32, seed=7).state_dict(), folder / "pretrained.pth")
    given = {name: f"s3://{bucket}/given/{Path(made[name]).name}" for name in ("manifest", "scores", "gate")}
    given["weights"] = f"s3://{bucket}/given/pretrained.pth"
    storage.write_bytes(given["manifest"], buffer.getvalue())
    for name, path in (("scores", made["scores"]), ("gate", made["gate"]), ("weights", folder / "pretrained.pth")):
        storage.write_bytes(given[name], Path(path).read_bytes())
    return given


def _rows(uri: str) -> pa.Table:
    return pq.read_table(pa.BufferReader(storage.read_bytes(uri) or b""))


@pytest.mark.timeout(600)
def test_a_study_in_a_bucket(bucket: str, tmp_path: Path) -> None:
    output = f"s3://{bucket}/study"
    given = _given(tmp_path, bucket)
    options = [part for name, value in given.items() for part in (f"--{name}", value)]
    options += ["--output", output, "--architectures", ARCHITECTURE, "--kinds", "high,all", "--seeds", "2"]
    options += ["--removed", "0", "--no-controls", "--workers", "1", "--retry-seconds", "120", *BRIEFLY]
    assert "4 of 4 runs" in _qualitygate("study", *options)
    runs = _rows(f"{output}/runs.parquet")
    assert runs.num_rows == 4
    written = {item.name for item in storage.everything(output)}
    assert {"verdicts.json", "table2.csv", "table3.csv", "predictions.parquet", "_config.yaml"} <= written
    # The same command goes on from the ledger in the bucket: nothing is trained again.
    assert "4 runs, 4 done already, 0 to do" in _qualitygate("study", *options)
    assert _rows(f"{output}/runs.parquet").equals(runs)


@pytest.mark.timeout(600)
def test_a_classifier_from_a_bucket_into_a_bucket(bucket: str, tmp_path: Path) -> None:
    given = _given(tmp_path, bucket)
    place, weights = ["--input", given["manifest"]], ["--weights", given["weights"]]
    model = f"s3://{bucket}/baseline"
    _qualitygate("train-baseline", *place, *weights, "--output", model, "--architecture", ARCHITECTURE, *BRIEFLY)
    record = json.loads(storage.read_bytes(f"{model}/model.json") or b"")
    assert record["architecture"] == ARCHITECTURE
    output = f"s3://{bucket}/predictions"
    asked = ["--max-requests-per-second", "500", "--request-timeout-s", "10"]
    _qualitygate("predict", *place, "--weights", model, "--output", output, "--workers", "1", "--device", "cpu", *asked)
    found = _rows(f"{output}/predictions.parquet")
    assert sorted(found["image_id"].to_pylist()) == sorted(_rows(given["manifest"])["image_id"].to_pylist())

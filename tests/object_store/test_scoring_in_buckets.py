"""Scoring from a bucket into a bucket, on a real Ray, while the store goes away for a while."""

import io
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import obstore
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import seaweedfs
from job_helpers import write_photographs

import qualitygate
from qualitygate.tables import manifest_build, scores, storage, stores

pytestmark = pytest.mark.cluster

METRICS = ("lapv", "lapm")
LOOSE, IN_ARCHIVE, IN_TABLE = 30, 6, 6
SECRETS = (seaweedfs.ACCESS_KEY, seaweedfs.SECRET_KEY, seaweedfs.WORKER_KEY, seaweedfs.WORKER_SECRET)
OWN_SECRET = "secret-inside-a-uri"
Put = Callable[[str, dict[str, bytes]], None]


def _qualitygate(*arguments: str) -> "subprocess.Popen[str]":
    # As a worker with the rights that it needs and no others.
    worker = {"AWS_ACCESS_KEY_ID": seaweedfs.WORKER_KEY, "AWS_SECRET_ACCESS_KEY": seaweedfs.WORKER_SECRET}
    return subprocess.Popen(
        [sys.executable, "-m", "qualitygate.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **worker, "RAY_ADDRESS": ""},
        start_new_session=True,
    )


def _ended(process: "subprocess.Popen[str]") -> str:
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said[-3000:]
    return said


def _photographs(tmp_path: Path, put: Put) -> dict[str, bytes]:
    """Photographs in the bucket `open`, loose, in an archive and in a table; their bytes by image_id."""
    names = write_photographs(tmp_path / "all", LOOSE + IN_ARCHIVE + IN_TABLE)
    data = [(name, (tmp_path / "all" / name).read_bytes()) for name in names]
    loose, archived, tabled = data[:LOOSE], data[LOOSE:-IN_TABLE], data[-IN_TABLE:]
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as writer:
        for name, content in archived:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            writer.addfile(member, io.BytesIO(content))
    table = io.BytesIO()
    pq.write_table(pa.table({"image": [content for _, content in tabled]}), table, row_group_size=4)
    put("open", {f"in/{name}": content for name, content in loose})
    put("open", {"in/shard-0.tar": archive.getvalue(), "in/part-0.parquet": table.getvalue()})
    return (
        dict(loose)
        | {f"shard-0.tar/{name}": content for name, content in archived}
        | {f"part-0.parquet/{row}": content for row, (_, content) in enumerate(tabled)}
    )


def _with_unreadable(uri: str) -> None:
    """Add rows that have no photograph: one isn't there, one may not be read, one carries a secret."""
    table = pq.read_table(pa.BufferReader(storage.read_bytes(uri) or b""))
    rows = [
        {"image_id": "missing", "uri": "s3://open/in/absent.jpg"},
        {"image_id": "denied", "uri": "s3://closed/secret.jpg"},
        {"image_id": "with-credentials", "uri": f"s3://someone:{OWN_SECRET}@open/in/p0001.jpg"},
    ]
    added = pa.Table.from_pylist(rows, schema=manifest_build.SCHEMA)
    buffer = io.BytesIO()
    pq.write_table(
        pa.concat_tables([table.select(manifest_build.SCHEMA.names).cast(manifest_build.SCHEMA), added]), buffer
    )
    storage.write_bytes(uri, buffer.getvalue())


def _wait_for_rows(output: str, process: "subprocess.Popen[str]") -> int:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        table = scores.open_table(output)
        if table is not None and table.file_uris():
            return int(scores.dataset(table).to_table(columns=["image_id"]).num_rows)
        time.sleep(0.2)
    raise AssertionError(f"no rows: {process.communicate()[0][-3000:]}")


def _all_bytes(bucket: str) -> dict[str, bytes]:
    store, _ = stores.object_store(f"s3://{bucket}")
    return {
        item["path"]: bytes(obstore.get(store, item["path"]).bytes()) for page in obstore.list(store) for item in page
    }


def test_every_row_arrives_although_the_store_is_away_for_a_while(
    server: seaweedfs.Server, put: Put, tmp_path: Path
) -> None:
    for bucket in ("open", "closed", "results"):
        seaweedfs.make_bucket(bucket)
    put("closed", {"secret.jpg": b"x"})
    content = _photographs(tmp_path, put)
    said = _ended(_qualitygate("manifest", "build", "--input", "s3://open/in", "--output", "s3://results/m.parquet"))
    assert f"{len(content)} images" in said
    _with_unreadable("s3://results/m.parquet")

    output = "s3://results/run"
    command = ["score", "--input", "s3://results/m.parquet", "--output", output, "--metrics", ",".join(METRICS)]
    command += ["--commit-rows", "4", "--batch-size", "4", "--workers", "1", "--max-error-rate", "0.5"]
    # Slow enough that the store goes away in the middle.
    process = _qualitygate(*command, "--max-requests-per-second", "2")
    before = _wait_for_rows(output, process)
    server.kill()
    assert before < len(content)
    time.sleep(20)
    server.start()
    said += _ended(process)

    rows: dict[str, dict[str, Any]] = {}
    for row in scores.dataset(scores.existing_table(output)).to_table().to_pylist():
        assert row["image_id"] not in rows
        rows[row["image_id"]] = row
    assert set(rows) == set(content) | {"missing", "denied", "with-credentials"}
    codes = {name: rows.pop(name)["error_code"] for name in ("missing", "denied", "with-credentials")}
    assert codes == {"missing": "missing", "denied": "denied", "with-credentials": "denied"}
    _the_scores_are_those_of_the_bytes(rows, content)

    # Nothing is left to do, and nothing gives a secret away.
    said += _ended(_qualitygate(*command))
    stats = json.loads(storage.read_bytes(f"{output}/_stats.json") or b"")
    assert stats["scored"]["rows"] == 0
    written = _all_bytes("results")
    assert {"run/_stats.json", "run/_config.yaml", "run/_fingerprints.json"} <= set(written)
    for secret in (*SECRETS, OWN_SECRET):
        assert secret not in said
        holders = [name for name, data in written.items() if secret.encode() in data and name != "m.parquet"]
        assert not holders


def _the_scores_are_those_of_the_bytes(rows: dict[str, dict[str, Any]], content: dict[str, bytes]) -> None:
    table = qualitygate.score(list(content.values()), metrics=list(METRICS))
    for name, expected in zip(content, table.to_pylist(), strict=True):
        assert {metric: rows[name][metric] for metric in METRICS} == {metric: expected[metric] for metric in METRICS}

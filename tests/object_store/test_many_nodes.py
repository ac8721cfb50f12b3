"""One job on several Ray nodes, from a bucket into a bucket, while all of them but one are lost."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import seaweedfs
from job_helpers import write_photographs
from test_scoring_in_buckets import _ended, _wait_for_rows

import qualitygate
from qualitygate.cluster import session
from qualitygate.tables import scores

pytestmark = pytest.mark.cluster

PHOTOGRAPHS = 48


@pytest.fixture
def cluster(environment: None) -> Iterator[Any]:
    """A head that computes nothing, and three nodes of two CPUs, each in processes of its own."""
    session._quiet_environment()
    from ray.cluster_utils import Cluster

    nodes = {"object_store_memory": 80 << 20, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **nodes})
    try:
        workers = [made.add_node(num_cpus=2, **nodes) for _ in range(3)]
        yield made, workers
    finally:
        made.shutdown()


def _score(address: str, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "qualitygate.cli", "score", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "RAY_ADDRESS": address},
        start_new_session=True,
    )


def test_nodes_that_are_lost_cost_no_row(
    server: seaweedfs.Server,
    put: Callable[[str, dict[str, bytes]], None],
    bucket: str,
    cluster: tuple[Any, list[Any]],
    tmp_path: Path,
) -> None:
    names = write_photographs(tmp_path, PHOTOGRAPHS)
    put(bucket, {f"in/{name}": (tmp_path / name).read_bytes() for name in names})
    made, nodes = cluster
    output = f"s3://{bucket}/run"
    arguments = ["--input", f"s3://{bucket}/in", "--output", output, "--metrics", "lapv,lapm", "--commit-rows", "4"]
    # Slow enough that nodes are lost in the middle; as many workers as the job chooses.
    process = _score(made.address, *arguments, "--batch-size", "2", "--max-requests-per-second", "4")
    before = _wait_for_rows(output, process)
    made.remove_node(nodes[0], allow_graceful=False)
    # Whatever the run needs besides its workers was on none of these two.
    made.remove_node(nodes[1], allow_graceful=False)
    assert before < PHOTOGRAPHS
    _ended(process)
    rows = scores.dataset(scores.existing_table(output)).to_table().to_pylist()
    assert sorted(row["image_id"] for row in rows) == names
    assert {row["status"] for row in rows} == {"ok"}
    table = qualitygate.score([tmp_path / name for name in names], metrics=["lapv", "lapm"])
    alone = {Path(row["uri"]).name: row for row in table.to_pylist()}
    assert all(row["lapm"] == alone[row["image_id"]]["lapm"] for row in rows)

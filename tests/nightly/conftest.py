"""Score tables and gates as nights leave them, made without scoring or calibrating anything; and a first night."""

import copy
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import without_ray
from nights_here import FIRST, Nights

from qualitygate.calibration import gate
from qualitygate.calibration.gate import Gate
from qualitygate.tables import scores

NOW = datetime(2026, 11, 23, 2, 0, tzinfo=UTC)
METRIC = "lapm"


def _write(output: str, rows: Sequence[Mapping[str, Any]], run_id: str = "night-n1", at: datetime = NOW) -> None:
    """Rows of `image_id` and, as you like, other columns; without a score they have failed."""
    writer = scores.Writer(output, [METRIC], run_id)
    made = []
    for row in rows:
        fine = row.get(METRIC) is not None
        code = None if fine else row.get("error_code", "truncated")
        usual = {
            "uri": f"/photos/{row['image_id']}",
            "sha256": f"sha of {row['image_id']}",
            "status": "ok" if fine else "error",
            "error_code": code,
            "attempts": 1,
            "run_id": run_id,
            "scored_at": at,
            scores.state_column(METRIC): scores.OK if fine else f"{scores.FAILED}{code}",
            scores.fingerprint_column(METRIC): "f",
        }
        made.append(usual | row)
    table = pa.Table.from_pylist(made, schema=writer.schema)
    writer.commit(table, table.slice(0, 0))


def _gate(cutoff: float | None = 0.5, **changed: Any) -> Gate:
    """One method, lapm, whose scores below the cut-off are rejected. changed: of the method, or of the gate."""
    method: dict[str, Any] = {"direction": "higher", "status": "ok", "cutoff": cutoff, "reason": None}
    method["interval"] = None if cutoff is None else [cutoff - 0.1, cutoff + 0.1]
    method |= {name: changed.pop(name) for name in list(changed) if name in method}
    content: dict[str, Any] = {
        "format": gate.FORMAT,
        "version": gate.VERSION,
        "created": "2026-01-02T03:04:05+00:00",
        "parent": None,
        "votes_needed": 1,
        "coverage": 0.5,
        "methods": {METRIC: method},
        "fingerprints": {METRIC: "f"},
        "untrained": [],
    } | changed
    return gate.parse(content | {"id": gate.identity(content)}, "a gate")


def _many(count: int, prefix: str = "p", seed: int = 0, **columns: Any) -> list[dict[str, Any]]:
    """Rows with scores that are uniform in [0, 1)."""
    values = np.random.default_rng(seed).random(count)
    return [
        {"image_id": f"{prefix}{number:05}", METRIC: float(value), **columns} for number, value in enumerate(values)
    ]


@pytest.fixture
def write() -> Callable[..., None]:
    return _write


@pytest.fixture
def make_gate() -> Callable[..., Gate]:
    return _gate


@pytest.fixture
def many() -> Callable[..., list[dict[str, Any]]]:
    return _many


@pytest.fixture(scope="session")
def first_night(tmp_path_factory: pytest.TempPathFactory) -> Nights:
    """A feed whose first night has promoted a gate."""
    nights = Nights(tmp_path_factory.mktemp("first"))
    nights.add("n1", FIRST)
    with pytest.MonkeyPatch.context() as patch:
        without_ray.install(patch)
        outcome = nights.run("n1")
    assert outcome.night.state == "promoted"
    return nights


@pytest.fixture
def nights(first_night: Nights, tmp_path: Path) -> Iterator[Nights]:
    """The same to go on from, in an output of its own; what is added to the feed is taken away afterwards."""
    shutil.copytree(first_night.output, tmp_path / "out")
    made = Nights(first_night.root, feed=copy.deepcopy(first_night.feed), output=str(tmp_path / "out"))
    yield made
    for folder in (first_night.root / "in").iterdir():
        if folder.name != "n1":
            shutil.rmtree(folder)

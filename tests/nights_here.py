"""Nights in this process, without Ray, and the state that they leave behind, so that two can be compared."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from job_helpers import Silent
from simulated_nights import Feed

from qualitygate.calibration import gate, gate_store
from qualitygate.config import NightlyConfig
from qualitygate.nightly import canary, job, record, trend
from qualitygate.nightly.job import Outcome
from qualitygate.tables import scores, storage

METRIC = "lapm"
# Photographs of the first night.
FIRST = 200
# Of records: when, how long, by whom, and how much work was left for this start or try.
_PASSING = ("started", "finished", "seconds", "at", "by", "fence", "page", "upkeep", "created", "_config", "earlier")
SETTINGS: dict[str, Any] = {
    "score": {"metrics": METRIC, "commit_rows": 16, "measure": False},
    # As few repetitions as are allowed: what they tell is tested elsewhere.
    "calibrate": {"methods": METRIC, "bootstrap": 50, "permutations": 99, "folds": 2, "repeats": 1},
    "canary": 20,
    "min_labelled": 100,
    "min_audited": 10,
    # Of a few hundred photographs, some dozen are tonight's: one method's cut-off is not that sure.
    "max_coverage_change": 0.3,
    "audit_share": 0.2,
    "thumbnails": False,
}


@dataclass
class Nights:
    """A feed in root/in, its labels beside it, and nights in an output folder."""

    root: Path
    # A seed whose nights are like one another: of a hundred sound ones, one or so is taken for drifted.
    feed: Feed = field(default_factory=lambda: Feed(seed=1))
    output: str = ""
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.output = self.output or str(self.root / "out")

    def add(self, night: str, count: int = 60, **kind: Any) -> list[str]:
        """A night's photographs and their labels arrive; returns their names."""
        made = self.feed.add(night, count, **kind)
        for name, data in made.items():
            path = self.root / "in" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        (self.root / "labels.parquet").write_bytes(self.feed.predictions())
        return list(made)

    def config(self, night: str, **changed: Any) -> NightlyConfig:
        """The settings of a night."""
        usual = {"input": str(self.root / "in"), "predictions": str(self.root / "labels.parquet")}
        return NightlyConfig(**(SETTINGS | usual | {"output": self.output, "night": night} | changed))

    def run(self, night: str, **changed: Any) -> Outcome:
        """Do a night, or what is left of it."""
        told = Silent()
        try:
            return job.run(self.config(night, **changed), lambda _: told)
        finally:
            self.notes = told.notes

    def failed(self, night: str) -> list[str]:
        """Names of the checks that a night failed."""
        found = record.read(self.output, night)
        assert found is not None
        return [check.name for check in found.checks if not check.passed]


def rows_of(output: str, run_id: str | None = None) -> list[dict[str, Any]]:
    """Rows of the score table in order of their id, of one run or of all."""
    found = scores.dataset(scores.existing_table(output))
    # Without any file it is a table already.
    rows: list[dict[str, Any]] = (found if isinstance(found, pa.Table) else found.to_table()).to_pylist()
    return sorted((row for row in rows if run_id in (None, row["run_id"])), key=lambda row: row["image_id"])


def state_of(output: str) -> dict[str, Any]:
    """All that nights leave behind, but for times and for how much of the work was left to the last start."""
    nights = storage.subfolders(storage.join(output, record.NIGHTS))
    store = storage.join(output, gate.FOLDER)
    found: dict[str, Any] = {
        "rows": [{key: value for key, value in row.items() if key != "scored_at"} for row in rows_of(output)],
        "history": [vars_of(change) for change in gate_store.read(store).changes],
        "gates": {name: gate_store.load(store, name).content for name in storage.subfolders(store)},
        "canary": _table(storage.join(output, canary.FILE)),
        "manifest": _table(storage.join(output, job.MANIFEST)),
        "nights.parquet": _table(storage.join(output, trend.FILE)),
    }
    for night in nights:
        data = storage.read_bytes(record.place(output, night, record.FILE))
        found[f"{night}/record"] = json.loads(data or b"null")
        for name in ("audit_sample.parquet", "manifest.parquet", "labelled.parquet", "labelled/predictions.parquet"):
            found[f"{night}/{name}"] = _table(record.place(output, night, name))
        files = storage.everything(record.place(output, night))
        found[f"{night}/files"] = sorted(one.name for one in files if not one.name.startswith("earlier/"))
        found[f"{night}/report"] = storage.exists(record.place(output, night, job.REPORT))
        found[f"{night}/canary"] = storage.exists(record.place(output, night, "canary"))
    plain: dict[str, Any] = _without_passing(found)
    return plain


def vars_of(change: gate_store.Change) -> dict[str, Any]:
    """One entry of the history as a dictionary."""
    return {name: getattr(change, name) for name in change.__slots__}


def _table(uri: str) -> list[dict[str, Any]] | None:
    data = storage.read_bytes(uri)
    return None if data is None else list(pq.read_table(pa.BufferReader(data)).to_pylist())


def _without_passing(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_passing(part) for key, part in value.items() if key not in _PASSING}
    return [_without_passing(part) for part in value] if isinstance(value, list | tuple) else value

"""Scoring in this process: all of the scoring job but Ray, for tests of what is built upon it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qualitygate.cluster import score_costs, scoring, session
from qualitygate.metrics.rows import Request, RowScorer, to_table

_ROWS = 16


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `scoring.run` score here: what is due, what is committed, counted and audited stays its own."""
    monkeypatch.setattr(session, "connect", _nowhere)
    monkeypatch.setattr(scoring, "_stream", _stream)


@contextmanager
def _nowhere(_: str) -> Iterator[session.Cluster]:
    yield session.Cluster(cpus=1.0, gpus=0.0, local=True)


def _stream(run: Any, cluster: session.Cluster, spool: Path, rows: int, _beyond: int) -> None:
    score_costs.check_budget(run.config, run.plan, spool)
    schema = run.writer.schema.append(pa.field("_replaces", pa.bool_())).append(pa.field("_trace", pa.string()))
    scorer = RowScorer(replace(run.plan, device="cpu"), run_id=run.run_id)
    before = run.recorder.rows
    for file in sorted(spool.glob("*.parquet")):
        for batch in pq.ParquetFile(file).iter_batches(_ROWS):
            made = []
            for due in batch.to_pylist():
                request = Request(**{name: due[name] for name in ("image_id", "uri", "box", "etag", "previous")})
                made.append(scorer.row(request, scorer.fetch(request)) | {"_replaces": request.previous is not None})
            run.recorder.add(to_table(made, schema))
            if run.late() and run.recorder.rows - before < rows:
                raise scoring._TimeIsUp
    run.recorder.commit()

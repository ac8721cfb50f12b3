"""Scoring in this process: all of the scoring job but Ray, for tests of what is built upon it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qualitygate.cluster import planning, score_costs, scoring
from qualitygate.config import ScoreConfig
from qualitygate.metrics.rows import Plan, Request, RowScorer, to_table
from qualitygate.tables import scores

_ROWS = 16


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `scoring.run` score here: what is due, what is committed, counted and audited stays its own."""
    monkeypatch.setattr(scoring, "_stream", _stream)


def _stream(
    config: ScoreConfig,
    plan: Plan,
    run_id: str,
    writer: scores.Writer,
    spool: Path,
    rows: int,
    recorder: Any,
    worker: type | None,
    progress: planning.Progress,
    deadline: float | None,
) -> None:
    score_costs.check_budget(config, plan, spool)
    schema = writer.schema.append(pa.field("_replaces", pa.bool_())).append(pa.field("_trace", pa.string()))
    scorer = RowScorer(replace(plan, device="cpu"), run_id=run_id)
    for file in sorted(spool.glob("*.parquet")):
        for batch in pq.ParquetFile(file).iter_batches(_ROWS):
            made = []
            for due in batch.to_pylist():
                request = Request(**{name: due[name] for name in ("image_id", "uri", "box", "etag", "previous")})
                made.append(scorer.row(request, scorer.fetch(request)) | {"_replaces": request.previous is not None})
            recorder.add(to_table(made, schema))
            if deadline is not None and scoring.time.time() >= deadline and recorder.rows < rows:
                raise scoring._TimeIsUp
    recorder.commit()

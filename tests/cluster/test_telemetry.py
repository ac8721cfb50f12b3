"""Numbers for Prometheus: those of the record, at Ray's endpoint and in the text file, and never a reason to fail."""

import json
import re
import time
import urllib.request
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from job_helpers import Silent, write_photographs

from qualitygate.cluster import scoring, telemetry
from qualitygate.config import ScoreConfig
from qualitygate.errors import ConfigurationError, ErrorBudgetExceeded
from qualitygate.tables import runs

_LINE = re.compile(r"^(\w+)\{(.*)\} (\S+)$")
# Ray gathers what processes counted every ten seconds.
_PATIENCE_S = 90


def _parsed(text: str) -> dict[tuple[str, str], float]:
    """Values by (name, the label that divides it), of the one output in the text."""
    found: dict[tuple[str, str], float] = {}
    for line in text.splitlines():
        if match := _LINE.match(line):
            labels = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[2]))
            divided = next((labels[key] for key in ("status", "code", "stage", "le") if key in labels), "")
            key = (match[1], divided)
            found[key] = found.get(key, 0.0) + float(match[3])
    return found


def _of_the_record(stats: dict[str, Any]) -> dict[tuple[str, str], float]:
    expected = {("qualitygate_commits_total", ""): stats["scored"]["commits"]}
    expected |= {("qualitygate_rows_total", key): count for key, count in stats["scored"]["by_status"].items()}
    expected |= {("qualitygate_errors_total", key): count for key, count in stats["scored"]["by_code"].items()}
    expected |= {("qualitygate_stage_seconds_total", key): s for key, s in stats["seconds_by_stage"].items()}
    return {**expected, ("qualitygate_busy_seconds_total", ""): stats["busy_seconds"]}


def _photographs(folder: Path) -> None:
    write_photographs(folder, 9)
    (folder / "text.jpg").write_text("no image")


@pytest.mark.cluster
def test_what_ray_exports_is_what_the_record_says(tmp_path: Path, ray_session: Any) -> None:
    port = ray_session.nodes()[0]["MetricsExportPort"]
    assert port > 0, "Ray without its metrics agent: install ray[default] (the extra dev)"
    _photographs(tmp_path / "in")
    output, file = tmp_path / "out", tmp_path / "run.prom"
    config = ScoreConfig(
        input=str(tmp_path / "in"),
        output=str(output),
        metrics=("lapv", "lapm"),
        max_error_rate=1,
        commit_rows=4,
        metrics_textfile=str(file),
    )
    stats = scoring.run(config, Silent()).stats
    expected = _of_the_record(stats)
    assert expected["qualitygate_rows_total", "ok"] == 9
    assert expected["qualitygate_errors_total", "undecodable"] == 1
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
        ours = [line for line in text.splitlines() if f'output="{output}"' in line]
        scraped = _parsed("\n".join(ours))
        if scraped.get(("ray_qualitygate_last_run_good", "")) == 1 or time.monotonic() > deadline:
            break
        time.sleep(1)
    assert {key: scraped.get((f"ray_{key[0]}", key[1])) for key in expected} == pytest.approx(expected, abs=1e-3)
    assert scraped["ray_qualitygate_rows_pending", ""] == 0
    assert scraped["ray_qualitygate_task_rows_count", ""] >= 1
    ended = runs.ended(stats)
    assert ended is not None
    success = "qualitygate_last_success_timestamp_seconds"
    assert scraped[f"ray_{success}", ""] == pytest.approx(ended.timestamp(), abs=60)
    # The file says the same once the run has ended, and no session is there to be asked.
    written = _parsed(file.read_text())
    assert {key: written[key] for key in expected} == pytest.approx(expected, abs=1e-3)
    assert written["qualitygate_task_rows_sum", ""] == 10
    assert written[success, ""] == scraped[f"ray_{success}", ""]
    # What fails later leaves the time of the last good run as it was.
    (tmp_path / "in" / "more.jpg").write_text("no image either")
    with pytest.raises(ErrorBudgetExceeded):
        scoring.run(config.model_copy(update={"max_error_rate": 0.0}), Silent())
    later = _parsed(file.read_text())
    assert later["qualitygate_last_run_good", ""] == 0
    assert later[success, ""] == pytest.approx(ended.timestamp(), abs=1)


def test_a_run_that_never_starts_is_in_the_file_too(tmp_path: Path) -> None:
    file = tmp_path / "run.prom"
    with pytest.raises(ConfigurationError):
        scoring.run(ScoreConfig(input="/nowhere", output=str(tmp_path / "out"), metrics_textfile=str(file)), Silent())
    assert _parsed(file.read_text()) == {("qualitygate_last_run_good", ""): 0.0}


def test_the_text_is_in_prometheus_format() -> None:
    counted = telemetry.Telemetry('s3://b/"odd"\\path')
    counted.count("rows", 3, status="ok")
    counted.count("rows", 2, status="ok")
    for rows in (1, 3, 4, 600):
        counted.observe("task_rows", rows)
    text = counted.text()
    assert "# TYPE qualitygate_rows_total counter\n" in text
    assert 'qualitygate_rows_total{output="s3://b/\\"odd\\"\\\\path",status="ok"} 5\n' in text
    found = _parsed(text)
    buckets = {key: value for (name, key), value in found.items() if name == "qualitygate_task_rows_bucket"}
    few = dict.fromkeys(("4", "8", "16", "32", "64", "128", "256", "512"), 3)
    assert buckets == {"1": 1, "2": 1, **few, "1024": 4, "+Inf": 4}
    assert (found["qualitygate_task_rows_sum", ""], found["qualitygate_task_rows_count", ""]) == (608, 4)


def test_nothing_that_goes_wrong_with_metrics_ends_a_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import ray

    def refuse(*_: Any) -> None:
        raise RuntimeError("no agent")

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(telemetry, "_made", refuse)
    counted = telemetry.Telemetry(str(tmp_path))
    with counted.written(str(tmp_path / "no" / "such\0folder" / "x.prom")):
        counted.started(5)
        counted.count("rows", 3, status="ok")
        counted.ended(good=True)
    messages = [record.getMessage() for record in caplog.records]
    assert sum("Ray takes no metrics (RuntimeError)" in message for message in messages) == 1
    assert "can't be written" in messages[-1]
    assert _parsed(counted.text())["qualitygate_rows_total", "ok"] == 3


def test_the_last_good_run_is_the_newest_that_was_done(tmp_path: Path) -> None:
    assert runs.last_good(str(tmp_path)) is None
    history = tmp_path / "_history"
    history.mkdir()
    for day, state in ((1, "done"), (2, "done"), (3, "interrupted")):
        record = {"state": state, "started": f"2026-01-0{day}T00:00:00+00:00", "seconds": 60.0}
        (history / f"2026010{day}T000000Z-x.json").write_text(json.dumps(record))
    assert runs.last_good(str(tmp_path)) == datetime.fromisoformat("2026-01-02T00:01:00+00:00")
    (history / "20260109T000000Z-x.json").write_text("{")
    assert runs.last_good(str(tmp_path)) == datetime.fromisoformat("2026-01-02T00:01:00+00:00")

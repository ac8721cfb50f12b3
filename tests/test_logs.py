"""Logs as JSON: each line on stderr an object that says what, when and of which verb; stdout as it was."""

import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qualitygate import cli, logs
from qualitygate.errors import ConfigurationError, Interrupted
from qualitygate.report import progress

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(logs.VARIABLE, raising=False)
    yield
    monkeypatch.delenv(logs.VARIABLE, raising=False)
    logs.set_up()


def _call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    return int(ended.value.code or 0)


def _lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--log-format", "json", "export", "--input", "/nowhere", "--output", "x.csv"),
        ("--log-format=json", "export", "--input", "/nowhere", "--output", "x.csv"),
        # As the jobs' scripts have it: the verb first.
        ("export", "--log-format", "json", "--input", "/nowhere", "--output", "x.csv"),
    ],
)
def test_an_error_is_one_object(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    assert _call(*arguments) == 2
    (line,) = _lines(capsys)
    assert datetime.fromisoformat(line.pop("time")).utcoffset() is not None
    assert "holds no scores" in line.pop("message")
    assert line == {
        "level": "error",
        "event": "failed",
        "verb": "export",
        "error": "ConfigurationError",
        "exit_code": 2,
    }


def test_the_environment_asks_for_it_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(logs.VARIABLE, "json")
    assert _call("manifest", "build", "--no-such-flag") == 2
    (line,) = _lines(capsys)
    assert (line["event"], line["verb"], line["error"]) == ("failed", "manifest build", "UsageError")
    assert _call("metrics", "--json") == 0
    told = capsys.readouterr()
    assert json.loads(told.out)
    (ended,) = [json.loads(line) for line in told.err.splitlines()]
    assert (ended["event"], ended["exit_code"], ended["verb"]) == ("ended", 0, "metrics")
    # The command line wins.
    assert _call("--log-format", "text", "metrics") == 0
    assert capsys.readouterr().err == ""


def test_another_format_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert _call("--log-format", "xml", "metrics") == 2
    assert "'xml' is none of text, json" in capsys.readouterr().err
    monkeypatch.setenv(logs.VARIABLE, "yaml")
    with pytest.raises(ConfigurationError, match="'yaml' is none of"):
        logs.set_up()


def test_loggers_warnings_and_progress_say_what_they_are_part_of(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("json", verb="score")
    logs.bind(run_id="run-7")
    logging.getLogger("qualitygate.tables").info("read %s", "s3://user:secret@bucket/x")
    logging.getLogger("elsewhere").info("chatter")
    logging.getLogger("elsewhere").warning("low on disk")
    warnings.warn("an odd file", UserWarning, stacklevel=1)
    try:
        raise ValueError("first\nsecond s3://bucket/x?X-Amz-Signature=abc")
    except ValueError:
        logging.getLogger("qualitygate").exception("went wrong")
    bar = progress.for_stream("photographs")
    bar.start(total=10, done=4)
    bar.note("starting")
    bar.advance(rows=6, errors=1)
    bar.stop()
    written = capsys.readouterr().err
    assert "secret" not in written
    assert "Signature=abc" not in written
    lines = [json.loads(line) for line in written.splitlines()]
    assert all((line["verb"], line["run_id"]) == ("score", "run-7") for line in lines)
    assert [(line["event"], line["level"]) for line in lines] == [
        ("log", "info"),
        ("log", "warning"),
        ("log", "warning"),
        ("log", "error"),
        ("progress", "info"),
        ("note", "info"),
        ("progress", "info"),
    ]
    assert "an odd file" in lines[2]["message"]
    assert "ValueError: first\nsecond" in lines[3]["exception"]
    counts = {key: lines[-1][key] for key in ("unit", "total", "done", "errors")}
    assert counts == {"unit": "photographs", "total": 10, "done": 10, "errors": 1}


def test_an_exception_that_nobody_expected_is_an_object_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from qualitygate.tables import scores

    def fail(*_: Any) -> None:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(scores, "export", fail)
    given = ("export", "--input", "a", "--output", "b.csv")
    assert _call("--log-format", "json", *given) == 1
    first, last = _lines(capsys)
    assert "RuntimeError: unforeseen" in first["exception"]
    assert (last["event"], last["error"], last["exit_code"]) == ("failed", "RuntimeError", 1)
    with pytest.raises(RuntimeError):
        cli.main(list(given))


def test_a_stop_is_said_before_the_process_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from qualitygate.tables import scores

    def stop(*_: Any) -> None:
        raise Interrupted("run the same command again")

    def end(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(scores, "export", stop)
    monkeypatch.setattr(os, "_exit", end)
    assert _call("--log-format", "json", "export", "--input", "a", "--output", "b.csv") == 130
    (line,) = _lines(capsys)
    assert (line["message"], line["error"], line["exit_code"]) == ("run the same command again", "Interrupted", 130)


def test_a_jobs_script_logs_so_as_well() -> None:
    command = [sys.executable, "-m", "jobs.score", "--log-format", "json", "--input", "/nowhere", "--output", "/proc/x"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = [json.loads(line) for line in done.stderr.splitlines()]
    assert (line["verb"], line["event"], line["exit_code"]) == ("score", "failed", 2)
    assert line["run_id"]
    waiting = subprocess.run(
        [sys.executable, "-m", "jobs.run_rayjob", "/nowhere.yaml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, logs.VARIABLE: "json"},
    )
    (line,) = [json.loads(line) for line in waiting.stderr.splitlines()]
    assert (line["verb"], line["exit_code"], waiting.returncode) == ("run_rayjob", 2, 2)


@pytest.mark.parametrize("verb", ["score", "robustness", "predict", "train-baseline", "study"])
def test_every_worker_logs_as_the_driver_does(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the first that a worker does: what it has to say of its own start is JSON already."""
    from qualitygate.cluster import predicting_worker, study_worker, training_worker, variants, workers

    class Reached(Exception):
        pass

    def reach(*_: Any, **__: Any) -> Any:
        raise Reached

    asked: list[tuple[str | None, str]] = []
    monkeypatch.setattr(logs, "set_up", lambda form=None, verb="", **_: asked.append((form, verb)))
    settings: Any = SimpleNamespace(log_format=logs.JSON, run_id="r", threads=1)
    for module in (workers, variants):
        monkeypatch.setattr(module, "use_threads", reach)
    monkeypatch.setattr(predicting_worker.loop, "deterministic", reach)
    monkeypatch.setattr(training_worker, "_train", reach)
    monkeypatch.setattr(
        study_worker, "ray", SimpleNamespace(get=lambda found: found, train=SimpleNamespace(get_context=reach))
    )
    starts: dict[str, Any] = {
        "score": lambda: workers.ScoringWorker(None, settings, None, None, "pending"),  # type: ignore[arg-type]
        "robustness": lambda: variants.SampleScorer(None, settings, None, None),  # type: ignore[arg-type]
        "predict": lambda: predicting_worker.PredictingWorker(settings, None, None),
        "train-baseline": lambda: training_worker.train({"work": settings}),
        "study": lambda: study_worker.work({"study": settings}),
    }
    with pytest.raises(Reached):
        starts[verb]()
    assert asked == [(logs.JSON, verb)]


@pytest.mark.parametrize("driver", ["scoring", "robustness", "prediction", "baseline", "study_training"])
def test_every_driver_tells_its_workers(driver: str) -> None:
    assert "log_format=logs.form()" in (ROOT / "qualitygate" / "cluster" / f"{driver}.py").read_text()

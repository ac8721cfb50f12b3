"""The command line: one line and exit code 2 for what is wrong, and nothing overwritten."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qualitygate import cli
from qualitygate.config import ScoreConfig, load
from qualitygate.errors import ConfigurationError, ErrorCode
from qualitygate.tables import scores


def _call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    code = ended.value.code
    return code if isinstance(code, int) else 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"x")
    return folder


def test_metrics_are_listed_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert _call("metrics", "--json") == 0  # networks without parameters are listed with the reason
    described = {metric["name"]: metric for metric in json.loads(capsys.readouterr().out)}
    assert set(described) >= {"lapv", "lapm", "wavs", "brisque", "niqe", "lapv-cv2", "wavs-coef"}
    assert {name: described[name]["direction"] for name in ("lapv", "lapm", "wavs", "brisque", "niqe")} == {
        "lapv": "higher",
        "lapm": "higher",
        "wavs": "higher",
        "brisque": "lower",
        "niqe": "lower",
    }
    for metric in described.values():
        assert {"version", "range", "unit", "reference", "device", "code_license", "weights_license"} <= set(metric)
        assert metric["parameters_present"] is (metric["unavailable"] is None)
        assert metric["device"] == "gpu" or metric["parameters_present"]


def test_metrics_are_listed_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert _call("metrics") == 0
    assert "brisque" in capsys.readouterr().out


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert _call("--version") == 0
    assert capsys.readouterr().out.startswith("qualitygate 0.")
    assert _call("score", "--help") == 0
    assert "--commit-rows" in capsys.readouterr().out


def test_a_group_without_a_command_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    for group, command in (([], "score"), (["weights"], "fetch")):
        assert _call(*group) == 2
        shown = capsys.readouterr().err
        assert "Usage: qualitygate" in shown
        assert any(line.strip().startswith(command) for line in shown.splitlines())


def test_a_study_with_failed_runs_is_no_success(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from types import SimpleNamespace

    from qualitygate.cluster import study
    from qualitygate.report import study as said

    made = SimpleNamespace(record={"runs": {"planned": 14, "failed": 2}})
    monkeypatch.setattr(study, "run", lambda config, progress: made)
    monkeypatch.setattr(said, "of_run", lambda result: "the tables\n")
    given = ("study", "--manifest", "m", "--scores", "s", "--gate", "g", "--output", "o")
    assert _call(*given) == 3
    told = capsys.readouterr()
    assert told.out == "the tables\n"
    assert told.err == "qualitygate: 2 of 14 runs failed; the same command with --retry-failed tries these again\n"
    made.record["runs"]["failed"] = 0
    assert _call(*given) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metrics", "lapvv"], "did you mean lapv"),
        (["--metrics", "musiqq"], "unknown metric 'musiqq'"),
        (["--retry", "gone"], "unknown code 'gone'; it is one of missing, denied"),
        (["--max-error-rate", "2"], "max_error_rate"),
        (["--limit", "0"], "limit"),
        (["--backend", "matlab"], "backend"),
        (["--input", "/nowhere/at/all"], "does not exist"),
        (["--input", "https://example.org/x"], "scheme 'https'"),
        (["--output", "/proc/nowhere"], "can't be written to"),
        (["--config", "/nowhere.yaml"], "can't be read"),
        (["--metrics", ""], "no metric is named"),
        (["--output", ""], "--output is empty"),
        (["--input", ""], "--input is empty"),
        (["--commit-rows", "abc"], "commit-rows"),
        (["--no-such-flag"], "No such option"),
    ],
)
def test_what_is_wrong_is_one_line_with_exit_code_2(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    given = ["--input", str(folder), "--output", str(tmp_path / "out"), *arguments]
    assert _call("score", *given) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "out" / "scores").exists()


def test_missing_options_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert _call("score", "--output", "o") == 2
    assert "give --input" in capsys.readouterr().err


def test_export_without_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _call("export", "--input", str(tmp_path), "--output", str(tmp_path / "x.csv")) == 2
    assert "holds no scores" in capsys.readouterr().err


def test_an_outputs_trailing_slash_is_no_part_of_its_name() -> None:
    given = {"input": "in/", "output": "out//"}
    assert load(ScoreConfig, None, given).output == "out"
    assert load(ScoreConfig, None, {**given, "output": "s3://bucket/"}).output == "s3://bucket"
    assert load(ScoreConfig, None, {**given, "output": "/"}).output == "/"


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("input: a\noutput: b\nmetrics: [lapv]\nretry: [missing]\ncommit_rows: 5\n")
    config = load(ScoreConfig, file, {"commit_rows": 7, "limit": None})
    assert (config.commit_rows, config.limit, config.metrics) == (7, None, ("lapv",))
    assert config.retry == (ErrorCode.MISSING,)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("inptu: a\noutput: b", "did you mean 'input'"),
        ("- a\n- b", "keys and values"),
        ("a: [", "is no YAML"),
        ("input: a\noutput: b\ncommit_rows: many", "commit_rows: input should be"),
    ],
)
def test_a_wrong_file_is_explained(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(content)
    with pytest.raises(ConfigurationError, match=message):
        load(ScoreConfig, file, {})


def test_every_key_of_the_configuration_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert _call("score", "--help") == 0
    shown = capsys.readouterr().out
    for key in ScoreConfig.model_fields:
        assert f"--{key.replace('_', '-')}" in shown


def test_compact_and_vacuum_say_what_they_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow as pa

    from qualitygate.tables import scores

    output = str(tmp_path / "out")
    writer = scores.Writer(output, ["lapv"], "run-1")
    for name in ("a", "b", "c"):
        row = {"image_id": name, "status": "ok", "attempts": 1, "run_id": "r", "scored_at": 0}
        writer.commit(pa.Table.from_pylist([row], schema=writer.schema), writer.schema.empty_table())
    assert _call("compact", "--output", output, "--json") == 0
    counts = json.loads(capsys.readouterr().out)
    assert (counts["files_before"], counts["files_after"], counts["rows"]) == (3, 1, 3)
    assert _call("compact", "--output", output) == 0
    assert "1 files, " in (said := capsys.readouterr().out)
    assert "nothing to compact" in said
    assert _call("vacuum", "--output", output, "--dry-run") == 0
    assert capsys.readouterr().out.startswith("would remove 0 files of the table, 0 bytes")
    assert _call("vacuum", "--output", output, "--keep-days", "0.5") == 2
    assert "keep_days: input should be greater than or equal to 1" in capsys.readouterr().err


@pytest.mark.parametrize(("used", "code"), [("", 0), ("import ray", 0), ("import ray", 2)])
def test_a_process_in_which_ray_was_at_work_ends_at_once(used: str, code: int, tmp_path: Path) -> None:
    """All is written by then, and Ray's threads may abort an orderly exit, which must not change the code."""
    verb = ["metrics", "--json"] if code == 0 else ["metrics", "--no-such-option"]
    script = f"""
import atexit, sys
{used}
atexit.register(lambda: open({str(tmp_path / "orderly")!r}, "w").close())
from qualitygate.cli import run
run({verb!r})
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == code, ended.stderr
    assert json.loads(ended.stdout) if code == 0 else "no-such-option" in ended.stderr
    assert (tmp_path / "orderly").exists() is (not used)


def test_a_full_disk_is_one_line_whoever_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def numbered(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/mnt/out/table.parquet")

    def told(*_: object) -> None:
        try:
            raise RuntimeError("IO Error: could not write 4096 bytes\nto file 'x': No space left on device")
        except RuntimeError as error:
            raise ValueError("the table wasn't written") from error

    for fail, said in ((numbered, "'/mnt/out/table.parquet'"), (told, "to file 'x'")):
        monkeypatch.setattr(scores, "export", fail)
        assert _call("export", "--input", str(folder), "--output", str(folder / "x.csv")) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
        assert "No space left on device" in line
        assert line.endswith("make room and run the same command again")

    def other(*_: object) -> None:
        try:
            numbered()
        except OSError:
            # Handled along the way, and not the cause, which a careless raise made a ring.
            error = ValueError("a defect")
            raise error from error

    monkeypatch.setattr(scores, "export", other)
    with pytest.raises(ValueError, match="a defect"):
        cli.main(["export", "--input", str(folder), "--output", str(folder / "x.csv")])

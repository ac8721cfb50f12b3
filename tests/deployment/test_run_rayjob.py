"""The CronJob's pod creates a RayJob once, waits for its end whatever the API does meanwhile, and says how it ended."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT
from kubernetes_api import Api, serving

from jobs import run_rayjob
from qualitygate import logs
from qualitygate.errors import ConfigurationError

SUCCEEDED = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
RUNNING = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
RAYJOB = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "nightly-1", "namespace": "project"}}
PATH = "/apis/ray.io/v1/namespaces/project/rayjobs"


@pytest.fixture
def api() -> Iterator[Api]:
    with serving(Api([SUCCEEDED])) as running:
        yield running


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("first\n")
    return path


def run(api: Api, token: Path, *, patience_s: float = 60.0) -> tuple[bool, str]:
    server = run_rayjob.Server(url=api.url, token=token)
    return run_rayjob.run(server, RAYJOB, poll_s=0.0, patience_s=patience_s)


def test_it_creates_the_rayjob_and_waits_for_its_end(api: Api, token: Path) -> None:
    api.states = [{}, {"jobDeploymentStatus": "Initializing"}, RUNNING, SUCCEEDED]
    assert run(api, token) == (True, "RayJob nightly-1: Complete, SUCCEEDED")
    assert api.rayjobs == {f"{PATH}/nightly-1": RAYJOB}
    assert [(method, path) for method, path, _ in api.asked] == [("POST", PATH)] + 4 * [("GET", f"{PATH}/nightly-1")]
    assert {token for _, _, token in api.asked} == {"Bearer first"}


@pytest.mark.parametrize(
    "end",
    [
        {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed", "message": "exit code 4"},
        {"jobDeploymentStatus": "Failed", "reason": "DeadlineExceeded"},
        {"jobDeploymentStatus": "ValidationFailed", "reason": "ValidationFailed"},
        {"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"},
    ],
)
def test_any_other_end_is_a_failure_that_says_why(api: Api, token: Path, end: dict[str, Any]) -> None:
    api.states = [RUNNING, end]
    succeeded, said = run(api, token)
    assert not succeeded
    assert said == "RayJob nightly-1: " + ", ".join(end.values())


def test_a_pod_started_again_waits_for_the_same_rayjob(api: Api, token: Path) -> None:
    run(api, token)
    api.states = [RUNNING, SUCCEEDED]
    assert run(api, token)[0]
    assert len(api.rayjobs) == 1
    assert [method for method, _, _ in api.asked] == ["POST", "GET", "POST", "GET", "GET"]


def test_it_asks_again_when_the_api_is_busy_or_down(api: Api, token: Path) -> None:
    api.refusals = [503, 429, 500]
    assert run(api, token)[0]
    # Each refused request is made again; the RayJob is created once.
    assert [method for method, _, _ in api.asked] == ["POST", "POST", "POST", "POST", "GET"]


def test_its_patience_ends(api: Api, token: Path) -> None:
    api.refusals = [503] * 1000
    with pytest.raises(run_rayjob.Unavailable, match="answered 503"):
        run(api, token, patience_s=0.0)
    with serving(Api([SUCCEEDED])) as closed:
        pass
    with pytest.raises(run_rayjob.Unavailable, match="did not answer") as raised:
        run(closed, token, patience_s=0.0)
    # Told apart from a RayJob that failed: the pod is started again.
    assert raised.value.exit_code == 75


def test_a_renewed_token_is_used(api: Api, token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api.states = [RUNNING, SUCCEEDED]
    monkeypatch.setattr(run_rayjob, "sleep", lambda _: token.write_text("second"))
    run(api, token)
    assert [used for _, _, used in api.asked] == ["Bearer first", "Bearer first", "Bearer second"]


def test_a_refusal_says_what_was_refused(api: Api, token: Path) -> None:
    api.refusals = [403]
    with pytest.raises(ConfigurationError, match=r"POST .*/rayjobs: refused with 403: not now"):
        run(api, token)


def test_a_deleted_rayjob_is_no_success(api: Api, token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api.states = [RUNNING]
    monkeypatch.setattr(run_rayjob, "sleep", lambda _: api.rayjobs.clear())
    with pytest.raises(ConfigurationError, match="deleted"):
        run(api, token)


def test_the_rayjob_is_named_after_the_job_and_goes_with_it(
    api: Api, token: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for key, value in {"JOB_NAME": "nightly-29", "JOB_UID": "u-1", "NAMESPACE": "other"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(run_rayjob, "of_this_pod", lambda: run_rayjob.Server(url=api.url, token=token))
    file = tmp_path / "rayjob.yaml"
    file.write_text("kind: RayJob\nmetadata: {name: ignored, labels: {a: b}}\nspec: {entrypoint: x}\n")
    assert run_rayjob.main([str(file)]) == 0
    (made,) = api.rayjobs.items()
    assert made == (
        "/apis/ray.io/v1/namespaces/other/rayjobs/nightly-29",
        {
            "kind": "RayJob",
            "metadata": {
                "name": "nightly-29",
                "namespace": "other",
                "labels": {"a": "b"},
                "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": "nightly-29", "uid": "u-1"}],
            },
            "spec": {"entrypoint": "x"},
        },
    )
    api.states = [{"jobDeploymentStatus": "Failed"}]
    assert run_rayjob.main([str(file)]) == 1


@pytest.mark.parametrize("text", ["kind: Pod", "- a", "a: [", ""])
def test_what_is_no_rayjob_is_refused(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    assert run_rayjob.main([str(file)]) == 2
    assert str(file) in capsys.readouterr().err


def test_outside_a_pod_it_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("kind: RayJob")
    for key in ("JOB_NAME", "JOB_UID", "NAMESPACE", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(key, raising=False)
    assert run_rayjob.main([str(file)]) == 2
    assert "JOB_NAME isn't set" in capsys.readouterr().err
    for key in ("JOB_NAME", "JOB_UID", "NAMESPACE"):
        monkeypatch.setenv(key, "x")
    assert run_rayjob.main([str(file)]) == 2
    assert "this runs in a pod" in capsys.readouterr().err


# As `python -m` has it, whose module's `__name__` isn't its own, but with the tests' API.
SCRIPT = """
import pathlib, runpy, sys
made = runpy.run_module("jobs.run_rayjob", run_name="as_main")
made["of_this_pod"] = lambda: made["Server"](url=sys.argv[1], token=pathlib.Path(sys.argv[2]))
sys.exit(made["main"]([sys.argv[3]]))
"""


@pytest.mark.parametrize("form", [logs.TEXT, logs.JSON])
@pytest.mark.parametrize(
    ("end", "code", "level"),
    [(SUCCEEDED, 0, "info"), ({"jobDeploymentStatus": "Failed", "reason": "AppFailed"}, 1, "error")],
)
def test_the_pods_log_says_that_it_was_created_and_how_it_ended(
    api: Api, token: Path, tmp_path: Path, form: str, end: dict[str, Any], code: int, level: str
) -> None:
    file = tmp_path / "rayjob.yaml"
    file.write_text(json.dumps(RAYJOB))
    api.states = [end]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, api.url, str(token), str(file)],
        env={**os.environ, logs.VARIABLE: form, "JOB_NAME": "night-1", "JOB_UID": "u", "NAMESPACE": "project"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    said = ["RayJob night-1 created", f"RayJob night-1: {', '.join(end.values())}"]
    lines = done.stderr.splitlines()
    if form == logs.TEXT:
        assert [line.partition(" RayJob ")[2] for line in lines] == [one.removeprefix("RayJob ") for one in said]
    else:
        found = [json.loads(line) for line in lines]
        assert [(one["message"], one["level"]) for one in found] == [(said[0], "info"), (said[1], level)]
        assert {one["verb"] for one in found} == {"run_rayjob"}

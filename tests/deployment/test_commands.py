"""Every command in the manifests and on the pages about running them is one that the command line takes."""

import re
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT, UsageError, manifests, read, resolved

from qualitygate import config
from qualitygate.errors import ConfigurationError
from qualitygate.nightly import settings as night

DOCUMENTS = manifests()
RAYJOBS = {name: document for name, document in DOCUMENTS if document["kind"] == "RayJob"}
JOBS = sorted(path.stem for path in (ROOT / "jobs").glob("*.py") if "qualitygate.cli" in path.read_text())


def mounted(pod: dict[str, Any], container: dict[str, Any], path: str) -> str:
    """The text of a file that a container finds at a path, from the ConfigMap that is mounted there."""
    maps = {
        document["metadata"]["name"]: document["data"] for _, document in DOCUMENTS if document["kind"] == "ConfigMap"
    }
    volumes = {volume["name"]: volume["configMap"]["name"] for volume in pod["volumes"]}
    (name,) = [mount["name"] for mount in container["volumeMounts"] if str(Path(path).parent) == mount["mountPath"]]
    text = maps[volumes[name]][Path(path).name]
    assert isinstance(text, str)
    return text


def test_there_is_a_rayjob_for_every_job() -> None:
    started = {job["spec"]["entrypoint"].split()[2].removeprefix("jobs.") for job in RAYJOBS.values()}
    assert JOBS
    assert started == set(JOBS)


@pytest.mark.parametrize("name", RAYJOBS)
def test_the_entrypoint_is_a_command_with_a_valid_configuration(name: str, tmp_path: Path) -> None:
    spec = RAYJOBS[name]["spec"]
    verb, given = read(spec["entrypoint"])
    assert verb == RAYJOBS[name]["metadata"]["labels"]["app.kubernetes.io/component"]
    # The driver runs on the head.
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    text = mounted(head, head["containers"][0], str(given.pop("config")))
    assert not given
    settings = resolved(verb, text, tmp_path)

    if isinstance(settings, config.NightlyConfig):
        # Its parts are checked where they are used: here, too, a wrong key is found before the night.
        night.of_calibration(settings)
        settings = night.of_score(settings)

    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    (worker,) = group["template"]["spec"]["containers"]
    resources = worker["resources"]["limits"]
    device = getattr(settings, "device", "cpu")
    assert (device == "cuda") == ("nvidia.com/gpu" in resources)
    if device == "cpu" and hasattr(settings, "workers"):
        # A whole CPU must be left for the tasks that feed the workers, on whichever node.
        assert settings.workers == group["replicas"] * int(resources["cpu"]) - 1


def commands_of(page: str) -> list[str]:
    """The project's own commands in the code blocks of a page in docs, also behind `ray job submit ... --`."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    found = [
        re.search(r"(?:^\s*|--\s+|-cpu )(qualitygate [a-z].*|python -m jobs\..*)$", line.split("  #")[0].rstrip())
        for line in lines
    ]
    return [match.group(1) for match in found if match]


def test_the_page_shows_how_to_submit_a_job() -> None:
    assert any(command.startswith("python -m jobs.score") for command in commands_of("deployment.md"))
    assert commands_of("operations.md")


@pytest.mark.parametrize("command", [*commands_of("deployment.md"), *commands_of("operations.md")])
def test_a_command_of_the_page_is_taken(command: str) -> None:
    assert read(command)[0]


@pytest.mark.parametrize(
    "command", ["python -m jobs.score --inputs x", "qualitygate scores", "python -m jobs.score --workers many"]
)
def test_a_wrong_command_is_noticed(command: str) -> None:
    with pytest.raises(UsageError):
        read(command)


def test_a_missing_job_is_noticed() -> None:
    with pytest.raises(ImportError):
        read("python -m jobs.none --config x")


@pytest.mark.parametrize(("part", "key"), [("score", "metrix"), ("calibrate", "methodes")])
def test_a_wrong_setting_within_the_nights_is_noticed(part: str, key: str, tmp_path: Path) -> None:
    text = f"input: a\noutput: b\npredictions: c\n{part}: {{{key}: lapm}}\n"
    settings = resolved("nightly", text, tmp_path)
    assert isinstance(settings, config.NightlyConfig)
    check = {"score": night.of_score, "calibrate": night.of_calibration}[part]
    with pytest.raises(ConfigurationError, match=f"in {part}: .*{key}"):
        check(settings)


def test_a_wrong_setting_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'output'"):
        resolved("score", "input: a\noutputs: b\n", tmp_path)

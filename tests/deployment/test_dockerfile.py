"""The Dockerfile passes hadolint and this project's rules; its wheel holds what runs. The image itself isn't built."""

import json
import re
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT
from image import copied, run, structure
from packaging.requirements import Requirement

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
IMAGES = ("cpu", "gpu")


def stages() -> dict[str, list[tuple[str, str]]]:
    """The instructions of each stage, by its name; those of the stage that it is made from come first."""
    found: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for instruction, value in structure():
        if instruction == "FROM":
            base, _, name = value.partition(" AS ")
            found[name] = list(found.get(base, []))
        if name:
            found[name].append((instruction, value))
    return found


def values(stage: str, instruction: str) -> list[str]:
    return [value for name, value in stages()[stage] if name == instruction]


def lint(text: bytes) -> list[dict[str, Any]]:
    """What hadolint says of a Dockerfile, of any severity."""
    program = Path(sys.executable).with_name("hadolint")
    command = [str(program), "--no-fail", "--failure-threshold", "style", "--format", "json", "-"]
    done = subprocess.run(command, input=text, capture_output=True, check=True, timeout=60)
    said: list[dict[str, Any]] = json.loads(done.stdout)
    return said


def test_hadolint_has_nothing_to_say() -> None:
    assert lint((ROOT / "Dockerfile").read_bytes()) == []


def test_hadolint_would_say_it() -> None:
    assert {one["code"] for one in lint(b"FROM python:latest\nRUN sudo true\nRUN pip install x\n")} >= {
        "DL3007",
        "DL3004",
        "DL3013",
    }


def test_both_images_are_targets_that_dont_run_as_root() -> None:
    assert set(IMAGES) <= set(stages())
    for image in IMAGES:
        assert values(image, "USER") == ["1000:1000"]
        # Ray's launchers start a shell in the container.
        assert values(image, "ENTRYPOINT") == []
        assert [json.loads(value) for value in values(image, "CMD")] == [["qualitygate", "--help"]]


def test_every_base_is_pinned() -> None:
    arguments = dict(value.split("=", 1) for instruction, value in structure() if instruction == "ARG")
    for instruction, value in structure():
        if instruction == "FROM":
            base = value.split()[0]
            name = re.fullmatch(r"\$\{(\w+)\}", base)
            base = arguments[name.group(1)] if name else base
            assert base in stages() or re.search(r":\d+\.\d+\.\d+|@sha256:", base), value
    # The images' Python is the one that constraints.txt was resolved on, up to its last number.
    resolved = re.search(r"Resolved on Python (\d+\.\d+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"))
    assert resolved is not None
    assert f"python:{resolved.group(1)}." in arguments["PYTHON_IMAGE"]


def test_packages_come_from_the_constraints_and_without_pyiqa() -> None:
    for image in IMAGES:
        installs = [value for value in values(image, "RUN") if "pip install" in value]
        assert installs
        for command in installs:
            assert "--constraint /opt/qualitygate/constraints.txt" in command
            assert "pyiqa" not in command
        # By its file, never by a name that somebody else may have on an index.
        assert installs[-1].endswith('"$1[cluster]"')
        assert "set -- /wheels/*.whl" in installs[-1]
    cluster = {Requirement(text).name for text in PROJECT["optional-dependencies"]["cluster"]}
    assert "pyiqa" not in cluster


def test_nothing_is_fetched_or_passed_in_that_may_be_a_secret() -> None:
    for instruction, value in structure():
        assert instruction != "ADD"
        if instruction in ("ARG", "ENV"):
            assert not re.search(r"(?i)token|secret|password|credential|access_key", value)


def test_the_build_sees_what_it_copies_and_nothing_else() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    assert {line.removeprefix("!") for line in lines[1:] if line.startswith("!")} == set(copied())
    assert [line for line in lines[1:] if not line.startswith("!")] == ["**/__pycache__"]


def test_the_wheel_holds_the_package_and_the_jobs_and_no_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = Parser().parsestr(archive.read(next(name for name in names if name.endswith("/METADATA"))).decode())
    tops = {name.split("/")[0] for name in names}
    assert tops == {"qualitygate", "jobs", f"qualitygate-{PROJECT['version']}.dist-info"}
    # Every file of the package beside its modules: parameters, templates, the list of weights.
    data = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "qualitygate").rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc", ".nbi", ".nbc"}
    }
    assert data
    assert data <= set(names)
    # Without an extra, and with the one that the images ask for, pyiqa isn't required.
    for text in metadata.get_all("Requires-Dist") or []:
        requirement = Requirement(text)
        if requirement.name == "pyiqa":
            assert requirement.marker is not None
            assert not requirement.marker.evaluate({"extra": ""})
            assert not requirement.marker.evaluate({"extra": "cluster"})


def test_the_images_command_runs_from_the_wheel(site: Path) -> None:
    where = run(site, sys.executable, "-c", "import qualitygate, jobs; print(qualitygate.__file__, jobs.__file__)")
    assert where.stdout.count(str(site)) == 2, where.stdout + where.stderr
    for image in IMAGES:
        (command,) = [json.loads(value) for value in values(image, "CMD")]
        # As the container finds it: by its name on the path.
        done = run(site, *command)
        assert done.returncode == 0, done.stderr
        assert "Usage: qualitygate" in done.stdout
    assert run(site, "qualitygate", "--version").stdout == f"qualitygate {PROJECT['version']}\n"


def test_the_wheels_own_data_is_found(site: Path) -> None:
    done = run(site, "qualitygate", "metrics", "--json")
    assert done.returncode == 0, done.stderr
    assert {"lapm", "brisque", "musiq"} <= {metric["name"] for metric in json.loads(done.stdout)}


@pytest.mark.parametrize("job", sorted(path.stem for path in (ROOT / "jobs").glob("*.py") if path.stem != "__init__"))
def test_every_job_runs_from_the_wheel(site: Path, job: str) -> None:
    done = run(site, sys.executable, "-m", f"jobs.{job}", "--help")
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout.lower()

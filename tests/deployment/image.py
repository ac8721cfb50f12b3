"""What the images are made of, read from the Dockerfile, and commands run as in them."""

import os
import subprocess
import sys
from pathlib import Path

from commands import ROOT
from dockerfile_parse import DockerfileParser


def structure(path: Path = ROOT / "Dockerfile") -> list[tuple[str, str]]:
    """Instructions with their values, comments left out."""
    parser = DockerfileParser(fileobj=path.open("rb"))
    return [(one["instruction"], one["value"]) for one in parser.structure if one["instruction"] != "COMMENT"]


def copied() -> list[str]:
    """The files and folders of the repository that the images are built from."""
    found = [value.split()[:-1] for instruction, value in structure() if instruction == "COPY"]
    return [name for names in found for name in names]


def pip(folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def run(site: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run with the installed wheel before everything else, in a folder that has nothing to do with the source."""
    environment = {**os.environ, "PYTHONPATH": str(site), "PATH": f"{site / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(
        command, cwd=site.parent, env=environment, capture_output=True, text=True, check=False, timeout=300
    )

"""The README is true: it names every file, every verb and every flag it names exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from qualitygate.config import ScoreConfig

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FOLDERS = ("qualitygate", "jobs", "manifests", "scripts", "benchmarks", "docs", "tests", ".ci")


def _files() -> list[Path]:
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    ignored = ("__pycache__", ".egg-info", "docs/decisions/0", "/build/")
    return [path for path in found if not any(part in str(path.relative_to(ROOT)) for part in ignored)]


def test_every_file_has_its_place_in_the_tree() -> None:
    tree = README.split("## Every file")[1].split("## Licence")[0]
    words = set(re.findall(r"[\w.-]+\.\w+|\.?\w+/\w+", tree))
    absent = sorted(str(path.relative_to(ROOT)) for path in _files() if path.name not in words and path.name != "run")
    assert not absent
    assert ".ci/run" in tree


def test_the_tree_names_no_file_that_is_not_there() -> None:
    tree = README.split("## Every file")[1].split("## Licence")[0]
    names = {path.name for path in _files()} | {path.name for path in ROOT.iterdir()}
    named = set(re.findall(r"(?<![\w/.])([\w-]+\.(?:py|md|yaml|json|txt|toml|typed))\b", tree))
    assert named - names - {"_stats.json"} == set()


@pytest.mark.parametrize("verb", ["score", "export", "metrics", "dataset render", "demo"])
def test_every_verb_runs(verb: str) -> None:
    command = [sys.executable, "-m", "qualitygate.cli", *verb.split(), "--help"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_every_flag_named_is_a_key() -> None:
    section = README.split("## Score your own photographs")[1].split("## What you get")[0]
    flags = {flag.replace("-", "_") for flag in re.findall(r"--([a-z][a-z-]+)", section)}
    known = set(ScoreConfig.model_fields) | {"config", "json", "working_dir", "name", "count", "size"}
    assert flags <= known


def test_every_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_no_placeholder_is_left() -> None:
    assert "@@" not in README

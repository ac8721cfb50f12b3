"""The README is true: it names every file, every verb and every flag it names exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from qualitygate import config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_tree_names_every_file_as_it_is() -> None:
    """'make tree' writes it, from the modules' own first lines."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "readme_tree.py"), "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


VERBS = (
    "score",
    "export",
    "metrics",
    "dataset render",
    "weights list",
    "robustness",
    "train-baseline",
    "predict",
    "calibrate",
    "gate",
    "verify",
    "report",
    "study",
    "status",
    "compact",
    "vacuum",
    "purge",
    "subsets",
    "plan study",
    "demo",
)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_runs(verb: str) -> None:
    command = [sys.executable, "-m", "qualitygate.cli", *verb.split(), "--help"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_every_flag_named_is_a_key() -> None:
    section = README.split("## Score your own photographs")[1].split("## What you get")[0]
    flags = {flag.removeprefix("no-").replace("-", "_") for flag in re.findall(r"--([a-z][a-z-]+)", section)}
    models = [value for value in vars(config).values() if isinstance(value, type) and hasattr(value, "model_fields")]
    known = {field for model in models for field in model.model_fields}
    assert flags <= known | {"config", "json", "working_dir", "name", "count", "size", "store", "reason"}


def test_every_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_no_placeholder_is_left() -> None:
    assert "@@" not in README

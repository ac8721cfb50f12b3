"""The layers as a test: import-linter's contracts, and a second reading of who imports Ray."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT_RAY = ("qualitygate/cluster/", "jobs/")


def imports_ray(source: str) -> bool:
    """Whether the source imports ray anywhere: in a function, under TYPE_CHECKING, or by name at run time."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in {"import_module", "__import__", "find_spec"}:
                names = [str(argument.value) for argument in node.args if isinstance(argument, ast.Constant)]
        if any(name.split(".")[0] == "ray" for name in names):
            return True
    return False


def test_the_import_contracts_hold() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [str(linter), "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 broken" in done.stdout


def test_only_the_cluster_layer_and_the_jobs_import_ray() -> None:
    sources = {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for package in ("qualitygate", "jobs")
        for path in sorted((ROOT / package).rglob("*.py"))
    }
    assert "qualitygate/__init__.py" in sources
    offenders = [
        name for name, source in sources.items() if imports_ray(source) and not name.startswith(MAY_IMPORT_RAY)
    ]
    assert not offenders


@pytest.mark.parametrize(
    "source",
    [
        "import ray",
        "import numpy, ray.data as data",
        "from ray import serve",
        "from ray.data import Dataset",
        "def load():\n    import ray",
        "if TYPE_CHECKING:\n    from ray.actor import ActorHandle",
        "importlib.import_module('ray.util')",
        "__import__('ray')",
    ],
)
def test_the_reading_finds_ray(source: str) -> None:
    assert imports_ray(source)


@pytest.mark.parametrize(
    "source", ["import arrays", "import raylib", "from .ray import cast", "ray = 1", "'import ray'"]
)
def test_the_reading_lets_other_names_pass(source: str) -> None:
    assert not imports_ray(source)

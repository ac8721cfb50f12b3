"""The installed environment: cv2 stays the headless build, and nothing heavy or non-commercial comes in."""

import ast
import importlib.metadata
import importlib.util
import json
import re
import struct
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads ELF files and /proc")


def run(*arguments: str) -> str:
    """What a fresh interpreter prints, started in the repository's root; its failure fails the test."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def needed_libraries(path: Path) -> list[str]:
    """The shared libraries an ELF file asks the loader for (DT_NEEDED), in its order."""
    data = path.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError(f"{path} is not a 64-bit little-endian ELF file")
    (table,) = struct.unpack_from("<Q", data, 0x20)
    entry_size, entries = struct.unpack_from("<HH", data, 0x36)
    loaded: list[tuple[int, int, int]] = []  # (address, offset in the file, size) of each PT_LOAD
    dynamic: list[tuple[int, int]] = []  # (tag, value)
    for index in range(entries):
        kind, _, offset, address, _, size = struct.unpack_from("<IIQQQQ", data, table + index * entry_size)
        if kind == 1:
            loaded.append((address, offset, size))
        elif kind == 2:
            dynamic += struct.iter_unpack("<qQ", data[offset : offset + size])
    if not dynamic:
        raise ValueError(f"{path} has no dynamic section")
    (strings,) = (value for tag, value in dynamic if tag == 5)
    (start,) = (strings - address + offset for address, offset, size in loaded if address <= strings < address + size)
    names = [start + value for tag, value in dynamic if tag == 1]
    return [data[name : data.index(b"\0", name)].decode() for name in names]


def requirement_names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(requirement).name) for requirement in requirements}


def test_only_the_headless_opencv_owns_cv2() -> None:
    owners = {
        canonicalize_name(distribution.metadata["Name"])
        for distribution in importlib.metadata.distributions()
        for file in distribution.files or ()
        if file.parts[0] == "cv2"
    }
    assert owners == {"opencv-python-headless"}


@on_linux
def test_no_library_of_cv2_needs_libgl() -> None:
    spec = importlib.util.find_spec("cv2")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    extensions = sorted(package.rglob("*.so*"))
    bundled = sorted(path for folder in package.parent.glob("opencv*.libs") for path in folder.iterdir())
    needed = {path.name: needed_libraries(path) for path in extensions + bundled}

    # Proof that the reading works: the extension module itself needs the C library.
    assert any("libc.so.6" in needed[path.name] for path in extensions), needed
    offenders = {name: names for name, names in needed.items() if re.search(r"libGL\b|libGLX|libX11|libQt", str(names))}
    assert not offenders


@on_linux
def test_importing_cv2_loads_no_libgl() -> None:
    maps = run("-c", "import cv2; print(open('/proc/self/maps').read())")
    assert "cv2" in maps
    assert "libGL" not in maps


def test_the_installed_packages_agree() -> None:
    assert "No broken requirements found" in run("-m", "pip", "check")


@pytest.mark.parametrize("module", ["qualitygate", "qualitygate.errors"])
def test_the_package_imports_nothing_heavy(module: str) -> None:
    loaded = set(json.loads(run("-c", f"import json, sys, {module}; print(json.dumps(list(sys.modules)))")))
    assert module in loaded
    assert not loaded & {"ray", "torch", "deltalake", "numba", "pyiqa", "cv2"}


def test_the_base_dependencies_leave_out_pyiqa() -> None:
    """Neither named nor brought in by what is named: pyiqa is licensed for non-commercial use only."""
    extras = PROJECT["optional-dependencies"]
    assert "pyiqa" in requirement_names(extras["reference"])
    assert "pyiqa" not in requirement_names(extras["dev"])

    found: set[tuple[str, str]] = set()
    ahead = [Requirement(requirement) for requirement in PROJECT["dependencies"]]
    while ahead:
        requirement = ahead.pop()
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras} - {extra for known, extra in found if known == name}:
            found.add((name, extra))
            for text in importlib.metadata.requires(name) or []:
                needed = Requirement(text)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    ahead.append(needed)
    names = {name for name, _ in found}
    assert {"ray", "pandas", "llvmlite"} <= names  # the walk went past what pyproject.toml names
    assert not names & {"pyiqa", "facexlib", "opencv-python"}


def test_every_import_is_declared() -> None:
    """What the package imports, even inside a function, pyproject.toml names."""
    # The one exception, asked for by name: the stock implementation behind its own backend.
    declared = requirement_names(PROJECT["dependencies"]) | {"pyiqa"}
    providers = importlib.metadata.packages_distributions()
    undeclared: dict[str, str] = {}
    for path in sorted(path for folder in ("qualitygate", "jobs") for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            else:
                continue
            for name in {name.split(".")[0] for name in names}:
                distributions = {canonicalize_name(provider) for provider in providers.get(name, [name])}
                if name not in {*sys.stdlib_module_names, "qualitygate", "jobs"} and not distributions & declared:
                    undeclared[f"{path.relative_to(ROOT)}:{node.lineno}"] = name
    assert not undeclared


def test_every_requirement_is_pinned_within_its_range() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {
        canonicalize_name(name): version
        for name, _, version in (line.partition("==") for line in lines if not line.startswith("#"))
    }
    extras = PROJECT["optional-dependencies"].values()
    for text in PROJECT["dependencies"] + [text for extra in extras for text in extra]:
        requirement = Requirement(text)
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{text} has no pin: run 'make constraints'"
        assert requirement.specifier.contains(pin), f"{text} is pinned to {pin}: run 'make constraints'"

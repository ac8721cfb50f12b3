"""The wheel that the images install, built and installed once."""

import shutil
from pathlib import Path

import pytest
from commands import ROOT
from image import copied, pip


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built as in the Dockerfile: from the files that it copies, and no others."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in copied():
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source)
    # Without isolation, as the build's own environment would be downloaded.
    pip(folder, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source))
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def site(wheel: Path) -> Path:
    """A folder into which only the wheel is installed."""
    folder = wheel.parent / "site"
    pip(wheel.parent, "install", "--no-deps", "--no-index", "--target", str(folder), str(wheel))
    return folder

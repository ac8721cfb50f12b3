"""What tonight would take: counted against the last night's listing, nothing written."""

import json
from pathlib import Path

import pytest
from job_helpers import write_photographs

from qualitygate.cli import main
from qualitygate.config import ManifestBuildConfig
from qualitygate.tables import manifest_build


def _plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        main(["plan", "nightly", *arguments])
    said = capsys.readouterr()
    assert not end.value.code, said.err
    return said.out


def test_what_tonight_would_take(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photographs, output = tmp_path / "in", tmp_path / "out"
    write_photographs(photographs, 6)
    arguments = ["--input", str(photographs), "--output", str(output), "--score", "metrics=lapm"]
    first = json.loads(_plan(capsys, *arguments, "--json"))
    assert {key: first["night"][key] for key in ("images", "known", "new")} == {"images": 6, "known": 0, "new": 6}
    assert (first["to_do"], list(first["metrics"])) == (6, ["lapm"])
    assert not output.exists()

    manifest_build.build(ManifestBuildConfig(input=str(photographs), output=str(output / "manifest.parquet")))
    write_photographs(photographs, 2, side=200)
    (photographs / "p0005.jpg").unlink()
    (photographs / "new.jpg").write_bytes((photographs / "p0000.jpg").read_bytes())
    second = json.loads(_plan(capsys, *arguments, "--json"))["night"]
    assert {key: second[key] for key in ("images", "known", "new", "changed", "gone")} == {
        "images": 6,
        "known": 6,
        "new": 1,
        "changed": 2,
        "gone": 1,
    }
    assert second["changed_share"] == 0.5
    assert "THE NIGHT WOULD STOP: 50%" in _plan(capsys, *arguments)
    assert "THE NIGHT WOULD STOP" not in _plan(capsys, *arguments, "--max-changed-share", ".5")

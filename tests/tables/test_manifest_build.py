"""`manifest build`: what is there, and what changed since the last time."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qualitygate.config import ManifestBuildConfig
from qualitygate.errors import ConfigurationError
from qualitygate.tables import manifest, manifest_build, storage


def _fill(folder: Path, content: dict[str, bytes]) -> None:
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def _build(source: Path, output: Path, **options: str) -> manifest_build.Built:
    return manifest_build.build(ManifestBuildConfig(input=str(source), output=str(output), **options))


def _changes(built: manifest_build.Built) -> dict[str, str]:
    assert built.changes is not None
    return {row["image_id"]: row["change"] for row in pq.read_table(built.changes).to_pylist()}


def test_a_manifest_says_where_each_image_is_and_which_version(tmp_path: Path) -> None:
    _fill(tmp_path / "in", {"b.jpg": b"22", "a.jpg": b"1", "sub/c.jpg": b"333", "_hidden.jpg": b"x"})
    built = _build(tmp_path / "in", tmp_path / "m.parquet")
    assert (built.images, built.bytes, built.new, built.changes) == (3, 6, None, None)
    table = pq.read_table(tmp_path / "m.parquet")
    assert table.schema.names == [*manifest.SCHEMA.names, "modified"]
    assert table.schema.field("modified").type == pa.timestamp("us", tz="UTC")
    for row in table.to_pylist():
        status = Path(row["uri"]).stat()
        assert (row["etag"], row["bytes"]) == storage.change_marks(row["uri"])
        assert abs(row["modified"].timestamp() - status.st_mtime) < 1e-3
    assert table["image_id"].to_pylist() == ["a.jpg", "b.jpg", "sub/c.jpg"]
    # It is a manifest as any verb takes it.
    loaded = manifest.load(str(tmp_path / "m.parquet"), tmp_path / "spool.parquet")
    assert pq.read_table(loaded.path)["uri"].equals(table["uri"])


def test_the_next_build_tells_new_changed_and_gone(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "m.parquet"
    _fill(source, {"same.jpg": b"1", "changes.jpg": b"1", "goes.jpg": b"1"})
    _build(source, output)
    (source / "goes.jpg").unlink()
    _fill(source, {"changes.jpg": b"22", "comes.jpg": b"1"})
    built = _build(source, output)
    assert (built.images, built.new, built.changed, built.gone) == (3, 1, 1, 1)
    assert _changes(built) == {"changes.jpg": "changed", "comes.jpg": "new", "goes.jpg": "gone"}
    again = _build(source, output)
    assert (again.new, again.changed, again.gone) == (0, 0, 0)
    assert _changes(again) == {}


def test_another_manifest_can_be_compared_with(tmp_path: Path) -> None:
    source = tmp_path / "in"
    _fill(source, {"a.jpg": b"1"})
    _build(source, tmp_path / "old.parquet")
    _fill(source, {"b.jpg": b"1"})
    built = _build(source, tmp_path / "new.parquet", previous=str(tmp_path / "old.parquet"))
    assert _changes(built) == {"b.jpg": "new"}
    with pytest.raises(ConfigurationError, match=r"--previous .* does not exist"):
        _build(source, tmp_path / "new.parquet", previous=str(tmp_path / "absent.parquet"))
    pq.write_table(pa.table({"x": [1]}), tmp_path / "other.parquet")
    with pytest.raises(ConfigurationError, match="lacks image_id, uri"):
        _build(source, tmp_path / "new.parquet", previous=str(tmp_path / "other.parquet"))


def test_a_manifest_beside_its_images_does_not_list_itself(tmp_path: Path) -> None:
    _fill(tmp_path, {"a.jpg": b"1"})
    for _ in range(3):
        built = _build(tmp_path, tmp_path / "m.parquet")
        assert built.images == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jpg", "m.changes.parquet", "m.parquet"]


def test_a_build_that_fails_leaves_the_old_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, output = tmp_path / "in", tmp_path / "m.parquet"
    _fill(source, {"a.jpg": b"1"})
    _build(source, output)
    before = output.read_bytes()
    _fill(source, {"b.jpg": b"1"})
    published: list[str] = []

    def killed_at_the_manifest(path: Path, uri: str) -> None:
        published.append(uri)
        if uri == str(output):
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(storage, "publish", killed_at_the_manifest)
        with pytest.raises(KeyboardInterrupt):
            _build(source, output)
    assert published[-1] == str(output)
    assert output.read_bytes() == before
    assert _changes(_build(source, output)) == {"b.jpg": "new"}


@pytest.mark.parametrize(
    ("source", "output", "message"),
    [
        ("absent", "m.parquet", "does not exist"),
        ("empty", "m.parquet", "holds no images"),
        ("in", "m.csv", "ends in .parquet"),
        ("table.csv", "m.parquet", "is a manifest already"),
    ],
)
def test_what_can_not_be_built_is_said_in_one_line(tmp_path: Path, source: str, output: str, message: str) -> None:
    _fill(tmp_path / "in", {"a.jpg": b"1"})
    (tmp_path / "empty").mkdir()
    (tmp_path / "table.csv").write_text("image_id,uri\na,a.jpg\n")
    with pytest.raises(ConfigurationError, match=message) as caught:
        _build(tmp_path / source, tmp_path / output)
    assert "\n" not in str(caught.value)


def test_the_command_line_says_it_for_people_and_for_programs(tmp_path: Path) -> None:
    _fill(tmp_path / "in", {"a.jpg": b"1"})
    command = [sys.executable, "-m", "qualitygate.cli", "manifest", "build"]
    command += ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "m.parquet")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said == f"1 images, 0.00 GB in {tmp_path}/m.parquet\n"
    said = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout
    assert json.loads(said)["new"] == 0

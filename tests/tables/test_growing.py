"""A listing that goes on: portions together are the listing, and what goes wrong is told."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qualitygate.errors import ConfigurationError, ErrorCode, ImageError
from qualitygate.tables import growing, listing, manifest, shards, storage


def _table(*names: str) -> pa.Table:
    entries = (storage.Listed(name=name, uri=f"s3://b/{name}", etag="e", bytes=1) for name in names)
    (table,) = listing.as_tables(entries)
    return table


def _growing(tables: Iterator[pa.Table], folder: Path, **changed: Any) -> growing.Growing:
    return growing.Growing("s3://b", tables, shards.Found(), folder / "listing", **{"sort": True, **changed})


def _ids(found: manifest.Manifest) -> list[str]:
    ids: list[str] = pq.read_table(found.path)["image_id"].to_pylist()
    assert len(ids) == found.rows
    return ids


def test_portions_come_while_the_listing_goes_on_and_are_the_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growing, "_SECONDS_A_FILE", 0.0)
    go = threading.Event()

    def tables() -> Iterator[pa.Table]:
        yield _table("c", "a")
        assert go.wait(30)
        yield _table("b")
        yield _table("d")

    with _growing(tables(), tmp_path) as found:
        assert not found.wait(0.0)
        first = found.portion()
        assert first is not None
        assert _ids(first) == ["c", "a"]
        assert (found.rows, found.waiting) == (2, 0)
        assert _ids(found.all()) == ["c", "a"]
        go.set()
        assert found.wait(30)
        assert (found.rows, found.waiting) == (4, 2)
        rest = found.portion()
        assert rest is not None
        assert _ids(rest) == ["b", "d"]
        assert found.portion() is None
        assert _ids(found.all()) == ["c", "a", "b", "d"]
        assert _ids(found.whole()) == ["a", "b", "c", "d"]


def test_the_whole_is_what_load_makes(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.jpg", "sub/c.jpg"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"x")
    found = growing.begin(str(tmp_path / "in"), tmp_path / "listing", manifest.Wanted())
    assert found is not None
    with found:
        assert found.wait(30)
        whole = found.whole()
    loaded = manifest.load(str(tmp_path / "in"), tmp_path / "m.parquet")
    assert pq.read_table(whole.path).to_pylist() == pq.read_table(loaded.path).to_pylist()
    assert (whole.rows, whole.source) == (loaded.rows, loaded.source)


def test_a_manifest_is_no_listing(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image_id": ["a"], "uri": ["/a"]}), tmp_path / "m.parquet")
    assert growing.begin(str(tmp_path / "m.parquet"), tmp_path / "listing", manifest.Wanted()) is None
    with pytest.raises(ConfigurationError, match="does not exist"):
        growing.begin(str(tmp_path / "absent"), tmp_path / "listing", manifest.Wanted())


def test_nothing_listed_is_said_and_a_stop_before_anything_leaves_an_empty_manifest(tmp_path: Path) -> None:
    with _growing(iter([]), tmp_path) as found:
        assert found.wait(30)
        assert found.portion() is None
        assert _ids(found.all()) == []
        with pytest.raises(ConfigurationError, match="holds no images"):
            found.whole()


def test_a_store_that_fails_midway_is_told_with_the_next_portion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growing, "_SECONDS_A_FILE", 0.0)

    def tables() -> Iterator[pa.Table]:
        yield _table("a")
        raise ImageError(ErrorCode.DENIED, "not allowed")

    with _growing(tables(), tmp_path) as found:
        with pytest.raises(ConfigurationError, match="not allowed"):
            found.wait(30)
        with pytest.raises(ConfigurationError, match="not allowed"):
            found.portion()


def test_an_image_named_twice_is_refused_before_its_second_portion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growing, "_SECONDS_A_FILE", 0.0)
    go = threading.Event()

    def tables() -> Iterator[pa.Table]:
        yield _table("a")
        assert go.wait(30)
        yield _table("a")

    with _growing(tables(), tmp_path) as found:
        assert found.portion() is not None
        go.set()
        assert found.wait(30)
        with pytest.raises(ConfigurationError, match="more than once"):
            found.portion()


def test_a_stop_does_not_wait_for_a_store_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing, "_PATIENCE_S", 0.05)
    go = threading.Event()

    def tables() -> Iterator[pa.Table]:
        go.wait(60)
        yield _table("a")

    found = _growing(tables(), tmp_path)
    with found:
        pass
    assert found._thread.is_alive()
    go.set()
    found._thread.join(30)
    assert not found._thread.is_alive()

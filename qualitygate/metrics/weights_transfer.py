"""Bytes from a URI into a file, hashed while they pass: bounded in size, in time and in where they may come from."""

import contextlib
import functools
import hashlib
import http.client
import os
import secrets
import stat
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from qualitygate.errors import ConfigurationError, ImageError
from qualitygate.metrics import weights_manifest
from qualitygate.tables import storage

MAX_BYTES = 4 << 30  # several times the largest network here
CHUNK = 1 << 20
SILENCE_S = 60.0  # without a byte
WHOLE_S = 3600.0
ATTEMPTS = 3
BACKOFF_S = 0.5
LOCK_S = WHOLE_S + 600  # longer than the download that another process may be at
PARTIAL = ".part"


class Unreachable(ConfigurationError):
    """The source can't be read: another address may do, and where it may pass (`again`) the same one later."""

    def __init__(self, message: str, *, again: bool = True) -> None:
        super().__init__(message)
        self.again = again


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """What arrived: its full sha256 in hexadecimal and its size."""

    sha256: str
    bytes: int


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time; given back by the system when its holder dies."""
    from filelock import FileLock, Timeout

    lock = FileLock(path, timeout=LOCK_S)
    try:
        lock.acquire()
    except Timeout as error:
        raise ConfigurationError(f"{str(path)!r} has been held by another process for {LOCK_S:.0f} s") from error
    except (OSError, NotImplementedError) as error:
        raise ConfigurationError(f"{str(path)!r} can't be locked ({_reason(error)}); choose another folder") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """A path beside the target for a file in the making; removed unless it has been renamed by then.

    To be used under the target's lock: what an earlier process left when it was killed is removed.
    """
    for left in target.parent.glob(f".{_escaped(target.name)}.*{PARTIAL}"):
        with contextlib.suppress(OSError):
            left.unlink()
    path = target.with_name(f".{target.name}.{secrets.token_hex(8)}{PARTIAL}")
    try:
        yield path
    finally:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def _escaped(name: str) -> str:
    import glob

    return glob.escape(name)


def publish(written: Path, target: Path) -> None:
    """Give a file that is complete its name, at once and for good."""
    with open(written, "rb") as file:
        os.fsync(file.fileno())
    os.replace(written, target)


def receive(uri: str, into: Path, *, max_bytes: int | None = None) -> Received:
    """Write the object of a URI to a new file.

    A local path, `file://`, the schemes of `storage`, and https from the hosts of weights.yaml. Raises
    Unreachable for what may be tried elsewhere and ConfigurationError for what may not, each in one line.
    """
    bound = MAX_BYTES if max_bytes is None else max_bytes
    scheme = storage.scheme_of(uri)
    if scheme in ("http", "https"):
        return _receive_http(uri, into, bound)
    uri = storage.check_location(uri, "weights")
    opened = _local(uri) if scheme in (None, "file") else _remote(uri)
    try:
        with opened as (source, expected):
            return _copy(source.read, into, uri, expected, bound)
    except ConfigurationError:
        raise
    except Exception as error:  # pyarrow raises its own and OSError for every way in which a store can fail
        raise Unreachable(f"{storage.redact(uri)!r} can't be read: {_reason(error)}") from error


@contextmanager
def _local(path: str) -> Iterator[tuple[IO[bytes], int | None]]:
    # Not blocking: opening a pipe for reading would wait for its writer for ever.
    descriptor = os.open(storage.local_path(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb", buffering=0) as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigurationError(f"{path!r} is not a regular file")
        yield file, status.st_size


@contextmanager
def _remote(uri: str) -> Iterator[tuple[Any, int | None]]:
    store, path = storage.file_system(uri)
    info = store.get_file_info(path)
    if info.type.name == "NotFound":
        raise Unreachable(f"{storage.redact(uri)!r}: no such object")
    if info.type.name == "Directory":
        raise ConfigurationError(f"{storage.redact(uri)!r} is a prefix, not an object")
    with store.open_input_stream(path) as source:
        yield source, int(info.size)


def _receive_http(uri: str, into: Path, bound: int) -> Received:
    origins = weights_manifest.published_origins()
    if weights_manifest.origin(uri) not in origins:
        hosts = ", ".join(sorted(origins))
        raise ConfigurationError(
            f"{storage.redact(uri)!r}: only the hosts of weights.yaml are read over https ({hosts}); download it "
            "yourself and give the file, or put it into an object store"
        )
    opener = urllib.request.build_opener(_HttpsOnly(origins))
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _receive_once(opener, uri, into, bound)
        except ConfigurationError as error:
            if attempt == ATTEMPTS or not (isinstance(error, Unreachable) and error.again):
                raise
            time.sleep(BACKOFF_S * 2 ** (attempt - 1))
    raise AssertionError("unreachable: the last attempt returns or raises")


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirects, which both publishers use, but never to anything unencrypted."""

    def __init__(self, origins: frozenset[str]) -> None:
        self.origins = origins

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if storage.scheme_of(newurl) != "https" and weights_manifest.origin(newurl) not in self.origins:
            raise ConfigurationError(
                f"{storage.redact(req.full_url)!r} redirects to {storage.redact(newurl)!r}, which isn't https: refused"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _receive_once(opener: urllib.request.OpenerDirector, uri: str, into: Path, bound: int) -> Received:
    named = storage.redact(uri)
    try:
        request = urllib.request.Request(uri, headers={"User-Agent": "qualitygate"})
        with opener.open(request, timeout=SILENCE_S) as response:
            length = response.headers.get("Content-Length", "")
            # read1 returns with what there is: read would wait for a whole chunk, past the time limit if need be.
            return _copy(response.read1, into, uri, int(length) if length.isdigit() else None, bound)
    except urllib.error.HTTPError as error:
        again = error.code >= 500 or error.code in (408, 429)
        raise Unreachable(f"{named!r} answers {error.code} {error.reason}", again=again) from error
    except http.client.IncompleteRead as error:
        raise Unreachable(f"{named!r} is truncated: the connection ended early") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Unreachable(f"{named!r} can't be reached: {_reason(error)}") from error


def _copy(read: Callable[[int], bytes], into: Path, uri: str, expected: int | None, bound: int) -> Received:
    named = storage.redact(uri)
    too_large = f"{named!r} is larger than the {bound:,} bytes that are accepted: refused"
    if expected is not None and expected > bound:
        raise ConfigurationError(too_large)
    digest, size, end = hashlib.sha256(), 0, time.monotonic() + WHOLE_S
    with _writer(into) as write:
        while chunk := read(CHUNK):
            size += len(chunk)
            if size > bound:
                raise ConfigurationError(too_large)
            if time.monotonic() > end:
                raise Unreachable(f"{named!r} took more than {WHOLE_S:.0f} s: given up after {size:,} bytes")
            digest.update(chunk)
            write(chunk)
    if expected is not None and size != expected:
        raise Unreachable(f"{named!r} is truncated: {size:,} of {expected:,} bytes arrived")
    return Received(sha256=digest.hexdigest(), bytes=size)


@contextmanager
def _writer(path: Path) -> Iterator[Callable[[bytes], None]]:
    """A new file's `write`, whose failures are told from those of the source; a second try replaces the first."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    try:
        # Exclusive: a link that someone planted under this name isn't followed.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise _unwritable(path, error) from error

    def write(chunk: bytes) -> None:
        try:
            while chunk:
                chunk = chunk[os.write(descriptor, chunk) :]
        except OSError as error:
            raise _unwritable(path, error) from error

    try:
        yield write
    finally:
        os.close(descriptor)


def _unwritable(path: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"{str(path.parent)!r} can't be written to ({_reason(error)}); make room or choose another"
    )


def _reason(error: Exception) -> str:
    if isinstance(error, ImageError):
        return error.failure.message
    inner = getattr(error, "reason", error)
    text = getattr(inner, "strerror", None) or str(inner) or type(inner).__name__
    return storage.redact(" ".join(text.split()))[:200]


def hash_of(path: Path) -> Received:
    """sha256 and size of a local file; ConfigurationError if it can't be read.

    Remembered while the file's identity and times stay the same, as git does, and like there not for a file
    that changed just now: within a clock's tick a second change would go unseen.
    """
    try:
        status = os.stat(path)
        signature = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigurationError(f"{str(path)!r} is not a regular file")
        if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) < 2_000_000_000:
            return _hash(str(path))
        return _remembered(str(path), signature)
    except OSError as error:
        raise ConfigurationError(f"{str(path)!r} can't be read: {error.strerror}") from error


@functools.lru_cache(maxsize=64)
def _remembered(path: str, _signature: tuple[int, ...]) -> Received:
    return _hash(path)


def _hash(path: str) -> Received:
    with open(path, "rb", buffering=0) as file:
        digest = hashlib.file_digest(file, "sha256")
        return Received(sha256=digest.hexdigest(), bytes=file.tell())

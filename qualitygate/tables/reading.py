"""Reading bytes, whole or a range: from a local file or a store, with every failure named."""

import errno
import io
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from qualitygate.errors import ErrorCode, ImageError
from qualitygate.tables import access as accesses
from qualitygate.tables import stores
from qualitygate.tables.access import Access
from qualitygate.tables.uris import is_local, local_path


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """The bytes of one object and what identifies this version of them."""

    data: bytes
    etag: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """Size in bytes of an object and what identifies its version."""

    bytes: int
    etag: str | None


def whole(uri: str, *, max_bytes: int, access: Access) -> Fetched:
    """All of an object. ImageError: too_large, or as `stores.failure` names it."""
    return _asked(uri, access, lambda: _local(uri, max_bytes), lambda: _remote(uri, max_bytes, access))


def part(uri: str, start: int, length: int, *, access: Access, etag: str | None = None) -> bytes:
    """`length` bytes from `start` on; ImageError `truncated` where the object ends before.

    etag: of the version that they are to come from; ImageError `missing` where another has taken its place.
    """
    if length == 0:
        return b""
    return _asked(
        uri,
        access,
        lambda: _local_part(uri, start, length, etag),
        lambda: _remote_part(uri, start, length, access, etag),
    )


def marks(uri: str, *, access: Access) -> Marks:
    """Size and version of an object, without its bytes."""
    return _asked(uri, access, lambda: _local_marks(uri), lambda: _remote_marks(uri, access))


def _asked(uri: str, access: Access, local: Callable[[], Any], remote: Callable[[], Any]) -> Any:
    if is_local(uri):
        return accesses.retrying(local, accesses.LOCAL)
    return accesses.retrying(lambda: _named(remote), access)


def _named(request: Callable[[], Any]) -> Any:
    """The answer, or the failure by its name."""
    try:
        return request()
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(ErrorCode.OUT_OF_MEMORY, "no memory for the object's bytes") from error
    except Exception as error:  # the clients have no common base for the ways in which a store can fail
        raise stores.failure(error) from error


def check_bytes(size: int, max_bytes: int) -> None:
    """ImageError for more bytes than are let in."""
    if size > max_bytes:
        raise ImageError(ErrorCode.TOO_LARGE, f"{size:,} bytes exceed max_bytes={max_bytes:,}")


# --- local ----------------------------------------------------------------------------------------------------

_LOCAL_CODES = {
    errno.ENOENT: ErrorCode.MISSING,
    errno.ENOTDIR: ErrorCode.MISSING,
    errno.ENAMETOOLONG: ErrorCode.MISSING,
    errno.ELOOP: ErrorCode.MISSING,
    errno.ENXIO: ErrorCode.UNSUPPORTED,
    errno.EISDIR: ErrorCode.UNSUPPORTED,
    errno.EACCES: ErrorCode.DENIED,
    errno.EPERM: ErrorCode.DENIED,
    errno.ETIMEDOUT: ErrorCode.TIMEOUT,
}


def local_etag(status: os.stat_result) -> str:
    """A local file has no ETag: modification time and size stand in, as a file system's own change mark."""
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"


def _local(uri: str, max_bytes: int) -> Fetched:
    def all_of_it(file: io.FileIO, status: os.stat_result) -> bytes:
        check_bytes(status.st_size, max_bytes)
        data = _up_to(file, status.st_size)
        if len(data) != status.st_size:
            raise ImageError(ErrorCode.TRANSIENT, f"read {len(data)} of {status.st_size} bytes: the file is changing")
        return data

    data, status = _with_file(uri, all_of_it)
    return Fetched(data=data, etag=local_etag(status))


def _local_part(uri: str, start: int, length: int, etag: str | None) -> bytes:
    def some_of_it(file: io.FileIO, status: os.stat_result) -> bytes:
        check_version(local_etag(status), etag)
        file.seek(start)
        return _up_to(file, length)

    data, _ = _with_file(uri, some_of_it)
    return _complete(data, length)


def _complete(data: bytes, length: int) -> bytes:
    if len(data) < length:
        raise ImageError(ErrorCode.TRUNCATED, f"{len(data)} of the {length} bytes are there: it was longer when listed")
    return data


def check_version(found: str | None, wanted: str | None) -> None:
    """ImageError where an object isn't the version that was listed; without a mark on both sides none."""
    if found and wanted and found != wanted:
        raise ImageError(ErrorCode.MISSING, "it has changed since it was listed: make the manifest again")


def _local_marks(uri: str) -> Marks:
    _, status = _with_file(uri, lambda _file, _status: b"")
    return Marks(bytes=status.st_size, etag=local_etag(status))


def _up_to(file: io.FileIO, length: int) -> bytes:
    data = file.read(length) or b""
    while len(data) < length and (more := file.read(length - len(data))):
        data += more
    return data


def _with_file(uri: str, use: Callable[[io.FileIO, os.stat_result], bytes]) -> tuple[bytes, os.stat_result]:
    try:
        # Not blocking: opening a pipe for reading would wait for its writer for ever.
        descriptor = os.open(local_path(uri), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb", buffering=0) as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ImageError(ErrorCode.UNSUPPORTED, "not a regular file")
            return use(file, status), status
    except ImageError:
        raise
    except ValueError as error:  # an embedded NUL
        raise ImageError(ErrorCode.MISSING, f"not a path: {error}") from error
    except MemoryError as error:
        raise ImageError(ErrorCode.OUT_OF_MEMORY, "no memory for the file's bytes") from error
    except OSError as error:
        code = _LOCAL_CODES.get(error.errno or 0, ErrorCode.TRANSIENT)
        raise ImageError(code, error.strerror or type(error).__name__) from error


# --- remote ---------------------------------------------------------------------------------------------------


def in_object_store(uri: str) -> bool:
    """Whether obstore reads it; other remote URIs go through pyarrow."""
    return stores.address(uri).scheme in stores.OBJECT_SCHEMES


@lru_cache(maxsize=64)
def _file_system(root: str) -> Any:
    return stores.arrow_file_system(root)


def file_system(uri: str) -> tuple[Any, str]:
    """(pyarrow file system, path in it) of a remote URI; the file system is shared by its bucket."""
    where = stores.address(uri)
    bucket = where.netloc.partition("@")[0] if where.scheme in stores.AZURE_SCHEMES else where.netloc
    path = "/" + where.key if where.scheme in ("hdfs", "viewfs") else f"{bucket}/{where.key}"
    return _file_system(where.root), path.rstrip("/")


def etag_of(e_tag: str | None) -> str | None:
    """A store's ETag as it is kept: without the quotes that HTTP puts around it."""
    return e_tag.strip('"') if e_tag else None


def arrow_etag(info: Any) -> str | None:
    """pyarrow knows no ETag: modification time and size stand in."""
    return f"{info.mtime_ns:x}-{info.size:x}" if info.mtime_ns is not None else None


def _remote(uri: str, max_bytes: int, access: Access) -> Fetched:
    if not in_object_store(uri):
        info, store, path = _arrow_info(uri)
        check_bytes(int(info.size), max_bytes)
        with store.open_input_file(path) as file:
            return Fetched(data=_arrived(file.read(int(info.size)), int(info.size)), etag=arrow_etag(info))
    import obstore

    store, key = stores.object_store(uri, access)
    answer = obstore.get(store, key)
    # Its head has arrived: a larger body is left where it is.
    check_bytes(answer.meta["size"], max_bytes)
    data = bytes(answer.bytes())
    return Fetched(data=_arrived(data, answer.meta["size"]), etag=etag_of(answer.meta["e_tag"]))


def _remote_part(uri: str, start: int, length: int, access: Access, etag: str | None) -> bytes:
    if not in_object_store(uri):
        info, store, path = _arrow_info(uri)
        check_version(arrow_etag(info), etag)
        with store.open_input_file(path) as file:
            return _complete(bytes(file.read_at(length, start)), length)
    import obstore

    store, key = stores.object_store(uri, access)
    answer = obstore.get(store, key, options={"range": (start, start + length)})
    check_version(etag_of(answer.meta["e_tag"]), etag)
    # A store answers a range beyond the end with what there is.
    first, end = answer.range
    return _complete(_arrived(bytes(answer.bytes()), end - first), length)


def _remote_marks(uri: str, access: Access) -> Marks:
    if not in_object_store(uri):
        info, _, _ = _arrow_info(uri)
        return Marks(bytes=int(info.size), etag=arrow_etag(info))
    import obstore

    store, key = stores.object_store(uri, access)
    meta = obstore.head(store, key)
    return Marks(bytes=meta["size"], etag=etag_of(meta["e_tag"]))


def generation(uri: str) -> Fetched:
    """A small object of Google's storage with its generation in the etag's place. Raises what the client raises."""
    import obstore

    store, key = stores.object_store(uri)
    answer = obstore.get(store, key)
    return Fetched(data=_arrived(bytes(answer.bytes()), answer.meta["size"]), etag=answer.meta["version"])


def _arrived(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise ImageError(ErrorCode.TRANSIENT, f"only {len(data)} of {size} bytes arrived")
    return data


def _arrow_info(uri: str) -> tuple[Any, Any, str]:
    store, path = file_system(uri)
    info = store.get_file_info(path)
    if info.type.name == "NotFound":
        raise ImageError(ErrorCode.MISSING, "no such object")
    if info.type.name == "Directory":
        raise ImageError(ErrorCode.UNSUPPORTED, "a prefix, not an object")
    return info, store, path


class RangeFile(io.RawIOBase):
    """An object as a file that can be sought in: each read is a request for a range, tried again as any other."""

    def __init__(self, uri: str, marks: Marks, access: Access) -> None:
        super().__init__()
        self._uri = uri
        self._etag = marks.etag
        self._size = marks.bytes
        self._access = access
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        length = max(0, min(len(buffer), self._size - self._position))
        data = part(self._uri, self._position, length, access=self._access, etag=self._etag)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

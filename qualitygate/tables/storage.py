"""URIs and file systems: one place that knows what may be read, and what each failure means.

A plain path is a local file, whatever characters it holds. `file://` URIs are percent-decoded. Every other
URI goes through pyarrow's file systems, by an allow-list of schemes; credentials come from the usual chain
(environment, profile, instance role) and never from a URI.
"""

import contextlib
import errno
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote_to_bytes, urlsplit

from qualitygate.errors import RETRIED_CODES, ConfigurationError, ErrorCode, ImageError

# The secret after the colon may hold slashes, as AWS's do.
_USER = re.compile(r"(?<=://)(?:[^/:@\s]*:[^@\s]*|[^/@\s]*)@")
_SIGNED = re.compile(r"[?&](?:X-Amz-[A-Za-z-]+|AWSAccessKeyId|Signature|sig|token)=", re.IGNORECASE)
REMOTE_SCHEMES = frozenset({"s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs"})
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_OTHER_SCHEME = re.compile(r"^(data|javascript|about|blob):", re.IGNORECASE)

_OPTIONS = re.compile(r"\?(?:(?:region|scheme|endpoint_override|retry_limit_seconds|user|replication)=[^&?]*&?)+$")

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """The bytes of one object and what identifies this version of them."""

    data: bytes
    etag: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One object found below a folder or prefix; `name` is its path relative to that, `/` between parts."""

    name: str
    uri: str
    etag: str | None
    bytes: int | None


def scheme_of(uri: str) -> str | None:
    """Lower-case scheme of a URI, or None for a local path."""
    match = _SCHEME.match(uri) or _OTHER_SCHEME.match(uri)
    return match.group(1).lower() if match else None


def is_local(uri: str) -> bool:
    """Whether the URI names a file of this machine."""
    return scheme_of(uri) in (None, "file")


def without_secrets(uri: str) -> str:
    """The URI as it may be stored: itself, or redacted where it is of a kind that is refused."""
    scheme = scheme_of(uri)
    refused = scheme not in (None, "file") and (scheme not in REMOTE_SCHEMES or _has_credentials(uri))
    return redact(uri) if refused else uri


def redact(text: str) -> str:
    """The text without user names, passwords and signatures inside URIs; for messages and echoes."""
    text = _USER.sub("***@", text)
    return re.sub(r"(://[^\s?'\"]*)\?[^\s'\"]*", r"\1?***", text)


def local_path(uri: str) -> bytes:
    """The local file system's own bytes for a path or a `file://` URI."""
    if scheme_of(uri) != "file":
        return os.fsencode(uri)
    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost"):
        raise ImageError(ErrorCode.DENIED, f"file URI names another host: {redact(uri)!r}")
    return unquote_to_bytes(parts.path)


def uri_of_path(path: str) -> str:
    """A string that Arrow can hold for any local path: itself, or a `file://` URI when it isn't valid UTF-8."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return "file://" + quote(os.fsencode(os.path.abspath(path)))
    return path


def join(base: str, *parts: str) -> str:
    """The URI of something below a folder or prefix."""
    return "/".join([base.rstrip("/") or "/", *parts]) if base != "/" else "/" + "/".join(parts)


def check_location(uri: str, role: str) -> str:
    """The URI itself when the role (`--input`, `--output`) may use it; ConfigurationError otherwise."""
    scheme = scheme_of(uri)
    if scheme not in (None, "file") and scheme not in REMOTE_SCHEMES:
        allowed = ", ".join(sorted(REMOTE_SCHEMES | {"file"}))
        raise ConfigurationError(f"{role}: scheme {scheme!r} isn't supported; use a local path or one of {allowed}")
    if _has_credentials(uri):
        raise ConfigurationError(
            f"{role}: {redact(uri)!r} holds credentials; take them out and use the environment (AWS_ACCESS_KEY_ID, ...)"
        )
    return os.fsdecode(local_path(uri)) if scheme == "file" else uri


def _has_credentials(uri: str) -> bool:
    scheme = scheme_of(uri)
    if scheme not in REMOTE_SCHEMES:
        return False
    found = _USER.search(uri)
    # abfs://container@account is an address; everywhere else what stands before the @ is a key.
    named = found is not None and (scheme not in ("abfs", "abfss") or ":" in found.group())
    return named or bool(_SIGNED.search(uri))


@lru_cache(maxsize=64)
def _file_system(root: str) -> Any:
    import pyarrow.fs

    file_system, _ = pyarrow.fs.FileSystem.from_uri(root)
    return file_system


def file_system(uri: str) -> tuple[Any, str]:
    """(pyarrow file system, path in it) of a remote URI; the file system is shared by its bucket.

    Keys are taken as they stand, as the stores' own tools do: `%`, `#` and `?` are part of a key, unless what
    follows the `?` are pyarrow's options (`?endpoint_override=...`).
    """
    options = _OPTIONS.search(uri)
    bare = uri[: options.start()] if options else uri
    scheme, _, rest = bare.partition("://")
    netloc, _, key = rest.partition("/")
    root = f"{scheme}://{netloc}" + (options.group() if options else "")
    bucket = netloc.partition("@")[0] if scheme in ("abfs", "abfss") else netloc
    path = "/" + key if scheme in ("hdfs", "viewfs") else f"{bucket}/{key}"
    return _file_system(root), path.rstrip("/")


def fetch(uri: str | None, *, max_bytes: int, attempts: int = 3, backoff_s: float = 0.5) -> Fetched:
    """The whole object, or an ImageError that says why not; transient failures are tried again with backoff.

    A null where an object exists is never taken for its absence: `missing` means that the store said so.
    """
    if not uri:
        raise ImageError(ErrorCode.MISSING, "the manifest has no uri for this image")
    scheme = scheme_of(uri)
    if scheme in (None, "file"):
        read: Callable[[], Fetched] = lambda: _read_local(uri, max_bytes)  # noqa: E731
    elif scheme in REMOTE_SCHEMES:
        if _has_credentials(uri):
            raise ImageError(ErrorCode.DENIED, f"credentials inside a URI are not accepted: {redact(uri)}")
        read = lambda: _read_remote(uri, max_bytes)  # noqa: E731
    else:
        raise ImageError(ErrorCode.DENIED, f"scheme {scheme!r} is not on the list of those that may be read")
    return retrying(read, attempts=attempts, backoff_s=backoff_s)


def retrying(read: Callable[[], T], *, attempts: int, backoff_s: float) -> T:
    """`read()`, again after each failure that may pass, with exponential backoff."""
    for attempt in range(1, attempts + 1):
        try:
            return read()
        except ImageError as error:
            if attempt == attempts or error.failure.code not in RETRIED_CODES - {ErrorCode.OUT_OF_MEMORY}:
                raise
            time.sleep(backoff_s * 2 ** (attempt - 1))
    raise AssertionError("unreachable: the last attempt returns or raises")


def local_etag(status: os.stat_result) -> str:
    """A local file has no ETag: modification time and size stand in, as a file system's own change mark."""
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"


def _read_local(uri: str, max_bytes: int) -> Fetched:
    try:
        # Not blocking: opening a pipe for reading would wait for its writer for ever.
        descriptor = os.open(local_path(uri), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb", buffering=0) as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ImageError(ErrorCode.UNSUPPORTED, "not a regular file")
            _check_bytes(status.st_size, max_bytes)
            data = file.read(status.st_size) or b""
            while len(data) < status.st_size and (more := file.read(status.st_size - len(data))):
                data += more
    except ImageError:
        raise
    except ValueError as error:  # an embedded NUL
        raise ImageError(ErrorCode.MISSING, f"not a path: {error}") from error
    except MemoryError as error:
        raise ImageError(ErrorCode.OUT_OF_MEMORY, "no memory for the file's bytes") from error
    except OSError as error:
        raise _local_failure(error) from error
    if len(data) != status.st_size:
        raise ImageError(ErrorCode.TRANSIENT, f"read {len(data)} of {status.st_size} bytes: the file is changing")
    return Fetched(data=data, etag=local_etag(status))


def _check_bytes(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise ImageError(ErrorCode.TOO_LARGE, f"{size:,} bytes exceed max_bytes={max_bytes:,}")


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


def _local_failure(error: OSError) -> ImageError:
    code = _LOCAL_CODES.get(error.errno or 0, ErrorCode.TRANSIENT)
    return ImageError(code, error.strerror or type(error).__name__)


def _read_remote(uri: str, max_bytes: int) -> Fetched:
    import pyarrow as pa

    try:
        store, path = file_system(uri)
        info = store.get_file_info(path)
        if info.type.name == "NotFound":
            raise ImageError(ErrorCode.MISSING, "no such object")
        if info.type.name == "Directory":
            raise ImageError(ErrorCode.UNSUPPORTED, "a prefix, not an object")
        size = int(info.size)
        _check_bytes(size, max_bytes)
        with store.open_input_file(path) as file:
            data = file.read(size)
    except ImageError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise _remote_failure(error) from error
    if len(data) != size:
        raise ImageError(ErrorCode.TRANSIENT, f"read {len(data)} of {size} bytes")
    return Fetched(data=data, etag=_remote_etag(info))


def _remote_etag(info: Any) -> str | None:
    return f"{info.mtime_ns:x}-{info.size:x}" if info.mtime_ns is not None else None


_REMOTE_SIGNS = (
    (
        ErrorCode.DENIED,
        re.compile(r"access.?denied|forbidden|\b403\b|invalid.?access.?key|signature|credential", re.I),
    ),
    (ErrorCode.MISSING, re.compile(r"no.?such.?(key|bucket)|not.?found|\b404\b|does not exist", re.I)),
    (ErrorCode.TIMEOUT, re.compile(r"time.?out|timed out|curlCode: 28", re.I)),
)


def _remote_failure(error: Exception) -> ImageError:
    message = redact(str(error)).splitlines()[0][:300] if str(error) else type(error).__name__
    if isinstance(error, FileNotFoundError):
        return ImageError(ErrorCode.MISSING, message)
    if isinstance(error, PermissionError):
        return ImageError(ErrorCode.DENIED, message)
    for code, sign in _REMOTE_SIGNS:
        if sign.search(message):
            return ImageError(code, message)
    return ImageError(ErrorCode.TRANSIENT, message)


def exists(uri: str) -> bool:
    """Whether there is an object, a file, a folder or a prefix of this name."""
    if is_local(uri):
        return os.path.exists(local_path(uri))
    store, path = file_system(uri)
    return bool(store.get_file_info(path).type.name != "NotFound")


def is_folder(uri: str) -> bool:
    """Whether the URI names a local folder or a prefix that holds objects."""
    if is_local(uri):
        return os.path.isdir(local_path(uri))
    store, path = file_system(uri)
    return bool(store.get_file_info(path).type.name == "Directory")


def hidden(name: str) -> bool:
    """Whether a name is left out of listings: `.` and `_` mark what isn't data, here as in Spark and Delta."""
    return name.startswith((".", "_"))


def walk(root: str) -> Iterator[Listed]:
    """Every regular file below a folder or prefix, in order of name, folder by folder in bounded memory.

    Names that start with `.` or `_` are left out, files and folders alike. Links to files are followed, links
    to folders aren't (they may lead in circles). What can't be looked into, a link to nowhere or a folder
    without permission, is listed too: reading it will say why.
    """
    if is_local(root):
        yield from _walk_local(os.fsdecode(local_path(root)))
    else:
        store, path = file_system(root)
        yield from _walk_remote(store, path, root.rstrip("/"))


def _walk_local(root: str) -> Iterator[Listed]:
    pending = [""]
    while pending:
        folder = pending.pop()
        path = os.path.join(root, folder) if folder else root
        try:
            with os.scandir(path) as entries:
                ordered = sorted((entry for entry in entries if not hidden(entry.name)), key=lambda e: e.name)
        except OSError:
            if not folder:
                raise
            yield listed_file(path, folder)
            continue
        folders = []
        for entry in ordered:
            name = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir(follow_symlinks=False):
                folders.append(name)
            elif _is_file_or_broken_link(entry):
                yield listed_file(os.path.join(root, name), name)
        pending.extend(reversed(folders))


def _is_file_or_broken_link(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))
    except OSError:  # a link that leads in a circle
        return True


def listed_file(path: str, name: str) -> Listed:
    """A local file under the name that it has in a listing."""
    etag, size = change_marks(path)
    # Bytes that are no UTF-8 stay tellable apart: \xff becomes the four characters \xff.
    image_id = os.fsencode(name).decode("utf-8", "backslashreplace")
    return Listed(name=image_id, uri=uri_of_path(path), etag=etag, bytes=size)


def change_marks(path: str | bytes) -> tuple[str | None, int | None]:
    """(etag, bytes) of a local file; nothing for one that can't be looked at: its row will say why."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None, None
    return (local_etag(status), status.st_size) if stat.S_ISREG(status.st_mode) else (None, None)


def _walk_remote(store: Any, root: str, uri: str) -> Iterator[Listed]:
    import pyarrow.fs

    options = _OPTIONS.search(uri)
    prefix, suffix = (uri[: options.start()].rstrip("/"), options.group()) if options else (uri, "")
    pending = [root]
    while pending:
        current = pending.pop()
        found = sorted(store.get_file_info(pyarrow.fs.FileSelector(current)), key=lambda info: info.path)
        folders = []
        for info in found:
            if hidden(info.base_name):
                continue
            if info.type.name == "Directory":
                folders.append(info.path)
            elif info.type.name == "File":
                name = info.path[len(root) :].lstrip("/")
                uri_of_it = f"{prefix}/{name}{suffix}"
                yield Listed(name=name, uri=uri_of_it, etag=_remote_etag(info), bytes=info.size)
        pending.extend(reversed(folders))


def check_writable(uri: str, role: str) -> None:
    """Make the folder and prove that it can be written to; ConfigurationError with the remedy otherwise."""
    try:
        if is_local(uri):
            folder = os.fsdecode(local_path(uri))
            os.makedirs(folder, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder, prefix="_probe"):
                pass
        else:
            write_bytes(join(uri, "_probe"), b"")
            delete(join(uri, "_probe"))
    except Exception as error:
        reason = getattr(error, "strerror", None) or redact(str(error)).splitlines()[0][:200]
        raise ConfigurationError(
            f"{role} {redact(uri)!r} can't be written to ({reason}); choose another folder or mend its permissions"
        ) from error


def write_bytes(uri: str, data: bytes) -> None:
    """Write an object whole or not at all: a temporary file renamed, or a single PUT."""
    if is_local(uri):
        path = Path(os.fsdecode(local_path(uri)))
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix="_writing")
        try:
            with open(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
    else:
        store, path_in_store = file_system(uri)
        with store.open_output_stream(path_in_store) as stream:
            stream.write(data)


def _umask() -> int:
    # The only way to read it is to set it; mkstemp's 0600 would hide results from a team's other accounts.
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def read_bytes(uri: str) -> bytes | None:
    """A small object's bytes; None when there is none."""
    try:
        return fetch(uri, max_bytes=1 << 30).data
    except ImageError as error:
        if error.failure.code is ErrorCode.MISSING:
            return None
        raise


def download(uri: str, path: str) -> None:
    """Copy one remote object to a local file, in bounded memory."""
    import pyarrow.fs

    store, path_in_store = file_system(uri)
    pyarrow.fs.copy_files(
        path_in_store, path, source_filesystem=store, destination_filesystem=pyarrow.fs.LocalFileSystem()
    )


def subfolders(uri: str) -> list[str]:
    """Names of the folders or prefixes right below one; none where there is none."""
    import pyarrow.fs

    if is_local(uri):
        folder = os.fsdecode(local_path(uri))
        return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()) if os.path.isdir(folder) else []
    store, path = file_system(uri)
    found = store.get_file_info(pyarrow.fs.FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in found if info.type.name == "Directory")


def delete(uri: str) -> None:
    """Remove one object; absent is fine."""
    if is_local(uri):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(local_path(uri))
    else:
        store, path = file_system(uri)
        store.delete_file(path)


def delete_folder(uri: str) -> None:
    """Remove a folder or prefix and all below it; absent is fine."""
    import shutil

    if is_local(uri):
        shutil.rmtree(os.fsdecode(local_path(uri)), ignore_errors=True)
    else:
        store, path = file_system(uri)
        with contextlib.suppress(FileNotFoundError):
            store.delete_dir(path)

"""Files and stores, one layer: URIs, bytes, listings and whole writes, local and remote alike.

What a URI may be: `uris`. How stores are reached: `stores`. How they are asked: `access`. Images inside larger
files: `parts`.
"""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from qualitygate.errors import ConfigurationError, ErrorCode, ImageError, StoreUnavailable
from qualitygate.tables import parts, reading, stores
from qualitygate.tables.access import DEFAULT, PASSING_CODES, Access, retrying
from qualitygate.tables.listing import Listed, change_marks, everything, hidden, listed_file, walk
from qualitygate.tables.reading import Fetched, etag_of, file_system
from qualitygate.tables.uris import (
    REMOTE_SCHEMES,
    check_location,
    check_readable,
    is_local,
    join,
    local_path,
    redact,
    scheme_of,
    uri_of_path,
    without_secrets,
)

T = TypeVar("T")
_CHUNK = 8 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)

__all__ = [
    "DEFAULT",
    "REMOTE_SCHEMES",
    "Access",
    "Fetched",
    "Listed",
    "asked",
    "change_marks",
    "check_location",
    "check_writable",
    "delete",
    "delete_folder",
    "download",
    "everything",
    "exists",
    "fetch",
    "file_system",
    "hidden",
    "is_folder",
    "is_local",
    "join",
    "listed_file",
    "local_path",
    "publish",
    "put_if",
    "read_bytes",
    "read_version",
    "redact",
    "scheme_of",
    "subfolders",
    "uri_of_path",
    "walk",
    "without_secrets",
    "write_bytes",
]


def fetch(uri: str | None, *, max_bytes: int, access: Access = DEFAULT, etag: str | None = None) -> Fetched:
    """The whole object, or an ImageError that says why not; failures that may pass are tried again with backoff.

    A null where an object exists is never taken for its absence: `missing` means that the store said so.

    etag: for a part of a larger file, the version of that file in which the part lies where its URI says.
    """
    if not uri:
        raise ImageError(ErrorCode.MISSING, "the manifest has no uri for this image")
    check_readable(uri)
    part = parts.parse(uri)
    if part is not None:
        return parts.fetch(part, max_bytes=max_bytes, access=access, etag=etag)
    return reading.whole(uri, max_bytes=max_bytes, access=access)


def exists(uri: str) -> bool:
    """Whether there is an object, a file, a folder or a prefix of this name."""
    if is_local(uri):
        return os.path.exists(local_path(uri))
    if not reading.in_object_store(uri):
        store, path = file_system(uri)
        return bool(store.get_file_info(path).type.name != "NotFound")
    return _is_object(uri) or _holds_objects(uri)


def is_folder(uri: str) -> bool:
    """Whether the URI names a local folder or a prefix that holds objects."""
    if is_local(uri):
        return os.path.isdir(local_path(uri))
    if not reading.in_object_store(uri):
        store, path = file_system(uri)
        return bool(store.get_file_info(path).type.name == "Directory")
    # An empty object of a folder's name is how some tools mark the folder.
    return _holds_objects(uri)


def _is_object(uri: str) -> bool:
    if not stores.address(uri).key:
        return False
    try:
        reading.marks(uri, access=DEFAULT)
    except ImageError as error:
        if error.failure.code is ErrorCode.MISSING:
            return False
        raise
    return True


def _holds_objects(uri: str) -> bool:
    import obstore

    store, key = stores.object_store(uri)
    try:
        page = asked(lambda: next(iter(obstore.list(store, key or None, chunk_size=2)), []))
    except ImageError as error:
        if error.failure.code is ErrorCode.MISSING:
            return False
        raise
    return not key or any(item["path"] != key for item in page)


def check_writable(uri: str, role: str) -> None:
    """Make the folder and prove that it can be written to.

    Raises StoreUnavailable where its store doesn't answer, ConfigurationError with the remedy for what won't pass.
    """
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
        if isinstance(error, ImageError) and error.failure.code in PASSING_CODES:
            raise unavailable(f"{role} {redact(uri)!r}", reason) from error
        if isinstance(error, OSError) and error.errno in _FULL:
            raise ConfigurationError(
                f"{role} {redact(uri)!r} can't be written to ({reason}); make room there or choose another folder"
            ) from error
        raise ConfigurationError(
            f"{role} {redact(uri)!r} can't be written to ({reason}); choose another folder or mend its permissions"
        ) from error


def unavailable(said: str, reason: str) -> StoreUnavailable:
    """Of a place that a command needs, named in `said`, whose store doesn't answer."""
    return StoreUnavailable(
        f"{said}: its store doesn't answer ({reason}); once it does, the same command goes on; where it never did, "
        "check its endpoint and where the credentials come from"
    )


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
    elif reading.in_object_store(uri):
        import obstore

        store, key = stores.object_store(uri)
        asked(lambda: obstore.put(store, key, data))
    else:
        file_system_of_it, path_in_store = file_system(uri)
        with file_system_of_it.open_output_stream(path_in_store) as stream:
            stream.write(data)


def put_if(uri: str, data: bytes, etag: str | None) -> str | None:
    """Compare and swap: write only where the object still has this etag, or, for None, only where there is none.

    Returns the new etag, or None where another writer was first. `data` must tell writers apart (an id in it): an
    answer that got lost is made up for by looking whether the object holds it.
    """
    if is_local(uri):
        return _put_local_if(uri, data, etag)
    if not reading.in_object_store(uri):
        raise ConfigurationError(f"{redact(uri)!r}: this store can't write on a condition; use s3, gs, abfs or az")
    import obstore
    from obstore.exceptions import AlreadyExistsError, NotFoundError, PreconditionError

    store, key = stores.object_store(uri)
    generations = stores.by_generation(uri)
    mode: Any = "create"
    if etag is not None:
        mode = {"version": etag} if generations else {"e_tag": f'"{etag}"'}

    def put() -> str | None:
        try:
            # Not in parts: a multipart upload carries no condition.
            made = obstore.put(store, key, data, mode=mode, use_multipart=False)
            return made["version"] if generations else etag_of(made["e_tag"])
        except (AlreadyExistsError, PreconditionError, NotFoundError, FileNotFoundError):
            return None
        except Exception as error:
            raise stores.failure(error) from error

    written = retrying(put, DEFAULT)
    if written is None:
        now = read_version(uri)
        return now.etag if now is not None and now.data == data else None
    return written


def _put_local_if(uri: str, data: bytes, etag: str | None) -> str | None:
    from filelock import FileLock

    path = Path(os.fsdecode(local_path(uri)))
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f"_lock-{path.name}")):
        before = change_marks(str(path))[0]
        if before != etag:
            return None
        modified = os.stat(path).st_mtime_ns if before is not None else 0
        write_bytes(uri, data)
        now = os.stat(path)
        if now.st_mtime_ns <= modified:
            # File systems count time in ticks: of two writes within one, the second must not look like the first.
            os.utime(path, ns=(now.st_atime_ns, modified + 1))
        return change_marks(str(path))[0]


def asked(request: Callable[[], T], access: Access = DEFAULT) -> T:
    """A client's answer, asked for again while its failures may pass; ImageError for the others."""

    def named() -> T:
        try:
            return request()
        except Exception as error:  # the clients have no common base for the ways in which a store can fail
            raise stores.failure(error) from error

    return retrying(named, access)


def _umask() -> int:
    # The only way to read it is to set it; mkstemp's 0600 would hide results from a team's other accounts.
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def read_version(uri: str) -> Fetched | None:
    """A small object's bytes and their version, as `put_if` takes it; None when there is none."""
    try:
        if not is_local(uri) and stores.by_generation(uri):
            return asked(lambda: reading.generation(uri))
        return fetch(uri, max_bytes=1 << 30)
    except ImageError as error:
        if error.failure.code is ErrorCode.MISSING:
            return None
        raise


def read_bytes(uri: str) -> bytes | None:
    """A small object's bytes; None when there is none."""
    found = read_version(uri)
    return found.data if found is not None else None


def download(uri: str, path: str) -> None:
    """Copy one remote object to a local file, in bounded memory."""
    if reading.in_object_store(uri):
        import obstore

        store, key = stores.object_store(uri)

        def copy() -> None:
            answer = obstore.get(store, key)
            with open(path, "wb") as file:
                for chunk in answer.stream(min_chunk_size=_CHUNK):
                    file.write(chunk)
                if file.tell() != answer.meta["size"]:
                    raise ImageError(ErrorCode.TRANSIENT, f"only {file.tell()} of {answer.meta['size']} bytes arrived")

        asked(copy)
        return
    import pyarrow.fs

    file_system_of_it, path_in_store = file_system(uri)
    here = pyarrow.fs.LocalFileSystem()
    pyarrow.fs.copy_files(path_in_store, path, source_filesystem=file_system_of_it, destination_filesystem=here)


def publish(path: Path, uri: str) -> None:
    """Copy a local file to its place, local or remote, whole or not at all and in bounded memory."""
    if is_local(uri):
        target = Path(os.fsdecode(local_path(uri)))
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside its place first: only within one file system is a rename all or nothing.
        beside = target.with_name(f"_writing-{os.getpid()}-{target.name}")
        try:
            shutil.copyfile(path, beside)
            os.replace(beside, target)
        finally:
            beside.unlink(missing_ok=True)
    elif reading.in_object_store(uri):
        import obstore

        store, key = stores.object_store(uri)
        asked(lambda: obstore.put(store, key, path))
    else:
        import pyarrow.fs

        file_system_of_it, path_in_store = file_system(uri)
        here = pyarrow.fs.LocalFileSystem()
        pyarrow.fs.copy_files(
            str(path), path_in_store, source_filesystem=here, destination_filesystem=file_system_of_it
        )


def subfolders(uri: str) -> list[str]:
    """Names of the folders or prefixes right below one; none where there is none."""
    if is_local(uri):
        folder = os.fsdecode(local_path(uri))
        return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()) if os.path.isdir(folder) else []
    if reading.in_object_store(uri):
        import obstore

        store, key = stores.object_store(uri)
        try:
            below = asked(lambda: obstore.list_with_delimiter(store, key or None))["common_prefixes"]
        except ImageError as error:
            if error.failure.code is ErrorCode.MISSING:
                return []
            raise
        return sorted(prefix.rpartition("/")[2] for prefix in below)
    import pyarrow.fs

    file_system_of_it, path = file_system(uri)
    found = file_system_of_it.get_file_info(pyarrow.fs.FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in found if info.type.name == "Directory")


def delete(uri: str) -> None:
    """Remove one object; absent is fine."""
    if is_local(uri):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(local_path(uri))
    elif reading.in_object_store(uri):
        import obstore

        store, key = stores.object_store(uri)
        with _absent_is_fine():
            asked(lambda: obstore.delete(store, key))
    else:
        file_system_of_it, path = file_system(uri)
        with contextlib.suppress(FileNotFoundError):
            file_system_of_it.delete_file(path)


def delete_folder(uri: str) -> None:
    """Remove a folder or prefix and all below it; absent is fine."""
    if is_local(uri):
        shutil.rmtree(os.fsdecode(local_path(uri)), ignore_errors=True)
    elif reading.in_object_store(uri):
        import obstore

        store, key = stores.object_store(uri)
        if not key:
            raise ConfigurationError(f"{redact(uri)!r} is a whole bucket, which isn't deleted; name a prefix in it")

        def remove() -> None:
            # Page by page: what is gone needn't be listed again after a failure.
            for page in obstore.list(store, key, chunk_size=1000):
                obstore.delete(store, [item["path"] for item in page])

        with _absent_is_fine():
            asked(remove)
    else:
        file_system_of_it, path = file_system(uri)
        with contextlib.suppress(FileNotFoundError):
            file_system_of_it.delete_dir(path)


@contextlib.contextmanager
def _absent_is_fine() -> Iterator[None]:
    try:
        yield
    except ImageError as error:
        if error.failure.code is not ErrorCode.MISSING:
            raise

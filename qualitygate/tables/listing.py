"""Listings: what lies below a folder or prefix, one object after another or, of large stores, many pages at a time.

A store hands out its keys page by page, each page after the one before. So prefixes are listed beside each
other, in threads: those right below the root, and where these are few, those below them.
"""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from qualitygate.errors import ErrorCode, ImageError
from qualitygate.tables import reading, stores
from qualitygate.tables.access import DEFAULT, Access, Patience, retrying
from qualitygate.tables.gather import Gathering
from qualitygate.tables.reading import local_etag
from qualitygate.tables.uris import OPTIONS, is_local, local_path, uri_of_path

if TYPE_CHECKING:
    import pyarrow as pa


@functools.cache
def listed_schema() -> pa.Schema:
    """name, uri, etag, bytes, modified: the columns of listings. PyArrow is loaded by those who list, not before."""
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("name", pa.string(), nullable=False),
            pa.field("uri", pa.string(), nullable=False),
            pa.field("etag", pa.string()),
            pa.field("bytes", pa.int64()),
            pa.field("modified", pa.timestamp("us", tz="UTC")),
        ]
    )


# Keys of an answer to S3's ListObjectsV2, at most.
_PAGE = 1000
THREADS = 16
# Pages that wait to be taken: a listing that is faster than its reader stops there.
_PAGES_AHEAD = 4 * THREADS
# Empty objects in a row, of which not all can be folders.
_MOST_SEEN = 100_000
# Fewer objects come with one or two answers anyway.
_WORTH_DIVIDING = 500
# Where a page spans more prefixes, each holds so few objects that asking for them one by one takes longer.
_MOST_CHILDREN_ON_A_PAGE = 50


# A store's answer, and which of its keys are known to be folders.
if TYPE_CHECKING:
    _Page = tuple[pa.RecordBatch, frozenset[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One object found below a folder or prefix; `name` is its path relative to that, `/` between parts."""

    name: str
    uri: str
    etag: str | None
    bytes: int | None
    modified: datetime | None = None


def hidden(name: str) -> bool:
    """Whether a name is left out of listings: `.` and `_` mark what isn't data, here as in Spark and Delta."""
    return name.startswith((".", "_"))


def walk(root: str, special: Callable[[], object] = lambda: None) -> Iterator[Listed]:
    """Every regular file below a folder or prefix, in order of name, in bounded memory.

    Names that start with `.` or `_` are left out, files and folders alike. Links to files are followed, links
    to folders aren't (they may lead in circles). What can't be looked into, a link to nowhere or a folder
    without permission, is listed too: reading it will say why. ImageError where the root can't be listed.

    special: called for each pipe, socket and device, and each link to one. They are not listed and never opened:
        that may wait for ever, or have effects.
    """
    if is_local(root):
        yield from _walk_local(os.fsdecode(local_path(root)), special)
    elif reading.in_object_store(root):
        for table in _ObjectListing(root, DEFAULT).pages(stores.address(root).key):
            for row in table.to_pylist():
                yield Listed(**row)
    else:
        store, path = reading.file_system(root)
        yield from _walk_arrow(store, path, root, special)


def everything(root: str) -> Iterator[Listed]:
    """Every regular file below a folder or prefix, also those whose names are left out of listings; no links.

    In no order. ImageError where the root can't be listed; nothing where there is none.
    """
    if is_local(root):
        folder = os.fsdecode(local_path(root))
        for path, _, names in os.walk(folder):
            for name in names:
                whole = os.path.join(path, name)
                if not os.path.islink(whole):
                    yield listed_file(whole, os.path.relpath(whole, folder))
    elif reading.in_object_store(root):
        prefix, options = split_options(root)
        key = stores.address(root).key
        for batch in _ObjectListing(root, DEFAULT).raw_pages(key):
            for row in batch.select(["path", "size", "last_modified"]).to_pylist():
                name = row["path"][len(key) :].lstrip("/")
                if name:
                    yield Listed(
                        name=name,
                        uri=f"{prefix}/{name}{options}",
                        etag=None,
                        bytes=row["size"],
                        modified=row["last_modified"],
                    )
    else:
        import pyarrow.fs

        store, path = reading.file_system(root)
        prefix, options = split_options(root)
        for info in store.get_file_info(pyarrow.fs.FileSelector(path, recursive=True, allow_not_found=True)):
            if info.type.name == "File":
                name = info.path[len(path) :].lstrip("/")
                yield Listed(
                    name=name, uri=f"{prefix}/{name}{options}", etag=None, bytes=info.size, modified=info.mtime
                )


def batches(
    root: str, *, in_order: bool = False, access: Access = DEFAULT, special: Callable[[], object] = lambda: None
) -> Iterator[pa.Table]:
    """The same in tables of `listed_schema`, from object stores in parallel and in no order, unless asked for."""
    if not is_local(root) and reading.in_object_store(root) and not in_order:
        yield from _ObjectListing(root, access).parallel()
    else:
        yield from as_tables(walk(root, special))


def as_tables(listing: Iterator[Listed]) -> Iterator[pa.Table]:
    """Listed objects in tables of `listed_schema`, some thousand rows each."""
    rows: list[tuple[Any, ...]] = []
    for item in listing:
        rows.append((item.name, item.uri, item.etag, item.bytes, item.modified))
        if len(rows) == 20 * _PAGE:
            yield _table(rows)
            rows = []
    if rows:
        yield _table(rows)


def _table(rows: list[tuple[Any, ...]]) -> pa.Table:
    import pyarrow as pa

    columns = zip(*rows, strict=True)
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, listed_schema(), strict=True)],
        schema=listed_schema(),
    )


def _walk_local(root: str, special: Callable[[], object]) -> Iterator[Listed]:
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
            elif is_special(entry.path):
                special()
        pending.extend(reversed(folders))


def _is_file_or_broken_link(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))
    except OSError:  # a link that leads in a circle
        return True


def is_special(path: str) -> bool:
    """Whether a path is that of a pipe, a socket or a device, or of a link to one."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def listed_file(path: str, name: str) -> Listed:
    """A local file under the name that it has in a listing."""
    etag, size, modified = _marks(path)
    # Bytes that are no UTF-8 stay tellable apart: \xff becomes the four characters \xff.
    image_id = os.fsencode(name).decode("utf-8", "backslashreplace")
    return Listed(name=image_id, uri=uri_of_path(path), etag=etag, bytes=size, modified=modified)


def change_marks(path: str | bytes) -> tuple[str | None, int | None]:
    """(etag, bytes) of a local file; nothing for one that can't be looked at: its row will say why."""
    return _marks(path)[:2]


def _marks(path: str | bytes) -> tuple[str | None, int | None, datetime | None]:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None, None, None
    if not stat.S_ISREG(status.st_mode):
        return None, None, None
    return local_etag(status), status.st_size, datetime.fromtimestamp(status.st_mtime, UTC)


def _walk_arrow(store: Any, root: str, uri: str, special: Callable[[], object]) -> Iterator[Listed]:
    import pyarrow.fs

    prefix, suffix = split_options(uri)
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
                yield Listed(
                    name=name,
                    uri=f"{prefix}/{name}{suffix}",
                    etag=reading.arrow_etag(info),
                    bytes=info.size,
                    modified=info.mtime,
                )
            elif info.type.name == "Unknown":
                special()
        pending.extend(reversed(folders))


def split_options(uri: str) -> tuple[str, str]:
    """(URI without its options and trailing slash, the options), so that names can be put between them."""
    options = OPTIONS.search(uri)
    return (uri[: options.start()].rstrip("/"), options.group()) if options else (uri.rstrip("/"), "")


# --- object stores --------------------------------------------------------------------------------------------


class _Seam:
    """Where a listing that is interrupted goes on: after the key `after`, without the keys `seen`.

    It goes on after the last key with bytes. An empty object may mark a folder, and some stores skip a folder's
    contents when they are asked for what follows its name.
    """

    def __init__(self) -> None:
        self.after: str | None = None
        self.seen: set[str] = set()

    def moved_by(self, page: pa.RecordBatch) -> None:
        import pyarrow.compute as pc

        path = page.column("path")
        filled = pc.indices_nonzero(pc.greater(page.column("size"), 0))
        if len(filled):
            last = filled[-1].as_py()
            self.after, self.seen = path[last].as_py(), set(path[last + 1 :].to_pylist())
        else:
            self.seen.update(path.to_pylist())
        if len(self.seen) > _MOST_SEEN:
            self.after, self.seen = path[-1].as_py(), set()


class _ObjectListing:
    """Lists what lies below one root of an object store."""

    def __init__(self, root: str, access: Access) -> None:
        self._store, self._root = stores.object_store(root, access)
        self._uri, self._options = split_options(root)
        self._access = access

    def pages(self, prefix: str) -> Iterator[pa.Table]:
        """Objects below a prefix, page by page in the store's order; goes on after a failure where it stopped."""
        for batch in self.raw_pages(prefix):
            yield self.listed(batch)

    def raw_pages(self, prefix: str) -> Iterator[pa.RecordBatch]:
        """A store's answers: columns path, last_modified, size, e_tag and version."""
        import obstore
        import pyarrow as pa
        import pyarrow.compute as pc

        patience = Patience(self._access)
        seam, seen = _Seam(), frozenset[str]()
        while True:
            try:
                self._access.wait_for_turn()
                for page in obstore.list(
                    self._store, prefix or None, offset=seam.after, chunk_size=_PAGE, return_arrow=True
                ):
                    patience.succeeded()
                    batch = pa.record_batch(page)
                    if seen:
                        batch = batch.filter(pc.invert(pc.is_in(batch.column("path"), pa.array(sorted(seen)))))
                    seam.moved_by(batch)
                    yield batch
                    self._access.wait_for_turn()
                return
            except Exception as error:  # obstore's errors have no common base with those of the network
                patience.after(self._explained(stores.failure(error), prefix))
                seen = frozenset(seam.seen)

    def _explained(self, error: ImageError, prefix: str) -> ImageError:
        if error.failure.code is not ErrorCode.UNSUPPORTED:
            return error
        return ImageError(
            ErrorCode.UNSUPPORTED,
            f"listing {prefix!r} meets {error.failure.message}; rename that object, or give a manifest",
        )

    def listed(self, batch: pa.RecordBatch, folders: Collection[str] = ()) -> pa.Table:
        """A page without hidden names and without the empty objects that mark folders, such as those known."""
        import pyarrow as pa
        import pyarrow.compute as pc

        path = batch.column("path")
        name = pc.utf8_slice_codeunits(path, len(self._root) + 1) if self._root else path
        size = batch.column("size").cast(pa.int64())
        keep = pc.and_(
            pc.invert(pc.match_substring_regex(name, r"(^|/)[._]")),
            # An object with bytes may have the name of a folder.
            pc.invert(
                pc.and_(pc.equal(size, 0), pc.is_in(path, pa.array(self._folders(path, size, folders), pa.string())))
            ),
        )
        uri = pc.binary_join_element_wise(f"{self._uri}/", name, self._options, "")
        etag = pc.utf8_trim(batch.column("e_tag"), '"')
        modified = batch.column("last_modified").cast(pa.timestamp("us", tz="UTC"))
        return pa.table([name, uri, etag, size, modified], schema=listed_schema()).filter(keep)

    def _folders(self, path: pa.Array, size: pa.Array, known: Collection[str]) -> list[str]:
        """Keys of empty objects that others lie below.

        An empty object `folder/` is how consoles and some tools make a folder; clients drop its last slash.
        """
        import pyarrow.compute as pc

        found = []
        for index in pc.indices_nonzero(pc.equal(size, 0)).to_pylist():
            key = path[index].as_py()
            if key == self._root or key in known:
                found.append(key)
                continue
            following = path[index + 1].as_py() if index + 1 < len(path) else None
            if following is None or key < following < key + "/":
                # What may lie below it comes later.
                found += [key] * self._holds(key)
            else:
                found += [key] * following.startswith(key + "/")
        return found

    def _holds(self, key: str) -> bool:
        return any(path != key for page in self.raw_pages(key) for path in page.column("path").to_pylist())

    def parallel(self) -> Iterator[pa.Table]:
        """All pages in the order of their arrival. A failure of one prefix ends the listing: none is left out."""
        pages: Gathering[_Page] = Gathering(THREADS, ahead=_PAGES_AHEAD)
        with pages as gathering:
            gathering.add(lambda: self._divided(self._root, 2, gathering))
            # Here, while the threads already wait for the next pages.
            for page, folders in gathering:
                yield self.listed(page, folders)

    def _divided(self, prefix: str, levels: int, gathering: Gathering[_Page]) -> Iterator[_Page]:
        """A prefix's pages, or, where that pays, what lies right below it, the rest being left to other threads."""
        for number, page in enumerate(self.raw_pages(prefix)):
            if number == 0 and levels and self.divides(page, prefix):
                objects, below = self.level(prefix)
                visible = [one for one in below if not hidden(one.rpartition("/")[2])]
                further = levels - 1 if len(visible) < THREADS else 0
                for one in visible:
                    gathering.add(partial(self._divided, one, further, gathering))
                for batch in objects.to_batches():
                    yield batch, frozenset(below)
                return
            yield page, frozenset()

    def level(self, prefix: str) -> tuple[pa.Table, list[str]]:
        """(objects right below a prefix as a store's answer, the prefixes right below it)."""
        import obstore
        import pyarrow as pa

        def ask() -> Any:
            try:
                return obstore.list_with_delimiter(self._store, prefix or None, return_arrow=True)
            except Exception as error:
                raise self._explained(stores.failure(error), prefix) from error

        found = retrying(ask, self._access)
        return pa.table(found["objects"]), list(found["common_prefixes"])

    def divides(self, page: pa.RecordBatch, prefix: str) -> bool:
        """Whether listing the prefixes below this one side by side pays, as far as its first page shows."""
        import pyarrow.compute as pc

        if page.num_rows < _WORTH_DIVIDING:
            return False
        start = len(prefix) + 1 if prefix else 0
        below = pc.utf8_slice_codeunits(page.column("path"), start)
        deeper = below.filter(pc.match_substring(below, "/"))
        children = pc.count_distinct(pc.list_element(pc.split_pattern(deeper, "/", max_splits=1), 0)).as_py()
        return 0 < children <= _MOST_CHILDREN_ON_A_PAGE

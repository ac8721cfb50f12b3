"""pyarrow's view of a store through obstore, where pyarrow's own client would take its credentials from elsewhere."""

from typing import TYPE_CHECKING, Any

from obstore.fsspec import FsspecStore

from qualitygate.tables import stores
from qualitygate.tables.access import DEFAULT

if TYPE_CHECKING:
    from obstore.store import ObjectStore


class _Files(FsspecStore):
    """Files of one bucket or container, whose client is set up as all others are. Travels to workers by its root."""

    def __init__(self, root: str) -> None:
        self._root = root
        scheme: Any = stores.address(root).scheme
        super().__init__(scheme)

    def _construct_store(self, bucket: str) -> "ObjectStore":
        return stores.open_store(self._root, DEFAULT.timeout_seconds, DEFAULT.retry_seconds)


def file_system(root: str) -> Any:
    """A pyarrow file system for a root such as `gs://bucket`; paths begin with the bucket's or container's name."""
    import pyarrow.fs

    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(_Files(root)))

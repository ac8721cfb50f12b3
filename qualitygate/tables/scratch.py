"""Scratch folders in the machine's temporary directory, and the removal of those whose process was killed.

A folder is locked as long as its process lives. The lock ends with the process, however that ends, so a folder that
isn't locked is nobody's.
"""

import contextlib
import logging
import os
import platform
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator

if sys.platform != "win32":
    import fcntl

logger = logging.getLogger(__name__)

# Not shared with releases before these locks, whose folders can't be told from one in use. Nor with other machines:
# where several have one temporary directory, a file system may keep each one's locks to itself.
PREFIX = f"qualitygate-scratch-{zlib.crc32(platform.node().encode()):08x}-"


@contextlib.contextmanager
def scratch_folder() -> Iterator[str]:
    """A new folder, for the time of the block."""
    while True:
        with contextlib.ExitStack() as stack:
            made = tempfile.TemporaryDirectory(prefix=PREFIX)
            lock = _held(made.name)
            if lock is not None:
                stack.callback(os.close, lock)
            stack.enter_context(made)
            # One that a sweep found before it was locked is gone.
            if os.path.isdir(made.name):
                yield made.name
                return


def sweep() -> None:
    """Remove this user's scratch folders whose process is gone. What can't be removed stays, without a word."""
    with contextlib.suppress(OSError), os.scandir(tempfile.gettempdir()) as entries:
        for entry in entries:
            if entry.name.startswith(PREFIX):
                with contextlib.suppress(OSError):
                    _remove_left(entry.path)


def _held(folder: str) -> int | None:
    """The lock of a new folder, held until it is closed; None where there is none to be had, or no folder any more."""
    if sys.platform == "win32":
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:
        # A file system without locks, on which `sweep` gets none either and removes nothing.
        os.close(descriptor)
        return None
    return descriptor


def _remove_left(folder: str) -> None:
    """Remove a folder of this user's that nobody has locked. Raises OSError for others."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(descriptor).st_uid != os.geteuid():
            return
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)
        logger.info("removed a scratch folder that a killed process had left")
    finally:
        os.close(descriptor)

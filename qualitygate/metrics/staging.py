"""Parameters made ready once a node: checked, converted to safetensors, and memory-mapped from then on.

A file's sha256 is its identity, from the moment it is located to the scores' fingerprints. What is converted
is a private copy, hashed while it is made, so that a file swapped in between is noticed rather than used. The
result lies at `<cache>/<sha256>.safetensors`; its own hash stands beside it and is checked by each process.
"""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from qualitygate.errors import ConfigurationError
from qualitygate.metrics import state_dicts, weights_manifest, weights_transfer
from qualitygate.tables import storage

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

# Raised when the same file would be converted to other tensors: what was staged before is made anew.
CONVERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """A file of parameters that was found and hashed; may be sent to other nodes.

    Attributes:
        name: the entry of weights.yaml that it serves.
        path: the file on the machine that located it.
        sha256: of the whole file; its identity.
        bytes: its size.
        trust: what the hash was compared with: the published one ("published"), that of weights.lock
            ("locked"), or nothing, as the user named the file ("own").
        uri: where a node without the file gets it from; None for a file of one machine.
    """

    name: str
    path: str
    sha256: str
    bytes: int
    trust: Literal["published", "locked", "own"]
    uri: str | None = None

    @property
    def place(self) -> str:
        """The file as a message names it."""
        return storage.redact(self.uri or self.path)


def load_state_dict(located: Located, cache: Path | None = None) -> "dict[str, torch.Tensor]":
    """The parameters by name, on the CPU, memory-mapped: processes of a node share their pages.

    The mapping is private: writing to a tensor changes neither the file nor another process. Raises
    ConfigurationError that names the file and what is wrong with it.
    """
    return state_dicts.read(stage(located, cache), named=located.place)


def stage(located: Located, cache: Path | None = None) -> Path:
    """The safetensors file of located parameters; made on the first call on a node, under a lock."""
    cache = cache or weights_manifest.cache_folder()
    target = cache / f"{located.sha256}.safetensors"
    if _intact(target):
        return target
    with weights_transfer.locked(cache / f".{located.sha256}.lock"):
        if not _intact(target):
            _convert(located, target)
    return target


def _convert(located: Located, target: Path) -> None:
    from safetensors.torch import save_file

    start = time.monotonic()
    with weights_transfer.new_file(target) as written, _private_copy(located, target) as copy:
        tensors = state_dicts.read(copy, named=located.place)
        # Copied: safetensors refuses tensors that share memory, as tied ones and slices of one storage do.
        save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, written)
        made = weights_transfer.hash_of(written)
        storage.write_bytes(
            str(_record(target)),
            json.dumps({"conversion": CONVERSION, "sha256": made.sha256, "from": located.sha256}).encode(),
        )
        # The file last: its presence beside a record that fits means that both are complete.
        weights_transfer.publish(written, target)
    logger.info("staged %s: %d tensors, %.1f s", located.name, len(tensors), time.monotonic() - start)


@contextmanager
def _private_copy(located: Located, target: Path) -> Iterator[Path]:
    """What was located, copied to where nobody else writes, and found to be the same."""
    source = located.path if Path(located.path).is_file() else located.uri
    if source is None:
        raise ConfigurationError(
            f"{located.path!r} isn't on this machine: put the weights where every node finds them, such as a shared "
            "folder or s3://, and name that with --weights"
        )
    with weights_transfer.new_file(target.with_suffix(".original")) as copy:
        received = weights_transfer.receive(source, copy)
        if received.sha256 != located.sha256:
            raise ConfigurationError(
                f"{located.place!r} has changed since it was checked: its sha256 was {located.sha256[:12]}..., now "
                f"it is {received.sha256[:12]}...; nothing of it was opened. Run again if that was meant"
            )
        yield copy


def _record(target: Path) -> Path:
    return target.with_suffix(".json")


def _intact(target: Path) -> bool:
    """Whether a staged file is there, made by this conversion and the same as when it was made."""
    try:
        record = json.loads(_record(target).read_bytes())
        if record["conversion"] != CONVERSION or not target.is_file():
            return False
        intact = weights_transfer.hash_of(target).sha256 == record["sha256"]
    except (OSError, ValueError, LookupError, TypeError, ConfigurationError):
        return False
    if not intact:
        logger.warning("%s is damaged and made anew", target)
    return intact

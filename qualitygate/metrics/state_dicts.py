"""Tensors out of a file of parameters, and nothing but tensors: no file gets to run code here.

Three formats are opened: torch's zip archives and its older files through `weights_only=True`, whose
unpickler knows tensors, numbers, strings and containers and refuses everything else before it is called, and only
after `pickle_scan` has found out what it would make; and safetensors, which holds no code at all. A bare pickle, a
TorchScript archive or a tar is not opened.
"""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from qualitygate.errors import ConfigurationError
from qualitygate.metrics import pickle_scan, weights_manifest
from qualitygate.metrics.naming import shown

if TYPE_CHECKING:
    import torch

Format = Literal["zip", "legacy", "safetensors"]

ZIP = b"PK\x03\x04"
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch's magic number, pickled
WRAPPER = "module."  # what DataParallel puts before every name


def read(path: Path, *, named: str | None = None) -> "dict[str, torch.Tensor]":
    """The tensors of a file by name, on the CPU, memory-mapped where the format allows.

    Lies the state dictionary in a container, it is taken out; the prefix `module.` is taken off. Raises
    ConfigurationError that names the file (`named`, for a copy) and says what is wrong with it.
    """
    named = named or str(path)
    form = _format(path, named)
    # Malformed bytes make the readers raise nearly anything: whatever it is, the file isn't usable.
    try:
        loaded = _read_safetensors(path) if form == "safetensors" else _read_torch(path, form)
    except ConfigurationError as error:
        raise ConfigurationError(f"{named!r} {error}") from error
    except Exception as error:
        raise ConfigurationError(f"{named!r} {_what_is_wrong(error)}") from error
    return _only_tensors(_out_of_container(loaded, named), named, path.stat().st_size)


def _format(path: Path, named: str) -> Format:
    try:
        with open(path, "rb") as file:
            head = file.read(64)
    except OSError as error:
        raise ConfigurationError(f"{named!r} can't be read: {error.strerror}") from error
    if head.startswith(ZIP):
        return "zip"
    if head.startswith(LEGACY):
        return "legacy"
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 30:
        return "safetensors"
    raise ConfigurationError(f"{named!r} {_no_format(head)}")


def _no_format(head: bytes) -> str:
    if not head:
        return "is empty: fetch it again"
    if head[:1] == b"\x80" or head.startswith((b"(", b"c")):
        return (
            "is refused: it is a bare pickle, which can run code when it is opened; nothing of it was run. Weights "
            "are torch files of tensors, or safetensors"
        )
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file it points to: run 'git lfs pull'"
    if head.lstrip()[:1] == b"<":
        return "is a web page, not weights: something between here and the publisher answered in its place"
    return "is neither a torch file nor safetensors: it is truncated, damaged or something else; fetch or copy it again"


def _read_torch(path: Path, form: Format) -> Any:
    import torch

    if form == "zip":
        _check_archive(path)
    else:
        with open(path, "rb") as file:
            pickle_scan.check_legacy(file, path.stat().st_size)
    # Of a path torch goes by the ending; through the open file a wrong ending can't mislead it.
    if form == "legacy" or path.suffix == ".safetensors":
        with open(path, "rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    return torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)


def _check_archive(path: Path) -> None:
    """torch writes its archives uncompressed: one that would unfold to more than its size is none of its."""
    import torch

    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.filename.endswith("/constants.pkl") or "/code/" in entry.filename for entry in entries):
            raise ConfigurationError("is refused: a TorchScript archive holds code; a state dictionary is needed")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ConfigurationError("is refused: a compressed archive, which torch.save doesn't write")
        # torch takes A for a.
        if len({entry.filename.lower() for entry in entries}) < len(entries):
            raise ConfigurationError("is refused: an archive with two members of one name")
        folder = entries[0].filename.partition("/")[0]
        pickled = archive.read(f"{folder}/data.pkl")
    # An archive may have two tables of contents: what is looked at is what torch will read.
    if torch._C.PyTorchFileReader(str(path)).get_record("data.pkl") != pickled:
        raise ConfigurationError("is refused: an archive with two tables of contents")
    sizes = {entry.filename.removeprefix(f"{folder}/data/"): entry.file_size for entry in entries}
    pickle_scan.check_archive(io.BytesIO(pickled), sizes)


def _read_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(path)


def _what_is_wrong(error: Exception) -> str:
    import pickle

    if isinstance(error, pickle.UnpicklingError):
        return pickle_scan.refusal("holds more than tensors")
    said = shown(" ".join(str(error).split()), quoted=False)
    return f"is truncated or damaged ({type(error).__name__}: {said}): fetch it again"


def _out_of_container(loaded: Any, named: str) -> Mapping[Any, Any]:
    """The state dictionary itself: at the top, or under the one key that weights.yaml names for such files.

    Which of the two doesn't depend on the entry: pyiqa expects MANIQA's tensors at the top of the file that it
    downloads and under 'params' in a local one, and both are accepted.
    """
    if not isinstance(loaded, Mapping):
        raise ConfigurationError(f"{named!r} holds a {type(loaded).__name__}, not a state dictionary")
    keys = sorted({entry.state_dict_key for entry in weights_manifest.manifest().values() if entry.state_dict_key})
    held = [key for key in keys if isinstance(loaded.get(key), Mapping)]
    if held:
        return loaded[held[0]]
    nested = [key for key, value in loaded.items() if isinstance(value, Mapping)]
    if nested:
        raise ConfigurationError(
            f"{named!r} keeps its tensors under a key that isn't known ({_listed(loaded)}); they are expected at the "
            f"top or under {' or '.join(map(repr, keys))}"
        )
    return loaded


def _only_tensors(state: Mapping[Any, Any], named: str, size: int) -> "dict[str, torch.Tensor]":
    import torch

    tensors: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            kind = type(value).__name__ if isinstance(key, str) else f"key of type {type(key).__name__}"
            raise ConfigurationError(f"{named!r} holds something that is no tensor: {shown(key)} is a {kind}")
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            raise ConfigurationError(f"{named!r}: {shown(key)} is no plain tensor ({value.layout}, {value.device})")
        name = key.removeprefix(WRAPPER)
        if name in tensors:
            raise ConfigurationError(f"{named!r} holds {shown(name)} twice, with and without {WRAPPER!r}")
        tensors[name] = value.detach()
    if not tensors:
        raise ConfigurationError(f"{named!r} holds no tensors")
    # A tensor may repeat its few stored numbers without end: what it would fill is bounded by the file.
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) > 2 * size + (64 << 20):
        raise ConfigurationError(f"{named!r} is refused: its tensors would be far larger than the file")
    return tensors


def _listed(state: Mapping[Any, Any]) -> str:
    names = [shown(key) for key in list(state)[:5]]
    return "it holds " + ", ".join(names) + (", ..." if len(state) > 5 else "")

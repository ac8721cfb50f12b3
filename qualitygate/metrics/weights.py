"""The networks' parameters: fetched, pinned in weights.lock, verified and found; never trusted unseen.

`fetch` brings a published file into a folder and writes its full sha256 into that folder's weights.lock;
`locate` finds what a metric needs, or says why it can't be had and what to do; `staging` opens it.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from qualitygate.errors import ConfigurationError, ImageError
from qualitygate.metrics import state_dicts, weights_manifest, weights_transfer
from qualitygate.metrics.staging import Located, load_state_dict, stage
from qualitygate.metrics.weights_manifest import Entry, default_folder
from qualitygate.tables import storage

__all__ = [
    "Checked",
    "Fetched",
    "Listed",
    "Located",
    "default_folder",
    "fetch",
    "license_of",
    "listing",
    "load_state_dict",
    "locate",
    "read_lock",
    "require",
    "stage",
    "verify",
]

LOCK_FILE = "weights.lock"
LOCK_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """A file that is in the folder and in its weights.lock."""

    name: str
    path: Path
    sha256: str
    bytes: int
    downloaded: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What `verify` found; `problem` is None for a file that is as pinned and opens."""

    name: str
    file: str
    sha256: str | None
    problem: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One line of `qualitygate weights list`."""

    name: str
    aliases: tuple[str, ...]
    file: str
    present: bool
    locked: bool
    bytes: int | None
    sha256: str | None
    license: str
    where: str


# ---- fetch -----------------------------------------------------------------------------------------------


def fetch(
    name: str,
    *,
    source: str | None = None,
    accept_new_hash: bool = False,
    folder: str | Path | None = None,
) -> Fetched:
    """Bring the parameters of a name into the folder and pin them in its weights.lock.

    source: a file or folder (path, file://, s3://, ...) that holds the file; default: its published addresses.
    accept_new_hash: take and pin a file of which no hash is published, or one that differs from the lock.

    A file that is there and as pinned isn't downloaded again; of two processes at once one downloads. Nothing
    is kept that isn't what was published or pinned, that holds more than tensors, or those of another network.
    Raises ConfigurationError.
    """
    entry = weights_manifest.lookup(name)
    home = _local_folder(folder)
    storage.check_writable(str(home), "--folder")
    path = home / entry.file
    with weights_transfer.locked(home / f".{entry.file}.lock"):
        locked = read_lock(str(home)).get(entry.name)
        pinned = str(locked["sha256"]) if locked else None
        if path.exists():
            there = weights_transfer.hash_of(path)
            if there.sha256 == pinned:
                return Fetched(name=entry.name, path=path, sha256=there.sha256, bytes=there.bytes, downloaded=False)
            if pinned is None and (entry.head or accept_new_hash) and _mismatch(entry, there, None) is None:
                _check_content(entry, path, str(path))
                return _pin(entry, path, there, "found in the folder", downloaded=False)
        if not (entry.head or pinned or accept_new_hash):
            raise ConfigurationError(
                f"no hash of {entry.name} is published, so what arrives can't be checked; 'qualitygate weights fetch "
                f"{entry.name} --accept-new-hash' takes it as it comes and pins its hash in {LOCK_FILE}"
            )
        with weights_transfer.new_file(path) as arriving:
            received, origin = _receive(entry, source, arriving)
            problem = _mismatch(entry, received, None if accept_new_hash else pinned)
            if problem:
                raise ConfigurationError(
                    f"{entry.name} from {storage.redact(origin)!r}: {problem}; nothing was kept. Fetch again, or name "
                    "another source with --from" + _accepting(entry, pinned)
                )
            _check_content(entry, arriving, storage.redact(origin))
            weights_transfer.publish(arriving, path)
        return _pin(entry, path, received, storage.redact(origin), downloaded=True)


def _accepting(entry: Entry, pinned: str | None) -> str:
    return ", or take it with --accept-new-hash if it was republished" if pinned and not entry.sha256 else ""


def _local_folder(folder: str | Path | None) -> Path:
    given = str(folder) if folder is not None else default_folder()
    if not storage.is_local(given):
        raise ConfigurationError(
            f"--folder {storage.redact(given)!r}: weights are fetched into a local folder; copy it to the object "
            "store afterwards, with its weights.lock"
        )
    return Path(storage.check_location(given, "--folder"))


def _receive(entry: Entry, source: str | None, into: Path) -> tuple[weights_transfer.Received, str]:
    """(what arrived, from where): of the source given, or of the first published address that answers."""
    if source is not None:
        uri = _file_of(source, entry)
        return weights_transfer.receive(uri, into, max_bytes=entry.bytes), uri
    failures = []
    for uri in entry.uris:
        try:
            return weights_transfer.receive(uri, into, max_bytes=entry.bytes), uri
        except weights_transfer.Unreachable as error:
            failures.append(str(error))
    raise ConfigurationError(
        f"{entry.name} can't be downloaded: {'; '.join(failures)}. Without a network: fetch it on a machine that has "
        f"one, copy {entry.file} here and run 'qualitygate weights fetch {entry.name} --from FILE'"
    )


def _file_of(source: str, entry: Entry) -> str:
    """The file itself where a folder or prefix is given that holds it under its published name."""
    if storage.scheme_of(source) in ("http", "https"):
        return source
    source = storage.check_location(source, "--from")
    with _reachable(source):
        return _below(source, entry.file) if storage.is_folder(source) else source


@contextmanager
def _reachable(uri: str) -> Iterator[None]:
    """Whatever an object store raises becomes Unreachable, in one line without secrets."""
    try:
        yield
    except ConfigurationError:
        raise
    except Exception as error:
        reason = error.failure.message if isinstance(error, ImageError) else " ".join(str(error).split())
        raise weights_transfer.Unreachable(
            f"{storage.redact(uri)!r} can't be read: {storage.redact(reason)[:200]}"
        ) from error


def _below(folder: str, file: str) -> str:
    """The URI of a file in a folder or prefix, whose options (`?endpoint_override=...`) stay at the end."""
    options = None if storage.is_local(folder) else re.search(r"\?(?:\w+=[^&?]*&?)+$", folder)
    if options is None:
        return storage.join(folder, file)
    return storage.join(folder[: options.start()], file) + options.group()


def _mismatch(entry: Entry, found: weights_transfer.Received, pinned: str | None) -> str | None:
    """How a file differs from what is published and pinned, with both heads; None where it doesn't."""
    if entry.bytes is not None and found.bytes != entry.bytes:
        return f"{found.bytes:,} bytes instead of the published {entry.bytes:,}: truncated or another file"
    for known, by in ((entry.head, "published"), (pinned, f"pinned in {LOCK_FILE}")):
        if known is not None and not found.sha256.startswith(known):
            return f"its sha256 begins {found.sha256[:12]}, but {known[:12]} is {by}: damaged, or another file"
    return None


def _check_content(entry: Entry, path: Path, named: str) -> None:
    """ConfigurationError unless the file holds tensors, nothing else, and they are those of the entry's network."""
    state = state_dicts.read(path, named=named)
    if entry.network is None:
        return
    from qualitygate.metrics import layouts

    try:
        layouts.check(entry, state)
    except ConfigurationError as error:
        raise ConfigurationError(f"{named!r}: {error}") from error


# ---- weights.lock ----------------------------------------------------------------------------------------


def read_lock(folder: str) -> dict[str, dict[str, Any]]:
    """The entries of a folder's weights.lock by name; {} where there is none.

    Each holds `file`, `sha256` (all of it), `bytes`, `from` (without secrets) and `when`.
    """
    uri = _below(folder, LOCK_FILE)
    with _reachable(uri):
        data = storage.read_bytes(uri)
    if data is None:
        return {}
    try:
        read = json.loads(data)
        entries = read["weights"]
        usable = read["version"] == LOCK_VERSION and all(_is_full_hash(entry["sha256"]) for entry in entries.values())
    except (ValueError, LookupError, TypeError, AttributeError):
        usable = False
    if not usable:
        raise ConfigurationError(
            f"{storage.redact(uri)!r} can't be read as a lock of version {LOCK_VERSION}: restore it, or remove it and "
            "fetch again"
        )
    return dict(entries)


def _is_full_hash(text: str) -> bool:
    return len(text) == 64 and set(text) <= set("0123456789abcdef")


def _pin(entry: Entry, path: Path, found: weights_transfer.Received, origin: str, *, downloaded: bool) -> Fetched:
    home = path.parent
    # One lock for the whole file: fetches of other names write their own entries into it.
    with weights_transfer.locked(home / f".{LOCK_FILE}.lock"):
        entries = read_lock(str(home))
        entries[entry.name] = {
            "file": entry.file,
            "sha256": found.sha256,
            "bytes": found.bytes,
            "from": origin,
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        text = json.dumps({"version": LOCK_VERSION, "weights": dict(sorted(entries.items()))}, indent=1) + "\n"
        storage.write_bytes(str(home / LOCK_FILE), text.encode())
    return Fetched(name=entry.name, path=path, sha256=found.sha256, bytes=found.bytes, downloaded=downloaded)


# ---- verify, list ----------------------------------------------------------------------------------------


def verify(name: str | None = None, folder: str | Path | None = None) -> list[Checked]:
    """Hash each file of the folder again, compare it with the lock and what is published, and open it safely.

    Its tensors must be those of its network, by names, shapes and types.

    name: only this one; default: all that the folder or its lock has. ConfigurationError where that is none.
    """
    home = _local_folder(folder)
    lock = read_lock(str(home))
    if name is not None:
        entries = [weights_manifest.lookup(name)]
    else:
        entries = [e for e in weights_manifest.manifest().values() if e.name in lock or (home / e.file).exists()]
    if not entries:
        raise ConfigurationError(f"{str(home)!r} holds no weights; run 'qualitygate weights fetch NAME'")
    return [_verified(entry, home, lock) for entry in entries]


def _verified(entry: Entry, home: Path, lock: Mapping[str, Mapping[str, Any]]) -> Checked:
    path = home / entry.file
    sha256, problem = None, None
    try:
        if not path.exists():
            problem = f"absent; run 'qualitygate weights fetch {entry.name}'"
        else:
            found = weights_transfer.hash_of(path)
            sha256 = found.sha256
            pinned = lock[entry.name]["sha256"] if entry.name in lock else None
            problem = _mismatch(entry, found, pinned)
            if problem is None and pinned is None:
                problem = f"not in {LOCK_FILE}; run 'qualitygate weights fetch {entry.name}' to pin it"
            if problem is None:
                _check_content(entry, path, str(path))
    except ConfigurationError as error:
        problem = str(error)
    return Checked(name=entry.name, file=entry.file, sha256=sha256, problem=problem)


def require(checked: Iterable[Checked]) -> None:
    """ConfigurationError that names every file with a problem."""
    wrong = [f"{one.name}: {one.problem}" for one in checked if one.problem]
    if wrong:
        raise ConfigurationError("; ".join(wrong))


def listing(folder: str | Path | None = None) -> list[Listed]:
    """Every entry of weights.yaml, and whether the folder has it; nothing is hashed or opened."""
    home = _local_folder(folder)
    lock = read_lock(str(home))
    return [_listed(entry, home, lock.get(entry.name)) for entry in weights_manifest.manifest().values()]


def _listed(entry: Entry, home: Path, locked: Mapping[str, Any] | None) -> Listed:
    path = home / entry.file
    present = path.is_file()
    return Listed(
        name=entry.name,
        aliases=entry.aliases,
        file=entry.file,
        present=present,
        locked=locked is not None,
        bytes=path.stat().st_size if present else entry.bytes,
        sha256=str(locked["sha256"]) if locked else entry.head,
        license=entry.license,
        where=str(path) if present else entry.uris[0],
    )


# ---- locate ----------------------------------------------------------------------------------------------


def locate(name: str, weights: str | None = None, *, accept_new_hash: bool = False) -> Located | str:
    """The file that serves a name, hashed; or why there is none, with the remedy, so that others can go on.

    weights: what --weights says, a file or a folder, local or remote; default: `default_folder()`. A file is the
    user's own and accepted by its hash. In a folder the file has the name that weights.yaml gives it, or the same
    with .safetensors at its end. Its hash must be what the folder's weights.lock pins, and fit what is published,
    where either is known (`accept_new_hash`: what isn't pinned is taken as the user's own). Remote ones are
    downloaded once a node.

    Raises ConfigurationError only for a name that weights.yaml doesn't have.
    """
    entry = weights_manifest.lookup(name)
    place = weights or default_folder()
    try:
        place = storage.check_location(place, "--weights")
        if storage.is_local(place):
            return _locate_local(entry, Path(place), given=bool(weights), accept=accept_new_hash)
        return _locate_remote(entry, place.rstrip("/"), accept=accept_new_hash)
    except ConfigurationError as error:
        return str(error)


def is_file_of_ones_own(place: str) -> bool:
    """Whether what --weights says is one file under another name than any that weights.yaml gives."""
    known = {name for entry in weights_manifest.manifest().values() for name in _names(entry)}
    try:
        place = storage.check_location(place, "--weights")
        return (
            place.rstrip("/").rpartition("/")[2] not in known and storage.exists(place) and not storage.is_folder(place)
        )
    except (ConfigurationError, OSError):
        return False


def license_of(name: str) -> str:
    """The licence of an entry's parameters, as far as their publisher states one."""
    return weights_manifest.lookup(name).license


def _fetching(entry: Entry) -> str:
    unpinned = "" if entry.head else " --accept-new-hash"
    return f"'qualitygate weights fetch {entry.name}{unpinned}'"


def _locate_local(entry: Entry, place: Path, *, given: bool, accept: bool) -> Located | str:
    if place.is_dir():
        path = next((place / file for file in _names(entry) if (place / file).is_file()), place / entry.file)
        if not path.is_file():
            return f"no {entry.file} in {str(place)!r}; run {_fetching(entry)}" + (
                f", or copy the file there or name another folder with --weights or ${weights_manifest.FOLDER_VARIABLE}"
            )
        found = weights_transfer.hash_of(path)
        trust = _trust(entry, found, str(place), path.name, accept=accept)
        return Located(name=entry.name, path=os.path.abspath(path), sha256=found.sha256, bytes=found.bytes, trust=trust)
    if not place.exists():
        if given:
            return f"--weights {str(place)!r} doesn't exist; give a file, or a folder that holds {entry.file}"
        return f"{entry.name} has not been fetched; run {_fetching(entry)}, or name a file or folder with --weights"
    other = _another_entry(place.name, entry)
    if other:
        return other
    found = weights_transfer.hash_of(place)
    return Located(name=entry.name, path=os.path.abspath(place), sha256=found.sha256, bytes=found.bytes, trust="own")


def _names(entry: Entry) -> tuple[str, str]:
    """What an entry's file may be called in a folder."""
    return entry.file, f"{Path(entry.file).stem}.safetensors"


def _another_entry(file: str, entry: Entry) -> str | None:
    for other in weights_manifest.manifest().values():
        if other.file == file and other.name != entry.name:
            return f"{file} holds the weights of {other.name}; give a folder to --weights to name several files"
    return None


def _trust(
    entry: Entry, found: weights_transfer.Received, folder: str, file: str, *, accept: bool
) -> Literal["published", "locked", "own"]:
    lock = read_lock(folder)
    pinned = str(lock[entry.name]["sha256"]) if entry.name in lock else None
    problem = _mismatch(entry, found, pinned)
    if problem is None:
        return "locked" if pinned else "published" if entry.head else "own"
    # Another format of the published tensors has other bytes: without a pin its hash says nothing.
    if pinned in (None, found.sha256) and (accept or file != entry.file):
        return "own"
    raise ConfigurationError(
        f"{storage.redact(_below(folder, file))!r} is refused: {problem}; fetch it again, or, if these "
        "weights are your own, name the file itself with --weights"
    )


def _locate_remote(entry: Entry, place: str, *, accept: bool) -> Located | str:
    with _reachable(place):
        whole = storage.is_folder(place)
        for uri in [_below(place, file) for file in _names(entry)] if whole else [place]:
            store, path_in_store = storage.file_system(uri)
            info = store.get_file_info(path_in_store)
            if info.type.name == "File":
                break
    if info.type.name != "File":
        return f"{storage.redact(uri)!r} doesn't exist; name a file or folder that does with --weights"
    other = None if whole else _another_entry(uri.rpartition("/")[2], entry)
    if other:
        return other
    path, found = _download_once(uri, f"{info.mtime_ns}-{info.size}")
    trust = _trust(entry, found, place, uri.rpartition("/")[2], accept=accept) if whole else "own"
    return Located(name=entry.name, path=str(path), sha256=found.sha256, bytes=found.bytes, trust=trust, uri=uri)


def _download_once(uri: str, version: str) -> tuple[Path, weights_transfer.Received]:
    """This node's copy of one version of a remote file."""
    key = hashlib.sha256(f"{uri}\0{version}".encode()).hexdigest()[:32]
    path = weights_manifest.cache_folder() / f"remote-{key}"
    with weights_transfer.locked(path.with_name(f".{path.name}.lock")):
        if path.exists():
            return path, weights_transfer.hash_of(path)
        with weights_transfer.new_file(path) as arriving:
            received = weights_transfer.receive(uri, arriving)
            weights_transfer.publish(arriving, path)
        return path, received

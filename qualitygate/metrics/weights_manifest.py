"""What is published: the entries of weights.yaml, and where parameters lie on this machine."""

import difflib
import functools
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from qualitygate.errors import ConfigurationError

FOLDER_VARIABLE = "QUALITYGATE_WEIGHTS"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One published file of parameters; the fields are explained at the top of weights.yaml."""

    name: str
    file: str
    uris: tuple[str, ...]
    license: str
    aliases: tuple[str, ...] = ()
    sha256: str | None = None
    sha256_prefix: str | None = None
    bytes: int | None = None
    state_dict_key: str | None = None
    network: str | None = None

    @property
    def head(self) -> str | None:
        """As much of the file's sha256 as its publisher states; None where nothing is."""
        return self.sha256 or self.sha256_prefix


@functools.cache
def manifest() -> dict[str, Entry]:
    """The entries of weights.yaml by name, in the file's order."""
    import yaml

    text = resources.files("qualitygate.metrics").joinpath("weights.yaml").read_text(encoding="utf-8")
    entries = [_entry(**values) for values in yaml.safe_load(text)["weights"]]
    return {entry.name: entry for entry in entries}


def _entry(*, uris: Iterable[str], aliases: Iterable[str] = (), **values: Any) -> Entry:
    return Entry(uris=tuple(uris), aliases=tuple(aliases), **values)


def lookup(name: str) -> Entry:
    """The entry of a name or an alias; ConfigurationError with what comes close for any other."""
    entries = manifest()
    names = {alias: entry for entry in entries.values() for alias in (entry.name, *entry.aliases)}
    if name in names:
        return names[name]
    close = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise ConfigurationError(f"unknown weights {name!r}; {hint}They are {', '.join(entries)}")


def published_origins() -> frozenset[str]:
    """Scheme and host of every published address: the only ones read over https."""
    return frozenset(origin(uri) for entry in manifest().values() for uri in entry.uris)


def origin(uri: str) -> str:
    """`https://host` or `https://host:port`, in lower case."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc}".lower()


def default_folder() -> str:
    """Where parameters are kept unless told otherwise: $QUALITYGATE_WEIGHTS, or weights/ in the user's cache."""
    return os.environ.get(FOLDER_VARIABLE) or str(_user_cache() / "weights")


def cache_folder() -> Path:
    """This machine's folder for staged parameters, created; below the user's cache, or the temporary folder.

    Containers often run without a home that can be written to. The folder below the temporary one is this
    user's alone, so that nobody else can put a file there.
    """
    folder = _user_cache() / "staged"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        pass
    else:
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
    folder = Path(tempfile.gettempdir()) / f"qualitygate-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise ConfigurationError(
            f"no folder for staged weights: {str(folder)!r} can't be made ({error.strerror}); set XDG_CACHE_HOME"
        ) from error
    if status.st_uid != os.getuid() or status.st_mode & 0o022 or folder.is_symlink():
        raise ConfigurationError(f"{str(folder)!r} can be written to by others; remove it or set XDG_CACHE_HOME")
    return folder


def _user_cache() -> Path:
    # The XDG specification: a relative path is to be ignored.
    base = os.environ.get("XDG_CACHE_HOME", "")
    home = Path(base) if os.path.isabs(base) else Path(os.path.expanduser("~")) / ".cache"
    return home / "qualitygate"

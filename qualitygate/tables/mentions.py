"""Where ids of photographs stand in text, JSON and binary files, and how they are taken out.

An id in free text counts where it stands by itself, between blanks, quotes or brackets, or after a slash. Ids that
could as well be any word or number are looked for only where ids are kept, under keys and columns that say so.
"""

import io
import re
from collections.abc import Iterable, Iterator
from typing import Any

# Keys and columns whose values are ids of photographs: what carries one is about that photograph as a whole.
ID_KEYS = ("image_id", "sample")
# Keys whose values are ids, inside of something that is about more than that.
_VALUE_KEYS = frozenset({"single_sample"})
# Values that are locations: another photograph's may end like an id.
_LOCATIONS = frozenset({"uri", "input", "output", "path", "folder", "source", "manifest"})
PURGED = "(purged)"
_DELIMITERS = r"\s\"'<>,;(){}\[\]|`\\"
_TOKEN = re.compile(rf"[^{_DELIMITERS}]+")
_PUNCTUATION = ".:!?*"
# Shorter ones, and those without letters, are words and numbers of any text.
_SHORTEST, _SHORTEST_OF_ANY_KIND = 4, 8
_CHUNK = 8 << 20
_GONE: Any = object()


class Ids:
    """Ids to be erased, and those of them that were met somewhere."""

    def __init__(self, ids: Iterable[str]) -> None:
        self.exact = frozenset(ids)
        self.distinctive = frozenset(one for one in self.exact if _distinctive(one))
        # An id with a blank in it is in no token.
        self._whole = frozenset(one for one in self.distinctive if not _TOKEN.fullmatch(one) or one != one.strip("."))
        self._bytes = {one: one.encode() for one in self.distinctive}
        self._longest = max((len(one) for one in self.distinctive), default=0)
        self.met: set[str] = set()

    @property
    def indistinct(self) -> frozenset[str]:
        """Those that free text isn't searched for."""
        return self.exact - self.distinctive

    def is_one(self, value: object) -> bool:
        """Whether a value is an id; remembers it."""
        if isinstance(value, str) and value in self.exact:
            self.met.add(value)
            return True
        return False

    def inside(self, text: str) -> set[str]:
        """The distinctive ids that the text mentions; remembers them."""
        found = {one for one in self._whole if one in text}
        if len(self._whole) < len(self.distinctive):
            for token in set(_TOKEN.findall(text)):
                found |= self._of_token(token)
        self.met |= found
        return found

    def _of_token(self, token: str) -> set[str]:
        return {one for one in _candidates(token, self._longest) if one in self.distinctive}

    def replaced(self, text: str) -> str:
        """The text with `(purged)` in place of each mention."""
        if not self.inside(text):
            return text
        for one in sorted(self._whole, key=len, reverse=True):
            text = text.replace(one, PURGED)

        def cleaned(token: re.Match[str]) -> str:
            left = token.group()
            for one in sorted(self._of_token(left), key=len, reverse=True):
                left = left.replace(one, PURGED)
            return left

        return _TOKEN.sub(cleaned, text)

    def in_bytes(self, stream: io.BufferedIOBase) -> set[str]:
        """The distinctive ids whose bytes a file holds; remembers them."""
        longest = max((len(one) for one in self._bytes.values()), default=1)
        found: set[str] = set()
        before = b""
        while chunk := stream.read(_CHUNK):
            window = before + chunk
            found.update(one for one, raw in self._bytes.items() if raw in window)
            before = window[-longest:]
        self.met |= found
        return found

    def in_name(self, name: str) -> bool:
        """Whether a path below a folder is one of a file named by an id."""
        parts = name.split("/")
        return any("/".join(parts[start:]) in self.exact for start in range(len(parts)))


def _distinctive(one: str) -> bool:
    mixed = any(letter.isalpha() for letter in one) and any(not letter.isalpha() for letter in one)
    return len(one) >= _SHORTEST_OF_ANY_KIND or (len(one) >= _SHORTEST and mixed)


def _candidates(token: str, longest: int) -> Iterator[str]:
    """What in a run of characters without blanks may be an id: it, and its ends after a slash, without punctuation."""
    for part in {token, *token.split("="), *token.split(":")}:
        for text in {part, part.strip(_PUNCTUATION)}:
            # A token may be a picture's megabytes: only so much of its end can be an id.
            end = text[-longest - 1 :]
            if len(text) <= longest:
                yield text
            place = end.find("/")
            while place >= 0:
                yield end[place + 1 :]
                place = end.find("/", place + 1)


def without(value: Any, ids: Ids) -> tuple[Any, int]:
    """(JSON's value without the ids, in how many places they stood); None where the whole of it was about one."""
    counted = [0]
    cleaned = _without(value, ids, None, counted)
    return (None if cleaned is _GONE else cleaned), counted[0]


def _without(value: Any, ids: Ids, key: str | None, counted: list[int]) -> Any:
    if isinstance(value, dict):
        return _without_in_object(value, ids, counted)
    if isinstance(value, list):
        kept = []
        for one in value:
            if isinstance(one, str) and (one in ids.distinctive or (key in ID_KEYS and one in ids.exact)):
                ids.met.add(one)
                counted[0] += 1
                continue
            cleaned = _without(one, ids, key, counted)
            if cleaned is not _GONE:
                kept.append(cleaned)
        return kept
    return _without_in_text(value, ids, key, counted) if isinstance(value, str) else value


def _without_in_object(value: dict[str, Any], ids: Ids, counted: list[int]) -> Any:
    if any(ids.is_one(value.get(name)) for name in ID_KEYS):
        counted[0] += 1
        return _GONE
    kept: dict[str, Any] = {}
    for name, one in value.items():
        if name in ids.distinctive:
            ids.met.add(name)
            counted[0] += 1
            continue
        cleaned = _without(one, ids, name, counted)
        kept[name] = None if cleaned is _GONE else cleaned
    return kept


def _without_in_text(value: str, ids: Ids, key: str | None, counted: list[int]) -> Any:
    if (key in _VALUE_KEYS and value in ids.exact) or value in ids.distinctive:
        ids.met.add(value)
        counted[0] += 1
        return None if key in _VALUE_KEYS else PURGED
    if key in _LOCATIONS:
        return value
    cleaned = ids.replaced(value)
    counted[0] += cleaned != value
    return cleaned

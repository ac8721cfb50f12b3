"""Listings of object stores against one made up in memory that is interrupted at will; a real one: object_store/."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import obstore
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qualitygate.tables import listing, stores
from qualitygate.tables.access import Access

PAGE = 3
_MOMENT = datetime(2026, 1, 1, tzinfo=UTC)


class GenericError(Exception):
    """As obstore's, which can't be made here."""


GenericError.__module__ = "obstore.exceptions"


class MadeUp:
    """Keys and sizes as S3 lists them; a key with a last slash marks a folder, and loses it in obstore's answers.

    failures: before which of its pages, counted over all listings, it fails.
    """

    def __init__(self, objects: dict[str, int], failures: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        self.objects = dict(sorted(objects.items()))
        self.failures = failures
        self.pages = 0
        self.asked: list[str | None] = []

    def _turn(self) -> None:
        self.pages += 1
        if self.pages in self.failures:
            raise GenericError("error sending request")

    @staticmethod
    def _batch(found: list[tuple[str, int]]) -> pa.RecordBatch:
        return pa.record_batch(
            {
                "path": pa.array([key.rstrip("/") for key, _ in found], pa.string()),
                "last_modified": pa.array(
                    [datetime(2026, 1, 1, tzinfo=UTC)] * len(found), pa.timestamp("us", tz="UTC")
                ),
                "size": pa.array([size for _, size in found], pa.uint64()),
                "e_tag": pa.array(['"e"'] * len(found), pa.string()),
            }
        )

    def list(self, _store: Any, prefix: str | None, *, offset: str | None = None, **_: Any) -> Iterator[pa.RecordBatch]:
        self.asked.append(prefix)
        below = f"{prefix}/" if prefix else ""
        found = [(k, s) for k, s in self.objects.items() if k.startswith(below) and (offset is None or k > offset)]
        for start in range(0, len(found), PAGE):
            self._turn()
            yield self._batch(found[start : start + PAGE])

    def list_with_delimiter(self, _store: Any, prefix: str | None, **_: Any) -> dict[str, Any]:
        self._turn()
        below = f"{prefix}/" if prefix else ""
        rest = {key: key[len(below) :] for key in self.objects if key.startswith(below)}
        direct = [(key, self.objects[key]) for key, name in rest.items() if "/" not in name]
        prefixes = sorted({below + name.split("/")[0] for name in rest.values() if "/" in name})
        return {"common_prefixes": prefixes, "objects": pa.table(self._batch(direct))}


def _names(store: MadeUp, *, in_order: bool, root: str = "s3://bucket/in") -> list[str]:
    """Names as they are listed with the made-up store in the place of the client's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stores, "open_store", lambda _root, _timeout: None)
        patch.setattr(listing, "_WORTH_DIVIDING", 2)
        patch.setattr("qualitygate.tables.access._FIRST_PAUSE_S", 0.0)
        patch.setattr(obstore, "list", store.list)
        patch.setattr(obstore, "list_with_delimiter", store.list_with_delimiter)
        tables = list(listing.batches(root, in_order=in_order, access=Access(retry_seconds=60)))
    return [name for table in tables for name in table["name"].to_pylist()]


def _wanted(objects: dict[str, int], root: str) -> list[str]:
    """Files below the root: not hidden, and no empty objects that others lie below."""
    found = []
    for key, size in objects.items():
        if not key.startswith(root):
            continue
        name = key[len(root) :].rstrip("/")
        folder = size == 0 and any(other.startswith(key.rstrip("/") + "/") and other != key for other in objects)
        if name and not folder and not any(part.startswith((".", "_")) for part in name.split("/")):
            found.append(name)
    return sorted(found)


segments = st.sampled_from(["a", "a-b", "a.b", "b", "c", "d", "_x", ".y", "é"])
keys = st.lists(segments, min_size=1, max_size=4).map("/".join)
objects = st.dictionaries(keys.map(lambda key: f"in/{key}"), st.sampled_from([0, 1, 1]), max_size=40)


@settings(deadline=None, max_examples=300)
@given(objects=objects, failures=st.sets(st.integers(1, 30), max_size=8))
def test_each_object_is_listed_once_however_often_the_store_fails(objects: dict[str, int], failures: set[int]) -> None:
    for in_order in (True, False):
        assert sorted(_names(MadeUp(objects, failures), in_order=in_order)) == _wanted(objects, "in/")


def test_folders_that_are_marked_by_empty_objects_are_no_files() -> None:
    objects = {"in/": 0, "in/a/": 0, "in/a/1.jpg": 1, "in/a/2.jpg": 1, "in/b": 5, "in/b/": 0, "in/b/3.jpg": 1}
    objects |= {"in/empty.jpg": 0}
    for in_order in (True, False):
        found = sorted(_names(MadeUp(objects), in_order=in_order))
        assert found == ["a/1.jpg", "a/2.jpg", "b", "b/3.jpg", "empty.jpg"]


def test_few_prefixes_are_listed_beside_each_other_and_many_small_ones_in_one_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listing, "_MOST_CHILDREN_ON_A_PAGE", PAGE - 1)
    few = MadeUp({f"in/{number // 50}/{number:02}.jpg": 1 for number in range(100)})
    assert len(_names(few, in_order=False)) == 100
    assert {"in/0", "in/1"} <= set(few.asked)
    many = MadeUp({f"in/{number:02}/x.jpg": 1 for number in range(20)})
    assert len(_names(many, in_order=False)) == 20
    assert many.asked == ["in"]

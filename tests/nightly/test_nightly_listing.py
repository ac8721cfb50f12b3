"""What is new, changed and gone over all tries of a night, and which photographs with a row are gone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qualitygate.nightly import listing, record
from qualitygate.nightly.record import Night

pytestmark = pytest.mark.filterwarnings("error")

Change = tuple[str, str, str | None, str | None]


def _changes(path: Path, *rows: Change) -> None:
    """Rows of image_id, change, etag and the etag before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = pa.string()
    schema = pa.schema([(name, texts) for name in ("image_id", "change", "uri", "etag", "previous_etag")])
    made = [
        {"image_id": name, "change": change, "uri": name, "etag": etag, "previous_etag": before}
        for name, change, etag, before in rows
    ]
    pq.write_table(pa.Table.from_pylist(made, schema=schema), path)


def _counts(found: Any) -> tuple[int, int, int]:
    return found["new"], found["changed"], found["gone"]


def _try(**more: Any) -> dict[str, Any]:
    return {"state": "refused", "listing": True, "first": False} | more


def test_each_photograph_counts_once_over_all_tries(tmp_path: Path) -> None:
    output = str(tmp_path)
    place = Path(record.place(output, "n2"))
    _changes(
        place / "earlier" / "1.changes.parquet",
        *[(f"new{number}", "new", "a", None) for number in range(4)],
        ("come and gone", "new", "a", None),
        ("changed and gone", "changed", "b", "a"),
        ("there and back", "changed", "b", "a"),
        ("gone and back", "gone", None, "a"),
        ("gone and other", "gone", None, "a"),
        ("changed", "changed", "b", "a"),
    )
    # Of another try, which was refused for its listing: the next one was compared with the same as this.
    _changes(place / "earlier" / "2.changes.parquet", ("no matter", "new", "a", None))
    _changes(
        place / listing.CHANGES,
        ("new0", "changed", "b", "a"),
        ("come and gone", "gone", None, "a"),
        ("changed and gone", "gone", None, "b"),
        ("there and back", "changed", "a", "b"),
        ("gone and back", "new", "a", None),
        ("gone and other", "new", "c", None),
        ("later", "new", "a", None),
        ("gone later", "gone", None, "a"),
    )
    night = Night(night="n2", started="", earlier=(_try(), _try(listing=False)))
    found = listing.over_all_tries(output, night, listing._counts(100, 2, 2, 3))
    # New: four and one. Changed: "changed" and "gone and other". Gone: "changed and gone", "gone later".
    assert found == {"images": 100, "known": 97, "new": 5, "changed": 2, "gone": 2}


def test_a_night_without_other_tries_counts_its_own_listing(tmp_path: Path) -> None:
    own = listing._counts(10, 3, 2, 1)
    assert listing.over_all_tries(str(tmp_path), Night(night="n2", started=""), own) == own
    # A list that was removed since tells nothing.
    removed = Night(night="n2", started="", earlier=(_try(),))
    assert listing.over_all_tries(str(tmp_path), removed, own) == own


def test_to_the_first_of_all_nights_everything_is_new_in_every_try(tmp_path: Path) -> None:
    night = Night(night="n1", started="", earlier=(_try(first=True),))
    found = listing.over_all_tries(str(tmp_path), night, listing._counts(10, 0, 1, 2))
    assert found == {"images": 10, "known": 0, "new": 10, "changed": 0, "gone": 0}


@pytest.mark.parametrize("taken", [True, False])
def test_of_a_try_that_was_killed_the_listing_tells_whether_it_was_taken_over(tmp_path: Path, taken: bool) -> None:
    output = str(tmp_path)
    night = Night(night="n2", started="2026-01-02", steps={"manifest": {"known": 5}})
    own = Path(record.place(output, "n2", listing.FILE))
    own.parent.mkdir(parents=True)
    own.write_bytes(b"one list")
    (tmp_path / listing.FILE).write_bytes(b"one list" if taken else b"another one")
    _changes(Path(record.place(output, "n2", listing.CHANGES)), ("a", "new", "a", None))
    (short,) = listing.set_aside(output, night, goes_on=False)
    assert (short["state"], short["listing"], short["first"]) == ("running", taken, False)
    assert Path(record.place(output, "n2", "earlier", "1.changes.parquet")).exists() is taken
    assert Path(record.place(output, "n2", "earlier", "1.json")).exists()


def test_a_start_that_did_nothing_is_no_try(tmp_path: Path) -> None:
    assert listing.set_aside(str(tmp_path), Night(night="n2", started=""), goes_on=False) == ()
    assert list(tmp_path.iterdir()) == []


def test_photographs_that_are_gone_from_the_input(tmp_path: Path, write: Callable[..., None]) -> None:
    output = str(tmp_path / "out")
    assert listing.gone(output, tmp_path) is None
    write(output, [{"image_id": name, "lapm": 0.5} for name in ("a", "b", "c")])
    # Before any listing nothing is known to be gone.
    assert listing.gone(output, tmp_path) is None
    manifest = Path(output, listing.FILE)
    pq.write_table(pa.table({"image_id": ["a", "b", "c", "d"]}), manifest)
    assert listing.gone(output, tmp_path) is None
    pq.write_table(pa.table({"image_id": ["b", "d"]}), manifest)
    found = listing.gone(output, tmp_path)
    assert found is not None
    assert sorted(pq.read_table(found)["image_id"].to_pylist()) == ["a", "c"]

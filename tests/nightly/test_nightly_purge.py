"""Erasure from all that nights leave behind: records, tables, samples, gates' records; also ids as short as a word."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import without_ray
from nights_here import METRIC, Nights, rows_of

from qualitygate.nightly import canary, record
from qualitygate.tables import mentions, purge


def _short(nights: Nights, night: str, letter: str) -> list[str]:
    """Name a night's photographs by three characters each, which free text isn't searched for."""
    folder = nights.root / "in" / night
    named = {}
    for number, path in enumerate(sorted(folder.iterdir())):
        named[f"{night}/{path.name}"] = f"{letter}{number:02}"
        path.rename(nights.root / "in" / f"{letter}{number:02}")
    folder.rmdir()
    for label in nights.feed.labels:
        label["image_id"] = named.get(label["image_id"], label["image_id"])
    (nights.root / "labels.parquet").write_bytes(nights.feed.predictions())
    return list(named.values())


def _holders(root: Path, ids: Iterable[str]) -> dict[str, list[str]]:
    """Files that hold one of the ids by itself, tables as what they say and all others as their bytes."""
    wanted = re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join(map(re.escape, ids))})(?![A-Za-z0-9])")
    found = {}
    for path in sorted(root.rglob("*")):
        if not path.is_file():
            continue
        text = path.read_bytes().decode("utf-8", "replace")
        if path.suffix == ".parquet":
            file = pq.ParquetFile(path)
            text = json.dumps([file.read().to_pylist(), str(file.schema_arrow.metadata)], default=str)
        if hits := [text[max(0, hit.start() - 60) : hit.end() + 60] for hit in wanted.finditer(text)]:
            found[str(path.relative_to(root))] = hits[:2]
    return found


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Nights:
    """Promoted, refused for drift, refused for errors, refused by the canary, promoted; short names in all."""
    made = Nights(tmp_path_factory.mktemp("purge"))
    with pytest.MonkeyPatch.context() as patch:
        without_ray.install(patch)
        made.add("n1", 200, labelled=0.7)
        made.add("short", 60)
        _short(made, "short", "q")
        assert made.run("n1", canary=100).night.state == "promoted"
        made.add("n2", 60, extra_blur=2.5)
        _short(made, "n2", "x")
        assert made.run("n2", canary=100).night.state == "refused"
        made.add("n3", 60, corrupt=0.5)
        _short(made, "n3", "y")
        assert made.run("n3", canary=100).night.state == "refused"
        known = canary.read(made.output)
        assert known is not None
        place = known.column_names.index(METRIC)
        # Most in those with short names.
        moved = [row[METRIC] * (2 if row["image_id"].startswith("q") else 1.1) for row in known.to_pylist()]
        canary.write(made.output, known.set_column(place, METRIC, [moved]))
        assert made.run("n4", canary=100).night.state == "refused"
    return made


def test_nothing_that_nights_leave_behind_keeps_an_id(nights: Nights, tmp_path: Path) -> None:
    gone = [row["image_id"] for row in rows_of(nights.output) if "/" not in row["image_id"]]
    gone += [f"n1/p{number:04}.jpg" for number in range(0, 200, 2)]
    kept = [row["image_id"] for row in rows_of(nights.output) if row["image_id"] not in gone]
    assert len(mentions.Ids(gone).indistinct) == 180
    root = Path(nights.output)
    before = set(_holders(root, gone))
    # What has to be cleaned: each of these knew some.
    places = [f"nights/{night}/night.json" for night in ("n1", "n2", "n3", "n4")]
    places += [
        "canary/canary.parquet",
        "manifest.parquet",
        "nights/n1/audit_sample.parquet",
        "nights/n1/labelled/predictions.parquet",
    ]
    places += ["nights/n2/gate/calibration.parquet", "nights/n2/report.html", "nights/n4/report.html"]
    assert set(places) <= before
    ids = tmp_path / "ids.txt"
    ids.write_text("".join(f"{one}\n" for one in gone))
    done = purge.purge(nights.output, str(ids), apply=True)
    assert done.remaining == ()
    assert _holders(root, gone) == {}  # more ids than are removed from the table at once
    # The records can still be read, and the others are where they were.
    for name in ("n1", "n2", "n3", "n4"):
        assert record.read(nights.output, name) is not None
    assert [row["image_id"] for row in rows_of(nights.output)] == kept
    left = canary.read(nights.output)
    assert left is not None
    assert set(left["image_id"].to_pylist()) <= set(kept)

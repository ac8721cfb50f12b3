"""Labelled photographs: every row labelled, every photograph a row, no group on two sides."""

from hashlib import sha256
from pathlib import Path
from typing import Any

import labelled_photographs
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from qualitygate.errors import ConfigurationError, ErrorCode, Failure
from qualitygate.training import data


def _table(labels: list[str], **columns: list[Any]) -> pa.Table:
    nothing = [None] * len(labels)
    rows = {"image_id": [f"i{n}" for n in range(len(labels))], "label": labels, "group": nothing, "split": nothing}
    rows |= columns
    schema = pa.schema([(name, pa.string()) for name in rows])
    return pa.table(rows, schema=schema)


# ---- manifests ---------------------------------------------------------------------------------------------


def test_rows_without_a_label_are_counted_and_named(tmp_path: Path) -> None:
    labels = ["above", None, " ", "below", ""]
    path = labelled_photographs.write(tmp_path, 5, label=labels)
    with pytest.raises(ConfigurationError, match=r"3 of 5 rows .*have no label \('p001.png', 'p002.png', 'p004.png'\)"):
        data.labelled(str(path))
    assert data.labelled(str(path), limit=1).num_rows == 1
    with pytest.raises(ConfigurationError, match="has no labels; give a manifest with image_id, uri and label"):
        data.labelled(str(tmp_path))


def test_one_label_is_no_task() -> None:
    with pytest.raises(ConfigurationError, match="all 3 photographs have the label 'a'; a classifier needs two"):
        data.classes_of(["a", "a", "a"])
    assert data.classes_of(["b", "a", "b"]) == ("a", "b")


# ---- pixels ------------------------------------------------------------------------------------------------


def test_every_row_gives_pixels_or_the_reason_in_order(tmp_path: Path) -> None:
    labelled_photographs.write(tmp_path, 12)
    whole = (tmp_path / "p001.png").read_bytes()
    (tmp_path / "p001.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "p002.png").unlink()
    rows = [{"uri": str(tmp_path / f"p{n:03}.png"), "box": None} for n in range(12)]
    rows[3]["box"] = [0, 0, 500, 500]
    rows[4]["box"] = [1, 2]
    rows[5]["box"] = [0, 0, 40, 20]
    found = list(data.prepare(rows, 32))
    codes = {number: one.failure.code for number, one in enumerate(found) if one.failure}
    wrong = ErrorCode.UNSUPPORTED
    assert codes == {1: ErrorCode.TRUNCATED, 2: ErrorCode.MISSING, 3: wrong, 4: wrong}
    assert all(one.pixels.shape == (3, 32, 32) for one in found if one.pixels is not None)
    assert found[0].sha256 == sha256((tmp_path / "p000.png").read_bytes()).hexdigest()
    # The upper half of a photograph that is bright below.
    assert found[5].pixels.mean() < 80 < found[6].pixels[:, :16].mean()


@given(height=st.integers(1, 90), width=st.integers(1, 90), size=st.integers(16, 64))
def test_a_photograph_becomes_a_square_of_the_same_mean(height: int, width: int, size: int) -> None:
    rgb = np.zeros((height, width, 3), dtype=np.uint8)
    rgb[..., 0], rgb[..., 2] = 200, 17
    pixels = data.square(rgb, size)
    assert pixels.shape == (3, size, size)
    assert pixels.flags.c_contiguous
    assert (np.unique(pixels[0]), np.unique(pixels[1]), np.unique(pixels[2])) == (200, 0, 17)


def test_shrinking_averages_areas() -> None:
    chequered = np.zeros((64, 64, 3), dtype=np.uint8)
    chequered[::2, ::2] = chequered[1::2, 1::2] = 200
    assert np.abs(data.square(chequered, 16).astype(int) - 100).max() <= 1


def test_photographs_that_cannot_be_read_are_left_out_and_many_refuse_the_training() -> None:
    missing, short = Failure(ErrorCode.MISSING, "no such file"), Failure(ErrorCode.TRUNCATED, "ends early")
    unread = data.unread([f"p{row}" for row in range(30)], [(3, missing), (4, short), (29, missing)])
    assert data.refuse_unreadable([], 10) is None
    said = (
        "3 of 30 photographs can't be read (2 missing, 1 truncated: 'p3', 'p4', 'p29'; the first: no such file) "
        "and are left out"
    )
    assert data.refuse_unreadable(unread, 30) == said
    with pytest.raises(ConfigurationError, match=r"3 of 29 .*2 missing, 1 truncated: 'p3', .*no such file\): .*10%"):
        data.refuse_unreadable(unread, 29)


# ---- splits ------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    groups=st.lists(st.integers(0, 25), min_size=30, max_size=120),
    fraction=st.sampled_from([0.1, 0.2, 0.25, 0.3, 0.5, 0.7]),
    seed=st.integers(0, 5),
)
def test_a_drawn_split_parts_no_group_and_keeps_about_its_share(groups: list[int], fraction: float, seed: int) -> None:
    labels = ["ab"[group % 2] for group in groups]
    assume(min(len({g for g in groups if g % 2 == half}) for half in (0, 1)) >= 6)
    names = [f"g{group}" for group in groups]
    found = data.split(_table(labels, group=names), fraction=fraction, seed=seed)
    train, kept_out = set(found.train.tolist()), set(found.evaluation.tolist())
    assert train | kept_out == set(range(len(labels)))
    assert not train & kept_out
    assert not {names[row] for row in train} & {names[row] for row in kept_out}
    assert {labels[row] for row in train} == {"a", "b"}
    again = data.split(_table(labels, group=names), fraction=fraction, seed=seed)
    assert np.array_equal(again.train, found.train)


@pytest.mark.parametrize("fraction", [0.1, 0.15, 0.3, 0.5, 0.8])
def test_the_share_is_that_asked_for_where_groups_are_small(fraction: float) -> None:
    labels = ["a", "b"] * 100
    found = data.split(_table(labels, group=[f"g{n // 4}-{n % 2}" for n in range(200)]), fraction=fraction, seed=1)
    assert len(found.evaluation) / 200 == pytest.approx(fraction, abs=0.03)
    assert abs(sum(labels[row] == "a" for row in found.evaluation) - len(found.evaluation) / 2) <= 2


def test_files_of_the_same_bytes_stay_together_also_through_a_group() -> None:
    hashes = [f"h{n}" for n in range(40)]
    hashes[7] = hashes[0]  # p7 repeats p0, and shares a group with p20
    groups: list[str | None] = [None] * 40
    groups[7] = groups[20] = "same"
    table = _table(["a", "b"] * 20, group=groups, sha256=hashes)
    units, notes = data.units(table)
    assert units[0] == units[7] == units[20]
    assert len(set(units.tolist())) == 38
    assert notes == [
        "1 files repeat the bytes of another and stay on its side of the split",
        "38 photographs have no group: if several show one object, the accuracy on those kept out is flattered",
    ]


def test_the_manifests_own_split_is_taken() -> None:
    subsets = ["train", "eval", "train", "train", "eval", "train"]
    hashes = ["0", "0", "1", "2", "3", "4"]
    found = data.split(_table(list("ababab"), split=subsets, sha256=hashes), fraction=0.9, seed=0)
    assert found.evaluation.tolist() == [1, 4]
    assert found.notes == ("1 files of eval have the same bytes as one of train: its accuracy is flattered",)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"split": ["train"] * 4 + ["test", None]},
            r"must hold train and eval, both; it holds 4 'train', 1 'test', 1 None",
        ),
        ({"split": ["train"] * 6}, r"it holds 6 'train'"),
        (
            {"split": ["train", "eval"] * 3, "group": ["g", "g", "h", "i", "j", "k"]},
            r"1 groups are in train and in eval \('g'\)",
        ),
        ({"split": ["train", "eval", "train", "eval", "train", "eval"]}, r"no photograph of 'b' is left to train on"),
        ({"group": ["g", "h", "g", "i", "g", "j"]}, r"label 'a' has a single group"),
    ],
)
def test_a_split_that_cannot_be_is_refused(columns: dict[str, list[Any]], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        data.split(_table(list("ababab"), **columns), fraction=0.3, seed=0)

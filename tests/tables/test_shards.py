"""Images inside archives and tables: each has its row and its bytes, and damage shows."""

import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qualitygate.errors import ConfigurationError, ErrorCode, ImageError
from qualitygate.tables import manifest, parts, scores, storage

CONTENT = {
    "000.jpg": b"first" * 300,
    "000.json": b"{}",
    "deep/001.PNG": b"second",
    "x" * 150 + ".webp": b"a name too long for one header",
    "ü–ñ.jpg": b"",
    "002.jpg": b"last" * 200,
}
IMAGES = {name: data for name, data in CONTENT.items() if not name.endswith("json")}


def _tar(content: dict[str, bytes], kind: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as archive:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _rows(source: Path, tmp_path: Path, **options: str | None) -> list[dict[str, object]]:
    loaded = manifest.load(str(source), tmp_path / "_spool.parquet", **options)
    return pq.read_table(loaded.path).to_pylist()


def _bytes(row: dict[str, object]) -> bytes:
    return storage.fetch(str(row["uri"]), max_bytes=1 << 20, etag=str(row["etag"])).data


def _code(row: dict[str, object]) -> ErrorCode:
    with pytest.raises(ImageError) as caught:
        _bytes(row)
    return caught.value.failure.code


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_members_of_an_archive_are_images_by_their_names(tmp_path: Path, kind: int) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "shard-000.tar").write_bytes(_tar(CONTENT, kind))
    (folder / "loose.jpg").write_bytes(b"loose")
    loaded = manifest.load(str(folder), tmp_path / "spool.parquet")
    rows = {row["image_id"]: row for row in pq.read_table(loaded.path).to_pylist()}
    assert {name: _bytes(row) for name, row in rows.items()} == {
        "loose.jpg": b"loose",
        **{f"shard-000.tar/{name}": data for name, data in IMAGES.items()},
    }
    assert {name: row["bytes"] for name, row in rows.items()} == {name: len(_bytes(row)) for name, row in rows.items()}
    assert loaded.notes == ("1 members of archives aren't images by their names and are left out",)


def test_an_archive_alone_is_an_input(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(_tar(CONTENT))
    assert [row["image_id"] for row in _rows(tmp_path / "a.tar", tmp_path)] == [f"a.tar/{name}" for name in IMAGES]


def test_wherever_an_archive_is_cut_off_each_image_has_its_bytes_or_the_rest_an_error(tmp_path: Path) -> None:
    whole = _tar(CONTENT)
    end = len(whole.rstrip(b"\0")) + 1100
    checked = 0
    for cut in range(0, end, 173):
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        rows = _rows(tmp_path / "cut.tar", tmp_path)
        ok = [row for row in rows if row["image_id"] != "cut.tar"]
        assert {str(row["image_id"]).removeprefix("cut.tar/"): _bytes(row) for row in ok}.items() <= IMAGES.items()
        broken = [row for row in rows if row["image_id"] == "cut.tar"]
        if len(ok) < len(IMAGES):
            assert len(broken) == 1
        for row in broken:
            assert _code(row) in (ErrorCode.TRUNCATED, ErrorCode.UNDECODABLE)
        checked += len(broken)
    assert checked > 10


def test_a_damaged_header_in_the_middle_shows(tmp_path: Path) -> None:
    damaged = bytearray(_tar(CONTENT, tarfile.GNU_FORMAT))
    second = damaged.index(b"deep/001.PNG")
    damaged[second + 150] ^= 0xFF  # inside the header's checksum
    (tmp_path / "d.tar").write_bytes(damaged)
    rows = _rows(tmp_path / "d.tar", tmp_path)
    assert [row["image_id"] for row in rows] == ["d.tar/000.jpg", "d.tar"]
    assert _code(rows[1]) is ErrorCode.TRUNCATED
    (tmp_path / "d.tar").write_bytes(b"this is no archive" * 100)
    (row,) = _rows(tmp_path / "d.tar", tmp_path)
    assert _code(row) is ErrorCode.UNDECODABLE


def test_two_members_of_one_name_are_two_images(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for data in (b"one", b"two!"):
            member = tarfile.TarInfo("a.jpg")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    (tmp_path / "a.tar").write_bytes(buffer.getvalue())
    rows = _rows(tmp_path / "a.tar", tmp_path)
    assert {str(row["image_id"]): _bytes(row) for row in rows} == {"a.tar/a.jpg": b"one", "a.tar/a.jpg~2": b"two!"}


def test_a_member_of_an_archive_that_was_replaced_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(_tar(CONTENT))
    rows = _rows(tmp_path / "a.tar", tmp_path)
    (tmp_path / "a.tar").write_bytes(_tar({"000.jpg": b"other" * 1000}))
    assert {_code(row) for row in rows if row["bytes"]} == {ErrorCode.MISSING}


# --- Parquet --------------------------------------------------------------------------------------------------

PICTURES = [b"p%d" % number * 50 for number in range(25)]


def test_a_column_of_bytes_holds_images(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    table = pa.table({"image": [*PICTURES, None], "label": ["x"] * 26})
    pq.write_table(table, folder / "part-0.parquet", row_group_size=10)
    rows = _rows(folder, tmp_path)
    assert [row["image_id"] for row in rows] == [f"part-0.parquet/{number}" for number in range(26)]
    assert [_bytes(row) for row in rows[:25]] == PICTURES
    assert [_bytes(row) for row in reversed(rows[:25])] == PICTURES[::-1]
    assert _code(rows[25]) is ErrorCode.MISSING
    assert len(_rows(folder / "part-0.parquet", tmp_path)) == 26


def test_pictures_in_a_structure_and_ids_of_their_own(tmp_path: Path) -> None:
    pictures = [{"bytes": data, "path": f"{n}.jpg"} for n, data in enumerate(PICTURES)]
    table = pa.table({"image": pictures, "image_id": [f"id-{number}" for number in range(25)]})
    pq.write_table(table, tmp_path / "hub.parquet", row_group_size=7)
    rows = _rows(tmp_path / "hub.parquet", tmp_path)
    assert {row["image_id"]: _bytes(row) for row in rows} == {f"id-{n}": data for n, data in enumerate(PICTURES)}


def test_which_of_several_columns_has_to_be_said(tmp_path: Path) -> None:
    pq.write_table(pa.table({"photo": PICTURES, "thumb & nail": PICTURES[::-1]}), tmp_path / "two.parquet")
    with pytest.raises(ConfigurationError, match=r"photo, thumb & nail; name the one .* with --image-column"):
        _rows(tmp_path / "two.parquet", tmp_path)
    rows = _rows(tmp_path / "two.parquet", tmp_path, image_column="thumb & nail")
    assert [_bytes(row) for row in rows] == PICTURES[::-1]
    with pytest.raises(ConfigurationError, match="name the one"):
        _rows(tmp_path / "two.parquet", tmp_path, image_column="absent")


def test_a_table_without_images_in_a_folder_is_a_file_like_any_other(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    pq.write_table(pa.table({"image_id": ["a"], "uri": ["a.jpg"]}), folder / "manifest.parquet")
    (row,) = _rows(folder, tmp_path)
    assert row["image_id"] == "manifest.parquet"
    assert _bytes(row) == (folder / "manifest.parquet").read_bytes()


def test_a_damaged_table_has_an_error_row(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    pq.write_table(pa.table({"image": PICTURES}), folder / "a.parquet")
    whole = (folder / "a.parquet").read_bytes()
    (folder / "a.parquet").write_bytes(whole[:-20])
    (row,) = _rows(folder, tmp_path)
    assert (row["image_id"], _code(row)) == ("a.parquet", ErrorCode.TRUNCATED)
    damaged = bytearray(whole)
    damaged[4:200] = b"\xff" * 196
    (folder / "a.parquet").write_bytes(damaged)
    rows = _rows(folder, tmp_path)
    assert len(rows) == 25
    assert {_code(row) for row in rows} == {ErrorCode.TRUNCATED}


def test_a_row_group_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({"image": PICTURES}), tmp_path / "a.parquet", compression="none")
    monkeypatch.setattr(parts, "MAX_GROUP_BYTES", 1000)
    rows = _rows(tmp_path / "a.parquet", tmp_path)
    assert {_code(row) for row in rows} == {ErrorCode.TOO_LARGE}


@pytest.mark.parametrize(
    "part",
    [
        parts.Member(file="s3://b/a#b.tar", offset=512, bytes=0),
        parts.Cell(file="/x/a.parquet", column="a&b#c.d=e", row=3),
        parts.Unreadable(file="a.tar", code=ErrorCode.DENIED, offset=7),
    ],
)
def test_a_part_is_what_its_uri_says(part: parts.Part) -> None:
    assert parts.parse(part.uri) == part
    assert parts.parse(part.file) is None


@pytest.mark.parametrize("uri", ["a#b.jpg", "s3://b/x#offset=1", "x#offset=-1&bytes=2", "#offset=1&bytes=2", "x#row=1"])
def test_other_names_are_no_parts(uri: str) -> None:
    assert parts.parse(uri) is None


def test_labels_of_images_inside_a_table_are_not_guessed_by_position(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": PICTURES, "label": [f"l{n}" for n in range(25)]}), tmp_path / "a.parquet")
    table = manifest.read(str(tmp_path / "a.parquet"), ["label"])
    assert table.num_rows == table["label"].null_count == 25


def test_an_output_takes_no_options() -> None:
    with pytest.raises(ConfigurationError, match="AWS_ENDPOINT_URL"):
        scores.table_uri("s3://bucket/out?endpoint_override=localhost:9000")

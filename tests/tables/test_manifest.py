"""Any input becomes one normalised manifest, or one line that says what is wrong."""

import os
import socket
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qualitygate.config import ManifestBuildConfig
from qualitygate.errors import ConfigurationError, ErrorCode, ImageError, StoreUnavailable
from qualitygate.tables import growing, manifest, manifest_build


def _rows(source: Path | str, tmp_path: Path, **options: int) -> list[dict[str, object]]:
    loaded = manifest.load(str(source), tmp_path / "_spool.parquet", **options)
    table = pq.read_table(loaded.path)
    assert table.schema.equals(manifest.SCHEMA) or table.schema.names == manifest.SCHEMA.names
    assert table.num_rows == loaded.rows
    return table.to_pylist()


def test_a_folder_gives_every_file_an_id_with_its_extension(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for name in ("a.jpg", "sub/b.JPEG", "c.txt", "d"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"1")
    rows = _rows(folder, tmp_path)
    assert [row["image_id"] for row in rows] == ["a.jpg", "c.txt", "d", "sub/b.JPEG"]
    assert all(row["etag"] and row["bytes"] == 1 for row in rows)


def test_a_glob_and_a_single_file(tmp_path: Path) -> None:
    for name in ("in/a.jpg", "in/sub/b.jpg", "in/c.png", "in/odd[1].jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"1")
    assert [row["image_id"] for row in _rows(tmp_path / "in" / "**" / "*.jpg", tmp_path)] == [
        "a.jpg",
        "odd[1].jpg",
        "sub/b.jpg",
    ]
    assert [row["image_id"] for row in _rows(tmp_path / "in" / "c.png", tmp_path)] == ["c.png"]
    assert [row["image_id"] for row in _rows(tmp_path / "in" / "odd[1].jpg", tmp_path)] == ["odd[1].jpg"]


@pytest.mark.parametrize("pattern", ["", "**/*.jpg"])
def test_pipes_sockets_and_devices_are_counted_and_never_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.jpg").write_bytes(b"1")
    (folder / "broken.jpg").symlink_to("nowhere")
    if not pattern:  # through links a glob goes on and on
        (folder / "again").symlink_to(folder)
    os.mkfifo(folder / "pipe.jpg")
    os.mkfifo(folder / "_pipe.jpg")
    (folder / "sub" / "null.jpg").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as listening, monkeypatch.context() as patch:
        patch.chdir(folder)  # a socket's address has a hundred characters at most
        listening.bind("socket.jpg")
        # Opening a pipe for reading waits for one who writes.
        loaded = manifest.load(str(folder / pattern), tmp_path / "_spool.parquet")
    ids = pq.read_table(loaded.path)["image_id"].to_pylist()
    assert ids == (["a.jpg"] if pattern else ["a.jpg", "broken.jpg"])
    assert loaded.notes == ("pipes, sockets and devices are left out and not opened: 3",)


CSV = """image_id,uri,box,label
007,x y.jpg,"1,2,3,4",a
1e5,/abs/%20.jpg,,b
c,s3://b/k?x.jpg,"[1, 2, 3]",
d,,abc,
2024-01-02T03:04:05,http://x/y,(1 2 3 4),
"""
JSONL = """{"image_id": "007", "uri": "x y.jpg", "box": [1, 2, 3, 4]}
{"image_id": "1e5", "uri": "/abs/%20.jpg", "box": null}
{"image_id": "c", "uri": "s3://b/k?x.jpg", "box": [1, 2, 3]}
{"image_id": "d", "uri": null, "box": "abc"}
{"image_id": "2024-01-02T03:04:05", "uri": "http://x/y", "box": {"x": 1, "y": 2, "w": 3, "h": 4}}
"""
PARQUET = {
    "image_id": ["007", "1e5", "c", "d", "2024-01-02T03:04:05"],
    "uri": ["x y.jpg", "/abs/%20.jpg", "s3://b/k?x.jpg", None, "http://x/y"],
    "box": [[1, 2, 3, 4], None, [1, 2, 3], [], [1, 2, 3, 4]],
}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_tables_keep_ids_as_written_and_resolve_relative_uris(tmp_path: Path, kind: str) -> None:
    source = tmp_path / f"m.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table(PARQUET), source)
    else:
        source.write_text(CSV if kind == "csv" else JSONL)
    rows = _rows(source, tmp_path)
    assert [row["image_id"] for row in rows] == ["007", "1e5", "c", "d", "2024-01-02T03:04:05"]
    assert [row["uri"] for row in rows] == [
        f"{tmp_path}/x y.jpg",
        "/abs/%20.jpg",
        "s3://b/k?x.jpg",
        None,
        "http://x/y",
    ]
    # What is no box stays a wrong box: as null it would silently score the whole photograph.
    assert [row["box"] for row in rows] == [[1, 2, 3, 4], None, [1, 2, 3], [], [1, 2, 3, 4]]


def test_numbers_as_ids_and_a_limit(tmp_path: Path) -> None:
    source = tmp_path / "m.parquet"
    pq.write_table(pa.table({"image_id": [3, 1, 2], "uri": ["a", "b", "c"]}), source)
    assert [row["image_id"] for row in _rows(source, tmp_path, limit=2)] == ["3", "1"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.csv", "image_id,uri\na,b\na,c\n", "'a' \\(2 times\\).*make them unique"),
        ("m.csv", "id,uri\n1,2\n", "lacks the column image_id \\(it has id, uri\\)"),
        ("m.csv", "image_id,uri\n", "holds no images"),
        ("m.csv", "", "lacks the columns image_id, uri|can't be read"),
        ("m.csv", "image_id,uri\n,b\n", "1 rows without an image_id"),
        ("m.parquet", "no parquet", "can't be read as a table"),
        ("m.jsonl", "{{{\n", "can't be read as a table"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigurationError, match=message) as caught:
        _rows(tmp_path / name, tmp_path)
    assert "\n" not in str(caught.value)


def test_inputs_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match="holds no images"):
        _rows(tmp_path / "empty", tmp_path)
    with pytest.raises(ConfigurationError, match="does not exist"):
        _rows(tmp_path / "absent", tmp_path)
    with pytest.raises(ConfigurationError, match="holds no images"):
        _rows(tmp_path / "*.jpg", tmp_path)
    with pytest.raises(ConfigurationError, match="scheme 'http'"):
        _rows("http://x/y", tmp_path)


@pytest.mark.parametrize("kind", ["folder", "glob", "link"])
def test_results_below_the_input_are_no_images(tmp_path: Path, kind: str) -> None:
    for name in ("a.jpg", "out/scores/part.parquet", "out/scores/_delta_log/0.json", "out/_stats.json", "out2/b.jpg"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"1")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    source = {"folder": "in", "glob": "in/**", "link": "link"}[kind]
    results = str(tmp_path / "in" / "out" / "scores")
    loaded = manifest.load(str(tmp_path / source), tmp_path / "spool.parquet", results=results)
    assert pq.read_table(loaded.path)["image_id"].to_pylist() == ["a.jpg", "out2/b.jpg"]


def test_results_above_the_input_hide_no_image(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"1")
    loaded = manifest.load(str(tmp_path / "photos"), tmp_path / "spool.parquet", results=str(tmp_path / "scores"))
    assert loaded.rows == 1


def test_a_key_that_only_late_lines_have_is_read(tmp_path: Path) -> None:
    lines = [f'{{"image_id": "{number}", "uri": "u"}}' for number in range(21_000)]
    (tmp_path / "m.jsonl").write_text("\n".join([*lines, '{"image_id": "x", "uri": "u", "box": [1, 2, 3, 4]}']))
    assert _rows(tmp_path / "m.jsonl", tmp_path)[-1]["box"] == [1, 2, 3, 4]


def test_a_ragged_csv_row_is_told_from_the_header(tmp_path: Path) -> None:
    (tmp_path / "short.csv").write_text("image_id,uri,label\na,a.jpg,x\nb,b.jpg\n")
    assert [row["image_id"] for row in _rows(tmp_path / "short.csv", tmp_path)] == ["a", "b"]
    (tmp_path / "long.csv").write_text("image_id,uri\na,a.jpg\nb,b.jpg,z,zz\n")
    with pytest.raises(ConfigurationError, match="holds a row that can't be read"):
        _rows(tmp_path / "long.csv", tmp_path)
    (tmp_path / "semicolon.csv").write_text("\ufeffimage_id;uri\n1,5;a.jpg\n", encoding="utf-8")
    assert [row["image_id"] for row in _rows(tmp_path / "semicolon.csv", tmp_path)] == ["1,5"]


@pytest.mark.parametrize("box", ['"1.7,2,3,4"', '"[1, 2, 3, 4.5]"', '"1,2,,4"', "x", '"{""x"": 1, ""y"": 2}"'])
def test_what_is_no_box_of_whole_pixels_is_kept_as_no_box(tmp_path: Path, box: str) -> None:
    (tmp_path / "m.csv").write_text(f"image_id,uri,box\na,a.jpg,{box}\n")
    assert _rows(tmp_path / "m.csv", tmp_path)[0]["box"] == []


@pytest.mark.parametrize("box", ["1 2 3 4", '"1.0,2,3,4"', '"{""x"": 1, ""y"": 2, ""w"": 3, ""h"": 4}"', '"[1,2,3,4]"'])
def test_boxes_in_any_usual_spelling(tmp_path: Path, box: str) -> None:
    (tmp_path / "m.csv").write_text(f"image_id,uri,box\na,a.jpg,{box}\n")
    assert _rows(tmp_path / "m.csv", tmp_path)[0]["box"] == [1, 2, 3, 4]


def test_local_files_carry_their_change_marks(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"12")
    (tmp_path / "m.csv").write_text("image_id,uri\na,a.jpg\nb,gone.jpg\n")
    first, second = _rows(tmp_path / "m.csv", tmp_path)
    assert first["etag"] is not None
    assert second["etag"] is None
    (tmp_path / "a.jpg").write_bytes(b"123")
    assert _rows(tmp_path / "m.csv", tmp_path)[0]["etag"] != first["etag"]
    assert _rows(tmp_path / "a.jpg", tmp_path)[0]["etag"] is not None
    assert _rows(tmp_path / "*.jpg", tmp_path)[0]["etag"] is not None


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (ErrorCode.TRANSIENT, StoreUnavailable),
        (ErrorCode.TIMEOUT, StoreUnavailable),
        (ErrorCode.DENIED, ConfigurationError),
    ],
)
def test_a_store_that_does_not_answer_is_told_from_what_has_to_be_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: ErrorCode, kind: type[Exception]
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ImageError(code, "no luck")

    monkeypatch.setattr(manifest, "_normalise", fails)
    monkeypatch.setattr(growing, "list_images", fails)
    monkeypatch.setattr(manifest_build, "_build", fails)
    listing = ManifestBuildConfig(input="s3://in/a", output=str(tmp_path / "m.parquet"))
    for call in (
        lambda: manifest.load("s3://in/a", tmp_path / "m.parquet"),
        lambda: growing.begin("s3://in/a", tmp_path, manifest.Wanted()),
        lambda: manifest_build.build(listing),
    ):
        with pytest.raises(kind, match="no luck"):
            call()

"""Which samples a manifest holds: series and their steps, single photographs, and one line for what is wrong."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qualitygate.calibration import samples
from qualitygate.errors import ConfigurationError


def _manifest(folder: Path, *rows: str, header: str = "image_id,uri,series,step") -> str:
    path = folder / "manifest.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return str(path)


def test_a_series_is_a_sample_from_its_lowest_step_on(tmp_path: Path) -> None:
    source = _manifest(
        tmp_path,
        "c,c.jpg,two,30",
        "a,a.jpg,one,3",
        "b,b.jpg,one,-1",
        "d,d.jpg,one,10",
        "e,e.jpg,two,5",
        "f,f.jpg,two,6",
    )
    found = samples.read(source)
    assert found.blur == "manifest"
    assert [sample.name for sample in found.samples] == ["two", "one"]
    assert [shot.image_id for shot in found.samples[1].shots] == ["b", "a", "d"]
    assert [shot.step for shot in found.samples[0].shots] == [5, 6, 30]
    assert found.samples[0].shots[0].uri == f"{tmp_path}/e.jpg"
    assert found.notes == ()
    assert [sample.name for sample in samples.read(source, limit=1).samples] == ["two"]


def test_real_and_rendered_blur_are_never_mixed(tmp_path: Path) -> None:
    source = _manifest(
        tmp_path, "a,a.jpg,one,0", "x,x.jpg,,", "b,b.jpg,one,1", "c,c.jpg,one,2", "s,s.jpg,short,4", "t,t.jpg,short,2"
    )
    real = samples.read(source)
    assert [sample.name for sample in real.samples] == ["one"]
    assert "1 photographs without a series are left out" in real.notes[0]
    assert "1 series of fewer than 3 steps are left out: 'short'" in real.notes[1]
    rendered = samples.read(source, blur="rendered")
    assert rendered.blur == "rendered"
    # Sharp ones alone, by image_id, in the manifest's order.
    assert [(sample.name, len(sample.shots)) for sample in rendered.samples] == [("a", 1), ("x", 1), ("t", 1)]


def test_without_series_each_photograph_is_a_sample_and_keeps_its_box(tmp_path: Path) -> None:
    source = _manifest(tmp_path, 'a,a.jpg,"[1, 2, 30, 40]"', "b,b.jpg,", header="image_id,uri,box")
    found = samples.read(source)
    assert found.blur == "rendered"
    assert [sample.shots[0].box for sample in found.samples] == [[1, 2, 30, 40], None]
    folder = tmp_path / "photographs"
    folder.mkdir()
    for name in ("x.jpg", "y.jpg"):
        (folder / name).write_bytes(b"x")
    assert [sample.name for sample in samples.read(str(folder)).samples] == ["x.jpg", "y.jpg"]


def test_results_inside_the_folder_are_no_photographs(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "series.png").write_bytes(b"x")
    (tmp_path / "a.jpg").write_bytes(b"x")
    found = samples.read(str(tmp_path), results=str(tmp_path / "results"))
    assert [sample.name for sample in found.samples] == ["a.jpg"]
    with pytest.raises(ConfigurationError, match=r"lies inside --output .*choose another output"):
        samples.read(str(tmp_path), results=str(tmp_path))


def test_steps_may_be_numbers_of_any_column_type(tmp_path: Path) -> None:
    table = pa.table(
        {"image_id": ["a", "b", "c"], "uri": ["a", "b", "c"], "series": [7, 7, 7], "step": [2.0, 0.0, 1.0]}
    )
    pq.write_table(table, tmp_path / "m.parquet")
    (found,) = samples.read(str(tmp_path / "m.parquet")).samples
    assert found.name == "7"
    assert [shot.image_id for shot in found.shots] == ["b", "c", "a"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            ["a,a,s,0", "b,b,s,first"],
            r"photograph 'b' of series 's' has step 'first', which is no whole number; write 0",
        ),
        (["a,a,s,1.5"], r"step '1.5', which is no whole number"),
        (["a,a,s,nan"], r"step 'nan', which is no whole number"),
        (["a,a,s,inf"], r"step 'inf', which is no whole number"),
        (["a,a,s,"], r"photograph 'a' of series 's' has no step; number the steps"),
        (["a,a,s,0", "b,b,s,0"], r"series 's' has step 0 twice \('a', 'b'\)"),
        (["a,a,s,0", "b,b,s,1"], r"no series has 3 steps or more \('s'\); add photographs, or use --blur rendered"),
    ],
)
def test_a_wrong_manifest_is_one_line_with_the_remedy(tmp_path: Path, rows: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        samples.read(_manifest(tmp_path, *rows))
    assert "\n" not in str(caught.value)


def test_blur_that_is_not_there_is_refused(tmp_path: Path) -> None:
    source = _manifest(tmp_path, "a,a.jpg", header="image_id,uri")
    with pytest.raises(
        ConfigurationError, match=r"--blur manifest: .*add the columns series and step.*--blur rendered"
    ):
        samples.read(source, blur="manifest")

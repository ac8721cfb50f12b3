"""The robustness job on a real Ray: the numbers that `score` gives, whatever the workers, and a row for each error."""

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.cloudpickle
import skimage.data
from job_helpers import Silent
from PIL import Image

import qualitygate
from qualitygate.calibration.samples import Sample
from qualitygate.cluster import robustness, variants
from qualitygate.config import RobustnessConfig
from qualitygate.errors import ConfigurationError, Interrupted
from qualitygate.images import augment
from qualitygate.report import robustness as said

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_session")]

FOCUS = ("lapv", "lapm", "wavs")


def _run(source: Path, output: Path, silent: Silent, worker: type | None = None, **options: Any) -> dict[str, Any]:
    config = RobustnessConfig(input=str(source), output=str(output), **({"metrics": FOCUS} | options))
    result = robustness.run(config, silent, worker=worker)
    written: dict[str, Any] = json.loads((output / "robustness.json").read_text())
    assert written == result.document
    return written


def _rows(output: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(output / "robustness.parquet").to_pylist()
    return rows


def _defocused(folder: Path) -> Path:
    """Two series of four steps each, more and more blurred, and a manifest of them."""
    folder.mkdir()
    rows = []
    for number, name in enumerate(("rocket", "coffee")):
        scene = np.ascontiguousarray(getattr(skimage.data, name)()[100:260, 200:380])
        steps = [variant.rgb for variant in augment.rendered_blur(scene)][:8:2]
        for step, rgb in enumerate(steps):
            file = f"{name}{step}.png"
            Image.fromarray(rgb).save(folder / file)
            rows.append({"image_id": f"{name}-{step}", "uri": file, "series": name, "step": 10 * number + step})
    # A manifest need not be in order.
    pq.write_table(pa.Table.from_pylist(rows[::-1]), folder / "manifest.parquet")
    return folder / "manifest.parquet"


def test_photographed_series_are_scored_as_in_process_and_give_table_1(
    tmp_path: Path, silent: Silent, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = _defocused(tmp_path / "in")
    output = tmp_path / "out"
    document = _run(manifest, output, silent)
    assert (silent.total, silent.rows, silent.errors) == (8, 8, 0)
    assert (document["blur"], document["samples"], document["single_sample"]) == ("manifest", 2, "coffee")
    rows = _rows(output)
    by_nuisance = {row["nuisance"] for row in rows}
    assert by_nuisance == {"crop_corner", "crop_centre", "window", "rotation", "rotation_second", "blur_manifest"}
    assert len(rows) == 2 * 3 * (10 + 10 + 1 + 6 + 6 + 4)
    found = {(row["sample"], row["nuisance"], row["step"], row["metric"]): row for row in rows}
    assert all(row["state"] == "ok" for row in rows)

    # The values are those that 'score' gives to the same files and to the same variants.
    files = [tmp_path / "in" / f"coffee{step}.png" for step in range(4)]
    for step, row in enumerate(qualitygate.score(files, FOCUS).to_pylist()):
        for metric in FOCUS:
            assert found["coffee", "blur_manifest", 10 + step, metric]["value"] == row[metric]
            assert found["coffee", "blur_manifest", 10 + step, metric]["parameter"] == step
    sharp = np.asarray(Image.open(files[0]).convert("RGB"))
    for nuisance, made in (
        ("crop_corner", augment.crops_from_corner(sharp)),
        ("crop_centre", augment.crops_centred(sharp)),
        ("rotation", augment.rotations(sharp, "lanczos")),
        ("rotation_second", augment.rotations(sharp, "cubic")),
    ):
        for variant in made:
            (row,) = qualitygate.score(variant.rgb, FOCUS).to_pylist()
            for metric in FOCUS:
                value = found["coffee", nuisance, variant.step, metric]
                assert (value["value"], value["parameter"]) == (row[metric], variant.parameter)

    for metric in FOCUS:
        measured = document["metrics"][metric]
        assert measured["correlations"]["blur_manifest"]["srcc"]["per_sample_values"] == [-1.0, -1.0]
        assert measured["blur_order"]["srcc"] == 1.0
        assert (measured["direction"], measured["trained"], measured["missing"]) == ("higher", True, 0)
        assert measured["fingerprint"] == row[f"{metric}_fingerprint"]
        assert measured["interpolation"]["rotation"] < 0
    assert document["presets"]["paper"] == ["lapm", "wavs", "musiq"]
    assert document["choice"]["preset"] == "auto"
    assert set(document["choice"]["methods"]) <= set(FOCUS)
    assert "2 samples: intervals from so few are too narrow" in document["notes"]
    assert "blurring ↑ | SRCC | here | **1.000** | **1.000** | **1.000**" in (output / "table1.md").read_text()
    assert Image.open(io.BytesIO((output / "series.png").read_bytes())).format == "PNG"
    assert "metrics:" in (output / "_config.yaml").read_text()
    text = said.of_run(robustness.Result(output=str(output), document=document))
    assert "*1.000 (0.996)" in text
    assert f"choice (auto): {', '.join(document['choice']['methods'])}" in text


def test_results_do_not_depend_on_the_workers(tmp_path: Path, silent: Silent) -> None:
    manifest = _defocused(tmp_path / "in")
    first = _run(manifest, tmp_path / "a", silent, workers=1, second_interpolation="none")
    second = _run(manifest, tmp_path / "b", silent, workers=2, second_interpolation="none")
    for document in (first, second):
        for key in ("created", "config"):
            document.pop(key)
    assert first == second
    assert "rotation_second" not in first["metrics"]["lapm"]["effects"]
    for name in ("robustness.parquet", "table1.md", "series.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_blur_is_rendered_where_there_is_none_and_whatever_fails_has_its_row(tmp_path: Path, silent: Silent) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    texture = np.random.default_rng(0).integers(60, 196, (140, 150, 3), dtype=np.uint8)
    Image.fromarray(texture).save(folder / "boxed.png")
    Image.fromarray(np.full((120, 120, 3), 90, np.uint8)).save(folder / "flat.png")
    Image.fromarray(texture[:30, :30]).save(folder / "tiny.png")
    (folder / "text.jpg").write_text("no image")
    rows = [
        {"image_id": "text", "uri": "text.jpg", "box": None},
        {"image_id": "boxed", "uri": "boxed.png", "box": [10, 20, 125, 115]},
        {"image_id": "flat", "uri": "flat.png", "box": None},
        {"image_id": "gone", "uri": "gone.png", "box": None},
        {"image_id": "tiny", "uri": "tiny.png", "box": None},
        {"image_id": "odd", "uri": "boxed.png", "box": [1, 2]},
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "manifest.parquet")
    output = tmp_path / "out"
    document = _run(folder / "manifest.parquet", output, silent, metrics=("lapm", "niqe"), methods="lapm")
    assert (silent.total, silent.rows, silent.errors) == (6, 6, 3)
    assert (document["blur"], document["samples"], document["single_sample"]) == ("rendered", 3, "boxed")
    assert {error["sample"]: error["code"] for error in document["errors"]} == {
        "text": "undecodable",
        "gone": "missing",
        "odd": "unsupported",
    }
    assert any("3 photographs could not be read" in note for note in document["notes"])
    values = {(row["sample"], row["nuisance"], row["step"], row["metric"]): row for row in _rows(output)}
    for sample, code in (("text", "undecodable"), ("gone", "missing"), ("odd", "unsupported")):
        failed = values[sample, "blur_rendered", 0, "lapm"]
        assert (failed["value"], failed["state"]) == (None, f"failed:{code}")
    region = np.ascontiguousarray(texture[20:135, 10:135])
    (row,) = qualitygate.score(region, "lapm").to_pylist()
    for nuisance in ("crop_corner", "crop_centre", "blur_rendered"):
        assert values["boxed", nuisance, 0, "lapm"]["value"] == row["lapm"]
    assert values["boxed", "blur_rendered", 9, "lapm"]["parameter"] == 4.5
    # NIQE wants 96 pixels: the sixth crop and the rotations' window have fewer.
    assert values["boxed", "crop_corner", 2, "niqe"]["state"] == "ok"
    assert values["boxed", "crop_corner", 9, "niqe"]["state"] == "failed:too_small"
    assert values["flat", "blur_rendered", 0, "niqe"]["state"] == "failed:flat"
    assert values["tiny", "rotation", 3, "lapm"]["state"] == "failed:too_small"
    lapm, niqe = document["metrics"]["lapm"], document["metrics"]["niqe"]
    assert niqe["missing"] > lapm["missing"] == 13
    # A flat photograph stays flat: constant scores have no correlation and no blur range.
    assert lapm["correlations"]["blur_rendered"]["srcc"]["per_sample_values"] == [-1.0, None, -1.0]
    assert lapm["effects"]["crop_corner"]["per_sample"][1] is None
    assert lapm["effects"]["rotation"]["per_sample"][2] is None
    assert document["choice"]["methods"] == ["lapm"]


def test_nothing_is_written_when_nothing_can_be_done(tmp_path: Path, silent: Silent) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "text.jpg").write_text("no image")
    output = tmp_path / "out"
    with pytest.raises(
        ConfigurationError, match=r"none of the 1 sharp photographs .* \(1 undecodable\), such as 'text"
    ):
        _run(folder, output, silent)
    with pytest.raises(ConfigurationError, match=r"paper wants lapm, wavs, musiq, .*--methods classical"):
        _run(folder, output, silent, methods="paper")
    with pytest.raises(ConfigurationError, match=r"no blur series; add the columns series and step"):
        _run(folder, output, silent, blur="manifest")
    with pytest.raises(ConfigurationError, match=r"--output is empty"):
        robustness.run(RobustnessConfig(input=str(folder), output=" "), silent)
    assert list(output.iterdir()) == []


class Mortal(variants.SampleScorer):
    """Dies over one sample, as a broken decoder would make it."""

    def score(self, sample: Sample) -> dict[str, Any]:
        if sample.name == "killer":
            os._exit(139)
        return super().score(sample)


def test_a_photograph_that_kills_its_worker_is_an_error_and_harms_no_other(tmp_path: Path, silent: Silent) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    folder = tmp_path / "in"
    folder.mkdir()
    for number, name in enumerate(("a", "killer", "b")):
        texture = np.random.default_rng(number).integers(0, 256, (60, 60, 3), dtype=np.uint8)
        Image.fromarray(texture).save(folder / name, "PNG")
    document = _run(folder, tmp_path / "out", silent, Mortal, metrics=("lapm",), workers=1)
    assert document["sample_names"] == ["a", "b"]
    assert [(error["sample"], error["code"]) for error in document["errors"]] == [("killer", "worker_crash")]


def test_a_stop_is_said_and_leaves_nothing_half_written(
    tmp_path: Path, silent: Silent, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = _defocused(tmp_path / "in")
    monkeypatch.setattr(silent, "advance", lambda **counts: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(Interrupted, match="nothing was written; run the same command again"):
        _run(manifest, tmp_path / "out", silent)
    assert list((tmp_path / "out").iterdir()) == []

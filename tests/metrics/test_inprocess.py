"""Scores in this process: inputs of every kind, rows for all of them."""

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

import qualitygate
from qualitygate.errors import ConfigurationError
from qualitygate.metrics import inprocess
from qualitygate.metrics.rows import Plan, Prepared, RowScorer
from qualitygate.tables import scores

FOCUS = ["lapv", "lapm", "wavs"]


def test_the_published_value_of_a_known_photograph() -> None:
    (row,) = qualitygate.score([skimage.data.astronaut()]).to_pylist()
    assert row["lapv"] == pytest.approx(695.956, rel=1e-5)
    assert row["lapm"] == pytest.approx(14.7767, rel=1e-5)
    assert row["wavs"] == pytest.approx(4.66900, rel=1e-5)
    assert row["brisque"] == pytest.approx(2.879, abs=0.02)
    assert row["niqe"] == pytest.approx(3.067, abs=0.02)
    assert row["status"] == "ok"


def test_paths_bytes_arrays_and_pictures_agree(tmp_path: Path) -> None:
    pixels = skimage.data.coffee()
    path = tmp_path / "c.png"
    Image.fromarray(pixels).save(path)
    table = qualitygate.score([str(path), path, path.read_bytes(), pixels, Image.fromarray(pixels)], FOCUS)
    assert table.schema.equals(scores.schema(FOCUS))
    assert table["image_id"].to_pylist() == [str(path), str(path), "2", "3", "4"]
    for metric in FOCUS:
        assert len(set(table[metric].to_pylist())) == 1
    assert table["width"].to_pylist() == [600] * 5


def test_a_single_image_needs_no_list(tmp_path: Path) -> None:
    pixels = skimage.data.camera()
    path = tmp_path / "c.png"
    Image.fromarray(pixels).save(path)
    for one in (
        pixels,
        pixels[..., None],
        str(path),
        path,
        path.read_bytes(),
        Image.fromarray(pixels),
        np.dstack([pixels] * 3),
    ):
        assert qualitygate.score(one, "lapv").num_rows == 1


def test_alpha_is_composited_on_white_as_in_files() -> None:
    rgba = np.zeros((120, 120, 4), np.uint8)
    rgba[:60, :, 3] = 255
    buffer = io.BytesIO()
    Image.fromarray(rgba).save(buffer, "PNG")
    table = qualitygate.score([rgba, buffer.getvalue(), Image.fromarray(rgba)], FOCUS)
    for metric in FOCUS:
        assert len(set(table[metric].to_pylist())) == 1
        assert table[metric][0].as_py() > 0


def test_failures_are_rows(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("hello")
    images = [tmp_path / "absent.jpg", tmp_path / "text.jpg", b"", np.zeros((50, 50), np.uint8), "http://x/y.jpg"]
    rows = qualitygate.score(images).to_pylist()
    assert [row["status"] for row in rows] == ["error", "error", "error", "partial", "error"]
    assert [row["error_code"] for row in rows[:3]] == ["missing", "undecodable", "undecodable"]
    assert rows[3]["niqe_state"] in ("failed:too_small", "failed:flat")
    assert rows[3]["niqe"] is None
    assert rows[3]["lapv"] == 0.0
    assert rows[4]["error_code"] == "denied"


def test_one_metric_that_fails_alone_is_an_error() -> None:
    (row,) = qualitygate.score(np.zeros((40, 40, 3), np.uint8), ["niqe"]).to_pylist()
    assert row["status"] == "error"
    assert row["error_code"] == "too_small"


@pytest.mark.parametrize(
    "images",
    [[1], 3.5, np.zeros((4, 4), float), [np.zeros((4, 4, 2), np.uint8)], [None]],
)
def test_what_is_no_image_is_refused(images: object) -> None:
    with pytest.raises(ConfigurationError, match=r"give|no image"):
        qualitygate.score(images, FOCUS)


@pytest.mark.parametrize(
    ("of", "compiled"),
    [
        (lambda jpeg, many: jpeg, False),
        (lambda jpeg, many: [jpeg], False),
        (lambda jpeg, many: np.zeros((many, 4), np.uint8), False),
        (lambda jpeg, many: np.zeros((many, 4, 3), np.uint8), False),
        (lambda jpeg, many: (jpeg for _ in range(2)), False),
        (lambda jpeg, many: [jpeg] * many, True),
        (lambda jpeg, many: np.zeros((many, 4, 4, 3), np.uint8), True),
    ],
)
def test_compiling_is_for_many_photographs_and_not_for_a_long_one(
    monkeypatch: pytest.MonkeyPatch, of: Any, compiled: bool
) -> None:
    buffer = io.BytesIO()
    Image.fromarray(skimage.data.astronaut()).save(buffer, "JPEG", quality=95)
    jpeg = buffer.getvalue()
    monkeypatch.setattr("qualitygate.metrics.precision.COMPILE_FROM", 1000)
    assert len(jpeg) > 2000
    seen: list[bool] = []

    def noted(plan: Plan, **_: object) -> Any:
        seen.append(plan.execution.compiled)
        return RowScorer(replace(plan, device="cpu"), run_id="r")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(inprocess, "RowScorer", noted)
    monkeypatch.setattr(inprocess, "_prepared", lambda *_: Prepared(row={"image_id": "a", "status": "ok"}))
    qualitygate.score(of(jpeg, 2000), "lapm", device="cuda")
    assert seen == [compiled]


def test_unknown_metrics_are_refused_with_a_suggestion() -> None:
    with pytest.raises(ConfigurationError, match="did you mean lapv"):
        qualitygate.score(skimage.data.camera(), ["lapvv"])


def test_names_may_stand_in_one_string_and_none_is_refused() -> None:
    table = qualitygate.score(skimage.data.camera(), "lapm, lapv")
    assert scores.metrics_of_columns(table.column_names) == ["lapm", "lapv"]
    for nothing in ("", []):
        with pytest.raises(ConfigurationError, match=r"no metric is named|unknown metric"):
            qualitygate.score(skimage.data.camera(), nothing)


def test_a_resolution_changes_scores_and_fingerprint() -> None:
    native, small = (
        qualitygate.score(skimage.data.camera(), FOCUS, longest_side=side).to_pylist()[0] for side in (None, 128)
    )
    assert native["lapv"] != small["lapv"]
    assert native["lapv_fingerprint"] != small["lapv_fingerprint"]


def test_no_ray_is_needed() -> None:
    code = (
        "import sys, numpy, qualitygate; qualitygate.score(numpy.zeros((99, 99), 'uint8'), 'lapv');"
        "sys.exit('ray' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_formulas_may_stay_on_the_cpu_beside_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class Taken(Exception):
        """Where photographs would be scored."""

    def take(plan: Plan, *, run_id: str) -> None:
        raise Taken(plan.device, plan.formulas)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(inprocess, "RowScorer", take)
    grey = np.zeros((40, 40), np.uint8)
    for where in ("gpu", "cpu"):
        with pytest.raises(Taken) as taken:
            qualitygate.score(grey, "lapm,musiq", untrained=True, device="auto", formulas=where)
        assert taken.value.args == ("cuda", where)
    with pytest.raises(ConfigurationError, match="leave one of the two out"):
        qualitygate.score(grey, "lapm", device="cuda", decoder="nvjpeg", formulas="cpu")

"""The embedded data set: its truth is true, its labels don't leak, and it is the same whoever renders it."""

import io
import json
from collections import Counter
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import ExifTags, Image
from scipy.stats import spearmanr

from qualitygate.errors import ConfigurationError
from qualitygate.images import camera, dot_matrix, printed_codes
from qualitygate.images.printed_codes import COUNTS, LABELS, NAMES, Shot, plan, render, write

REPOSITORY = Path(__file__).parents[2]


def decoded(jpeg: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))


def state(**changes) -> camera.CameraState:
    plain = camera.CameraState(
        model=camera.Model(make="m", model="m", contrast=0.0, gains=(1.0, 1.0, 1.0)),
        captured_at=datetime(2024, 1, 1),
        defocus=0.0,
        motion=0.0,
        motion_angle=0.0,
        exposure=0.0,
        noise=0.0,
        jpeg_quality=95,
    )
    return replace(plain, **changes)


def with_label(shot: Shot, label: str, **camera_changes) -> Shot:
    changed = replace(shot.camera, **camera_changes)
    return replace(shot, specimen=replace(shot.specimen, label=label), camera=changed)


# The plan


@pytest.mark.parametrize("name", NAMES)
def test_the_paper_s_counts_with_balanced_labels_and_unique_ids(name):
    shots = plan(name)
    assert len(shots) == COUNTS[name] == {"sharpness": 140, "calibration": 700, "study": 2800, "baseline": 3090}[name]
    assert len({shot.image_id for shot in shots}) == len({shot.file_name for shot in shots}) == len(shots)
    of_label = Counter(shot.label for shot in shots)
    assert set(of_label) == set(LABELS)
    assert abs(of_label[LABELS[0]] - of_label[LABELS[1]]) <= 1
    labels_of_group: dict[str, set[str]] = {}
    for shot in shots:
        labels_of_group.setdefault(shot.group, set()).add(shot.label)
    assert all(len(labels) == 1 for labels in labels_of_group.values())
    assert shots == plan(name)
    assert shots != plan(name, seed=1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [1, 20, 41])
def test_a_shorter_plan_is_the_head_of_a_longer_one(name, count):
    shots = plan(name, count=count)
    assert shots == plan(name, count=60)[:count]
    if name != "sharpness":
        of_label = Counter(shot.label for shot in shots)
        assert abs(of_label[LABELS[0]] - of_label[LABELS[1]]) <= 1


def test_groups_never_cross_data_sets_or_splits():
    groups = {name: {shot.group for shot in plan(name)} for name in NAMES}
    for one in NAMES:
        for other in NAMES:
            assert one == other or not groups[one] & groups[other]
    of_split: dict[str | None, set[str]] = {}
    for shot in plan("baseline"):
        of_split.setdefault(shot.split, set()).add(shot.group)
    assert set(of_split) == {"train", "eval"}
    assert not of_split["train"] & of_split["eval"]
    assert 0.1 < len(of_split["eval"]) / len(groups["baseline"]) < 0.3


def test_sharpness_is_series_of_ten_with_evenly_growing_blur():
    shots = plan("sharpness")
    for start in range(0, 140, 10):
        series = shots[start : start + 10]
        assert len({shot.series for shot in series}) == len({shot.group for shot in series}) == 1
        assert [shot.step for shot in series] == list(range(10))
        assert (np.diff([shot.true_blur for shot in series]) > 0).all()
        assert np.allclose(np.diff([shot.camera.defocus for shot in series], n=2), 0)
        assert len({(shot.camera.exposure, shot.true_noise, shot.camera.model) for shot in series}) == 1


def test_quality_is_spread_as_documented_and_the_study_comes_later():
    for name in ("calibration", "study"):
        true_blur = np.array([shot.true_blur for shot in plan(name)])
        assert 0.6 < (true_blur < 8).mean() < 0.8
        assert 0.05 < (true_blur > 30).mean() < 0.20
    assert np.mean([shot.true_blur < 8 for shot in plan("baseline")]) > 0.9
    last = max(shot.camera.captured_at for shot in plan("calibration"))
    assert last < min(shot.camera.captured_at for shot in plan("study"))


def test_labels_are_independent_of_the_camera():
    shots = plan("study")
    second = np.array([shot.label == LABELS[1] for shot in shots])
    for quantity in ("true_blur", "true_noise"):
        values = np.array([getattr(shot, quantity) for shot in shots])
        assert abs(np.log(values[second]).mean() - np.log(values[~second]).mean()) < 0.15


# The camera


def test_blur_happens_in_linear_light():
    checks = (np.indices((128, 128)).sum(axis=0) // 2 % 2).astype(np.float32)
    scene = np.repeat(checks[:, :, None], 3, axis=2)
    taken = state(defocus=20.0, exposure=float(np.log2(scene.mean() / camera.METER_TARGET)))
    cast = camera.blur(scene, 1.0, taken)
    assert cast.mean() == pytest.approx(scene.mean(), rel=1e-5)
    seen = camera.develop(camera.expose(cast, taken), taken)
    # Half the light is level 188; had the levels 0 and 255 been averaged instead, it would be 128.
    assert abs(float(seen.mean()) - 188) < 1
    assert camera.linearise(seen, 0.0).mean() == pytest.approx(0.5, abs=0.005)


@pytest.mark.parametrize(
    "changes", [{"defocus": 9.0}, {"motion": 24.0, "motion_angle": 0.5}, {"defocus": 5.0, "motion": 12.0}]
)
@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_rms_blur_is_the_second_moment_of_the_point_spread(changes, scale):
    side, taken = 256, state(**changes)
    y, x = np.mgrid[:side, :side] - side // 2
    point = np.exp(-(x**2 + y**2) / (2 * 1.5**2))  # a soft point: what is left is free of ringing
    scene = np.repeat((point / point.sum()).astype(np.float32)[:, :, None], 3, axis=2)
    spread = camera.blur(scene, scale, taken)[:, :, 0]
    moment = float((spread * (x**2 + y**2)).sum())
    assert moment == pytest.approx((taken.rms_blur * scale) ** 2 + 2 * 1.5**2, rel=0.02)


@pytest.mark.parametrize("contrast", [0.0, 0.3])
def test_noise_is_as_stated_at_mid_grey_and_the_tone_curve_inverts(contrast):
    model = camera.Model(make="m", model="m", contrast=contrast, gains=(1.0, 1.0, 1.0))
    taken = state(model=model, noise=5.0)
    grey = np.full((256, 256, 3), camera.MID_GREY, np.float32)
    seen = camera.develop(camera.add_noise(grey, taken, np.random.default_rng(0)), taken)
    assert seen.std() == pytest.approx(5.0, rel=0.03)
    assert seen.mean() == pytest.approx(127.5, abs=0.5)
    light = np.linspace(0, 1, 333, dtype=np.float32).reshape(-1, 1, 1).repeat(3, axis=2)
    assert np.allclose(camera.linearise(camera.develop(light, taken), contrast), light, atol=0.01)


def test_exif_names_the_camera_and_the_moment():
    shot = plan("calibration", count=1)[0]
    exif = Image.open(io.BytesIO(render(shot, 64))).getexif()
    assert exif[ExifTags.Base.Make] == shot.camera.model.make
    assert exif[ExifTags.Base.Model] == shot.camera.model.model
    taken = exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal]
    assert datetime.strptime(taken, "%Y:%m:%d %H:%M:%S") == shot.camera.captured_at


# The photographs


def test_every_series_loses_sharpness_step_by_step():
    shots = plan("sharpness")
    vertical = np.array([[-1.0, 2.0, -1.0]])
    for start in range(0, len(shots), 20):  # every other one: rendering takes a while
        series = shots[start : start + 10]
        true_blur = [shot.true_blur for shot in series]
        greys = [cv2.cvtColor(decoded(render(shot, 128)), cv2.COLOR_RGB2GRAY).astype(float) for shot in series]
        lapv = [cv2.Laplacian(grey, cv2.CV_64F).var() for grey in greys]
        lapm = [
            (np.abs(cv2.filter2D(grey, -1, vertical)) + np.abs(cv2.filter2D(grey, -1, vertical.T))).mean()
            for grey in greys
        ]
        assert spearmanr(lapv, true_blur).statistic <= -0.95
        assert spearmanr(lapm, true_blur).statistic <= -0.95


def test_a_small_photograph_is_a_large_one_made_smaller():
    shot = plan("sharpness", count=3)[2]
    large, small = decoded(render(shot, 512)), decoded(render(shot, 128))
    shrunk = cv2.resize(large, (128, 128), interpolation=cv2.INTER_AREA)
    assert np.abs(shrunk.astype(float) - small).mean() < 2.5
    assert np.corrcoef(shrunk.ravel(), small.ravel())[0, 1] > 0.98


def test_glyphs_of_the_two_manufacturers_have_equal_dots_and_balance():
    differing = 0
    for character in dot_matrix.CHARACTERS.strip():
        first, second = (dot_matrix.glyph(character, label) for label in LABELS)
        assert first.shape == second.shape == (7, 5)
        assert first.sum() == second.sum()
        for one, other in zip(np.nonzero(first), np.nonzero(second), strict=True):
            assert one.mean() == pytest.approx(other.mean())
        differing += bool((first != second).any())
    assert differing >= 8


def test_only_fine_detail_tells_the_label():
    for shot in plan("calibration", count=6):
        calm = {"noise": 0.0, "motion": 0.0, "jpeg_quality": 95}
        sharp, mush = (
            [decoded(render(with_label(shot, label, defocus=defocus, **calm), 128)).astype(float) for label in LABELS]
            for defocus in (0.5, 90.0)
        )
        assert np.abs(sharp[0] - sharp[1]).max() > 40
        assert np.abs(mush[0] - mush[1]).mean() < 1.0
        assert np.abs(sharp[0].mean(axis=(0, 1)) - sharp[1].mean(axis=(0, 1))).max() < 0.5  # of 255, per colour
        assert np.abs(sharp[0].std(axis=(0, 1)) - sharp[1].std(axis=(0, 1))).max() < 1.0


def test_no_classifier_finds_the_label_in_colour_statistics_or_mush():
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # One photograph of each bottle: photographs of one bottle look alike and share their label.
    shots = [shot for shot in plan("study", count=300) if shot.take == 0]
    photographs = [decoded(render(shot, 32)) for shot in shots]
    label = np.array([LABELS.index(shot.label) for shot in shots])
    statistics = [
        np.concatenate([np.percentile(photo, (1, 10, 50, 90, 99), axis=(0, 1)).ravel(), photo.std(axis=(0, 1))])
        for photo in photographs
    ]
    mush = [cv2.resize(photo, (4, 4), interpolation=cv2.INTER_AREA).mean(axis=2).ravel() for photo in photographs]
    for features in (statistics, mush):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
        accuracy = cross_val_score(model, np.array(features), label, cv=5).mean()
        assert 0.36 < accuracy < 0.64  # chance is .5 with a standard error of .04


# Writing


def test_same_bytes_in_any_process_and_order(tmp_path):
    threads = cv2.getNumThreads()
    manifest = write("calibration", tmp_path / "out", size=64, count=8, workers=2)
    assert cv2.getNumThreads() == threads
    table = pq.read_table(manifest)
    written = {uri: (manifest.parent / uri).read_bytes() for uri in table["uri"].to_pylist()}
    for shot in reversed(plan("calibration", count=8)):
        assert render(shot, 64) == written[f"images/{shot.file_name}"]


def test_the_manifest_s_columns_and_types(tmp_path):
    seen = []
    for name in NAMES:
        manifest = write(name, tmp_path / name, size=32, count=12, workers=1, progress=lambda *at: seen.append(at))
        table, shots = pq.read_table(manifest), plan(name, count=12)
        assert table.schema.remove_metadata() == printed_codes.SCHEMA
        assert table.schema.field("step").type == pa.int32()
        assert table["image_id"].to_pylist() == [shot.image_id for shot in shots]
        assert table["true_blur"].to_pylist() == [shot.true_blur for shot in shots]
        for uri in table["uri"].to_pylist():
            assert decoded((manifest.parent / uri).read_bytes()).shape == (32, 32, 3)
        assert (table["series"].null_count, table["step"].null_count) == ((0, 0) if name == "sharpness" else (12, 12))
        assert table["split"].null_count == (0 if name == "baseline" else 12)
    assert seen[:13] == [(done, 12) for done in range(13)]


def test_a_restart_renders_only_what_is_missing(tmp_path):
    manifest = write("study", tmp_path, size=32, count=6, workers=1)
    files = sorted((tmp_path / "images").iterdir())
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}
    content = manifest.read_bytes()
    files[3].unlink()
    manifest.unlink()
    assert write("study", tmp_path, size=32, count=6, workers=1).read_bytes() == content
    for path in files:
        assert path.read_bytes() == before[path][1]
        assert (path.stat().st_mtime_ns == before[path][0]) == (path != files[3])
    assert sorted((tmp_path / "images").iterdir()) == files


def test_a_failed_run_leaves_no_manifest_and_no_torn_file(tmp_path, monkeypatch):
    shots = plan("study", count=4)

    def broken(shot, size):
        if shot.image_id == shots[2].image_id:
            raise OSError(28, "No space left on device")
        return render(shot, size)

    with monkeypatch.context() as patched:
        patched.setattr(printed_codes, "render", broken)
        with pytest.raises(ConfigurationError, match="No space left on device"):
            write("study", tmp_path, size=32, count=4, workers=1)
    assert not (tmp_path / "manifest.parquet").exists()
    assert len(list((tmp_path / "images").iterdir())) == 2
    write("study", tmp_path, size=32, count=4, workers=1)
    assert len(list((tmp_path / "images").iterdir())) == 4


@pytest.mark.parametrize("changes", [{"size": 64}, {"seed": 1}, {"count": 5}, {"name": "baseline"}])
def test_a_folder_with_another_rendering_is_refused(tmp_path, changes):
    asked = {"name": "study", "output": tmp_path, "size": 32, "count": 4, "workers": 1}
    manifest = write(**asked)
    before = manifest.read_bytes()
    with pytest.raises(ConfigurationError, match=r"another rendering.*give another folder"):
        write(**(asked | changes))
    assert manifest.read_bytes() == before


def test_a_folder_with_other_files_or_a_broken_sidecar_is_refused(tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"precious")
    with pytest.raises(ConfigurationError, match="holds other files; give a new or an empty folder"):
        write("study", tmp_path, size=32, count=1)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]
    (tmp_path / "_rendering.json").write_text("{")
    with pytest.raises(ConfigurationError, match="another rendering"):
        write("study", tmp_path, size=32, count=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "calibratoin"}, "did you mean 'calibration'"),
        ({"name": "x"}, "choose one of sharpness, calibration, study, baseline"),
        ({"size": 31}, "from 32 to 4096"),
        ({"size": 4097}, "from 32 to 4096"),
        ({"size": 64.0}, "whole number of pixels"),
        ({"count": 0}, "1 or more"),
        ({"seed": -1}, "0 or more"),
        ({"workers": 0}, "1 or more"),
    ],
)
def test_bad_arguments_are_one_line_with_a_remedy(tmp_path, changes, message):
    with pytest.raises(ConfigurationError, match=message) as caught:
        write(**({"name": "study", "output": tmp_path / "new", "count": 1} | changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_an_unwritable_output_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="can't be written"):
        write("study", tmp_path / "file" / "below", size=32, count=1)
    with pytest.raises(ConfigurationError, match="can't be written"):
        write("study", tmp_path / "file", size=32, count=1)


def test_the_description_is_that_of_the_code():
    described = yaml.safe_load((REPOSITORY / "manifests" / "datasets" / "printed_codes.yaml").read_text())
    assert {name: entry["count"] for name, entry in described["datasets"].items()} == COUNTS
    assert tuple(described["labels"]) == LABELS
    assert list(described["columns"]) == printed_codes.SCHEMA.names
    assert described["renderer_version"] == printed_codes.RENDERER_VERSION
    assert (described["size"]["minimum"], described["size"]["maximum"]) == (
        printed_codes.MIN_SIZE,
        printed_codes.MAX_SIZE,
    )
    for name, entry in described["datasets"].items():
        shots = plan(name)
        assert entry["image_id"] in {shot.image_id for shot in shots}
        low, high = entry["true_blur"]
        assert low <= min(shot.true_blur for shot in shots)
        assert max(shot.true_blur for shot in shots) <= high


def test_the_sidecar_says_what_the_folder_holds(tmp_path):
    write("study", tmp_path, size=32, count=1)
    described = json.loads((tmp_path / "_rendering.json").read_text())
    assert described == {"dataset": "study", "count": 1, "size": 32, "seed": 0, "renderer_version": 1}

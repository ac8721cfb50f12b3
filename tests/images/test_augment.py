"""Crop, rotation and blur series: sizes, geometry, and that nothing but the named thing changes."""

import io
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qualitygate.images import augment, camera, montage
from qualitygate.images.augment import UInt8
from qualitygate.images.photograph import Photograph
from qualitygate.metrics import focus

INTERPOLATIONS = ("lanczos", "cubic", "linear")


def _noise(height: int, width: int, seed: int = 0) -> UInt8:
    return np.random.default_rng(seed).integers(90, 166, (height, width, 3), dtype=np.uint8)


def _lapm(rgb: UInt8) -> float:
    score = focus.lapm(Photograph(rgb=rgb))
    assert isinstance(score, float)
    return score


def test_crops_follow_the_papers_step_and_start_with_the_photograph() -> None:
    rgb = _noise(1000, 600)
    for series in (augment.crops_from_corner, augment.crops_centred):
        variants = list(series(rgb))
        assert [variant.step for variant in variants] == list(range(10))
        assert [variant.parameter for variant in variants] == pytest.approx([1 - step / 20 for step in range(10)])
        assert [variant.rgb.shape[:2] for variant in variants] == [(1000 - 50 * k, 600 - 30 * k) for k in range(10)]
        np.testing.assert_array_equal(variants[0].rgb, rgb)
        assert all(variant.rgb.flags.c_contiguous and variant.rgb.flags.writeable for variant in variants)
        assert not any(np.shares_memory(variant.rgb, rgb) for variant in variants)
    np.testing.assert_array_equal(list(augment.crops_from_corner(rgb))[9].rgb, rgb[:550, :330])
    np.testing.assert_array_equal(list(augment.crops_centred(rgb))[9].rgb, rgb[225:775, 135:465])


@given(height=st.integers(1, 90), width=st.integers(1, 90))
@settings(max_examples=40, deadline=None)
def test_any_size_has_its_series(height: int, width: int) -> None:
    rgb = _noise(height, width)
    for series in (augment.crops_from_corner, augment.crops_centred):
        sizes = [variant.rgb.shape for variant in series(rgb)]
        assert len(sizes) == augment.CROP_STEPS
        assert all(h >= 1 and w >= 1 and channels == 3 for h, w, channels in sizes)
        assert sizes == sorted(sizes, reverse=True)
    assert all(variant.rgb.shape == rgb.shape for variant in augment.rendered_blur(rgb))
    side = augment.window_side(height, width)
    window = augment.window(rgb)
    turned = [variant.rgb.shape for variant in augment.rotations(rgb)]
    if side:
        assert turned == [(side, side, 3)] * len(augment.ANGLES)
        assert window is not None
        assert window.shape == (side, side, 3)
    else:
        assert min(height, width) < 36
        assert turned == []
        assert window is None


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(("height", "width"), [(200, 200), (201, 260), (333, 200)])
def test_rotations_look_where_they_say(interpolation: augment.Interpolation, height: int, width: int) -> None:
    """A smooth scene that is known everywhere: each pixel of each angle is compared with the scene itself."""

    def scene(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return 128 + 60 * np.sin(0.11 * x + 0.05 * y) + 40 * np.cos(0.07 * y - 0.02 * x)

    rows, columns = np.mgrid[:height, :width].astype(float)
    rgb = np.repeat(np.round(scene(columns, rows)).astype(np.uint8)[..., None], 3, axis=2)
    side = augment.window_side(height, width)
    phase = {"linear": 0.2113}.get(interpolation, 0.25)
    half = (side - 1) / 2
    v, u = np.mgrid[:side, :side] - half
    for variant in augment.rotations(rgb, interpolation):
        angle = math.radians(variant.parameter)
        x = math.cos(angle) * u - math.sin(angle) * v + (width - side) // 2 + half + phase
        y = math.sin(angle) * u + math.cos(angle) * v + (height - side) // 2 + half + phase
        # Rounding of the scene and of the result, and OpenCV's 1/32 of a pixel.
        assert np.abs(variant.rgb[..., 0] - scene(x, y)).max() < 2
        assert x.min() >= 0
        assert x.max() <= width - 1


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_no_pixel_from_the_edge_enters_a_rotation(interpolation: augment.Interpolation) -> None:
    for height, width in ((90, 90), (91, 140), (150, 92)):
        rgb = np.full((height, width, 3), 100, np.uint8)
        rgb[[0, -1]], rgb[:, [0, -1]] = 255, 255
        assert all((variant.rgb == 100).all() for variant in augment.rotations(rgb, interpolation))


@pytest.mark.parametrize(("interpolation", "within"), [("lanczos", 0.03), ("cubic", 0.03), ("linear", 0.06)])
def test_no_rotation_is_spared_the_interpolation(interpolation: augment.Interpolation, within: float) -> None:
    """White noise has no direction: 0 degrees must lose what 15 and 75 degrees lose, and that is a lot."""
    rgb = _noise(420, 420)
    straight, turned, *_, last = (_lapm(variant.rgb) for variant in augment.rotations(rgb, interpolation))
    window = augment.window(rgb)
    assert window is not None
    assert straight == pytest.approx((turned + last) / 2, rel=within)
    assert straight < 0.9 * _lapm(window)


def test_a_panorama_wider_than_opencv_takes_can_be_rotated() -> None:
    assert len(list(augment.rotations(_noise(50, 33_000)))) == len(augment.ANGLES)


def test_blur_spreads_light_by_its_sigma_and_keeps_it() -> None:
    point = np.zeros((61, 61, 3), np.uint8)
    point[30, 30] = 255
    rows, columns = np.mgrid[:61, :61] - 30
    for variant in augment.rendered_blur(point):
        light = camera.linearise(variant.rgb[..., 1], 0.0)
        assert light.sum() == pytest.approx(1, rel=0.05)  # 8 bits a pixel
        variance = float((light * columns**2).sum() / light.sum())
        assert variance == pytest.approx((light * rows**2).sum() / light.sum())
        # The pixels that a small disk is drawn in widen it.
        assert variant.parameter <= math.sqrt(variance) + 0.02
        assert math.sqrt(variance) <= max(variant.parameter * 1.05, variant.parameter + 0.14)
    scene = _noise(80, 120)
    before = camera.linearise(scene, 0.0).mean()
    for variant in augment.rendered_blur(scene):
        assert camera.linearise(variant.rgb, 0.0).mean() == pytest.approx(before, rel=0.01)


def test_sharpness_falls_with_every_step_of_blur() -> None:
    variants = list(augment.rendered_blur(_noise(128, 128)))
    assert [variant.parameter for variant in variants] == list(augment.BLUR_SIGMAS)
    np.testing.assert_array_equal(variants[0].rgb, _noise(128, 128))
    sharpness = [_lapm(variant.rgb) for variant in variants]
    assert sharpness == sorted(sharpness, reverse=True)
    assert len(set(sharpness)) == len(sharpness)


def test_series_are_the_same_every_time() -> None:
    rgb = _noise(70, 90)
    for series in (augment.crops_from_corner, augment.crops_centred, augment.rotations, augment.rendered_blur):
        first, second = list(series(rgb)), list(series(rgb))
        for one, other in zip(first, second, strict=True):
            np.testing.assert_array_equal(one.rgb, other.rgb)
    np.testing.assert_array_equal(rgb, _noise(70, 90))


def test_the_montage_shows_every_step_and_blur_where_there_is_something_to_see() -> None:
    red = np.full((300, 200, 3), (255, 0, 0), np.uint8)
    blank = np.full((400, 400, 3), (200, 220, 240), np.uint8)
    blank[250:300, 20:90] = _noise(50, 70)
    top, left = montage.most_detailed(blank, 132)
    assert top <= 250 <= 300 <= top + 132
    assert left <= 20 <= 90 <= left + 132
    tiles = [montage.Tile(pixels=red[: 300 - 30 * k, : 200 - 20 * k], captions=["a", "b"]) for k in range(3)]
    seen = [montage.Tile(pixels=pixels, captions=["c"]) for pixels in (blank, blank[:40, :30])]
    strips = [
        montage.Strip(title="cropped", notes=["n"], tiles=tiles),
        montage.Strip(title="blurred", notes=[], tiles=seen, detail=True),
        montage.Strip(title="none", notes=[], tiles=[]),
    ]
    sheet = np.asarray(Image.open(io.BytesIO(montage.draw(strips, title="two"))).convert("RGB"))
    # Whole photographs at one scale: the areas are as the photographs' are.
    expected = sum(round(132 * (1 - k / 10)) * round(88 * (1 - k / 10)) for k in range(3))
    assert (sheet == (255, 0, 0)).all(axis=2).sum() == expected
    assert (sheet == (200, 220, 240)).all(axis=2).sum() == 132 * 132 - 50 * 70 + 40 * 30

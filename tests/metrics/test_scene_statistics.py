"""BRISQUE and NIQE against LIVE's definition, written here once more with SciPy in the plainest way."""

import hashlib
import importlib.util
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

from qualitygate.errors import ErrorCode, Failure
from qualitygate.images.photograph import Photograph
from qualitygate.metrics import scene_statistics
from qualitygate.metrics.scene_statistics import brisque, niqe

ALPHA = (200 + np.arange(9801)) / 1000
ONE, TWO, THREE = (scipy.special.gamma(k / ALPHA) for k in (1, 2, 3))
GRID = np.arange(-3, 4)
GAUSSIAN = np.exp(-(GRID[:, None] ** 2 + GRID**2) / (2 * (7 / 6) ** 2))
GAUSSIAN /= GAUSSIAN.sum()


def live_luma(pixels):
    return np.floor(pixels @ np.array([0.2989360212937755, 0.5870430744511212, 0.1140209042551033]) + 0.5)


def by_scipy_ndimage(image, border):
    return scipy.ndimage.correlate(image, GAUSSIAN, mode=border)


def by_scipy_signal(image, border):
    padded = np.pad(image, 3, mode={"constant": "constant", "nearest": "edge"}[border])
    return scipy.signal.convolve2d(padded, GAUSSIAN, mode="valid")


def coefficients(image, border, smooth):
    mean = smooth(image, border)
    square = smooth(image * image, border)
    return (image - mean) / (np.sqrt(np.abs(square - mean * mean)) + 1)


def asymmetric(values):
    with np.errstate(all="ignore"):
        left = np.sqrt(np.mean(values[values < 0] ** 2)) if (values < 0).any() else np.nan
        right = np.sqrt(np.mean(values[values > 0] ** 2)) if (values > 0).any() else np.nan
        ratio = left / right
        target = np.mean(np.abs(values)) ** 2 / np.mean(values**2)
        target *= (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    return np.argmin((TWO**2 / (ONE * THREE) - target) ** 2), left, right


def cubic(x):
    x = abs(x)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x <= 2 else 0.0


def halved(image):
    """MATLAB's imresize(image, 0.5) as a matrix product along each side."""

    def matrix(size):
        result = np.zeros(((size + 1) // 2, size))
        for row in range(len(result)):
            taps = range(2 * row - 4, 2 * row + 6)
            weights = [cubic((2 * row + 0.5 - tap) / 2) for tap in taps]
            for tap, weight in zip(taps, weights, strict=True):
                folded = tap % (2 * size)
                result[row, min(folded, 2 * size - 1 - folded)] += weight / sum(weights)
        return result

    return matrix(image.shape[0]) @ image @ matrix(image.shape[1]).T


def reference_brisque(pixels, smooth=by_scipy_ndimage):
    image, features = live_luma(pixels), []
    for _ in range(2):
        values = coefficients(image, "constant", smooth)
        ratio = np.mean(values**2) / np.mean(np.abs(values)) ** 2
        features += [ALPHA[np.argmin(np.abs(ratio - ONE * THREE / TWO**2))], np.mean(values**2)]
        for shift in ((0, 1), (1, 0), (1, 1), (-1, 1)):
            index, left, right = asymmetric(values * np.roll(values, shift, axis=(0, 1)))
            mean = (right - left) * TWO[index] / ONE[index] * np.sqrt(ONE[index] / THREE[index])
            features += [ALPHA[index], mean, left**2, right**2]
        image = halved(image)
    machine = scene_statistics.arrays("live_brisque.json")
    low, high = machine["feature_ranges"].T
    scaled = 2 * (np.array(features) - low) / (high - low) - 1
    kernel = np.exp(-0.05 * ((machine["support_vectors"] - scaled) ** 2).sum(axis=1))
    return kernel @ machine["coefficients"] + 153.591


def reference_niqe(pixels, smooth=by_scipy_ndimage):
    height, width = (side // 96 * 96 for side in pixels.shape[:2])
    image, scales = live_luma(pixels)[:height, :width], []
    for side in (96, 48):
        values, rows = coefficients(image, "nearest", smooth), []
        for top in range(0, image.shape[0], side):
            for left in range(0, image.shape[1], side):
                block = values[top : top + side, left : left + side]
                index, below, above = asymmetric(block)
                scale = np.sqrt(ONE[index] / THREE[index])
                row = [ALPHA[index], (below + above) * scale / 2]
                for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
                    index, below, above = asymmetric(block * np.roll(block, shift, axis=(0, 1)))
                    scale = np.sqrt(ONE[index] / THREE[index])
                    mean = (above - below) * scale * TWO[index] / ONE[index]
                    row += [ALPHA[index], mean, below * scale, above * scale]
                rows.append(row)
        scales.append(np.array(rows))
        image = halved(image)
    features = np.concatenate(scales, axis=1)
    model = scene_statistics.arrays("live_niqe.json")
    whole = features[~np.isnan(features).any(axis=1)]
    covariance = np.cov(whole, rowvar=False) if len(whole) > 1 else np.zeros((36, 36))
    difference = model["mean"] - np.nanmean(features, axis=0)
    return np.sqrt(difference @ np.linalg.pinv((model["covariance"] + covariance) / 2) @ difference)


def test_published_values_of_a_public_photograph(clean):
    photograph = Photograph(clean["astronaut"])
    assert brisque(photograph) == pytest.approx(2.879, abs=0.0005)
    assert niqe(photograph) == pytest.approx(3.067, abs=0.0005)


def test_clean_photographs_follow_the_definition(clean):
    for name, pixels in clean.items():
        photograph = Photograph(pixels)
        assert brisque(photograph) == pytest.approx(reference_brisque(pixels), abs=1e-4), name
        assert niqe(photograph) == pytest.approx(reference_niqe(pixels), abs=1e-3), name


def test_photographs_with_flat_parts_follow_the_definition(with_flat_parts):
    for name, pixels in with_flat_parts.items():
        photograph = Photograph(pixels)
        assert brisque(photograph) == pytest.approx(reference_brisque(pixels), abs=0.01), name
        assert niqe(photograph) == pytest.approx(reference_niqe(pixels), abs=0.01), name


@pytest.mark.parametrize(("gain", "offset"), [(2, 0), (3, -100), (1, -80)])
@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea"])
def test_saturated_photographs_follow_a_two_dimensional_convolution(clean, name, gain, offset):
    # Elsewhere the sign of rounding noise decides, by up to 3 points of BRISQUE; see docs/metrics.md.
    pixels = np.clip(clean[name].astype(float) * gain + offset, 0, 255).astype(np.uint8)
    assert brisque(Photograph(pixels)) == pytest.approx(reference_brisque(pixels, by_scipy_signal), abs=0.3)
    assert niqe(Photograph(pixels)) == pytest.approx(reference_niqe(pixels, by_scipy_signal), abs=0.3)


@settings(max_examples=60, deadline=None)
@given(height=st.integers(16, 140), width=st.integers(16, 140), seed=st.integers(0, 2**32 - 1))
def test_any_size_follows_the_definition(height, width, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    assert brisque(Photograph(pixels)) == pytest.approx(reference_brisque(pixels), abs=1e-5)
    if min(height, width) >= 96:
        assert niqe(Photograph(pixels)) == pytest.approx(reference_niqe(pixels), rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
def test_the_half_size_image_is_exact(height, width, seed):
    luma = np.random.default_rng(seed).integers(0, 256, (height + 3, width + 2), dtype=np.uint8)
    found = scene_statistics.halved(luma, height, width) / 65536
    np.testing.assert_allclose(found, halved(luma[:height, :width].astype(float)), rtol=0, atol=1e-11)


def test_luma_is_rounded_as_matlab_rounds():
    pixels = np.random.default_rng(3).integers(0, 256, (1000, 1000, 3), dtype=np.uint8)
    pixels[:3, :256] = np.arange(256, dtype=np.uint8)[:, None]
    found = scene_statistics.live_luma(Photograph(pixels))
    np.testing.assert_array_equal(found, live_luma(pixels))
    np.testing.assert_array_equal(found[0, :256], np.arange(256))


def test_the_nearest_entry_is_the_first_that_an_exhaustive_search_finds():
    table = scene_statistics.shapes().asymmetric
    middles = (table[:-1] + table[1:]) / 2
    values = np.concatenate([np.linspace(-0.5, 2, 5001), table, middles, np.nextafter(middles, 2), [np.nan]])
    found = scene_statistics.nearest(table, values, np.square)
    expected = [np.argmin((table - value) ** 2) for value in values]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("sigma", [1, 2, 4])
def test_blur_worsens_both(clean, sigma):
    for name in ("astronaut", "coffee", "chelsea"):
        sharp = Photograph(clean[name])
        blurred = Photograph(cv2.GaussianBlur(clean[name], (0, 0), sigma))
        assert brisque(blurred) > brisque(sharp)
        assert niqe(blurred) > niqe(sharp)


EXPECTED_FAILURES = {
    "1x1": (ErrorCode.TOO_SMALL, ErrorCode.TOO_SMALL),
    "7x7": (ErrorCode.TOO_SMALL, ErrorCode.TOO_SMALL),
    "16x16": (None, ErrorCode.TOO_SMALL),
    "95x200": (None, ErrorCode.TOO_SMALL),
    "96x96": (None, None),
    "3000x1": (ErrorCode.TOO_SMALL, ErrorCode.TOO_SMALL),
    "3000x100": (None, None),
    "zero": (ErrorCode.FLAT, ErrorCode.FLAT),
    "constant": (ErrorCode.FLAT, ErrorCode.FLAT),
    "white": (ErrorCode.FLAT, ErrorCode.FLAT),
    "constant luma": (ErrorCode.FLAT, ErrorCode.FLAT),
    "one bright pixel": (None, None),
    "mostly saturated": (None, None),
    "grey": (None, None),
}


@pytest.mark.parametrize("name", EXPECTED_FAILURES)
def test_what_cannot_be_scored_says_why(edges, name):
    for measure, code in zip((brisque, niqe), EXPECTED_FAILURES[name], strict=True):
        score = measure(edges[name])
        if code is None:
            assert isinstance(score, float)
            assert math.isfinite(score)
        else:
            assert isinstance(score, Failure)
            assert score.code is code
            assert score.message


def test_a_single_block_has_no_covariance_of_its_own(edges):
    # As MATLAB's nancov of one row: zeros, so the pristine covariance alone remains.
    features = scene_statistics.niqe_features(scene_statistics.shared_luma(edges["96x96"]))
    model = scene_statistics.arrays("live_niqe.json")
    difference = model["mean"] - features[0]
    expected = math.sqrt(difference @ np.linalg.pinv(model["covariance"] / 2) @ difference)
    assert niqe(edges["96x96"]) == pytest.approx(expected, rel=1e-9)


def test_what_is_beyond_whole_blocks_has_no_say_in_niqe(clean):
    pixels = clean["coffee"]
    assert niqe(Photograph(pixels)) == niqe(Photograph(np.ascontiguousarray(pixels[:384, :576])))


def test_scoring_one_metric_first_changes_nothing_for_the_other(clean):
    alone = brisque(Photograph(clean["coffee"])), niqe(Photograph(clean["coffee"]))
    together = Photograph(clean["coffee"])
    assert (brisque(together), niqe(together)) == alone
    swapped = Photograph(clean["coffee"])
    assert (niqe(swapped), brisque(swapped)) == alone[::-1]


# ---- parameters ------------------------------------------------------------------------------------------

SCRIPT = Path(__file__).parents[2] / "scripts" / "derive_live_parameters.py"


@pytest.fixture(scope="module")
def derivation():
    spec = importlib.util.spec_from_file_location("derive_live_parameters", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_shipped_parameters_are_those_that_were_derived():
    # The digests that scripts/derive_live_parameters.py prints; run it with --check to derive them again.
    digests = {
        "live_brisque.json": "6b4bac19470289ae0d57d9125cc15fc030beac0b7d39e250f28c0364f08499a7",
        "live_niqe.json": "4204987dc415a5c9522b256f730ba5365af691f9e5ce7f2b76a8c23f784f7dcb",
    }
    for name, digest in digests.items():
        data, found = scene_statistics.parameters(name)
        assert found == digest == hashlib.sha256(data).hexdigest()
    machine = scene_statistics.arrays("live_brisque.json")
    assert machine["support_vectors"].shape == (774, 36)
    assert (float(machine["rho"]), float(machine["gamma"])) == (-153.591, 0.05)
    covariance = scene_statistics.arrays("live_niqe.json")["covariance"]
    assert (covariance == covariance.T).all()


def test_the_notice_is_beside_the_parameters():
    folder = Path(scene_statistics.__file__).parent / "parameters"
    notice = (folder / "NOTICE.txt").read_text()
    assert notice.count("Copyright (c) 2011 The University of Texas at Austin") == 2


def test_the_script_reads_a_machine_as_text_and_writes_numbers_that_come_back(derivation, monkeypatch):
    lines = ["svm_type epsilon_svr", "kernel_type rbf", "gamma 0.05", "total_sv 774", "rho -153.591", "SV"]
    model = "\n".join([*lines, "-1024 1:-0.596978 36:0.1", "1024 2:1e-05", ""]).encode()
    table = [[-1, 1]] + [[index / 7, index + 1] for index in range(36)]
    source = f"raise SystemExit('never run')\nranges = {table}\n".encode()
    members = {"brisque/allmodel": model, "brisque/brisque.py": source}
    monkeypatch.setattr(derivation, "member", lambda archive, suffix: members[suffix])
    found = derivation.brisque_parameters(b"")
    assert found["coefficients"] == [-1024.0, 1024.0]
    assert [(row[0], row[1], row[35]) for row in found["support_vectors"]] == [
        (-0.596978, 0, 0.1),
        (0, 1e-05, 0),
    ]
    assert found["feature_ranges"] == table[1:]
    assert derivation.json.loads(derivation.serialised(found)) == found


def test_the_script_refuses_an_archive_of_another_digest(derivation):
    with pytest.raises(SystemExit, match="sha256"):
        derivation.verified("basicsr-1.4.2.tar.gz", b"something else")

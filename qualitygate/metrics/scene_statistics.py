"""BRISQUE and NIQE as LIVE's MATLAB releases compute them, in float64.

Both describe a photograph by how its locally normalised luma is distributed: that of sharp, clean
photographs of natural scenes is close to a Gaussian, and blur, noise and compression bend it in ways that
were learnt (BRISQUE: from people's ratings; NIQE: from undistorted photographs alone). docs/metrics.md has
sources and departures.
"""

import functools
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

from qualitygate.errors import ErrorCode, Failure
from qualitygate.images.photograph import Photograph
from qualitygate.metrics.loading import on_either, one_by_one
from qualitygate.metrics.metric import Device, Metric, Score, Scorer

Floats = npt.NDArray[np.float64]

BRISQUE_SMALLEST = 8  # pixels on a side: below, the half-size image is smaller than the Gaussian's reach
NIQE_BLOCK = 96
STRIP = 32  # rows of BRISQUE in work at a time: what they need stays in a core's cache

# x - mu of a window that is exactly flat is 0, and in implementations a rounding error whose sign decides
# how its products are counted. This much of x is added, so that the sign is the same everywhere;
# docs/metrics.md has why.
FLAT_BIAS = 2.0**-40


@functools.cache
def parameters(name: str) -> tuple[bytes, str]:
    """A shipped parameter file and its sha256."""
    data = resources.files("qualitygate.metrics").joinpath("parameters", name).read_bytes()
    return data, hashlib.sha256(data).hexdigest()


@functools.cache
def arrays(name: str) -> dict[str, Floats]:
    """The numbers of a shipped parameter file as read-only float64 arrays."""
    loaded = {key: np.array(value, np.float64) for key, value in json.loads(parameters(name)[0]).items()}
    for array in loaded.values():
        array.flags.writeable = False
    return loaded


def _missing(name: str) -> str | None:
    if resources.files("qualitygate.metrics").joinpath("parameters", name).is_file():
        return None
    return f"the parameters {name} are missing from this installation; run scripts/derive_live_parameters.py"


# ---- what both share -------------------------------------------------------------------------------------


def live_luma(photograph: Photograph) -> npt.NDArray[np.uint8]:
    """Luma as the LIVE releases see it: MATLAB's rgb2gray, rounded to whole grey levels; (H, W) uint8."""
    from qualitygate.metrics import scene_kernels

    luma = np.empty(photograph.rgb.shape[:2], np.uint8)
    scene_kernels.live_luma(np.ascontiguousarray(photograph.rgb), luma)
    return luma


def shared_luma(photograph: Photograph) -> npt.NDArray[np.uint8]:
    """`live_luma`, once a photograph for BRISQUE and NIQE together."""
    return photograph.once("live_luma", live_luma)


def is_constant(photograph: Photograph) -> bool:
    """Whether all pixels have the same rounded luma."""
    luma = shared_luma(photograph)
    return bool(luma.min() == luma.max())


def halved(luma: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.int32]:
    """65536 times MATLAB's imresize(luma[:height, :width], 0.5), exactly: (ceil(H/2), ceil(W/2)) int32."""
    from qualitygate.metrics import scene_kernels

    rows = np.mod(2 * np.arange((height + 1) // 2)[:, None] + np.arange(-3, 5), 2 * height)
    rows = np.where(rows < height, rows, 2 * height - 1 - rows)
    half = np.empty(((height + 1) // 2, (width + 1) // 2), np.int32)
    scene_kernels.halve(luma, rows, width, half)
    return half


def window() -> Floats:
    """Half of the 1-D factor of fspecial('gaussian', 7, 7/6), centre first."""
    half = np.array([math.exp(-k * k / (2 * (7 / 6) ** 2)) for k in range(4)])
    return half / (half[0] + 2 * (half[1] + half[2] + half[3]))


@dataclass(frozen=True, slots=True)
class Shapes:
    """The table by which LIVE fits shapes: alpha from .2 to 10 in steps of .001, and functions of alpha."""

    alpha: Floats
    generalised: Floats  # E[x^2] / E[|x|]^2 of a generalised Gaussian: falls with alpha
    asymmetric: Floats  # its reciprocal: rises with alpha
    beta: Floats  # sqrt(gamma(1/alpha) / gamma(3/alpha)): deviation to scale
    mean: Floats  # gamma(2/alpha) / gamma(1/alpha)


@functools.cache
def shapes() -> Shapes:
    """The one table, computed in a few milliseconds."""
    alpha = (200 + np.arange(9801)) / 1000
    one, two, three = (np.array([math.lgamma(k / a) for a in alpha.tolist()]) for k in (1, 2, 3))
    return Shapes(
        alpha=alpha,
        generalised=np.exp(one + three - 2 * two),
        asymmetric=np.exp(2 * two - one - three),
        beta=np.exp((one - three) / 2),
        mean=np.exp(two - one),
    )


def nearest(rising: Floats, values: Floats, distance: Callable[[Floats], Floats]) -> npt.NDArray[np.intp]:
    """Index of the entry nearest to each value in a rising table: the first of equals, 0 for NaN."""
    right = np.clip(np.searchsorted(rising, values), 1, len(rising) - 1)
    left = right - 1
    index = np.where(distance(values - rising[left]) <= distance(values - rising[right]), left, right)
    return np.where(np.isnan(values), 0, index)


def fit_asymmetric(sums: Floats, count: int) -> tuple[npt.NDArray[np.intp], Floats, Floats]:
    """Asymmetric generalised Gaussian by moments: index of alpha, deviation left and right of 0.

    Mittal 2012, section III-A, after Lasmar 2009. sums (..., 5): sum |p|, sum p^2, sum p^2 where p < 0,
    count p < 0, count p > 0. A side without any value gives NaN, as MATLAB's mean of nothing does.
    """
    magnitude, square, left_square, left_count, right_count = np.moveaxis(sums, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        left = np.sqrt(left_square / left_count)
        right = np.sqrt(np.maximum(square - left_square, 0) / right_count)
        ratio = left / right
        asymmetry = (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
        target = (magnitude / count) ** 2 / (square / count) * asymmetry
    return nearest(shapes().asymmetric, target, np.square), left, right


# ---- BRISQUE ---------------------------------------------------------------------------------------------


def brisque_sums(plane: npt.NDArray[Any], unit: float) -> Floats:
    """Moments of the coefficients of `plane * unit` and of four neighbour products: (5, 5).

    Borders are zero, as filter2's 'same'; neighbours wrap around the image, as circshift does. Rows are
    visited from the second to the last and then the first, so that the row above is always at hand in a
    strip.
    """
    from qualitygate.metrics import scene_kernels as kernels

    height, width = plane.shape
    gaussian = window()
    padded = np.zeros((min(STRIP, height) + 6, width + 6))
    ringed = np.empty((min(STRIP, height) + 1, width + 2))
    lanes = np.zeros(kernels.SERIES * kernels.MOMENTS * kernels.TILE)
    first = np.empty(0)
    for top in range(0, height, STRIP):
        rows = min(STRIP, height - top)
        begin, end = max(top - 3, 0), min(top + rows + 3, height)
        offset = begin - (top - 3)
        padded[:offset] = 0
        np.multiply(plane[begin:end], unit, out=padded[offset : offset + end - begin, 3:-3])
        padded[offset + end - begin :] = 0
        kernels.normalise(padded[: rows + 6], gaussian, FLAT_BIAS, ringed[1 : rows + 1, 1:-1])
        ringed[1 : rows + 1, 0] = ringed[1 : rows + 1, -2]
        ringed[1 : rows + 1, -1] = ringed[1 : rows + 1, 1]
        if top == 0:
            first = ringed[1].copy()
            kernels.tally(ringed, 2, rows + 1, lanes)
        else:
            kernels.tally(ringed, 1, rows + 1, lanes)
        ringed[0] = ringed[rows]
    ringed[1] = first
    kernels.tally(ringed, 1, 2, lanes)
    sums = np.empty(kernels.SERIES * kernels.MOMENTS)
    kernels.total(lanes, sums)
    return sums.reshape(kernels.SERIES, kernels.MOMENTS)


def brisque_features(luma: npt.NDArray[np.uint8]) -> Floats:
    """The 36 features of Mittal 2012, table I; not finite where the photograph has too little structure."""
    table = shapes()
    features: list[float] = []
    for plane, unit in ((luma, 1.0), (halved(luma, *luma.shape), 1 / 65536)):
        sums = brisque_sums(plane, unit)
        count = plane.size
        with np.errstate(divide="ignore", invalid="ignore"):
            variance = sums[0, 1] / count
            ratio = variance / np.square(sums[0, 0] / count)
        # This table falls, so it is searched from its end.
        index = len(table.alpha) - 1 - int(nearest(table.generalised[::-1], np.array([ratio]), np.abs)[0])
        features += [float(table.alpha[index]), float(variance)]
        indices, left, right = fit_asymmetric(sums[1:], count)
        mean = (right - left) * table.mean[indices] * table.beta[indices]
        features += np.stack([table.alpha[indices], mean, left**2, right**2], axis=-1).ravel().tolist()
    return np.array(features)


def brisque_score(features: Floats) -> float:
    """LIVE's support vector regression on features scaled to [-1, 1] (not clipped, as svm-scale)."""
    machine = arrays("live_brisque.json")
    low, high = machine["feature_ranges"].T
    scaled = -1 + 2 * (features - low) / (high - low)
    distances = np.square(machine["support_vectors"] - scaled).sum(axis=1)
    return float((np.exp(-machine["gamma"] * distances) * machine["coefficients"]).sum() - machine["rho"])


BRISQUE_FLAT = "the luma is constant, and BRISQUE describes its variation"


def too_small_for_brisque(photograph: Photograph) -> Failure | None:
    """Why the photograph's size has no BRISQUE, if so."""
    smallest = min(photograph.height, photograph.width)
    if smallest < BRISQUE_SMALLEST:
        return Failure(ErrorCode.TOO_SMALL, f"{smallest} px on a side; BRISQUE needs {BRISQUE_SMALLEST} or more")
    return None


def brisque(photograph: Photograph) -> Score:
    """BRISQUE of one photograph, about 0 to 100 (it can be negative); lower is better."""
    if failure := too_small_for_brisque(photograph):
        return failure
    if is_constant(photograph):
        return Failure(ErrorCode.FLAT, BRISQUE_FLAT)
    return finite(brisque_score(brisque_features(shared_luma(photograph))), "BRISQUE")


# ---- NIQE ------------------------------------------------------------------------------------------------


def niqe_features(luma: npt.NDArray[np.uint8]) -> Floats:
    """18 features of each block at two scales: (blocks, 36), NaN where a block lacks structure.

    luma (H, W), both at least 96; what is beyond whole blocks of 96 is left out at the right and the bottom.
    """
    from qualitygate.metrics import scene_kernels as kernels

    down, across = luma.shape[0] // NIQE_BLOCK, luma.shape[1] // NIQE_BLOCK
    cropped = luma[: down * NIQE_BLOCK, : across * NIQE_BLOCK]
    gaussian = window()
    scales = []
    planes: tuple[tuple[npt.NDArray[Any], float, int], ...] = (
        (cropped, 1.0, NIQE_BLOCK),
        (halved(luma, *cropped.shape), 1 / 65536, NIQE_BLOCK // 2),
    )
    for plane, unit, side in planes:
        height, width = plane.shape
        padded = np.empty((side + 6, width + 6))
        band = np.empty((side, width))
        sums = np.empty((down, across, kernels.SERIES * kernels.MOMENTS))
        for row in range(down):
            source = np.clip(np.arange(row * side - 3, row * side + side + 3), 0, height - 1)
            np.multiply(plane[source], unit, out=padded[:, 3:-3])
            padded[:, :3] = padded[:, 3:4]
            padded[:, -3:] = padded[:, -4:-3]
            kernels.normalise(padded, gaussian, FLAT_BIAS, band)
            kernels.tally_blocks(band, side, sums[row])
        scales.append(_block_features(sums.reshape(-1, kernels.SERIES, kernels.MOMENTS), side * side))
    return np.concatenate(scales, axis=1)


def _block_features(sums: Floats, count: int) -> Floats:
    """sums (blocks, 5, 5) -> (blocks, 18)."""
    table = shapes()
    index, left, right = fit_asymmetric(sums, count)
    alpha, beta_left, beta_right = table.alpha[index], left * table.beta[index], right * table.beta[index]
    mean = (beta_right - beta_left) * table.mean[index]
    own = np.stack([alpha[:, 0], (beta_left[:, 0] + beta_right[:, 0]) / 2], axis=-1)
    products = np.stack([alpha[:, 1:], mean[:, 1:], beta_left[:, 1:], beta_right[:, 1:]], axis=-1)
    return np.concatenate([own, products.reshape(len(sums), 16)], axis=1)


def niqe_score(features: Floats) -> float:
    """Distance of the blocks' Gaussian from the pristine one (Mittal 2013, eq. 10); NaN if it is undefined.

    features (blocks, 36). The covariance of a single block is zero, as MATLAB's nancov has it.
    """
    model = arrays("live_niqe.json")
    present = ~np.isnan(features)
    whole = features[present.all(axis=1)]
    if not len(whole):
        return math.nan
    mean = np.where(present, features, 0).sum(axis=0) / present.sum(axis=0)
    deviations = whole - whole.mean(axis=0)
    covariance = deviations.T @ deviations / max(len(whole) - 1, 1)
    inverse = np.linalg.pinv((model["covariance"] + covariance) / 2, rcond=36 * np.finfo(np.float64).eps)
    difference = model["mean"] - mean
    return math.sqrt(max(float(difference @ inverse @ difference), 0.0))


NIQE_FLAT = "no block of 96 x 96 has enough structure to describe"


def too_small_for_niqe(photograph: Photograph) -> Failure | None:
    """Why the photograph's size has no NIQE, if so."""
    smallest = min(photograph.height, photograph.width)
    if smallest < NIQE_BLOCK:
        message = f"{smallest} px on a side; NIQE needs blocks of {NIQE_BLOCK} x {NIQE_BLOCK}"
        return Failure(ErrorCode.TOO_SMALL, message)
    return None


def niqe(photograph: Photograph) -> Score:
    """NIQE of one photograph, 0 upwards, 2 to 20 for most; lower is better."""
    if failure := too_small_for_niqe(photograph):
        return failure
    features = niqe_features(shared_luma(photograph))
    if np.isnan(features).any(axis=1).all():
        return Failure(ErrorCode.FLAT, NIQE_FLAT)
    try:
        return finite(niqe_score(features), "NIQE")
    except np.linalg.LinAlgError as error:
        return Failure(ErrorCode.NON_FINITE, f"NIQE's covariance can't be inverted: {error}")


# ---- the two metrics -------------------------------------------------------------------------------------


def finite(score: float, name: str) -> Score:
    """The score, or that it is undefined."""
    if math.isfinite(score):
        return score
    return Failure(ErrorCode.NON_FINITE, f"{name} is undefined: the luma varies in too few places")


def _loader(score: Callable[[Photograph], Score], name: str, parameters: str) -> Callable[[Device], Scorer]:
    def prepare() -> None:
        arrays(parameters)
        shapes()

    on_cpu = one_by_one(score, "qualitygate.metrics.scene_kernels", prepare=prepare)
    return on_either(on_cpu, name, "qualitygate.metrics.scene_tensors")


LIVE = "LIVE (University of Texas at Austin): free use with its notice kept and the paper cited"

BRISQUE = Metric(
    name="brisque",
    version=1,
    higher_is_better=False,
    range=(None, None),
    unit="predicted difference mean opinion score",
    reference="Mittal, Moorthy, Bovik 2012, IEEE TIP 21(12); LIVE release 2011 (MATLAB), in float64",
    code_license="Apache-2.0",
    weights_license=LIVE,
    device="cpu",
    parameters_sha256=lambda: parameters("live_brisque.json")[1],
    unavailable=lambda: _missing("live_brisque.json"),
    load=_loader(brisque, "brisque", "live_brisque.json"),
    batched=True,
)

NIQE = Metric(
    name="niqe",
    version=1,
    higher_is_better=False,
    range=(0.0, None),
    unit="distance from the pristine model",
    reference="Mittal, Soundararajan, Bovik 2013, IEEE SPL 20(3); LIVE release 2012 (MATLAB), in float64",
    code_license="Apache-2.0",
    weights_license=LIVE,
    device="cpu",
    parameters_sha256=lambda: parameters("live_niqe.json")[1],
    unavailable=lambda: _missing("live_niqe.json"),
    load=_loader(niqe, "niqe", "live_niqe.json"),
    batched=True,
)

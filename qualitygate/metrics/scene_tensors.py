"""BRISQUE and NIQE on tensors, for GPUs: what scene_statistics.py computes, for several photographs of one size.

In float64 like the compiled kernels, whose sums differ in their order alone. Everything from pixels to scores stays
on the device; nothing waits for the host. Everything here needs torch.

Suffixes: B photographs of one size, N blocks of each, H and W pixels, F = 36 features, S series of coefficients:
themselves and their products with four neighbours.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from qualitygate.errors import ErrorCode, Failure
from qualitygate.images.photograph import Photograph
from qualitygate.metrics import scene_statistics as scene
from qualitygate.metrics.metric import Device, Score, Scorer
from qualitygate.metrics.tensors import BatchScorer, Numbers, leading, reflected

# MATLAB's rgb2gray: the first row of the inverse of its YIQ matrix, as the LIVE releases call it.
RED, GREEN, BLUE = 0.2989360212937755, 0.5870430744511212, 0.1140209042551033
HALVING = (-3, -9, 29, 111, 111, 29, -9, -3)  # 256 times MATLAB's antialiased bicubic kernel at half size
RADIUS = 3  # of the 7 x 7 Gaussian window


def live_luma(rgb_BHWC: torch.Tensor) -> torch.Tensor:
    """Luma as the LIVE releases see it, rounded half up to whole grey levels: (B, H, W) int32."""
    red, green, blue = (rgb_BHWC[..., channel].double() for channel in range(3))
    return (RED * red + GREEN * green + BLUE * blue + 0.5).int()


def halved(luma_BHW: torch.Tensor) -> torch.Tensor:
    """65536 times MATLAB's imresize(luma, 0.5), exactly: (B, ceil(H/2), ceil(W/2)) int32."""
    for dim in (1, 2):
        size = luma_BHW.shape[dim]
        total = torch.zeros((), dtype=torch.int32, device=luma_BHW.device)
        for tap, weight in enumerate(HALVING):
            taken = reflected(tap - 3, tap - 3 + 2 * ((size + 1) // 2), 2, size, luma_BHW.device)
            total = total + weight * luma_BHW.index_select(dim, taken)
        luma_BHW = total
    return luma_BHW


def _smoothed(x: torch.Tensor, dim: int, window: list[float]) -> torch.Tensor:
    """x under the 1-D Gaussian along `dim`, whose border of 3 on either side falls away."""
    count = x.shape[dim] - 2 * RADIUS
    total = window[0] * x.narrow(dim, RADIUS, count)
    for reach in range(1, RADIUS + 1):
        pair = x.narrow(dim, RADIUS - reach, count) + x.narrow(dim, RADIUS + reach, count)
        total = total + window[reach] * pair
    return total


def normalised(padded_BHW: torch.Tensor, window: list[float]) -> torch.Tensor:
    """Mean-subtracted contrast-normalised coefficients, (x - mu) / (sigma + 1): Mittal 2012, eq. 1.

    padded_BHW: float64, with a border of 3 pixels, which the result (B, H - 6, W - 6) lacks.
    """
    mu = _smoothed(_smoothed(padded_BHW, 1, window), 2, window)
    square = _smoothed(_smoothed(padded_BHW * padded_BHW, 1, window), 2, window)
    inside = padded_BHW[:, RADIUS:-RADIUS, RADIUS:-RADIUS]
    return (inside - mu + inside * scene.FLAT_BIAS) / ((square - mu * mu).abs().sqrt() + 1)


def moments(x: torch.Tensor) -> torch.Tensor:
    """Of coefficients (..., H, W) and their products with four neighbours, which wrap around: (..., S, 5).

    Sum |p|, sum p^2, sum p^2 where p < 0, count p < 0, count p > 0. The neighbours are the left, the upper, the upper
    left and the upper right one.
    """
    series = [x]
    for down, across in ((0, 1), (1, 0), (1, 1), (1, -1)):
        series.append(x * x.roll((down, across), (-2, -1)))
    return torch.stack([_moments(values) for values in series], dim=-2)


def _moments(values: torch.Tensor) -> torch.Tensor:
    negative = values.clamp(max=0)
    dims = (-2, -1)
    return torch.stack(
        [
            values.abs().sum(dims),
            (values * values).sum(dims),
            (negative * negative).sum(dims),
            (values < 0).sum(dims, dtype=torch.int64).double(),
            (values > 0).sum(dims, dtype=torch.int64).double(),
        ],
        dim=-1,
    )


class Tables:
    """The shapes' table and the two models as tensors on a device."""

    def __init__(self, device: torch.device | str) -> None:
        def tensor(values: npt.NDArray[np.float64]) -> torch.Tensor:
            return torch.tensor(np.ascontiguousarray(values), dtype=torch.float64, device=device)

        shapes = scene.shapes()
        self.alpha, self.beta, self.mean = tensor(shapes.alpha), tensor(shapes.beta), tensor(shapes.mean)
        self.asymmetric, self.generalised = tensor(shapes.asymmetric), tensor(shapes.generalised[::-1])
        self.window = scene.window().tolist()
        machine = scene.arrays("live_brisque.json")
        self.low, self.high = (tensor(column) for column in machine["feature_ranges"].T)
        self.vectors, self.coefficients = tensor(machine["support_vectors"]), tensor(machine["coefficients"])
        self.gamma, self.rho = float(machine["gamma"]), float(machine["rho"])
        model = scene.arrays("live_niqe.json")
        self.pristine_mean, self.pristine_covariance = tensor(model["mean"]), tensor(model["covariance"])


def _nearest(rising: torch.Tensor, values: torch.Tensor, *, squared: bool) -> torch.Tensor:
    """Index of the entry nearest to each value in a rising table: the first of equals, 0 for NaN."""
    right = torch.searchsorted(rising, values.contiguous()).clamp(1, len(rising) - 1)
    left = right - 1
    before, after = values - rising[left], values - rising[right]
    closer = before * before <= after * after if squared else before.abs() <= after.abs()
    return torch.where(values.isnan(), 0, torch.where(closer, left, right))


def _fit_asymmetric(sums: torch.Tensor, count: int, tables: Tables) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """scene_statistics.fit_asymmetric on tensors: sums (..., 5) -> index of alpha, deviation left and right of 0."""
    magnitude, square, left_square, left_count, right_count = sums.unbind(-1)
    left = (left_square / left_count).sqrt()
    right = ((square - left_square).clamp(min=0) / right_count).sqrt()
    ratio = left / right
    asymmetry = (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    target = (magnitude / count) ** 2 / (square / count) * asymmetry
    return _nearest(tables.asymmetric, target, squared=True), left, right


# ---- BRISQUE ---------------------------------------------------------------------------------------------


def brisque(rgb_BHWC: torch.Tensor, tables: Tables) -> torch.Tensor:
    """BRISQUE and whether the luma varies at all: (B, 2) float64."""
    luma_BHW = live_luma(rgb_BHWC)
    features = []
    for plane, unit in ((luma_BHW, 1.0), (halved(luma_BHW), 1 / 65536)):
        border = (RADIUS,) * 4
        coefficients = normalised(torch.nn.functional.pad(plane.double() * unit, border), tables.window)
        features.append(_brisque_features(moments(coefficients), plane.shape[1] * plane.shape[2], tables))
    features_BF = torch.cat(features, dim=-1)
    scaled = -1 + 2 * (features_BF - tables.low) / (tables.high - tables.low)
    distances = (tables.vectors - scaled[:, None]).square().sum(dim=-1)
    score_B = ((-tables.gamma * distances).exp() * tables.coefficients).sum(dim=-1) - tables.rho
    varies_B = luma_BHW.amin(dim=(1, 2)) < luma_BHW.amax(dim=(1, 2))
    return torch.stack([score_B, varies_B.double()], dim=1)


def _brisque_features(sums_BS5: torch.Tensor, count: int, tables: Tables) -> torch.Tensor:
    """(B, 18)."""
    variance = sums_BS5[:, 0, 1] / count
    ratio = variance / (sums_BS5[:, 0, 0] / count).square()
    # This table falls, so it is searched from its end.
    index = len(tables.alpha) - 1 - _nearest(tables.generalised, ratio, squared=False)
    own = torch.stack([tables.alpha[index], variance], dim=-1)
    indices, left, right = _fit_asymmetric(sums_BS5[:, 1:], count, tables)
    mean = (right - left) * tables.mean[indices] * tables.beta[indices]
    products = torch.stack([tables.alpha[indices], mean, left.square(), right.square()], dim=-1)
    return torch.cat([own, products.flatten(1)], dim=1)


def _brisque_score(photograph: Photograph, row: Numbers) -> Score:
    score, varies = row.tolist()
    if not varies:
        return Failure(ErrorCode.FLAT, scene.BRISQUE_FLAT)
    return scene.finite(score, "BRISQUE")


# ---- NIQE ------------------------------------------------------------------------------------------------


def niqe(rgb_BHWC: torch.Tensor, tables: Tables) -> torch.Tensor:
    """NIQE and whether any block has enough structure: (B, 2) float64. Both sides have 96 pixels or more."""
    down, across = rgb_BHWC.shape[1] // scene.NIQE_BLOCK, rgb_BHWC.shape[2] // scene.NIQE_BLOCK
    whole_blocks = leading(leading(rgb_BHWC, 1, down * scene.NIQE_BLOCK), 2, across * scene.NIQE_BLOCK)
    luma_BHW = live_luma(whole_blocks)
    features = []
    for plane, unit, side in ((luma_BHW, 1.0, scene.NIQE_BLOCK), (halved(luma_BHW), 1 / 65536, scene.NIQE_BLOCK // 2)):
        border = (RADIUS,) * 4
        padded = torch.nn.functional.pad((plane.double() * unit)[:, None], border, mode="replicate")[:, 0]
        coefficients = normalised(padded, tables.window)
        blocks = coefficients.unflatten(2, (across, side)).unflatten(1, (down, side)).transpose(2, 3)
        features.append(_niqe_features(moments(blocks.flatten(1, 2)), side * side, tables))
    return _niqe_distance(torch.cat(features, dim=-1), tables)


def _niqe_features(sums_BNS5: torch.Tensor, count: int, tables: Tables) -> torch.Tensor:
    """(B, N, 18)."""
    index, left, right = _fit_asymmetric(sums_BNS5, count, tables)
    alpha, beta_left, beta_right = tables.alpha[index], left * tables.beta[index], right * tables.beta[index]
    mean = (beta_right - beta_left) * tables.mean[index]
    own = torch.stack([alpha[..., 0], (beta_left[..., 0] + beta_right[..., 0]) / 2], dim=-1)
    products = torch.stack([alpha[..., 1:], mean[..., 1:], beta_left[..., 1:], beta_right[..., 1:]], dim=-1)
    return torch.cat([own, products.flatten(2)], dim=-1)


def _niqe_distance(features_BNF: torch.Tensor, tables: Tables) -> torch.Tensor:
    """Distance of the blocks' Gaussian from the pristine one (Mittal 2013, eq. 10), and whether there is one: (B, 2).

    The mean of two covariances, of which the pristine one is positive definite, is so too: no pseudo-inverse is
    needed.
    """
    present = ~features_BNF.isnan()
    whole_BN1 = present.all(dim=-1, keepdim=True).double()
    count_B11 = whole_BN1.sum(dim=1, keepdim=True)
    filled = torch.where(present, features_BNF, 0)
    mean_BF = filled.sum(dim=1) / present.sum(dim=1)
    centre = (filled * whole_BN1).sum(dim=1, keepdim=True) / count_B11.clamp(min=1)
    deviations = (filled - centre) * whole_BN1
    covariance = deviations.transpose(1, 2) @ deviations / (count_B11 - 1).clamp(min=1)
    factor, _ = torch.linalg.cholesky_ex((tables.pristine_covariance + covariance) / 2)
    difference = (tables.pristine_mean - mean_BF)[..., None]
    solved = torch.linalg.solve_triangular(factor, difference, upper=False)
    distance_B = solved.square().sum(dim=(1, 2)).sqrt()
    return torch.stack([distance_B, (count_B11[:, 0, 0] > 0).double()], dim=1)


def _niqe_score(photograph: Photograph, row: Numbers) -> Score:
    score, structured = row.tolist()
    if not structured:
        return Failure(ErrorCode.FLAT, scene.NIQE_FLAT)
    return scene.finite(score, "NIQE")


# ---- both ------------------------------------------------------------------------------------------------


def load(name: str, device: Device, *, compiled: bool = False) -> Scorer:
    """The scorer of `brisque` or `niqe` on tensors."""
    tables = Tables(device)
    more: dict[str, Any] = {"name": name, "device": device, "compiled": compiled}
    if name == "brisque":
        return BatchScorer(lambda rgb: brisque(rgb, tables), _brisque_score, scene.too_small_for_brisque, **more)
    return BatchScorer(lambda rgb: niqe(rgb, tables), _niqe_score, scene.too_small_for_niqe, **more)

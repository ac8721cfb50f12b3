"""Focus measures on luma: LAPV, LAPM and WAVS as in Pertuz's fmeasure, and a second reading of two of them.

Luma is .299 R + .587 G + .114 B in grey levels from 0 to 255, not rounded. Higher is sharper for all.
Defined for every size, but for the sample variance, which needs two pixels.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from qualitygate.errors import ErrorCode, Failure
from qualitygate.images.photograph import Photograph
from qualitygate.metrics.loading import on_either, one_by_one
from qualitygate.metrics.metric import Metric, Score

STRIP = 64  # rows (or pairs of them) that the variants hold in float64 at a time
SUMS = "laplacian_sums"  # under which a photograph keeps what LAPV and LAPM share


def laplacian_sums(photograph: Photograph) -> tuple[int, int, int]:
    """Exact sums over the pixels, shared by LAPV and LAPM: 6000 L, (6000 L)^2 and 1000 (|Lx| + |Ly|)."""
    from qualitygate.metrics import focus_kernels as kernels

    tiles = -(-photograph.width // kernels.COLUMNS)
    sums = np.empty((tiles * photograph.height, 3), np.int64)
    kernels.laplacian_sums(np.ascontiguousarray(photograph.rgb), sums)
    # Whole photographs overflow int64, so the rows' sums are added as Python integers.
    first, second, modified = (sum(column) for column in sums.T.tolist())
    return first, second, modified


def lapv(photograph: Photograph) -> Score:
    """Variance of the Laplacian of luma, in squared grey levels, [0, inf); higher is sharper.

    Kernel [1 4 1; 4 -20 4; 1 4 1] / 6, border replicated, N - 1 in the denominator: Pech-Pacheco 2000 in the
    reading of Pertuz 2013 (LAPV). Exact in integers up to one division.
    """
    count = photograph.height * photograph.width
    if count < 2:
        return Failure(ErrorCode.TOO_SMALL, "1 pixel; a sample variance needs 2 or more")
    first, second, _ = photograph.once(SUMS, laplacian_sums)
    return (count * second - first * first) / (6000**2 * count * (count - 1))


def lapm(photograph: Photograph) -> Score:
    """Mean of |Lx| + |Ly| of luma, in grey levels, [0, inf); higher is sharper.

    Lx is [-1 2 -1] along the rows, Ly along the columns, border replicated: Nayar and Nakagawa 1994 in the
    reading of Pertuz 2013 (LAPM). Exact in integers up to one division.
    """
    _, _, modified = photograph.once(SUMS, laplacian_sums)
    return modified / (1000 * photograph.height * photograph.width)


def wavs(photograph: Photograph) -> Score:
    """Mean of |H| + |V| + |D| of luma, in grey levels, [0, inf); higher is sharper.

    H, V and D are the one-level db6 detail bands (symmetric extension), each reconstructed alone at image
    size: Yang and Nelson 2003 in the reading of Pertuz 2013 (WAVS, wrcoef2).
    """
    from qualitygate.metrics import focus_kernels as kernels

    high, back = wavelet_filters()
    total = kernels.wavelet_sum(np.ascontiguousarray(photograph.rgb), high, back)
    return float(total) / (1000 * photograph.height * photograph.width)


def lapv_cv2(photograph: Photograph) -> Score:
    """`cv2.Laplacian(grey, cv2.CV_64F).var()`, in squared grey levels, [0, inf); higher is sharper.

    The usual OpenCV line: grey is cv2.cvtColor's, rounded to whole levels, the kernel [0 1 0; 1 -4 1; 0 1 0],
    the border reflected without its edge, N in the denominator. Not comparable with LAPV.
    """
    import cv2

    grey = cv2.cvtColor(np.ascontiguousarray(photograph.rgb), cv2.COLOR_RGB2GRAY)
    laplacian = cv2.Laplacian(grey, cv2.CV_16S)
    first = second = 0
    for top in range(0, photograph.height, STRIP):
        strip = laplacian[top : top + STRIP].astype(np.int64)
        first += int(strip.sum())
        second += int((strip * strip).sum())
    count = grey.size
    return (count * second - first * first) / (count * count)


def wavs_coef(photograph: Photograph) -> Score:
    """Mean over positions of |cH| + |cV| + |cD| of luma, in grey levels, [0, inf); higher is sharper.

    The raw coefficients of pywt.dwt2(luma, 'db6', 'symmetric'): the literal "sum of the wavelet coefficients"
    of Yang and Nelson 2003, divided by the number of coefficients in a band so that sizes compare.
    """
    import pywt

    height, width = photograph.height, photograph.width
    down, across = (height + 11) // 2, (width + 11) // 2
    total = 0.0
    # A constant has no details: taking one off leaves less to round, and exactly 0 of a constant photograph.
    base = luma_of(photograph.rgb[0, 0])
    for top in range(0, down, STRIP):
        bottom = min(top + STRIP, down)
        rows = np.mod(np.arange(2 * top - 10, 2 * bottom), 2 * height)
        rows = np.where(rows < height, rows, 2 * height - 1 - rows)
        luma = luma_of(photograph.rgb[rows]) - base
        low, high = pywt.dwt(luma, "db6", "symmetric", axis=1)
        # The strip carries its own border: of its coefficients, those that need none beyond it are kept.
        inner = slice(5, -5)
        approximation, detail = pywt.dwt(high, "db6", "zero", axis=0)
        total += float(np.abs(approximation[inner]).sum()) + float(np.abs(detail[inner]).sum())
        total += float(np.abs(pywt.dwt(low, "db6", "zero", axis=0)[1][inner]).sum())
    return total / (down * across)


def luma_of(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Unrounded luma in grey levels: (..., 3) uint8 -> (...) float64."""
    weighted = 299 * rgb[..., 0].astype(np.int64) + 587 * rgb[..., 1].astype(np.int64)
    return np.asarray((weighted + 114 * rgb[..., 2].astype(np.int64)) / 1000)


def wavelet_filters() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """db6's high-pass filters as the kernels take them: analysis; synthesis, even taps and then odd ones."""
    import pywt

    wavelet = pywt.Wavelet("db6")
    back = np.array(wavelet.rec_hi)
    return np.array(wavelet.dec_hi), np.concatenate([back[-2::-2], back[::-2]])


def _focus(
    name: str, score: Callable[[Photograph], Score], *modules: str, batched: bool = False, **facts: Any
) -> Metric:
    load = one_by_one(score, *modules)
    return Metric(
        name=name,
        version=1,
        higher_is_better=True,
        range=(0.0, None),
        code_license="Apache-2.0",
        weights_license=None,
        device="cpu",
        parameters_sha256=lambda: None,
        unavailable=lambda: None,
        load=on_either(load, name, "qualitygate.metrics.focus_tensors") if batched else load,
        batched=batched,
        **facts,
    )


KERNELS = "qualitygate.metrics.focus_kernels"

LAPV = _focus(
    "lapv",
    lapv,
    KERNELS,
    unit="squared grey levels",
    reference="Pech-Pacheco 2000; Pertuz 2013 and his fmeasure.m (LAPV)",
    batched=True,
)
LAPM = _focus(
    "lapm",
    lapm,
    KERNELS,
    unit="grey levels",
    reference="Nayar, Nakagawa 1994; Pertuz 2013 and his fmeasure.m (LAPM)",
    batched=True,
)
WAVS = _focus(
    "wavs",
    wavs,
    KERNELS,
    "pywt",
    unit="grey levels",
    reference="Yang, Nelson 2003; Pertuz 2013 and his fmeasure.m (WAVS)",
    batched=True,
)
LAPV_CV2 = _focus(
    "lapv-cv2",
    lapv_cv2,
    "cv2",
    unit="squared grey levels",
    reference="Pech-Pacheco 2000 as cv2.Laplacian(grey, cv2.CV_64F).var()",
)
WAVS_COEF = _focus(
    "wavs-coef",
    wavs_coef,
    "pywt",
    unit="grey levels",
    reference="Yang, Nelson 2003, read as the mean of raw coefficient magnitudes",
)

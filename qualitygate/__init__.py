"""qualitygate: which photographs are good enough to classify, and where exactly is the line?"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["__version__", "score"]
__version__ = "0.1.0"


def score(
    images: Any,
    metrics: Sequence[str] | str | None = None,
    *,
    backend: Literal["native", "pyiqa"] = "native",
    longest_side: int | None = None,
    max_pixels: int = 100_000_000,
    max_bytes: int = 512 << 20,
    weights: str | None = None,
    untrained: bool = False,
    device: Literal["auto", "cpu", "cuda"] = "cpu",
    precision: Literal["float32", "fast"] = "float32",
    verified: str | None = None,
    decoder: Literal["strict", "nvjpeg"] = "strict",
    formulas: Literal["gpu", "cpu"] = "gpu",
) -> "pa.Table":
    """Scores of images in this process, without Ray: one row for each, as in the score table.

    images: paths or URIs of files, encoded files as `bytes`, uint8 arrays ((H, W), (H, W, 3) RGB or (H, W, 4) RGBA),
        PIL images, mixed as you like, or a single one of these. What can't be read gets a row that says why.
    metrics: names, or several in one string with commas; default: those of the paper that can be computed.
    backend: whose implementation.
    longest_side: scoring resolution in pixels; default: each image's own.
    max_pixels, max_bytes: larger images are `too_large`.
    weights, untrained: of the networks: a file or a folder, or random ones to try the plumbing.
    device: where the networks run; `auto` takes a GPU where there is one.
    precision, verified: `fast` for half precision on a GPU, of the metrics that passed in this file of
        'qualitygate verify'.
    decoder: `nvjpeg` lets the GPU decode plain JPEGs, with other pixels and so under another fingerprint.
    formulas: `cpu` leaves LAPV, LAPM, WAVS, BRISQUE and NIQE on the CPU where the networks are on a GPU.

    Raises `qualitygate.errors.ConfigurationError` for unknown metrics and for things that are no images.
    """
    # Imported on use, so that `import qualitygate` stays quick.
    from qualitygate.metrics.inprocess import score as score_in_process

    return score_in_process(
        images,
        metrics,
        backend=backend,
        longest_side=longest_side,
        max_pixels=max_pixels,
        max_bytes=max_bytes,
        weights=weights,
        untrained=untrained,
        device=device,
        precision=precision,
        verified=verified,
        decoder=decoder,
        formulas=formulas,
    )

"""qualitygate: which photographs are good enough to classify, and where exactly is the line?"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["__version__", "score"]
__version__ = "0.1.0"


def score(images: Any, metrics: Any = None, **options: Any) -> "pa.Table":
    """Scores of images in this process, without Ray: see `qualitygate.metrics.inprocess.score`."""
    # Imported on use, so that `import qualitygate` stays quick.
    from qualitygate.metrics.inprocess import score as score_in_process

    return score_in_process(images, metrics, **options)

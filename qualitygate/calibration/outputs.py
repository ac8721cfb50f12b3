"""Writing results whole or not at all: JSON without NaN, Parquet through a temporary file."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qualitygate import __version__
from qualitygate.errors import ConfigurationError, ImageError
from qualitygate.tables import storage
from qualitygate.tables.scratch import scratch_folder

if TYPE_CHECKING:
    import pyarrow as pa

_VERSIONS = ("numpy", "scipy", "scikit-learn", "statsmodels", "duckdb", "pyarrow")


def versions() -> dict[str, str]:
    """What computed the numbers: this package and the libraries that decide them."""
    return {"qualitygate": __version__, **{package: metadata.version(package) for package in _VERSIONS}}


def plain(value: Any) -> Any:
    """The value as JSON takes it: numpy's types as Python's, what isn't finite as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def significant(values: Iterable[float], digits: int = 6) -> list[float]:
    """Numbers for a plot, which need no more digits than these."""
    return [float(f"{value:.{digits}g}") for value in values]


def write_json(uri: str, content: Mapping[str, Any]) -> None:
    """Write a record."""
    text = json.dumps(plain(content), indent=1, ensure_ascii=False, allow_nan=False)
    storage.write_bytes(uri, (text + "\n").encode())


def read_json(uri: str, name: str, remedy: str) -> dict[str, Any]:
    """A record that another verb wrote; ConfigurationError when there is none or it is no JSON object."""
    try:
        data = storage.read_bytes(uri)
        content = json.loads(data) if data is not None else None
    except (ImageError, OSError, ValueError) as error:
        reason = error.failure.message if isinstance(error, ImageError) else storage.redact(str(error))
        raise ConfigurationError(f"{name} can't be read ({reason}); {remedy}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{name} isn't there or holds no record; {remedy}")
    return content


@contextmanager
def parquet_writer(uri: str, schema: "pa.Schema") -> Iterator[Any]:
    """A pyarrow ParquetWriter whose file appears under its name when all of it is written."""
    import pyarrow.parquet as pq

    with scratch_folder() as scratch:
        path = Path(scratch) / "table.parquet"
        with pq.ParquetWriter(path, schema) as writer:
            yield writer
        storage.publish(path, uri)


def write_table(uri: str, table: "pa.Table") -> None:
    """Write a table that fits in memory."""
    with parquet_writer(uri, table.schema) as writer:
        writer.write_table(table)


def discard(*uris: str) -> None:
    """Remove what an earlier run left, so that no main record stands beside tables of another run."""
    for uri in uris:
        if storage.exists(uri):
            storage.delete(uri)


def check_output(output: str) -> str:
    """The output folder, writable; ConfigurationError otherwise."""
    output = storage.check_location(output, "--output")
    if not output.strip():
        raise ConfigurationError("--output is empty; give a folder for the results")
    storage.check_writable(output, "--output")
    return output

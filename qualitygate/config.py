"""One typed configuration a job: read from YAML, every key overridable on the command line, echoed with the output."""

from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qualitygate.errors import ConfigurationError, ErrorCode


class ScoreConfig(BaseModel):
    """What `qualitygate score` does. Defaults suit a folder of photographs on one machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: str = Field(description="folder, prefix, glob, image or manifest (Parquet, CSV, JSONL)")
    output: str = Field(description="folder or prefix of the results; the table lies in its scores/")
    metrics: tuple[str, ...] | None = Field(
        None, description="metrics by name; default: all whose parameters are present"
    )
    backend: Literal["native", "pyiqa"] = Field("native", description="whose implementation computes the scores")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the pool of scoring workers runs")
    limit: int | None = Field(None, ge=1, description="only the input's first N images")
    longest_side: int | None = Field(None, ge=16, description="score at this resolution; default: the photograph's own")
    max_pixels: int = Field(100_000_000, ge=1, description="larger photographs are too_large, by their header")
    max_bytes: int = Field(512 << 20, ge=1, description="larger files are too_large, unread")
    image_timeout_s: float = Field(300, gt=0, description="seconds after which one photograph is given up")
    commit_rows: int = Field(1000, ge=1, description="rows after which results are committed")
    commit_seconds: float = Field(60, gt=0, description="seconds after which results are committed, however few")
    max_error_rate: float = Field(0.1, ge=0, le=1, description="share of images without any score that fails the run")
    backfill: bool = Field(False, description="add metrics to rows that lack them, or have them by another definition")
    retry: tuple[ErrorCode, ...] = Field((), description="failures of earlier runs to try again, by code")
    weights: str | None = Field(None, description="file or folder of the networks' parameters; default: the user cache")
    untrained: bool = Field(False, description="seeded random networks, to try the plumbing: scores mean nothing")
    workers: int | None = Field(None, ge=1, description="scoring workers; default: one a core, or as the GPUs allow")
    batch_size: int | None = Field(None, ge=1, description="photographs a task; default: by the input's size")
    gpus_per_worker: float = Field(1.0, gt=0, description="GPUs, or a fraction of one, for each worker on GPUs")
    ray_address: str = Field("auto", description="auto: RAY_ADDRESS or this machine; local; or a cluster's address")


Config = TypeVar("Config", bound=BaseModel)


def load(model: type[Config], path: str | Path | None, overrides: dict[str, Any]) -> Config:
    """The configuration of a file, with the command line's values over it.

    Raises ConfigurationError, one line that names each wrong key, its value's problem and the remedy.
    """
    values = _read(path) if path is not None else {}
    values |= {key: value for key, value in overrides.items() if value is not None}
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(_problem(model, problem) for problem in error.errors())
        raise ConfigurationError(f"configuration: {problems}") from error


def _read(path: str | Path) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"--config {str(path)!r} can't be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigurationError(f"--config {str(path)!r} is no YAML: {reason}") from error
    if not isinstance(values, dict):
        raise ConfigurationError(f"--config {str(path)!r} must hold keys and values, such as 'input: photos/'")
    return values


def _problem(model: type[BaseModel], problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        import difflib

        near = difflib.get_close_matches(key, list(model.model_fields), n=1)
        return f"unknown key {key!r}" + (f", did you mean {near[0]!r}?" if near else "")
    if problem["type"] == "missing":
        return f"{key} is needed; give --{key.replace('_', '-')} or set it in the file"
    return f"{key}: {problem['msg'][0].lower()}{problem['msg'][1:]} (got {problem['input']!r})"


def echo(config: BaseModel) -> str:
    """The resolved configuration as YAML."""
    import yaml

    return str(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))

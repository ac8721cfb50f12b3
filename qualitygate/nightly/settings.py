"""A night's settings: those of scoring and of calibration that it hands on, and when scoring has to end."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel

from qualitygate.calibration import sources
from qualitygate.config import CalibrateConfig, NightlyConfig, ScoreConfig, load
from qualitygate.errors import ConfigurationError
from qualitygate.tables import storage
from qualitygate.tables.scratch import scratch_folder
from qualitygate.tables.sql import connect

M = TypeVar("M", bound=BaseModel)

_SINCE_DEADLINE = timedelta(hours=6)

SAMPLING = "sampling_probability"
# What 'predict' writes beside its table, and calibration reads.
BESIDE_PREDICTIONS = ("prediction.json",)
# A night's rows in few commits, so in few files: two each. A job that is killed loses so much of its scoring, one that
# is stopped loses none. Of 100,000 photographs, 1 % of ten million, two commits: docs/scale.md counts all files.
_COMMITS = {"commit_rows": 50_000, "commit_seconds": 1800.0}
# What the night itself decides.
_OWN = {
    "score": ("input", "output", "max_error_rate", "limit", "ray_address", "metrics_textfile"),
    "calibrate": ("scores", "predictions", "output", "parent"),
}
# A gate's vote would decide what is scored.
_BY_A_VOTE = ("gate", "lazy", "lazy_sample")


def of_score(config: NightlyConfig) -> ScoreConfig:
    """How tonight's photographs are scored; ConfigurationError names a wrong key as `score.KEY`."""
    if voted := [key for key in _BY_A_VOTE if key in config.score]:
        raise ConfigurationError(
            f"configuration: score.{voted[0]} leaves out scores that one gate doesn't need, but drift, coverage and "
            "the next gate need them of every photograph; leave it out, and name what to score in score.metrics"
        )
    own = {
        "input": storage.join(config.output, "manifest.parquet"),
        "output": config.output,
        # What is too many tonight is a guardrail's business, not a share of all there ever were.
        "max_error_rate": 1.0,
        "ray_address": config.ray_address,
    }
    return _of(ScoreConfig, "score", _COMMITS | config.score, own)


def of_calibration(config: NightlyConfig) -> CalibrateConfig | None:
    """How a candidate is made; None where there are no predictions."""
    if config.predictions is None:
        if config.calibrate:
            raise ConfigurationError("configuration: calibrate has keys, but there are no predictions; give them too")
        return None
    own = {"scores": config.output, "predictions": config.predictions, "output": config.output}
    return _of(CalibrateConfig, "calibrate", config.calibrate, own)


def check_predictions(config: CalibrateConfig) -> None:
    """Raise ConfigurationError, naming what is absent, unless the predictions are a table that can be calibrated on."""
    with scratch_folder() as scratch, connect() as database:
        sources.open_predictions(database, config.predictions, Path(scratch))


def _of(model: type[M], part: str, given: dict[str, Any], own: dict[str, Any]) -> M:
    if taken := [key for key in given if key in _OWN[part]]:
        raise ConfigurationError(f"configuration: {part}.{taken[0]} is the nightly job's own; leave it out")
    values = {key: _parts(model, key, value) for key, value in given.items()}
    try:
        return load(model, None, {**values, **own})
    except ConfigurationError as error:
        raise ConfigurationError(f"in {part}: {error}") from error


def _parts(model: type[BaseModel], key: str, value: Any) -> Any:
    """A list written with commas, as on the command line."""
    field = model.model_fields.get(key)
    if not isinstance(value, str) or field is None:
        return value
    kinds = [field.annotation, *get_args(field.annotation)]
    if any(get_origin(kind) is tuple for kind in kinds):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def deadline(given: str | None, now: float) -> float | None:
    """Seconds since 1970. given: a time of day in UTC, a moment in ISO 8601, or a time from now.

    A time of day is the next one, but for six hours after it, when it has passed: what starts a job again shortly
    after its deadline doesn't mean tomorrow's.
    """
    if given is None:
        return None
    if found := re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h)", given):
        return now + float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]
    start = datetime.fromtimestamp(now, UTC)
    try:
        if re.fullmatch(r"\d\d:\d\d", given):
            hour, minute = map(int, given.split(":"))
            moment = start.replace(hour=hour, minute=minute, second=0, microsecond=0)
            # Yesterday's too: half past midnight is an hour after 23:30.
            days = (moment + timedelta(days=number) for number in (-1, 0, 1))
            return next(one for one in days if one > start - _SINCE_DEADLINE).timestamp()
        moment = datetime.fromisoformat(given)
    except ValueError as error:
        raise ConfigurationError(
            f"--deadline {given!r}: write 06:30 (UTC), 2026-11-24T06:30+01:00, or 90m or 4h from the start"
        ) from error
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    if moment <= start:
        raise ConfigurationError(f"--deadline {given!r} has passed; name a later one")
    return moment.timestamp()

"""What a night hands on to scoring and calibration, and when its scoring ends."""

from datetime import UTC, datetime
from typing import Any

import pytest

from qualitygate.config import NightlyConfig, ScoreConfig, load
from qualitygate.errors import ConfigurationError, ErrorCode
from qualitygate.nightly import settings

pytestmark = pytest.mark.filterwarnings("error")

NOW = datetime(2026, 11, 23, 22, 30, tzinfo=UTC)


def _config(**given: Any) -> NightlyConfig:
    return NightlyConfig(**({"input": "in", "output": "out", "predictions": "labels.parquet"} | given))


def test_scoring_gets_its_keys_and_the_nights_own() -> None:
    found = settings.of_score(
        _config(score={"metrics": "lapv, lapm", "retry": ["truncated"], "workers": "2"}, ray_address="local")
    )
    assert (found.input, found.output, found.ray_address) == ("out/manifest.parquet", "out", "local")
    assert (found.metrics, found.retry, found.workers) == (("lapv", "lapm"), (ErrorCode.TRUNCATED,), 2)
    assert found.max_error_rate == 1.0


def test_a_nights_rows_are_committed_in_few_portions_unless_others_are_asked_for() -> None:
    usual, night = ScoreConfig(input="in", output="out"), settings.of_score(_config())
    assert night.commit_rows > usual.commit_rows
    assert night.commit_seconds > usual.commit_seconds
    assert settings.of_score(_config(score={"commit_rows": 7})).commit_rows == 7


def test_calibration_gets_its_keys_and_the_nights_own() -> None:
    found = settings.of_calibration(_config(calibrate={"methods": "lapv,lapm", "bootstrap": 50}))
    assert found is not None
    assert (found.scores, found.predictions, found.methods, found.bootstrap) == (
        "out",
        "labels.parquet",
        "lapv,lapm",
        50,
    )


def test_without_predictions_nothing_is_calibrated() -> None:
    assert settings.of_calibration(_config(predictions=None)) is None
    with pytest.raises(ConfigurationError, match="calibrate has keys, but there are no predictions"):
        settings.of_calibration(_config(predictions=None, calibrate={"methods": "lapv"}))


@pytest.mark.parametrize(
    ("part", "given", "said"),
    [
        ("score", {"metrix": "lapv"}, r"in score: .*metrix.*metrics"),
        ("score", {"workers": "many"}, r"in score: .*workers"),
        ("score", {"retry": "truncated,eaten"}, r"in score: .*retry"),
        ("calibrate", {"bootstrap": 1}, r"in calibrate: .*bootstrap"),
        ("calibrate", {"methodes": "lapv"}, r"in calibrate: .*methodes.*methods"),
        *(
            ("score", {key: 1}, rf"score\.{key} is the nightly job's own; leave it out")
            for key in ("input", "output", "max_error_rate", "limit", "ray_address")
        ),
        *(
            ("score", {key: "x"}, rf"score\.{key} leaves out scores .* name what to score in score\.metrics")
            for key in ("gate", "lazy", "lazy_sample")
        ),
        *(
            ("calibrate", {key: "x"}, rf"calibrate\.{key} is the nightly job's own; leave it out")
            for key in ("scores", "predictions", "output", "parent")
        ),
    ],
)
def test_a_wrong_key_is_named(part: str, given: dict[str, Any], said: str) -> None:
    read = {"score": settings.of_score, "calibrate": settings.of_calibration}[part]
    with pytest.raises(ConfigurationError, match=said):
        read(_config(**{part: given}))


@pytest.mark.parametrize(
    ("given", "moment"),
    [
        ("06:30", datetime(2026, 11, 24, 6, 30, tzinfo=UTC)),
        ("22:31", datetime(2026, 11, 23, 22, 31, tzinfo=UTC)),
        # Shortly after it has come, it is not tomorrow's.
        ("22:30", datetime(2026, 11, 23, 22, 30, tzinfo=UTC)),
        ("16:31", datetime(2026, 11, 23, 16, 31, tzinfo=UTC)),
        ("16:29", datetime(2026, 11, 24, 16, 29, tzinfo=UTC)),
        ("2026-11-24T06:30+01:00", datetime(2026, 11, 24, 5, 30, tzinfo=UTC)),
        ("2026-11-24T06:30", datetime(2026, 11, 24, 6, 30, tzinfo=UTC)),
        ("2026-11-24T06:30:15Z", datetime(2026, 11, 24, 6, 30, 15, tzinfo=UTC)),
        ("90m", datetime(2026, 11, 24, 0, 0, tzinfo=UTC)),
        ("1.5h", datetime(2026, 11, 24, 0, 0, tzinfo=UTC)),
        ("5400s", datetime(2026, 11, 24, 0, 0, tzinfo=UTC)),
    ],
)
def test_a_deadline_is_a_time_of_day_a_moment_or_a_while(given: str, moment: datetime) -> None:
    assert settings.deadline(given, NOW.timestamp()) == moment.timestamp()


@pytest.mark.parametrize(
    ("now", "moment"),
    [
        # A second start half an hour after midnight comes an hour after the deadline, not 23 before it.
        (datetime(2026, 11, 24, 0, 30, tzinfo=UTC), datetime(2026, 11, 23, 23, 30, tzinfo=UTC)),
        (datetime(2026, 11, 24, 5, 29, tzinfo=UTC), datetime(2026, 11, 23, 23, 30, tzinfo=UTC)),
        (datetime(2026, 11, 24, 5, 31, tzinfo=UTC), datetime(2026, 11, 24, 23, 30, tzinfo=UTC)),
    ],
)
def test_a_deadline_before_midnight_has_passed_after_it(now: datetime, moment: datetime) -> None:
    assert settings.deadline("23:30", now.timestamp()) == moment.timestamp()


@pytest.mark.parametrize("given", ["soon", "", "25:00", "6:30", "90", "4 h", "-5m", "2026-13-01T00:00"])
def test_what_is_no_deadline_is_said(given: str) -> None:
    with pytest.raises(ConfigurationError, match="write 06:30"):
        settings.deadline(given, NOW.timestamp())


def test_a_deadline_that_has_passed_is_said() -> None:
    with pytest.raises(ConfigurationError, match="has passed"):
        settings.deadline("2026-11-23T22:30", NOW.timestamp())
    assert settings.deadline(None, NOW.timestamp()) is None


@pytest.mark.parametrize("night", ["../escape", "a/b", "", ".hidden", "x" * 65])
def test_the_name_of_a_night_is_the_name_of_a_folder(night: str) -> None:
    with pytest.raises(ConfigurationError, match="night"):
        load(NightlyConfig, None, {"input": "in", "output": "out", "night": night})

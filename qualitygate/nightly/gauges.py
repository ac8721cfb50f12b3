"""A night's numbers for Prometheus: how it ended, when the last good one did, what it found.

While the night scores, Ray exports what is known by then. Its end is told by the text file alone, as Ray's session is
over then. A refused night leaves the time of the last good one as it was. docs/operations.md lists the numbers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from io import BytesIO

import pyarrow.parquet as pq

from qualitygate.calibration import gate as gates
from qualitygate.calibration import gate_store
from qualitygate.cluster.telemetry import Telemetry
from qualitygate.config import NightlyConfig
from qualitygate.errors import Interrupted, Locked
from qualitygate.nightly import record, trend
from qualitygate.nightly.record import Night
from qualitygate.tables import storage

GOOD = ("promoted", "kept")
# Of nights whose record has no end: those that failed, and those that were stopped and go on.
FAILED, STOPPED = "failed", "stopped"
OUTCOMES = (*record.STATES, FAILED, STOPPED)


@contextmanager
def of_night(config: NightlyConfig, name: str) -> Iterator[Telemetry]:
    """What counts a night. When the block has ended, the text file says how, unless another job is at work."""
    output, file = config.output, config.metrics_textfile
    # Scoring tells what is known by then.
    counted = Telemetry(output, known=lambda one: _tell(one, output, name, None))
    try:
        yield counted
    except Locked:
        # The file is that of the other one.
        raise
    except (Interrupted, KeyboardInterrupt):
        _end(counted, output, name, STOPPED, file)
        raise
    except Exception:
        _end(counted, output, name, FAILED, file)
        raise
    _end(counted, output, name, None, file)


def _end(counted: Telemetry, output: str, name: str, outcome: str | None, file: str | None) -> None:
    if file is not None:
        counted.recall(lambda one: _tell(one, output, name, outcome))
        counted.write(file)


def _tell(counted: Telemetry, output: str, name: str, outcome: str | None) -> None:
    """All that is known of the night and of those before. outcome: where its record can't say."""
    night = record.read(output, name) or Night(night=name, started=record.now())
    state = outcome or night.state
    for one in OUTCOMES:
        counted.set("night_outcome", float(one == state), state=one)
    counted.set("last_run_good", float(state in GOOD))
    _moment(counted, "night_started_timestamp_seconds", night.started)
    if state != "running":
        _moment(counted, "night_finished_timestamp_seconds", night.finished or record.now())
    good = [*_earlier(output, name), *([night.finished] if night.state in GOOD and night.finished else [])]
    _moment(counted, "last_success_timestamp_seconds", max(good, default=None))
    change = gate_store.read(storage.join(output, gates.FOLDER)).current
    _moment(counted, "gate_since_timestamp_seconds", change.at if change else None)
    steps = night.steps
    found = {
        ("night_drifted", ""): steps.get("drift", {}).get("drifted"),
        ("night_photographs_left", ""): steps.get("score", {}).get("left"),
        ("night_coverage", "tonight"): steps.get("decide", {}).get("coverage_tonight"),
        ("night_coverage", "all"): steps.get("decide", {}).get("coverage"),
    }
    for (series, of), value in found.items():
        if value is not None:
            counted.set(series, float(value), **({"photographs": of} if of else {}))


def _moment(counted: Telemetry, series: str, text: str | None) -> None:
    if text is not None:
        counted.set(series, datetime.fromisoformat(text).timestamp())


def _earlier(output: str, name: str) -> list[str]:
    """When the other nights ended that were promoted or kept, by the table of all."""
    data = storage.read_bytes(storage.join(output, trend.FILE))
    if data is None:
        return []
    rows = pq.read_table(BytesIO(data), columns=["night", "state", "finished"]).to_pylist()
    return [row["finished"] for row in rows if row["night"] != name and row["state"] in GOOD and row["finished"]]

"""Finds and reads what the other verbs wrote: each folder is known by its main record, which is written last."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from qualitygate.config import masked
from qualitygate.errors import ConfigurationError, ImageError
from qualitygate.report import records
from qualitygate.tables import storage

if TYPE_CHECKING:
    import pyarrow as pa

    from qualitygate.calibration.gate_store import Change

R = TypeVar("R", bound=records.Record)

# Main record -> (the verb that writes it, its format's name where it has one).
KNOWN: dict[str, tuple[str, str | None]] = {
    "gate.json": ("calibrate", "qualitygate-gate"),
    "robustness.json": ("robustness", "qualitygate-robustness"),
    "_gate_stats.json": ("gate", None),
    "_stats.json": ("score", None),
    "prediction.json": ("predict", "qualitygate-prediction"),
    "model.json": ("train-baseline", "qualitygate-classifier"),
    "study.json": ("study", "qualitygate-study"),
    "nights.parquet": ("nightly", None),
}
# Records beside a main one: whose they are.
_BESIDE: dict[str, tuple[str, str | None]] = {
    "calibration.json": ("calibrate", "qualitygate-calibration"),
    "verdicts.json": ("study", "qualitygate-verdicts"),
    "night.json": ("nightly", "qualitygate-night"),
}
_VERBS = "calibrate, robustness, gate, score, predict, study or nightly"
_NIGHTS = "nights"
# So many nights are named where one is asked for that there is not.
_KNOWN = 5
VERSION = 1
_MONTAGE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What 'calibrate' found. table: a row for each photograph that was calibrated on."""

    gate: records.Gate
    record: records.CalibrationRecord
    table: "pa.Table"

    @property
    def held_out(self) -> records.HeldOut | None:
        return self.record.held_out or self.gate.held_out


@dataclass(frozen=True, slots=True, kw_only=True)
class Robustness:
    """What 'robustness' found. montage: the picture of one sample's series; values: every score, or None."""

    record: records.RobustnessRecord
    montage: bytes | None
    values: "pa.Table | None"


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What 'study' found. runs: its finished runs, a dictionary each."""

    record: records.StudyRecord
    verdicts: records.Verdicts
    runs: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Nights:
    """What 'nightly' found, night by night, until the one that the page is of.

    last: that night's own record. later: nights that began after it. changes: of the gate in force, all of them.
    """

    rows: Sequence[records.NightRow]
    last: records.NightRecord | None
    changes: "Sequence[Change]"
    later: Sequence[records.NightRow] = ()

    @property
    def in_force(self) -> str | None:
        """Id of the gate in force now: by the history, and where that is gone, by the last night."""
        return self.changes[-1].gate_id if self.changes else self.rows[-1].gate_after


@dataclass(frozen=True, slots=True, kw_only=True)
class Artefacts:
    """All that one page tells of; None for what wasn't given. folders, configs: by verb."""

    calibration: Calibration | None = None
    robustness: Robustness | None = None
    decisions: records.GateStats | None = None
    scoring: records.ScoringStats | None = None
    prediction: records.PredictionRecord | None = None
    model: records.ModelRecord | None = None
    study: Study | None = None
    nights: Nights | None = None
    folders: Mapping[str, str]
    configs: Mapping[str, str]

    @property
    def untrained(self) -> frozenset[str]:
        """Methods whose scores come from untrained networks, by any of the records."""
        named: set[str] = set()
        if self.calibration:
            gate = self.calibration.gate
            named |= set(gate.untrained)
            named |= {name for name, print_ in gate.fingerprints.items() if (print_ or "").startswith("untrained")}
        if self.robustness:
            named |= {name for name, metric in self.robustness.record.metrics.items() if not metric.trained}
        if self.scoring:
            named |= set(self.scoring.untrained)
        if self.decisions:
            named |= set(self.decisions.untrained)
        return frozenset(named)


def read(inputs: Sequence[str], *, night: str | None = None) -> Artefacts:
    """Everything in these folders. night: of a nightly output, up to which night; default: all.

    Raises ConfigurationError for a folder that holds nothing known, for two folders of one verb, for a night that there
    is not, and for a record or table that isn't what its verb writes.
    """
    folders = _folders(inputs)
    found: dict[str, Any] = {}
    if folder := folders.get("calibrate"):
        found["calibration"] = _calibration(folder)
    if folder := folders.get("robustness"):
        found["robustness"] = _robustness(folder)
    if folder := folders.get("study"):
        found["study"] = _study(folder)
    if folder := folders.get("nightly"):
        found["nights"] = _nights(folder, night)
    elif night is not None:
        raise ConfigurationError(f"--night {night!r} needs a nightly output; give its folder as --input")
    for key, verb, name, model in (
        ("decisions", "gate", "_gate_stats.json", records.GateStats),
        ("scoring", "score", "_stats.json", records.ScoringStats),
        ("prediction", "predict", "prediction.json", records.PredictionRecord),
        ("model", "train-baseline", "model.json", records.ModelRecord),
    ):
        if folder := folders.get(verb):
            found[key] = read_record(folder, name, model)
    return Artefacts(**found, folders=folders, configs=_configs(folders, found.get("nights")))


def _folders(inputs: Sequence[str]) -> dict[str, str]:
    """Verb -> the folder that holds its output."""
    folders: dict[str, str] = {}
    for uri in dict.fromkeys(inputs):
        folder = storage.check_location(uri, "--input")
        verbs = _verbs(folder)
        if not verbs:
            raise ConfigurationError(_nothing(folder))
        for verb in verbs:
            if verb in folders:
                raise ConfigurationError(
                    f"--input: {storage.redact(folders[verb])!r} and {storage.redact(folder)!r} are both outputs of "
                    f"'{verb}', and one page tells of one; leave one out"
                )
            folders[verb] = folder
    return folders


def _verbs(folder: str) -> list[str]:
    try:
        return [verb for name, (verb, _) in KNOWN.items() if storage.exists(storage.join(folder, name))]
    except OSError as error:
        reason = storage.redact(str(error)).splitlines()[0][:200]
        raise ConfigurationError(
            f"--input {storage.redact(folder)!r} can't be read ({reason}); check the location and its permissions"
        ) from error


def _nothing(folder: str) -> str:
    shown = repr(storage.redact(folder))
    if not storage.exists(folder):
        return f"--input {shown} doesn't exist; give the output folder of {_VERBS}"
    if not storage.is_folder(folder):
        return f"--input {shown} is no folder; give the folder that a verb wrote, not a file of it"
    if storage.exists(storage.join(folder, "calibration.json")):
        return f"--input {shown} has a calibration.json but no gate.json: that run didn't finish; run it again"
    below = [name for name in storage.subfolders(folder)[:50] if _verbs(storage.join(folder, name))]
    hint = (
        f"; did you mean {' and '.join(repr(storage.join(storage.redact(folder), name)) for name in below[:6])}?"
        if below
        else f"; give the output folder of {_VERBS}"
    )
    return f"--input {shown} holds none of {', '.join(KNOWN)}{hint}"


def _bytes(folder: str, name: str) -> bytes | None:
    try:
        return storage.read_bytes(storage.join(folder, name))
    except ImageError as error:
        raise ConfigurationError(
            f"{_where(folder, name)} can't be read ({error.failure.message}); check its permissions"
        ) from error


def _where(folder: str, name: str) -> str:
    return repr(storage.redact(storage.join(folder, name)))


def read_record(folder: str, name: str, model: type[R]) -> R:
    """A verb's record in its folder; ConfigurationError, with the remedy, where it isn't what the verb writes."""
    data = _bytes(folder, name)
    verb, format_name = (KNOWN | _BESIDE)[name]
    remedy = f"run 'qualitygate {verb}' again"
    if data is None:
        raise ConfigurationError(f"{_where(folder, name)} isn't there, so that run didn't finish; {remedy}")
    try:
        content = json.loads(data)
    except ValueError as error:
        raise ConfigurationError(f"{_where(folder, name)} is no JSON ({error}); {remedy}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{_where(folder, name)} must hold an object; {remedy}")
    if format_name and (content.get("format"), content.get("version")) != (format_name, VERSION):
        raise ConfigurationError(
            f"{_where(folder, name)} is {content.get('format')!r} version {content.get('version')!r}, and this "
            f"release reads {format_name!r} version {VERSION}; {remedy}"
        )
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigurationError(f"{_where(folder, name)}: {key}: {first['msg']}; {remedy}") from error


def _calibration(folder: str) -> Calibration:
    gate = read_record(folder, "gate.json", records.Gate)
    record = read_record(folder, "calibration.json", records.CalibrationRecord)
    if record.gate_id != gate.id:
        raise ConfigurationError(
            f"{_where(folder, 'calibration.json')} belongs to gate {record.gate_id}, but gate.json is {gate.id}; "
            "run 'qualitygate calibrate' again"
        )
    table = _table(folder, "calibration.parquet", ("image_id", "correct", "confidence", *gate.methods))
    if table is None:
        raise ConfigurationError(
            f"{_where(folder, 'calibration.parquet')} isn't there; run 'qualitygate calibrate' again"
        )
    return Calibration(gate=gate, record=record, table=table)


def _robustness(folder: str) -> Robustness:
    record = read_record(folder, "robustness.json", records.RobustnessRecord)
    name = record.figures.get("montage", "series.png")
    try:
        montage = storage.fetch(storage.join(folder, name.rsplit("/", 1)[-1]), max_bytes=_MONTAGE_BYTES).data
    except ImageError:
        montage = None
    columns = ("sample", "nuisance", "step", "parameter", "metric", "value")
    return Robustness(record=record, montage=montage, values=_table(folder, "robustness.parquet", columns))


def _study(folder: str) -> Study:
    from qualitygate.training import results

    record = read_record(folder, "study.json", records.StudyRecord)
    verdicts = read_record(folder, "verdicts.json", records.Verdicts)
    return Study(
        record=record,
        verdicts=verdicts,
        runs=results.finished(results.read_runs(storage.join(folder, "runs.parquet"))),
    )


def _nights(folder: str, name: str | None) -> Nights | None:
    """The nights in the order in which they began; None where the table has none yet. name: the page's, or the last."""
    from qualitygate.calibration import gate_store
    from qualitygate.calibration.gate import FOLDER

    table = _table(folder, "nights.parquet", ("night", "started", "state"))
    if table is None or not table.num_rows:
        return None
    try:
        rows = [records.NightRow.model_validate(row) for row in table.to_pylist()]
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigurationError(
            f"{_where(folder, 'nights.parquet')}: {key}: {first['msg']}; the next night makes it again"
        ) from error
    rows.sort(key=lambda row: (row.started, row.night))
    later: list[records.NightRow] = []
    if name is not None:
        known = [row.night for row in rows]
        if name not in known:
            some = ", ".join(known[-_KNOWN:])
            raise ConfigurationError(f"there is no night {name!r} in {storage.redact(folder)!r}; the last are {some}")
        rows, later = rows[: known.index(name) + 1], rows[known.index(name) + 1 :]
    place = storage.join(folder, _NIGHTS, rows[-1].night)
    there = storage.exists(storage.join(place, "night.json"))
    return Nights(
        rows=rows,
        last=read_record(place, "night.json", records.NightRecord) if there else None,
        changes=gate_store.read(storage.join(folder, FOLDER)).changes,
        later=later,
    )


def _table(folder: str, name: str, needed: Sequence[str]) -> "pa.Table | None":
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = _bytes(folder, name)
    if data is None:
        return None
    try:
        table = pq.read_table(BytesIO(data))
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0][:200]
        raise ConfigurationError(f"{_where(folder, name)} is no Parquet ({reason}); make it again") from error
    if lacking := [column for column in needed if column not in table.column_names]:
        raise ConfigurationError(f"{_where(folder, name)} lacks the column {lacking[0]!r}; make it again")
    return table


def _configs(folders: Mapping[str, str], nights: Nights | None) -> dict[str, str]:
    """Each verb's echoed configuration, without secrets."""
    echoes = {}
    for verb, folder in folders.items():
        if verb == "nightly":
            # In the output itself lies that of scoring; each night has its own.
            folder = storage.join(folder, _NIGHTS, nights.rows[-1].night) if nights else ""
        data = _bytes(folder, "_config.yaml") if folder else None
        if data is not None:
            text = data.decode("utf-8", "replace")
            echoes[verb] = storage.redact(_masked(folder, text) if verb == "nightly" else text)
    return echoes


def _masked(folder: str, text: str) -> str:
    """A night's configuration as others may read it: the address and the arguments that notify may be passwords."""
    import yaml

    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError:
        values = None
    if not isinstance(values, dict):
        raise ConfigurationError(f"{_where(folder, '_config.yaml')} is no configuration; delete it")
    return str(yaml.safe_dump(masked(values), sort_keys=False))

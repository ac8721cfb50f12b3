"""How an output folder stands, in a few lines: for people, for programs and for probes that ask whether it is fresh."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from qualitygate.errors import ConfigurationError, ImageError
from qualitygate.report import artefacts, records
from qualitygate.report.costs import hours, size
from qualitygate.tables import runs, scores, storage

# So many of the log's newest entries are looked at for a run's.
_COMMITS = 50
# Files of this size and smaller are worth compacting where there are many of them.
_SMALL_BYTES = 8 << 20
_MANY_FILES = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one verb left in the folder.

    facts: for programs. good: when the verb's last good run ended. problem: why it isn't well. runs: how the names of
    scoring runs begin that are a step of this verb: how they ended, and how fresh the folder is, is its business.
    """

    verb: str
    lines: tuple[str, ...]
    facts: dict[str, Any] = field(default_factory=dict)
    good: datetime | None = None
    problem: str | None = None
    runs: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How a folder stands; with any problems it isn't well."""

    folder: str
    parts: tuple[Part, ...]
    problems: tuple[str, ...]


Look = Callable[[str, datetime], Part | None]


def read(
    folder: str,
    *,
    max_age_hours: float | None = None,
    now: datetime | None = None,
    before: Sequence[Look] = (),
) -> Status:
    """What is there and how it stands.

    max_age_hours: longest time since the end of the last good run, of the first part that has runs. before: looks of
    verbs above this layer, said first. Raises ConfigurationError where nothing that a verb writes is there.
    """
    now = now or datetime.now(UTC)
    parts = tuple(part for look in (*before, *PARTS) if (part := _looked(look, folder, now)) is not None)
    if not parts:
        known = ", ".join(artefacts.KNOWN)
        raise ConfigurationError(
            f"{storage.redact(folder)!r} holds none of {known} and no scores: give the output folder of a verb"
        )
    problems = [f"{part.verb}: {part.problem}" for part in parts if part.problem and not _step(part, parts)]
    if max_age_hours is not None and (late := _late(parts, max_age_hours, now)):
        problems.append(late)
    return Status(folder=storage.redact(folder), parts=parts, problems=tuple(problems))


def _step(part: Part, parts: tuple[Part, ...]) -> bool:
    """Whether this is of a run that another verb has made, and answers for."""
    run = str(part.facts.get("run_id", ""))
    return any(other.runs is not None and run.startswith(other.runs) for other in parts if other is not part)


def _looked(look: Look, folder: str, now: datetime) -> Part | None:
    try:
        return look(folder, now)
    except (ConfigurationError, ImageError) as error:
        # A record that can't be read is a problem to tell, and no reason to leave out the rest.
        return Part(verb=look.__name__.strip("_"), lines=(), problem=str(error))


def _late(parts: tuple[Part, ...], max_age_hours: float, now: datetime) -> str | None:
    counted = [part for part in parts if part.runs is not None] or parts
    good = next((part.good for part in counted if part.good is not None), None)
    if good is None:
        return f"no run has ended well yet (--max-age-hours {max_age_hours:g})"
    if now - good > timedelta(hours=max_age_hours):
        return f"the last good run ended {ago(good, now)}, longer than --max-age-hours {max_age_hours:g}"
    return None


# --- what there may be ----------------------------------------------------------------------------------------


def _score(folder: str, now: datetime) -> Part | None:
    table = scores.open_table(folder)
    stats = _present(folder, "_stats.json", records.ScoringStats)
    if table is None and stats is None:
        return None
    lines, facts, problem, good = [], {}, None, None
    if stats is not None:
        ended = runs.ended(stats.model_dump())
        good = ended if stats.state == "done" else runs.last_good(folder)
        problem = None if stats.state == "done" else _why(stats)
        facts = {
            "run_id": stats.run_id,
            "state": stats.state,
            "ended": iso(ended),
            "last_good": iso(good),
            "rows": stats.manifest.rows,
            "scored": stats.scored.rows,
            "by_status": stats.manifest.by_status,
            "by_code": stats.manifest.by_code,
        }
        when = f", ended {ago(ended, now)}" if ended else ""
        lines.append(f"run {stats.run_id}: {stats.state}{when}, {stats.scored.rows:,} rows scored by it")
        lines.append(f"its input: {stats.manifest.rows:,} rows, {_counts(stats.manifest.by_status)}")
        if stats.manifest.by_code:
            lines.append(f"codes: {_counts(stats.manifest.by_code)}")
    if table is not None:
        said, more = _table(folder, table, stats.run_id if stats else None, now)
        lines += said
        facts |= more
    return Part(verb="score", lines=tuple(lines), facts=facts, good=good, problem=problem)


def _table(folder: str, table: Any, run_id: str | None, now: datetime) -> tuple[list[str], dict[str, Any]]:
    import pyarrow as pa

    files = pa.table(table.get_add_actions(flatten=True)).select(["size_bytes", "num_records"]).to_pylist()
    count, total = len(files), sum(one["size_bytes"] for one in files)
    rows = sum(one["num_records"] or 0 for one in files)
    small = sum(one["size_bytes"] <= _SMALL_BYTES for one in files)
    lines = [f"table: {rows:,} rows in {count:,} files, {size(total)}, version {table.version()}"]
    if small >= _MANY_FILES:
        lines.append(f"{small:,} of the files are small: 'qualitygate compact' makes few of them")
    facts: dict[str, Any] = {
        "table": {"version": table.version(), "rows": rows, "files": count, "bytes": total, "small_files": small}
    }
    writer, last = _last_commit(folder, table.version())
    if writer is not None and writer != run_id:
        since = f", last {ago(last, now)}" if last else ""
        lines.append(f"run {writer} has committed since{since}, and hasn't ended: it is at work, or was killed")
        facts["unfinished"] = {"run_id": writer, "last_commit": iso(last)}
    return lines, facts


def _last_commit(folder: str, version: int) -> tuple[str | None, datetime | None]:
    """(the run that committed last, when), from the log's newest entries."""
    uri = scores.table_uri(folder)
    for number in range(version, max(-1, version - _COMMITS), -1):
        entry = scores.log_entry(uri, number)
        if entry is None:
            break
        for line in entry.splitlines():
            info = json.loads(line).get("commitInfo") if line.strip() else None
            if info and info.get("run_id") and not info["run_id"].startswith(scores.PURGE):
                return info["run_id"], datetime.fromtimestamp(info["timestamp"] / 1000, UTC)
    return None, None


def _why(stats: records.ScoringStats) -> str:
    remedy = "run the same command again"
    if stats.state == "interrupted":
        there = f"{stats.manifest.present or 0:,} of {stats.manifest.rows:,} rows are there"
        return f"run {stats.run_id} was interrupted, {there}; {remedy}"
    if stats.state == "error_budget_exceeded":
        share = stats.manifest.error_rate
        return f"run {stats.run_id} had too many errors ({share or 0:.1%}); see the codes, mend the input or the store"
    return f"run {stats.run_id} ended as {stats.state!r}; {remedy}"


def _gate(folder: str, now: datetime) -> Part | None:
    gate = _present(folder, "gate.json", records.Gate)
    if gate is None:
        return None
    voters = [name for name, method in gate.methods.items() if method.status == "ok"]
    lines = [
        f"gate {gate.id}, made {ago(moment(gate.created), now)}: {len(voters)} of {len(gate.methods)} methods have a "
        f"cut-off ({', '.join(voters) or 'none'}), {gate.votes_needed} low votes reject"
        + (f", {gate.coverage:.1%} pass" if gate.coverage is not None else "")
    ]
    facts = {"id": gate.id, "created": gate.created, "voters": voters, "votes_needed": gate.votes_needed}
    problem = None if len(voters) >= gate.votes_needed else "too few of its methods have a cut-off to reject anything"
    return Part(verb="calibrate", lines=tuple(lines), facts=facts, good=moment(gate.created), problem=problem)


def _decisions(folder: str, now: datetime) -> Part | None:
    found = _present(folder, "_gate_stats.json", records.GateStats)
    if found is None:
        return None
    share = found.passed / found.rows if found.rows else 0.0
    line = f"gate {found.gate_id}: {found.passed:,} of {found.rows:,} photographs pass ({share:.1%})"
    facts = {"gate_id": found.gate_id, "rows": found.rows, "passed": found.passed}
    return Part(verb="gate", lines=(line,), facts=facts)


def _study(folder: str, now: datetime) -> Part | None:
    found = _present(folder, "study.json", records.StudyRecord)
    if found is None:
        return None
    done = found.runs
    when = ago(moment(found.created), now)
    line = f"{done.finished:,} of {done.planned:,} runs finished, {done.failed:,} failed, {when}"
    problem = f"{done.failed:,} runs failed; 'study --retry-failed' tries them again" if done.failed else None
    facts = {"planned": done.planned, "finished": done.finished, "failed": done.failed, "created": found.created}
    return Part(verb="study", lines=(line,), facts=facts, good=moment(found.created), problem=problem)


def _predictions(folder: str, now: datetime) -> Part | None:
    found = _present(folder, "prediction.json", records.PredictionRecord)
    if found is None:
        return None
    accuracy = f", {found.accuracy:.1%} right" if found.accuracy is not None else ""
    line = f"{found.rows or 0:,} predictions{accuracy}, made {ago(moment(found.created), now)}"
    facts = {"rows": found.rows, "accuracy": found.accuracy, "created": found.created}
    return Part(verb="predict", lines=(line,), facts=facts, good=moment(found.created))


def _model(folder: str, now: datetime) -> Part | None:
    found = _present(folder, "model.json", records.ModelRecord)
    if found is None:
        return None
    line = f"{found.architecture}, {len(found.classes)} classes, trained {ago(moment(found.created), now)}"
    facts = {"model_fingerprint": found.model_fingerprint, "created": found.created}
    return Part(verb="train-baseline", lines=(line,), facts=facts, good=moment(found.created))


def _robustness(folder: str, now: datetime) -> Part | None:
    found = _present(folder, "robustness.json", records.RobustnessRecord)
    if found is None:
        return None
    line = f"{found.samples or 0:,} samples, {len(found.metrics)} metrics, measured {ago(moment(found.created), now)}"
    facts = {"samples": found.samples, "metrics": list(found.metrics), "created": found.created}
    return Part(verb="robustness", lines=(line,), facts=facts, good=moment(found.created))


# In the order in which they are said. The first that has a good run decides how fresh the folder is.
PARTS: tuple[Look, ...] = (
    _score,
    _gate,
    _decisions,
    _study,
    _predictions,
    _model,
    _robustness,
)


# --- helpers --------------------------------------------------------------------------------------------------


def _present(folder: str, name: str, model: type[artefacts.R]) -> artefacts.R | None:
    try:
        there = storage.exists(storage.join(folder, name))
    except (ImageError, OSError) as error:
        raise ConfigurationError(
            f"{storage.redact(folder)!r} can't be read ({storage.redact(str(error))}); check its rights"
        ) from error
    return artefacts.read_record(folder, name, model) if there else None


def moment(text: str | None) -> datetime | None:
    """The moment that ISO 8601 text names, in UTC where it names no zone; None for another text."""
    try:
        found = datetime.fromisoformat(text) if text else None
    except ValueError:
        return None
    return found if found is None or found.tzinfo else found.replace(tzinfo=UTC)


def ago(when: datetime | None, now: datetime) -> str:
    """How long ago in words."""
    return "at an unknown time" if when is None else f"{hours(max(0.0, (now - when).total_seconds()) / 3600)} ago"


def iso(when: datetime | None) -> str | None:
    """A moment for programs."""
    return when.isoformat(timespec="seconds") if when else None


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items()) or "none"


def as_text(status: Status) -> str:
    """For people: a few lines a part, and what is wrong at the end."""
    lines = [f"{status.folder}: {'NOT WELL' if status.problems else 'well'}"]
    for part in status.parts:
        lines += [f"{part.verb:<14} {line}" for line in part.lines]
    lines += [f"problem: {problem}" for problem in status.problems]
    return "\n".join(lines) + "\n"


def as_json(status: Status) -> str:
    """The same for programs."""
    content = asdict(status)
    for part in content["parts"]:
        part["good"] = iso(part["good"])
    return json.dumps({"well": not status.problems, **content}, indent=1) + "\n"

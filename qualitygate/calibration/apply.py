"""Applying a gate to scores, without scoring again: in batches, so that millions of rows need little memory."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from qualitygate.calibration import checks, gate, outputs, sources
from qualitygate.calibration.gate import ABSTAINED, LOW, OPEN, Gate, Voter
from qualitygate.calibration.sources import EXTERNAL, Source
from qualitygate.config import GateConfig, echo
from qualitygate.errors import ConfigurationError
from qualitygate.tables import scores as tables
from qualitygate.tables import storage
from qualitygate.tables.scratch import scratch_folder
from qualitygate.tables.sql import connect, literal

if TYPE_CHECKING:
    import duckdb

STATS = "_gate_stats.json"
DECISIONS = "gate.parquet"
ACCEPTED = "accepted.parquet"
_ROWS_AT_ONCE = 100_000
# The manifest's columns, taken along where the scores have them.
_MANIFEST = ("uri", "box", "etag", "bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How applying a gate ended; stats is also the content of `_gate_stats.json`."""

    output: str
    gate: Gate
    stats: Mapping[str, Any]


def run(config: GateConfig) -> Result:
    """Decide on every row of the scores; write decisions, the accepted manifest and, last, the counts.

    Raises GateRefused when fewer methods can vote than low votes are needed; ConfigurationError when the scores lack
    a method, carry another fingerprint than the gate's, or were left out where a decision needs them. Nothing is
    written then.
    """
    made = gate.load(config.gate)
    voters = made.require(allow_fallback=config.allow_fallback, allow_untrained=config.allow_untrained)
    with scratch_folder() as scratch, connect() as database:
        scores = sources.open_scores(database, config.scores, Path(scratch))
        names = [voter.name for voter in voters]
        scores.require(names, "score those too, or calibrate without them")
        checks.check_scores(database, scores, names)
        _check_asked(database, scores, names)
        external = _external(database, scores, made, names)
        _check_settled(database, scores, made, voters, config)
        output = outputs.check_output(config.output)
        outputs.discard(storage.join(output, STATS))
        storage.write_bytes(storage.join(output, "_config.yaml"), echo(config).encode())
        tally = _decide_all(database, scores, made, voters, config, output)
    stats = outputs.plain(
        {
            "gate_id": made.id,
            "rows": tally.rows,
            "passed": tally.passed,
            "rejected": tally.rows - tally.passed,
            "nulls": {voter.name: tally.nulls[voter.name] for voter in voters},
            "skipped": {voter.name: tally.skipped[voter.name] for voter in voters},
            "by_votes": {str(votes): tally.by_votes[votes] for votes in sorted(tally.by_votes)},
            "pivotal": {voter.name: tally.pivotal[voter.name] / tally.rows for voter in voters},
            "unjudged": tally.unjudged,
            "source": "external" if external else "scores",
            "external": external,
            "votes_needed": made.votes_needed,
            "voters": names,
            "untrained": [name for name in names if name in made.untrained],
            "policy": {"on_null": config.on_null, "allow_fallback": config.allow_fallback},
        }
    )
    outputs.write_json(storage.join(output, STATS), stats)
    return Result(output=output, gate=made, stats=stats)


# ---- checks ----------------------------------------------------------------------------------------------


def _external(database: "duckdb.DuckDBPyConnection", scores: Source, made: Gate, names: Sequence[str]) -> list[str]:
    """Methods that can't be compared because their scores, here or when the gate was made, carry no fingerprint."""
    external = []
    for name in names:
        expected = made.fingerprints.get(name, EXTERNAL)
        found = sources.fingerprints_of(database, scores, name)
        others = [print_ for print_ in found if print_ not in (expected, EXTERNAL)]
        if others and expected != EXTERNAL:
            rows = sum(found[print_] for print_ in others)
            raise ConfigurationError(
                f"gate {made.id} was made on {name} {expected}, but {rows} rows of {scores.name} are {name} "
                f"{' and '.join(others[:3])}; run 'qualitygate calibrate' on these scores, or score as the gate's were"
            )
        if expected == EXTERNAL or EXTERNAL in found:
            external.append(name)
    return external


def _check_asked(database: "duckdb.DuckDBPyConnection", scores: Source, names: Sequence[str]) -> None:
    """ConfigurationError for an empty table, and for rows of which a method was never asked: that is no failure."""
    if not checks.count(database, "SELECT count(*) FROM scores"):
        raise ConfigurationError(f"{scores.name} has no rows; score photographs first")
    for name in names:
        if (state := tables.state_column(name)) in scores.columns:
            asked = (
                f"coalesce({scores.text(state)}, {literal(tables.NOT_REQUESTED)}) <> {literal(tables.NOT_REQUESTED)}"
            )
            without = f"{scores.text(name)} IS NULL AND NOT ({asked})"
            if rows := checks.count(database, f"SELECT count(*) FROM scores WHERE {without}"):
                raise ConfigurationError(
                    f"{scores.name}: {rows} rows were never scored by {name}; run 'qualitygate score --metrics {name} "
                    "--backfill'"
                )


def _check_settled(
    database: "duckdb.DuckDBPyConnection", scores: Source, made: Gate, voters: Sequence[Voter], config: GateConfig
) -> None:
    """ConfigurationError when a score was left out by a lazy run where the decision needs it."""
    skipped = [
        f"coalesce({scores.text(tables.state_column(voter.name))} = {literal(tables.SKIPPED_LAZY)}, false)"
        for voter in voters
        if tables.state_column(voter.name) in scores.columns
    ]
    if not skipped:
        return
    unsettled = 0
    first: str | None = None
    for batch in _batches(database, scores, voters, " OR ".join(skipped)):
        found = gate.decide(_votes(batch, voters, config), made.votes_needed, config.on_null)
        rows = np.flatnonzero(~found.settled)
        unsettled += len(rows)
        if first is None and len(rows):
            first = batch["image_id"][int(rows[0])].as_py()
    if unsettled:
        raise ConfigurationError(
            f"{scores.name}: of {unsettled} photographs (such as {first!r}) a lazy run left out scores that gate "
            f"{made.id} needs, because it asked another gate or policy; run 'qualitygate score --gate' with this gate, "
            "or without --lazy"
        )


# ---- decisions -------------------------------------------------------------------------------------------


class _Tally:
    """Counts over all batches."""

    def __init__(self) -> None:
        self.rows = self.passed = self.unjudged = 0
        self.nulls: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        self.pivotal: Counter[str] = Counter()
        self.by_votes: Counter[int] = Counter()

    def add(
        self,
        votes: gate.Votes,
        nulls: npt.NDArray[np.bool_],
        found: gate.Decisions,
        voters: Sequence[Voter],
        needed: int,
    ) -> None:
        self.rows += len(votes)
        self.passed += int(found.passed.sum())
        self.unjudged += int(np.count_nonzero(np.all(votes == ABSTAINED, axis=1)))
        self.by_votes.update(found.votes_low.tolist())
        for number, voter in enumerate(voters):
            own = votes[:, number]
            self.nulls[voter.name] += int(nulls[:, number].sum())
            self.skipped[voter.name] += int(np.count_nonzero(own == OPEN))
            # With its vote turned, the count would be on the other side of what is needed.
            others = found.votes_low - (own == LOW)
            self.pivotal[voter.name] += int(np.count_nonzero((others == needed - 1) & (own <= LOW)))


def _batches(
    database: "duckdb.DuckDBPyConnection", scores: Source, voters: Sequence[Voter], where: str = "true"
) -> Any:
    """Rows in order of image_id: identity, manifest, each voter's score and whether it was left out."""
    manifest = [f"{_manifest_value(scores, name)} AS {name}" for name in _MANIFEST if name in scores.columns]
    values = [f"{scores.number(voter.name)} AS m{number}" for number, voter in enumerate(voters)]
    states = [
        f"coalesce({scores.text(tables.state_column(voter.name))} = {literal(tables.SKIPPED_LAZY)}, false) AS s{number}"
        for number, voter in enumerate(voters)
    ]
    columns = ", ".join([f"{scores.text('image_id')} AS image_id", *manifest, *values, *states])
    return database.sql(f"SELECT {columns} FROM scores WHERE {where} ORDER BY 1").to_arrow_reader(_ROWS_AT_ONCE)


def _manifest_value(scores: Source, name: str) -> str:
    # A list as our tables have it stays one; in a user's table it may be text, which 'score' reads as well.
    if name == "box" and scores.columns[name].endswith("]"):
        return "CAST(box AS BIGINT[])"
    return f"TRY_CAST({scores.text(name)} AS BIGINT)" if name == "bytes" else scores.text(name)


def _votes(batch: pa.RecordBatch, voters: Sequence[Voter], config: GateConfig) -> gate.Votes:
    """(N, voters)."""
    return np.stack(
        [voter.votes(_numbers(batch, n), _flags(batch, n), config.on_null) for n, voter in enumerate(voters)], axis=1
    )


def _numbers(batch: pa.RecordBatch, number: int) -> npt.NDArray[np.float64]:
    return np.asarray(batch[f"m{number}"].to_numpy(zero_copy_only=False), dtype=np.float64)


def _flags(batch: pa.RecordBatch, number: int) -> npt.NDArray[np.bool_]:
    return np.asarray(batch[f"s{number}"].to_numpy(zero_copy_only=False), dtype=np.bool_)


def _decide_all(
    database: "duckdb.DuckDBPyConnection",
    scores: Source,
    made: Gate,
    voters: Sequence[Voter],
    config: GateConfig,
    output: str,
) -> _Tally:
    tally = _Tally()
    reader = _batches(database, scores, voters)
    kept = ["image_id", *(name for name in _MANIFEST if name in reader.schema.names)]
    accepted_schema = pa.schema([reader.schema.field(name) for name in kept])
    with (
        outputs.parquet_writer(storage.join(output, DECISIONS), _decision_schema(made)) as decisions,
        outputs.parquet_writer(storage.join(output, ACCEPTED), accepted_schema) as accepted,
    ):
        for batch in reader:
            votes = _votes(batch, voters, config)
            found = gate.decide(votes, made.votes_needed, config.on_null)
            nulls = np.stack([np.isnan(_numbers(batch, n)) & ~_flags(batch, n) for n in range(len(voters))], axis=1)
            tally.add(votes, nulls, found, voters, made.votes_needed)
            decisions.write_table(_decision_table(batch["image_id"], votes, found, made, voters))
            chosen = batch.filter(pa.array(found.passed))
            accepted.write_table(pa.Table.from_batches([chosen]).select(kept).cast(accepted_schema))
    return tally


def _decision_schema(made: Gate) -> pa.Schema:
    low = [pa.field(f"low_{name}", pa.bool_()) for name in made.methods]
    ends = [pa.field("votes_low", pa.int64()), pa.field("passed", pa.bool_()), pa.field("gate_id", pa.string())]
    return pa.schema([pa.field("image_id", pa.string()), *low, *ends])


def _decision_table(
    image_id: pa.Array, votes: gate.Votes, found: gate.Decisions, made: Gate, voters: Sequence[Voter]
) -> pa.Table:
    place = {voter.name: number for number, voter in enumerate(voters)}
    columns: list[pa.Array] = [image_id]
    for name in made.methods:
        if name in place:
            own = votes[:, place[name]]
            columns.append(pa.array(own == LOW, mask=own > LOW))
        else:
            columns.append(pa.nulls(len(votes), pa.bool_()))
    columns += [pa.array(found.votes_low), pa.array(found.passed), pa.repeat(made.id, len(votes))]
    return pa.Table.from_arrays(columns, schema=_decision_schema(made))

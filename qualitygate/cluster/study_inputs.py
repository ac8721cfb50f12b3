"""What a study is about: labelled photographs joined with the gate's decisions and scores; which can be read."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from qualitygate.calibration import apply, sources
from qualitygate.calibration.gate import Voter
from qualitygate.cluster import session
from qualitygate.cluster.planning import Progress
from qualitygate.config import GateConfig, StudyConfig, SubsetsConfig
from qualitygate.errors import ConfigurationError
from qualitygate.tables import access, storage
from qualitygate.tables.scratch import scratch_folder
from qualitygate.tables.sql import connect
from qualitygate.training import data, record
from qualitygate.training import pool as pools
from qualitygate.training.pool import Direction, Pool
from qualitygate.training.sampling import CONTROLS, Sampling
from qualitygate.training.study_plan import Design

DECISIONS = "decisions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Labelled photographs in the manifest's order with votes_low, passed and the voting methods' scores."""

    table: pa.Table
    methods: Mapping[str, Direction]
    gate_id: str
    messages: tuple[str, ...]


def read(config: SubsetsConfig, output: str | None) -> Inputs:
    """Join manifest, scores and the gate's decisions, which are written to `output`/decisions where there is one.

    Raises ConfigurationError and GateRefused as `manifest.read` and `apply.run` do; photographs without a decision.
    """
    try:
        photographs = data.labelled(config.manifest, limit=config.limit)
    except ConfigurationError as error:
        raise ConfigurationError(str(error).replace("--input", "--manifest")) from error
    with scratch_folder() as scratch:
        folder = scratch if output is None else storage.join(output, DECISIONS)
        decided = apply.run(
            GateConfig(
                scores=config.scores,
                gate=config.gate,
                output=folder,
                on_null=config.on_null,
                allow_fallback=config.allow_fallback,
                allow_untrained=config.allow_untrained,
            )
        )
        voters = decided.gate.voters(allow_fallback=config.allow_fallback)
        decisions = pq.read_table(
            pa.BufferReader(storage.read_bytes(storage.join(folder, apply.DECISIONS)) or b""),
            columns=["image_id", "votes_low", "passed"],
        )
        scores = _scores(config.scores, voters, Path(scratch))
    table = _beside(_beside(photographs, decisions), scores)
    data.classes_of(table["label"].to_pylist())
    messages = []
    without = table["passed"].null_count
    if without == table.num_rows:
        raise ConfigurationError(
            f"none of the {without:,} photographs of --manifest is in --scores (ids such as "
            f"{data.shown(photographs['image_id'].to_pylist())} against "
            f"{data.shown(decisions['image_id'].to_pylist())}); score that manifest"
        )
    if skipped := sum(decided.stats["skipped"].values()):
        messages.append(
            f"{skipped:,} scores were left out by a lazy run: they rank last in the order of quality; score without "
            "--lazy for a full one"
        )
    if decided.stats["untrained"]:
        messages.append(f"UNTRAINED: {', '.join(decided.stats['untrained'])}: the gate's decisions mean nothing")
    return Inputs(
        table=table,
        methods={voter.name: voter.direction for voter in voters},
        gate_id=decided.gate.id,
        messages=tuple(messages),
    )


def _scores(location: str, voters: tuple[Voter, ...], scratch: Path) -> pa.Table:
    with connect() as database:
        source = sources.open_scores(database, location, scratch)
        columns = [f'{source.number(voter.name)} AS "{voter.name}"' for voter in voters]
        found: pa.Table = database.sql(
            f"SELECT {source.text('image_id')} AS image_id, {', '.join(columns)} FROM scores"
        ).to_arrow_table()
    return found


def _beside(left: pa.Table, right: pa.Table) -> pa.Table:
    """The columns of `right` beside those of `left`, by image_id, null where it lacks one; `left`'s order is kept."""
    place = pc.index_in(left["image_id"].cast(pa.string()), value_set=right["image_id"].cast(pa.string()))
    for name in right.column_names:
        if name != "image_id" and name not in left.column_names:
            left = left.append_column(name, right[name].combine_chunks().take(place.combine_chunks()))
    return left


def readable(
    inputs: Inputs,
    rows: np.ndarray[Any, Any],
    sha256: tuple[str, ...],
    unread: tuple[data.Unread, ...],
    policy: str,
) -> tuple[pa.Table, list[str]]:
    """(the photographs that could be read, with the hash of their files; what to say of the others).

    policy: `drop` leaves them out of every subset alike, `refuse` refuses the study.
    """
    total = inputs.table.num_rows
    messages = []
    if unread:
        if policy == "refuse":
            raise ConfigurationError(
                f"{data.counted_unread(unread, total)}; "
                "mend the manifest, or leave them out of every subset with --on-unreadable drop"
            )
        message = data.refuse_unreadable(unread, total)
        messages.append(f"{message}, out of every subset alike")
    table = inputs.table.take(pa.array(rows)).append_column("sha256", pa.array(sha256, pa.string()))
    gone = sorted(set(inputs.table["label"].to_pylist()) - set(table["label"].to_pylist()))
    if gone:
        raise ConfigurationError(f"no photograph labelled {data.shown(gone)} can be read; leave that label out")
    return table, messages


def sampling(config: SubsetsConfig) -> Sampling:
    """How the configuration wants subsets drawn."""
    return Sampling(
        kinds=(*config.kinds, *(CONTROLS if config.controls else ())),
        removed=config.removed,
        train_images=config.train_images,
        test_fraction=config.test_fraction,
        eval_fraction=config.eval_fraction,
        strict_size=config.strict_size,
        resample=config.resample,
        seed=config.seed,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pixels:
    """References to decoded photographs, and where each of the pool lies among them."""

    chunks: tuple[Any, ...]
    place: np.ndarray[Any, np.dtype[np.int64]]


def pool_of(
    config: SubsetsConfig,
    inputs: Inputs,
    cluster: session.Cluster,
    image_size: int,
    progress: Progress,
    *,
    seen: str | None = None,
) -> tuple[Pool, Pixels, list[str]]:
    """The photographs that can be read, as a pool, and their pixels.

    seen: where the ids are that the parameters to start from were trained on; ConfigurationError if any is here.
    """
    from qualitygate.cluster import photographs as decoding

    started = time.monotonic()
    decoded = decoding.decode(inputs.table.select(["uri", "box"]).to_pylist(), image_size, cluster, access.of(config))
    progress.note(f"decoded {len(decoded.rows):,} photographs in {time.monotonic() - started:.1f} s")
    unread = data.unread(inputs.table["image_id"].to_pylist(), decoded.failures)
    table, messages = readable(inputs, decoded.rows, decoded.sha256, unread, config.on_unreadable)
    _refuse_seen(table, seen)
    pool = pools.prepare(table, inputs.methods)
    # The pool is in the order of ids, the pixels in the manifest's.
    lies = {image_id: row for row, image_id in enumerate(table["image_id"].to_pylist())}
    place = np.array([lies[image_id] for image_id in pool.image_id], dtype=np.int64)
    return pool, Pixels(chunks=decoded.chunks, place=place), [*inputs.messages, *messages]


def _refuse_seen(table: pa.Table, ids: str | None) -> None:
    if "group" not in table.column_names:
        table = table.append_column("group", table["image_id"])
    found = pc.sum(record.trained_on(ids, table).cast(pa.int64())).as_py()
    if found:
        raise ConfigurationError(
            f"--weights were trained on {found:,} of these photographs, or on others of their groups "
            f"({storage.redact(ids or '')!r}), so a test on them would be none; start from others, or leave these out"
        )


def design(config: StudyConfig, weights: dict[str, str | None], *, on_gpu: bool) -> Design:
    """The configuration as a design; `training` holds all that decides a result beside photographs and weights."""
    precision = ("bfloat16" if on_gpu else "float32") if config.precision == "auto" else config.precision
    return Design(
        architectures=config.architectures,
        varying_architectures=config.varying_architectures,
        repetitions=config.seeds,
        sampling=sampling(config),
        training={
            "epochs": config.epochs,
            "batch_size": config.batch_size,
            "optimizer": "adam",
            "learning_rate": config.learning_rate,
            "weight_decay": config.weight_decay,
            "image_size": config.image_size,
            "augment": config.augment,
            "device": "cuda" if on_gpu else "cpu",
            "precision": precision,
            # Sums on a CPU depend on the number of threads; a batch's statistics on the processes that share it.
            "threads": None if on_gpu else config.threads,
            "processes": config.ddp,
        },
        weights=weights,
        equal_steps=config.equal_steps,
    )

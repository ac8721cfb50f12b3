"""Subsets on disk: a Parquet file of ids and groups for each part, and an index with hashes, written last."""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qualitygate.errors import ConfigurationError
from qualitygate.tables import storage
from qualitygate.training.data import shown
from qualitygate.training.pool import ORDER_RULE, Direction, Pool
from qualitygate.training.sampling import Part, Repetition, Sampling, Subset, check_disjoint, part_of

FOLDER = "subsets"
INDEX = "subsets.json"
FORMAT = "qualitygate-subsets"
VERSION = 1
SCHEMA = pa.schema([pa.field("image_id", pa.string(), nullable=False), pa.field("group", pa.string(), nullable=False)])


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    name: str
    part: Part
    about: Mapping[str, Any]


def write(
    folder: str, pool: Pool, repetitions: Sequence[Repetition], sampling: Sampling, methods: Mapping[str, Direction]
) -> str:
    """Write `<kind>-<removed>-<repetition>-{train,eval,test}.parquet`, the three test sets and the index; its URI.

    folder: `DIR/subsets`, a path or a URI. The `test` of each subset is the paper's, the high-quality one, the same
    for all of a repetition; `tests-<repetition>-{high,all,rejected}.parquet` are all three.

    What is there already stays: files with the same hash are left alone, one that is gone is written again, and
    further repetitions and kinds are added. Raises ConfigurationError where a file of the same name holds another
    subset, by the index or by its content.
    """
    files = {file.name: file for file in _files(repetitions)}
    known = {entry["file"]: entry for entry in _index(folder)["files"]} if storage.exists(_index_uri(folder)) else {}
    changed = [name for name, file in files.items() if name in known and known[name]["sha256"] != file.part.sha256]
    if changed:
        raise ConfigurationError(
            f"{folder!r} holds {len(changed):,} other subsets of the same name ({shown(changed)}): another seed, other "
            "photographs or another gate; choose another --output"
        )
    for name, file in files.items():
        if name in known and storage.exists(storage.join(folder, name)):
            _part(folder, pool, known, name)
        else:
            buffer = io.BytesIO()
            pq.write_table(table(pool, file.part), buffer)
            storage.write_bytes(storage.join(folder, name), buffer.getvalue())
    entries = {name: entry for name, entry in known.items() if name not in files}
    entries |= {name: _entry(pool, file) for name, file in files.items()}
    document = {
        "format": FORMAT,
        "version": VERSION,
        "photographs": len(pool.label),
        "passed": int(pool.passed.sum()),
        "groups": len(np.unique(pool.unit)),
        "classes": pool.counts(np.arange(len(pool.label))),
        "seed": sampling.seed,
        "resample": sampling.resample,
        "quality_order": {"rule": ORDER_RULE, "methods": dict(methods)},
        "files": [entries[name] for name in sorted(entries)],
        "messages": list(dict.fromkeys([*pool.notes, *(text for found in repetitions for text in found.messages)])),
    }
    uri = _index_uri(folder)
    storage.write_bytes(uri, json.dumps(document, indent=1, ensure_ascii=False).encode())
    return uri


def table(pool: Pool, part: Part) -> pa.Table:
    """image_id and group of a part; a photograph without a group has its own id there."""
    return pa.table(
        {"image_id": pool.image_id[part.rows].tolist(), "group": pool.group[part.rows].tolist()}, schema=SCHEMA
    )


def read(folder: str, pool: Pool, kind: str, removed: float, repetition: int) -> tuple[Subset, dict[str, Part]]:
    """A written subset and the test sets of its repetition, as rows of the pool.

    Raises ConfigurationError: a file that is absent, holds unknown photographs, differs from the index in content or
    in the photographs' groups and labels, or shares groups with another.
    """
    entries = {entry["file"]: entry for entry in _index(folder)["files"]}
    stem = f"{kind}-{removed:g}-{repetition}"
    parts = {name: _part(folder, pool, entries, f"{stem}-{name}.parquet") for name in ("train", "eval")}
    tests = {
        name: _part(folder, pool, entries, f"tests-{repetition}-{name}.parquet") for name in ("high", "all", "rejected")
    }
    subset = Subset(kind=kind, removed=removed, repetition=repetition, train=parts["train"], evaluation=parts["eval"])
    check_disjoint(pool, subset, tests)
    return subset, tests


def _files(repetitions: Sequence[Repetition]) -> Iterable[_File]:
    for found in repetitions:
        for name, part in found.tests.items():
            about = {"repetition": found.number, "part": "tests", "test": name}
            yield _File(name=f"tests-{found.number}-{name}.parquet", part=part, about=about)
        for subset in found.subsets:
            named = (("train", subset.train), ("eval", subset.evaluation), ("test", found.tests["high"]))
            for name, part in named:
                about = {"repetition": found.number, "part": name, "kind": subset.kind, "removed": subset.removed}
                yield _File(name=f"{subset.name}-{name}.parquet", part=part, about=about)


def _entry(pool: Pool, file: _File) -> dict[str, Any]:
    rows = file.part.rows
    return {
        "file": file.name,
        **file.about,
        "rows": len(rows),
        "groups": len(np.unique(pool.unit[rows])),
        "classes": pool.counts(rows),
        "passed": int(pool.passed[rows].sum()),
        "sha256": file.part.sha256,
    }


def _index_uri(folder: str) -> str:
    return storage.join(folder, INDEX)


def _index(folder: str) -> dict[str, Any]:
    data = storage.read_bytes(_index_uri(folder))
    try:
        document = json.loads(data or b"")
    except ValueError as error:
        raise ConfigurationError(
            f"{_index_uri(folder)!r} is absent or no JSON: the subsets aren't complete; draw them again"
        ) from error
    if not isinstance(document, dict) or (document.get("format"), document.get("version")) != (FORMAT, VERSION):
        raise ConfigurationError(
            f"{_index_uri(folder)!r} is no index of subsets of version {VERSION}; choose another --output"
        )
    return document


def _part(folder: str, pool: Pool, entries: Mapping[str, Mapping[str, Any]], name: str) -> Part:
    uri = storage.join(folder, name)
    data = storage.read_bytes(uri)
    if name not in entries or data is None:
        raise ConfigurationError(f"subset {uri!r} is not there; draw the subsets again")
    try:
        ids = pq.read_table(io.BytesIO(data), columns=["image_id"])["image_id"].to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ConfigurationError(
            f"subset {uri!r} can't be read ({' '.join(str(error).split())[:120]}); draw again"
        ) from error
    places = {image_id: row for row, image_id in enumerate(pool.image_id)}
    unknown = [image_id for image_id in ids if image_id not in places]
    if unknown:
        raise ConfigurationError(
            f"subset {uri!r}: {len(unknown):,} of {len(ids):,} photographs are not in the manifest ({shown(unknown)}); "
            "give the manifest that it was drawn from, or draw again"
        )
    part = part_of(pool, np.array(sorted(places[image_id] for image_id in ids), dtype=np.int64))
    if part.sha256 != entries[name]["sha256"]:
        raise ConfigurationError(
            f"subset {uri!r} is not what was drawn: photographs, groups, labels or contents have changed since; draw "
            "again into another --output"
        )
    return part

"""Taking photographs out of a Delta table, its older versions included, so that none of its files names them any more.

The rows are removed by a commit of a new epoch: a run that is at work is stopped, as it could write them again. Files
of older versions that hold such rows are deleted. The log keeps every commit, but for the statistics of files that are
no longer part of the table, which hold the least and greatest id: so the fencing of runs stays whole, and older
versions can't be read any more.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from qualitygate.tables import purge_files, scores, storage
from qualitygate.tables.mentions import Ids
from qualitygate.tables.scratch import scratch_folder

LOG = "_delta_log"


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What of a table's files holds the ids, by name below the table: rows, or places in the log."""

    current: Mapping[str, int]
    older: Mapping[str, int]
    log: Mapping[str, int]

    @property
    def files(self) -> dict[str, int]:
        return {**self.current, **self.older, **self.log}


def held(uri: str, ids: Ids) -> Held:
    """Which files below a table hold one of the ids. uri: of the table itself, the folder with `_delta_log`."""
    live = _live(scores.at_version(uri))
    current: dict[str, int] = {}
    older: dict[str, int] = {}
    log: dict[str, int] = {}
    for item in storage.everything(uri):
        with local(item.uri) as path:
            if item.name.startswith(f"{LOG}/"):
                if count := _in_log(path, ids):
                    log[item.name] = count
            elif item.name.endswith(".parquet") and (count := _in_data(path, ids)):
                (current if item.name in live else older)[item.name] = count
    return Held(current=current, older=older, log=log)


def _live(table: Any) -> set[str]:
    return {name.rsplit("/", 1)[1] for name in table.file_uris()}


def _in_data(path: Path, ids: Ids) -> int:
    try:
        return purge_files.parquet(path, ids)
    except (pa.ArrowException, OSError):
        # Half written, and named by no commit.
        return purge_files.binary(path, ids)


def _in_log(path: Path, ids: Ids) -> int:
    """Places in a commit or checkpoint that name an id: statistics, which are JSON inside JSON, and predicates."""
    if path.name.endswith(".parquet"):
        found = 0
        for row in pq.read_table(path, columns=["add", "remove"]).to_pylist():
            for action in (row.get("add"), row.get("remove")):
                found += bool(action) and bool(action.get("stats")) and _in_statistics(action["stats"], ids)
        return found
    found = 0
    for line in path.read_text(encoding="utf-8").splitlines():
        action = json.loads(line) if line.strip() else {}
        found += any(
            _in_statistics(action[kind]["stats"], ids)
            for kind in ("add", "remove")
            if isinstance(action.get(kind), dict) and action[kind].get("stats")
        )
        found += _in_condition(action.get("commitInfo") or {}, ids)
    return found


def _in_condition(info: dict[str, Any], ids: Ids) -> bool:
    noted = str((info.get("operationParameters") or {}).get("predicate") or "")
    # As SQL has it, in single quotes.
    quoted = any(ids.is_one(one.replace("''", "'")) for one in re.findall(r"'((?:[^']|'')*)'", noted))
    return quoted or bool(ids.inside(json.dumps(info, ensure_ascii=False)))


def _in_statistics(text: str, ids: Ids) -> bool:
    stats = json.loads(text)
    ends = [stats.get(end, {}).get("image_id") for end in ("minValues", "maxValues")]
    return any([*(ids.is_one(end) for end in ends), bool(ids.inside(text))])


def remove(uri: str, output: str | None, ids: Ids) -> None:
    """Do it. uri: of the table. output: the folder of a score table, whose writer is used; None: another table."""
    before = {item.name for item in storage.everything(uri)}
    first = scores.at_version(uri).version()
    if output is not None:
        table = scores.existing_table(output)
        writer = scores.Writer(output, scores.metrics_of(table), f"{scores.PURGE}{table.version()}")
        writer.remove(sorted(ids.exact))
    else:
        scores.delete_ids(scores.at_version(uri), sorted(ids.exact))
    table = scores.at_version(uri)
    # First a checkpoint, which needs nothing of the commits before it.
    table.create_checkpoint()
    live, version = _live(table), table.version()
    # Many ids are removed some at a time, and what the first commits wrote, later ones replaced.
    before |= _written(uri, first, version)
    for item in storage.everything(uri):
        if not item.name.startswith(f"{LOG}/"):
            continue
        name = item.name.removeprefix(f"{LOG}/")
        if ".checkpoint" in name and name.split(".")[0].isdigit() and int(name.split(".")[0]) < version:
            storage.delete(item.uri)
        elif name.endswith(".json") and name.split(".")[0].isdigit():
            _forget_statistics(item.uri, live, ids)
    for item in storage.everything(uri):
        # What has come since the claim is another run's, whose commit would name a file that is gone.
        if item.name in before and item.name.endswith(".parquet") and not item.name.startswith(f"{LOG}/"):
            with local(item.uri) as path:
                holds = item.name not in live and _in_data(path, ids)
            if holds:
                storage.delete(item.uri)


def _written(uri: str, first: int, last: int) -> set[str]:
    """Files that the commits after a version, up to another, have added."""
    found = set()
    for number in range(first + 1, last + 1):
        for line in (scores.log_entry(uri, number) or b"").splitlines():
            added = json.loads(line).get("add") if line.strip() else None
            if added:
                found.add(added["path"].rsplit("/", 1)[-1])
    return found


def _forget_condition(info: dict[str, Any] | None, ids: Ids) -> bool:
    """Take the note of a condition, which may name ids, out of a commit's account of itself; whether there was one."""
    if not info:
        return False
    parameters = info.get("operationParameters")
    noted = isinstance(parameters, dict) and parameters.pop("predicate", None) is not None
    said = json.dumps(info, ensure_ascii=False)
    if not ids.inside(said):
        return noted
    cleaned = json.loads(ids.replaced(said))
    info.clear()
    info.update(cleaned)
    return True


def _forget_statistics(uri: str, live: set[str], ids: Ids) -> None:
    """Write a commit again without the statistics of files that are no longer part of the table."""
    entry = storage.read_bytes(uri)
    actions = [json.loads(line) for line in (entry or b"").splitlines() if line.strip()]
    changed = False
    for action in actions:
        for kind in ("add", "remove"):
            file = action.get(kind)
            if isinstance(file, dict) and file.get("stats") and file["path"].rsplit("/", 1)[-1] not in live:
                file["stats"] = json.dumps({"numRecords": json.loads(file["stats"]).get("numRecords")})
                changed = True
        changed |= _forget_condition(action.get("commitInfo"), ids)
    if changed:
        storage.write_bytes(uri, "".join(f"{json.dumps(action)}\n" for action in actions).encode())


@contextmanager
def local(uri: str) -> Iterator[Path]:
    """A file's content as a local file: itself, or a copy."""
    if storage.is_local(uri):
        yield Path(storage.local_path(uri).decode("utf-8", "surrogateescape"))
        return
    with scratch_folder() as scratch:
        path = Path(scratch) / uri.rsplit("/", 1)[-1]
        storage.download(uri, str(path))
        yield path

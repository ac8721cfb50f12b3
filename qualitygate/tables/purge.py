"""Erasure: everything that the outputs below a folder know of some photographs goes, and it is proved that it is gone.

Files are known by their kind, not by who wrote them: tables lose rows, records lose entries, pages and pictures that
show photographs are deleted, Delta tables lose their history too. What can't be rewritten is only searched. The
photographs themselves are never touched, nor is gate.json, whose id is the hash of its content.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from qualitygate.errors import ConfigurationError, ImageError
from qualitygate.tables import purge_files, purge_history, scores, storage
from qualitygate.tables.mentions import Ids
from qualitygate.tables.purge_history import LOG, local
from qualitygate.tables.scratch import scratch_folder

logger = logging.getLogger(__name__)

_GATE = "gate.json"
# The start of a page holds who made it.
_GENERATOR = b'<meta name="generator" content="qualitygate'
_HEAD_BYTES = 1 << 16
_PAGES = (".html", ".htm")
# Named by ids, perhaps, but no place for text.
_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".heic", ".heif", ".tif", ".tiff", ".bmp", ".gif")
# Their records beside these pictures say whose they are.
_SHOWN_BY = ("robustness.json", "robustness.parquet")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A file that holds ids: what was done, or would be, and in how many places.

    action: rewrite, delete, keep (it can't be rewritten, or isn't ours to).
    """

    name: str
    action: str
    places: int
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Purged:
    """What a purge did, or would. absent: ids that were met nowhere. remaining: files that hold an id after it.

    indistinct: ids so short that free text was not searched for them.
    """

    ids: int
    absent: tuple[str, ...]
    indistinct: tuple[str, ...]
    found: tuple[Found, ...]
    remaining: tuple[Found, ...]
    notes: tuple[str, ...]
    done: bool


def read_ids(uri: str) -> list[str]:
    """The ids of a file: the column image_id of Parquet or CSV, or a line each. ConfigurationError for none."""
    try:
        with local(uri) as path:
            suffix = path.suffix.lower()
            if suffix == ".parquet":
                if "image_id" not in pq.read_schema(path).names:
                    raise ConfigurationError(f"--ids {storage.redact(uri)!r} has no column image_id")
                found = pq.read_table(path, columns=["image_id"])["image_id"].cast(pa.string()).to_pylist()
            elif suffix == ".csv":
                found = _of_csv(path, uri)
            else:
                found = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError, pa.ArrowException, ImageError) as error:
        reason = storage.redact(str(error)).splitlines()[0][:200]
        raise ConfigurationError(f"--ids {storage.redact(uri)!r} can't be read ({reason}); check it") from error
    ids = list(dict.fromkeys(one.strip("\r\n") for one in found if one is not None and one.strip()))
    if not ids:
        raise ConfigurationError(f"--ids {storage.redact(uri)!r} names no image_id")
    return ids


def _of_csv(path: Path, uri: str) -> list[str]:
    import csv

    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        if "image_id" not in (rows.fieldnames or ()):
            raise ConfigurationError(f"--ids {storage.redact(uri)!r} has no column image_id")
        return [row["image_id"] for row in rows]


def purge(output: str, ids_uri: str, *, apply: bool) -> Purged:
    """Erase the photographs of a list from everything below a folder or prefix; without `apply`, only look.

    A job that is scoring into a table that holds one of them is stopped. Raises ConfigurationError for a list that
    can't be read or a folder that isn't there.
    """
    ids = Ids(read_ids(ids_uri))
    if not storage.is_folder(output):
        raise ConfigurationError(f"--output {storage.redact(output)!r} is no folder or prefix; check it")
    notes: list[str] = []
    found = tuple(_look(output, ids, ids_uri, notes))
    # By the first look: what was removed can't be met any more.
    absent = tuple(sorted(ids.exact - ids.met))
    remaining: tuple[Found, ...] = ()
    if apply:
        _erase(output, ids, found)
        remaining = tuple(_look(output, ids, ids_uri, []))
    return Purged(
        ids=len(ids.exact),
        absent=absent,
        indistinct=tuple(sorted(ids.indistinct)),
        found=found,
        remaining=remaining,
        notes=tuple(notes),
        done=apply,
    )


def _tables(names: list[str]) -> list[str]:
    """Delta tables among these files: the folders' names, "" for the folder itself."""
    return sorted({"/".join(name.split("/")[: name.split("/").index(LOG)]) for name in names if LOG in name.split("/")})


def _within(name: str, folder: str) -> bool:
    return not folder or name.startswith(f"{folder}/")


def _look(output: str, ids: Ids, ids_uri: str, notes: list[str]) -> Iterator[Found]:
    """Every file that holds an id, and what is to be done about it."""
    listed = sorted(storage.everything(output), key=lambda item: item.name)
    tables = _tables([item.name for item in listed])
    for table in tables:
        yield from _in_table(output, table, ids)
    pictured: set[str] = set()
    pictures, reports = [], []
    for item in listed:
        if any(_within(item.name, table) for table in tables):
            continue
        if storage.join(output, item.name) == ids_uri or item.uri == ids_uri:
            notes.append(f"{item.name} is the list of ids itself: it is left as it is")
            continue
        folder, _, last = item.name.rpartition("/")
        if ids.in_name(item.name):
            yield Found(name=item.name, action="keep", places=1, why="named by an id: delete it yourself")
        elif last.lower().endswith(_PICTURES):
            pictures.append(item.name)
        elif last.lower().endswith(_PAGES) and (places := _in_report(item, ids)) is not None:
            reports.append((item.name, places))
        elif (one := _in_file(item, ids)) is not None:
            yield one
            if last in _SHOWN_BY:
                pictured.add(folder)
            notes += _consequences(item.name)
    for name, places in reports:
        # Thumbnails can't be searched: where anything knew the photographs, a report may show them.
        if places or ids.met:
            why = "a report, which may show them: run 'report' again, of one of several nights with --night"
            yield Found(name=name, action="delete", places=places, why=why)
    for name in pictures:
        if name.lower().endswith(".png") and name.rpartition("/")[0] in pictured:
            yield Found(name=name, action="delete", places=1, why="a picture of one of them: run 'robustness' again")


def _in_table(output: str, table: str, ids: Ids) -> Iterator[Found]:
    held = purge_history.held(storage.join(output, table) if table else output, ids)
    for group, why in ((held.current, "rows"), (held.older, "rows of older versions"), (held.log, "the table's log")):
        action = "delete" if group is held.older else "rewrite"
        for name, places in sorted(group.items()):
            whole = f"{table}/{name}" if table else name
            yield Found(name=whole, action=action, places=places, why=why)


def _in_file(item: storage.Listed, ids: Ids) -> Found | None:
    with local(item.uri) as path:
        last = item.name.rsplit("/", 1)[-1]
        cleaner = purge_files.CLEANERS.get(path.suffix.lower())
        places, why = None, ""
        if cleaner is not None:
            try:
                places = cleaner(path, ids, None)
            except (ValueError, OSError, pa.ArrowException) as error:
                why = f"it can't be read as {path.suffix[1:]} ({type(error).__name__}): delete it yourself"
        if places is None:
            places = purge_files.binary(path, ids)
            why = why or "a kind of file that isn't rewritten: delete it yourself, or make it again"
            return Found(name=item.name, action="keep", places=places, why=why) if places else None
    if not places:
        return None
    if last == _GATE:
        return Found(name=item.name, action="keep", places=places, why="a gate is never changed: calibrate again")
    return Found(name=item.name, action="rewrite", places=places)


def _in_report(item: storage.Listed, ids: Ids) -> int | None:
    """Mentions in a page of ours; None for another's."""
    with local(item.uri) as path, path.open("rb") as page:
        ours = _GENERATOR in page.read(_HEAD_BYTES)
        return purge_files.sentences(path, ids) if ours else None


def _consequences(name: str) -> list[str]:
    """What rewriting a file means for other files, which stay as they are."""
    *folders, last = name.split("/")
    if last == "training_ids.parquet":
        return ["a classifier was trained on them: its parameters stay as they are; train again without them"]
    if {"subsets", "ledger"} & set(folders):
        return [
            "a study used them: its results stay as they are, and it can't be resumed; a new one needs a new --output"
        ]
    return []


def _erase(output: str, ids: Ids, found: tuple[Found, ...]) -> None:
    uris = {item.name: item.uri for item in storage.everything(output)}
    tables = _tables(list(uris))
    for table in tables:
        if any(_within(one.name, table) for one in found):
            uri = storage.join(output, table) if table else output
            # The table of a scoring run, by its place and by what claims it.
            of_scores = uri.rpartition("/")[2] == "scores" and _is_claimed(uri)
            purge_history.remove(uri, uri.rpartition("/")[0] if of_scores else None, ids)
    for one in found:
        if any(_within(one.name, table) for table in tables) or one.action == "keep":
            continue
        if one.action == "delete":
            storage.delete(uris[one.name])
        else:
            _rewrite(uris[one.name], ids)


def _is_claimed(uri: str) -> bool:
    return scores.at_version(uri).transaction_version(scores.APPLICATION) is not None


def _rewrite(uri: str, ids: Ids) -> None:
    with local(uri) as path, scratch_folder() as scratch:
        target = Path(scratch) / path.name
        purge_files.CLEANERS[path.suffix.lower()](path, ids, target)
        if target.exists():
            storage.publish(target, uri)
        else:
            # All of it was about one photograph.
            storage.delete(uri)
    logger.info("%s no longer names them", storage.redact(uri))

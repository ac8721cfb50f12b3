"""Labelled photographs for a classifier: which there are, their pixels at one size, and who is kept out.

A classifier sees the whole photograph (or its box) as a square: both sides are resized to `image_size`, without
cropping, so that nothing at the border is lost and a photograph that isn't square is squeezed.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from qualitygate.errors import ConfigurationError, ErrorCode, Failure, ImageError
from qualitygate.images.decode import Box, DecodePolicy, decode
from qualitygate.tables import manifest, storage

logger = logging.getLogger(__name__)

MAX_BYTES = 512 << 20
# As many photographs may be left out of a training unasked as `score` lets fail.
MAX_UNREADABLE = 0.1
SUBSETS = ("train", "eval")
_FETCHED_AT_ONCE = 8
_MOST_FOLDS = 20
_SHOWN = 3

UInt8 = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]


# ---- which photographs -------------------------------------------------------------------------------------


def labelled(source: str, *, limit: int | None = None) -> pa.Table:
    """The manifest with label, group and split as text, every row labelled.

    Raises ConfigurationError as `manifest.read` does, and for rows without a label, with their number.
    """
    table = manifest.read(source, ("label", "group", "split"), limit=limit)
    bare = pc.equal(pc.fill_null(pc.utf8_trim_whitespace(table["label"]), ""), "")
    missing = table.filter(bare)["image_id"].to_pylist()
    if len(missing) == table.num_rows:
        raise ConfigurationError(
            f"--input {storage.redact(source)!r} has no labels; give a manifest with image_id, uri and label"
        )
    if missing:
        raise ConfigurationError(
            f"{len(missing):,} of {table.num_rows:,} rows of --input {storage.redact(source)!r} have no label "
            f"({shown(missing)}); label them or leave them out"
        )
    return table


def classes_of(labels: Sequence[str]) -> tuple[str, ...]:
    """The different labels in alphabetical order, which is that of a classifier's outputs; two at least."""
    classes = tuple(sorted(set(labels)))
    if len(classes) < 2:
        raise ConfigurationError(
            f"all {len(labels):,} photographs have the label {shown(classes)}; a classifier needs two labels at least"
        )
    return classes


def shown(names: Sequence[Any]) -> str:
    """The first few of many, quoted."""
    return ", ".join(repr(name) for name in names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


# ---- their pixels ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """One photograph ready for a classifier, or why it isn't.

    pixels: (3, image_size, image_size) uint8 RGB. sha256: of the file, where it could be fetched.
    """

    pixels: UInt8 | None = None
    sha256: str | None = None
    failure: Failure | None = None


def prepare(
    rows: Iterable[Mapping[str, Any]], image_size: int, access: storage.Access = storage.DEFAULT
) -> Iterator[Prepared]:
    """Fetch, decode strictly and resize each row's photograph, in order; never raises for a photograph.

    rows: with `uri` and `box`. A few are fetched at a time, which hides a store's latency and bounds the memory.
    """
    rows = iter(rows)
    fetch = partial(_fetch, access=access)
    with ThreadPoolExecutor(_FETCHED_AT_ONCE, thread_name_prefix="fetch") as fetchers:
        while some := list(islice(rows, _FETCHED_AT_ONCE)):
            for row, fetched in zip(some, list(fetchers.map(fetch, (row["uri"] for row in some))), strict=True):
                yield _prepared(fetched, row.get("box"), image_size)


def _fetch(uri: str | None, access: storage.Access) -> bytes | Failure:
    try:
        return storage.fetch(uri, max_bytes=MAX_BYTES, access=access).data
    except ImageError as error:
        return error.failure
    except MemoryError:
        return Failure(ErrorCode.OUT_OF_MEMORY, "no memory for the file's bytes")


def _prepared(fetched: bytes | Failure, box: Sequence[int] | None, image_size: int) -> Prepared:
    if isinstance(fetched, Failure):
        return Prepared(failure=fetched)
    digest = hashlib.sha256(fetched).hexdigest()
    try:
        return Prepared(pixels=_decoded(fetched, box, image_size), sha256=digest)
    except ImageError as error:
        return Prepared(sha256=digest, failure=error.failure)
    except MemoryError:
        return Prepared(sha256=digest, failure=Failure(ErrorCode.OUT_OF_MEMORY, "no memory to decode it"))
    except Exception as error:
        # The decoder promises to raise nothing else. If it does, that is our bug, and the photograph gets its row.
        logger.exception("decode raised for %d bytes", len(fetched))
        message = f"decoder raised {type(error).__name__}: {error}"[:300]
        return Prepared(sha256=digest, failure=Failure(ErrorCode.UNDECODABLE, message))


def _decoded(data: bytes, box: Sequence[int] | None, image_size: int) -> UInt8:
    region: Box | None = None
    if box is not None:
        if len(box) != 4:
            raise ImageError(ErrorCode.UNSUPPORTED, f"box {list(box)} isn't four integers x, y, w, h")
        region = (box[0], box[1], box[2], box[3])
    return square(decode(data, DecodePolicy(), region).photograph.rgb, image_size)


def square(rgb: UInt8, image_size: int) -> UInt8:
    """(H, W, 3) to (3, image_size, image_size) uint8: areas averaged where a side shrinks, linear where it grows."""
    import cv2

    height, width = rgb.shape[:2]
    # OpenCV's area averaging is one only when it shrinks both sides.
    smaller = (min(width, image_size), min(height, image_size))
    if smaller != (width, height):
        rgb = cv2.resize(rgb, smaller, interpolation=cv2.INTER_AREA)
    if smaller != (image_size, image_size):
        rgb = cv2.resize(rgb, (image_size, image_size), interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(rgb.transpose(2, 0, 1))


@dataclass(frozen=True, slots=True)
class Unread:
    """A photograph that couldn't be read, and why."""

    image_id: str
    failure: Failure


def unread(image_ids: Sequence[str], failures: Sequence[tuple[int, Failure]]) -> tuple[Unread, ...]:
    """Failures by row, with the ids of all rows."""
    return tuple(Unread(image_ids[row], failure) for row, failure in failures)


def counted_unread(photographs: Sequence[Unread], rows: int) -> str:
    """How many of so many can't be read, by code, and the first ones' names with why the first."""
    counts = Counter(one.failure.code.value for one in photographs)
    codes = ", ".join(f"{count:,} {code}" for code, count in counts.most_common())
    return (
        f"{len(photographs):,} of {rows:,} photographs can't be read ({codes}: "
        f"{shown([one.image_id for one in photographs])}; the first: {photographs[0].failure.message})"
    )


def refuse_unreadable(photographs: Sequence[Unread], rows: int) -> str | None:
    """What to say of photographs that are left out; ConfigurationError where they are more than a tenth."""
    if not photographs:
        return None
    said = counted_unread(photographs, rows)
    if len(photographs) > MAX_UNREADABLE * rows:
        raise ConfigurationError(f"{said}: more than {MAX_UNREADABLE:.0%}; mend the manifest or leave them out")
    return f"{said} and are left out"


# ---- who is kept out ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Row numbers, ascending, of those trained on and those kept out; and what the user should know about it."""

    train: Indices
    evaluation: Indices
    notes: tuple[str, ...] = ()


def split(photographs: pa.Table, *, fraction: float, seed: int) -> Split:
    """Keep some out by the column `split` (train, eval) where there is one, else a share of about `fraction`.

    photographs: label, group, split, and sha256 where known. No group is on both sides: drawn ones are stratified by
    label and keep groups whole, and files of the same bytes count as one group.

    Raises ConfigurationError: fewer than two classes to train on, a group on both sides of the column, too few groups.
    """
    labels = np.array(photographs["label"].to_pylist(), dtype=object)
    classes_of(labels.tolist())
    found = given_split(photographs)
    if found is None:
        found = _drawn_split(photographs, labels, fraction, seed)
    _check_classes(labels, found)
    return found


def given_split(photographs: pa.Table) -> Split | None:
    """The split that the column `split` gives, None where it is empty; ConfigurationError as `split` says."""
    column = photographs["split"]
    if column.null_count == photographs.num_rows:
        return None
    values = Counter(column.to_pylist())
    wrong = {value: count for value, count in values.items() if value not in SUBSETS}
    if wrong or set(values) != set(SUBSETS):
        said = ", ".join(f"{count:,} {value!r}" for value, count in values.items())
        raise ConfigurationError(f"the column split must hold train and eval, both; it holds {said}")
    train = np.flatnonzero(pc.equal(column, "train").to_numpy(zero_copy_only=False))
    evaluation = np.flatnonzero(pc.equal(column, "eval").to_numpy(zero_copy_only=False))
    groups = photographs["group"].to_pylist()
    crossing = sorted({groups[row] for row in train} & {groups[row] for row in evaluation} - {None})
    if crossing:
        raise ConfigurationError(
            f"{len(crossing):,} groups are in train and in eval ({shown(crossing)}); put each on one side, or drop the "
            "column split to have it drawn by group"
        )
    notes = []
    hashes = _column(photographs, "sha256")
    same = {hashes[row] for row in train} & {hashes[row] for row in evaluation} - {None}
    if same:
        notes.append(f"{len(same):,} files of eval have the same bytes as one of train: its accuracy is flattered")
    return Split(train=train, evaluation=evaluation, notes=tuple(notes))


def _drawn_split(photographs: pa.Table, labels: npt.NDArray[np.object_], fraction: float, seed: int) -> Split:
    from sklearn.model_selection import StratifiedGroupKFold

    groups, notes = units(photographs)
    per_class = [len(set(groups[labels == label])) for label in set(labels)]
    if min(per_class) < 2:
        rare = next(label for label in sorted(set(labels)) if len(set(groups[labels == label])) < 2)
        raise ConfigurationError(
            f"label {rare!r} has a single group: it can't be trained on and kept out too; add groups of that label, or "
            "give a column split"
        )
    share = Fraction(fraction).limit_denominator(min(_MOST_FOLDS, *per_class))
    folds = max(2, share.denominator)
    taken = min(max(1, round(fraction * folds)), folds - 1)
    folding = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    kept_out = [fold for _, fold in islice(folding.split(labels, labels.astype(str), groups), taken)]
    evaluation = np.sort(np.concatenate(kept_out)).astype(np.int64)
    train = np.setdiff1d(np.arange(len(labels), dtype=np.int64), evaluation)
    return Split(train=train, evaluation=evaluation, notes=tuple(notes))


def units(photographs: pa.Table) -> tuple[Indices, list[str]]:
    """(one number for each row, equal where rows may not be parted; what the user should know).

    Rows belong together by group or by the bytes of their file, also through one another.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows = photographs.num_rows
    starts: list[int] = []
    ends: list[int] = []
    notes = []
    for column in ("group", "sha256"):
        first: dict[str, int] = {}
        repeated = 0
        for row, value in enumerate(_column(photographs, column)):
            if value is not None and first.setdefault(value, row) != row:
                starts.append(first[value])
                ends.append(row)
                repeated += 1
        if column == "sha256" and repeated:
            notes.append(f"{repeated:,} files repeat the bytes of another and stay on its side of the split")
    without = photographs["group"].null_count
    if without:
        notes.append(
            f"{without:,} photographs have no group: if several show one object, the accuracy on those kept out is "
            "flattered"
        )
    graph = coo_array((np.ones(len(starts), dtype=np.int8), (starts, ends)), shape=(rows, rows))
    return connected_components(graph, directed=False)[1].astype(np.int64), notes


def _column(table: pa.Table, name: str) -> list[str | None]:
    values: list[str | None] = table[name].to_pylist() if name in table.column_names else [None] * table.num_rows
    return values


def _check_classes(labels: npt.NDArray[np.object_], found: Split) -> None:
    absent = sorted(set(labels[found.evaluation]) - set(labels[found.train]))
    if absent:
        raise ConfigurationError(f"no photograph of {shown(absent)} is left to train on; mend the column split")
    if len(set(labels[found.train])) < 2:
        raise ConfigurationError("a single class is left to train on; mend the column split")

"""Which sharp samples there are, and the photographs of each one's blur series: read from a manifest or a folder."""

import os
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from qualitygate.calibration.correlation import MIN_POINTS
from qualitygate.errors import ConfigurationError, ErrorCode, ImageError
from qualitygate.images.decode import decode
from qualitygate.images.photograph import Photograph
from qualitygate.metrics.rows import Plan
from qualitygate.tables import manifest as manifests
from qualitygate.tables import storage

_NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """One photograph of a sample; step: of its series, 0 where it has none."""

    image_id: str
    uri: str | None
    box: list[int] | None
    etag: str | None
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One subject. shots: from sharp to blurred; the first is the one that is cropped and rotated."""

    name: str
    shots: tuple[Shot, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """The samples in the manifest's order, where their blur comes from, and what was left out."""

    samples: tuple[Sample, ...]
    blur: Literal["manifest", "rendered"]
    notes: tuple[str, ...]


def read(
    source: str,
    *,
    blur: Literal["auto", "manifest", "rendered"] = "auto",
    limit: int | None = None,
    results: str | None = None,
) -> Samples:
    """The samples of a manifest.

    With `series` and `step`, a series is a sample: its lowest step is the sharp photograph, the others get more
    blurred step by step. Without, or with blur="rendered", each sharp photograph is a sample. The two kinds are
    never mixed: where series are used, photographs without one are left out.

    limit: only the first samples. results: a folder whose files are no photographs, should a listing meet it.

    Raises ConfigurationError, one line with the remedy: no usable sample, a step that is no whole number or is
    there twice, series without steps.
    """
    rows = manifests.read(source, ("series", "step")).to_pylist()
    if results is not None and storage.is_folder(source):
        rows = [row for row in rows if not _below(row["uri"], results)]
        if not rows:
            raise ConfigurationError(
                f"--input {storage.redact(source)!r} lies inside --output {storage.redact(results)!r}, whose files are "
                "taken for results; choose another output"
            )
    by_series: dict[str, list[Shot]] = {}
    single = []
    for row in rows:
        if row["series"] is None:
            single.append(Sample(name=row["image_id"], shots=(_shot(row, 0),)))
        else:
            by_series.setdefault(row["series"], []).append(_shot(row, _step(row)))
    ordered = {name: _in_order(name, shots) for name, shots in by_series.items()}
    if blur == "manifest" and not ordered:
        raise ConfigurationError(
            f"--blur manifest: {storage.redact(source)!r} has no blur series; add the columns series and step "
            "(0 is the sharpest), or use --blur rendered"
        )
    if blur == "rendered" or not ordered:
        first_of_series = [Sample(name=shots[0].image_id, shots=shots[:1]) for shots in ordered.values()]
        sharp = _manifest_order(rows, [*single, *first_of_series])
        return Samples(samples=tuple(sharp[:limit]), blur="rendered", notes=())
    notes = []
    if single:
        notes.append(
            f"{len(single)} photographs without a series are left out: real and rendered blur are never pooled "
            "(--blur rendered takes them, and renders all)"
        )
    short = [name for name, shots in ordered.items() if len(shots) < MIN_POINTS]
    if short:
        notes.append(f"{len(short)} series of fewer than {MIN_POINTS} steps are left out: {_some(short)}")
    samples = [Sample(name=name, shots=shots) for name, shots in ordered.items() if len(shots) >= MIN_POINTS]
    if not samples:
        raise ConfigurationError(
            f"{storage.redact(source)!r}: no series has {MIN_POINTS} steps or more ({_some(short)}); "
            "add photographs, or use --blur rendered"
        )
    return Samples(samples=tuple(samples[:limit]), blur="manifest", notes=tuple(notes))


def photograph(data: bytes, shot: Shot, plan: Plan) -> Photograph:
    """The shot's pixels, as the scoring job sees them; ImageError if they can't be read."""
    box = shot.box
    if box is not None and len(box) != 4:
        raise ImageError(ErrorCode.UNSUPPORTED, f"box {box} isn't four integers x, y, w, h")
    return decode(data, plan.policy, None if box is None else (box[0], box[1], box[2], box[3])).photograph


def _shot(row: dict[str, Any], step: int) -> Shot:
    return Shot(image_id=row["image_id"], uri=row["uri"], box=row["box"], etag=row["etag"], step=step)


def _step(row: dict[str, Any]) -> int:
    where = f"photograph {row['image_id']!r} of series {row['series']!r}"
    if row["step"] is None:
        raise ConfigurationError(f"{where} has no step; number the steps of a series 0, 1, 2, ... from the sharpest")
    try:
        number = float(row["step"])
        if number != int(number):
            raise ValueError
    except (ValueError, OverflowError) as error:
        raise ConfigurationError(
            f"{where} has step {row['step']!r}, which is no whole number; write 0, 1, 2, ... from the sharpest"
        ) from error
    return int(number)


def _in_order(name: str, shots: list[Shot]) -> tuple[Shot, ...]:
    ordered = sorted(shots, key=lambda shot: shot.step)
    for before, after in pairwise(ordered):
        if before.step == after.step:
            raise ConfigurationError(
                f"series {name!r} has step {before.step} twice ({before.image_id!r}, {after.image_id!r}); "
                "number the photographs of a series differently, or make two series of them"
            )
    return tuple(ordered)


def _manifest_order(rows: list[dict[str, Any]], samples: list[Sample]) -> list[Sample]:
    place = {row["image_id"]: number for number, row in enumerate(rows)}
    return sorted(samples, key=lambda sample: place[sample.name])


def _below(uri: str, folder: str) -> bool:
    if storage.is_local(uri) and storage.is_local(folder):
        root, path = (os.path.realpath(os.fsdecode(storage.local_path(place))) for place in (folder, uri))
        return path.startswith(root.rstrip(os.sep) + os.sep)
    return uri.startswith(folder.rstrip("/") + "/")


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:_NAMED])) + (", ..." if len(names) > _NAMED else "")

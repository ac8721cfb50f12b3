"""What a training leaves: the model, its record, the ids that it saw. And reading it, or anyone's weights, again.

DIR/model.safetensors     the parameters
DIR/training_ids.parquet  image_id, group, sha256, subset (train | eval)
DIR/history.json          a line an epoch
DIR/model.json            all that a prediction needs to know; written last: its presence means complete
"""

import hashlib
import io
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from qualitygate import __version__
from qualitygate.errors import ConfigurationError, ImageError
from qualitygate.images.decode import DECODER_VERSION
from qualitygate.metrics import state_dicts, weights, weights_manifest, weights_transfer
from qualitygate.tables import storage
from qualitygate.tables.scratch import scratch_folder

if TYPE_CHECKING:
    from torch import Tensor

FORMAT, VERSION = "qualitygate-classifier", 1
MODEL, RECORD, IDS, HISTORY = "model.safetensors", "model.json", "training_ids.parquet", "history.json"
IDS_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("group", pa.string()),
        pa.field("sha256", pa.string()),
        pa.field("subset", pa.string(), nullable=False),
    ]
)
_DEFAULT_IMAGE_SIZE = 224
_VERSIONS = ("torch", "torchvision", "ray", "numpy", "scikit-learn", "opencv-python-headless", "pillow", "pyarrow")


@dataclass(frozen=True, slots=True, kw_only=True)
class Classifier:
    """A classifier and what is known of it.

    classes: labels in the order of its outputs. state: its parameters, on the CPU. fingerprint: what predictions carry.
    trained: False only where its record says that it never was. ids: where its training_ids.parquet is, if anywhere.
    """

    architecture: str
    classes: tuple[str, ...]
    image_size: int
    state: "Mapping[str, Tensor]"
    sha256: str
    fingerprint: str
    trained: bool
    ids: str | None
    notes: tuple[str, ...] = ()


def fingerprint(architecture: str, classes: Sequence[str], image_size: int, sha256: str) -> str:
    """16 hexadecimal digits that change with what changes a prediction: parameters, and how pixels reach them."""
    from qualitygate.training.models import MEAN, STD

    return digest(
        {
            "architecture": architecture,
            "classes": list(classes),
            "image_size": image_size,
            "normalisation": {"mean": MEAN, "std": STD},
            "decoder": DECODER_VERSION,
            "sha256": sha256,
        }
    )


def digest(content: Any) -> str:
    """First 16 hexadecimal digits of the sha256 of canonical JSON."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """Of this package, Python and what a prediction depends on."""
    found = {"qualitygate": __version__, "python": platform.python_version(), "machine": platform.machine()}
    for package in _VERSIONS:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


# ---- writing -----------------------------------------------------------------------------------------------


def write(
    output: str,
    state: "Mapping[str, Tensor]",
    ids: pa.Table,
    history: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Write a finished training, model.json last; returns its content.

    facts: architecture, classes, image_size and whatever else the record should hold.
    """
    from safetensors.torch import save

    from qualitygate.training.models import MEAN, STD

    data = save({name: value.detach().cpu().contiguous() for name, value in state.items()})
    sha256 = hashlib.sha256(data).hexdigest()
    record = {
        "format": FORMAT,
        "version": VERSION,
        **facts,
        "normalisation": {"mean": list(MEAN), "std": list(STD)},
        "sha256": sha256,
        "model_fingerprint": fingerprint(facts["architecture"], facts["classes"], facts["image_size"], sha256),
        "versions": versions(),
    }
    storage.write_bytes(storage.join(output, MODEL), data)
    storage.write_bytes(storage.join(output, IDS), parquet(ids.cast(IDS_SCHEMA)))
    storage.write_bytes(storage.join(output, HISTORY), as_json(list(history)))
    storage.write_bytes(storage.join(output, RECORD), as_json(record))
    return record


def parquet(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def as_json(content: Any) -> bytes:
    """Readable JSON; NaN and infinity are a mistake here, and raise."""
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()


# ---- reading -----------------------------------------------------------------------------------------------


def read_record(folder: str) -> dict[str, Any] | None:
    """model.json of a folder; None where there is none."""
    return _read_json(storage.join(folder, RECORD))


def _read_json(uri: str) -> dict[str, Any] | None:
    try:
        data = storage.read_bytes(uri)
        content = None if data is None else json.loads(data)
    except (ImageError, ValueError) as error:
        reason = error.failure.message if isinstance(error, ImageError) else "no JSON"
        raise ConfigurationError(f"{storage.redact(uri)!r} can't be read ({reason}); train again") from error
    if content is None:
        return None
    wanted = ("architecture", "classes", "image_size", "sha256")
    if not isinstance(content, dict) or content.get("format") != FORMAT or any(key not in content for key in wanted):
        raise ConfigurationError(f"{storage.redact(uri)!r} is no record of 'qualitygate train-baseline'")
    if content.get("version") != VERSION:
        raise ConfigurationError(
            f"{storage.redact(uri)!r} is of version {content.get('version')!r}, not {VERSION}; train again or use the "
            "qualitygate that wrote it"
        )
    return content


def load(
    place: str,
    labels: Sequence[str],
    *,
    architecture: str | None = None,
    classes: Sequence[str] | None = None,
    image_size: int | None = None,
) -> Classifier:
    """The classifier that `--weights` names: a training's folder or model, or a state dictionary, path or URI.

    labels: those to predict, which become the classes of a state dictionary of which nothing else is known.
    architecture, classes, image_size: of the command line; a record wins, and what contradicts it is refused, but for
        the image size, which is noted.

    Only tensors are read, whatever the file holds. Raises ConfigurationError in one line with the remedy.
    """
    place = storage.check_location(place, "--weights")
    folder = place.rstrip("/") if storage.is_folder(place) else place.rpartition("/")[0] or "."
    if storage.is_folder(place) or place.rpartition("/")[2] == MODEL:
        record = read_record(folder)
        if record is None and storage.is_folder(place):
            raise ConfigurationError(
                f"--weights {storage.redact(place)!r} holds no {RECORD}; give the folder of a finished 'qualitygate "
                "train-baseline', or a file of weights"
            )
        if record is not None:
            return _recorded(folder, record, labels, architecture, classes, image_size)
    if not storage.exists(place):
        raise ConfigurationError(f"--weights {storage.redact(place)!r} doesn't exist; check the path")
    if architecture is None:
        raise ConfigurationError(
            f"--weights {storage.redact(place)!r} doesn't say which network it is for; name it with --architecture, "
            "such as resnet34"
        )
    return _bare(place, labels, architecture, classes, image_size)


def _recorded(
    folder: str,
    record: Mapping[str, Any],
    labels: Sequence[str],
    architecture: str | None,
    classes: Sequence[str] | None,
    image_size: int | None,
) -> Classifier:
    for flag, given, known in (
        ("--architecture", architecture, record["architecture"]),
        ("--classes", None if classes is None else list(classes), list(record["classes"])),
    ):
        if given is not None and given != known:
            raise ConfigurationError(
                f"{flag} {given!r} isn't what the model in {folder!r} has: {known!r}; leave it out"
            )
    model = storage.join(folder, MODEL)
    state, sha256 = read_tensors(model)
    if sha256 != record["sha256"]:
        raise ConfigurationError(
            f"{storage.redact(model)!r} isn't the one that its {RECORD} describes (sha256 {sha256[:12]}..., not "
            f"{record['sha256'][:12]}...); copy both again, or train again"
        )
    notes = []
    if image_size is not None and image_size != record["image_size"]:
        notes.append(f"predicting at {image_size} px with a classifier trained at {record['image_size']} px")
    _check_labels(labels, record["classes"])
    ids = storage.join(folder, IDS)
    return _classifier(
        architecture=record["architecture"],
        classes=record["classes"],
        image_size=image_size or record["image_size"],
        state=state,
        sha256=sha256,
        trained=record.get("epochs") != 0,
        ids=ids if storage.exists(ids) else None,
        notes=notes,
    )


def _bare(
    place: str,
    labels: Sequence[str],
    architecture: str,
    classes: Sequence[str] | None,
    image_size: int | None,
) -> Classifier:
    from qualitygate.training import models

    models.check_name(architecture)
    state, sha256 = read_tensors(place)
    count = models.outputs(architecture, state)
    notes = []
    if classes is None:
        classes = sorted(set(labels))
        notes.append(f"taking the labels in alphabetical order for the model's classes: {', '.join(classes)}")
        if len(classes) != count:
            raise ConfigurationError(
                f"--weights {storage.redact(place)!r} tells {count} classes apart, the manifest has {len(classes)} "
                f"labels ({', '.join(classes[:6])}); name them with --classes, in the order of the model's outputs"
            )
    elif len(classes) != count or len(set(classes)) != count:
        raise ConfigurationError(
            f"--classes names {len(set(classes))} classes, --weights {storage.redact(place)!r} tells {count} apart"
        )
    _check_labels(labels, classes)
    return _classifier(
        architecture=architecture,
        classes=classes,
        image_size=image_size or _DEFAULT_IMAGE_SIZE,
        state=state,
        sha256=sha256,
        trained=True,
        ids=None,
        notes=notes,
    )


def _classifier(
    *,
    architecture: str,
    classes: Sequence[str],
    image_size: int,
    state: "Mapping[str, Tensor]",
    sha256: str,
    trained: bool,
    ids: str | None,
    notes: Sequence[str],
) -> Classifier:
    from qualitygate.training import models

    # Built once here, so that what doesn't fit is said before any worker starts.
    models.build(architecture, len(classes), image_size=image_size, state=state)
    return Classifier(
        architecture=architecture,
        classes=tuple(classes),
        image_size=image_size,
        state=state,
        sha256=sha256,
        fingerprint=fingerprint(architecture, classes, image_size, sha256),
        trained=trained,
        ids=ids,
        notes=tuple(notes),
    )


def _check_labels(labels: Sequence[str], classes: Sequence[str]) -> None:
    unknown = sorted(set(labels) - set(classes))
    if unknown:
        raise ConfigurationError(
            f"the manifest has labels that the model doesn't know: {', '.join(unknown[:6])}; its classes are "
            f"{', '.join(classes[:12])}. Relabel or leave out those rows, or name the outputs with --classes"
        )


def read_tensors(place: str) -> "tuple[dict[str, Tensor], str]":
    """(parameters by name, sha256 of the file) of a local or remote file of tensors.

    What is opened is a private copy, hashed while it was made. Raises ConfigurationError.
    """
    with scratch_folder() as scratch:
        copy = Path(scratch) / "weights"
        received = weights_transfer.receive(place, copy)
        state = state_dicts.read(copy, named=storage.redact(place))
        return {name: value.clone() for name, value in state.items()}, received.sha256


def pretrained(architecture: str, place: str | None) -> "tuple[dict[str, Tensor], dict[str, str]]":
    """(parameters to start from, their name and sha256): published ones, verified, or a file of the user's own.

    place: what `--weights` says: a name of weights.yaml, a file, the folder of a `train-baseline`, one that holds the
        published file, or a URI; None for the architecture's own.

    Raises ConfigurationError with the remedy where they can't be had.
    """
    names = weights_manifest.manifest()
    entry = place if place in names else architecture if architecture in names else None
    if place is not None and place not in names:
        place = storage.check_location(place, "--weights")
        if not storage.exists(place):
            raise ConfigurationError(
                f"--weights {storage.redact(place)!r} is neither a file or folder nor a name of 'qualitygate weights "
                "list'"
            )
        if (file := _file_of_ones_own(place)) is not None:
            state, sha256 = read_tensors(file)
            return state, {"name": storage.redact(file), "sha256": sha256}
    if entry is None:
        raise ConfigurationError(
            f"no published weights of {architecture} are known here; name a file with --weights, or use --from-scratch"
        )
    found = weights.locate(entry, None if place in names else place)
    if isinstance(found, str):
        raise ConfigurationError(f"no weights for {architecture} to start from: {found}; or train --from-scratch")
    tensors = {name: value.clone() for name, value in weights.load_state_dict(found).items()}
    return tensors, {"name": entry, "sha256": found.sha256}


def _file_of_ones_own(place: str) -> str | None:
    """The file itself, or the model of a `train-baseline`; None for any other folder."""
    if not storage.is_folder(place):
        return place
    return storage.join(place, MODEL) if storage.exists(storage.join(place, RECORD)) else None


# ---- who was trained on ------------------------------------------------------------------------------------


def ids_beside(place: str | None) -> str | None:
    """Where the training ids of a classifier lie, by what `--weights` says of it; None where there are none."""
    if place is None or place in weights_manifest.manifest():
        return None
    file = _file_of_ones_own(place)
    if file is None or not file.endswith(MODEL):
        return None
    ids = file.removesuffix(MODEL) + IDS
    return ids if storage.exists(ids) else None


def trained_on(ids: str | None, rows: pa.Table) -> pa.Array:
    """(rows,) bool: whether the classifier was trained on this photograph, by id or bytes, or on another of its group.

    rows: image_id, sha256, group. Null throughout where nobody knows (`ids` is None).
    """
    if ids is None:
        return pa.nulls(rows.num_rows, pa.bool_())
    try:
        data = storage.read_bytes(ids)
        seen = pq.read_table(pa.BufferReader(data or b""), columns=IDS_SCHEMA.names)
    except (ImageError, pa.ArrowException, OSError, KeyError) as error:
        raise ConfigurationError(
            f"{storage.redact(ids)!r} can't be read, so nobody knows what the classifier was trained on; train again"
        ) from error
    seen = seen.filter(pc.equal(seen["subset"], "train"))
    found = pa.repeat(pa.scalar(False), rows.num_rows)
    for column in ("image_id", "sha256", "group"):
        known = pc.unique(seen[column].cast(pa.string())).drop_null()
        found = pc.or_(found, pc.is_in(rows[column].combine_chunks().cast(pa.string()), known))
    return found

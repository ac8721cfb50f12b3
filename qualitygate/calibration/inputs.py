"""What calibration works on: predictions joined with scores, or one message that says what is wrong with them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qualitygate.calibration import checks, choice, sources
from qualitygate.calibration.checks import READ
from qualitygate.calibration.choice import Choice
from qualitygate.calibration.kde import Direction
from qualitygate.calibration.sources import EXTERNAL, Source
from qualitygate.calibration.statistics import Booleans, Floats, Integers, alike, codes, sampling_weights
from qualitygate.config import CalibrateConfig
from qualitygate.errors import ConfigurationError, ImageError
from qualitygate.tables import scores as tables
from qualitygate.tables import storage
from qualitygate.tables.scratch import scratch_folder
from qualitygate.tables.sql import connect, literal

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

Texts = npt.NDArray[np.object_]
SAMPLING = "sampling_probability"


@dataclass(frozen=True, slots=True, kw_only=True)
class Photographs:
    """The photographs to calibrate on, in order of image_id; arrays are (N,).

    group: numbers from 0; a photograph without a group is one of its own. top1: NaN where unknown. scores: raw, NaN
    where a method has none. label, predicted, group_name, stratum, uri: None where unknown. probability: with which
    each was drawn to be labelled, in (0, 1]; None where nobody says, which counts as all alike.
    """

    image_id: Texts
    group: Integers
    correct: Booleans
    confidence: Floats
    top1: Floats
    label: Texts
    predicted: Texts
    group_name: Texts
    stratum: Texts
    uri: Texts
    scores: Mapping[str, Floats]
    probability: Floats | None = None

    def __len__(self) -> int:
        return len(self.image_id)

    @property
    def groups(self) -> int:
        """How many groups there are."""
        return int(self.group.max()) + 1

    @property
    def weighted(self) -> bool:
        """Whether some stand for more photographs than others."""
        return self.probability is not None and not alike(self.probability)

    @property
    def weight(self) -> Floats:
        """(N,) how much each counts, 1 in the mean: the inverse of its probability; 1 for each where all are alike."""
        return np.ones(len(self)) if self.probability is None else sampling_weights(self.probability)

    def take(self, chosen: Booleans | Integers) -> "Photographs":
        """Some of them; groups are numbered anew."""
        own = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("scores", "group")}
        parts: dict[str, Any] = {name: None if values is None else values[chosen] for name, values in own.items()}
        scores = {name: values[chosen] for name, values in self.scores.items()}
        return Photographs(**parts, group=codes(self.group[chosen]), scores=scores)

    def identity(self) -> str:
        """SHA-256 over the sorted ids."""
        return hashlib.sha256("\n".join(sorted(self.image_id)).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Photographs, the methods' directions and fingerprints, and what was left out or is worth knowing.

    stratum: what divides the photographs, or None. two_classes: whether the classifier tells just two apart.
    dropped: rows that were left out, by reason. sampling: the column whose inverse weighs the photographs; None where
    there is none, or it says the same of all.
    """

    photographs: Photographs
    choice: Choice
    directions: Mapping[str, Direction]
    fingerprints: Mapping[str, str]
    classifier: str
    stratum: str | None
    two_classes: bool
    dropped: Mapping[str, int]
    warnings: tuple[str, ...]
    sampling: str | None = None

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that may vote."""
        return self.choice.methods

    @property
    def untrained(self) -> tuple[str, ...]:
        """Methods whose scores come from untrained networks."""
        return tuple(name for name in self.methods if self.fingerprints[name].startswith(sources.UNTRAINED))


def read(config: CalibrateConfig, robustness: Mapping[str, Any] | None = None) -> Inputs:
    """Join and check. robustness: content of robustness.json, for methods that are chosen by it.

    Raises ConfigurationError, one line that names what is wrong in the scores or in the predictions, with counts
    and the remedy.
    """
    with scratch_folder() as scratch, connect() as database:
        scores = sources.open_scores(database, config.scores, Path(scratch))
        predictions = sources.open_predictions(database, config.predictions, Path(scratch))
        chosen = choice.resolve(config.methods, robustness, sources.methods_in(scores))
        methods = chosen.methods
        checks.check_names(methods)
        scores.require(methods, "score them, or name others with --methods")
        fingerprints = checks.fingerprints(database, scores, methods, allow_untrained=config.allow_untrained)
        directions = checks.directions(methods, fingerprints, config.directions)
        checks.check_scores(database, scores, methods)
        asked = config.stratum if config.stratum in predictions.columns else None
        sampling = _sampling_column(config.sampling_column, predictions)
        checks.read_predictions(database, predictions, scores, asked, sampling)
        stratum = config.stratum if asked else _stratum_of_scores(database, scores, predictions, config.stratum)
        rows = _joined(database, scores, methods, None if asked else stratum)
        failed = checks.count(database, f"SELECT count(*) FROM {READ} WHERE failed")
        scored = checks.count(database, "SELECT count(*) FROM scores")
        unpredicted = checks.count(
            database,
            f"SELECT count(*) FROM scores WHERE {scores.text('image_id')} NOT IN "
            f"(SELECT image_id FROM {READ} WHERE image_id IS NOT NULL)",
        )
    dropped = {"prediction_failed": failed, "without_prediction": unpredicted}
    warnings: list[str] = []
    rows = _without_trained(rows, predictions, dropped, warnings, drop=config.drop_trained)
    rows = _without_skipped(rows, dropped, warnings)
    photographs = _photographs(rows, methods, sampled=sampling is not None)
    _check_outcomes(photographs, predictions)
    for method in methods:
        if missing := int(np.isnan(photographs.scores[method]).sum()):
            dropped[f"no_score_{method}"] = missing
    if unpredicted:
        warnings.append(
            f"{unpredicted} of {scored} scored photographs have no prediction and are left out; "
            "those with a label are used once they are among the predictions"
        )
    warnings += _about_groups(photographs, predictions)
    classifier = _classifier(rows, predictions)
    record = _record(predictions)
    if record.get("trained") is False or classifier.startswith(sources.UNTRAINED):
        warnings.append("the classifier was never trained: its mistakes say nothing about quality")
    return Inputs(
        photographs=photographs,
        choice=chosen,
        directions=directions,
        fingerprints=fingerprints,
        classifier=classifier,
        stratum=stratum,
        two_classes=_two_classes(photographs, record.get("classes")),
        dropped={reason: rows for reason, rows in dropped.items() if rows > 0},
        warnings=tuple(warnings),
        sampling=sampling if photographs.weighted else None,
    )


# ---- the join --------------------------------------------------------------------------------------------


def _sampling_column(asked: str | None, predictions: Source) -> str | None:
    """The column of the predictions that says how likely each was to be labelled, if there is one."""
    if asked is not None:
        predictions.require([asked], "name the sampling probability's column with --sampling-column, or leave that out")
        return asked
    return SAMPLING if SAMPLING in predictions.columns else None


def _stratum_of_scores(
    database: "duckdb.DuckDBPyConnection", scores: Source, predictions: Source, asked: str | None
) -> str | None:
    """The column that divides the photographs; by default the camera, else the resolution, if there are several."""
    if asked is not None:
        if asked in scores.columns:
            return asked
        raise ConfigurationError(
            f"--stratum {asked!r} is a column neither of the scores, which have {', '.join(scores.columns)}, nor of "
            f"the predictions, which have {', '.join(predictions.columns)}; name one of those"
        )
    for name, needed in (("camera", ("make", "model")), ("resolution", ("width", "height"))):
        if all(column in scores.columns for column in needed):
            several = checks.count(
                database,
                f"SELECT count(DISTINCT {_stratum_value(name, scores)}) FROM scores "
                f"WHERE {scores.text('image_id')} IN (SELECT image_id FROM {READ})",
            )
            if several > 1:
                return name
    return None


def _stratum_value(name: str | None, scores: Source) -> str:
    """SQL for the stratum of a row of the scores."""
    if name is None:
        return "CAST(NULL AS VARCHAR)"
    if name in scores.columns:
        return scores.text(name)
    if name == "camera":
        make, model = scores.text("make"), scores.text("model")
        # Many cameras say their make twice.
        return (
            f"nullif(trim(CASE WHEN starts_with(lower({model}), lower({make})) THEN {model} "
            f"ELSE concat_ws(' ', {make}, {model}) END), '')"
        )
    return f"{scores.text('width')} || 'x' || {scores.text('height')}"


def _joined(
    database: "duckdb.DuckDBPyConnection", scores: Source, methods: Sequence[str], stratum: str | None
) -> "pa.Table":
    """A row for each photograph that has scores and a prediction, in order of image_id."""
    values = ", ".join(f"{scores.number(method)} AS m{number}" for number, method in enumerate(methods))
    # A lazy run left scores out by quality: of its photographs only the random sample stands for the whole.
    sampled = f"coalesce({checks.yes(scores.text(tables.LAZY_SAMPLE))}, false)"
    skipped = [
        f"coalesce({scores.text(tables.state_column(m))} = {literal(tables.SKIPPED_LAZY)}, false)" for m in methods
    ]
    lazy = f"({scores.text(tables.LAZY_GATE)} IS NOT NULL AND NOT {sampled}) OR {' OR '.join(skipped)}"
    found: pa.Table = database.sql(
        f"""SELECT p.*, s.uri, coalesce(p.stratum, s.stratum) AS divided_by, s.lazy,
                   {", ".join(f"s.m{number}" for number in range(len(methods)))}
        FROM {READ} AS p JOIN (
            SELECT {scores.text("image_id")} AS id, {scores.text("uri")} AS uri,
                   {_stratum_value(stratum, scores)} AS stratum, ({lazy}) AS lazy, {values}
            FROM scores
        ) AS s ON s.id = p.image_id
        WHERE NOT p.failed ORDER BY p.image_id"""
    ).to_arrow_table()
    return found


def _without_skipped(rows: "pa.Table", dropped: dict[str, int], warnings: list[str]) -> "pa.Table":
    import pyarrow.compute as pc

    skipped = int(pc.sum(rows["lazy"]).as_py() or 0)
    if not skipped:
        return rows
    if skipped == rows.num_rows:
        raise ConfigurationError(
            f"all {skipped} photographs with predictions were scored lazily: what was left out was left out by "
            "quality, so they can't calibrate; score them with 'qualitygate score' without --lazy"
        )
    dropped["scored_lazily"] = skipped
    warnings.append(
        f"{skipped} photographs were scored lazily and are left out: only a lazy run's random sample stands for all"
    )
    return rows.filter(pc.invert(rows["lazy"]))


def _without_trained(
    rows: "pa.Table", predictions: Source, dropped: dict[str, int], warnings: list[str], *, drop: bool
) -> "pa.Table":
    """Without photographs of the classifier's training, nor others of their groups."""
    import pyarrow as pa

    flagged = rows["trained_on"].to_numpy(zero_copy_only=False)
    groups = np.asarray(rows["group"].to_pylist(), dtype=object)
    of_group = set(groups[flagged]) - {None}
    trained = flagged | np.asarray([group in of_group for group in groups], dtype=np.bool_)
    known = int(trained.sum())
    if not known:
        return rows
    if not drop:
        raise ConfigurationError(
            f"{predictions.name}: the classifier was trained on {int(flagged.sum())} of {rows.num_rows} photographs "
            f"({known} with the others of their groups), where it errs too rarely; give predictions on others, or "
            "leave those out with --drop-trained"
        )
    if known == rows.num_rows:
        raise ConfigurationError(
            f"{predictions.name}: the classifier was trained on all {known} photographs, or others of their groups; "
            "give predictions on photographs that it has not seen"
        )
    dropped["trained_on"] = known
    warnings.append(f"{known} photographs are left out because the classifier was trained on them or on their groups")
    return rows.filter(pa.array(~trained))


def _photographs(rows: "pa.Table", methods: Sequence[str], *, sampled: bool) -> Photographs:
    def texts(name: str) -> Texts:
        return np.asarray(rows[name].to_pylist(), dtype=object)

    def numbers(name: str) -> Floats:
        return np.asarray(rows[name].to_numpy(zero_copy_only=False), dtype=np.float64)

    group = texts("group")
    ids = texts("image_id")
    # The prefixes keep a group from being taken for a photograph of the same name.
    keys = [f"g{name}" if name is not None else f"i{image_id}" for name, image_id in zip(group, ids, strict=True)]
    return Photographs(
        image_id=ids,
        group=codes(keys) if keys else np.zeros(0, dtype=np.int64),
        correct=np.asarray(rows["correct"].to_numpy(zero_copy_only=False), dtype=np.bool_),
        confidence=numbers("confidence"),
        top1=numbers("top1"),
        label=texts("label"),
        predicted=texts("predicted"),
        group_name=group,
        stratum=texts("divided_by"),
        uri=texts("uri"),
        scores={method: numbers(f"m{number}") for number, method in enumerate(methods)},
        probability=numbers("sampling") if sampled else None,
    )


# ---- what else is worth knowing --------------------------------------------------------------------------


def _check_outcomes(photographs: Photographs, predictions: Source) -> None:
    right = int(photographs.correct.sum())
    if right in (0, len(photographs)):
        kind = "right" if right else "wrong"
        raise ConfigurationError(
            f"{predictions.name}: all {len(photographs)} predictions are {kind}, so nothing tells where the classifier "
            "starts to fail; give photographs of which it gets some right and some wrong"
        )


def _about_groups(photographs: Photographs, predictions: Source) -> list[str]:
    alone = sum(name is None for name in photographs.group_name)
    if not alone:
        return []
    if alone == len(photographs):
        who = "the predictions have no group: each photograph counts as one of its own"
    else:
        who = f"{alone} photographs have no group and count as groups of their own"
    return [
        f"{who}; if several show one subject, intervals are too narrow and held-out figures too good: add a group "
        "column"
    ]


def _classifier(rows: "pa.Table", predictions: Source) -> str:
    found = sorted({value for value in rows["model_fingerprint"].to_pylist() if value is not None})
    if len(found) > 1:
        raise ConfigurationError(
            f"{predictions.name} holds predictions of {len(found)} classifiers, {' and '.join(found[:3])}; "
            "calibrate on those of one"
        )
    return found[0] if found else EXTERNAL


def _record(predictions: Source) -> Mapping[str, Any]:
    """What 'predict' recorded beside its table; nothing for a user's own."""
    try:
        data = storage.read_bytes(storage.join(predictions.folder or ".", "prediction.json"))
        content = json.loads(data) if data else {}
    except (ImageError, ValueError):
        return {}
    return content if isinstance(content, dict) and content.get("format") == "qualitygate-prediction" else {}


def _two_classes(photographs: Photographs, classes: Sequence[str] | None) -> bool:
    """Whether the classifier tells two classes apart, so that the larger of p and 1 - p is its top-1 probability."""
    if classes is not None:
        return len(classes) == 2
    seen = {*photographs.label, *photographs.predicted} - {None}
    # With two classes a prediction is right exactly when its label's probability is at least a half.
    return len(seen) == 2 and bool(np.all(photographs.correct == (photographs.confidence >= 0.5)))

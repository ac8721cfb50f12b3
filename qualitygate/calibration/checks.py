"""What may be wrong with the scores and predictions of a calibration: each said at once, with counts and the remedy."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from qualitygate.calibration import sources
from qualitygate.calibration.kde import Direction
from qualitygate.calibration.sources import EXTERNAL, Source
from qualitygate.errors import ConfigurationError
from qualitygate.metrics import CATALOGUE
from qualitygate.tables.sql import identifier

if TYPE_CHECKING:
    import duckdb

# The predictions as they are read: typed, with the text beside what may be no number.
READ = "predictions_read"
TEXTS = ("label", "predicted", "group", "model_fingerprint")
_TAKEN = {
    "group",
    "label",
    "predicted",
    "stratum",
    "correct",
    "confidence",
    "top1",
    "votes_low",
    "passed",
    "gate_id",
} | {"sampling_probability"}


def yes(text: str) -> str:
    """SQL: whether text says true; null for null."""
    return f"lower({text}) IN ('true', 't', 'yes', '1', '1.0')"


def no(text: str) -> str:
    """SQL: whether text says false; null for null."""
    return f"lower({text}) IN ('false', 'f', 'no', '0', '0.0')"


def count(database: "duckdb.DuckDBPyConnection", query: str) -> int:
    """The one number that a query gives."""
    return int(database.sql(query).fetchall()[0][0])


def check_names(methods: Sequence[str]) -> None:
    """ConfigurationError for a method whose name is a column of calibration.parquet."""
    if taken := [name for name in methods if name in _TAKEN]:
        raise ConfigurationError(
            f"--methods: a method can't be called {taken[0]!r}, which names another column of the results; rename it"
        )


# ---- scores ----------------------------------------------------------------------------------------------


def fingerprints(
    database: "duckdb.DuckDBPyConnection", scores: Source, methods: Sequence[str], *, allow_untrained: bool
) -> dict[str, str]:
    """The one fingerprint under which each method was scored; "external" where scores carry none.

    Raises ConfigurationError for a method without scores, for two fingerprints of one, for untrained networks.
    """
    found: dict[str, str] = {}
    for method in methods:
        by_fingerprint = sources.fingerprints_of(database, scores, method)
        if not by_fingerprint:
            raise ConfigurationError(
                f"{scores.name} has no single score of {method}; score it, or leave it out of --methods"
            )
        if len(by_fingerprint) > 1:
            shown = " and ".join(f"{name} ({rows} rows)" for name, rows in by_fingerprint.items())
            raise ConfigurationError(
                f"{scores.name} holds {method} under {len(by_fingerprint)} fingerprints, {shown}, which have no common "
                "cut-off; run 'qualitygate score --backfill' to score all rows alike (photographs with and without "
                "a box belong in outputs of their own)"
            )
        found[method] = next(iter(by_fingerprint))
    untrained = [name for name in methods if found[name].startswith(sources.UNTRAINED)]
    if untrained and not allow_untrained:
        raise ConfigurationError(
            f"{scores.name}: the scores of {', '.join(untrained)} come from untrained networks and mean nothing; "
            "fetch the weights and score again, leave them out of --methods, or try the plumbing with --allow-untrained"
        )
    return found


def directions(
    methods: Sequence[str], prints: Mapping[str, str], said: Mapping[str, Direction]
) -> dict[str, Direction]:
    """Which scores of each method are better: the catalogue's word, or the user's for columns that are no metric."""
    stray = [name for name in said if name not in methods]
    if stray:
        raise ConfigurationError(f"--directions names {stray[0]!r}, which is none of the methods {', '.join(methods)}")
    found: dict[str, Direction] = {}
    for method in methods:
        known: Direction | None = CATALOGUE[method].direction if method in CATALOGUE else None
        asked = said.get(method)
        if known and asked and asked != known and prints[method] != EXTERNAL:
            raise ConfigurationError(f"--directions: of {method} {known} scores are better; leave it out")
        direction = asked or known
        if direction is None:
            raise ConfigurationError(
                f"{method!r} is no metric of the catalogue: say which of its scores are better with "
                f"--directions {method}=higher or --directions {method}=lower"
            )
        found[method] = direction
    return found


def check_scores(database: "duckdb.DuckDBPyConnection", scores: Source, methods: Sequence[str]) -> None:
    """ConfigurationError for an image_id that stands twice, and for scores that are no finite numbers."""
    problems = [sources.duplicates(database, scores)]
    nameless = f"SELECT count(*) FROM {identifier(scores.view)} WHERE {scores.text('image_id')} IS NULL"
    if rows := count(database, nameless):
        problems.append(f"{rows} rows have no image_id")
    for method in methods:
        text, number = scores.text(method), scores.number(method)
        words, strange = database.sql(
            f"SELECT count(*) FILTER ({text} IS NOT NULL AND {number} IS NULL), "
            f"count(*) FILTER (isnan({number}) OR isinf({number})) FROM {identifier(scores.view)}"
        ).fetchall()[0]
        if words:
            problems.append(f"{words} scores of {method} aren't numbers")
        if strange:
            problems.append(f"{method} is NaN or infinite in {strange} rows")
    if wrong := [problem for problem in problems if problem]:
        raise ConfigurationError(
            f"{scores.name}: {'; '.join(wrong)}; give each photograph one row, and leave a score that failed empty "
            "(null)"
        )


# ---- predictions -----------------------------------------------------------------------------------------


def read_predictions(
    database: "duckdb.DuckDBPyConnection",
    predictions: Source,
    scores: Source,
    stratum: str | None,
    sampling: str | None = None,
) -> None:
    """Make the table `predictions_read` of typed columns; ConfigurationError names all that is wrong at once.

    stratum, sampling: columns of the predictions to take along, or None; that of the sampling probability in (0, 1].
    """
    correct, trained = predictions.text("correct"), predictions.text("trained_on")
    columns = ", ".join(f"{predictions.text(name)} AS {identifier(name)}" for name in TEXTS)
    database.execute(
        f"""CREATE TEMP TABLE {READ} AS
        SELECT {predictions.text("image_id")} AS image_id, {columns},
               CASE WHEN {yes(correct)} THEN true WHEN {no(correct)} THEN false END AS correct,
               {correct} AS correct_text,
               {predictions.number("confidence")} AS confidence, {predictions.text("confidence")} AS confidence_text,
               {predictions.number("top1")} AS top1, {predictions.text("top1")} AS top1_text,
               {predictions.text(stratum) if stratum else "CAST(NULL AS VARCHAR)"} AS stratum,
               {predictions.number(sampling or "")} AS sampling, {predictions.text(sampling or "")} AS sampling_text,
               coalesce({yes(trained)}, false) AS trained_on,
               coalesce({predictions.text("status")} = 'error', false) AS failed
        FROM {identifier(predictions.view)}"""
    )
    unlabelled = "correct_text IS NULL" + (" OR label IS NULL" if "label" in predictions.columns else "")
    checks = {
        "without an image_id": "image_id IS NULL",
        "that are unlabelled (`correct`, or the label, is empty)": unlabelled,
        "whose `correct` is neither true nor false": "correct IS NULL AND correct_text IS NOT NULL",
        "without a confidence": "confidence_text IS NULL",
        "whose confidence is no number (NaN, infinite or a word)": _no_number("confidence"),
        "whose confidence lies outside [0, 1]": _outside("confidence"),
        "whose top1 is no number (NaN, infinite or a word)": _no_number("top1"),
        "whose top1 lies outside [0, 1]": _outside("top1"),
        "with an id that the scores lack": (
            f"image_id IS NOT NULL AND image_id NOT IN (SELECT {scores.text('image_id')} FROM "
            f"{identifier(scores.view)} WHERE {scores.text('image_id')} IS NOT NULL)"
        ),
    }
    remedy = (
        "give each scored photograph one row with its label's probability in [0, 1] and correct as true or false, or "
        "leave the row out"
    )
    if sampling is not None:
        checks |= {
            f"without a {sampling}": "sampling_text IS NULL",
            f"whose {sampling} is no number (NaN, infinite or a word)": _no_number("sampling"),
            f"whose {sampling} lies outside (0, 1]": "(sampling <= 0 OR sampling > 1) AND NOT isnan(sampling) "
            "AND NOT isinf(sampling)",
        }
        remedy += f"; {sampling} is the chance with which a photograph was drawn to be labelled, 1 where all were"
    problems = [sources.duplicates(database, predictions)]
    total = count(database, f"SELECT count(*) FROM {READ} WHERE NOT failed")
    for words, condition in checks.items():
        where = f"FROM {READ} WHERE NOT failed AND ({condition})"
        if rows := count(database, f"SELECT count(*) {where}"):
            first = database.sql(f"SELECT image_id {where} ORDER BY image_id LIMIT 3").fetchall()
            shown = ", ".join(repr(row[0]) for row in first) + (", ..." if rows > 3 else "")
            problems.append(f"{rows} of {total} rows {words} ({shown})")
    if not total:
        problems.append("not one prediction succeeded")
    if wrong := [problem for problem in problems if problem]:
        raise ConfigurationError(f"{predictions.name}: {'; '.join(wrong)}; {remedy}")


def _no_number(column: str) -> str:
    return f"{column}_text IS NOT NULL AND ({column} IS NULL OR isnan({column}) OR isinf({column}))"


def _outside(column: str) -> str:
    return f"{column} NOT BETWEEN 0 AND 1 AND NOT isnan({column}) AND NOT isinf({column})"

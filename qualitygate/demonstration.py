"""The demo: render photographs whose blur is known, score them, and show that the scores tell."""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from qualitygate.cluster import scoring
from qualitygate.config import ScoreConfig
from qualitygate.images import printed_codes
from qualitygate.images.decode import decode
from qualitygate.metrics import CATALOGUE
from qualitygate.report import contact_sheet, progress, summary
from qualitygate.tables import scores, storage
from qualitygate.tables.sql import connect, literal

_TILES = 4
# Those that need no download and run anywhere.
_METRICS = ("lapv", "lapm", "wavs", "brisque", "niqe")


def run(output: Path, *, count: int, size: int, write: Callable[[str], Any]) -> None:
    """Fill `output` with photographs, scores, a picture and a summary; a second run only does what is missing."""
    photographs, results = output / "photographs", output / "results"
    write(f"1. Rendering {count} photographs of printed codes, {size} px, into {photographs}\n")
    manifest = printed_codes.write(
        "calibration",
        photographs,
        size=size,
        count=count,
        progress=progress.as_callback(progress.for_stream("photographs")),
    )
    write(f"2. Scoring them into {results}\n")
    run_summary = scoring.run(
        ScoreConfig(input=str(manifest), output=str(results), metrics=_METRICS), progress.for_stream("photographs")
    )
    table = scored_with_truth(results, manifest)
    stats = run_summary.stats
    write("3. What the scores say\n\n")
    write(summary.of_demo(stats, blur_correlation(table, list(stats["metrics"]))))
    picture = output / "best_and_worst.png"
    storage.write_bytes(str(picture), draw_extremes(table, list(stats["metrics"]), photographs))
    write(
        "   Good scores fall with blur (near -1), or rise (near +1) where lower is better. BRISQUE judges\n"
        "   naturalness more than focus, so its best photographs may be soft. The picture shows their middles.\n\n"
        f"   photographs   {photographs} (manifest.parquet holds the true blur and noise)\n"
        f"   scores        {results / 'scores'}\n"
        f"                 ({_command()} export --input {results} --output scores.csv)\n"
        f"   run           {results / '_stats.json'}\n"
        f"   look at       {picture}\n"
    )


def _command() -> str:
    """The command line as it can be pasted: the environment need not be activated."""
    return os.path.relpath(os.path.join(sys.prefix, "bin", "qualitygate"))


def scored_with_truth(results: Path, manifest: Path) -> pa.Table:
    """Score rows joined with the manifest's true blur and noise, in order of image_id."""
    with connect() as database:
        scores.register(database, scores.existing_table(str(results)))
        found: pa.Table = database.sql(
            f"""SELECT scores.*, truth.true_blur, truth.true_noise
                FROM scores JOIN read_parquet({literal(manifest)}) AS truth USING (image_id) ORDER BY image_id"""
        ).to_arrow_table()
    return found


def blur_correlation(table: pa.Table, metrics: list[str]) -> dict[str, float]:
    """Spearman's rank correlation of each metric's raw score with the true blur, in [-1, 1]."""
    from scipy.stats import spearmanr

    found = {}
    for metric in metrics:
        scored = table.filter(pa.compute.is_valid(table[metric]))
        if scored.num_rows > 2:
            found[metric] = float(spearmanr(scored[metric].to_numpy(), scored["true_blur"].to_numpy()).statistic)
    return found


def draw_extremes(table: pa.Table, metrics: list[str], folder: Path) -> bytes:
    """A PNG of the best and the worst photographs under each metric."""
    rows: dict[str, Mapping[str, Any]] = {row["image_id"]: row for row in table.to_pylist()}
    strips = []
    for metric in metrics:
        higher = CATALOGUE[metric].higher_is_better
        best, worst = contact_sheet.extremes(
            {image_id: row[metric] for image_id, row in rows.items()}, higher_is_better=higher, count=_TILES
        )
        strips.append(
            contact_sheet.Strip(
                title=metric,
                direction=f"{CATALOGUE[metric].direction} is better",
                best=[_tile(rows[image_id], metric) for image_id in best],
                worst=[_tile(rows[image_id], metric) for image_id in worst],
            )
        )
    return contact_sheet.draw(strips, title=f"{len(rows)} photographs of printed codes")


def _tile(row: Mapping[str, Any], metric: str) -> contact_sheet.Tile:
    fetched = storage.fetch(row["uri"], max_bytes=os.path.getsize(row["uri"]))
    return contact_sheet.Tile(
        pixels=decode(fetched.data).photograph.rgb,
        caption=f"{row[metric]:.4g}   blur {row['true_blur']:.1f} px",
    )

"""The demo: the whole method on rendered photographs, where the truth is known and the answer can be checked."""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from qualitygate.calibration import apply, calibrate
from qualitygate.cluster import baseline, prediction, robustness, scoring, session, study
from qualitygate.config import (
    BaselineConfig,
    CalibrateConfig,
    GateConfig,
    PredictConfig,
    ReportConfig,
    RobustnessConfig,
    ScoreConfig,
    StudyConfig,
)
from qualitygate.images import printed_codes
from qualitygate.report import calibration as said_of_gate
from qualitygate.report import classifier as said_of_classifier
from qualitygate.report import page, progress, summary
from qualitygate.report import robustness as said_of_robustness
from qualitygate.report import study as said_of_study
from qualitygate.tables import scores
from qualitygate.tables.sql import connect, literal

# Those that need no download and run anywhere.
_METRICS = ("lapv", "lapm", "wavs", "brisque", "niqe")
# The renderer's own class of blurred photographs begins here: RMS radius in pixels of a photograph 1024 wide.
BLURRED = 18.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What only rendered photographs allow to say about a gate.

    auc: how well its low votes tell blurred photographs from the others, in [0.5, 1].
    rejected_blurred, rejected_others: share of each that it rejects.
    accuracy_all, accuracy_passed: of the classifier, on all labelled photographs and on those that pass.
    """

    photographs: int
    blurred: int
    auc: float
    rejected_blurred: float
    rejected_others: float
    accuracy_all: float
    accuracy_passed: float


def run(output: Path, *, count: int, size: int, write: Callable[[str], Any]) -> None:
    """Fill `output` with photographs, scores, a classifier, a gate and a report; a second run does what is missing."""
    started = time.monotonic()
    folders = {name: output / name for name in ("photographs", "series", "training")}
    results, steps = output / "results", {name: str(output / name) for name in ("robustness", "baseline", "study")}
    predictions, made, decided = (str(output / name) for name in ("predictions", "gate", "decisions"))
    bar = progress.for_stream

    write("1. Rendering photographs of printed codes: two manufacturers, tiny differences, known blur\n")
    labelled = _render("calibration", folders["photographs"], size, count)
    series = _render("sharpness", folders["series"], size, 60)
    training = _render("baseline", folders["training"], 96, 1600)
    with session.connect():
        write(f"\n2. Scoring {count} labelled photographs\n")
        stats = scoring.run(
            ScoreConfig(input=str(labelled), output=str(results), metrics=_METRICS), bar("photographs")
        ).stats
        write(summary.of_demo(stats, blur_correlation(scored_with_truth(results, labelled), list(stats["metrics"]))))
        write("\n3. Which metrics to trust: cropping, turning and blurring six sharp samples\n")
        config = RobustnessConfig(input=str(series), output=steps["robustness"], metrics=_METRICS, methods="classical")
        write(said_of_robustness.of_run(robustness.run(config, bar("samples"))))
        write("\n4. Training a classifier from scratch: ResNet18 at 64 pixels, four epochs\n")
        trained = BaselineConfig(
            input=str(training),
            output=steps["baseline"],
            architecture="resnet18",
            from_scratch=True,
            epochs=4,
            learning_rate=5e-4,
            batch_size=16,
            augment=False,
            image_size=64,
            device="cpu",
        )
        write(said_of_classifier.of_training(baseline.run(trained, bar("epochs"))))
        write("\n5. Asking it about the labelled photographs\n")
        asked = PredictConfig(input=str(labelled), output=predictions, weights=steps["baseline"], device="cpu")
        write(said_of_classifier.of_prediction(prediction.run(asked, bar("photographs"))))
        write("\n6. Where the line is\n")
        calibration = CalibrateConfig(
            scores=str(results),
            predictions=predictions,
            output=made,
            methods="classical",
            robustness=steps["robustness"],
        )
        write(said_of_gate.of_run(calibrate.run(calibration, bar("steps"))))
        write("\n7. Applying it\n")
        write(said_of_gate.of_gate(apply.run(GateConfig(scores=str(results), gate=made, output=decided))))
        write(_of_truth(truth(Path(decided), Path(predictions), labelled)))
        write("\n8. Does it pay to train on what passes? The same classifier, trained further on parts of them\n")
        # Networks that start from what step 4 learnt, as the paper's start from ImageNet: from nothing, so few
        # photographs teach them nothing.
        studied = StudyConfig(
            manifest=str(labelled),
            scores=str(results),
            gate=made,
            output=steps["study"],
            architectures=("resnet18",),
            weights=steps["baseline"],
            seeds=3,
            epochs=3,
            learning_rate=5e-4,
            batch_size=16,
            augment=False,
            image_size=64,
            removed=(0.0, 30.0),
            device="cpu",
        )
        write(said_of_study.of_run(study.run(studied, bar("runs"))))
    report = page.write(
        ReportConfig(
            input=(str(results), *steps.values(), predictions, made, decided),
            output=str(output / "report.html"),
            title="Printed codes: which photographs are good enough?",
        )
    )
    write(
        f"\nin {time.monotonic() - started:.0f} s\n"
        f"   scores    {results / 'scores'} ({_command()} export --input {results} --output scores.csv)\n"
        f"   gate      {Path(made) / 'gate.json'}\n"
        f"   accepted  {Path(decided) / 'accepted.parquet'}\n"
        f"   study     {Path(steps['study']) / 'verdicts.md'}\n"
        f"   look at   {report}\n"
    )


def _render(name: str, folder: Path, size: int, count: int) -> Path:
    bar = progress.for_stream("photographs")
    return printed_codes.write(name, folder, size=size, count=count, progress=progress.as_callback(bar))


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


def truth(decisions: Path, predictions: Path, manifest: Path) -> Truth:
    """The gate's decisions against the true blur."""
    from sklearn.metrics import roc_auc_score

    with connect() as database:
        rows = database.sql(
            f"""SELECT true_blur >= {BLURRED} AS blurred, votes_low, passed, correct
                FROM read_parquet({literal(decisions / "gate.parquet")}) AS decided
                JOIN read_parquet({literal(predictions / "predictions.parquet")}) AS predicted USING (image_id)
                JOIN read_parquet({literal(manifest)}) AS truth USING (image_id)
                WHERE correct IS NOT NULL ORDER BY image_id"""
        ).to_arrow_table()
    blurred, votes, passed, correct = (
        rows[name].to_numpy(zero_copy_only=False) for name in ("blurred", "votes_low", "passed", "correct")
    )
    return Truth(
        photographs=rows.num_rows,
        blurred=int(blurred.sum()),
        auc=float(roc_auc_score(blurred, votes)),
        rejected_blurred=float((~passed[blurred]).mean()),
        rejected_others=float((~passed[~blurred]).mean()),
        accuracy_all=float(correct.mean()),
        accuracy_passed=float(correct[passed].mean()),
    )


def _of_truth(found: Truth) -> str:
    return (
        f"\nThe truth, known here: {found.blurred} of {found.photographs} photographs are blurred.\n"
        f"   the gate's votes tell them from the others with an AUC of {found.auc:.3f}: it rejects\n"
        f"   {found.rejected_blurred:.0%} of the blurred and {found.rejected_others:.0%} of the others\n"
        f"   the classifier is right on {found.accuracy_passed:.1%} of what passes, {found.accuracy_all:.1%} of all\n"
    )

"""The command line: one function a verb, no logic of its own."""

import contextlib
import errno
import itertools
import json
import logging
import os
import signal
import sys
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal, NoReturn

import typer

from qualitygate import __version__, logs, options
from qualitygate.config import (
    BaselineConfig,
    CalibrateConfig,
    CompactConfig,
    GateConfig,
    ManifestBuildConfig,
    NightlyConfig,
    NightlyPlanConfig,
    PredictConfig,
    PurgeConfig,
    ReportConfig,
    RobustnessConfig,
    ScoreConfig,
    ScorePlanConfig,
    StudyConfig,
    StudyPlanConfig,
    SubsetsConfig,
    VacuumConfig,
    VerifyConfig,
    load,
)
from qualitygate.errors import (
    ConfigurationError,
    ErrorBudgetExceeded,
    ErrorCode,
    Interrupted,
    QualityGateError,
    RunsFailed,
)
from qualitygate.report import progress as progress_bars
from qualitygate.tables import uris

# Typer carries its own copy of click, whose base class of usage errors has no public name.
UsageError: Any = typer.BadParameter.__mro__[2]
_LOG_FORMAT = "--log-format"
logger = logging.getLogger(__name__)

app = typer.Typer(
    name="qualitygate",
    help="Which photographs are good enough to classify, and where exactly is the line?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
dataset_app = typer.Typer(help="The embedded data set of printed codes.", no_args_is_help=True)
app.add_typer(dataset_app, name="dataset")
weights_app = typer.Typer(help="The published parameters of the three networks.", no_args_is_help=True)
app.add_typer(weights_app, name="weights")
plan_app = typer.Typer(help="What something will take, before it starts.", no_args_is_help=True)
app.add_typer(plan_app, name="plan")
manifest_app = typer.Typer(help="Which photographs there are.", no_args_is_help=True)
app.add_typer(manifest_app, name="manifest")
gate_app = typer.Typer()
app.add_typer(gate_app, name="gate")


def run(arguments: list[str] | None = None) -> NoReturn:
    """`main`, for a process that does nothing else: it ends at once where Ray was at work.

    By then all is written and closed. Ray's threads were seen to abort an orderly exit (SIGABRT, 134) of a job that had
    done everything, which a scheduler would take for a failure.
    """
    try:
        main(arguments)
    except SystemExit as end:
        if "ray" in sys.modules:
            _leave(end.code if isinstance(end.code, int) else 0)
        raise


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line; ends the process with the exit codes of `qualitygate.errors`."""
    signal.signal(signal.SIGTERM, _stop)
    form, given = _log_format_of(sys.argv[1:] if arguments is None else arguments)
    try:
        logs.set_up(form, verb=_verb(given))
        code = app(args=given, prog_name="qualitygate", standalone_mode=False)
    except UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            # A group of commands without any: the message is its help.
            sys.stderr.write(f"{error.format_message()}\n")
            sys.exit(2)
        # Typer's own box takes four lines for one sentence.
        _fail(f"{' '.join(error.format_message().split())} (see --help)", "UsageError", 2)
    except QualityGateError as error:
        code = error.exit_code
        _fail(" ".join(str(error).split()), type(error).__name__, code, at_once=isinstance(error, Interrupted))
    except (KeyboardInterrupt, typer.Abort):
        _fail("stopped", "Interrupted", 130)
    except Exception as error:
        if full := _full_disk(error):
            message = f"{full}; what was published before stays: make room and run the same command again"
            _fail(message, type(error).__name__, QualityGateError.exit_code)
        if logs.form() == logs.TEXT:
            raise
        logger.critical("%s", error, exc_info=True)
        _fail(f"{type(error).__name__}: {error}", type(error).__name__, 1)
    code = code if isinstance(code, int) else 0
    if logs.form() == logs.JSON:
        logs.write("ended", "done" if code == 0 else "ended", exit_code=code)
    sys.exit(code)


def _full_disk(error: BaseException | None) -> str | None:
    """The line of an error, or of what it comes from, that says that a disk or a quota is full; None without one.

    By its text too: Delta Lake's and DuckDB's errors carry no number.
    """
    signs = [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT)]
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        for line in str(error).splitlines():
            if any(sign in line for sign in signs):
                return " ".join(uris.redact(line).split())[:300]
        # Not what merely was being handled when another error was raised: that one's traceback is wanted.
        error = error.__cause__
    return None


def _fail(message: str, kind: str, code: int, *, at_once: bool = False) -> NoReturn:
    """Say why, in one line, and end the process."""
    if logs.form() == logs.JSON:
        logs.write("failed", message, level="error", error=kind, exit_code=code)
    else:
        sys.stderr.write(f"qualitygate: {message}\n")
    if at_once:
        # Also where tests call `main`: Ray's threads, stopped while they were starting, may crash an orderly exit.
        _leave(code)
    sys.exit(code)


def _leave(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        # A reader that has gone away changes nothing of what was done.
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _log_format_of(arguments: list[str]) -> tuple[str | None, list[str]]:
    """(the value of `--log-format`, the other arguments): the jobs' scripts have the verb before it."""
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == _LOG_FORMAT and (equals or place + 1 < len(arguments)):
            rest = place + (1 if equals else 2)
            return value if equals else arguments[place + 1], arguments[:place] + arguments[rest:]
    return None, arguments


def _verb(arguments: list[str]) -> str:
    """The words that name the command, such as "score" and "plan score"."""
    words = list(itertools.takewhile(lambda argument: not argument.startswith("-"), arguments))
    groups = {group.name for group in app.registered_groups}
    return " ".join(words[: 2 if words and words[0] in groups else 1])


def _stop(_signal: int, _frame: FrameType | None) -> NoReturn:
    """A scheduler's polite stop is handled like Ctrl-C: commit what has arrived, say how to go on."""
    raise KeyboardInterrupt


def _say(text: str) -> None:
    """At once, so that it stands in order with the progress on stderr."""
    sys.stdout.write(text)
    sys.stdout.flush()


def _names(value: str | None) -> tuple[str, ...] | None:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if value is not None else None


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"qualitygate {__version__}\n")
        raise typer.Exit


def _log_format(wanted: str | None) -> None:
    if wanted is not None:
        logs.set_up(wanted, **logs.context())


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")
    ] = False,
    log_format: Annotated[
        str | None,
        typer.Option(
            callback=_log_format,
            is_eager=True,
            help=f"text, or json: a JSON object a line on stderr (${logs.VARIABLE}).",
        ),
    ] = None,
) -> None:
    pass


@app.command()
def score(
    input: Annotated[
        str | None, typer.Option(help="Folder, prefix, glob, image or manifest (Parquet, CSV, JSONL).")
    ] = None,
    output: Annotated[str | None, typer.Option(help="Folder of the results; the table lies in its scores/.")] = None,
    metrics: Annotated[
        str | None, typer.Option(help="Metrics by name, with commas; default: those of the paper that can be computed.")
    ] = None,
    backend: Annotated[str | None, typer.Option(help="native, or pyiqa for comparison.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    decoder: Annotated[
        str | None,
        typer.Option(help="strict, or nvjpeg: plain JPEGs on the GPU, where CPUs can't keep up, with other pixels."),
    ] = None,
    formulas: Annotated[
        str | None, typer.Option(help="gpu, or cpu: the five formulas on the cores beside the GPU (default gpu).")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the input's first N images.")] = None,
    longest_side: Annotated[int | None, typer.Option(help="Score at this resolution; default: native.")] = None,
    max_pixels: Annotated[
        int | None, typer.Option(help="Larger photographs are too_large (default 100 million).")
    ] = None,
    max_bytes: Annotated[int | None, typer.Option(help="Larger files are too_large (default 512 MiB).")] = None,
    image_timeout_s: Annotated[float | None, typer.Option(help="Seconds for one photograph (default 300).")] = None,
    commit_rows: Annotated[
        int | None, typer.Option(help="Rows after which results are committed (default 1000).")
    ] = None,
    commit_seconds: Annotated[float | None, typer.Option(help="Seconds after which they are (default 60).")] = None,
    max_error_rate: Annotated[
        float | None, typer.Option(help="Share of images without a score that fails the run (default .1).")
    ] = None,
    backfill: Annotated[bool | None, typer.Option("--backfill", help="Add metrics to rows that lack them.")] = None,
    retry: Annotated[list[str] | None, typer.Option(help="Failures to try again, by code; may be repeated.")] = None,
    gate: Annotated[str | None, typer.Option(help="gate.json or its folder: score what it votes with.")] = None,
    lazy: Annotated[bool | None, typer.Option("--lazy", help="Leave out scores that can't change its vote.")] = None,
    lazy_sample: Annotated[
        float | None, typer.Option(help="Share of photographs that get every score all the same (default .01).")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="File or folder of the networks' parameters.")] = None,
    untrained: Annotated[bool | None, typer.Option("--untrained", help="Random networks, to try the plumbing.")] = None,
    workers: Annotated[int | None, typer.Option(help="Scoring workers; default: one a core.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Photographs that the networks get at once; default: 32, on a CPU 4.")
    ] = None,
    task_size: Annotated[
        int | None,
        typer.Option(help="Photographs a task, which is what a dying worker costs; default: by a measurement."),
    ] = None,
    measure: Annotated[
        bool | None, typer.Option(help="Time some photographs first, to choose how many make a task (default on).")
    ] = None,
    gpus_per_worker: Annotated[float | None, typer.Option(help="GPUs, or a fraction of one, a worker.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="float32, or fast: half precision on GPUs where --verified passed it.")
    ] = None,
    verified: Annotated[str | None, typer.Option(help="File of 'qualitygate verify', for --precision fast.")] = None,
    ray_address: Annotated[str | None, typer.Option(help="auto, local, or a cluster's address.")] = None,
    image_column: Annotated[
        str | None, typer.Option(help="Of Parquet files that hold images; default: their only bytes.")
    ] = None,
    max_requests_per_second: Annotated[
        float | None, typer.Option(help="Most requests for photographs to the store, of all workers together.")
    ] = None,
    retry_seconds: Annotated[
        float | None, typer.Option(help="How long a store that fails is asked again for a photograph (default 60).")
    ] = None,
    request_timeout_s: Annotated[
        float | None, typer.Option(help="Seconds without a byte after which a request has failed (default 30).")
    ] = None,
    max_gpu_hours: Annotated[
        float | None,
        typer.Option(help="Refuse to start where the networks would take more, as 'plan score' estimates."),
    ] = None,
    max_cpu_hours: Annotated[
        float | None, typer.Option(help="Refuse to start where it would take more hours of one core.")
    ] = None,
    metrics_textfile: Annotated[
        str | None, typer.Option(help="File (.prom) for the run's numbers, for node_exporter's textfile collector.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of the same keys.")] = None,
) -> None:
    """Score every image that has no valid row yet. Exit codes: 0 done, 2 to mend, 3 too many errors, 130 stopped."""
    given: dict[str, Any] = {key: value for key, value in locals().items() if key != "config"}
    given["metrics"] = _names(metrics)
    given["retry"] = _codes(retry)
    resolved = load(ScoreConfig, config, given)

    from qualitygate.cluster import scoring
    from qualitygate.report import summary

    try:
        stats = scoring.run(resolved, progress_bars.for_stream()).stats
    except ErrorBudgetExceeded as error:
        _say(summary.of_run(error.stats, resolved.output))
        raise
    _say(summary.of_run(stats, resolved.output))


def _codes(values: list[str] | None) -> tuple[str, ...] | None:
    if not values:
        return None
    codes = [code for value in values for code in _names(value) or ()]
    unknown = [code for code in codes if code not in set(ErrorCode)]
    if unknown:
        raise ConfigurationError(f"--retry: unknown code {unknown[0]!r}; it is one of {', '.join(ErrorCode)}")
    return tuple(codes)


@app.command()
def export(
    input: Annotated[str, typer.Option(help="Output folder of a scoring run.")],
    output: Annotated[str, typer.Option(help="File to write, ending in .parquet or .csv; replaced if it exists.")],
) -> None:
    """Write the score table as one plain file."""
    from qualitygate.tables import scores, storage

    rows = scores.export(storage.check_location(input, "--input"), output)
    sys.stdout.write(f"{rows:,} rows in {output}\n")


@app.command()
def status(
    folder: Annotated[str, typer.Argument(help="Output folder of any verb.")],
    max_age_hours: Annotated[
        float | None, typer.Option(min=0, help="Exit code 1 when the last good run ended longer ago.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
) -> None:
    """How an output folder stands. Exit codes: 0 fine, 1 the last run failed or is too old, 2 nothing is there."""
    from qualitygate.nightly import standing
    from qualitygate.report import status as job
    from qualitygate.tables import storage

    place = storage.check_location(folder, "DIR")
    found = job.read(place, max_age_hours=max_age_hours, before=[standing.nightly])
    _say(job.as_json(found) if as_json else job.as_text(found))
    if found.problems:
        raise typer.Exit(1)


@options.verb(app, "compact", CompactConfig)
def compact(config: CompactConfig) -> None:
    """Make few large files of a score table's many small ones; no row changes, and a run at work goes on."""
    from qualitygate.report import upkeep as said
    from qualitygate.tables import storage, upkeep

    output = storage.check_location(config.output, "--output")
    done = upkeep.compact(output, round(config.target_mb * 2**20))
    _say(said.as_json(done) if config.as_json else said.of_compaction(done))


@options.verb(app, "vacuum", VacuumConfig)
def vacuum(config: VacuumConfig) -> None:
    """Remove files that no version of the last days needs, and what killed runs left behind."""
    from qualitygate.report import upkeep as said
    from qualitygate.tables import storage, upkeep

    output = storage.check_location(config.output, "--output")
    done = upkeep.vacuum(output, timedelta(days=config.keep_days), dry_run=config.dry_run)
    _say(said.as_json(done) if config.as_json else said.of_vacuum(done))


@options.verb(app, "purge", PurgeConfig)
def purge(config: PurgeConfig) -> None:
    """Erase photographs, by id, from every output below a folder. Exit code 1: some file still holds an id."""
    from qualitygate.report import upkeep as said
    from qualitygate.tables import purge as job
    from qualitygate.tables import storage

    output, ids = storage.check_location(config.output, "--output"), storage.check_location(config.ids, "--ids")
    done = job.purge(output, ids, apply=config.yes)
    _say(said.as_json(done) if config.as_json else said.of_purge(done))
    if done.remaining:
        raise typer.Exit(1)


@app.command()
def metrics(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
    backend: Annotated[Literal["native", "pyiqa"], typer.Option(help="Whose implementation.")] = "native",
) -> None:
    """List the metrics: direction, range, unit, reference, licences, whether their parameters are present."""
    from qualitygate.report import summary

    described = summary.describe_metrics(backend)
    if as_json:
        sys.stdout.write(json.dumps(described, indent=1) + "\n")
    else:
        sys.stdout.write(summary.metrics_table(described))


@options.verb(app, "verify", VerifyConfig)
def verify(config: VerifyConfig) -> None:
    """Is half precision good enough? Measured on your weights and photographs; for 'score --precision fast'."""
    from qualitygate.metrics import verification as job
    from qualitygate.report import verification as said

    _say(said.of_run(job.run(config), config.output))


@options.verb(app, "robustness", RobustnessConfig)
def robustness(config: RobustnessConfig) -> None:
    """Which metrics to trust: their reaction to cropping, rotating and blurring (the paper's Table 1)."""
    from qualitygate.cluster import robustness as job
    from qualitygate.report import robustness as said

    _say(said.of_run(job.run(config, progress_bars.for_stream("photographs"))))


@options.verb(app, "train-baseline", BaselineConfig)
def train_baseline(config: BaselineConfig) -> None:
    """Train the classifier whose confidence calibrates the gate."""
    from qualitygate.cluster import baseline as job
    from qualitygate.report import classifier as said

    _say(said.of_training(job.run(config, progress_bars.for_stream("epochs"))))


@options.verb(app, "predict", PredictConfig)
def predict(config: PredictConfig) -> None:
    """A classifier's confidence on labelled photographs."""
    from qualitygate.cluster import prediction as job
    from qualitygate.report import classifier as said

    _say(said.of_prediction(job.run(config, progress_bars.for_stream("photographs"))))


@options.verb(app, "calibrate", CalibrateConfig)
def calibrate(config: CalibrateConfig) -> None:
    """Find each method's cut-off, where the densities of right and wrong predictions cross, and make the gate."""
    from qualitygate.calibration import calibrate as job
    from qualitygate.report import calibration as said

    _say(said.of_run(job.run(config, progress_bars.for_stream("steps"))))


@options.verb_with_parts(gate_app, GateConfig)
def gate(config: GateConfig) -> None:
    """Apply a gate to scores: who passes, who is rejected, and by which votes. Exit code 4: too few can vote.

    Its own verbs tell and change which gate is in force.
    """
    from qualitygate.calibration import apply as job
    from qualitygate.report import calibration as said

    _say(said.of_gate(job.run(config)))


_Store = Annotated[str, typer.Option(help="Folder of the gates, or the output of 'nightly'.")]


@gate_app.command("history")
def gate_history(
    store: _Store, as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False
) -> None:
    """Which gate is in force, since when, and every change before."""
    from qualitygate.calibration import gate_store
    from qualitygate.report import gate_history as said

    found = gate_store.read(gate_store.of(store))
    _say(json.dumps(gate_store.as_record(found), indent=1) + "\n" if as_json else said.of_history(found))


@gate_app.command("diff")
def gate_diff(
    old: Annotated[str, typer.Argument(help="gate.json, its folder, or with --store an id.")],
    new: Annotated[str, typer.Argument(help="The other one.")],
    store: Annotated[str | None, typer.Option(help="Folder of the gates, or the output of 'nightly'.")] = None,
) -> None:
    """Two gates side by side: how far each cut-off moved, and whether its interval allows that."""
    from qualitygate.calibration import gate as gates
    from qualitygate.calibration import gate_store
    from qualitygate.report import gate_history as said

    place = gate_store.of(store) if store else None
    before, after = (gate_store.load(place, one) if place else gates.load(one, "gate") for one in (old, new))
    _say(said.of_differences(before, after, gate_store.differences(before, after)))


@gate_app.command("promote")
def gate_promote(
    gate: Annotated[str, typer.Argument(help="gate.json, its folder, or the id of a gate in the store.")],
    store: _Store,
    reason: Annotated[str, typer.Option(help="For the history.")] = "by hand",
) -> None:
    """Put a gate in force, by one atomic change."""
    from qualitygate.calibration import gate as gates
    from qualitygate.calibration import gate_store
    from qualitygate.report import gate_history as said
    from qualitygate.tables import storage

    place = gate_store.of(store)
    location = gate if storage.exists(gate) else storage.join(place, gate_store.load(place, gate).id)
    gate_store.refuse_unscored(place, gates.load(location, "gate"))
    _say(said.of_change(gate_store.promote(place, location, reason=reason)))


@gate_app.command("rollback")
def gate_rollback(
    store: _Store,
    to: Annotated[str | None, typer.Option(help="Id of a gate in the store; default: the one before.")] = None,
    reason: Annotated[str, typer.Option(help="For the history.")] = "by hand",
    hold: Annotated[bool, typer.Option("--hold", help="No nightly job promotes until somebody does by hand.")] = False,
) -> None:
    """Put the gate before in force again, by one atomic change."""
    from qualitygate.calibration import gate_store
    from qualitygate.report import gate_history as said

    _say(said.of_change(gate_store.rollback(gate_store.of(store), to=to, reason=reason, held=hold)))


@options.verb(app, "nightly", NightlyConfig)
def nightly(config: NightlyConfig) -> None:
    """Score what is new, look for drift, calibrate again, promote the new gate or say why not. Run again, it resumes.

    Exit codes: 0 promoted or nothing to change, 2 to mend or another at work, 3 the deadline came, 4 refused.
    """
    from qualitygate.nightly import job
    from qualitygate.report import nightly as said

    outcome = job.run(config, progress_bars.for_stream)
    _say(said.of_night(job.as_record(outcome)))
    job.raise_for(outcome)


@options.verb(app, "subsets", SubsetsConfig)
def subsets(config: SubsetsConfig) -> None:
    """Draw the photographs of every run of a study, disjoint by group, and write their ids."""
    from qualitygate.cluster import study as job
    from qualitygate.report import study as said

    _say(said.of_subsets(job.subsets(config, progress_bars.for_stream("photographs"))))


@options.verb(app, "study", StudyConfig)
def study(config: StudyConfig) -> None:
    """Does it pay? Train on filtered and other photographs (the paper's Tables 2 and 3). Run again, it resumes."""
    from qualitygate.cluster import study as job
    from qualitygate.report import study as said

    result = job.run(config, progress_bars.for_stream("runs"))
    _say(said.of_run(result))
    counts = result.record["runs"]
    if counts["failed"]:
        raise RunsFailed(
            f"{counts['failed']} of {counts['planned']} runs failed; the same command with --retry-failed tries these "
            "again"
        )


@options.verb(plan_app, "score", ScorePlanConfig)
def plan_score(config: ScorePlanConfig) -> None:
    """Photographs to score, and the CPU- and GPU-hours of each metric: timed on some of them, or counted."""
    from qualitygate.cluster import score_costs
    from qualitygate.report import costs as said

    found = score_costs.estimate(config)
    _say(json.dumps(found, indent=1) + "\n" if config.as_json else said.of_score_plan(found))


@options.verb(plan_app, "nightly", NightlyPlanConfig)
def plan_nightly(config: NightlyPlanConfig) -> None:
    """What is new, changed and gone since the last night, and the CPU- and GPU-hours that scoring it takes."""
    from qualitygate.nightly import plan
    from qualitygate.report import costs as said

    found = plan.estimate(config)
    _say(json.dumps(found, indent=1) + "\n" if config.as_json else said.of_night_plan(found))


@options.verb(plan_app, "study", StudyPlanConfig)
def plan_study(config: StudyPlanConfig) -> None:
    """How many runs a study has, and how long they take on a GPU and here."""
    from qualitygate.cluster import study_costs
    from qualitygate.report import study as said

    _say(said.of_plan(study_costs.estimate(config)))


@options.verb(app, "report", ReportConfig)
def report(config: ReportConfig) -> None:
    """One self-contained page of what the other verbs found."""
    from qualitygate.report import page

    _say(f"{page.write(config)}\n")


@options.verb(manifest_app, "build", ManifestBuildConfig)
def manifest_build(config: ManifestBuildConfig) -> None:
    """List an input into a manifest, and say what is new, changed and gone since the last one."""
    from qualitygate.report import manifest as said
    from qualitygate.tables import manifest_build as job

    built = job.build(config)
    _say(said.as_json(built) if config.as_json else said.of_build(built))


@dataset_app.command("render")
def dataset_render(
    name: Annotated[str, typer.Option(help="sharpness, calibration, study or baseline.")],
    output: Annotated[Path, typer.Option(help="Folder for the photographs and manifest.parquet.")],
    size: Annotated[int, typer.Option(help="Pixels a side.")] = 1024,
    count: Annotated[int | None, typer.Option(help="Photographs; default: the paper's 140, 700, 2800, 3090.")] = None,
    seed: Annotated[int, typer.Option(help="Another seed, other photographs.")] = 0,
    workers: Annotated[int | None, typer.Option(help="Processes; default: one a core.")] = None,
) -> None:
    """Render photographs of printed codes whose true blur and noise are known."""
    from qualitygate.images import printed_codes

    bar = progress_bars.for_stream("photographs")
    manifest = printed_codes.write(
        name,
        output,
        size=size,
        count=count,
        seed=seed,
        workers=workers,
        progress=progress_bars.as_callback(bar),
    )
    sys.stdout.write(f"{manifest}\n")


@weights_app.command("list")
def weights_list(
    folder: Annotated[str | None, typer.Option(help="Default: $QUALITYGATE_WEIGHTS, or the user's cache.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
) -> None:
    """List them: whether they are here and pinned, how large, under which licence, where."""
    from qualitygate.metrics import weights
    from qualitygate.report import weights as said

    listed = weights.listing(folder)
    sys.stdout.write(
        json.dumps([asdict(one) for one in listed], indent=1) + "\n" if as_json else said.of_listing(listed)
    )


@weights_app.command("fetch")
def weights_fetch(
    names: Annotated[list[str], typer.Argument(help="As in 'qualitygate weights list'.")],
    source: Annotated[
        str | None, typer.Option("--from", help="File or folder, local or s3://...; default: the published address.")
    ] = None,
    accept_new_hash: Annotated[
        bool, typer.Option("--accept-new-hash", help="Take and pin a file of which no hash is known.")
    ] = False,
    folder: Annotated[str | None, typer.Option(help="Default: $QUALITYGATE_WEIGHTS, or the user's cache.")] = None,
) -> None:
    """Download them, check them against the published hash and pin the full one in weights.lock."""
    from qualitygate.metrics import weights
    from qualitygate.report import weights as said

    for name in names:
        _say(said.of_fetch(weights.fetch(name, source=source, accept_new_hash=accept_new_hash, folder=folder)))


@weights_app.command("verify")
def weights_verify(
    name: Annotated[str | None, typer.Argument(help="Only this one; default: all that are here.")] = None,
    folder: Annotated[str | None, typer.Option(help="Default: $QUALITYGATE_WEIGHTS, or the user's cache.")] = None,
) -> None:
    """Hash and open each again, and compare with weights.lock. Exit code 2 if one isn't as it was."""
    from qualitygate.metrics import weights
    from qualitygate.report import weights as said

    checked = weights.verify(name, folder)
    _say(said.of_verification(checked))
    weights.require(checked)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for all that the demo makes.")] = Path("demo"),
    count: Annotated[int, typer.Option(help="Labelled photographs to render.")] = 500,
    size: Annotated[int, typer.Option(help="Pixels a side.")] = 256,
) -> None:
    """The whole method on rendered photographs: score, train, calibrate, gate, study, report."""
    from qualitygate import demonstration

    demonstration.run(output, count=count, size=size, write=_say)


if __name__ == "__main__":
    run()

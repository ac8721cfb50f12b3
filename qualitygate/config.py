"""One typed configuration a job: read from YAML, every key overridable on the command line, echoed with the output."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qualitygate.errors import ConfigurationError, ErrorCode

# How stores are asked for photographs, the same for every verb that reads any: `tables.access.of`.
_RATE: Any = Field(None, gt=0, description="most requests for photographs to the store, of all workers together")
_RETRIES: Any = Field(60, ge=0, description="how long a store that fails is asked again for a photograph")
_TIMEOUT: Any = Field(30, gt=0, description="seconds without a byte after which a request has failed")


class ScoreConfig(BaseModel):
    """What `qualitygate score` does. Defaults suit a folder of photographs on one machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: str = Field(description="folder, prefix, glob, image or manifest (Parquet, CSV, JSONL)")
    output: str = Field(description="folder or prefix of the results; the table lies in its scores/")
    metrics: tuple[str, ...] | None = Field(
        None, description="metrics by name; default: all whose parameters are present"
    )
    backend: Literal["native", "pyiqa"] = Field("native", description="whose implementation computes the scores")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the pool of scoring workers runs")
    decoder: Literal["strict", "nvjpeg"] = Field(
        "strict", description="of JPEGs; nvjpeg: plain ones on the GPU, where CPUs can't keep up, with other pixels"
    )
    formulas: Literal["gpu", "cpu"] = Field(
        "gpu",
        description="where the five formulas run when the pool has GPUs; cpu: on their cores, beside the networks",
    )
    limit: int | None = Field(None, ge=1, description="only the input's first N images")
    longest_side: int | None = Field(None, ge=16, description="score at this resolution; default: the photograph's own")
    max_pixels: int = Field(100_000_000, ge=1, description="larger photographs are too_large, by their header")
    max_bytes: int = Field(512 << 20, ge=1, description="larger files are too_large, unread")
    image_timeout_s: float = Field(300, gt=0, description="seconds after which one photograph is given up")
    commit_rows: int = Field(1000, ge=1, description="rows after which results are committed")
    commit_seconds: float = Field(60, gt=0, description="seconds after which results are committed, however few")
    max_error_rate: float = Field(0.1, ge=0, le=1, description="share of images without any score that fails the run")
    backfill: bool = Field(False, description="add metrics to rows that lack them, or have them by another definition")
    retry: tuple[ErrorCode, ...] = Field((), description="failures of earlier runs to try again, by code")
    gate: str | None = Field(None, description="gate.json or its folder: score what it votes with")
    lazy: bool = Field(False, description="with --gate: leave out scores that can't change its decision")
    lazy_sample: float = Field(0.01, ge=0, le=1, description="share of photographs that get every score all the same")
    weights: str | None = Field(None, description="file or folder of the networks' parameters; default: the user cache")
    untrained: bool = Field(False, description="seeded random networks, to try the plumbing: scores mean nothing")
    workers: int | None = Field(None, ge=1, description="scoring workers; default: one a core, or as the GPUs allow")
    batch_size: int | None = Field(
        None,
        ge=1,
        description="photographs that the networks, and on a GPU the formulas, get at once; default: 32, "
        "networks on a CPU 4",
    )
    task_size: int | None = Field(
        None, ge=1, description="photographs a task, which is what a dying worker costs; default: by a measurement"
    )
    measure: bool = Field(True, description="time some photographs first, to choose how many make a task")
    gpus_per_worker: float = Field(1.0, gt=0, description="GPUs, or a fraction of one, for each worker on GPUs")
    precision: Literal["float32", "fast"] = Field(
        "float32", description="of the networks; fast: half precision on GPUs, for the metrics that --verified passed"
    )
    verified: str | None = Field(None, description="file of 'qualitygate verify', for --precision fast")
    ray_address: str = Field("auto", description="auto: RAY_ADDRESS or this machine; local; or a cluster's address")
    image_column: str | None = Field(None, description="of Parquet files that hold images; default: their only bytes")
    max_requests_per_second: float | None = Field(
        None, gt=0, description="most requests for photographs to the store, of all workers together"
    )
    retry_seconds: float = Field(60, ge=0, description="how long a store that fails is asked again for a photograph")
    request_timeout_s: float = Field(30, gt=0, description="seconds without a byte after which a request has failed")
    max_gpu_hours: float | None = Field(
        None, gt=0, description="refuse to start where the networks would take more, by the estimate of 'plan score'"
    )
    max_cpu_hours: float | None = Field(
        None, gt=0, description="refuse to start where it would take more hours of one core, by the same estimate"
    )
    metrics_textfile: str | None = Field(
        None, description="file (.prom) for the numbers of the run, as node_exporter's textfile collector reads them"
    )


class ScorePlanConfig(BaseModel):
    """What `qualitygate plan score` does: say what scoring an input will take. No weights are needed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: str = Field(description="as of 'score'")
    output: str | None = Field(None, description="as of 'score': what is scored there counts as done; not written")
    metrics: tuple[str, ...] | None = Field(None, description="metrics by name; default: the paper's eight")
    gate: str | None = Field(None, description="gate.json or its folder: what its methods alone would take, too")
    limit: int | None = Field(None, ge=1, description="only the input's first N images")
    longest_side: int | None = Field(None, ge=16, description="as of 'score'")
    max_pixels: int = Field(100_000_000, ge=1, description="as of 'score'")
    photographs: int = Field(16, ge=2, le=200, description="so many of the input are timed")
    as_json: bool = Field(False, description="say it as JSON", json_schema_extra={"flag": "json"})


class ManifestBuildConfig(BaseModel):
    """What `qualitygate manifest build` does: list an input once, and say what changed since the last time."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: str = Field(description="folder, prefix, glob, archive (.tar) or Parquet file with images")
    output: str = Field(description="Parquet file to write; replaced at once when all is listed")
    previous: str | None = Field(None, description="manifest to compare with; default: the output, if it exists")
    image_column: str | None = Field(None, description="of Parquet files that hold images; default: their only bytes")
    max_requests_per_second: float | None = Field(None, gt=0, description="most requests to the store")
    retry_seconds: float = Field(60, ge=0, description="how long a store that fails is asked again")
    request_timeout_s: float = Field(30, gt=0, description="seconds without a byte after which a request has failed")
    as_json: bool = Field(False, description="say the counts as JSON", json_schema_extra={"flag": "json"})


class VerifyConfig(BaseModel):
    """What `qualitygate verify` does: measure how far half precision is from float32, metric by metric."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: str = Field(description="folder, prefix, glob, image or manifest (Parquet, CSV, JSONL)")
    output: str = Field(description="the file to write, such as precision.json, for 'score --verified'")
    metrics: tuple[str, ...] | None = Field(None, description="networks by name; default: those whose weights are here")
    precision: Literal["fast"] = Field("fast", description="what is compared with float32")
    device: Literal["auto", "cuda", "cpu"] = Field(
        "auto", description="a GPU such as will score; cpu: only a forecast, with a GPU's roundings"
    )
    photographs: int = Field(200, ge=50, description="only the input's first N photographs")
    min_srcc: float = Field(0.9995, gt=0, le=1, description="least rank correlation with float32")
    max_error: float = Field(0.005, gt=0, description="largest error, as a share of the spread of the scores")
    longest_side: int | None = Field(None, ge=16, description="as 'score' will have it")
    max_pixels: int = Field(100_000_000, ge=1, description="larger photographs are left out")
    weights: str | None = Field(None, description="file or folder of the networks' parameters; default: the user cache")
    untrained: bool = Field(False, description="seeded random networks, to try the plumbing")
    max_requests_per_second: float | None = _RATE
    retry_seconds: float = _RETRIES
    request_timeout_s: float = _TIMEOUT


class RobustnessConfig(BaseModel):
    """What `qualitygate robustness` does: score nuisance and blur series of sharp samples, compare the metrics."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: str = Field(description="manifest or folder of sharp samples; with series and step: blur series")
    output: str = Field(description="folder for robustness.json, robustness.parquet, table1.md and series.png")
    metrics: tuple[str, ...] | None = Field(None, description="metrics by name; default: the paper's that can be had")
    backend: Literal["native", "pyiqa"] = Field("native", description="whose implementation computes the scores")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the pool of scoring workers runs")
    samples: int | None = Field(None, ge=1, description="only the first N samples")
    blur: Literal["auto", "manifest", "rendered"] = Field(
        "auto", description="the manifest's blur series, or ones rendered here; auto: the manifest's where it has any"
    )
    interpolation: Literal["lanczos", "cubic", "linear"] = Field("lanczos", description="for rotations")
    second_interpolation: Literal["lanczos", "cubic", "linear", "none"] = Field(
        "cubic", description="reported beside it: how much of a change is the interpolation's"
    )
    methods: str = Field("auto", description="the choice to report: auto, paper, classical or names with commas")
    seed: int = Field(0, ge=0, description="of the bootstrap")
    weights: str | None = Field(None, description="file or folder of the networks' parameters")
    untrained: bool = Field(False, description="seeded random networks, to try the plumbing: scores mean nothing")
    workers: int | None = Field(None, ge=1, description="scoring workers; default: one a core")
    max_requests_per_second: float | None = _RATE
    retry_seconds: float = _RETRIES
    request_timeout_s: float = _TIMEOUT
    ray_address: str = Field("auto", description="auto: RAY_ADDRESS or this machine; local; or a cluster's address")


class BaselineConfig(BaseModel):
    """What `qualitygate train-baseline` does: train the classifier whose confidence calibrates the gate."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: str = Field(description="manifest with image_id, uri, label and, recommended, group")
    output: str = Field(description="folder for the model, its record and the ids that it was trained on")
    architecture: str = Field("resnet34", description="a torchvision classifier by name")
    weights: str | None = Field(
        None, description="pretrained parameters: a file, a URI, or a name of 'qualitygate weights list'"
    )
    from_scratch: bool = Field(False, description="start from seeded random parameters, not from ImageNet's")
    epochs: int = Field(40, ge=1, description="passes over the training photographs")
    batch_size: int = Field(32, ge=1, description="photographs a step")
    learning_rate: float = Field(1e-4, gt=0, description="Adam's")
    weight_decay: float = Field(0.0, ge=0, description="Adam's")
    image_size: int = Field(224, ge=16, description="pixels a side that the network sees")
    eval_fraction: float = Field(0.1, gt=0, lt=1, description="share kept out, by group; unused with a split column")
    augment: bool = Field(True, description="small shifts and changes of scale; never flips or quarter turns")
    limit: int | None = Field(None, ge=1, description="only the input's first N photographs")
    seed: int = Field(0, ge=0, description="of parameters, split, order and augmentation")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where it trains")
    workers: int = Field(1, ge=1, description="workers of the data-parallel training")
    max_requests_per_second: float | None = _RATE
    retry_seconds: float = _RETRIES
    request_timeout_s: float = _TIMEOUT
    ray_address: str = Field("auto", description="auto: RAY_ADDRESS or this machine; local; or a cluster's address")


class PredictConfig(BaseModel):
    """What `qualitygate predict` does: a classifier's confidence on labelled photographs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: str = Field(description="manifest with image_id, uri, label and, recommended, group")
    output: str = Field(description="folder for predictions.parquet and its record")
    weights: str = Field(description="folder or model of 'train-baseline', or a state dictionary: a path or URI")
    architecture: str | None = Field(None, description="a torchvision classifier; default: the model record's")
    classes: tuple[str, ...] | None = Field(
        None, description="labels in the order of the model's outputs; default: the model record's"
    )
    image_size: int | None = Field(None, ge=16, description="pixels a side; default: the model record's, else 224")
    batch_size: int = Field(32, ge=1, description="photographs a step")
    limit: int | None = Field(None, ge=1, description="only the input's first N photographs")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where it runs")
    workers: int | None = Field(None, ge=1, description="workers; default: one a core, or as the GPUs allow")
    max_requests_per_second: float | None = _RATE
    retry_seconds: float = _RETRIES
    request_timeout_s: float = _TIMEOUT
    ray_address: str = Field("auto", description="auto: RAY_ADDRESS or this machine; local; or a cluster's address")


class CalibrateConfig(BaseModel):
    """What `qualitygate calibrate` does: find each method's cut-off and make the gate."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scores: str = Field(description="output folder of 'score', or a Parquet or CSV table with image_id and the methods")
    predictions: str = Field(
        description="output folder of 'predict', or a Parquet or CSV table with image_id, correct, confidence"
    )
    output: str = Field(description="folder for gate.json, calibration.json and calibration.parquet")
    methods: str = Field("paper", description="auto, paper (lapm,wavs,musiq), classical, or names with commas")
    robustness: str | None = Field(None, description="output folder of 'robustness'; auto and classical need it")
    directions: dict[str, Literal["higher", "lower"]] = Field(
        default_factory=dict, description="name=higher or name=lower for columns that are no metric of the catalogue"
    )
    votes_needed: int | None = Field(None, ge=1, description="low votes that reject; default: a majority")
    target_accuracy: float | None = Field(
        None, gt=0, lt=1, description="instead of the crossing: cut where those above reach this accuracy"
    )
    min_coverage: float | None = Field(
        None, gt=0, lt=1, description="instead of the crossing: cut where at least this share passes each method"
    )
    fallback_percentile: float | None = Field(
        None, gt=0, lt=50, description="cut-off of an undefined method: this lowest percentage of quality"
    )
    weighting: Literal["conditional", "counts"] = Field(
        "conditional", description="densities of equal weight (the paper's), or by the number of photographs"
    )
    bandwidth: Literal["scott", "silverman"] = Field("scott", description="rule of the kernel's width")
    bootstrap: int = Field(500, ge=50, description="replicates, by group, of each cut-off")
    permutations: int = Field(1000, ge=99, description="of the test that a score separates wrong from right")
    significance: float = Field(0.05, gt=0, lt=1, description="of that test, after Holm's correction")
    folds: int = Field(5, ge=2, description="of the grouped cross-fitting")
    repeats: int = Field(5, ge=1, description="of the grouped cross-fitting")
    min_wrong: int = Field(20, ge=2, description="fewest wrong predictions to calibrate on")
    min_wrong_groups: int = Field(10, ge=2, description="fewest groups among them")
    stratum: str | None = Field(None, description="column that divides photographs, such as the camera; default: auto")
    sampling_column: str | None = Field(
        None,
        description="column of the predictions: chance in (0, 1] with which each was drawn to be labelled; default: "
        "sampling_probability, where there is one",
    )
    drop_trained: bool = Field(False, description="leave out photographs and groups that the classifier was trained on")
    allow_untrained: bool = Field(False, description="take scores of untrained networks, to try the plumbing")
    parent: str | None = Field(None, description="gate.json that this one follows")
    seed: int = Field(0, ge=0, description="of bootstrap, permutations and folds")


class GateConfig(BaseModel):
    """What `qualitygate gate` does: apply a gate to scores, without scoring again."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scores: str = Field(description="output folder of 'score', or a Parquet or CSV table with image_id and the methods")
    gate: str = Field(description="gate.json, or the folder of 'calibrate'")
    output: str = Field(description="folder for gate.parquet, accepted.parquet and _gate_stats.json")
    on_null: Literal["reject", "pass", "abstain"] = Field("reject", description="how a failed score votes")
    allow_fallback: bool = Field(False, description="let methods vote whose cut-off is only a percentile")
    allow_untrained: bool = Field(False, description="apply a gate made from untrained networks")


class SubsetsConfig(BaseModel):
    """What `qualitygate subsets` does: draw the photographs of every run, and write their ids."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    manifest: str = Field(description="manifest with image_id, uri, label and, recommended, group")
    scores: str = Field(description="output folder of 'score', or a Parquet or CSV table with image_id and the methods")
    gate: str = Field(description="gate.json, or the folder of 'calibrate'")
    output: str = Field(description="folder for subsets/ and, of a study, everything else")
    kinds: tuple[Literal["high", "all", "varying"], ...] = Field(
        ("high", "all", "varying"), description="training sets: high and all (Table 2), varying (Table 3)"
    )
    controls: bool = Field(True, description="size-matched random removal, class balance, the full unfiltered set")
    removed: tuple[float, ...] = Field(
        (0, 10, 20, 30, 40, 50), description="percentages of the lowest quality that varying removes"
    )
    train_images: int | None = Field(
        None, ge=2, description="training photographs of each draw; default: what the high-quality set leaves"
    )
    strict_size: bool = Field(False, description="refuse, rather than shrink, where there are too few photographs")
    test_fraction: float = Field(0.1, gt=0, le=0.5, description="share of the photographs held out for tests, by group")
    eval_fraction: float = Field(0.1, gt=0, le=0.5, description="share of each draw that evaluates its runs")
    seeds: int = Field(5, ge=1, description="repetitions, each with its own draw and training seed")
    resample: Literal["split+seed", "seed"] = Field(
        "split+seed", description="what a repetition draws anew: everything, or the training seed only (the paper)"
    )
    seed: int = Field(0, ge=0, description="of the first repetition")
    on_unreadable: Literal["drop", "refuse"] = Field(
        "drop", description="photographs that can't be read: left out of every subset alike, or no study"
    )
    on_null: Literal["reject", "pass", "abstain"] = Field("reject", description="how a failed score votes")
    allow_fallback: bool = Field(False, description="let methods vote whose cut-off is only a percentile")
    allow_untrained: bool = Field(False, description="apply a gate made from untrained networks")
    limit: int | None = Field(None, ge=1, description="only the manifest's first N photographs")
    max_requests_per_second: float | None = _RATE
    retry_seconds: float = _RETRIES
    request_timeout_s: float = _TIMEOUT
    ray_address: str = Field("auto", description="auto: RAY_ADDRESS or this machine; local; or a cluster's address")


class StudyConfig(SubsetsConfig):
    """What `qualitygate study` does: train classifiers on every subset, and say what the paper's claims are worth."""

    architectures: tuple[str, ...] = Field(
        ("alexnet", "vgg19", "resnet18", "resnet34"), min_length=1, description="torchvision classifiers by name"
    )
    varying_architectures: tuple[str, ...] | None = Field(
        None, description="those trained on the levels of varying; default: resnet34, else the last"
    )
    weights: str | None = Field(None, description="folder of the pretrained parameters; default: the user cache")
    from_scratch: bool = Field(False, description="start from seeded random parameters, and be marked so")
    epochs: int = Field(40, ge=1, description="passes over the training photographs")
    equal_steps: bool = Field(False, description="give the full set only as many steps as the others have")
    batch_size: int = Field(32, ge=1, description="photographs a step")
    learning_rate: float = Field(1e-4, gt=0, description="Adam's")
    weight_decay: float = Field(0.0, ge=0, description="Adam's")
    image_size: int = Field(224, ge=16, description="pixels a side that the network sees")
    augment: bool = Field(True, description="small shifts and changes of scale; never flips or quarter turns")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of a GPU's arithmetic; auto: bfloat16 there, float32 on CPUs"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where it trains")
    workers: int | None = Field(None, ge=1, description="runs at a time; default: one a core, or as the GPUs allow")
    gpus_per_worker: float = Field(1.0, gt=0, description="GPUs, or a fraction of one, for each worker on GPUs")
    ddp: int = Field(1, ge=1, description="workers that train one run together, for large sets")
    threads: int = Field(1, ge=1, description="CPU threads a worker: fixed, as results on a CPU depend on it")
    checkpoint_share: float = Field(
        0.1, gt=0, le=1, description="most of the time that checkpoints after epochs may take; 1: after each epoch"
    )
    retry_failed: bool = Field(False, description="try runs again that failed before")


class StudyPlanConfig(StudyConfig):
    """What `qualitygate plan study` does: say what a study will take. Without photographs it assumes enough of them."""

    manifest: str | None = Field(None, description="as of 'study'; default: enough photographs are assumed")  # type: ignore[assignment]
    scores: str | None = Field(None, description="as of 'study'")  # type: ignore[assignment]
    gate: str | None = Field(None, description="as of 'study'")  # type: ignore[assignment]
    output: str | None = Field(None, description="as of 'study'; nothing is written there")  # type: ignore[assignment]
    measure: bool = Field(True, description="time a few training steps on this machine's CPU")


class NightlyConfig(BaseModel):
    """What `qualitygate nightly` does: score what is new, look for drift, calibrate again, promote or refuse."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: str = Field(description="folder, prefix, glob or manifest of all photographs")
    output: str = Field(description="folder of everything: scores/, gates/, nights/, manifest.parquet")
    predictions: str | None = Field(
        None, description="labelled predictions, as of 'calibrate'; without them the gate is left as it is"
    )
    night: str | None = Field(
        None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="name of this night; default: today's date, UTC"
    )
    again: bool = Field(False, description="do a night again that ended already")
    score: dict[str, Any] = Field(default_factory=dict, description="keys of 'score', such as metrics and workers")
    calibrate: dict[str, Any] = Field(default_factory=dict, description="keys of 'calibrate', such as methods")
    canary: int = Field(200, ge=0, description="photographs scored again each night, to notice that scores moved")
    canary_tolerance: float | None = Field(
        None,
        gt=0,
        description="most that a score may move, as a share of the 5 to 95 % spread; default: 1e-6, 1e-3 on a GPU, "
        "5e-3 with --precision fast",
    )
    max_changed_share: float = Field(
        0.2, ge=0, le=1, description="share of known photographs that may be changed or gone; more stops the night"
    )
    allow_changes: bool = Field(False, description="go on although more changed")
    max_error_rate: float = Field(0.1, ge=0, le=1, description="share of tonight's photographs without any score")
    reference_days: int = Field(28, ge=1, description="drift is measured against what was scored in so many days")
    max_psi: float = Field(0.25, gt=0, description="population stability index above which scores have drifted")
    max_coverage_drift: float = Field(0.05, gt=0, le=1, description="the same of the share that passes")
    max_error_drift: float = Field(0.02, gt=0, le=1, description="the same of the share that fails")
    significance: float = Field(0.01, gt=0, lt=1, description="of the tests of drift, after Holm's correction")
    min_drift: int = Field(50, ge=10, description="fewest photographs on both sides to speak of drift")
    accept_drift: bool = Field(False, description="the drift is known and wanted: tonight joins the reference")
    min_labelled: int = Field(200, ge=20, description="fewest labelled photographs to calibrate on")
    min_audited: int = Field(30, ge=1, description="fewest of them that the gate in force rejects")
    audit_share: float = Field(0.01, gt=0, le=1, description="share of rejects that is drawn for labelling")
    min_coverage: float = Field(0.3, ge=0, le=1, description="least share of photographs that a new gate may pass")
    max_coverage: float = Field(1.0, gt=0, le=1, description="and the largest")
    max_coverage_change: float = Field(0.1, gt=0, le=1, description="most that this share may change in one night")
    max_value_loss: float = Field(0.02, ge=0, le=1, description="most that a new gate may be worse, in Youden's J")
    deadline: str | None = Field(
        None, description="when scoring ends: 06:30 (UTC), 2026-11-24T06:30+01:00, or 90m or 4h from the start"
    )
    keep_days: int = Field(7, ge=1, description="days for which older versions of the table can be read")
    keep_nights: int = Field(
        90, ge=1, description="days after which a night's report, candidate and lists go; its record and sample stay"
    )
    compact_mb: int = Field(256, ge=1, description="size of the files that many small ones become")
    thumbnails: bool = Field(True, description="photographs in the report; --no-thumbnails for private ones")
    report_megabytes: float = Field(4.0, gt=1, description="size that a report's photographs shrink for")
    metrics_textfile: str | None = Field(
        None, description="file.prom that gets the night's numbers for Prometheus, however it ends"
    )
    notify_command: tuple[str, ...] = Field((), description="program and arguments that get the outcome as JSON")
    notify_webhook: str | None = Field(None, description="https address that gets the outcome as JSON")
    notify_hosts: tuple[str, ...] = Field((), description="hosts that the webhook may name")
    lock_ttl_s: float = Field(600, ge=10, description="seconds after which the lock of a dead job expires")
    ray_address: str = Field("auto", description="auto: RAY_ADDRESS or this machine; local; or a cluster's address")


class NightlyPlanConfig(NightlyConfig):
    """What `qualitygate plan nightly` does: say what tonight would take. Nothing is written."""

    photographs: int = Field(16, ge=2, le=200, description="so many of the input are timed")
    as_json: bool = Field(False, description="say it as JSON", json_schema_extra={"flag": "json"})


class ReportConfig(BaseModel):
    """What `qualitygate report` does: one page from the outputs of the other verbs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: tuple[str, ...] = Field(min_length=1, description="output folders of the other verbs; may be repeated")
    output: str = Field(description="the page to write, ending in .html")
    thumbnails: bool = Field(True, description="show photographs; --no-thumbnails for private ones")
    sample: int = Field(1500, ge=50, description="most points in a figure")
    max_megabytes: float = Field(20.0, gt=1, description="largest page")
    aim_megabytes: float | None = Field(
        None, gt=1, description="size that photographs shrink for, where that is enough; default: the largest"
    )
    title: str = Field("Image quality gate", description="of the page")
    night: str | None = Field(None, description="of a nightly output: the page of this night; default: the last one")
    seed: int = Field(0, ge=0, description="of the sampling")


class CompactConfig(BaseModel):
    """What `qualitygate compact` does: make few large files of a score table's many small ones."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    output: str = Field(description="output folder of 'score'")
    target_mb: float = Field(256, gt=0, description="size of the files to make, in MiB")
    as_json: bool = Field(False, description="say the counts as JSON", json_schema_extra={"flag": "json"})


class VacuumConfig(BaseModel):
    """What `qualitygate vacuum` does: remove files that no version of the last days needs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    output: str = Field(description="output folder of 'score'")
    keep_days: float = Field(7, ge=1, description="days for which replaced versions can still be read")
    dry_run: bool = Field(False, description="say what would be removed, and remove nothing")
    as_json: bool = Field(False, description="say the counts as JSON", json_schema_extra={"flag": "json"})


class PurgeConfig(BaseModel):
    """What `qualitygate purge` does: erase photographs from everything below a folder, and prove it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    output: str = Field(description="folder or prefix with the outputs of any verbs")
    ids: str = Field(description="file of the ids: Parquet or CSV with image_id, or text with one a line")
    yes: bool = Field(False, description="do it; without, only say what would be done")
    as_json: bool = Field(False, description="say it as JSON", json_schema_extra={"flag": "json"})


Config = TypeVar("Config", bound=BaseModel)


def load(model: type[Config], path: str | Path | None, overrides: dict[str, Any]) -> Config:
    """The configuration of a file, with the command line's values over it.

    Raises ConfigurationError, one line that names each wrong key, its value's problem and the remedy.
    """
    values = _read(path) if path is not None else {}
    for key, value in overrides.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            # Of pairs, those that are given win, and the others stay.
            values[key] = values[key] | value
        elif value is not None:
            values[key] = value
    if isinstance(output := values.get("output"), str) and output.rstrip("/"):
        # A folder is the same with and without; names of what is in it would have two.
        values["output"] = output.rstrip("/")
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(_problem(model, problem) for problem in error.errors())
        raise ConfigurationError(f"configuration: {problems}") from error


def _read(path: str | Path) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"--config {str(path)!r} can't be read: {error.strerror}; check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigurationError(f"--config {str(path)!r} is no YAML: {reason}") from error
    if not isinstance(values, dict):
        raise ConfigurationError(f"--config {str(path)!r} must hold keys and values, such as 'input: photos/'")
    return values


def _problem(model: type[BaseModel], problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        import difflib

        near = difflib.get_close_matches(key, list(model.model_fields), n=1)
        return f"unknown key {key!r}" + (f", did you mean {near[0]!r}?" if near else "")
    if problem["type"] == "missing":
        return f"{key} is needed; give --{key.replace('_', '-')} or set it in the file"
    return f"{key}: {problem['msg'][0].lower()}{problem['msg'][1:]} (got {problem['input']!r})"


def echo(config: BaseModel) -> str:
    """The resolved configuration as YAML, `masked`."""
    import yaml

    return str(yaml.safe_dump(masked(config.model_dump(mode="json")), sort_keys=False))


def masked(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same without what may be a password: many webhooks have theirs in the path, some programs as an argument."""
    kept = dict(values)
    if address := kept.get("notify_webhook"):
        scheme, _, rest = str(address).partition("://")
        kept["notify_webhook"] = f"{scheme}://{rest.partition('/')[0].rpartition('@')[2]}/***" if rest else "***"
    if (command := kept.get("notify_command")) and isinstance(command, list | tuple):
        kept["notify_command"] = [command[0], *("***" for _ in command[1:])]
    return kept

"""The records that other verbs leave behind, as the page reads them: what it needs is checked, the rest ignored."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _ends(value: Any) -> Any:
    """An interval with an end missing is none."""
    return None if isinstance(value, list | tuple) and any(end is None for end in value) else value


def _estimate(value: Any) -> Any:
    """A bare number is an estimate without an interval."""
    return {"mean": value} if isinstance(value, int | float) else value


def _listed(value: Any) -> Any:
    """A list that a table has no value for is empty."""
    return [] if value is None else value


Interval = Annotated[tuple[float, float] | None, BeforeValidator(_ends)]


class Record(BaseModel):
    """Anything read from a JSON file."""

    # A label may be a number in a table of one's own.
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False, coerce_numbers_to_str=True)


class Estimated(Record):
    mean: float | None = None
    interval: Interval = None


Estimate = Annotated[Estimated | None, BeforeValidator(_estimate)]


class Densities(Record):
    """Densities of right and wrong predictions over raw quality, per unit of the axis' scale."""

    quality: list[float]
    correct: list[float]
    wrong: list[float]
    axis: Literal["log", "linear"] = "linear"


class Method(Record):
    """One method's line."""

    direction: Literal["higher", "lower"]
    status: Literal["ok", "undefined", "fallback"]
    reason: str | None = None
    rule: str | None = None
    cutoff: float | None = None
    cutoff_normalized: float | None = None
    interval: Interval = None
    interval_level: float = 0.95
    bounds: Interval = None
    transform: str = "identity"
    crossings: list[float] = Field(default_factory=list)
    share_single_crossing: float | None = None
    auroc: float | None = None
    p_value: float | None = None
    p_value_holm: float | None = None
    wrong: int | None = None
    wrong_groups: int | None = None
    correct: int | None = None
    densities: Densities | None = None

    @property
    def logarithmic(self) -> bool:
        """Whether its scores are drawn on a log axis."""
        return self.densities.axis == "log" if self.densities else self.transform == "log"


class Curve(Record):
    coverage: list[float] = Field(default_factory=list)
    accuracy: list[float] = Field(default_factory=list)


class Compared(Record):
    """The gate, or what it is compared with at equal coverage."""

    name: str
    accuracy_at_coverage: Estimate = None
    difference: Estimate = None
    aurc: float | None = None
    curve: Curve | None = None


class HeldOut(Record):
    """What the gate buys on groups that its calibration hadn't seen."""

    repeats: int | None = None
    folds: int | None = None
    photographs: int | None = None
    coverage: Estimate = None
    precision: Estimate = None
    recall: Estimate = None
    accuracy_all: Estimate = None
    accuracy_passed: Estimate = None
    accuracy_rejected: Estimate = None
    comparison: list[Compared] = Field(default_factory=list)
    undefined_shares: dict[str, float | None] = Field(default_factory=dict)


class Weighed(Record):
    """Photographs, and what they count for by their weights."""

    n: int
    effective: float


class Sampling(Record):
    """How photographs were weighted: by the inverse of a column, whose range this is."""

    column: str
    probability: tuple[float, float]
    effective: float
    classes: dict[str, Weighed]


class Gate(Record):
    """gate.json"""

    id: str
    created: str | None = None
    parent: str | None = None
    votes_needed: int = Field(ge=1)
    methods: dict[str, Method]
    coverage: float | None = None
    fingerprints: dict[str, str | None] = Field(default_factory=dict)
    untrained: list[str] = Field(default_factory=list)
    classifier: str | None = None
    manifest: str | None = None
    preset: str | None = None
    seed: int | None = None
    sampling: Sampling | None = None
    held_out: HeldOut | None = None
    versions: dict[str, Any] = Field(default_factory=dict)


class Rank(Record):
    """A rank correlation of quality and confidence."""

    spearman: float | None = None
    interval: Interval = None
    n: int | None = None


class QualityConfidence(Record):
    overall: Rank | None = None
    within_class: dict[str, Rank] = Field(default_factory=dict)
    within_stratum: dict[str, Rank] = Field(default_factory=dict)


class Rate(Record):
    passed: float | None = None
    n: int | None = None


class Pair(Record):
    a: str
    b: str
    agreement: float | None = None
    kappa: float | None = None


class Agreement(Record):
    pairs: list[Pair] = Field(default_factory=list)
    pivotal: dict[str, float | None] = Field(default_factory=dict)
    unanimous: float | None = None


class Matrix(Record):
    methods: list[str] = Field(default_factory=list)
    spearman: list[list[float | None]] = Field(default_factory=list)


class ConfidentError(Record):
    image_id: str
    label: str | None = None
    predicted: str | None = None
    confidence: float | None = None
    top1: float | None = None
    votes_low: int | None = None
    uri: str | None = None


class CalibrationRecord(Record):
    """calibration.json"""

    gate_id: str
    created: str | None = None
    rows: int
    wrong: int | None = None
    groups: int | None = None
    accuracy: float | None = None
    sampling: Sampling | None = None
    dropped: dict[str, Any] = Field(default_factory=dict)
    held_out: HeldOut | None = None
    quality_confidence: dict[str, QualityConfidence] = Field(default_factory=dict)
    pass_rates: dict[str, dict[str, Rate]] = Field(default_factory=dict)
    agreement: Agreement = Agreement()
    method_correlations: Matrix = Matrix()
    confident_errors: list[ConfidentError] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)
    config: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, Any] = Field(default_factory=dict)


class Effect(Record):
    """Largest change under a nuisance over the change under blur; 0 is ideal."""

    ratio: float | None = None
    interval: Interval = None


class Correlation(Record):
    per_sample_mean: float | None = None
    single: float | None = None
    of_average: float | None = None


class Reaction(Record):
    """How one metric reacts to the series."""

    direction: Literal["higher", "lower"] = "higher"
    fingerprint: str | None = None
    trained: bool = True
    correlations: dict[str, dict[str, Correlation]] = Field(default_factory=dict)
    effects: dict[str, Effect] = Field(default_factory=dict)
    missing: int = 0


class TableRow(Record):
    nuisance: str
    statistic: str
    ours: dict[str, float | None]
    paper: dict[str, float | None] = Field(default_factory=dict)
    best: list[str] = Field(default_factory=list)


class Table1(Record):
    rows: list[TableRow] = Field(default_factory=list)


class Redundant(Record):
    a: str
    b: str
    spearman: float | None = None


class Choice(Record):
    preset: str | None = None
    methods: list[str] = Field(default_factory=list)
    rule: str | None = None
    margins: dict[str, Any] = Field(default_factory=dict)
    note: str | None = None


class RobustnessRecord(Record):
    """robustness.json"""

    created: str | None = None
    samples: int | None = None
    blur: str | None = None
    interpolation: str | None = None
    second_interpolation: str | None = None
    metrics: dict[str, Reaction]
    table1: Table1 = Table1()
    redundancy: list[Redundant] = Field(default_factory=list)
    choice: Choice | None = None
    single_sample: str | None = None
    notes: list[str] = Field(default_factory=list)
    figures: dict[str, str] = Field(default_factory=dict)
    config: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, Any] = Field(default_factory=dict)


class Scored(Record):
    rows: int = 0
    rows_per_second: float | None = None


class Example(Record):
    image_id: str
    code: str | None = None
    message: str | None = None


class Counted(Record):
    rows: int = 0
    present: int | None = None
    error_rate: float | None = None
    by_status: dict[str, int] = Field(default_factory=dict)
    by_code: dict[str, int] = Field(default_factory=dict)
    examples: list[Example] = Field(default_factory=list)


class Range(Record):
    min: float | None = None
    median: float | None = None
    max: float | None = None
    states: dict[str, int] = Field(default_factory=dict)


class ScoringStats(Record):
    """_stats.json of a scoring run"""

    run_id: str
    state: str | None = None
    started: str | None = None
    seconds: float | None = None
    input: str | None = None
    scored: Scored = Scored()
    manifest: Counted = Counted()
    metrics: dict[str, Range] = Field(default_factory=dict)
    fingerprints: dict[str, dict[str, str]] = Field(default_factory=dict)
    untrained: list[str] = Field(default_factory=list)
    seconds_by_stage: dict[str, float] = Field(default_factory=dict)
    pool: dict[str, Any] | None = None
    workers: dict[str, Any] = Field(default_factory=dict)
    lazy: dict[str, Any] | None = None
    versions: dict[str, Any] = Field(default_factory=dict)


class GateStats(Record):
    """_gate_stats.json"""

    gate_id: str
    rows: int
    passed: int
    rejected: int
    nulls: dict[str, int] = Field(default_factory=dict)
    by_votes: dict[str, int] = Field(default_factory=dict)
    pivotal: dict[str, float | None] = Field(default_factory=dict)
    source: str | None = None
    external: list[str] = Field(default_factory=list)
    votes_needed: int | None = None
    voters: list[str] = Field(default_factory=list)
    untrained: list[str] = Field(default_factory=list)
    policy: dict[str, Any] = Field(default_factory=dict)


class PredictionRecord(Record):
    """prediction.json"""

    created: str | None = None
    architecture: str | None = None
    classes: list[str] = Field(default_factory=list)
    model_fingerprint: str | None = None
    weights_sha256: str | None = None
    trained: bool | None = None
    image_size: int | None = None
    rows: int | None = None
    errors: int | None = None
    accuracy: float | None = None
    trained_on_rows: int | None = None
    input: str | None = None
    versions: dict[str, Any] = Field(default_factory=dict)


class ModelRecord(Record):
    """model.json"""

    created: str | None = None
    architecture: str | None = None
    classes: list[str] = Field(default_factory=list)
    model_fingerprint: str | None = None
    sha256: str | None = None
    image_size: int | None = None
    from_scratch: bool | None = None
    pretrained: Any = None
    epochs: int | None = None
    seed: int | None = None
    accuracy: Any = None
    rows: Any = None
    hardware: Any = None
    versions: dict[str, Any] = Field(default_factory=dict)


class StudyRuns(Record):
    planned: int
    finished: int
    failed: int = 0
    reused: int = 0


class StudyRecord(Record):
    """study.json"""

    created: str | None = None
    gate_id: str | None = None
    photographs: int = 0
    runs: StudyRuns
    design: dict[str, Any] = Field(default_factory=dict)
    messages: list[str] = Field(default_factory=list)
    workers: int | None = None
    seconds: dict[str, float | None] = Field(default_factory=dict)
    training_seconds_of_all_runs: float | None = None
    versions: dict[str, Any] = Field(default_factory=dict)


class Contrasted(Record):
    """A paired difference: a share, or nats."""

    mean: float | None = None
    interval: Interval = None
    bootstrap: Interval = None
    p_holm: float | None = None


class Part(Record):
    """One architecture or level of a claim."""

    subject: str
    verdict: str
    sentence: str = ""
    difference: Contrasted
    paper_difference: float | None = None


class Verdict(Record):
    """A claim, by one measure."""

    topic: str
    measure: str
    text: str
    source: str
    verdict: str
    sentence: str = ""
    note: str = ""
    parts: list[Part] = Field(default_factory=list)


class Verdicts(Record):
    """verdicts.json"""

    caveats: list[str] = Field(default_factory=list)
    verdicts: list[Verdict] = Field(default_factory=list)


# It is a folder's name too, so it may not lead anywhere else.
NightName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
NightState = Literal["running", "promoted", "kept", "refused", "deadline"]


class NightMethod(Record):
    """One method in a night: the line of the gate in force after it, raw, and how tonight's scores drifted."""

    method: str
    cutoff: float | None = None
    low: float | None = None
    high: float | None = None
    psi: float | None = None
    psi_limit: float | None = None
    word: str | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        return None if self.low is None or self.high is None else (self.low, self.high)


class NightRow(Record):
    """A row of nights.parquet"""

    night: NightName
    started: str
    finished: str | None = None
    state: NightState
    reasons: Annotated[list[str], BeforeValidator(_listed)] = Field(default_factory=list)
    gate_before: str | None = None
    gate_after: str | None = None
    scored: int | None = Field(None, ge=0)
    failed: int | None = Field(None, ge=0)
    error_limit: float | None = None
    photographs: int | None = Field(None, ge=0)
    new: int | None = Field(None, ge=0)
    changed: int | None = Field(None, ge=0)
    gone: int | None = Field(None, ge=0)
    coverage_tonight: float | None = Field(None, ge=0, le=1)
    coverage: float | None = Field(None, ge=0, le=1)
    labelled: int | None = Field(None, ge=0)
    labelled_needed: float | None = None
    labelled_rejects: int | None = Field(None, ge=0)
    rejects_needed: float | None = None
    drifted: int | None = Field(None, ge=0)
    methods: Annotated[list[NightMethod], BeforeValidator(_listed)] = Field(default_factory=list)

    @property
    def error_rate(self) -> float | None:
        """Share of tonight's photographs without any score, [0, 1]; None where none was scored."""
        return self.failed / self.scored if self.scored and self.failed is not None else None


class NightCheck(Record):
    """One guardrail of a night."""

    name: str
    passed: bool
    said: str


class AuditSample(Record):
    """Rejected photographs that were drawn for labelling."""

    new: int = 0


class NightDecision(Record):
    audit: AuditSample | None = None


class Named(Record):
    """A photograph that a night names."""

    image_id: str


class NightChange(Record):
    """One comparison with the reference, as of `drift.Change`."""

    what: str
    stratum: str
    current: int
    word: str
    before: float | None = None
    after: float | None = None
    psi: float | None = None
    psi_chance: float | None = None


class NightDrift(Record):
    """What tonight's photographs were found to be. new_cameras: (cameras never seen before, photographs of these)."""

    rows: int | None = None
    unfinished: list[str] = Field(default_factory=list)
    # Nights before, too small to be tested by themselves, that were tested with this one.
    pooled: list[str] = Field(default_factory=list)
    by_hand: list[str] = Field(default_factory=list)
    changes: list[NightChange] = Field(default_factory=list)
    new_strata: dict[str, float] = Field(default_factory=dict)
    new_cameras: list[int] = Field(default_factory=list)
    examples: list[Named] = Field(default_factory=list)


class NightShift(Record):
    """A canary photograph's score, as it was known and as it is now."""

    image_id: str
    before: float
    after: float | None = None


class NightMoved(Record):
    """How far a metric's scores of the canary moved."""

    metric: str
    largest: float
    bound: float
    lost: int = 0
    definition: bool = False
    shifts: list[NightShift] = Field(default_factory=list)

    @property
    def past(self) -> bool:
        """Whether they moved further than is allowed."""
        return self.largest > self.bound or bool(self.lost) or self.definition


class NightCanary(Record):
    moved: list[NightMoved] = Field(default_factory=list)


class NightCalibration(Record):
    gate: str | None = None


class NightSteps(Record):
    canary: NightCanary = NightCanary()
    calibrate: NightCalibration = NightCalibration()
    decide: NightDecision = NightDecision()
    drift: NightDrift = NightDrift()


class NightRecord(Record):
    """night.json"""

    night: NightName
    state: NightState
    gate_before: str | None = None
    gate_after: str | None = None
    checks: list[NightCheck] = Field(default_factory=list)
    steps: NightSteps = NightSteps()

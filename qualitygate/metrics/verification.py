"""Is half precision good enough here? Measured on the user's own parameters and photographs, and written down.

`verify` scores photographs in float32 and in half precision, in this process, and compares metric by metric. The
file that it writes is what `score --precision fast --verified FILE` goes by: a metric is computed fast if it passed
there by the definition that the run has (the same parameters, version and resolution), else in float32; and
only on the model of GPU that it was measured on.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import pyarrow.parquet as pq

from qualitygate.config import VerifyConfig
from qualitygate.errors import ConfigurationError, ImageError
from qualitygate.images.decode import DecodePolicy, decode
from qualitygate.images.photograph import Photograph
from qualitygate.metrics import Execution, Parameters, default_names, select
from qualitygate.metrics.comparison import Verdict, judged
from qualitygate.metrics.metric import Device, Score, Scorer
from qualitygate.metrics.networks import NETWORKS, pinned
from qualitygate.metrics.rows import MAX_BYTES, Plan
from qualitygate.tables import access, storage
from qualitygate.tables import manifest as manifests
from qualitygate.tables.scratch import scratch_folder

FORMAT, VERSION = "qualitygate precision", 1
_PIXELS_AT_ONCE = 64_000_000
_AT_ONCE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What `verify` found, as it stands in its file.

    device: by name; kind: `cuda`, or `cpu` for a forecast with a GPU's roundings, which `score` doesn't take.
    """

    device: str
    kind: Device
    torch: str
    created: str
    photographs: int
    unreadable: int
    min_srcc: float
    max_error: float
    metrics: tuple[Verdict, ...]


# ---- measuring -------------------------------------------------------------------------------------------


def run(config: VerifyConfig, progress: Callable[[int], None] = lambda _: None) -> Verification:
    """Score the photographs both ways, compare, and write the file. `progress` is told how many more are done.

    Raises ConfigurationError where there is nothing to compare, DeviceLost where the GPU fails.
    """
    from qualitygate.metrics.compiling import noting_failures
    from qualitygate.metrics.memory import telling_of_a_lost_gpu

    with telling_of_a_lost_gpu("verify"), noting_failures() as not_compiled:
        return _run(config, progress, not_compiled)


def _run(config: VerifyConfig, progress: Callable[[int], None], not_compiled: Mapping[str, str]) -> Verification:
    """not_compiled: by network, why a compiled call of it ran interpreted, as far as that has happened."""
    parameters = Parameters(weights=config.weights, untrained=config.untrained)
    names = _networks(config, parameters)
    parameters = pinned(names, parameters)
    kind, device = _device(config)
    exact = {metric.name: metric.load(kind) for metric in select(names, parameters=parameters)}
    # Compiled and interpreted networks round in other places: what passes has passed as both.
    ways = (False, True) if kind == "cuda" else (False,)
    fast = [
        {
            metric.name: metric.load(kind)
            for metric in select(names, parameters=parameters, execution=Execution(fast=names, compiled=compiled))
        }
        for compiled in ways
    ]
    pairs: dict[str, list[tuple[Score, ...]]] = {name: [] for name in names}
    unreadable = 0
    for photographs, failed in _groups(config):
        unreadable += failed
        for name in names:
            scorers: list[Scorer] = [exact[name], *(way[name] for way in fast)]
            pairs[name] += list(zip(*(scorer(photographs) for scorer in scorers), strict=True))
        progress(len(photographs) + failed)
    plan = Plan(metrics=names, policy=_policy(config), parameters=parameters)
    fingerprints = fast_fingerprints(plan, names)
    verdicts = tuple(
        _both_ways(
            judged(name, fingerprints[name], pairs[name], min_srcc=config.min_srcc, max_error=config.max_error),
            not_compiled.get(name),
        )
        for name in names
    )
    import torch

    found = Verification(
        device=device,
        kind=kind,
        torch=torch.__version__,
        created=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        photographs=len(pairs[names[0]]),
        unreadable=unreadable,
        min_srcc=config.min_srcc,
        max_error=config.max_error,
        metrics=verdicts,
    )
    write(found, config.output)
    return found


def _both_ways(verdict: Verdict, not_compiled: str | None) -> Verdict:
    """The verdict, which no network passes whose compiled way ran interpreted: a job elsewhere may well compile it."""
    if not_compiled is None or not verdict.passed:
        return verdict
    reason = f"it was verified interpreted only, because compiled it failed ({not_compiled})"
    return replace(verdict, passed=False, reason=reason)


def fast_fingerprints(plan: Plan, names: tuple[str, ...]) -> dict[str, str]:
    """By metric, the fingerprint of the scores that half precision gives under this plan, of whole photographs."""
    fast = replace(plan, metrics=names, device="cuda", execution=Execution(fast=names))
    return {name: by_region["whole"] for name, by_region in fast.fingerprints().items()}


def _policy(config: VerifyConfig) -> DecodePolicy:
    return DecodePolicy(max_pixels=config.max_pixels, longest_side=config.longest_side)


def _networks(config: VerifyConfig, parameters: Parameters) -> tuple[str, ...]:
    if config.metrics is None:
        names = [name for name in default_names("native", parameters)[0] if name in NETWORKS]
        if not names:
            raise ConfigurationError(
                "none of the networks' weights are here, and only networks have a fast precision: "
                "'qualitygate weights fetch' them, or name a folder with --weights"
            )
        return tuple(names)
    for metric in select(config.metrics, parameters=parameters):
        if metric.name not in NETWORKS:
            raise ConfigurationError(
                f"--metrics {metric.name}: it has one precision, {metric.precision}; only {', '.join(NETWORKS)} have "
                "a fast one"
            )
        if reason := metric.unavailable():
            raise ConfigurationError(f"{metric.name} can't be computed: {reason}")
    return tuple(dict.fromkeys(config.metrics))


def _device(config: VerifyConfig) -> tuple[Device, str]:
    import torch

    if config.device != "cpu" and torch.cuda.is_available():
        return "cuda", torch.cuda.get_device_name()
    if config.device == "cpu":
        return "cpu", "CPU with a GPU's roundings"
    raise ConfigurationError(
        "verify needs the GPU that will score, and there is no CUDA device; --device cpu makes a forecast with its "
        "roundings, which 'score' doesn't take"
    )


def _groups(config: VerifyConfig) -> Iterator[tuple[list[Photograph], int]]:
    """Photographs, some at a time, and how many between them could not be read."""
    policy, asked = _policy(config), access.of(config)
    with scratch_folder() as scratch:
        spooled = Path(scratch) / "manifest.parquet"
        manifests.load(config.input, spooled, limit=config.photographs)
        rows = pq.read_table(spooled, columns=["uri", "box"]).to_pylist()
        group: list[Photograph] = []
        failed = 0
        for row in rows:
            try:
                data = storage.fetch(row["uri"], max_bytes=MAX_BYTES, access=asked).data
                group.append(decode(data, policy, tuple(row["box"]) if row["box"] else None).photograph)
            except ImageError:
                failed += 1
            pixels = sum(photograph.width * photograph.height for photograph in group)
            if len(group) >= _AT_ONCE or pixels > _PIXELS_AT_ONCE:
                yield group, failed
                group, failed = [], 0
        if group or failed:
            yield group, failed


# ---- the file --------------------------------------------------------------------------------------------


def write(found: Verification, place: str) -> None:
    """As JSON, which `read` takes."""
    record = {"format": FORMAT, "version": VERSION, **asdict(found)}
    storage.write_bytes(storage.check_location(place, "--output"), (json.dumps(record, indent=1) + "\n").encode())


def read(place: str) -> Verification:
    """What a file of `write` says; ConfigurationError for another one."""
    try:
        data = storage.read_bytes(storage.check_location(place, "--verified"))
        if data is None:
            raise ValueError("there is no such file")
        record = json.loads(data)
        if (record.pop("format"), record.pop("version")) != (FORMAT, VERSION):
            raise ValueError("another format or version")
        return Verification(**record | {"metrics": tuple(Verdict(**one) for one in record["metrics"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImageError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigurationError(
            f"--verified {storage.redact(place)!r} is no file of 'qualitygate verify' ({reason}); make one with it"
        ) from error


def execution(plan: Plan, verified: str | None) -> tuple[Execution, list[str]]:
    """Which of a plan's metrics `--precision fast` computes in half precision, and a note on each that it doesn't.

    There is a note as well where another version of torch made the file: its kernels may round in other places.
    It holds on the model of GPU that they were verified on: `RowScorer` refuses another one.

    verified: the file of 'qualitygate verify'. Raises ConfigurationError without one, where a network is asked for.
    """
    if plan.backend != "native":
        raise ConfigurationError(
            f"--precision fast is ours: {plan.backend} computes in its own precision; leave it out"
        )
    names = tuple(name for name in plan.metrics if name in NETWORKS)
    if not names:
        return Execution(), []
    if verified is None:
        raise ConfigurationError(
            f"--precision fast needs --verified FILE, which says that it is good enough for {', '.join(names)} on your "
            "photographs: make it with 'qualitygate verify --input ... --output FILE'"
        )
    found = read(verified)
    if found.kind != "cuda":
        raise ConfigurationError(
            f"--verified {storage.redact(verified)!r} is a forecast made on a CPU; run 'qualitygate verify' on a GPU"
        )
    # Whose pixels they are is another matter than how exactly networks compute with them.
    wanted = fast_fingerprints(replace(plan, policy=replace(plan.policy, decoder="strict")), names)
    verdicts = {verdict.fingerprint: verdict for verdict in found.metrics}
    fast, notes = [], []
    for name in names:
        verdict = verdicts.get(wanted[name])
        if verdict is None:
            notes.append(f"{name} is computed in float32: it wasn't verified by this definition ({wanted[name]})")
        elif not verdict.passed:
            notes.append(f"{name} is computed in float32: half precision failed there: {verdict.reason}")
        else:
            fast.append(name)
    # Without what follows a plus, which says CPU or CUDA: a job may well be started where there is no GPU.
    then, now = (version.partition("+")[0] for version in (found.torch, metadata.version("torch")))
    if fast and then != now:
        notes.append(
            f"half precision was verified with torch {then} and is computed by {now} here, whose kernels may differ; "
            "'qualitygate verify' says whether it still holds"
        )
    return Execution(fast=tuple(fast), gpu=found.device), notes

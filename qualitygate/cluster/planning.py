"""What a scoring run will do: which metrics by which definition, on which device, with how many workers."""

import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Protocol

from qualitygate import __version__
from qualitygate.calibration import gate as gates
from qualitygate.calibration import lazy
from qualitygate.calibration.gate import Gate
from qualitygate.cluster import session
from qualitygate.cluster.measurement import Cost
from qualitygate.config import ScoreConfig
from qualitygate.errors import ConfigurationError
from qualitygate.images.decode import DecodePolicy
from qualitygate.metrics import Parameters, by_cost, default_names, select, verification
from qualitygate.metrics.metric import Device
from qualitygate.metrics.networks import pinned, published
from qualitygate.metrics.precision import worth_compiling, worth_warming
from qualitygate.metrics.rows import Plan

_MAX_BATCH = 32
# A task's fixed cost is some ten milliseconds; one of this length makes it small, and still shows progress.
_TASK_SECONDS = 2.0
_MAX_TASK = 512
# Of a GPU's batches: between tasks the GPU waits for the first photographs to be decoded, so tasks are long; but not
# with MANIQA, which takes some ten times as long as all else, and a task is what a dying worker costs.
_BATCHES_A_TASK_ON_GPU, _BATCHES_A_TASK_OF_MANIQA = 32, 8
# Below, measuring takes longer than it saves.
_FEWEST_TO_MEASURE = 1000
_PREFETCH_LOCAL, _PREFETCH_REMOTE, _MAX_PREFETCH = 1, 8, 64
# Networks take seconds a photograph on a CPU: small tasks, so that progress shows and a crash costs little.
_MAX_BATCH_OF_NETWORKS_ON_CPU = 4
# What a worker may need for the largest photograph that is let in: some 1.8 GB at 100 megapixels.
_WORKER_BYTES = 2 << 30
# Besides, for three networks: parameters .9 GB (mapped, so mostly shared), crops in work.
_NETWORKS_BYTES = 2 << 30
_VERSIONS = (
    "ray",
    "numpy",
    "scipy",
    "numba",
    "opencv-python-headless",
    "pillow",
    "pi-heif",
    "deltalake",
    "pyarrow",
    "torch",
    "torchvision",
)


class Progress(Protocol):
    """Where a run tells how far it is."""

    def start(self, *, total: int, done: int) -> None:
        """`done` of `total` rows were committed by earlier runs."""

    def advance(self, *, rows: int, errors: int) -> None:
        """So many more rows have arrived, so many of them errors."""

    def note(self, message: str) -> None:
        """Something worth a line."""

    def stop(self) -> None:
        """No more rows will come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """The actor pool: how many workers, what each takes of the cluster, how many photographs a task.

    batch_size: photographs that networks are given at once. task: photographs a task, some batches of them.
    warm_up: whether a worker's GPU is made ready, by made-up photographs, while the first ones are fetched and decoded.
    threads: of a worker's networks on a CPU. decoders: photographs that a worker decodes at a time, while its GPU is
    at work. prefetch: photographs whose bytes are on their way while one is decoded; None: by where they are.
    """

    workers: int
    cpus_per_worker: float
    gpus_per_worker: float
    batch_size: int
    task: int
    threads: int = 1
    decoders: int = 1
    prefetch: int | None = None
    warm_up: bool = False

    def __str__(self) -> str:
        said = f"{self.workers} worker{'s' * (self.workers > 1)}, tasks of {self.task} photographs"
        if self.gpus_per_worker:
            said += f", {self.batch_size} at once on {self.gpus_per_worker:g} GPU, {self.decoders} decoded at a time"
        return said


def plan_scores(config: ScoreConfig) -> tuple[Plan, list[str]]:
    """What to compute, and what the user should know about it before it starts."""
    notes = []
    parameters = Parameters(weights=config.weights, untrained=config.untrained)
    if config.lazy and not config.gate:
        raise ConfigurationError("--lazy leaves out what a gate's vote doesn't need; name the gate with --gate")
    made = gates.load(config.gate) if config.gate else None
    if made is not None and config.metrics is None:
        names = [voter.name for voter in made.voters(allow_fallback=True)]
    elif config.metrics is None:
        names, skipped = default_names(config.backend, parameters)
        for name, why in skipped.items():
            notes.append(f"{name} is skipped: {why}")
    else:
        names = list(config.metrics)
    vote = None
    if made is not None and config.lazy:
        names = by_cost(names)
        vote = lazy.of_gate(made, names, config.lazy_sample)
        if absent := [name for name in gate_voters(made) if name not in names]:
            raise ConfigurationError(f"--metrics leaves out {', '.join(absent)}, with which the gate votes; add them")
    metrics = select(names, config.backend, parameters)
    for metric in metrics:
        if reason := metric.unavailable():
            raise ConfigurationError(f"{metric.name} can't be computed: {reason}")
        if not metric.trained:
            notes.append(f"{metric.name} is untrained: its scores show that the plumbing works and nothing else")
        if metric.trained and metric.device == "gpu" and not published(metric.name, parameters):
            notes.append(
                f"{metric.name} uses parameters of your own, sha256 {str(metric.parameters_sha256())[:16]}...: "
                "not those published, and its scores are only comparable with themselves"
            )
        if metric.trained and metric.device == "gpu":
            # What workers would refuse is refused before they start: another network's file, or one that runs code.
            metric.load("cpu")
    device: Device = "cuda" if config.device == "cuda" else "cpu"
    if config.decoder == "nvjpeg" and device == "cpu":
        raise ConfigurationError(
            f"--decoder nvjpeg is for GPUs, and --device is {config.device}: add --device cuda, or leave it out"
        )
    if config.decoder == "nvjpeg" and config.formulas == "cpu":
        raise ConfigurationError(
            "--formulas cpu: the pixels that --decoder nvjpeg makes are on the GPU; leave one of the two out"
        )
    plan = Plan(
        metrics=tuple(metric.name for metric in metrics),
        backend=config.backend,
        device=device,
        policy=DecodePolicy(max_pixels=config.max_pixels, longest_side=config.longest_side, decoder=config.decoder),
        max_bytes=config.max_bytes,
        parameters=pinned(tuple(metric.name for metric in metrics), parameters),
        lazy=vote,
        formulas=config.formulas,
    )
    if config.precision == "fast":
        plan, more = _made_fast(config, plan)
        notes += more
    if made is not None:
        notes += _check_gate(made, plan, untrained=config.untrained)
    return plan, notes


def _made_fast(config: ScoreConfig, plan: Plan) -> tuple[Plan, list[str]]:
    """The plan with half precision for the metrics that passed 'verify', and why others did not."""
    if config.device != "cuda":
        raise ConfigurationError(
            f"--precision fast is for GPUs, and --device is {config.device}: add --device cuda, or leave it out"
        )
    execution, notes = verification.execution(plan, config.verified)
    return replace(plan, execution=execution), notes


def gate_voters(gate: Gate) -> list[str]:
    """Methods of the gate that have a cut-off, also one that is only a fallback."""
    return [voter.name for voter in gate.voters(allow_fallback=True)]


def _check_gate(gate: Gate, plan: Plan, *, untrained: bool) -> list[str]:
    """Refuse a gate whose cut-offs were found on other scores than this run would make."""
    gate.require(allow_fallback=True, allow_untrained=untrained)
    notes, fingerprints = [], plan.fingerprints()
    for name in gate_voters(gate):
        known = gate.fingerprints.get(name)
        if name in fingerprints and known == "external":
            notes.append(f"gate {gate.id} was made from scores from elsewhere: whether its {name} is ours isn't known")
        elif name in fingerprints and known not in fingerprints[name].values():
            raise ConfigurationError(
                f"gate {gate.id} was made from {name} {known}, this run would score "
                f"{' or '.join(fingerprints[name].values())}; run 'qualitygate calibrate' on scores of this definition"
            )
    return notes


def on_device(config: ScoreConfig, plan: Plan, cluster: session.Cluster) -> tuple[Plan, list[str]]:
    """The plan on GPUs where they are wanted and there are any, else on CPUs, and what that costs."""
    networks = networks_of(plan)
    notes = []
    if config.device == "cuda" and not cluster.gpus:
        if plan.execution.fast:
            raise ConfigurationError(
                f"--precision fast: the Ray cluster has no GPU for {', '.join(plan.execution.fast)}; leave it out"
            )
        if plan.policy.decoder == "nvjpeg":
            raise ConfigurationError("--decoder nvjpeg: the Ray cluster has no GPU that could decode; leave it out")
        notes.append("the Ray cluster has no GPU: scoring on its CPUs")
    wanted = config.device == "cuda" or (config.device == "auto" and networks)
    plan = replace(plan, device="cuda" if wanted and cluster.gpus else "cpu")
    if plan.device == "cpu":
        notes += cost_on_cpu(networks)
    return plan, notes


def networks_of(plan: Plan) -> list[str]:
    return [metric.name for metric in plan.selected() if metric.device == "gpu"]


def cost_on_cpu(networks: Sequence[str]) -> list[str]:
    return [
        f"{name} on a CPU takes 6 TFLOP, about a minute on a core, for each photograph"
        for name in networks
        if name.startswith("maniqa")
    ]


def compiled(plan: Plan, pool: "Pool", rows: int) -> Plan:
    """The plan with compiled networks where a GPU has enough photographs before it that compiling pays.

    rows: of the whole run as far as it is known, not of a portion: what one portion compiles, the next ones read.
    """
    if plan.device != "cuda" or not worth_compiling(rows, pool.workers):
        return plan
    return replace(plan, execution=replace(plan.execution, compiled=True))


def worth_measuring(config: ScoreConfig, rows: int) -> bool:
    """Whether a measurement could change the pool by more than it costs."""
    return config.measure and rows >= _FEWEST_TO_MEASURE


def plan_pool(config: ScoreConfig, plan: Plan, cluster: session.Cluster, rows: int, cost: Cost | None = None) -> Pool:
    """Workers for every core, or as many as the GPUs allow, and a CPU left for what Ray runs before they start.

    cost: of a photograph, where it was measured; it decides how long tasks are and how many photographs are fetched
    ahead.
    """
    if cluster.cpus < 2:
        raise ConfigurationError(
            f"the Ray cluster has {cluster.cpus:g} CPUs; scoring needs 2 at least: one for a worker, "
            "one for Ray's own tasks"
        )
    networks = bool(networks_of(plan))
    needed = _WORKER_BYTES + networks * _NETWORKS_BYTES
    gpus = config.gpus_per_worker if plan.device == "cuda" else 0.0
    if gpus:
        if cluster.gpus < gpus:
            raise ConfigurationError(
                f"--device cuda wants {gpus:g} GPU a worker, the Ray cluster has {cluster.gpus:g}; "
                "use --device cpu, or fewer --gpus-per-worker"
            )
        workers = config.workers or max(1, int(cluster.gpus / gpus))
    else:
        workers = config.workers or max(1, int(min(cluster.workers, cluster.memory / needed)))
    workers = min(workers, rows)
    if cluster.nodes > 1 and workers > cluster.workers:
        raise ConfigurationError(
            f"--workers {workers} leaves no CPU for Ray's own tasks: the Ray cluster has {cluster.cpus:g} on "
            f"{cluster.nodes} nodes; use {cluster.workers} at most"
        )
    most = _MAX_BATCH_OF_NETWORKS_ON_CPU if networks and not gpus else _MAX_BATCH
    batch = config.batch_size or min(most, max(1, math.ceil(rows / (4 * workers))))
    batch = min(batch, config.commit_rows)
    cores = max(1, int(cluster.cpus / workers))
    decoders = 1
    if gpus and plan.backend == "native":
        # Each holds a photograph decoded. pyiqa's metrics share switches of torch, so its photographs take turns.
        decoders = max(1, int(min(cores, cluster.memory / workers / _WORKER_BYTES)))
    return Pool(
        workers=workers,
        cpus_per_worker=cluster.share(workers),
        gpus_per_worker=gpus,
        batch_size=batch,
        task=_task(config, plan, batch, rows, workers, cost if not networks else None),
        threads=cores if networks and cluster.local else 1,
        decoders=decoders,
        # What was timed is the CPU's decoding, which nvJPEG outruns.
        prefetch=_MAX_PREFETCH if cost and plan.policy.decoder == "nvjpeg" else _prefetch(cost, decoders),
        warm_up=bool(gpus) and worth_warming(rows, workers),
    )


def _task(config: ScoreConfig, plan: Plan, batch: int, rows: int, workers: int, cost: Cost | None) -> int:
    """Photographs a task: by the user's word, else as many as make its fixed cost small."""
    if config.task_size is not None:
        return min(config.task_size, config.commit_rows)
    if plan.device == "cuda":
        heavy = any(name.startswith("maniqa") for name in plan.metrics)
        wanted = batch * (_BATCHES_A_TASK_OF_MANIQA if heavy else _BATCHES_A_TASK_ON_GPU)
    elif cost is not None:
        wanted = min(_MAX_TASK, math.ceil(_TASK_SECONDS / max(cost.fetch + cost.compute, 1e-6)))
    else:
        return batch
    # At the end workers wait for the last task: so tasks are several for each.
    return max(1, min(wanted, config.commit_rows, math.ceil(rows / (4 * workers))))


def _prefetch(cost: Cost | None, decoders: int) -> int | None:
    if cost is None:
        return None
    return min(_MAX_PREFETCH, 1 + math.ceil(decoders * cost.fetch / max(cost.compute, 1e-6)))


def prefetch_of(chosen: int | None, *, local: bool) -> int:
    """Photographs to fetch ahead, as measured or by where they are."""
    if chosen is not None:
        return chosen
    return _PREFETCH_LOCAL if local else _PREFETCH_REMOTE


def versions() -> dict[str, str]:
    """What computed it: this package, Python, the machine, the libraries that decide pixels and numbers."""
    found = {
        "qualitygate": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    for package in _VERSIONS:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found

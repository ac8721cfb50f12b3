"""The robustness job: crop, rotate and blur sharp samples, score every variant, and say which methods to trust.

    manifest → samples → pool of workers, a sample a task → values → correlations, effect sizes, choice

Samples stream through Ray; pixels never leave the worker that decoded them. The result doesn't depend on the
number of workers or on the order in which they finish.
"""

import json
import logging
import math
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from qualitygate import logs
from qualitygate.calibration import choice, correlation, samples, series_picture, table1
from qualitygate.calibration.correlation import BLUR
from qualitygate.calibration.samples import Sample, Samples
from qualitygate.cluster import planning, session
from qualitygate.cluster.fitting import reason_of
from qualitygate.config import RobustnessConfig, ScoreConfig, echo
from qualitygate.errors import ConfigurationError, Interrupted, QualityGateError
from qualitygate.images.augment import Interpolation
from qualitygate.metrics.rows import Plan, region_of
from qualitygate.tables import access, storage

logger = logging.getLogger(__name__)

DOCUMENT, ALL_VALUES, TABLE, MONTAGE = "robustness.json", "robustness.parquet", "table1.md", "series.png"
_FEW = 5
_SHARPNESS = ("lapv", "lapm", "wavs")
_NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What was found. document: the content of robustness.json."""

    output: str
    document: dict[str, Any]


def run(config: RobustnessConfig, progress: planning.Progress, *, worker: type | None = None) -> Result:
    """Write robustness.json, robustness.parquet, table1.md and series.png into the output folder.

    worker: another class than `SampleScorer` for the pool, of the same constructor.

    Raises ConfigurationError (nothing was written): no usable sample, a metric or preset that can't be had, no
    sharp photograph that can be read; Interrupted; QualityGateError when Ray fails.
    """
    output = storage.check_location(config.output, "--output")
    if not output.strip():
        raise ConfigurationError("--output is empty; give a folder for the results")
    scored_like = _as_scoring(config)
    plan, notes = planning.plan_scores(scored_like)
    choice.check(config.methods, plan.metrics)
    found = samples.read(config.input, blur=config.blur, limit=config.samples, results=output)
    second: Interpolation | None = None if config.second_interpolation == "none" else config.second_interpolation
    if second == config.interpolation:
        second = None
        notes.append(f"the second interpolation is {config.interpolation} too, so it is left out")
    storage.check_writable(output, "--output")
    notes += found.notes
    for note in notes:
        progress.note(note)
    try:
        results = _scored(config, scored_like, plan, found, second, progress, worker)
    except KeyboardInterrupt as stop:
        raise Interrupted("stopped before the end: nothing was written; run the same command again") from stop
    if not any(result["usable"] for result in results):
        raise ConfigurationError(_all_failed(config.input, results))
    values = pa.concat_tables([result["values"] for result in results])
    usable = [sample for sample, result in zip(found.samples, results, strict=True) if result["usable"]]
    document = _document(config, plan, found, second, usable, results, values, notes)
    picture = series_picture.draw(plan, usable[0], document, values)
    if picture is None:
        document["figures"] = {}
        document["notes"].append(f"no picture: sample {usable[0].name} could not be read once more")
    _write(output, config, document, values, picture)
    return Result(output=output, document=document)


def _as_scoring(config: RobustnessConfig) -> ScoreConfig:
    """The same scoring as `qualitygate score` does, so that a value here is the value there."""
    return ScoreConfig(
        input=config.input,
        output=config.output,
        metrics=config.metrics,
        backend=config.backend,
        device=config.device,
        weights=config.weights,
        untrained=config.untrained,
        workers=config.workers,
        batch_size=1,
        ray_address=config.ray_address,
    )


# ---- scoring ---------------------------------------------------------------------------------------------


def _scored(
    config: RobustnessConfig,
    scored_like: ScoreConfig,
    plan: Plan,
    found: Samples,
    second: Interpolation | None,
    progress: planning.Progress,
    worker: type | None,
) -> list[dict[str, Any]]:
    """A result for each sample, in the samples' order."""
    progress.note("starting Ray and the workers, which takes some ten seconds")
    arrived: dict[int, dict[str, Any]] = {}
    with session.connect(config.ray_address) as cluster:
        plan, costs = planning.on_device(scored_like, plan, cluster)
        for note in costs:
            progress.note(note)
        pool = planning.plan_pool(scored_like, plan, cluster, len(found.samples))
        plan = replace(plan, access=access.of(config).shared_by(pool.workers))
        progress.start(total=sum(len(sample.shots) for sample in found.samples), done=0)
        try:
            # Closed before Ray is shut down: its executor, still at work then, may end this process without a word.
            with closing(_results(config, plan, found, second, pool, worker)) as results:
                for result in results:
                    arrived[result["position"]] = result
                    shots = len(found.samples[result["position"]].shots)
                    progress.advance(rows=shots, errors=len(result["errors"]) if result["usable"] else shots)
        except QualityGateError:
            raise
        except Exception as error:
            raise QualityGateError(
                f"the Ray pipeline failed: {reason_of(error)}; nothing was written, run the same command again"
            ) from error
        finally:
            progress.stop()
    if len(arrived) != len(found.samples):
        raise QualityGateError(f"{len(arrived)} of {len(found.samples)} samples came back; run the same command again")
    return [arrived[position] for position in range(len(found.samples))]


def _results(
    config: RobustnessConfig,
    plan: Plan,
    found: Samples,
    second: Interpolation | None,
    pool: planning.Pool,
    worker: type | None,
) -> Generator[dict[str, Any], None, None]:
    import ray.data

    from qualitygate.cluster.variants import SAMPLES, VALUES, Attempts, SampleScorer, VariantSettings, as_rows
    from qualitygate.cluster.workers import WorkerSettings

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    machine = WorkerSettings(
        run_id="robustness",
        image_timeout_s=math.inf,
        threads=pool.threads,
        gpu_share=min(1.0, pool.gpus_per_worker) or 1.0,
        log_format=logs.form(),
    )
    settings = VariantSettings(blur=found.blur, interpolation=config.interpolation, second_interpolation=second)
    attempts = Attempts.options(scheduling_strategy=session.beside_driver()).remote()  # type: ignore[attr-defined]
    data = (
        # A task is what a dying worker costs, so it is one sample.
        ray.data.from_arrow(
            [pa.Table.from_pylist([row], schema=SAMPLES) for row in as_rows(found.samples)]
        ).map_batches(
            worker or SampleScorer,
            fn_constructor_args=(plan, machine, settings, attempts),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=pool.cpus_per_worker,
            num_gpus=pool.gpus_per_worker or None,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=pool.workers, initial_size=pool.workers),
        )
    )
    for block in data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
        for result in block.to_pylist():
            yield result | {"values": pa.Table.from_pylist(result["values"], schema=VALUES)}


def _all_failed(source: str, results: Sequence[dict[str, Any]]) -> str:
    codes = Counter(error["code"] for result in results for error in result["errors"])
    first = results[0]["errors"][0]
    return (
        f"none of the {len(results)} sharp photographs of {storage.redact(source)!r} can be read "
        f"({', '.join(f'{count} {code}' for code, count in sorted(codes.items()))}), such as {first['image_id']!r}: "
        f"{first['message']}; check the manifest"
    )


# ---- results ---------------------------------------------------------------------------------------------


def _document(
    config: RobustnessConfig,
    plan: Plan,
    found: Samples,
    second: Interpolation | None,
    usable: Sequence[Sample],
    results: Sequence[dict[str, Any]],
    values: pa.Table,
    notes: Sequence[str],
) -> dict[str, Any]:
    names, blur = [sample.name for sample in usable], BLUR[found.blur]
    series = correlation.collect(values)
    region = region_of(usable[0].shots[0].box)
    fingerprints = plan.fingerprints()
    metrics = {
        metric.name: {
            "direction": metric.direction,
            "fingerprint": fingerprints[metric.name][region],
            "trained": metric.trained,
            **correlation.evaluate(
                series,
                metric.name,
                higher_is_better=metric.higher_is_better,
                samples=names,
                blur=blur,
                single=names[0],
                seed=config.seed,
            ),
        }
        for metric in plan.selected()
    }
    errors = [
        {"sample": sample.name, **error}
        for sample, result in zip(found.samples, results, strict=True)
        for error in result["errors"]
    ]
    document: dict[str, Any] = {
        "format": "qualitygate-robustness",
        "version": 1,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "samples": len(names),
        "sample_names": names,
        "blur": found.blur,
        "interpolation": config.interpolation,
        "second_interpolation": second,
        "metrics": metrics,
        "table1": {
            "reading": "mean over samples of the absolute correlation",
            "citation": table1.CITATION,
            "rows": table1.rows(metrics, blur),
        },
        "redundancy": correlation.redundancy(series, plan.metrics),
        "single_sample": names[0],
        "errors": errors,
        "notes": [*notes, *_warnings(plan, found, usable, errors, series)],
        "figures": {"montage": MONTAGE},
        "config": config.model_dump(mode="json")
        | {"input": storage.redact(config.input), "output": storage.redact(config.output)},
        "versions": planning.versions(),
    }
    chosen = {name: choice.choose(name, document) for name in ("auto", "classical")}
    asked = choice.choose(config.methods, document)
    document["choice"] = {
        "preset": asked.preset,
        "methods": list(asked.methods),
        "rule": asked.rule,
        "margins": {name: dict(margin) for name, margin in asked.margins.items()},
        "note": asked.note,
    }
    document["presets"] = {name: list(made.methods) for name, made in chosen.items()} | {"paper": list(choice.PAPER)}
    return document


def _warnings(
    plan: Plan,
    found: Samples,
    usable: Sequence[Sample],
    errors: Sequence[dict[str, Any]],
    series: correlation.Values,
) -> list[str]:
    said = []
    unusable = len(found.samples) - len(usable)
    if errors:
        some = "; ".join(f"{error['image_id']}: {error['code']}, {error['message']}" for error in errors[:_NAMED])
        said.append(
            f"{len(errors)} photographs could not be read, for which {unusable} of {len(found.samples)} samples are "
            f"left out: {some}{'; ...' if len(errors) > _NAMED else ''}"
        )
    sharp = {(sample.shots[0].uri, tuple(sample.shots[0].box or ())) for sample in usable}
    if len(sharp) < len(usable):
        said.append(
            f"{len(usable)} samples start from {len(sharp)} photographs: they aren't independent, so intervals are too "
            "narrow"
        )
    if len(usable) == 1:
        said.append("one sample: there are no intervals, and what it shows may be its own")
    elif len(usable) < _FEW:
        said.append(f"{len(usable)} samples: intervals from so few are too narrow")
    if len({region_of(sample.shots[0].box) for sample in usable}) > 1:
        said.append("some samples are boxes and some whole photographs; the fingerprints are those of the first")
    sharpness = [name for name in _SHARPNESS if name in plan.metrics]
    if found.blur == "manifest" and sharpness:
        odd = correlation.out_of_order(series, sharpness, [sample.name for sample in usable], BLUR["manifest"])
        if odd:
            said.append(
                f"in {len(odd)} of {len(usable)} series every sharpness measure is best after the second step "
                f"({', '.join(odd[:_NAMED])}{', ...' if len(odd) > _NAMED else ''}): number steps from sharp to "
                "blurred, and make two series of a bracket that passes through focus"
            )
    return said


# ---- output ----------------------------------------------------------------------------------------------


def _write(
    output: str, config: RobustnessConfig, document: dict[str, Any], values: pa.Table, picture: bytes | None
) -> None:
    """An older document goes first and the new one comes last: its presence means that all belongs together."""
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    sink = pa.BufferOutputStream()
    pq.write_table(values, sink)
    storage.delete(storage.join(output, DOCUMENT))
    storage.write_bytes(storage.join(output, ALL_VALUES), sink.getvalue().to_pybytes())
    storage.write_bytes(storage.join(output, TABLE), table1.markdown(document).encode())
    if picture is None:
        storage.delete(storage.join(output, MONTAGE))
    else:
        storage.write_bytes(storage.join(output, MONTAGE), picture)
    storage.write_bytes(storage.join(output, "_config.yaml"), echo(config).encode())
    storage.write_bytes(storage.join(output, DOCUMENT), text.encode())

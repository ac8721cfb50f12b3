"""Makes what the other verbs write, in small and with known truth, so that the page can be tested without them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageFilter
from scipy.stats import gaussian_kde, spearmanr
from study_maker import invented_study

from qualitygate.training import results, study_report
from qualitygate.training.sampling import Sampling
from qualitygate.training.verdicts import Judging, judge

CREATED = "2026-01-02T03:04:05+00:00"
LOWER = ("brisque", "niqe")
LOGARITHMIC = ("lapv", "lapm", "wavs")
HOSTILE = "<script>alert(1)</script>/</script><img src=x onerror=alert(2)>&\u2028%{y}'\"`{{7*7}}.jpg"
PAPER_TABLE = {
    "cropping": {"PCC": (0.337, 0.322, 0.345, 0.954), "SRCC": (0.358, 0.152, 0.164, 0.952)},
    "rotating": {"PCC": (0.406, 0.570, 0.050, 0.316), "SRCC": (0.486, 0.486, 0.086, 0.143)},
    "blurring": {"PCC": (0.770, 0.878, 0.845, 0.907), "SRCC": (1.000, 0.996, 0.973, 0.885)},
}


def write_json(path: Path, value: Any) -> None:
    """As the verbs do: indent 1, no NaN."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def photographs(folder: Path, qualities: np.ndarray, *, side: int = 96) -> list[str]:
    """Textured JPEGs, the more blurred the lower their quality; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, quality in enumerate(qualities):
        rng = np.random.default_rng(number)
        coarse = rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((side, side), Image.Resampling.NEAREST)
        path = folder / f"p{number:04}.jpg"
        image.filter(ImageFilter.GaussianBlur(max(0.0, 1.5 - float(quality)))).save(path, quality=85)
        paths.append(str(path))
    return paths


def raw_scores(method: str, quality: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A method's raw scores of photographs of this latent quality, in its own sign and scale."""
    noisy = quality + rng.normal(0, 0.45, quality.size)
    if method in LOGARITHMIC:
        return np.exp(0.8 * noisy - 1.0)
    if method in LOWER:
        return 40 - 11 * noisy
    return 45 + 9 * noisy


def fitted(method: str, scores: np.ndarray, correct: np.ndarray, *, undefined: str | None = None) -> dict[str, Any]:
    """One method of gate.json: densities by SciPy, and where they cross between the two modes."""
    logarithmic = method in LOGARITHMIC
    values = np.log(scores) if logarithmic else scores
    right, wrong = gaussian_kde(values[correct]), gaussian_kde(values[~correct])
    grid = np.linspace(values.min(), values.max(), 200)
    densities = right(grid), wrong(grid)
    modes = sorted((grid[np.argmax(densities[0])], grid[np.argmax(densities[1])]))
    inside = (grid >= modes[0]) & (grid <= modes[1])
    at = grid[inside][np.argmin(np.abs(densities[0] - densities[1])[inside])]
    width = 0.12 * values.std()

    def raw(x: Any) -> Any:
        return (np.exp(x) if logarithmic else x).tolist()

    quality = np.asarray(raw(grid))
    low, high = float(scores.min()), float(scores.max())
    found = {
        "direction": "lower" if method in LOWER else "higher",
        "status": "undefined" if undefined else "ok",
        "reason": undefined,
        "rule": "crossing",
        "cutoff": None if undefined else raw(at),
        "cutoff_normalized": None if undefined else (raw(at) - low) / (high - low),
        "interval": None if undefined else [raw(at - width), raw(at + width)],
        "interval_level": 0.95,
        "bounds": [low, high],
        "transform": "log" if logarithmic else "identity",
        "crossings": [] if undefined else [raw(at)],
        "share_single_crossing": 0.41 if undefined else 0.982,
        "auroc": 0.55 if undefined else 0.83,
        "p_value": 0.2 if undefined else 0.001,
        "p_value_holm": 0.2 if undefined else 0.003,
        "wrong": int((~correct).sum()),
        "wrong_groups": int((~correct).sum() // 2),
        "correct": int(correct.sum()),
        "densities": {
            "quality": quality.tolist(),
            "quality_normalized": ((quality - low) / (high - low)).tolist(),
            "correct": densities[0].tolist(),
            "wrong": densities[1].tolist(),
            "axis": "log" if logarithmic else "linear",
        },
    }
    return found


def estimate(mean: float, half: float) -> dict[str, Any]:
    """A mean with its interval, as calibration.json has them."""
    return {"mean": mean, "interval": [mean - half, mean + half]}


def _latent(rows: int, qualities: Sequence[float] | None, rng: np.random.Generator) -> np.ndarray:
    return rng.normal(0, 1, rows) if qualities is None else np.asarray(qualities, dtype=float)


def calibration(
    folder: Path,
    *,
    rows: int = 240,
    methods: Sequence[str] = ("lapm", "wavs", "musiq"),
    uris: Sequence[str | None] | None = None,
    qualities: Sequence[float] | None = None,
    scores: dict[str, Sequence[float]] | None = None,
    ids: Sequence[str] | None = None,
    undefined: dict[str, str] | None = None,
    untrained: Sequence[str] = (),
    labels: Sequence[str] = ("manufacturer_a", "manufacturer_b"),
    warnings: Sequence[str] = (),
    held_out: bool = True,
    seed: int = 0,
) -> Path:
    """A folder as 'calibrate' leaves it: gate.json, calibration.json, calibration.parquet, _config.yaml."""
    rng = np.random.default_rng(seed)
    latent = _latent(rows, qualities, rng)
    rows = latent.size
    undefined = undefined or {}
    confidence = 1 / (1 + np.exp(-(1.6 + 2.2 * latent + rng.normal(0, 1.2, rows))))
    correct = confidence > 0.5
    raw = {
        name: np.asarray(scores[name]) if scores and name in scores else raw_scores(name, latent, rng)
        for name in methods
    }
    entries = {name: fitted(name, raw[name], correct, undefined=undefined.get(name)) for name in methods}
    low = {
        name: raw[name] > entry["cutoff"] if entry["direction"] == "lower" else raw[name] < entry["cutoff"]
        for name, entry in entries.items()
        if entry["status"] == "ok"
    }
    votes = np.sum(list(low.values()), axis=0) if low else np.zeros(rows, dtype=int)
    needed = len(methods) // 2 + 1
    passed = votes < needed
    label = np.asarray([labels[number % len(labels)] for number in range(rows)])
    predicted = np.where(correct, label, np.roll(label, 1))
    names = list(ids) if ids is not None else [f"calibration/p{number:04}.jpg" for number in range(rows)]
    stratum = np.asarray([("phone-a", "phone-b", "phone-c")[number % 3] for number in range(rows)])
    columns: dict[str, Any] = {
        "image_id": names,
        "group": [f"g{number // 2:04}" for number in range(rows)],
        "label": label.tolist(),
        "predicted": predicted.tolist(),
        "stratum": stratum.tolist(),
        "uri": list(uris) if uris is not None else [None] * rows,
        "correct": correct,
        "confidence": confidence,
        "top1": np.maximum(confidence, 1 - confidence),
    }
    for name in methods:
        columns[name] = raw[name]
        columns[f"low_{name}"] = low[name] if name in low else pa.nulls(rows, pa.bool_())
    columns |= {"votes_low": votes.astype(np.int64), "passed": passed}
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / "calibration.parquet")

    share = float(passed.mean()) if low else None
    accuracy = float(correct.mean())
    buys = _held_out(accuracy, share or 0.8, rows, methods, undefined) if held_out and len(low) >= needed else None
    confident = np.flatnonzero(~correct & passed)[:20]
    rank = spearmanr(np.column_stack(list(raw.values()))).statistic
    matrix = np.atleast_2d(rank) if len(methods) > 2 else np.array([[1, float(rank)], [float(rank), 1]])
    gate_id = f"{seed:016x}"
    write_json(
        folder / "calibration.json",
        {
            "format": "qualitygate-calibration",
            "version": 1,
            "gate_id": gate_id,
            "created": CREATED,
            "rows": rows,
            "wrong": int((~correct).sum()),
            "groups": rows // 2,
            "accuracy": accuracy,
            "dropped": {"prediction failed": 2, "no score": 1},
            "held_out": buys,
            "quality_confidence": {
                name: {
                    "overall": {"spearman": 0.62, "interval": [0.55, 0.69], "n": rows},
                    "within_class": {
                        value: {"spearman": 0.5 + 0.1 * number, "interval": [0.4, 0.75], "n": rows // len(labels)}
                        for number, value in enumerate(labels)
                    },
                    "within_stratum": {
                        value: {"spearman": 0.45, "interval": [0.3, 0.6], "n": rows // 3}
                        for value in ("phone-a", "phone-b", "phone-c")
                    },
                }
                for name in methods
            },
            "pass_rates": {
                "class": _rates(label, passed),
                "stratum": _rates(stratum, passed),
            },
            "agreement": {
                "pairs": [
                    {"a": a, "b": b, "agreement": 0.88, "kappa": 0.61}
                    for number, a in enumerate(methods)
                    for b in methods[number + 1 :]
                ],
                "pivotal": {name: 0.05 + 0.02 * number for number, name in enumerate(methods)},
                "unanimous": 0.81,
            },
            "method_correlations": {"methods": list(methods), "spearman": matrix.round(4).tolist()},
            "confident_errors": [
                {
                    "image_id": names[row],
                    "label": str(label[row]),
                    "predicted": str(predicted[row]),
                    "confidence": float(confidence[row]),
                    "top1": float(max(confidence[row], 1 - confidence[row])),
                    "votes_low": int(votes[row]),
                    "uri": columns["uri"][row],
                }
                for row in confident
            ],
            "warnings": list(warnings),
            "config": {"scores": "s3://bucket/scores", "seed": seed, "folds": 5, "repeats": 5},
            "versions": {"qualitygate": "0.1.0", "scipy": "1.17.1"},
        },
    )
    write_json(
        folder / "gate.json",
        {
            "format": "qualitygate-gate",
            "version": 1,
            "id": gate_id,
            "created": CREATED,
            "parent": None,
            "votes_needed": needed,
            "methods": entries,
            "coverage": share,
            "held_out": buys,
            "fingerprints": {
                name: f"untrained-{number:04x}" if name in untrained else f"{number + 10:016x}"
                for number, name in enumerate(methods)
            },
            "untrained": list(untrained),
            "classifier": "c0ffee" * 10,
            "manifest": "ab" * 32,
            "preset": "paper",
            "seed": seed,
            "versions": {"qualitygate": "0.1.0", "scipy": "1.17.1"},
        },
    )
    (folder / "_config.yaml").write_text("scores: s3://key:secret@bucket/scores\nseed: 0\n", encoding="utf-8")
    return folder


def _rates(values: np.ndarray, passed: np.ndarray) -> dict[str, Any]:
    return {
        str(value): {"passed": float(passed[values == value].mean()), "n": int((values == value).sum())}
        for value in sorted(set(values.tolist()))
    }


def _held_out(
    accuracy: float, coverage: float, rows: int, methods: Sequence[str], undefined: dict[str, str]
) -> dict[str, Any]:
    grid = np.linspace(0.1, 1, 46)

    def curve(gain: float) -> dict[str, Any]:
        kept = 1 - (1 - accuracy) * (1 - gain * (1 - grid))
        return {"coverage": grid.tolist(), "accuracy": kept.tolist()}

    gains = {"gate": 0.85, "random": 0.0, "top1": 0.95, "best_single": 0.75, "logistic": 0.9}

    def at(gain: float) -> float:
        return float(1 - (1 - accuracy) * (1 - gain * (1 - coverage)) ** 2)

    return {
        "repeats": 5,
        "folds": 5,
        "photographs": rows,
        "coverage": estimate(coverage, 0.02),
        "precision": estimate(0.52, 0.06),
        "recall": estimate(0.71, 0.05),
        "accuracy_all": accuracy,
        "accuracy_passed": estimate(at(gains["gate"]), 0.012),
        "accuracy_rejected": estimate(max(0.1, accuracy - 0.25), 0.05),
        "comparison": [
            {
                "name": name,
                "accuracy_at_coverage": estimate(at(gain), 0.012),
                "difference": None if name == "gate" else estimate(at(gains["gate"]) - at(gain), 0.006),
                "aurc": 0.1 - 0.08 * gain,
                "curve": curve(gain),
            }
            for name, gain in gains.items()
        ],
        "undefined_shares": {name: 1.0 if name in undefined else 0.02 for name in methods},
    }


def robustness(folder: Path, *, untrained: Sequence[str] = (), montage: bool = True) -> Path:
    """A folder as 'robustness' leaves it."""
    methods = ("lapv", "lapm", "wavs", "musiq")
    nuisances = ("crop_corner", "crop_centre", "rotation", "rotation_second", "blur_manifest")
    rng = np.random.default_rng(7)
    ratios = dict(zip(methods, (0.35, 0.07, 0.11, 1.3), strict=True))
    metrics = {}
    for number, name in enumerate(methods):
        effects = {}
        for step, nuisance in enumerate(nuisances[:-1]):
            ratio = ratios[name] * (1 + 0.3 * step)
            effects[nuisance] = {
                "ratio": ratio,
                "interval": [0.8 * ratio, 1.25 * ratio],
                "per_sample": rng.normal(ratio, 0.1 * ratio, 14).tolist(),
            }
        effects["crop_centre"]["interval"] = None
        metrics[name] = {
            "direction": "higher",
            "fingerprint": f"untrained-{number:04x}" if name in untrained else f"{number + 9:016x}",
            "trained": name not in untrained,
            "correlations": {
                nuisance: {
                    kind: {
                        "per_sample_mean": 0.5,
                        "per_sample_values": rng.uniform(0.2, 0.9, 14).tolist(),
                        "single": 0.4,
                        "of_average": 0.6,
                    }
                    for kind in ("pcc", "srcc")
                }
                for nuisance in nuisances
            },
            "effects": effects,
            "blur_range": {"median": 12.5},
            "missing": 0,
        }
    rows = []
    for nuisance, statistics in PAPER_TABLE.items():
        for statistic, values in statistics.items():
            ours = {name: round(min(1.0, value * 0.95 + 0.01), 3) for name, value in zip(methods, values, strict=True)}
            best = max(ours.values()) if nuisance == "blurring" else min(ours.values())
            rows.append(
                {
                    "nuisance": nuisance,
                    "statistic": statistic,
                    "ours": ours,
                    "paper": dict(zip(methods, values, strict=True)),
                    "best": [name for name, value in ours.items() if value == best],
                }
            )
    folder.mkdir(parents=True, exist_ok=True)
    if montage:
        Image.fromarray(rng.integers(0, 256, (120, 600, 3), dtype=np.uint8)).save(folder / "series.png")
    pq.write_table(
        pa.table(
            {
                "sample": ["s1"] * 10,
                "nuisance": ["crop_corner"] * 10,
                "step": list(range(10)),
                "parameter": [1 - step / 20 for step in range(10)],
                "metric": ["lapm"] * 10,
                "value": [1.0 + step for step in range(10)],
                "state": ["ok"] * 10,
            }
        ),
        folder / "robustness.parquet",
    )
    write_json(
        folder / "robustness.json",
        {
            "format": "qualitygate-robustness",
            "version": 1,
            "created": CREATED,
            "samples": 14,
            "blur": "manifest",
            "interpolation": "lanczos",
            "second_interpolation": "cubic",
            "metrics": metrics,
            "table1": {"rows": rows},
            "redundancy": [{"a": "lapm", "b": "wavs", "spearman": 0.991}],
            "choice": {
                "preset": "auto",
                "methods": ["lapm", "wavs", "musiq"],
                "rule": "Methods whose largest nuisance effect is below half of their blur range, least first.",
                "margins": {
                    "lapm": {"in": True, "largest_effect": 0.13, "limit": 0.5},
                    "musiq": {"in": False, "largest_effect": 2.47, "limit": 0.5},
                },
                "note": "lapm and wavs correlate at 0.99: their votes are nearly one.",
            },
            "presets": {"auto": ["lapm", "wavs"], "classical": ["lapm", "wavs", "lapv"], "paper": list(methods[1:])},
            "single_sample": "s1",
            "figures": {"montage": "series.png"} if montage else {},
            "config": {"input": "manifest.parquet"},
            "versions": {"qualitygate": "0.1.0"},
        },
    )
    return folder


def scoring(folder: Path, *, methods: Sequence[str] = ("lapm", "wavs"), untrained: Sequence[str] = ()) -> Path:
    """The record of a scoring run, without its table."""
    write_json(
        folder / "_stats.json",
        {
            "run_id": "20260102T030405Z-abcdef",
            "state": "done",
            "started": CREATED,
            "seconds": 61.5,
            "input": "photographs/",
            "scored": {"rows": 1000, "rows_per_second": 16.26, "by_status": {"ok": 990, "error": 10}, "commits": 1},
            "manifest": {
                "rows": 1000,
                "present": 1000,
                "duplicates": 0,
                "error_rate": 0.01,
                "by_status": {"ok": 990, "error": 10},
                "by_code": {"truncated": 9, "missing": 1},
                "examples": [{"image_id": HOSTILE, "code": "truncated", "message": "ends after <b>12</b> bytes"}],
            },
            "metrics": {
                name: {"min": 0.1, "median": 1.5, "max": 9.75, "states": {"ok": 990, "failed:truncated": 10}}
                for name in methods
            },
            "fingerprints": {
                name: {"whole": f"{number + 10:016x}", "box": "fedcba9876543210"} for number, name in enumerate(methods)
            },
            "untrained": list(untrained),
            "seconds_by_stage": {"decode": 20.25, "fetch": 5.5, "lapm": 1.25},
            "busy_seconds": 100.0,
            "pool": {"workers": 2, "cpus_per_worker": 1.0, "gpus_per_worker": 0.0, "batch_size": 32},
            "workers": {"w1": []},
            "versions": {"qualitygate": "0.1.0"},
        },
    )
    return folder


def gate_run(folder: Path, *, gate_id: str = "0" * 16, external: Sequence[str] = ()) -> Path:
    """The record of a gate's application."""
    write_json(
        folder / "_gate_stats.json",
        {
            "gate_id": gate_id,
            "rows": 5000,
            "passed": 4210,
            "rejected": 790,
            "nulls": {"lapm": 3, "wavs": 0, "musiq": 12},
            "by_votes": {"0": 3900, "1": 310, "2": 290, "3": 500},
            "pivotal": {"lapm": 0.04, "wavs": 0.03, "musiq": 0.09},
            "source": "external" if external else "scores",
            "external": list(external),
            "votes_needed": 2,
            "voters": ["lapm", "wavs", "musiq"],
            "policy": {"on_null": "reject"},
        },
    )
    return folder


def prediction(folder: Path) -> Path:
    """A folder as 'predict' leaves it; two classes, some mistaken, one photograph that failed."""
    labels = ["a", "b"] * 30
    predicted = [("b" if label == "a" else "a") if row % 7 == 0 else label for row, label in enumerate(labels)]
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        pa.table(
            {
                "image_id": [f"p{row}" for row in range(60)],
                "label": labels,
                "predicted": [None, *predicted[1:]],
                "confidence": [None, *(0.1 if row % 7 == 0 else 0.9 for row in range(1, 60))],
                "correct": [None, *(row % 7 != 0 for row in range(1, 60))],
                "status": ["error", *["ok"] * 59],
            }
        ),
        folder / "predictions.parquet",
    )
    write_json(
        folder / "prediction.json",
        {
            "format": "qualitygate-prediction",
            "version": 1,
            "created": CREATED,
            "architecture": "resnet34",
            "classes": ["a", "b"],
            "model_fingerprint": "c0ffee" * 10,
            "weights_sha256": "12" * 32,
            "trained": True,
            "image_size": 224,
            "rows": 60,
            "errors": 1,
            "accuracy": 51 / 59,
            "trained_on_rows": 0,
            "input": "manifest.parquet",
            "versions": {"torch": "2.14.1"},
        },
    )
    return folder


def study(folder: Path, *, removed: Sequence[float] = (0, 30), **more: Any) -> Path:
    """An invented study whose high-quality training is better, judged and written by the study's own code."""
    sampling = Sampling(kinds=("high", "all", "varying", "random"), removed=tuple(removed), test_fraction=0.3)
    strengths = {"high": 3.0, "all": 0.4, "varying": 2.0, "random": 1.0}
    _, _, runs, predictions = invented_study(strengths, repetitions=4, sampling=sampling, **more)
    folder.mkdir(parents=True)
    results.write_runs(str(folder / "runs.parquet"), runs)
    study_report.write(str(folder), runs, judge(runs, predictions, Judging(bootstrap=50)))
    record = {
        "format": "qualitygate-study",
        "version": 1,
        "created": CREATED,
        "gate_id": "0" * 16,
        "photographs": 240,
        "runs": {"planned": runs.num_rows + 1, "finished": runs.num_rows, "failed": 1, "reused": 0},
        "failed": [],
        "design": {"architectures": ["resnet18"], "weights": {"resnet18": None}},
        "messages": ["1 photograph can't be read & is left out"],
        "workers": 2,
        "seconds": {"total": 12.5, "start_up_of_workers": None},
        "versions": {"torch": "2.14.1"},
    }
    write_json(folder / "study.json", record)
    return folder


def training(folder: Path) -> Path:
    """The record of 'train-baseline'."""
    write_json(
        folder / "model.json",
        {
            "format": "qualitygate-classifier",
            "version": 1,
            "created": CREATED,
            "architecture": "resnet34",
            "classes": ["a", "b"],
            "image_size": 224,
            "model_fingerprint": "c0ffee" * 10,
            "sha256": "12" * 32,
            "from_scratch": True,
            "pretrained": None,
            "epochs": 40,
            "seed": 0,
            "accuracy": {"train": 0.99, "eval": 0.95},
            "versions": {"torch": "2.14.1"},
        },
    )
    return folder

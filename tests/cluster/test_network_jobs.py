"""The networks in the job: all eight metrics over odd files, weights from where they are served, any batch."""

import http.server
import importlib
import math
import pickle
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import malformed
import numpy as np
import pyarrow as pa
import pytest
import skimage.data
import torch
from job_helpers import Silent, write_photographs
from PIL import Image

import qualitygate
from qualitygate.cluster import devices, planning, scoring, session
from qualitygate.cluster.measurement import Cost
from qualitygate.config import ScoreConfig
from qualitygate.errors import ConfigurationError
from qualitygate.metrics import PAPER, Parameters, comparison, verification, weights, weights_manifest
from qualitygate.metrics.rows import Plan
from qualitygate.tables import scores

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_session")]
NETWORKS = ("musiq", "maniqa", "hyperiqa")


@pytest.fixture(autouse=True)
def _no_weights_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(weights_manifest.FOLDER_VARIABLE, raising=False)


def _run(source: Path, output: Path, silent: Silent, **options: Any) -> dict[str, dict[str, Any]]:
    scoring.run(ScoreConfig(input=str(source), output=str(output), max_error_rate=1, **options), silent)
    found = scores.dataset(scores.existing_table(str(output)))
    rows = (found if isinstance(found, pa.Table) else found.to_table()).to_pylist()
    assert len({row["image_id"] for row in rows}) == len(rows)
    return {row["image_id"]: row for row in rows}


def test_all_eight_metrics_over_odd_files_resumed(tmp_path: Path, silent: Silent) -> None:
    """One row each, states by metric, a second run that only does what is missing; small pictures, to be quick."""
    folder = tmp_path / "in"
    folder.mkdir()
    picture = np.ascontiguousarray(skimage.data.astronaut()[:192, 100:256])
    odd = malformed.build(skimage.data.astronaut())
    by_outcome: dict[str, str] = {}
    for name, (_, outcome) in sorted(odd.items()):
        if not name.startswith((".", "_")):
            by_outcome.setdefault(outcome, name)
    assert len(by_outcome) >= 5
    for outcome, name in by_outcome.items():
        if outcome != "ok":
            (folder / f"{outcome}.jpg").write_bytes(odd[name][0])
    Image.fromarray(picture).save(folder / "good.png")
    Image.fromarray(picture[:40, :50]).save(folder / "small.png")
    Image.fromarray(picture[:1, :1]).save(folder / "pixel.png")
    Image.fromarray(np.full((60, 90, 3), 7, np.uint8)).save(folder / "flat.png")
    Image.fromarray(picture).convert("L").save(folder / "grey.webp", lossless=True)
    before = _run(folder, tmp_path / "out", silent, metrics=PAPER, untrained=True, limit=4)
    rows = _run(folder, tmp_path / "out", silent, metrics=PAPER, untrained=True)
    assert silent.rows == len(rows) == len(list(folder.iterdir()))
    assert {name: rows[name] for name in before} == before
    for outcome in by_outcome:
        if outcome != "ok":
            row = rows[f"{outcome}.jpg"]
            assert (row["status"], row["error_code"]) == ("error", outcome)
            assert all(row[f"{name}_state"] == f"failed:{outcome}" and row[name] is None for name in PAPER)
    for name in ("good.png", "grey.webp"):
        assert rows[name]["status"] == "ok"
        assert all(math.isfinite(rows[name][metric]) for metric in PAPER)
    states = {
        name: {metric: rows[name][f"{metric}_state"] for metric in PAPER if rows[name][f"{metric}_state"] != "ok"}
        for name in ("small.png", "pixel.png", "flat.png")
    }
    assert states["small.png"] == {"niqe": "failed:too_small"}
    assert {"brisque", "niqe"} <= set(states["pixel.png"])
    assert {"brisque", "niqe"} <= set(states["flat.png"])
    assert not {"musiq", "maniqa", "hyperiqa"} & set(states["flat.png"])
    for row in rows.values():
        assert all(row[f"{name}_fingerprint"].startswith("untrained-") for name in NETWORKS)
        assert not row["lapm_fingerprint"].startswith("untrained-")
    assert sum("untrained" in note for note in silent.notes) == 6
    # The session's GPUs are Ray's belief alone: the workers find none, say so, and go on.
    assert sum("found no CUDA device" in note for note in silent.notes) == 2
    assert sum("maniqa on a CPU takes 6 TFLOP" in note for note in silent.notes) == 2
    in_process = qualitygate.score(str(folder / "good.png"), list(PAPER), untrained=True).to_pylist()[0]
    for name in PAPER:
        assert in_process[name] == pytest.approx(rows["good.png"][name], rel=1e-6)


def test_scores_of_networks_do_not_depend_on_batches_workers_or_neighbours(tmp_path: Path, silent: Silent) -> None:
    names = write_photographs(tmp_path / "in", 6, side=120)
    wide = Image.fromarray(np.ascontiguousarray(skimage.data.coffee()[:250, :330]))
    wide.save(tmp_path / "in" / "wide.png")
    metrics = ("musiq", "hyperiqa")
    first = _run(tmp_path / "in", tmp_path / "a", silent, metrics=metrics, untrained=True, batch_size=1, workers=1)
    second = _run(tmp_path / "in", tmp_path / "b", silent, metrics=metrics, untrained=True, batch_size=7, workers=2)
    assert sorted(first) == [*names, "wide.png"]
    for name, row in first.items():
        for metric in metrics:
            assert row[f"{metric}_state"] == "ok"
            assert second[name][metric] == pytest.approx(row[metric], rel=1e-6)


@pytest.fixture
def serve() -> Iterator[Callable[[bytes], str]]:
    """Puts bytes on a server of this machine; returns their address."""
    content: dict[str, bytes] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content["file"])))
            self.end_headers()
            self.wfile.write(content["file"])

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def put(value: bytes) -> str:
        content["file"] = value
        return f"http://127.0.0.1:{server.server_port}/weights.pth"

    yield put
    server.shutdown()
    server.server_close()


def test_served_weights_are_fetched_pinned_converted_and_score_in_actors(
    tmp_path: Path, silent: Silent, serve: Callable[[bytes], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint of HyperIQA as its publishers lay it out, of random parameters, through the whole real path."""
    module = importlib.import_module("qualitygate.metrics.hyperiqa")
    made = tmp_path / "made.pth"
    torch.save({"params": dict(module.seeded_state_dict(11))}, made)
    content = made.read_bytes()
    digest = sha256(content).hexdigest()
    address = serve(content)
    known = weights_manifest.manifest()
    entry = replace(known["hyperiqa-koniq"], uris=(address,), sha256=None, sha256_prefix=digest[:8], bytes=None)
    monkeypatch.setattr(weights_manifest, "manifest", lambda: dict(known) | {entry.name: entry})
    monkeypatch.setattr(weights_manifest, "published_origins", lambda: frozenset({address.rpartition("/")[0]}))

    write_photographs(tmp_path / "in", 3, side=120)
    rows = _run(tmp_path / "in", tmp_path / "absent", silent, metrics=None)
    assert "hyperiqa" not in scores.metrics_of(scores.existing_table(str(tmp_path / "absent")))
    assert any("hyperiqa is skipped" in note and "weights fetch" in note for note in silent.notes)
    assert all(row["status"] in ("ok", "partial") for row in rows.values())

    fetched = weights.fetch("hyperiqa-koniq")
    assert (fetched.downloaded, fetched.sha256) == (True, digest)
    assert not weights.fetch("hyperiqa-koniq").downloaded
    silent.notes.clear()
    rows = _run(tmp_path / "in", tmp_path / "out", silent, metrics=("hyperiqa", "lapm"))
    assert all(row["hyperiqa_state"] == "ok" for row in rows.values())
    assert not any("untrained" in note or "of your own" in note for note in silent.notes)
    definitions = scores.read_fingerprints(str(tmp_path / "out"))
    assert definitions[rows["p0000.jpg"]["hyperiqa_fingerprint"]]["parameters_sha256"] == digest
    expected = module.load(module.seeded_state_dict(11), module.PRESETS["hyperiqa"], "cpu")
    pixels = np.asarray(Image.open(tmp_path / "in" / "p0000.jpg").convert("RGB"))
    from qualitygate.images.photograph import Photograph

    (score,) = expected([Photograph(np.array(pixels))])
    assert rows["p0000.jpg"]["hyperiqa"] == pytest.approx(score, rel=1e-3)

    # The same file named by its user, who vouches for it: same definition, and a line that says whose it is.
    own = tmp_path / "own.pth"
    torch.save({"params": dict(module.seeded_state_dict(12))}, own)
    rows = _run(tmp_path / "in", tmp_path / "own", silent, metrics=("hyperiqa",), weights=str(own))
    assert any("hyperiqa uses parameters of your own" in note for note in silent.notes)
    assert rows["p0000.jpg"]["hyperiqa"] != pytest.approx(score, rel=1e-3)


def test_a_malicious_checkpoint_runs_nothing_in_the_job(tmp_path: Path, silent: Silent) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    bad = tmp_path / "hyperiqa.pth"
    bad.write_bytes(pickle.dumps({"params": Malicious()}))
    write_photographs(tmp_path / "in", 2)
    with pytest.raises(ConfigurationError, match=r"hyperiqa\.pth"):
        _run(tmp_path / "in", tmp_path / "out", silent, metrics=("hyperiqa",), weights=str(bad))
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()
    module = importlib.import_module("qualitygate.metrics.hyperiqa")
    state = dict(module.seeded_state_dict(1))
    state.pop(next(iter(state)))
    torch.save(state, bad)
    with pytest.raises(ConfigurationError, match=r"not those of hyperiqa.*1 missing"):
        _run(tmp_path / "in", tmp_path / "out", silent, metrics=("hyperiqa",), weights=str(bad))


def test_half_precision_of_another_gpu_is_refused_before_workers_start(
    tmp_path: Path, silent: Silent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session's GPUs are Ray's belief alone, so what one is called is made up."""
    write_photographs(tmp_path / "in", 2, side=120)
    plan = Plan(metrics=("hyperiqa",), parameters=Parameters(untrained=True))
    pairs = [(float(score), score + 1e-6) for score in range(100)]
    verdict = comparison.judged(
        "hyperiqa",
        verification.fast_fingerprints(plan, plan.metrics)["hyperiqa"],
        pairs,
        min_srcc=0.9995,
        max_error=0.005,
    )
    found = verification.Verification(
        device="GPU A",
        kind="cuda",
        torch="2",
        created="2026-01-01T00:00:00Z",
        photographs=100,
        unreadable=0,
        min_srcc=0.9995,
        max_error=0.005,
        metrics=(verdict,),
    )
    verification.write(found, str(tmp_path / "precision.json"))
    options: dict[str, Any] = {
        "metrics": ("hyperiqa",),
        "untrained": True,
        "device": "cuda",
        "precision": "fast",
        "verified": str(tmp_path / "precision.json"),
    }
    asked = []
    in_session = devices.model
    monkeypatch.setattr(devices, "model", lambda: asked.append(in_session()) or "GPU B")
    with pytest.raises(ConfigurationError, match=r"^--precision fast was verified on 'GPU A', and this GPU is 'GPU B'"):
        _run(tmp_path / "in", tmp_path / "out", silent, **options)
    assert asked == [None if not torch.cuda.is_available() else torch.cuda.get_device_name()]
    assert silent.rows == 0


def test_pools_of_networks_on_gpus_and_without_any() -> None:
    config = ScoreConfig(input="i", output="o", gpus_per_worker=0.25)
    plan = Plan(metrics=("lapm", "maniqa"), parameters=Parameters(untrained=True))
    machine = session.Cluster(cpus=16, gpus=2, local=True)
    on_gpu, notes = planning.on_device(config, plan, machine)
    assert (on_gpu.device, notes) == ("cuda", [])
    pool = planning.plan_pool(config, on_gpu, machine, rows=10_000)
    assert (pool.workers, pool.gpus_per_worker, pool.batch_size) == (8, 0.25, 32)
    # Photographs are decoded beside the GPU's work, by as many cores as a worker has and its memory allows.
    assert (pool.task, pool.decoders) == (256, 2)
    # Between tasks a GPU waits for the first photographs: where it is quick, tasks are as long as a commit.
    light = replace(on_gpu, metrics=("lapm", "wavs", "musiq"))
    assert planning.plan_pool(config, light, machine, rows=100_000).task == config.commit_rows == 1000
    many = config.model_copy(update={"commit_rows": 10_000})
    assert planning.plan_pool(many, light, machine, rows=100_000).task == 1024
    assert planning.plan_pool(many, light, machine, rows=10_000).task == 313
    small = session.Cluster(cpus=16, gpus=2, local=True, memory=24 << 30)
    assert planning.plan_pool(ScoreConfig(input="i", output="o"), on_gpu, machine, rows=10_000).decoders == 8
    assert planning.plan_pool(ScoreConfig(input="i", output="o"), on_gpu, small, rows=10_000).decoders == 6
    # Several decoders need as many photographs on their way; pyiqa's take turns.
    slow = Cost(photographs=8, fetch=0.05, compute=0.05)
    whole = ScoreConfig(input="i", output="o")
    assert planning.plan_pool(whole, on_gpu, machine, 10_000, slow).prefetch == 9
    assert (
        planning.plan_pool(whole, replace(on_gpu, metrics=("maniqa",), backend="pyiqa"), machine, rows=10_000).decoders
        == 1
    )
    chosen = ScoreConfig(input="i", output="o", batch_size=5, gpus_per_worker=2)
    assert planning.plan_pool(chosen, on_gpu, machine, rows=10_000).batch_size == 5
    # A task on a GPU is as many batches as otherwise, unless its own size is given.
    assert planning.plan_pool(chosen, on_gpu, machine, rows=10_000).task == 40
    own = chosen.model_copy(update={"task_size": 12})
    assert planning.plan_pool(own, on_gpu, machine, rows=10_000).task == 12
    assert planning.plan_pool(own, on_gpu, machine, rows=10_000).batch_size == 5
    assert planning.plan_pool(chosen, on_gpu, machine, rows=10_000).workers == 1
    laptop = session.Cluster(cpus=8, gpus=0, local=True)
    for device in ("auto", "cuda", "cpu"):
        asked = ScoreConfig(input="i", output="o", device=device)
        on_cpu, notes = planning.on_device(asked, plan, laptop)
        assert on_cpu.device == "cpu"
        assert any("6 TFLOP" in note for note in notes)
        assert any("no GPU" in note for note in notes) is (device == "cuda")
    pool = planning.plan_pool(asked, on_cpu, laptop, rows=10_000)
    assert (pool.workers, pool.batch_size, pool.threads) == (8, 4, 1)
    few = planning.plan_pool(asked, on_cpu, laptop, rows=2)
    assert (few.workers, few.threads) == (2, 4)
    # Formulas stay on CPUs even where there are GPUs.
    assert planning.on_device(config, Plan(metrics=("lapm",)), machine)[0].device == "cpu"

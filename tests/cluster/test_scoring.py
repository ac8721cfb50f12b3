"""The scoring job on a real Ray: rows in are rows out, whatever the images and the workers do."""

import json
import math
import os
import shutil
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import malformed
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.cloudpickle
import skimage.data
from job_helpers import Silent, write_photographs
from PIL import Image

import qualitygate
from qualitygate.cluster import planning, scoring, session, workers
from qualitygate.config import ScoreConfig
from qualitygate.errors import ConfigurationError, ErrorBudgetExceeded, ErrorCode, Failure
from qualitygate.metrics.rows import Plan, Prepared, Request
from qualitygate.tables import scores, storage

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_session")]

FOCUS = ("lapv", "lapm", "wavs")


def _run(
    source: Path | str, output: Path, silent: Silent, worker: type | None = None, **options: Any
) -> dict[str, Any]:
    config = ScoreConfig(input=str(source), output=str(output), **options)
    return scoring.run(config, silent, worker=worker).stats


def _rows(output: Path) -> dict[str, dict[str, Any]]:
    found = scores.dataset(scores.existing_table(str(output)))
    rows = (found if isinstance(found, pa.Table) else found.to_table()).to_pylist()
    assert len({row["image_id"] for row in rows}) == len(rows)
    return {row["image_id"]: row for row in rows}


def _values(rows: dict[str, dict[str, Any]], metrics: tuple[str, ...]) -> dict[str, list[Any]]:
    return {key: [row[metric] for metric in metrics] for key, row in rows.items()}


def test_every_odd_file_gets_its_row_and_the_same_as_in_process(tmp_path: Path, silent: Silent) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    photograph = skimage.data.astronaut()
    written = malformed.write(folder, photograph)
    # Names that start with . or _ are no images to a listing.
    expected = {name: outcome for name, outcome in written.items() if not storage.hidden(name)}
    assert len(expected) < len(written)
    with pytest.raises(ErrorBudgetExceeded, match="have no score"):
        _run(folder, tmp_path / "out", silent)
    rows = _rows(tmp_path / "out")
    assert sorted(rows) == sorted(expected)
    assert silent.rows == len(expected)
    metrics = scores.metrics_of(scores.existing_table(str(tmp_path / "out")))
    assert set(metrics) == {"lapv", "lapm", "wavs", "brisque", "niqe"}
    for name, outcome in expected.items():
        row = rows[name]
        if outcome == "ok":
            assert row["status"] in ("ok", "partial"), (name, row["error_code"], row["error_message"])
            assert row["width"] > 0
        else:
            assert (row["status"], row["error_code"]) == ("error", outcome), name
        for metric in metrics:
            assert row[f"{metric}_state"] == "ok" or row[metric] is None
            assert row[metric] is None or math.isfinite(row[metric])
    stats = json.loads((tmp_path / "out" / "_stats.json").read_text())
    assert stats["state"] == "error_budget_exceeded"
    assert sum(stats["manifest"]["by_status"].values()) == len(expected)
    in_process = qualitygate.score([str(folder / name) for name in sorted(expected)], metrics)
    for row in in_process.to_pylist():
        other = rows[row["image_id"].removeprefix(f"{folder}/")]
        same = (
            "status",
            "error_code",
            "sha256",
            "width",
            "height",
            *metrics,
            *(f"{m}_fingerprint" for m in metrics),
        )
        assert {key: row[key] for key in same} == {key: other[key] for key in same}, row["image_id"]


def test_scores_do_not_depend_on_batches_workers_or_neighbours(tmp_path: Path, silent: Silent) -> None:
    names = write_photographs(tmp_path / "in", 12)
    _run(tmp_path / "in", tmp_path / "a", silent, batch_size=1, workers=1)
    _run(tmp_path / "in", tmp_path / "b", silent, batch_size=12, workers=2, commit_rows=5)
    metrics = ("lapv", "lapm", "wavs", "brisque", "niqe")
    first, second = _values(_rows(tmp_path / "a"), metrics), _values(_rows(tmp_path / "b"), metrics)
    assert sorted(first) == names
    assert first == second


def test_a_second_run_scores_nothing_and_new_images_only(tmp_path: Path, silent: Silent) -> None:
    write_photographs(tmp_path / "in", 6)
    _run(tmp_path / "in", tmp_path / "out", silent, metrics=FOCUS, limit=4)
    before = _rows(tmp_path / "out")
    assert len(before) == 4
    stats = _run(tmp_path / "in", tmp_path / "out", silent, metrics=FOCUS)
    assert stats["scored"]["rows"] == 2
    stats = _run(tmp_path / "in", tmp_path / "out", silent, metrics=FOCUS)
    assert stats["scored"]["rows"] == 0
    after = _rows(tmp_path / "out")
    assert {key: after[key] for key in before} == before


def test_identical_bytes_keep_their_scores_and_changed_ones_do_not(tmp_path: Path, silent: Silent) -> None:
    names = write_photographs(tmp_path / "in", 3)
    _run(tmp_path / "in", tmp_path / "out", silent, metrics=FOCUS)
    before = _rows(tmp_path / "out")
    os.utime(tmp_path / "in" / names[0], ns=(1, 1))
    shutil.copyfile(tmp_path / "in" / names[2], tmp_path / "in" / names[1])
    stats = _run(tmp_path / "in", tmp_path / "out", silent, metrics=FOCUS)
    after = _rows(tmp_path / "out")
    assert stats["scored"]["rows"] == 2
    # Only the photograph with other bytes was decoded again: the touched one's etag alone is new.
    assert after[names[0]]["etag"] != before[names[0]]["etag"]
    assert after[names[0]]["lapv"] == before[names[0]]["lapv"]
    assert after[names[1]]["lapv"] == before[names[2]]["lapv"]


def test_backfill_adds_a_metric_and_keeps_the_others(tmp_path: Path, silent: Silent) -> None:
    write_photographs(tmp_path / "in", 4)
    (tmp_path / "in" / "text.jpg").write_text("no image")
    _run(tmp_path / "in", tmp_path / "out", silent, metrics=("lapv",), max_error_rate=1)
    before = _rows(tmp_path / "out")
    with pytest.raises(ConfigurationError, match=r"have no niqe.*--backfill"):
        _run(tmp_path / "in", tmp_path / "out", silent, metrics=("niqe",), max_error_rate=1)
    assert _rows(tmp_path / "out") == before
    stats = _run(tmp_path / "in", tmp_path / "out", silent, metrics=("niqe",), backfill=True, max_error_rate=1)
    assert "lapv" not in stats["seconds_by_stage"]
    after = _rows(tmp_path / "out")
    assert _values(after, ("lapv",)) == _values(before, ("lapv",))
    assert after["p0000.jpg"]["niqe_state"] == "ok"
    assert after["p0000.jpg"]["lapv_state"] == "ok"
    assert after["text.jpg"]["niqe_state"] == "failed:undecodable"
    again = _run(tmp_path / "in", tmp_path / "out", silent, metrics=("niqe",), backfill=True, max_error_rate=1)
    assert again["scored"]["rows"] == 0


def test_another_resolution_is_another_fingerprint(tmp_path: Path, silent: Silent) -> None:
    write_photographs(tmp_path / "in", 3)
    _run(tmp_path / "in", tmp_path / "out", silent, metrics=("lapv",))
    before = _rows(tmp_path / "out")
    with pytest.raises(ConfigurationError, match=r"\(v1, native, native, whole\).*--backfill"):
        _run(tmp_path / "in", tmp_path / "out", silent, metrics=("lapv",), longest_side=80)
    assert _rows(tmp_path / "out") == before
    _run(tmp_path / "in", tmp_path / "out", silent, metrics=("lapv",), longest_side=80, backfill=True)
    after = _rows(tmp_path / "out")
    assert all(after[key]["lapv_fingerprint"] != before[key]["lapv_fingerprint"] for key in before)
    definitions = scores.read_fingerprints(str(tmp_path / "out"))
    assert {row["lapv_fingerprint"] for row in after.values()} <= set(definitions)


def test_a_manifest_with_boxes_scores_the_regions(tmp_path: Path, silent: Silent) -> None:
    (name, *_) = write_photographs(tmp_path / "in", 1, side=200)
    ids = ["whole", "left", "outside", "nonsense", "gone", "nothing", "web"]
    uris = [f"in/{name}"] * 4 + ["in/absent.jpg", None, "https://example.org/x.jpg?token=SECRET"]
    boxes = [None, [0, 0, 100, 100], [150, 150, 100, 100], [1, 2], None, None, None]
    pq.write_table(pa.table({"image_id": ids, "uri": uris, "box": boxes}), tmp_path / "m.parquet")
    _run(tmp_path / "m.parquet", tmp_path / "out", silent, metrics=FOCUS, max_error_rate=1)
    rows = _rows(tmp_path / "out")
    assert {key: row["error_code"] for key, row in rows.items()} == {
        "whole": None,
        "left": None,
        "outside": "unsupported",
        "nonsense": "unsupported",
        "gone": "missing",
        "nothing": "missing",
        "web": "denied",
    }
    assert rows["left"]["box"] == [0, 0, 100, 100]
    assert (rows["left"]["width"], rows["left"]["height"]) == (200, 200)
    whole = qualitygate.score(str(tmp_path / "in" / name), FOCUS).to_pylist()[0]
    assert rows["whole"]["lapv"] == whole["lapv"] != rows["left"]["lapv"]
    # A region is another definition than a whole photograph, also in one table.
    assert rows["whole"]["lapv_fingerprint"] == whole["lapv_fingerprint"] != rows["left"]["lapv_fingerprint"]
    assert "SECRET" not in json.dumps(rows["web"], default=str)
    assert (
        _run(tmp_path / "m.parquet", tmp_path / "out", silent, metrics=FOCUS, max_error_rate=1)["scored"]["rows"] == 0
    )


class KillerAware(workers.ScoringWorker):
    """Dies, or sleeps, over photographs whose name says so, as a broken decoder would."""

    def __init__(self, plan: Plan, settings: workers.WorkerSettings, *others: Any) -> None:
        super().__init__(plan, settings, *others)
        prepare = self._scorer.prepare

        def prepared(request: Request, fetched: storage.Fetched | Failure) -> Prepared:
            if "killer" in request.image_id:
                os._exit(139)
            if "sleeper" in request.image_id:
                time.sleep(60)
            return prepare(request, fetched)

        self._scorer.prepare = prepared  # type: ignore[method-assign]


class KillerAwareAside(KillerAware):
    """The same while it decodes several photographs side by side."""

    def __init__(self, plan: Plan, settings: workers.WorkerSettings, *others: Any) -> None:
        super().__init__(plan, replace(settings, decoders=3), *others)


@pytest.mark.parametrize("worker", [KillerAware, KillerAwareAside])
def test_a_photograph_that_kills_its_worker_gets_its_row_and_harms_no_other(
    tmp_path: Path, silent: Silent, worker: type
) -> None:
    import sys

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    names = write_photographs(tmp_path / "in", 10)
    (tmp_path / "in" / names[3]).rename(tmp_path / "in" / "killer.jpg")
    (tmp_path / "in" / names[4]).rename(tmp_path / "in" / "sleeper.jpg")
    stats = _run(
        tmp_path / "in",
        tmp_path / "out",
        silent,
        worker,
        metrics=FOCUS,
        image_timeout_s=4,
        max_error_rate=0.5,
        metrics_textfile=str(tmp_path / "run.prom"),
    )
    assert stats["scored"]["batches_lost"] >= 2
    assert f"{stats['scored']['batches_lost']}\n" in next(
        line for line in (tmp_path / "run.prom").open() if line.startswith("qualitygate_batches_lost_total")
    )
    rows = _rows(tmp_path / "out")
    assert len(rows) == 10
    failed = {key: row["error_code"] for key, row in rows.items() if row["status"] != "ok"}
    assert failed == {"killer.jpg": "worker_crash", "sleeper.jpg": "worker_crash"}
    assert "image_timeout_s" in rows["sleeper.jpg"]["error_message"]
    assert stats["manifest"]["by_code"] == {ErrorCode.WORKER_CRASH: 2}
    # Tried once more by the next run, then quarantined until asked for. They are well behaved by then.
    undisturbed = _run(tmp_path / "in", tmp_path / "out", silent, metrics=FOCUS)
    assert undisturbed["scored"]["rows"] == 2
    assert undisturbed["manifest"]["by_status"] == {"ok": 10}


class LosesItsGpu(workers.ScoringWorker):
    """Believes in a GPU, which photographs that are 160 pixels wide take away for as long as the process lives."""

    def __init__(self, plan: Plan, settings: workers.WorkerSettings, *others: Any) -> None:
        super().__init__(plan, settings, *others)
        self._scorer._plan = replace(plan, device="cuda")
        lost = False

        def score(photographs: Any) -> list[Any]:
            nonlocal lost
            lost = lost or any(photograph.width == 160 for photograph in photographs)
            if lost:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            return [1.0 for _ in photographs]

        self._scorer._scorers["lapm"] = score


def test_a_photograph_that_takes_the_gpu_away_harms_no_other(tmp_path: Path, silent: Silent) -> None:
    import sys

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    names = write_photographs(tmp_path / "in", 4)
    stats = _run(
        tmp_path / "in",
        tmp_path / "out",
        silent,
        LosesItsGpu,
        metrics=("lapm",),
        workers=1,
        batch_size=4,
        max_error_rate=0.5,
    )
    rows = _rows(tmp_path / "out")
    culprits = {name for name in names if Image.open(tmp_path / "in" / name).width == 160}
    assert len(culprits) == 1
    assert {name: row["error_code"] for name, row in rows.items() if row["status"] != "ok"} == dict.fromkeys(
        culprits, "worker_crash"
    )
    assert all(rows[name]["lapm"] == 1.0 for name in names if name not in culprits)
    assert stats["scored"]["batches_lost"] >= 2


class SlowNetwork(workers.ScoringWorker):
    """Has a network that takes for ever over photographs that are 160 pixels wide."""

    def __init__(self, plan: Plan, settings: workers.WorkerSettings, *others: Any) -> None:
        super().__init__(plan, settings, *others)

        def score(photographs: Any) -> list[Any]:
            if any(photograph.width == 160 for photograph in photographs):
                time.sleep(60)
            return [1.0 for _ in photographs]

        self._scorer._scorers["hyperiqa"] = score


@pytest.mark.parametrize("task_size", [1, 4])
def test_a_network_that_takes_too_long_costs_its_own_score_alone(
    tmp_path: Path, silent: Silent, task_size: int
) -> None:
    import sys

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    names = write_photographs(tmp_path / "in", 4)
    _run(
        tmp_path / "in",
        tmp_path / "out",
        silent,
        SlowNetwork,
        metrics=("lapm", "hyperiqa"),
        untrained=True,
        image_timeout_s=3,
        workers=1,
        batch_size=4,
        task_size=task_size,
    )
    rows = _rows(tmp_path / "out")
    assert [rows[name]["status"] for name in names] == ["partial", "ok", "ok", "ok"]
    slow = rows[names[0]]
    assert (slow["lapm_state"], slow["hyperiqa_state"]) == ("ok", "failed:worker_crash")
    assert slow["sha256"]
    assert "image_timeout_s" in slow["error_message"]
    assert all(rows[name]["hyperiqa"] == 1.0 for name in names[1:])


def test_workers_are_placed_on_the_gpus_that_ray_has(tmp_path: Path, silent: Silent) -> None:
    write_photographs(tmp_path / "in", 16)
    stats = _run(
        tmp_path / "in",
        tmp_path / "out",
        silent,
        metrics=FOCUS,
        device="cuda",
        gpus_per_worker=0.5,
        batch_size=1,
    )
    assert stats["pool"]["gpus_per_worker"] == 0.5
    assert stats["workers"]
    assert all(gpus for gpus in stats["workers"].values())
    with pytest.raises(ConfigurationError, match="--device cpu"):
        _run(tmp_path / "in", tmp_path / "other", silent, metrics=FOCUS, device="cuda", gpus_per_worker=3)


def test_a_start_that_takes_long_is_told_of(silent: Silent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "_SECONDS_BETWEEN_NOTES", 0.05)
    with scoring._patience(silent) as arrived:
        time.sleep(0.3)
        arrived.set()
        told = len(silent.notes)
        time.sleep(0.2)
    assert told >= 2
    assert len(silent.notes) == told
    assert silent.notes[0].startswith("still starting")


def test_an_address_where_nothing_listens_is_refused_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ConfigurationError, match=r"no Ray cluster answers.*--ray-address local"):
        session._check_reachable(f"127.0.0.1:{port}")


def test_the_budget_counts_images_without_any_score_only(tmp_path: Path, silent: Silent) -> None:
    write_photographs(tmp_path / "in", 2)
    (tmp_path / "in" / "text.jpg").write_text("no image")
    Image.fromarray(np.zeros((60, 60, 3), np.uint8)).save(tmp_path / "in" / "flat.png")
    with pytest.raises(ErrorBudgetExceeded, match=r"1 of 4 images have no score \(1 undecodable\)") as caught:
        _run(tmp_path / "in", tmp_path / "out", silent, metrics=("lapm", "niqe"))
    assert [row["image_id"] for row in caught.value.stats["manifest"]["examples"]] == ["text.jpg"]


def test_a_pool_always_leaves_a_cpu_for_rays_own_tasks() -> None:
    plan = Plan(metrics=FOCUS)
    config = ScoreConfig(input="i", output="o")
    for cpus in (2, 3, 8, 64):
        pool = planning.plan_pool(config, plan, session.Cluster(cpus=cpus, gpus=0, local=True), rows=10_000)
        assert pool.workers == cpus
        assert pool.workers * pool.cpus_per_worker <= cpus - 1
    tight = session.Cluster(cpus=64, gpus=0, local=True, memory=9 << 30)
    assert planning.plan_pool(config, plan, tight, rows=10_000).workers == 4
    # On several nodes shares would leave crumbs on each: workers take whole CPUs, and one stays free.
    for cpus in (3, 4, 64):
        nodes = session.Cluster(cpus=cpus, gpus=0, local=False, nodes=2)
        pool = planning.plan_pool(config, plan, nodes, rows=10_000)
        assert (pool.workers, pool.cpus_per_worker) == (cpus - 1, 1.0)
    asked = config.model_copy(update={"workers": 64})
    with pytest.raises(ConfigurationError, match=r"--workers 64 leaves no CPU.*use 63 at most"):
        planning.plan_pool(asked, plan, nodes, rows=100)
    assert all(pool.decoders == 1 for pool in (pool, planning.plan_pool(config, plan, tight, rows=10)))
    small = planning.plan_pool(config, plan, session.Cluster(cpus=8, gpus=0, local=True), rows=3)
    assert (small.workers, small.batch_size) == (3, 1)
    with pytest.raises(ConfigurationError, match="needs 2 at least"):
        planning.plan_pool(config, plan, session.Cluster(cpus=1, gpus=0, local=False), rows=3)

"""What scoring will take: counted rows, counted operations, timed photographs; and no photograph ends the plan."""

import json
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from job_helpers import Silent, write_photographs

from qualitygate import cli
from qualitygate.cluster import score_costs, scoring
from qualitygate.config import ScoreConfig, ScorePlanConfig
from qualitygate.errors import ConfigurationError
from qualitygate.metrics import Parameters, costs
from qualitygate.metrics.rows import Plan, Request
from qualitygate.report import costs as said
from qualitygate.tables import manifest, scores


def _plan(source: Path, **more: Any) -> dict[str, Any]:
    return score_costs.estimate(ScorePlanConfig(input=str(source), photographs=3, **more))


def test_networks_are_counted_at_the_photographs_sizes() -> None:
    # Counted: .115 and 3.88 TFLOP for MUSIQ, .2145 for HyperIQA, 20 crops for MANIQA whatever the size.
    assert costs.operations("musiq-spaq", 1024, 1024) == pytest.approx(0.115e12)
    assert costs.operations("musiq", 3000, 4000) == pytest.approx(3.88e12)
    assert costs.operations("musiq", 512, 512) < 0.5 * costs.operations("musiq", 1024, 1024)
    assert costs.operations("hyperiqa", 1024, 1024) == pytest.approx(0.2145e12)
    assert costs.operations("maniqa", 1024, 1024) == costs.operations("maniqa", 3000, 4000) == pytest.approx(5.54e12)
    # Equal crops of a small photograph are computed once.
    assert costs.operations("maniqa", 226, 226) < 0.2 * costs.operations("maniqa", 1024, 1024)
    assert costs.operations("niqe", 1024, 1024) == 0
    assert costs.operations("musiq", 10, 5000) == pytest.approx(0)


def test_a_plan_counts_times_and_says_what_the_gate_alone_would_take(tmp_path: Path) -> None:
    write_photographs(tmp_path / "in", 6)
    found = _plan(tmp_path / "in")
    assert (found["rows"], found["to_do"], found["requests"]) == (6, 6, 6)
    assert found["bytes"] == pytest.approx(sum(p.stat().st_size for p in (tmp_path / "in").iterdir()), rel=0.2)
    assert set(found["metrics"]) == {"lapv", "lapm", "wavs", "brisque", "niqe", "musiq", "maniqa", "hyperiqa"}
    assert all(cost["cpu_hours"] > 0 for cost in found["metrics"].values())
    maniqa = found["metrics"]["maniqa"]
    assert maniqa["gpu_hours"] is not None
    assert 0 < maniqa["gpu_hours"][0] < maniqa["gpu_hours"][1] < maniqa["cpu_hours"]
    text = said.of_score_plan(found)
    assert "6 of 6 photographs to score" in text
    assert "MANIQA" in text
    dear = json.loads(json.dumps(found))
    dear["metrics"]["maniqa"]["cpu_hours"] = 4800.0
    assert "MANIQA would take" in said.of_score_plan(dear)


@pytest.mark.cluster
def test_what_is_scored_already_counts_as_done(tmp_path: Path, ray_session: Any) -> None:
    write_photographs(tmp_path / "in", 5)
    config = ScoreConfig(input=str(tmp_path / "in"), output=str(tmp_path / "out"), metrics=("lapm",), limit=3)
    scoring.run(config, Silent())
    found = _plan(tmp_path / "in", output=str(tmp_path / "out"), metrics=("lapm", "wavs"))
    assert {name: cost["rows"] for name, cost in found["metrics"].items()} == {"lapm": 2, "wavs": 5}
    assert found["to_do"] == 5


def test_a_photograph_that_lacks_any_metric_is_to_do(tmp_path: Path) -> None:
    """Two lack LAPM, two others WAVS, one failed for good: four are to be read, not two. Then one has changed."""
    write_photographs(tmp_path / "in", 5)
    spooled = manifest.load(str(tmp_path / "in"), tmp_path / "manifest.parquet")
    listed = pq.read_table(spooled.path)
    writer = scores.Writer(str(tmp_path / "out"), ["lapm", "wavs"], "run")
    states = [("ok", None), ("ok", "failed:timeout"), (None, "ok"), ("failed:timeout", "ok"), ("ok", "failed:flat")]
    common = {"status": "ok", "attempts": 1, "run_id": "run", "scored_at": datetime(2026, 1, 1, tzinfo=UTC)}
    rows = [
        common | {"image_id": image_id, "etag": etag, "lapm_state": lapm, "wavs_state": wavs}
        for image_id, etag, (lapm, wavs) in zip(
            listed["image_id"].to_pylist(), listed["etag"].to_pylist(), states, strict=True
        )
    ]
    table = pa.Table.from_pylist(rows, schema=writer.schema)
    writer.commit(table, table.slice(0, 0))
    found = _plan(tmp_path / "in", output=str(tmp_path / "out"), metrics=("lapm", "wavs"))
    assert {name: cost["rows"] for name, cost in found["metrics"].items()} == {"lapm": 2, "wavs": 2}
    assert (found["to_do"], found["requests"]) == (4, 4)
    assert found["reading_cpu_hours"] == pytest.approx(4 * found["measured"]["reading"] / 3600)
    assert _plan(tmp_path / "in", output=str(tmp_path / "out"), metrics=("lapm", "niqe"))["to_do"] == 5
    write_photographs(tmp_path / "in", 5, side=192)
    assert _plan(tmp_path / "in", output=str(tmp_path / "out"), metrics=("lapm", "wavs"))["to_do"] == 5


def test_unreadable_photographs_are_said_and_none_at_all_refused(tmp_path: Path) -> None:
    write_photographs(tmp_path / "in", 3)
    (tmp_path / "in" / "z.jpg").write_bytes(b"no photograph")
    found = _plan(tmp_path / "in", metrics=("lapm",))
    assert found["measured"]["photographs"] == 3
    # The means are of those that were read, and a metric's is what it takes by itself.
    assert found["measured"]["formulas"]["lapm"] > 0
    assert any("1 of 4 photographs could not be read" in message for message in found["messages"])
    for file in (tmp_path / "in").glob("p*"):
        file.write_bytes(b"no photograph")
    with pytest.raises(ConfigurationError, match=r"none of 4 photographs of --input could be read"):
        _plan(tmp_path / "in", metrics=("lapm",))


def _dies(plan: Plan, sample: list[Request]) -> None:
    os._exit(139)


def test_a_photograph_that_crashes_ends_the_plan_with_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_photographs(tmp_path / "in", 3)
    monkeypatch.setattr(score_costs, "measure", _dies)
    with pytest.raises(ConfigurationError, match=r"a photograph of --input ended the measurement"):
        _plan(tmp_path / "in", metrics=("lapm",))


@pytest.mark.parametrize(
    ("more", "message"),
    [({"metrics": ("lapmm",)}, "unknown metric 'lapmm'"), ({"gate": "nowhere"}, "there is no gate.json")],
)
def test_what_cant_be_planned_is_said(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    write_photographs(tmp_path / "in", 1)
    with pytest.raises(ConfigurationError, match=message):
        _plan(tmp_path / "in", **more)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0001, "0.36 s"), (0.5, "30 min"), (30.0, "30 h"), (480.0, "20 days"), (240_000.0, "10,000 days")],
)
def test_times_have_the_unit_that_people_would_use(value: float, text: str) -> None:
    assert said.hours(value) == text


def test_the_verb_speaks_to_people_and_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_photographs(tmp_path / "in", 2)
    with pytest.raises(SystemExit) as ended:
        cli.main(["plan", "score", "--input", str(tmp_path / "in"), "--metrics", "lapm", "--json"])
    assert not ended.value.code
    assert json.loads(capsys.readouterr().out)["rows"] == 2
    assert not list(tmp_path.glob("**/*.parquet"))


def _spool(source: Path, folder: Path, plan: Plan) -> Path:
    """The rows of an input as they wait for a first run."""
    writer = scores.Writer(str(folder / "out"), plan.metrics, "run-1")
    loaded = manifest.load(str(source), folder / "manifest.parquet")
    scores.write_pending(loaded, writer.table, plan.fingerprints(), retry=[], folder=folder / "pending")
    return folder / "pending"


def test_a_budget_counts_the_rows_that_wait_by_the_plans_own_numbers(tmp_path: Path) -> None:
    write_photographs(tmp_path / "in", 6)
    untrained = Parameters(untrained=True)
    plan = Plan(metrics=("lapm", "musiq"), parameters=untrained)
    pending = _spool(tmp_path / "in", tmp_path, plan)
    found = score_costs.hours(plan, pending)
    planned = _plan(tmp_path / "in", metrics=("lapm", "musiq"))
    assert (found.rows, found.gpu) == (6, (0.0, 0.0))
    # On a CPU the network is a matter of cores; its hours are part of theirs, and reading comes to them.
    assert sum(found.metrics.values()) < found.cpu
    on_gpu = score_costs.hours(replace(plan, device="cuda"), pending)
    # Not the same photographs were timed, but all have nearly the same size.
    assert on_gpu.gpu == pytest.approx(planned["metrics"]["musiq"]["gpu_hours"], rel=0.05)
    assert on_gpu.metrics["musiq"] == on_gpu.gpu[1]
    # Formulas are computed where the network is, unless they are left to the cores.
    assert "lapm" not in on_gpu.metrics
    on_cores = score_costs.hours(replace(plan, device="cuda", formulas="cpu"), pending)
    assert 0 < on_cores.metrics["lapm"] < on_cores.cpu


def test_what_has_a_metric_already_needs_it_no_more(tmp_path: Path) -> None:
    write_photographs(tmp_path / "in", 3)
    before = Plan(metrics=("lapm",))
    _spool(tmp_path / "in", tmp_path, before)
    output = str(tmp_path / "out")
    writer = scores.Writer(output, ("lapm", "wavs"), "run-2")
    loaded = manifest.load(str(tmp_path / "in"), tmp_path / "m.parquet")
    listed = pq.read_table(loaded.path).to_pylist()
    kept = before.fingerprints()["lapm"]["whole"]
    rows = [
        {
            **{key: row[key] for key in ("image_id", "uri", "etag")},
            "status": "ok",
            "attempts": 1,
            "run_id": "r",
            "scored_at": 0,
            "lapm": 1.0,
            "lapm_state": "ok",
            "lapm_fingerprint": kept,
        }
        for row in listed[:2]
    ]
    writer.commit(pa.Table.from_pylist(rows, schema=writer.schema), writer.schema.empty_table())
    plan = Plan(metrics=("lapm", "wavs"))
    scores.write_pending(loaded, writer.table, plan.fingerprints(), retry=[], folder=tmp_path / "more")
    assert score_costs._pending(plan, tmp_path / "more") == (3, {"lapm": 1, "wavs": 3})


@pytest.mark.parametrize(
    ("budget", "device", "message"),
    [
        (
            {"max_gpu_hours": 1e-9},
            "cuda",
            r"6 photographs would take .* to .* GPU-hours, more than --max-gpu-hours 1e-09",
        ),
        ({"max_cpu_hours": 1e-9}, "cpu", r"would take about .* hours of a core, more than --max-cpu-hours 1e-09, most"),
    ],
)
def test_what_exceeds_the_budget_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: dict[str, float], device: Any, message: str
) -> None:
    timed = {"reading": 0.01, "formulas": {"lapm": 0.01}, "sizes": [(512, 512)], "operations_per_second": 1e11}
    monkeypatch.setattr(score_costs, "_measured", lambda plan, sample: (timed, []))
    write_photographs(tmp_path / "in", 6)
    plan = Plan(metrics=("lapm", "musiq"), parameters=Parameters(untrained=True))
    pending = _spool(tmp_path / "in", tmp_path, plan)
    config = ScoreConfig(input=str(tmp_path / "in"), output=str(tmp_path / "out"), **budget)
    with pytest.raises(ConfigurationError, match=message):
        score_costs.check_budget(config, replace(plan, device=device), pending)
    enough = config.model_copy(update=dict.fromkeys(budget, 1e9))
    within = score_costs.check_budget(enough, replace(plan, device=device), pending)
    assert within is not None
    assert "within the budget" in str(within)
    free = config.model_copy(update=dict.fromkeys(budget))
    assert score_costs.check_budget(free, plan, tmp_path / "nothing is read") is None


@pytest.mark.cluster
def test_a_run_over_its_budget_scores_nothing(tmp_path: Path, ray_session: Any) -> None:
    write_photographs(tmp_path / "in", 4)
    given = {"input": str(tmp_path / "in"), "output": str(tmp_path / "out"), "metrics": ("lapm",)}
    with pytest.raises(ConfigurationError, match=r"nothing was scored"):
        scoring.run(ScoreConfig(**given, max_cpu_hours=1e-9), Silent())
    assert scores.existing_table(given["output"]).count() == 0
    silent = Silent()
    assert scoring.run(ScoreConfig(**given, max_cpu_hours=10), silent).stats["scored"]["rows"] == 4
    assert any("within the budget" in note for note in silent.notes)

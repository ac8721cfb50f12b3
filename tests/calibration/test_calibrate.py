"""The calibration job from files to gate.json, and the command line around it."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from qualitygate import cli
from qualitygate.calibration import apply, calibrate, gate
from qualitygate.config import CalibrateConfig, GateConfig
from qualitygate.errors import ConfigurationError, GateRefused
from qualitygate.report import artefacts
from qualitygate.report import calibration as said
from qualitygate.tables import storage

METHODS = "lapv,wavs,brisque"


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., CalibrateConfig]:
    """A quick calibration of simulated photographs."""

    def make(simulated: Any, name: str = "a", order: Any = None, **options: Any) -> CalibrateConfig:
        scores, predictions = simulated.write(tmp_path / name, order=order)
        return CalibrateConfig(
            **{
                "scores": scores,
                "predictions": predictions,
                "output": str(tmp_path / name / "out"),
                "methods": METHODS,
                "bootstrap": 60,
                "permutations": 99,
                "repeats": 2,
                "folds": 3,
            }
            | options
        )

    return make


def _files(config: CalibrateConfig) -> tuple[dict[str, Any], dict[str, Any], Any]:
    folder = Path(config.output)
    records = [json.loads((folder / name).read_text()) for name in ("gate.json", "calibration.json")]
    return records[0], records[1], pq.read_table(folder / "calibration.parquet")


# ---- a calibration -------------------------------------------------------------------------------------------


def test_the_lines_part_blurred_from_sharp_and_all_is_recorded(
    simulate: Callable[..., Any], config: Callable[..., CalibrateConfig], progress: Any
) -> None:
    simulated = simulate()
    made = config(simulated)
    result = calibrate.run(made, progress)
    content, record, table = _files(made)
    assert result.refusal is None
    assert progress.done == progress.total == 3 + 6
    assert gate.load(made.output).id == content["id"] == record["gate_id"] == result.gate.id

    columns = {name: np.asarray(table[name].to_pylist()) for name in table.column_names}
    assert columns["image_id"].tolist() == sorted(simulated.image_id)
    for name in METHODS.split(","):
        method = content["methods"][name]
        low, high = method["interval"]
        assert (method["status"], method["reason"], method["rule"]) == ("ok", None, "crossing")
        assert low < method["cutoff"] < high
        assert method["cutoff"] in method["crossings"]
        assert method["bounds"] == [columns[name].min(), columns[name].max()]
        ends = method["bounds"]
        assert method["cutoff_normalized"] == pytest.approx((method["cutoff"] - ends[0]) / (ends[1] - ends[0]))
        assert method["wrong"] + method["correct"] == record["rows"] == 420
        density = method["densities"]
        assert density["axis"] == ("log" if name != "brisque" else "linear")
        assert density["quality"] == sorted(density["quality"])
        assert len(density["quality"]) == len(density["correct"]) == len(density["wrong"]) == 200
        assert (density["quality_normalized"][0], density["quality_normalized"][-1]) == pytest.approx((0, 1), abs=1e-5)
        place = np.log(density["quality"]) if density["axis"] == "log" else np.asarray(density["quality"])
        assert 0.9 < np.trapezoid(density["correct"], place) <= 1.01
        assert np.array_equal(
            columns[f"low_{name}"],
            columns[name] > method["cutoff"] if name == "brisque" else columns[name] < method["cutoff"],
        )
        # The sign of the vote is right for a measure of which lower is better, too.
        assert columns[f"low_{name}"][simulated.blurred].mean() > 0.8
        assert columns[f"low_{name}"][~simulated.blurred].mean() < 0.2
    assert roc_auc_score(simulated.blurred, columns["votes_low"]) > 0.95
    assert np.array_equal(columns["passed"], columns["votes_low"] < content["votes_needed"])
    assert content["coverage"] == columns["passed"].mean()

    assert content["votes_needed"] == 2
    assert content["fingerprints"] == dict.fromkeys(METHODS.split(","), "external")
    assert (content["classifier"], content["parent"], content["untrained"], content["preset"]) == (
        "external",
        None,
        [],
        "list",
    )
    assert content["held_out"] == record["held_out"]
    assert record["wrong"] == np.count_nonzero(~simulated.correct)
    assert (record["groups"], record["dropped"]) == (60, {})
    assert record["accuracy"] == pytest.approx(simulated.correct.mean())
    assert [one["name"] for one in record["held_out"]["comparison"]] == [
        "gate",
        "random",
        "top1",
        "best_single",
        "logistic",
    ]
    assert record["config"]["methods"] == METHODS
    assert set(record["pass_rates"]["class"]) == {"a", "b"}
    assert len(record["agreement"]["pairs"]) == 3
    assert len(record["method_correlations"]["spearman"]) == 3
    text = said.of_run(result)
    for words in ("lapv", "rejecting at random", f"gate {result.gate.id}", "low votes reject"):
        assert words in text


def test_row_order_changes_nothing_and_a_seed_decides_the_rest(
    simulate: Callable[..., Any], config: Callable[..., CalibrateConfig], progress: Any
) -> None:
    simulated = simulate(groups=40)
    first = calibrate.run(config(simulated), progress)
    shuffled = np.random.default_rng(5).permutation(len(simulated.image_id))
    second = calibrate.run(config(simulated, "b", shuffled), progress)
    other = calibrate.run(config(simulated, "c", seed=1), progress)
    assert first.gate.id == second.gate.id
    without_place = [{**one.record, "config": None, "created": None} for one in (first, second)]
    assert without_place[0] == without_place[1]
    assert other.gate.id != first.gate.id
    cutoffs = [one.gate.methods["lapv"].cutoff for one in (first, other)]
    assert cutoffs[0] == cutoffs[1]


def test_another_unit_of_a_score_moves_its_line_alone(
    simulate: Callable[..., Any], config: Callable[..., CalibrateConfig], progress: Any
) -> None:
    simulated = simulate(groups=40)
    first = calibrate.run(config(simulated), progress)
    simulated.scores["lapv"] = simulated.scores["lapv"] * 1000
    simulated.scores["brisque"] = simulated.scores["brisque"] / 10 + 7
    second = calibrate.run(config(simulated, "b"), progress)
    before, after = (one.gate.content["methods"] for one in (first, second))
    assert after["lapv"]["cutoff"] == pytest.approx(1000 * before["lapv"]["cutoff"], rel=1e-9)
    assert after["lapv"]["interval"] == pytest.approx([1000 * end for end in before["lapv"]["interval"]], rel=1e-6)
    assert after["brisque"]["cutoff"] == pytest.approx(before["brisque"]["cutoff"] / 10 + 7, rel=1e-9)
    assert after["brisque"]["cutoff_normalized"] == pytest.approx(before["brisque"]["cutoff_normalized"])
    tables = [pq.read_table(Path(one.output) / "calibration.parquet")["passed"] for one in (first, second)]
    assert tables[0] == tables[1]


def test_scores_that_say_nothing_make_a_gate_that_refuses(
    simulate: Callable[..., Any], config: Callable[..., CalibrateConfig], progress: Any
) -> None:
    made = config(simulate(informative=False))
    result = calibrate.run(made, progress)
    content, record, table = _files(made)
    assert {one["status"] for one in content["methods"].values()} == {"undefined"}
    assert all("isn't above .5" in one["reason"] for one in content["methods"].values())
    assert all(one["cutoff"] is None and one["densities"] for one in content["methods"].values())
    assert content["coverage"] is None
    assert content["held_out"] is None
    assert record["pass_rates"] == {"class": {}, "stratum": {}}
    assert table["passed"].null_count == table["low_lapv"].null_count == table.num_rows
    text = said.of_run(result)
    assert "THE GATE CAN'T DECIDE" in text
    assert "0 of its methods can vote, 2 low votes are needed" in " ".join(text.split())
    with pytest.raises(GateRefused, match="can't decide"):
        apply.run(GateConfig(scores=made.scores, gate=made.output, output=made.output + "/applied"))
    assert not (Path(made.output) / "applied").exists()


def test_fallbacks_are_measured_and_named_when_only_they_can_decide(
    simulate: Callable[..., Any], config: Callable[..., CalibrateConfig], progress: Any
) -> None:
    made = config(simulate(informative=False), fallback_percentile=20)
    calibrate.run(made, progress)
    content, record, _ = _files(made)
    assert {(one["status"], one["rule"]) for one in content["methods"].values()} == {("fallback", "percentile")}
    assert content["coverage"] is not None
    assert any("--allow-fallback" in warning for warning in record["warnings"])
    assert any("isn't surely better than rejecting at random" in warning for warning in record["warnings"])
    given = {"scores": made.scores, "gate": made.output, "output": made.output + "/applied"}
    with pytest.raises(GateRefused):
        apply.run(GateConfig(**given))
    result = apply.run(GateConfig(**given, allow_fallback=True))
    assert result.stats["passed"] / result.stats["rows"] == pytest.approx(content["coverage"])


def test_applied_to_its_own_photographs_the_gate_decides_as_when_it_was_made(
    simulate: Callable[..., Any], config: Callable[..., CalibrateConfig], progress: Any
) -> None:
    simulated = simulate(groups=40)
    simulated.scores["lapv"][:7] = np.nan
    made = config(simulated)
    table = pq.read_table(made.scores)
    holes = np.isnan(simulated.scores["lapv"])
    import pyarrow as pa

    pq.write_table(table.set_column(2, "lapv", pa.array(simulated.scores["lapv"], mask=holes)), made.scores)
    calibrate.run(made, progress)
    apply.run(GateConfig(scores=made.scores, gate=made.output, output=made.output + "/applied"))
    _, record, before = _files(made)
    after = pq.read_table(Path(made.output) / "applied" / "gate.parquet")
    assert record["dropped"] == {"no_score_lapv": 7}
    for name in ("image_id", "votes_low", "passed", "low_lapv", "low_wavs", "low_brisque"):
        assert before[name].to_pylist() == after[name].to_pylist()


@pytest.mark.parametrize("rule", [{"target_accuracy": 0.9}, {"min_coverage": 0.7}])
def test_other_rules_reach_the_gate(
    simulate: Callable[..., Any], config: Callable[..., CalibrateConfig], progress: Any, rule: dict[str, float]
) -> None:
    result = calibrate.run(config(simulate(groups=40), **rule), progress)
    for method in result.gate.content["methods"].values():
        assert (method["status"], method["rule"]) == ("ok", next(iter(rule)))
    assert result.record["held_out"]["accuracy_passed"]["mean"] > result.record["accuracy"] + 0.05
    assert next(iter(rule)) in said.of_run(result)


def test_a_gate_names_the_one_before_it(
    simulate: Callable[..., Any], config: Callable[..., CalibrateConfig], progress: Any
) -> None:
    simulated = simulate(groups=30)
    first = calibrate.run(config(simulated, repeats=1), progress)
    second = calibrate.run(config(simulated, repeats=1, parent=first.output), progress)
    assert second.gate.content["parent"] == first.gate.id
    assert gate.load(second.output).id == second.gate.id != first.gate.id


# ---- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target_accuracy": 0.9, "min_coverage": 0.8}, "give one of them"),
        ({"votes_needed": 4}, "--votes-needed 4 is more than the 3 methods"),
        ({"significance": 0.001}, "--permutations 99 can't reach a significance of 0.001 with 3 methods; give 2999"),
        ({"methods": "auto"}, "--robustness"),
        ({"robustness": "/nowhere"}, "qualitygate robustness"),
        ({"parent": "/nowhere"}, "--parent '/nowhere'"),
        ({"methods": "lapv,sharp"}, "sharp"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_written(
    simulate: Callable[..., Any],
    config: Callable[..., CalibrateConfig],
    progress: Any,
    options: dict[str, Any],
    words: str,
) -> None:
    made = config(simulate(groups=10), **options)
    with pytest.raises(ConfigurationError, match=words):
        calibrate.run(made, progress)
    assert not Path(made.output).exists()


@pytest.mark.parametrize("writes", range(4))
def test_a_calibration_that_cannot_be_written_leaves_the_gate_before_in_force(
    simulate: Callable[..., Any],
    config: Callable[..., CalibrateConfig],
    progress: Any,
    monkeypatch: pytest.MonkeyPatch,
    writes: int,
) -> None:
    made = config(simulate(groups=30), repeats=1)
    before = calibrate.run(made, progress).gate.id
    write_bytes, publish, left = storage.write_bytes, storage.publish, [writes]

    def full(write: Callable[..., None]) -> Callable[..., None]:
        def maybe(*arguments: Any) -> None:
            if not left[0]:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "gate.json")
            left[0] -= 1
            write(*arguments)

        return maybe

    monkeypatch.setattr(storage, "write_bytes", full(write_bytes))
    monkeypatch.setattr(storage, "publish", full(publish))
    with pytest.raises(OSError, match="No space left"):
        calibrate.run(made.model_copy(update={"seed": 1}), progress)
    assert left == [0]
    assert gate.load(made.output).id == before
    if writes:
        with pytest.raises(ConfigurationError, match=f"belongs to gate .* but gate.json is {before}"):
            artefacts.read([made.output])
    else:
        assert artefacts.read([made.output])
    assert not [path for path in Path(made.output).iterdir() if path.name.startswith("_writing")]
    left[0] = 9
    assert calibrate.run(made.model_copy(update={"seed": 1}), progress).gate.id != before
    assert artefacts.read([made.output])


def test_the_command_line_runs_it_and_ends_with_the_exit_codes(
    simulate: Callable[..., Any], config: Callable[..., CalibrateConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    made = config(simulate(groups=30, informative=False))
    arguments = ["--scores", made.scores, "--predictions", made.predictions, "--output", made.output]
    quick = ["--methods", METHODS, "--bootstrap", "50", "--permutations", "99"]
    with pytest.raises(SystemExit) as ended:
        cli.main(["calibrate", *arguments, *quick])
    assert ended.value.code == 0
    assert "THE GATE CAN'T DECIDE" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        cli.main(["gate", "--scores", made.scores, "--gate", made.output, "--output", made.output + "/g"])
    assert ended.value.code == 4
    assert "can't decide" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        cli.main(["calibrate", *arguments, *quick, "--methods", "nothing"])
    assert ended.value.code == 2

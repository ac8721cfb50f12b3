"""For each check that a night may fail the page says what to do, with commands that the command line takes."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import artefacts_maker
import nights_maker as maker
import pytest
import yaml

from qualitygate.nightly.record import Check
from qualitygate.report import artefacts, next_steps
from qualitygate.report.next_steps import Step

sys.path.insert(0, str(Path(__file__).parents[1] / "deployment"))
import commands

PREDICTIONS = "s3://quality/labels/predictions.parquet"


def _steps(folder: Path, *failed: str, settings: dict[str, Any] | None = None, **steps: Any) -> list[Step]:
    checks = tuple(Check(name=name, passed=False, said=f"{name} is bad; and more") for name in failed)
    night = maker.night(1, "refused", 1, 1, checks=checks)
    maker.write(folder, [maker.night(0, "promoted", None, 1), replace(night, steps={**night.steps, **steps})])
    config = folder / "nights" / night.night / "_config.yaml"
    values = (yaml.safe_load(config.read_text()) or {}) | {"predictions": PREDICTIONS} | (settings or {})
    config.write_text(yaml.safe_dump(values))
    return next_steps.of(artefacts.read([str(folder)]))


@pytest.mark.parametrize(
    ("check", "verbs"),
    [
        ("errors", ["status", "nightly"]),
        ("drift", ["nightly"]),
        ("manifest", ["nightly"]),
        ("labelled", []),
        ("rejects labelled", []),
        ("decides", ["nightly"]),
        ("calibrate", ["nightly"]),
        ("cut-off lapm", ["gate diff", "gate promote"]),
        ("methods", ["gate diff", "gate promote"]),
        ("coverage", ["gate diff", "gate promote"]),
        ("coverage change", ["gate diff", "gate promote"]),
        ("value", ["gate diff", "gate promote"]),
        ("not withdrawn", ["gate history", "gate promote"]),
        ("gate in force", ["nightly"]),
    ],
)
def test_each_check_has_its_remedy(tmp_path: Path, check: str, verbs: list[str]) -> None:
    folder = tmp_path / "an out'put"
    found = _steps(folder, check)
    assert found
    read = [commands.read(step.command) for step in found if step.command]
    assert [verb for verb, _ in read] == verbs
    for verb, given in read:
        if verb == "nightly":
            assert given["night"] == maker.name(1)
            flags = {"drift": "accept_drift", "manifest": "allow_changes"}
            assert given[flags.get(check, "again")] is True
        else:
            assert str(folder) in given.values()
        if verb == "gate promote":
            assert given["gate"] == f"{folder}/nights/{maker.name(1)}/gate"
    said = " ".join(step.text for step in found)
    assert ("audit_sample.parquet" in said and PREDICTIONS in said) is ("labelled" in check)
    assert "qualitygate predict" not in said


@pytest.mark.parametrize(
    ("moved", "verb", "said"),
    [
        ({"largest": 3.0}, "nightly", "library, driver or machine"),
        ({"largest": 0.0, "definition": True}, "score", "new definition"),
        ({"largest": 0.0, "away": 150}, "nightly", "store answers"),
    ],
)
def test_a_canary_that_moved_for_one_reason_or_another(
    tmp_path: Path, moved: dict[str, Any], verb: str, said: str
) -> None:
    one = {"metric": "niqe", "compared": 20, "bound": 1e-6, "lost": 0, "definition": False, "shifts": []} | moved
    found = _steps(tmp_path / "out", "canary", canary={"moved": [one]})
    assert said in found[0].text
    assert found[0].command is not None
    assert commands.read(found[0].command)[0] == verb


def test_a_table_scored_anew_is_scored_as_its_nights_do(tmp_path: Path) -> None:
    """Else the next night would find a table of other definitions, or with more metrics."""
    one = {"metric": "lapm", "largest": 0.0, "compared": 20, "bound": 1e-6, "lost": 0, "definition": True, "shifts": []}
    score = {"metrics": ["lapm", "wavs"], "longest_side": 64, "workers": 3, "untrained": True, "weights": "a folder"}
    found = _steps(tmp_path / "out", "canary", settings={"score": score}, canary={"moved": [one]})
    assert found[0].command is not None
    verb, given = commands.read(found[0].command)
    assert verb == "score"
    wanted = {"backfill": True, "metrics": "lapm,wavs", "longest_side": 64, "untrained": True}
    assert {key: given[key] for key in wanted} == wanted
    assert given["weights"] == "a folder"
    assert "workers" not in given


def test_what_several_checks_ask_for_is_said_once(tmp_path: Path) -> None:
    found = _steps(tmp_path / "out", "labelled", "rejects labelled", "coverage", "value")
    assert len(found) == 3
    assert len(set(found)) == 3


def test_a_night_that_was_not_refused_asks_for_nothing(tmp_path: Path) -> None:
    folder = maker.write(tmp_path / "out", maker.history(3))
    assert next_steps.of(artefacts.read([str(folder)])) == []


def test_why_a_gate_is_not_in_force(tmp_path: Path) -> None:
    gate = artefacts_maker.calibration(tmp_path / "gate")
    gate_id = json.loads((gate / "gate.json").read_text())["id"]

    def why(name: str, state: str, after: int, *, candidate: str = gate_id, **more: Any) -> list[str] | None:
        night = maker.night(1, state, 1, after)
        night = replace(night, steps={**night.steps, "calibrate": {"gate": candidate, "labelled": 300}})
        nights = [maker.night(0, "promoted", None, 1), night]
        folder = maker.write(tmp_path / name, nights, **more)
        return next_steps.candidate(artefacts.read([str(folder), str(gate)]))

    assert why("refused", "refused", 1) == [maker.DRIFT_CLAUSE]
    assert why("kept", "kept", 1) == ["it decides as the gate in force does, so nothing was changed"]
    assert why("other", "refused", 1, candidate="another") == ["it is no candidate of the last night"]
    back = maker.change(3, maker.gate(1), gate_id, maker.moment(3), action="rollback", reason="rejects new bottles")
    assert why("back", "promoted", 2, changes=[back]) == [
        "another was put in force since, by quality@node-7: rejects new bottles"
    ]
    now = maker.change(1, gate_id, None, maker.moment(3))
    assert why("in force", "promoted", 2, changes=[now]) is None

"""Lazy scoring on a real Ray: the same decisions from fewer scores, and a full run still finds what is missing."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from job_helpers import Silent, write_photographs

from qualitygate.calibration import apply, gate
from qualitygate.cluster import scoring
from qualitygate.config import GateConfig, ScoreConfig
from qualitygate.errors import ConfigurationError
from qualitygate.metrics.rows import Plan
from qualitygate.tables import scores, storage

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_session")]
VOTERS = ("lapm", "wavs", "niqe")


def _rows(output: Path) -> dict[str, dict[str, Any]]:
    found = scores.dataset(scores.existing_table(str(output)))
    return {row["image_id"]: row for row in (found if isinstance(found, pa.Table) else found.to_table()).to_pylist()}


def _gate(folder: Path, cutoffs: dict[str, float], **changes: Any) -> str:
    """A gate.json with these cut-offs, made from whole photographs by this program."""
    plan = Plan(metrics=tuple(cutoffs))
    content: dict[str, Any] = {
        "format": gate.FORMAT,
        "version": gate.VERSION,
        "votes_needed": 2,
        "methods": {
            metric.name: {
                "direction": metric.direction,
                "status": "ok",
                "reason": None,
                "cutoff": cutoffs[metric.name],
            }
            for metric in plan.selected()
        },
        "fingerprints": {name: by_region["whole"] for name, by_region in plan.fingerprints().items()},
        "untrained": [],
        **changes,
    }
    content["id"] = gate.identity(content)
    storage.write_bytes(str(folder / "gate.json"), gate.dump(content))
    return str(folder / "gate.json")


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]], str]:
    """Photographs, every score of theirs, and a gate whose first two methods agree on some and not on others."""
    tmp_path, silent = tmp_path_factory.mktemp("scored"), Silent()
    folder = tmp_path / "in"
    write_photographs(folder, 24)
    (folder / "text.jpg").write_text("no image")
    scoring.run(ScoreConfig(input=str(folder), output=str(tmp_path / "full"), metrics=VOTERS), silent)
    rows = _rows(tmp_path / "full")
    ok = [row for row in rows.values() if row["status"] == "ok"]
    middle = {name: sorted(row[name] for row in ok)[len(ok) // 2] for name in VOTERS}
    return folder, rows, _gate(tmp_path, middle)


def _decisions(results: Path, made: str, output: Path) -> dict[str, bool]:
    apply.run(GateConfig(scores=str(results), gate=made, output=str(output)))
    return {row["image_id"]: row["passed"] for row in pq.read_table(output / "gate.parquet").to_pylist()}


def test_the_same_decisions_from_fewer_scores(
    tmp_path: Path, silent: Silent, scored: tuple[Path, dict[str, dict[str, Any]], str]
) -> None:
    folder, full, made = scored
    complete, lazily = folder.parent / "full", tmp_path / "lazy"
    asked = ScoreConfig(input=str(folder), output=str(lazily), gate=made, lazy=True, lazy_sample=0.1)
    stats = scoring.run(asked, silent).stats
    rows = _rows(lazily)
    assert set(rows) == set(full)
    spared = stats["lazy"]["voters"]["niqe"]["left_out"]
    assert 0 < spared < len(rows)
    assert spared == sum(row["niqe_state"] == "skipped_lazy" for row in rows.values())
    assert _decisions(lazily, made, tmp_path / "d1") == _decisions(complete, made, tmp_path / "d2")
    for name, row in rows.items():
        assert row["lazy_gate"] == stats["lazy"]["gate_id"]
        for metric in VOTERS:
            if row[f"{metric}_state"] == "ok":
                assert row[metric] == full[name][metric]
            elif row[f"{metric}_state"] == "skipped_lazy":
                assert row[metric] is None
                assert not row["lazy_sample"]
        assert row["status"] == full[name]["status"]
    assert any(row["lazy_sample"] for row in rows.values())
    assert all(row["niqe_state"] == "ok" for row in rows.values() if row["lazy_sample"] and row["status"] == "ok")

    # Again: nothing to do. Another gate: what was left out is asked again. In full: all of it.
    assert scoring.run(asked, silent).stats["scored"]["rows"] == 0
    other = tmp_path / "other"
    other.mkdir()
    first = {name: 0.0 if name != "niqe" else 1e9 for name in VOTERS}
    second = asked.model_copy(update={"gate": _gate(other, first)})
    assert scoring.run(second, silent).stats["scored"]["rows"] == spared
    in_full = ScoreConfig(input=str(folder), output=str(lazily), metrics=VOTERS)
    assert scoring.run(in_full, silent).stats["scored"]["rows"] > 0
    values = {name: [row[metric] for metric in VOTERS] for name, row in _rows(lazily).items()}
    assert values == {name: [row[metric] for metric in VOTERS] for name, row in full.items()}


def test_gates_that_do_not_fit_are_refused(
    tmp_path: Path, silent: Silent, scored: tuple[Path, dict[str, dict[str, Any]], str]
) -> None:
    folder, _, made = scored

    def refused(message: str, **options: Any) -> None:
        with pytest.raises(ConfigurationError, match=message):
            scoring.run(ScoreConfig(input=str(folder), output=str(tmp_path / "x"), **options), silent)
        assert not (tmp_path / "x").exists()

    refused("name the gate with --gate", lazy=True)
    refused("--metrics leaves out niqe", gate=made, lazy=True, metrics=("lapm", "wavs"))
    refused(r"was made from lapm .*'qualitygate calibrate'", gate=made, lazy=True, longest_side=80)
    refused("there is no gate.json|can't be read", gate=str(tmp_path / "nowhere"), lazy=True)
    changed = tmp_path / "changed.json"
    changed.write_text(Path(made).read_text().replace('"votes_needed": 2', '"votes_needed": 1'))
    refused("was changed after it was made", gate=str(changed), lazy=True)

"""Applying a gate: decisions by definition, refusals that write nothing, rows that all arrive."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from qualitygate.calibration import apply, gate
from qualitygate.config import GateConfig
from qualitygate.errors import ConfigurationError, GateRefused
from qualitygate.report import calibration as said
from qualitygate.tables import scores as tables

CUTS = {"lapv": (10.0, "higher"), "wavs": (2.0, "higher"), "brisque": (50.0, "lower")}


def _method(cutoff: float | None, direction: str, status: str = "ok") -> dict[str, Any]:
    return {"cutoff": cutoff, "direction": direction, "status": status, "reason": None if status == "ok" else "why"}


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., GateConfig]:
    """A gate of three methods and scores, as files; changes as asked."""

    def make(
        scores: pa.Table | str | None = None, methods: dict[str, Any] | None = None, changes: Any = None, **options: Any
    ) -> GateConfig:
        content: dict[str, Any] = {
            "format": gate.FORMAT,
            "version": gate.VERSION,
            "votes_needed": 2,
            "methods": methods or {name: _method(*cut) for name, cut in CUTS.items()},
            "fingerprints": dict.fromkeys(CUTS, "f1"),
            "untrained": [],
        } | (changes or {})
        content["id"] = gate.identity(content)
        (tmp_path / gate.FILE).write_bytes(gate.dump(content))
        path = tmp_path / "scores.parquet"
        if isinstance(scores, str):
            path = Path(scores)
        else:
            pq.write_table(_scores() if scores is None else scores, path)
        return GateConfig(scores=str(path), gate=str(tmp_path / gate.FILE), output=str(tmp_path / "out"), **options)

    return make


def _scores(rows: int = 500, *, fingerprint: str | None = "f1", **columns: Any) -> pa.Table:
    rng = np.random.default_rng(0)
    values: dict[str, Any] = {"image_id": [f"p{number:05}" for number in rng.permutation(rows)]}
    values["uri"] = [f"/u/{name}" for name in values["image_id"]]
    for name, (cutoff, _) in CUTS.items():
        raw = cutoff * rng.lognormal(0, 0.3, rows)
        raw[rng.random(rows) < 0.05] = np.nan
        raw[rng.random(rows) < 0.05] = cutoff
        values[name] = pa.array(raw, mask=np.isnan(raw))
        if fingerprint:
            values[f"{name}_fingerprint"] = pa.array([fingerprint] * rows, mask=np.isnan(raw))
    return pa.table(values | columns)


def _read(config: GateConfig) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
    decisions = {row["image_id"]: row for row in pq.read_table(Path(config.output) / "gate.parquet").to_pylist()}
    accepted = pq.read_table(Path(config.output) / "accepted.parquet").to_pylist()
    return decisions, accepted, json.loads((Path(config.output) / "_gate_stats.json").read_text())


# ---- decisions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["reject", "pass", "abstain"])
@pytest.mark.parametrize("portion", [100_000, 64])
def test_every_row_is_decided_by_definition(
    config: Callable[..., GateConfig], monkeypatch: pytest.MonkeyPatch, policy: str, portion: int
) -> None:
    monkeypatch.setattr(apply, "_ROWS_AT_ONCE", portion)
    made = config(on_null=policy)
    result = apply.run(made)
    decisions, accepted, stats = _read(made)
    rows = pq.read_table(made.scores).to_pylist()
    assert list(decisions) == sorted(row["image_id"] for row in rows)
    passed, nulls, by_votes, pivotal = [], dict.fromkeys(CUTS, 0), {}, dict.fromkeys(CUTS, 0)
    for row in rows:
        votes: dict[str, bool | None] = {}
        for name, (cutoff, direction) in CUTS.items():
            if row[name] is None:
                nulls[name] += 1
                votes[name] = {"reject": True, "pass": False, "abstain": None}[policy]
            else:
                votes[name] = row[name] < cutoff if direction == "higher" else row[name] > cutoff
        low = sum(vote is True for vote in votes.values())
        passes = low < 2 and any(vote is not None for vote in votes.values())
        found = decisions[row["image_id"]]
        assert {name: found[f"low_{name}"] for name in CUTS} == votes
        assert (found["votes_low"], found["passed"], found["gate_id"]) == (low, passes, result.gate.id)
        by_votes[str(low)] = by_votes.get(str(low), 0) + 1
        for name, vote in votes.items():
            if vote is not None:
                pivotal[name] += (low < 2) != (low - vote + (not vote) < 2)
        if passes:
            passed.append({"image_id": row["image_id"], "uri": row["uri"]})
    assert accepted == sorted(passed, key=lambda row: row["image_id"])
    assert stats == result.stats
    assert (stats["rows"], stats["passed"], stats["rejected"]) == (500, len(passed), 500 - len(passed))
    assert (stats["nulls"], stats["by_votes"]) == (nulls, by_votes)
    assert stats["pivotal"] == {name: turned / 500 for name, turned in pivotal.items()}
    assert (stats["source"], stats["external"], stats["voters"]) == ("scores", [], list(CUTS))
    assert stats["policy"]["on_null"] == policy
    assert f"{len(passed)} of 500 photographs pass" in said.of_gate(result)


def test_undefined_methods_need_no_scores_and_get_no_vote(config: Callable[..., GateConfig]) -> None:
    methods = {name: _method(*cut) for name, cut in CUTS.items()} | {"musiq": _method(None, "higher", "undefined")}
    made = config(methods=methods)
    apply.run(made)
    decisions, _, stats = _read(made)
    assert {row["low_musiq"] for row in decisions.values()} == {None}
    assert stats["voters"] == list(CUTS)


def test_a_fallback_votes_only_where_it_is_allowed(config: Callable[..., GateConfig]) -> None:
    methods = {name: _method(*cut) for name, cut in CUTS.items()}
    methods["wavs"] = _method(2.0, "higher", "fallback")
    made = config(methods=methods)
    apply.run(made)
    assert _read(made)[2]["voters"] == ["lapv", "brisque"]
    apply.run(made.model_copy(update={"allow_fallback": True}))
    assert _read(made)[2]["voters"] == list(CUTS)
    methods["lapv"] = _method(None, "higher", "undefined")
    with pytest.raises(GateRefused, match=r"lapv is undefined.*--allow-fallback"):
        apply.run(config(methods=methods))


def test_the_order_of_rows_changes_nothing(config: Callable[..., GateConfig]) -> None:
    table = _scores()
    outputs = []
    for order in (np.arange(500), np.random.default_rng(1).permutation(500)):
        made = config(table.take(order))
        apply.run(made)
        outputs.append([(Path(made.output) / name).read_bytes() for name in ("gate.parquet", "accepted.parquet")])
    assert outputs[0] == outputs[1]


def test_the_accepted_manifest_keeps_what_the_manifest_had(config: Callable[..., GateConfig]) -> None:
    extra = {"box": pa.array([[0, 0, 5, 5]] * 500), "etag": ["e"] * 500, "bytes": [7] * 500}
    made = config(_scores(**extra))
    apply.run(made)
    row = _read(made)[1][0]
    assert {key: row[key] for key in ("box", "etag", "bytes")} == {"box": [0, 0, 5, 5], "etag": "e", "bytes": 7}
    apply.run(config(_scores().drop_columns(["uri"])))
    assert list(_read(made)[1][0]) == ["image_id"]


def test_csv_scores_decide_as_parquet_ones(config: Callable[..., GateConfig], tmp_path: Path) -> None:
    made = config()
    apply.run(made)
    expected = _read(made)[0]
    path = str(tmp_path / "scores.csv")
    pyarrow.csv.write_csv(pq.read_table(made.scores), path)
    apply.run(config(path))
    assert _read(made)[0] == expected


# ---- scores of elsewhere -------------------------------------------------------------------------------------


def test_scores_without_fingerprints_are_accepted_and_marked(config: Callable[..., GateConfig]) -> None:
    result = apply.run(config(_scores(fingerprint=None)))
    assert (result.stats["source"], result.stats["external"]) == ("external", list(CUTS))
    assert "EXTERNAL: lapv, wavs, brisque" in said.of_gate(result)
    fingerprints = {"fingerprints": {"lapv": "external", "wavs": "f1", "brisque": "f1"}}
    assert apply.run(config(changes=fingerprints)).stats["external"] == ["lapv"]


def _refused(config: GateConfig, *words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        apply.run(config)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
    assert not Path(config.output).exists()


def test_scores_of_another_fingerprint_are_refused(config: Callable[..., GateConfig]) -> None:
    _refused(config(_scores(fingerprint="f2")), "made on lapv f1", "rows of --scores", "lapv f2", "calibrate")


def test_bad_scores_are_refused(config: Callable[..., GateConfig]) -> None:
    _refused(config(_scores().drop_columns(["wavs"])), "lacks the column wavs", "lapv")
    twice = _scores(2, image_id=["a", "a"])
    _refused(config(twice), "stands more than once: 'a' (2 times)")
    _refused(config(_scores(3, lapv=[np.nan, 1.0, 2.0])), "lapv is NaN or infinite in 1 rows")
    _refused(config(_scores(0)), "has no rows")


def test_untrained_methods_need_a_word_and_stay_marked(config: Callable[..., GateConfig]) -> None:
    _refused(config(changes={"untrained": ["wavs"]}), "untrained networks (wavs)", "--allow-untrained")
    result = apply.run(config(changes={"untrained": ["wavs"]}, allow_untrained=True))
    assert result.stats["untrained"] == ["wavs"]
    assert "UNTRAINED: wavs" in said.of_gate(result)


def test_a_finished_output_is_replaced_whole(config: Callable[..., GateConfig]) -> None:
    made = config()
    apply.run(made)
    apply.run(config(_scores(40)))
    decisions, accepted, stats = _read(made)
    assert (len(decisions), stats["rows"]) == (40, 40)
    assert len(accepted) == stats["passed"]
    assert sorted(path.name for path in Path(made.output).iterdir()) == [
        "_config.yaml",
        "_gate_stats.json",
        "accepted.parquet",
        "gate.parquet",
    ]


# ---- our own tables, lazily scored ---------------------------------------------------------------------------


def _lazy_table(folder: Path, rows: list[dict[str, Any]]) -> str:
    writer = tables.Writer(str(folder), list(CUTS), "run", lazy=True)
    common = {"uri": "/u", "status": "ok", "attempts": 1, "run_id": "r", "scored_at": datetime(2026, 1, 1, tzinfo=UTC)}
    filled = []
    for number, row in enumerate(rows):
        states = {f"{name}_state": "ok" if row[name] is not None else "failed:flat" for name in CUTS}
        prints = {f"{name}_fingerprint": "f1" for name in CUTS}
        filled.append({**common, "image_id": f"p{number}", **states, **prints, **row})
    table = pa.Table.from_pylist(filled, schema=writer.schema)
    writer.commit(table, table.slice(0, 0))
    return str(folder)


SKIPPED = {"brisque": None, "brisque_state": "skipped_lazy"}


def test_a_score_that_a_lazy_run_left_out_is_no_failure(config: Callable[..., GateConfig], tmp_path: Path) -> None:
    rows = [
        {"lapv": 20.0, "wavs": 4.0, **SKIPPED},
        {"lapv": 5.0, "wavs": 1.0, **SKIPPED},
        {"lapv": 5.0, "wavs": 4.0, "brisque": 60.0},
        {"lapv": 20.0, "wavs": 4.0, "brisque": None},
    ]
    made = config(_lazy_table(tmp_path / "lazy", rows))
    result = apply.run(made)
    decisions, _, stats = _read(made)
    assert [decisions[f"p{number}"]["passed"] for number in range(4)] == [True, False, False, True]
    assert [decisions[f"p{number}"]["low_brisque"] for number in range(4)] == [None, None, True, True]
    assert (stats["nulls"]["brisque"], stats["skipped"]["brisque"]) == (1, 2)
    assert "2 scores were left out by a lazy run" in said.of_gate(result)


def test_a_left_out_score_that_the_decision_needs_is_an_error(
    config: Callable[..., GateConfig], tmp_path: Path
) -> None:
    rows = [{"lapv": 20.0, "wavs": 4.0, **SKIPPED}, {"lapv": 5.0, "wavs": 4.0, **SKIPPED}]
    made = config(_lazy_table(tmp_path / "lazy", rows))
    _refused(made, "of 1 photographs (such as 'p1')", "qualitygate score --gate")


def test_a_method_that_was_never_asked_is_an_error(config: Callable[..., GateConfig], tmp_path: Path) -> None:
    rows = [{"lapv": 20.0, "wavs": 4.0, "brisque": None, "brisque_state": "not_requested"}]
    _refused(config(_lazy_table(tmp_path / "part", rows)), "1 rows were never scored by brisque", "--backfill")

"""Rows: what is kept of an earlier row, and what each failure becomes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import skimage.data
from PIL import Image

from qualitygate.errors import DeviceLost, ErrorCode, Failure, ImageError
from qualitygate.images.decode import DecodePolicy
from qualitygate.images.photograph import Photograph
from qualitygate.metrics import CATALOGUE
from qualitygate.metrics.metric import Metric, Score, Scorer
from qualitygate.metrics.rows import Plan, Prepared, Request, Row, RowScorer, to_table
from qualitygate.tables import manifest, scores, storage

FOCUS = ("lapv", "lapm")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "camera.png"
    Image.fromarray(skimage.data.camera()).save(path)
    return path


def _score(path: Path, scorer: RowScorer, **request: Any) -> Row:
    asked = Request(image_id="a", uri=str(path), **request)
    row = scorer.row(asked, scorer.fetch(asked))
    complete = {"error_code": None, "error_message": None, "make": None, "model": None, "captured_at": None}
    return complete | row


def test_the_same_bytes_are_not_decoded_again(file: Path) -> None:
    scorer = RowScorer(Plan(metrics=FOCUS), run_id="one")
    first = _score(file, scorer)
    scorer.take_seconds()
    second = _score(file, scorer, previous=first, etag="new")
    assert "decode" not in scorer.take_seconds()
    assert second["etag"] == "new"
    assert {key: second[key] for key in ("lapv", "lapm", "status")} == {
        key: first[key] for key in ("lapv", "lapm", "status")
    }


def test_a_backfill_scores_only_what_is_absent_and_keeps_metrics_it_was_not_asked_for(file: Path) -> None:
    first = _score(file, RowScorer(Plan(metrics=FOCUS), run_id="one"))
    scorer = RowScorer(Plan(metrics=("lapm", "wavs")), run_id="two")
    second = _score(file, scorer, previous=first)
    assert set(scorer.take_seconds()) == {"fetch", "decode", "wavs"}
    assert second["lapv"] == first["lapv"]
    assert second["lapv_fingerprint"] == first["lapv_fingerprint"]
    assert second["wavs_state"] == "ok"
    # It is no photograph of this run, whose bytes are judged as new ones.
    assert (first["run_id"], second["run_id"]) == ("one", "one")


def test_other_bytes_or_another_box_keep_nothing(file: Path, tmp_path: Path) -> None:
    scorer = RowScorer(Plan(metrics=("lapm",)), run_id="two")
    first = _score(file, RowScorer(Plan(metrics=FOCUS), run_id="one"))
    boxed = _score(file, scorer, previous=first, box=[0, 0, 200, 200])
    assert boxed["lapm"] != first["lapm"]
    assert boxed.get("lapv") is None
    other = tmp_path / "other.png"
    Image.fromarray(skimage.data.camera()[:, ::-1]).save(other)
    replaced = _score(other, scorer, previous=first)
    assert replaced["sha256"] != first["sha256"]
    assert replaced.get("lapv") is None
    assert replaced["run_id"] == "two"


def test_scores_survive_a_failure_that_may_pass_and_no_other(file: Path) -> None:
    scorer = RowScorer(Plan(metrics=FOCUS), run_id="two")
    first = _score(file, scorer)
    asked = Request(image_id="a", uri="/u", previous=first)
    assert scorer.row(asked, Failure(ErrorCode.TRANSIENT, "503")) is first
    gone = scorer.row(asked, Failure(ErrorCode.MISSING, "gone"))
    assert (gone["status"], gone["error_code"], gone["lapv"]) == ("error", "missing", None)


def _out_of_memory(*_: object) -> Any:
    raise MemoryError


def test_scores_of_the_same_bytes_stay_and_count_where_their_pixels_cannot_be_had(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _score(file, RowScorer(Plan(metrics=("lapm",)), run_id="one"))
    plan = Plan(metrics=("lapm", "niqe"))
    scorer = RowScorer(plan, run_id="two")
    monkeypatch.setattr("qualitygate.metrics.rows.decode", _out_of_memory)
    row = _score(file, scorer, previous=first)
    assert (row["status"], row["error_code"]) == ("partial", "out_of_memory")
    assert (row["lapm"], row["lapm_state"]) == (first["lapm"], "ok")
    assert (row["niqe"], row["niqe_state"]) == (None, "failed:out_of_memory")
    assert (row["width"], row["height"]) == (512, 512)
    # It is none of those without a score, for --max-error-rate; and the next run tries it again without being asked.
    writer = scores.Writer(str(tmp_path / "out"), plan.metrics, "two")
    writer.commit(to_table([row], writer.schema), writer.schema.empty_table())
    pq.write_table(pa.table({"image_id": ["a"], "uri": [str(file)]}), tmp_path / "m.parquet")
    wanted = manifest.load(str(tmp_path / "m.parquet"), tmp_path / "spool.parquet")
    assert scores.audit(wanted, str(tmp_path / "out"), plan.metrics, complete=True).error_rate == 0
    fingerprints = plan.fingerprints()
    assert scores.write_pending(wanted, writer.table, fingerprints, retry=[], folder=tmp_path / "pending") == 1
    (again,) = pq.read_table(tmp_path / "pending")["previous"].to_pylist()
    monkeypatch.undo()
    assert _score(file, scorer, previous=again)["status"] == "ok"


def test_a_failure_that_may_pass_takes_no_scores_place(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither that of another fingerprint, nor those of the bytes before; a failure that won't pass does."""
    plan = Plan(metrics=FOCUS)
    first = _score(file, RowScorer(plan, run_id="one"))
    other = tmp_path / "other.png"
    Image.fromarray(skimage.data.camera()[:, ::-1]).save(other)
    resized = RowScorer(replace(plan, policy=DecodePolicy(longest_side=256)), run_id="two")
    same = RowScorer(plan, run_id="two")
    monkeypatch.setattr("qualitygate.metrics.rows.decode", _out_of_memory)
    for scorer, path in ((resized, file), (same, other)):
        assert _score(path, scorer, previous=first) == first
        assert _score(path, scorer)["status"] == "error"

    def damaged(*_: object) -> Any:
        raise ImageError(ErrorCode.TRUNCATED, "cut", width=9, height=8)

    monkeypatch.setattr("qualitygate.metrics.rows.decode", damaged)
    row = _score(other, same, previous=first)
    assert (row["status"], row["lapm"], row["error_code"], row["width"]) == ("error", None, "truncated", 9)


def test_a_network_that_kills_twice_is_left_alone_although_formulas_have_scores(file: Path) -> None:
    """As `tables.scores` counts: by the attempts."""
    several = replace(CATALOGUE["wavs"], device="gpu", batched=True)
    scorer = RowScorer(Plan(metrics=("lapm", "wavs")), run_id="two")
    crash = Failure(ErrorCode.WORKER_CRASH, "died")
    row: Row | None = None
    for attempt in (1, 2):
        asked = Request(image_id="a", uri=str(file), previous=row)
        prepared = scorer.prepare(asked, scorer.fetch(asked))
        waiting = Prepared(row=prepared.row, previous=row, waiting=(several,))
        row = {"error_code": None, "error_message": None} | scorer.without_networks(waiting, crash)
        assert (row["status"], row["error_code"], row["attempts"]) == ("partial", "worker_crash", attempt)


def test_attempts_count_failures_in_a_row() -> None:
    scorer = RowScorer(Plan(metrics=FOCUS), run_id="two")
    row: Row | None = None
    for attempt in (1, 2, 3):
        row = scorer.row(Request(image_id="a", uri="/u", previous=row), Failure(ErrorCode.TIMEOUT, "slow"))
        assert row["attempts"] == attempt
        assert row["scored_at"] <= datetime.now(UTC)


def test_a_metric_or_a_decoder_with_a_bug_costs_its_row_alone(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = RowScorer(Plan(metrics=FOCUS), run_id="two")

    def broken(_: Any) -> Any:
        raise ZeroDivisionError("bug")

    def exhausted(_: Any) -> Any:
        raise MemoryError

    scorer._scorers["lapv"] = broken
    row = _score(file, scorer)
    assert (row["status"], row["lapv_state"], row["lapm_state"]) == ("partial", "failed:unsupported", "ok")
    assert "ZeroDivisionError" in row["error_message"]
    scorer._scorers["lapv"] = exhausted
    assert _score(file, scorer)["lapv_state"] == "failed:out_of_memory"

    def full(_: Any) -> Any:
        raise RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED")

    on_a_gpu = RowScorer(Plan(metrics=FOCUS, device="cuda"), run_id="gpu")
    on_a_gpu._scorers["lapv"] = full
    assert _score(file, on_a_gpu)["lapv_state"] == "failed:out_of_memory"
    scorer._scorers["lapv"] = full
    assert _score(file, scorer)["lapv_state"] == "failed:unsupported"
    scorer._scorers["lapv"] = lambda _: [float("nan")]
    row = _score(file, scorer)
    assert (row["lapv"], row["lapv_state"]) == (None, "failed:non_finite")
    monkeypatch.setattr("qualitygate.metrics.rows.decode", broken)
    row = _score(file, scorer)
    assert (row["status"], row["error_code"]) == ("error", "undecodable")


def test_fingerprints_tell_definitions_apart() -> None:
    plain = Plan(metrics=FOCUS).fingerprints()
    assert len({print_ for by_region in plain.values() for print_ in by_region.values()}) == 4
    # What an image may cost changes no score.
    assert plain == Plan(metrics=FOCUS, max_bytes=1).fingerprints()


def test_a_box_has_a_fingerprint_of_its_own(file: Path) -> None:
    scorer = RowScorer(Plan(metrics=("lapm",)), run_id="one")
    expected = Plan(metrics=("lapm",)).fingerprints()["lapm"]
    assert _score(file, scorer)["lapm_fingerprint"] == expected["whole"]
    assert _score(file, scorer, box=[0, 0, 9, 9])["lapm_fingerprint"] == expected["box"]


def test_the_status_is_of_all_metrics_of_the_row_not_only_of_those_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "small.png"
    Image.fromarray(skimage.data.camera()[:60, :60]).save(path)
    first = _score(path, RowScorer(Plan(metrics=("lapm", "niqe")), run_id="one"))
    assert (first["status"], first["error_code"]) == ("partial", "too_small")
    second = _score(path, RowScorer(Plan(metrics=("lapm",)), run_id="two"), previous=first)
    assert (second["status"], second["error_code"]) == ("partial", "too_small")
    assert second["error_message"] == first["error_message"]


def test_a_crash_over_scored_content_keeps_its_scores_and_counts_towards_quarantine(file: Path) -> None:
    first = _score(file, RowScorer(Plan(metrics=("lapm",)), run_id="one"))
    scorer = RowScorer(Plan(metrics=("lapm", "wavs")), run_id="two")
    crash = Failure(ErrorCode.WORKER_CRASH, "died")
    row = first
    for attempt in (1, 2):
        row = scorer.failed_row(Request(image_id="a", uri=str(file), etag=first["etag"], previous=row), crash)
        assert (row["status"], row["error_code"], row["attempts"]) == ("partial", "worker_crash", attempt)
        assert (row["lapm"], row["lapm_state"], row["wavs_state"]) == (first["lapm"], "ok", "failed:worker_crash")
    changed = scorer.failed_row(Request(image_id="a", uri=str(file), etag="new", previous=first), crash)
    assert (changed["status"], changed["lapm"], changed["etag"]) == ("error", None, "new")


def test_a_file_over_the_bound_is_not_read(file: Path) -> None:
    scorer = RowScorer(Plan(metrics=FOCUS, max_bytes=10), run_id="one")
    fetched = scorer.fetch(Request(image_id="a", uri=str(file)))
    assert isinstance(fetched, Failure)
    assert fetched.code is ErrorCode.TOO_LARGE
    assert not isinstance(fetched, storage.Fetched)


def _network(name: str, seen: list[list[int]], *, fails_together: bool = False) -> tuple[Metric, Scorer]:
    """A metric that takes several photographs at once and notes their widths."""

    def score(photographs: Sequence[Photograph]) -> list[Score]:
        seen.append([photograph.width for photograph in photographs])
        if fails_together and len(photographs) > 1:
            raise RuntimeError("too many")
        assert not any(photograph._memo for photograph in photographs)
        return [
            Failure(ErrorCode.TOO_SMALL, "narrow") if photograph.width < 8 else float(photograph.width)
            for photograph in photographs
        ]

    return replace(CATALOGUE["lapm"], name=name, device="gpu", load=lambda _: score), score


@pytest.fixture
def grouping(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[RowScorer, list[list[int]]]]:
    def build(at_once: int, **options: Any) -> tuple[RowScorer, list[list[int]]]:
        seen: list[list[int]] = []
        network, _ = _network("net", seen, **options)
        monkeypatch.setattr("qualitygate.metrics.rows.select", lambda *_: [CATALOGUE["lapm"], network])
        return RowScorer(Plan(metrics=("lapm", "net"), at_once=at_once), run_id="r"), seen

    return build


def _photographs(widths: Sequence[int]) -> list[Photograph]:
    return [Photograph(np.ascontiguousarray(skimage.data.astronaut()[:40, :width])) for width in widths]


@pytest.mark.parametrize(("at_once", "groups"), [(1, [[9], [7], [11]]), (2, [[9, 7], [11]]), (8, [[9, 7, 11]])])
def test_networks_see_several_photographs_at_once_and_rows_keep_their_order(
    grouping: Any, at_once: int, groups: list[list[int]]
) -> None:
    scorer, seen = grouping(at_once)
    prepared = (scorer.prepare_photograph(str(p.width), p) for p in _photographs([9, 7, 11]))
    rows = list(scorer.finished(prepared))
    assert seen == groups
    assert [row["image_id"] for row in rows] == ["9", "7", "11"]
    assert [row["net"] for row in rows] == [9.0, None, 11.0]
    assert [row["status"] for row in rows] == ["ok", "partial", "ok"]
    assert rows[1]["net_state"] == "failed:too_small"
    assert all(row["lapm_state"] == "ok" for row in rows)


def test_a_network_that_raises_for_several_is_asked_one_by_one(grouping: Any) -> None:
    scorer, seen = grouping(4, fails_together=True)
    rows = list(scorer.finished(scorer.prepare_photograph(str(p.width), p) for p in _photographs([9, 10])))
    assert [row["net"] for row in rows] == [9.0, 10.0]
    assert seen == [[9, 10], [9], [10]]


def test_large_photographs_wait_in_smaller_groups(grouping: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qualitygate.metrics.rows._PIXELS_AT_ONCE", 40 * 25)
    scorer, seen = grouping(8)
    list(scorer.finished(scorer.prepare_photograph(str(p.width), p) for p in _photographs([9, 10, 11, 30, 8])))
    assert seen == [[9, 10], [11], [30], [8]]


def test_what_cannot_be_read_waits_for_nobody_and_keeps_its_place(grouping: Any) -> None:
    scorer, seen = grouping(8)
    gone = Request(image_id="gone", uri="/nowhere")
    watched: list[list[str]] = []

    @contextmanager
    def watch(ids: Sequence[str]) -> Iterator[None]:
        watched.append(list(ids))
        yield

    def prepared() -> Iterator[Prepared]:
        yield scorer.prepare(gone, Failure(ErrorCode.MISSING, "gone"))
        first, second = _photographs([9, 10])
        yield scorer.prepare_photograph("9", first)
        yield scorer.prepare(gone, Failure(ErrorCode.MISSING, "gone"))
        yield scorer.prepare_photograph("10", second)

    rows = list(scorer.finished(prepared(), watch))
    assert [row["image_id"] for row in rows] == ["gone", "9", "gone", "10"]
    assert seen == [[9, 10]]
    assert watched == [["9", "10"]]


def test_on_a_gpu_formulas_too_take_several_photographs(monkeypatch: pytest.MonkeyPatch) -> None:
    """And on a CPU one after another; their rows are the same."""
    calls: list[int] = []

    def load(_: object) -> Callable[[Sequence[Photograph]], list[float]]:
        def scorer(photographs: Sequence[Photograph]) -> list[float]:
            calls.append(len(photographs))
            return [float(photograph.rgb[0, 0, 0]) for photograph in photographs]

        return scorer

    metric = replace(CATALOGUE["lapm"], load=load)
    monkeypatch.setattr("qualitygate.metrics.rows.select", lambda *_: [metric])
    photographs = [Photograph(np.full((8, 8, 3), level, np.uint8)) for level in range(5)]
    found = {}
    for device in ("cpu", "cuda"):
        calls.clear()
        scorer = RowScorer(Plan(metrics=("lapm",), device=device, at_once=3), run_id="r")
        prepared = (scorer.prepare_photograph(str(i), photograph) for i, photograph in enumerate(photographs))
        found[device] = [(row["image_id"], row["lapm"], row["status"]) for row in scorer.finished(prepared)]
        assert calls == ([1] * 5 if device == "cpu" else [3, 2])
    assert found["cpu"] == found["cuda"] == [(str(i), float(i), "ok") for i in range(5)]


def test_formulas_may_run_on_the_cores_beside_a_gpu() -> None:
    """One photograph after another as on a CPU, by the same kernels, before the networks have them."""
    plan = Plan(metrics=("niqe", "lapm", "wavs-coef"), device="cuda", formulas="cpu")
    assert not any(metric.takes_several("cuda") for metric in plan.selected())
    assert plan.fingerprints() == replace(plan, formulas="gpu").fingerprints()
    assert [metric.takes_several("cuda") for metric in replace(plan, formulas="gpu").selected()] == [True, True, False]
    (photograph,) = _photographs([20])
    prepared = RowScorer(replace(plan, metrics=("lapm",)), run_id="r").prepare_photograph("a", photograph)
    assert prepared.waiting == ()
    assert (
        prepared.row["lapm"] == RowScorer(Plan(metrics=("lapm",)), run_id="r").photograph_row("a", photograph)["lapm"]
    )


@pytest.mark.parametrize("at_once", [1, 3])
def test_a_lost_gpu_fails_no_photograph_but_the_process(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    calls: list[int] = []

    def scorer(photographs: Sequence[Photograph]) -> list[float]:
        calls.append(len(photographs))
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be reported")

    metric = replace(CATALOGUE["lapm"], load=lambda _: scorer)
    monkeypatch.setattr("qualitygate.metrics.rows.select", lambda *_: [metric])
    rows = RowScorer(Plan(metrics=("lapm",), device="cuda", at_once=at_once), run_id="r")
    photographs = _photographs([9, 10, 11])
    with pytest.raises(DeviceLost, match=r"lost its GPU.*lapm.*illegal memory access") as caught:
        list(rows.finished(rows.prepare_photograph(str(p.width), p) for p in photographs))
    assert "\n" not in str(caught.value)
    assert calls == [at_once], "nothing may be asked of a GPU that is lost"
    # A CPU has none to lose: the same words are that photograph's error.
    on_cpu = RowScorer(Plan(metrics=("lapm",)), run_id="r")
    row = on_cpu.photograph_row("9", photographs[0])
    assert row["error_code"] == ErrorCode.UNSUPPORTED


@pytest.mark.parametrize("kind", [ErrorCode.OUT_OF_MEMORY, None])
def test_halving_is_for_short_memory_alone(kind: ErrorCode | None) -> None:
    """Of a scorer on tensors: what the GPU's loss raises leaves it, however it is wrapped."""
    from qualitygate.metrics import tensors

    calls = []

    def measure(_: Any) -> Any:
        calls.append(1)
        raise RuntimeError("CUDA error: out of memory" if kind else "CUDA error: device-side assert triggered")

    scorer = tensors.BatchScorer(measure, lambda *_: 0.0, lambda _: None, name="x", device="cpu")
    photographs = _photographs([9, 9])
    if kind:
        assert [score.code for score in scorer(photographs) if isinstance(score, Failure)] == [kind, kind]
        return
    with pytest.raises(RuntimeError, match="device-side assert"):
        scorer(photographs)
    assert len(calls) == 1

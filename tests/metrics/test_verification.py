"""Half precision is taken where it was measured to be good enough, and nowhere else."""

import dataclasses
import json
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import skimage.data
import torch

import qualitygate
from qualitygate import cli
from qualitygate.cluster import planning
from qualitygate.config import ScoreConfig, VerifyConfig
from qualitygate.errors import ConfigurationError, DeviceLost, ErrorCode, Failure
from qualitygate.images.decode import DecodePolicy
from qualitygate.metrics import REFERENCE, Execution, Parameters, comparison, compiling, hyperiqa, verification
from qualitygate.metrics.rows import Plan, RowScorer

UNTRAINED = Parameters(untrained=True)
BOUNDS = {"min_srcc": 0.9995, "max_error": 0.005}


def pairs_of(error: float, count: int = 100) -> list[tuple[float, ...]]:
    return [(float(i), i + error * (-1) ** i) for i in range(count)]


# ---- the comparison --------------------------------------------------------------------------------------


def test_small_errors_pass_and_are_given_in_full() -> None:
    verdict = comparison.judged("musiq", "f", pairs_of(0.09), **BOUNDS)
    assert verdict.passed
    assert verdict.reason is None
    assert verdict.spread == pytest.approx(0.9 * 99)
    assert verdict.deviation == pytest.approx(np.arange(100).std())
    assert verdict.largest_error == pytest.approx(0.09)
    assert verdict.error_share == pytest.approx(0.09 / 89.1)
    assert verdict.srcc == pytest.approx(1)


def test_an_error_beyond_the_bound_is_refused() -> None:
    verdict = comparison.judged("musiq", "f", pairs_of(0.49), **BOUNDS)
    assert not verdict.passed
    assert "0.55% of the spread is above 0.50%" in str(verdict.reason)
    assert comparison.judged("musiq", "f", pairs_of(0.49), min_srcc=0.9995, max_error=0.006).passed


def test_changed_ranks_are_refused() -> None:
    verdict = comparison.judged("musiq", "f", pairs_of(1.5), min_srcc=0.9995, max_error=1)
    assert not verdict.passed
    assert "SRCC" in str(verdict.reason)


def test_the_worst_of_several_ways_counts() -> None:
    pairs = [(a, a, b) for a, b in pairs_of(0.49)]
    assert not comparison.judged("musiq", "f", pairs, **BOUNDS).passed


@pytest.mark.parametrize(
    ("pairs", "reason"),
    [
        (pairs_of(0, 49), "49 photographs with a score; 50 or more"),
        ([(1.0, 1.0)] * 60, "don't differ"),
        ([*pairs_of(0), (1.0, Failure(ErrorCode.NON_FINITE, "inf"))], "1 of 101 photographs have a score in float32"),
    ],
)
def test_what_says_nothing_does_not_pass(pairs: Any, reason: str) -> None:
    verdict = comparison.judged("musiq", "f", pairs, **BOUNDS)
    assert not verdict.passed
    assert reason in str(verdict.reason)


def test_photographs_without_a_score_in_float32_are_left_out() -> None:
    failure = Failure(ErrorCode.TOO_SMALL, "strip")
    verdict = comparison.judged("musiq", "f", [*pairs_of(0), (failure, failure)], **BOUNDS)
    assert verdict.passed
    assert verdict.photographs == 100


# ---- the verb --------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for index in range(8):
        crop = skimage.data.astronaut()[30 * index : 30 * index + 60, 100:180, ::-1]
        cv2.imwrite(str(folder / f"{index}.png"), crop)
    (folder / "no.jpg").write_bytes(b"no image")
    return folder


def test_a_forecast_on_a_cpu(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr(comparison, "FEWEST", 8)
    place = tmp_path / "precision.json"
    arguments = ["verify", "--input", str(folder), "--output", str(place), "--metrics", "hyperiqa", "--untrained"]
    with pytest.raises(SystemExit) as ended:
        cli.main([*arguments, "--device", "cpu"])
    assert not ended.value.code
    said = capsys.readouterr().out
    assert "hyperiqa      passed" in said
    assert "8 photographs, 1 could not be read" in said
    record = json.loads(place.read_text())
    assert (record["kind"], record["photographs"], record["unreadable"]) == ("cpu", 8, 1)
    (verdict,) = record["metrics"]
    assert 0 < verdict["error_share"] < 0.005
    assert verdict["fingerprint"] == verification.fast_fingerprints(plan("hyperiqa"), ("hyperiqa",))["hyperiqa"]
    with pytest.raises(ConfigurationError, match="forecast made on a CPU"):
        verification.execution(plan("hyperiqa"), str(place))


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (("lapm",), "lapm: it has one precision, float64"),
        (("musiq",), "musiq can't be computed"),
        (None, "none of the networks' weights are here"),
    ],
)
def test_what_can_not_be_verified_is_refused(folder: Path, tmp_path: Path, monkeypatch, metrics, message: str) -> None:
    monkeypatch.setenv("QUALITYGATE_WEIGHTS", str(tmp_path / "none"))
    config = VerifyConfig(input=str(folder), output=str(tmp_path / "p.json"), metrics=metrics, device="cpu")
    with pytest.raises(ConfigurationError, match=message):
        verification.run(config)


# ---- what a run takes ------------------------------------------------------------------------------------


def plan(*metrics: str, **more: Any) -> Plan:
    return Plan(metrics=metrics, parameters=UNTRAINED, **more)


def verified(tmp_path: Path, *passed: str, refused: str | None = None, by: str = metadata.version("torch")) -> str:
    """A file as a GPU would have it."""
    names = (*passed, *([refused] if refused else []))
    fingerprints = verification.fast_fingerprints(plan(*names), names)
    verdicts = tuple(
        comparison.judged(name, fingerprints[name], pairs_of(2 if name == refused else 0), **BOUNDS) for name in names
    )
    found = verification.Verification(
        device="a GPU",
        kind="cuda",
        torch=by,
        created="2026-01-01T00:00:00Z",
        photographs=100,
        unreadable=0,
        metrics=verdicts,
        **BOUNDS,
    )
    place = str(tmp_path / "precision.json")
    verification.write(found, place)
    assert verification.read(place) == found
    return place


def test_metrics_that_passed_are_fast_and_others_float32_with_a_note(tmp_path: Path) -> None:
    place = verified(tmp_path, "musiq", refused="hyperiqa")
    execution, notes = verification.execution(plan("lapm", "musiq", "hyperiqa", "maniqa"), place)
    assert execution == Execution(fast=("musiq",), gpu="a GPU")
    assert len(notes) == 2
    assert "hyperiqa is computed in float32: half precision failed there: SRCC" in notes[0]
    assert "maniqa is computed in float32: it wasn't verified" in notes[1]


def test_a_file_of_another_torch_is_taken_with_a_note(tmp_path: Path) -> None:
    execution, notes = verification.execution(plan("musiq"), verified(tmp_path, "musiq", by="2.0.1+cu118"))
    assert execution.fast == ("musiq",)
    (note,) = notes
    assert "verified with torch 2.0.1 and" in note
    assert metadata.version("torch").partition("+")[0] in note
    # Nothing is computed by it where nothing passed; and the same version for a CPU or for CUDA is the same.
    _, notes = verification.execution(plan("musiq"), verified(tmp_path, refused="musiq", by="2.0.1"))
    assert not any("verified with torch" in note for note in notes)
    same = metadata.version("torch").partition("+")[0]
    assert verification.execution(plan("musiq"), verified(tmp_path, "musiq", by=f"{same}+cu130"))[1] == []


def test_another_gpu_was_not_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process that scores looks at its own GPU; in float32 and on a CPU there is nothing to compare."""
    execution, _ = verification.execution(plan("hyperiqa"), verified(tmp_path, "hyperiqa"))
    fast = plan("hyperiqa", device="cuda", execution=execution)
    looked_at = []
    monkeypatch.setattr(hyperiqa, "load", lambda *_, **__: lambda _: [])
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: looked_at.append(1) or "another GPU")
    with pytest.raises(ConfigurationError, match=r"verified on 'a GPU', and this GPU is 'another GPU'.*verify"):
        RowScorer(fast, run_id="test")
    assert len(looked_at) == 1
    RowScorer(dataclasses.replace(fast, device="cpu"), run_id="test")
    RowScorer(dataclasses.replace(fast, execution=Execution(gpu="a GPU")), run_id="test")
    assert len(looked_at) == 1
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "a GPU")
    RowScorer(fast, run_id="test")


def test_another_definition_was_not_verified(tmp_path: Path) -> None:
    place = verified(tmp_path, "musiq")
    execution, notes = verification.execution(plan("musiq", policy=DecodePolicy(longest_side=512)), place)
    assert execution.fast == ()
    assert "wasn't verified by this definition" in notes[0]


def test_the_fingerprint_says_what_was_computed() -> None:
    exact = plan("musiq", "lapm", device="cuda")
    fast = dataclasses.replace(exact, execution=Execution(fast=("musiq",)))
    assert fast.definitions()["musiq"]["whole"]["precision"] == "float16"
    assert fast.fingerprints()["musiq"] != exact.fingerprints()["musiq"]
    assert fast.fingerprints()["lapm"] == exact.fingerprints()["lapm"]
    on_cpu = dataclasses.replace(fast, device="cpu")
    assert on_cpu.fingerprints() == exact.fingerprints() == plan("musiq", "lapm").fingerprints()
    compiled = dataclasses.replace(exact, execution=Execution(compiled=True))
    assert compiled.fingerprints() == exact.fingerprints()


def test_formulas_need_no_file() -> None:
    assert verification.execution(plan("lapm", "niqe"), None) == (Execution(), [])


@pytest.mark.parametrize("content", [None, "", "{}", '{"format": "qualitygate precision", "version": 9}', "[1]"])
def test_another_file_is_refused_in_one_line(tmp_path: Path, content: str | None) -> None:
    place = tmp_path / "p.json"
    if content is not None:
        place.write_text(content)
    with pytest.raises(ConfigurationError, match=r"p\.json.*is no file of 'qualitygate verify'") as error:
        verification.execution(plan("musiq"), str(place))
    assert "\n" not in str(error.value)


def scoring(tmp_path: Path, **more: Any) -> ScoreConfig:
    return ScoreConfig(
        input="in", output=str(tmp_path / "out"), metrics=("musiq", "lapm"), untrained=True, precision="fast", **more
    )


def test_a_run_goes_by_the_file(tmp_path: Path) -> None:
    made, notes = planning.plan_scores(scoring(tmp_path, device="cuda", verified=verified(tmp_path, "musiq")))
    assert made.execution.fast == ("musiq",)
    assert made.definitions()["musiq"]["whole"]["precision"] == "float16"
    assert not any("float32" in note for note in notes)
    with pytest.raises(ConfigurationError, match=r"needs --verified FILE.*musiq"):
        planning.plan_scores(scoring(tmp_path, device="cuda"))
    with pytest.raises(ConfigurationError, match="add --device cuda"):
        planning.plan_scores(scoring(tmp_path, verified=verified(tmp_path, "musiq")))
    with pytest.raises(ConfigurationError, match="pyiqa computes in its own"):
        planning.plan_scores(
            scoring(tmp_path, device="cuda", backend="pyiqa").model_copy(update={"metrics": ("brisque",)})
        )


@pytest.mark.parametrize(("fails", "passed"), [(False, True), (True, False)])
def test_a_network_whose_compiled_way_ran_interpreted_does_not_pass(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool, passed: bool
) -> None:
    """The scorers stand in for a network's, loaded for a GPU; the compiled one is torch's, by a backend of the test."""

    def backend(graph: Any, inputs: Any) -> Any:
        if fails:
            raise RuntimeError("no compiler here")
        return graph

    def load(metric: Any, execution: Execution) -> Any:
        def mean(pixels: torch.Tensor) -> torch.Tensor:
            return pixels.double().mean()

        if execution.compiled:
            mean = compiling.Compiled(mean, metric.name, dynamic=False, backend=backend)  # type: ignore[arg-type, assignment]
        return lambda photographs: [float(mean(torch.from_numpy(one.rgb))) for one in photographs]

    def select(names: Any, *, parameters: Any, execution: Execution = REFERENCE) -> Any:
        found = real(names, parameters=parameters, execution=execution)
        return [dataclasses.replace(one, load=lambda _, one=one: load(one, execution)) for one in found]

    real = verification.select
    torch._dynamo.reset()
    monkeypatch.setattr(comparison, "FEWEST", 8)
    monkeypatch.setattr(verification, "select", select)
    monkeypatch.setattr(verification, "_device", lambda _: ("cuda", "a GPU"))
    monkeypatch.setenv(compiling.CACHE_VARIABLE, str(tmp_path / "compiled"))
    place = str(tmp_path / "p.json")
    config = VerifyConfig(input=str(folder), output=place, metrics=("hyperiqa",), untrained=True)
    (verdict,) = verification.run(config).metrics
    assert verdict.passed == passed
    if fails:
        assert str(verdict.reason).startswith("it was verified interpreted only, because compiled it failed (")
        assert "no compiler here" in str(verdict.reason)


def test_long_runs_on_gpus_are_compiled() -> None:
    pool = planning.Pool(workers=2, cpus_per_worker=1, gpus_per_worker=1, batch_size=32, task=256)
    on_gpu = plan("musiq", device="cuda", execution=Execution(fast=("musiq",)))
    assert planning.compiled(on_gpu, pool, 10**6).execution == Execution(fast=("musiq",), compiled=True)
    assert planning.compiled(on_gpu, pool, 1000) == on_gpu
    assert planning.compiled(plan("musiq"), pool, 10**6) == plan("musiq")


def test_a_gpu_that_is_lost_while_verifying_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be reported")

    monkeypatch.setattr(verification, "_run", lost)
    with pytest.raises(
        DeviceLost, match=r"lost its GPU, as noticed by verify .*illegal memory access.*dmesg"
    ) as caught:
        verification.run(VerifyConfig(input="i", output="o"))
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:there is no CUDA device")
def test_in_process_without_a_gpu_fast_is_float32_and_says_so(tmp_path: Path) -> None:
    place = verified(tmp_path, "hyperiqa")
    pixels = np.ascontiguousarray(skimage.data.astronaut()[:60, :70])
    more: dict[str, Any] = {"untrained": True, "device": "auto"}
    (fast,) = qualitygate.score(pixels, "hyperiqa", precision="fast", verified=place, **more).to_pylist()
    (exact,) = qualitygate.score(pixels, "hyperiqa", **more).to_pylist()
    import torch

    if not torch.cuda.is_available():
        assert fast["hyperiqa_fingerprint"] == exact["hyperiqa_fingerprint"]
        assert fast["hyperiqa"] == exact["hyperiqa"]
    with pytest.raises(ConfigurationError, match="--verified FILE"):
        qualitygate.score(pixels, "hyperiqa", precision="fast", **more)

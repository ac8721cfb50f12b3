"""What holds for every metric computed here: typed answers, and the same bits whatever surrounds an image."""

import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pytest

from qualitygate import metrics
from qualitygate.errors import ConfigurationError, ErrorCode, Failure
from qualitygate.images.photograph import Photograph
from qualitygate.metrics import CATALOGUE, PAPER, catalogue, compiled, default_names, loading, select

CLASSICAL = ["lapv", "lapm", "wavs", "brisque", "niqe"]
VARIANTS = ["lapv-cv2", "wavs-coef"]


@pytest.fixture(scope="module")
def scorers():
    return {metric.name: metric.load("cpu") for metric in select(CLASSICAL + VARIANTS)}


def test_every_entry_is_named_as_its_key_and_says_what_it_is():
    for name, metric in CATALOGUE.items():
        assert metric.name == name
        assert metric.version >= 1
        assert metric.reference
        assert metric.unit
        assert metric.code_license
        # An absent network's parameters have a licence all the same.
        assert metric.parameters_sha256() is None or metric.weights_license is not None
        assert (metric.weights_license is None) == (name.split("-")[0] in ("lapv", "lapm", "wavs"))


def test_directions_are_those_of_the_papers():
    better = {name: CATALOGUE[name].direction for name in CLASSICAL + VARIANTS}
    assert {name for name, direction in better.items() if direction == "lower"} == {"brisque", "niqe"}


def test_the_catalogue_imports_nothing_heavy():
    heavy = ["numba", "scipy", "torch", "pywt", "cv2", "pyiqa", "ray"]
    code = f"import sys, qualitygate.metrics; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_select_keeps_the_order_and_drops_duplicates():
    assert [metric.name for metric in select(["niqe", "lapv", "niqe", "wavs-coef"])] == [
        "niqe",
        "lapv",
        "wavs-coef",
    ]


@pytest.mark.parametrize(("wrong", "meant"), [("nique", "niqe"), ("LAPV", "lapv"), ("brisk", "brisque")])
def test_an_unknown_name_gets_a_suggestion(wrong, meant):
    with pytest.raises(ConfigurationError, match=rf"unknown metric '{wrong}'; did you mean .*{meant}") as raised:
        select(["lapm", wrong])
    assert "\n" not in str(raised.value)


def test_a_name_like_no_other_gets_the_list():
    with pytest.raises(ConfigurationError, match="The metrics are lapv, lapm, wavs"):
        select(["xyz"])


def test_an_unknown_backend_is_refused():
    with pytest.raises(ConfigurationError, match="choose one of native, pyiqa"):
        catalogue("matlab")  # type: ignore[arg-type]


def test_defaults_are_those_of_the_papers_eight_that_can_be_loaded(monkeypatch):
    names, skipped = default_names()
    assert names[:5] == CLASSICAL
    assert set(names) | set(skipped) <= set(PAPER)
    monkeypatch.setattr(metrics.scene_statistics, "_missing", lambda name: f"{name} is gone")
    names, skipped = default_names()
    assert "niqe" not in names
    assert skipped["niqe"] == "live_niqe.json is gone"


def test_every_score_is_finite_or_a_typed_failure(scorers, edges):
    for name, scorer in scorers.items():
        scores = scorer(list(edges.values()))
        assert len(scores) == len(edges)
        lowest, _ = CATALOGUE[name].range
        for edge, score in zip(edges, scores, strict=True):
            if isinstance(score, Failure):
                assert score.code in {ErrorCode.TOO_SMALL, ErrorCode.FLAT, ErrorCode.NON_FINITE}, (name, edge)
                assert score.message
            else:
                assert type(score) is float, (name, edge)
                assert math.isfinite(score), (name, edge)
                assert lowest is None or score >= lowest


def test_no_photographs_give_no_scores(scorers):
    assert all(scorer([]) == [] for scorer in scorers.values())


def test_no_memory_for_one_photograph_is_its_failure_alone(edges):
    def score(photograph):
        if photograph.width == 2:
            raise MemoryError
        return 1.0

    scorer = loading.one_by_one(score)("cpu")
    first, second = scorer([edges["1x2"], edges["1x1"]])
    assert first.code is ErrorCode.OUT_OF_MEMORY
    assert second == 1.0


@pytest.fixture(scope="module")
def mixed(clean, edges):
    """Photographs of many sizes, made anew so that nothing computed before is reused."""
    random = np.random.default_rng(11)
    pixels = [*clean.values(), *(photograph.rgb for photograph in edges.values())]
    pixels += [random.integers(0, 256, (97 + 13 * k, 301 - 11 * k, 3), dtype=np.uint8) for k in range(6)]
    return lambda: [Photograph(each) for each in pixels]


@pytest.fixture(scope="module")
def alone(scorers, mixed):
    return {name: [scorer([photograph])[0] for photograph in mixed()] for name, scorer in scorers.items()}


def test_a_score_is_the_same_in_a_batch_and_in_any_order(scorers, mixed, alone):
    order = np.random.default_rng(5).permutation(len(mixed()))
    for name, scorer in scorers.items():
        assert scorer(mixed()) == alone[name]
        photographs = mixed()
        shuffled = scorer([photographs[index] for index in order])
        assert shuffled == [alone[name][index] for index in order]


def test_a_score_is_the_same_whichever_metric_came_first(scorers, mixed, alone):
    for names in (list(scorers), list(scorers)[::-1]):
        photographs = mixed()
        found = {name: scorers[name](photographs) for name in names}
        assert found == alone


def test_a_score_is_the_same_from_many_threads_at_once(scorers, mixed, alone):
    with ThreadPoolExecutor(4) as pool:
        futures = {
            (name, round_): pool.submit(scorer, mixed()) for round_ in range(2) for name, scorer in scorers.items()
        }
        for (name, _), future in futures.items():
            assert future.result() == alone[name]


SUMS = """
import numpy as np
from qualitygate.images.photograph import Photograph
from qualitygate.metrics import focus, scene_statistics as scenes
pixels = np.random.default_rng(2).integers(0, 256, (211, 305, 3), dtype=np.uint8)
pixels[:100, :100] //= 16
photograph = Photograph(pixels)
luma = scenes.shared_luma(photograph)
values = [focus.lapv(photograph), focus.lapm(photograph), focus.wavs(photograph)]
values += scenes.brisque_sums(luma, 1.0).ravel().tolist() + scenes.niqe_features(luma).ravel().tolist()
print(" ".join(float(value).hex() for value in values))
"""


def test_kernels_give_the_same_bits_on_a_plain_cpu(tmp_path):
    """Compiled without the vectors and fused multiply-adds of this CPU, as for the oldest of its kind."""
    plain = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": str(tmp_path)}
    outputs = [
        subprocess.run(
            [sys.executable, "-c", SUMS], capture_output=True, text=True, check=True, env=os.environ | extra
        ).stdout
        for extra in ({}, plain)
    ]
    assert len(outputs[0].split()) > 100
    assert outputs[0] == outputs[1]


def test_a_kernel_that_cannot_be_cached_is_compiled_all_the_same(monkeypatch, caplog):
    njit = numba.njit

    def refuses_to_cache(*signatures, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(*signatures, **options)

    monkeypatch.setattr(compiled.numba, "njit", refuses_to_cache)
    doubled = compiled.compiled("f8(f8)")(lambda value: 2 * value)
    assert doubled(21.0) == 42.0
    assert "not cached" in caplog.text

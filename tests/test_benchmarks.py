"""The benchmarks run and print their tables; what they measure is not looked at."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from job_helpers import write_photographs

from qualitygate.errors import ErrorCode, Failure
from qualitygate.metrics import nvjpeg

ROOT = Path(__file__).parents[1]


def run(script: str, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "benchmarks" / script), *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def rows(text: str, title: str) -> list[list[str]]:
    """The cells of the table under a line that begins with `title`, heads first."""
    lines = text.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith(title))
    found = []
    for line in lines[start + 1 :]:
        if line.startswith("|"):
            found.append([cell.strip() for cell in line.strip("|").split("|")])
        elif found:
            break
    assert all(len(row) == len(found[0]) for row in found)
    return [found[0], *found[2:]]


def test_gpu_scores_has_its_tables() -> None:
    text = run("gpu_scores.py", "--quick", "--no-reference", "--metrics", "lapm,wavs,niqe,musiq")
    assert "These figures say nothing" in text
    assert "torch " in text.splitlines()[0]
    heads, *measured = rows(text, "128 x 128")
    assert heads[0] == "metric"
    names = [row[0] for row in measured]
    assert names[:4] == ["lapm", "wavs", "niqe", "musiq"]
    assert any("the gate's three" in name for name in names)
    for row in measured:
        assert float(row[heads.index("float32")].replace(",", "")) > 0
        assert float(row[heads.index("fast")].replace(",", "")) > 0
    assert [row[0] for row in rows(text, "Agreement")[1:]] == names[:4]
    assert [row[0] for row in rows(text, "Sizes")[1:]] == ["mixed", "96"]
    heads, core, other = rows(text, "Decode, 128 x 128")
    assert heads == ["decoder", "rate", "to one core"]
    assert float(core[1].replace(",", "")) > 0
    assert float(other[1].replace(",", "")) > 0
    assert "Between the two, largest difference over 2 photographs: pixels " in text
    assert [row[0] for row in rows(text, "Channel attention")[1:]] == [
        "two products around a softmax, as it is",
        "one fused kernel",
    ]
    # A run that is cut short has the memory on mixed sizes.
    assert text.index("| mixed |") < text.index("128 x 128, float32 and fast") < text.index("Agreement")


@pytest.fixture
def gpu_scores(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu_scores

    return gpu_scores


def settings(script: Any) -> Any:
    return script.Settings(
        device="cpu",
        names=("lapm",),
        side=64,
        count=4,
        few=2,
        seconds=0,
        sizes={"64": [(64, 64)] * 4},
        agreeing=[],
        with_reference=False,
    )


def without_memory(photographs: list[Any]) -> list[Failure]:
    return [Failure(ErrorCode.OUT_OF_MEMORY, "no memory") for _ in photographs]


def test_gpu_scores_takes_no_failure_for_a_photograph_scored(
    gpu_scores: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    few, clock = settings(gpu_scores), gpu_scores.Clock(1)
    scorers = {"lapm": without_memory}
    gpu_scores.sizes_table(few, few.sizes, scorers, gpu_scores.FAST, clock)
    ways = (gpu_scores.EXACT, gpu_scores.FAST)
    loaded = {way.title: scorers for way in ways}
    gpu_scores.rates_table(few, ways, loaded, gpu_scores.References(few, clock), clock, 1.0)
    text = capsys.readouterr().out
    assert rows(text, "Sizes, fast")[1] == ["64", "4 of 4 failed: out_of_memory (-)"]
    _, (_, _, _, exact, fast, ratio, *_) = rows(text, "64 x 64, float32 and fast")
    assert exact == fast == "4 of 4 failed: out_of_memory"
    assert ratio == "-"
    some = gpu_scores.measure(lambda: [[1.0, 1.0], [2.0, *without_memory([0])]], 2, "cpu", clock, 0)
    assert (some.best, some.failed) == (None, "1 of 2 failed: out_of_memory")


@pytest.mark.parametrize(
    ("found", "said"),
    [(without_memory, "out_of_memory"), (lambda files: [None] * len(files), "undecodable")],
)
def test_gpu_scores_goes_on_where_nothing_is_decoded_on_the_gpu(
    gpu_scores: Any, found: Any, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(nvjpeg.GpuDecoder, "__call__", lambda self, files: found(files))
    gpu_scores.decode_table(settings(gpu_scores), {"lapm": without_memory}, gpu_scores.Clock(1))
    text = capsys.readouterr().out
    _, core, other = rows(text, "Decode, 64 x 64")
    assert float(core[1].replace(",", "")) > 0
    assert other[1:] == [f"4 of 4 failed: {said}", "-"]
    assert "nothing to compare" in text


def test_gpu_scores_makes_no_pictures_without_time(
    gpu_scores: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_scores, "made_up", lambda *_: pytest.fail("made a picture"))
    few, over = settings(gpu_scores), gpu_scores.Clock(0)
    loaded = {"lapm": without_memory}
    gpu_scores.sizes_table(few, few.sizes, loaded, gpu_scores.FAST, over)
    gpu_scores.rates_table(few, (gpu_scores.FAST,), {"fast": loaded}, gpu_scores.References(few, over), over, 1.0)
    gpu_scores.decode_table(few, loaded, over)
    text = capsys.readouterr().out
    assert rows(text, "Sizes, fast")[1] == ["64", "-"]
    assert "Without decoding: no time is left" in text


needs_pyiqa = pytest.mark.skipif(importlib.util.find_spec("pyiqa") is None, reason="needs pyiqa, the extra reference")


@needs_pyiqa
@pytest.mark.parametrize(
    "absent", ["einops,requests", "scipy.io,requests"], ids=["what is stood in for", "what is not"]
)
def test_gpu_scores_says_at_its_start_what_pyiqa_lacks(absent: str) -> None:
    """As where it was installed without its dependencies."""
    code = (
        f"import runpy, sys; sys.modules.update(dict.fromkeys({absent!r}.split(',')))\n"
        "sys.argv = ['gpu_scores.py', '--quick', '--metrics', 'niqe']\n"
        "sys.path.insert(0, 'benchmarks'); runpy.run_path('benchmarks/gpu_scores.py', run_name='__main__')"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert finished.returncode == 0, finished.stderr
    before, measured = finished.stdout.split("Dense products")
    heads, niqe = rows(measured, "128 x 128")
    theirs = niqe[heads.index("pyiqa, one at a time")]
    if "einops" in absent:
        assert "pyiqa imports einops and requests, absent here" in before
        assert float(theirs.replace(",", "")) > 0
    else:
        assert "Without the other side: pyiqa can't be used here: ModuleNotFoundError" in before
        assert "scipy.io" in before
        assert theirs == "-"


# Those of pyiqa's MANIQA.
REARRANGED = (
    ((2, 12, 5), "b (h w) c -> b c (h w)"),
    ((2, 5, 12), "b c (h w) -> b c h w"),
    ((2, 5, 3, 4), "b c h w -> b c (h w)"),
    ((2, 5, 3, 4), "b c h w -> b (h w) c"),
    ((2, 12, 5), "b (h w) c -> b c h w"),
)


@pytest.mark.parametrize(("shape", "pattern"), REARRANGED)
def test_what_stands_in_for_einops_does_the_same(gpu_scores: Any, shape: tuple[int, ...], pattern: str) -> None:
    einops = pytest.importorskip("einops", reason="einops comes with pyiqa, the extra reference")
    x = torch.arange(float(torch.Size(shape).numel())).view(shape)
    ours = gpu_scores.stand_ins.rearrange
    assert torch.equal(ours(x, pattern, h=3, w=4), einops.rearrange(x, pattern, h=3, w=4))
    assert torch.equal(ours(x, pattern, h=3), einops.rearrange(x, pattern, h=3))


def test_what_stands_in_is_gone_afterwards(gpu_scores: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "einops", None)
    with gpu_scores.stand_ins.for_pyiqa() as absent:
        assert "einops" in absent
        import einops

        assert einops.rearrange is gpu_scores.stand_ins.rearrange
    assert "einops" not in sys.modules


def test_gpu_scores_needs_neither_ray_nor_delta() -> None:
    code = (
        "import sys; sys.path.insert(0, 'benchmarks'); import gpu_scores; "
        "bad = {'ray', 'deltalake', 'duckdb', 'numba', 'pyarrow', 'pydantic'} & set(sys.modules); "
        "sys.exit(f'imported {bad}' if bad else 0)"
    )
    finished = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def test_memory_has_a_row_and_its_peak() -> None:
    text = run("memory.py", "--metrics", "lapm,niqe", "--megapixels", "0.02,0.03")
    heads, row = rows(text, "CPU")
    cells = dict(zip(heads, row, strict=True))
    assert cells["metrics"] == "lapm, niqe"
    above, peak = (float(cells[f"process {where}, GiB"]) for where in ("above its start", "at its peak"))
    assert peak >= above >= 0
    assert peak > 0.05
    assert cells["failed"] == "0"


def test_memory_tells_of_photographs_without_a_score() -> None:
    text = run("memory.py", "--metrics", "lapm,niqe", "--megapixels", "0.02,0.002,0.001")
    heads, row = rows(text, "CPU")
    assert row[heads.index("failed")] == "**2 of 3**"
    assert "The first failure of each: niqe: too_small: " in text


def test_the_lazy_gate_has_both_sides_and_asks_for_less() -> None:
    text = run("lazy.py", "--count", "12", "--side", "64", "--rounds", "1", "--open", "0.25")
    heads, full, lazily = rows(text, "12 photographs of 64 x 64; MUSIQ asked for 3 of them")
    assert (heads[0], full[0], lazily[0]) == ("the gate's three", "in full", "lazily")
    assert full[2] == "1.00"


def test_the_lazy_gate_names_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import lazy

    facts = SimpleNamespace(name="NVIDIA H100 80GB HBM3", total_memory=80 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: facts)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert lazy.hardware("cuda").startswith("NVIDIA H100 80GB HBM3, 80 GiB, CUDA ")
    assert lazy.hardware("cpu") in lazy.hardware("cuda")


@pytest.mark.cluster
def test_the_pipeline_has_the_pool_and_the_job(tmp_path: Path) -> None:
    write_photographs(tmp_path, 24)
    arguments = ("--input", str(tmp_path), "--count", "24", "--rounds", "1", "--workers", "2", "--metrics", "lapm")
    heads, pool, job = rows(run("pipeline.py", *arguments), "24 photographs, lapm")
    assert (pool[0], job[0]) == ("bare process pool", "Ray job")
    assert pool[heads.index("ratio")] == "1.00"
    assert float(job[1]) > 0


@pytest.mark.cluster
def test_nightly_has_its_table() -> None:
    text = run("nightly.py", "--count", "40", "--new", "0.05")
    heads, *measured = rows(text, text.splitlines()[0])
    assert len(heads) == 4
    found = {row[0]: row[1:] for row in measured}
    assert found["photographs scored"] == ["40", "2", "5.0%"]
    added = [found[name] for name in found if name.startswith("files added: ")]
    assert [sum(int(row[column]) for row in added) for column in (0, 1)] == [
        int(cell) for cell in found["files added in all"][:2]
    ]
    assert int(found["files added in all"][1]) <= 20

"""The benchmarks run and print their tables; what they measure is not looked at."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from job_helpers import write_photographs

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
    (row,) = rows(text, "CPU")[1:]
    assert row[0] == "lapm, niqe"
    assert float(row[3]) >= float(row[2]) >= 0
    assert float(row[3]) > 0.05


def test_the_lazy_gate_has_both_sides_and_asks_for_less() -> None:
    text = run("lazy.py", "--count", "12", "--side", "64", "--rounds", "1", "--open", "0.25")
    heads, full, lazily = rows(text, "12 photographs of 64 x 64; MUSIQ asked for 3 of them")
    assert (heads[0], full[0], lazily[0]) == ("the gate's three", "in full", "lazily")
    assert full[2] == "1.00"


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

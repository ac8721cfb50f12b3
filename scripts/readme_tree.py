"""Writes the section "Every file" of README.md: each module with the first line of its docstring.

python scripts/readme_tree.py          # rewrites the section
python scripts/readme_tree.py --check  # exit code 1 when it isn't up to date
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = (".ci", "jobs", "manifests", "qualitygate", "scripts", "benchmarks", "docs", "tests")
WIDTH = 120
# What can't speak for itself. A folder's line stands for the files in it that have none.
SAID = {
    ".ci/run": "continuous integration: a browser, make test",
    ".dockerignore": "what the images' build sees: what it copies",
    ".gitignore": "what is made, not written",
    "CHANGELOG.md": "what changed",
    "Dockerfile": "the images for CPUs and GPUs",
    "LICENSE": "Apache-2.0",
    "Makefile": "the two commands, and lint, format, constraints, clean",
    "README.md": "this page",
    "THIRD_PARTY_NOTICES.md": "whose parameters and libraries are used, and their terms",
    "benchmarks": "each prints a ratio against a reference measured in the same run",
    "cluster.yaml": "a Ray cluster on AWS, for `ray up`",
    "constraints.txt": "every version that is installed",
    "docs": "why and how, by subject",
    "docs/architecture.md": "layers, fingerprints, error codes, bounds",
    "docs/calibration.md": "how a line is found, what its statuses and numbers mean",
    "docs/decisions": "why things are as they are, one short file each",
    "docs/deployment.md": "images, `ray up`, Kubernetes; what of it is tested",
    "docs/metrics.md": "each metric: formula, source, licence, known failures",
    "docs/robustness.md": "Table 1, effect sizes, and the rule that chooses methods",
    "docs/study.md": "the training study: subsets, tables, verdicts",
    "docs/training.md": "the baseline classifier and its predictions",
    "jobs": "one thin script a job, for `ray job submit`",
    "manifests": "what a manifest looks like, weights, studies, Kubernetes",
    "manifests/datasets/README.md": "a manifest's columns, types, examples",
    "manifests/datasets/printed_codes.yaml": "the embedded data set: names, sizes, columns",
    "manifests/kubernetes": "a RayJob for each job, and what they need around them",
    "manifests/kubernetes/configuration.yaml": "each job's settings, and the environment",
    "manifests/kubernetes/namespace.yaml": "the project's namespace and the most that it may hold",
    "manifests/kubernetes/nightly.yaml": "the CronJob of the nightly job, and what it may do",
    "manifests/kubernetes/nightly-rayjob.yaml": "the RayJob that it creates",
    "manifests/kubernetes/network-policy.yaml": "who reaches Ray's pods",
    "manifests/kubernetes/service-account.yaml": "the identity of Ray's pods",
    "manifests/studies/paper.yaml": "the paper's seventy runs",
    "manifests/weights.yaml": "link to qualitygate/metrics/weights.yaml",
    "pyproject.toml": "package, dependencies and extras, tools, layers",
    "qualitygate": "the package",
    "qualitygate/calibration": "from scores and predictions to the line",
    "qualitygate/cluster": "the only part that imports Ray",
    "qualitygate/images": "bytes to pixels, and pixels made or changed",
    "qualitygate/images/formats": "one strict reader a file format",
    "qualitygate/metrics": "pixels to scores",
    "qualitygate/metrics/parameters": "LIVE's parameters of BRISQUE and NIQE, and their notice",
    "qualitygate/metrics/weights.yaml": "which weights there are: names, addresses, published hashes, licences",
    "qualitygate/py.typed": "tells type checkers that there are types",
    "qualitygate/report": "what a person looks at",
    "qualitygate/report/templates": "the page",
    "qualitygate/tables": "what is stored",
    "qualitygate/training": "classifiers, and the study of what to train them on",
    "scripts": "run by developers",
    "scripts/opencv_python_stub": "keeps opencv-python out, which needs libGL",
    "tests": "mirrors qualitygate/",
}
# Folders whose files are named without a line each.
NAMED_ONLY = ("tests", "docs/decisions", "qualitygate/images/formats", "qualitygate/metrics/parameters",
              "qualitygate/report/templates", "scripts/opencv_python_stub")  # fmt: skip


def files() -> list[str]:
    """Files that belong to the repository: tracked, or new and not ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    return sorted({name for name in listed if (ROOT / name).exists() and name != ".venv"})


def first_line(path: Path) -> str:
    """The first line of a module's docstring, without its full stop."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.split("\n\n")[0].replace("\n", " ").rstrip(".") if docstring else "marks the package"


def tree() -> str:
    """The section's lines."""
    names = files()
    lines = [_line(name, 0, SAID.get(name, "")) for name in names if "/" not in name]
    for folder in FOLDERS:
        lines += _folder(folder, names, 0)
    return "\n".join(lines) + "\n"


def _folder(folder: str, names: list[str], depth: int) -> list[str]:
    lines = [_line(f"{folder.rpartition('/')[2]}/", depth, SAID.get(folder, ""))]
    inside = [name for name in names if name.startswith(f"{folder}/")]
    here = [name for name in inside if "/" not in name.removeprefix(f"{folder}/")]
    if folder.startswith(NAMED_ONLY):
        lines += _wrapped([name.rpartition("/")[2] for name in here], depth + 1)
    else:
        for name in here:
            said = first_line(ROOT / name) if name.endswith(".py") else SAID.get(name, "")
            lines.append(_line(name.rpartition("/")[2], depth + 1, said))
    below = sorted({name.removeprefix(f"{folder}/").split("/")[0] for name in inside if name not in here})
    for child in below:
        lines += _folder(f"{folder}/{child}", names, depth + 1)
    return lines


def _line(name: str, depth: int, said: str) -> str:
    room = WIDTH - 32
    if len(said) > room:
        # To the end of a clause that fits, if one does.
        ends = [found.start() for found in re.finditer(r"[,:;.] ", said[: room + 1])]
        said = said[: ends[-1]] if ends and ends[-1] > room // 3 else said[: room - 3].rsplit(" ", 1)[0] + " ..."
    return (f"{'  ' * depth}{name}".ljust(32) + said).rstrip()


def _wrapped(names: list[str], depth: int) -> list[str]:
    lines, current = [], "  " * depth
    for name in names:
        if len(current) + len(name) + 2 > WIDTH:
            lines.append(current.rstrip())
            current = "  " * depth
        current += f"{name}  "
    return [*lines, current.rstrip()] if current.strip() else lines


def written(readme: str) -> str:
    """README's text with the section as it should be."""
    before, _, rest = readme.partition("## Every file\n")
    _, _, after = rest.partition("## Licence")
    return f"{before}## Every file\n\n```\n{tree()}```\n\n## Licence{after}"


def main() -> int:
    """Rewrite, or check with --check."""
    path = ROOT / "README.md"
    readme = path.read_text(encoding="utf-8")
    wanted = written(readme)
    if "--check" in sys.argv:
        if readme != wanted:
            print("README.md's tree isn't up to date: run 'make tree'")
        return int(readme != wanted)
    path.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

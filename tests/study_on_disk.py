"""A study's inputs on disk: small labelled photographs, their scores by two methods, and a gate that both vote in."""

from pathlib import Path
from typing import Any

import labelled_photographs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qualitygate.calibration import gate

CUTOFFS = {"sharp": ("higher", 0.0), "distance": ("lower", 0.0)}


def write(folder: Path, count: int = 96, *, side: int = 24, seed: int = 0) -> dict[str, str]:
    """Photographs, half of them of low quality by both methods; returns --manifest, --scores and --gate."""
    manifest = labelled_photographs.write(folder / "photographs", count, side=side)
    names = pq.read_table(manifest)["image_id"].to_pylist()
    random = np.random.default_rng(seed)
    quality = random.permutation(np.linspace(-1, 1, count))
    pq.write_table(
        pa.table({"image_id": names, "sharp": quality, "distance": -quality + 0.01 * random.normal(size=count)}),
        folder / "scores.parquet",
    )
    (folder / "gate.json").write_bytes(gate.dump(gate_content()))
    return {"manifest": str(manifest), "scores": str(folder / "scores.parquet"), "gate": str(folder / "gate.json")}


def gate_content() -> dict[str, Any]:
    """A gate of two methods, of which two low votes reject."""
    methods = {
        name: {"direction": direction, "status": "ok", "reason": None, "cutoff": cutoff}
        for name, (direction, cutoff) in CUTOFFS.items()
    }
    content: dict[str, Any] = {
        "format": gate.FORMAT,
        "version": gate.VERSION,
        "votes_needed": 2,
        "methods": methods,
        "fingerprints": dict.fromkeys(methods, "external"),
        "untrained": [],
    }
    return {**content, "id": gate.identity(content)}

"""What the page's script knows of each photograph it shows, as one table of JSON without pictures twice."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from qualitygate.report import records, thumbnails, wording
from qualitygate.report.selection import Photographs, Selection, goodness
from qualitygate.tables import storage

_TEXTS = ("image_id", "label", "predicted", "group", "stratum")


def sources(
    rows: Photographs, chosen: Selection, places: Mapping[str, tuple[str | None, Any]]
) -> dict[int, thumbnails.Source]:
    """Where to read the chosen photographs. places: (uri, box) by image_id, for tables that don't say."""
    uris, boxes, ids = rows.column("uri"), rows.column("box"), rows.column("image_id")
    detailed = set(chosen.gallery())
    found = {}
    for row in chosen.every():
        uri, box = places.get(ids[row], (None, None))
        box = boxes[row] or box
        found[row] = thumbnails.Source(
            uri=uris[row] or uri, box=tuple(box) if box is not None else None, detailed=row in detailed
        )
    return found


def table(
    rows: Photographs,
    chosen: Selection,
    gate: records.Gate,
    encoded: thumbnails.Encoded | None,
    untrained: frozenset[str],
) -> dict[str, Any]:
    """Each chosen photograph's facts, by row number; pictures are data URIs, absent without photographs.

    Those of the gallery stand in the page's HTML, where they need no script; here are the others, and the middles.
    """
    texts = {name: rows.column(name) for name in _TEXTS}
    uris, tops = rows.column("uri"), rows.column("top1")
    votes, passed = rows.column("votes_low"), rows.column("passed")
    facts = {}
    for row in chosen.every():
        facts[row] = {
            **{name: None if values[row] is None else wording.safe(str(values[row])) for name, values in texts.items()},
            "uri": storage.without_secrets(uris[row]) if uris[row] else None,
            "correct": bool(rows.correct[row]),
            "confidence": _rounded(rows.confidence[row]),
            "top1": _rounded(tops[row]),
            "votes": votes[row],
            "passed": passed[row],
            "scores": [_rounded(rows.scores[name][row]) for name in gate.methods],
        }
    methods = [
        {
            "key": name,
            "name": wording.method(name),
            "direction": method.direction,
            "cutoff": method.cutoff if method.status != "undefined" else None,
            "untrained": name in untrained,
        }
        for name, method in gate.methods.items()
    ]
    found: dict[str, Any] = {"methods": methods, "photographs": facts, "shown": encoded is not None}
    if encoded is not None:
        gallery = set(chosen.gallery())
        hovered = {row: uri for row, uri in encoded.whole.items() if row not in gallery}
        found |= {"whole": hovered, "detail": encoded.detail, "problems": encoded.problems}
    return found


def walk(rows: Photographs, chosen: Selection, name: str, method: records.Method) -> list[int]:
    """The scatter's photographs from the worst to the best by one method, for the slider under its figure."""
    shown = chosen.scatter
    quality = goodness(rows.scores[name], method)[shown]
    known = np.isfinite(quality) & np.isfinite(rows.confidence[shown])
    ordered = shown[known][np.argsort(quality[known], kind="stable")]
    return [int(row) for row in ordered]


def _rounded(value: Any) -> float | None:
    return float(f"{value:.7g}") if value is not None and np.isfinite(value) else None

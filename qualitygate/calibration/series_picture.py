"""The picture of one sample's series, as the paper's Figure 1."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from qualitygate.calibration.correlation import BLUR, CROP_CENTRE, CROP_CORNER, ROTATION
from qualitygate.calibration.samples import Sample, Shot, photograph
from qualitygate.errors import ImageError
from qualitygate.images import augment, montage
from qualitygate.metrics.rows import Plan
from qualitygate.tables import storage

_CAPTIONED = 2


def draw(plan: Plan, sample: Sample, document: Mapping[str, Any], values: pa.Table) -> bytes | None:
    """A PNG: cropped, rotated and blurred step by step, with the scores of the first methods chosen.

    document, values: of the robustness job. The sample is read once more; None if that fails.
    """

    def read(shot: Shot) -> augment.UInt8:
        return photograph(storage.fetch(shot.uri, max_bytes=plan.max_bytes).data, shot, plan).rgb

    names = [name for name in document["choice"]["methods"] if name in plan.metrics] or list(plan.metrics)
    captions = _captions(values, sample.name, names[:_CAPTIONED])
    try:
        sharp = read(sample.shots[0])
    except ImageError:
        return None

    def tiles(nuisance: str, variants: Iterator[augment.Variant], form: str) -> list[montage.Tile]:
        return [
            montage.Tile(
                pixels=variant.rgb,
                captions=[form.format(variant.parameter), *captions.get((nuisance, variant.step), ())],
            )
            for variant in variants
        ]

    strips = [
        montage.Strip(
            title="cropped",
            notes=["bottom and right,", "1/20 of each side a step"],
            tiles=tiles(CROP_CORNER, augment.crops_from_corner(sharp), "{:.2f} of the sides"),
        ),
        montage.Strip(
            title="cropped",
            notes=["about the centre"],
            tiles=tiles(CROP_CENTRE, augment.crops_centred(sharp), "{:.2f} of the sides"),
        ),
        montage.Strip(
            title="rotated",
            notes=["one window,", f"{document['interpolation']} interpolation"],
            tiles=tiles(ROTATION, augment.rotations(sharp, document["interpolation"]), "{:.0f} degrees"),
        ),
    ]
    if document["blur"] == "rendered":
        blurred = tiles(BLUR["rendered"], augment.rendered_blur(sharp), "sigma {:.1f} px")
        notes = ["rendered; its richest", "part, full resolution"]
    else:
        steps = []
        for shot in sample.shots:
            try:
                steps.append(augment.Variant(step=shot.step, parameter=shot.step, rgb=read(shot)))
            except ImageError:
                continue  # its row says so
        blurred = tiles(BLUR["manifest"], iter(steps), "step {:.0f}")
        notes = ["as photographed; its", "richest part, full", "resolution"]
    strips.append(montage.Strip(title="blurred", notes=notes, tiles=blurred, detail=True))
    return montage.draw(strips, title=f"Sample {sample.name[:80]}")


def _captions(values: pa.Table, sample: str, metrics: Sequence[str]) -> dict[tuple[str, int], list[str]]:
    of_sample = values.filter(pa.compute.equal(values["sample"], sample)).to_pylist()
    found: dict[tuple[str, int], list[str]] = {}
    for metric in metrics:
        for row in of_sample:
            if row["metric"] == metric:
                shown = row["state"] if row["value"] is None else f"{row['value']:.4g}"
                found.setdefault((row["nuisance"], row["step"]), []).append(f"{metric} {shown}")
    return found

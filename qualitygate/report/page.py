"""The report: one self-contained HTML page from what the other verbs wrote; it makes no request of any kind."""

import base64
import gzip
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from qualitygate import __version__
from qualitygate.config import ReportConfig
from qualitygate.errors import ConfigurationError
from qualitygate.report import (
    album,
    artefacts,
    figures,
    night_section,
    palette,
    provenance,
    score_table,
    sections,
    selection,
    study_section,
    thumbnails,
    tonight,
    verdict,
    wording,
)
from qualitygate.report.progress import for_stream
from qualitygate.tables import storage

logger = logging.getLogger(__name__)

_MEGABYTE = 1_000_000
_HISTOGRAM_ROWS = 20_000
_MONTAGE_SHARE = 0.15
# Of the photographs that show on pointing at a figure, these shares are tried when even the smallest don't fit.
_HOVER_SHARES = (1.0, 0.5, 0.2, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shown:
    """The calibration's photographs, which of them are shown, and their pictures as read."""

    rows: selection.Photographs
    chosen: selection.Selection
    pictures: Mapping[int, thumbnails.Picture | str] | None


def write(config: ReportConfig) -> Path | str:
    """Write the page; returns where it is: a path, or the URI of an output that is no local file.

    The same inputs and configuration give the same bytes. Raises ConfigurationError for an output that doesn't
    end in .html, for inputs that aren't whole, and where the page can't be kept under `max_megabytes`.
    """
    output = storage.check_location(config.output, "--output")
    if not output.lower().endswith(".html"):
        raise ConfigurationError(f"--output {storage.redact(output)!r} must end in .html, for browsers to open it")
    if storage.is_folder(output):
        raise ConfigurationError(f"--output {storage.redact(output)!r} is a folder; name a file that ends in .html")
    found = artefacts.read(config.input, night=config.night)
    if storage.is_local(output):
        storage.check_writable(str(Path(output).absolute().parent), "--output")
    page = render(found, config)
    storage.write_bytes(output, page)
    logger.info("report of %d bytes", len(page))
    return Path(output) if storage.is_local(output) else output


def render(found: artefacts.Artefacts, config: ReportConfig) -> bytes:
    """The page's bytes, with the largest photographs that keep it under `max_megabytes`, or the smallest that don't
    keep it under `aim_megabytes`."""
    context = _context(found, config)
    shown = _photographs(found, config)
    if shown:
        assert found.calibration is not None  # what `shown` was made from
        context["lines"] = sections.lines(found.calibration, shown.rows, shown.chosen)
        context["shown"] = shown.chosen
    night = tonight.of(found)
    context["tonight"] = night
    pictures = thumbnails.read(night.sources, for_stream("photographs")) if night and config.thumbnails else None
    limit = int(config.max_megabytes * _MEGABYTE)
    aim = limit if config.aim_megabytes is None else min(limit, int(config.aim_megabytes * _MEGABYTE))
    page, smallest = b"", b""
    for encoded, size in _attempts(shown):
        small = _small(pictures, size)
        page = _rendered(context | _album(found, shown, encoded) | {"tonight_encoded": small})
        if len(page) <= aim:
            return page
        if size is not None and len(page) <= limit:
            smallest = page
    if smallest or len(page) <= limit:
        return smallest or page
    raise ConfigurationError(
        f"max_megabytes is {config.max_megabytes:g}, but the page takes {len(page) / _MEGABYTE:.1f} without a single "
        "photograph (the figures' library alone 2.0); give more, or a smaller --sample"
    )


def _context(found: artefacts.Artefacts, config: ReportConfig) -> dict[str, Any]:
    calibration = found.calibration
    problems = sections.warnings(found)
    distributions: Mapping[str, Any] = {}
    if found.scoring:
        try:
            distributions = score_table.sample(
                found.folders["score"], list(found.scoring.metrics), rows=_HISTOGRAM_ROWS, seed=config.seed
            )
        except ConfigurationError as error:
            problems.append(f"The table of scores could not be read: {error}")
    montage = None
    if found.robustness and found.robustness.montage and config.thumbnails:
        most = int(config.max_megabytes * _MEGABYTE * _MONTAGE_SHARE)
        montage = thumbnails.montage_uri(found.robustness.montage, most_bytes=most)
    return {
        "title": wording.safe(config.title),
        "release": __version__,
        "thumbnails": config.thumbnails,
        "untrained": found.untrained,
        "warnings": problems,
        "calibration": calibration,
        "verdict": verdict.judge(calibration, found.untrained) if calibration else None,
        "sampling": sections.sampling(calibration) if calibration else None,
        "bars": verdict.bars(calibration.held_out) if calibration else [],
        "lines": [],
        "shown": None,
        "coverage": sections.coverage(calibration.held_out) if calibration else None,
        "robustness": sections.robustness(found),
        "montage": montage,
        "agreement": sections.agreement(calibration, found.untrained) if calibration else None,
        "scoring": sections.scoring(found, distributions),
        "study": study_section.of(found),
        "nights": night_section.of(found),
        "decisions": found.decisions,
        "prediction": found.prediction,
        "model": found.model,
        "provenance": provenance.of(found),
        "configs": found.configs,
    }


def _photographs(found: artefacts.Artefacts, config: ReportConfig) -> _Shown | None:
    if found.calibration is None:
        return None
    rows = selection.photographs(found.calibration)
    chosen = selection.choose(rows, found.calibration, sample=config.sample, seed=config.seed)
    if not config.thumbnails:
        return _Shown(rows=rows, chosen=chosen, pictures=None)
    places: Mapping[str, Any] = {}
    if (folder := found.folders.get("score")) and not all(rows.column("uri")):
        ids = rows.column("image_id")
        places = score_table.places(folder, [ids[row] for row in chosen.every()])
    sources = album.sources(rows, chosen, places)
    return _Shown(rows=rows, chosen=chosen, pictures=thumbnails.read(sources, for_stream("photographs")))


def _attempts(shown: _Shown | None) -> Iterator[tuple[thumbnails.Encoded | None, thumbnails.Size | None]]:
    """Ever smaller sets of photographs, and the size for other ones on the page; None for those where none fit."""
    smallest = thumbnails.SIZES[-1]
    if shown is None or shown.pictures is None:
        yield from ((None, size) for size in (*thumbnails.SIZES, None))
        return
    gallery, hovered = shown.chosen.gallery(), shown.chosen.scatter.tolist()
    for size in thumbnails.SIZES[:-1]:
        yield thumbnails.encode(shown.pictures, gallery=gallery, hovered=hovered, size=size), size
    # Wrong predictions are what people point at: they are the last to lose their photograph.
    hovered.sort(key=lambda row: bool(shown.rows.correct[row]))
    for share in _HOVER_SHARES:
        kept = hovered[: int(share * len(hovered))]
        yield thumbnails.encode(shown.pictures, gallery=gallery, hovered=kept, size=smallest), smallest
    yield thumbnails.encode(shown.pictures, gallery=(), hovered=(), size=smallest), None


def _small(
    pictures: Mapping[int, thumbnails.Picture | str] | None, size: thumbnails.Size | None
) -> thumbnails.Encoded | None:
    """The night's own photographs."""
    if pictures is None:
        return None
    shown = list(pictures) if size is not None else []
    return thumbnails.encode(pictures, gallery=shown, hovered=(), size=size or thumbnails.SIZES[-1])


def _album(found: artefacts.Artefacts, shown: _Shown | None, encoded: thumbnails.Encoded | None) -> dict[str, Any]:
    if shown is None or found.calibration is None:
        return {"album": None, "encoded": None}
    facts = album.table(shown.rows, shown.chosen, found.calibration.gate, encoded, found.untrained)
    return {"album": facts, "encoded": encoded}


def _rendered(context: Mapping[str, Any]) -> bytes:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("qualitygate.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("method", "number", "count", "percent", "points", "p_value", "interval", "coefficient", "rejects"):
        environment.filters[name] = getattr(wording, name)
    for name in ("nuisance", "baseline", "listing", "short", "sentence"):
        environment.filters[name] = getattr(wording, name)
    environment.filters |= {
        "whose": night_section.by_whom,
        "plain": wording.safe,
        "text": sections.text,
        "inert": Markup,
    }
    script = f"\n{_template('page.js')}\n"
    plotly, packed = _plotly()
    # Plotly's is inserted by ours when it is unpacked; no other script can run, whatever the data hold.
    allowed = " ".join(f"'sha256-{_digest(text)}'" for text in (plotly, script))
    page = environment.get_template("page.html").render(
        context,
        script=Markup(script),
        plotly=Markup(packed),
        script_sources=Markup(allowed),
        colours=Markup(palette.style_sheet()),
        style=Markup(_template("page.css")),
        exchange=Markup(figures.inert(json.dumps(palette.exchange()))),
        album_json=Markup(figures.inert(json.dumps(context["album"], allow_nan=False, ensure_ascii=False))),
        rules=wording.RULES,
        sketch_size=(verdict.WIDTH, verdict.HEIGHT),
    )
    return page.encode("utf-8", "replace")


@cache
def _plotly() -> tuple[str, str]:
    """(plotly's script, the same as base64 of gzip): packed it is two megabytes instead of five."""
    from plotly.offline import get_plotlyjs

    source = get_plotlyjs()
    # Without a time in it: the same inputs make the same page.
    packed = gzip.compress(source.encode("utf-8"), 9, mtime=0)
    return source, base64.b64encode(packed).decode("ascii")


def _template(name: str) -> str:
    return (resources.files("qualitygate.report") / "templates" / name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    """As a Content-Security-Policy names an inline script that may run."""
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")

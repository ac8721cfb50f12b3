"""The report as people meet it: opened from disk in Chromium, pointed at, leafed through, on a phone, on paper."""

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qualitygate.config import ReportConfig
from qualitygate.report import page as report

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))
import artefacts_maker as maker
import nights_maker

REQUIRED = os.environ.get("QUALITYGATE_REQUIRE_BROWSER") == "1"
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 360, "height": 740}
DRAWN = "html[data-figures=drawn]"


def _absent(reason: str) -> None:
    if REQUIRED:
        pytest.fail(f"QUALITYGATE_REQUIRE_BROWSER=1, but {reason}")
    pytest.skip(f"the report is not tested in a browser: {reason}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window; skipped, or failed where the environment requires it, when there is none."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _absent("the Python package 'playwright' isn't installed")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        _absent("no chromium is installed")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with all that it can show; one id is an attack, one method has no line."""
    folder = tmp_path_factory.mktemp("report")
    qualities = np.random.default_rng(5).normal(0, 1, 160)
    ids = [maker.HOSTILE, *(f"shelf/photograph-{row:03}.jpg" for row in range(1, 160))]
    gate = maker.calibration(
        folder / "gate",
        uris=maker.photographs(folder / "photographs", qualities, side=320),
        qualities=qualities,
        ids=ids,
        methods=("lapm", "wavs", "brisque", "musiq"),
        undefined={"musiq": "its AUROC of .52 is not above .5"},
        labels=("manufacturer_a", "<i>b</i>"),
    )
    inputs = (
        gate,
        maker.robustness(folder / "robustness"),
        maker.gate_run(folder / "run"),
        maker.scoring(folder / "s"),
    )
    path = report.write(ReportConfig(input=tuple(map(str, inputs)), output=str(folder / "report.html")))
    assert isinstance(path, Path)
    return path


@dataclass
class Visit:
    """A page that was opened, and all that it asked for or complained of."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def panel(self) -> Any:
        return self.page.locator(".panel").first


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of 40 nights, the last of which was refused."""
    folder = tmp_path_factory.mktemp("nights")
    made = [*nights_maker.history(39), nights_maker.night(45, "refused", 36, 36)]
    output = nights_maker.write(folder / "out", made)
    path = report.write(ReportConfig(input=(str(output),), output=str(folder / "report.html")))
    assert isinstance(path, Path)
    return path


@pytest.fixture
def visit(browser: Any, written: Path) -> Iterator[Any]:
    """Opens the page in a context of its own and waits until its figures are drawn; checks it on leaving."""
    yield from _visits(browser, written)


@pytest.fixture
def visit_nights(browser: Any, nights: Path) -> Iterator[Any]:
    """The same for the page of nights."""
    yield from _visits(browser, nights)


def _visits(browser: Any, written: Path) -> Iterator[Any]:
    visits: list[tuple[Any, Visit]] = []

    def open_page(**settings: Any) -> Visit:
        context = browser.new_context(**({"viewport": DESKTOP} | settings))
        found = Visit(context.new_page())
        found.page.on("console", lambda message: found.complaints.append(f"{message.type}: {message.text}"))
        found.page.on("pageerror", lambda error: found.complaints.append(str(error)))
        found.page.on("dialog", lambda dialog: (found.complaints.append("alert"), dialog.dismiss()))
        found.page.on("request", lambda request: found.requests.append(request.url))
        visits.append((context, found))
        found.page.goto(written.as_uri())
        found.page.wait_for_selector(DRAWN, timeout=60_000)
        return found

    yield open_page
    for context, found in visits:
        assert found.complaints == []
        others = [url for url in found.requests if not url.startswith(("data:", "blob:"))]
        assert others == [written.as_uri()]
        context.close()


def test_it_opens_without_errors_or_requests_and_draws_every_figure(visit: Any) -> None:
    page = visit().page
    drawn = page.eval_on_selector_all(
        ".plot",
        """plots => plots.map(plot => ({
            kind: plot.layout.meta?.kind,
            marks: plot.querySelectorAll(
                '.scatterlayer .point, .scatterlayer .js-line, .heatmaplayer image, .heatmap-label, .barlayer .point'
            ).length,
            width: plot.querySelector('svg.main-svg').getBoundingClientRect().width,
        }))""",
    )
    assert len(drawn) >= 8
    for figure in drawn:
        assert figure["marks"] >= 4, figure
        assert figure["width"] > 150, figure
    scatters = [figure for figure in drawn if figure["kind"] == "scatter"]
    assert [figure["marks"] for figure in scatters] == [163] * 4  # photographs, the ring and two densities


def point_at(page: Any, number: int, trace: int) -> tuple[float, float]:
    """Where on the screen a point of the first scatter lies."""
    page.locator(".plot").first.scroll_into_view_if_needed()
    box = page.evaluate(
        """([number, trace]) => {
            const box = document.querySelector('.plot').querySelectorAll('.scatterlayer .trace.scatter')[trace]
                .querySelectorAll('.point')[number].getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2];
        }""",
        [number, trace],
    )
    return box[0], box[1]


def test_pointing_at_a_photograph_shows_it_and_a_click_opens_it(visit: Any) -> None:
    found = visit()
    page, panel = found.page, found.panel()
    before = panel.locator(".facts").inner_text()
    shown = set()
    for number in (3, 11):
        # Traces: two densities, right predictions, wrong ones, the ring.
        page.mouse.move(*point_at(page, number, 3))
        page.wait_for_function("before => document.querySelector('.panel .facts').innerText !== before", arg=before)
        before = panel.locator(".facts").inner_text()
        shown.add(before)
        assert "✕ wrong" in before
        size = panel.locator("img").evaluate("async image => (await image.decode(), image.naturalWidth)")
        assert size >= 100
        # Plotly lets a new point be hovered only some time after the last.
        page.wait_for_timeout(200)
    assert len(shown) == 2
    page.mouse.click(*point_at(page, 11, 3))
    assert page.locator("#viewer").evaluate("dialog => dialog.open")
    name = page.locator("#viewer h2").inner_text()
    assert name in before


def test_the_slider_walks_along_quality_by_keyboard(visit: Any) -> None:
    found = visit()
    slider = found.page.locator(".walk input").first
    panel = found.panel().locator(".facts")
    slider.focus()
    slider.press("Home")
    worst = panel.inner_text()
    slider.press("End")
    best = panel.inner_text()
    assert score(worst, "LAPM") < score(best, "LAPM")
    ring = found.page.evaluate("document.querySelector('.plot').data.at(-1).x[0]")
    assert ring == pytest.approx(score(best, "LAPM"), rel=1e-3)


def score(facts: str, method: str) -> float:
    lines = facts.splitlines()
    return float(lines[lines.index(method) + 1].split()[0])


def test_the_dialog_opens_leafs_and_closes_by_keyboard(visit: Any) -> None:
    page = visit().page
    tile = page.locator(".tile").nth(1)
    tile.focus()
    page.keyboard.press("Enter")
    viewer = page.locator("#viewer")
    assert viewer.evaluate("dialog => dialog.open")
    first = viewer.locator("h2").inner_text()
    assert viewer.locator("img").count() == 2  # whole, and the middle at full size
    page.keyboard.press("ArrowRight")
    assert viewer.locator("h2").inner_text() != first
    page.keyboard.press("ArrowLeft")
    assert viewer.locator("h2").inner_text() == first
    page.keyboard.press("Escape")
    assert not viewer.evaluate("dialog => dialog.open")
    assert tile.evaluate("tile => document.activeElement === tile")


def test_the_first_key_leads_past_the_navigation(visit: Any) -> None:
    page = visit().page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_a_hostile_id_is_shown_as_text(visit: Any) -> None:
    page = visit().page
    row = page.evaluate(
        """() => Object.entries(JSON.parse(document.getElementById('album').textContent).photographs)
            .find(([, one]) => one.image_id.startsWith('<script>'))[0]"""
    )
    place = page.evaluate("row => document.querySelector('.scatter').dataset.walk.split(',').indexOf(row)", row)
    page.locator(".walk input").first.evaluate(
        "(slider, place) => { slider.value = place; slider.dispatchEvent(new Event('input')); }", place
    )
    assert "<script>alert(1)</script>" in page.locator(".panel .facts").first.inner_text()
    page.locator(".panel-open").first.click()
    assert page.locator("#viewer h2").inner_text().startswith("<script>alert(1)</script>")
    assert page.locator("#viewer h2 *").count() == 0
    # Labels inside a figure are read as markup by plotly, unless they are escaped.
    labels = page.locator(".ytick text").all_text_contents()
    assert "class <i>b</i>" in labels


def test_photographs_can_be_seen_at_full_size_in_place(visit: Any) -> None:
    page = visit().page
    image = page.locator(".tile img").first
    whole = image.get_attribute("src")
    page.get_by_label("middle, full size").check()
    assert image.get_attribute("src") != whole
    page.get_by_label("whole").check()
    assert image.get_attribute("src") == whole


def wait_for_luminance(page: Any, selector: str, style: str, *, above: float = -1, below: float = 256) -> None:
    """Until the mean of a computed colour's three parts, 0 black to 255 white, is as it should be."""
    page.wait_for_function(
        """([selector, style, above, below]) => {
            const element = document.querySelector(selector);
            const parts = element && getComputedStyle(element)[style].match(/[\\d.]+/g)?.slice(0, 3).map(Number);
            const mean = parts && parts.reduce((sum, part) => sum + part) / 3;
            return mean > above && mean < below;
        }""",
        arg=[selector, style, above, below],
        timeout=5000,
    )


def test_dark_and_light_follow_the_system_and_the_button(visit: Any) -> None:
    page = visit(color_scheme="dark").page
    wait_for_luminance(page, "body", "backgroundColor", below=40)
    wait_for_luminance(page, "body", "color", above=200)
    wait_for_luminance(page, ".xtick text", "fill", above=130)
    button = page.locator("#theme")
    button.click()
    assert button.inner_text() == "Theme: light"
    wait_for_luminance(page, "body", "backgroundColor", above=230)
    wait_for_luminance(page, ".xtick text", "fill", below=130)
    page.emulate_media(color_scheme="light")
    button.click()
    assert button.inner_text() == "Theme: dark"
    wait_for_luminance(page, "body", "backgroundColor", below=40)


def test_nothing_is_wider_than_the_screen(visit: Any) -> None:
    page = visit(viewport={"width": 320, "height": 740}).page
    for width in (320, 360, 768, 1280):
        page.set_viewport_size({"width": width, "height": 740})
        page.wait_for_function(
            """width => document.documentElement.scrollWidth <= width
                && [...document.querySelectorAll('.plot svg.main-svg')].every(
                    svg => svg.getBoundingClientRect().right <= width + 1)""",
            arg=width,
            timeout=5000,
        )


def test_a_phone_shows_a_photograph_on_a_touch_and_scrolls_over_figures(visit: Any) -> None:
    found = visit(viewport=PHONE, is_mobile=True, has_touch=True)
    page = found.page
    before = found.panel().locator(".facts").inner_text()
    page.touchscreen.tap(*point_at(page, 7, 3))
    page.wait_for_function("before => document.querySelector('.panel .facts').innerText !== before", arg=before)
    assert page.evaluate("document.querySelector('.plot').layout.dragmode") is False
    assert not page.locator("#viewer").evaluate("dialog => dialog.open")
    assert page.locator(".modebar-btn").count() == 0


def test_figures_offer_no_upload(visit: Any) -> None:
    page = visit().page
    titles = page.eval_on_selector_all(".modebar-btn", "all => all.map(one => one.dataset.title)")
    assert set(titles) == {"Download plot as a PNG", "Zoom", "Pan", "Reset axes"}


def test_paper_is_light_without_controls_and_within_its_width(visit: Any) -> None:
    page = visit(color_scheme="dark").page
    assert page.pdf(format="A4", print_background=True).startswith(b"%PDF")
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 700, "height": 1000})
    wait_for_luminance(page, "body", "backgroundColor", above=250)
    wait_for_luminance(page, ".xtick text", "fill", below=130)
    for hidden in ("header.bar", ".walk", ".panel", "#viewer", "#part"):
        assert not page.locator(hidden).first.is_visible(), hidden
    assert page.evaluate("document.documentElement.scrollWidth") <= 700
    page.emulate_media(media="screen")
    wait_for_luminance(page, ".xtick text", "fill", above=130)


# ---- the page of nights --------------------------------------------------------------------------------------


def test_nights_are_drawn_and_their_states_are_read_without_pointing(visit_nights: Any) -> None:
    page = visit_nights().page
    assert page.locator(".plot").count() == 11
    for plot in page.locator(".plot").all():
        marks = plot.locator(".scatterlayer .point, .scatterlayer .js-line, .barlayer .point").count()
        assert marks >= 2
    cells = page.locator(".night:not(.gap)")
    assert cells.count() == 30
    newest = page.locator(".night.newest")
    assert newest.inner_text().split() == ["2026-02-19", "✕", "refused"]
    assert page.locator("#tonight .note").first.is_visible()
    assert nights_maker.DRIFT[1:40] in page.locator("#tonight .note").first.inner_text()
    # A night of the strip leads to its reasons.
    newest.locator("a").click()
    reasons = page.locator(page.evaluate("location.hash"))
    assert nights_maker.DRIFT[1:40] in reasons.inner_text()
    # Each sign and colour differs from state to state.
    borders = page.eval_on_selector_all(
        ".night:not(.gap):not(.newest)",
        "all => [...new Set(all.map(one => getComputedStyle(one).borderTopStyle + getComputedStyle(one).color))]",
    )
    assert len({border.split("rgb")[0] for border in borders}) == 3
    wait_for_luminance(page, ".night.good .night-state", "color", below=120)
    page.locator("summary", has_text="All nights as a table").click()
    table = page.get_by_role("region", name="All nights")
    assert table.locator("tbody tr").count() == 40
    assert table.locator("tbody tr").first.inner_text().split()[:3] == ["2026-02-19", "✕", "refused"]


def test_the_page_of_nights_fits_a_phone_and_the_dark(visit_nights: Any) -> None:
    page = visit_nights(viewport={"width": 320, "height": 740}, color_scheme="dark").page
    wait_for_luminance(page, "body", "backgroundColor", below=40)
    wait_for_luminance(page, ".xtick text", "fill", above=130)
    for width in (320, 768):
        page.set_viewport_size({"width": width, "height": 740})
        page.wait_for_function(
            """width => document.documentElement.scrollWidth <= width
                && [...document.querySelectorAll('.plot svg.main-svg')].every(
                    svg => svg.getBoundingClientRect().right <= width + 1)""",
            arg=width,
            timeout=5000,
        )


def test_a_browser_that_cannot_unpack_the_figures_says_so_and_shows_the_rest(browser: Any, written: Path) -> None:
    context = browser.new_context(viewport=DESKTOP)
    context.add_init_script("delete window.DecompressionStream")
    page = context.new_page()
    page.goto(written.as_uri())
    page.wait_for_selector("html[data-figures=none]")
    assert "All numbers stand in the tables" in page.locator("#no-figures").inner_text()
    assert page.locator("#no-figures").is_visible()
    # Photographs still open, and printing asks for no figure.
    page.locator(".tile").first.click()
    assert page.locator("#viewer").evaluate("dialog => dialog.open")
    page.keyboard.press("Escape")
    assert page.pdf(format="A4").startswith(b"%PDF")
    context.close()


def test_without_scripts_nights_can_be_read(browser: Any, nights: Path) -> None:
    context = browser.new_context(java_script_enabled=False, viewport=DESKTOP)
    page = context.new_page()
    page.goto(nights.as_uri())
    text = page.locator("main").inner_text()
    assert "2026-02-19\n✕ refused" in text
    assert nights_maker.DRIFT[1:40] in text
    page.locator("summary", has_text="As a table").first.click()
    assert "11 [" in page.get_by_role("region", name="Cut-offs by night").inner_text()
    context.close()


def test_without_scripts_the_numbers_and_photographs_are_there(browser: Any, written: Path) -> None:
    context = browser.new_context(java_script_enabled=False, viewport=DESKTOP)
    page = context.new_page()
    page.goto(written.as_uri())
    text = page.locator("main").inner_text()
    assert "The figures need JavaScript" in text
    assert "reject below" in text
    assert "random rejection" in text
    assert page.locator(".tile img").count() >= 30
    assert page.locator(".sketch path").count() == 8
    for control in ("#theme", "#part", ".walk"):
        assert not page.locator(control).first.is_visible()
    context.close()

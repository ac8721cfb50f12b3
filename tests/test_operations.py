"""The page for those on call is true: each exit code, each number and its unit, each event of the log."""

import re
from pathlib import Path

from qualitygate import errors
from qualitygate.cluster import telemetry

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


def _section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def _rows(section: str) -> list[list[str]]:
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines][2:]


def test_every_exit_code_is_explained() -> None:
    def codes(kind: type[errors.QualityGateError]) -> set[int]:
        return {kind.exit_code}.union(*(codes(one) for one in kind.__subclasses__()))

    explained = {int(row[0]) for row in _rows(_section("Exit codes"))}
    assert codes(errors.QualityGateError) <= explained
    assert {0, 1, 2, 3, 4, 130} <= explained


def test_every_number_is_listed_with_its_type_and_unit() -> None:
    listed = {row[0].strip("`"): tuple(row[1:3]) for row in _rows(_section("Metrics"))}
    assert listed == {series.exported: (series.kind, series.unit) for series in telemetry.SERIES}
    labels = {label for series in telemetry.SERIES for label in series.labels}
    assert all(f"`{label}`" in _section("Metrics") for label in labels)


def test_alerts_ask_for_numbers_that_there_are() -> None:
    asked = set(re.findall(r"qualitygate_\w+", _section("Alerts")))
    assert asked
    assert asked <= {series.exported for series in telemetry.SERIES}


def test_every_event_of_the_log_is_explained() -> None:
    written = set()
    for path in [*(ROOT / "qualitygate").rglob("*.py"), *(ROOT / "jobs").glob("*.py")]:
        text = path.read_text(encoding="utf-8")
        written |= set(re.findall(r'logs\.write\(\s*"(\w+)"', text))
    written |= set(re.findall(r'\bwrite\("(\w+)"', (ROOT / "qualitygate" / "logs.py").read_text(encoding="utf-8")))
    assert {"note", "progress", "log", "failed", "ended"} == written
    assert all(f"`{event}`" in _section("Logs") for event in written)


def test_every_link_of_the_page_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        page, _, anchor = target.partition("#")
        text = (ROOT / "docs" / page).read_text(encoding="utf-8") if page else PAGE
        headings = {
            re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)$", text, re.M)
        }
        assert not anchor or anchor in headings, target

"""What `qualitygate weights` says in the terminal."""

from collections.abc import Sequence

from rich import box
from rich.table import Table

from qualitygate.metrics.weights import Checked, Fetched, Listed
from qualitygate.report.terminal import rendered

WIDTH = 160  # licences and addresses are long, and are to be copied whole


def of_listing(listed: Sequence[Listed]) -> str:
    """A line for each published file: whether it is here and pinned, how large, under which licence, where."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("name", "present", "locked", "bytes", "sha256", "license", "where"):
        table.add_column(title, overflow="fold", no_wrap=title in ("name", "bytes"))
    for one in listed:
        table.add_row(
            "\n".join((one.name, *(f"= {alias}" for alias in one.aliases))),
            "yes" if one.present else "no",
            "yes" if one.locked else "no",
            f"{one.bytes:,}" if one.bytes is not None else "-",
            _head(one.sha256),
            one.license,
            one.where,
        )
    return rendered(table, columns=WIDTH)


def of_fetch(fetched: Fetched) -> str:
    """One line: what is there now, and its full hash."""
    how = "fetched" if fetched.downloaded else "there already"
    return f"{fetched.name}: {how}, {fetched.bytes:,} bytes, sha256 {fetched.sha256}, {fetched.path}\n"


def of_verification(checked: Sequence[Checked]) -> str:
    """One line a file: as pinned, or what is wrong with it."""
    return "".join(f"{one.name}: {one.problem or f'ok, sha256 {one.sha256}'}\n" for one in checked)


def _head(sha256: str | None) -> str:
    return "-" if sha256 is None else sha256 if len(sha256) <= 12 else f"{sha256[:12]}..."

"""Tables and numbers as a person reads them in the terminal."""

import shutil
from io import StringIO
from typing import Any

from rich.console import Console

_NARROWEST, _PIPE = 80, 120


def width() -> int:
    """Columns of the terminal; for a pipe as many as fit a wide table."""
    return max(_NARROWEST, shutil.get_terminal_size((_PIPE, 24)).columns)


def rendered(*parts: Any, columns: int | None = None) -> str:
    """Text of rich tables and plain lines, one below the other. columns: how wide; the terminal's by default."""
    buffer = StringIO()
    # Into a buffer rich can't ask the terminal for its width.
    console = Console(file=buffer, width=columns or width(), highlight=False, markup=False, emoji=False)
    for part in parts:
        console.print(part)
    return buffer.getvalue()


def number(value: float | None) -> str:
    """Four significant digits, large ones without decimals; a dash for none."""
    return "-" if value is None else f"{value:,.4g}" if abs(value) < 1e5 else f"{value:,.0f}"

"""Tables and numbers as a person reads them in the terminal."""

import re
import shutil
import sys
import textwrap
from io import StringIO
from typing import Any

from rich.console import Console

_NARROWEST, _PIPE = 80, 120
_COMMAND = re.compile(r"\bqualitygate [a-z]")


def width() -> int:
    """Columns of the terminal; for a pipe as many as fit a wide table."""
    return max(_NARROWEST, shutil.get_terminal_size((_PIPE, 24)).columns)


def has_command(line: str) -> bool:
    """Whether a line holds a command to be pasted, which a line break would cut in two."""
    return _COMMAND.search(line) is not None


def folded(text: str) -> str:
    """Lines of prose, no wider than the terminal. In a log, and with commands in them, they stay as they are."""
    if not sys.stdout.isatty():
        return text
    return "\n".join(
        line
        if has_command(line)
        else textwrap.fill(line, width(), subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)
        for line in text.split("\n")
    )


def rendered(*parts: Any, columns: int | None = None) -> str:
    """Text of rich tables and of lines, `folded`, one below the other. columns: of tables, else the terminal's."""
    buffer = StringIO()
    # Into a buffer rich can't ask the terminal for its width.
    console = Console(file=buffer, width=columns or width(), highlight=False, markup=False, emoji=False)
    for part in parts:
        if isinstance(part, str):
            console.print(folded(part), soft_wrap=True)
        else:
            console.print(part)
    return buffer.getvalue()


def number(value: float | None) -> str:
    """Four significant digits, large ones without decimals; a dash for none."""
    return "-" if value is None else f"{value:,.4g}" if abs(value) < 1e5 else f"{value:,.0f}"

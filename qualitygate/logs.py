"""Logs as lines of JSON on stderr, for those who collect and search them; text for people stays the default.

Each line is an object: time (UTC), level, event (note, progress, log, failed, ended), message, verb, and run_id where
there is one. No line holds credentials of a URI. What a verb answers stays on stdout, as it was.
"""

import json
import logging
import os
import sys
import traceback
from datetime import UTC, datetime
from typing import Any

from qualitygate.errors import ConfigurationError
from qualitygate.tables.uris import redact

VARIABLE = "QUALITYGATE_LOG_FORMAT"
TEXT, JSON = "text", "json"
# This project's own loggers, which say what they do; of others only warnings are worth a line.
_OURS = ("qualitygate", "jobs")

_context: dict[str, str] = {}
_handler: logging.Handler | None = None


def checked(value: str) -> str:
    """The name of a format; ConfigurationError for another."""
    if value not in (TEXT, JSON):
        raise ConfigurationError(f"--log-format (or {VARIABLE}): {value!r} is none of {TEXT}, {JSON}")
    return value


def set_up(form: str | None = None, **context: str) -> None:
    """Choose how this process logs; None: by the environment, else as text. context: what every line says besides."""
    global _handler
    chosen = checked(form or os.environ.get(VARIABLE) or TEXT)
    root = logging.getLogger()
    if _handler is not None:
        root.removeHandler(_handler)
        _handler = None
        logging.captureWarnings(False)
        for name in _OURS:
            logging.getLogger(name).setLevel(logging.NOTSET)
    _context.clear()
    _context.update(context)
    if chosen == JSON:
        _handler = _Lines(logging.INFO)
        root.addHandler(_handler)
        logging.captureWarnings(True)
        for name in _OURS:
            logging.getLogger(name).setLevel(logging.INFO)


def form() -> str:
    """How this process logs."""
    return TEXT if _handler is None else JSON


def context() -> dict[str, str]:
    """What every line says."""
    return dict(_context)


def bind(**context: str) -> None:
    """Have every further line say this, such as run_id=..."""
    _context.update(context)


def write(event: str, message: str, *, level: str = "info", **fields: Any) -> None:
    """One line of JSON; for what isn't logged by a logger."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    content = {"time": now, "level": level, "event": event, "message": redact(message), **_context, **fields}
    try:
        # One call, so that lines of several threads don't mingle.
        sys.stderr.write(json.dumps(content, ensure_ascii=False, default=str) + "\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        # A log that can't be written is no reason to end a job.
        return


class _Lines(logging.Handler):
    """What loggers and `warnings` say, as such lines."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.WARNING and record.name.split(".")[0] not in _OURS:
            return
        fields: dict[str, Any] = {"logger": record.name}
        if record.exc_info:
            fields["exception"] = redact("".join(traceback.format_exception(*record.exc_info)))
        write("log", record.getMessage(), level=record.levelname.lower(), **fields)

"""Telling somebody how a night ended: a program that gets it as JSON, or an https address on a list of allowed hosts.

A notification that fails is said and recorded; it never changes how the night ended.
"""

import http.client
import json
import os
import ssl
import subprocess
import urllib.parse
from collections.abc import Mapping
from contextlib import closing
from typing import Any

from qualitygate.config import NightlyConfig
from qualitygate.errors import ConfigurationError
from qualitygate.tables import storage

TOKEN = "QUALITYGATE_WEBHOOK_TOKEN"
_PATIENCE_S = 60.0


def check(config: NightlyConfig) -> None:
    """Raise ConfigurationError for a webhook that isn't https or whose host isn't on the list."""
    if config.notify_webhook is None:
        return
    try:
        parts = urllib.parse.urlsplit(config.notify_webhook)
        # A port that is none shows only when it is asked for.
        usable = parts.scheme == "https" and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ConfigurationError("--notify-webhook must be an https address, such as https://HOST/PATH")
    if parts.username or parts.password:
        raise ConfigurationError(f"--notify-webhook holds credentials; put a token into {TOKEN} instead")
    if parts.hostname not in {host.lower() for host in config.notify_hosts}:
        raise ConfigurationError(
            f"--notify-webhook names {parts.hostname}, which isn't among --notify-hosts; add it if it is meant"
        )


def without_secrets(config: NightlyConfig) -> NightlyConfig:
    """The configuration as it may be written down: webhooks carry their secret in the path, programs as an argument."""
    command, webhook = config.notify_command, config.notify_webhook
    return config.model_copy(
        update={
            "notify_command": (*command[:1], *("***" for _ in command[1:])),
            "notify_webhook": f"https://{urllib.parse.urlsplit(webhook).hostname}/***" if webhook else None,
        }
    )


def send(config: NightlyConfig, message: Mapping[str, Any]) -> list[str]:
    """Tell whoever is to be told; returns what went wrong, in words."""
    body = json.dumps(message, ensure_ascii=False).encode()
    problems = []
    if config.notify_command:
        problems += _run(config.notify_command, body)
    if config.notify_webhook is not None:
        problems += _post(config.notify_webhook, body)
    return problems


def _run(command: tuple[str, ...], body: bytes) -> list[str]:
    try:
        ended = subprocess.run(command, input=body, capture_output=True, timeout=_PATIENCE_S, check=False)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        reason = f"took longer than {_PATIENCE_S:g} s" if isinstance(error, subprocess.TimeoutExpired) else str(error)
        return [f"--notify-command {command[0]!r} failed: {storage.redact(reason)}"]
    if ended.returncode:
        said = ended.stderr.decode(errors="replace").strip().splitlines()
        return [
            f"--notify-command {command[0]!r} ended with {ended.returncode}"
            + (f": {storage.redact(said[-1])[:200]}" if said else "")
        ]
    return []


def _post(address: str, body: bytes) -> list[str]:
    """One request, without following where an answer might lead: only the host that was allowed is asked."""
    parts = urllib.parse.urlsplit(address)
    headers = {"Content-Type": "application/json"}
    if token := os.environ.get(TOKEN):
        headers["Authorization"] = f"Bearer {token}"
    target = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
    try:
        secure = ssl.create_default_context()
        with closing(
            http.client.HTTPSConnection(str(parts.hostname), parts.port, timeout=_PATIENCE_S, context=secure)
        ) as connection:
            connection.request("POST", target, body, headers)
            status = connection.getresponse().status
    except (OSError, http.client.HTTPException, ValueError) as error:
        # Complaints about a path or a token of odd characters would show them.
        said = str(error) if isinstance(error, OSError) else type(error).__name__
        return [f"--notify-webhook at {parts.hostname} failed: {storage.redact(said)}"]
    return [] if 200 <= status < 300 else [f"--notify-webhook at {parts.hostname} answered {status}"]

"""What `manifest build` says in the terminal."""

import json
from dataclasses import asdict
from typing import Any


def of_build(built: Any) -> str:
    """What was listed, and what changed since the manifest before. built: a `tables.manifest_build.Built`."""
    size = f", {built.bytes / 1e9:,.2f} GB" if built.bytes else ""
    held = f" ({built.shards:,} archives and tables taken apart)" if built.shards else ""
    lines = [f"{built.images:,} images{size}{held} in {built.output}"]
    if built.new is not None:
        lines.append(
            f"since the manifest before: {built.new:,} new, {built.changed:,} changed, {built.gone:,} gone "
            f"({built.changes})"
        )
    return "\n".join([*lines, *built.notes]) + "\n"


def as_json(built: Any) -> str:
    """The same for programs."""
    return json.dumps(asdict(built), indent=1) + "\n"

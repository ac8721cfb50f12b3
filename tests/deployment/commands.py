"""What a written command would do, as the command line itself reads it, without doing it."""

import runpy
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import typer
import yaml
from pydantic import BaseModel

from qualitygate import cli, config

MODELS: dict[str, type[BaseModel]] = {
    "score": config.ScoreConfig,
    "robustness": config.RobustnessConfig,
    "train-baseline": config.BaselineConfig,
    "predict": config.PredictConfig,
    "calibrate": config.CalibrateConfig,
    "gate": config.GateConfig,
    "nightly": config.NightlyConfig,
    "study": config.StudyConfig,
    "report": config.ReportConfig,
}
ROOT = Path(__file__).parents[2]
UsageError = cli.UsageError


def read(command: str) -> tuple[str, dict[str, Any]]:
    """The verb that the command runs, and the options that it gives. Raises what the command line raises."""
    words = shlex.split(command)
    if words[0] == "qualitygate":
        return _read(words[1:])
    assert words[:2] == ["python", "-m"], command
    assert words[2].startswith("jobs."), command
    with mock.patch.object(cli, "main") as main, mock.patch.object(sys, "argv", words[2:]):
        runpy.run_module(words[2], run_name="__main__")
    (arguments,) = main.call_args.args
    return _read(arguments)


def resolved(verb: str, text: str, folder: Path) -> BaseModel:
    """The configuration that the verb makes of a file with this text. Raises ConfigurationError if it doesn't fit."""
    file = folder / f"{verb}.yaml"
    file.write_text(text, encoding="utf-8")
    return config.load(MODELS[verb], file, {})


def manifests() -> list[tuple[str, dict[str, Any]]]:
    """Every document in manifests/kubernetes, with the name of its file; also the RayJob inside of a ConfigMap."""
    found = [
        (path.name, document)
        for path in sorted((ROOT / "manifests" / "kubernetes").glob("*.yaml"))
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))
    ]
    inside = [
        (name, yaml.safe_load(document["data"]["rayjob.yaml"]))
        for name, document in found
        if document["kind"] == "ConfigMap" and "rayjob.yaml" in document["data"]
    ]
    return found + inside


def _read(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    seen: list[tuple[str, dict[str, Any]]] = []

    def recorder(name: str) -> Callable[..., None]:
        def record(**values: Any) -> None:
            seen.append((name, {key: value for key, value in values.items() if value not in (None, (), [])}))

        return record

    def watch(command: Any, name: str) -> None:
        for child, inner in getattr(command, "commands", {}).items():
            watch(inner, f"{name} {child}".strip())
        if not hasattr(command, "commands"):
            command.callback = recorder(name)

    command: Any = typer.main.get_command(cli.app)
    watch(command, "")
    command.main(args=arguments, prog_name="qualitygate", standalone_mode=False)
    ((verb, given),) = seen
    return verb, given

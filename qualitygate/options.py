"""A verb's options made from its configuration: each key is a flag, and says about itself what the model says."""

import inspect
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from qualitygate.config import Config, load
from qualitygate.errors import ConfigurationError


def verb(app: typer.Typer, name: str, model: type[Config]) -> Callable[[Callable[[Config], None]], None]:
    """Decorator: `name` is a verb of the app whose function takes the resolved configuration.

    Values of several parts are written with commas (`--metrics lapm,wavs`), or the flag is repeated; pairs as
    `--directions score=higher` or `--score metrics=lapm,wavs,workers=3`. `--config FILE` reads the same keys from YAML;
    the command line wins.
    """

    def register(function: Callable[[Config], None]) -> None:
        app.command(name)(_command(model, function))

    return register


def verb_with_parts(group: typer.Typer, model: type[Config]) -> Callable[[Callable[[Config], None]], None]:
    """Decorator: the group itself is the verb, as by `verb`, where none of its own verbs is named."""

    def register(function: Callable[[Config], None]) -> None:
        alone = _command(model, function)

        def command(context: typer.Context, **given: Any) -> None:
            if context.invoked_subcommand is None:
                alone(**given)

        signature = inspect.signature(alone)
        first = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
        command.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[first, *signature.parameters.values()]
        )
        command.__annotations__ = {"context": typer.Context, **alone.__annotations__}
        command.__doc__ = alone.__doc__
        group.callback(invoke_without_command=True)(command)

    return register


def _command(model: type[Config], function: Callable[[Config], None]) -> Callable[..., None]:
    def command(**given: Any) -> None:
        path = given.pop("config")
        values = {key: _parsed(model.model_fields[key], key, value) for key, value in given.items()}
        function(load(model, path, values))

    parameters = [_parameter(key, field) for key, field in model.model_fields.items()]
    parameters.append(_option("config", Path | None, typer.Option(help="YAML file of the same keys.")))
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = function.__doc__
    return command


def _option(key: str, annotation: Any, option: Any) -> inspect.Parameter:
    return inspect.Parameter(
        key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[annotation, option]
    )


def _parameter(key: str, field: FieldInfo) -> inspect.Parameter:
    kind = _without_none(field.annotation)
    extra = field.json_schema_extra
    flag = "--" + str(extra.get("flag", key) if isinstance(extra, dict) else key).replace("_", "-")
    said = field.description or key
    # Values stand as they are written: "auto: ...", "gate.json, or ...".
    literal = re.match(r"[\w.]+(:|,)|\w+\.\w", said)
    text = said if literal else said[0].upper() + said[1:]
    default = field.default
    shown = "" if field.is_required() or default in (None, False, ()) or callable(default) else f" (default {default})"
    if kind is bool:
        negative = f"{flag}/--no-{key.replace('_', '-')}" if default is True else flag
        return _option(key, bool | None, typer.Option(negative, help=f"{text}."))
    if get_origin(kind) in (tuple, dict):
        return _option(key, list[str] | None, typer.Option(flag, help=f"{text}."))
    if get_origin(kind) is Literal:
        return _option(key, str | None, typer.Option(flag, help=f"{text}: {', '.join(get_args(kind))}{shown}."))
    return _option(key, kind | None, typer.Option(flag, help=f"{text}{shown}."))


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, types.UnionType):
        return next(part for part in get_args(annotation) if part is not type(None))
    return annotation


def _parsed(field: FieldInfo, key: str, value: Any) -> Any:
    kind = get_origin(_without_none(field.annotation))
    if not value or kind not in (tuple, dict):
        return None if value == [] else value
    if kind is tuple:
        return tuple(part.strip() for text in value for part in text.split(",") if part.strip())
    return {name: text for one in value for name, text in _pairs(key, one)}


def _pairs(key: str, text: str) -> list[tuple[str, str]]:
    """name=value,name=value; what follows a comma without a name belongs to the value before it."""
    pairs: list[tuple[str, str]] = []
    for part in (part.strip() for part in text.split(",") if part.strip()):
        name, equals, value = part.partition("=")
        if not equals and not pairs:
            raise ConfigurationError(f"--{key.replace('_', '-')}: {part!r} is no pair; write name=value")
        pairs = (
            [*pairs, (name.strip(), value.strip())]
            if equals
            else [*pairs[:-1], (pairs[-1][0], f"{pairs[-1][1]},{part}")]
        )
    return pairs

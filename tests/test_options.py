"""Options made from a configuration: every key a flag, values of several parts, and clear words for wrong ones."""

from typing import Any

import pytest
import typer
from pydantic import BaseModel, ConfigDict, Field
from typer.testing import CliRunner

from qualitygate import config, options
from qualitygate.errors import ConfigurationError


class Example(BaseModel):
    """A configuration of every kind of key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: str = Field(description="where from")
    names: tuple[str, ...] = Field((), description="several words")
    pairs: dict[str, str] = Field(default_factory=dict, description="pairs")
    share: float | None = Field(None, gt=0, lt=1, description="a share")
    shown: bool = Field(True, description="on unless switched off")
    forced: bool = Field(False, description="off unless switched on")


def _run(*arguments: str) -> Any:
    """What the verb was given, or the exception that it ended with."""
    app, got = typer.Typer(), []

    @app.callback()
    def _several() -> None: ...

    @options.verb(app, "show", Example)
    def show(config: Example) -> None:
        """Show it."""
        got.append(config)

    result = CliRunner().invoke(app, ["show", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return got[0] if got else result.output


def test_flags_of_every_kind_arrive() -> None:
    given = _run("--input", "x", "--names", "a, b", "--names", "c", "--pairs", "k=v,l=w", "--share", ".5", "--forced")
    assert given == Example(
        input="x", names=("a", "b", "c"), pairs={"k": "v", "l": "w"}, share=0.5, shown=True, forced=True
    )
    assert _run("--input", "x", "--no-shown").shown is False
    assert _run("--input", "x") == Example(input="x")


def test_the_value_of_a_pair_may_have_several_parts() -> None:
    given = _run("--input", "x", "--pairs", "metrics=a, b,workers=3", "--pairs", "k=v=w")
    assert given.pairs == {"metrics": "a,b", "workers": "3", "k": "v=w"}


def test_pairs_of_the_command_line_join_those_of_the_file(tmp_path: Any) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("input: x\npairs: {metrics: a, workers: '3'}\n")
    assert _run("--config", str(file), "--pairs", "workers=4,k=v").pairs == {"metrics": "a", "workers": "4", "k": "v"}


def test_the_file_is_read_and_the_command_line_wins(tmp_path: Any) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("input: from file\nshare: .25\nnames: [p, q]\n")
    given = _run("--config", str(file), "--share", ".75")
    assert (given.input, given.share, given.names) == ("from file", 0.75, ("p", "q"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "input is needed; give --input"),
        (("--input", "x", "--pairs", "k"), "--pairs: 'k' is no pair; write name=value"),
        (("--input", "x", "--pairs", "k=v", "--pairs", "l"), "--pairs: 'l' is no pair; write name=value"),
        (("--input", "x", "--share", "7"), "share: input should be less than 1"),
    ],
)
def test_what_is_wrong_is_said(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        _run(*arguments)


def test_help_says_what_the_configuration_says() -> None:
    text = _run("--help")
    assert "Show it." in text
    assert "Several words." in text
    assert "--no-shown" in text


def test_every_key_of_every_configuration_says_what_it_is() -> None:
    models = [value for value in vars(config).values() if isinstance(value, type) and issubclass(value, BaseModel)]
    assert len(models) >= 7
    assert not [
        f"{model.__name__}.{key}" for model in models for key, f in model.model_fields.items() if not f.description
    ]

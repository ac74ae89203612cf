"""Groups of options: a dataclass in a command's signature is spelled out for typer."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from pixelrefer_fast.cli import commands
from pixelrefer_fast.cli.groups import spelled_out


@dataclass(frozen=True)
class Sides:
    left: Annotated[int, typer.Option("--left")] = 1
    right: Annotated[int | None, typer.Option("--right")] = None


def compare(*, name: str, sides: Sides, loud: Annotated[bool, typer.Option("--loud")] = False) -> None:
    print(name, sides, loud)


def test_a_group_stands_in_the_signature_as_its_options_in_its_place() -> None:
    parameters = inspect.signature(spelled_out(compare)).parameters
    assert list(parameters) == ["name", "left", "right", "loud"]
    assert parameters["left"].default == 1
    assert parameters["right"].default is None
    assert parameters["right"].annotation == Annotated[int | None, parameters["right"].annotation.__metadata__[0]]
    assert parameters["name"].default is inspect.Parameter.empty


@pytest.mark.parametrize(
    ("given", "printed"),
    [
        (["a"], "a Sides(left=1, right=None) False"),
        (["a", "--right", "3", "--loud"], "a Sides(left=1, right=3) True"),
    ],
)
def test_a_command_gets_its_groups_made(given: list[str], printed: str) -> None:
    app = typer.Typer()
    app.command()(spelled_out(compare))
    assert CliRunner().invoke(app, given).output.strip() == printed


def test_every_file_of_commands_is_listed() -> None:
    """A command whose line is missing in `cli/commands/__init__.py` would not be there for anybody."""
    files = {path.stem for path in Path(commands.__file__).parent.glob("*.py")} - {"__init__"}
    named = {command.name for command in get_command(commands.app).commands.values()}
    assert named == files

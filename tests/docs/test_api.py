"""The API reference has every public name, and names nothing that is not there."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

import pixelrefer_fast as pf

FOLDER = Path(__file__).parents[2] / "docs" / "api"
NAMED = [name for page in sorted(FOLDER.glob("*.md")) for name in re.findall(r"^::: (\S+)$", page.read_text(), re.M)]
MODULES = {"ops", "verify", "__version__"}
SMALL = {"BACKENDS", "check_backend", "kernels_serve"}  # of ops: for providers and tests


def test_every_public_name_is_there() -> None:
    assert {name for name in pf.__all__ if f"pixelrefer_fast.{name}" not in NAMED} == MODULES
    ops = {name.rpartition(".")[2] for name in NAMED if name.startswith("pixelrefer_fast.ops.")}
    assert set(pf.ops.__all__) - ops == SMALL
    assert len(NAMED) == len(set(NAMED))


@pytest.mark.parametrize("name", [name for name in NAMED if ".engines.ray." not in name])
def test_each_says_what_it_is(name: str) -> None:
    module, _, own = name.rpartition(".")
    found = getattr(importlib.import_module(module), own)
    assert (found.__doc__ or "").strip()

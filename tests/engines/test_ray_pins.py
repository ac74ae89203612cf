"""Ray's own extra pins another vLLM than ours: the table of docs/vllm.md says which, as Ray's metadata does."""

from __future__ import annotations

from importlib.metadata import requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

pytest.importorskip("ray", reason="needs Ray: `make test-ray` installs it in an environment of its own")
PAGE = Path(__file__).parents[2] / "docs" / "vllm.md"


def test_the_table_says_which_vllm_rays_extra_pins() -> None:
    asked = [Requirement(line) for line in requires("ray") or []]
    (pinned,) = {str(one.specifier) for one in asked if one.name == "vllm" and "llm" in str(one.marker)}
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ray[llm] ")]
    (cells,) = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert cells[0] == f"ray[llm] {version('ray')}"
    assert cells[2] == f"by vllm {pinned}"
    (own,) = [one for line in requires("pixelrefer-fast") or [] if (one := Requirement(line)).name == "vllm"]
    assert not own.specifier.contains(pinned.removeprefix("=="))  # why the two do not go together

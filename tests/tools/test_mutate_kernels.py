"""The page of mutants: what was tried and noticed, and what survives with a reason or without."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(TOOLS)
    for name in ("mutate_kernels", "mutants", "mutant_traces"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("mutate_kernels")


def kept(tool: Any) -> dict[str, dict[str, Any]]:
    one = tool.Result("rope2d.rope2d", 80, "bfloat16", "barrier removed", "rope2d.py:30:4", "bar.sync 0", "race", "x")
    lost = replace(one, by=tool.SURVIVED, why="")
    results = [one, one, lost, lost, replace(lost, why="nobody meets", source="rope2d.py:31:4")]
    return {"rope2d sm_80": {"arch": 80, "commit": "abc1234", "calls": ["patches 16, bfloat16"]} | tool.summed(results)}


def test_the_page(tool: Any) -> None:
    page = tool.page(kept(tool))
    assert "Of 5 mutants 2 are noticed, by a check or by their results; 3 are not," in page
    assert "(2 are not explained)" in page
    assert "| rope2d.rope2d | sm_80 | bfloat16 | barrier removed | 5 | race 2 | 3 |" in page
    assert "| rope2d.rope2d | sm_80 | bfloat16 | barrier removed, 2 times | rope2d.py:30 | not explained |" in page
    assert "| rope2d.rope2d | sm_80 | bfloat16 | barrier removed | rope2d.py:31 | nobody meets |" in page
    assert "| rope2d | sm_80 | abc1234 | patches 16, bfloat16 |" in page
    assert "rope2d for sm_90" in page
    assert "rope2d for sm_80" not in page


def test_what_was_tried_before_stays(tool: Any, tmp_path: Path) -> None:
    file = tmp_path / "mutations.json"
    assert tool.read(file) == {}
    tool.write(file, kept(tool))
    assert tool.read(file) == kept(tool)


def test_survivors_without_a_reason_are_tried_again(tool: Any) -> None:
    own = kept(tool)["rope2d sm_80"]
    where = ("rope2d.rope2d", "bfloat16", "barrier removed", "rope2d.py:30:4", "bar.sync 0")
    assert tool.places(80, own) == {where: 2}
    lost = tool.Result(where[0], 80, *where[1:], tool.SURVIVED, "")
    results = [lost, replace(lost, by="results")]
    later = tool.tried_again(80, own, results)
    assert later["rows"] == [[*where[:3], {"nothing": 2, "race": 2, "results": 1}]]
    assert tool.places(80, later) == {where: 1}
    assert [s.why for s in tool.survivors({"rope2d sm_80": later})] == ["", "nobody meets"]
    with pytest.raises(ValueError, match="expected the survivors of the table, got others"):
        tool.tried_again(80, own, results[:1])


def test_every_kernel_file_has_calls(tool: Any) -> None:
    assert sorted(tool.CALLS) == [path.stem for path in tool.kernel_files()]


@pytest.mark.parametrize(
    ("first", "later", "expected"),
    [
        ("NOT_REACHED", ("race", "a finding"), ("race", "a finding")),
        ("covered", ("race", "a finding"), ("race", "a finding")),
        ("NOT_REACHED", (None, "covered"), (None, "covered")),
        ("covered", (None, "NOT_REACHED"), (None, "covered")),
        ("covered", (None, "covered"), (None, "covered")),
        ("covered", (None, "unread"), (None, "covered; unread")),
        ("covered", (None, ""), (None, "")),
        ("", (None, "covered"), (None, "")),
    ],
)
def test_a_survivor_that_is_tried_again(
    tool: Any, first: str, later: tuple[str | None, str], expected: tuple[str | None, str]
) -> None:
    import mutants

    def outcome(by: str | None, message: str) -> Any:
        return mutants.Outcome(None, by or mutants.SURVIVED, getattr(mutants, message, message))

    found = outcome(None, first).and_then(outcome(*later))
    assert found == outcome(*expected)

"""The page of hostile inputs: runs are added up, none of them twice, and it is that of the committed result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scripts import load_script

TOOL = Path(__file__).parents[2] / "tools" / "fuzz_page.py"


@pytest.fixture
def tool() -> Any:
    return load_script(TOOL)


WHERE = {"date": "2026-11-29T18:00:00+00:00", "commit": "0123456789abcdef", "dirty": False}


def run(seed: int, inputs: dict[str, dict[str, int]], failed: dict[str, str] | None = None) -> dict[str, Any]:
    return {**WHERE, "seed": seed, "seconds": 40.0, "inputs": inputs, "failed": failed or {}}


def test_runs_are_added_up(tool: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tool, "RESULT", tmp_path / "result.json")
    monkeypatch.setattr(tool, "PAGE", tmp_path / "page.md")
    kinds = [{"options": {"refused": 1_000, "options": 2}}, {"options": {"refused": 5}, "regions": {"read": 7}}]
    killed = {**WHERE, "model": "full", "kills": 3, "seed": 7, "lines": [0, 4, 9]}
    found = [run(1, kinds[0]), run(2, kinds[1], {"options": "input 5 of seed 2: KeyError: 3"}), killed]
    for number, one in enumerate(found):
        (tmp_path / f"{number}.json").write_text(json.dumps(one))
        assert tool.main(["--add", str(tmp_path / f"{number}.json")]) == 0
    text = (tmp_path / "page.md").read_text()
    for row in (
        "| options | 1,007 | refused 1,005, options 2 |",
        "| regions | 7 | read 7 |",
        "| all | 1,014 | |",
        "| 1 | 40 | 1,002 | nothing | 0123456789ab | 2026-11-29 |",
        "| 2 | 40 | 12 | options, input 5 of seed 2: KeyError: 3 | 0123456789ab | 2026-11-29 |",
        "| full | 3 | 2 | 7 | 0123456789ab | 2026-11-29 |",
    ):
        assert row in text.splitlines()
    (tmp_path / "page.md").unlink()
    assert tool.main([]) == 0
    assert (tmp_path / "page.md").read_text() == text


@pytest.mark.parametrize("change", [{"seed": 1}, {"dirty": True}, {"commit": None}])
def test_inputs_are_counted_once_and_are_of_a_commit(tool: Any, change: dict[str, Any]) -> None:
    results = tool.added({"runs": [], "kills": []}, run(1, {}))
    assert len(tool.added(results, run(2, {}))["runs"]) == 2
    with pytest.raises(ValueError, match="run: expected"):
        tool.added(results, run(2, {}) | change)


def test_kills_of_a_model_take_the_place_of_older_ones(tool: Any) -> None:
    results: dict[str, Any] = {"runs": [], "kills": []}
    for model, kills in (("full", 3), ("lite", 5), ("full", 50)):
        results = tool.added(results, {**WHERE, "model": model, "kills": kills, "seed": 7, "lines": []})
    assert [(one["model"], one["kills"]) for one in results["kills"]] == [("lite", 5), ("full", 50)]


def test_the_page_is_that_of_the_result(tool: Any) -> None:
    results = json.loads(tool.RESULT.read_text(encoding="utf-8"))
    assert tool.PAGE.read_text(encoding="utf-8") == tool.page(results)
    assert sum(sum(kinds.values()) for one in results["runs"] for kinds in one["inputs"].values()) >= 100_000
    assert not any(one["failed"] for one in results["runs"])

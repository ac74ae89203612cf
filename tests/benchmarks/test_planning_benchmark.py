"""The planning benchmark runs with small sizes, and its last line is one JSON document."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("name", ["lite-2b", "full-2b"])
def test_a_small_run(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("planning")
    for constant, value in {"OBJECTS": (1, 3), "HEIGHT": 480, "WIDTH": 640}.items():
        monkeypatch.setattr(module, constant, value)
    path = tmp_path / "planning.json"
    assert module.main(["--model", name, "--repeats", "2", "--json", str(path)]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert json.loads(path.read_text()) == [last]
    for times in (last["plan_ms"], last["count_nonzero_ms"]):
        assert set(times) == {"1", "3"}
        assert all(ms > 0 for ms in times.values())
    assert {"commit", "dirty", "command", "libraries", "date"} <= last.keys()

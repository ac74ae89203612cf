"""The throughput benchmark: a short run, its table and its page."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def throughput(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("throughput", BENCHMARKS / "throughput.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "throughput", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("load", ["many masks", "mixed"])
def test_a_load_at_two_batch_sizes(throughput: ModuleType, lite: Any, load: str) -> None:
    row = throughput.measure(lite, load, count=6, tokens=2, repeats=1, sizes=(1, 4))
    assert row["ok"]
    assert row["requests"] == 6
    assert row["objects"] >= 6
    assert row["equal"] == {"1": 6, "4": 6}
    assert row["speedup"]["1"]["median"] == 1.0
    assert set(row["seconds"]) == {"1", "4"}


def _result(throughput: ModuleType, ok: bool, seconds: float) -> dict[str, Any]:
    spread = {"1": {"q10": 4.0, "median": 4.0, "q90": 4.0}, "32": dict.fromkeys(("q10", "median", "q90"), seconds)}
    speedup = {size: {key: 4.0 / value for key, value in own.items()} for size, own in spread.items()}
    row = {"load": "mixed", "requests": 8, "objects": 8, "tokens": 3.0, "repeats": 1, "ok": ok}
    row |= {"equal": {"1": 8, "32": 8 if ok else 7}, "seconds": spread, "speedup": speedup}
    where = {
        "measured_on": "cpu",
        "dtype": "float32",
        "model": "embedded:lite",
        "kind": "lite",
        "parameters": 7_000_000,
    }
    return {**throughput.machine.provenance(), **where, "sizes": [1, 32], "rows": [row]}


@pytest.mark.parametrize(
    ("ok", "seconds", "speedup", "goal"),
    [
        (True, 1.0, "4.0x (4.0 to 4.0)", "at least 3x: met"),
        (True, 2.0, "2.0x (2.0 to 2.0)", "at least 3x: missed"),
        (False, 1.0, "none", "at least 3x: missed"),
    ],
)
def test_the_table_and_the_page(throughput: ModuleType, ok: bool, seconds: float, speedup: str, goal: str) -> None:
    result = _result(throughput, ok, seconds)
    _, (alone, batch) = throughput.table(result)
    assert alone[:2] == ["mixed, 1 at a time", "2.0"]
    assert batch == ["mixed, 32 at a time", f"{8 / seconds:.1f}", speedup, goal, f"{8 if ok else 7} of 8"]
    page = throughput.markdown(result)
    assert "embedded:lite (lite, 7.0 million parameters) in float32" in page
    assert goal in page


def test_bad_arguments(throughput: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--render"], ["--repeats", "0"], ["--sizes", "1,x"]):
        with pytest.raises(SystemExit):
            throughput.main(arguments)
        assert "usage" in capsys.readouterr().err

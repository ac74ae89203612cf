"""The benchmark's own parts, and one short run of it."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPT = BENCHMARKS / "region_stage.py"


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("_harness", BENCHMARKS / "_harness.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def region_stage(harness: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setitem(sys.modules, "_harness", harness)
    spec = importlib.util.spec_from_file_location("region_stage", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_flops_and_operations_are_counted(harness: ModuleType) -> None:
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    q = torch.ones(1, 2, 4, 8)

    def run() -> torch.Tensor:
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
        return a @ b

    counted = harness.count(run)
    assert counted["flops"] == 2 * 3 * 5 * 7 + 2 * (2 * 4 * 4 * 8 * 2)
    assert counted["operations"] >= 2


def test_errors_of_wrong_shapes_and_values_are_infinite(harness: ModuleType) -> None:
    want = torch.tensor([1.0, -4.0])
    assert harness.relative_error(torch.tensor([1.0, -3.0]), want) == 0.25
    assert math.isinf(harness.relative_error(torch.tensor([1.0]), want))
    assert math.isinf(harness.relative_error(torch.tensor([1.0, float("nan")]), want))


def test_candidates_run_in_turn(harness: ModuleType) -> None:
    calls: list[str] = []

    def candidate(name: str):
        def run() -> torch.Tensor:
            calls.append(name)
            return torch.zeros(1)

        return run

    seconds, outputs = harness.interleaved({"a": candidate("a"), "b": candidate("b")}, 3)
    assert calls == ["a", "b", "b", "a", "a", "b"]
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}
    assert outputs.keys() == {"a", "b"}


def test_a_machine_without_git(harness: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("COMMIT", "0123abc")
    assert harness.provenance()["commit"] == "0123abc"


def test_results_are_appended_whole(harness: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.json"
    harness.append_result(path, {"n": 1})
    harness.append_result(path, {"n": 2})
    assert harness.latest_result(path) == {"n": 2}
    assert len(json.loads(path.read_text())) == 2
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]
    provenance = harness.provenance()
    assert {"commit", "dirty", "cpu", "threads", "libraries", "date", "command"} <= provenance.keys()


def test_a_case_that_is_wrong_shows_no_speed_up(region_stage: ModuleType) -> None:
    runs = {"rival": lambda: torch.ones(4), "ours": lambda: torch.ones(4) * 1.001}
    row = region_stage.measure("a case", runs, {"objects": 1}, 2)
    assert not row["ok"]
    assert "speedup" not in row or row["speedup"] is None
    runs["ours"] = lambda: torch.ones(4) * (1 + 1e-6)
    row = region_stage.measure("a case", runs, {"objects": 1}, 2)
    assert row["ok"]
    assert row["speedup"]["median"] > 0


def test_bad_arguments_end_with_2(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--reference", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert str(tmp_path) in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_short_run_against_the_plain_loop(tmp_path: Path) -> None:
    out, page = tmp_path / "result.json", tmp_path / "page.md"
    command = [sys.executable, str(SCRIPT), "--repeats", "1", "--pixel-repeats", "1"]
    done = subprocess.run(
        [*command, "--json", str(out), "--markdown", str(page)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(out.read_text())
    assert len(result["rows"]) == 4
    for row in result["rows"]:
        assert row["ok"]
        assert row["error"] < 1e-4
        assert 0 < row["ours"]["flops"] < row["rival"]["flops"]
        assert row["case"] in page.read_text()
    by_case = {row["case"]: row for row in result["rows"]}
    one, many = by_case["region stage, 1 object"], by_case["region stage, 16 objects"]
    # the FLOPs that folding and sharing save, which do not depend on the machine (performance.md)
    assert one["ours"]["flops"] < 0.4 * one["rival"]["flops"]
    assert many["ours"]["flops"] < 0.21 * many["rival"]["flops"]

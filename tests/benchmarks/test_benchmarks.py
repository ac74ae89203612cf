"""The benchmark's own parts, and one short run of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from scripts import load_script

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPT = BENCHMARKS / "region_stage.py"


@pytest.fixture
def region_stage(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return load_script(SCRIPT)


def test_flops_and_operations_are_counted(region_stage: ModuleType) -> None:
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    q = torch.ones(1, 2, 4, 8)

    def run() -> torch.Tensor:
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
        return a @ b

    counted = region_stage.count(run)
    assert counted["flops"] == 2 * 3 * 5 * 7 + 2 * (2 * 4 * 4 * 8 * 2)
    assert counted["operations"] >= 2


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

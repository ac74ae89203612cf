"""docs/serving.md: its table is that of the result. (Its commands and programs: tests/docs/test_pages.py.)"""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
from scripts import load_script

from pixelrefer_fast.bench.report.tables import between

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script(ROOT / "benchmarks" / "serving.py")


def test_the_load_is_that_of_the_result(script: ModuleType) -> None:
    made = script.table(json.loads(script.RESULT.read_text(encoding="utf-8")))
    assert between(TEXT, script.MARKS, made) == TEXT


def test_a_short_run_measures_every_row(script: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    script.main(["--seconds", "0.2", "--callers", "1", "3", "--masks", "4", "--json", str(file)])
    found = json.loads(file.read_text(encoding="utf-8"))
    assert [row["callers"] for row in found["callers"]] == [1, 3]
    assert all(row["answers"] >= row["callers"] for row in found["callers"])
    assert all(0 < row["p50"] <= row["p99"] for row in found["callers"])
    assert [row["masks"] for row in found["masks"]] == [4]

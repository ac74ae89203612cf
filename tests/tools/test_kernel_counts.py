"""The gate of `make counts`: what grew is refused, and the committed table is that of the kernels as they are."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(TOOLS)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    for name in ("kernel_counts", "count_tables", "compile_check", "known_loads", "load_rules"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("kernel_counts")


@pytest.fixture
def counted(tool: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The tool with rows that are not counted but given, and tables of its own: (run, rows)."""
    loops = [["rope2d.py:30", 20, 1, 0, 12]]
    entry = "ROW=9, BLOCK_P=8, BLOCK_PAIRS=64, num_warps=4, num_stages=1"
    row = tool.CountRow("rope2d.rope2d", entry, 1, 4, 800, 12, 0, 60, 40, 16, 16, 8, loops, "patches 24, bf16", 80)
    rows = [row, replace(row, arch=90)]
    monkeypatch.setattr(tool, "count_all", lambda calls, workers: [[own] for own in rows])
    baseline = tmp_path / "resources.json"
    baseline.write_text('{"triton": "3", "rows": []}')
    monkeypatch.setattr(tool.compile_check, "BASELINE", baseline)

    def run(*arguments: str) -> int:
        return int(tool.main(["rope2d", "--table", str(tmp_path / "counts.json"), *arguments]))

    return run, rows


@pytest.mark.parametrize("name", ["instructions", "barriers", "products", "waits", "sectors", "wavefronts"])
def test_what_grew_is_refused_unless_it_is_accepted(
    counted: Any, name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run, rows = counted
    assert run("--update") == 0
    assert run() == 0
    written = (tmp_path / "counts.json").read_text()
    rows[1] = replace(rows[1], **{name: getattr(rows[1], name) + 9})
    assert run() == run("--update") == 1
    assert "rope2d.rope2d (patches 24, bf16;" in capsys.readouterr().err
    assert (tmp_path / "counts.json").read_text() == written
    assert run("--update", "--accept-worse") == 0
    assert run() == 0


def test_what_is_better_has_to_be_written(counted: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run, rows = counted
    run("--update")
    rows[0] = replace(rows[0], sectors=50)
    assert run() == 1
    assert "changed: rope2d.rope2d" in capsys.readouterr().err
    assert run("--update") == run() == 0


def test_what_moves_too_much_is_held_to_the_list(
    counted: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run, rows = counted
    run("--update")
    known = tmp_path / "loads.json"
    known.write_text("[]")
    assert run() == run("--update") == 1
    shown = "rope2d.rope2d (patches 24, bf16, sm_80): 1.5 times the ideal sectors, none in loads.json"
    assert shown in capsys.readouterr().err
    assert run("--update", "--accept-worse") == 0
    assert run() == 1
    assert "expected a reason" in capsys.readouterr().err
    known.write_text(known.read_text().replace('"reason": ""', '"reason": "as a test"'))
    assert run() == 0
    rows[:] = [replace(row, sectors=50) for row in rows]
    assert run() == 1
    assert run("--update") == run() == 0
    assert json.loads(known.read_text()) == []


def test_lines_of_the_source_are_printed_and_not_kept(
    counted: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run, rows = counted
    run("--update")
    assert "rope2d.py:30: 20, 1, 0, 3x" in capsys.readouterr().out
    assert "rope2d.py" not in (tmp_path / "counts.json").read_text()
    rows[0] = replace(rows[0], loops=[["rope2d.py:31", *rows[0].loops[0][1:]]])
    assert run() == 0


def test_the_page_has_what_a_kernel_does_beside_what_it_takes(counted: Any, tmp_path: Path) -> None:
    run, _ = counted
    run("--update")
    page = (tmp_path / "resources.md").read_text()
    assert "| 80 | 4 | 200 | 3 | 0 | 2 | 60, 1.50 | 16, 1.00 | 20, 1, 0, 3x |" in page


def test_a_configuration_that_no_call_reaches_is_refused(counted: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run, rows = counted
    rows[:] = [replace(row, configuration=row.configuration.replace("BLOCK_P=8", "BLOCK_P=4")) for row in rows]
    assert run("--update") == 1
    assert "rope2d.rope2d in the configuration {'BLOCK_P': 8" in capsys.readouterr().err


def test_every_operation_with_kernels_has_calls(tool: Any) -> None:
    stems = [path.stem for path in tool.compile_check.kernel_files()]
    assert sorted(tool.CALLS) == stems
    with pytest.raises(SystemExit, match="got none for forgotten"):
        tool.calls_of(["forgotten"], [80])


def test_the_committed_table_is_that_of_the_kernels(tool: Any) -> None:
    assert tool.main(["--listed"]) == 0


def test_a_call_of_the_table_is_counted_as_it_says() -> None:
    """One of them, on one architecture, through the whole tool; `make counts` counts all."""
    command = [sys.executable, str(TOOLS / "kernel_counts.py"), "add_norm", "--shape", "rows=8", "width=256"]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command += ["--arch", "90", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    (row,) = map(json.loads, done.stdout.splitlines())
    committed = json.loads((TOOLS.parent / "docs" / "kernels" / "counts.json").read_text(encoding="utf-8"))
    same = [r for r in committed["rows"] if (r["kernel"], r["call"], r["arch"]) == (row["kernel"], row["call"], 90)]
    import triton

    if triton.__version__ == committed["triton"]:
        assert same == [row]
    else:
        assert (same[0]["sectors"], same[0]["warps"]) == (row["sectors"], row["warps"])

"""The compile check refuses what it should, and its committed table is that of the kernels as they are."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
TOOL = REPOSITORY / "tools" / "compile_check.py"

# a block of BLOCK numbers lives in registers across a sum; `product` multiplies 64x64 matrices of DEPTH stages
SCRATCH = """
import triton
import triton.language as tl

from pixelrefer_fast.kernels._launch import CompileCase


@triton.jit
def scale(x, out, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    values = tl.load(x + place)
    tl.store(out + place, values / tl.sum(values))


@triton.jit
def product(a, b, out, steps, SIZE: tl.constexpr):
    place = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    total = tl.zeros((SIZE, SIZE), tl.float32)
    for i in range(steps):
        total = tl.dot(tl.load(a + i * SIZE + place), tl.load(b + i * SIZE + place), total)
    tl.store(out + place, total)


def compile_cases():
    yield from CASES
"""


def scratch(folder: Path, *cases: str) -> Path:
    path = folder / "scratch.py"
    path.write_text(SCRATCH + f"\n\nCASES = [{', '.join(cases)}]\n")
    return path


def scale(block: int, warps: int) -> str:
    signature = {"x": "*fp32", "out": "*fp32"}
    return (
        f'CompileCase(scale, "scratch.scale", "{block}", {signature}, {{"BLOCK": {block}}}, {{"num_warps": {warps}}})'
    )


def product(dtype: str, size: int, stages: int) -> str:
    signature = {"a": f"*{dtype}", "b": f"*{dtype}", "out": "*fp32", "steps": "i32"}
    options = {"num_warps": 4, "num_stages": stages}
    return (
        f'CompileCase(product, "scratch.product", "{dtype} {size}", {signature}, {{"SIZE": {size}}}, {options}, True)'
    )


def check(*arguments: str | Path, fails: bool = False) -> str:
    """Run the tool as `make compile-check` does and return what it printed."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == int(fails), done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def baseline(tmp_path: Path) -> Path:
    return tmp_path / "resources.json"


def test_what_spills_does_not_fit_or_misses_the_tensor_cores_is_refused(tmp_path: Path, baseline: Path) -> None:
    cases = scale(16384, 1), product("bf16", 128, 5), product("fp16", 16, 1), product("fp16", 64, 2)
    path = scratch(tmp_path, *cases)
    printed = check(path, "--arch", "90", "--baseline", baseline, "--update", fails=True)
    assert "scratch.scale (16384; BLOCK=16384, num_warps=1) on sm_90:" in printed
    assert "bytes of local memory a thread (spills)" in printed
    assert "scratch.product (bf16 128;" in printed
    assert "bytes of shared memory, a block has 232448" in printed
    assert "scratch.product (fp16 16; SIZE=16, num_warps=4, num_stages=1) on sm_90: expected wgmma" in printed
    assert "scratch.product (fp16 64;" not in printed
    assert "3 faults" in printed
    assert not baseline.exists()


def test_spills_of_another_triton_are_let_pass_as_far_as_they_are_known(tmp_path: Path, baseline: Path) -> None:
    path = scratch(tmp_path, scale(16384, 1), scale(128, 1))
    large, small = (f"scratch.scale ({n}; BLOCK={n}, num_warps=1) on sm_90" for n in (16384, 128))
    arguments = (path, "--arch", "90", "--baseline", baseline)
    (size,) = re.findall(rf"{re.escape(large)}: (\d+) bytes of local memory", check(*arguments, "--update", fails=True))
    version = importlib.metadata.version("triton")
    known = baseline.with_name("spills.json")

    known.write_text(json.dumps({version: {large: int(size) - 1}}))
    assert "1 faults" in check(*arguments, "--update", fails=True)
    known.write_text(json.dumps({version: {large: int(size), small: 8}}))
    assert f"{small}: does not spill" in check(*arguments, "--update", fails=True)
    known.write_text(json.dumps({version: {large: int(size)}}))
    assert "1 known spills" in check(*arguments, "--update")
    assert f"* {large}: {size}" in baseline.with_suffix(".md").read_text()
    # with the table's own Triton, which it is now, nothing may spill
    assert "spills" in check(*arguments, fails=True)


def test_a_kernel_that_takes_more_than_before_is_refused(tmp_path: Path, baseline: Path) -> None:
    path = scratch(tmp_path, product("bf16", 64, 2))
    arguments = (path, "--arch", "80", "90", "--baseline", baseline)
    assert "2 compiled" in check(*arguments, "--update")
    assert "none worse" in check(*arguments)
    written = baseline.read_text()
    assert {row["matrix"] for row in json.loads(written)["rows"]} == {"mma", "wgmma"}
    assert "scratch.product" in baseline.with_suffix(".md").read_text()

    table = json.loads(written)
    table["rows"][0]["registers"] -= 16
    table["rows"][1]["shared"] -= 1
    baseline.write_text(json.dumps(table))
    printed = check(*arguments, "--update", fails=True)
    assert (
        f"on sm_80: {table['rows'][0]['registers'] + 16} registers, {table['rows'][0]['registers']} before" in printed
    )
    assert f"on sm_90: {table['rows'][1]['shared'] + 1} bytes of shared memory" in printed
    assert json.loads(baseline.read_text()) == table
    check(*arguments, "--update", "--accept-worse")
    assert baseline.read_text() == written


def test_loads_that_break_a_rule_are_held_to_the_list(tmp_path: Path, baseline: Path) -> None:
    path = scratch(tmp_path, product("bf16", 64, 2))
    arguments = (path, "--arch", "80", "--baseline", baseline)
    check(*arguments, "--update")
    known = baseline.with_name("loads.json")
    known.write_text("[]")
    printed = check(*arguments, fails=True)
    assert "scratch.product (bf16 64, sm_80): 1 drained copies, none in loads.json" in printed
    check(*arguments, "--update", "--accept-worse")
    assert "expected a reason why scratch.product (bf16) has drained copies" in check(*arguments, fails=True)


def test_what_devices_with_less_shared_memory_cannot_take_is_refused(tmp_path: Path, baseline: Path) -> None:
    """Stages of 16 KiB: seven fit a block of sm_80, which has 163 KiB, and none of 99 KiB."""
    path = scratch(tmp_path, product("bf16", 64, 8), product("fp16", 64, 2))
    printed = check(path, "--arch", "80", "--baseline", baseline, "--update", fails=True)
    assert "scratch.product (bf16 64;" in printed
    assert "a block of sm_86, sm_89 and sm_120 has 101376: expected product in kernels/configs/scratch/sm_86" in printed
    assert "scratch.product (fp16 64;" not in printed
    assert not baseline.exists()


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The tool with configuration files of its own, in `tmp_path`."""
    monkeypatch.syspath_prepend(TOOL.parent)
    for name in ("compile_check", "count_tables"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    found = importlib.import_module("compile_check")
    monkeypatch.setattr(found, "KERNELS", tmp_path)
    folder = tmp_path / "configs" / "scratch"
    folder.mkdir(parents=True)
    (folder / "default.json").write_text('{"a": [{"BLOCK": 64, "num_warps": 4}], "b": [{"BLOCK": 8}]}')
    return found


def test_a_familys_configurations_are_compiled_for_its_devices_and_explained(tool: Any, tmp_path: Path) -> None:
    path = tmp_path / "configs" / "scratch" / "sm_86.json"
    path.write_text('{"a": [{"BLOCK": 32, "num_warps": 4, "reason": "64 do not fit"}]}')
    own, shared = (
        SimpleNamespace(name="scratch.a", constants={"BLOCK": n}, options={"num_warps": 4}) for n in (32, 64)
    )
    assert tool.compiled_for(own) == [86, 89, 120]
    assert tool.compiled_for(shared) == [80, 90, 100]
    rows = [tool.Row("scratch.a", "bf16", "BLOCK=32", arch, "", 8, 0, 2048, "") for arch in tool.compiled_for(own)]
    rows.append(tool.Row("scratch.a", "bf16", "BLOCK=64", 80, "", 9, 0, 2048, ""))
    page = tool.page("3", rows, [])
    assert "| scratch.a | sm_86, sm_89, sm_120 | BLOCK=32, num_warps=4 | 64 do not fit |" in page
    assert "| bf16 | BLOCK=32 |  | 8, 2 KiB | 8, 2 KiB | 8, 2 KiB |" in page
    # a kernel that the family has for itself is not judged by what it takes elsewhere
    row = tool.Row("scratch.a", "", "", 80, "", 8, 0, 160 * 1024, "")
    assert list(tool.tight([(shared, 80)], [row], {}, {})) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": [{"BLOCK": 32, "num_warps": 4}]}', "expected a reason in each entry of a"),
        ('{"b": [{"BLOCK": 8, "reason": "as it was"}]}', "b has the default's entries"),
    ],
)
def test_a_familys_configuration_has_a_reason(tool: Any, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "configs" / "scratch" / "sm_90.json").write_text(text)
    with pytest.raises(SystemExit, match=message):
        list(tool.shipped_entries("scratch"))


def test_a_table_of_other_kernels_is_refused(tmp_path: Path, baseline: Path) -> None:
    path = scratch(tmp_path, scale(128, 1))
    arguments = (path, "--arch", "90", "--baseline", baseline)
    check(*arguments, "--update")
    source = path.read_text()
    path.write_text(source.replace("@triton.jit\ndef scale", "# a comment changes nothing\n\n\n@triton.jit\ndef scale"))
    check(*arguments, "--listed")
    path.write_text(source.replace("values / tl.sum", "values * tl.sum"))
    assert "changed: scratch.scale" in check(*arguments, "--listed", fails=True)
    assert "changed: scratch.scale" in check(*arguments, fails=True)
    scratch(tmp_path, scale(256, 1))
    printed = check(*arguments, "--listed", fails=True)
    assert "not in the table: scratch.scale (256; BLOCK=256, num_warps=1) on sm_90" in printed
    assert "no kernel is so any more: scratch.scale (128; BLOCK=128, num_warps=1) on sm_90" in printed


def test_a_launched_kernel_without_cases_is_refused(tmp_path: Path, baseline: Path) -> None:
    path = scratch(tmp_path, scale(128, 1))
    path.write_text(path.read_text() + '\n\ndef run():\n    launch(scale, "scratch.forgotten", (1,))\n')
    assert "compile_cases() has none for scratch.forgotten" in check(path, "--baseline", baseline, fails=True)


def test_the_committed_table_is_that_of_the_kernels() -> None:
    """Every kernel file has cases, every shipped configuration is among them, and none has changed since."""
    check("--listed")


def test_kernels_compile_as_the_table_says() -> None:
    """One file for one architecture; `make compile-check` compiles all."""
    check(REPOSITORY / "kernels" / "rope2d.py", "--arch", "90")

"""The gate of `make emulate`: a failing run fails it, what passed is not run again, and the page says what was run."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "emulate.py"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("emulate", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "emulate", module)  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def emulate(tool: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The tool, with no job but one in each form, whose test is `tmp_path/test_it.py`."""
    for name in ("quick", "every"):
        jobs = [tool.Job("csrc", [str(tmp_path / "test_it.py")], "")]
        monkeypatch.setattr(tool, name, lambda jobs=jobs: jobs)
    monkeypatch.setattr(tool, "PAGE", tmp_path / "page.md")
    return tool


def test_every_architecture_and_mode_is_a_job_of_its_own(tool: Any) -> None:
    assert [job.name for job in tool.quick()] == ["sm_80, lockstep", "sm_90, lockstep", "csrc"]
    jobs = list(tool.every())
    assert len({job.stem for job in jobs}) == len(jobs)
    operations = set(tool.OPERATIONS)
    for mode, arch in itertools.product(tool.MODES, ("sm_80", "sm_90")):
        assert {op for job in jobs for op in job.operations if (job.mode, job.arch) == (mode, arch)} == operations
    assert tool.STRESSED.keys() <= operations
    assert {job.environment["EMULATE"] for job in jobs if job.arch} == {"sm_80", "sm_90"}
    assert all((TOOL.parents[1] / path).exists() for job in jobs for path in job.tests)


def test_each_order_and_each_rounding_is_in_a_mode(tool: Any) -> None:
    taken: dict[str, set[str]] = {}
    for variables in tool.MODES.values():
        for name, value in variables.items():
            taken.setdefault(name, set()).add(value)
    assert taken == {
        "EMULATE_SCHEDULE": {"forward", "reverse", "random"},
        "EMULATE_SEED": {"1", "2"},
        "EMULATE_ACCUMULATION": {"truncating"},
        "EMULATE_FUSION": {"never", "always"},
        "EMULATE_APPROXIMATE": {"-1", "1"},
        "EMULATE_WRAPS": {"1"},
    }


def test_a_run_depends_on_the_helpers_and_kernels_that_it_imports(tool: Any) -> None:
    read = tool._with_imports([tool.ROOT / "tests/ops/test_infuse_kernel.py", tool.ROOT / "kernels/infuse.py"])
    names = {path.relative_to(tool.ROOT).as_posix() for path in read}
    assert {"tests/helpers/infusion_case.py", "tests/helpers/kernel_place.py", "kernels/_folded.py"} <= names
    assert {"kernels/_infuse_parts.py", "kernels/_launch.py"} <= names  # of these the former is imported by _folded
    assert not {"tests/helpers/served.py", "kernels/_cluster_tile.py"} & names


def test_a_failing_run_fails(emulate: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    test = tmp_path / "test_it.py"
    test.write_text("def test_it(): assert 1 + 1 == 3\n")
    assert emulate.main(["--out", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr().out
    assert "FAILED: csrc" in printed
    assert "assert (1 + 1) == 3" in printed
    test.write_text("def test_it(): assert 1 + 1 == 2\n")
    assert emulate.main(["--out", str(tmp_path / "out")]) == 0
    assert not emulate.PAGE.exists()


def test_an_interrupted_long_form_is_gone_on_with(emulate: Any, tmp_path: Path) -> None:
    test = tmp_path / "test_it.py"
    count = tmp_path / "count"
    test.write_text(f"def test_it(): open({str(count)!r}, 'a').write('x')\n")
    arguments = ["--all", "--out", str(tmp_path / "out")]
    assert emulate.main(arguments) == emulate.main(arguments) == 0
    assert count.read_text() == "x"
    kept = tmp_path / "out" / "csrc.json"
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"sources": "others"}))
    assert emulate.main(arguments) == 0
    assert count.read_text() == "xx"
    commit = json.loads(kept.read_text())["commit"]
    assert re.fullmatch("[0-9a-f]{7,}(-dirty)?", commit)
    assert f"csrc, as nvcc compiles it: passed at {commit}." in emulate.PAGE.read_text()


def test_the_page_of_a_long_form_that_is_not_through(emulate: Any, tmp_path: Path) -> None:
    test = tmp_path / "test_it.py"
    test.write_text("def test_it(): pass\n")
    arguments = ["--out", str(tmp_path / "out")]
    assert emulate.main(["--page", *arguments]) == 0
    assert "## Not run yet\n\n* csrc\n" in emulate.PAGE.read_text()
    emulate.main(["--all", "--only", "csrc", *arguments])
    assert emulate.main(["--page", *arguments]) == 0
    assert "csrc, as nvcc compiles it: passed" in emulate.PAGE.read_text()
    assert "Not run" not in emulate.PAGE.read_text()


def test_the_page_names_what_failed_and_why_tests_were_skipped(tool: Any) -> None:
    kernels = {"gram": {"launches": 2, "instructions": 1500}, "pool": {"launches": 1, "instructions": 20}}
    run = {"name": "sm_80, forward", "arch": "sm_80", "mode": "forward", "ok": False, "passed": 7, "kernels": kernels}
    run |= {"operations": ["object_pool"], "commit": "abc1234"}
    text = tool.page([run | {"failed": ["tests/ops/test_x_kernel.py::test_y"], "skipped": {"no digits": 2}}])
    assert "| sm_80 | forward | object_pool | 7 passed, 1 failed | 2 | 3 | 1,520 | abc1234 |" in text
    assert "* tests/ops/test_x_kernel.py::test_y" in text
    assert "* no digits" in text

"""The README is short, and its first minute can be read by the tool that types it for a newcomer."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
LINES = 150
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def readme() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tools_readme", ROOT / "tools" / "readme.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["tools_readme"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_is_read_in_two_minutes() -> None:
    assert len(TEXT.splitlines()) <= LINES
    assert "/tmp/" not in TEXT
    assert "/home/" not in TEXT


def test_the_first_minute_has_a_program_and_commands(readme: ModuleType) -> None:
    """What comes out of them: tests/docs/test_pages.py."""
    typed = [step for step in readme.steps(TEXT) if not step.installs]
    assert [step.python for step in typed].count(True) == 1
    assert len(typed) >= 3
    assert all(step.printed for step in typed)


def test_a_step_is_run_where_it_is_told(readme: ModuleType, tmp_path: Path) -> None:
    binaries = Path(sys.executable).parent
    assert readme.run(readme.Step("import os; print(os.getcwd())", True, ""), tmp_path, binaries) == f"{tmp_path}\n"
    assert readme.run(readme.Step("echo a | cat", False, ""), tmp_path, binaries) == "a\n"
    with pytest.raises(subprocess.CalledProcessError):
        readme.run(readme.Step("exit 3", False, ""), tmp_path, binaries)


def test_the_installs_are_pips(readme: ModuleType) -> None:
    installs = [step.typed for step in readme.steps(TEXT) if step.installs]
    assert installs[-1] == "pip install ."
    assert "cpu" in installs[0]


def test_steps_of_another_text(readme: ModuleType) -> None:
    blocks = ("```console\n$ one --x  # why\n1\n2\n$ pip install a\n```", "```python\nb\n```", "```text\nc\n```")
    text = "\n".join(("# a\n\n## The first minute", *blocks, "\n## d"))
    found = [(step.typed, step.python, step.printed, step.installs) for step in readme.steps(text)]
    assert found == [
        ("one --x", False, "1\n2\n", False),
        ("pip install a", False, "", True),
        ("b\n", True, "c\n", False),
    ]
    with pytest.raises(ValueError, match="first minute"):
        list(readme.steps("# a"))
    with pytest.raises(ValueError, match="after each program"):
        list(readme.steps("\n## The first minute\n```python\nb\n```\n"))

"""The README is short, and its first minute can be read by the tool that types it for a newcomer."""

from __future__ import annotations

import argparse
import importlib.util
import os
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


def test_a_wheel_stands_in_for_the_clone(readme: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its installs are the README's, with the file where the checkout is named, and nothing may be compiled."""
    ran: list[str] = []
    monkeypatch.setattr(readme, "run", lambda step, folder, binaries: ran.append(step.typed) or "")
    monkeypatch.setattr(readme.subprocess, "run", lambda command, check: ran.append(command[0]))
    monkeypatch.setenv("PIP_ONLY_BINARY", "")
    monkeypatch.setenv("PIP_CONSTRAINT", "")
    options = argparse.Namespace(wheel=tmp_path / "a.whl", python="python3.12", torch="torch==2.13.0")
    binaries = readme.install([step.typed for step in readme.steps(TEXT) if step.installs], tmp_path, options)
    assert ran == ["python3.12", "pip install torch==2.13.0", f"pip install '{tmp_path / 'a.whl'}'"]
    assert binaries == tmp_path / "venv" / "bin"
    assert os.environ["PIP_ONLY_BINARY"] == ":all:"


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

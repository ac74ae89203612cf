"""What the tool of releases refuses, and which Pythons it finds; `make release` runs it whole."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
from scripts import load_script

TOOL = Path(__file__).parents[2] / "tools" / "release.py"


@pytest.fixture
def tool() -> ModuleType:
    return load_script(TOOL)


def _program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_a_python_that_does_not_run_is_passed_over(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pyenv puts a program on the PATH for each Python that any of its versions has; not each can be run."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("HOME", str(tmp_path))
    _program(tmp_path / "bin" / "python3.12", "exit 127")
    assert tool.interpreter("3.12") is None
    home = tmp_path / ".pyenv" / "versions"
    _program(home / "3.12.1" / "bin" / "python3.12", "exit 0")
    _program(home / "3.1.2" / "bin" / "python3.1", "exit 0")
    assert tool.interpreter("3.12") == str(home / "3.12.1" / "bin" / "python3.12")
    assert tool.interpreter("3.13") is None
    assert tool.tried("3.13", "torch") == "not on this machine"


def test_a_command_that_fails_says_all(tool: ModuleType, tmp_path: Path) -> None:
    _program(tmp_path / "command", "echo out; echo why >&2; exit 3")
    with pytest.raises(tool.Refused, match=r"command one\nout\nwhy\n$"):
        tool.ran([tmp_path / "command", "one"])


def test_an_archive_that_grew_is_refused(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "ran", lambda command: "")
    archive = tmp_path / "a.tar.gz"
    archive.touch()
    os.truncate(archive, tool.LIMIT)
    tool.checked(tmp_path)
    os.truncate(archive, tool.LIMIT + 1)
    with pytest.raises(tool.Refused, match=r"^a.tar.gz: expected at most 20971520 bytes, got 20971521$"):
        tool.checked(tmp_path)


@pytest.mark.parametrize(
    ("wheel", "said", "refused"),
    [
        ("p-1-cp310-abi3-manylinux_2_28_x86_64.whl", "the extension loads", False),
        ("p-1-cp310-abi3-manylinux_2_28_x86_64.whl", "pixelrefer_fast._C is not built", True),
        ("p-1-py3-none-any.whl", "pixelrefer_fast._C is not built (pixelrefer-fast doctor --build)", False),
        ("p-1-py3-none-any.whl", "the extension loads", True),
    ],
)
def test_each_wheel_has_the_extension_or_has_it_not(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wheel: str, said: str, refused: bool
) -> None:
    asked: list[list[str]] = []
    looked_in: list[str] = []

    def ran(command: list[str | Path], env: dict[str, str]) -> str:
        asked.append(list(map(str, command)))
        looked_in.append(env["PIP_FIND_LINKS"])
        return f"purple\n{said}\n"

    monkeypatch.setattr(tool, "ran", ran)
    monkeypatch.setenv("PIP_FIND_LINKS", "elsewhere")
    if refused:
        with pytest.raises(tool.Refused, match=f"^{wheel}: expected '.*', got '{said}"):
            tool.asked(Path(wheel), sys.executable, "torch==2.13.0+cpu", tmp_path)
    else:
        tool.asked(Path(wheel), sys.executable, "torch==2.13.0+cpu", tmp_path)
    assert {"--fresh", f"--wheel={wheel}", "--torch=torch==2.13.0+cpu", "--also=pixelrefer-fast verify"} <= set(
        asked[0]
    )
    assert looked_in == [f"{tmp_path} elsewhere"]
    assert os.environ["PIP_FIND_LINKS"] == "elsewhere"  # the next Python's torch is not this one's


def test_another_system_is_told_so(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["release.py", "--once"])
    monkeypatch.setattr(tool.platform, "machine", lambda: "riscv64")
    with pytest.raises(tool.Refused, match=r"^expected Linux on x86-64, whose wheel is built, got \w+ on riscv64$"):
        tool.main()


def test_a_clone_is_of_the_commit_whatever_comes_after(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "ROOT", tmp_path / "origin")
    origin = ["git", "-C", tmp_path / "origin", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    tool.ran(["git", "init", "-q", tmp_path / "origin"])
    commits = []
    for text in ("before", "after"):
        (tmp_path / "origin" / "file").write_text(text)
        tool.ran([*origin, "add", "file"])
        tool.ran([*origin, "commit", "-qm", text])
        commits.append(tool.ran([*origin, "rev-parse", "HEAD"]).strip())
    clone = tool.cloned(commits[0], tmp_path / "clone", 0o077)
    assert (clone / "file").read_text() == "before"
    assert (clone / "file").stat().st_mode & 0o777 == 0o600

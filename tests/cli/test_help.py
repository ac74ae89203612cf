"""The command line: help, versions, start-up."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

import pixelrefer_fast

COMMANDS = (
    "describe",
    "ask",
    "encode",
    "convert",
    "verify",
    "doctor",
    "demo",
    "eval",
    "bench",
    "profile",
    "estimate",
    "serve",
    "web",
    "train",
    "world",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(run: Callable[..., SimpleNamespace], command: str) -> None:
    result = run(command, "--help")
    assert result.code == 0
    assert f"$ pixelrefer-fast {command}" in " ".join(result.out.split())
    assert "--json" in result.out or command in ("serve", "web")  # they print no document
    assert result.err == ""


def test_help_version_and_no_command(run: Callable[..., SimpleNamespace]) -> None:
    result = run("--help")
    assert result.code == 0
    assert all(command in result.out for command in COMMANDS)
    assert run("--version").out == f"pixelrefer-fast {pixelrefer_fast.__version__}\n"
    nothing = run()
    assert nothing.code == 2
    assert "describe" in nothing.out


def test_the_shell_can_complete(run: Callable[..., SimpleNamespace], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--install-completion" in run("--help").out
    script = subprocess.run(
        [sys.executable, "-m", "pixelrefer_fast.cli"],
        env={
            **os.environ,
            "_PIXELREFER_FAST_COMPLETE": "complete_bash",
            "COMP_WORDS": "pixelrefer-fast de",
            "COMP_CWORD": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert script.stdout.split() == ["describe", "demo"], script.stderr


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from pixelrefer_fast import cli; assert cli.main(['describe', '--help']) == 0; "
        "heavy = {'torch', 'numpy', 'cv2', 'av', 'PIL', 'transformers'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_installed_command_runs(image: str) -> None:
    command = str(Path(sys.executable).with_name("pixelrefer-fast"))
    assert subprocess.run([command, "--version"], capture_output=True, check=True).stdout.startswith(b"pixelrefer-fast")
    ran = subprocess.run([command, "describe", image, "--model", "m"], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)

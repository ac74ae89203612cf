"""Who types a page: its Python in one namespace, its commands in one folder, from top to bottom."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pages import Block, Command, blocks, commands, matches

from pixelrefer_fast import cli

ROOT = Path(__file__).parents[2]
GIVEN = "## What the examples use"
PORTS = ("8123", "7860", "8000", "8001")
SECONDS = 300
CHECKOUT = re.compile(r"^make |\b(benchmarks|tools|training|tests)/")  # commands for a checkout


def given(text: str) -> Block:
    """The block of the quickstart that makes what the examples of all pages use."""
    (block,) = (block for block in blocks(text.partition(f"\n{GIVEN}\n")[2]) if block.language == "python")
    return block


class Typist:
    """Types one page, in the current folder.

    Args:
        folder: the current folder, where the page's files are and come to be.
        names: what its Python finds defined.
    """

    def __init__(self, folder: Path, names: dict[str, Any]) -> None:
        self.folder = folder
        self.names = names
        self.running: list[subprocess.Popen[str]] = []
        self.ports = {port: str(free_port()) for port in PORTS}

    def type(self, block: Block) -> None:
        """Run a block.

        Raises:
            AssertionError: it fails, or prints something else than the page says.
        """
        if block.language == "python":
            found = self.program(block)
            assert block.printed is None or matches(block.printed, found), f"line {block.line} prints\n{found}"
            return
        for command in commands(block):
            if command.installs:
                continue
            if "goes on until" in block.marks:
                self.begin(command, block.marks["goes on until"])
            else:
                code, found = self.command(self.here(command.typed))
                assert code == 0, f"{command.typed!r} ends with {code}:\n{found}"
                assert not command.printed.strip() or matches(command.printed, found), (
                    f"{command.typed!r} prints\n{found}"
                )

    def here(self, typed: str) -> str:
        """With ports that are free."""
        for port, free in self.ports.items():
            typed = typed.replace(port, free)
        return typed

    def program(self, block: Block) -> str:
        """What a program prints. It may wait outside of a function, as in a notebook."""
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        code = compile(self.here(block.body), f"line {block.line}", "exec", flags=flags, dont_inherit=True)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            made = eval(code, self.names)
            if inspect.iscoroutine(made):
                asyncio.run(made)
        return printed.getvalue()

    def command(self, typed: str) -> tuple[int, str]:
        """How a command ends and what it prints: our own command in this process, all else in a shell."""
        words = shlex.split(typed)
        if words[0] == "pixelrefer-fast" and not set("|<>;&$") & set(typed) and not CHECKOUT.search(typed):
            printed, told = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(told):
                code = cli.main(words[1:])
            return code, printed.getvalue() + (told.getvalue() if code else "")
        done = subprocess.run(
            ["bash", "-c", typed],
            cwd=ROOT if CHECKOUT.search(typed) else self.folder,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        return done.returncode, done.stdout + (done.stderr if done.returncode else "")

    def begin(self, command: Command, until: str) -> None:
        """Start a command that does not end, and read on until it has said this."""
        process = subprocess.Popen(
            ["bash", "-c", f"exec {self.here(command.typed)} 2>&1"],
            cwd=self.folder,
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        self.running.append(process)
        told, end = "", time.monotonic() + SECONDS
        assert process.stdout is not None
        while until not in told:
            line = process.stdout.readline()
            assert line, f"{command.typed!r} ended:\n{told}"
            assert time.monotonic() < end, told
            told += line

    def leave(self) -> None:
        """End what goes on, which it does without an error."""
        try:
            for process in self.running:
                process.send_signal(signal.SIGTERM)
                process.communicate(timeout=60)
                assert process.returncode in (0, -signal.SIGTERM, 128 + signal.SIGTERM)
        finally:
            for process in self.running:
                process.kill()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def environment() -> dict[str, str]:
    return os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


@contextlib.contextmanager
def typing_in(folder: Path, names: dict[str, Any]) -> Iterator[Typist]:
    typist = Typist(folder, names)
    try:
        yield typist
    finally:
        typist.leave()

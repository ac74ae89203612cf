"""docs/serving.md: every command and program of it is run as it stands, and its table is that of the result."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from pixelrefer_fast.world import make_scene

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
PORT = "8123"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.M | re.S)


def commands() -> list[tuple[str, str]]:
    """What is typed, and what is printed after it."""
    found: list[tuple[str, str]] = []
    for kind, block in BLOCKS:
        if kind == "console":
            for entry in re.split(r"^\$ ", block, flags=re.M)[1:]:
                typed, _, printed = entry.partition("\n")
                found.append((typed, printed))
    return found


def pattern(printed: str) -> str:
    """`...` stands for anything."""
    return re.escape(printed.strip()).replace(r"\.\.\.", ".*")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder with the README's picture and the keys, and the port of the server that the page starts there."""
    folder = tmp_path_factory.mktemp("page")
    Image.fromarray(make_scene(102, "heldout", video=False).frames[0]).save(folder / "scene.png")
    (folder / "keys.txt").write_text("secret\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    (serve,) = (typed for typed, _ in commands() if typed.startswith("pixelrefer-fast serve"))
    assert serve.endswith(f"--port {PORT}")
    server = subprocess.Popen(
        ["bash", "-c", "exec " + serve.replace(PORT, port)], cwd=folder, env=environment(), stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert server.stderr is not None
        told = ""
        while f"running on http://127.0.0.1:{port}" not in told:
            line = server.stderr.readline()
            assert line, told
            told += line
        yield folder, port
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
    finally:
        server.kill()
        server.communicate()


def environment() -> dict[str, str]:
    return os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def test_each_command_prints_what_the_page_says(place: tuple[Path, str]) -> None:
    folder, port = place
    asked = [(typed, printed) for typed, printed in commands() if typed.startswith("curl")]
    assert len(asked) >= 5
    for typed, printed in asked:
        found = subprocess.run(
            ["bash", "-c", typed.replace(PORT, port)], cwd=folder, env=environment(), capture_output=True, text=True,
            timeout=60,
        )  # fmt: skip
        assert re.fullmatch(pattern(printed), found.stdout.strip(), re.S), f"{typed}\n{found.stdout}{found.stderr}"


def test_each_program_prints_what_the_page_says(place: tuple[Path, str]) -> None:
    folder, port = place
    programs = [at for at, (kind, _) in enumerate(BLOCKS) if kind == "python"]
    assert programs
    for at in programs:
        kind, printed = BLOCKS[at + 1]
        assert kind == "text"
        code = textwrap.dedent(BLOCKS[at][1]).replace(PORT, port)
        found = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=60)
        assert found.stdout == printed, found.stderr


def test_nothing_else_is_typed() -> None:
    for typed, _ in commands():
        assert typed.startswith(("curl ", "pixelrefer-fast serve ", "pip install '.[serve]'")), typed


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmarks_serving", ROOT / "benchmarks" / "serving.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_load_is_that_of_the_result(benchmark: ModuleType) -> None:
    made = benchmark.table(json.loads(benchmark.RESULT.read_text(encoding="utf-8")))
    assert benchmark.written(TEXT, made) == TEXT
    with pytest.raises(ValueError, match="page: expected"):
        benchmark.written("no marks", made)


def test_a_short_run_measures_every_row(benchmark: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    benchmark.main(["--seconds", "0.2", "--callers", "1", "3", "--masks", "4", "--json", str(file)])
    found = json.loads(file.read_text(encoding="utf-8"))
    assert [row["callers"] for row in found["callers"]] == [1, 3]
    assert all(row["answers"] >= row["callers"] for row in found["callers"])
    assert all(0 < row["p50"] <= row["p99"] for row in found["callers"])
    assert [row["masks"] for row in found["masks"]] == [4]

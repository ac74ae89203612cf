"""The command line when something goes wrong: exit codes, closed streams, signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command_line import ASSETS, FakeModel, default_signals, one_error_line
from PIL import Image

from pixelrefer_fast.batching import Answer


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (
            ValueError("region 0: expected\nsomething \x1b[2J else"),
            2,
            "error: region 0: expected something \\x1b[2J else",
        ),
        (FileNotFoundError(2, "No such file", "w.bin"), 2, "w.bin"),
        (RuntimeError("out of memory"), 1, "failed: RuntimeError: out of memory (set PIXELREFER_FAST_TRACEBACK=1"),
        (KeyError("x"), 1, "failed: KeyError: 'x'"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors_of_the_model(
    run: Callable[..., SimpleNamespace],
    model: FakeModel,
    image: str,
    error: BaseException,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(model, "describe", fails)
    result = run("describe", image, "--box", "1,1,9,9", "--json")
    assert result.code == code
    assert result.out == ""
    assert "Traceback" not in result.err
    assert said in result.err
    assert len(result.err.splitlines()) == (1 if said else 0)


def test_traceback_on_request(
    run: Callable[..., SimpleNamespace], model: FakeModel, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "describe", lambda *_, **__: 1 / 0)
    assert "Traceback" not in run("describe", image, "--box", "1,1,9,9").err
    monkeypatch.setenv("PIXELREFER_FAST_TRACEBACK", "1")
    result = run("describe", image, "--box", "1,1,9,9")
    assert result.code == 1
    assert "Traceback" in result.err


def test_a_reader_that_has_gone_is_no_error() -> None:
    script = "import sys; from pixelrefer_fast import cli; sys.exit(cli.main(['--help']))"
    reader, writer = os.pipe()
    os.close(reader)
    ran = subprocess.run([sys.executable, "-c", script], stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert ran.returncode == 1
    assert ran.stderr == ""


CLOSED = """
import os, sys
import pixelrefer_fast
from pixelrefer_fast import cli
from pixelrefer_fast.batching import Answer
class Model:
    def describe(self, media, regions, question=None, **options):
        print("a library says hello"); print("and complains", file=sys.stderr); os.write(2, b"from C")
        return [Answer(0, "x", finish="stop")]
pixelrefer_fast.load = lambda name, **where: Model()
sys.exit(cli.main(sys.argv[1:]))
"""


def closed(which: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A process that starts with standard streams closed, as `2>&-` in a shell does."""
    command = ["sh", "-c", f'exec "$@" {which}', "sh", sys.executable, "-c", CLOSED, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_closed_standard_streams(image: str, tmp_path: Path) -> None:
    good = ("describe", image, "--box", "1,1,9,9", "--model", "m")
    saved = tmp_path / "saved.png"
    for which in ("2>&-", "<&- 2>&-"):
        ran = closed(which, *good, "--save", str(saved))
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, "0: x\n", "")
        with Image.open(saved) as picture:
            picture.load()
    bad = closed("2>&-", "describe", str(tmp_path / "gone.png"), "--box", "1,1,9,9", "--model", "m")
    assert (bad.returncode, bad.stdout, bad.stderr) == (2, "", "")
    ran = closed(">&-", *good)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == "failed: standard output is closed: there is nowhere to write an answer to\n"
    assert closed(">&- 2>&-", *good).returncode == 1
    assert closed("<&-", *good).returncode == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full, a disk without room, is Linux's")
def test_standard_output_without_room(image: str) -> None:
    ran = closed(">/dev/full", "describe", image, "--box", "1,1,9,9", "--model", "m")
    assert ran.returncode == 1
    assert ran.stderr.count("failed: ") == 1
    assert "No space left" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert "Exception ignored" not in ran.stderr


def test_arguments_that_are_not_text(run: Callable[..., SimpleNamespace], image: str, tmp_path: Path) -> None:
    rest = ("--box", "1,1,9,9", "--max-new-tokens", "2", "--model", str(ASSETS / "lite"))
    cases = (  # Python puts \udcff in the place of a byte FF that is no UTF-8
        ("ask", image, "What is <region>\udcff?", *rest),
        ("describe", image, "--question", "\udcff <region>", *rest),
        ("describe", f"{tmp_path}/caf\udce9.png", *rest),
        ("describe", image, "--box", "\udcff", *rest),
        ("describe", image, "--\udcff", *rest),
        ("doctor", "--\udcff\x1b"),
    )
    for arguments in cases:
        result = run(*arguments)
        one_error_line(result)
        assert result.err[:-1].isprintable()
    command = [sys.executable, "-m", "pixelrefer_fast.cli", *map(os.fsencode, cases[2])]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)


def test_warnings_are_lines_on_stderr(
    run: Callable[..., SimpleNamespace], model: FakeModel, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def warned(*_: object, **__: object) -> list[Answer]:
        warnings.warn("region 0: tiny", stacklevel=1)
        return [Answer(0, "x", finish="stop")]

    monkeypatch.setattr(model, "describe", warned)
    result = run("describe", image, "--box", "1,1,9,9")
    assert result.out == "0: x\n"
    assert result.err == "warning: region 0: tiny\n"


SLOW = """
import sys, time
from pixelrefer_fast import cli
from pixelrefer_fast.checkpoint import folder
def write(path, tensors):
    path.write_bytes(b"half of the weights")
    print("writing", flush=True, file=sys.stderr)
    time.sleep(60)
folder.write_safetensors = write
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("there", "number", "code"), [(False, signal.SIGTERM, 143), (True, signal.SIGHUP, 129), (True, signal.SIGINT, 130)]
)
def test_a_convert_that_is_ended_leaves_nothing(tmp_path: Path, there: bool, number: int, code: int) -> None:
    target = tmp_path / "new"
    if there:
        target.mkdir()
    command = [sys.executable, "-c", SLOW, "convert", str(ASSETS / "lite"), str(target)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, preexec_fn=default_signals) as child:
        assert child.stderr is not None
        assert child.stderr.readline() == "writing\n"
        assert list(tmp_path.rglob("*.partial"))
        child.send_signal(number)
        assert child.wait(30) == code
        assert child.stderr.read() == ""
    assert list(tmp_path.rglob("*")) == ([target] if there else [])

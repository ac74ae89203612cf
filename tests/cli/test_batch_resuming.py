"""`describe --batch` goes on where it ended, whatever ended it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from batch_files import BOX, Counting, Run, many, records, write
from command_line import ASSETS, default_signals, one_error_line
from run_results import write_result


@pytest.mark.parametrize("kept", [0, 1, 7, 25, 26])
@pytest.mark.parametrize("tail", [b"", b'{"line": 27, "te', b"\x00" * 40, b"\n", b"{}\n", b'"text"'])
def test_goes_on_behind_the_last_whole_line(
    start: Run, whole: bytes, kept: int, tail: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = whole.splitlines(keepends=True)
    Path("out.jsonl.part").write_bytes(b"".join(lines[:kept]) + tail)
    counting = Counting(monkeypatch)
    result = start()
    assert result.code == 2
    assert Path("out.jsonl").read_bytes() == whole
    assert not Path("out.jsonl.part").exists()
    assert counting.requests == 26 - kept
    assert (f"{kept} of them there before" in result.out) == (kept > 0)


def test_a_complete_result_is_left_alone(start: Run, whole: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("out.jsonl").write_bytes(whole)
    counting = Counting(monkeypatch)
    result = start()
    assert (result.code, counting.requests) == (2, 0)
    assert "26 of them there before" in result.out
    assert Path("out.jsonl").read_bytes() == whole


def test_lines_may_be_added_meanwhile(start: Run, whole: bytes) -> None:
    Path("out.jsonl.part").write_bytes(b"".join(whole.splitlines(keepends=True)[:9]))
    with open("in.jsonl", "a") as file:
        file.write(json.dumps(many(1)[0]) + "\n")
    assert start().code == 2
    assert records()[:-1] == [json.loads(line) for line in whole.splitlines()]
    assert records()[-1]["line"] == 27


@pytest.mark.parametrize("there", ["out.jsonl", "out.jsonl.part"])
def test_another_input_model_or_option_is_refused(start: Run, whole: bytes, there: str, lite: Any) -> None:
    given = Path("in.jsonl").read_bytes()
    result_so_far = whole if there == "out.jsonl" else whole[:300]
    Path(there).write_bytes(result_so_far)
    one_error_line(start("--question", "What is <region>?"), f"{there}: expected the question it was made with")
    one_error_line(start("--temperature", "0.5"), "expected the options it was made with")
    for changed in (given.replace(b"garbage", b"garbagE"), given[:-30], b""):
        Path("in.jsonl").write_bytes(changed)
        one_error_line(start(), "in.jsonl: expected the lines from which", "to start anew")
    Path("in.jsonl").write_bytes(given)
    assert Path(there).read_bytes() == result_so_far
    assert start().code == 2


@pytest.mark.parametrize("damaged", [b"garbage\n", b'{"line": 1}\n{"line": 1}\n', b"[]\n"])
def test_a_damaged_result_is_refused(start: Run, whole: bytes, damaged: bytes) -> None:
    content = damaged + whole
    Path("out.jsonl.part").write_bytes(content)
    one_error_line(start(), "out.jsonl.part, line ", "expected a result")
    assert Path("out.jsonl.part").read_bytes() == content


def test_files_of_others_are_not_touched(start: Run) -> None:
    write(many(1))
    for name, said in (("out.jsonl", "expected a free name"), ("out.jsonl.part", "expected out.jsonl.run.json")):
        Path(name).write_text("mine\n")
        one_error_line(start(), f"{name}: {said}")
        assert Path(name).read_text() == "mine\n"
        Path(name).unlink()
    for content in ("mine", "{}", '{"input": 3, "run": {}}', '{"input": {"bytes": -1}, "run": 0}'):
        Path("out.jsonl.run.json").write_text(content)
        one_error_line(start(), "out.jsonl.run.json")
        assert Path("out.jsonl.run.json").read_text() == content


def test_only_one_run_writes_a_result(start: Run) -> None:
    import fcntl

    write(many(3))
    with open("out.jsonl.part", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        Path("out.jsonl.run.json").write_text("{}")
        Path("out.jsonl.run.json").unlink()
        one_error_line(start(), "out.jsonl.part: another run is writing it")
        file.close()
        Path("out.jsonl.part").unlink()
    assert start().code == 0
    Path("out.jsonl").rename("out.jsonl.part")
    with open("out.jsonl.part", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        one_error_line(start(), "out.jsonl.part: another run is writing it")
    assert start().code == 0


def _requests(count: int) -> None:
    lines: list[Any] = many(count)
    lines[77] = "garbage"
    lines[200] = {"id": 200, "image": "missing.png", "box": BOX}
    write(lines)


KILLS, SEED = int(os.environ.get("KILLS", "5")), 7
"""Of each model, at moments drawn from the seed; `make kills` makes many, and keeps what was found."""


@pytest.mark.parametrize("kind", ["lite", "full"])
def test_killed_at_random_moments(folder: Path, kind: str) -> None:
    _requests(500)
    helper = Path(__file__).parents[1] / "helpers" / "killed_batch.py"
    files = ("in.jsonl", "killed.jsonl", "whole.jsonl")
    command = [sys.executable, str(helper), str(ASSETS / kind), *files, str(KILLS), str(SEED)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=600 + 30 * KILLS, check=False
    )
    assert done.returncode == 0, done.stderr
    *found, code, code_of_whole = json.loads(done.stdout.splitlines()[-1])
    assert (code, code_of_whole) == (2, 2)
    assert sum(0 < lines < 500 for lines in found) >= 0.6 * KILLS
    assert found == sorted(found)
    killed = records("killed.jsonl")
    assert [r["line"] for r in killed] == list(range(1, 501))
    assert [r["line"] for r in killed if "error" in r] == [78, 201]
    assert Path("whole.jsonl").read_bytes() == Path("killed.jsonl").read_bytes()
    if results := os.environ.get("KILLS_RESULTS"):
        write_result(Path(results) / f"{kind}.json", {"model": kind, "kills": KILLS, "seed": SEED, "lines": found})


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_installed_command_killed_and_started_again(folder: Path, number: signal.Signals) -> None:
    _requests(500)
    command = [str(Path(sys.executable).with_name("pixelrefer-fast")), "describe", "--batch", "in.jsonl"]
    command += ["--out", "out.jsonl", "--max-new-tokens", "3", "--model", str(ASSETS / "lite")]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=default_signals)
    while not Path("out.jsonl.part").exists() or Path("out.jsonl.part").read_bytes().count(b"\n") < 50:
        assert first.poll() is None
        time.sleep(0.01)
    first.send_signal(number)
    said = first.communicate(timeout=60)[1]
    assert first.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    assert "Traceback" not in said
    assert ("the same command goes on from here" in said) == (number != signal.SIGKILL)
    before = Path("out.jsonl.part").read_bytes()
    again = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 2, again.stderr
    assert Path("out.jsonl").read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    assert [r["line"] for r in records()] == list(range(1, 501))


@pytest.mark.slow
def test_ten_thousand_requests_in_flat_memory(start: Run, lite: Any) -> None:
    """A soak: what a run holds does not grow with its lines."""
    sizes: list[int] = []
    done = threading.Event()

    def watch() -> Iterator[int]:
        while not done.wait(0.5):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            yield pages * os.sysconf("SC_PAGE_SIZE")

    watcher = threading.Thread(target=lambda: sizes.extend(watch()))
    watcher.start()
    write(many(10_000))
    result = start()
    done.set()
    watcher.join()
    assert result.code == 0
    with open("out.jsonl") as file:
        assert sum(1 for _ in file) == 10_000
    early = max(sizes[len(sizes) // 10 : len(sizes) // 4])
    late = max(sizes[-len(sizes) // 4 :])
    assert late - early < 24 * 2**20, (early, late)

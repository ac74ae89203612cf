"""What a batch finds where its results go: failed lines, changed and tampered files, special files, links."""

from __future__ import annotations

import io
import json
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from batch_files import BOX, Counting, Run, many, records, write
from command_line import HEIGHT, WIDTH, one_error_line
from PIL import Image

from pixelrefer_fast.cli.batch import run as batch_module


def _run_with_memory_for(start: Run, monkeypatch: pytest.MonkeyPatch, lacking: str, *arguments: str) -> SimpleNamespace:
    """A run in which Pillow has no memory to decode one image."""
    from PIL import PngImagePlugin

    load = PngImagePlugin.PngImageFile.load

    def short(image: Any) -> Any:
        if str(getattr(image, "filename", "")).endswith(lacking):
            raise MemoryError
        return load(image)

    with monkeypatch.context() as patch:
        patch.setattr(PngImagePlugin.PngImageFile, "load", short)
        return start(*arguments)


def test_lines_that_failed_for_memory_are_asked_again(
    start: Run, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the run was complete, and where it was ended in between."""
    result = _run_with_memory_for(start, monkeypatch, "1.png")
    failed = [r["line"] for r in records() if r.get("failure") == "run"]
    assert (result.code, len(failed)) == (1, 9)
    assert all("memory" in r["error"] for r in records() if r["line"] in failed)
    counting = Counting(monkeypatch)
    result = start()
    assert result.code == 2
    assert Path("out.jsonl").read_bytes() == whole
    assert counting.requests == 9
    Path("out.jsonl").unlink()
    _run_with_memory_for(start, monkeypatch, "1.png")
    Path("out.jsonl.part").write_bytes(b"".join(Path("out.jsonl").read_bytes().splitlines(keepends=True)[:12]))
    Path("out.jsonl").unlink()
    assert start().code == 2
    assert Path("out.jsonl").read_bytes() == whole


def _stopped_at(start: Run, monkeypatch: pytest.MonkeyPatch, last: int) -> None:
    """A run that ends behind a line."""
    write_record = batch_module.ResultFile.write

    def interrupting(results: Any, record: dict[str, Any]) -> None:
        write_record(results, record)
        if record["line"] == last:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(batch_module.ResultFile, "write", interrupting)
        assert start().code == 130


@pytest.mark.parametrize("changed", ["image", "mask", "folder"])
def test_a_file_that_changed_since_its_line_was_answered_is_noticed(
    start: Run, changed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[5:20, 5:20] = 255
    Image.fromarray(mask).save("mask.png")
    write([{"image": "0.png", "mask": "mask.png"}, {"video": "clip", "frame": 1, "box": BOX}, *many(9)])
    _stopped_at(start, monkeypatch, 8)
    name = {"image": "2.png", "mask": "mask.png", "folder": "clip/1.png"}[changed]
    before, times = Path(name).read_bytes(), os.stat(name)
    Image.fromarray(np.full((HEIGHT, WIDTH), 200, np.uint8)).save(name)
    so_far = Path("out.jsonl.part").read_bytes()
    line = {"image": 5, "mask": 1, "folder": 2}[changed]
    one_error_line(start(), f"as it was when line {line} was answered")
    assert Path("out.jsonl.part").read_bytes() == so_far
    Path(name).write_bytes(before)
    os.utime(name, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert start().code == 0
    assert [r["line"] for r in records()] == list(range(1, 12))
    assert sorted(p.name for p in Path().glob("*out*")) == ["out.jsonl", "out.jsonl.run.json"]


def _tampered() -> dict[str, Callable[[list[dict[str, Any]]], Any]]:
    """Changes to a result of 26 lines that a run must not go on from."""
    return {
        "a gap": lambda r: r.pop(3),
        "two lines swapped": lambda r: r.insert(2, r.pop(3)),
        "a number that is no integer": lambda r: r[3].update(line=4.0),
        "a number that is a truth": lambda r: r[0].update(line=True),
        "another id": lambda r: r[3].update(id="other"),
        "no id": lambda r: r[3].pop("id"),
        "another record": lambda r: r[3].update(answer="x"),
        "no answer": lambda r: [r[3].pop(key) for key in ("texts", "finish", "tokens")],
        "texts of another number": lambda r: r[3].update(texts=["a", "b"]),
        "texts that are no text": lambda r: r[3].update(texts=[4]),
        "tokens that are none": lambda r: r[3].update(tokens=["4"]),
        "an unknown failure": lambda r: r[3].update(failure="other", error="x"),
    }


@pytest.mark.parametrize("there", ["out.jsonl", "out.jsonl.part"])
@pytest.mark.parametrize("change", _tampered())
def test_a_tampered_result_is_refused(start: Run, whole: bytes, there: str, change: str) -> None:
    found = [json.loads(line) for line in whole.splitlines()]
    _tampered()[change](found)
    content = b"".join(json.dumps(record).encode() + b"\n" for record in found)
    Path(there).write_bytes(content)
    one_error_line(start(), f"{there}, line ", "expected a result of line")
    assert Path(there).read_bytes() == content


def test_a_complete_result_without_its_end_is_refused(start: Run, whole: bytes) -> None:
    for content in (whole[:-5], b"".join(whole.splitlines(keepends=True)[:-1]), b""):
        Path("out.jsonl").write_bytes(content)
        one_error_line(start(), "out.jsonl: expected a result for every line of in.jsonl")
        assert Path("out.jsonl").read_bytes() == content


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.part", "out.jsonl.run.json", "out.jsonl.stamps"])
@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_a_special_file_is_refused_and_stays(start: Run, name: str, kind: str) -> None:
    write(many(2))
    if kind == "device" and os.geteuid() != 0:
        pytest.skip("only root makes device files")
    if kind == "device":
        os.mknod(name, stat.S_IFCHR | 0o666, os.makedev(1, 3))  # as /dev/null
    else:
        os.mkfifo(name)
    before = os.lstat(name)
    one_error_line(start(), f"{name}: expected the name of a file to write, got a device")
    assert os.path.samestat(os.lstat(name), before)


@pytest.mark.parametrize("name", ["out.jsonl.part", "out.jsonl.run.json", "out.jsonl.stamps"])
def test_a_link_to_another_file_is_not_written_through(start: Run, name: str) -> None:
    write(many(2))
    before = Path("in.jsonl").read_bytes()
    Path(name).symlink_to("in.jsonl")
    one_error_line(start(), f"{name}: expected a file of this command's own, got a link")
    assert Path("in.jsonl").read_bytes() == before


def test_what_a_kill_left_beside_goes(start: Run) -> None:
    write(many(2))
    for stray in (".out.jsonl.run.json.4711", ".out.jsonl.part.12"):
        Path(stray).write_text("half")
    Path(".out.jsonl.mine").write_text("not ours")
    Path(".another.jsonl.run.json.4711").write_text("another run's")
    assert start().code == 0
    assert sorted(p.name for p in Path().glob(".*")) == [".another.jsonl.run.json.4711", ".out.jsonl.mine"]


def test_a_link_stays_a_link(start: Run) -> None:
    write(many(2))
    Path("real").mkdir()
    Path("out.jsonl").symlink_to("real/answers.jsonl")
    assert start().code == 0
    assert Path("out.jsonl").is_symlink()
    assert len(Path("real/answers.jsonl").read_text().splitlines()) == 2


def test_lines_through_a_pipe_are_answered_as_those_of_a_file(
    start: Run, run: Run, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = Path("in.jsonl").read_bytes()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(requests)))
    piped = run("describe", "--batch", "-", "--max-new-tokens", "3")
    assert (piped.code, piped.out.encode()) == (2, whole)
    assert "26 lines, 25 texts, 1 bad lines" in piped.err
    for option, message in ((("--out", "other.jsonl"), "--out"), (("--json",), "--json")):
        one_error_line(run("describe", "--batch", "-", *option), message)

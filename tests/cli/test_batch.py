"""`describe --batch`: lines in, lines out, and what happens in between."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from command_line import ASSETS, HEIGHT, WIDTH, default_signals, mask_file, one_error_line
from PIL import Image

import pixelrefer_fast
from pixelrefer_fast.batching.queue import RequestQueue
from pixelrefer_fast.cli.batch import run as batch_module
from pixelrefer_fast.cli.batch.lines import BadLine, parse_line, read_lines

BOX = [5, 5, 40, 40]
Run = Callable[..., SimpleNamespace]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with images and a video, where the command runs."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(2)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(f"{i}.png")
    Path("clip").mkdir()
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(f"clip/{i}.png")
    return tmp_path


@pytest.fixture
def loaded(lite: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(pixelrefer_fast, "load", lambda *_, **__: lite)
    monkeypatch.setenv("PIXELREFER_FAST_MODEL", "some/model")
    return lite


@pytest.fixture
def start(run: Run, folder: Path, loaded: Any) -> Callable[..., SimpleNamespace]:
    def call(*arguments: str) -> SimpleNamespace:
        return run("describe", "--batch", "in.jsonl", "--out", "out.jsonl", "--max-new-tokens", "3", *arguments)

    return call


def write(lines: list[Any]) -> None:
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    Path("in.jsonl").write_text("\n".join(text) + "\n")


def records(path: str = "out.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def many(count: int) -> list[dict[str, Any]]:
    return [{"id": i, "image": f"{i % 3}.png", "box": [5, 5, 20 + i % 7, 40]} for i in range(count)]


# -- lines -------------------------------------------------------------------------------------------------------------


def test_each_line_is_answered_as_by_itself(start: Run, lite: Any) -> None:
    mask_file(Path("mask.png"), 4, 6, 30, 40)
    Path("rle.json").write_text(json.dumps({"size": [HEIGHT, WIDTH], "counts": [500, 300, HEIGHT * WIDTH - 800]}))
    question, two = "What is <region>?", "Is <region> larger than <region>?"
    write(
        [
            {"id": "first", "image": "0.png", "box": BOX},
            {"id": 2, "image": "1.png", "xywh": [5, 5, 35, 35], "question": question},
            "",
            {"image": "1.png", "mask": "mask.png", "polygon": [5, 5, 30, 5, 20, 40], "max_new_tokens": 5},
            {"id": [1, {"a": None}], "image": "2.png", "regions": [BOX, {"type": "box", "xyxy": BOX}], "question": two},
            {"image": "2.png", "rle": "rle.json", "scribble": {"points": [[9, 9], [30, 30]], "width": 4}},
            {"image": "2.png", "scribble": "9,9 30,30:4", "box": "5,5,40,40"},
            {"video": "clip", "frame": 1, "box": BOX},
            {"video": "clip", "regions": [{"0": BOX, "2": BOX}], "question": question},
            {"image": "2.png", "point": "20,20 3,3:0", "regions": [{"points": [[20, 20]]}]},
        ]
    )
    result = start()
    assert result.code == 0, result.err
    assert result.out.startswith("out.jsonl: 9 lines, 13 texts, ")
    found = records()
    assert [r["line"] for r in found] == [1, 2, 4, 5, 6, 7, 8, 9, 10]
    assert [r.get("id") for r in found] == ["first", 2, None, [1, {"a": None}], *[None] * 5]
    describe: dict[str, Any] = {"max_new_tokens": 3}
    assert found[0]["texts"] == lite.describe("0.png", [BOX], **describe)
    assert found[1]["texts"] == lite.describe("1.png", [BOX], question, **describe)
    assert [len(r["texts"]) for r in found] == [1, 1, 2, 1, 2, 2, 1, 1, 2]
    assert found[2]["tokens"] == [5, 5]
    assert found[3]["texts"] == [lite.ask("2.png", two, [BOX, BOX], **describe)]
    assert found[5]["texts"][0] == found[4]["texts"][1]
    assert found[5]["texts"][1] == lite.describe("2.png", [BOX], **describe)[0]
    assert found[6]["texts"] == lite.describe("clip", [{1: BOX}], **describe)
    assert found[7]["texts"] == lite.describe("clip", [{0: BOX, 2: BOX}], question, **describe)
    points = [{"points": [[20, 20], [3, 3]], "labels": [1, 0]}, {"points": [20, 20]}]
    assert found[8]["texts"] == lite.describe("2.png", points, **describe)
    assert set(found[0]["finish"]) <= {"stop", "length"}


BAD: list[tuple[Any, str]] = [
    ("garbage", "expected a JSON object"),
    ("[1, 2]", "expected a JSON object"),
    ("{" * 1000, "nested deeper"),
    ('{"image": "0.png", "box": [1e999, 0, 5, 5]}', "number"),
    ('{"image": "0.png", "image": "1.png", "box": [0, 0, 5, 5]}', "twice"),
    ("\x00\x00", "expected a JSON object"),
    ({"box": BOX}, 'expected either "image" or "video", got neither'),
    ({"image": "0.png", "video": "clip", "box": BOX}, "got image and video"),
    ({"image": 7, "box": BOX}, "image: expected a path, got 7"),
    ({"image": "", "box": BOX}, "image: expected a path"),
    ({"image": "0.png"}, "expected at least one region"),
    ({"image": "0.png", "regions": []}, "expected at least one region"),
    ({"image": "0.png", "regions": 7}, "regions: expected a list"),
    ({"image": "0.png", "box": [1, 2, 3]}, "box: "),
    ({"image": "0.png", "box": None}, "box: "),
    ({"image": "0.png", "box": "1,2,3"}, "box: expected X0,Y0,X1,Y1"),
    ({"image": "0.png", "mask": [[1]]}, "mask: expected the path of a file"),
    ({"image": "0.png", "mask": "missing.png"}, "mask: "),
    ({"image": "0.png", "scribble": [1, 2]}, "scribble: expected"),
    ({"image": "0.png", "box": BOX, "qestion": "?"}, "qestion"),
    ({"image": "0.png", "box": BOX, "question": "What?"}, "question: expected one <region> tag"),
    ({"image": "0.png", "box": BOX, "question": "<region><region>"}, "got 2"),
    ({"image": "0.png", "box": BOX, "question": ["<region>"]}, "question: expected a text"),
    ({"image": "0.png", "box": BOX, "frame": 1}, "frame: expected a video"),
    ({"video": "clip", "box": BOX, "frame": "1"}, "frame: expected the number"),
    ({"video": "clip", "box": BOX}, "expected a mapping from frame to region"),
    ({"video": "clip", "box": BOX, "frame": 99}, "expected frames from 0 to 2, got 99"),
    ({"image": "missing.png", "box": BOX}, "expected an existing file"),
    ({"image": "in.jsonl", "box": BOX}, "expected an image file"),
    ({"image": "/dev/zero", "box": BOX}, "special file"),
    ({"image": "0.png\x00", "box": BOX}, "expected a readable file"),
    ({"image": "0.png", "box": [900, 900, 910, 910]}, "region 0: expected at least one marked pixel"),
    ({"image": "0.png", "regions": [BOX, [900, 900, 910, 910]]}, "region 1: expected at least one marked pixel"),
    ({"image": "0.png", "box": BOX, "max_new_tokens": 0}, "max_new_tokens"),
    ({"image": "0.png", "box": BOX, "temperature": "hot"}, "temperature"),
]


def test_bad_lines_are_reported_and_stop_nothing(start: Run, lite: Any) -> None:
    good = {"id": "good", "image": "0.png", "box": BOX}
    lines: list[Any] = []
    for line, _ in BAD:
        lines += [line, good]
    write(lines)
    result = start()
    assert result.code == 2
    assert "Traceback" not in result.err
    assert f"{len(BAD)} bad lines" in result.out
    found = records()
    assert [r["line"] for r in found] == list(range(1, 2 * len(BAD) + 1))
    expected = lite.describe("0.png", [BOX], max_new_tokens=3)
    for record in found[1::2]:
        assert record["texts"] == expected
        assert "error" not in record
    for record, (_, said) in zip(found[::2], BAD, strict=True):
        assert said in record["error"], record
        assert record["failure"] == "input"
    partly = found[2 * [said for _, said in BAD].index("region 1: expected at least one marked pixel")]
    assert partly["texts"] == [expected[0], None]


def test_long_and_unfinished_lines(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pixelrefer_fast.cli.batch import lines as batch_lines

    monkeypatch.setattr(batch_lines, "MAX_LINE", 10)
    Path("in.jsonl").write_bytes(b"123456789\n1234567890\n\n   \n" + b"x" * 35 + b"\nend")
    with open("in.jsonl", "rb") as file:
        found = list(read_lines(file))
    assert found == [(1, b"123456789\n"), (2, None), (5, None), (6, b"end")]
    with open("in.jsonl", "rb") as file:
        assert list(read_lines(file, after=2)) == found[2:]
    with pytest.raises(BadLine, match="expected at most 10 bytes"):
        parse_line(2, None)


def test_the_report_as_json(start: Run) -> None:
    write([*many(4), "garbage"])
    result = start("--json")
    document = json.loads(result.out)
    assert result.code == 2
    counts = {"lines": 5, "bad": 1, "failed": 0, "texts": 4, "last": 5, "resumed": 0}
    assert {key: document[key] for key in counts} == counts
    assert (document["batch"], document["out"], document["model"]) == ("in.jsonl", "out.jsonl", "some/model")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--batch", "in.jsonl"), "--batch: expected --out OUT.jsonl as well"),
        (("--out", "out.jsonl"), "--out: expected with --batch"),
        (("--batch-size", "3"), "--batch-size: expected with --batch"),
        (("--batch", "none.jsonl", "--out", "out.jsonl"), "--batch 'none.jsonl': expected an existing file"),
        (("--batch", "clip", "--out", "out.jsonl"), "got a folder"),
        (("--batch", "in.jsonl", "--out", "out.txt"), "--out out.txt: expected a file name ending in .jsonl"),
        (("--batch", "in.jsonl", "--out", "no/out.jsonl"), "does not exist"),
        (("--batch", "in.jsonl", "--out", "in.jsonl"), "expected a file of its own"),
        (("--batch", "in.jsonl", "--out", "clip"), "--out clip"),
        (("0.png", "--batch", "in.jsonl", "--out", "out.jsonl"), "IMAGE_OR_VIDEO: expected on the lines"),
        (("--box", "1,1,9,9", "--batch", "in.jsonl", "--out", "out.jsonl"), "--box: expected on the lines"),
        (("--save", "x.png", "--batch", "in.jsonl", "--out", "out.jsonl"), "--save: expected on the lines"),
        ((), "expected an image or a video, or --batch"),
    ],
)
def test_options_that_do_not_go_together(
    run: Run, folder: Path, loaded: Any, arguments: tuple[str, ...], said: str
) -> None:
    write(many(1))
    one_error_line(run("describe", *arguments), said)
    assert not list(folder.glob("out*"))


def test_no_lines(start: Run) -> None:
    Path("in.jsonl").write_bytes(b"")
    result = start()
    assert result.code == 0, result.err
    assert Path("out.jsonl").read_bytes() == b""


# -- resuming ----------------------------------------------------------------------------------------------------------


class Counting:
    """How many requests reach the model."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.requests = 0
        submit = RequestQueue.submit

        def counted(queue: RequestQueue, lane: Any, value: Any) -> int:
            self.requests += 1
            return submit(queue, lane, value)

        monkeypatch.setattr(RequestQueue, "submit", counted)


@pytest.fixture
def whole(start: Run) -> bytes:
    """The result of a run that nothing interrupts."""
    write([*many(20), "garbage", *many(5)])
    assert start().code == 2
    content = Path("out.jsonl").read_bytes()
    Path("out.jsonl").unlink()
    return content


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


# -- failures on the way -----------------------------------------------------------------------------------------------


def test_out_of_memory_is_reported_by_line(start: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from pixelrefer_fast.batching import queue as queue_module

    encode = queue_module.encode_prepared

    def short(model: Any, batch: list[Any], scenes: Any) -> Any:
        if len(batch) > 2 or any(p.request.regions[0].marks[0][1].x1 == 26 for p in batch):
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes")
        return encode(model, batch, scenes)

    monkeypatch.setattr(queue_module, "encode_prepared", short)
    write(many(14))
    result = start()
    assert result.code == 1
    assert "2 failed" in result.out
    failed = [r for r in records() if "error" in r]
    assert [r["line"] for r in failed] == [7, 14]
    assert all("does not fit into memory" in r["error"] and r["failure"] == "run" for r in failed)


def test_a_broken_machine_ends_the_run_and_costs_nothing(start: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from pixelrefer_fast.batching import queue as queue_module

    encode = queue_module.encode_prepared
    calls = 0

    def breaks(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise RuntimeError("CUDA error: unspecified launch failure")
        return encode(*arguments)

    write(many(120))
    with monkeypatch.context() as patch:
        patch.setattr(queue_module, "encode_prepared", breaks)
        result = start("--batch-size", "10")
    assert result.code == 1
    assert "failed: RuntimeError: CUDA error" in result.err
    assert "the same command goes on from here" in result.err
    assert not any("error" in r for r in records("out.jsonl.part"))
    result = start("--batch-size", "10")
    assert result.code == 0
    assert [r["line"] for r in records()] == list(range(1, 121))


def test_a_few_defects_are_reported_by_line(start: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from pixelrefer_fast.batching import queue as queue_module

    prepare = queue_module.prepare

    def odd(model: Any, ask: Any, *caches: Any) -> Any:
        if ask.media == "1.png":
            raise IndexError("a defect of ours")
        return prepare(model, ask, *caches)

    monkeypatch.setattr(queue_module, "prepare", odd)
    write(many(5))
    result = start()
    assert result.code == 1
    said = "IndexError: a defect of ours"
    assert [r.get("error") for r in records()] == [None, said, None, None, said]


def test_an_interrupt_keeps_what_is_there(start: Run, whole: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    write_record = batch_module.ResultFile.write

    def interrupting(results: Any, record: dict[str, Any]) -> None:
        write_record(results, record)
        if record["line"] == 9:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(batch_module.ResultFile, "write", interrupting)
        result = start()
    assert result.code == 130
    assert "9 lines" in result.err
    assert "the same command goes on from here" in result.err
    assert len(records("out.jsonl.part")) == 9
    assert start().code == 2
    assert Path("out.jsonl").read_bytes() == whole


def test_progress_without_a_terminal(start: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_module, "REPORT_SECONDS", 0.0)
    write(many(3))
    result = start()
    assert "line 3 of 3, 3 lines, 3 texts, " in result.err
    assert "lines/s" in result.err


def test_progress_on_a_terminal(start: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from pixelrefer_fast.batching import progress

    monkeypatch.setattr(progress, "DELAY", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    write(many(3))
    result = start()
    assert result.code == 0
    assert "3/3" in result.err


def test_lines_are_read_as_answers_are_written(start: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounded memory: the reader is never more than two batches ahead of the writer."""
    written, ahead = 0, 0
    write_record, parse = batch_module.ResultFile.write, batch_module.parse_line

    def writing(results: Any, record: dict[str, Any]) -> None:
        nonlocal written
        written += 1
        write_record(results, record)

    def parsing(number: int, *arguments: Any) -> Any:
        nonlocal ahead
        ahead = max(ahead, number - written)
        return parse(number, *arguments)

    monkeypatch.setattr(batch_module.ResultFile, "write", writing)
    monkeypatch.setattr(batch_module, "parse_line", parsing)
    write([*many(30), *["garbage"] * 100, *many(30)])
    assert start("--batch-size", "4").code == 2
    assert written == 160
    assert ahead <= 2 * 4 + 1


# -- killed ------------------------------------------------------------------------------------------------------------


def _requests(count: int) -> None:
    lines: list[Any] = many(count)
    lines[77] = "garbage"
    lines[200] = {"id": 200, "image": "missing.png", "box": BOX}
    write(lines)


def test_killed_at_random_moments(folder: Path) -> None:
    _requests(500)
    helper = Path(__file__).parents[1] / "helpers" / "killed_batch.py"
    command = [sys.executable, str(helper), str(ASSETS / "lite"), "in.jsonl", "killed.jsonl", "whole.jsonl", "5", "7"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    *found, code, code_of_whole = json.loads(done.stdout.splitlines()[-1])
    assert (code, code_of_whole) == (2, 2)
    assert sum(0 < lines < 500 for lines in found) >= 3
    assert found == sorted(found)
    killed = records("killed.jsonl")
    assert [r["line"] for r in killed] == list(range(1, 501))
    assert [r["line"] for r in killed if "error" in r] == [78, 201]
    assert Path("whole.jsonl").read_bytes() == Path("killed.jsonl").read_bytes()


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

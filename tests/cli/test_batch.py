"""`describe --batch`: lines in, lines out, and what happens in between."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from batch_files import BOX, Run, many, records, write
from command_line import HEIGHT, WIDTH, mask_file, one_error_line
from encoding_batches import look_at_batches

from pixelrefer_fast.cli.batch import run as batch_module
from pixelrefer_fast.cli.batch.lines import BadLine, parse_line, read_lines


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


def test_out_of_memory_is_reported_by_line(start: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(batch: list[Any]) -> None:
        if len(batch) > 2 or any(p.request.regions[0].marks[0][1].x1 == 26 for p in batch):
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes")

    look_at_batches(monkeypatch, short)
    write(many(14))
    result = start()
    assert result.code == 1
    assert "2 failed" in result.out
    failed = [r for r in records() if "error" in r]
    assert [r["line"] for r in failed] == [7, 14]
    assert all("does not fit into memory" in r["error"] and r["failure"] == "run" for r in failed)


def test_a_broken_machine_ends_the_run_and_costs_nothing(start: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def breaks(batch: list[Any]) -> None:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise RuntimeError("CUDA error: unspecified launch failure")

    write(many(120))
    with monkeypatch.context() as patch:
        look_at_batches(patch, breaks)
        result = start("--batch-size", "10")
    assert result.code == 1
    assert "failed: RuntimeError: CUDA error" in result.err
    assert "the same command goes on from here" in result.err
    assert not any("error" in r for r in records("out.jsonl.part"))
    result = start("--batch-size", "10")
    assert result.code == 0
    assert [r["line"] for r in records()] == list(range(1, 121))


def test_a_few_defects_are_reported_by_line(start: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from pixelrefer_fast.batching import workers as workers_module

    prepare = workers_module.prepare

    def odd(model: Any, ask: Any, *caches: Any) -> Any:
        if ask.media == "1.png":
            raise IndexError("a defect of ours")
        return prepare(model, ask, *caches)

    monkeypatch.setattr(workers_module, "prepare", odd)
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

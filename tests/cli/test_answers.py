"""The command line: answers, what goes where."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
from command_line import HEIGHT, WIDTH, FakeModel, one_error_line
from PIL import Image

from pixelrefer_fast.batching import Answer
from pixelrefer_fast.cli.output import print_texts
from pixelrefer_fast.pictures import answers
from pixelrefer_fast.pictures.answers import numbered


def test_describe_prints_a_text_per_region_and_nothing_else_on_stdout(
    run: Callable[..., SimpleNamespace], model: FakeModel, image: str
) -> None:
    arguments = ("describe", image, "--box", "1,1,9,9", "--box", "2,2,9,9", "--question", "What is <region>?")
    options = ("--max-new-tokens", "7", "--temperature", "0.5", "--top-p", "0.9", "--seed", "3")
    result = run(
        *arguments, *options, "--model", "my/model", "--device", "cpu", "--dtype", "float32", "--backend", "torch"
    )
    assert result.code == 0, result.err
    assert result.out == "0: text 0\\x1b[31m\n1: text 1\\x1b[31m\n"
    assert "a library says hello" in result.err
    assert model.loads == [("my/model", {"device": "cpu", "dtype": "float32", "backend": "torch"})]  # type: ignore[attr-defined]
    call = model.calls[0]
    assert call["question"] == "What is <region>?"
    assert call["options"] == {"max_new_tokens": 7, "temperature": 0.5, "top_p": 0.9, "seed": 3}
    assert call["media"].shape == (HEIGHT, WIDTH, 3)


def test_json_is_one_document(
    run: Callable[..., SimpleNamespace], model: FakeModel, image: str, tmp_path: Path
) -> None:
    target = tmp_path / "out.png"
    result = run("describe", image, "--box", "1,1,9,9", "--json", "--save", str(target))
    document = json.loads(result.out)
    marked = {"region": 0, "given": "--box 1,1,9,9", "frames": None}
    assert document["regions"] == [marked | {"text": "text 0\x1b[31m", "finish_reason": "stop"}]
    assert document["model"] == "some/model"
    assert document["saved"] == str(target)
    assert set(document["seconds"]) == {"load", "describe"}
    with Image.open(target) as picture:
        assert picture.width >= 640


def test_saved_sheet_of_a_video(
    run: Callable[..., SimpleNamespace], model: FakeModel, video: str, tmp_path: Path
) -> None:
    target = tmp_path / "sheet.png"
    assert run("describe", video, "--box", "1,1,40,40", "--frame", "2", "--save", str(target)).code == 0
    with Image.open(target) as picture:
        assert picture.width == 1600


def test_ask_and_stream(run: Callable[..., SimpleNamespace], model: FakeModel, image: str) -> None:
    arguments = ("ask", image, "Is <region> near <region>?", "--box", "1,1,9,9", "--xywh", "2,2,9,9")
    assert run(*arguments).out == "an answer\\x07\n"
    assert run(*arguments, "--stream").out == "an answer\\x07\n"
    assert [len(call["regions"]) for call in model.calls] == [2, 2]
    document = json.loads(run(*arguments, "--json").out)
    assert document["answer"] == "an answer\x07"
    assert document["finish_reason"] == "stop"
    assert document["model"] == "some/model"
    assert len(document["regions"]) == 2
    one_error_line(run(*arguments, "--stream", "--json"), "--stream")
    one_error_line(run("ask", image), "QUESTION")


def test_the_picture_of_an_answer(
    run: Callable[..., SimpleNamespace], model: FakeModel, image: str, video: str, tmp_path: Path
) -> None:
    marks = ("Is <region> near <region>?", "--box", "1,1,9,9", "--box", "20,20,39,39")
    target = tmp_path / "answer.png"
    document = json.loads(run("ask", image, *marks, "--save", str(target), "--json").out)
    assert document["saved"] == str(target)
    with Image.open(target) as picture:
        whole = np.asarray(picture)
    assert whole.shape[1] >= 640
    assert run("ask", image, *marks, "--save", str(target), "--stream").out == "an answer\\x07\n"
    with Image.open(target) as picture:
        assert np.array_equal(np.asarray(picture), whole)
    model.finish = "length"
    assert run("ask", image, *marks, "--save", str(target)).code == 0
    with Image.open(target) as picture:
        assert not np.array_equal(np.asarray(picture), whole)  # marked as cut
    assert run("ask", video, *marks, "--frame", "2", "--save", str(target)).code == 0
    with Image.open(target) as picture:
        assert picture.width == 1600
    one_error_line(run("ask", image, *marks, "--save", str(tmp_path / "a.txt")), "--save")
    one_error_line(run("ask", "o.safetensors", "What?", "--save", str(target)), "--save")


def test_numbers_in_the_place_of_tags() -> None:
    assert numbered("Is <region> near <region>?") == "Is <0> near <1>?"
    assert numbered("What?") == "What?"


def test_an_answer_that_was_cut_is_marked(run: Callable[..., SimpleNamespace], model: FakeModel, image: str) -> None:
    model.finish = "length"
    arguments = ("ask", image, "What is <region>?", "--box", "1,1,9,9")
    assert run(*arguments).out == run(*arguments, "--stream").out == "an answer\\x07 [...]\n"
    assert json.loads(run(*arguments, "--json").out)["finish_reason"] == "length"
    described = ("describe", image, "--box", "1,1,9,9")
    assert run(*described).out == "0: text 0\\x1b[31m [...]\n"
    assert json.loads(run(*described, "--json").out)["regions"][0]["finish_reason"] == "length"


def test_how_to_write(run: Callable[..., SimpleNamespace], model: FakeModel, image: str) -> None:
    options = ("--top-k", "9", "--min-p", "0.1", "--repetition-penalty", "1.2", "--min-new-tokens", "3")
    arguments = ("ask", image, "What is <region>?", "--box", "1,1,9,9", *options, "--stop", ".", "--stop", "!")
    assert run(*arguments).code == 0
    wanted = {"top_k": 9, "min_p": 0.1, "repetition_penalty": 1.2, "min_new_tokens": 3, "stop": [".", "!"]}
    assert model.calls[0]["options"] == wanted


def test_objects_bring_their_own_regions(
    run: Callable[..., SimpleNamespace], model: FakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "o.safetensors")
    one_error_line(run("ask", path, "What?", "--box", "0,0,5,5"), "own regions")
    one_error_line(run("ask", path, "What?", "--frame", "0"), "--frame")
    one_error_line(run("ask", path, "What?"), "o.safetensors")
    Path(path).write_bytes(b"\xff" * 64)
    one_error_line(run("ask", path, "What?"), "o.safetensors")
    one_error_line(run("encode", path, "--box", "0,0,5,5", "--out", str(tmp_path / "x.txt")), ".safetensors")


def test_without_a_model_the_embedded_one_says_what_it_is(
    run: Callable[..., SimpleNamespace], image: str, monkeypatch: pytest.MonkeyPatch, model: FakeModel
) -> None:
    monkeypatch.delenv("PIXELREFER_FAST_MODEL", raising=False)
    result = run("describe", image, "--box", "1,1,9,9")
    assert result.code == 0
    ((name, _),) = model.loads  # type: ignore[attr-defined]
    assert name == "embedded:lite"
    known = ("PixelRefer-Lite-mini", "synthetic world of plain shapes")
    for words in (*known, "PixelRefer-Lite-2B", "PixelRefer-7B", "PIXELREFER_FAST_MODEL"):
        assert words in result.err
    for arguments in (("describe", image), ("ask", image, "What is <region>?")):
        document = json.loads(run(*arguments, "--box", "1,1,9,9", "--json").out)
        assert document["model"] == name


@pytest.mark.parametrize(("finish", "said"), [("stop", "(empty answer)"), ("length", "(empty answer) [...]")])
def test_an_answer_without_text_is_marked(
    run: Callable[..., SimpleNamespace],
    model: FakeModel,
    image: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    finish: Literal["stop", "length"],
    said: str,
) -> None:
    model.silent, model.finish = True, finish
    drawn: list[Any] = []
    monkeypatch.setattr(answers, "answers", lambda media, regions, texts, **title: drawn.append(texts))
    monkeypatch.setattr(answers, "save", lambda picture, path: None)
    marks = (image, "--box", "1,1,9,9", "--box", "20,20,39,39")
    saving = ("--save", str(tmp_path / "a.png"))
    for streaming in ((), ("--stream",)):
        assert (
            run("ask", marks[0], "What are <region> and <region>?", *marks[1:], *saving, *streaming).out == said + "\n"
        )
    assert run("describe", *marks, *saving).out == f"0: {said}\n1: {said}\n"
    assert drawn == [said, said, [said, said]]
    found = json.loads(run("describe", *marks, "--json").out)["regions"][0]
    assert (found["text"], found["finish_reason"]) == ("", finish)
    shown = Answer(0, "", finish=finish)._repr_html_()
    assert shown == f"<p>{said} <small>({finish}, 0 tokens)</small></p>"


def test_texts_are_told_apart_by_number() -> None:
    out = io.StringIO()
    print_texts(["a cat", "two\nlines "], out)
    assert out.getvalue() == "0: a cat\n1: two\n   lines\n"

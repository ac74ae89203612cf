"""The command line: the real thing on the recorded checkpoints."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_line import ASSETS, one_error_line
from safetensors.torch import load_file, save_file


def test_encode_then_ask_is_ask(run: Callable[..., SimpleNamespace], tmp_path: Path) -> None:
    photograph, model = str(ASSETS / "cat.jpg"), str(ASSETS / "lite")
    question, box = "What is <region>?", ("--box", "60,50,360,275")
    objects = str(tmp_path / "cat.safetensors")
    short = ("--model", model, "--max-new-tokens", "6", "--json")
    asked = json.loads(run("ask", photograph, question, *box, *short).out)
    encoded = json.loads(run("encode", photograph, *box, "--out", objects, "--model", model, "--json").out)
    assert encoded["tokens"] > 0
    assert encoded["model"] == model
    assert encoded["bytes"] == Path(objects).stat().st_size
    again = json.loads(run("ask", objects, question, *short).out)
    assert again["answer"] == asked["answer"]
    assert again["regions"] is None
    assert os.listdir(tmp_path) == ["cat.safetensors"]
    one_error_line(run("ask", photograph, "What?", *box, "--model", model), "<region>")
    one_error_line(run("ask", objects, question, "--model", str(ASSETS / "full")), "objects")


@pytest.mark.parametrize("kind", ["lite", "full"])
@pytest.mark.parametrize(("option", "value"), [("--fps", "0"), ("--fps", "nan"), ("--max-frames", "0")])
def test_options_of_videos_are_checked_whatever_the_model(
    run: Callable[..., SimpleNamespace], video: str, kind: str, option: str, value: str
) -> None:
    marks = ("--frame", "0", "--box", "1,1,9,9", "--model", str(ASSETS / kind))
    one_error_line(run("describe", video, *marks, option, value), option.strip("-").replace("max-frames", "max"))


def test_convert_writes_a_checkpoint_that_answers_alike(run: Callable[..., SimpleNamespace], tmp_path: Path) -> None:
    result = run("convert", str(ASSETS / "lite"), str(tmp_path / "new"), "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["tensors"] > 0
    arguments = ("describe", str(ASSETS / "cat.jpg"), "--box", "60,50,360,275", "--max-new-tokens", "4", "--model")
    assert run(*arguments, str(tmp_path / "new")).out == run(*arguments, str(ASSETS / "lite")).out
    one_error_line(run("convert", str(ASSETS / "lite"), str(tmp_path / "new")), "new")
    one_error_line(run("convert", str(tmp_path / "gone"), str(tmp_path / "other")), "gone")
    one_error_line(run(*arguments, str(tmp_path / "gone")), "gone")


def test_weights_that_are_not_finite_are_an_error_line(run: Callable[..., SimpleNamespace], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(ASSETS / "lite", tmp_path / "nan"))
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name][2, 3] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    marks = (str(ASSETS / "cat.jpg"), "--box", "60,50,360,275")
    for arguments in (("describe", *marks), ("ask", marks[0], "What is <region>?", *marks[1:])):
        one_error_line(run(*arguments, "--model", str(folder)), f"tensor {name}: expected finite values")
    one_error_line(run("convert", str(folder), str(tmp_path / "other")), f"tensor {name}: expected finite values")

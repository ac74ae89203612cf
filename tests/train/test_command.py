"""`pixelrefer-fast train` and `pixelrefer-fast world`: what they print, and that nothing ends in a traceback."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command_line import one_error_line

from pixelrefer_fast import cli

Write = Callable[..., Path]
Run = Callable[..., SimpleNamespace]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: Any) -> SimpleNamespace:
        code = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return SimpleNamespace(code=code, out=captured.out, err=captured.err)

    return call


def test_a_training_from_the_command_line(run: Run, write_config: Write, world_folder: Path, tmp_path: Path) -> None:
    samples = json.loads((world_folder / "samples.json").read_text())
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, [*samples, {"video": 3}])))
    data = [{"records": "a.jsonl", "media_root": str(world_folder)}]
    config = write_config(stage={"data": data, "steps": 2, "batch_items": 1})
    result = run("train", config)
    assert result.code == 0, result.err
    lines = result.err.splitlines()
    assert lines[:3] == [
        f"{tmp_path}/a.jsonl: reading",
        f"{tmp_path}/a.jsonl, sample 18: video: expected a path, got 3",
        f"{tmp_path}/a.jsonl: 18 samples, 1 malformed ones left out",
    ]
    assert "stage first: step 2 of 2, loss " in result.err
    assert result.out.splitlines()[-2:] == [
        f"1 malformed samples were left out: {tmp_path}/out/malformed.jsonl",
        f"{tmp_path}/out/model: written",
    ]
    result = run("train", config)
    one_error_line(result, str(tmp_path / "out"), "expected a new or empty folder", "--resume")
    result = run("train", config, "--resume", "--json")
    assert result.code == 0
    assert json.loads(result.out)["stages"] == []
    result = run("train", config, "--out", tmp_path / "elsewhere", "--json")
    report = json.loads(result.out)
    assert report["model"] == f"{tmp_path}/elsewhere/model"
    assert report["stages"][0]["steps"] == 2


def test_data_can_be_checked_without_a_training(
    run: Run, write_config: Write, world_folder: Path, tmp_path: Path
) -> None:
    samples = json.loads((world_folder / "samples.json").read_text())
    image = next(s for s in samples if "image" in s)
    empty = {"size": image["masks"][0]["size"], "counts": [image["height"] * image["width"]]}
    broken = tmp_path / "broken.png"
    broken.write_bytes((world_folder / image["image"]).read_bytes()[:100])
    unreadable = dict(image, image="images/../broken.png")
    (world_folder / "broken.png").write_bytes(broken.read_bytes())
    bad = [dict(image, masks=[empty] * len(image["masks"])), {"image": "a"}, unreadable]
    (world_folder / "mixed.json").write_text(json.dumps([*samples[:3], *bad]))
    config = write_config(stage={"data": [{"records": str(world_folder / "mixed.json")}] * 2})
    result = run("train", config, "--check", "--json")
    assert result.code == 0, result.err
    (file,) = json.loads(result.out)["files"]
    assert (file["file"], file["samples"], file["malformed"]) == (str(world_folder / "mixed.json"), 6, 3)
    reasons = {entry["index"]: entry["reason"] for entry in file["reasons"]}
    assert "expected at least one marked pixel" in reasons[3]
    assert "image: expected an existing file" in reasons[4]
    assert "image: " in reasons[5]
    assert "expected a complete image file" in reasons[5]
    assert not (tmp_path / "out").exists()
    result = run("train", config, "--check")
    assert result.out == f"{world_folder}/mixed.json: 6 samples, 3 malformed\n"
    assert len(result.err.splitlines()) == 3


def test_a_bad_config_is_one_line(run: Run, write_config: Write, tmp_path: Path) -> None:
    one_error_line(run("train", tmp_path / "none.yaml"), "none.yaml", "expected a YAML file, found none")
    one_error_line(run("train", write_config(seed="x")), "config.yaml: seed: expected an integer")
    one_error_line(run("train", write_config(), "--resume", "--out", "/proc/none"), "cannot be written")
    (tmp_path / "a.txt").write_text("hello")
    result = run("train", write_config(stage={"data": [{"records": "a.txt"}]}))
    assert result.code == 2
    assert "a.txt: expected a JSON list of samples or one sample a line, got" in result.err.splitlines()[-1]
    (tmp_path / "a.json").write_text("[]")
    result = run("train", write_config(stage={"data": [{"records": "a.json"}]}))
    assert result.code == 2
    assert result.err.splitlines()[-1] == "error: data: expected at least one sample to learn from, got none"
    # what could not begin is in nobody's way
    assert run("train", write_config(stage={"steps": 1})).code == 0
    one_error_line(run("train", write_config(), "--out", tmp_path / "a.json"), "a.json", "expected a new or empty")
    one_error_line(run("train", write_config(model="owner")), "owner", "expected a checkpoint folder or a hub id")


def test_a_missing_extra_is_one_line(run: Run, write_config: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "accelerate" else find(name, *a))
    result = run("train", write_config())
    assert result.code == 1
    assert len(result.err.splitlines()) == 1
    assert 'training needs accelerate, which is not installed: pip install "pixelrefer-fast[train]"' in result.err


def test_the_world_can_be_written_and_trained_on(run: Run, write_config: Write, tmp_path: Path) -> None:
    result = run(
        "world", tmp_path / "w", "--scenes", 3, "--seed", 4, "--lines", "--one-frame", "--annotation", "--json"
    )
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert report["file"] == str(tmp_path / "w/samples.jsonl")
    assert report["images"] + report["videos"] == 3
    assert len((tmp_path / "w/samples.jsonl").read_text().splitlines()) == report["samples"]
    one_error_line(run("world", tmp_path / "w"), "expected a new or empty folder")
    one_error_line(run("world", tmp_path / "v", "--split", "test"), "split: expected one of train, heldout, got 'test'")
    config = write_config(stage={"data": [{"records": "w/samples.jsonl"}], "steps": 1})
    assert run("train", config).code == 0

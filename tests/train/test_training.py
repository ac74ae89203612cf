"""Short trainings: the loss falls, a resumed run is the uninterrupted one, only what shall learn changes."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

import pixelrefer_fast as pf
from pixelrefer_fast.train.batch import collate
from pixelrefer_fast.train.config import Lora, Stage, load_config
from pixelrefer_fast.train.module import TrainingModel
from pixelrefer_fast.train.parts import learning_weights, merge, parameter_groups, set_learning
from pixelrefer_fast.train.run import train
from pixelrefer_fast.train.scenes import scene_samples
from pixelrefer_fast.world import ask_about, make_scene
from pixelrefer_fast.world.marked import scene_media, scene_region

Write = Callable[..., Path]
PREFIXES = {
    "llm": ("model.layers", "model.embed_tokens", "model.norm", "lm_head"),
    "projector": ("model.mm_projector",),
    "region_encoder": ("model.region_encoder",),
    "vision_encoder": ("model.vision_encoder",),
}


class Interrupt(TrainerCallback):
    """Ctrl-C after so many steps."""

    def __init__(self, after: int) -> None:
        self.left = after

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def changed_parts(before: Path, after: Path) -> set[str]:
    old, new = load_file(before / "model.safetensors"), load_file(after / "model.safetensors")
    assert old.keys() == new.keys()
    changed = {name for name in old if not torch.equal(old[name].float(), new[name].float())}
    return {part for part, prefixes in PREFIXES.items() for name in changed if name.startswith(prefixes)}


@pytest.mark.parametrize("kind", ["lite", "full"])
def test_the_loss_falls_and_the_model_can_be_loaded(
    kind: str, write_config: Write, world_folder: Path, assets: Path, tmp_path: Path
) -> None:
    data = [{"records": str(world_folder / "samples.json")}]
    stage = {"data": data, "steps": 20, "batch_items": 4, "learning_rate": 0.005, "warmup": 2}
    config = load_config(write_config(stage=stage, model=str(assets / kind), tensorboard=True))
    said: list[str] = []
    told: list[tuple[int, int]] = []
    report = train(config, tell=lambda stage, step, steps, entry: told.append((step, steps)), say=said.append)
    log = log_of(tmp_path / "out")
    assert told == [(step, 20) for step in range(1, 21)]
    assert [entry["step"] for entry in log] == list(range(1, 21))
    assert log[-1]["loss"] < 0.6 * log[0]["loss"]
    assert log[0]["rate/llm"] > log[-1]["rate/llm"] == 0
    assert log[-1]["passes"] == pytest.approx(20 * 4 / 18, abs=0.1)
    assert {entry["stage"] for entry in log} == {"first"}
    assert all(entry["learnt"] < entry["tokens"] and entry["grad_norm"] > 0 for entry in log)
    assert report["model"] == str(tmp_path / "out/model")
    assert report["malformed"] == 0
    assert report["stages"][0]["steps"] == 20
    assert report["stages"][0]["loss"] == log[-1]["loss"]
    assert list((tmp_path / "out/tensorboard").glob("events*"))
    assert not list((tmp_path / "out").glob("*/checkpoint-*"))
    parts = {"llm", "region_encoder", "vision_encoder", *(["projector"] if kind == "full" else [])}
    assert changed_parts(assets / kind, tmp_path / "out/model") == parts
    model = pf.load(tmp_path / "out/model", device="cpu")
    assert not any(p.requires_grad for p in model.parameters())
    scene = make_scene(0, video=False)
    answer = model.ask(scene_media(scene), "What is <region>?", [scene_region(scene, 0, kind)], max_new_tokens=4)
    assert isinstance(answer, str)


def two_stages(write_config: Write, name: str, **values: Any) -> Path:
    """A stage of some parts with Muon, then one with adapters and dropout, over images and videos."""
    world = {"world": {"scenes": 6, "questions": 2}}
    first = {
        "name": "first",
        "data": [world],
        "steps": 4,
        "batch_items": 2,
        "accumulate": 2,
        "optimizer": "muon",
        "learning_rate": {"region_encoder": 0.01, "llm": 0.002},
    }
    second = {
        "name": "second",
        "data": [world],
        "epochs": 1.5,
        "batch_items": 2,
        "learning_rate": {"llm": 0.01, "region_encoder": 0.01},
        "lora": {"rank": 2, "dropout": 0.2},
    }
    return write_config(name, stages=[first, second], save_every=2, log_every=3, **values)


def test_a_run_that_is_interrupted_in_every_stage_ends_as_if_it_had_not_been(
    write_config: Write, tmp_path: Path
) -> None:
    whole = load_config(two_stages(write_config, "whole.yaml", output="whole"))
    train(whole)
    cut = load_config(two_stages(write_config, "cut.yaml", output="cut"))
    for resume, steps in ((False, 1), (True, 3), (True, 7)):  # before a checkpoint, after one, in the second stage
        with pytest.raises(KeyboardInterrupt):
            train(cut, resume=resume, callbacks=[Interrupt(steps)])
    checkpoints = sorted(path.name for path in (tmp_path / "cut/2-second").iterdir())
    assert checkpoints == ["checkpoint-2", "checkpoint-4"]
    # a save that was cut off is no checkpoint
    broken = tmp_path / "cut/2-second/checkpoint-9"
    broken.mkdir()
    (broken / "trainer_state.json").write_text('{"global_')
    said: list[str] = []
    report = train(cut, resume=True, say=said.append)
    assert said[0] == "stage first: done before"
    assert said[1].endswith("from checkpoint-4")
    assert [stage["name"] for stage in report["stages"]] == ["second"]
    ours, theirs = log_of(tmp_path / "cut"), log_of(tmp_path / "whole")
    for entry in (*ours, *theirs):
        del entry["seconds"]
    assert ours == theirs
    assert [(entry["stage"], entry["step"]) for entry in theirs][:3] == [("first", 2), ("first", 3), ("first", 4)]
    for path in ("1-first/model/model.safetensors", "model/model.safetensors"):
        assert (tmp_path / "cut" / path).read_bytes() == (tmp_path / "whole" / path).read_bytes()
    # what is done is not done again
    before = (tmp_path / "cut/model/model.safetensors").stat().st_mtime_ns
    assert train(cut, resume=True)["stages"] == []
    assert (tmp_path / "cut/model/model.safetensors").stat().st_mtime_ns == before


def test_resuming_takes_the_settings_it_began_with(write_config: Write, tmp_path: Path) -> None:
    config = load_config(write_config())
    with pytest.raises(KeyboardInterrupt):
        train(config, callbacks=[Interrupt(1)])
    with pytest.raises(ValueError, match="expected a new or empty folder to write to"):
        train(config)
    with pytest.raises(ValueError, match=r"stages 1\.steps: expected what the training in .* began with, 4, got 5"):
        train(load_config(write_config(stage={"steps": 5})), resume=True)
    other = load_config(write_config(log_every=2))  # changes no weight
    assert train(other, resume=True)["stages"][0]["steps"] == 4
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("")
    with pytest.raises(
        ValueError, match=r"expected the folder of a training to resume, got one without training\.json"
    ):
        train(load_config(write_config(), out=tmp_path / "full"), resume=True)


def test_what_is_frozen_keeps_every_bit(write_config: Write, assets: Path, tmp_path: Path) -> None:
    stage = {"steps": 2, "learning_rate": {"region_encoder": 0.01}}
    train(load_config(write_config(stage=stage, save_dtype="float32")))
    old, new = (load_file(f / "model.safetensors") for f in (assets / "lite", tmp_path / "out/model"))
    same = {name for name in old if torch.equal(old[name].float(), new[name])}
    assert {name.startswith("model.region_encoder") for name in old.keys() - same} == {True}
    assert {name for name in old if not name.startswith("model.region_encoder")} <= same


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_model_is_saved_in_the_dtype_asked_for(dtype: str, write_config: Write, tmp_path: Path) -> None:
    train(load_config(write_config(stage={"steps": 1}, save_dtype=dtype)))
    tensors = load_file(tmp_path / "out/model/model.safetensors")
    assert {str(t.dtype) for t in tensors.values()} == {f"torch.{dtype}"}


def test_accumulated_batches_count_by_their_tokens(write_config: Write, tmp_path: Path) -> None:
    """Two batches of an item each are learnt from as one batch of both."""
    stage = {"steps": 1, "learning_rate": {"llm": 0.001}}
    train(load_config(write_config("a.yaml", stage=stage | {"batch_items": 2}, output="a")))
    train(load_config(write_config("b.yaml", stage=stage | {"batch_items": 1, "accumulate": 2}, output="b")))
    one, two = log_of(tmp_path / "a")[0], log_of(tmp_path / "b")[0]
    assert (one["tokens"], one["learnt"]) == (two["tokens"], two["learnt"])
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)
    assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-4)


@pytest.mark.slow
def test_two_processes_learn_what_one_does_with_batches_accumulated(write_config: Write, tmp_path: Path) -> None:
    stage = {"data": [{"world": {"scenes": 8, "video": False, "questions": 2}}], "steps": 3, "batch_items": 1}
    train(load_config(write_config("one.yaml", stage=stage | {"accumulate": 2}, output="one", save_dtype="float32")))
    config = write_config("two.yaml", stage=stage, output="two", save_dtype="float32", save_every=2)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pixelrefer_fast.cli", "train", str(config)]
    started = [
        subprocess.Popen(
            command,
            env=os.environ | address | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=500) for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    one, two = log_of(tmp_path / "one"), log_of(tmp_path / "two")
    assert [e["step"] for e in two] == [e["step"] for e in one] == [1, 2, 3]
    for mine, other in zip(two, one, strict=True):
        assert (mine["tokens"], mine["learnt"]) == (other["tokens"], other["learnt"])
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert mine["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
    weights = [load_file(tmp_path / name / "model/model.safetensors") for name in ("one", "two")]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-3, atol=2e-4, msg=name)


def test_mixed_precision_differs_by_rounding_alone(write_config: Write, tmp_path: Path) -> None:
    for precision in ("fp32", "bf16"):
        train(load_config(write_config(precision=precision, output=precision, stage={"steps": 2})))
    exact, rounded = (log_of(tmp_path / precision)[0]["loss"] for precision in ("fp32", "bf16"))
    assert exact != rounded
    assert rounded == pytest.approx(exact, rel=0.01)
    tensors = load_file(tmp_path / "bf16/model/model.safetensors")
    assert all(torch.isfinite(t).all() for t in tensors.values())


def test_gradient_checkpointing_computes_layers_twice_and_learns_the_same(
    write_config: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

    passes = 0
    forward = Qwen2MLP.forward

    def counted(self: Any, *args: Any) -> Any:
        nonlocal passes
        passes += 1
        return forward(self, *args)

    monkeypatch.setattr(Qwen2MLP, "forward", counted)
    counts = []
    for name, wanted in (("a", False), ("b", True)):
        passes = 0
        train(load_config(write_config(f"{name}.yaml", gradient_checkpointing=wanted, output=name, stage={"steps": 2})))
        counts.append(passes)
    assert counts[1] == 2 * counts[0]
    assert [e["loss"] for e in log_of(tmp_path / "a")] == [e["loss"] for e in log_of(tmp_path / "b")]


def batch_of(model: Any, kind: str) -> Any:
    scene = make_scene(1, video=kind == "full")
    return collate([scene_samples(scene, ask_about(scene, 0, limit=4), kind)], model.config, model.tokenizer)["batch"]


@pytest.mark.parametrize("kind", ["lite", "full"])
def test_merged_adapters_give_the_logits_they_gave_beside(kind: str, assets: Path) -> None:
    model = pf.load(assets / kind, device="cpu", dtype="float32")
    whole = TrainingModel(model.network)
    batch = batch_of(model, kind)
    plain = whole.logits(batch)
    names = set(dict(model.named_parameters()))
    adapters = set_learning(model.network, {"llm": 1e-3}, Lora(rank=2, alpha=4))
    learning = {name for _, name, _ in learning_weights(model.network)}
    assert learning
    assert all("lora_" in name for name in learning)
    torch.testing.assert_close(whole.logits(batch), plain)  # adapters begin as nothing
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, _, parameter in learning_weights(model.network):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    beside = whole.logits(batch).detach()
    assert (beside - plain).abs().max() > 0.01
    merge(adapters)
    assert set(dict(model.named_parameters())) == names
    error = (whole.logits(batch) - beside).abs().max()
    assert error < 1e-4 * (beside - plain).abs().max()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_groups_have_the_rates_of_their_parts_and_norms_no_decay(optimizer: str, assets: Path) -> None:
    model = pf.load(assets / "full", device="cpu", dtype="float32")
    rates = {"llm": 1e-5, "region_encoder": 1e-3}
    set_learning(model.network, rates)
    stage = Stage("one", (), 1, None, rates, weight_decay=0.1, optimizer=optimizer)
    groups = parameter_groups(model.network, stage)
    moved = {id(p) for g in groups if g["muon"] for p in g["params"]}
    muon = {name for name, p in model.network.named_parameters() if id(p) in moved}
    assert bool(muon) == (optimizer == "muon")
    assert not any("embed" in name for name in muon)
    assert {(g["part"], g["lr"], g["weight_decay"]) for g in groups} == {
        (part, rate, decay) for part, rate in rates.items() for decay in (0.1, 0.0)
    }
    for group in groups:
        assert all((p.ndim > 1) == (group["weight_decay"] > 0) for p in group["params"])
    grouped = [id(p) for g in groups for p in g["params"]]
    assert len(set(grouped)) == len(grouped)
    assert set(grouped) == {id(p) for p in model.parameters() if p.requires_grad}
    assert not any(
        p.requires_grad for p in (*model.network.encoder.parameters(), *model.network.projector.parameters())
    )


def test_a_loss_that_is_not_finite_ends_the_training(write_config: Write, tmp_path: Path) -> None:
    stage = {"learning_rate": {"llm": 1e3}, "warmup": 0, "max_grad_norm": 0, "steps": 30}
    with pytest.raises(FloatingPointError, match=r"stage first, step \d+: (the loss is (nan|inf)|\S+ is not finite)"):
        train(load_config(write_config(stage=stage, save_every=1)))
    for path in (tmp_path / "out").rglob("learning.safetensors"):
        assert all(torch.isfinite(t).all() for t in load_file(path).values())
    assert not (tmp_path / "out/model").exists()


@pytest.mark.parametrize("name", ["accelerate", "peft", "tensorboard"])
def test_a_package_that_is_missing_is_told_in_a_line(
    name: str, write_config: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked, *a: None if asked == name else find(asked, *a))
    config = load_config(write_config(tensorboard=True, stage={"lora": {"rank": 2}}))
    with pytest.raises(ImportError, match=rf"training needs {name}, which is not installed: pip install"):
        train(config)
    assert not (tmp_path / "out").exists()


def test_half_precision_on_a_cpu_is_refused(write_config: Write, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="precision: expected fp32 or bf16 on a CPU, got fp16"):
        train(load_config(write_config(precision="fp16")))
    assert not (tmp_path / "out").exists()


def test_a_start_that_is_no_checkpoint_is_told(write_config: Write, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"expected a checkpoint folder with a config\.json"):
        train(load_config(write_config(model="empty")))
    assert not (tmp_path / "out").exists()

"""The YAML config: what it may say, and what is told where it says something else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pixelrefer_fast.train.config import LORA_TARGETS, PARTS, Lora, Records, World, load_config

Write = Callable[..., Path]

WHOLE = """
model: somebody/some-model
output: runs/one
seed: 3
precision: fp32
save_dtype: bfloat16
device: cpu
gradient_checkpointing: true
log_every: 5
save_every: 50
keep: 3
workers: 2
tensorboard: false
strict: true
stages:
  - name: objects
    data:
      - records: a.json
        media_root: .
        repeat: 2
        fps: 0.5
        max_frames: 16
      - {records: a.json, fps: null}
      - world: {scenes: 100, first_seed: 7, split: heldout, video: true, questions: 3, categories: [name, color]}
    steps: 100
    batch_tokens: 4096
    batch_items: 8
    accumulate: 4
    warmup: 10
    schedule: linear
    weight_decay: 0.1
    max_grad_norm: 0
    betas: [0.9, 0.95]
    learning_rate: {llm: 2e-5, projector: 1.0e-3, region_encoder: 1e-3, vision_encoder: frozen}
  - data: [{world: {scenes: 5}}]
    epochs: 1.5
    learning_rate: 1e-4
    lora: {rank: 8, dropout: 0.1, targets: [q_proj, v_proj]}
"""


def test_a_whole_config(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[]")
    path = tmp_path / "config.yaml"
    path.write_text(WHOLE)
    config = load_config(path)
    assert config.model == "somebody/some-model"
    assert config.output == tmp_path / "runs/one"
    assert (config.seed, config.precision, config.save_dtype, config.device) == (3, "fp32", "bfloat16", "cpu")
    assert (config.log_every, config.save_every, config.keep, config.workers) == (5, 50, 3, 2)
    assert (config.gradient_checkpointing, config.tensorboard, config.strict) == (True, False, True)
    first, second = config.stages
    assert first.data == (
        Records(tmp_path / "a.json", tmp_path, 2, 0.5, 16),
        Records(tmp_path / "a.json", tmp_path, 1, None, 768),
        World(100, 7, "heldout", True, 3, ("name", "color")),
    )
    assert first.learning_rate == {"llm": 2e-5, "projector": 1e-3, "region_encoder": 1e-3}
    assert (first.steps, first.epochs, first.batch_tokens, first.batch_items, first.accumulate) == (
        100,
        None,
        4096,
        8,
        4,
    )
    assert (first.warmup, first.schedule, first.weight_decay, first.max_grad_norm) == (10, "linear", 0.1, 0)
    assert first.betas == (0.9, 0.95)
    assert first.lora is None
    assert (second.name, second.steps, second.epochs) == ("stage2", None, 1.5)
    assert second.learning_rate == dict.fromkeys(PARTS, 1e-4)
    assert second.lora == Lora(8, 16, 0.1, ("q_proj", "v_proj"))
    assert second.data == (World(5),)
    assert Lora().targets == LORA_TARGETS


def test_relative_paths_are_those_of_the_file(write_config: Write, tmp_path: Path) -> None:
    (tmp_path / "start").mkdir()
    assert load_config(write_config(model="start")).model == str(tmp_path / "start")
    assert load_config(write_config(model="owner/name")).model == "owner/name"
    assert load_config(write_config(), out="elsewhere").output == Path("elsewhere")
    assert load_config(write_config(output=None), out="elsewhere").output == Path("elsewhere")


def stage(**changes: Any) -> dict[str, Any]:
    return {"stage": changes}


ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "no model": ({"model": None}, "model: expected a text, got nothing"),
    "no output": ({"output": None}, "output: expected a text, got nothing"),
    "an unknown key": ({"modell": "x"}, "expected keys among device, gradient_checkpointing"),
    "a precision": ({"precision": "int8"}, "precision: expected one of fp32, bf16, fp16, got 'int8'"),
    "a negative seed": ({"seed": -1}, "seed: expected an integer from 0 to 4294967295, got -1"),
    "a seed of text": ({"seed": "one"}, "seed: expected an integer"),
    "true for a number": ({"workers": True}, "workers: expected an integer"),
    "a number for true": ({"tensorboard": 1}, "tensorboard: expected true or false, got 1"),
    "no stages": ({"stages": []}, "stages: expected a list with at least one mapping of keys, got []"),
    "a stage that is text": ({"stages": ["x"]}, "stages: expected a list"),
    "no data": (stage(data=[]), "stages 1: data: expected a list with at least one mapping"),
    "an empty source": (stage(data=[{}]), "stages 1: data 1: records: expected either records or world, got nothing"),
    "two kinds of source": (
        stage(data=[{"records": "a", "world": {"scenes": 1}}]),
        "stages 1: data 1: records: expected either records or world",
    ),
    "records that are missing": (stage(data=[{"records": "a.json"}]), "data 1: records: expected a file of samples"),
    "a root that is missing": (
        stage(data=[{"records": "config.yaml", "media_root": "none"}]),
        "data 1: media_root: expected an existing folder",
    ),
    "no scenes": (stage(data=[{"world": {}}]), "data 1: world: scenes: expected an integer from 1"),
    "a world key": (stage(data=[{"world": {"scenes": 1, "seed": 2}}]), "data 1: world: expected keys among"),
    "a category": (
        stage(data=[{"world": {"scenes": 1, "categories": ["smell"]}}]),
        "world: categories: expected some of name, color",
    ),
    "a split": (stage(data=[{"world": {"scenes": 1, "split": "test"}}]), "split: expected one of train, heldout"),
    "steps and epochs": (stage(epochs=1), "stages 1: steps: expected either steps or epochs, got 4"),
    "neither steps nor epochs": (stage(steps=None), "steps: expected either steps or epochs, got None"),
    "no epochs at all": (stage(steps=None, epochs=0), "epochs: expected a number above 0, got 0"),
    "no rate": (stage(learning_rate=None), "learning_rate: expected a number from 0 to 1000, got None"),
    "a rate of text": (stage(learning_rate="fast"), "learning_rate: expected a number"),
    "all frozen": (stage(learning_rate={"llm": 0}), "learning_rate: expected a rate above 0 for one of llm"),
    "an unknown part": (stage(learning_rate={"lm": 1e-3}), "learning_rate: expected keys among llm, projector"),
    "a part of text": (stage(learning_rate={"llm": "cold"}), "learning_rate: llm: expected a number"),
    "a rate that is not finite": (stage(learning_rate=float("inf")), "learning_rate: expected a number"),
    "adapters for a frozen LLM": (
        stage(learning_rate={"projector": 1e-3}, lora={"rank": 4}),
        "lora: expected a learning_rate for llm",
    ),
    "a target": (stage(lora={"targets": ["lm_head"]}), "lora: targets: expected some of q_proj"),
    "a rank": (stage(lora={"rank": 0}), "lora: rank: expected an integer from 1"),
    "a name": (stage(name="a/b"), "stages 1: name: expected letters, digits, - and _, got 'a/b'"),
    "betas": (stage(betas=[0.9, 1.0]), "betas: expected two numbers from 0 to below 1, got [0.9, 1.0]"),
    "a schedule": (stage(schedule="step"), "schedule: expected one of constant, linear, cosine, got 'step'"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_file_key_expectation_and_value(name: str, write_config: Write, tmp_path: Path) -> None:
    changes, message = ERRORS[name]
    path = write_config(**changes)
    with pytest.raises(ValueError, match=r"config\.yaml") as caught:
        load_config(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_stages_have_names_of_their_own(write_config: Write) -> None:
    path = write_config()
    text = path.read_text()
    start = text.index('"stages": [') + len('"stages": [')
    entry = text[start : text.rindex("]")]
    path.write_text(text[:start] + entry + ", " + entry + text[text.rindex("]") :])
    with pytest.raises(ValueError, match="stages: expected a name of its own for each, got first, first"):
        load_config(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [a", "line 1: expected YAML"),
        ("model: a\nmodel: b\n", "line 1: expected YAML, but the key 'model' stands twice"),
        ("a: &x [1]\nb: *x\n", "line 2: expected YAML, but it uses an alias"),
        ("- a\n", "expected a mapping of keys, got"),
        ("", "expected a mapping of keys, got None"),
        ("a: !!python/object/apply:os.system [ls]\n", "expected YAML"),
        ("a: " + "[" * 5000, "expected YAML"),
        ("a: 2020-99-99\n", "expected YAML"),
        ("[1]: 2\n", "expected YAML"),
        ("\x00", "expected YAML"),
    ],
)
def test_what_is_no_yaml_is_told_in_a_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"config\.yaml") as caught:
        load_config(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_config_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a YAML file, found none"):
        load_config(tmp_path / "none.yaml")

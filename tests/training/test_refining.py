"""A trained model that goes on with a deeper encoder, on questions and whole images at once."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from recipe.perception import HEADS
from recipe.refining import (
    NAMES,
    REFINED,
    RefiningData,
    RefiningModel,
    deepen,
    load_refined,
    refine,
)
from recipe.sizes import fresh_model
from safetensors.torch import load_file, save_file

from pixelrefer_fast.train.config import World
from pixelrefer_fast.train.scenes import SceneShare

SHARES = (
    SceneShare(World(1000, 0, video=False, rounds=3, categories=("counting",)), 2),
    SceneShare(World(1000, 5000, video=True, questions=4), 1),
)


@pytest.fixture
def model(small_model):
    return small_model


def batches(model, whole: int = 3):
    return RefiningData(model.config, model.tokenizer, SHARES, whole, crowds=1, first_seed=100)


def test_a_deeper_encoder_sees_what_it_saw(model):
    deeper = deepen(model, 6, seed=1)
    assert deeper.kind == model.kind
    assert len(deeper.network.encoder.layers) == deeper.config.vision.num_layers == 6
    assert deeper.config == replace(model.config, vision=replace(model.config.vision, num_layers=6))
    asked = batches(model).make(0)["batch"].asked
    with torch.no_grad():
        before, after = (m.network.encoder(asked.patches, asked.grids) for m in (model, deeper))
    assert torch.equal(before, after)
    own = deeper.network.state_dict()
    assert all(torch.equal(weight, own[name]) for name, weight in model.network.state_dict().items())
    assert own["encoder.layers.5.qkv.weight"].any()  # only what a new layer gives is nothing, not what it looks at
    with pytest.raises(ValueError, match="at least the encoder's 4 layers, got 3"):
        deepen(model, 3, seed=1)


def test_a_deeper_model_is_a_checkpoint(model, tmp_path):
    from pixelrefer_fast.loading import load

    deepen(model, 5, seed=1).save(tmp_path / "deeper")
    assert load(tmp_path / "deeper", device="cpu").config.vision.num_layers == 5


def test_a_batch_asks_some_scenes_and_shows_others(model):
    data = batches(model)
    first, second = (data.make(number)["batch"] for number in (0, 1))
    assert len(first.seen.whole.patches) == len(first.seen.grids) == 4
    assert len(first.asked.targets) > 0
    assert not torch.equal(first.seen.patches[:100], second.seen.patches[:100])
    assert not torch.equal(first.asked.patches[:10], second.asked.patches[:10])
    again = batches(model).make(1)["batch"]
    assert torch.equal(again.seen.labels, second.seen.labels)
    assert torch.equal(again.asked.input_ids, second.asked.input_ids)


def test_answers_move_all_of_a_model_and_patches_its_encoder(model):
    learner = RefiningModel(deepen(model, 5, seed=1))
    outputs = learner(batches(model).make(0)["batch"])
    assert outputs["accuracy"].shape == (len(NAMES),)
    outputs["loss"].backward()
    # nothing is told yet by heads that begin at zero
    assert learner.perception.heads.weight.grad.abs().sum() > 0
    for part in ("llm.model.layers.0.mlp.up_proj.weight", "encoder.layers.0.fc1.weight", "encoder.layers.4.out.weight"):
        assert learner.answering.network.get_parameter(part).grad.abs().sum() > 0
    with torch.no_grad():
        learner.perception.heads.weight.normal_()
    learner.zero_grad()
    learner.perception(batches(model).make(0)["batch"].seen)["loss"].backward()
    assert learner.answering.network.encoder.layers[4].out.weight.grad.abs().sum() > 0
    assert learner.answering.network.llm.model.layers[0].mlp.up_proj.weight.grad is None


def test_a_refining_writes_a_model_and_goes_on(model, tmp_path):
    def run(folder: str, steps: int, **more):
        own = deepen(model, 5, seed=1)
        path = refine(
            own, SHARES, 2, 1, tmp_path / folder, steps, 1e-3, {"encoder.layers.4.": 1.0, "llm": 0.0}, 100, **more
        )
        return own, path

    trained, path = run("once", 2)
    assert path == tmp_path / "once" / REFINED
    entry = [json.loads(line) for line in (tmp_path / "once" / "log.jsonl").read_text().splitlines()][-1]
    assert entry["step"] == 2
    assert {f"accuracy/{name}" for name in ("answers", *HEADS)} <= entry.keys()
    old = model.network.state_dict()
    new = trained.network.state_dict()
    assert torch.equal(new["llm.model.norm.weight"], old["llm.model.norm.weight"])  # its rate is zero
    assert not torch.equal(new["encoder.layers.0.fc1.weight"], old["encoder.layers.0.fc1.weight"])
    assert new["encoder.layers.4.out.weight"].any()

    loaded = deepen(model, 5, seed=2)
    load_refined(loaded, path)
    assert all(torch.equal(weight, new[name]) for name, weight in loaded.network.state_dict().items())
    further, _ = run("further", 2, start=path)  # the first warms up
    moved = (further.network.state_dict()["encoder.post_norm.weight"] - new["encoder.post_norm.weight"]).abs().max()
    assert 0 < moved < 0.01  # a step from where the first ended

    weights = load_file(path)
    save_file({name: weight for name, weight in weights.items() if "pos_linear" not in name}, tmp_path / "less")
    with pytest.raises(ValueError, match=r"less: expected all weights of this model, it lacks .*pos_linear"):
        load_refined(fresh_model(loaded.config, loaded.tokenizer, 0), tmp_path / "less")

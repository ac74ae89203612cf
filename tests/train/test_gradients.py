"""Gradients through the region operations: k-means assigns without one, the means of its clusters carry it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import pixelrefer_fast as pf
from pixelrefer_fast import ops
from pixelrefer_fast.train.batch import collate
from pixelrefer_fast.train.module import TrainingModel
from pixelrefer_fast.train.parts import PARTS, part_modules, set_learning
from pixelrefer_fast.train.scenes import scene_samples
from pixelrefer_fast.world import ask_about, make_scene


def pooled_of(features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Two objects of 9 and 2 patches in 3 clusters each, the first read bilinearly from four rows a patch."""
    generator = torch.Generator().manual_seed(1)
    index = torch.randint(0, len(features), (11, 4), generator=generator)
    weights = torch.rand(11, 4, generator=generator, dtype=torch.float64)
    positions = torch.rand(11, 2, generator=generator, dtype=torch.float64)
    starts = torch.tensor([[0, 3, 6], [0, 0, 0]])
    pooled = ops.object_pool(
        features,
        index,
        weights.to(features.dtype),
        positions.to(features.dtype),
        torch.tensor([0, 9, 11]),
        starts,
        weight,
        bias,
        3,
        9,
    )
    return torch.cat([pooled[0].flatten(), pooled[1, :2].flatten()])


def test_pooling_has_the_gradients_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((14, 6), (6, 2), (6,))]
    for tensor in inputs:
        tensor.requires_grad_()
    # the labels stay what they are for small steps: what is left is linear
    assert torch.autograd.gradcheck(pooled_of, inputs, eps=1e-6, atol=1e-8)


def test_every_patch_that_is_read_gets_a_gradient_and_no_other() -> None:
    features = torch.randn(14, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    pooled_of(features, torch.zeros(6, 2), torch.zeros(6)).sum().backward()
    index = torch.randint(0, 14, (11, 4), generator=torch.Generator().manual_seed(1))
    read = torch.zeros(14, dtype=torch.bool)
    read[index.flatten()] = True
    assert features.grad is not None
    assert torch.equal(features.grad.abs().sum(1) > 0, read)


def loss_of(model: Any, kind: str) -> torch.Tensor:
    items = []
    for seed, video in ((0, False), (1, True)):
        scene = make_scene(seed, video=video)
        items.append(scene_samples(scene, ask_about(scene, 0, limit=2), kind))
    batch = collate(items, model.config, model.tokenizer)
    return TrainingModel(model.network)(**batch)["loss"]


@pytest.mark.parametrize("kind", ["lite", "full"])
def test_the_loss_reaches_every_part_that_answers(kind: str, assets: Path) -> None:
    model = pf.load(assets / kind, device="cpu", dtype="float32")
    set_learning(model.network, dict.fromkeys(PARTS, 1.0))
    loss_of(model, kind).backward()
    for part, module in part_modules(model.network).items():
        without = [n for n, p in module.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
        if part == "projector" and kind == "lite":  # whose tokens nobody reads
            assert len(without) == len(list(module.parameters()))
        else:
            # no result depends on a key's bias, and the released models' mask_embedding is never read
            assert [n for n in without if "bias" not in n and n != "infusion.mask_embedding.weight"] == []


@pytest.mark.parametrize("kind", ["lite", "full"])
def test_gradients_are_those_of_finite_differences_through_the_whole_model(kind: str, assets: Path) -> None:
    model = pf.load(assets / kind, device="cpu", dtype="float32")
    set_learning(model.network, dict.fromkeys(PARTS, 1.0))
    loss_of(model, kind).backward()
    step = 1e-2
    weights = {
        "region_encoder": model.network.object_tokenizer.feat_linear.get_parameter("0.weight"),
        "llm": model.network.llm.model.norm.weight,
        "vision_encoder": model.network.encoder.post_norm.bias,
    }
    for name, weight in weights.items():
        assert weight.grad is not None
        gradient = weight.grad.clone()
        direction = gradient / gradient.norm()
        losses = []
        with torch.no_grad():
            for sign in (1, -1):
                weight.add_(sign * step * direction)
                losses.append(float(loss_of(model, kind)))
                weight.sub_(sign * step * direction)
        measured = (losses[0] - losses[1]) / (2 * step)
        assert measured == pytest.approx(float(gradient.norm()), rel=0.03), name

"""What one question costs: counted while it runs, on the recorded models with random weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pixelrefer_fast.cli.demo.costs import measure

QUESTION = "What is <region>?"


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)


def linear_flops(model: torch.nn.Module) -> int:
    """Of one token through the linear layers: two for each weight."""
    return sum(2 * layer.weight.numel() for layer in model.modules() if isinstance(layer, torch.nn.Linear))


@pytest.mark.parametrize("kind", ["lite", "full"])
def test_stages_add_up_to_what_the_sizes_say(kind: str, image: np.ndarray, request: pytest.FixtureRequest) -> None:
    model: Any = request.getfixturevalue(kind)
    costs = measure(model, image, QUESTION, [[10, 10, 60, 50]], max_new_tokens=5, repeats=1)
    assert costs.flops == costs.encoder_flops + costs.region_flops + costs.prefill_flops + costs.decode_flops
    assert costs.to_json()["flops"] == costs.flops
    assert costs.answer_tokens <= 5
    assert (costs.vision_tokens > 0) == (kind == "full")
    assert costs.prompt_tokens > costs.object_tokens + costs.vision_tokens > 0
    layers, head = (
        linear_flops(model.network.llm.model),
        linear_flops(model.network.llm) - linear_flops(model.network.llm.model),
    )
    # attention adds to the layers; of the prompt only the last token goes through the head
    assert layers * costs.prompt_tokens + head < costs.prefill_flops < 2 * layers * costs.prompt_tokens + head
    assert costs.decode_flops > (costs.answer_tokens - 1) * (layers + head)
    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    assert weights < costs.memory < weights + 200 * 2**20
    assert costs.seconds > 0


def test_more_objects_cost_more_and_the_question_is_checked(lite: Any, image: np.ndarray) -> None:
    boxes = [[10, 10, 60, 50], [30, 20, 90, 70]]
    one = measure(lite, image, QUESTION, boxes[:1], max_new_tokens=2, repeats=1)
    two = measure(lite, image, "Is <region> above <region>?", boxes, max_new_tokens=2, repeats=1)
    assert two.object_tokens > one.object_tokens
    assert two.region_flops > one.region_flops
    with pytest.raises(ValueError, match="region"):
        measure(lite, image, "What?", boxes, max_new_tokens=2)
    assert lite.ask(image, QUESTION, boxes[:1], max_new_tokens=2) == lite.ask(
        image, QUESTION, boxes[:1], max_new_tokens=2
    )

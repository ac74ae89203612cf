"""What a decoding step asks of a device: counted with the kernels of one, which are not run, on tensors of a CPU."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from plain_memory import plain_memory
from torch import nn

from pixelrefer_fast.decoding import Generation
from pixelrefer_fast.decoding.qwen import LanguageModel
from pixelrefer_fast.decoding.slots import Entry, Slots
from pixelrefer_fast.device.counters import Counts, counting

VOCABULARY = 300
CONTEXT = 100  # tokens of each sequence
LAYERS = 28  # of the released models
LAUNCHES = {"rms_norm": 1, "query, key, value": 1, "attention": 1, "out": 1, "gate and up": 1, "down": 1}


@functools.cache
def _llm(layers: int) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        max_position_embeddings=1024,
    )
    return Qwen2ForCausalLM(config).to(torch.bfloat16).requires_grad_(False)


def _step(llm: Any, sequences: int, options: Generation) -> Counts:
    """Of one step of so many sequences, everything that is looked up once being there."""
    model = LanguageModel(llm, "triton")
    pool = model.new_pool(64, 1 << 30)
    with torch.inference_mode():
        slots = Slots(model, pool, 64, 16, VOCABULARY, [5])
        slots.add([Entry(CONTEXT, 50, pool.allocate(3), [1, 2, 3], options, 0) for _ in range(sequences)])
        slots.step(sequences, 3)
        with plain_memory(), counting("cpu", dry=True) as counts:
            slots.step(sequences, 3)
    return counts


def _launches(layers: int, sequences: int = 4, **options: Any) -> int:
    llm = _llm(layers)
    return _step(llm, sequences, Generation(**{"top_k": 0, "repetition_penalty": 1.0} | options)).launches.total()


@pytest.mark.kernel
def test_six_launches_a_layer() -> None:
    assert _launches(3) - _launches(2) == sum(LAUNCHES.values()) <= 7


class Adapter(nn.Module):
    """As peft wraps a layer."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x)


@pytest.mark.kernel
def test_layers_with_adapters_share_the_attention_kernel() -> None:
    """Each module is computed by itself: four more products, three sums or joins, SiLU and its product, a norm."""
    launches = []
    for layers in (2, 3):
        llm = _llm.__wrapped__(layers)
        for layer in llm.model.layers:
            for owner, names in ((layer.self_attn, "qkvo"), (layer.mlp, ("gate", "up", "down"))):
                for name in names:
                    setattr(owner, f"{name}_proj", Adapter(getattr(owner, f"{name}_proj")))
        counts = _step(llm, 4, Generation(top_k=0, repetition_penalty=1.0))
        assert counts.launches["paged_attention.attention"] == layers
        launches.append(counts.launches.total())
    assert launches[1] - launches[0] == 16

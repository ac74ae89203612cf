"""What a decoding step asks of a device: counted with the kernels of one, which are not run, on tensors of a CPU."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from counted_steps import CONTEXT, counted_step
from torch import nn

from pixelrefer_fast.decoding import Generation

VOCABULARY = 300
LAYERS = 28  # of the released models
LAUNCHES = {"query, key, value": 1, "attention": 1, "out": 1, "gate and up": 1, "down": 1}


SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
# Lite-2B's, of Qwen2.5-1.5B
WHOLE = {"hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12, "num_key_value_heads": 2}
WHOLE_VOCABULARY = 151936


@functools.cache
def _llm(layers: int, vocabulary: int = VOCABULARY, whole: bool = False) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        **(WHOLE if whole else SMALL),
        num_hidden_layers=layers,
        vocab_size=vocabulary,
        tie_word_embeddings=True,
        max_position_embeddings=1024,
    )
    return Qwen2ForCausalLM(config).to(torch.bfloat16).requires_grad_(False)


def _launches(layers: int, sequences: int = 4, **options: Any) -> int:
    llm = _llm(layers)
    return counted_step(
        llm, sequences, Generation(**{"top_k": 0, "repetition_penalty": 1.0} | options)
    ).launches.total()


@pytest.mark.kernel
def test_five_launches_a_layer() -> None:
    assert _launches(3) - _launches(2) == sum(LAUNCHES.values()) <= 7


@pytest.mark.kernel
def test_launches_of_acounted_step() -> None:
    layer, fixed = sum(LAUNCHES.values()), 2 * _launches(2) - _launches(4)
    assert fixed + LAYERS * layer <= 172
    # what was said is kept, one token more
    penalised = {"repetition_penalty": 1.1}
    assert 2 * _launches(2, **penalised) - _launches(4, **penalised) == fixed + 4


@pytest.mark.kernel
@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.1}, {"min_new_tokens": 9, "logit_bias": {4: 1.0}}])
def test_the_logits_are_read_once(options: dict[str, Any]) -> None:
    """By the kernel that chooses; nothing else of a step is as wide as the vocabulary."""
    narrow, wide = (
        counted_step(_llm(2, vocabulary), 4, Generation(**{"top_k": 0, "repetition_penalty": 1.0} | options)).moved_by
        for vocabulary in (VOCABULARY, 2 * VOCABULARY)
    )
    grown = {name: wide[name] - narrow[name] for name in wide if wide[name] > narrow[name]}
    assert grown.keys() == {"aten.mm", "best_token.rows"}
    assert grown["best_token.rows"] == 4 * VOCABULARY * 2
    assert grown["aten.mm"] == (64 + 4) * VOCABULARY * 2


@pytest.mark.kernel
def test_only_rows_that_sample_pay() -> None:
    """One of four: what is as wide as the vocabulary is that of one row."""
    options = [Generation(top_k=0, repetition_penalty=1.0)] * 3 + [
        Generation(temperature=1.0, top_k=20, repetition_penalty=1.0)
    ]
    narrow, wide = (counted_step(_llm(2, v), 4, *options).moved_by for v in (VOCABULARY, 2 * VOCABULARY))
    grown = {name: wide[name] - narrow[name] for name in wide if wide[name] > narrow[name]}
    assert grown.pop("aten.mm") == (64 + 4) * VOCABULARY * 2
    assert grown.pop("best_token.rows") == 4 * VOCABULARY * 2
    assert sum(grown.values()) <= 3 * VOCABULARY * 8  # gathered, in float32, and searched for the likely ones
    assert "aten.sort" not in wide


@pytest.mark.kernel
@pytest.mark.parametrize(("sequences", "most"), [(1, 0.001), (64, 0.05)])
def test_bytes_beyond_weights_and_keys(sequences: int, most: float) -> None:
    """Of Lite-2B's step: bytes grow evenly with layers and vocabulary, so few of both are counted."""
    options = Generation(top_k=0, repetition_penalty=1.0)

    def whole(layers: int, vocabulary: int) -> tuple[int, int]:
        """Bytes moved, and those of the weights."""
        llm = _llm(layers, vocabulary, whole=True)
        return counted_step(llm, sequences, options).moved, sum(p.nbytes for p in llm.parameters())

    one, two, wide = whole(1, VOCABULARY), whole(2, VOCABULARY), whole(1, 2 * VOCABULARY)
    more = WHOLE_VOCABULARY / VOCABULARY - 1
    moved, weights = (a + (LAYERS - 1) * (b - a) + more * (c - a) for a, b, c in zip(one, two, wide, strict=True))
    row = 2 * 2 * 128 * 2  # keys and values of a token, in bytes
    # the kernel counts the new rows, and not those that it reads
    beyond = moved - weights - LAYERS * sequences * row
    kept = weights + LAYERS * sequences * (CONTEXT + 1) * row
    assert 0 < beyond <= most * kept


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
        counts = counted_step(llm, 4, Generation(top_k=0, repetition_penalty=1.0))
        assert counts.launches["paged_attention.attention"] == layers
        launches.append(counts.launches.total())
    assert launches[1] - launches[0] == 16

"""transformers' Qwen2 on packed sequences: each as if it ran alone, with gradients, without padding or a mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM
from transformers.masking_utils import create_causal_mask

from pixelrefer_fast.train.llm_attention import NAME, attend, pack

WIDTH = 24
LENGTHS = [5, 1, 9, 3, 9]


def _llm() -> Any:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=40,
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    return Qwen2ForCausalLM(config).eval()


@pytest.fixture
def llm() -> Any:
    return _llm()


@pytest.fixture
def packed() -> Any:
    model = _llm()
    pack(model)
    return model


def _sequences(lengths: list[int] = LENGTHS) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, WIDTH, generator=generator) for n in lengths]


def _run(model: Any, sequences: list[torch.Tensor]) -> torch.Tensor:
    lengths = [len(x) for x in sequences]
    offsets = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
    positions = torch.cat([torch.arange(n) for n in lengths])
    return model.model(
        inputs_embeds=torch.cat(sequences)[None],
        position_ids=positions[None],
        cu_seq_lens_q=offsets,
        cu_seq_lens_k=offsets,
        max_length_q=max(lengths),
        max_length_k=max(lengths),
        use_cache=False,
    ).last_hidden_state[0]


def test_packed_sequences_are_as_if_alone(llm: Any, packed: Any) -> None:
    sequences = _sequences()
    alone = torch.cat([llm.model(inputs_embeds=x[None], use_cache=False).last_hidden_state[0] for x in sequences])
    torch.testing.assert_close(_run(packed, sequences), alone, rtol=1e-5, atol=1e-5)


def test_gradients(llm: Any, packed: Any) -> None:
    sequences = _sequences()
    weight = torch.randn(sum(LENGTHS), WIDTH)
    alone = torch.cat([llm.model(inputs_embeds=x[None], use_cache=False).last_hidden_state[0] for x in sequences])
    (alone * weight).sum().backward()
    (_run(packed, sequences) * weight).sum().backward()
    for (name, a), (_, b) in zip(packed.model.named_parameters(), llm.model.named_parameters(), strict=True):
        if name != "embed_tokens.weight":
            assert a.grad is not None, name
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


def test_linear_layers_see_no_padding(packed: Any) -> None:
    rows: set[int] = set()
    for module in packed.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda m, inputs, out: rows.add(inputs[0].shape[:-1].numel()))
    _run(packed, _sequences())
    assert rows == {sum(LENGTHS)}


def test_no_mask_is_built(packed: Any) -> None:
    x = torch.cat(_sequences())[None]
    positions = torch.cat([torch.arange(n) for n in LENGTHS])[None]
    for mask in (None, torch.ones(1, sum(LENGTHS))):
        built = create_causal_mask(
            config=packed.config, inputs_embeds=x, attention_mask=mask, past_key_values=None, position_ids=positions
        )
        assert built is None


def test_without_offsets_the_rows_are_the_sequences(llm: Any, packed: Any) -> None:
    """As anybody calls a model: equal lengths, and further tokens with a cache."""
    x = torch.randn(3, 7, WIDTH)
    torch.testing.assert_close(packed(inputs_embeds=x).logits, llm(inputs_embeds=x).logits, rtol=1e-5, atol=1e-5)
    cache = DynamicCache(config=packed.config)
    packed(inputs_embeds=x[:, :4], past_key_values=cache, use_cache=True)
    rest = packed(inputs_embeds=x[:, 4:], past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(rest, llm(inputs_embeds=x).logits[:, 4:], rtol=1e-5, atol=1e-5)


def test_the_model_that_is_not_packed_stays_as_it_is(llm: Any, packed: Any) -> None:
    assert packed.config._attn_implementation == NAME
    assert llm.config._attn_implementation != NAME


def _qkv(batch: int = 1) -> tuple[torch.Tensor, ...]:
    return torch.zeros(batch, 4, 3, 8), torch.zeros(batch, 2, 3, 8), torch.zeros(batch, 2, 3, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention_mask": torch.zeros(1, 1, 3, 3)}, r"expected no attention mask, got one of shape \(1, 1, 3, 3\)"),
        ({"dropout": 0.1}, "expected no dropout and no window, got 0.1 and None"),
        ({"sliding_window": 4}, "expected no dropout and no window, got 0.0 and 4"),
        ({"scaling": 1.0}, r"expected a scaling of 1 / sqrt\(8\), got 1.0"),
        (
            {"max_length_q": 3},
            r"expected a batch of one with cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k, "
            r"got 1 with \['max_length_q'\]",
        ),
    ],
)
def test_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{NAME}: {message}$"):
        attend(torch.nn.Identity(), *_qkv(), **{"attention_mask": None, **options})


def test_padding_is_an_error(packed: Any) -> None:
    with pytest.raises(ValueError, match=f"^{NAME}: expected no padding in attention_mask"):
        packed(inputs_embeds=torch.zeros(2, 3, WIDTH), attention_mask=torch.tensor([[1, 1, 1], [1, 1, 0]]))

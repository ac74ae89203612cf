"""scatter_tokens against a loop over rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pixelrefer_fast.ops import scatter_tokens

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@st.composite
def _cases(draw: st.DrawFn) -> tuple[int, list[int]]:
    length = draw(st.integers(0, 30))
    slots = draw(st.lists(st.integers(0, max(length - 1, 0)), unique=True, max_size=length))
    return length, slots


@given(case=_cases(), width=st.integers(1, 9))
def test_against_a_loop(case: tuple[int, list[int]], width: int) -> None:
    length, slots = case
    embeds = torch.arange(length * width).reshape(length, width).float()
    tokens = -1.0 - torch.arange(len(slots) * width).reshape(len(slots), width).float()
    before = embeds.clone()
    out = scatter_tokens(embeds, tokens, torch.tensor(slots, dtype=torch.int64))
    expected = embeds.tolist()
    for slot, token in zip(slots, tokens.tolist(), strict=True):
        expected[slot] = token
    assert out.shape == (length, width)
    assert out.tolist() == expected
    assert torch.equal(embeds, before), "the prompt's own embeddings are written to"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_are_moved_not_computed(dtype: torch.dtype) -> None:
    embeds, tokens = torch.randn(6, 5).to(dtype), torch.randn(2, 5).to(dtype)
    out = scatter_tokens(embeds, tokens, torch.tensor([4, 1]))
    assert out.dtype == dtype
    assert torch.equal(out[[4, 1]], tokens)
    assert torch.equal(out[[0, 2, 3, 5]], embeds[[0, 2, 3, 5]])


def test_tokens_take_the_dtype_of_the_prompt() -> None:
    tokens = torch.tensor([[1 / 3]])
    out = scatter_tokens(torch.zeros(2, 1, dtype=torch.bfloat16), tokens, torch.tensor([1]))
    assert out.dtype == torch.bfloat16
    assert out[1] == tokens.bfloat16()


def test_poison_in_a_row_stays_there() -> None:
    embeds, tokens = torch.zeros(4, 3), torch.ones(2, 3)
    embeds[2], tokens[0] = torch.nan, torch.nan
    out = scatter_tokens(embeds, tokens, torch.tensor([2, 0]))
    assert torch.isnan(out[2]).all()  # the token's NaN; the prompt's own is gone
    assert out[[0, 1, 3]].tolist() == [[1] * 3, [0] * 3, [0] * 3]
    tokens[0] = 5
    assert torch.isfinite(scatter_tokens(embeds, tokens, torch.tensor([2, 0]))).all()


def test_many_tokens() -> None:
    slots = torch.randperm(20_000)[:9_600]  # 300 objects of 32 tokens
    tokens = torch.arange(9_600.0)[:, None]
    out = scatter_tokens(torch.full((20_000, 1), -1.0), tokens, slots)
    assert torch.equal(out[slots], tokens)
    assert int((out == -1).sum()) == 20_000 - 9_600


def test_gradients_reach_tokens_and_prompt() -> None:
    embeds, tokens = torch.randn(4, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    scatter_tokens(embeds, tokens, torch.tensor([3, 1])).sum().backward()
    assert embeds.grad is not None
    assert tokens.grad is not None
    assert embeds.grad[:, 0].tolist() == [1, 0, 1, 0]
    assert tokens.grad.eq(1).all()


@pytest.mark.parametrize("slots", [[-1, 0], [0, 4], [-(2**62), 2**62]])
def test_slots_outside_the_prompt(slots: list[int]) -> None:
    message = rf"^scatter_tokens: expected slots from 0 to 3, got {min(slots)} to {max(slots)}$"
    with pytest.raises(ValueError, match=message):
        scatter_tokens(torch.zeros(4, 2), torch.zeros(2, 2), torch.tensor(slots))


def test_a_token_for_an_empty_prompt() -> None:
    with pytest.raises(ValueError, match=r"^scatter_tokens: expected slots from 0 to -1, got 0 to 0$"):
        scatter_tokens(torch.zeros(0, 2), torch.zeros(1, 2), torch.tensor([0]))


def test_wrong_shapes_and_dtypes() -> None:
    embeds = torch.zeros(4, 2)
    slots = torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"^scatter_tokens: expected tokens of shape \(any, 2\), got \(2, 3\)$"):
        scatter_tokens(embeds, torch.zeros(2, 3), slots)
    with pytest.raises(ValueError, match=r"^scatter_tokens: expected slots of shape \(1\), got \(2,\)$"):
        scatter_tokens(embeds, torch.zeros(1, 2), slots)
    with pytest.raises(ValueError, match=r"^scatter_tokens: expected slots of torch.int64, got torch.int32$"):
        scatter_tokens(embeds, torch.zeros(2, 2), slots.int())

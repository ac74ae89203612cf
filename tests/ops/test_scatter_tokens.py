"""scatter_tokens and gather_tokens against loops over rows."""

from __future__ import annotations

import importlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pixelrefer_fast.ops import BackendError, scatter_tokens
from pixelrefer_fast.ops.scatter_tokens import gather_tokens

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@st.composite
def _cases(draw: st.DrawFn) -> tuple[int, list[int]]:
    length = draw(st.integers(0, 30))
    slots = draw(st.lists(st.integers(0, max(length - 1, 0)), unique=True, max_size=length))
    return length, [slot if draw(st.integers(0, 4)) else -1 for slot in slots]


@given(case=_cases(), width=st.integers(1, 9))
def test_against_a_loop(case: tuple[int, list[int]], width: int) -> None:
    length, slots = case
    embeds = torch.arange(length * width).reshape(length, width).float()
    tokens = -1.0 - torch.arange(len(slots) * width).reshape(len(slots), width).float()
    expected = embeds.tolist()
    gathered = [[0.0] * width for _ in slots]
    for i, (slot, token) in enumerate(zip(slots, tokens.tolist(), strict=True)):
        if slot >= 0:
            expected[slot] = gathered[i] = token
    scatter_tokens(embeds, tokens, torch.tensor(slots, dtype=torch.int64), backend="torch")
    assert embeds.shape == (length, width)
    assert embeds.tolist() == expected
    assert gather_tokens(embeds, torch.tensor(slots, dtype=torch.int64)).tolist() == gathered


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_are_moved_not_computed(dtype: torch.dtype) -> None:
    embeds, tokens = torch.randn(6, 5).to(dtype), torch.randn(2, 5).to(dtype)
    before = embeds.clone()
    scatter_tokens(embeds, tokens, torch.tensor([4, 1]))
    assert embeds.dtype == dtype
    assert torch.equal(embeds[[4, 1]], tokens)
    assert torch.equal(embeds[[0, 2, 3, 5]], before[[0, 2, 3, 5]])
    assert torch.equal(gather_tokens(embeds, torch.tensor([4, 1])), tokens)


def test_poison_in_a_row_stays_there() -> None:
    embeds, tokens = torch.zeros(4, 3), torch.ones(3, 3)
    embeds[2], tokens[0], tokens[2] = torch.nan, torch.nan, torch.nan
    scatter_tokens(embeds, tokens, torch.tensor([2, 0, -1]))
    assert torch.isnan(embeds[2]).all()  # the token's NaN; the prompt's own is gone
    assert embeds[[0, 1, 3]].tolist() == [[1] * 3, [0] * 3, [0] * 3]
    tokens[0] = 5
    scatter_tokens(embeds, tokens, torch.tensor([2, 0, -1]))
    assert torch.isfinite(embeds).all()


def test_many_tokens() -> None:
    slots = torch.randperm(20_000)[:9_600]  # 300 objects of 32 tokens
    tokens = torch.arange(9_600.0)[:, None]
    embeds = torch.full((20_000, 1), -1.0)
    scatter_tokens(embeds, tokens, slots)
    assert torch.equal(embeds[slots], tokens)
    assert int((embeds == -1).sum()) == 20_000 - 9_600


def test_gradients_reach_tokens_and_prompt() -> None:
    prompt, tokens = torch.randn(4, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    embeds = prompt.clone()
    scatter_tokens(embeds, tokens, torch.tensor([3, 1]))
    embeds.sum().backward()
    assert prompt.grad is not None
    assert tokens.grad is not None
    assert prompt.grad[:, 0].tolist() == [1, 0, 1, 0]
    assert tokens.grad.eq(1).all()


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("slots", [[-2, 0], [0, 4], [-(2**62), 2**62]])
def test_slots_outside_the_prompt(slots: list[int], backend: str) -> None:
    embeds = torch.zeros(4, 2)
    message = rf"_tokens: expected slots from -1 to 3, got {min(slots)} to {max(slots)}$"
    with pytest.raises(ValueError, match=f"^scatter{message}"):
        scatter_tokens(embeds, torch.ones(2, 2), torch.tensor(slots), backend=backend)
    assert not embeds.any()
    with pytest.raises(ValueError, match=f"^gather{message}"):
        gather_tokens(embeds, torch.tensor(slots))


def test_slots_that_are_left_out_on_a_device() -> None:
    """What a device does with slots that only a host refuses; nothing there depends on a value, hence nothing waits."""
    slots = torch.tensor([2, -(2**62), 5, 0, -1])
    tokens = torch.arange(10.0).view(5, 2)
    embeds = torch.full((5, 2), -1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.import_module(gather_tokens.__module__), "_check", lambda *args: None)
        scatter_tokens(embeds, tokens, slots, backend="torch")
        gathered = gather_tokens(embeds, slots)
    assert embeds.tolist() == [[6, 7], [-1, -1], [0, 1], [-1, -1], [-1, -1]]
    assert gathered.tolist() == [[0, 1], [0, 0], [0, 0], [6, 7], [0, 0]]
    # a tensor on meta has no values: an operation whose result's shape needs one raises
    without = [t.to("meta") for t in (embeds, tokens, slots)]
    scatter_tokens(*without, backend="torch")
    assert gather_tokens(without[0], without[2]).shape == (5, 2)


def test_a_token_for_an_empty_prompt() -> None:
    with pytest.raises(ValueError, match=r"^scatter_tokens: expected slots from -1 to -1, got 0 to 0$"):
        scatter_tokens(torch.zeros(0, 2), torch.zeros(1, 2), torch.tensor([0]))


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_wrong_shapes_and_dtypes(backend: str) -> None:
    embeds = torch.zeros(4, 2)
    slots = torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"^scatter_tokens: expected tokens of shape \(2, 2\), got \(2, 3\)$"):
        scatter_tokens(embeds, torch.zeros(2, 3), slots, backend=backend)
    with pytest.raises(ValueError, match=r"^scatter_tokens: expected tokens of shape \(2, 2\), got \(1, 2\)$"):
        scatter_tokens(embeds, torch.zeros(1, 2), slots, backend=backend)
    with pytest.raises(ValueError, match=r"^scatter_tokens: expected slots of shape \(any\), got \(2, 1\)$"):
        scatter_tokens(embeds, torch.zeros(2, 2), slots[:, None], backend=backend)
    with pytest.raises(ValueError, match=r"^scatter_tokens: expected slots of torch.int64, got torch.int32$"):
        scatter_tokens(embeds, torch.zeros(2, 2), slots.int(), backend=backend)
    with pytest.raises(ValueError, match=r"^scatter_tokens: expected tokens of torch.float32, got torch.float16$"):
        scatter_tokens(embeds, torch.zeros(2, 2).half(), slots, backend=backend)


def test_gather_knows_two_backends() -> None:
    with pytest.raises(BackendError, match=r"^gather_tokens: expected backend torch or cuda, got 'triton'$"):
        gather_tokens(torch.zeros(2, 2), torch.tensor([0]), backend="triton")

"""varlen_attention against dense attention of everything with everything under a block-diagonal mask."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pixelrefer_fast.ops import varlen_attention

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def _dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: list[int], dtype: torch.dtype) -> torch.Tensor:
    """(P, heads, head_dim), one softmax over all patches with those of other sequences masked out."""
    q, k, v = (x.to(dtype) for x in (q, k, v))
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths, dtype=torch.int64))
    scores = torch.einsum("phd,shd->hps", q, k) * q.shape[2] ** -0.5
    scores = scores.masked_fill(owner[:, None] != owner[None], -torch.inf)
    return torch.einsum("hps,shd->phd", scores.softmax(-1), v)


def _offsets(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def _random(lengths: list[int], heads: int, head_dim: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(sum(lengths), heads, head_dim, generator=generator) for _ in range(3)]


@given(
    lengths=st.lists(st.integers(0, 12) | st.just(4), max_size=9),
    heads=st.integers(1, 4),
    head_dim=st.sampled_from([1, 3, 8, 72]),
)
def test_against_dense_attention(lengths: list[int], heads: int, head_dim: int) -> None:
    q, k, v = _random(lengths, heads, head_dim, seed=sum(lengths))
    out = varlen_attention(q, k, v, _offsets(lengths))
    torch.testing.assert_close(out.double(), _dense(q, k, v, lengths, torch.float64), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_precision(dtype: torch.dtype, numeric_bar: Callable[..., None]) -> None:
    lengths = [31, 1, 64, 0, 64, 17]
    q, k, v = (x.to(dtype) for x in _random(lengths, 3, 72))
    out = varlen_attention(q, k, v, _offsets(lengths))
    assert out.dtype == dtype
    numeric_bar(
        varlen_attention,
        out,
        _dense(q, k, v, lengths, torch.float64),
        _dense(q, k, v, lengths, dtype),
    )


@pytest.mark.parametrize("poisoned", range(5))
def test_sequences_do_not_reach_each_other(poisoned: int) -> None:
    lengths = [3, 4, 4, 4, 1]  # the three of four run as one batch
    q, k, v = _random(lengths, 2, 8)
    offsets = _offsets(lengths)
    clean = varlen_attention(q, k, v, offsets)
    own = torch.zeros(sum(lengths), dtype=torch.bool)
    own[offsets[poisoned] : offsets[poisoned + 1]] = True
    for x in (q, k, v):
        x[own] = torch.nan
    out = varlen_attention(q, k, v, offsets)
    assert torch.isnan(out[own]).all()
    assert torch.equal(out[~own], clean[~own])


def test_a_sequence_of_one_returns_its_value() -> None:
    q, k, v = _random([1, 1, 1], 2, 8)
    torch.testing.assert_close(varlen_attention(q, k, v, _offsets([1, 1, 1])), v)


def test_many_sequences() -> None:
    lengths = [1 + i % 7 for i in range(300)]
    q, k, v = _random(lengths, 1, 4)
    out = varlen_attention(q, k, v, _offsets(lengths))
    torch.testing.assert_close(out.double(), _dense(q, k, v, lengths, torch.float64), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0]])
def test_nothing(lengths: list[int]) -> None:
    q, k, v = _random(lengths, 2, 8)
    assert varlen_attention(q, k, v, _offsets(lengths)).shape == (0, 2, 8)


def test_large_scores_do_not_overflow() -> None:
    q, k, v = (300 * x for x in _random([6, 5], 2, 8))
    out = varlen_attention(q, k, v, _offsets([6, 5]))
    torch.testing.assert_close(out.double(), _dense(q, k, v, [6, 5], torch.float64), rtol=1e-3, atol=1e-2)


def test_offsets_of_int32_and_strided_arguments() -> None:
    qkv = torch.stack(_random([5, 3], 2, 8), dim=1)
    q, k, v = qkv.unbind(1)
    assert not q.is_contiguous()
    out = varlen_attention(q, k, v, _offsets([5, 3]).int())
    assert torch.equal(out, varlen_attention(q.contiguous(), k.contiguous(), v.contiguous(), _offsets([5, 3])))


def test_gradients_stay_within_their_sequence() -> None:
    q, k, v = (x.requires_grad_() for x in _random([4, 4, 2], 2, 8))
    out = varlen_attention(q, k, v, _offsets([4, 4, 2]))
    out[:4].sum().backward()
    for x in (q, k, v):
        assert x.grad is not None
        assert x.grad[:4].abs().sum() > 0
        assert x.grad[4:].eq(0).all()


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([1, 9], r"expected cu_seqlens from 0 to 9, got \[1, 9\]"),
        ([0, 8], r"expected cu_seqlens from 0 to 9, got \[0, 8\]"),
        ([], r"expected cu_seqlens from 0 to 9, got \[\]"),
        ([0, 5, 4, 9], r"expected cu_seqlens that never fall, got \[0, 5, 4, 9\]"),
        ([0, -1, 9], r"expected cu_seqlens that never fall, got \[0, -1, 9\]"),
        ([0, 12, 9], r"expected cu_seqlens that never fall, got \[0, 12, 9\]"),
        ([[0, 9]], r"expected cu_seqlens from 0 to 9, got \[\[0, 9\]\]"),
        (9, r"expected cu_seqlens from 0 to 9, got 9"),
        (list(range(9)), r"expected cu_seqlens from 0 to 9, got \[0, 1, 2, \.\.\. 6, 7, 8\]"),
    ],
)
def test_wrong_offsets(offsets: list, message: str) -> None:
    q, k, v = _random([9], 1, 4)
    with pytest.raises(ValueError, match=f"^varlen_attention: {message}$"):
        varlen_attention(q, k, v, torch.tensor(offsets, dtype=torch.int64))


def test_wrong_shapes() -> None:
    q, k, v = _random([9], 2, 4)
    offsets = _offsets([9])
    with pytest.raises(ValueError, match=r"^varlen_attention: expected k of shape \(9, 2, 4\), got \(8, 2, 4\)$"):
        varlen_attention(q, k[:8], v, offsets)
    with pytest.raises(ValueError, match=r"^varlen_attention: expected v of shape \(9, 2, 4\), got \(9, 1, 4\)$"):
        varlen_attention(q, k, v[:, :1], offsets)

"""varlen_attention against dense attention of everything with everything under a block-diagonal mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from pixelrefer_fast.ops import varlen_attention

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def _dense(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, queries: list[int], keys: list[int], dtype: torch.dtype
) -> torch.Tensor:
    """(Pq, heads, head_dim), one softmax over all keys with those of other sequences masked out."""
    q, k, v = (x.to(dtype) for x in (q, k, v))
    owners = [
        torch.repeat_interleave(torch.arange(len(x)), torch.tensor(x, dtype=torch.int64)) for x in (queries, keys)
    ]
    scores = torch.einsum("phd,shd->hps", q, k) * q.shape[2] ** -0.5
    scores = scores.masked_fill(owners[0][:, None] != owners[1][None], -torch.inf)
    # a query without keys has a row of -inf only
    return torch.einsum("hps,shd->phd", scores.softmax(-1).nan_to_num(0), v)


def _offsets(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)


def _random(lengths: list[int], heads: int, head_dim: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(sum(lengths), heads, head_dim, generator=generator) for _ in range(3)]


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """Self-attention: as many keys as queries."""
    offsets, longest = _offsets(lengths), max(lengths, default=0)
    return varlen_attention(q, k, v, offsets, offsets, longest, longest)


LENGTHS = st.lists(st.integers(0, 12) | st.just(4), max_size=9)


@given(lengths=LENGTHS, heads=st.integers(1, 4), head_dim=st.sampled_from([1, 3, 8, 72]))
def test_against_dense_attention(lengths: list[int], heads: int, head_dim: int) -> None:
    q, k, v = _random(lengths, heads, head_dim, seed=sum(lengths))
    exact = _dense(q, k, v, lengths, lengths, torch.float64)
    torch.testing.assert_close(_attend(q, k, v, lengths).double(), exact, rtol=1e-5, atol=2e-6)


@given(
    lengths=st.lists(st.tuples(st.integers(0, 6) | st.just(2), st.integers(0, 12) | st.just(4)), max_size=9),
    slack=st.integers(0, 3),
)
def test_queries_and_keys_of_different_lengths(lengths: list[tuple[int, int]], slack: int) -> None:
    """The last layer asks for some patches only; a sequence may have no keys, rows may be left over."""
    queries, keys = [a for a, _ in lengths], [b for _, b in lengths]
    q = _random([*queries, slack], 2, 8, seed=1)[0]
    _, k, v = _random([*keys, slack], 2, 8, seed=2)
    exact = _dense(q[: sum(queries)], k[: sum(keys)], v[: sum(keys)], queries, keys, torch.float64)
    for x, used in ((q, sum(queries)), (k, sum(keys)), (v, sum(keys))):
        x[used:] = torch.nan
    longest = max(queries, default=0) + slack, max(keys, default=0) + slack
    out = varlen_attention(q, k, v, _offsets(queries), _offsets(keys), *longest)
    torch.testing.assert_close(out[: sum(queries)].double(), exact, rtol=1e-5, atol=2e-6)
    assert out[sum(queries) :].eq(0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_precision(dtype: torch.dtype, numeric_bar: Callable[..., None]) -> None:
    lengths = [31, 1, 64, 0, 64, 17]
    q, k, v = (x.to(dtype) for x in _random(lengths, 3, 72))
    out = _attend(q, k, v, lengths)
    assert out.dtype == dtype
    exact, plain = (_dense(q, k, v, lengths, lengths, x) for x in (torch.float64, dtype))
    numeric_bar(varlen_attention, out, exact, plain)


@pytest.mark.parametrize("poisoned", range(5))
def test_sequences_do_not_reach_each_other(poisoned: int) -> None:
    lengths = [3, 4, 4, 4, 1]  # the three of four run as one batch
    q, k, v = _random(lengths, 2, 8)
    offsets = _offsets(lengths)
    clean = _attend(q, k, v, lengths)
    own = torch.zeros(sum(lengths), dtype=torch.bool)
    own[offsets[poisoned] : offsets[poisoned + 1]] = True
    for x in (q, k, v):
        x[own] = torch.nan
    out = _attend(q, k, v, lengths)
    assert torch.isnan(out[own]).all()
    assert torch.equal(out[~own], clean[~own])


def test_a_sequence_of_one_returns_its_value() -> None:
    q, k, v = _random([1, 1, 1], 2, 8)
    torch.testing.assert_close(_attend(q, k, v, [1, 1, 1]), v)


def test_many_sequences() -> None:
    lengths = [1 + i % 7 for i in range(300)]
    q, k, v = _random(lengths, 1, 4)
    exact = _dense(q, k, v, lengths, lengths, torch.float64)
    torch.testing.assert_close(_attend(q, k, v, lengths).double(), exact, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0]])
def test_nothing(lengths: list[int]) -> None:
    q, k, v = _random(lengths, 2, 8)
    assert _attend(q, k, v, lengths).shape == (0, 2, 8)


def test_large_scores_do_not_overflow() -> None:
    q, k, v = (300 * x for x in _random([6, 5], 2, 8))
    exact = _dense(q, k, v, [6, 5], [6, 5], torch.float64)
    torch.testing.assert_close(_attend(q, k, v, [6, 5]).double(), exact, rtol=1e-3, atol=1e-2)


def test_strided_arguments() -> None:
    q, k, v = torch.stack(_random([5, 3], 2, 8), dim=1).unbind(1)
    assert not q.is_contiguous()
    expected = _attend(q.contiguous(), k.contiguous(), v.contiguous(), [5, 3])
    assert torch.equal(_attend(q, k, v, [5, 3]), expected)


def test_gradients_stay_within_their_sequence() -> None:
    q, k, v = (x.requires_grad_() for x in _random([4, 4, 2], 2, 8))
    out = _attend(q, k, v, [4, 4, 2])
    out[:4].sum().backward()
    for x in (q, k, v):
        assert x.grad is not None
        assert x.grad[:4].abs().sum() > 0
        assert x.grad[4:].eq(0).all()


class _Allocated(TorchDispatchMode):
    """Bytes of every tensor that an operation allocates: the largest, and all together."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func(*args, **(kwargs or {}))
        fresh = not func.is_view and not func._schema.is_mutable
        for tensor in returned if isinstance(returned, (tuple, list)) else (returned,):
            if fresh and isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.nbytes)
                self.total += tensor.nbytes
        return returned


@pytest.mark.parametrize("lengths", [[144] * 20, [143 + i % 3 for i in range(20)]], ids=["alike", "ragged"])
def test_twenty_frames_take_no_memory_for_a_mask(lengths: list[int]) -> None:
    """Memory is that of the patches, not of their pairs: a mask or scores over the packing would be 33 MB a head."""
    q, k, v = _random(lengths, 2, 72)
    with _Allocated() as allocated:
        out = _attend(q, k, v, lengths)
    assert allocated.largest <= out.nbytes
    # the result, the pieces that make it up, and their log-sum-exp
    assert out.nbytes < allocated.total <= 2.1 * out.nbytes


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([1, 9], r"expected cu_seqlens_q from 0 to at most 9, got \[1, 9\]"),
        ([0, 10], r"expected cu_seqlens_q from 0 to at most 9, got \[0, 10\]"),
        ([], r"expected cu_seqlens_q from 0 to at most 9, got \[\]"),
        ([0, 5, 4, 9], r"expected cu_seqlens_q that never fall, got \[0, 5, 4, 9\]"),
        ([0, -1, 9], r"expected cu_seqlens_q that never fall, got \[0, -1, 9\]"),
        ([0, 12, 9], r"expected cu_seqlens_q that never fall, got \[0, 12, 9\]"),
        ([*range(9), 20], r"expected cu_seqlens_q from 0 to at most 9, got \[0, 1, 2, \.\.\. 7, 8, 20\]"),
        ([[0, 9]], r"expected cu_seqlens_q of shape \(any\), got \(1, 2\)"),
        (9, r"expected cu_seqlens_q of shape \(any\), got \(\)"),
        ([0, 2, 9], "expected sequences of cu_seqlens_q up to 6 long, got one of 7"),
    ],
)
def test_wrong_offsets(offsets: list, message: str) -> None:
    """In both arguments; the other one is right."""
    q, k, v = _random([9], 1, 4)
    wrong = torch.tensor(offsets, dtype=torch.int32)
    right = torch.zeros_like(wrong)
    with pytest.raises(ValueError, match=f"^varlen_attention: {message}$"):
        varlen_attention(q, k, v, wrong, right, 6, 6)
    if len(right.shape) == 1 and len(right):
        with pytest.raises(ValueError, match=f"^varlen_attention: {message.replace('seqlens_q', 'seqlens_k')}$"):
            varlen_attention(q, k, v, right, wrong, 6, 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(9, 8)}, r"expected q of shape \(any, any, any\), got \(9, 8\)"),
        ({"k": torch.zeros(9, 1, 4)}, r"expected k of shape \(any, 2, 4\), got \(9, 1, 4\)"),
        ({"v": torch.zeros(8, 2, 4)}, r"expected v of shape \(9, 2, 4\), got \(8, 2, 4\)"),
        ({"k": torch.zeros(9, 2, 4).half()}, "expected k of torch.float32, got torch.float16"),
        ({"v": torch.zeros(9, 2, 4).half()}, "expected v of torch.float32, got torch.float16"),
        ({"cu_seqlens_q": torch.tensor([0, 9])}, "expected cu_seqlens_q of torch.int32, got torch.int64"),
        ({"cu_seqlens_k": _offsets([4, 5])}, r"expected cu_seqlens_k of shape \(2\), got \(3,\)"),
        (
            {"cu_seqlens_k": torch.zeros(2, dtype=torch.int32, device="meta")},
            "expected cu_seqlens_q and cu_seqlens_k on one device, got cpu and meta",
        ),
    ],
)
def test_errors(change: dict[str, torch.Tensor], message: str) -> None:
    q, k, v = _random([9], 2, 4)
    arguments = {"q": q, "k": k, "v": v, "cu_seqlens_q": _offsets([9]), "cu_seqlens_k": _offsets([9])} | change
    with pytest.raises(ValueError, match=f"^varlen_attention: {message}$"):
        varlen_attention(*arguments.values(), 9, 9)

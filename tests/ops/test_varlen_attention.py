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
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    queries: list[int],
    keys: list[int],
    dtype: torch.dtype,
    causal: bool = False,
) -> torch.Tensor:
    """(Pq, heads, head_dim), one softmax over all keys with those of other sequences, or yet to come, masked out."""
    q, k, v = (x.to(dtype) for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // max(x.shape[1], 1), 1) for x in (k, v))
    owners = [
        torch.repeat_interleave(torch.arange(len(x)), torch.tensor(x, dtype=torch.int64)) for x in (queries, keys)
    ]
    hidden = owners[0][:, None] != owners[1][None]
    if causal:
        # counted from the end of its sequence
        left = [torch.cat([torch.arange(n, 0, -1) for n in (0, *x)]) for x in (queries, keys)]
        hidden = hidden | (left[1][None] < left[0][:, None])
    scores = torch.einsum("phd,shd->hps", q, k) * q.shape[2] ** -0.5
    scores = scores.masked_fill(hidden, -torch.inf)
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
        ({"k": torch.zeros(9, 2, 3)}, r"expected k of shape \(any, any, 4\), got \(9, 2, 3\)"),
        ({"k": torch.zeros(9, 4, 4)}, "expected k of as many heads as q or of a divisor of its 2, got 4"),
        ({"k": torch.zeros(9, 0, 4)}, "expected k of as many heads as q or of a divisor of its 2, got 0"),
        ({"v": torch.zeros(9, 1, 4)}, r"expected v of shape \(9, 2, 4\), got \(9, 1, 4\)"),
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


@pytest.mark.parametrize("value", [1, None, "yes", torch.tensor(True)])
def test_causal_is_true_or_false(value: Any) -> None:
    q, k, v = _random([9], 2, 4)
    with pytest.raises(ValueError, match=r"^varlen_attention: expected causal, True or False, got "):
        varlen_attention(q, k, v, _offsets([9]), _offsets([9]), 9, 9, value)


# Causal, and heads in groups


PAIRS = st.lists(st.tuples(st.integers(0, 9) | st.just(1), st.integers(0, 12) | st.just(4)), max_size=9)


@given(
    lengths=PAIRS | LENGTHS.map(lambda x: [(n, n) for n in x]),
    heads=st.sampled_from([(1, 1), (2, 2), (4, 2), (6, 2), (3, 1)]),
    causal=st.booleans(),
    slack=st.integers(0, 2),
)
def test_causal_and_grouped(lengths: list[tuple[int, int]], heads: tuple[int, int], causal: bool, slack: int) -> None:
    """The last query stands at the last key, whichever of them are more."""
    queries, keys = [a for a, _ in lengths], [b for _, b in lengths]
    q = _random([*queries, slack], heads[0], 8, seed=1)[0]
    _, k, v = _random([*keys, slack], heads[1], 8, seed=2)
    own = q[: sum(queries)], k[: sum(keys)], v[: sum(keys)]
    exact = _dense(*own, queries, keys, torch.float64, causal)
    for x, used in ((q, sum(queries)), (k, sum(keys)), (v, sum(keys))):
        x[used:] = torch.nan
    longest = max(queries, default=0), max(keys, default=0)
    out = varlen_attention(q, k, v, _offsets(queries), _offsets(keys), *longest, causal)
    torch.testing.assert_close(out[: sum(queries)].double(), exact, rtol=1e-5, atol=2e-6)
    assert out[sum(queries) :].eq(0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_precision_of_causal_attention(dtype: torch.dtype, numeric_bar: Callable[..., None]) -> None:
    queries, keys = [31, 1, 64, 0, 5, 17], [31, 50, 64, 3, 40, 17]
    q = _random(queries, 6, 32)[0].to(dtype)
    k, v = (x.to(dtype) for x in _random(keys, 2, 32)[1:])
    out = varlen_attention(q, k, v, _offsets(queries), _offsets(keys), 64, 64, True)
    exact, plain = (_dense(q, k, v, queries, keys, x, True) for x in (torch.float64, dtype))
    numeric_bar(varlen_attention, out, exact, plain)


def test_nothing_looks_ahead_or_at_neighbours() -> None:
    """Each token changes what comes after it in its own sequence, and nothing else, in whatever batch."""
    lengths = [3, 7, 7, 1, 16, 5]
    q, k, v = _random(lengths, 2, 8)
    offsets = _offsets(lengths)

    def attend() -> torch.Tensor:
        return varlen_attention(q, k, v, offsets, offsets, 16, 16, True)

    clean = attend()
    for i, n in enumerate(lengths):
        at = int(offsets[i]) + n // 2
        kept = k[at].clone()
        k[at] += 100
        changed = attend().ne(clean).flatten(1).any(1)
        k[at] = kept
        assert changed.nonzero().flatten().tolist() == list(range(at, int(offsets[i + 1]))) or n == 1


def test_gradients_of_causal_attention_are_those_of_dense_attention() -> None:
    queries, keys = [4, 4, 2, 9, 1], [4, 7, 2, 9, 5]
    q = _random(queries, 4, 8, seed=1)[0]
    _, k, v = _random(keys, 2, 8, seed=2)
    weight = torch.randn(q.shape)
    found, wanted = [], []
    for grads, attend in (
        (found, lambda q, k, v: varlen_attention(q, k, v, _offsets(queries), _offsets(keys), 9, 9, True)),
        (wanted, lambda q, k, v: _dense(q, k, v, queries, keys, torch.float64, True)),
    ):
        leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
        (attend(*leaves) * weight).sum().backward()
        grads.extend(x.grad for x in leaves)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_gradients_after_a_call_without_them() -> None:
    """What is kept of the lengths is made once, be it in inference mode."""
    q, k, v = _random([5, 3], 2, 8)
    offsets = _offsets([5, 3])
    with torch.inference_mode():
        expected = varlen_attention(q, k, v, offsets, offsets, 5, 5, True)
    leaf = q.clone().requires_grad_()
    out = varlen_attention(leaf, k, v, offsets, offsets, 5, 5, True)
    out.sum().backward()
    assert torch.equal(out, expected)
    assert leaf.grad is not None


class _Calls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.attention: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "scaled_dot_product" in func.name():
            self.attention.append(tuple(args[0].shape))
        return func(*args, **(kwargs or {}))


def test_many_short_sequences_run_in_few_batches() -> None:
    """Three batches at most for lengths from 20 to 60, and a third of padding at most."""
    lengths = [20 + (7 * i) % 41 for i in range(80)]
    q, k, v = _random(lengths, 2, 8)
    offsets = _offsets(lengths)
    with _Calls() as calls:
        varlen_attention(q, k, v, offsets, offsets, 60, 60, True)
    assert len(calls.attention) <= 3
    assert sum(b * n for b, _, n, _ in calls.attention) <= 1.34 * sum(lengths)


def test_a_question_about_a_long_past_takes_no_time_for_the_past() -> None:
    """Three tokens that ask about 1,000 keys are not padded to the 200 of a neighbour."""
    queries, keys = [3, 200, 2], [1000, 200, 900]
    q = _random(queries, 2, 8)[0]
    _, k, v = _random(keys, 2, 8)
    with _Calls() as calls:
        varlen_attention(q, k, v, _offsets(queries), _offsets(keys), 200, 1000, True)
    assert sorted((b, n) for b, _, n, _ in calls.attention) == [(1, 200), (2, 3)]

"""paged_attention against attention over each sequence's own keys, gathered one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pixelrefer_fast.ops import paged_attention

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def _case(
    lengths: list[int],
    size: int,
    heads: tuple[int, int],
    head_dim: int,
    dtype: torch.dtype = torch.float32,
    spare: int = 0,
) -> tuple[torch.Tensor, ...]:
    """Blocks in any order, some of nobody between them; rows behind each length are anything finite."""
    generator = torch.Generator().manual_seed(sum(lengths))
    needed = [-(-n // size) for n in lengths]
    blocks = sum(needed) + 2
    q = torch.randn(len(lengths), heads[0], head_dim, generator=generator).to(dtype)
    k, v = (torch.randn(blocks, size, heads[1], head_dim, generator=generator).to(dtype) for _ in range(2))
    order = torch.randperm(blocks, generator=generator)
    table = torch.zeros(len(lengths), max(needed, default=0) + spare, dtype=torch.int32)
    for i, count in enumerate(needed):
        table[i, :count] = order[sum(needed[:i]) : sum(needed[: i + 1])]
    return q, k, v, table, torch.tensor(lengths, dtype=torch.int32)


def _dense(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, table: torch.Tensor, lengths: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    q, k, v = (x.to(dtype) for x in (q, k, v))
    out = torch.zeros_like(q)
    share = q.shape[1] // k.shape[2]
    for i, length in enumerate(lengths.tolist()):
        own = [x[table[i].long()].flatten(0, 1)[:length].repeat_interleave(share, 1) for x in (k, v)]
        if length:
            scores = torch.einsum("hd,shd->hs", q[i], own[0]) * q.shape[2] ** -0.5
            out[i] = torch.einsum("hs,shd->hd", scores.softmax(-1), own[1])
    return out


@given(
    lengths=st.lists(st.integers(0, 40), max_size=6),
    size=st.sampled_from([1, 4, 16]),
    heads=st.sampled_from([(1, 1), (2, 2), (6, 2), (4, 1)]),
    spare=st.integers(0, 2),
)
def test_against_dense_attention(lengths: list[int], size: int, heads: tuple[int, int], spare: int) -> None:
    case = _case(lengths, size, heads, 8, spare=spare)
    out = paged_attention(*case)
    torch.testing.assert_close(out.double(), _dense(*case, torch.float64), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_precision(dtype: torch.dtype, numeric_bar: Callable[..., None]) -> None:
    case = _case([31, 1, 64, 0, 65, 17], 16, (6, 2), 72, dtype)
    numeric_bar(paged_attention, paged_attention(*case), _dense(*case, torch.float64), _dense(*case, dtype))


def test_what_is_behind_a_length_changes_nothing() -> None:
    q, k, v, table, lengths = _case([5, 9, 12], 4, (4, 2), 8, spare=1)
    clean = paged_attention(q, k, v, table, lengths)
    for i, length in enumerate(lengths.tolist()):
        flat = k.flatten(0, 1), v.flatten(0, 1)
        for at in range(length, table.shape[1] * 4):
            row = int(table[i, at // 4]) * 4 + at % 4
            if at < -(-length // 4) * 4:
                for x in flat:
                    x[row] = 1000.0
    assert torch.equal(paged_attention(q, k, v, table, lengths), clean)


def test_blocks_that_are_shared() -> None:
    q, k, v, table, lengths = _case([8, 8], 4, (2, 1), 8)
    table[1] = table[0]
    out = paged_attention(q[:1].expand(2, -1, -1).contiguous(), k, v, table, lengths)
    assert torch.equal(out[0], out[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(2, 8)}, r"expected q of shape \(any, any, any\), got \(2, 8\)"),
        ({"keys": torch.zeros(3, 4, 2, 7)}, r"expected keys of shape \(any, any, any, 8\), got \(3, 4, 2, 7\)"),
        ({"keys": torch.zeros(3, 4, 3, 8)}, "expected keys of as many heads as q or of a divisor of its 4, got 3"),
        ({"values": torch.zeros(3, 4, 1, 8)}, r"expected values of shape \(3, 4, 2, 8\), got \(3, 4, 1, 8\)"),
        ({"values": torch.zeros(3, 4, 2, 8).half()}, "expected values of torch.float32, got torch.float16"),
        ({"table": torch.zeros(2, 1)}, "expected table of torch.int32, got torch.float32"),
        ({"table": torch.zeros(3, 1, dtype=torch.int32)}, r"expected table of shape \(2, any\), got \(3, 1\)"),
        ({"lengths": torch.zeros(2, dtype=torch.int64)}, "expected lengths of torch.int32, got torch.int64"),
    ],
)
def test_errors(change: dict[str, Any], message: str) -> None:
    arguments = {
        "q": torch.zeros(2, 4, 8),
        "keys": torch.zeros(3, 4, 2, 8),
        "values": torch.zeros(3, 4, 2, 8),
        "table": torch.zeros(2, 1, dtype=torch.int32),
        "lengths": torch.zeros(2, dtype=torch.int32),
    } | change
    with pytest.raises(ValueError, match=f"^paged_attention: {message}$"):
        paged_attention(*arguments.values())

"""paged_attention against attention over each sequence's own keys, gathered one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from paged_cases import exactly, paged_case

from pixelrefer_fast.ops import paged_attention

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@given(
    lengths=st.lists(st.integers(1, 40), max_size=6),
    size=st.sampled_from([1, 4, 16]),
    heads=st.sampled_from([(1, 1), (2, 2), (6, 2), (4, 1)]),
    spare=st.integers(0, 2),
)
def test_against_dense_attention(lengths: list[int], size: int, heads: tuple[int, int], spare: int) -> None:
    case = paged_case(lengths, size, heads, 8, spare=spare)
    out, keys, values = exactly(case, torch.float64)
    torch.testing.assert_close(paged_attention(*case).double(), out, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(case[3].double(), keys, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(case[4].double(), values, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_precision(dtype: torch.dtype, numeric_bar: Callable[..., None]) -> None:
    case = paged_case([31, 1, 64, 2, 65, 17], 16, (6, 2), 72, dtype)
    exact, plain = exactly(case, torch.float64), exactly(case, dtype)
    numeric_bar(paged_attention, paged_attention(*case), exact[0], plain[0])
    numeric_bar(paged_attention, case[3], exact[1], plain[1])


def test_what_is_behind_a_length_changes_nothing() -> None:
    case = paged_case([5, 9, 12], 4, (4, 2), 8, spare=1)
    clean = paged_attention(*case)
    keys, values, table, lengths = case[3:7]
    for i, length in enumerate(lengths.tolist()):
        for at in range(length, -(-length // 4) * 4):
            for x in (keys, values):
                x.flatten(0, 1)[int(table[i, at // 4]) * 4 + at % 4] = 1000.0
    assert torch.equal(paged_attention(*case), clean)


def test_blocks_that_are_shared() -> None:
    """Two sequences begin in the same blocks, and each goes on in one of its own."""
    case = paged_case([9, 9], 4, (2, 1), 8)
    qkv, turns, table = case[0], case[1], case[5]
    table[1, :2] = table[0, :2]
    qkv[1], turns[1] = qkv[0], turns[0]
    out = paged_attention(*case)
    assert torch.equal(out[0], out[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qkv": torch.zeros(2, 8)}, r"expected qkv of shape \(any, any, any\), got \(2, 8\)"),
        ({"turns": torch.zeros(2, 8)}, r"expected turns of shape \(2, 2, 8\), got \(2, 8\)"),
        ({"keys": torch.zeros(3, 4, 2, 7)}, r"expected keys of shape \(any, any, any, 8\), got \(3, 4, 2, 7\)"),
        (
            {"keys": torch.zeros(3, 4, 3, 8)},
            "expected keys of so many heads that qkv's 8 are a multiple of them and two times them, got 3",
        ),
        ({"values": torch.zeros(3, 4, 1, 8)}, r"expected values of shape \(3, 4, 2, 8\), got \(3, 4, 1, 8\)"),
        ({"values": torch.zeros(3, 4, 2, 8).half()}, "expected values of torch.float32, got torch.float16"),
        ({"rows": torch.zeros(2)}, "expected rows of torch.int64, got torch.float32"),
        ({"table": torch.zeros(2, 1)}, "expected table of torch.int32, got torch.float32"),
        ({"table": torch.zeros(3, 1, dtype=torch.int32)}, r"expected table of shape \(2, any\), got \(3, 1\)"),
        ({"lengths": torch.zeros(2, dtype=torch.int64)}, "expected lengths of torch.int32, got torch.int64"),
        ({"arrivals": torch.zeros(3, dtype=torch.int32)}, "expected arrivals of 4 or more, got 3"),
    ],
)
def test_errors(change: dict[str, Any], message: str) -> None:
    arguments = {
        "qkv": torch.zeros(2, 8, 8),
        "turns": torch.zeros(2, 2, 8),
        "rows": torch.zeros(2, dtype=torch.int64),
        "keys": torch.zeros(3, 4, 2, 8),
        "values": torch.zeros(3, 4, 2, 8),
        "table": torch.zeros(2, 1, dtype=torch.int32),
        "lengths": torch.ones(2, dtype=torch.int32),
        "arrivals": torch.zeros(4, dtype=torch.int32),
    } | change
    with pytest.raises(ValueError, match=f"^paged_attention: {message}$"):
        paged_attention(*arguments.values())


def test_heads_of_an_odd_size_cannot_be_turned() -> None:
    case = paged_case([3], 4, (2, 1), 8)
    odd = [x[..., :7] for x in case[:2]], case[2], [x[..., :7] for x in case[3:5]], case[5:]
    with pytest.raises(ValueError, match=r"^paged_attention: expected heads of an even size, got 7$"):
        paged_attention(*odd[0], odd[1], *odd[2], *odd[3])

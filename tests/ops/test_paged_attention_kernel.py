"""The Triton kernel of paged_attention against dense attention in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from kernel_place import KERNEL_DTYPES
from paged_cases import Case, exactly, paged_case
from plain_memory import plain_memory

from pixelrefer_fast.device.counters import counting
from pixelrefer_fast.ops import BackendError, paged_attention

pytestmark = [
    pytest.mark.kernel,
    # NumPy's, in the interpreter, where NaN is what is tested
    pytest.mark.filterwarnings("ignore:(All-NaN slice|invalid value) encountered:RuntimeWarning"),
]

# one key, a chunk less one, a chunk, a chunk and one more
RAGGED = [1, 2, 64, 65, 66, 33]
# of parts that are computed apart: 4 chunks of 64 (32 in float32) at least, and as many as there are programs for
APART = [1, 300, 40]


def _judge(case: Case, numeric_bar: Callable[..., None]) -> None:
    exact, plain = exactly(case, torch.float64), exactly(case, case[0].dtype)
    out = paged_attention(*case, backend="triton")
    numeric_bar(paged_attention, out, exact[0], plain[0])
    numeric_bar(paged_attention, case[3], exact[1], plain[1])
    assert torch.equal(case[4].double(), exact[2])
    assert not case[7].any()


@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [24, 128, *(pytest.param(d, marks=pytest.mark.slow) for d in (2, 64, 72))])
def test_against_dense_attention(
    dtype: torch.dtype, head_dim: int, kernel_device: torch.device, numeric_bar: Callable[..., None]
) -> None:
    _judge(paged_case(RAGGED, 16, (4, 2), head_dim, dtype, device=kernel_device), numeric_bar)


@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
@pytest.mark.parametrize(("heads", "size"), [((1, 1), 64), ((7, 1), 1), ((20, 1), 32), ((3, 3), 128)])
def test_groups_and_blocks(
    dtype: torch.dtype,
    heads: tuple[int, int],
    size: int,
    kernel_device: torch.device,
    numeric_bar: Callable[..., None],
) -> None:
    """Blocks smaller and larger than a chunk of keys, heads that fill a tile of queries and more."""
    _judge(paged_case([70, 3], size, heads, 16, dtype, spare=2, device=kernel_device), numeric_bar)


@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
def test_keys_in_parts(dtype: torch.dtype, kernel_device: torch.device, numeric_bar: Callable[..., None]) -> None:
    _judge(paged_case(APART, 64, (6, 2), 24, dtype, device=kernel_device), numeric_bar)


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", [128, 256])
def test_many_parts(head_dim: int, kernel_device: torch.device, numeric_bar: Callable[..., None]) -> None:
    _judge(paged_case([1500], 64, (7, 1), head_dim, torch.float16, device=kernel_device), numeric_bar)


@pytest.mark.parametrize("length", [70, 300])
def test_nothing_behind_a_length_is_read(length: int, kernel_device: torch.device) -> None:
    """Rows behind the length hold NaN, blocks of others too, and the table's places behind it lead nowhere."""
    case = paged_case([length, 2], 64, (4, 2), 24, torch.float32, spare=3, device=kernel_device)
    qkv, turns, rows, keys, values, table, lengths, arrivals = case
    copies = keys.clone(), values.clone()
    expected = paged_attention(qkv, turns, rows, *copies, table, lengths, arrivals, backend="triton")
    poisoned = []
    for x in (keys, values):
        rest = torch.full_like(x, torch.nan)
        for i, count in enumerate(lengths.tolist()):
            for at in range(count - 1):
                block = int(table[i, at // 64])
                rest[block, at % 64] = x[block, at % 64]
        poisoned.append(rest)
    for i, count in enumerate(lengths.tolist()):
        table[i, -(-count // 64) :] = 2**31 - 1
    out = paged_attention(qkv, turns, rows, *poisoned, table, lengths, arrivals, backend="triton")
    assert torch.equal(out, expected)


def test_sequences_do_not_reach_each_other(kernel_device: torch.device) -> None:
    case = paged_case([3, 300, 66], 64, (2, 2), 16, torch.float32, device=kernel_device)
    clean = paged_attention(*case, backend="triton")
    for i in (1, 2):
        again = [x.clone() for x in case]
        again[0][i] = torch.nan
        out = paged_attention(*again, backend="triton")
        assert out[i].isnan().all()
        out[i] = clean[i]
        assert torch.equal(out, clean)


def test_scores_far_apart(kernel_device: torch.device) -> None:
    """No overflow, and parts whose weights vanish against others."""
    case = paged_case([300, 7], 64, (2, 1), 16, torch.float32, device=kernel_device)
    case[0][:, :3] *= 300
    exact = exactly(case, torch.float64)[0]
    torch.testing.assert_close(paged_attention(*case, backend="triton").double(), exact, rtol=1e-3, atol=1e-2)


def test_a_table_that_is_part_of_a_wider_one(kernel_device: torch.device, numeric_bar: Callable[..., None]) -> None:
    case = list(paged_case([70, 3], 16, (2, 1), 16, torch.float32, device=kernel_device))
    wide = torch.full((2, 40), 2**31 - 1, dtype=torch.int32, device=kernel_device)
    wide[:, : case[5].shape[1]] = case[5]
    case[5] = wide[:, : case[5].shape[1]]
    _judge(tuple(case), numeric_bar)


@pytest.mark.parametrize("lengths", [[], [5], [300, 4]])
def test_one_launch_whatever_the_lengths(lengths: list[int], kernel_device: torch.device) -> None:
    case = paged_case(lengths, 64, (4, 2), 8, torch.float32, device=kernel_device)
    with torch.inference_mode(), plain_memory(), counting(kernel_device.type) as counts:
        out = paged_attention(*case, backend="triton")
    assert out.shape == (len(lengths), 4, 8)
    assert counts.launches == ({"paged_attention.attention_float32": 1} if lengths else {})
    assert counts.waits == {}
    # what is given, half of the turns, what is written to the cache, and the result; keys that are read are not known
    assert counts.moved == 4 * len(lengths) * (8 * 8 + 8 + 2 * 2 * 8 + 4 * 8)


def test_declines(kernel_device: torch.device) -> None:
    case = paged_case([3], 4, (2, 1), 8, device=kernel_device)
    double = [x.double() if x.is_floating_point() else x for x in case]
    with pytest.raises(BackendError, match=r"it computes float32, float16 and bfloat16, not torch\.float64"):
        paged_attention(*double, backend="triton")
    with pytest.raises(BackendError, match="it takes head sizes up to 256, not 258"):
        paged_attention(*paged_case([3], 4, (2, 1), 258, device=kernel_device), backend="triton")
    apart = torch.zeros(3, 4, 1, 16, device=kernel_device)[..., ::2]
    with pytest.raises(BackendError, match="keys and values are not contiguous"):
        paged_attention(*case[:3], apart, *case[4:], backend="triton")

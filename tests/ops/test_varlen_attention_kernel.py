"""The Triton kernel of varlen_attention against its definition."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from kernel_place import KERNEL_DTYPES

from pixelrefer_fast.device.launches import Launch, listen
from pixelrefer_fast.ops import BackendError, varlen_attention

pytestmark = [
    pytest.mark.kernel,
    # NumPy's, in the interpreter, where NaN or infinity is what is tested
    pytest.mark.filterwarnings("ignore:(All-NaN slice|invalid value) encountered:RuntimeWarning"),
]

# neighbours of one length, none and one patch, a whole block of 64 and one patch more
RAGGED = [5, 0, 1, 64, 65, 3, 3]


def _offsets(lengths: list[int], device: torch.device) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32).to(device)


def _arguments(
    device: torch.device,
    dtype: torch.dtype,
    queries: list[int],
    keys: list[int],
    heads: int,
    head_dim: int,
) -> tuple:
    generator = torch.Generator().manual_seed(sum(keys))

    def rows(count: int) -> torch.Tensor:
        return torch.randn(count, heads, head_dim, generator=generator).to(device, dtype)

    longest = max(queries, default=0), max(keys, default=0)
    packed = rows(sum(queries)), rows(sum(keys)), rows(sum(keys))
    return *packed, _offsets(queries, device), _offsets(keys, device), *longest


def _judge(arguments: tuple, numeric_bar: Callable[..., None], result: torch.Tensor | None = None) -> None:
    if result is None:
        result = varlen_attention(*arguments, backend="triton")
    exact = varlen_attention(*(x.double() for x in arguments[:3]), *arguments[3:], backend="torch")
    numeric_bar(varlen_attention, result, exact, varlen_attention(*arguments, backend="torch"))


@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [3, 8, 16, 24, 64, 72, 80, 128])
def test_against_the_definition(
    dtype: torch.dtype, head_dim: int, kernel_device: torch.device, numeric_bar: Callable[..., None]
) -> None:
    _judge(_arguments(kernel_device, dtype, RAGGED, RAGGED, 2, head_dim), numeric_bar)


@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [144, 200, 256])
def test_large_heads(
    dtype: torch.dtype, head_dim: int, kernel_device: torch.device, numeric_bar: Callable[..., None]
) -> None:
    _judge(_arguments(kernel_device, dtype, [7, 40], [7, 40], 1, head_dim), numeric_bar)


@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
def test_queries_and_keys_of_different_lengths(
    dtype: torch.dtype, kernel_device: torch.device, numeric_bar: Callable[..., None]
) -> None:
    _judge(_arguments(kernel_device, dtype, [3, 1, 0, 66, 2], [70, 1, 5, 2, 128], 2, 72), numeric_bar)


def test_the_released_heads(kernel_device: torch.device, numeric_bar: Callable[..., None]) -> None:
    """16 of 72, as the encoder passes them: parts of one product."""
    q, k, v, *rest = _arguments(kernel_device, torch.float16, [33, 20], [33, 20], 16, 72)
    q, k, v = torch.stack([q, k, v], dim=1).unbind(1)
    assert not q.is_contiguous()
    _judge((q, k, v, *rest), numeric_bar)


def test_arguments_with_strides_of_their_own(kernel_device: torch.device, numeric_bar: Callable[..., None]) -> None:
    q, k, v, *rest = _arguments(kernel_device, torch.float32, [4, 3], [6, 5], 2, 24)
    q = torch.cat([q, q], dim=2)[..., :24]
    k = k.transpose(0, 1).contiguous().transpose(0, 1)
    v = torch.stack([v, v])[1]
    _judge((q, k, v, *rest), numeric_bar)


@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
def test_nothing_beyond_the_sequences_is_read(dtype: torch.dtype, kernel_device: torch.device) -> None:
    """Padding rows hold NaN, and so does everything around the heads of every row."""
    queries, keys = [5, 2, 0], [3, 66, 4]
    q, k, v, offsets_q, offsets_k, max_q, max_k = _arguments(kernel_device, dtype, queries, keys, 2, 24)
    expected = varlen_attention(q, k, v, offsets_q, offsets_k, max_q, max_k, backend="triton")
    wide = []
    for x in (q, k, v):
        room = torch.full((len(x) + 40, 4, 40), torch.nan, device=kernel_device, dtype=dtype)
        room[: len(x), 1:3, :24] = x
        wide.append(room[:, 1:3, :24])
    out = varlen_attention(*wide, offsets_q, offsets_k, max_q + 70, max_k + 70, backend="triton")
    assert out.shape == (47, 2, 24)
    assert torch.equal(out[:7], expected)


def test_sequences_do_not_reach_each_other(kernel_device: torch.device) -> None:
    lengths = [3, 4, 65, 4]
    arguments = _arguments(kernel_device, torch.float32, lengths, lengths, 2, 16)
    clean = varlen_attention(*arguments, backend="triton")
    offsets = arguments[3].tolist()
    for i in range(4):
        own = slice(offsets[i], offsets[i + 1])
        poisoned = [x.clone() for x in arguments[:3]]
        for x in poisoned:
            x[own] = torch.nan
        out = varlen_attention(*poisoned, *arguments[3:], backend="triton")
        assert out[own].isnan().all()
        out[own] = clean[own]
        assert torch.equal(out, clean)


def test_queries_without_keys_give_zeros(kernel_device: torch.device) -> None:
    arguments = _arguments(kernel_device, torch.float16, [2, 70, 3], [5, 0, 4], 2, 72)
    out = varlen_attention(*arguments, backend="triton")
    assert out[2:72].eq(0).all()
    assert out[:2].ne(0).all()


def test_keys_whose_scores_are_minus_infinity(kernel_device: torch.device) -> None:
    """They weigh nothing, a whole first block of them included, before which there is no largest score."""
    arguments = _arguments(kernel_device, torch.float32, [3], [70], 1, 16)
    q, k, v, *_ = arguments
    q.abs_()
    k[:66] = -torch.inf
    out = varlen_attention(*arguments, backend="triton")
    four = torch.tensor([0, 4], dtype=torch.int32, device=kernel_device)
    expected = varlen_attention(q, k[66:], v[66:], arguments[3], four, 3, 4, backend="torch")
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-6)


def test_large_scores_do_not_overflow(kernel_device: torch.device) -> None:
    arguments = _arguments(kernel_device, torch.float32, [6, 70], [6, 70], 2, 16)
    for x in arguments[:3]:
        x *= 300
    out = varlen_attention(*arguments, backend="triton")
    torch.testing.assert_close(out, varlen_attention(*arguments, backend="torch"), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("lengths", [[], [0], [3], [3] * 50])
def test_one_launch_however_many_sequences(lengths: list[int], kernel_device: torch.device) -> None:
    arguments = _arguments(kernel_device, torch.float16, lengths, lengths, 2, 8)
    launches: list[Launch] = []
    with listen(launches.append):
        out = varlen_attention(*arguments, backend="triton")
    assert out.shape == (sum(lengths), 2, 8)
    assert [x.kernel for x in launches] == ["varlen_attention.attention"] * (sum(lengths) > 0)
    if launches:
        assert launches[0].grid == (len(lengths), 2)
        # two products over every pair of a query and a key of its sequence
        assert launches[0].flops == sum(lengths) * 3 * 2 * 2 * 2 * 8
        assert launches[0].moved == 4 * out.nbytes


def test_declines(kernel_device: torch.device) -> None:
    q, k, v, *rest = _arguments(kernel_device, torch.float32, [3], [3], 1, 8)
    with pytest.raises(BackendError, match=r"it computes float32, float16 and bfloat16, not torch\.float64"):
        varlen_attention(q.double(), k.double(), v.double(), *rest, backend="triton")
    large = torch.zeros(3, 1, 257, device=kernel_device)
    with pytest.raises(BackendError, match="it takes head sizes up to 256, not 257"):
        varlen_attention(large, large, large, *rest, backend="triton")
    apart = torch.zeros(3, 1, 16, device=kernel_device)[..., ::2]
    with pytest.raises(
        BackendError, match=r"the last dimension of q, k and v is not contiguous \(strides \[1, 2, 1\]\)"
    ):
        varlen_attention(q, apart, v, *rest, backend="triton")
    with pytest.raises(ValueError, match=r"^varlen_attention: expected k of shape \(any, any, 8\), got \(3, 1, 16\)$"):
        varlen_attention(q, torch.zeros(3, 1, 16), v, *rest, backend="triton")


# Causal, and heads in groups


@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
@pytest.mark.parametrize(
    ("queries", "keys"),
    [
        (RAGGED, RAGGED),
        ([1, 3, 64, 5, 1], [70, 66, 130, 5, 1]),  # a past of less than, exactly and more than a block
        ([70, 9, 3], [4, 0, 3]),  # first queries that see nothing, a whole block of them included
    ],
    ids=["alike", "past", "more queries"],
)
def test_causal_and_grouped(
    dtype: torch.dtype,
    queries: list[int],
    keys: list[int],
    kernel_device: torch.device,
    numeric_bar: Callable[..., None],
) -> None:
    q, k, v, *rest = _arguments(kernel_device, dtype, queries, keys, 4, 24)
    for heads in (4, 2, 1):
        _judge((q, k[:, :heads], v[:, :heads], *rest, True), numeric_bar)


def test_grouped_without_a_mask(kernel_device: torch.device, numeric_bar: Callable[..., None]) -> None:
    q, k, v, *rest = _arguments(kernel_device, torch.float32, [3, 66], [70, 5], 6, 16)
    _judge((q, k[:, ::3], v[:, ::3], *rest), numeric_bar)


def test_nothing_looks_ahead(kernel_device: torch.device) -> None:
    """What comes later changes no bit of an earlier row, whether it shares a block with it or not."""
    q, k, v, *rest = _arguments(kernel_device, torch.float32, [130], [130], 1, 16)
    clean = varlen_attention(q, k, v, *rest, True, backend="triton")
    for at in (5, 64, 100):
        later = [x.clone() for x in (k, v)]
        for x in later:
            x[at:] += 100
        out = varlen_attention(q, *later, *rest, True, backend="triton")
        assert torch.equal(out[:at], clean[:at])
        assert not torch.equal(out[at:], clean[at:])

"""Attention within each sequence of a packed batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby, pairwise

import torch
import torch.nn.functional as F

from pixelrefer_fast.ops import _attention_libraries as libraries
from pixelrefer_fast.ops._check import check_count, check_device, check_dtype, check_shape
from pixelrefer_fast.ops._registry import register_op, triton_available, triton_device

LARGEST_HEAD = 256  # of the Triton kernel


def _samples(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple]:
    def make(queries: list[int], keys: list[int], heads: int, head_dim: int) -> tuple:
        def rows(lengths: list[int]) -> torch.Tensor:
            return torch.randn(sum(lengths), heads, head_dim, generator=generator).to(dtype)

        offsets = (torch.tensor([0, *x]).cumsum(0, dtype=torch.int32) for x in (queries, keys))
        return rows(queries), rows(keys), rows(keys), *offsets, max(queries, default=0), max(keys, default=0)

    yield make([5, 1, 0, 9], [5, 1, 0, 9], 2, 16)
    yield make([17], [17], 3, 72)
    yield make([6, 6, 6, 2, 3, 0], [8, 8, 8, 1, 0, 4], 1, 8)
    yield make([], [], 2, 8)


@register_op(
    source="reference model/damovl_encoder/modeling_damovl_encoder.py VisionFlashAttention2",
    tolerance={torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3},
    samples=_samples,
    schema="(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, Tensor cu_seqlens_k, int max_q, int max_k) -> Tensor",
    fake=lambda q, *args: q.new_empty(q.shape),
)
def varlen_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_q: int,
    max_k: int,
) -> torch.Tensor:
    """softmax(q kᵀ / sqrt(d)) v, block-diagonal: a patch attends within its own sequence only.

    Args:
        q: (Pq, H, d), packed queries of V sequences, any float dtype; the last dimension is contiguous.
        k, v: (Pk, H, d), packed keys and values of the same sequences, same dtype; likewise.
        cu_seqlens_q, cu_seqlens_k: (V + 1,) int32: the queries of sequence i are rows cu_seqlens_q[i] to
            cu_seqlens_q[i + 1], its keys and values rows cu_seqlens_k[i] to cu_seqlens_k[i + 1].
        max_q, max_k: at least the longest sequence of queries, of keys. They are numbers of the host so that nobody
            has to wait for the device to tell them.

    Returns:
        (Pq, H, d). A sequence without keys gives zeros; rows beyond the last sequence are unspecified (here zeros).
        No mask over the whole packing is ever built: neighbours of equal lengths run as one batch, so 20 frames of a
        video cost memory for the scores of none (a fused kernel) or of one run of frames.

    Raises:
        ValueError: for shapes, dtypes or offsets that do not fit. Reads the offsets: waits for a device.
    """
    _check(q, k, v, cu_seqlens_q, cu_seqlens_k, max_q, max_k)
    queries = _lengths("cu_seqlens_q", cu_seqlens_q, len(q), max_q)
    keys = _lengths("cu_seqlens_k", cu_seqlens_k, len(k), max_k)
    out = q.new_zeros(q.shape)
    start_q = start_k = 0
    for (length_q, length_k), run in groupby(zip(queries, keys, strict=True)):
        count = len(list(run))
        stop_q, stop_k = start_q + count * length_q, start_k + count * length_k
        if stop_q > start_q and stop_k > start_k:
            # (count, H, length, d), as scaled_dot_product_attention wants it
            block = (
                q[start_q:stop_q].unflatten(0, (count, length_q)).transpose(1, 2),
                *(x[start_k:stop_k].unflatten(0, (count, length_k)).transpose(1, 2) for x in (k, v)),
            )
            out[start_q:stop_q] = F.scaled_dot_product_attention(*block).transpose(1, 2).flatten(0, 1)
        start_q, start_k = stop_q, stop_k
    return out


def _check(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_q: int,
    max_k: int,
) -> None:
    check_shape("varlen_attention", "q", q, None, None, None)
    check_shape("varlen_attention", "k", k, None, *q.shape[1:])
    check_shape("varlen_attention", "v", v, *k.shape)
    check_shape("varlen_attention", "cu_seqlens_q", cu_seqlens_q, None)
    check_shape("varlen_attention", "cu_seqlens_k", cu_seqlens_k, *cu_seqlens_q.shape)
    for name, tensor in (("k", k), ("v", v)):
        check_dtype("varlen_attention", name, tensor, q.dtype)
    for name, offsets in (("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k)):
        check_dtype("varlen_attention", name, offsets, torch.int32)
    for name, longest in (("max_q", max_q), ("max_k", max_k)):
        check_count("varlen_attention", name, longest)
    check_device("varlen_attention", q.device, k=k, v=v)
    if cu_seqlens_q.device != cu_seqlens_k.device:
        raise ValueError(
            "varlen_attention: expected cu_seqlens_q and cu_seqlens_k on one device, "
            f"got {cu_seqlens_q.device} and {cu_seqlens_k.device}"
        )


def _lengths(name: str, cu_seqlens: torch.Tensor, rows: int, longest: int) -> list[int]:
    """Length of every sequence, once its offsets are found to start at 0, never fall and stay within the rows."""
    offsets = cu_seqlens.tolist()
    lengths = [b - a for a, b in pairwise(offsets)]
    shown = offsets if len(offsets) < 8 else f"{str(offsets[:3])[:-1]}, ... {str(offsets[-3:])[1:]}"
    if not offsets or offsets[0] != 0 or offsets[-1] > rows:
        raise ValueError(f"varlen_attention: expected {name} from 0 to at most {rows}, got {shown}")
    if any(n < 0 for n in lengths):
        raise ValueError(f"varlen_attention: expected {name} that never fall, got {shown}")
    if max(lengths, default=0) > longest:
        raise ValueError(
            f"varlen_attention: expected sequences of {name} up to {longest} long, got one of {max(lengths)}"
        )
    return lengths


def _accepts(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_q: int,
    max_k: int,
) -> str | None:
    if q.dtype not in (*libraries.HALVES, torch.float32):
        return f"it computes float32, float16 and bfloat16, not {q.dtype}"
    if q.shape[2] > LARGEST_HEAD:
        return f"it takes head sizes up to {LARGEST_HEAD}, not {q.shape[2]}"
    return triton_device(q) or libraries.heads_in_one_piece(q, k, v) or libraries.offsets_beside(q, cu_seqlens_q)


def _checked(accepts: Callable[..., str | None]) -> Callable[..., str | None]:
    """What does not fit together is an error, not a reason to ask the next provider."""

    def check(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cu_seqlens_q: torch.Tensor,
        cu_seqlens_k: torch.Tensor,
        max_q: int,
        max_k: int,
    ) -> str | None:
        _check(q, k, v, cu_seqlens_q, cu_seqlens_k, max_q, max_k)
        return accepts(q, k, v, cu_seqlens_q, cu_seqlens_k, max_q, max_k)

    return check


for _library in libraries.LIBRARIES:
    varlen_attention.provider(
        _library.backend,
        available=partial(libraries.available, _library),
        accepts=_checked(partial(libraries.accepts, _library)),
    )(partial(libraries.run, _library))

varlen_attention.provider(
    "xformers", available=libraries.xformers_available, accepts=_checked(libraries.xformers_accepts)
)(libraries.xformers_run)


@varlen_attention.provider("triton", available=triton_available, accepts=_checked(_accepts))
def _triton(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_q: int,
    max_k: int,
) -> torch.Tensor:
    from pixelrefer_fast.kernels.varlen_attention import varlen_attention as run

    return run(q, k, v, cu_seqlens_q, cu_seqlens_k, max_q, max_k)

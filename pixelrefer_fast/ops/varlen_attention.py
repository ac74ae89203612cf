"""Attention within each sequence of a packed batch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import groupby, pairwise

import torch

from pixelrefer_fast.checks.values import shown
from pixelrefer_fast.ops import _attention_libraries as libraries
from pixelrefer_fast.ops._causal import attend, causal_attention
from pixelrefer_fast.ops._check import check_count, check_device, check_dtype, check_shape
from pixelrefer_fast.ops._registry import Reason, register_op

LARGEST_HEAD = 256  # of the Triton kernel


def _samples(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple]:
    def make(queries: list[int], keys: list[int], heads: tuple[int, int], head_dim: int, *causal: bool) -> tuple:
        def rows(lengths: list[int], heads: int) -> torch.Tensor:
            return torch.randn(sum(lengths), heads, head_dim, generator=generator).to(dtype)

        packed = rows(queries, heads[0]), rows(keys, heads[1]), rows(keys, heads[1])
        offsets = (torch.tensor([0, *x]).cumsum(0, dtype=torch.int32) for x in (queries, keys))
        return *packed, *offsets, max(queries, default=0), max(keys, default=0), *causal

    yield make([5, 1, 0, 9], [5, 1, 0, 9], (2, 2), 16)
    yield make([17], [17], (3, 3), 72)
    yield make([6, 6, 6, 2, 3, 0], [8, 8, 8, 1, 0, 4], (1, 1), 8)
    yield make([5, 1, 0, 9, 5], [5, 1, 0, 9, 5], (4, 2), 16, True)
    yield make([6, 1, 3, 2, 3], [8, 9, 3, 1, 0], (3, 1), 8, True)
    yield make([], [], (2, 2), 8)


@register_op(
    source="reference model/damovl_encoder/modeling_damovl_encoder.py VisionFlashAttention2",
    tolerance={torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3},
    samples=_samples,
    static=("max_q", "max_k"),
)
def varlen_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_q: int,
    max_k: int,
    causal: bool = False,
) -> torch.Tensor:
    """softmax(q kᵀ / sqrt(d)) v, block-diagonal: a patch or token attends within its own sequence only.

    Args:
        q: (Pq, H, d), packed queries of V sequences, any float dtype; the last dimension is contiguous.
        k, v: (Pk, G, d), packed keys and values of the same sequences, same dtype; likewise. G divides H: each of their
            heads serves H / G neighbouring heads of the queries (grouped-query attention).
        cu_seqlens_q, cu_seqlens_k: (V + 1,) int32: the queries of sequence i are rows cu_seqlens_q[i] to
            cu_seqlens_q[i + 1], its keys and values rows cu_seqlens_k[i] to cu_seqlens_k[i + 1].
        max_q, max_k: at least the longest sequence of queries, of keys. They are numbers of the host so that nobody
            has to wait for the device to tell them.
        causal: a query sees no key behind its own place. The last query of a sequence stands at its last key
            (bottom-right): with fewer queries than keys the first keys are the past, and of more queries than keys the
            first ones see nothing.

    Returns:
        (Pq, H, d). A query that sees no key gives zeros; rows beyond the last sequence are unspecified (here zeros).
        No mask over the whole packing is ever built: sequences of equal lengths run as one batch, so 20 frames of a
        video cost memory for the scores of none (a fused kernel) or of one run of frames. Causal sequences of different
        lengths are padded to a common one where that is cheaper than to run each by itself.

    Raises:
        ValueError: for shapes, dtypes or offsets that do not fit. Reads the offsets: waits for a device.
    """
    queries = _lengths("cu_seqlens_q", cu_seqlens_q, len(q), max_q)
    keys = _lengths("cu_seqlens_k", cu_seqlens_k, len(k), max_k)
    if causal:
        return causal_attention(q, k, v, queries, keys)
    runs = [(*lengths, len(list(run))) for lengths, run in groupby(zip(queries, keys, strict=True))]
    # cut and joined at once, so that a gradient passes through one operation and not through one for each run
    rows_q, rows_k = [run[0] * run[2] for run in runs], [run[1] * run[2] for run in runs]
    beyond_q, beyond_k = len(q) - sum(rows_q), len(k) - sum(rows_k)
    parts = zip(q.split([*rows_q, beyond_q]), k.split([*rows_k, beyond_k]), v.split([*rows_k, beyond_k]), strict=True)
    results = []
    for (length_q, length_k, count), block in zip(runs, parts, strict=False):
        if not (count * length_q and count * length_k):
            results.append(torch.zeros_like(block[0]))
            continue
        # (count, heads, length, d), as scaled_dot_product_attention wants it
        lengths = (length_q, length_k, length_k)
        padded = (x.unflatten(0, (count, n)).transpose(1, 2) for x, n in zip(block, lengths, strict=True))
        results.append(attend(*padded).transpose(1, 2).flatten(0, 1))
    return torch.cat([*results, q.new_zeros(beyond_q, *q.shape[1:])])


@varlen_attention.check
def _check(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_q: int,
    max_k: int,
    causal: bool,
) -> None:
    check_shape("varlen_attention", "q", q, None, None, None)
    check_shape("varlen_attention", "k", k, None, None, q.shape[2])
    if q.shape[1] % max(k.shape[1], 1) or bool(q.shape[1]) != bool(k.shape[1]):
        raise ValueError(
            f"varlen_attention: expected k of as many heads as q or of a divisor of its {q.shape[1]}, got {k.shape[1]}"
        )
    check_shape("varlen_attention", "v", v, *k.shape)
    check_shape("varlen_attention", "cu_seqlens_q", cu_seqlens_q, None)
    check_shape("varlen_attention", "cu_seqlens_k", cu_seqlens_k, *cu_seqlens_q.shape)
    for name, tensor in (("k", k), ("v", v)):
        check_dtype("varlen_attention", name, tensor, q.dtype)
    for name, offsets in (("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k)):
        check_dtype("varlen_attention", name, offsets, torch.int32)
    for name, longest in (("max_q", max_q), ("max_k", max_k)):
        check_count("varlen_attention", name, longest)
    if not isinstance(causal, bool):
        raise ValueError(f"varlen_attention: expected causal, True or False, got {shown(causal)}")
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


@varlen_attention.fake
def _fake(q: torch.Tensor) -> torch.Tensor:
    return q.new_empty(q.shape)


def _accepts(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens_q: torch.Tensor) -> Reason:
    if q.dtype not in (*libraries.HALVES, torch.float32):
        return f"it computes float32, float16 and bfloat16, not {q.dtype}"
    if q.shape[2] > LARGEST_HEAD:
        return f"it takes head sizes up to {LARGEST_HEAD}, not {q.shape[2]}"
    return libraries.heads_in_one_piece(q, k, v) or libraries.offsets_beside(q, cu_seqlens_q)


for _library in libraries.LIBRARIES:
    varlen_attention.provider(
        _library.backend,
        available=partial(libraries.available, _library),
        accepts=partial(libraries.accepts, _library),
    )(partial(libraries.run, _library))
varlen_attention.provider("xformers", available=libraries.xformers_available, accepts=libraries.xformers_accepts)(
    libraries.xformers_run
)
varlen_attention.kernel(accepts=_accepts)

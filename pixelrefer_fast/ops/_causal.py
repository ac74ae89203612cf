"""Causal attention of packed sequences by PyTorch: sequences of similar lengths as one padded batch.

One call for each of a hundred sequences of thirty tokens would be all overhead, and one batch padded to the longest of
all would compute mostly padding. What is where in the batches depends on the lengths alone, which all layers share: it
is found once for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

PADDED = 1.5  # how much longer the longest sequence of a batch may be than its shortest


@dataclass(frozen=True)
class _Side:
    """The queries, or the keys, of a batch.

    Attributes:
        row: (n,) packed rows.
        place: (n,) where each of them is in the batch.
        shape: sequences and the length that they are padded to.
    """

    row: torch.Tensor
    place: torch.Tensor
    shape: tuple[int, int]


@dataclass(frozen=True)
class _Batch:
    """Sequences that are computed together; `past` is how many keys lie before the first query of each."""

    queries: _Side
    keys: _Side
    past: tuple[int, ...]


def causal_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, queries: Sequence[int], keys: Sequence[int]
) -> torch.Tensor:
    """As `varlen_attention` with `causal`, of sequences of these lengths.

    A causal mask hides what is behind the end by itself. All queries of a batch are gathered, and all results put in
    their places, by one index each: a gradient passes through few operations.
    """
    results, rows = [], []
    for batch in _plan(tuple(queries), tuple(keys)):
        block = _padded(q, batch.queries), _padded(k, batch.keys), _padded(v, batch.keys)
        found = attend(*block, **_mask(batch, q.device))
        results.append(_packed(found, batch.queries))
        rows.append(batch.queries.row)
    out = q.new_zeros(q.shape)
    return out.index_copy(0, torch.cat(rows).to(q.device), torch.cat(results)) if rows else out


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **mask: Any) -> torch.Tensor:
    """scaled_dot_product_attention of (batch, heads, length, d), the heads of k and v a divisor of those of q."""
    if q.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        # in bfloat16 its gradient takes six times as long there
        with torch.autocast("cpu", enabled=False):
            return attend(q, k, v, **mask)
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1], **mask)


@lru_cache(maxsize=16)
def _plan(queries: tuple[int, ...], keys: tuple[int, ...]) -> tuple[_Batch, ...]:
    # of more queries than keys the first ones see nothing
    seeing = [min(n, m) for n, m in zip(queries, keys, strict=True)]
    ends, starts = list(accumulate(queries)), [0, *accumulate(keys)]
    batches = []
    # kept beyond the call: no inference tensors, which autograd could not save
    with torch.inference_mode(False):
        for batch in _alike(seeing, keys):
            own = [seeing[i] for i in batch]
            batches.append(
                _Batch(
                    _side([ends[i] - seeing[i] for i in batch], own),
                    _side([starts[i] for i in batch], [keys[i] for i in batch]),
                    tuple(keys[i] - seeing[i] for i in batch),
                )
            )
    return tuple(batches)


def _alike(queries: Sequence[int], keys: Sequence[int]) -> Iterator[list[int]]:
    """Sequences to compute together, those that see nothing left out."""
    batch: list[int] = []
    fewest = most = 0
    # those that ask for one token or a few of a long past stand apart from those that ask for all
    for i in sorted((i for i, n in enumerate(queries) if n), key=lambda i: (queries[i].bit_length(), keys[i])):
        now = min(fewest, queries[i]), max(most, queries[i])
        if batch and (keys[i] > PADDED * keys[batch[0]] or now[1] > PADDED * now[0]):
            yield batch
            batch = []
        fewest, most = now if batch else (queries[i], queries[i])
        batch.append(i)
    if batch:
        yield batch


def _side(firsts: Sequence[int], lengths: Sequence[int]) -> _Side:
    count = np.array(lengths)
    longest = int(count.max())
    within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    row = np.repeat(firsts, count) + within
    place = np.repeat(np.arange(len(lengths)) * longest, count) + within
    return _Side(torch.from_numpy(row), torch.from_numpy(place), (len(lengths), longest))


def _padded(x: torch.Tensor, side: _Side) -> torch.Tensor:
    """(batch, heads, length, d), zeros behind each sequence's end."""
    own = x.index_select(0, side.row.to(x.device))
    batch, length = side.shape
    if len(own) < batch * length:
        own = x.new_zeros(batch * length, *x.shape[1:]).index_copy(0, side.place.to(x.device), own)
    return own.unflatten(0, side.shape).transpose(1, 2)


def _packed(x: torch.Tensor, side: _Side) -> torch.Tensor:
    """(n, heads, d) of what `_padded` made."""
    flat = x.transpose(1, 2).flatten(0, 1)
    return flat if len(side.row) == len(flat) else flat.index_select(0, side.place.to(x.device))


def _mask(batch: _Batch, device: torch.device) -> dict[str, Any]:
    """What hides the keys behind each query's own place, and so those behind its sequence's end."""
    if not any(batch.past):
        return {"is_causal": True}
    queries, keys = batch.queries.shape[1], batch.keys.shape[1]
    if queries == 1 and min(batch.past) == max(batch.past):
        return {}
    last = torch.tensor(batch.past)[:, None] + torch.arange(queries)
    return {"attn_mask": (torch.arange(keys) <= last[..., None])[:, None].to(device)}

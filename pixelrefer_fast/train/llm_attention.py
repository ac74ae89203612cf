"""The LLM's attention over packed sequences: transformers' Qwen2 without padding.

`pack(llm)` makes a transformers model attend by `ops.varlen_attention`. Its inputs are then all tokens of all sequences
one after the other, in a batch of one,

    llm.model(
        inputs_embeds=(1, L, C), position_ids=(1, L), use_cache=False,
        cu_seq_lens_q=(S + 1,) int32, cu_seq_lens_k=(S + 1,) int32, max_length_q=int, max_length_k=int,
    )

under the names that transformers' own flash attention has for them. Linear layers and norms see L rows and no padding;
nobody builds a mask. Without those names the rows of a batch are the sequences, all of the same length, and with fewer
queries than keys (a cache) the last query stands at the last key.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pixelrefer_fast import ops

NAME = "pixelrefer_varlen"
PACKED = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


def pack(llm: Any) -> None:
    """Make a transformers causal language model attend by `ops.varlen_attention` from now on."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, no_mask)
    llm.set_attn_implementation(NAME)


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    cu_seq_lens_k: torch.Tensor | None = None,
    max_length_q: int | None = None,
    max_length_k: int | None = None,
    key_rows: torch.Tensor | None = None,
    varlen_backend: str = "auto",
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function of transformers.

    Args:
        module: the attention layer, unused.
        query: (B, H, Lq, d); key, value: (B, G, Lk, d) with G a divisor of H. B is 1 where the sequences are packed.
        attention_mask: None.
        scaling: 1 / sqrt(d).
        dropout: 0.
        sliding_window: None.
        cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k: of packed sequences: all four, or none.
        key_rows: (K,) int64, of packed sequences: the rows of key and value that the sequences of cu_seq_lens_k consist
            of, so that several of them can share a prefix; None: all rows in order.
        varlen_backend: who computes the operation.

    Returns:
        (B, Lq, H, d), and no weights.

    Raises:
        ValueError: for a mask, dropout, a window, another scaling, or some of the four only.
    """
    batch, _heads, queries, head_dim = query.shape
    keys = key.shape[2]
    if attention_mask is not None:
        raise ValueError(f"{NAME}: expected no attention mask, got one of shape {tuple(attention_mask.shape)}")
    if dropout or sliding_window is not None:
        raise ValueError(f"{NAME}: expected no dropout and no window, got {dropout} and {sliding_window}")
    if scaling is not None and abs(scaling * head_dim**0.5 - 1) > 1e-6:
        raise ValueError(f"{NAME}: expected a scaling of 1 / sqrt({head_dim}), got {scaling}")
    packed = (cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k)
    if all(x is None for x in packed):
        offsets = (torch.arange(batch + 1, device=query.device, dtype=torch.int32) * n for n in (queries, keys))
        cu_seq_lens_q, cu_seq_lens_k = offsets
        max_length_q, max_length_k = queries, keys
    elif batch != 1 or any(x is None for x in packed):
        given = [name for name, x in zip(PACKED, packed, strict=True) if x is not None]
        raise ValueError(f"{NAME}: expected a batch of one with {', '.join(PACKED)}, got {batch} with {given}")
    assert cu_seq_lens_q is not None
    assert cu_seq_lens_k is not None
    assert max_length_q is not None
    assert max_length_k is not None
    if key_rows is not None:
        key, value = key[:, :, key_rows], value[:, :, key_rows]
    # in mixed precision the rotary position leaves queries and keys wider than the values, and on a CPU the gradient of
    # narrow attention is several times slower
    dtype = value.dtype
    wide = torch.promote_types(query.dtype, dtype)
    if query.device.type == "cpu" and torch.is_grad_enabled():
        wide = torch.promote_types(wide, torch.float32)
    out = ops.varlen_attention(
        *(x.to(wide).transpose(1, 2).flatten(0, 1) for x in (query, key, value)),
        cu_seq_lens_q,
        cu_seq_lens_k,
        max_length_q,
        max_length_k,
        True,
        backend=varlen_backend,
    )
    return out.to(dtype).unflatten(0, (batch, queries)), None


def no_mask(*args: Any, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> None:
    """A mask function of transformers that builds none.

    Raises:
        ValueError: some of the tokens are to be hidden.
    """
    if attention_mask is not None and not bool(attention_mask.all()):
        raise ValueError(f"{NAME}: expected no padding in attention_mask; pack the sequences instead")

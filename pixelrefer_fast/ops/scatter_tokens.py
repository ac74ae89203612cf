"""Object and vision tokens into their places among the prompt embeddings."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from pixelrefer_fast.ops._check import check_dtype, check_shape
from pixelrefer_fast.ops._registry import register_op


def _samples(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple]:
    for length, count, width in ((17, 5, 24), (4, 4, 1), (3, 0, 8), (0, 0, 8)):
        embeds = torch.randn(length, width, generator=generator).to(dtype)
        tokens = torch.randn(count, width, generator=generator).to(dtype)
        yield embeds, tokens, torch.randperm(length, generator=generator)[:count]


@register_op(
    source="reference model/pixelrefer_arch.py prepare_inputs_labels_for_multimodal_with_compression",
    tolerance={torch.float32: 0.0, torch.float16: 0.0, torch.bfloat16: 0.0},
    samples=_samples,
)
def scatter_tokens(embeds: torch.Tensor, tokens: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """Replace rows of the prompt embeddings.

    Args:
        embeds: (L, C) embeddings of the prompt's ids.
        tokens: (T, C) what replaces the placeholders, in their order.
        slots: (T,) int64, the row of each token, no row twice.

    Returns:
        (L, C), a new tensor.

    Raises:
        ValueError: shapes that do not fit, a slot outside the prompt.
    """
    check_shape("scatter_tokens", "embeds", embeds, None, None)
    check_shape("scatter_tokens", "tokens", tokens, None, embeds.shape[1])
    check_shape("scatter_tokens", "slots", slots, len(tokens))
    check_dtype("scatter_tokens", "slots", slots, torch.int64)
    if len(slots) and not 0 <= int(slots.min()) <= int(slots.max()) < len(embeds):
        raise ValueError(
            f"scatter_tokens: expected slots from 0 to {len(embeds) - 1}, got {int(slots.min())} to {int(slots.max())}"
        )
    return embeds.index_copy(0, slots, tokens.to(embeds.dtype))

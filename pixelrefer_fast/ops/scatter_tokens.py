"""Object and vision tokens into their places among the prompt embeddings."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from pixelrefer_fast.ops._check import check_device, check_dtype, check_shape
from pixelrefer_fast.ops._extension import available, declines, out_variant
from pixelrefer_fast.ops._registry import BackendError, Reason, register_op

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def _samples(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple]:
    for length, count, width in ((17, 5, 24), (4, 4, 1), (3, 0, 8), (0, 0, 8), (9, 6, 1152)):
        embeds = torch.randn(length, width, generator=generator).to(dtype)
        tokens = torch.randn(count, width, generator=generator).to(dtype)
        slots = torch.randperm(length, generator=generator)[:count]
        slots[1:2] = -1
        yield embeds, tokens, slots


def _check(op: str, embeds: torch.Tensor, slots: torch.Tensor) -> None:
    check_shape(op, "embeds", embeds, None, None)
    check_shape(op, "slots", slots, None)
    check_dtype(op, "slots", slots, torch.int64)
    check_device(op, embeds.device, slots=slots)
    if slots.device.type == "cpu" and len(slots) and not -1 <= int(slots.min()) <= int(slots.max()) < len(embeds):
        raise ValueError(
            f"{op}: expected slots from -1 to {len(embeds) - 1}, got {int(slots.min())} to {int(slots.max())}"
        )


@register_op(
    source="reference model/pixelrefer_arch.py prepare_inputs_labels_for_multimodal_with_compression",
    tolerance={torch.float32: 0.0, torch.float16: 0.0, torch.bfloat16: 0.0},
    samples=_samples,
    mutates=("embeds",),
)
def scatter_tokens(embeds: torch.Tensor, tokens: torch.Tensor, slots: torch.Tensor) -> None:
    """Replace rows of the prompt embeddings, in place.

    Args:
        embeds: (L, C) embeddings of the ids of one or several packed prompts, written to.
        tokens: (T, C) in the dtype of `embeds`, what replaces the placeholders.
        slots: (T,) int64, the row of each token; -1 leaves the token out. No row twice.

    Returns:
        Nothing.

    Raises:
        ValueError: shapes or dtypes that do not fit; for tensors of the host also a slot outside -1 to L - 1.
            (On a device such a token is left out.)
    """
    if not len(slots):
        return
    # the token of each row, -1 for none; those left out meet in a row too many. Nothing waits for a device
    owner = slots.new_full((len(embeds) + 1,), -1)
    written = (slots >= 0) & (slots < len(embeds))
    owner.index_copy_(0, torch.where(written, slots, len(embeds)), torch.arange(len(slots), device=slots.device))
    owner = owner[:-1]
    embeds.copy_(torch.where((owner >= 0)[:, None], tokens[owner.clamp(min=0)], embeds))


@scatter_tokens.check
def _check_tokens(embeds: torch.Tensor, tokens: torch.Tensor, slots: torch.Tensor) -> None:
    _check("scatter_tokens", embeds, slots)
    check_shape("scatter_tokens", "tokens", tokens, len(slots), embeds.shape[1])
    check_dtype("scatter_tokens", "tokens", tokens, embeds.dtype)
    check_device("scatter_tokens", embeds.device, tokens=tokens)


_scatter_tokens_ = out_variant("scatter_tokens_(Tensor(a!) embeds, Tensor tokens, Tensor slots) -> ()")
_gather_tokens_out = out_variant("gather_tokens_out(Tensor embeds, Tensor slots, Tensor(a!) tokens) -> ()")


def _declines(embeds: torch.Tensor) -> Reason:
    if embeds.dtype not in DTYPES:
        return f"embeds are {embeds.dtype}, the extension moves {', '.join(map(str, DTYPES))}"
    if embeds.shape[1] > 1 and embeds.stride(1) != 1:
        return f"the rows of embeds are not contiguous, their strides are {embeds.stride()}"
    return declines(embeds)


@scatter_tokens.provider("cuda", devices=("cpu", "cuda"), available=available, accepts=_declines)
def _extension(embeds: torch.Tensor, tokens: torch.Tensor, slots: torch.Tensor) -> None:
    rows = tokens if tokens.shape[1] <= 1 or tokens.stride(1) == 1 else tokens.contiguous()
    _scatter_tokens_(embeds, rows, slots.contiguous())


def gather_tokens(embeds: torch.Tensor, slots: torch.Tensor, *, backend: str = "torch") -> torch.Tensor:
    """Rows of the prompt embeddings, the way back of `scatter_tokens`.

    Args:
        embeds: (L, C).
        slots: (T,) int64, the row of each token; -1 gives a row of zeros.
        backend: "torch", or "cuda" for the extension.

    Returns:
        (T, C) in the dtype of `embeds`.

    Raises:
        ValueError: shapes or dtypes that do not fit, a backend that is not there; for tensors of the host also a slot
            outside -1 to L - 1. (On a device such a slot gives zeros.)
    """
    _check("gather_tokens", embeds, slots)
    if backend == "cuda":
        rows = embeds.contiguous()
        if reason := _declines(rows):
            raise BackendError(f"gather_tokens: backend 'cuda' was asked for but declines: {reason}")
        tokens = torch.empty(len(slots), embeds.shape[1], dtype=embeds.dtype, device=embeds.device)
        _gather_tokens_out(rows, slots.contiguous(), tokens)
        return tokens
    if backend != "torch":
        raise BackendError(f"gather_tokens: expected backend torch or cuda, got {backend!r}")
    if not len(embeds):
        return embeds.new_zeros(len(slots), embeds.shape[1])
    written = (slots >= 0) & (slots < len(embeds))
    return embeds[slots.clamp(0, len(embeds) - 1)].masked_fill(~written[:, None], 0)

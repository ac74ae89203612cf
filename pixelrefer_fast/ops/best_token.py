"""The most likely token of each row of logits, once what requests change about single tokens is applied."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from pixelrefer_fast.ops._check import check_device, check_dtype, check_shape
from pixelrefer_fast.ops._registry import Reason, register_op
from pixelrefer_fast.ops._shaping import Shaping

KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MOST_NAMED = 1024  # tokens of a row that stay in one program's registers


def _samples(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple]:
    def integers(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, shape, generator=generator)

    def make(rows: int, vocabulary: int, said: int, biased: int, ends: int) -> tuple:
        floats = [torch.rand(rows, generator=generator) for _ in range(3)]
        return (
            torch.randn(rows, vocabulary, generator=generator).to(dtype),
            integers(said + 1, rows),
            integers(vocabulary, rows, said) if said else None,
            1 + floats[0],
            floats[1],
            floats[2],
            integers(vocabulary, rows, biased) if biased else None,
            torch.randn(rows, biased, generator=generator) if biased else None,
            integers(vocabulary, rows, ends) if ends else None,
            integers(said + 2, rows),
            torch.zeros(rows, dtype=torch.int32),
        )

    yield make(3, 17, 5, 2, 1)
    yield make(2, 40, 0, 0, 0)
    yield make(1, 9, 3, 0, 2)
    yield make(0, 9, 0, 1, 0)


@register_op(
    source="transformers generation/logits_process.py; vLLM v1/sample/ops/penalties.py",
    tolerance={torch.float32: 0.0, torch.float16: 0.0, torch.bfloat16: 0.0},
    samples=_samples,
    mutates=("arrivals",),
)
def best_token(
    logits: torch.Tensor,
    counts: torch.Tensor,
    said: torch.Tensor | None,
    repetition: torch.Tensor,
    presence: torch.Tensor,
    frequency: torch.Tensor,
    biased: torch.Tensor | None,
    bias: torch.Tensor | None,
    ends: torch.Tensor | None,
    least: torch.Tensor,
    arrivals: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The token of the largest score in each row, and whether all its logits are finite.

    Scores are the logits in float32, changed in this order: `bias` is added, tokens that end an answer too early become
    impossible, tokens that were said become less likely (`_shaping.Shaping`).

    Args:
        logits: (B, V), any float dtype. What is changed in place meanwhile is put back to the last bit.
        counts: (B,) int64: tokens said in each row.
        said: (B, n) int64, the first `counts` of each row are those said, with repeats; None: none is less likely.
        repetition, presence, frequency: (B,) float32, as of `Shaping.penalise`; looked at only with `said`.
        biased, bias: (B, m) int64 and float32: tokens and what is added to their scores; or None.
        ends: (B, k) int64: tokens that are impossible while `counts` is below `least`, -1 for none; or None.
        least: (B,) int64; looked at only with `ends`.
        arrivals: (B or more,) int32 zeros, zeros again afterwards, as of `paged_attention`.

    Returns:
        (B,) int64: the first of equally likely ones, any token in a row that is not finite. (B,) bool: finite or not.

    Raises:
        ValueError: for shapes or dtypes that do not fit.
    """
    scores = logits.float() if logits.dtype.itemsize < 4 else logits
    # what is not a number is both
    low, high = scores.aminmax(dim=-1) if len(scores) else (scores[:, 0], scores[:, 0])
    finite = torch.isfinite(low) & torch.isfinite(high)
    shaping = Shaping(scores)
    if biased is not None and bias is not None:
        shaping.bias(biased, bias)
    if ends is not None:
        shaping.forbid(ends, counts < least)
    if said is not None:
        shaping.penalise(said, counts, repetition, presence, frequency)
    tokens = scores.argmax(-1)
    shaping.undo()
    return tokens, finite


@best_token.check
def _check(
    logits: torch.Tensor,
    counts: torch.Tensor,
    said: torch.Tensor | None,
    repetition: torch.Tensor,
    presence: torch.Tensor,
    frequency: torch.Tensor,
    biased: torch.Tensor | None,
    bias: torch.Tensor | None,
    ends: torch.Tensor | None,
    least: torch.Tensor,
    arrivals: torch.Tensor,
) -> None:
    name = "best_token"
    check_shape(name, "logits", logits, None, None)
    rows = len(logits)
    if not logits.shape[1]:
        raise ValueError(f"{name}: expected logits of a token or more, got {tuple(logits.shape)}")
    if (biased is None) != (bias is None):
        raise ValueError(
            f"{name}: expected biased and bias or neither, got only {'bias' if bias is not None else 'biased'}"
        )
    for label, tensor in (("said", said), ("biased", biased), ("ends", ends)):
        if tensor is not None:
            check_shape(name, label, tensor, rows, None)
            check_dtype(name, label, tensor, torch.int64)
    for label, tensor in (("counts", counts), ("least", least)):
        check_shape(name, label, tensor, rows)
        check_dtype(name, label, tensor, torch.int64)
    for label, tensor in (("repetition", repetition), ("presence", presence), ("frequency", frequency)):
        check_shape(name, label, tensor, rows)
        check_dtype(name, label, tensor, torch.float32)
    if biased is not None and bias is not None:
        check_shape(name, "bias", bias, *biased.shape)
        check_dtype(name, "bias", bias, torch.float32)
    check_shape(name, "arrivals", arrivals, None)
    check_dtype(name, "arrivals", arrivals, torch.int32)
    if len(arrivals) < rows:
        raise ValueError(f"{name}: expected arrivals of {rows} or more, got {len(arrivals)}")
    check_device(
        name, logits.device, counts=counts, said=said, repetition=repetition, presence=presence, frequency=frequency,
        biased=biased, bias=bias, ends=ends, least=least, arrivals=arrivals,
    )  # fmt: skip


@best_token.fake
def _fake(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return logits.new_empty(len(logits), dtype=torch.int64), logits.new_empty(len(logits), dtype=torch.bool)


def _accepts(
    logits: torch.Tensor, said: torch.Tensor | None, biased: torch.Tensor | None, ends: torch.Tensor | None
) -> Reason:
    if logits.dtype not in KERNEL_DTYPES:
        return f"logits are {logits.dtype}; the kernel takes float32, float16 and bfloat16"
    if not logits.is_contiguous():
        return "logits are not contiguous"
    widest = max((x.shape[1] for x in (said, biased, ends) if x is not None), default=0)
    return None if widest <= MOST_NAMED else f"{widest} tokens of a row are named; the kernel takes up to {MOST_NAMED}"


best_token.kernel(accepts=_accepts)

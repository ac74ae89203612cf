"""Finiteness, the changes to single tokens, and the largest score of each row, with the logits read once in one launch.

A program has a part of a row. It takes the tokens of its part that are named (said, biased, ends) out of the logits,
works out their scores apart, looks for the largest of the rest, and puts the logits back. The part that is done last
compares all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from pixelrefer_fast.kernels._launch import OPTIONS, CompileCase, configuration, launch, shipped
from pixelrefer_fast.kernels._sizes import next_power_of_2

PROGRAMS = 256  # wanted at once: two for each multiprocessor of the largest devices
MOST_PARTS = 64  # of a row
NONE = tl.constexpr(2**31 - 1)  # a token behind all others


@triton.jit
def _score(
    raw, token, said, counts, repetition, presence, frequency, biased, bias, forbidden,
    SAID: tl.constexpr, BIASED: tl.constexpr, ENDS: tl.constexpr,
):  # fmt: skip
    """Scores [N] of tokens [N] int32, of their logits in float32."""
    score = raw
    for j in range(BIASED):
        score += tl.where(token == tl.load(biased + j), tl.load(bias + j), 0.0)
    for j in range(ENDS):
        score = tl.where(token == tl.load(forbidden + j), float("-inf"), score)
    if SAID:
        times = tl.zeros_like(token)
        for at in range(0, counts, 4):
            beside = at + tl.arange(0, 4)
            other = tl.load(said + beside, beside < counts, -2).to(tl.int32)
            times += tl.sum((token[:, None] == other[None, :]).to(tl.int32), 1)
        less = tl.where(score < 0, score * repetition, tl.math.div_rn(score, repetition + tl.zeros_like(score)))
        less -= presence + frequency * times.to(tl.float32)
        score = tl.where(times > 0, less, score)
    return score


@triton.jit
def _better(score, token, other_score, other_token):
    """The larger score with its token, of equal ones the lower token."""
    take = (other_score > score) | ((other_score == score) & (other_token < token))
    return tl.where(take, other_score, score), tl.where(take, other_token, token)


@triton.jit
def _largest(scores, tokens):
    """The largest of scores [N] and the lowest token that has it; NONE where all are -inf."""
    most = tl.max(scores, 0)
    return most, tl.min(tl.where((scores == most) & (scores > float("-inf")), tokens, NONE), 0)


@triton.jit
def _infinite(values, inside):
    """Whether any of the values inside is not finite, 0 or 1."""
    return tl.max(tl.where(inside & ~(tl.abs(values) < float("inf")), 1, 0), 0)


@triton.jit
def _best_token(
    logits,  # [B, VOCABULARY] float, put back
    counts,  # [B] int64, COUNTS_ROW elements apart
    said,  # [B, SAID] int64, unused without any
    repetition,  # [B] float32, this and the next two RATES_ROW elements apart, and unused likewise
    presence,
    frequency,
    biased,  # [B, BIASED] int64, unused without any
    bias,  # [B, BIASED] float32
    ends,  # [B, ENDS] int64, unused without any
    least,  # [B] int64, LEAST_ROW elements apart
    arrivals,  # [B] int32, zeros before and after
    scores,  # [B, PARTS] float32: the largest score of each part
    places,  # [B, PARTS] int32: its token, -1 - token where a logit is not finite
    forbidden,  # [B, PARTS, ENDS] int32: ends that may not come yet
    best,  # [B] int64
    finite,  # [B] bool
    lowest,
    COUNTS_ROW: tl.constexpr,
    RATES_ROW: tl.constexpr,
    LEAST_ROW: tl.constexpr,
    VOCABULARY: tl.constexpr,
    SAID: tl.constexpr,
    BIASED: tl.constexpr,
    ENDS: tl.constexpr,
    PARTS: tl.constexpr,
    LENGTH: tl.constexpr,  # of a part, a multiple of BLOCK_V
    BLOCK_P: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    first = part * LENGTH
    stop = tl.minimum(first + LENGTH, VOCABULARY)
    logits += row * VOCABULARY
    said += row * SAID
    biased += row * BIASED
    bias += row * BIASED
    ends += row * ENDS
    count = tl.minimum(tl.load(counts + row * COUNTS_ROW), SAID)
    rate, once, each = 1.0, 0.0, 0.0
    if SAID:
        rate = tl.load(repetition + row * RATES_ROW)
        once = tl.load(presence + row * RATES_ROW)
        each = tl.load(frequency + row * RATES_ROW)

    top = float("-inf")
    token = NONE
    bad = 0
    if SAID:
        i = tl.arange(0, BLOCK_S)
        said_token = tl.load(said + i, i < count, -1).to(tl.int32)
        said_here = (said_token >= first) & (said_token < stop)
        said_logit = tl.load(logits + said_token, said_here, 0.0)
    if BIASED:
        i = tl.arange(0, BLOCK_B)
        biased_token = tl.load(biased + i, i < BIASED, -1).to(tl.int32)
        biased_here = (biased_token >= first) & (biased_token < stop)
        biased_logit = tl.load(logits + biased_token, biased_here, 0.0)
    own = forbidden + (row * PARTS + part) * ENDS
    if ENDS:
        i = tl.arange(0, BLOCK_E)
        early = tl.load(counts + row * COUNTS_ROW) < tl.load(least + row * LEAST_ROW)
        end_token = tl.load(ends + i, i < ENDS, -1).to(tl.int32)
        end_token = tl.where(early, end_token, -1)
        tl.store(own + i, end_token, i < ENDS)
        end_here = (end_token >= first) & (end_token < stop)
        end_logit = tl.load(logits + end_token, end_here, 0.0)
    # a token may be named several times: all have read its logit before it is taken out
    tl.debug_barrier()
    if SAID:
        raw = said_logit.to(tl.float32)
        bad = tl.maximum(bad, _infinite(raw, said_here))
        value = _score(raw, said_token, said, count, rate, once, each, biased, bias, own, SAID, BIASED, ENDS)
        other, place = _largest(tl.where(said_here, value, float("-inf")), said_token)
        top, token = _better(top, token, other, place)
        tl.store(logits + said_token, tl.zeros_like(raw) + lowest, said_here)
    if BIASED:
        raw = biased_logit.to(tl.float32)
        bad = tl.maximum(bad, _infinite(raw, biased_here))
        value = _score(raw, biased_token, said, count, rate, once, each, biased, bias, own, SAID, BIASED, ENDS)
        other, place = _largest(tl.where(biased_here, value, float("-inf")), biased_token)
        top, token = _better(top, token, other, place)
        tl.store(logits + biased_token, tl.zeros_like(raw) + lowest, biased_here)
    if ENDS:
        raw = end_logit.to(tl.float32)
        bad = tl.maximum(bad, _infinite(raw, end_here))
        tl.store(logits + end_token, tl.zeros_like(raw) + lowest, end_here)
    tl.debug_barrier()

    column = tl.arange(0, BLOCK_V)
    largest = tl.full([BLOCK_V], float("-inf"), tl.float32)
    where = tl.full([BLOCK_V], 0, tl.int32) + NONE
    unfit = tl.zeros([BLOCK_V], tl.int32)
    for at in range(first, stop, BLOCK_V):
        inside = at + column < stop
        logit = tl.load(logits + at + column, inside, 0.0).to(tl.float32)
        unfit = tl.where(inside & ~(tl.abs(logit) < float("inf")), 1, unfit)
        better = inside & (logit > largest)
        largest = tl.where(better, logit, largest)
        where = tl.where(better, at + column, where)
    bad = tl.maximum(bad, tl.max(unfit, 0))
    # all that was taken out stands at the lowest number: no token of its own, unless nothing else is left
    other, place = _largest(tl.where(largest > lowest, largest, float("-inf")), where)
    top, token = _better(top, token, other, place)

    tl.debug_barrier()
    if SAID:
        tl.store(logits + said_token, said_logit, said_here)
    if BIASED:
        tl.store(logits + biased_token, biased_logit, biased_here)
    if ENDS:
        tl.store(logits + end_token, end_logit, end_here)

    token = tl.where(token == NONE, first, token)
    tl.store(scores + row * PARTS + part, top)
    tl.store(places + row * PARTS + part, tl.where(bad > 0, -1 - token, token))
    if tl.atomic_add(arrivals + row, 1, sem="acq_rel") < PARTS - 1:
        return
    i = tl.arange(0, BLOCK_P)
    top_of = tl.load(scores + row * PARTS + i, i < PARTS, float("-inf"))
    place_of = tl.load(places + row * PARTS + i, i < PARTS, NONE)
    bad = tl.max(tl.where(place_of < 0, 1, 0), 0)
    place_of = tl.where(place_of < 0, -1 - place_of, place_of)
    top = tl.max(top_of, 0)
    token = tl.min(tl.where(top_of == top, place_of, NONE), 0)
    tl.store(best + row, tl.where(token == NONE, 0, token).to(tl.int64))
    tl.store(finite + row, bad == 0)
    tl.atomic_xchg(arrivals + row, 0, sem="relaxed")


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
    """As `pixelrefer_fast.ops.best_token`; the logits are contiguous."""
    rows, vocabulary = logits.shape
    config = configuration("best_token.rows", vocabulary, logits.device)
    parts, length = parts_of(rows, vocabulary, config["BLOCK_V"])
    best = torch.empty(rows, dtype=torch.int64, device=logits.device)
    finite = torch.empty(rows, dtype=torch.bool, device=logits.device)
    scores = torch.empty(rows, parts, dtype=torch.float32, device=logits.device)
    places = torch.empty(rows, parts, dtype=torch.int32, device=logits.device)
    named = [x.contiguous() if x is not None and x.shape[1] else None for x in (said, biased, ends)]
    widths = [0 if x is None else x.shape[1] for x in named]
    forbidden = torch.empty(rows, parts, widths[2], dtype=torch.int32, device=logits.device)
    rates = [repetition, presence, frequency]
    if len({x.stride(0) for x in rates}) > 1:
        rates = [x.contiguous() for x in rates]
    # a pointer that is not looked at has to be one
    said_, biased_, ends_ = (counts if x is None else x for x in named)
    launch(
        _best_token,
        "best_token.rows",
        (rows, parts),
        logits,
        counts,
        said_,
        *rates,
        biased_,
        repetition if bias is None or not widths[1] else bias.contiguous(),
        ends_,
        least,
        arrivals,
        scores,
        places,
        forbidden,
        best,
        finite,
        torch.finfo(logits.dtype).min,
        flops=logits.numel(),
        moved=logits.numel() * logits.element_size()
        + rows * (sum(widths) * 8 + widths[1] * 4 + 16 + 9)
        + 2 * parts * rows * 8,
        COUNTS_ROW=counts.stride(0),
        RATES_ROW=rates[0].stride(0),
        LEAST_ROW=least.stride(0),
        VOCABULARY=vocabulary,
        SAID=widths[0],
        BIASED=widths[1],
        ENDS=widths[2],
        PARTS=parts,
        LENGTH=length,
        BLOCK_P=next_power_of_2(parts),
        **_blocks(widths),
        **config,
    )
    return best, finite


def parts_of(rows: int, vocabulary: int, block: int) -> tuple[int, int]:
    """In how many parts a row is looked through, and how long they are; each has a token at least."""
    blocks = -(-vocabulary // block)
    each = -(-blocks // max(1, min(MOST_PARTS, PROGRAMS // max(rows, 1))))
    return -(-blocks // each), each * block


def _blocks(widths: list[int]) -> dict[str, int]:
    names = ("BLOCK_S", "BLOCK_B", "BLOCK_E")
    return {name: max(16, next_power_of_2(n)) for name, n in zip(names, widths, strict=True)}


def compile_cases() -> Iterator[CompileCase]:
    """Qwen2's vocabulary in 64 parts, with nothing named, with what was said, and with everything."""
    for (device, entry), dtype in itertools.product(shipped("best_token.rows"), ("bf16", "fp16", "fp32")):
        for widths in ([0, 0, 0], [512, 0, 0], [512, 16, 4]):
            parts, length = parts_of(1, 151936, entry["BLOCK_V"])
            yield CompileCase(
                kernel=_best_token,
                name="best_token.rows",
                shape=f"{dtype}, {' + '.join(map(str, widths))} tokens named, {device}",
                signature={
                    "logits": f"*{dtype}",
                    **dict.fromkeys(("counts", "said", "biased", "ends", "least", "best"), "*i64"),
                    **dict.fromkeys(("repetition", "presence", "frequency", "bias", "scores"), "*fp32"),
                    **dict.fromkeys(("arrivals", "places", "forbidden"), "*i32"),
                    "finite": "*i1",
                    "lowest": "fp32",
                },
                constants={
                    **dict.fromkeys(("COUNTS_ROW", "RATES_ROW", "LEAST_ROW"), 1),
                    "VOCABULARY": 151936,
                    "SAID": widths[0],
                    "BIASED": widths[1],
                    "ENDS": widths[2],
                    "PARTS": parts,
                    "LENGTH": length,
                    "BLOCK_P": next_power_of_2(parts),
                    **_blocks(widths),
                    **{k: v for k, v in entry.items() if k.startswith("BLOCK")},
                },
                options={k: entry[k] for k in OPTIONS},
            )

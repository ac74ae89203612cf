"""The choice of the next token, for many sequences at once and on their device.

Nothing here waits for the device or draws from a generator: the number that decides a token is a hash of the
sequence's seed and of how many tokens it has, so that neither the batch nor the order of batches changes it, and a CUDA
graph that was captured once draws anew at every replay.

The vocabulary is never sorted. Where only the `top_k` most likely tokens may be drawn, these are found first and all
else is done with them (`choose_among`); where all may be, the smallest share that belongs to `top_p` is found by
bisection (`choose_from_all`). Which tokens may be drawn is defined as in transformers' warpers, in their order:
temperature, top_k, top_p, min_p.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

# of splitmix64 (Steele, Lea, Flood 2014), as signed numbers
GOLDEN = 0x9E3779B97F4A7C15 - 2**64
FIRST = 0xBF58476D1CE4E5B9 - 2**64
SECOND = 0x94D049BB133111EB - 2**64
ONE = 0x3F800000  # the bits of 1 in float32


class Sampling(NamedTuple):
    """How rows are sampled, one number each.

    Attributes:
        temperature: (n,) float64, above 0.
        top_k: (n,) int64: only so many tokens, the most likely ones.
        top_p: (n,) float64: of these, the smallest set with this probability.
        min_p: (n,) float64: of these, those with at least this share of the most likely one's probability.
    """

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor


def uniform(seeds: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """(B,) float64 from 0 to below 1, of two int64: 53 bits of splitmix64."""
    state = _mixed(seeds) + counts * GOLDEN
    return _shifted(_mixed(state), 11).double() * 2.0**-53


def choose_among(scores: torch.Tensor, candidates: int, sampling: Sampling, draw: torch.Tensor) -> torch.Tensor:
    """A token of each row, of its `top_k` most likely ones.

    Args:
        scores: (n, V) float32.
        candidates: at least the largest `top_k`.
        sampling: of each row.
        draw: (n,) float64 from `uniform`.

    Returns:
        (n,) int64.
    """
    found, index = scores.topk(min(candidates, scores.shape[1]))
    shares = _shares(found, found[:, :1], sampling)
    shares = shares.masked_fill(torch.arange(shares.shape[1], device=shares.device) >= sampling.top_k[:, None], 0)
    before = shares.cumsum(-1) - shares
    # a token belongs to the set while those before it do not reach top_p, so the first always does
    shares = shares.masked_fill(before >= sampling.top_p[:, None] * shares.sum(-1, keepdim=True), 0)
    return index.gather(1, _place(_likely(shares, sampling), draw))[:, 0]


def choose_from_all(scores: torch.Tensor, nucleus: bool, sampling: Sampling, draw: torch.Tensor) -> torch.Tensor:
    """A token of each row, of the whole vocabulary.

    Args:
        scores: (n, V) float32.
        nucleus: whether `top_p` of some row is below 1.
        sampling: of each row; `top_k` is not looked at.
        draw: (n,) float64 from `uniform`.

    Returns:
        (n,) int64.
    """
    shares = _shares(scores, scores.amax(-1, keepdim=True), sampling)
    if nucleus:
        shares = _nucleus(shares, sampling.top_p[:, None] * shares.sum(-1, keepdim=True))
    return _place(_likely(shares, sampling), draw)[:, 0]


def signed(seed: int) -> int:
    """A seed of up to 64 bits as an int64."""
    return (seed + 2**63) % 2**64 - 2**63


def _shares(scores: torch.Tensor, largest: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """float64 parts of the most likely token's probability, which is 1."""
    # the largest becomes 0 before the division, which a tiny temperature would overflow
    return ((scores.double() - largest) / sampling.temperature[:, None]).exp()


def _likely(shares: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    return shares.masked_fill(shares < sampling.min_p[:, None], 0)


def _nucleus(shares: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The largest shares, as few as have the sum `wanted` (n, 1); of equal ones those of the lowest tokens.

    The order of positive float32 numbers is that of their bits, so that 30 halvings find the share at which to cut.
    """
    bits = shares.float().view(torch.int32)
    low = torch.zeros_like(wanted, dtype=torch.int32)  # all shares from here up are enough
    high = torch.full_like(low, ONE + 1)  # none are
    for _ in range(ONE.bit_length()):
        middle = (low + high) // 2
        enough = shares.masked_fill(bits < middle, 0).sum(-1, keepdim=True) >= wanted
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    above = shares.masked_fill(bits <= low, 0)
    level = shares.masked_fill(bits != low, 0)
    before = above.sum(-1, keepdim=True) + level.cumsum(-1) - level
    return above + level.masked_fill(before >= wanted, 0)


def _place(shares: torch.Tensor, draw: torch.Tensor) -> torch.Tensor:
    """(n, 1) places at which the draw falls."""
    reached = shares.cumsum(-1)
    # the first whose share is passed; one without any share adds nothing and is never the first
    place = (reached <= draw[:, None] * reached[:, -1:]).sum(-1, keepdim=True)
    return place.clamp(max=shares.shape[1] - 1)  # of rows that are not finite


def _mixed(state: torch.Tensor) -> torch.Tensor:
    state = (state ^ _shifted(state, 30)) * FIRST
    state = (state ^ _shifted(state, 27)) * SECOND
    return state ^ _shifted(state, 31)


def _shifted(state: torch.Tensor, bits: int) -> torch.Tensor:
    """A logical shift to the right: that of int64 copies the sign."""
    return (state >> bits) & (2 ** (64 - bits) - 1)

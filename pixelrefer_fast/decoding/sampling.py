"""The choice of the next token, for many sequences at once and on their device.

Nothing here waits for the device or draws from a generator: the number that decides a token is a hash of the
sequence's seed and of how many tokens it has, so that neither the batch nor the order of batches changes it, and a CUDA
graph that was captured once draws anew at every replay.
"""

from __future__ import annotations

import torch

# of splitmix64 (Steele, Lea, Flood 2014), as signed numbers
GOLDEN = 0x9E3779B97F4A7C15 - 2**64
FIRST = 0xBF58476D1CE4E5B9 - 2**64
SECOND = 0x94D049BB133111EB - 2**64


def penalised(logits: torch.Tensor, seen: torch.Tensor, penalty: float) -> torch.Tensor:
    """(B, V) logits, those of tokens that a sequence has said made less likely.

    With prompt embeddings the reference's generate() penalises generated tokens only.
    """
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def uniform(seeds: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """(B,) float64 from 0 to below 1, of two int64: 53 bits of splitmix64."""
    state = _mixed(seeds) + counts * GOLDEN
    return _shifted(_mixed(state), 11).double() * 2.0**-53


def choose(logits: torch.Tensor, temperature: torch.Tensor, top_p: torch.Tensor, draw: torch.Tensor) -> torch.Tensor:
    """The next token of each sequence.

    Args:
        logits: (B, V) float32.
        temperature, top_p: (B,) float64; a temperature of 0 takes the most likely token.
        draw: (B,) float64 from `uniform`.

    Returns:
        (B,) int64.
    """
    greedy = logits.argmax(-1)
    sampled = temperature > 0
    # the largest becomes 0 before the division, which a tiny temperature would overflow
    scaled = (logits.double() - logits.amax(-1, keepdim=True)) / torch.where(sampled, temperature, 1.0)[:, None]
    ordered, index = scaled.softmax(-1).sort(dim=-1, descending=True, stable=True)
    # a token belongs to the set while those before it do not reach top_p, so the first always does
    ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= top_p[:, None], 0)
    reached = ordered.cumsum(-1)
    # the first whose share is passed; one without any share adds nothing and is never the first
    place = (reached <= draw[:, None] * reached[:, -1:]).sum(-1, keepdim=True)
    return torch.where(sampled, index.gather(1, place.clamp(max=logits.shape[1] - 1))[:, 0], greedy)


def signed(seed: int) -> int:
    """A seed of up to 64 bits as an int64."""
    return (seed + 2**63) % 2**64 - 2**63


def _mixed(state: torch.Tensor) -> torch.Tensor:
    state = (state ^ _shifted(state, 30)) * FIRST
    state = (state ^ _shifted(state, 27)) * SECOND
    return state ^ _shifted(state, 31)


def _shifted(state: torch.Tensor, bits: int) -> torch.Tensor:
    """A logical shift to the right: that of int64 copies the sign."""
    return (state >> bits) & (2 ** (64 - bits) - 1)

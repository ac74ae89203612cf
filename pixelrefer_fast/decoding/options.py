"""How to decode, and what comes of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from pixelrefer_fast.checks.values import check_seed, is_integer, is_number, shown

FinishReason = Literal["stop", "length", "stop_string", "cancelled"]


@dataclass(frozen=True)
class Generation:
    """How to decode.

    Args:
        max_new_tokens: at most so many tokens, the end token included.
        temperature: 0 is greedy.
        top_p: sample from the smallest set of tokens with this probability; 1 is all.
        seed: of the sampling; None draws anew each time. What is sampled depends on it alone, not on what else is
            decoded at the same time.
        stop: a text, or some, that end an answer. The answer ends before the first that is complete, wherever its
            tokens begin and end.
        logprobs: whether the logarithm of each token's probability is wanted: that of the model as it is, at
            temperature 1, before the penalty for repetition and before top_p.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: str | tuple[str, ...] = ()
    logprobs: bool = False

    def __post_init__(self) -> None:
        if not is_integer(self.max_new_tokens) or self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: expected an integer of at least 1, got {self.max_new_tokens!r}")
        if not (is_number(self.temperature) and 0 <= self.temperature < math.inf):
            raise ValueError(f"temperature: expected a number of at least 0, got {self.temperature!r}")
        if not (is_number(self.top_p) and 0 < self.top_p <= 1):
            raise ValueError(f"top_p: expected a number above 0 and at most 1, got {self.top_p!r}")
        check_seed("seed", self.seed)
        stops = (self.stop,) if isinstance(self.stop, str) else self.stop
        if not isinstance(stops, (list, tuple)) or not all(isinstance(s, str) and s for s in stops):
            raise ValueError(f"stop: expected a text or some, none of them empty, got {shown(self.stop)}")
        object.__setattr__(self, "stop", tuple(stops))
        if not isinstance(self.logprobs, bool):
            raise ValueError(f"logprobs: expected True or False, got {shown(self.logprobs)}")


@dataclass(frozen=True)
class Step:
    """One decoded token and the raw logits (V,) it was chosen from."""

    token: int
    logits: torch.Tensor


@dataclass(frozen=True)
class Decoded:
    """What was decoded.

    Attributes:
        text: without special tokens and surrounding white space, and without a stop string and what follows it.
        tokens: as decoded: an end token or those of a stop string included.
        finish_reason: "stop" (an end token), "stop_string", "length" (max_new_tokens, or the model's context),
            "cancelled".
        logprobs: of each token, where asked for.
        prompt_tokens: length of the prompt.
        cached_tokens: how many of them did not have to be computed.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[float, ...] | None
    prompt_tokens: int
    cached_tokens: int

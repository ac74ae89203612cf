"""How to decode, and what comes of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypedDict

import torch

from pixelrefer_fast.checks.values import check_seed, is_finite_number, is_integer, is_number, shown

FinishReason = Literal["stop", "length", "stop_string", "cancelled"]

ALTERNATIVES = 20  # most likely tokens that a request may ask for beside each of its own
BIASES = 1024  # tokens whose scores a request may change
ANSWERS = 128  # to one prompt

# Options of other engines that this one does not have, and who does it or what it is called here.
ELSEWHERE = {
    "num_beams": "vLLM and transformers search with beams",
    "use_beam_search": "vLLM and transformers search with beams",
    "beam_width": "vLLM and transformers search with beams",
    "length_penalty": "vLLM and transformers search with beams",
    "best_of": "vLLM and transformers search with beams",
    "structured_outputs": "vLLM follows grammars",
    "guided_decoding": "vLLM follows grammars",
    "response_format": "vLLM follows grammars",
    "bad_words": "vLLM forbids words",
    "allowed_token_ids": "vLLM allows some tokens only",
    "prompt_logprobs": "vLLM gives log-probabilities of a prompt",
    "no_repeat_ngram_size": "transformers forbids n-grams",
    "typical_p": "transformers samples so",
    "epsilon_cutoff": "transformers samples so",
    "eta_cutoff": "transformers samples so",
    "penalty_alpha": "transformers searches so",
    "do_sample": "a temperature above 0 samples",
    "max_tokens": "it is called max_new_tokens here",
    "min_tokens": "it is called min_new_tokens here",
    "eos_token_id": "it is called stop_token_ids here",
    "stop_strings": "it is called stop here",
}


@dataclass(frozen=True)
class Generation:
    """How to decode. The options are those of vLLM and of transformers, by the same names.

    Args:
        max_new_tokens: at most so many tokens, the end token included.
        min_new_tokens: no end token, no token of `stop_token_ids` and no stop string before so many tokens.
        temperature: 0 is greedy.
        top_k: sample from so many of the most likely tokens; 0 is all; None: as the checkpoint says.
        top_p: sample from the smallest set of tokens with this probability; 1 is all.
        min_p: sample from the tokens with at least this part of the most likely one's probability; 0 is all.
        seed: of the sampling; None draws anew each time. What is sampled depends on it alone, not on what else is
            decoded at the same time.
        repetition_penalty: scores of tokens in the answer are divided by it where positive, else multiplied; None: as
            the checkpoint says.
        presence_penalty, frequency_penalty: taken from the scores of tokens in the answer, once or each time.
        logit_bias: added to the scores of tokens, by token id: from -100 to 100.
        stop: a text, or some, that end an answer. The answer ends before the first that is complete, wherever its
            tokens begin and end.
        stop_token_ids: tokens that end an answer as the model's own end tokens do; its text is without them.
        n: answers to a prompt, of seeds that follow each other; more than one with `ask_batch` and the like.
        logprobs: whether the logarithm of each token's probability is wanted: that of the model as it is, at
            temperature 1, before any other option here.
        top_logprobs: besides, so many of the most likely tokens at each place.
    """

    max_new_tokens: int = 512
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    stop: str | tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    n: int = 1
    logprobs: bool = False
    top_logprobs: int = 0

    elsewhere: ClassVar[Mapping[str, str]] = ELSEWHERE

    def __post_init__(self) -> None:
        self._check_integer("max_new_tokens", 1)
        self._check_integer("min_new_tokens", 0, self.max_new_tokens)
        self._check_number("temperature", 0, math.inf)
        if self.top_k is not None:
            self._check_integer("top_k", 0)
        if not (is_number(self.top_p) and 0 < self.top_p <= 1):
            raise ValueError(f"top_p: expected a number above 0 and at most 1, got {shown(self.top_p)}")
        self._check_number("min_p", 0, 1)
        check_seed("seed", self.seed)
        penalty = self.repetition_penalty
        if penalty is not None and not (is_finite_number(penalty) and penalty > 0):
            raise ValueError(f"repetition_penalty: expected a number above 0, got {shown(penalty)}")
        self._check_number("presence_penalty", -2, 2)
        self._check_number("frequency_penalty", -2, 2)
        self._check_bias()
        stops = (self.stop,) if isinstance(self.stop, str) else self.stop
        if not isinstance(stops, (list, tuple)) or not all(isinstance(s, str) and s for s in stops):
            raise ValueError(f"stop: expected a text or some, none of them empty, got {shown(self.stop)}")
        object.__setattr__(self, "stop", tuple(stops))
        ids = self.stop_token_ids
        if not isinstance(ids, (list, tuple)) or not all(is_integer(t) and t >= 0 for t in ids) or len(ids) > BIASES:
            raise ValueError(f"stop_token_ids: expected at most {BIASES} token ids, got {shown(ids)}")
        object.__setattr__(self, "stop_token_ids", tuple(map(int, ids)))
        self._check_integer("n", 1, ANSWERS)
        if not isinstance(self.logprobs, bool):
            raise ValueError(f"logprobs: expected True or False, got {shown(self.logprobs)}")
        self._check_integer("top_logprobs", 0, ALTERNATIVES)
        if self.top_logprobs and not self.logprobs:
            raise ValueError(f"top_logprobs: expected 0 without logprobs=True, got {self.top_logprobs}")

    def _check_integer(self, name: str, least: int, most: int | None = None) -> None:
        value = getattr(self, name)
        if not is_integer(value) or value < least or (most is not None and value > most):
            wanted = f"of at least {least}" if most is None else f"from {least} to {most}"
            raise ValueError(f"{name}: expected an integer {wanted}, got {shown(value)}")

    def _check_number(self, name: str, least: float, most: float) -> None:
        value = getattr(self, name)
        if not is_finite_number(value) or not least <= value <= most:
            wanted = f"of at least {least:g}" if math.isinf(most) else f"from {least:g} to {most:g}"
            raise ValueError(f"{name}: expected a number {wanted}, got {shown(value)}")

    def _check_bias(self) -> None:
        bias = self.logit_bias
        if not isinstance(bias, Mapping) or len(bias) > BIASES:
            raise ValueError(f"logit_bias: expected numbers by token id, at most {BIASES}, got {shown(bias)}")
        for token, value in bias.items():
            if not is_integer(token) or token < 0 or not is_number(value) or not -100 <= value <= 100:
                raise ValueError(f"logit_bias: expected numbers from -100 to 100 by token id, got {shown(bias)}")


class GenerationKeywords(TypedDict, total=False):
    """`Generation` as keywords, for type checkers."""

    max_new_tokens: int
    min_new_tokens: int
    temperature: float
    top_k: int | None
    top_p: float
    min_p: float
    seed: int | None
    repetition_penalty: float | None
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    n: int
    logprobs: bool
    top_logprobs: int


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
        finish_reason: "stop" (an end token, or one of `stop_token_ids`), "stop_string", "length" (max_new_tokens, or
            the model's context), "cancelled".
        logprobs: of each token, where asked for.
        top_logprobs: of each token's place the most likely tokens with their log-probabilities, where asked for.
        prompt_tokens: length of the prompt.
        cached_tokens: how many of them did not have to be computed.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[float, ...] | None
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] | None
    prompt_tokens: int
    cached_tokens: int


@dataclass(frozen=True)
class Usage:
    """Tokens of one answer: of its prompt, how many of these were in the cache already, and of the answer itself."""

    prompt_tokens: int
    cached_tokens: int
    tokens: int


@dataclass(frozen=True)
class Event:
    """What a stream tells: one for each token and one for the end.

    Attributes:
        text: what the token completes, "" where a character or a stop string is not whole yet; all join to the answer.
        token: its id; None at the end.
        logprob: of the token, where asked for.
        top_logprobs: the most likely tokens at its place with theirs, where asked for.
        finish_reason: None before the end.
        usage: None before the end.
    """

    text: str
    token: int | None = None
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] | None = None
    finish_reason: FinishReason | None = None
    usage: Usage | None = None

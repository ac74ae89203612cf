"""Prompt embeddings -> text: greedy or sampled decoding of Qwen2 (transformers) with a key/value cache."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from pixelrefer_fast.checks import check_seed, is_integer, is_number

BROKEN = "\ufffd"  # what a tokenizer decodes bytes of an unfinished character to


@dataclass(frozen=True)
class Generation:
    """How to decode.

    Args:
        max_new_tokens: at most so many tokens, the end token included.
        temperature: 0 is greedy.
        top_p: sample from the smallest set of tokens with this probability; 1 is all.
        seed: of the sampling; None draws anew each time.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not is_integer(self.max_new_tokens) or self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: expected an integer of at least 1, got {self.max_new_tokens!r}")
        if not (is_number(self.temperature) and 0 <= self.temperature < math.inf):
            raise ValueError(f"temperature: expected a number of at least 0, got {self.temperature!r}")
        if not (is_number(self.top_p) and 0 < self.top_p <= 1):
            raise ValueError(f"top_p: expected a number above 0 and at most 1, got {self.top_p!r}")
        check_seed("seed", self.seed)


@dataclass(frozen=True)
class Step:
    """One decoded token and the raw logits (V,) it was chosen from."""

    token: int
    logits: torch.Tensor


class Decoder:
    """Runs a Qwen2 causal LM from prompt embeddings."""

    def __init__(self, llm: Any, tokenizer: Any, generation_config: dict[str, Any]) -> None:
        self.llm = llm
        self.tokenizer = tokenizer
        ends = generation_config.get("eos_token_id") or []
        self.end_ids = frozenset([tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])])
        self.hidden_ids = frozenset(tokenizer.all_special_ids)
        # With prompt embeddings the reference's generate() penalises generated tokens only.
        self.repetition_penalty = float(generation_config.get("repetition_penalty") or 1.0)

    @property
    def context_length(self) -> int:
        return self.llm.config.max_position_embeddings

    @torch.inference_mode()
    def steps(self, embeds: torch.Tensor, options: Generation) -> Iterator[Step]:
        """Decode one prompt token by token, the end token included.

        Args:
            embeds: (L, C) prompt embeddings.
            options: how to decode.

        Raises:
            ValueError: the prompt is longer than the model's context.
            FloatingPointError: the logits are not finite (a float16 overflow, say).
        """
        from transformers import DynamicCache

        room = self.context_length - len(embeds)
        if room < 1:
            raise ValueError(f"prompt: expected fewer than {self.context_length} tokens, got {len(embeds)}")
        generator = None
        if options.temperature > 0:
            generator = torch.Generator(embeds.device)
            _ = generator.seed() if options.seed is None else generator.manual_seed(int(options.seed))
        cache = DynamicCache(config=self.llm.config)
        inputs = embeds[None]
        chosen: list[int] = []
        for _ in range(min(options.max_new_tokens, room)):
            output = self.llm(inputs_embeds=inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
            logits = output.logits[0, -1].float()
            if not torch.isfinite(logits).all():
                raise FloatingPointError(
                    f"the logits of token {len(chosen)} are not finite in {embeds.dtype}; load with another dtype"
                )
            token = self._choose(logits, chosen, options, generator)
            chosen.append(token)
            yield Step(token, logits)
            if token in self.end_ids:
                return
            inputs = self.llm.get_input_embeddings()(torch.tensor([[token]], device=embeds.device))

    def text(self, tokens: Iterable[int]) -> str:
        """The answer's text, without special tokens and surrounding white space."""
        return self._decode(list(tokens)).strip()

    def stream(self, embeds: torch.Tensor, options: Generation) -> Iterator[str]:
        """Pieces of text that join to `text`; a character that spans tokens comes whole."""
        pending: list[int] = []
        space = ""  # white space not yet known to lie inside the text
        started = False
        for step in self.steps(embeds, options):
            pending.append(step.token)
            piece = self._decode(pending)
            if piece.endswith(BROKEN):
                continue
            pending.clear()
            piece = space + piece if started else piece.lstrip()
            body = piece.rstrip()
            space = piece[len(body) :]
            if body:
                started = True
                yield body
        tail = self._decode(pending).rstrip()
        if tail:
            yield (space + tail) if started else tail.lstrip()

    def _decode(self, tokens: list[int]) -> str:
        # The reference's tokenizer leaves out the registered special tokens but not those it added by itself.
        kept = [t for t in tokens if t not in self.hidden_ids]
        return self.tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _choose(
        self, logits: torch.Tensor, chosen: list[int], options: Generation, generator: torch.Generator | None
    ) -> int:
        if self.repetition_penalty != 1.0 and chosen:
            logits = logits.clone()
            seen = torch.tensor(sorted(set(chosen)), device=logits.device)
            score = logits[seen]
            logits[seen] = torch.where(score < 0, score * self.repetition_penalty, score / self.repetition_penalty)
        if generator is None:
            return int(logits.argmax())
        # the largest becomes 0 before the division, which a tiny temperature would overflow
        probabilities = ((logits.double() - logits.max()) / float(options.temperature)).softmax(-1)
        ordered, index = probabilities.sort(descending=True, stable=True)
        # a token belongs to the set while those before it do not reach top_p, so the first always does
        ordered[ordered.cumsum(0) - ordered >= options.top_p] = 0
        return int(index[torch.multinomial(ordered, 1, generator=generator)])

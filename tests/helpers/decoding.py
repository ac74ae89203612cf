"""Prompts, decoders and a step-by-step rival for the tests of decoding."""

from __future__ import annotations

from typing import Any

import torch

from pixelrefer_fast.decoding import Decoder, Generation, PromptEmbeds, Sequence
from pixelrefer_fast.decoding.qwen import LanguageModel

WIDTH = 48  # of the bundled models' LLM

# The bundled tokenizer is byte-level: token i is byte BYTES[i], the printable ones first.
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTES = PRINTABLE + [b for b in range(256) if b not in PRINTABLE]
TOKEN_OF = {byte: token for token, byte in enumerate(BYTES)}
END = 256
VOCABULARY = 267


def tokens_of(text: str | bytes) -> list[int]:
    return [TOKEN_OF[b] for b in (text.encode() if isinstance(text, str) else text)]


def prompt(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(length, WIDTH, generator=torch.Generator().manual_seed(seed))


def new_decoder(model: Any, **settings: Any) -> Decoder:
    """A decoder of its own; `penalty` and attributes."""
    decoder = Decoder(model.network.llm, model.tokenizer, {"repetition_penalty": settings.pop("penalty", None)})
    for name, value in settings.items():
        assert hasattr(decoder, name)
        setattr(decoder, name, value)
    return decoder


def drain(decoder: Decoder, most: int = 10_000) -> int:
    """Advance until nothing is left; how often."""
    rounds = 0
    while decoder.advance():
        rounds += 1
        assert rounds < most, "no end in sight"
    return rounds


def answers(sequences: list[Sequence]) -> list[tuple[int, ...]]:
    return [s.result().tokens for s in sequences]


def alone(model: Any, given: PromptEmbeds | torch.Tensor, options: Generation, **settings: Any) -> tuple[int, ...]:
    """What a decoder says that nobody else ever used."""
    return new_decoder(model, **settings).submit(given, options).result().tokens


class Saying(LanguageModel):
    """Says given texts: the prompt whose first number is i gets the tokens of `texts[i]`, one after the other."""

    def __init__(self, llm: Any, texts: list[list[int]]) -> None:
        super().__init__(llm)
        self.texts = texts
        self.rows: dict[int, int] = {}  # by the first row of the cache that a sequence has: which text
        self.steps = 0

    def prefill(self, embeds: torch.Tensor, layout: Any, pool: Any) -> torch.Tensor:
        firsts = layout.cu_queries[:-1].long()
        chosen = [int(embeds[i, 0]) for i in firsts]
        self.rows |= dict(zip((layout.rows[firsts] // pool.size).tolist(), chosen, strict=True))
        self.started = {which: int(n) for which, n in zip(chosen, layout.cu_queries.diff(), strict=True)}
        self.lengths = getattr(self, "lengths", {}) | self.started
        return torch.stack([self._logits(which, 0) for which in chosen])

    def step(self, tokens: torch.Tensor, lengths: torch.Tensor, table: torch.Tensor, pool: Any) -> torch.Tensor:
        self.steps += 1
        rows = []
        for block, length in zip(table[:, 0].tolist(), lengths.tolist(), strict=True):
            which = self.rows.get(block)
            rows.append(
                torch.zeros(VOCABULARY) if which is None else self._logits(which, length - self.lengths[which] + 1)
            )
        return torch.stack(rows)

    def _logits(self, which: int, place: int) -> torch.Tensor:
        text = self.texts[which]
        return torch.eye(VOCABULARY)[text[min(place, len(text) - 1)]]


def numbered(which: int, length: int = 3) -> torch.Tensor:
    """A prompt for `Saying`."""
    return torch.full((length, WIDTH), float(which))

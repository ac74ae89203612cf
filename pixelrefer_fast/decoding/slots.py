"""Sequences in decoding, side by side: their state on the device, and one step of all of them.

Slots 0 to n - 1 are taken; a step computes that many, or a bucket of a few more whose slots lead to the trash block. A
step decides by itself what each token is and which sequences end with it, and leaves both on the device as its output;
the host copies that whenever it likes. Nothing in a step waits for the host, so that it can be captured
and replayed.
"""

from __future__ import annotations

from collections import abc
from dataclasses import dataclass

import torch

from pixelrefer_fast.decoding.cache import TRASH, BlockPool
from pixelrefer_fast.decoding.qwen import LanguageModel
from pixelrefer_fast.decoding.sampling import choose, penalised, uniform
from pixelrefer_fast.device.transfers import upload


@dataclass(frozen=True)
class Kind:
    """What steps have to do besides decoding greedily."""

    sampled: bool = False
    logprobs: bool = False


@dataclass(frozen=True)
class Entry:
    """A sequence that takes a slot.

    Attributes:
        length: tokens whose keys and values are in the cache.
        left: tokens that it may still get.
        blocks: of the cache.
        said: tokens that it has.
        temperature, top_p, seed: of the sampling.
    """

    length: int
    left: int
    blocks: abc.Sequence[int]
    said: abc.Sequence[int]
    temperature: float
    top_p: float
    seed: int


@dataclass(frozen=True)
class StepOutput:
    """What steps have left in the slots at one time, on the device or on its way to the host.

    Attributes:
        numbers: (B, 4) int64: the last token, how many a sequence has, whether it failed, whether it goes on.
        logprobs: (B,) float32 of that token, None where nobody asked.
    """

    numbers: torch.Tensor
    logprobs: torch.Tensor | None


class Slots:
    """State of up to `size` sequences.

    Args:
        model: runs the layers.
        pool: keys and values.
        size: slots.
        width: blocks that a sequence may have.
        vocabulary: size of the logits.
        ends: tokens that end a sequence.
        penalty: for repetition; 1 is none.
    """

    def __init__(
        self,
        model: LanguageModel,
        pool: BlockPool,
        size: int,
        width: int,
        vocabulary: int,
        ends: abc.Sequence[int],
        penalty: float,
    ) -> None:
        self.size, self.width = size, width
        self.taken = 0
        self._model, self._pool, self._penalty, self._vocabulary = model, pool, penalty, vocabulary
        device = model.device

        def filled(value: float, dtype: torch.dtype, *shape: int) -> torch.Tensor:
            return torch.full((size, *shape), value, dtype=dtype, device=device)

        self.state = {
            "tokens": filled(0, torch.int64),  # the last one, whose keys are not in the cache yet
            "lengths": filled(0, torch.int32),  # tokens in the cache
            "left": filled(0, torch.int64),  # tokens that may still come
            "counts": filled(0, torch.int64),  # tokens so far
            "active": filled(False, torch.bool),
            "failed": filled(False, torch.bool),
            "table": filled(TRASH, torch.int32, width),
            "temperature": filled(0, torch.float64),
            "top_p": filled(1, torch.float64),
            "seeds": filled(0, torch.int64),
            # what the host reads: `StepOutput`
            "numbers": filled(0, torch.int64, 4),
            "logprobs": filled(0, torch.float32),
        }
        if penalty != 1.0:
            self.state["said"] = filled(False, torch.bool, vocabulary)
        self._vacant = {name: x[:1].clone() for name, x in self.state.items()}
        self._ends = torch.tensor(sorted(e for e in ends if 0 <= e < vocabulary), device=device)

    def add(self, entries: abc.Sequence[Entry]) -> None:
        """Take the next slots."""
        first, stop = self.taken, self.taken + len(entries)
        width = self.state["table"].shape[1]
        columns = {
            "lengths": [e.length for e in entries],
            "left": [e.left for e in entries],
            "counts": [len(e.said) for e in entries],
            "table": [[*e.blocks, *[TRASH] * (width - len(e.blocks))] for e in entries],
            "temperature": [e.temperature for e in entries],
            "top_p": [e.top_p for e in entries],
            "seeds": [e.seed for e in entries],
        }
        host = [torch.tensor(values, dtype=self.state[name].dtype) for name, values in columns.items()]
        said = [(first + i) * self._vocabulary + t for i, e in enumerate(entries) for t in e.said]
        *sent, marks = upload([*host, torch.tensor(said, dtype=torch.int64)], self._model.device)
        for name, values in zip(columns, sent, strict=True):
            self.state[name][first:stop] = values
        self.state["active"][first:stop] = True
        self.state["failed"][first:stop] = False
        if "said" in self.state:
            self.state["said"].view(-1).index_fill_(0, marks, True)
        self.taken = stop

    def extend(self, blocks: abc.Sequence[tuple[int, int, int]]) -> None:
        """Further blocks of sequences: slot, place in its table, and block of each."""
        if blocks:
            slots, places, numbers = upload(list(torch.tensor(blocks).T.contiguous()), self._model.device)
            self.state["table"].index_put_((slots, places), numbers.int())

    def reset(self) -> None:
        """Give up all slots, whatever state they are in."""
        for name, x in self.state.items():
            x[:] = self._vacant[name]
        self.taken = 0

    def keep(self, slots: abc.Sequence[int]) -> None:
        """Give up all slots but these, which become the first ones in this order."""
        (index,) = upload([torch.tensor(slots, dtype=torch.int64)], self._model.device)
        for name, x in self.state.items():
            x[: len(slots)] = x.index_select(0, index)
            x[len(slots) : self.taken] = self._vacant[name]
        self.taken = len(slots)

    def views(self, slots: int) -> dict[str, torch.Tensor]:
        """The state of the first slots: what a step reads and writes."""
        return {name: x[:slots] for name, x in self.state.items()}

    def step(self, slots: int, width: int, kind: Kind) -> torch.Tensor:
        """Decode one token in each of the first slots; the logits (slots, V).

        Args:
            slots: how many, those without a sequence included.
            width: blocks of the longest sequence, this token included.
            kind: what has to be computed.
        """
        views = self.views(slots)
        logits = self._model.step(views["tokens"], views["lengths"], views["table"][:, :width], self._pool)
        written = views["active"].clone()
        self._take(views, logits, kind)
        views["lengths"] += written
        return logits

    def begin(self, logits: torch.Tensor, kind: Kind) -> None:
        """Decode the first token of the sequences that were added last, from their prompts' logits (S, V)."""
        first = self.taken - len(logits)
        self._take({name: x[first : self.taken] for name, x in self.state.items()}, logits, kind)

    def output(self, kind: Kind) -> StepOutput:
        """What the last step has left in the slots that are taken; the next one writes over it."""
        views = self.views(self.taken)
        return StepOutput(views["numbers"], views["logprobs"] if kind.logprobs else None)

    def _take(self, views: dict[str, torch.Tensor], logits: torch.Tensor, kind: Kind) -> None:
        """Choose the next token of the slots of these views, and leave it in their output."""
        active, counts = views["active"], views["counts"]
        finite = torch.isfinite(logits).all(-1)
        scores = logits if self._penalty == 1.0 else penalised(logits, views["said"], self._penalty)
        if kind.sampled:
            draw = uniform(views["seeds"], counts)
            tokens = choose(scores, views["temperature"], views["top_p"], draw)
        else:
            tokens = scores.argmax(-1)
        good = active & finite
        if kind.logprobs:
            views["logprobs"].copy_(logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0])
        if self._penalty != 1.0:
            said = views["said"]
            said.scatter_(1, tokens[:, None], said.gather(1, tokens[:, None]) | good[:, None])
        views["failed"] |= active & ~finite
        counts += good
        views["left"] -= good.long()
        views["tokens"].copy_(torch.where(good, tokens, views["tokens"]))
        ended = (tokens[:, None] == self._ends).any(-1)
        active &= finite & ~ended & (views["left"] > 0)
        torch.stack([views["tokens"], counts, views["failed"], active], 1, out=views["numbers"])

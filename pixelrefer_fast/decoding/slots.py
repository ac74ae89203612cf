"""Sequences in decoding, side by side: their state on the device, and one step of all of them.

Slots 0 to n - 1 are taken; a step computes that many, or a bucket of a few more whose slots lead to the trash block. A
step decides by itself what each token is and which sequences end with it, and leaves both on the device as its output;
the host copies that whenever it likes. Nothing in a step waits for the host, so that it can be captured and replayed.
"""

from __future__ import annotations

from collections import abc
from dataclasses import dataclass

import torch

from pixelrefer_fast import ops
from pixelrefer_fast.decoding.cache import TRASH, BlockPool
from pixelrefer_fast.decoding.options import ALTERNATIVES, Generation
from pixelrefer_fast.decoding.qwen import LanguageModel
from pixelrefer_fast.decoding.sampling import Sampling, choose_among, choose_from_all, uniform
from pixelrefer_fast.decoding.slot_state import Column, SlotState
from pixelrefer_fast.device.transfers import upload
from pixelrefer_fast.ops._shaping import Shaping

# what the choice of rows that sample looks at
_OF_SAMPLING = (
    *(*Sampling._fields, "seeds", "counts"),
    *("said", "repetition", "presence", "frequency", "biased", "bias", "ends", "least"),
)
PACKED = {
    "tokens": Column(torch.int64),  # the last one, whose keys are not in the cache yet
    "left": Column(torch.int64),  # tokens that may still come
    "counts": Column(torch.int64),  # tokens so far
    "seeds": Column(torch.int64),
    "top_k": Column(torch.int64, vacant=1),
    "least": Column(torch.int64),  # tokens before which it may not end
    "active": Column(torch.bool),
    "failed": Column(torch.bool),
    "temperature": Column(torch.float64, vacant=1),
    "top_p": Column(torch.float64, vacant=1),
    "min_p": Column(torch.float64),
    "repetition": Column(torch.float32, vacant=1),
    "presence": Column(torch.float32),
    "frequency": Column(torch.float32),
}
"""The numbers of a sequence, but for those whose width depends on the model or on what sequences want."""


@dataclass(frozen=True)
class Kind:
    """What a step has to do besides decoding greedily.

    Attributes:
        among, candidates: slots that sample one of their `top_k` tokens, and the largest `top_k`, both rounded up to
            powers of two.
        free: slots that sample from the whole vocabulary, rounded up in the same way.
        nucleus: whether any of the latter has a `top_p` below 1.
        penalised: whether tokens that were said are less likely in any slot.
        biased: whether any slot has a bias or may not end yet.
        logprobs, alternatives: whether log-probabilities of chosen and of the most likely tokens are wanted.
    """

    among: int = 0
    candidates: int = 0
    free: int = 0
    nucleus: bool = False
    penalised: bool = False
    biased: bool = False
    logprobs: bool = False
    alternatives: bool = False


CAPTURED = Kind(penalised=True)
SAID = 512  # tokens of an answer that captured steps have room for; longer ones choose theirs apart


@dataclass(frozen=True)
class Entry:
    """A sequence that takes a slot.

    Attributes:
        length: tokens whose keys and values are in the cache.
        left: tokens that it may still get.
        blocks: of the cache.
        said: tokens that it has.
        options: as submitted, `top_k` and `repetition_penalty` being numbers.
        seed: of the sampling.
    """

    length: int
    left: int
    blocks: abc.Sequence[int]
    said: abc.Sequence[int]
    options: Generation
    seed: int

    @property
    def samples(self) -> bool:
        return self.options.temperature > 0

    @property
    def penalised(self) -> bool:
        options = self.options
        return options.repetition_penalty != 1 or options.presence_penalty != 0 or options.frequency_penalty != 0

    @property
    def biased(self) -> bool:
        return bool(self.options.logit_bias) or self.options.min_new_tokens > 0


@dataclass(frozen=True)
class StepOutput:
    """What steps have left in the slots at one time, on the device or on its way to the host.

    Attributes:
        numbers: (B, 4) int64: the last token, how many a sequence has, whether it failed, whether it goes on; and
            (B, 4 + ALTERNATIVES) with the most likely tokens at its place, where anybody asked.
        logprobs: (B, 1) float32 of that token, or (B, 1 + ALTERNATIVES) with those; None where nobody asked.
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

    Attributes:
        taken: slots with a sequence.
        kind: what the next step has to do.
        version: changes when tensors of the state are others.
    """

    def __init__(
        self, model: LanguageModel, pool: BlockPool, size: int, width: int, vocabulary: int, ends: abc.Sequence[int]
    ) -> None:
        self.size, self.width = size, width
        self.taken = 0
        self.kind = Kind()
        self.version = 0
        self._model, self._pool = model, pool
        self._ends = sorted(e for e in ends if 0 <= e < vocabulary)
        self._alternatives = min(ALTERNATIVES, vocabulary)
        self._entries: list[Entry] = []  # by slot
        self._views: dict[int, dict[str, torch.Tensor]] = {}  # of the state, by the number of slots
        pool.arrivals(power_of_two(size))  # what captured steps use stays where it is
        # what the host reads: `StepOutput`
        outputs = {
            "numbers": Column(torch.int64, 4 + self._alternatives),
            "logprobs": Column(torch.float32, 1 + self._alternatives),
        }
        alone = {
            "lengths": Column(torch.int32),  # tokens in the cache
            "table": Column(torch.int32, width, TRASH),
            "ends": Column(torch.int64, len(self._ends), -1),  # tokens that end it; -1 where it has none
            # for `Shaping`, as wide as the sequences that want it need
            "said": Column(torch.int64, 1),
            "biased": Column(torch.int64, 1),
            "bias": Column(torch.float32, 1),
        }
        self._state = SlotState(PACKED | outputs, alone, size, model.device)
        # slots that sample; what is rounded up repeats the first of them
        self._among, self._free = (
            torch.zeros(power_of_two(size), dtype=torch.int64, device=model.device) for _ in range(2)
        )

    def add(self, entries: abc.Sequence[Entry]) -> None:
        """Take the next slots."""
        first, stop = self.taken, self.taken + len(entries)
        ends = [self._ends_of(e) for e in entries]
        columns: dict[str, abc.Sequence[object]] = {
            "lengths": [e.length for e in entries],
            "left": [e.left for e in entries],
            "counts": [len(e.said) for e in entries],
            "table": self._rows("table", [e.blocks for e in entries], TRASH),
            "seeds": [e.seed for e in entries],
            "temperature": [float(e.options.temperature) if e.samples else 1.0 for e in entries],
            "top_k": [e.options.top_k or 1 for e in entries],
            "top_p": [float(e.options.top_p) for e in entries],
            "min_p": [float(e.options.min_p) for e in entries],
            "repetition": [float(e.options.repetition_penalty or 1) for e in entries],
            "presence": [float(e.options.presence_penalty) for e in entries],
            "frequency": [float(e.options.frequency_penalty) for e in entries],
            "least": [e.options.min_new_tokens for e in entries],
            "active": [True] * len(entries),
            "ends": self._rows("ends", ends, -1),
        }
        if any(e.penalised for e in entries):
            self._widen("said", max(len(e.said) + e.left for e in entries if e.penalised))
            columns["said"] = self._rows("said", [e.said if e.penalised else () for e in entries], 0)
        if any(e.options.logit_bias for e in entries):
            bias = [e.options.logit_bias for e in entries]
            columns["biased"] = self._rows("biased", [[*map(int, b)] for b in bias], 0)
            columns["bias"] = self._rows("bias", [[*map(float, b.values())] for b in bias], 0)
        self._state.fill(first, len(entries), columns)
        self.taken = stop
        self._entries += entries
        self._changed()

    def extend(self, blocks: abc.Sequence[tuple[int, int, int]]) -> None:
        """Further blocks of sequences: slot, place in its table, and block of each."""
        if blocks:
            slots, places, numbers = upload(list(torch.tensor(blocks).T.contiguous()), self._model.device)
            self._state.columns["table"].index_put_((slots, places), numbers.int())

    def reset(self) -> None:
        """Give up all slots, whatever state they are in."""
        self._state.vacate(0, self.size)
        self.taken, self._entries = 0, []
        self._changed()

    def keep(self, slots: abc.Sequence[int]) -> None:
        """Give up all slots but these, which become the first ones in this order."""
        entries = [self._entries[slot] for slot in slots]
        if len(slots) < self.taken and slots:
            idle = {
                *(() if any(e.penalised for e in self._entries) else ("said",)),
                *(() if any(e.options.logit_bias for e in self._entries) else ("biased", "bias")),
            }
            self._state.move(slots, idle)
        self._state.vacate(len(slots), self.taken)
        self.taken, self._entries = len(slots), entries
        self._changed()

    def views(self, slots: int) -> dict[str, torch.Tensor]:
        """The state of the first slots: what a step reads and writes."""
        if slots not in self._views:
            self._views[slots] = {name: x[:slots] for name, x in self._state.columns.items()}
        return self._views[slots]

    def step(self, slots: int, width: int, kind: Kind | None = None) -> torch.Tensor:
        """Decode one token in each of the first slots; the logits (slots, V).

        Args:
            slots: how many, those without a sequence included.
            width: blocks of the longest sequence, this token included.
            kind: what to do besides, that of the sequences unless given.
        """
        logits = self.layers(slots, width)
        self.choose(logits, kind)
        return logits

    def layers(self, slots: int, width: int) -> torch.Tensor:
        """The first part of a step: the logits."""
        views = self.views(slots)
        return self._model.step(views["tokens"], views["lengths"], views["table"][:, :width], self._pool)

    def choose(self, logits: torch.Tensor, kind: Kind | None = None) -> None:
        """The second one, of the logits of the first slots."""
        views, kind = self.views(len(logits)), self.kind if kind is None else kind
        written = views["active"].clone()
        self._take(views, logits, kind, self._among[: kind.among], self._free[: kind.free])
        views["lengths"] += written

    @property
    def captured_kind(self) -> Kind | None:
        """What a captured step does where it does what the sequences want, else None; greedy, penalties or not."""
        return CAPTURED if self.kind in (Kind(), CAPTURED) else None

    def prepare_capture(self) -> None:
        """Room for what captured steps keep, and sequences that are not there in all slots: `reset` makes them go."""
        self._widen("said", SAID)
        views = self.views(self.size)
        views["active"].fill_(True)
        views["left"].fill_(2)
        views["lengths"].fill_(1)

    def begin(self, logits: torch.Tensor) -> None:
        """Decode the first token of the sequences that were added last, from their prompts' logits (S, V)."""
        first = self.taken - len(logits)
        entries = self._entries[first:]
        kind = kind_of(entries)
        among, free = upload(_sampling_rows(entries, kind), self._model.device)
        self._take({name: x[first : self.taken] for name, x in self._state.columns.items()}, logits, kind, among, free)

    def output(self) -> StepOutput:
        """What the last step has left in the slots that are taken; the next one writes over it."""
        views, more = self.views(self.taken), self._alternatives if self.kind.alternatives else 0
        return StepOutput(
            views["numbers"][:, : 4 + more], views["logprobs"][:, : 1 + more] if self.kind.logprobs else None
        )

    def _take(
        self, views: dict[str, torch.Tensor], logits: torch.Tensor, kind: Kind, among: torch.Tensor, free: torch.Tensor
    ) -> None:
        """Choose the next token of the slots of these views, and leave it in their output."""
        active, counts = views["active"], views["counts"]
        tokens, finite = self._best(logits, views, kind)
        for rows, candidates in ((among, kind.candidates), (free, 0)):
            if len(rows):
                own = {name: views[name].index_select(0, rows) for name in _OF_SAMPLING}
                scores = logits.index_select(0, rows).float()
                self._shape(scores, own, kind)
                sampling = Sampling(*(own[name] for name in Sampling._fields))
                draw = uniform(own["seeds"], own["counts"])
                found = (
                    choose_among(scores, candidates, sampling, draw)
                    if candidates
                    else choose_from_all(scores, kind.nucleus, sampling, draw)
                )
                tokens.index_copy_(0, rows, found)
        good = active & finite
        if kind.logprobs:
            logits = logits.float()
            every = logits.logsumexp(-1, keepdim=True)
            views["logprobs"][:, :1] = logits.gather(1, tokens[:, None]) - every
            if kind.alternatives:
                most, likely = logits.topk(self._alternatives)
                views["logprobs"][:, 1:] = most - every
                views["numbers"][:, 4:] = likely
        if kind.penalised:
            said = views["said"]
            place = counts.clamp(max=said.shape[1] - 1)[:, None]
            said.scatter_(1, place, torch.where(good[:, None], tokens[:, None], said.gather(1, place)))
        views["failed"] |= active & ~finite
        counts += good
        views["left"] -= good.long()
        views["tokens"].copy_(torch.where(good, tokens, views["tokens"]))
        ended = (tokens[:, None] == views["ends"]).any(-1)
        active &= finite & ~ended & (views["left"] > 0)
        views["numbers"][:, :4] = torch.stack([views["tokens"], counts, views["failed"], active], 1)

    def _best(
        self, logits: torch.Tensor, views: dict[str, torch.Tensor], kind: Kind
    ) -> tuple[torch.Tensor, torch.Tensor]:
        biased, forbids = kind.biased, kind.biased and views["ends"].shape[1] > 0
        return ops.best_token(
            logits,
            views["counts"],
            views["said"] if kind.penalised else None,
            views["repetition"],
            views["presence"],
            views["frequency"],
            views["biased"] if biased else None,
            views["bias"] if biased else None,
            views["ends"] if forbids else None,
            views["least"],
            self._pool.arrivals(len(logits)),
            backend=self._model.backend,
        )

    def _shape(self, scores: torch.Tensor, views: dict[str, torch.Tensor], kind: Kind) -> None:
        """As `ops.best_token` does, for rows of their own."""
        shaping = Shaping(scores)
        if kind.biased:
            shaping.bias(views["biased"], views["bias"])
            if views["ends"].shape[1]:
                shaping.forbid(views["ends"], views["counts"] < views["least"])
        if kind.penalised:
            shaping.penalise(
                *(views[name] for name in ("said", "counts", "repetition", "presence", "frequency")),
            )

    def _ends_of(self, entry: Entry) -> list[int]:
        """Tokens that end a sequence; one of them fills up the row."""
        own = [*self._ends, *entry.options.stop_token_ids]
        self._widen("ends", len(own))
        return own + own[:1] * (self._state.columns["ends"].shape[1] - len(own))

    def _rows(self, name: str, rows: abc.Sequence[abc.Sequence[object]], filler: int) -> list[list[object]]:
        """Rows as wide as those of the state, which grow where they have to."""
        self._widen(name, max(map(len, rows)))
        width = self._state.columns[name].shape[1]
        return [[*row, *[filler] * (width - len(row))] for row in rows]

    def _widen(self, name: str, width: int) -> None:
        held = self._state.columns[name]
        if width > held.shape[1]:
            # of ends one of them again
            filler = held[:, :1] if name == "ends" and held.shape[1] else None
            self._state.widen(name, power_of_two(width), filler)
            self._views.clear()
            self.version += 1

    def _changed(self) -> None:
        """Which slots there are has changed."""
        kind = kind_of(self._entries)
        if kind.among or kind.free:
            among, free = upload(_sampling_rows(self._entries, kind), self._model.device)
            self._among[: len(among)] = among
            self._free[: len(free)] = free
        self.kind = kind


def kind_of(entries: abc.Sequence[Entry]) -> Kind:
    """What a step of these sequences has to do."""
    among, free = ([e.options for e in entries if e.samples and bool(e.options.top_k) == few] for few in (True, False))
    return Kind(
        among=power_of_two(len(among)),
        candidates=power_of_two(max((o.top_k or 0 for o in among), default=0)),
        free=power_of_two(len(free)),
        nucleus=any(o.top_p < 1 for o in free),
        penalised=any(e.penalised for e in entries),
        biased=any(e.biased for e in entries),
        logprobs=any(e.options.logprobs for e in entries),
        alternatives=any(e.options.top_logprobs for e in entries),
    )


def power_of_two(count: int) -> int:
    """The next one; 0 of 0."""
    return 1 << (count - 1).bit_length() if count else 0


def _sampling_rows(entries: abc.Sequence[Entry], kind: Kind) -> list[torch.Tensor]:
    """Rows of those that sample, first among some tokens and then from all, as many as the kind says."""
    rows = []
    for few, count in ((True, kind.among), (False, kind.free)):
        own = [row for row, e in enumerate(entries) if e.samples and bool(e.options.top_k) == few]
        rows.append(torch.tensor(own + own[:1] * (count - len(own)), dtype=torch.int64))
    return rows

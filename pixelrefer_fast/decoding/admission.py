"""Prompts into the cache: blocks for them, prefixes that others have computed, and packed passes over the rest."""

from __future__ import annotations

from collections import abc
from itertools import accumulate

import numpy as np
import torch

from pixelrefer_fast.decoding.cache import BlockPool
from pixelrefer_fast.decoding.prefill_graphs import CapturedPrefills
from pixelrefer_fast.decoding.prefixes import Boundary, PrefixCache
from pixelrefer_fast.decoding.qwen import LanguageModel, PrefillLayout
from pixelrefer_fast.decoding.sequence import Sequence
from pixelrefer_fast.decoding.slots import Entry, Slots
from pixelrefer_fast.device.transfers import upload

Part = tuple[Sequence, int]  # a sequence, and how many of its tokens a pass computes


class OutOfBlocks(Exception):
    """Not now: others hold the blocks."""


class Admission:
    """How sequences begin, or begin again from the tokens that they have.

    Args:
        model: runs the layers.
        pool, prefixes: keys and values, and the prefixes that are kept.
        shared: shortest prefix that is worth sharing.
        captured: passes over prompts that are replayed; None: each runs as it is.
    """

    def __init__(
        self,
        model: LanguageModel,
        pool: BlockPool,
        prefixes: PrefixCache,
        shared: int,
        captured: CapturedPrefills | None = None,
    ) -> None:
        self.counts = {"passes": 0, "prefill_tokens": 0, "cached_tokens": 0, "prefix_hits": 0}
        self._model, self._pool, self._prefixes, self._shared = model, pool, prefixes, shared
        self._captured = captured

    def split(self, sequences: abc.Sequence[Sequence]) -> tuple[list[Sequence], list[Sequence]]:
        """Those to begin with, and those that share a prefix which one of the first will have computed."""
        now, later = [], []
        claimed: set[bytes] = set()
        for sequence in sequences:
            fresh = {b.key for b in self._boundaries(sequence) if b.key not in self._prefixes}
            if fresh & claimed:
                later.append(sequence)
            else:
                now.append(sequence)
                claimed |= fresh
        return now, later

    def reserve(self, sequence: Sequence, running: abc.Iterable[Sequence] = ()) -> None:
        """Give a sequence blocks to begin with, the first of them shared with others where it begins as they do.

        Args:
            sequence: without blocks.
            running: who else has some, and needs a further one now and then.

        Raises:
            OutOfBlocks: there are not enough now.
            torch.OutOfMemoryError: the cache has to grow and cannot.
        """
        pool = self._pool
        spare = sum(len(s.blocks) < pool.needed(s.prompt_tokens + s.limit) for s in running)
        length, found = self._prefixes.longest(self._boundaries(sequence))
        pool.hold(found)
        try:
            try:
                own = self._allocate(sequence, length, spare)
            except OutOfBlocks:
                # the block that a prefix ends in may be the one too many
                pool.release(found)
                length, found = 0, ()
                own = self._allocate(sequence, length, spare)
        except BaseException:
            pool.release(found)
            raise
        whole = length // pool.size
        sequence.blocks = [*found[:whole], *own]
        sequence.cached_tokens = sequence.computed = length
        if found[whole:]:
            # the block that the prefix ends in goes on differently here
            rows = np.arange(length % pool.size)
            sources, targets = upload(
                [torch.from_numpy(rows + block * pool.size) for block in (found[whole], own[0])], self._model.device
            )
            pool.copy(sources, targets)
            pool.release(found[whole:])

    def _allocate(self, sequence: Sequence, length: int, spare: int) -> list[int]:
        """Blocks for the first step, without those that a prefix of this length fills."""
        missing = self._pool.needed(_rows(sequence, len(sequence.tokens) + 1)) - length // self._pool.size
        self._make_room(missing + spare)
        return self._pool.allocate(missing)

    def short(self, sequence: Sequence) -> bool:
        """Whether a running sequence's next step may need a further block."""
        return len(sequence.blocks) < self._pool.needed(_rows(sequence, sequence.launched))

    def extend(self, sequence: Sequence) -> None:
        """Give it that block.

        Raises:
            OutOfBlocks: there is none.
            torch.OutOfMemoryError: the cache has to grow and cannot.
        """
        self._make_room(1)
        sequence.blocks += self._pool.allocate(1)

    def _make_room(self, blocks: int) -> None:
        """Give up kept prefixes until so many blocks are free; none where that would not do."""
        missing = blocks - self._pool.free
        if missing > 0 and missing > self._prefixes.blocks_held_alone():
            raise OutOfBlocks
        while blocks > self._pool.free:
            self._prefixes.give_up()

    def prefill(self, parts: abc.Sequence[Part], slots: Slots) -> list[Sequence]:
        """One packed pass over parts of prompts; who is complete with it gets a slot and its first token there.

        Args:
            parts: a sequence that has blocks, and how many of its missing tokens to compute.
            slots: where complete ones go on.

        Returns:
            Those that are complete.
        """
        found = [own.cached_tokens for own, _ in parts if own.computed == own.cached_tokens]
        embeds = torch.cat([self._embeds(own, own.computed, own.computed + count) for own, count in parts])
        complete = [own for own, count in parts if count == missing(own)]
        logits = self._logits(embeds, self._layout(parts))
        for sequence, count in parts:
            sequence.computed += count
            for boundary in self._boundaries(sequence):
                if boundary.length <= sequence.computed:
                    self._prefixes.keep(boundary, sequence.blocks)
        if complete:
            slots.add([_entry(sequence) for sequence in complete])
            slots.begin(logits)
        for sequence, row in zip(complete, logits, strict=True):
            sequence.launched = len(sequence.tokens) + 1
            if sequence.keep_logits:
                sequence.logits.append(row.to(torch.float32, copy=True))
        self.counts["passes"] += 1
        self.counts["prefill_tokens"] += sum(count for _, count in parts)
        self.counts["cached_tokens"] += sum(found)
        self.counts["prefix_hits"] += sum(map(bool, found))
        return complete

    def _logits(self, embeds: torch.Tensor, layout: PrefillLayout) -> torch.Tensor:
        """Of the last tokens of prompts; `embeds` is written over."""
        logits = None if self._captured is None else self._captured.logits(embeds, layout)
        return self._model.prefill(embeds, layout.to(self._model.device), self._pool) if logits is None else logits

    def _boundaries(self, sequence: Sequence) -> list[Boundary]:
        assert sequence.prompt is not None
        return [b for b in sequence.prompt.boundaries if self._shared <= b.length < sequence.prompt_tokens]

    def _embeds(self, sequence: Sequence, start: int, stop: int) -> torch.Tensor:
        """Tokens of a sequence, those of its prompt and those that it has said."""
        assert sequence.prompt is not None
        own = sequence.prompt.embeds[start:stop].to(self._model.device, self._model.dtype)
        again = sequence.tokens[max(start - sequence.prompt_tokens, 0) : max(stop - sequence.prompt_tokens, 0)]
        if not again:
            return own
        (said,) = upload([torch.tensor(again)], self._model.device)
        return torch.cat([own, self._model.embed(said)])

    def _layout(self, parts: abc.Sequence[Part]) -> PrefillLayout:
        """In host memory."""
        spans = [(own, own.computed, own.computed + count) for own, count in parts]
        queries = [count for _, count in parts]
        ends = [end for *_, end in spans]
        lasts = [end - 1 for end, (own, count) in zip(accumulate(queries), parts, strict=True) if count == missing(own)]
        tables = [
            torch.from_numpy(np.concatenate([np.arange(start, end) for _, start, end in spans])),
            torch.from_numpy(np.concatenate([self._pool.rows(s.blocks, start, end) for s, start, end in spans])),
            torch.tensor([0, *accumulate(queries)], dtype=torch.int32),
            torch.tensor([0, *accumulate(ends)], dtype=torch.int32),
            torch.tensor(lasts, dtype=torch.int64),
        ]
        if any(start for _, start, _ in spans):
            tables.append(torch.from_numpy(np.concatenate([self._pool.rows(s.blocks, 0, end) for s, _, end in spans])))
        positions, rows, cu_queries, cu_keys, last, *keys = tables
        return PrefillLayout(
            positions=positions,
            rows=rows,
            cu_queries=cu_queries,
            cu_keys=cu_keys if keys else cu_queries,
            longest_query=max(queries),
            longest_key=max(ends),
            key_rows=keys[0] if keys else None,
            last=last,
        )


def missing(sequence: Sequence) -> int:
    """Tokens of a sequence that begins, or begins again, whose keys and values are not in the cache yet."""
    return sequence.prompt_tokens + len(sequence.tokens) - sequence.computed


def _rows(sequence: Sequence, tokens: int) -> int:
    """Rows of the cache that a step needs which so many tokens precede.

    One is that of the last of them, one that of a step which the sequence computes after its end.
    """
    return sequence.prompt_tokens + min(tokens + 1, sequence.limit)


def _entry(sequence: Sequence) -> Entry:
    return Entry(
        length=sequence.computed,
        left=sequence.limit - len(sequence.tokens),
        blocks=sequence.blocks,
        said=sequence.tokens,
        options=sequence.options,
        seed=sequence.seed,
    )

"""Prompts into the cache: blocks for them, prefixes that others have computed, and packed passes over the rest."""

from __future__ import annotations

from collections import abc
from itertools import accumulate

import numpy as np
import torch

from pixelrefer_fast.decoding.cache import BlockPool
from pixelrefer_fast.decoding.prefixes import Boundary, PrefixCache
from pixelrefer_fast.decoding.qwen import LanguageModel, PrefillLayout
from pixelrefer_fast.decoding.sequence import Sequence
from pixelrefer_fast.decoding.slots import Entry, Slots
from pixelrefer_fast.device.transfers import upload


class OutOfBlocks(Exception):
    """Not now: others hold the blocks."""


class Admission:
    """How sequences begin, or begin again from the tokens that they have.

    Args:
        model: runs the layers.
        pool, prefixes: keys and values, and the prefixes that are kept.
        shared: shortest prefix that is worth sharing.
    """

    def __init__(self, model: LanguageModel, pool: BlockPool, prefixes: PrefixCache, shared: int) -> None:
        self.counts = {"passes": 0, "prefill_tokens": 0, "cached_tokens": 0, "prefix_hits": 0}
        self._model, self._pool, self._prefixes, self._shared = model, pool, prefixes, shared

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
        sequence.cached_tokens = length
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

    def prefill(self, sequences: abc.Sequence[Sequence], slots: Slots) -> None:
        """One packed pass over what is new in these sequences' prompts, and their first tokens, in slots of theirs."""
        parts = [self._embeds(sequence) for sequence in sequences]
        starts = [sequence.cached_tokens for sequence in sequences]
        ends = [start + len(part) for start, part in zip(starts, parts, strict=True)]
        logits = self._model.prefill(torch.cat(parts), self._layout(sequences, starts, ends), self._pool)
        slots.add([_entry(sequence, end) for sequence, end in zip(sequences, ends, strict=True)])
        slots.begin(logits)
        for sequence, row in zip(sequences, logits, strict=True):
            sequence.launched = len(sequence.tokens) + 1
            if sequence.keep_logits:
                sequence.logits.append(row.to(torch.float32, copy=True))
            for boundary in self._boundaries(sequence):
                self._prefixes.keep(boundary, sequence.blocks)
        self.counts["passes"] += 1
        self.counts["prefill_tokens"] += sum(map(len, parts))
        self.counts["cached_tokens"] += sum(starts)
        self.counts["prefix_hits"] += sum(map(bool, starts))

    def _boundaries(self, sequence: Sequence) -> list[Boundary]:
        assert sequence.prompt is not None
        return [b for b in sequence.prompt.boundaries if self._shared <= b.length < sequence.prompt_tokens]

    def _embeds(self, sequence: Sequence) -> torch.Tensor:
        """What of a sequence is not in the cache yet."""
        assert sequence.prompt is not None
        own = sequence.prompt.embeds[sequence.cached_tokens :].to(self._model.device, self._model.dtype)
        if not sequence.tokens:
            return own
        (said,) = upload([torch.tensor(sequence.tokens)], self._model.device)
        return torch.cat([own, self._model.embed(said)])

    def _layout(
        self, sequences: abc.Sequence[Sequence], starts: abc.Sequence[int], ends: abc.Sequence[int]
    ) -> PrefillLayout:
        spans = list(zip(sequences, starts, ends, strict=True))
        queries = [end - start for start, end in zip(starts, ends, strict=True)]
        tables = [
            torch.from_numpy(np.concatenate([np.arange(start, end) for _, start, end in spans])),
            torch.from_numpy(np.concatenate([self._pool.rows(s.blocks, start, end) for s, start, end in spans])),
            torch.tensor([0, *accumulate(queries)], dtype=torch.int32),
            torch.tensor([0, *accumulate(ends)], dtype=torch.int32),
            torch.tensor([*accumulate(queries)]) - 1,
        ]
        if any(starts):
            tables.append(torch.from_numpy(np.concatenate([self._pool.rows(s.blocks, 0, end) for s, _, end in spans])))
        positions, rows, cu_queries, cu_keys, last, *keys = upload(tables, self._model.device)
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


def _rows(sequence: Sequence, tokens: int) -> int:
    """Rows of the cache that a step needs which so many tokens precede.

    One is that of the last of them, one that of a step which the sequence computes after its end.
    """
    return sequence.prompt_tokens + min(tokens + 1, sequence.limit)


def _entry(sequence: Sequence, length: int) -> Entry:
    return Entry(
        length=length,
        left=sequence.limit - len(sequence.tokens),
        blocks=sequence.blocks,
        said=sequence.tokens,
        options=sequence.options,
        seed=sequence.seed,
    )

"""Prompts into the cache: blocks for them, beginnings that others have computed, and packed passes over the rest."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch

from pixelrefer_fast.decoding.cache import BlockPool
from pixelrefer_fast.decoding.lanes import Entry, Kind, Lanes
from pixelrefer_fast.decoding.prefixes import Boundary, PrefixCache
from pixelrefer_fast.decoding.qwen import LanguageModel, Packing
from pixelrefer_fast.decoding.sequence import Ticket
from pixelrefer_fast.device.transfers import upload


class OutOfBlocks(Exception):
    """Not now: others hold the blocks."""


class Admission:
    """How tickets begin, or begin again from the tokens that they have.

    Args:
        model: runs the layers.
        pool, prefixes: keys and values, and the beginnings that are kept.
        shared: shortest beginning that is worth sharing.
    """

    def __init__(self, model: LanguageModel, pool: BlockPool, prefixes: PrefixCache, shared: int) -> None:
        self.counts = {"passes": 0, "prefill_tokens": 0, "cached_tokens": 0, "prefix_hits": 0}
        self._model, self._pool, self._prefixes, self._shared = model, pool, prefixes, shared

    def split(self, tickets: Sequence[Ticket]) -> tuple[list[Ticket], list[Ticket]]:
        """Those to begin with, and those that share a beginning which one of the first will have computed."""
        now, later = [], []
        claimed: set[bytes] = set()
        for ticket in tickets:
            fresh = {b.key for b in self._boundaries(ticket) if b.key not in self._prefixes}
            if fresh & claimed:
                later.append(ticket)
            else:
                now.append(ticket)
                claimed |= fresh
        return now, later

    def reserve(self, ticket: Ticket) -> None:
        """Give a ticket all blocks that it can need, the first of them shared with others where it begins as they do.

        Raises:
            OutOfBlocks: there are not enough now.
            torch.OutOfMemoryError: the cache has to grow and cannot.
        """
        pool = self._pool
        length, found = self._prefixes.longest(self._boundaries(ticket))
        pool.hold(found)
        try:
            try:
                own = self._allocate(ticket, length)
            except OutOfBlocks:
                # the block that a beginning ends in may be the one too many
                pool.release(found)
                length, found = 0, ()
                own = self._allocate(ticket, length)
        except BaseException:
            pool.release(found)
            raise
        whole = length // pool.size
        ticket.blocks = [*found[:whole], *own]
        ticket.cached_tokens = length
        if found[whole:]:
            # the block that the beginning ends in goes on differently here
            rows = np.arange(length % pool.size)
            sources, targets = upload(
                [torch.from_numpy(rows + block * pool.size) for block in (found[whole], own[0])], self._model.device
            )
            pool.copy(sources, targets)
            pool.release(found[whole:])

    def _allocate(self, ticket: Ticket, length: int) -> list[int]:
        """Blocks for all of a ticket but those that a beginning of this length fills."""
        missing = self._pool.needed(ticket.prompt_tokens + ticket.limit) - length // self._pool.size
        while missing > self._pool.free:
            if not self._prefixes.give_up():
                raise OutOfBlocks
        return self._pool.allocate(missing)

    def prefill(self, tickets: Sequence[Ticket], lanes: Lanes, kind: Kind) -> None:
        """One packed pass over what is new in these tickets' prompts, and their first tokens, in lanes of theirs."""
        parts = [self._embeds(ticket) for ticket in tickets]
        starts = [ticket.cached_tokens for ticket in tickets]
        ends = [start + len(part) for start, part in zip(starts, parts, strict=True)]
        logits = self._model.prefill(torch.cat(parts), self._packing(tickets, starts, ends), self._pool)
        lanes.add([_entry(ticket, end) for ticket, end in zip(tickets, ends, strict=True)])
        lanes.begin(logits, kind)
        for ticket, row in zip(tickets, logits, strict=True):
            ticket.launched = len(ticket.tokens) + 1
            if ticket.keep_logits:
                ticket.logits.append(row.clone())
            for boundary in self._boundaries(ticket):
                self._prefixes.keep(boundary, ticket.blocks)
        self.counts["passes"] += 1
        self.counts["prefill_tokens"] += sum(map(len, parts))
        self.counts["cached_tokens"] += sum(starts)
        self.counts["prefix_hits"] += sum(map(bool, starts))

    def _boundaries(self, ticket: Ticket) -> list[Boundary]:
        assert ticket.prompt is not None
        return [b for b in ticket.prompt.boundaries if self._shared <= b.length < ticket.prompt_tokens]

    def _embeds(self, ticket: Ticket) -> torch.Tensor:
        """What of a ticket is not in the cache yet."""
        assert ticket.prompt is not None
        own = ticket.prompt.embeds[ticket.cached_tokens :].to(self._model.device, self._model.dtype)
        if not ticket.tokens:
            return own
        (said,) = upload([torch.tensor(ticket.tokens)], self._model.device)
        return torch.cat([own, self._model.embed(said)])

    def _packing(self, tickets: Sequence[Ticket], starts: Sequence[int], ends: Sequence[int]) -> Packing:
        spans = list(zip(tickets, starts, ends, strict=True))
        queries = [end - start for start, end in zip(starts, ends, strict=True)]
        tables = [
            torch.from_numpy(np.concatenate([np.arange(start, end) for _, start, end in spans])),
            torch.from_numpy(np.concatenate([self._pool.rows(t.blocks, start, end) for t, start, end in spans])),
            torch.tensor([0, *accumulate(queries)], dtype=torch.int32),
            torch.tensor([0, *accumulate(ends)], dtype=torch.int32),
            torch.tensor([*accumulate(queries)]) - 1,
        ]
        if any(starts):
            tables.append(torch.from_numpy(np.concatenate([self._pool.rows(t.blocks, 0, end) for t, _, end in spans])))
        positions, rows, cu_queries, cu_keys, last, *keys = upload(tables, self._model.device)
        return Packing(
            positions=positions,
            rows=rows,
            cu_queries=cu_queries,
            cu_keys=cu_keys if keys else cu_queries,
            longest_query=max(queries),
            longest_key=max(ends),
            key_rows=keys[0] if keys else None,
            last=last,
        )


def _entry(ticket: Ticket, length: int) -> Entry:
    return Entry(
        length=length,
        left=ticket.limit - len(ticket.tokens),
        blocks=ticket.blocks,
        said=ticket.tokens,
        temperature=float(ticket.options.temperature),
        top_p=float(ticket.options.top_p),
        seed=ticket.seed,
    )

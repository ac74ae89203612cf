"""Packed prompts -> logits and the cache, as captured computations (`device/graphs.py`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from pixelrefer_fast.decoding.cache import TRASH, BlockPool
from pixelrefer_fast.decoding.qwen import LanguageModel, PrefillLayout
from pixelrefer_fast.decoding.step_graphs import StepKey
from pixelrefer_fast.device import trust
from pixelrefer_fast.device.graphs import GraphStore
from pixelrefer_fast.device.static_tables import StaticTables, TableShape

# Tokens of a pass, the largest first. Prompts of more keep a device busy for longer than the host takes to issue them:
# of a 2B model 1,024 are 3 TFLOP.
LADDER = (1024, 512, 256, 192, 128, 64)
SHORTEST = 32  # tokens of a prompt, on average, for which a pass has room
KNOWN = 2048  # tokens that are in the cache already, of all prompts together


@dataclass(frozen=True)
class PrefillSizes:
    """What a captured pass over prompts has room for.

    Attributes:
        tokens: that are computed.
        sequences: prompts, or parts of them.
        keys: tokens of all prompts, those in the cache included.
    """

    tokens: int
    sequences: int
    keys: int

    def hold(self, layout: PrefillLayout) -> bool:
        """Whether there is room for such a pass."""
        keys = len(layout.rows if layout.key_rows is None else layout.key_rows)
        return (
            len(layout.positions) <= self.tokens and len(layout.cu_queries) - 1 <= self.sequences and keys <= self.keys
        )


def prefill_sizes() -> Iterator[PrefillSizes]:
    """All sizes, the largest first."""
    for tokens in LADDER:
        yield PrefillSizes(tokens, max(tokens // SHORTEST, 1), tokens + KNOWN)


class CapturedPrefills:
    """The passes of `prefill_sizes`, captured by `warm_up`.

    Tokens that are padding are one more sequence, without keys: they see nothing, stay finite, and write to the block
    for trash. Keys are always read from the cache, which has the same bits.

    Args:
        model: runs the layers.
        pool: the cache, which moves no more.
        steps: captured steps, which are given up together with these and may keep what these leave of the limit.
        limit_bytes: of device memory that the captures may keep, buffers included.
    """

    def __init__(self, model: LanguageModel, pool: BlockPool, steps: GraphStore[StepKey], limit_bytes: int) -> None:
        self._model, self._pool, self._steps, self._limit = model, pool, steps, limit_bytes
        self._sizes = list(prefill_sizes())
        self.store: GraphStore[PrefillSizes] = GraphStore(limit_bytes)
        self._embeds: torch.Tensor | None = None  # (L, C) of the largest pass
        self._tables: dict[PrefillSizes, StaticTables] = {}
        self._buffer_bytes = 0
        self._captured_with = (-1, -1)  # versions of the model's weights and of the cache's tensors

    def held_bytes(self) -> int:
        """Of graphs and buffers."""
        return self.store.held_bytes() + self._buffer_bytes

    def _room(self) -> int:
        """What is left of the limit."""
        return max(self._limit - self.held_bytes(), 0)

    def logits(self, embeds: torch.Tensor, layout: PrefillLayout) -> torch.Tensor | None:
        """As `LanguageModel.prefill`, the layout in host memory; None where no captured pass has room for it.

        The next pass writes over the result.
        """
        if self._embeds is None:
            return None
        if (self._model.look_up(), self._pool.version) != self._captured_with:
            self.store.clear()
            self._steps.clear()
            self._embeds, self._tables, self._buffer_bytes = None, {}, 0
            trust.dropped("modules of the language model, their weights or the cache were moved")
            return None
        sizes = next((s for s in reversed(self._sizes) if s in self.store and s.hold(layout)), None)
        if sizes is None:
            return None
        self._fill(sizes, embeds, layout)
        logits = self.store.replay(sizes)
        assert logits is not None
        return logits[: len(layout.last)]

    def warm_up(self) -> None:
        """Capture all passes that have not been, the largest first.

        Raises:
            torch.OutOfMemoryError: there is no memory for buffers or a capture; those before it stay.
        """
        model, pool = self._model, self._pool
        if self._embeds is None:
            self._allocate()
        if self._embeds is None:
            return
        self._captured_with = (model.look_up(), pool.version)
        for sizes in self._sizes:
            first, stop = pool.size, pool.size + sizes.tokens  # rows behind the block for trash
            if stop > pool.blocks * pool.size:
                continue  # prompts so long would not fit
            self._fill(sizes, model.embed(torch.arange(sizes.tokens, device=model.device) % 97), _example(sizes, first))
            state = {"embeds": self._embeds[: sizes.tokens]}
            for layer, (keys, values) in enumerate(zip(pool.keys, pool.values, strict=True)):
                state |= {f"keys {layer}": keys.flatten(0, 1)[first:stop]}
                state |= {f"values {layer}": values.flatten(0, 1)[first:stop]}
            self.store.capture(sizes, lambda sizes=sizes: self.compute(sizes), state, model.device)  # type: ignore[misc]
        self._steps.limit_bytes = self._room()

    def compute(self, sizes: PrefillSizes) -> torch.Tensor:
        """What is captured: (S, V) logits of what lies in the buffers; nothing of it comes from the host."""
        assert self._embeds is not None
        tables = self._tables[sizes].views
        layout = PrefillLayout(
            positions=tables["positions"],
            rows=tables["rows"],
            cu_queries=tables["cu_queries"],
            cu_keys=tables["cu_keys"],
            longest_query=sizes.tokens,
            longest_key=sizes.keys,
            key_rows=tables["key_rows"],
            last=tables["last"],
        )
        return self._model.prefill(self._embeds[: sizes.tokens], layout, self._pool)

    @torch.inference_mode(False)  # buffers that live on are written to in every mode
    def _allocate(self) -> None:
        """Make the buffers, if there is room for them."""
        model = self._model
        tokens, width = self._sizes[0].tokens, model.config.hidden_size
        shapes = {sizes: _shapes(sizes) for sizes in self._sizes}
        longest = max(map(StaticTables.bytes_of, shapes.values()))
        needed = tokens * width * model.dtype.itemsize + longest
        if needed > self._limit:
            return
        self._embeds = torch.zeros(tokens, width, dtype=model.dtype, device=model.device)
        buffer = torch.zeros(longest, dtype=torch.uint8, device=model.device)
        self._tables = {sizes: StaticTables(own, buffer) for sizes, own in shapes.items()}
        self._buffer_bytes = needed
        self.store.limit_bytes = self._room()

    def _fill(self, sizes: PrefillSizes, embeds: torch.Tensor, layout: PrefillLayout) -> None:
        assert self._embeds is not None
        tokens = len(embeds)
        self._embeds[:tokens] = embeds
        self._embeds[tokens : sizes.tokens] = 0  # a layer that met what lay there might leave what is not finite
        key_rows = layout.rows if layout.key_rows is None else layout.key_rows
        given = {
            "positions": layout.positions,
            "rows": layout.rows,
            "cu_queries": layout.cu_queries,
            "cu_keys": layout.cu_keys,
            "key_rows": key_rows,
            "last": layout.last,
        }
        trash = TRASH * self._pool.size
        padding = {"rows": trash, "cu_queries": sizes.tokens, "cu_keys": len(key_rows), "key_rows": trash}
        self._tables[sizes].fill(given, padding)


def _shapes(sizes: PrefillSizes) -> dict[str, TableShape]:
    """The tables of a pass; one sequence more is of its padding."""
    return {
        "positions": TableShape((sizes.tokens,), torch.int64),
        "rows": TableShape((sizes.tokens,), torch.int64),
        "cu_queries": TableShape((sizes.sequences + 2,), torch.int32),
        "cu_keys": TableShape((sizes.sequences + 2,), torch.int32),
        "key_rows": TableShape((sizes.keys,), torch.int64),
        "last": TableShape((sizes.sequences,), torch.int64),
    }


def _example(sizes: PrefillSizes, first: int) -> PrefillLayout:
    """Prompts of one length that leave no room, their rows of the cache from `first` on."""
    length = sizes.tokens // sizes.sequences
    places = torch.arange(sizes.tokens)
    offsets = (torch.arange(sizes.sequences + 1) * length).int()
    return PrefillLayout(
        positions=places % length,
        rows=places + first,
        cu_queries=offsets,
        cu_keys=offsets,
        longest_query=length,
        longest_key=length,
        key_rows=None,
        last=offsets[1:].long() - 1,
    )

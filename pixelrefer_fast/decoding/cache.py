"""Keys and values of all sequences, in blocks of so many tokens each.

A sequence has a list of blocks. What is in a block is never changed while anybody holds it, only added to behind, so
that several sequences may hold the blocks of a common prefix. Memory grows as it is needed, up to a limit.
"""

from __future__ import annotations

from collections import abc
from collections.abc import Iterable

import numpy as np
import torch

from pixelrefer_fast.device.memory import free_memory
from pixelrefer_fast.device.transfers import upload

TRASH = 0  # the block that sequences without any write to
FIRST_BLOCKS = 64
SHARE = {"cuda": 0.8, "cpu": 0.25}  # of the free memory that the cache may take


class BlockPool:
    """Blocks of keys and values, counted by who holds them.

    Args:
        layers, heads, head_dim: of the model; heads are those of keys and values.
        dtype, device: of the model.
        size: tokens of a block.
        limit_bytes: of all blocks together.

    Attributes:
        keys, values: (blocks, size, heads, head_dim) of each layer. Rows that nobody has written are zero.
        blocks: how many there are now, the one for trash included.
        version: changes when `keys` and `values` are other tensors.
        device, dtype: of the model.
    """

    def __init__(
        self,
        layers: int,
        heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        size: int,
        limit_bytes: int,
    ) -> None:
        self.size = size
        self.block_bytes = 2 * layers * size * heads * head_dim * dtype.itemsize
        self.limit = max(limit_bytes // self.block_bytes, 2)
        self.version = 0
        self.blocks = 0
        self.dtype, self.device = dtype, device
        self._shape = (size, heads, head_dim)
        self._holders: dict[int, int] = {}
        self._free: list[int] = []
        self._soiled: set[int] = set()
        self._arrivals = torch.zeros(0, dtype=torch.int32, device=device)
        self.keys, self.values = ([self._zeros(0) for _ in range(layers)] for _ in range(2))

    @property
    def held_bytes(self) -> int:
        return self.blocks * self.block_bytes

    @property
    def free(self) -> int:
        """Blocks that could be had: those that nobody holds, and those that memory may still grow by."""
        return self.limit - 1 - len(self._holders)

    def needed(self, tokens: int) -> int:
        """Blocks of so many tokens."""
        return -(-tokens // self.size)

    def allocate(self, count: int) -> list[int]:
        """Blocks of finite numbers, held once.

        Raises:
            MemoryError: there are not so many within the limit.
            torch.OutOfMemoryError: memory cannot grow.
        """
        if count > self.free:
            raise MemoryError(f"cache: expected at most {self.free} free blocks, got a need of {count}")
        if count > len(self._free):
            self._grow(count - len(self._free))
        taken = [self._free.pop() for _ in range(count)]
        self._holders |= dict.fromkeys(taken, 1)
        soiled = [b for b in taken if b in self._soiled]
        if soiled:
            (index,) = upload([torch.tensor(soiled)], self.device)
            for held in (*self.keys, *self.values):
                held.index_fill_(0, index, 0)
            self._soiled.difference_update(soiled)
        return taken

    def fix(self, blocks: int) -> None:
        """Take so many blocks now, or all up to the limit, and no more later: `keys` and `values` move no more.

        Raises:
            torch.OutOfMemoryError: there is no memory for them.
        """
        self.limit = max(min(self.limit, blocks), self.blocks)
        if self.blocks < self.limit:
            self._grow(self.limit - self.blocks)

    def soil(self, blocks: Iterable[int]) -> None:
        """Blocks that may hold numbers that are not finite: those would reach sums even where they are masked out.

        They are made zero before they are handed out again.
        """
        self._soiled.update(blocks)

    def holders(self, block: int) -> int:
        """How many hold a block."""
        return self._holders.get(block, 0)

    def hold(self, blocks: Iterable[int]) -> None:
        """Count one holder more."""
        for block in blocks:
            self._holders[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """Count one holder less; blocks without any are free."""
        for block in blocks:
            self._holders[block] -= 1
            if not self._holders[block]:
                del self._holders[block]
                self._free.append(block)

    def rows(self, blocks: abc.Sequence[int], start: int, stop: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Rows of a sequence's tokens from start to stop."""
        token = np.arange(start, stop)
        return np.asarray(blocks, np.int64)[token // self.size] * self.size + token % self.size

    def write(self, layer: int, rows: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """(n, heads, head_dim) each, to n rows."""
        self.keys[layer].flatten(0, 1).index_copy_(0, rows, keys)
        self.values[layer].flatten(0, 1).index_copy_(0, rows, values)

    def read(self, layer: int, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (
            self.keys[layer].flatten(0, 1).index_select(0, rows),
            self.values[layer].flatten(0, 1).index_select(0, rows),
        )

    def copy(self, sources: torch.Tensor, targets: torch.Tensor) -> None:
        """Rows to other rows, in all layers."""
        for held in (*self.keys, *self.values):
            own = held.flatten(0, 1)
            own.index_copy_(0, targets, own.index_select(0, sources))

    def arrivals(self, sequences: int) -> torch.Tensor:
        """Those of `ops.paged_attention`, for so many sequences; the same tensor for fewer afterwards."""
        if len(self._arrivals) < sequences * self._shape[1]:
            self._arrivals = torch.zeros(sequences * self._shape[1], dtype=torch.int32, device=self.device)
        return self._arrivals

    def clear(self) -> None:
        """Give all memory back.

        Raises:
            RuntimeError: somebody holds blocks.
        """
        if self._holders:
            raise RuntimeError(f"cache: expected no blocks in use, got {len(self._holders)}")
        self._free, self._soiled, self.blocks = [], set(), 0
        for held in (self.keys, self.values):
            held[:] = [self._zeros(0) for _ in held]
        self.version += 1

    def _zeros(self, blocks: int) -> torch.Tensor:
        return torch.zeros((blocks, *self._shape), dtype=self.dtype, device=self.device)

    def _grow(self, missing: int) -> None:
        """By half at least, so that growing seldom happens, and within the limit.

        One tensor after the other: old and new memory is held of one layer's keys or values at a time.
        """
        before = self.blocks
        wanted = max(before + missing + (not before), before + before // 2, FIRST_BLOCKS)
        after = min(wanted, self.limit)
        self.version += 1
        for held in (self.keys, self.values):
            for layer in range(len(held)):
                new = self._zeros(after)
                new[:before] = held[layer][:before]
                held[layer] = new
        self.blocks = after
        first = max(before, TRASH + 1)
        self._free = [*range(after - 1, first - 1, -1), *self._free]


def default_limit(device: torch.device) -> int:
    """Bytes that a cache may take by default: a share of what is free now."""
    return int(SHARE.get(device.type, SHARE["cpu"]) * free_memory(device))

"""The data of a stage: items of several sources, their cost, and how they are packed into batches."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch.utils.data import Dataset, Sampler

from pixelrefer_fast.checkpoint.config import ModelConfig
from pixelrefer_fast.train.batch import Sample, collate
from pixelrefer_fast.train.malformed import Malformed, MalformedError, MalformedLog

MOST_IN_A_ROW = 100
"""Items tried in place of malformed ones before a batch is given up."""


class Source(Protocol):
    """A sequence of items, each a few samples about one image or video."""

    costs: np.ndarray  # (N,) int64: about how many tokens the LLM reads of each

    def __getitem__(self, index: int) -> list[Sample]:
        """Raises ValueError for an item that cannot be read."""

    def malformed(self, index: int, reason: str) -> Malformed:
        """The report about an item that cannot be read."""


@dataclass(frozen=True)
class Item:
    """One item as read. A malformed item has no samples and has already been reported."""

    index: int
    samples: list[Sample]


class Items(Dataset[Item]):
    """The items of all sources of a stage, one source after the other; a source may be repeated within a pass."""

    def __init__(self, sources: Sequence[tuple[Source, int]], log: MalformedLog) -> None:
        """
        Args:
            sources: each source, and how often a pass takes its items.
            log: log for malformed items.

        Raises:
            ValueError: there are no items.
        """
        self._sources = [source for source, repeat in sources for _ in range(repeat)]
        self._first = np.cumsum([0, *(len(source.costs) for source in self._sources)])
        self._log = log
        self.costs = np.concatenate([source.costs for source in self._sources]) if sources else np.zeros(0, np.int64)
        if not len(self.costs):
            raise ValueError("data: expected at least one sample to learn from, got none")

    def __len__(self) -> int:
        return len(self.costs)

    def _locate(self, index: int) -> tuple[Source, int]:
        number = int(np.searchsorted(self._first, index, side="right")) - 1
        return self._sources[number], index - int(self._first[number])

    def __getitem__(self, index: int) -> Item:
        source, own = self._locate(index)
        try:
            return Item(index, source[own])
        except (ValueError, OSError) as error:
            self.report(index, str(error))
            return Item(index, [])

    def report(self, index: int, reason: str) -> None:
        source, own = self._locate(index)
        self._log.add(source.malformed(own, reason))


class TokenBatches(Sampler[list[int]]):
    """Batches of items in an order set by seed and pass, each filled up to a budget of tokens.

    Passes follow each other as one stream; a batch may hold items from the end of one pass and the start of the next.
    """

    def __init__(
        self,
        costs: np.ndarray,
        budget: int,
        most: int | None,
        batches: int | None,
        passes: float | None,
        seed: int,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        """
        Args:
            costs: (N,) tokens of each item.
            budget: most tokens of a batch with more than one item.
            most: most items of a batch.
            batches: number of batches for each process; None if `passes` is given.
            passes: passes over the items, fractions too; None if `batches` is given.
            seed: seed of the order.
            process: number of this process.
            processes: number of processes; each takes its share of the batches.
        """
        self._costs, self._budget, self._most, self._seed = costs, budget, most, seed
        self._process, self._processes = process, processes
        self._last = None if passes is None else max(1, round(passes * len(costs)))
        self._taken: list[int] = [0]  # items in the first so many batches of all processes
        if batches is None:
            total = sum(1 for _ in self._filled())
            batches = max(1, total // processes)
        self._batches = batches

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[list[int]]:
        self._taken = [0]
        stop = self._batches * self._processes
        for number, batch in enumerate(self._filled()):
            if number == stop:
                return
            self._taken.append(self._taken[-1] + len(batch))
            if number % self._processes == self._process:
                yield batch

    def passes_after(self, batches: int) -> float:
        """Passes over the items once this many batches of each process have been drawn."""
        return self._taken[min(batches * self._processes, len(self._taken) - 1)] / len(self._costs)

    def _filled(self) -> Iterator[list[int]]:
        batch: list[int] = []
        tokens = 0
        for index in self._stream():
            cost = int(self._costs[index])
            if batch and (tokens + cost > self._budget or len(batch) == self._most):
                yield batch
                batch, tokens = [], 0
            batch.append(index)
            tokens += cost
        if batch:
            yield batch

    def _stream(self) -> Iterator[int]:
        """Items pass after pass; without end where the number of batches is what counts."""
        count, number = 0, 0
        while True:
            order = np.random.default_rng([self._seed, number]).permutation(len(self._costs))
            for index in order.tolist():
                if count == self._last:
                    return
                count += 1
                yield index
            number += 1


def begin_worker(number: int) -> None:
    """What a process that reads items does first, as `worker_init_fn`: it leaves alone what it inherited.

    Its parent may have decoded videos. FFmpeg's converters, freed by the garbage collector, would wait for threads that
    a fork does not take along.
    """
    gc.freeze()


class Collator:
    """Packs items into one batch. Items that cannot be packed are reported; others replace them in an empty batch."""

    def __init__(self, items: Items, config: ModelConfig, tokenizer: Any, kmeans_seed: int | None) -> None:
        self._items, self._config, self._tokenizer, self._kmeans_seed = items, config, tokenizer, kmeans_seed

    def __call__(self, items: Sequence[Item]) -> dict[str, Any]:
        """
        Returns:
            What `train.batch.collate` returns.

        Raises:
            ValueError: a hundred items in a row are malformed.
        """
        readable = [item for item in items if item.samples]
        try:
            if readable:
                return self._packed(readable)
        except MalformedError:
            raise
        except ValueError:
            readable = [item for item in readable if self._packs(item)]
            if readable:
                return self._packed(readable)
        for step in range(1, MOST_IN_A_ROW + 1):
            item = self._items[(items[-1].index + step) % len(self._items)]
            if item.samples and self._packs(item):
                return self._packed([item])
        raise ValueError(
            f"data: expected a sample that can be learnt from, the {MOST_IN_A_ROW} after item {items[-1].index} are "
            "malformed as well"
        )

    def _packs(self, item: Item) -> bool:
        try:
            self._packed([item])
        except ValueError as error:
            self._items.report(item.index, str(error))
            return False
        return True

    def _packed(self, items: Sequence[Item]) -> dict[str, Any]:
        packed = collate([item.samples for item in items], self._config, self._tokenizer, self._kmeans_seed)
        longest, room = packed["batch"].longest_key, self._config.llm["max_position_embeddings"]
        if longest > room:
            raise ValueError(f"expected at most {room} tokens in a conversation, got {longest}")
        return packed

"""Bytes that a block of code has alive: at the most, and at its end."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass
class Memory:
    """Bytes.

    Attributes:
        start: when the block began.
        peak: at the most within it.
        final: when it ended.
    """

    start: int = 0
    peak: int = 0
    final: int = 0


@contextmanager
def watching(device: torch.device | str, tensors: Iterable[torch.Tensor] = ()) -> Iterator[Memory]:
    """Watch memory during the block; the numbers are there when it has ended.

    On a CUDA device they are what torch has allocated there, whoever holds it. On a CPU they are the bytes of all
    tensors that are made within the block, for as long as they live, and of `tensors` (a model's weights, say); what
    libraries take for themselves is not seen there.
    """
    device, memory = torch.device(device), Memory()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        memory.start = torch.cuda.memory_allocated(device)
        try:
            yield memory
        finally:
            torch.cuda.synchronize(device)
            memory.peak, memory.final = torch.cuda.max_memory_allocated(device), torch.cuda.memory_allocated(device)
        return
    alive = _Alive(tensors)
    memory.start = alive.now
    try:
        with alive:
            yield memory
    finally:
        memory.peak, memory.final = alive.peak, alive.now


class _Alive(TorchDispatchMode):
    """Bytes of the tensors that are alive, whoever made them within the block, and of those given."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._storages: set[int] = set()
        for tensor in tensors:
            self._add(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf)
        return result

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if id(storage) not in self._storages:
            # a storage keeps its Python object for as long as it lives
            self._storages.add(id(storage))
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._freed, id(storage), storage.nbytes())

    def _freed(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self.now -= size

"""Whether weights are those of the last time: what was made of them and captured with them holds no longer."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

WeightsState = tuple[tuple[int, int, torch.dtype], ...]


class WatchedWeights:
    """The parameters of some modules.

    `nn.Module.parameters` takes a millisecond for a small model and `state` is asked for with every request, so that
    the modules are walked again only where one has others than before.

    Args:
        modules: whose parameters, and those of whatever is within.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._roots = list(modules)
        self._tree: list[tuple[nn.Module, list[nn.Module | None]]] = []

    def state(self) -> WeightsState:
        """Address, number of writes and dtype of each; writes through `.data` PyTorch tells nobody of."""
        if not self._tree or any(list(module._modules.values()) != own for module, own in self._tree):
            walked = dict.fromkeys(module for root in self._roots for module in root.modules())
            self._tree = [(module, list(module._modules.values())) for module in walked]
        held = (p for module, _ in self._tree for p in module._parameters.values() if p is not None)
        return tuple((p.data_ptr(), 0 if p.is_inference() else p._version, p.dtype) for p in held)

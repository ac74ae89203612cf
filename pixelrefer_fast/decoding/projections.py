"""Products that share their input, as one: queries with keys and values, gate with up.

Weights are laid one behind the other in memory, where each module's own is a view, so that nothing is held twice and
whoever writes to a module's weight writes to the merged one. Quantised weights are joined part by part (`joined.py`),
and adapters are added to the one product of the layers that they belong to (`adapters.py`). Any other module, or one
whose weight was moved since, is computed by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from pixelrefer_fast.decoding.adapters import Beside, apart, joinable, state_of
from pixelrefer_fast.decoding.joined import joined, joined_weights, places


class Projection:
    """Linear layers of one input.

    Args:
        modules: in the order of their outputs.

    Attributes:
        weight, bias: of the layers together; the weight is None where each module is computed by itself.
        plain: whether they are all that there is to it, and not quantised.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules = tuple(modules)
        layers, adapters = zip(*map(apart, modules), strict=True)
        self.weight, self.bias = _merged(layers) if joinable(adapters) else (None, None)
        self.plain = type(self.weight) is torch.Tensor and not any(adapters)
        self._beside: Beside | None = None
        self._places: list[int] = []
        if self.weight is not None:
            self._beside = Beside(adapters, [len(p) for p in _weights(layers)])
            self._places = places(_parameters(layers))

    def fits(self, modules: Sequence[nn.Module]) -> bool:
        """Whether it still is the product of these modules."""
        if any(own is not module for own, module in zip(self.modules, modules, strict=True)):
            return False
        if self._beside is None:
            return True
        layers, adapters = zip(*map(apart, modules), strict=True)
        return places(_parameters(layers)) == self._places and state_of(adapters) == self._beside.state

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(n, sum of outputs) of (n, C)."""
        if self.weight is None or self._beside is None:
            found = [module(x) for module in self.modules]
            return found[0] if len(found) == 1 else torch.cat(found, -1)
        product = F.linear(x, self.weight, self.bias)
        self._beside.add(x, product)
        return product

    def add(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x (n, outputs) and the product of y (n, C), written over x where that is one operation."""
        if self.weight is None or self._beside is None or self.bias is not None:
            return x + self(y)
        x.addmm_(y, self.weight.t())
        self._beside.add(y, x)
        return x


def _merged(layers: Sequence[nn.Module]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Weight and bias of all layers together, whose own become views of them; (None, None) where that cannot be."""
    linear = [m for m in layers if type(m) is nn.Linear]
    parameters = list(_parameters(linear))
    alike = {(p.dtype, p.device) for p in parameters}
    biased = {m.bias is not None for m in linear}
    if len(linear) < len(layers) or len(alike) > 1 or len(biased) > 1 or any(p.requires_grad for p in parameters):
        return None, None
    weight = joined_weights(_weights(linear))
    return weight, None if weight is None or biased == {False} else joined([m.bias for m in linear])


def _weights(layers: Iterable[nn.Module]) -> list[torch.Tensor]:
    return [m.weight for m in layers if isinstance(m, nn.Linear)]


def _parameters(layers: Iterable[nn.Module]) -> Iterable[torch.Tensor]:
    for layer in layers:
        if isinstance(layer, nn.Linear):
            yield layer.weight
            if layer.bias is not None:
                yield layer.bias

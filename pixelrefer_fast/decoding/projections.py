"""Products that share their input, as one: queries with keys and values, gate with up.

Weights are laid one behind the other in memory, where each module's own is a view, so that nothing is held twice and
whoever writes to a module's weight writes to the merged one. A module that is no plain linear layer (quantised, with an
adapter), or whose weight was moved since, is computed by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import nn


class Projection:
    """Linear layers of one input.

    Args:
        modules: in the order of their outputs.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules = tuple(modules)
        self.weight, self.bias = _merged(self.modules)
        self._places = [p.data_ptr() for p in _parameters(self.modules)] if self.weight is not None else []

    def fits(self, modules: Sequence[nn.Module]) -> bool:
        """Whether it still is the product of these modules."""
        if any(own is not module for own, module in zip(self.modules, modules, strict=True)):
            return False
        return self.weight is None or [p.data_ptr() for p in _parameters(self.modules)] == self._places

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(n, sum of outputs) of (n, C)."""
        if self.weight is None:
            found = [module(x) for module in self.modules]
            return found[0] if len(found) == 1 else torch.cat(found, -1)
        return F.linear(x, self.weight, self.bias)

    def add(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x (n, outputs) and the product of y (n, C), written over x where that is one operation."""
        if self.weight is None or self.bias is not None:
            return x + self(y)
        return x.addmm_(y, self.weight.t())


def _merged(modules: Sequence[nn.Module]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Weight and bias of all modules together, whose own become views of them; (None, None) where that cannot be."""
    plain = [m for m in modules if type(m) is nn.Linear and type(m.weight) is nn.Parameter]
    parameters = list(_parameters(plain))
    alike = {(p.dtype, p.device) for p in parameters}
    biased = {m.bias is not None for m in plain}
    if len(plain) < len(modules) or len(alike) > 1 or len(biased) > 1 or any(p.requires_grad for p in parameters):
        return None, None
    weight = _joined([m.weight for m in plain])
    return weight, _joined([m.bias for m in plain]) if biased == {True} else None


@torch.inference_mode(False)
@torch.no_grad()
def _joined(parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    """All rows, which the parameters are views of from now on."""
    if len(parameters) == 1:
        return parameters[0].data
    if (
        there := _laid(parameters)
    ) is not None:  # by a model that shares them: were they moved, it would lay them again
        return there
    whole = torch.cat([p.data for p in parameters])
    for parameter, rows in zip(parameters, whole.split([len(p) for p in parameters]), strict=True):
        parameter.data = rows
    return whole


def _laid(parameters: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """All rows, where they lie one behind the other in one memory already."""
    first, end = parameters[0].data, parameters[0].storage_offset()
    for parameter in parameters:
        same = parameter.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not same or not parameter.is_contiguous() or parameter.storage_offset() != end:
            return None
        end += parameter.numel()
    return first.as_strided((sum(map(len, parameters)), *first.shape[1:]), first.stride())


def _parameters(modules: Iterable[nn.Module]) -> Iterable[torch.Tensor]:
    for module in modules:
        if isinstance(module, nn.Linear):
            yield module.weight
            if module.bias is not None:
                yield module.bias

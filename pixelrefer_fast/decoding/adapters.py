"""Low-rank adapters of peft beside a product: their first halves are one product as well."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import nn

from pixelrefer_fast.decoding.joined import joined, places


@dataclass(frozen=True)
class Adapter:
    """Adds scale * (x downᵀ) upᵀ to what a layer gives."""

    down: torch.Tensor  # (r, C)
    up: torch.Tensor  # (O, r)
    scale: float


class _LoraLinear(Protocol):
    """What is used of peft.tuners.lora.layer.Linear."""

    base_layer: nn.Module
    fan_in_fan_out: bool
    disable_adapters: bool
    merged: bool
    active_adapters: Sequence[str]
    lora_A: Mapping[str, nn.Linear]
    lora_B: Mapping[str, nn.Linear]
    lora_dropout: Mapping[str, nn.Module]
    lora_variant: Mapping[str, object]
    scaling: Mapping[str, float]


def apart(module: nn.Module) -> tuple[nn.Module, tuple[Adapter, ...]]:
    """A layer of peft as it computes now: its own layer and its adapters; any other module, and none."""
    peft = sys.modules.get("peft.tuners.lora.layer")
    if peft is None or type(module) is not peft.Linear:
        return module, ()
    layer = cast("_LoraLinear", module)
    if layer.fan_in_fan_out or (layer.merged and layer.disable_adapters):
        return module, ()
    if layer.merged or layer.disable_adapters:
        return layer.base_layer, ()
    adapters = []
    for name in layer.active_adapters:
        if name not in layer.lora_A:
            continue
        down, up, dropout = layer.lora_A[name], layer.lora_B[name], layer.lora_dropout[name]
        dropped = not isinstance(dropout, nn.Identity) and dropout.training
        plain = type(down) is type(up) is nn.Linear and down.bias is None and up.bias is None
        if name in layer.lora_variant or dropped or not plain:
            return module, ()
        adapters.append(Adapter(down.weight, up.weight, float(layer.scaling[name])))
    return layer.base_layer, tuple(adapters)


class Beside:
    """Adapters of layers of one input.

    Args:
        adapters: of each layer.
        outputs: of each layer.

    Attributes:
        state: where the adapters lie, and their scales.
    """

    def __init__(self, adapters: Sequence[Sequence[Adapter]], outputs: Sequence[int]) -> None:
        self._places: list[tuple[int, int]] = []  # first and last output (exclusive) of each adapter
        self._adapters: list[Adapter] = []
        start = 0
        for own, count in zip(adapters, outputs, strict=True):
            self._places += [(start, start + count)] * len(own)
            self._adapters += own
            start += count
        downs = [a.down for a in self._adapters]
        # what learns stays where its optimizer knows it
        fixed = bool(downs) and not any(d.requires_grad for d in downs)
        self._down = joined(downs) if fixed else None
        self.state = state_of(adapters)

    def add(self, x: torch.Tensor, out: torch.Tensor) -> None:
        """To the layers' product `out` (n, outputs) of x (n, C), in place."""
        if not self._adapters:
            return
        down = torch.cat([a.down for a in self._adapters]) if self._down is None else self._down
        inner = F.linear(x.to(down.dtype), down).split([len(a.down) for a in self._adapters], -1)
        for adapter, part, (start, stop) in zip(self._adapters, inner, self._places, strict=True):
            own = out[:, start:stop]
            if own.dtype == part.dtype:
                own.addmm_(part, adapter.up.t(), alpha=adapter.scale)
            else:
                own.add_(F.linear(part, adapter.up), alpha=adapter.scale)


def state_of(adapters: Sequence[Sequence[Adapter]]) -> list[object]:
    """What tells adapters, and whose they are, from others."""
    return [[(*places((a.down, a.up)), a.scale) for a in own] for own in adapters]


def joinable(adapters: Sequence[Sequence[Adapter]]) -> bool:
    """Whether the first halves may be one product."""
    return len({(a.down.dtype, a.down.device) for own in adapters for a in own}) <= 1

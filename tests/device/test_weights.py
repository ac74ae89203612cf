"""What tells that weights were written to, moved or replaced."""

from __future__ import annotations

import torch
from torch import nn

from pixelrefer_fast.device.weights import WatchedWeights


def _modules() -> tuple[nn.Sequential, WatchedWeights]:
    modules = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 2)))
    return modules, WatchedWeights([modules])


@torch.no_grad()
def test_the_same_until_something_changes() -> None:
    modules, watched = _modules()
    seen = {watched.state()}
    assert watched.state() in seen
    inner = modules[1]
    assert isinstance(inner, nn.Sequential)

    def changed() -> bool:
        state = watched.state()
        new = state not in seen
        seen.add(state)
        return new and watched.state() == state

    modules[0].weight.add_(1)
    assert changed()
    modules.to(torch.float64)
    assert changed()
    modules[0].bias = nn.Parameter(torch.zeros(3))
    assert changed()
    inner[0] = nn.Linear(3, 2)
    assert changed()
    inner.append(nn.Linear(2, 2))
    assert changed()
    assert len(watched.state()) == 6


def test_each_parameter_once() -> None:
    shared = nn.Linear(2, 2)
    assert len(WatchedWeights([nn.Sequential(shared, shared), shared]).state()) == 2

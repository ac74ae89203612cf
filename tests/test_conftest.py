"""The test harness itself: poisoned memory really is poisoned, and the numeric bar really bars."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

ALLOCATE = """
made = [
    torch.empty(3),
    torch.empty(3, dtype=torch.bfloat16),
    torch.empty_like(torch.zeros(3)),
    torch.zeros(3).new_empty(3),
    torch.empty(3, dtype=torch.int64),
    torch.empty(3, dtype=torch.bool),
    np.empty(3, dtype=np.float32),
    np.empty(3, dtype=np.uint8),
]
"""


def _made_in(module: str) -> list:
    names: dict[str, Any] = {"__name__": module, "torch": torch, "np": np}
    exec(ALLOCATE, names)
    return names["made"]


@pytest.mark.parametrize("module", ["pixelrefer_fast", "pixelrefer_fast.ops.rope2d", "pixelrefer_fast.kernels.infuse"])
def test_memory_allocated_by_the_package_is_poisoned(module: str) -> None:
    *floats, whole, flags, array, small = _made_in(module)
    assert all(torch.isnan(x).all() for x in floats)
    assert (whole > 2**62).all()
    assert flags.all()
    assert np.isnan(array).all()
    assert (small == 249).all()


def test_memory_of_others_is_not_touched() -> None:
    written = []

    class Spy(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            written.append(func.__name__)
            return super().__torch_function__(func, types, args, kwargs or {})

    like = torch.zeros(3).as_subclass(Spy)
    exec("torch.empty_like(like)", {"__name__": "pixelrefer_fastest", "torch": torch, "like": like})
    assert "fill_" not in written
    exec("torch.empty_like(like)", {"__name__": "pixelrefer_fast", "torch": torch, "like": like})
    assert "fill_" in written


def test_modules_materialised_by_the_package_are_poisoned() -> None:
    with torch.device("meta"):
        module = torch.nn.BatchNorm1d(2)
    exec("module.to_empty(device='cpu')", {"__name__": "pixelrefer_fast.loading", "module": module})
    assert torch.isnan(module.weight).all()
    buffers = dict(module.named_buffers())
    assert torch.isnan(buffers["running_mean"]).all()
    assert buffers["num_batches_tracked"] > 2**62


def test_numeric_bar(numeric_bar: Callable[..., None]) -> None:
    op = SimpleNamespace(name="fake", tolerance={torch.float32: 0.01})
    exact = torch.zeros(4, dtype=torch.float64)
    plain = torch.tensor([0.0, 0.1, 0.0, 0.0])
    numeric_bar(op, torch.full((4,), 0.2), exact, plain)
    numeric_bar(op, torch.zeros(0), exact[:0], plain[:0])
    for wrong in (torch.full((4,), 0.22), torch.tensor([0.0, float("nan"), 0.0, 0.0])):
        with pytest.raises(AssertionError, match=r"fake in torch\.float32: error"):
            numeric_bar(op, wrong, exact, plain)

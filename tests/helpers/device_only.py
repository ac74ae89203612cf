"""What may be captured: computations that touch a device alone. The meta device stands for it, as it has no values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pixelrefer_fast.ops._registry import Op


class _NoHost(TorchDispatchMode):
    """Raises where a tensor of the host takes part: it would be uploaded, or read."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves((args, kwargs, result)):
            if isinstance(x, torch.Tensor) and x.device.type != "meta":
                raise AssertionError(f"{func}: a tensor of the host in what is to be captured: {tuple(x.shape)}")
        return result


class _NoData(TorchFunctionMode):
    """Raises where a tensor is made of numbers of the host."""

    MAKERS = (torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy, torch.Tensor.new_tensor)

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func in self.MAKERS:
            raise AssertionError(f"{func.__name__}: numbers of the host in what is to be captured")
        return func(*args, **(kwargs or {}))


@contextmanager
def launches_only() -> Iterator[None]:
    """Within it operations of this package give empty results of the right shapes.

    Their kernels launch and return; it is the definitions that look into tensors. What is made of operations runs.
    """

    def launched(op: Op, *args: Any, backend: str = "auto", **kwargs: Any) -> Any:
        return op.definition(*args, **kwargs, backend=backend) if op.parts else op.empty_results(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Op, "__call__", launched)
        yield


@contextmanager
def device_only() -> Iterator[None]:
    """The same, and tensors of the host, values read from a device and shapes that depend on values raise."""
    with launches_only(), _NoHost(), _NoData():
        yield

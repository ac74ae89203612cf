"""Tensors of the host treated as those of a device, and what is brought from them to the host."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode

from pixelrefer_fast.regions import formats, tensor_mask, tools

READS = (torch.Tensor.cpu, torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.item, torch.Tensor.__array__)


@contextmanager
def masks_stay() -> Iterator[None]:
    """Masks that are tensors go the way of those on a device."""

    def is_tensor(mask: object) -> bool:
        return isinstance(mask, torch.Tensor)

    with (
        mock.patch.object(tensor_mask, "stays", is_tensor),
        mock.patch.object(formats, "stays", is_tensor),
        mock.patch.object(tools, "stays", is_tensor),
    ):
        yield


class Brought(TorchFunctionMode):
    """Bytes of the tensors whose values the host reads within the block, one number a read."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[int] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READS:
            self.reads.append(args[0].numel() * args[0].element_size())
        return func(*args, **(kwargs or {}))

"""Tensors of the host treated as those of a device, and what is brought from them to the host."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from recorded_graphs import Recorded
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from pixelrefer_fast.device.transfers import upload
from pixelrefer_fast.ops import Op
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


READING = {*READS, *(getattr(torch.Tensor, f"__{kind}__") for kind in ("int", "float", "bool", "index"))}
SHAPED_BY_VALUES = {torch.nonzero, torch.Tensor.nonzero, torch.masked_select, torch.Tensor.masked_select, torch.unique}


class Crossings(TorchFunctionMode):
    """Within the block tensors that are given here, or uploaded, lie on a device, and what is made of them does too.

    What happens within an operation of this package, or a graph that is replayed, is not looked at: its launches do not
    wait, whatever the definition does that stands for them.

    Attributes:
        reads: what the host asked of a device's tensors that it must wait for, by the functions' names.
    """

    def __init__(self, *given: torch.Tensor) -> None:
        super().__init__()
        self.reads: list[str] = []
        self._launched = 0
        self._there = WeakTensorKeyDictionary()
        self._note(given)
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> Crossings:
        for name, module in list(sys.modules.items()):
            if name.startswith("pixelrefer_fast.") and getattr(module, "upload", None) is upload:
                self._patch.setattr(module, "upload", self._upload)
        self._patch.setattr(Op, "__call__", self._launching(Op.__call__))
        self._patch.setattr(Recorded, "replay", self._launching(Recorded.replay))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patch.undo()

    def _upload(self, tensors: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
        moved = [tensor.clone() for tensor in tensors]
        self._note(moved)
        return moved

    def _launching(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def launch(*args: Any, **kwargs: Any) -> Any:
            self._launched += 1
            try:
                result = function(*args, **kwargs)
            finally:
                self._launched -= 1
            if self._lies_there((args, kwargs)):
                self._note(tree_leaves(result))
            return result

        return launch

    def _note(self, values: Iterable[Any]) -> None:
        for value in values:
            if isinstance(value, torch.Tensor):
                self._there[value] = True

    def _lies_there(self, values: Any) -> bool:
        return any(isinstance(x, torch.Tensor) and x in self._there for x in tree_leaves(values))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self._launched or not self._lies_there((args, kwargs)):
            return result
        if func in READING or func in SHAPED_BY_VALUES:
            self.reads.append(func.__name__)
            return result.clone() if func is torch.Tensor.cpu else result  # a tensor of the host
        self._note(tree_leaves(result))
        if func.__name__.endswith("_"):  # in place, __setitem__ too
            self._note(args[:1])
        return result

"""Weights laid one behind the other in memory, as one, which each is a view of: nothing is held twice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


@torch.inference_mode(False)
@torch.no_grad()
def joined(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """All rows, which the tensors are views of from now on."""
    if len(tensors) == 1:
        return tensors[0].data
    if (there := _laid(tensors)) is not None:  # by a model that shares them: were they moved, it would lay them again
        return there
    whole = torch.cat([t.data for t in tensors])
    for tensor, rows in zip(tensors, whole.split([len(t) for t in tensors]), strict=True):
        tensor.data = rows
    return whole


def joined_weights(weights: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """Weights of linear layers, plain or quantised, as one; None where that cannot be.

    A quantised weight is a tensor that is made of others (torchao's are). Where all of these have a row for each output
    the rows of several weights make one of the same kind: so int8 and fp8 with a scale for each row, but not int4,
    whose layout holds several outputs in a row.
    """
    kinds = {type(w) for w in weights}
    if kinds == {nn.Parameter}:
        return joined(weights)
    if len(weights) == 1 or len(kinds) > 1 or not all(map(is_traceable_wrapper_subclass, weights)):
        return None
    made = [w.__tensor_flatten__() for w in weights]  # type: ignore[attr-defined]
    if any(other != made[0] for other in made):
        return None
    names, context = made[0]
    parts = {name: [getattr(w, name) for w in weights] for name in names}
    for own in parts.values():
        alike = {(type(p), p.dtype, p.shape[1:]) for p in own}
        if len(alike) > 1 or any(not p.ndim or len(p) != len(w) for p, w in zip(own, weights, strict=True)):
            return None
    whole = {name: joined(own) for name, own in parts.items()}
    size = torch.Size([sum(map(len, weights)), *weights[0].shape[1:]])
    found: torch.Tensor = type(weights[0]).__tensor_unflatten__(whole, context, size, (size[1], 1))  # type: ignore[attr-defined]
    return found


def places(tensors: Iterable[torch.Tensor]) -> list[int]:
    """Where they lie in memory, a quantised weight's parts one by one."""
    found = []
    for tensor in tensors:
        if type(tensor) is not nn.Parameter and is_traceable_wrapper_subclass(tensor):
            found += [getattr(tensor, name).data_ptr() for name in tensor.__tensor_flatten__()[0]]
        else:
            found.append(tensor.data_ptr())
    return found


def _laid(tensors: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """All rows, where they lie one behind the other in one memory already."""
    first, end = tensors[0].data, tensors[0].storage_offset()
    for tensor in tensors:
        same = tensor.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not same or not tensor.is_contiguous() or tensor.storage_offset() != end:
            return None
        end += tensor.numel()
    return first.as_strided((sum(map(len, tensors)), *first.shape[1:]), first.stride())

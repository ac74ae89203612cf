"""Argument checks shared by the operations: the message names the argument, what was expected and what came."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch

from pixelrefer_fast.checks.values import is_integer, shown

INT32_MAX = 2**31 - 1


def check_shape(op: str, name: str, tensor: torch.Tensor, *shape: int | None) -> None:
    """Raise a ValueError unless `tensor` is a tensor of this shape; None stands for any size."""
    if not isinstance(tensor, torch.Tensor):
        raise ValueError(f"{op}: expected {name}, a tensor, got {type(tensor).__name__}")
    given = tensor.shape
    if given == shape:  # the quick ways: thirty are checked for one object
        return
    if len(given) == len(shape):
        for expected, size in zip(shape, given):  # noqa: B905 (compared above)
            if expected is not None and expected != size:
                break
        else:
            return
    described = ", ".join("any" if s is None else str(s) for s in shape)
    raise ValueError(f"{op}: expected {name} of shape ({described}), got {tuple(given)}")


def check_dtype(op: str, name: str, tensor: torch.Tensor, *dtypes: torch.dtype) -> None:
    """Raise a ValueError unless `tensor` has one of these dtypes."""
    if tensor.dtype not in dtypes:
        expected = " or ".join(str(d) for d in dtypes)
        raise ValueError(f"{op}: expected {name} of {expected}, got {tensor.dtype}")


def check_device(op: str, device: torch.device, **tensors: torch.Tensor | None) -> None:
    """Raise a ValueError unless the tensors (None: not given) are on `device`, that of the operation's first one."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != device:
            raise ValueError(f"{op}: expected {name} on {device}, got {tensor.device}")


def check_count(op: str, name: str, value: Any, most: int = INT32_MAX) -> None:
    """Raise a ValueError unless `value` is an integer from 0 to `most`."""
    if not is_integer(value) or not 0 <= value <= most:
        raise ValueError(f"{op}: expected {name}, an integer from 0 to {most}, got {shown(value)}")


def check_offsets(op: str, name: str, offsets: torch.Tensor, total: int) -> list[int]:
    """The offsets as a list, checked: at least one, from 0 to `total`, never falling."""
    values = offsets.tolist()
    if offsets.ndim != 1 or not values or values[0] != 0 or values[-1] != total:
        shown = values if offsets.numel() < 8 else f"{str(values[:3])[:-1]}, ... {str(values[-3:])[1:]}"
        raise ValueError(f"{op}: expected {name} from 0 to {total}, got {shown}")
    if any(b < a for a, b in pairwise(values)):
        raise ValueError(f"{op}: expected {name} that never fall, got {values}")
    return values

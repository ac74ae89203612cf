"""Argument checks shared by the operations: the message names the argument, what was expected and what came."""

from __future__ import annotations

from itertools import pairwise

import torch


def check_shape(op: str, name: str, tensor: torch.Tensor, *shape: int | None) -> None:
    """Raise a ValueError unless `tensor` has this shape; None stands for any size."""
    given = tuple(tensor.shape)
    if len(given) != len(shape) or any(s is not None and s != g for s, g in zip(shape, given, strict=True)):
        expected = "(" + ", ".join("any" if s is None else str(s) for s in shape) + ")"
        raise ValueError(f"{op}: expected {name} of shape {expected}, got {given}")


def check_dtype(op: str, name: str, tensor: torch.Tensor, *dtypes: torch.dtype) -> None:
    """Raise a ValueError unless `tensor` has one of these dtypes."""
    if tensor.dtype not in dtypes:
        expected = " or ".join(str(d) for d in dtypes)
        raise ValueError(f"{op}: expected {name} of {expected}, got {tensor.dtype}")


def check_offsets(op: str, name: str, offsets: torch.Tensor, total: int) -> list[int]:
    """The offsets as a list, checked: at least one, from 0 to `total`, never falling."""
    values = offsets.tolist()
    if offsets.ndim != 1 or not values or values[0] != 0 or values[-1] != total:
        shown = values if offsets.numel() < 8 else f"{str(values[:3])[:-1]}, ... {str(values[-3:])[1:]}"
        raise ValueError(f"{op}: expected {name} from 0 to {total}, got {shown}")
    if any(b < a for a, b in pairwise(values)):
        raise ValueError(f"{op}: expected {name} that never fall, got {values}")
    return values

"""Small tables from host memory to a device: all of a pass in one copy, for which nothing waits."""

from __future__ import annotations

from collections.abc import Sequence

import torch

ALIGNMENT = 16  # bytes, so that a view of any dtype starts where a vector load may


def upload(tensors: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """The tensors on `device`, in order.

    To a CUDA device they travel as one copy from pinned memory that the host does not wait for; the results are views
    of one buffer. Elsewhere each is moved by itself, which on the CPU is no copy. What is there already stays.

    Args:
        tensors: any shapes and dtypes.
        device: where they are needed.
    """
    if device.type != "cuda":
        return [t.to(device) for t in tensors]
    travelling = [t for t in tensors if not _is_there(t, device)]
    moved = iter(views_of(_staged(travelling, pin=True).to(device, non_blocking=True), travelling))
    return [t if _is_there(t, device) else next(moved) for t in tensors]


def _is_there(tensor: torch.Tensor, device: torch.device) -> bool:
    """`device` may be any CUDA device, without a number."""
    return tensor.device == device or (device.index is None and tensor.device.type == device.type)


def _staged(tensors: Sequence[torch.Tensor], pin: bool) -> torch.Tensor:
    """One buffer of bytes in host memory with all tensors in it, each at an aligned place."""
    size = sum(aligned(t) for t in tensors)
    buffer = torch.zeros(size, dtype=torch.uint8, pin_memory=pin)
    for view, tensor in zip(views_of(buffer, tensors), tensors, strict=True):
        view.copy_(tensor)
    return buffer


def views_of(buffer: torch.Tensor, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Views of a buffer of bytes, shaped as these tensors are, each at an aligned place."""
    views, start = [], 0
    for tensor in tensors:
        stop = start + tensor.numel() * tensor.element_size()
        views.append(buffer[start:stop].view(tensor.dtype).view(tensor.shape))
        start += aligned(tensor)
    return views


def aligned(tensor: torch.Tensor) -> int:
    """Bytes that a tensor takes in such a buffer."""
    size = tensor.numel() * tensor.element_size()
    return -(-size // ALIGNMENT) * ALIGNMENT

"""Sizes that a launch asks for: outside of kernels Triton's own functions of these names take microseconds."""

from __future__ import annotations


def cdiv(size: int, block: int) -> int:
    """How many blocks of this size it takes."""
    return -(-size // block)


def next_power_of_2(size: int) -> int:
    """The least power of two that is at least `size`; 0 for 0."""
    return 1 << (size - 1).bit_length() if size > 0 else 0

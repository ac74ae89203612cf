"""Products of matrices as tensor cores accumulate them: exactly, or as measured on devices.

The PTX ISA leaves order and precision of the accumulation open ("mma": "the accumulation order, rounding and handling
of subnormal inputs are unspecified").
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .options import Numerics

Floats = NDArray[np.float64]

# products that are added at once with the accumulator, in bytes of an operand's row: 8 of 16 bits, 4 of tf32 (A100)
BLOCK_BYTES = {"f16": 8, "bf16": 8, "tf32": 4}
EXTRA_BITS = 2  # that an aligned addend keeps beyond float32's 24


def multiply(a: Floats, b: Floats, c: Floats, kind: str, numerics: Numerics) -> Floats:
    """a b + c for stacks of matrices [n, m, k], [n, k, n'], [n, m, n']; float64 holds every product exactly.

    The result is not rounded to float32 yet in the exact form; in the truncating form it is a float32 already.
    """
    if numerics.accumulation == "exact" or kind == "f64":
        return np.matmul(a, b) + c
    total, block = c, BLOCK_BYTES[kind]
    for start in range(0, a.shape[2], block):
        products = a[:, :, start : start + block, None] * b[:, None, start : start + block, :]  # [n, m, block, n']
        total = _truncated_sum(np.concatenate([total[:, :, None], products], 2))
    return total


def _truncated_sum(addends: Floats) -> Floats:
    """Sum over axis 2: addends aligned to the largest and cut, and the sum cut to 24 bits."""
    with np.errstate(all="ignore"):
        largest = np.abs(addends).max(2, keepdims=True)
        plain = np.isfinite(largest) & (largest > 0)
        exponent = np.frexp(np.where(plain, largest, 1))[1]
        unit = np.ldexp(1.0, exponent - 24 - EXTRA_BITS)
        total = (np.trunc(addends / unit) * unit).sum(2)
        exponent = np.frexp(np.where(np.isfinite(total) & (total != 0), total, 1))[1]
        unit = np.ldexp(1.0, np.maximum(exponent - 24, -149))
        cut = np.trunc(total / unit) * unit
        return np.where(plain[:, :, 0], cut, addends.sum(2))

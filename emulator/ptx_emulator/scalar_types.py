"""PTX's fundamental types as NumPy's, and the conversions that NumPy lacks.

A register holds bits. Its array may have any dtype of the register's width: `as_kind` views it as what an instruction
takes it for. float16 is NumPy's own; bfloat16 and tf32 are bits that are widened to float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]  # the type of an operand is known when a kernel is translated, not here

UNSIGNED: dict[int, np.dtype[Any]] = {
    1: np.dtype(np.uint8),
    2: np.dtype(np.uint16),
    4: np.dtype(np.uint32),
    8: np.dtype(np.uint64),
}
SIGNED: dict[int, np.dtype[Any]] = {
    1: np.dtype(np.int8),
    2: np.dtype(np.int16),
    4: np.dtype(np.int32),
    8: np.dtype(np.int64),
}

# PTX ISA, "Fundamental Types" and "Packed Floating Point Data Types"; a packed or an alternate type is its bits
DTYPES: dict[str, np.dtype[Any]] = {
    "pred": np.dtype(bool),
    **{f"{letter}{8 * size}": dtype for letter in "bu" for size, dtype in UNSIGNED.items()},
    **{f"s{8 * size}": dtype for size, dtype in SIGNED.items()},
    "f16": np.dtype(np.float16),
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
    "bf16": UNSIGNED[2],
    "tf32": UNSIGNED[4],
    "f16x2": UNSIGNED[4],
    "bf16x2": UNSIGNED[4],
}

GARBAGE = 0xA5A5A5A5A5A5A5A5  # bits of a register that nobody has written
CANONICAL_NAN = np.uint32(0x7FFFFFFF).view(np.float32)  # PTX ISA, "Floating Point Instructions": no payloads of f32
TF32_BITS = np.uint32(0xFFFFE000)  # that a tensor core takes of a float32


def is_float(name: str) -> bool:
    return name.startswith(("f", "bf", "tf"))


def is_signed(name: str) -> bool:
    return name.startswith("s")


def as_kind(value: Array, dtype: np.dtype) -> Array:
    """The same bits as another dtype of the same width."""
    return value if value.dtype is dtype else value.view(dtype)


def resized(value: Array, width: int) -> Array:
    """An integer or a float's bits in a register of another width: extended by its sign if it has one, or cut."""
    if value.dtype.itemsize == width:
        return value
    kind = SIGNED if value.dtype.kind == "i" else UNSIGNED
    if value.dtype.kind == "f":
        value = value.view(UNSIGNED[value.dtype.itemsize])
    return value.astype(kind[width])


def bfloat16_to_float32(bits: Array) -> Array:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def float32_to_bfloat16(value: Array) -> Array:
    """Bits of the nearest bfloat16, ties to even; NaN is the canonical one (PTX ISA, "cvt")."""
    bits = np.ascontiguousarray(value, np.float32).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = ((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(value), np.uint16(0x7FFF), rounded)


def float32_to_float16(value: Array) -> Array:
    """Bits of the nearest float16, ties to even; NaN is the canonical one."""
    return np.where(np.isnan(value), np.uint16(0x7FFF), value.astype(np.float16).view(np.uint16))


def float32_to_tf32(value: Array) -> Array:
    """Bits of the nearest tf32, ties away from zero (`cvt.rna.tf32.f32`)."""
    bits = np.ascontiguousarray(value, np.float32).view(np.uint32)
    return np.where(np.isfinite(value), (bits + np.uint32(0x1000)) & TF32_BITS, bits)


def widen(bits: Array, name: str) -> Array:
    """float32 (float64 for f64) of the bits of a floating-point type, as a tensor core reads them."""
    if name == "bf16":
        return bfloat16_to_float32(bits)
    if name == "f16":
        return bits.view(np.float16).astype(np.float32)
    if name == "tf32":
        return (bits.view(np.uint32) & TF32_BITS).view(np.float32)
    return bits.view(DTYPES[name])


def narrow(value: Array, name: str) -> Array:
    """Bits of the nearest number of a 16-bit floating-point type."""
    return float32_to_bfloat16(value) if name == "bf16" else float32_to_float16(value)


def halves(packed: Array) -> tuple[Array, Array]:
    """Lower and upper 16 bits of 32-bit registers."""
    bits = packed.view(np.uint32)
    return (bits & np.uint32(0xFFFF)).astype(np.uint16), (bits >> np.uint32(16)).astype(np.uint16)


def packed(low: Array, high: Array) -> Array:
    """32-bit registers of two 16-bit values each."""
    return low.astype(np.uint32) | (high.astype(np.uint32) << np.uint32(16))

"""Contraction: what an assembler may make of a product and a sum.

A `mul` and an `add` or `sub` without a rounding modifier may become one `fma` (PTX ISA, "Floating Point Instructions:
add": "an add instruction with no rounding modifier defaults to round-to-nearest-even and may be optimized
aggressively"). Whether it does, the PTX does not say: `Numerics.fusion` "always" takes it that it does wherever it can
within a basic block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from .instructions.floats import fused
from .operands import Operands, Run
from .parser import Instruction

if TYPE_CHECKING:
    from .machine import Machine, Mask

_KINDS = (("f32",), ("f64",), ("ftz", "f32"))
_ENDS = frozenset(("bra", "ret", "exit", "bar", "barrier"))


def contracted(ops: Operands, targets: Callable[[Instruction], tuple[str, ...]]) -> dict[int, Run]:
    """For each sum of a kernel that takes up a product: its index, and what it does then."""
    code, found = ops.kernel.code, {}
    labels = set(ops.kernel.labels.values())
    products: dict[str, Instruction] = {}  # that still hold, by the register of their result
    for index, ins in enumerate(code):
        if index in labels:
            products.clear()
        if ins.opcode in ("add", "sub") and ins.modifiers in _KINDS:
            left, right = (products.get(str(o)) for o in ins.operands[1:3])
            if left is not None and _alike(left, ins):
                found[index] = _fused_run(ops, ins, left, str(ins.operands[2]), -1 if ins.opcode == "sub" else 1, 1)
            elif right is not None and _alike(right, ins):
                found[index] = _fused_run(ops, ins, right, str(ins.operands[1]), 1, -1 if ins.opcode == "sub" else 1)
        for target in targets(ins):
            products = {r: p for r, p in products.items() if r != target and target not in p.operands[1:]}
        if ins.opcode == "mul" and ins.modifiers in _KINDS and ins.operands[0] not in ins.operands[1:]:
            products[str(ins.operands[0])] = ins
        if ins.opcode in _ENDS:
            products.clear()
    return found


def _alike(product: Instruction, total: Instruction) -> bool:
    return product.modifiers == total.modifiers and product.guard == total.guard


def _fused_run(
    ops: Operands, ins: Instruction, product: Instruction, addend: str, sign_of_addend: int, sign_of_product: int
) -> Run:
    kind = ins.modifiers[-1]
    a, b = (ops.read(o, kind, ins) for o in product.operands[1:3])
    c = ops.read(addend, kind, ins)
    write = ops.write(ins.operands[0], ins)

    def run(m: Machine, active: Mask | None) -> None:
        left, total = a(m), c(m)
        left = np.negative(left) if sign_of_product < 0 else left
        total = np.negative(total) if sign_of_addend < 0 else total
        write(m, fused(left, b(m), total), active)

    return run

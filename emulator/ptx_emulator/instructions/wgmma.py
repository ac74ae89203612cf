"""wgmma: products of a warpgroup, with operands in shared memory that a descriptor locates.

PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions". The result is there at once; that nobody uses its registers
or writes its shared memory before `wgmma.wait_group` is checked instead, and that the registers of an accumulator and
of A are fenced by `wgmma.fence` after others accessed them.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from ..faults import Fault, UnknownInstructionError
from ..fragments import wgmma_a, wgmma_accumulator
from ..machine import WARPGROUP, Lanes, Machine, Mask
from ..memory.shared_memory import Product
from ..opcodes import opcode
from ..operands import Operands, Read, Run
from ..parser import Instruction
from ..scalar_types import DTYPES, UNSIGNED, widen
from ..tensor_core import multiply
from .matrix import elements

_LANES = 32 * WARPGROUP
# "Matrix Descriptor Format": bits 62 and 63 -> bytes of a row of the swizzled pattern, and which bits of the address
# (from bit 7) are added modulo 2 to bits 4 and up
_SWIZZLES = {0: (16, 0), 1: (128, 7), 2: (64, 3), 3: (32, 1)}
_SHAPES = " ".join(f"m64n{n}k{k}" for n in range(8, 257, 8) for k in (8, 16))


@opcode("wgmma", f"mma_async fence commit_group wait_group sync aligned {_SHAPES}")
def warpgroup(ops: Operands, ins: Instruction) -> Run:
    if "fence" in ins.modifiers:
        return lambda m, active: _fence(m, _groups(m, active, ins))
    if "commit_group" in ins.modifiers:
        return lambda m, active: m.shared.commit_products(_groups(m, active, ins))
    if "wait_group" in ins.modifiers:
        return lambda m, active: _wait(m, _groups(m, active, ins), int(str(ins.operands[0])))
    return _issue(ops, ins)


def _groups(m: Machine, active: NDArray[np.bool_] | None, ins: Instruction) -> Lanes:
    """The lanes of a mask that splits no warpgroup."""
    lanes = m.whole_warps(active, ins)
    if m.threads % _LANES:
        raise Fault(f"{m.threads} threads are no whole warpgroups; PTX line {ins.line}: {ins.text}")
    if active is not None:
        groups = active.reshape(-1, _LANES)
        split = groups.any(1) != groups.all(1)
        if split.any():
            raise Fault(f"a diverged warpgroup; {m.where(ins, int(np.argmax(split)) * _LANES)}")
    return lanes


def _fence(m: Machine, lanes: Lanes) -> None:
    for written in m.unfenced.values():
        written[m.warp_of[lanes]] = False


def _wait(m: Machine, lanes: Lanes, pending: int) -> None:
    m.shared.await_products(m, lanes, pending)


class _Descriptor:
    """Where a descriptor finds an operand [rows, k]: rows are those of A or columns of B."""

    def __init__(self, rows: int, k: int, kind: str, transposed: bool) -> None:
        self.rows, self.k = np.arange(rows)[:, None], np.arange(k)[None, :]
        self.kind = kind
        self.size = DTYPES[kind].itemsize
        self.transposed = transposed

    def read(
        self, m: Machine, descriptors: NDArray[np.uint64], lanes: Lanes, ins: Instruction
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Matrices [n, rows, k] of `lanes`, the first of each warpgroup, and the cells that they take."""
        bits = descriptors.view(np.int64)[:, None, None]
        start, leading, stride = ((bits >> shift & 0x3FFF) << 4 for shift in (0, 16, 32))
        mode = descriptors >> np.uint64(62)
        if (mode != mode[0]).any() or (bits >> 49 & 7).any():
            raise UnknownInstructionError(ins, "descriptors with base offsets or of several swizzles")
        width, mask = _SWIZZLES[int(mode[0])]
        at = start + self._offsets(width, leading, stride)
        at = at ^ (at >> 7 & mask) << 4
        if (at + self.size > m.shared.size).any():
            raise Fault(f"out of bounds: a wgmma's operand in shared memory; {m.where(ins, lanes[0])}")
        if m.observer is not None:
            m.observer.access("shared", "product", ins, at.reshape(-1), self.size, np.repeat(lanes, at[0].size))
        at = at + (m.block_of[lanes] * m.shared.pitch)[:, None, None]
        cells = at.reshape(len(lanes), -1) // m.shared.granule
        data = m.shared.bytes.view(UNSIGNED[self.size])[at // self.size]
        return widen(data, self.kind).astype(np.float64), cells

    def _offsets(self, width: int, leading: NDArray[np.int64], stride: NDArray[np.int64]) -> NDArray[np.int64]:
        """ "Shared Memory Matrix Layout" and "Strides": bytes from the start, before the swizzle.

        Core matrices are 8 rows of 16 bytes; a swizzled pattern is 8 rows of `width` bytes.
        """
        rows, k, size = self.rows, self.k, self.size
        if not self.transposed:  # k runs fastest
            line = k * size
            if width == 16:
                return rows // 8 * stride + rows % 8 * 16 + line // 16 * leading + line % 16
            return rows // 8 * stride + rows % 8 * width + line
        line = rows * size
        if width == 16:
            return line // 16 * stride + k % 8 * 16 + k // 8 * leading + line % 16
        return line // width * leading + k // 8 * stride + k % 8 * width + line % width


def _issue(ops: Operands, ins: Instruction) -> Run:
    """D = A B + D, or A B where the predicate says so; A from registers or, as B, from shared memory."""
    shape = next(m for m in ins.modifiers if m.startswith("m64n"))
    n, k = (int(x) for x in re.fullmatch(r"m64n(\d+)k(\d+)", shape).groups())  # type: ignore[union-attr]
    result, kind, other = ins.modifiers[-3:]
    if result != "f32" or kind != other or kind not in ("f16", "bf16", "tf32") or k * DTYPES[kind].itemsize != 32:
        raise UnknownInstructionError(ins, "its types")
    names, source = ins.operands[:2]
    if not isinstance(names, tuple) or len(names) != n // 2 or ins.operands[4:6] != ("1", "1"):
        raise UnknownInstructionError(ins, "its operands")
    flags = [bool(int(str(o))) for o in ins.operands[6:]]
    held = wgmma_accumulator(n)
    writes = [ops.write_lanes(name, ins) for name in names]
    reads = [ops.read(name, "f32", ins) for name in names]
    in_registers = isinstance(source, tuple)
    right = _Descriptor(n, k, kind, flags[-1] if flags else False)
    right_read = ops.read(ins.operands[2], "b64", ins)
    keep = ops.read(ins.operands[3], "pred", ins)
    left_registers: list[Read] = []
    left_layout = left_read = left = None
    result, fragments = frozenset(names), frozenset(source if isinstance(source, tuple) else ())
    if isinstance(source, tuple):
        left_registers = [ops.read(name, "b32", ins) for name in source]
        left_layout = wgmma_a(k, kind)
    else:
        left = _Descriptor(64, k, kind, flags[0] if flags else False)
        left_read = ops.read(source, "b64", ins)

    def run(m: Machine, active: Mask | None) -> None:
        lanes = _groups(m, active, ins)
        first = lanes.reshape(-1, _LANES)[:, 0]
        _check_fenced(m, result | fragments, lanes, ins)
        b, cells = right.read(m, _uniform(m, right_read, lanes, ins), first, ins)
        if in_registers:
            assert left_layout is not None
            a = left_layout.assemble(elements([m.taken(r(m), lanes) for r in left_registers], kind, _LANES))
        else:
            assert left is not None
            assert left_read is not None
            a, more = left.read(m, _uniform(m, left_read, lanes, ins), first, ins)
            cells = np.concatenate([cells, more], 1)
        product = Product(first, m.shared.product_group[first], cells, shape, result, fragments)
        _check_flying(m, product, ins)
        c = held.assemble(elements([m.taken(r(m), lanes) for r in reads], "f32", _LANES))
        kept = m.taken(keep(m), lanes).reshape(-1, _LANES)
        if (kept != kept[:, :1]).any():
            raise Fault(f"scale-d differs within a warpgroup; {m.where(ins, lanes[0])}")
        c = np.where(kept[:, :1, None], c, 0.0)
        products = multiply(a, b.swapaxes(1, 2), c, kind, ops.numerics).astype(np.float32)
        out = held.distribute(products).reshape(len(lanes), -1)
        for i, write in enumerate(writes):
            write(m, np.ascontiguousarray(out[:, i]), lanes)
        m.shared.begin_product(m, product, ins)

    return run


def _uniform(m: Machine, read: Read, lanes: Lanes, ins: Instruction) -> NDArray[np.uint64]:
    """The descriptor of each warpgroup."""
    values = m.taken(read(m), lanes).reshape(-1, _LANES)
    if (values != values[:, :1]).any():
        raise Fault(f"a descriptor differs within a warpgroup; {m.where(ins, lanes[0])}")
    return np.ascontiguousarray(values[:, 0])


def _check_fenced(m: Machine, registers: frozenset[str], lanes: Lanes, ins: Instruction) -> None:
    warps = np.unique(m.warp_of[lanes])
    for name in registers:
        accessed = m.unfenced[name][warps]
        if accessed.any():
            warp = m.who(int(warps[np.argmax(accessed)]))
            m.findings.add("wgmma", ins, f"{warp} has accessed {name}, with no wgmma.fence since")
            return


def _check_flying(m: Machine, product: Product, ins: Instruction) -> None:
    """Of registers of a wgmma in flight a further one may take the accumulator, as its own, in the same shape.

    Fragments of A may be read again.
    """
    for other in m.shared.products:
        used = product.result & other.fragments | product.fragments & other.result
        if product.shape != other.shape:
            used |= product.result & other.result
        if used and np.isin(product.lanes, other.lanes).any():
            warp = m.who(int(m.warp_of[other.lanes[0]]))
            m.findings.add("wgmma", ins, f"{warp} uses {', '.join(sorted(used))} of a wgmma that is not waited for")
            return

"""Which element of a matrix a lane's register holds: the tables of the PTX ISA.

A layout is two integer arrays [lanes, elements]: row and column of each element that a lane holds, in the order of its
registers and, within one of 32 bits, from the lowest bits. In the ISA's words: groupID = lane >> 2, threadID_in_group =
lane % 4. Sections are those of "Warp Level Matrix Instructions" and "Asynchronous Warpgroup Level Matrix Instructions".
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]

_LANE = np.arange(32)[:, None]
_GROUP, _THREAD = _LANE >> 2, _LANE % 4


@dataclass(frozen=True)
class Layout:
    """Row and column [lanes, elements] of a matrix of `shape`."""

    row: Indices
    column: Indices
    shape: tuple[int, int]

    def assemble(self, held: NDArray) -> NDArray:
        """Matrices [n, rows, columns] of elements [n, lanes, elements]."""
        return held.reshape(len(held), -1)[:, self._place].reshape(-1, *self.shape)

    @functools.cached_property
    def _place(self) -> Indices:
        """Of each element of the matrix: which of all that the lanes hold."""
        place = np.empty(self.shape[0] * self.shape[1], np.int64)
        place[(self.row * self.shape[1] + self.column).reshape(-1)] = np.arange(self.row.size)
        return place

    def distribute(self, matrices: NDArray) -> NDArray:
        """Elements [n, lanes, elements] of matrices [n, rows, columns]."""
        return matrices[:, self.row, self.column]


def _layout(row: Indices, column: Indices, shape: tuple[int, int]) -> Layout:
    row, column = np.broadcast_arrays(row, column)
    return Layout(row, column, shape)


@dataclass(frozen=True)
class Fragments:
    """Layouts of A, B and the accumulator of one shape and type."""

    a: Layout
    b: Layout
    c: Layout


def _halves(k: int) -> Fragments:
    """ "Matrix Fragments for mma.m16n8k8" and "mma.m16n8k16 with floating point type": .f16 and .bf16."""
    i = np.arange(k // 2)
    a = _layout(_GROUP + 8 * (i // 2 % 2), 2 * _THREAD + i % 2 + 8 * (i // 4), (16, k))
    i = np.arange(k // 4)
    b = _layout(2 * _THREAD + i % 2 + 8 * (i // 2), _GROUP + 0 * i, (k, 8))
    return Fragments(a, b, _accumulator())


def _accumulator() -> Layout:
    i = np.arange(4)
    return _layout(_GROUP + 8 * (i // 2), 2 * _THREAD + i % 2, (16, 8))


def _words(k: int) -> Fragments:
    """ "Matrix Fragments for mma.m16n8k4" and "mma.m16n8k8": .tf32; "mma.m16n8k4" to "m16n8k16": .f64."""
    i = np.arange(k // 2)
    a = _layout(_GROUP + 8 * (i % 2), _THREAD + 4 * (i // 2), (16, k))
    i = np.arange(k // 4)
    b = _layout(_THREAD + 4 * i, _GROUP + 0 * i, (k, 8))
    return Fragments(a, b, _accumulator())


def _double_m8n8k4() -> Fragments:
    """ "Matrix Fragments for mma.m8n8k4 with .f64 floating point type"."""
    i = np.arange(2)
    a = _layout(_GROUP, _THREAD, (8, 4))
    b = _layout(_THREAD, _GROUP, (4, 8))
    return Fragments(a, b, _layout(_GROUP + 0 * i, 2 * _THREAD + i, (8, 8)))


MMA: dict[tuple[str, str], Fragments] = {
    **{(f"m16n8k{k}", kind): _halves(k) for k in (8, 16) for kind in ("f16", "bf16")},
    **{(f"m16n8k{k}", "tf32"): _words(k) for k in (4, 8)},
    **{(f"m16n8k{k}", "f64"): _words(k) for k in (4, 8, 16)},
    ("m8n8k4", "f64"): _double_m8n8k4(),
}

# "ldmatrix": rows of eight 16-bit elements, a lane holds two neighbours of row groupID
MATRIX8 = _layout(_GROUP + 0 * np.arange(2), 2 * _THREAD + np.arange(2), (8, 8))


def wgmma_accumulator(n: int) -> Layout:
    """ "WGMMA .m64nNk16 register fragments": D of a warpgroup's 128 lanes, n / 2 elements each."""
    lane, i = np.arange(128)[:, None], np.arange(n // 2)
    row = 16 * (lane // 32) + lane % 32 // 4 + 8 * (i // 2 % 2)
    return _layout(row, 8 * (i // 4) + 2 * (lane % 4) + i % 2, (64, n))


def wgmma_a(k: int, kind: str) -> Layout:
    """A in registers: each warp holds 16 rows, as for mma.m16n8k16 and, for .tf32, mma.m16n8k8."""
    inner = MMA[f"m16n8k{k}", kind].a
    row = np.concatenate([inner.row + 16 * warp for warp in range(4)])
    return _layout(row, np.tile(inner.column, (4, 1)), (64, k))

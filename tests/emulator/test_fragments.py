"""Matrix instructions against the PTX ISA's own tables of who holds what, element by element.

PTX ISA 9.2, section 9.7.14.5 "Matrix multiply-accumulate operation using mma instruction" (the rules of each shape for
row and column of ai, bi, ci), 9.7.14.5.15 "ldmatrix", 9.7.14.5.16 "stmatrix", and 9.7.15.5.1.1 "Register Fragments" of
wgmma.
The rules are written here as the ISA has them, as conditions on i; the emulator has closed forms.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from ptx_emulator import parse, run
from ptx_emulator.fragments import MMA, Layout, wgmma_a, wgmma_accumulator

Rule = Callable[[int, int, int], tuple[int, int]]  # group, thread in group, i -> row, column


def a_16x8_16(g: int, t: int, i: int) -> tuple[int, int]:
    return (g if i < 2 else g + 8), t * 2 + (i & 1)


def a_16x16_16(g: int, t: int, i: int) -> tuple[int, int]:
    row = g if 0 <= i < 2 or 4 <= i < 6 else g + 8
    return row, (t * 2 + (i & 1) if i < 4 else t * 2 + (i & 1) + 8)


def b_8x8_16(g: int, t: int, i: int) -> tuple[int, int]:
    return t * 2 + i, g


def b_16x8_16(g: int, t: int, i: int) -> tuple[int, int]:
    return (t * 2 + (i & 1) if i < 2 else t * 2 + (i & 1) + 8), g


def accumulator(g: int, t: int, i: int) -> tuple[int, int]:
    return (g if i < 2 else g + 8), t * 2 + (i & 1)


def a_16x4(g: int, t: int, i: int) -> tuple[int, int]:
    return (g if i == 0 else g + 8), t


def a_16x8(g: int, t: int, i: int) -> tuple[int, int]:
    return (g if i in (0, 2) else g + 8), (t if i in (0, 1) else t + 4)


def a_16x16_f64(g: int, t: int, i: int) -> tuple[int, int]:
    return (g, i * 2 + t) if i % 2 == 0 else (g + 8, i * 2 - 2 + t)


def b_4x8(g: int, t: int, i: int) -> tuple[int, int]:
    return t, g


def b_8x8(g: int, t: int, i: int) -> tuple[int, int]:
    return (t if i == 0 else t + 4), g


def b_16x8_f64(g: int, t: int, i: int) -> tuple[int, int]:
    return t + i * 4, g


def a_8x4(g: int, t: int, i: int) -> tuple[int, int]:
    return g, t


def c_8x8(g: int, t: int, i: int) -> tuple[int, int]:
    return g, t * 2 + (i & 1)


RULES: dict[tuple[str, str], tuple[Rule, Rule, Rule]] = {
    ("m16n8k8", "f16"): (a_16x8_16, b_8x8_16, accumulator),
    ("m16n8k8", "bf16"): (a_16x8_16, b_8x8_16, accumulator),
    ("m16n8k16", "f16"): (a_16x16_16, b_16x8_16, accumulator),
    ("m16n8k16", "bf16"): (a_16x16_16, b_16x8_16, accumulator),
    ("m16n8k4", "tf32"): (a_16x4, b_4x8, accumulator),
    ("m16n8k8", "tf32"): (a_16x8, b_8x8, accumulator),
    ("m16n8k4", "f64"): (a_16x4, b_4x8, accumulator),
    ("m16n8k8", "f64"): (a_16x8, b_8x8, accumulator),
    ("m16n8k16", "f64"): (a_16x16_f64, b_16x8_f64, accumulator),
    ("m8n8k4", "f64"): (a_8x4, b_4x8, c_8x8),
}


def held_by(rule: Rule, lane: int, i: int) -> tuple[int, int]:
    return rule(lane >> 2, lane % 4, i)


def assert_layout(layout: Layout, rule: Rule) -> None:
    lanes, elements = layout.row.shape
    assert lanes * elements == layout.shape[0] * layout.shape[1]
    for lane in range(lanes):
        for i in range(elements):
            assert (layout.row[lane, i], layout.column[lane, i]) == held_by(rule, lane, i), (lane, i)


@pytest.mark.parametrize(("shape", "kind"), RULES, ids=lambda text: text)
def test_the_tables_of_mma(shape: str, kind: str) -> None:
    assert MMA.keys() == RULES.keys()
    for layout, rule in zip(
        (MMA[shape, kind].a, MMA[shape, kind].b, MMA[shape, kind].c), RULES[shape, kind], strict=True
    ):
        assert_layout(layout, rule)


@pytest.mark.parametrize("n", [8, 24, 256])
def test_the_table_of_wgmmas_accumulator(n: int) -> None:
    """Figure "WGMMA .m64nNk16 register fragment layout for accumulator matrix D": 16 rows a warp, 8 columns for 4."""
    layout = wgmma_accumulator(n)
    assert layout.row.shape == (128, n // 2)
    for thread in range(128):
        warp, lane = divmod(thread, 32)
        for i in range(n // 2):
            row, column = held_by(accumulator, lane, i % 4)
            assert (layout.row[thread, i], layout.column[thread, i]) == (16 * warp + row, 8 * (i // 4) + column)


@pytest.mark.parametrize(("k", "kind", "rule"), [(16, "bf16", a_16x16_16), (8, "tf32", a_16x8)])
def test_the_table_of_wgmmas_registers(k: int, kind: str, rule: Rule) -> None:
    layout = wgmma_a(k, kind)
    for thread in range(128):
        warp, lane = divmod(thread, 32)
        for i in range(layout.row.shape[1]):
            row, column = held_by(rule, lane, i)
            assert (layout.row[thread, i], layout.column[thread, i]) == (16 * warp + row, column)


HEAD = """
.version 8.0
.target sm_90
.address_size 64
.shared .align 16 .b8 room[2048];
.entry k(.param .u64 given, .param .u64 made) .maxntid 32 {
  .reg .pred %p<9>;
  .reg .b32 %r<40>;
  .reg .b64 %rd<9>;
  ld.param.u64 %rd1, [given];
  ld.param.u64 %rd2, [made];
  mov.u32 %r1, %tid.x;
"""


def words_of(matrix: np.ndarray, rule: Rule, count: int) -> np.ndarray:
    """Registers [32, count]: elements of 32 bits, or pairs of 16, the first in the lower half."""
    each = 4 // matrix.dtype.itemsize
    held = [[matrix[held_by(rule, lane, i)] for i in range(count * each)] for lane in range(32)]
    return np.ascontiguousarray(np.array(held, matrix.dtype)).view(np.uint32)


@pytest.mark.parametrize(("shape", "kind"), [k for k in RULES if k[1] in ("f16", "tf32")], ids=lambda text: text)
def test_a_product_of_registers_laid_out_by_the_isa(shape: str, kind: str) -> None:
    """Small integers, whose products and sums are exact in every type and order."""
    depth = int(shape.split("k")[1])
    rng = np.random.default_rng(0)
    dtype = np.float16 if kind == "f16" else np.float32
    a, b = rng.integers(-8, 9, (16, depth)).astype(dtype), rng.integers(-8, 9, (depth, 8)).astype(dtype)
    c = rng.integers(-8, 9, (16, 8)).astype(np.float32)
    counts = [16 * depth * a.itemsize // 128, 8 * depth * a.itemsize // 128, 4]
    given = np.concatenate(
        [words_of(m, rule, n) for m, rule, n in zip((a, b, c), RULES[shape, kind], counts, strict=True)], 1
    )
    names = [f"%r{10 + i}" for i in range(given.shape[1])]
    groups = ["{" + ", ".join(names[: counts[0]]) + "}"]
    groups += ["{" + ", ".join(names[counts[0] : counts[0] + counts[1]]) + "}", "{" + ", ".join(names[-4:]) + "}"]
    loads = "".join(f"  ld.global.b32 {name}, [%rd4+{4 * i}];\n" for i, name in enumerate(names))
    stores = "".join(f"  st.global.b32 [%rd5+{4 * i}], %r{30 + i};\n" for i in range(4))
    text = f"""{HEAD}
  mul.wide.u32 %rd3, %r1, {4 * len(names)};
  add.s64 %rd4, %rd1, %rd3;
  mul.wide.u32 %rd3, %r1, 16;
  add.s64 %rd5, %rd2, %rd3;
{loads}
  mma.sync.aligned.{shape}.row.col.f32.{kind}.{kind}.f32 {{%r30, %r31, %r32, %r33}}, {", ".join(groups)};
{stores}
  ret;
}}
"""
    made = np.zeros((32, 4), np.float32)
    run(parse(text)["k"], 1, [np.ascontiguousarray(given), made])
    expected = a.astype(np.float64) @ b.astype(np.float64) + c
    for lane in range(32):
        for i in range(4):
            assert made[lane, i] == expected[held_by(RULES[shape, kind][2], lane, i)]


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix(transposed: bool) -> None:
    """Thread 8 m + r gives row r of matrix m; thread t gets elements 2 (t % 4), 2 (t % 4) + 1 of row t / 4 of each.

    With .trans the matrix is loaded in column-major format: row and column change places.
    """
    matrices = np.arange(4 * 64, dtype=np.uint16).reshape(4, 8, 8)
    text = f"""{HEAD}
  mul.wide.u32 %rd3, %r1, 16;
  add.s64 %rd4, %rd1, %rd3;
  add.s64 %rd5, %rd2, %rd3;
  ld.global.v4.b32 {{%r10, %r11, %r12, %r13}}, [%rd4];
  mov.u32 %r2, room;
  shl.b32 %r3, %r1, 4;
  add.u32 %r2, %r2, %r3;
  st.shared.v4.b32 [%r2], {{%r10, %r11, %r12, %r13}};
  bar.sync 0;
  ldmatrix.sync.aligned.m8n8.x4{".trans" if transposed else ""}.shared.b16 {{%r20, %r21, %r22, %r23}}, [%r2];
  st.global.v4.b32 [%rd5], {{%r20, %r21, %r22, %r23}};
  ret;
}}
"""
    made = np.zeros((32, 4), np.uint32)
    run(parse(text)["k"], 1, [matrices, made])
    got = made.view(np.uint16).reshape(32, 4, 2)
    for lane in range(32):
        for m in range(4):
            for i in range(2):
                row, column = lane // 4, 2 * (lane % 4) + i
                assert got[lane, m, i] == (matrices[m, column, row] if transposed else matrices[m, row, column])


@pytest.mark.parametrize("transposed", [False, True])
def test_stmatrix(transposed: bool) -> None:
    """The other way round."""
    held = np.arange(32 * 4 * 2, dtype=np.uint16).reshape(32, 4, 2)
    text = f"""{HEAD}
  mul.wide.u32 %rd3, %r1, 16;
  add.s64 %rd4, %rd1, %rd3;
  add.s64 %rd5, %rd2, %rd3;
  ld.global.v4.b32 {{%r10, %r11, %r12, %r13}}, [%rd4];
  mov.u32 %r2, room;
  shl.b32 %r3, %r1, 4;
  add.u32 %r2, %r2, %r3;
  stmatrix.sync.aligned.m8n8.x4{".trans" if transposed else ""}.shared.b16 [%r2], {{%r10, %r11, %r12, %r13}};
  bar.sync 0;
  ld.shared.v4.b32 {{%r20, %r21, %r22, %r23}}, [%r2];
  st.global.v4.b32 [%rd5], {{%r20, %r21, %r22, %r23}};
  ret;
}}
"""
    made = np.zeros((32, 4), np.uint32)
    run(parse(text)["k"], 1, [np.ascontiguousarray(held).view(np.uint32).reshape(32, 4), made])
    matrices = made.view(np.uint16).reshape(4, 8, 8)
    for lane in range(32):
        for m in range(4):
            for i in range(2):
                row, column = lane // 4, 2 * (lane % 4) + i
                place = (m, column, row) if transposed else (m, row, column)
                assert matrices[place] == held[lane, m, i]

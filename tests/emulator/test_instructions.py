"""Each family of instructions against values worked out by hand from the PTX ISA (9.2, section 9.7), edges included."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from ptx_emulator import Fault, UnknownInstructionError, parse, run

HEAD = """
.version 8.0
.target sm_90
.address_size 64
.entry k(.param .u64 given, .param .u64 made) .maxntid 32 {
  .reg .pred %p<9>;
  .reg .b16 %h<9>;
  .reg .b32 %r<40>;
  .reg .f32 %f<9>;
  .reg .b64 %rd<19>;
  .reg .f64 %d<9>;
  ld.param.u64 %rd1, [given];
  ld.param.u64 %rd2, [made];
  mov.u32 %r1, %tid.x;
  mul.wide.u32 %rd3, %r1, 8;
  add.s64 %rd2, %rd2, %rd3;
"""


def results(body: str, words: tuple[int, ...] = ()) -> np.ndarray:
    """What each lane leaves in %r0 (extended by zeros) or, where it is named, in %rd0; %r10 and on are given."""
    loads = "".join(f"  ld.global.b32 %r{10 + i}, [%rd1+{4 * i}];\n" for i in range(len(words)))
    made = np.zeros(32, np.uint64)
    end = "" if "%rd0" in body else "  cvt.u64.u32 %rd0, %r0;\n"
    text = f"{HEAD}{loads}{body}\n{end}  st.global.b64 [%rd2], %rd0;\n  ret;\n}}\n"
    run(parse(text)["k"], 1, [np.array(words or (0,), np.uint32), made])
    return made


def one(body: str, *words: int) -> int:
    made = results(body, words)
    assert (made == made[0]).all()
    return int(made[0])


def bits(value: float) -> int:
    return int(struct.unpack("<I", struct.pack("<f", value))[0])


A, B = 0x89ABCDEF, 0x01234567
CANONICAL = 0x7FFFFFFF
NAN, INF, TINY = 0x7FC00000, bits(float("inf")), 0x00000001  # TINY: the least subnormal float32


@pytest.mark.parametrize(
    ("body", "words", "expected"),
    [
        # integers
        ("add.s32 %r0, %r10, %r11;", (0x7FFFFFFF, 1), 0x80000000),
        ("sub.u32 %r0, %r10, %r11;", (0, 1), 0xFFFFFFFF),
        ("mul.lo.s32 %r0, %r10, %r11;", (0x10001, 0x10001), 0x20001),
        ("mul.hi.u32 %r0, %r10, %r11;", (0x80000000, 6), 3),
        ("mul.hi.s32 %r0, %r10, %r11;", (0x80000000, 6), 0xFFFFFFFD),
        ("mul.wide.s32 %rd0, %r10, %r11;", (0xFFFFFFFF, 5), 0xFFFFFFFFFFFFFFFB),
        ("mul.wide.u32 %rd0, %r10, %r11;", (0xFFFFFFFF, 5), 0x4FFFFFFFB),
        ("mad.lo.s32 %r0, %r10, %r11, 7;", (3, 5), 22),
        ("div.s32 %r0, %r10, %r11;", (0xFFFFFFF9, 2), 0xFFFFFFFD),  # -7 / 2 is cut towards zero
        ("rem.s32 %r0, %r10, %r11;", (0xFFFFFFF9, 2), 0xFFFFFFFF),
        ("min.s32 %r0, %r10, %r11;", (0xFFFFFFFF, 1), 0xFFFFFFFF),
        ("min.u32 %r0, %r10, %r11;", (0xFFFFFFFF, 1), 1),
        ("abs.s32 %r0, %r10;", (0xFFFFFFFB,), 5),
        ("sad.u32 %r0, %r10, %r11, 100;", (3, 10), 107),
        # bits
        ("shl.b32 %r0, %r10, %r11;", (1, 32), 0),  # shifts beyond the width are clamped to it
        ("shr.s32 %r0, %r10, %r11;", (0x80000000, 40), 0xFFFFFFFF),
        ("shr.u32 %r0, %r10, 31;", (0x80000000,), 1),
        ("shf.l.wrap.b32 %r0, %r10, %r11, 8;", (0x11223344, 0xAABBCCDD), 0xBBCCDD11),
        ("shf.r.clamp.b32 %r0, %r10, %r11, 40;", (0x11223344, 0xAABBCCDD), 0xAABBCCDD),
        ("lop3.b32 %r0, %r10, %r11, 0xFF00FF00, 0xEA;", (A, B), (A & B) | 0xFF00FF00),  # 0xF0 & 0xCC | 0xAA
        ("lop3.b32 %r0, %r10, %r11, 0xFF00FF00, 0x96;", (A, B), A ^ B ^ 0xFF00FF00),
        ("bfe.u32 %r0, %r10, 8, 12;", (A,), (A >> 8) & 0xFFF),
        ("bfe.s32 %r0, %r10, 28, 4;", (0x80000000,), 0xFFFFFFF8),
        ("bfi.b32 %r0, %r10, %r11, 8, 4;", (0xF, 0), 0xF00),
        ("brev.b32 %r0, %r10;", (0x80000001,), 0x80000001),
        ("brev.b32 %r0, %r10;", (0x00000002,), 0x40000000),
        ("popc.b32 %r0, %r10;", (0xF0F0F0F0,), 16),
        ("clz.b32 %r0, %r10;", (0x00010000,), 15),
        ("clz.b32 %r0, %r10;", (0,), 32),
        ("bfind.u32 %r0, %r10;", (0x00010000,), 16),
        ("bfind.u32 %r0, %r10;", (0,), 0xFFFFFFFF),
        ("bfind.s32 %r0, %r10;", (0xFFFFFFF0,), 3),  # of a negative number the first 0
        ("prmt.b32 %r0, %r10, %r11, 0x7610;", (0x33221100, 0x77665544), 0x77661100),
        ("prmt.b32 %r0, %r10, %r11, 0x0C00;", (0x33221180, 0), 0x80008080),  # 0xC: the sign of byte 4, which is 0
        ("prmt.b32 %r0, %r10, %r11, 0x8888;", (0x33221180, 0), 0xFFFFFFFF),  # the sign of byte 0
        # comparisons, selections
        ("setp.lt.f32 %p1, %r10, %r11; selp.b32 %r0, 1, 2, %p1;", (NAN, bits(1.0)), 2),
        ("setp.ltu.f32 %p1, %r10, %r11; selp.b32 %r0, 1, 2, %p1;", (NAN, bits(1.0)), 1),  # unordered
        ("setp.ne.f32 %p1, %r10, %r11; selp.b32 %r0, 1, 2, %p1;", (NAN, NAN), 2),
        ("setp.neu.f32 %p1, %r10, %r11; selp.b32 %r0, 1, 2, %p1;", (NAN, NAN), 1),
        ("setp.nan.f32 %p1, %r10, %r11; selp.b32 %r0, 1, 2, %p1;", (NAN, 0), 1),
        ("setp.lt.u32 %p1, %r10, %r11; selp.b32 %r0, 1, 2, %p1;", (0xFFFFFFFF, 1), 2),
        ("setp.lt.s32 %p1|%p2, %r10, %r11; selp.b32 %r0, 1, 2, %p2;", (0xFFFFFFFF, 1), 2),
        ("slct.b32.s32 %r0, %r10, %r11, -1;", (7, 8), 8),
        # floats
        ("max.f32 %r0, %r10, %r11;", (NAN, bits(-3.0)), bits(-3.0)),  # the other one
        # NaN is the canonical one, whatever the payload of what was given
        ("max.NaN.f32 %r0, %r10, %r11;", (NAN, bits(-3.0)), CANONICAL),
        ("min.NaN.f32 %r0, %r10, %r11;", (bits(1.0), 0xFFC01234), CANONICAL),
        ("max.f32 %r0, %r10, %r11;", (NAN, 0xFFC01234), CANONICAL),
        ("max.NaN.bf16x2 %r0, %r10, %r11;", (0x7FC03F80, 0x3F80FFC1), 0x7FFF7FFF),
        ("min.f32 %r0, %r10, %r11;", (bits(0.0), bits(-0.0)), bits(-0.0)),  # +0 > -0
        ("fma.rn.f32 %r0, %r10, %r10, %r11;", (bits(1 + 2**-12), bits(-1.0)), bits(2**-11 + 2**-24)),
        ("mul.ftz.f32 %r0, %r10, %r11;", (TINY, bits(2.0)), 0),
        ("mul.rn.f32 %r0, %r10, %r11;", (TINY, bits(2.0)), 2),
        ("add.f32 %r0, %r10, %r11;", (bits(2.0**24), bits(1.0)), bits(2.0**24)),  # a tie goes to even
        ("div.rn.f32 %r0, %r10, %r11;", (bits(1.0), bits(3.0)), 0x3EAAAAAB),
        ("sqrt.rn.f32 %r0, %r10;", (bits(2.0),), 0x3FB504F3),
        ("neg.f32 %r0, %r10;", (bits(0.0),), bits(-0.0)),
        ("rcp.approx.f32 %r0, %r10;", (bits(-0.0),), bits(float("-inf"))),
        ("ex2.approx.f32 %r0, %r10;", (bits(float("-inf")),), 0),
        ("lg2.approx.f32 %r0, %r10;", (bits(8.0),), bits(3.0)),
        # conversions
        ("cvt.rni.s32.f32 %r0, %r10;", (bits(2.5),), 2),
        ("cvt.rzi.s32.f32 %r0, %r10;", (bits(-2.7),), 0xFFFFFFFE),
        ("cvt.rmi.s32.f32 %r0, %r10;", (bits(-2.1),), 0xFFFFFFFD),
        ("cvt.rpi.s32.f32 %r0, %r10;", (bits(2.1),), 3),
        ("cvt.rzi.s32.f32 %r0, %r10;", (INF,), 0x7FFFFFFF),  # out of range: clamped
        ("cvt.rzi.u32.f32 %r0, %r10;", (bits(-5.0),), 0),
        ("cvt.rn.f32.s32 %r0, %r10;", (0x01000001,), bits(2.0**24)),
        ("cvt.s32.s8 %r0, %r10;", (0x000000F0,), 0xFFFFFFF0),
        ("cvt.rn.bf16.f32 %h1, %r10; cvt.u32.u16 %r0, %h1;", (0x3F808000,), 0x3F80),  # ties to even
        ("cvt.rn.bf16.f32 %h1, %r10; cvt.u32.u16 %r0, %h1;", (0x3F818000,), 0x3F82),
        ("cvt.rn.f16.f32 %h1, %r10; cvt.u32.u16 %r0, %h1;", (bits(65520.0),), 0x7C00),
        ("cvt.rn.bf16x2.f32 %r0, %r10, %r11;", (bits(1.0), bits(2.0)), 0x3F804000),  # the first is the upper half
        ("cvt.rna.tf32.f32 %r0, %r10;", (0x3F801000,), 0x3F802000),  # ties away from zero
        ("mov.b64 %rd0, {%r10, %r11};", (1, 2), 0x200000001),  # low first
    ],
)
def test_one_instruction(body: str, words: tuple[int, ...], expected: int) -> None:
    assert one(f"  {body}", *words) == expected


LANE = np.arange(32)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("shfl.sync.bfly.b32 %r0, %r1, 5, 0x1f, -1;", LANE ^ 5),
        ("shfl.sync.up.b32 %r0, %r1, 3, 0x0, -1;", np.where(LANE < 3, LANE, LANE - 3)),
        ("shfl.sync.down.b32 %r0, %r1, 3, 0x1f, -1;", np.where(LANE > 28, LANE, LANE + 3)),
        ("shfl.sync.idx.b32 %r0, %r1, 9, 0x1f, -1;", np.full(32, 9)),
        # segments of 8: the upper bits of c say which of a lane's own stay
        ("shfl.sync.idx.b32 %r0, %r1, 1, 0x181f, -1;", LANE // 8 * 8 + 1),
        ("shfl.sync.down.b32 %r0, %r1, 3, 0x181f, -1;", np.where(LANE % 8 > 4, LANE, LANE + 3)),
        # outside its segment a lane has its own value, and a false predicate
        (
            "shfl.sync.up.b32 %r2|%p1, %r1, 3, 0x0, -1; selp.b32 %r0, %r2, 77, %p1;",
            np.where(LANE < 3, 77, LANE - 3),
        ),
        ("redux.sync.add.u32 %r0, %r1, -1;", np.full(32, 496)),
        ("redux.sync.max.s32 %r0, %r1, -1;", np.full(32, 31)),
        ("redux.sync.xor.b32 %r0, %r1, -1;", np.full(32, 0)),
        ("setp.lt.u32 %p1, %r1, 5; vote.sync.ballot.b32 %r0, %p1, -1;", np.full(32, 0x1F)),
        ("setp.lt.u32 %p1, %r1, 5; vote.sync.any.pred %p2, %p1, -1; selp.b32 %r0, 1, 0, %p2;", np.full(32, 1)),
        ("setp.lt.u32 %p1, %r1, 5; vote.sync.all.pred %p2, %p1, -1; selp.b32 %r0, 1, 0, %p2;", np.full(32, 0)),
        ("setp.lt.u32 %p1, %r1, 5; vote.sync.uni.pred %p2, %p1, -1; selp.b32 %r0, 1, 0, %p2;", np.full(32, 0)),
        ("shr.u32 %r2, %r1, 3; match.any.sync.b32 %r0, %r2, -1;", 0xFF << (LANE // 8 * 8)),
        ("mov.u32 %r0, %lanemask_lt;", (1 << LANE) - 1),
    ],
)  # fmt: skip
def test_instructions_of_a_warp(body: str, expected: np.ndarray) -> None:
    assert (results(f"  {body}") == expected.astype(np.uint64)).all()


def test_atomics_give_what_was_there_before() -> None:
    """Each lane adds its own number to one word, in some order: it is given the sum of those before it."""
    before = results("  add.u32 %r2, %r1, 1;\n  atom.global.add.u32 %r0, [%rd1], %r2;")
    order = np.argsort(before)
    assert (before[order] == np.cumsum([0, *(order + 1)])[:32].astype(np.uint64)).all()


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ("frobnicate.b32 %r0, %r1;", "frobnicate"),
        ("add.sat.s32 %r0, %r1, %r1;", "modifier .sat"),
        ("cvt.rz.f32.u32 %r0, %r1;", "a rounding"),
        ("cvt.sat.f32.f32 %r0, %r1;", "a form of cvt"),
        # functions in types and roundings that the PTX ISA has not
        ("tanh.approx.f64 %d0, %d1;", "operands or types"),
        ("sin.approx.f16 %h0, %h1;", "operands or types"),
        ("ex2.rn.f32 %r0, %r1;", "modifier .rn"),
        ("shf.l.wrap.b64 %rd0, %rd1, %rd2, %r1;", "a type of shf"),
    ],
)
def test_what_is_not_known_is_an_error_with_its_line(body: str, named: str) -> None:
    with pytest.raises(UnknownInstructionError, match=r"PTX line \d+: .*") as caught:
        results(f"  {body}")
    assert named in str(caught.value)
    assert isinstance(caught.value, Fault)

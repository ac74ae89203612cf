"""Sectors, wavefronts, instructions, loops and waits of small kernels, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from ptx_emulator import Counters, parse, run
from ptx_emulator.counters import Counts, sectors, wavefronts

LANES = np.arange(32)
SECTOR_WORDS = 8  # of 4 bytes


@pytest.mark.parametrize(
    ("addresses", "size", "expected"),
    [
        (4 * LANES, 4, (4, 4)),  # 128 bytes in a row
        (4 + 4 * LANES, 4, (5, 4)),  # the same, begun within a sector
        (8 * LANES, 4, (8, 4)),  # every second word
        (64 * LANES, 2, (32, 2)),  # a sector each, of which 2 bytes are asked for
        (0 * LANES, 4, (1, 1)),  # one word for all
        (16 * LANES, 16, (16, 16)),
    ],
)
def test_sectors_of_a_request(addresses: np.ndarray, size: int, expected: tuple[int, int]) -> None:
    assert sectors(addresses, size, LANES) == expected
    # two warps are two requests, even for the same bytes
    assert sectors(np.tile(addresses, 2), size, np.arange(64)) == (2 * expected[0], 2 * expected[1])


@pytest.mark.parametrize(
    ("addresses", "size", "expected"),
    [
        (4 * LANES, 4, (1, 1)),
        (8 * LANES, 4, (2, 1)),  # two words of each second bank
        (128 * LANES, 4, (32, 1)),  # all in one bank
        (0 * LANES, 4, (1, 1)),  # one word is given to all at once
        (2 * LANES, 2, (1, 1)),
        (8 * LANES, 8, (2, 2)),  # half a warp at once
        (16 * LANES, 16, (4, 4)),  # a quarter of a warp at once
        (128 * LANES, 16, (32, 4)),  # eight rows of 128 bytes: the same four banks
        ((128 * LANES) ^ (16 * (LANES % 8)), 16, (4, 4)),  # and swizzled, as Triton lays matrices out
    ],
)
def test_wavefronts_of_a_request(addresses: np.ndarray, size: int, expected: tuple[int, int]) -> None:
    assert wavefronts(addresses, size, LANES) == expected


HEAD = """
.version 8.0
.target sm_80
.address_size 64
.shared .align 16 .b8 room[4096];
.entry k(.param .u64 p, .param .u32 n) .maxntid 64 {
  .reg .pred %p<9>;
  .reg .b32 %r<99>;
  .reg .f32 %f<99>;
  .reg .b64 %rd<99>;
  ld.param.u64 %rd1, [p];
  ld.param.u32 %r9, [n];
  mov.u32 %r1, %tid.x;
  mul.wide.u32 %rd2, %r1, 4;
  add.s64 %rd3, %rd1, %rd2;
"""


def counted(body: str, turns: int = 3) -> Counts:
    kernel = parse(HEAD + body + "  ret;\n}\n")["k"]
    # numpy begins where the host's heap has room, which is not always where a sector begins
    room = np.zeros(4096 + SECTOR_WORDS, np.uint32)
    begin = -(room.ctypes.data // room.itemsize) % SECTOR_WORDS
    memory = room[begin : begin + 4096]
    counters = Counters(kernel)
    run(kernel, 2, [memory, turns], block=64, observer=counters)
    return counters.finished()


def test_instructions_barriers_and_turns_of_a_loop() -> None:
    counts = counted(
        """
  mov.u32 %r2, 0;
LOOP:
  add.u32 %r2, %r2, 1;
  bar.sync 0;
  setp.lt.u32 %p1, %r2, %r9;
  @%p1 bra LOOP;
""",
        turns=5,
    )
    # four warps: six instructions before, four in a turn, and the end
    assert counts.instructions == 4 * (6 + 5 * 4 + 1)
    assert counts.barriers == 4 * 5
    assert [(x.instructions, x.barriers, x.products, x.iterations) for x in counts.loops] == [(4, 1, 0, 4 * 5)]


def test_only_innermost_loops_are_told_of() -> None:
    counts = counted(
        """
  mov.u32 %r2, 0;
OUTER:
  mov.u32 %r3, 0;
INNER:
  add.u32 %r3, %r3, 1;
  setp.lt.u32 %p1, %r3, 2;
  @%p1 bra INNER;
  add.u32 %r2, %r2, 1;
  setp.lt.u32 %p1, %r2, %r9;
  @%p1 bra OUTER;
"""
    )
    assert [(x.instructions, x.iterations) for x in counts.loops] == [(3, 4 * 3 * 2)]


LOAD = "  ld.global.b32 %r{}, [%rd3+{}];\n"
USE = "  add.u32 %r40, %r40, %r{};\n"
BUSY = "".join(f"  add.u32 %r{60 + i % 9}, %r50, {i};\n" for i in range(33))


@pytest.mark.parametrize(
    ("body", "waits"),
    [
        (LOAD.format(10, 0), 0),  # nobody needs it
        (LOAD.format(10, 0) + USE.format(10), 1),
        # an assembler issues both before it needs the first
        (LOAD.format(10, 0) + USE.format(10) + LOAD.format(11, 256) + USE.format(11), 1),
        # across a barrier it does not
        (LOAD.format(10, 0) + USE.format(10) + "  bar.sync 0;\n" + LOAD.format(11, 256) + USE.format(11), 2),
        # an address that is loaded
        (LOAD.format(10, 0) + "  cvt.u64.u32 %rd9, %r10;\n  add.s64 %rd9, %rd9, %rd3;\n" * 1
         + "  ld.global.b32 %r11, [%rd9];\n" + USE.format(11), 2),
        # needed in the next block, where nothing or enough lies between
        (LOAD.format(10, 0) + "  bar.sync 0;\n" + USE.format(10), 1),
        (LOAD.format(10, 0) + "  bar.sync 0;\n" + BUSY + USE.format(10), 0),
    ],
)  # fmt: skip
def test_waits_for_loads(body: str, waits: int) -> None:
    assert counted(body).waits == 4 * waits


COPY = "  cp.async.ca.shared.global [%r20+{}], [%rd3+{}], 4;\n  cp.async.commit_group;\n"
ROOM = "  mov.u32 %r21, room;\n  shl.b32 %r22, %r1, 2;\n  add.u32 %r20, %r21, %r22;\n"
WAIT = "  cp.async.wait_group {};\n"


@pytest.mark.parametrize(
    ("body", "waits"),
    [
        (COPY.format(0, 0) + WAIT.format(0), 1),
        (COPY.format(0, 0) + BUSY + WAIT.format(0), 1),  # within a block it counts, whatever lies between
        (COPY.format(0, 0) + "  bar.sync 0;\n" + BUSY + WAIT.format(0), 0),
        (COPY.format(0, 0) + COPY.format(256, 256) + WAIT.format(1) + WAIT.format(0), 2),
        (COPY.format(0, 0) + "  bar.sync 0;\n" + BUSY + COPY.format(256, 256) + WAIT.format(1), 0),  # two buffers
    ],
)
def test_waits_for_copies(body: str, waits: int) -> None:
    assert counted(ROOM + body).waits == 4 * waits


def test_shared_memory_and_global_memory_of_a_launch() -> None:
    counts = counted(ROOM + LOAD.format(10, 0) + "  st.shared.b32 [%r20], %r10;\n")
    assert (counts.sectors, counts.ideal_sectors) == (4 * 4, 4 * 4)
    assert (counts.wavefronts, counts.ideal_wavefronts) == (4, 4)

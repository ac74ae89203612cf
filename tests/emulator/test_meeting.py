"""Lanes of a warp that has diverged meet at the instructions that they execute together."""

from __future__ import annotations

import numpy as np
import pytest
from ptx_emulator import Fault, Options, parse, run
from ptx_emulator.options import SCHEDULES

# lane 0 of each block waits until the block before has stored its sum; then the warp votes
CHAIN = """
.version 8.0
.target sm_80
.address_size 64
.entry chain(.param .u64 words, .param .u64 votes) .maxntid 64 {
  .reg .pred %p<4>;
  .reg .b32 %r<9>;
  .reg .b64 %rd<9>;
  ld.param.u64 %rd1, [words];
  ld.param.u64 %rd2, [votes];
  mov.u32 %r1, %ctaid.x;
  mov.u32 %r2, %tid.x;
  mul.wide.u32 %rd3, %r1, 4;
  add.s64 %rd4, %rd1, %rd3;
  setp.ne.u32 %p1, %r2, 0;
  @%p1 bra AFTER;
WAIT:
  ld.relaxed.gpu.u32 %r3, [%rd4];
  setp.eq.u32 %p2, %r3, 0;
  @%p2 bra WAIT;
  add.u32 %r4, %r3, 1;
  st.relaxed.gpu.u32 [%rd4+4], %r4;
AFTER:
  setp.lt.u32 %p3, %r2, 40;
  VOTE
  mad.lo.u32 %r6, %r1, 64, %r2;
  mul.wide.u32 %rd5, %r6, 4;
  add.s64 %rd6, %rd2, %rd5;
  st.global.u32 [%rd6], %r5;
  ret;
}
"""
BALLOT = "vote.sync.ballot.b32 %r5, %p3, -1;"


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_lanes_wait_for_one_that_waits(schedule: str) -> None:
    blocks = 5
    words, votes = np.array([7, *[0] * blocks], np.uint32), np.zeros((blocks, 2, 32), np.uint32)
    kernel = parse(CHAIN.replace("VOTE", BALLOT))["chain"]
    run(kernel, blocks, [words, votes], block=64, options=Options(schedule=schedule))
    assert (words == 7 + np.arange(blocks + 1)).all()
    assert (votes[:, 0] == 0xFFFFFFFF).all()
    assert (votes[:, 1] == 0xFF).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_lanes_that_never_meet_are_a_fault(schedule: str) -> None:
    """Each half of the warp votes somewhere else."""
    apart = f"setp.lt.u32 %p1, %r2, 16; @%p1 bra OTHER; {BALLOT} bra.uni DONE; OTHER: {BALLOT} DONE:"
    words, votes = np.array([7, 0], np.uint32), np.zeros(64, np.uint32)
    kernel = parse(CHAIN.replace("VOTE", apart))["chain"]
    with pytest.raises(Fault, match=r"^a diverged warp; block 0 thread 0, PTX line .*: vote\.sync"):
        run(kernel, 1, [words, votes], block=64, options=Options(schedule=schedule))

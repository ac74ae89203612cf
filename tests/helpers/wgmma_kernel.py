"""A small kernel of one warpgroup for the emulator, whose products stand between lines of one's own."""

from __future__ import annotations

# A of ones in registers, B of ones in shared memory: 16 everywhere after one product, 32 after two
KERNEL = """
.version 8.0
.target sm_90a
.address_size 64
.shared .align 128 .b8 room[256];
.entry k(.param .u64 made) .maxntid 128 {{
  .reg .pred %p<9>;
  .reg .b32 %r<60>;
  .reg .b64 %rd<9>;
  ld.param.u64 %rd1, [made];
  mov.u32 %r1, %tid.x;
  mul.wide.u32 %rd2, %r1, 4;
  add.s64 %rd1, %rd1, %rd2;
  mov.b32 %r2, 0x3F803F80;
  shl.b32 %r3, %r1, 2;
  setp.lt.u32 %p1, %r1, 64;
  setp.eq.u32 %p2, %r1, %r1;
  setp.ne.u32 %p3, %r1, 0;
  mov.u32 %r4, room;
  add.u32 %r4, %r4, %r3;
  @%p1 st.shared.b32 [%r4], %r2;
  mov.b64 %rd3, 0x800080000;
  mov.b32 %r20, %r2; mov.b32 %r21, %r2; mov.b32 %r22, %r2; mov.b32 %r23, %r2;
  mov.b32 %r30, 0; mov.b32 %r31, 0; mov.b32 %r32, 0; mov.b32 %r33, 0;
{body}
  st.global.b32 [%rd1], %r30;
  ret;
}}
"""
SHOW = "fence.proxy.async.shared::cta; bar.sync 0;"
FENCE = "wgmma.fence.sync.aligned;"
COMMIT = "wgmma.commit_group.sync.aligned;"
WAIT = "wgmma.wait_group.sync.aligned 0;"
LATER = "wgmma.wait_group.sync.aligned 1;"


def product(result: int = 30, fragments: int = 20, shape: str = "m64n8k16", count: int = 4) -> str:
    d, a = (", ".join(f"%r{first + i}" for i in range(n)) for first, n in ((result, count), (fragments, 4)))
    return f"wgmma.mma_async.sync.aligned.{shape}.f32.bf16.bf16 {{{d}}}, {{{a}}}, %rd3, %p2, 1, 1, 0;"


def text(*lines: str) -> str:
    """Its PTX with these lines before the store of the first accumulator."""
    return KERNEL.format(body="\n".join(f"  {line}" for line in lines))

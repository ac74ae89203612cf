"""int32 results that wrap and become an address are found, and those that do not are left alone."""

from __future__ import annotations

import numpy as np
import pytest
from ptx_emulator import Options, Report, parse, run

# y[i] = x[(factor * tid) * stride / stride ...]: an offset in int32, widened, in bytes
PTX = """
.version 8.0
.target sm_80
.address_size 64
.visible .entry k(.param .u64 x, .param .u64 y, .param .u32 factor, .param .u32 add)
.reqntid 32
{{
    .reg .pred %p<2>;
    .reg .b32 %r<9>;
    .reg .b64 %rd<9>;
    ld.param.b64 %rd1, [x];
    ld.param.b64 %rd2, [y];
    ld.param.b32 %r1, [factor];
    ld.param.b32 %r2, [add];
    mov.u32 %r3, %tid.x;
    {offset}
    mul.wide.s32 %rd3, %r4, 4;
    add.s64 %rd4, %rd1, %rd3;
    setp.eq.b32 %p1, %r3, 0;
    @%p1 ld.global.b32 %r5, [%rd4];
    @%p1 st.global.b32 [%rd2], %r5;
    ret;
}}
"""


def _run(offset: str, factor: int, add: int, wraps: bool = True) -> Report:
    kernel = parse(PTX.format(offset=offset))["k"]
    x, y = np.arange(64, dtype=np.int32), np.zeros(1, np.int32)
    return run(kernel, 1, [x, y, factor, add], options=Options(findings="collect", wraps=wraps))


# 2^16 + tid times 2^16 wraps in each lane; what is loaded is x[0]
WRAPPING = [
    "add.s32 %r6, %r3, 65536; mul.lo.s32 %r4, %r6, %r1;",
    "add.s32 %r6, %r3, 65536; shl.b32 %r4, %r6, 16;",
    "add.s32 %r6, %r3, 65536; mad.lo.s32 %r4, %r6, %r1, %r2;",
]


@pytest.mark.parametrize("offset", WRAPPING)
def test_a_product_that_wraps_is_found_at_the_load(offset: str) -> None:
    (finding,) = _run(offset, 65536, 0).findings
    assert finding.kind == "wrap"
    assert "ld.global.b32" in finding.instruction
    assert not _run(offset, 65536, 0, wraps=False).findings


def test_a_sum_that_wraps_is_found() -> None:
    """2^31 - 1 + 1, and back by 2^31: right by luck."""
    offset = "add.s32 %r6, %r3, 2147483647; add.s32 %r7, %r6, 1; add.s32 %r4, %r7, %r2;"
    assert [f.kind for f in _run(offset, 0, -(2**31)).findings] == ["wrap"]


def test_lanes_that_wrap_but_do_not_access_are_no_finding() -> None:
    """Lane 0 alone loads; its product is 0, that of lane 31 wraps."""
    assert not _run("mul.lo.s32 %r4, %r3, %r1;", 2**30, 0).findings


def test_a_mask_forgets_the_upper_bits() -> None:
    assert not _run("add.s32 %r6, %r3, 65536; mul.lo.s32 %r7, %r6, %r1; and.b32 %r4, %r7, 31;", 65536, 0).findings


def test_results_that_fit_are_no_finding() -> None:
    assert not _run("mad.lo.s32 %r4, %r3, %r1, %r2;", 2**25, -5 + 6).findings

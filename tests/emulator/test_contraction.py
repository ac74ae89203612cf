"""The three readings of products and sums: as written, contracted wherever it may be, never."""

from __future__ import annotations

import numpy as np
import pytest
from ptx_emulator import Numerics, Options, parse, run

PTX = """
.version 8.0
.target sm_80
.address_size 64
.visible .entry k(.param .u64 x, .param .u64 y)
.reqntid 1
{{
    .reg .pred %p<2>;
    .reg .b32 %f<9>;
    .reg .b64 %rd<9>;
    ld.param.b64 %rd1, [x];
    ld.param.b64 %rd2, [y];
    ld.global.b32 %f1, [%rd1];
    ld.global.b32 %f2, [%rd1+4];
    ld.global.b32 %f3, [%rd1+8];
    {code}
    st.global.b32 [%rd2], %f5;
    ret;
}}
"""
A = np.float32(1 + 2**-12)  # its square is 1 + 2^-11 + 2^-24, of which float32 keeps no 2^-24
ROUNDED, EXACT = np.float32(2**-11), np.float32(2**-11 + 2**-24)  # A A - 1


def _run(code: str, fusion: str, c: float = -1.0) -> float:
    x, y = np.array([A, A, c], np.float32), np.zeros(1, np.float32)
    kernel = parse(PTX.format(code=code))["k"]
    run(kernel, 1, [x, y], options=Options(numerics=Numerics(fusion=fusion)))
    return float(y[0])


@pytest.mark.parametrize(("fusion", "expected"), [("written", ROUNDED), ("never", ROUNDED), ("always", EXACT)])
@pytest.mark.parametrize(
    ("code", "c", "sign"),
    [
        ("mul.f32 %f4, %f1, %f2; add.f32 %f5, %f4, %f3;", -1.0, 1),
        ("mul.f32 %f4, %f1, %f2; add.f32 %f5, %f3, %f4;", -1.0, 1),
        ("mul.f32 %f4, %f1, %f2; sub.f32 %f5, %f4, %f3;", 1.0, 1),
        ("mul.f32 %f4, %f1, %f2; sub.f32 %f5, %f3, %f4;", 1.0, -1),
    ],
)
def test_a_sum_that_may_be_contracted(code: str, c: float, sign: int, fusion: str, expected: np.float32) -> None:
    assert _run(code, fusion, c) == sign * float(expected)


@pytest.mark.parametrize(
    "code",
    [
        "mul.rn.f32 %f4, %f1, %f2; add.f32 %f5, %f4, %f3;",
        "mul.f32 %f4, %f1, %f2; add.rn.f32 %f5, %f4, %f3;",
        "mul.f32 %f4, %f1, %f2; mov.b32 %f1, 0f00000000; add.f32 %f5, %f4, %f3;",  # the factor is another by then
        "mul.f32 %f4, %f1, %f2; bra next; next: add.f32 %f5, %f4, %f3;",
    ],
)
def test_a_sum_that_is_not_contracted(code: str) -> None:
    assert _run(code, "always") == float(ROUNDED)


@pytest.mark.parametrize(("fusion", "expected"), [("written", EXACT), ("never", ROUNDED), ("always", EXACT)])
def test_fma(fusion: str, expected: np.float32) -> None:
    assert _run("fma.rn.f32 %f5, %f1, %f2, %f3;", fusion) == float(expected)

"""Kernels are compiled as `PINNED` of kernels/_launch.py says, whatever Triton's own choice is."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from kernel_place import EMULATED

from pixelrefer_fast.kernels._launch import PINNED, launch

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(not EMULATED, reason="needs compiled kernels in the emulator: make emulate"),
]


@triton.jit
def _multiply_and_add(x, y, z, out):
    tl.store(out, tl.load(x) * tl.load(y) + tl.load(z))


@pytest.mark.parametrize("default", [False, True])
@pytest.mark.parametrize("own", [{}, {"enable_fp_fusion": False}], ids=["pinned", "of its own"])
def test_products_and_sums_are_fused(own: dict[str, bool], default: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from ptx_emulator import Options, triton_driver

    monkeypatch.setattr(triton_driver.settings, "options", Options())  # as the PTX is written, whatever the mode
    monkeypatch.setattr(triton.knobs.language, "default_fp_fusion", default)
    # (1 + 2^-12)² - 1 - 2^-11 is 2^-24, which the product's own rounding takes away
    x, z, out = torch.tensor([1 + 2**-12]), torch.tensor([-1 - 2**-11]), torch.zeros(1)
    launch(_multiply_and_add, "scratch.multiply_and_add", (1,), x, x, z, out, **own)
    assert PINNED == {"enable_fp_fusion": True}
    assert out.item() == (0 if own else 2**-24)

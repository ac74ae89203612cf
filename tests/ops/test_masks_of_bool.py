"""The interpreter refuses masks that are not bool, in every version of Triton (tests/conftest.py does so for 3.6)."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from kernel_place import INTERPRETED

from pixelrefer_fast.kernels._launch import launch

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(
        not INTERPRETED, reason="kernels are compiled here, and a compiler takes the mask as it is meant"
    ),
]


@triton.jit
def _load(x, out, count, FOUR: tl.constexpr):
    place = tl.arange(0, FOUR)
    tl.store(out + place, tl.load(x + place, mask=(place < 3) & (count > 0), other=0.0))


@triton.jit
def _store(x, out, count, FOUR: tl.constexpr):
    place = tl.arange(0, FOUR)
    tl.store(out + place, tl.load(x + place), mask=(place < 3) & (count > 0))


@pytest.mark.parametrize("kernel", [_load, _store], ids=["load", "store"])
def test_a_mask_of_integers_is_refused(kernel: triton.JITFunction) -> None:
    with pytest.raises(
        Exception, match=r"mask of create_masked_\w+: expected bool, got int32|mask has unsupported dtype"
    ):
        launch(kernel, "scratch.masked", (1,), torch.ones(4), torch.ones(4), 3, FOUR=4)

"""pack_masks against NumPy, mask by mask."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pixelrefer_fast.ops import pack_masks
from pixelrefer_fast.ops.pack_masks import (
    AREA,
    BELOW,
    BEYOND,
    BOTTOM,
    DIGEST,
    DIGEST2,
    HIGHEST,
    INT64_MAX,
    INT64_MIN,
    LOWEST,
    RIGHT,
    UNFINITE,
)


def _digest(packed: np.ndarray, which: int) -> int:
    """Of the bytes of a mask, in whole numbers of Python."""
    total = 0
    for place, byte in enumerate(packed.flatten().tolist()):
        word = (2 * place + which + 1) * 0x9E3779B97F4A7C15 % 2**64
        word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        word = (word ^ word >> 27) * 0x94D049BB133111EB % 2**64
        total += byte * (word ^ word >> 31)
    total %= 2**64
    return total if total < 2**63 else total - 2**64


VALUES = {
    torch.bool: [False, True],
    torch.uint8: [0, 1, 200, 255],
    torch.int16: [0, -1, 7],
    torch.int64: [0, -5, INT64_MIN, INT64_MAX],
    torch.float32: [0.0, 0.5, 0.51, -3.0, 1e30, float("nan"), float("inf")],
    torch.bfloat16: [0.0, 0.5, 0.75, float("-inf")],
}


@given(
    dtype=st.sampled_from(sorted(VALUES, key=str)),
    shape=st.tuples(st.integers(0, 3), st.integers(1, 12), st.integers(1, 40)),
    density=st.sampled_from([0.0, 0.05, 0.7, 1.0]),
    seed=st.integers(0, 2**32 - 1),
    backend=st.sampled_from(["torch", "auto"]),
)
def test_against_numpy(
    dtype: torch.dtype, shape: tuple[int, int, int], density: float, seed: int, backend: str
) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.tensor(VALUES[dtype], dtype=dtype)
    chosen = torch.randint(len(values), shape, generator=generator)
    masks = values[chosen * (torch.rand(shape, generator=generator) < density)]
    cuts = torch.tensor([0.5, 0.0, 0.5])[: shape[0]]
    bits, extents = pack_masks(masks, cuts, backend=backend)
    assert bits.shape == (shape[0], shape[1], -(-shape[2] // 8))
    for mask, cut, packed, extent in zip(masks, cuts.tolist(), bits.numpy(), extents.tolist(), strict=True):
        marked = (mask.float() > cut if dtype.is_floating_point else mask != 0).numpy()
        assert np.array_equal(packed, np.packbits(marked, axis=1))
        assert extent[UNFINITE] == int(dtype.is_floating_point and not mask.isfinite().all())
        rows, columns = np.flatnonzero(marked.any(1)), np.flatnonzero(marked.any(0))
        assert extent[AREA] == marked.sum()
        assert [extent[DIGEST], extent[DIGEST2]] == [_digest(packed, which) for which in range(2)]
        if not len(rows):
            assert extent[:UNFINITE] == [0] * UNFINITE
            continue
        assert (shape[1] - extent[BELOW], shape[2] - extent[BEYOND]) == (rows[0], columns[0])
        assert (extent[BOTTOM], extent[RIGHT]) == (rows[-1] + 1, columns[-1] + 1)
        if not dtype.is_floating_point:
            own = mask[torch.from_numpy(marked)]
            assert (extent[HIGHEST] ^ INT64_MIN, extent[LOWEST] ^ INT64_MAX) == (int(own.max()), int(own.min()))


@pytest.mark.parametrize(
    ("masks", "cuts", "message"),
    [
        (torch.zeros(3, 4), torch.zeros(3), r"expected masks of shape \(any, any, any\), got \(3, 4\)"),
        (torch.zeros(3, 4, 5), torch.zeros(2), r"expected cuts of shape \(3\), got \(2,\)"),
        (torch.zeros(3, 4, 5), torch.zeros(3).double(), "expected cuts of torch.float32, got torch.float64"),
        (torch.zeros(1, 4, 5).cfloat(), torch.zeros(1), "expected masks of bool, integers or floats, got torch.comp"),
        (torch.zeros(1, 4, 0), torch.zeros(1), r"expected masks of at least 1x1 pixels, got \(4, 0\)"),
    ],
)
def test_refused(masks: torch.Tensor, cuts: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=f"^pack_masks: {message}"):
        pack_masks(masks, cuts)

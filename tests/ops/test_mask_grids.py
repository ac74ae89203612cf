"""mask_grids against OpenCV's and torch's resizing, cell by cell, and against exact fractions."""

from __future__ import annotations

from fractions import Fraction

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelrefer_fast.ops import mask_grids
from pixelrefer_fast.ops.mask_grids import COLUMNS, weight_bits

SIDE = st.one_of(st.integers(1, 90), st.sampled_from([14, 28, 56, 224, 480]))


def _table(mask: np.ndarray, size: tuple[int, int], rounded: bool) -> torch.Tensor:
    """All of a mask, to `size`."""
    height, width = mask.shape
    bits = (weight_bits(size[0], height), weight_bits(size[1], width)) if rounded else (0, 0)
    return torch.tensor([[0, 0, width, 0, 0, height, width, 0, 0, height, width, *size, *bits]])


def _drawn(mask: np.ndarray, size: tuple[int, int], rounded: bool, backend: str = "auto") -> np.ndarray:
    bits = torch.from_numpy(np.packbits(mask))
    cells = mask_grids(bits, _table(mask, size, rounded), size[0] * size[1], backend=backend)
    return cells.view(size).numpy()


@st.composite
def _cases(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, int]]:
    """Grids whose places fall on pixels are as frequent as others."""
    size = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    sides = [s * draw(st.integers(1, 5)) if draw(st.booleans()) else draw(SIDE) for s in size]
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return (random.random(sides) < draw(st.sampled_from([0.01, 0.3, 0.8, 1]))).astype(np.uint8), size


@settings(deadline=None, max_examples=300)
@given(case=_cases(), backend=st.sampled_from(["torch", "auto"]))
def test_passes_that_round_are_torchs(case: tuple[np.ndarray, tuple[int, int]], backend: str) -> None:
    mask, size = case
    tensor = torch.from_numpy(mask)[None, None]
    wanted = torch.nn.functional.interpolate(tensor, size=size, mode="bilinear")[0, 0].numpy()
    assert np.array_equal(_drawn(mask, size, True, backend), wanted)


@settings(deadline=None, max_examples=300)
@given(case=_cases(), backend=st.sampled_from(["torch", "auto"]))
def test_the_cells_that_opencv_marks(case: tuple[np.ndarray, tuple[int, int]], backend: str) -> None:
    """Without IPP, which gives 1e-15 where a pixel has no part in a cell (OpenCV 5)."""
    mask, size = case
    cv2.ipp.setUseIPP(False)
    try:
        wanted = cv2.resize(mask.astype(np.float32), size[::-1], interpolation=cv2.INTER_LINEAR)
    finally:
        cv2.ipp.setUseIPP(True)
    grid = _drawn(mask, size, False, backend)
    assert np.array_equal(grid > 0, wanted > 0)
    assert np.abs(grid - wanted).max() < 1e-4  # places in float32


@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize(("source", "size"), [((9, 7), (4, 5)), ((3, 2), (11, 6)), ((1, 8), (1, 3)), ((50, 1), (7, 1))])
def test_cells_are_exact_means(source: tuple[int, int], size: tuple[int, int], backend: str) -> None:
    mask = (np.random.default_rng(1).random(source) < 0.5).astype(np.uint8)

    def weights(places: int, pixels: int) -> list[list[Fraction]]:
        rows = []
        for place in range(places):
            at = min(
                max(Fraction(2 * place + 1, 2) * pixels / places - Fraction(1, 2), Fraction(0)), Fraction(pixels - 1)
            )
            rows.append([max(Fraction(0), 1 - abs(at - pixel)) for pixel in range(pixels)])
        return rows

    down, across = (weights(places, pixels) for places, pixels in zip(size, source, strict=True))
    wanted = [
        [
            np.float32(float(sum(d * a * int(mask[r, c]) for r, d in enumerate(row) for c, a in enumerate(column))))
            for column in across
        ]
        for row in down
    ]
    assert _drawn(mask, size, False, backend).tolist() == np.array(wanted).tolist()


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_windows_and_crops_that_overlap_in_part(backend: str) -> None:
    """What lies outside the window is not marked, whatever bits are there."""
    random = np.random.default_rng(2)
    whole = random.random((40, 50)) < 0.5
    window, crop, size = (5, 9, 20, 30), (0, 15, 33, 50), (7, 8)
    inside = np.zeros_like(whole)
    inside[5:25, 9:39] = whole[5:25, 9:39]
    stored = np.ones((20, 33), bool)  # three bits of each row are nobody's
    stored[:, :30] = whole[5:25, 9:39]
    bits = torch.from_numpy(np.packbits(np.concatenate([np.ones(11, bool), stored.ravel()])))
    table = torch.tensor([[0, 11, 33, *window, *crop, *size, 0, 0]])
    cells = mask_grids(bits, table, 56, backend=backend).view(size)
    assert torch.equal(cells, torch.from_numpy(_drawn(inside[0:33, 15:50].astype(np.uint8), size, False, backend)))


@pytest.mark.parametrize(
    ("column", "value"), [(0, 1), (1, 1), (2, 3), (5, -1), (7, 5), (9, 2**31), (11, 2**21), (13, 16), (14, 0)]
)
def test_tables_that_are_none(column: int, value: int) -> None:
    table = torch.tensor([[0, 0, 4, 0, 0, 4, 4, 0, 0, 4, 4, 2, 3, 14, 15]])
    table[0, column] = value
    with pytest.raises(ValueError, match=r"^mask_grids: expected masks within 2 bytes of bits and 6 cells, got mask 0"):
        mask_grids(torch.zeros(2, dtype=torch.uint8), table, 6)


def test_refused() -> None:
    bits, table = torch.zeros(2, dtype=torch.uint8), torch.zeros(0, COLUMNS, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"^mask_grids: expected 0 cells for these grids, got 3$"):
        mask_grids(bits, table, 3)
    with pytest.raises(ValueError, match=r"^mask_grids: expected bits of torch.uint8, got torch.float32$"):
        mask_grids(bits.float(), table, 0)
    with pytest.raises(ValueError, match=r"^mask_grids: expected table of shape \(any, 15\), got \(0, 14\)$"):
        mask_grids(bits, table[:, 1:], 0)

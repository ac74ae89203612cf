"""Masks held as the pixels of their bounding boxes, against the masks themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelrefer_fast.regions import Region
from pixelrefer_fast.regions.boxed_mask import BoxedMask


@st.composite
def _masks(draw: st.DrawFn) -> np.ndarray:
    """(H, W) of any dtype and strides, from nothing marked to everything."""
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    mask = random.random((2 * height, 2 * width)) < draw(st.sampled_from([0, 0.01, 0.3, 1]))
    mask = (mask * draw(st.sampled_from([1, 255]))).astype(draw(st.sampled_from([bool, np.uint8, np.int64])))
    view = draw(st.sampled_from(["contiguous", "every second", "turned", "upside down"]))
    if view == "every second":
        return mask[::2, 1::2]
    part = np.ascontiguousarray(mask[:height, :width])
    return {"contiguous": part, "turned": part.T, "upside down": part[::-1, ::-1]}[view]


@settings(max_examples=200, deadline=None)
@given(_masks(), st.data())
def test_everything_asked_of_a_mask(mask: np.ndarray, data: st.DataObject) -> None:
    boxed, places = BoxedMask.of(mask), np.argwhere(mask)
    assert boxed.shape == mask.shape
    assert boxed.area == len(places)
    assert boxed.bounds == ((*places.min(0), *places.max(0)) if len(places) else None)
    full = boxed.full()
    assert full.dtype == np.uint8
    assert np.array_equal(full, mask != 0)
    (top, bottom), (left, right) = (
        sorted(data.draw(st.tuples(st.integers(0, side), st.integers(0, side)))) for side in mask.shape
    )
    assert np.array_equal(boxed.window(top, left, bottom, right), full[top:bottom, left:right])


def test_a_part_knows_where_it_lies() -> None:
    boxed = BoxedMask.trimmed(10, 12, 4, 5, np.array([[0, 0, 0], [0, 7, 0]]))
    assert (boxed.top, boxed.left, boxed.pixels.shape) == (5, 6, (1, 1))
    assert np.argwhere(boxed.full()).tolist() == [[5, 6]]


@pytest.mark.parametrize(
    "region",
    [
        Region.from_box(xyxy=(-3, 2, 5, 900)),
        Region.from_polygon([(1, 1, 30, 4, 12, 25), (40, 3, 48, 3, 48, 9)]),
        Region.from_scribble([(3, 30), (45, 12)], width=4),
        Region.from_rle({"size": [33, 50], "counts": [40, 0, 3, 2, 70, 5, 1530]}),
        Region.from_mask(np.eye(33, 50)),
    ],
    ids=lambda region: region.kind,
)
def test_shapes_hold_no_row_or_column_without_a_mark(region: Region) -> None:
    boxed = region.boxed(33, 50)
    assert boxed.pixels.any(axis=1)[[0, -1]].all()
    assert boxed.pixels.any(axis=0)[[0, -1]].all()
    assert np.array_equal(boxed.full(), region.mask(33, 50))
    assert boxed.pixels.size < 33 * 50

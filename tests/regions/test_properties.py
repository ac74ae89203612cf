"""Regions: properties of drawn examples, against definitions and pycocotools."""

from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from pixelrefer_fast.regions import Region

quarters = st.integers(-40, 100).map(lambda number: number / 4)
sizes = st.tuples(st.integers(1, 20), st.integers(1, 20))
quick = settings(max_examples=60, deadline=None)


@st.composite
def masks(draw):
    height, width = draw(sizes)
    seed, density = draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from([0.03, 0.3, 0.9]))
    mask = (np.random.default_rng(seed).random((height, width)) < density).astype(np.uint8)
    mask[draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))] = 1
    return mask


@quick
@given(masks())
def test_masks_and_rle_are_what_pycocotools_says(mask):
    height, width = mask.shape
    region = Region.from_mask(mask)
    assert np.array_equal(region.mask(height, width), mask)
    rle = coco.encode(np.asfortranarray(mask))
    written = region.to_json()
    assert written == {"type": "rle", "size": [height, width], "counts": rle["counts"].decode()}
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    uncompressed = {"size": [height, width], "counts": [0, *counts] if flat[0] else counts}
    for form in (written, rle, uncompressed):
        assert np.array_equal(Region.of(form).mask(height, width), mask)
    assert Region.from_rle(uncompressed).to_json() == written


@quick
@given(st.tuples(quarters, quarters, quarters, quarters), sizes)
def test_box_against_its_definition(box, size):
    x0, y0, x1, y1 = box
    height, width = size
    expected = np.array(
        [[int(x0 < c + 1 and c < x1 and y0 < r + 1 and r < y1) for c in range(width)] for r in range(height)], np.uint8
    )
    if x0 >= x1 or y0 >= y1:
        with pytest.raises(ValueError, match="expected x0 < x1"):
            Region.from_box(xyxy=box)
    elif min(box) >= 0 and max(box) <= 1 and any(side % 1 for side in box):
        with pytest.raises(ValueError, match="got shares of an image's sides"):
            Region.from_box(xyxy=box)
    elif not expected.any():
        with pytest.raises(ValueError, match=r"^region: expected at least one marked pixel"):
            Region.from_box(xyxy=box).mask(height, width)
    else:
        assert np.array_equal(Region.from_box(xyxy=box).mask(height, width), expected)
        assert np.array_equal(Region.from_box(xywh=(x0, y0, x1 - x0, y1 - y0)).mask(height, width), expected)


@quick
@given(st.lists(st.lists(st.tuples(quarters, quarters), min_size=3, max_size=7), min_size=1, max_size=3), sizes)
def test_polygons_are_what_pycocotools_fills(polygons, size):
    height, width = size
    flat = [[number for point in polygon for number in point] for polygon in polygons]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools 2.0.11 with numpy 2
        decoded = coco.decode(coco.frPyObjects(flat, height, width))
    expected = decoded.max(axis=2)
    for form in (flat, [list(map(list, polygon)) for polygon in polygons]):
        region = Region.from_polygon(form, size=size)
        if expected.any():
            assert np.array_equal(region.mask(height, width), expected)
        else:
            with pytest.raises(ValueError, match="expected at least one marked pixel"):
                region.mask(height, width)


@quick
@given(st.lists(st.tuples(st.integers(1, 18), st.integers(1, 18)), min_size=3, max_size=3, unique=True))
def test_triangles_hold_the_pixels_well_inside(corners):
    # pycocotools rounds at edges; a pixel whose centre is more than a pixel inside or outside leaves no choice
    (ax, ay), (bx, by), (cx, cy) = corners
    area = (bx - ax) * (cy - ay) - (cx - ax) * (by - ay)
    if area == 0:
        return
    columns, rows = np.meshgrid(np.arange(20) + 0.5, np.arange(20) + 0.5)
    distances = []
    for (x0, y0), (x1, y1) in ((corners[0], corners[1]), (corners[1], corners[2]), (corners[2], corners[0])):
        cross = (x1 - x0) * (rows - y0) - (columns - x0) * (y1 - y0)
        distances.append(math.copysign(1, area) * cross / math.dist((x0, y0), (x1, y1)))
    depth = np.min(distances, axis=0)
    shape = Region.from_polygon([corners]).marks[0][1]
    filled = shape.boxed(20, 20, "region").full()
    assert filled[depth > 1].all()
    assert not filled[depth < -1.5].any()


@quick
@given(st.lists(st.tuples(quarters, quarters), min_size=1, max_size=5), st.integers(1, 40), sizes)
def test_scribbles_against_distances(points, width_quarters, size):
    height, image_width = size
    radius = max(width_quarters / 8, math.sqrt(0.5))
    columns, rows = np.meshgrid(np.arange(image_width), np.arange(height))
    centres = np.stack([columns, rows], axis=-1).astype(float)
    distance = np.full(size, np.inf)
    for start, end in zip(points, points[1:] or points, strict=False):
        start, end = np.array(start), np.array(end)
        span = float((end - start) @ (end - start))
        place = np.clip((centres - start) @ (end - start) / span, 0, 1) if span else np.zeros(size)
        nearest = start + place[..., None] * (end - start)
        distance = np.minimum(distance, np.linalg.norm(centres - nearest, axis=-1))
    filled = Region.from_scribble(points, width_quarters / 4).marks[0][1].boxed(height, image_width, "region").full()
    clear = np.abs(distance - radius) > 1e-6
    assert np.array_equal(filled[clear], (distance <= radius)[clear])
    assert filled[~clear].all()  # the edge belongs to the stroke


shapes_json = st.one_of(
    st.builds(
        lambda x, y, w, h: Region.from_box(xywh=(x, y, w, h)),
        quarters,
        quarters,
        st.integers(2, 30),
        st.floats(0.1, 30),
    ),
    st.builds(
        Region.from_polygon, st.lists(st.lists(st.tuples(quarters, quarters), min_size=3, max_size=5), min_size=1)
    ),
    st.builds(
        Region.from_scribble, st.lists(st.tuples(quarters, quarters), min_size=1, max_size=5), st.floats(0.01, 50)
    ),
    masks().map(Region.from_mask),
    masks().map(lambda mask: Region.from_rle(Region.from_mask(mask).to_json())),
)


@quick
@given(st.one_of(shapes_json, st.dictionaries(st.integers(0, 10**8), shapes_json, min_size=1).map(Region.from_frames)))
def test_json_round_trip(region):
    written = region.to_json()
    text = json.dumps(written, allow_nan=False)
    back = Region.from_json(json.loads(text))
    assert back.to_json() == written
    assert back.frames == region.frames
    if "rle" not in text:  # masks come back as the RLE they were written as
        assert back == region
    for (_, one), (_, other) in zip(region.marks, back.marks, strict=True):
        size = (getattr(one, "height", 20), getattr(one, "width", 20))
        size = tuple(value if isinstance(value, int) else 20 for value in size)
        assert np.array_equal(one.boxed(*size, "region").full(), other.boxed(*size, "region").full())

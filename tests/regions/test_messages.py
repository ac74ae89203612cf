"""Regions: bad ones say which region is wrong and how."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco
from square import HEIGHT, SQUARE, WIDTH

from pixelrefer_fast.regions import Region, as_regions


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        (
            [[0, 0, 2, 2], SQUARE[:5]],
            "region 1: expected a mask of 12x17 (the image's height x width), got 5x17",
        ),
        (
            [coco.encode(np.asfortranarray(SQUARE.T))],
            "region 0: expected a mask of 12x17 (the image's height x width), got 17x12",
        ),
        ([[0, 0, 2, 2]] * 3 + [np.zeros_like(SQUARE)], "region 3: expected at least one marked pixel"),
        ([[17, 0, 20, 5]], "region 0: expected at least one marked pixel inside the image of 12x17"),
        ([[[40, 40, 50, 40, 50, 50]]], "region 0: expected at least one marked pixel"),
        ([{"type": "scribble", "points": [[-9, -9]], "width": 4}], "region 0: expected at least one marked pixel"),
        ([{"segmentation": [[1, 1, 5, 1, 5, 5]], "height": 9, "width": 9}], "region 0: expected polygons for 12x17"),
        ([{3: [0, 0, 2, 2]}], "region 0: expected one of the frames it is marked in, [3], got an image"),
    ],
)
def test_masks_that_do_not_fit_name_the_region(regions, message):
    parsed = as_regions(regions)
    for index, region in enumerate(parsed[:-1]):
        region.mask(HEIGHT, WIDTH, name=f"region {index}")
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        parsed[-1].mask(HEIGHT, WIDTH, name=f"region {len(parsed) - 1}")


@pytest.mark.parametrize(
    ("region", "message"),
    [
        (np.full((4, 4), np.nan), "mask: expected finite values, got NaN or infinity"),
        (np.full((4, 4), np.inf), "mask: expected finite values, got NaN or infinity"),
        (np.zeros((4, 4), complex), "mask: expected bool, integer or float values, got complex128"),
        (np.zeros((4, 4), object), "mask: expected bool, integer or float values, got object"),
        (np.zeros((3, 4, 4)), "mask: expected an array of shape (H, W), got (3, 4, 4)"),
        (np.zeros((0, 4)), "mask: expected at least one pixel, got a size of 0x4"),
        (Image.new("RGB", (4, 4)), "mask: expected a PIL image of one channel, got one of mode RGB; convert it with "),
        (Image.new("RGBA", (4, 4)), "mask: expected a PIL image of one channel, got one of mode RGBA"),
        (np.zeros((4, 4, 3)), "mask: expected an array of shape (H, W), got (4, 4, 3)"),
        (list("1234"), "expected a box of four numbers or a polygon of at least three points (six numbers), got ['1'"),
        ([1, 2, 3, "4"], "expected a box of four numbers or a polygon of at least three points"),
        ([1, 2, 3, True], "expected a box of four numbers or a polygon of at least three points"),
        ([1, 2, 3, 4, 5], "expected a box of four numbers or a polygon of at least three points"),
        (np.arange(5), "expected a box of four numbers or a polygon of at least three points"),
        (torch.arange(3), "expected a box of four numbers or a polygon of at least three points"),
        ([3, 3, 3, 9], "box: expected x0 < x1 and y0 < y1, got (3.0, 3.0, 3.0, 9.0)"),
        ([0, 0, math.nan, 1], "box: expected numbers of magnitude up to 16777216 (pixels), got nan"),
        ([0, 0, math.inf, 1], "box: expected numbers of magnitude up to 16777216 (pixels), got inf"),
        ([0, 0, 1e30, 1], "box: expected numbers of magnitude up to 16777216 (pixels), got 1e+30"),
        ({"bbox": [0, 0, -3, 2]}, "box: expected x0 < x1 and y0 < y1, got (0.0, 0.0, -3.0, 2.0)"),
        ({"bbox": [0, 0, 3]}, "box: expected 4 numbers, got [0, 0, 3]"),
        ({"type": "box"}, "box: expected either xyxy or xywh"),
        ([[0, 0, 5, 5]], "polygon: expected at least 3 points, got 2"),
        ([[0, 0, 5, 5, 3]], "polygon: expected points as x0, y0, x1, y1, ... or [x, y] pairs"),
        ([[0, 0, 5, 5, 3, "4"]], "polygon: expected numbers of magnitude up to 16777216 (pixels), got '4'"),
        ([[0, 0, 5, True, 3, 4]], "polygon: expected numbers of magnitude up to 16777216 (pixels), got True"),
        ([[0, 0, 1e7, 0, 0, 9]], "polygon: expected an outline of at most 1048576 pixels, got 20000009"),
        ({"type": "scribble", "points": [[1, 1]], "width": 0}, "scribble: expected a positive width, got 0.0"),
        ({"type": "scribble", "points": [], "width": 2}, "scribble: expected 1 to 4096 points, got 0"),
        ({"type": "scribble", "points": [[1, 1]]}, "scribble width: expected numbers of magnitude"),
        ({"size": [4, 4]}, "expected a mask, a COCO RLE"),
        ({"counts": "0"}, "RLE size: expected [height, width], got None"),
        ({"size": [4, 4], "counts": [17]}, "RLE counts: expected integers in 0..16, got 17"),
        ({"size": [4, 4], "counts": [15]}, "RLE counts: expected runs that add up to 4x4 = 16 pixels, got a sum of 15"),
        ({"size": [4, 4], "counts": np.array([17])}, "RLE counts: expected integers in 0..16, got"),
        ({"size": [4, 4], "counts": np.array([16.0])}, "RLE counts: expected integers in 0..16, got"),
        ({"size": [4, 4], "counts": np.array([[16]])}, "RLE counts: expected ASCII text, bytes or a list of integers"),
        ({"size": [4, 4], "counts": [20, -4]}, "RLE counts: expected integers in 0..16, got 20"),
        ({"size": [4, 4], "counts": ""}, "RLE counts: expected 1 to 8388608 characters, got 0"),
        ({"size": [4, 4], "counts": "é"}, "RLE counts: expected ASCII text"),
        ({"size": [4, 4], "counts": "P"}, "RLE counts: expected complete numbers, the last one is cut off"),
        ({"size": [31623, 31623], "counts": [10**9]}, "RLE size: expected at most 89478485 pixels"),
        ({"size": [-4, -4], "counts": [16]}, "RLE size: expected at least one pixel"),
        ({"size": [10**400, 1], "counts": [1]}, "RLE size: expected at most 89478485 pixels"),
        ({}, "expected a mask, a COCO RLE"),
        (None, "expected a mask, a COCO RLE"),
        ("box", "expected a mask, a COCO RLE"),
        ([], "expected a mask, a COCO RLE"),
        ({-1: [0, 0, 2, 2]}, "frames: expected frame numbers from 0 on, got -1"),
        ({10**30: [0, 0, 2, 2]}, "frames: expected frame numbers from 0 on"),
        ({1: [0, 0, 2, 2], "01": [0, 0, 2, 2]}, "frames: expected each frame once, got 1 twice"),
        ({2: {"segmentation": None}, 3: None}, "frames: expected the object to be marked in at least one frame"),
        ({2: {3: [0, 0, 2, 2]}}, "frame 2: expected a region of one frame, got a mapping of frames"),
        ({2: [0, 0, 0, 2]}, "frame 2: box: expected x0 < x1"),
    ],
)
def test_malformed_regions_say_what_was_expected(region, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        Region.of(region)
    with pytest.raises(ValueError, match="^region 2: " + re.escape(message)):
        as_regions([[0, 0, 2, 2], SQUARE, region])


def test_sizes_and_frames_asked_for():
    region = Region.from_box(xyxy=(0, 0, 2, 2))
    for height, width in ((0, 5), (-3, 5), (2.0, 5), (10**9, 10**9), ("4", 4)):
        with pytest.raises(ValueError, match=r"^region 7: expected"):
            region.mask(height, width, name="region 7")
    assert np.array_equal(region.mask(4, 4, frame=99), region.mask(4, 4))
    video = Region.from_frames({9: [0, 0, 1, 1], 2: SQUARE, 5: None})
    assert video.frames == (2, 9)
    assert np.array_equal(video.mask(HEIGHT, WIDTH, 2), SQUARE)
    with pytest.raises(ValueError, match=r"^object: expected one of the frames .*\[2, 9\], got frame 5"):
        video.mask(HEIGHT, WIDTH, 5, name="object")


@pytest.mark.parametrize("values", [list("1234"), [1, 2, 3, "4"], [1, 2, 3, 4, 5], [1, 2], np.arange(5.0)])
def test_one_value_that_is_no_box_is_not_a_list_of_regions(values):
    with pytest.raises(ValueError, match=r"^region 0: expected a box of four numbers or a polygon of at least three "):
        as_regions(values)

"""Regions: every form gives the pixels its definition says, and bad ones say which region is wrong and how."""

from __future__ import annotations

import json
import math
import re
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco

from pixelrefer_fast.regions import Region, as_regions

HEIGHT, WIDTH = 12, 17
SQUARE = np.zeros((HEIGHT, WIDTH), np.uint8)
SQUARE[3:7, 5:11] = 1


def pixels(region_like, height=HEIGHT, width=WIDTH, **kwargs):
    mask = Region.of(region_like).mask(height, width, **kwargs)
    assert mask.shape == (height, width)
    assert mask.dtype == np.uint8
    assert mask.flags.c_contiguous
    assert mask.flags.writeable
    assert set(np.unique(mask)) <= {0, 1}
    return mask


@pytest.mark.parametrize(
    "mask",
    [
        SQUARE.astype(bool),
        SQUARE,
        SQUARE * 255,
        SQUARE.astype(np.int64) * -3,
        np.where(SQUARE, 0.51, 0.5).astype(np.float32),
        SQUARE[None],
        SQUARE[None, None],
        SQUARE[..., None],
        torch.from_numpy(SQUARE).float()[..., None],
        np.asfortranarray(SQUARE),
        torch.from_numpy(SQUARE),
        torch.from_numpy(SQUARE).bool(),
        torch.from_numpy(SQUARE).to(torch.bfloat16),
        torch.from_numpy(SQUARE).float().requires_grad_(),
        Image.fromarray(SQUARE),
        Image.fromarray(SQUARE * 255).convert("1"),
        Image.frombytes("P", (WIDTH, HEIGHT), SQUARE.tobytes()),
        Image.fromarray(SQUARE.astype(np.int32)),
        coco.encode(np.asfortranarray(SQUARE)),
        {"size": [HEIGHT, WIDTH], "counts": coco.encode(np.asfortranarray(SQUARE))["counts"].decode()},
        {"segmentation": coco.encode(np.asfortranarray(SQUARE)), "area": 24, "iscrowd": 1},
        [5, 3, 11, 7],
        np.array([5.0, 3.0, 11.0, 7.0]),
        torch.tensor([5, 3, 11, 7]),
        list(torch.tensor([5.0, 3.0, 11.0, 7.0])),
        tuple(np.array(number) for number in (5, 3, 11, 7)),
        list(np.array([5, 3, 11, 7], np.float32)),
        [5, np.int16(3), torch.tensor(11), np.array(7.0)],
        list(torch.tensor([5, 3, 11, 3, 11, 7, 5, 7])),
        [list(corner) for corner in torch.tensor([[5, 3], [11, 3], [11, 7], [5, 7]])],
        {"bbox": list(torch.tensor([5, 3, 6, 4]))},
        {"bbox": [5, 3, 6, 4], "category_id": 1},
        {"type": "box", "xywh": [5, 3, 6, 4]},
        [5, 3, 11, 3, 11, 7, 5, 7],
        [[5, 3, 11, 3, 11, 7, 5, 7]],
        [[5, 3], [11, 3], [11, 7], [5, 7]],
        [[[5, 3], [11, 3], [11, 7], [5, 7]]],
        {"segmentation": [[5, 3, 11, 3, 11, 7, 5, 7]], "height": HEIGHT, "width": WIDTH},
        {"type": "polygon", "polygons": [[5, 3, 11, 3, 11, 7, 5, 7]], "size": [HEIGHT, WIDTH]},
    ],
)
def test_one_square_in_every_form(mask):
    assert np.array_equal(pixels(mask), SQUARE)
    (region,) = as_regions([mask])
    assert np.array_equal(region.mask(HEIGHT, WIDTH), SQUARE)
    (alone,) = as_regions(mask)
    assert np.array_equal(alone.mask(HEIGHT, WIDTH), SQUARE)


def test_named_makers_agree():
    rle = {"size": [HEIGHT, WIDTH], "counts": [3 + 5 * HEIGHT, *[4, 8] * 5, 4, 5 + 6 * HEIGHT]}
    for region in (
        Region.from_mask(SQUARE),
        Region.from_rle(rle),
        Region.from_polygon([[5, 3, 11, 3, 11, 7, 5, 7]], size=(HEIGHT, WIDTH)),
        Region.from_polygon([np.array([[5, 3], [11, 3], [11, 7], [5, 7]], np.float32)]),
        Region.from_polygon(torch.tensor([[5, 3], [11, 3], [11, 7], [5, 7]])),
        Region.from_box(xyxy=(5, 3, 11, 7)),
        Region.from_box(xywh=(5, 3, 6, 4)),
        Region.from_box(xywh=list(torch.tensor([5, 3, 6, 4]))),
        Region.from_rle({**rle, "counts": tuple(rle["counts"])}),
        Region.from_rle({**rle, "counts": np.array(rle["counts"], np.uint8)}),
        Region.from_rle({**rle, "counts": torch.tensor(rle["counts"])}),
        Region.of({"segmentation": {**rle, "counts": np.array(rle["counts"])}}),
    ):
        assert np.array_equal(region.mask(HEIGHT, WIDTH), SQUARE), region


def test_a_region_is_a_copy_and_immutable():
    mask = SQUARE.copy()
    region = Region.from_mask(mask)
    mask[:] = 0
    region.mask(HEIGHT, WIDTH)[:] = 0
    assert np.array_equal(region.mask(HEIGHT, WIDTH), SQUARE)
    with pytest.raises(AttributeError):
        region.marks = ()
    assert region == Region.from_mask(SQUARE)
    assert hash(region) == hash(Region.from_mask(SQUARE))
    assert region != Region.from_mask(1 - SQUARE)


def test_boxes_cover_the_pixels_they_touch_and_are_clipped():
    assert np.argwhere(pixels([2.5, 3.2, 4.1, 4.0])).tolist() == [[3, 2], [3, 3], [3, 4]]
    assert pixels([-100, -5, 3, 2]).sum() == 3 * 2
    assert pixels([-1e6, -1e6, 1e6, 1e6]).all()
    assert pixels([4.2, 4.2, 4.4, 4.4]).sum() == 1


def test_scribbles():
    assert np.argwhere(pixels({"type": "scribble", "points": [[10, 2]], "width": 1})).tolist() == [[2, 10]]
    line = Region.from_scribble([(2, 5), (8, 5)], width=3).mask(HEIGHT, WIDTH)
    assert np.array_equal(np.flatnonzero(line[:, 5]), [4, 5, 6])
    assert np.array_equal(np.flatnonzero(line[5]), range(1, 10))
    assert pixels({"type": "scribble", "points": [[3.5, 3.5]], "width": 0.1}).sum() == 4  # never a gap


# --- messages ---------------------------------------------------------------------------------------------------------


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


# --- tools' outputs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "boxes",
    [
        np.array([[5, 3, 11, 7], [0, 0, 2, 1]]),
        np.array([[5, 3, 11, 7], [0, 0, 2, 1]], np.float16),
        torch.tensor([[5, 3, 11, 7], [0, 0, 2, 1]]),
        torch.tensor([[5.0, 3.0, 11.0, 7.0], [0, 0, 2, 1]], dtype=torch.bfloat16, requires_grad=True),
    ],
)
def test_arrays_of_boxes(boxes):
    regions = as_regions(boxes)
    assert [region.kind for region in regions] == ["box", "box"]
    assert np.array_equal(regions[0].mask(HEIGHT, WIDTH), SQUARE)
    assert regions == as_regions(list(boxes)) == as_regions(boxes.tolist())
    assert as_regions(boxes[:1]) == regions[:1]
    assert as_regions(boxes[:0]) == []


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16, np.int64, np.float32])
@pytest.mark.parametrize("value", [1, 255])
def test_masks_of_four_columns_are_no_boxes(dtype, value):
    mask = np.tile(np.array([0, 0, value, value]).astype(dtype), (5, 1))  # every row would be a box
    for form in (mask, torch.from_numpy(mask), [mask], {3: mask}):
        (region,) = as_regions(form)
        assert np.array_equal(region.mask(5, 4, 3), mask != 0)
        message = "region 0: expected a mask of 480x640 (the image's height x width), got 5x4; for boxes pass [x0, y0, "
        with pytest.raises(ValueError, match="^" + re.escape(message)):
            region.mask(480, 640, 3, name="region 0")


def test_boxes_as_an_element_are_a_mask():
    boxes = np.array([[5, 3, 11, 7], [0, 0, 2, 1]])
    for form in ([boxes], (boxes,), {0: boxes}):
        (region,) = as_regions(form)
        with pytest.raises(ValueError, match=r"got 2x4; for boxes pass \[x0, y0, x1, y1\] for each$"):
            region.mask(HEIGHT, WIDTH, 0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([4, 4, 4, 8], "region 1: box: expected x0 < x1"),
        ([0, 0, math.nan, 1], "region 1: box: expected numbers of magnitude"),
        ([0, 0, 0, 0], "region 1: box: expected x0 < x1"),
    ],
)
def test_arrays_of_boxes_with_a_bad_row(row, message):
    with pytest.raises(ValueError, match="^" + message + r".*; an array of shape \(N, 4\) is N boxes .*pass bool"):
        as_regions(np.array([[0, 0, 9, 9], row]))


def test_channels_last_is_one_mask_and_channels_first_are_many():
    assert [region.kind for region in as_regions([SQUARE[..., None], torch.from_numpy(SQUARE)[..., None]])] == [
        "mask"
    ] * 2
    assert np.array_equal(as_regions({3: SQUARE[..., None]})[0].mask(HEIGHT, WIDTH, 3), SQUARE)
    column = np.ones((1, 5, 1), bool)
    assert as_regions(column)[0].mask(5, 1).all()
    cube = np.ones((HEIGHT, HEIGHT, HEIGHT), bool)
    assert len(as_regions(cube)) == HEIGHT


def three_masks():
    masks = np.zeros((3, HEIGHT, WIDTH), bool)
    masks[0, :2], masks[1, 3:7, 5:11], masks[2, :, 4] = True, True, True
    return masks


def check(regions, masks, frame=None):
    assert len(regions) == len(masks)
    for region, mask in zip(regions, masks, strict=True):
        assert np.array_equal(region.mask(HEIGHT, WIDTH, frame), mask)


def test_supervision_detections():
    import supervision as sv

    masks = three_masks()
    boxes = sv.mask_to_xyxy(masks).astype(np.float32)
    check(as_regions(sv.Detections(xyxy=boxes, mask=masks)), masks)
    compact = sv.CompactMask.from_dense(masks, boxes, image_shape=(HEIGHT, WIDTH))
    check(as_regions(sv.Detections(xyxy=boxes, mask=compact)), masks)
    boxes[:, 2:] += 1  # supervision's corners are inclusive
    check(Region.from_detections(sv.Detections(xyxy=boxes)), masks)
    assert as_regions(sv.Detections.empty()) == []
    with pytest.raises(ValueError, match="expected exactly one object here, got 3"):
        Region.of(sv.Detections(xyxy=boxes))
    with pytest.raises(ValueError, match=r"^region 1: box: expected x0 < x1"):
        as_regions(sv.Detections(xyxy=np.array([[0, 0, 4, 4], [4, 4, 4, 8]], np.float32)))

    tracked = {
        frame: sv.Detections(xyxy=boxes[order], mask=masks[order], tracker_id=np.array(order))
        for frame, order in {4: [2, 0], 8: [0, 1]}.items()
    }
    regions = as_regions(tracked)
    assert [region.frames for region in regions] == [(4,), (4, 8), (8,)]
    check(regions[:2], masks[[2, 0]], 4)
    check(regions[1:], masks[[0, 1]], 8)


@pytest.mark.parametrize("make", [torch.from_numpy, np.asarray], ids=["torch", "numpy"])
def test_sam_image_outputs(make):
    masks = three_masks()
    check(as_regions(make(masks)), masks)
    check(as_regions(make(masks[:, None])), masks)  # post_process_masks, one image
    check(as_regions([make(masks[:, None])]), masks)  # post_process_masks, a batch of one
    check(as_regions({"masks": make(masks), "boxes": make(np.zeros((3, 4))), "scores": make(np.ones(3))}), masks)
    check(as_regions([{"masks": make(masks), "scores": make(np.ones(3))}]), masks)  # post_process_instance_segmentation
    check(as_regions({"masks": list(masks), "scores": make(np.ones(3))}), masks)  # mask-generation pipeline
    check(as_regions(make(np.where(masks, 0.2, -7.0)[:, None])), masks)  # binarize=False
    assert as_regions({"masks": make(masks[:0]), "scores": make(np.zeros(0))}) == []


def test_sam_candidates_are_chosen_by_score():
    masks = np.stack([three_masks(), ~three_masks()], axis=1)  # (3, 2, H, W)
    scores = torch.tensor([[[0.9, 0.1], [0.2, 0.8], [0.6, 0.5]]])
    expected = [masks[0, 0], masks[1, 1], masks[2, 0]]
    check(Region.from_sam(torch.from_numpy(masks), scores), expected)
    check(Region.from_sam({"masks": masks, "iou_scores": scores[0].numpy()}), expected)
    with pytest.raises(ValueError, match=r"scores .* to choose by, got 2 candidates per object"):
        as_regions(masks)
    with pytest.raises(ValueError, match=r"expected float scores of shape \(3, 2\), got \(2, 3\)"):
        Region.from_sam(masks, np.zeros((2, 3)))


def test_sam_video_outputs():
    masks = three_masks()
    sam3 = {
        0: {"object_ids": torch.tensor([11, 12]), "masks": torch.from_numpy(masks[:2]), "boxes": None, "scores": None},
        6: {"object_ids": torch.tensor([12, 13]), "masks": torch.from_numpy(masks[1:]), "prompt_to_obj_ids": {}},
    }
    for output in (sam3, {0: {11: masks[0], 12: masks[1:2]}, 6: {12: masks[1], 13: masks[2][None]}}):
        regions = as_regions(output)
        assert [region.frames for region in regions] == [(0,), (0, 6), (6,)]
        check(regions[:2], masks[:2], 0)
        check(regions[1:], masks[1:], 6)

    hidden = masks.copy()
    hidden[1] = False
    logits = {3: torch.from_numpy(np.where(masks, 3.0, -3.0))[:, None], 5: torch.from_numpy(hidden)[:, None]}
    regions = as_regions(logits)
    assert [region.frames for region in regions] == [(3, 5), (3,), (3, 5)]
    check(regions, masks, 3)

    with pytest.raises(ValueError, match=r"as many objects in every frame"):
        as_regions({0: masks, 1: masks[:2]})
    with pytest.raises(ValueError, match=r"^region 1: expected a mask in at least one frame, got only empty ones"):
        as_regions({0: hidden})
    with pytest.raises(ValueError, match=r"^frame 0: expected an id per object, got 1 ids for 3 objects"):
        as_regions({0: {"object_ids": [4], "masks": masks}})


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ({"pred_masks": np.zeros((1, 3, 4, 4))}, "after post-processing"),
        ({"masks": "none"}, "expected masks of shape"),
        ({"masks": ["a", "b"]}, "expected arrays or tensors as masks"),
        ([np.zeros((2, 1, 4, 4)), np.zeros((2, 1, 4, 4))], "expected the masks of one image, got those of 2"),
        ({"masks": np.full((2, 4, 4), np.nan)}, "^region 0: mask: expected finite values"),
        ({"masks": torch.zeros(2, 4, 4, device="meta")}, "expected a dense tensor"),
    ],
)
def test_sam_outputs_that_are_not_regions(output, message):
    with pytest.raises(ValueError, match=message):
        Region.from_sam(output)


def test_videorefer_annotation():
    rle = coco.encode(np.asfortranarray(SQUARE))
    rle["counts"] = rle["counts"].decode()
    region = Region.of(json.loads(json.dumps({"12": {"segmentation": rle}, "7": {"segmentation": None}})))
    assert region.frames == (12,)
    assert np.array_equal(region.mask(HEIGHT, WIDTH, 12), SQUARE)


def test_lists():
    assert as_regions([]) == []
    assert [region.kind for region in as_regions([[0, 0, 1, 1], SQUARE, {"0": [0, 0, 1, 1]}])] == [
        "box",
        "mask",
        "frames",
    ]
    two = as_regions([[0, 0, 5, 0, 5, 5], [1, 1, 5, 1, 5, 5]])
    assert [region.kind for region in two] == ["polygon", "polygon"]
    region = Region.from_box(xyxy=(0, 0, 1, 1))
    assert as_regions(region) == [region] == as_regions((region,))


# --- properties -------------------------------------------------------------------------------------------------------

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
    filled = shape.pixels(20, 20, "region")
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
    filled = Region.from_scribble(points, width_quarters / 4).marks[0][1].pixels(height, image_width, "region")
    clear = np.abs(distance - radius) > 1e-6
    assert np.array_equal(filled[clear], (distance <= radius)[clear])
    assert filled[~clear].all()  # the edge belongs to the stroke


shapes_json = st.one_of(
    st.builds(
        lambda x, y, w, h: Region.from_box(xywh=(x, y, w, h)),
        quarters,
        quarters,
        st.integers(1, 30),
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
        assert np.array_equal(one.pixels(*size, "region"), other.pixels(*size, "region"))

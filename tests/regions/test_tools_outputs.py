"""Regions: what detectors and trackers put out, as it is."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import torch
from pycocotools import mask as coco
from square import HEIGHT, SQUARE, WIDTH

from pixelrefer_fast.regions import Region, as_regions


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
        with pytest.raises(ValueError, match=r"mask: expected .*; for boxes pass \[x0, y0, x1, y1\] for each$"):
            as_regions(form)


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

"""Regions: every form gives the pixels its definition says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco
from square import HEIGHT, SQUARE, WIDTH

from pixelrefer_fast.regions import Region, as_regions


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

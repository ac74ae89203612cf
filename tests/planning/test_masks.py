"""Plans from bounding boxes, bit for bit what sums and cuts of whole masks give, whatever form a mask was given in."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import FULL, LITE

from pixelrefer_fast.checkpoint.config import ModelConfig
from pixelrefer_fast.planning.merge import plan_request
from pixelrefer_fast.planning.request import FrameSource, Request, bind_regions
from pixelrefer_fast.planning.views import MarkPlan, View
from pixelrefer_fast.regions import Region, as_regions


def _planned(config: ModelConfig, region: Region, height: int, width: int) -> tuple[MarkPlan, View]:
    source = FrameSource.of(np.zeros((height, width, 3), np.uint8))
    plan = plan_request(config, Request(source, [region], bind_regions(source, [region]), ()))
    (mark,) = plan.marks
    return mark, plan.views[mark.crop]


def _defined(config: ModelConfig, mask: np.ndarray) -> dict[str, Any]:
    """Box, crop and mask grid from the whole (H, W) uint8 mask, as the reference derives them."""
    lite, (height, width) = config.kind == "lite", mask.shape
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = max(0, rows[0] - 28), max(0, columns[0] - 28)
    last = (min(height - 1, rows[-1] + 28), min(width - 1, columns[-1] + 28))
    bottom, right = (last[0] + 1, last[1] + 1) if lite else last
    area, limit = int(mask.sum(dtype=np.int64)), 50 if lite else 100
    scale: float = math.ceil(math.sqrt(196 * config.mask_num / area))
    cells = area / 196 if lite else np.float32(area) / np.float32(196)
    if scale == 1 and cells > limit:
        scale = 1 / math.sqrt(cells / (limit if lite else np.float32(limit)))
    size = (math.ceil((bottom - top) * scale / 14), math.ceil((right - left) * scale / 14))
    cut = np.ascontiguousarray(mask[top:bottom, left:right])
    if lite:
        grid = cv2.resize(cut.astype(np.float32), size[::-1], interpolation=cv2.INTER_LINEAR)
    else:
        tensor = torch.from_numpy(cut)[None, None]
        grid = torch.nn.functional.interpolate(tensor, size=size, mode="bilinear")[0, 0].numpy().astype(np.float32)
    return {"box": (top, left, *last), "crop": (top, left, bottom, right), "grid": grid}


def _check(config: ModelConfig, region: Region, mask: np.ndarray) -> None:
    mark, view = _planned(config, region, *mask.shape)
    wanted = _defined(config, mask)
    assert mark.box == wanted["box"]
    assert (view.top, view.left, view.bottom, view.right) == wanted["crop"]
    assert (view.height, view.width) == tuple(14 * side for side in wanted["grid"].shape)
    assert mark.mask_grid.dtype == torch.float32
    assert np.array_equal(mark.mask_grid.numpy(), wanted["grid"])


def _forms(mask: np.ndarray) -> dict[str, Any]:
    """A (H, W) uint8 mask of 0 and 1 in every form that holds all of it."""
    height, width = mask.shape
    flat = mask.T.ravel()
    runs = np.diff([0, *(np.flatnonzero(np.diff(flat)) + 1), flat.size]).tolist()
    spread = np.zeros((2 * height, 3 * width), bool)
    spread[::2, ::3] = mask
    return {
        "bool": mask.astype(bool),
        "255": mask * 255,
        "a label map": mask.astype(np.int32) * 70_000,
        "float": mask.astype(np.float32),
        "columns first": np.asfortranarray(mask),
        "backwards": np.ascontiguousarray(mask[::-1, ::-1])[::-1, ::-1],
        "every third": spread[::2, ::3],
        "a tensor": torch.from_numpy(mask).bool(),
        "RLE": {"size": [height, width], "counts": [0, *runs] if flat[0] else runs},
    }


@st.composite
def _masks(draw: st.DrawFn) -> np.ndarray:
    """One pixel, a few, thick clouds or everything, in images of odd and even sides."""
    height, width = draw(st.integers(2, 300)), draw(st.integers(2, 300))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    mask = np.zeros((height, width), np.uint8)
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    bottom, right = draw(st.integers(top + 1, height)), draw(st.integers(left + 1, width))
    share = draw(st.sampled_from([0, 0.3, 0.9, 1]))
    mask[top:bottom, left:right] = random.random((bottom - top, right - left)) < share
    mask[top, left] = 1
    return mask


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([LITE, FULL]), _masks())
def test_every_form_of_a_mask(config: ModelConfig, mask: np.ndarray) -> None:
    for form in _forms(mask).values():
        _check(config, Region.of(form), mask)


@pytest.mark.parametrize("config", [LITE, FULL], ids=["lite", "full"])
@pytest.mark.parametrize("share", [0.004, 0.02, 0.5, 1])
@pytest.mark.parametrize("size", [(401, 1019), (1080, 1920), (190, 180)])
def test_large_masks(config: ModelConfig, size: tuple[int, int], share: float) -> None:
    """Only those rows of a large box are drawn that resizing reads: thin masks keep their size, thick ones shrink."""
    random = np.random.default_rng(1)
    for inset in (0, 5):
        mask = np.zeros(size, np.uint8)
        own = (size[0] - 2 * inset, size[1] - 3 * inset)
        mask[inset : inset + own[0], 2 * inset : 2 * inset + own[1]] = random.random(own) < share
        _check(config, Region.of(mask), mask)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([LITE, FULL]),
    st.sampled_from(["box", "polygon", "scribble"]),
    st.lists(st.tuples(st.integers(-20, 220), st.integers(-20, 160)), min_size=3, max_size=6, unique=True),
)
def test_drawn_shapes(config: ModelConfig, kind: str, points: list[tuple[int, int]]) -> None:
    (x0, y0), (x1, y1) = points[:2]
    if kind == "box":
        region = Region.of([min(x0, x1), min(y0, y1), max(x0, x1) + 1, max(y0, y1) + 1])
    elif kind == "polygon":
        region = Region.from_polygon([float(number) for point in points for number in point])
    else:
        region = Region.from_scribble(points, width=7)
    try:
        mask = region.mask(140, 200)
    except ValueError:
        return  # wholly outside the image: tests/regions
    _check(config, region, mask)


def test_a_mask_without_a_mark_is_refused_by_its_number() -> None:
    masks = np.zeros((2, 20, 30), bool)
    masks[0, 3, 4] = True
    source = FrameSource.of(np.zeros((20, 30, 3), np.uint8))
    regions = as_regions(masks)
    with pytest.raises(ValueError, match=r"^region 1: expected at least one marked pixel"):
        plan_request(LITE, Request(source, regions, bind_regions(source, regions), ()))

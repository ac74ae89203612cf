"""Which pixels each object needs, against a second derivation from the formulas of the spec (sections 1 to 3)."""

from __future__ import annotations

import math
from dataclasses import astuple
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from plans import AREA, BLACK, LINEAR, LITE, boxes_mask, model_config, plan_of

from pixelrefer_fast.checkpoint.config import ModelConfig
from pixelrefer_fast.planning.views import Mark, ViewPlan, pixel_budget, plan_views, processor_size
from pixelrefer_fast.regions.boxed_mask import BoxedMask

# The spec, a second time


class Refused(Exception):
    """The spec has no answer."""


def _spec_processed(height: int, width: int, f: int, budget: int) -> tuple[int, int]:
    """Section 3."""
    if min(height, width) < f:
        factor = f / min(height, width)
        height, width = round(height * factor), round(width * factor)
    elif max(height, width) > 200 * min(height, width):
        raise Refused
    h, w = round(height / f) * f, round(width / f) * f
    if h * w > budget:
        if not budget:
            raise Refused
        beta = math.sqrt(height * width / budget)
        h, w = (math.floor(side / beta / f) * f for side in (height, width))
    elif h * w < 56**2:
        beta = math.sqrt(56**2 / (height * width))
        h, w = (math.ceil(side * beta / f) * f for side in (height, width))
    if not h * w:
        raise Refused
    return h, w


def _spec_budget(config: ModelConfig, images: int, d: int) -> int:
    return math.floor(config.mm_max_length * 196 * d**2 / images)


def _spec_view(
    config: ModelConfig, budget: int, image: int, crop: tuple, size: tuple, resize: int, d: int = 1
) -> tuple:
    return (image, *crop, *size, resize, *_spec_processed(size[0], size[1], 14 * d, budget), d)


def _spec_mark(config: ModelConfig, mark: Mark, budget: int) -> dict[str, Any]:
    """Sections 1: the crop's view, the box, the mask's grid, the tokens."""
    lite = config.kind == "lite"
    height, width = mark.mask.shape
    mask = mark.mask.full()
    marked = np.argwhere(mask)
    if not len(marked):
        view = _spec_view(config, budget, BLACK, (0, 0, 14, 14), (14, 14), LINEAR)
        return {"view": view, "box": (0, 0, 0, 0), "grid": np.zeros((1, 1)), "tokens": config.mask_num}
    (top, left), (bottom, right) = marked.min(0).tolist(), marked.max(0).tolist()
    if lite:
        crop = (max(top - 28, 0), max(left - 28, 0), min(bottom + 1 + 28, height), min(right + 1 + 28, width))
        box = (crop[0], crop[1], min(height - 1, crop[2] - 1), min(width - 1, crop[3] - 1))
    else:
        box = (max(top - 28, 0), max(left - 28, 0), min(height - 1, bottom + 28), min(width - 1, right + 28))
        crop = box
    h, w = crop[2] - crop[0], crop[3] - crop[1]
    most = 50 if lite else 100
    s: float = math.ceil(math.sqrt(196 * config.mask_num / len(marked)))
    if s == 1 and len(marked) / 196 > most:
        s = 1 / math.sqrt((len(marked) / 196) / most)
    rows, columns = math.ceil(h * s / 14), math.ceil(w * s / 14)
    size = (rows * 14, columns * 14)
    resize = AREA if lite and not (size[0] >= h or size[1] >= w) else LINEAR
    cut = mask[crop[0] : crop[2], crop[1] : crop[3]].copy()
    if lite:
        grid = _bilinear(cut.astype(np.float64), rows, columns)
        tokens = config.mask_num
    else:
        grid = F.interpolate(torch.from_numpy(cut)[None, None], size=(rows, columns), mode="bilinear")[0, 0].numpy()
        tokens = min(config.mask_num, int((grid > 0).sum()))
    return {
        "view": _spec_view(config, budget, mark.image, crop, size, resize),
        "box": box,
        "grid": grid,
        "tokens": tokens,
        "crop": crop,
    }


def _bilinear(values: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Half-pixel centres, no antialias, as two weight matrices."""

    def weights(size: int, source: int) -> np.ndarray:
        at = np.clip((np.arange(size) + 0.5) * source / size - 0.5, 0, source - 1)
        low = np.floor(at).astype(int)
        matrix = np.zeros((size, source))
        matrix[np.arange(size), low] += 1 - (at - low)
        matrix[np.arange(size), np.minimum(low + 1, source - 1)] += at - low
        return matrix

    return weights(rows, values.shape[0]) @ values @ weights(columns, values.shape[1]).T


# Sizes


@given(
    height=st.integers(1, 5000),
    width=st.integers(1, 5000),
    merge=st.sampled_from([1, 2]),
    budget=st.integers(0, 3000) | st.integers(0, 20_000_000),
)
def test_processor_size(height: int, width: int, merge: int, budget: int) -> None:
    try:
        expected = _spec_processed(height, width, 14 * merge, budget)
    except Refused:
        with pytest.raises(ValueError, match=r"^expected "):
            processor_size(height, width, 14 * merge, budget)
        return
    assert processor_size(height, width, 14 * merge, budget) == expected


@pytest.mark.parametrize(
    ("given_size", "factor", "expected"),
    [
        ((336, 336), 14, (336, 336)),
        ((224, 224), 14, (224, 224)),
        ((480, 640), 14, (476, 644)),
        ((35, 63), 14, (42, 84)),  # 2.5 and 4.5 cells round to 2 and 4, too few: 2.98 and 5.37 round up
        ((91, 105), 14, (84, 112)),  # 6.5 and 7.5 round to even
        ((1, 1), 14, (56, 56)),
        ((3, 900), 14, (14, 4200)),  # the aspect ratio of a thin image is not asked
        ((480, 640), 28, (476, 644)),
        ((70, 98), 28, (56, 112)),  # 2.5 and 3.5
    ],
)
def test_processor_size_by_hand(given_size: tuple[int, int], factor: int, expected: tuple[int, int]) -> None:
    assert processor_size(*given_size, factor, 10**9) == expected


def test_processor_size_within_the_budget() -> None:
    assert processor_size(336, 336, 14, 336 * 336) == (336, 336)
    assert processor_size(336, 336, 14, 336 * 336 - 1) == (322, 322)
    assert processor_size(1000, 500, 14, 392) == (28, 14)


@pytest.mark.parametrize("size", [(14, 2801), (2801, 14), (20, 4001)])
def test_aspect_ratio(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"^expected an aspect ratio of at most 200, got {size[0]}x{size[1]}$"):
        processor_size(*size, 14, 10**9)
    height, width = (s - 1 if s > 20 else s for s in size)
    assert processor_size(height, width, 14, 10**9)


@pytest.mark.parametrize(("size", "budget"), [((336, 336), 195), ((336, 336), 0), ((14, 1400), 5000)])
def test_a_budget_of_no_patch(size: tuple[int, int], budget: int) -> None:
    message = (
        f"^expected a pixel budget that leaves at least one patch, got {budget} pixels for {size[0]}x{size[1]} "
        r"\(too many images or regions in one request\)$"
    )
    with pytest.raises(ValueError, match=message):
        processor_size(*size, 14, budget)


@given(length=st.integers(1, 20_000), images=st.integers(1, 3000), merge=st.sampled_from([1, 2]))
def test_pixel_budget(length: int, images: int, merge: int) -> None:
    config = model_config("full", mm_max_length=length)
    assert pixel_budget(config, images, merge) == _spec_budget(config, images, merge)


# Plans


@st.composite
def _requests(draw: st.DrawFn) -> tuple[list[tuple[int, int]], list[Mark]]:
    sides = st.integers(2, 700) | st.integers(2, 60)
    sizes = draw(st.lists(st.tuples(sides, sides), min_size=1, max_size=3))
    marks = []
    for i in range(draw(st.integers(1, 4))):
        image = draw(st.integers(0, len(sizes) - 1))
        height, width = sizes[image]
        boxes = []
        for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2]))):
            top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
            bottom, right = draw(st.integers(top + 1, height)), draw(st.integers(left + 1, width))
            boxes.append((top, left, bottom, right))
        marks.append(Mark(image, BoxedMask.of(boxes_mask(height, width, *boxes)), f"region {i}"))
    return sizes, marks


@given(request=_requests(), mask_num=st.sampled_from([8, 32]), length=st.sampled_from([700, 1024, 16384]))
def test_lite_against_the_spec(request: tuple, mask_num: int, length: int) -> None:
    sizes, marks = request
    config = model_config("lite", mask_num, length)
    budget = _spec_budget(config, len(marks), 1)
    expected = []
    context: dict[int, tuple] = {}
    try:
        for mark in marks:
            own = _spec_mark(config, mark, budget)
            height, width = sizes[mark.image]
            whole = (0, 0, height, width)
            if mark.image not in context:
                context[mark.image] = (
                    _spec_view(config, budget, mark.image, whole, (336, 336), AREA),
                    _spec_view(config, budget, mark.image, own.get("crop", whole), (224, 224), AREA),
                )
            expected.append((own, *context[mark.image]))
    except Refused:
        with pytest.raises(ValueError, match=r"^region \d: expected "):
            plan_views(config, sizes, marks, len(marks))
        return
    plan = plan_views(config, sizes, iter(marks), len(marks))
    for mark, got, (own, global_view, local_view) in zip(marks, plan.marks, expected, strict=True):
        assert (got.name, got.image, got.image_size) == (mark.name, mark.image, sizes[mark.image])
        assert astuple(plan.views[got.crop]) == own["view"]
        assert got.global_view is not None
        assert got.local_view is not None
        assert astuple(plan.views[got.global_view]) == global_view
        assert astuple(plan.views[got.local_view]) == local_view
        assert got.box == own["box"]
        assert got.tokens == own["tokens"]
        assert got.mask_grid.dtype == torch.float32
        assert got.mask_grid.shape == own["grid"].shape
        assert np.abs(got.mask_grid.numpy() - own["grid"]).max() < 1e-4
    assert plan.scene == []
    used = {v for m in plan.marks for v in (m.crop, m.global_view, m.local_view)}
    assert used == set(range(len(plan.views)))
    assert len(set(plan.views)) == len(plan.views)


@given(
    request=_requests(),
    mask_num=st.sampled_from([8, 32]),
    length=st.sampled_from([700, 16384]),
    merge=st.sampled_from([1, 2]),
)
def test_full_against_the_spec(request: tuple, mask_num: int, length: int, merge: int) -> None:
    sizes, marks = request
    marks = [m for m in marks if m.mask.area]
    assume(marks)
    config = model_config("full", mask_num, length)
    scene_budget, budget = _spec_budget(config, len(sizes), merge), _spec_budget(config, len(marks), 1)
    try:
        scene = [
            _spec_view(config, scene_budget, i, (0, 0, *size), size, LINEAR, merge) for i, size in enumerate(sizes)
        ]
        expected = [_spec_mark(config, mark, budget) for mark in marks]
    except Refused:
        with pytest.raises(ValueError, match=r"^(region|image) \d: expected "):
            plan_views(config, sizes, marks, len(marks), range(len(sizes)), merge)
        return
    plan = plan_views(config, sizes, iter(marks), len(marks), range(len(sizes)), merge)
    assert [astuple(plan.views[v]) for v in plan.scene] == scene
    for mark, got, own in zip(marks, plan.marks, expected, strict=True):
        assert (got.name, got.image, got.image_size) == (mark.name, mark.image, sizes[mark.image])
        assert astuple(plan.views[got.crop]) == own["view"]
        assert (got.global_view, got.local_view) == (None, None)
        assert got.box == own["box"]
        assert got.tokens == own["tokens"]
        assert got.mask_grid.dtype == torch.float32
        assert np.array_equal(got.mask_grid, own["grid"])
        assert set(np.unique(got.mask_grid)) <= {0, 1}
    assert len(set(plan.views)) == len(plan.views)


def test_table_grids_and_rows() -> None:
    plan = plan_of(LITE, boxes_mask(100, 200, (10, 20, 60, 90)), boxes_mask(100, 200, (50, 100, 90, 180)))
    table = plan.table()
    assert table.dtype == torch.int64
    assert [tuple(row) for row in table.tolist()] == [astuple(v) for v in plan.views]
    assert plan.grids == [(v.final_height // 14, v.final_width // 14, v.merge) for v in plan.views]
    assert [b - a for a, b in pairwise(plan.first_rows)] == [h * w for h, w, _ in plan.grids]
    assert plan.first_rows[0] == 0
    assert ViewPlan().table().shape == (0, 11)
    assert ViewPlan().first_rows == [0]

"""Plans of views worked out by hand: boxes and scales, what is shared, budgets, empty masks and errors."""

from __future__ import annotations

import math
from dataclasses import astuple

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from plans import AREA, BLACK, FULL, LINEAR, LITE, boxes_mask, marks_of, model_config, plan_of

from pixelrefer_fast.checkpoint.config import ModelConfig
from pixelrefer_fast.planning.views import ViewPlan, plan_views

# Boxes and scales by hand


def test_lite_pads_by_28_pixels_and_clips() -> None:
    plan = plan_of(LITE, boxes_mask(480, 640, (100, 200, 150, 300)))
    view = plan.views[plan.marks[0].crop]
    assert (view.top, view.left, view.bottom, view.right) == (72, 172, 178, 328)
    assert plan.marks[0].box == (72, 172, 177, 327)
    corner = plan_of(LITE, boxes_mask(480, 640, (470, 630, 480, 640)))
    view = corner.views[corner.marks[0].crop]
    assert (view.top, view.left, view.bottom, view.right) == (442, 602, 480, 640)
    assert corner.marks[0].box == (442, 602, 479, 639)


def test_full_leaves_out_the_last_row_and_column() -> None:
    plan = plan_of(FULL, boxes_mask(480, 640, (100, 200, 150, 300)))
    view = plan.views[plan.marks[0].crop]
    assert (view.top, view.left, view.bottom, view.right) == plan.marks[0].box == (72, 172, 177, 327)
    whole = plan_of(FULL, np.ones((480, 640), dtype=np.uint8))
    assert whole.marks[0].box == (0, 0, 479, 639)


@pytest.mark.parametrize(
    ("config", "side", "scaled"),
    [
        (LITE, 20, (76 * 4, 76 * 4)),  # ceil(sqrt(6272 / 400)) = 4
        (LITE, 79, (270, 270)),  # ceil(sqrt(6272 / 6241)) = 2
        (LITE, 80, (136, 136)),  # 6400 marked pixels: 1, and 32.7 cells are not too many
        (LITE, 99, (155, 155)),  # 50.005 cells: reduced by a hair
        (LITE, 198, (254 * (50 / 200.02) ** 0.5,) * 2),
        (FULL, 198, (253 * (100 / 200.02) ** 0.5,) * 2),
        (FULL, 139, (194, 194)),  # 98.6 cells
    ],
)
def test_scale(config: ModelConfig, side: int, scaled: tuple[float, float]) -> None:
    plan = plan_of(config, boxes_mask(900, 900, (300, 300, 300 + side, 300 + side)))
    view = plan.views[plan.marks[0].crop]
    assert (view.height, view.width) == tuple(math.ceil(s / 14) * 14 for s in scaled)


@pytest.mark.parametrize(("config", "crop", "most"), [(LITE, (76, 4056), 50), (FULL, (75, 4055), 100)])
def test_scale_of_a_long_object(config: ModelConfig, crop: tuple[int, int], most: int) -> None:
    """80,000 marked pixels: so many columns that one cell more or less in the limit is seen."""
    plan = plan_of(config, boxes_mask(200, 4200, (50, 100, 70, 4100)))
    factor = math.sqrt(most / (80_000 / 196))
    expected = tuple(math.ceil(side * factor / 14) for side in crop)
    assert plan.marks[0].mask_grid.shape == expected
    for other in (most - 1, most + 1):
        assert expected[1] != math.ceil(crop[1] * math.sqrt(other / (80_000 / 196)) / 14)


def test_lite_averages_areas_only_where_both_sides_shrink() -> None:
    """Rounding up to whole patches can make one side grow while the other shrinks."""
    shrinking = plan_of(LITE, boxes_mask(900, 900, (100, 100, 400, 400)))
    assert shrinking.views[shrinking.marks[0].crop].filter == AREA
    # 7 rows stay one patch high, 1,600 columns shrink
    flat = plan_of(LITE, np.ones((7, 1600), dtype=np.uint8))
    view = flat.views[flat.marks[0].crop]
    assert view.height > 7
    assert view.width < 1600
    assert view.filter == LINEAR
    full = plan_of(FULL, boxes_mask(900, 900, (100, 100, 600, 600)))
    view = full.views[full.marks[0].crop]
    assert view.height < view.bottom - view.top
    assert view.filter == LINEAR


def test_full_rounds_the_mask_in_each_pass() -> None:
    """What the spec warns of: neither the rounded float result nor OpenCV's has the same cells."""
    rng = np.random.default_rng(3)
    mask = (rng.random((300, 300)) < 0.55).astype(np.uint8)
    plan = plan_of(FULL, mask)
    grid = plan.marks[0].mask_grid.numpy()
    cut = mask[:299, :299].copy()
    real = F.interpolate(torch.from_numpy(cut)[None, None].float(), size=grid.shape, mode="bilinear")[0, 0].numpy()
    by_opencv = cv2.resize(cut, grid.shape[::-1], interpolation=cv2.INTER_LINEAR)
    assert set(np.unique(grid)) == {0, 1}
    assert not np.array_equal(grid, np.round(real))
    assert not np.array_equal(grid, by_opencv)
    assert np.abs(grid - real).max() < 1
    assert plan.marks[0].tokens == 32


def test_full_may_ask_for_fewer_tokens_or_none() -> None:
    # rows half-way between those that the rows of cells read
    between = [int((i + 0.5) * 599 / 43 - 0.5) + 7 for i in range(0, 43, 2)]
    stripes = [(y, 0, y + 1, 600) for y in between]
    for extra, tokens in (([], 0), ([(0, 0, 30, 30)], 4), ([(0, 0, 42, 150)], 32)):
        plan = plan_of(FULL, boxes_mask(600, 600, *stripes, *extra))
        assert plan.marks[0].mask_grid.shape == (43, 43)
        assert plan.marks[0].tokens == min(32, plan.marks[0].mask_grid.sum()) == tokens
    assert plan_of(LITE, boxes_mask(600, 600, *stripes)).marks[0].tokens == 32


@pytest.mark.parametrize("config", [LITE, FULL], ids=["lite", "full"])
def test_one_pixel(config: ModelConfig) -> None:
    plan = plan_of(config, boxes_mask(480, 640, (240, 320, 241, 321)))
    view = plan.views[plan.marks[0].crop]
    side = 57 if config.kind == "lite" else 56
    # ceil(sqrt(6272)) = 80 times, to whole patches; the budget of 16384 patches cuts it down again
    assert view.height == view.width == math.ceil(side * 80 / 14) * 14
    assert plan.marks[0].mask_grid.shape == (view.height // 14, view.width // 14)
    assert view.grid == (128, 128)


# Sharing


def test_views_of_an_image_are_shared_and_the_first_object_gives_the_local_one() -> None:
    boxes = [(10, 10, 60, 60), (200, 300, 260, 400), (100, 100, 150, 150)]
    masks = [boxes_mask(480, 640, b) for b in boxes]
    plan = plan_of(LITE, *masks)
    assert len({m.global_view for m in plan.marks}) == len({m.local_view for m in plan.marks}) == 1
    assert len(plan.views) == 5
    local = plan.views[plan.marks[2].local_view or 0]
    assert (local.top, local.left, local.bottom, local.right) == (0, 0, 88, 88)
    assert (local.height, local.width, local.filter) == (224, 224, AREA)
    whole = plan.views[plan.marks[2].global_view or 0]
    assert (whole.top, whole.left, whole.bottom, whole.right) == (0, 0, 480, 640)
    assert (whole.height, whole.width, whole.filter) == (336, 336, AREA)


def test_every_image_has_its_own_first_object() -> None:
    sizes = [(100, 100), (100, 100)]
    boxes = [(0, 0, 9, 9), (50, 50, 60, 60), (80, 80, 90, 90), (20, 20, 30, 30)]
    marks = marks_of(*(boxes_mask(100, 100, b) for b in boxes), images=[1, 0, 1, 0])
    plan = plan_views(LITE, sizes, marks, 4)
    locals_ = [plan.views[m.local_view or 0] for m in plan.marks]
    assert [(v.image, v.top, v.left) for v in locals_] == [(1, 0, 0), (0, 22, 22), (1, 0, 0), (0, 22, 22)]
    assert [plan.views[m.global_view or 0].image for m in plan.marks] == [1, 0, 1, 0]


def test_the_same_region_twice_is_one_crop() -> None:
    mask = boxes_mask(100, 100, (10, 10, 50, 50))
    plan = plan_of(LITE, mask, mask.copy())
    assert plan.marks[0].crop == plan.marks[1].crop
    assert len(plan.views) == 3


def test_requests_about_one_image_share_a_plan() -> None:
    first, second = boxes_mask(300, 300, (10, 10, 50, 50)), boxes_mask(300, 300, (200, 200, 250, 250))
    plan = plan_of(LITE, first)
    assert plan_of(LITE, second, into=plan) is plan
    assert plan.marks[0].global_view == plan.marks[1].global_view
    # a request of its own has its own first object
    assert plan.marks[0].local_view != plan.marks[1].local_view
    alone = plan_of(LITE, second)
    for name in ("crop", "local_view", "global_view"):
        assert plan.views[getattr(plan.marks[1], name)] == alone.views[getattr(alone.marks[0], name)]


def test_a_scene_is_one_view_with_an_equal_crop() -> None:
    """A Full crop never is the whole image, but two frames of the scene may be asked for twice."""
    plan = plan_views(FULL, [(280, 280), (280, 280)], [], 0, scene=[1, 0, 1], scene_merge=2)
    assert plan.scene == [0, 1, 0]
    assert [v.image for v in plan.views] == [1, 0]
    assert {v.merge for v in plan.views} == {2}
    assert plan.marks == []


# Budgets


def test_with_many_marks_the_context_views_shrink() -> None:
    """Beyond mm_max_length / 576 marks (28 at 16384)."""
    mask = boxes_mask(300, 300, (10, 10, 90, 90))
    for count, side in ((28, 336), (29, 322), (64, 224), (65, 210)):
        plan = plan_of(LITE, *[mask] * count)
        assert len(plan.views) == 3
        view = plan.views[plan.marks[-1].global_view or 0]
        assert (view.height, view.final_height, view.final_width) == (336, side, side)
        local = plan.views[plan.marks[-1].local_view or 0]
        assert local.final_height == min(224, side)


def test_context_views_of_a_small_model() -> None:
    config = model_config("lite", global_view_size=112, local_view_size=84)
    plan = plan_of(config, boxes_mask(300, 200, (10, 10, 90, 90)))
    mark = plan.marks[0]
    assert mark.global_view is not None
    assert mark.local_view is not None
    assert plan.views[mark.global_view].grid == (8, 8)
    assert plan.views[mark.local_view].grid == (6, 6)


def test_a_crop_over_the_budget_keeps_the_grid_of_its_mask() -> None:
    plan = plan_of(model_config("lite", mm_max_length=60), boxes_mask(300, 300, (10, 10, 200, 200)))
    mark = plan.marks[0]
    assert plan.views[mark.crop].patches <= 60
    assert mark.mask_grid.shape == (9, 9)


def test_the_budget_counts_the_marks_announced_not_those_seen() -> None:
    """A request's marks are looked at one by one."""
    mask = boxes_mask(300, 300, (10, 10, 90, 90))
    few = plan_views(LITE, [(300, 300)], iter(marks_of(mask)), 29)
    assert few.views[few.marks[0].global_view or 0].final_height == 322


def test_frames_of_a_video_share_their_budget() -> None:
    sizes = [(720, 1280)] * 20
    plan = plan_views(FULL, sizes, [], 0, scene=range(20), scene_merge=2)
    assert len(plan.scene) == 20
    patches = sum(v.patches for v in plan.views)
    assert 0.9 * 16384 * 4 < patches <= 16384 * 4


@pytest.mark.parametrize("count", [84, 500, 1025, 5_000_000])
def test_too_many_marks_for_any_budget(count: int) -> None:
    """1024 patches for all: at 84 marks a wide crop has no row left, at 1,025 not one patch is."""
    wide = boxes_mask(30, 3000, (0, 0, 30, 3000))
    config = model_config("lite", mm_max_length=1024)
    with pytest.raises(ValueError, match=r"^region 0: expected a pixel budget that leaves at least one patch, got "):
        plan_views(config, [(30, 3000)], marks_of(wide), count)


# Empty masks and errors


def test_empty_masks_of_lite() -> None:
    plan = plan_of(LITE, boxes_mask(100, 200), boxes_mask(100, 200, (10, 10, 50, 50)))
    empty, second = plan.marks
    view = plan.views[empty.crop]
    assert astuple(view) == (BLACK, 0, 0, 14, 14, 14, 14, LINEAR, 56, 56, 1)
    assert empty.box == (0, 0, 0, 0)
    assert empty.mask_grid.tolist() == [[0]]
    assert (empty.tokens, second.tokens) == (32, 32)
    local = plan.views[empty.local_view or 0]
    assert (local.image, local.top, local.left, local.bottom, local.right) == (0, 0, 0, 100, 200)
    assert second.local_view == empty.local_view
    later = plan_of(LITE, boxes_mask(100, 200, (10, 10, 50, 50)), boxes_mask(100, 200))
    assert later.views[later.marks[1].local_view or 0].bottom == 78


def test_empty_mask_of_full() -> None:
    with pytest.raises(
        ValueError, match=r"^region 0: expected a mask with at least one marked pixel, got an empty one$"
    ):
        plan_of(FULL, boxes_mask(100, 200))


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1)])
def test_images_of_one_row_or_column(size: tuple[int, int]) -> None:
    mask = np.ones(size, dtype=np.uint8)
    with pytest.raises(
        ValueError, match=rf"^region 0: expected an image of at least 2x2 pixels, got {size[0]}x{size[1]}$"
    ):
        plan_of(FULL, mask)
    assert plan_of(LITE, mask).marks[0].box == (0, 0, size[0] - 1, size[1] - 1)


def test_the_smallest_image_of_full() -> None:
    plan = plan_of(FULL, np.ones((2, 2), dtype=np.uint8))
    assert plan.marks[0].box == (0, 0, 1, 1)
    assert plan.marks[0].mask_grid.tolist() == [[1] * 3] * 3  # one pixel, ceil(sqrt(6272 / 4)) = 40 times
    assert plan.marks[0].tokens == 9


@pytest.mark.parametrize("config", [LITE, FULL], ids=["lite", "full"])
def test_a_mask_of_another_size(config: ModelConfig) -> None:
    message = r"^region 1: expected a mask of \(?100\D+200\)?, got \(?200\D+100\)?$"
    with pytest.raises(ValueError, match=message):
        plan_views(config, [(100, 200)], marks_of(np.ones((100, 200), np.uint8), np.ones((200, 100), np.uint8)), 2)


def test_errors_name_the_mark_or_the_image() -> None:
    strip = np.ones((14, 12000), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"^region 0: expected an aspect ratio of at most 200, got 14x"):
        plan_of(LITE, strip)
    with pytest.raises(ValueError, match=r"^image 0: expected an aspect ratio of at most 200, got 14x12000$"):
        plan_views(FULL, [(14, 12000)], marks_of(strip), 1, scene=[0])


@pytest.mark.parametrize("config", [LITE, FULL], ids=["lite", "full"])
def test_scattered_pixels(config: ModelConfig) -> None:
    """Two pixels in the corners of a large image ask for a crop 56 times its size."""
    mask = boxes_mask(2000, 3000, (0, 0, 1, 1), (1999, 2999, 2000, 3000))
    height, width = (2000, 3000) if config.kind == "lite" else (1999, 2999)
    message = (
        f"^region 0: expected marked pixels that lie together, got 2 of them spread over {height}x{width}: "
        f"enlarging that crop 56 times would take {math.ceil(height * 4) * 14}x{math.ceil(width * 4) * 14} pixels$"
    )
    with pytest.raises(ValueError, match=message):
        plan_of(config, mask)


def test_a_failed_plan_leaves_no_mark() -> None:
    plan = ViewPlan()
    with pytest.raises(ValueError, match=r"^region 0: "):
        plan_of(FULL, boxes_mask(100, 200), into=plan)
    assert plan.marks == []
    assert plan.views == []

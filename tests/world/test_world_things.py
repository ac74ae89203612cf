"""Drawing of single objects: masks of the right shape and size, pixels of the right colours."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pixelrefer_fast.world.things import (
    ACROSS,
    COLORS,
    PATTERNS,
    SHAPES,
    SIZES,
    TINY,
    TURNABLE,
    Pose,
    Thing,
    draw,
    draw_angle,
    draw_look,
    draw_mask,
    unit_across,
)


def area_and_box(shape: str, across: float, angle: float = 0.0) -> tuple[int, int, int]:
    mask = draw_mask(shape, Pose(0, 0, across, angle))[2]
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(mask.sum()), int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1


def test_enough_words():
    assert len(SHAPES) >= 8
    assert len(COLORS) >= 8
    assert len(PATTERNS) == len(SIZES) == 3


def test_sizes_leave_room_between_each_other():
    ranges = [ACROSS[s] for s in (TINY, *SIZES)]
    assert all(low <= high for low, high in ranges)
    assert all(b[0] / a[1] >= 1.3 for a, b in itertools.pairwise(ranges))


def test_colors_are_far_from_each_other():
    values = np.array(list(COLORS.values()), float)
    apart = np.linalg.norm(values[:, None] - values[None], axis=-1) + 1e9 * np.eye(len(values))
    assert apart.min() > 80


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("across", [18.0, 40.0, 80.0])
def test_masks_are_as_long_as_said(shape: str, across: float):
    for angle in (0.0, 33.0):
        _, height, width = area_and_box(shape, across, angle)
        assert abs(max(height, width) - across) <= 2


AREAS = {  # of a shape 80 pixels across, by geometry
    "circle": np.pi * 40**2,
    "square": 80**2,
    "triangle": 80 * 80 * np.sqrt(3) / 2 / 2,
    "cross": 80**2 - 4 * (40 * 0.66) ** 2,
    "diamond": 80 * 80 * 0.66 / 2,
    "ring": np.pi * (40**2 - 20**2),
    "arrow": 44 * 24 + 36 * 68 / 2,
}


@pytest.mark.parametrize("shape", sorted(AREAS))
def test_areas_follow_geometry(shape: str):
    area, _, _ = area_and_box(shape, 80.0)
    assert area == pytest.approx(AREAS[shape], rel=0.08)  # pixels on the edge count


def test_shapes_differ_from_each_other():
    """No two shapes overlap by 93 % or more of their union, however turnable ones are turned."""

    def placed(shape: str, angle: float) -> np.ndarray:
        canvas = np.zeros((120, 120), bool)
        top, left, mask = draw_mask(shape, Pose(60, 60, 60, angle))
        canvas[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
        return canvas

    for i, a in enumerate(SHAPES):
        for b in SHAPES[i + 1 :]:
            still = placed(a, 0.0)
            for angle in range(0, 360, 15) if b in TURNABLE else (-7, 0, 7):
                other = placed(b, float(angle))
                assert (still & other).sum() < 0.85 * (still | other).sum(), (a, b, angle)


def test_things_stand_more_or_less_upright():
    rng = np.random.default_rng(0)
    for shape in SHAPES:
        angles = [draw_angle(shape, rng) for _ in range(200)]
        assert max(map(abs, angles)) <= (30 if shape in TURNABLE else 7)
        assert np.ptp(angles) > 50 or shape not in TURNABLE


@pytest.mark.parametrize("color", sorted(COLORS))
@pytest.mark.parametrize("pattern", PATTERNS)
def test_main_color_covers_most_and_patterns_show(color: str, pattern: str):
    """Of every shape and size: the main colour has most pixels, the second enough to be seen."""
    rng = np.random.default_rng(1)
    for shape in SHAPES:
        for across in (20.0, 40.0, 70.0):
            thing = Thing(shape, color, pattern, "small")
            look = draw_look(thing, rng, edge=False)
            drawn = draw(thing, look, Pose(0, 0, across, draw_angle(shape, rng)))
            pixels = drawn.pixels[drawn.mask].astype(int)
            main = np.mean((pixels == look.main).all(axis=1))
            second = np.mean((pixels == look.second).all(axis=1))
            assert main + second == pytest.approx(1)
            assert np.linalg.norm(np.array(look.main) - COLORS[color]) < 40
            if pattern == "solid":
                assert main == 1
            else:
                assert 0.1 < second < 0.55
                assert np.linalg.norm(np.array(look.main) - look.second) > 75


def test_outlines_are_thin_and_inside():
    rng = np.random.default_rng(2)
    thing = Thing("circle", "red", "solid", "medium")
    look = draw_look(thing, rng, edge=True)
    drawn = draw(thing, look, Pose(0, 0, 40, 0))
    edge = (drawn.pixels == look.edge).all(axis=2)
    assert edge.any()
    assert not (edge & ~drawn.mask).any()
    assert edge.sum() < 0.15 * drawn.mask.sum()


def test_patterns_move_and_turn_with_their_thing():
    thing = Thing("cross", "green", "striped", "medium")
    look = draw_look(thing, np.random.default_rng(3), edge=False)
    here = draw(thing, look, Pose(50, 60, 40, 0))
    there = draw(thing, look, Pose(71, 33, 40, 0))
    assert (here.pixels == there.pixels).all()
    assert (there.left - here.left, there.top - here.top) == (21, -27)
    turned = draw(thing, look, Pose(0, 0, 40, 90), turned=90)
    assert np.mean((np.rot90(here.pixels, -1) == turned.pixels)[:30, :30]) > 0.9


def test_texts():
    assert Thing("star", "red", "striped", "large").description == "a large red striped star"
    assert Thing("star", "red", "solid", "small").description == "a small red star"
    assert Thing("ring", "orange", "solid", "small").short == "an orange ring"


def test_unit_length_keeps_a_turning_things_size():
    unit = unit_across("triangle", 0.0)
    areas = [draw_mask("triangle", Pose(0, 0, 60, a), unit)[2].sum() for a in (0, 30, 60, 90)]
    assert max(areas) / min(areas) < 1.05

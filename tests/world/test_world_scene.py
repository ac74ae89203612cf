"""Scenes: the same for the same seed, masks that are what was drawn, sizes, counts and motions as promised."""

from __future__ import annotations

import functools
import itertools
import json
from collections import Counter

import cv2
import numpy as np
import pytest

from pixelrefer_fast.world import Scene, make_crowd, make_scene
from pixelrefer_fast.world.motion import MOTIONS
from pixelrefer_fast.world.scene import CROWD
from pixelrefer_fast.world.splits import held_out
from pixelrefer_fast.world.things import COLORS

SEEDS = range(110)


@functools.lru_cache(maxsize=2)
def scenes(video: bool) -> tuple[Scene, ...]:
    return tuple(make_scene(seed, "train", video) for seed in SEEDS)


@pytest.mark.parametrize("video", [False, True, None])
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_same_seed_same_scene(video: bool | None, split: str):
    for seed in (0, 3, 2**40):
        a, b = make_scene(seed, split, video), make_scene(seed, split, video)
        assert len(a.frames) == len(b.frames)
        assert all((x == y).all() for x, y in zip(a.frames, b.frames, strict=True))
        assert (a.masks == b.masks).all()
        assert (a.things, a.motions, a.times) == (b.things, b.motions, b.times)


def test_other_seed_other_scene():
    assert len({make_scene(seed, video=False).frames[0].tobytes() for seed in SEEDS}) == len(SEEDS)


def test_kinds_are_drawn_where_not_given():
    share = np.mean([make_scene(seed).video for seed in range(120)])
    assert 0.2 < share < 0.4


@pytest.mark.parametrize("video", [False, True])
def test_shapes_types_and_ranges(video: bool):
    low, high = (112, 154) if video else (112, 196)
    for s in scenes(video):
        height, width = s.size
        n, f = len(s.things), len(s.frames)
        assert 2 <= n <= 6
        assert low <= height <= high
        assert low <= width <= high
        assert max(height, width) / min(height, width) <= 1.75
        assert s.masks.shape == s.whole.shape == (n, f, height, width)
        assert s.masks.dtype == s.whole.dtype == bool
        assert all(p.shape == (height, width, 3) and p.dtype == np.uint8 for p in s.frames)
        if video:
            assert 4 <= f <= 6
            assert s.times == tuple(map(float, range(f)))
            assert s.motions is not None
            assert len(s.motions) == n
        else:
            assert (f, s.times, s.motions) == (1, None, None)


def test_sides_and_aspects_vary():
    ratios = [s.size[1] / s.size[0] for s in scenes(False)]
    assert min(ratios) < 0.7
    assert max(ratios) > 1.4
    sides = [side for s in scenes(False) for side in s.size]
    assert min(sides) < 120
    assert max(sides) > 188


@pytest.mark.parametrize("video", [False, True])
def test_masks_are_disjoint_and_later_objects_lie_in_front(video: bool):
    for s in scenes(video):
        assert (s.masks.sum(axis=0) <= 1).all()
        front = np.zeros(s.masks.shape[1:], bool)
        for i in reversed(range(len(s.things))):
            assert (s.masks[i] == (s.whole[i] & ~front)).all()
            front |= s.whole[i]


@pytest.mark.parametrize("video", [False, True])
def test_masks_are_what_was_drawn(video: bool):
    """Inside every mask nearly all pixels are of the object's colours or greys of its pattern; none outside are."""
    for s in scenes(video)[:30]:
        for f, frame in enumerate(s.frames):
            ground = frame[~s.masks[:, f].any(axis=0)].astype(int)
            assert np.mean(np.ptp(ground, axis=1) > 90) < 0.001  # backgrounds are greyish
            assert np.mean(ground.max(axis=1) > 225) < 0.002
            assert np.mean(ground.min(axis=1) < 30) < 0.002
            for i, thing in enumerate(s.things):
                inside = frame[s.masks[i, f]].astype(int)
                if thing.pattern == "solid" and thing.size == "large" and len(inside) > 500:
                    off = np.linalg.norm(np.median(inside, axis=0) - COLORS[thing.color])
                    assert off < 45, (s.seed, i, thing)


def test_objects_stand_out_from_what_is_around():
    for s in scenes(False):
        frame = s.frames[0].astype(int)
        ground = ~s.masks[:, 0].any(axis=0)
        for i, thing in enumerate(s.things):
            if thing.pattern != "solid":
                continue
            ring = cv2.dilate(s.masks[i, 0].view(np.uint8), np.ones((9, 9), np.uint8)).astype(bool) & ground
            if ring.sum() < 20:
                continue
            inside, outside = np.median(frame[s.masks[i, 0]], axis=0), np.median(frame[ring], axis=0)
            assert np.abs(inside - outside).max() > 30, (s.seed, i, thing)


def test_named_colors_are_nearest_in_hue():
    """The main colour of every solid object is nearer to its own word's colour than to any other's."""
    names = list(COLORS)
    values = np.array([COLORS[c] for c in names])
    for s in scenes(False):
        for i, thing in enumerate(s.things):
            inside = s.frames[0][s.masks[i, 0]]
            if thing.pattern == "solid" and len(inside) > 100:
                near = np.linalg.norm(values - np.median(inside, axis=0), axis=1).argmin()
                assert names[near] == thing.color, (s.seed, i)


@pytest.mark.parametrize("video", [False, True])
def test_words_and_sizes_occur_about_equally(video: bool):
    things = [t for s in scenes(video) for t in s.things]
    for word, options, most in (("shape", 10, 0.2), ("color", 10, 0.2), ("pattern", 3, 0.45)):
        counts = Counter(getattr(t, word) for t in things)
        assert len(counts) == options
        assert max(counts.values()) / len(things) < most
    sizes = Counter(t.size for t in things)
    assert min(sizes[s] for s in ("small", "medium", "large")) / len(things) > 0.12
    assert 0.03 < sizes["tiny"] / len(things) < 0.1


def test_numbers_of_objects_vary():
    assert set(range(2, 7)) == {len(s.things) for s in scenes(False)}
    assert {2, 3, 4, 5} == {len(s.things) for s in scenes(True)}


@pytest.mark.parametrize("video", [False, True])
def test_some_objects_overlap_and_few_are_hidden(video: bool):
    visible = np.concatenate([s.facts.visible.min(axis=1) for s in scenes(video)])
    assert 0.04 < np.mean(visible < 0.97) < 0.5
    assert np.mean(visible < 0.65) < 0.05
    assert all((s.facts.areas > 0).all() for s in scenes(video))


def test_motions_hold_in_the_masks():
    """Recomputed from the whole masks: centres for ways, areas for sizes, and pixels alone for turning."""
    seen: Counter[str] = Counter()
    for s in scenes(True):
        height, width = s.size
        assert s.motions is not None
        for i, motion in enumerate(s.motions):
            seen[motion] += 1
            masks = s.whole[i]
            areas = masks.sum(axis=(1, 2))
            points = [np.argwhere(m) for m in masks]
            y, x = np.array([p.mean(axis=0) for p in points]).T
            dx, dy = (x[-1] - x[0]) / width, (y[-1] - y[0]) / height
            steps_x, steps_y = np.diff(x), np.diff(y)
            if motion == "still":
                assert (masks == masks[0]).all()
            elif motion in ("left", "right"):
                assert (dx >= 0.3) if motion == "right" else (dx <= -0.3)
                assert (steps_x > 0).all() if motion == "right" else (steps_x < 0).all()
                assert abs(dy) < 0.1
                assert np.ptp(areas) == 0
            elif motion in ("up", "down"):
                assert (dy >= 0.3) if motion == "down" else (dy <= -0.3)
                assert (steps_y > 0).all() if motion == "down" else (steps_y < 0).all()
                assert abs(dx) < 0.1
                assert np.ptp(areas) == 0
            else:
                lengths = [max(np.ptp(p, axis=0) + 1) for p in points]
                assert abs(dx) < 0.2
                assert abs(dy) < 0.2
                if motion == "growing":
                    assert lengths[-1] / lengths[0] >= 1.7
                    assert (np.diff(areas) > 0).all()
                elif motion == "shrinking":
                    assert lengths[0] / lengths[-1] >= 1.7
                    assert (np.diff(areas) < 0).all()
                else:
                    assert max(areas) / min(areas) < 1.2
                    assert all((a != b).mean() * a.size > 0.08 * areas[0] for a, b in itertools.pairwise(masks))
    assert set(seen) == set(MOTIONS)
    assert max(seen.values()) < 0.4 * seen.total()


def test_half_of_the_videos_have_noise_between_frames():
    def noisy(s: Scene) -> bool:
        ground = ~s.masks[:, :2].any(axis=(0, 1))
        return bool((s.frames[0][ground] != s.frames[1][ground]).any())

    share = np.mean([noisy(s) for s in scenes(True)])
    assert 0.35 < share < 0.65


@pytest.mark.parametrize("video", [False, True])
def test_best_frame_shows_most(video: bool):
    for s in scenes(video)[:50]:
        areas = s.masks.sum(axis=(2, 3))
        for i in range(len(s.things)):
            best = s.best_frame(i)
            assert areas[i, best] == areas[i].max()
            assert (areas[i, :best] < areas[i, best]).all()


@pytest.mark.parametrize("video", [False, True])
def test_facts_against_plain_definitions(video: bool):
    for s in scenes(video)[:15]:
        facts, n = s.facts, len(s.things)
        areas, whole = s.masks.sum(axis=(2, 3)), s.whole.sum(axis=(2, 3))
        assert (facts.areas == areas).all()
        assert facts.visible == pytest.approx(areas / whole)
        for f in range(len(s.frames)):
            for i in range(n):
                points = np.argwhere(s.masks[i, f])
                (top, left), (bottom, right) = points.min(axis=0), points.max(axis=0) + 1
                assert facts.boxes[i, f].tolist() == [left, top, right, bottom]
                assert facts.centres[i, f] == pytest.approx(points.mean(axis=0)[::-1])
                assert facts.across[i, f] == (np.ptp(np.argwhere(s.whole[i, f]), axis=0) + 1).max()
                far = cv2.distanceTransform((~s.masks[i, f]).view(np.uint8), cv2.DIST_C, 3)
                for j in range(n):
                    if i == j:
                        continue
                    gap = far[s.masks[j, f]].min()  # in steps of a king: 1 are neighbours
                    assert facts.touching[f, i, j] == (gap <= 1)
                    assert facts.apart[f, i, j] == (gap > 3)
                    assert facts.covers[f, j, i] == (s.whole[i, f] & s.masks[j, f]).sum()


def test_summary_is_plain():
    for video in (False, True):
        s = make_scene(4, "heldout", video)
        summary = json.loads(json.dumps(s.summary()))
        assert summary["kind"] == ("video" if video else "image")
        assert [o["shape"] for o in summary["objects"]] == [t.shape for t in s.things]
        assert any(o["held_out"] for o in summary["objects"])
        for i, o in enumerate(summary["objects"]):
            left, top, right, bottom = o["box"]
            mask = s.masks[i, o["best_frame"]]
            assert mask[top:bottom, left:right].sum() == mask.sum() > 0


def test_a_crowd_has_many_small_objects_of_training():
    crowds = [make_crowd(seed) for seed in range(40)]
    counts = [len(c.things) for c in crowds]
    assert min(counts) > 6  # more than any scene to be asked about has
    assert max(counts) < CROWD[1]
    sizes = Counter(t.size for c in crowds for t in c.things)
    assert set(sizes) == {"small", "medium"}
    assert 0.6 < sizes["small"] / sizes.total() < 0.8
    assert not any(t.combination in held_out() for c in crowds for t in c.things)
    assert {(c.video, c.split) for c in crowds} == {(False, "train")}
    shared = [Counter(t.color for t in c.things).most_common(1)[0][1] for c in crowds]
    assert min(shared) <= 4 < max(shared)
    again = make_crowd(3)
    assert (again.frames[0] == crowds[3].frames[0]).all()
    assert again.things == crowds[3].things
    assert len({c.frames[0].tobytes() for c in crowds}) == len(crowds)
    with pytest.raises(ValueError, match="seed: expected an integer from 0 on, got -1"):
        make_crowd(-1)

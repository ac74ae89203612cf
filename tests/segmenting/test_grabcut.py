"""GrabCut: boxes and clicks on pictures whose objects are known, and regions given as points wherever regions go."""

from __future__ import annotations

import numpy as np
import pytest

import pixelrefer_fast as pf
from pixelrefer_fast.regions import as_regions
from pixelrefer_fast.segmenting import segment
from pixelrefer_fast.world import make_scene

SIZES = ((40, 60), (90, 140), (700, 300), (600, 1100))


def disc(height: int, width: int) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """A noisy green picture with a red disc off its middle, the disc's mask, and its centre (x, y)."""
    rows, columns = np.mgrid[:height, :width]
    x, y, radius = width * 0.6, height * 0.4, min(height, width) * 0.2
    mask = np.hypot(columns - x, rows - y) < radius
    picture = np.where(mask[..., None], (200, 30, 30), (30, 140, 40)).astype(np.int16)
    noise = np.random.default_rng(0).integers(-12, 13, picture.shape)
    return (picture + noise).clip(0, 255).astype(np.uint8), mask, (int(x), int(y))


def overlap(found: np.ndarray, mask: np.ndarray) -> float:
    return float((found.astype(bool) & mask).sum() / (found.astype(bool) | mask).sum())


@pytest.mark.parametrize("size", SIZES)
def test_a_click_and_a_box_find_the_disc_at_any_size(size):
    picture, mask, (x, y) = disc(*size)
    rows, columns = np.nonzero(mask)
    box = [columns.min() - 3, rows.min() - 3, columns.max() + 4, rows.max() + 4]
    (clicked,) = segment(picture, points=[[x, y]])
    (boxed,) = segment(picture, boxes=box)
    assert overlap(clicked.region.mask(*size), mask) > 0.9
    assert overlap(boxed.region.mask(*size), mask) > 0.9
    assert clicked.rough
    assert not boxed.rough
    assert clicked.score is boxed.score is None


def test_masks_are_the_same_each_time_and_whatever_else_draws_random_numbers():
    import cv2

    picture, _, point = disc(90, 140)
    first = segment(picture, points=[point])
    cv2.setRNGSeed(7)
    assert segment(picture, points=[point]) == first


def test_a_box_without_an_object_is_taken_as_it_is():
    grey = np.full((60, 80, 3), 128, np.uint8)
    (found,) = segment(grey, boxes=[10, 10, 30, 40])
    assert found.rough
    assert found.region.mask(60, 80).sum() == 20 * 30
    (whole,) = segment(grey, boxes=[-5, -5, 90, 70])
    assert whole.region.mask(60, 80).all()


@pytest.mark.parametrize(("height", "kept"), [(3, False), (4, True), (40, True)])
def test_a_box_is_kept_where_a_tenth_of_it_is_left(monkeypatch, height, kept):
    import cv2

    def cut(picture, certain, *_):
        certain[10 : 10 + height, 10:50] = cv2.GC_FGD
        certain[10 + height :] = cv2.GC_BGD

    monkeypatch.setattr(cv2, "grabCut", cut)
    (found,) = segment(np.zeros((100, 100, 3), np.uint8), boxes=[10, 10, 50, 50])
    assert found.rough != kept
    assert found.region.mask(100, 100).sum() == 40 * (height if kept else 40)


@pytest.mark.parametrize(("size", "cut"), [((90, 140), (90, 140)), ((600, 1100), (279, 512)), ((4000, 20), (512, 3))])
def test_at_most_512_pixels_a_side_are_cut(monkeypatch, size, cut):
    import cv2

    seen = []
    monkeypatch.setattr(cv2, "grabCut", lambda picture, *_: seen.append(picture.shape[:2]))
    picture, _, point = disc(*size)
    segment(picture, points=[point])
    segment(picture, boxes=[0, 0, size[1], size[0] / 2])
    assert seen == [cut, cut]


def test_a_click_beside_the_object_takes_its_part_away():
    picture, _, _ = disc(90, 140)
    picture[60:80, 10:40] = picture[30:50, 80:110]  # a second red part
    (kept,) = segment(picture, points=[[84, 36], [25, 70]], labels=[1, 0])
    mask = kept.region.mask(90, 140)
    assert mask[36, 84] == 1
    assert mask[70, 25] == 0


def test_several_boxes_are_an_object_each_and_one_may_hold_clicks():
    picture, mask, point = disc(90, 140)
    found = segment(picture, boxes=[[60, 10, 110, 60], [0, 0, 20, 20]])
    assert len(found) == 2
    (both,) = segment(picture, points=[point], boxes=[60, 10, 110, 60])
    assert overlap(both.region.mask(90, 140), mask) > 0.9
    assert not both.rough


def test_a_frame_of_a_video_is_marked_in_that_frame():
    picture, mask, point = disc(90, 140)
    (found,) = segment([picture, picture], points=[point], frame=1)
    assert found.region.frames == (1,)
    assert overlap(found.region.mask(90, 140, 1), mask) > 0.9


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({}, "expected points, boxes or text, got none"),
        ({"labels": [1]}, "labels: expected points"),
        ({"points": [[140, 3]]}, "points: expected x below 140 and y below 90, got \\[140, 3\\]"),
        ({"points": [[3, -1]]}, "points: expected x below 140"),
        ({"points": [[3, 3]], "labels": [0]}, "labels: expected at least one point on the object"),
        ({"points": [[3, 3]], "labels": [1, 1]}, "labels: expected one for each of 1 points, got 2"),
        ({"points": [[3, 3]], "labels": [2]}, "labels: expected 1 .* or 0"),
        ({"points": []}, "points: expected 1 to 64, got 0"),
        ({"points": [[1, 1]] * 65}, "points: expected 1 to 64, got 65"),
        ({"points": [[3, float("nan")]]}, "points: expected numbers"),
        ({"boxes": [150, 3, 160, 5]}, "box: expected a part inside"),
        ({"boxes": [5, 5, 5, 5]}, "box: expected x0 < x1"),
        ({"boxes": []}, "boxes: expected 1 to 256"),
        ({"boxes": "all"}, "boxes: expected 1 to 256"),
        ({"points": [[3, 3]], "boxes": [[0, 0, 5, 5], [0, 0, 6, 6]]}, "expected one box together with points, got 2"),
        ({"text": "a cat"}, "text: expected points or boxes for grabcut"),
        ({"points": [[3, 3]], "frame": 0}, "frame: expected none with an image"),
    ],
)
def test_what_is_wrong_with_a_prompt_is_said(prompt, message):
    with pytest.raises(ValueError, match=message):
        segment(np.zeros((90, 140, 3), np.uint8), **prompt)


def test_a_video_wants_a_frame():
    frames = np.zeros((2, 20, 30, 3), np.uint8)
    with pytest.raises(ValueError, match="frame: expected the number of a frame with a video, got none"):
        segment(frames, points=[[3, 3]])
    with pytest.raises(ValueError, match="frame: expected a number from 0 to 1, got 2"):
        segment(frames, points=[[3, 3]], frame=2)
    opened = pf.load_segmenter().open(pf.open_media(frames))
    with pytest.raises(ValueError, match="expected a segmenter that follows objects"):
        opened.track(points=[[3, 3]])


def test_points_are_a_region_in_every_form_and_return_from_json():
    clicks = {"points": [[3, 4], [5, 6]], "labels": [1, 0]}
    for given in (clicks, {"type": "points", **clicks}, pf.Region.from_points([3, 4, 5, 6], [True, False])):
        (region,) = as_regions(given)
        assert region.kind == "points"
        assert pf.Region.from_json(region.to_json()) == region
    (in_frame,) = as_regions({"2": {"points": [[3, 4]]}})
    assert in_frame.frames == (2,)
    with pytest.raises(ValueError, match="expected a mask, got points"):
        region.mask(20, 20)


@pytest.fixture(scope="module")
def scene():
    return make_scene(1000, "heldout", False)


def test_a_model_is_asked_about_points_as_about_their_mask(scene):
    model, picture = pf.load(), np.asarray(scene.frames[0])
    rows, columns = np.nonzero(scene.masks[0, 0])
    at = len(rows) // 2
    point = [int(columns[at]), int(rows[at])]
    (found,) = segment(picture, points=[point])
    question = "What color is <region>?"
    assert model.ask(picture, question, [{"points": [point]}]) == model.ask(picture, question, [found.region])
    (answer,) = model.ask_batch([(picture, question, [{"points": [point]}])])
    assert answer.text == model.ask(picture, question, [found.region])
    with pytest.raises(ValueError, match="region 1: points: expected x below"):
        model.describe(picture, [found.region, {"points": [[10_000, 3]]}])


def test_the_segmenter_of_a_model_can_be_another(scene):
    class Everything:
        name = "everything"

        def open(self, media):
            return self

        def masks(self, points=None, labels=None, boxes=None, text=None, frame=None):
            return [pf.Segment(pf.Region.from_mask(np.ones(picture.shape[:2], bool)))]

    model, picture = pf.load(), np.asarray(scene.frames[0])
    model.segmenter = Everything()
    objects = model.encode(picture, [{"points": [[5, 5]]}])
    (marked,) = (pf.Region.from_json(region) for region in objects.provenance["regions"])
    assert marked.mask(*picture.shape[:2]).all()

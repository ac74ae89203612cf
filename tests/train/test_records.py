"""Samples of the released formats: what is read, and what is malformed and why."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco

from pixelrefer_fast.train.records import parse_record

HEIGHT, WIDTH = 40, 60


def box_mask(x0: int = 5, y0: int = 10, x1: int = 30, y1: int = 35) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[y0:y1, x0:x1] = 1
    return mask


MASK = box_mask()
OTHER = box_mask(31, 2, 50, 9)


def compressed(mask: np.ndarray = MASK) -> dict[str, Any]:
    rle = coco.encode(np.asfortranarray(mask))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def uncompressed(mask: np.ndarray = MASK) -> dict[str, Any]:
    flat = mask.flatten(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate(([0], changes, [flat.size]))).tolist()
    return {"size": list(mask.shape), "counts": runs if not flat[0] else [0, *runs]}


POLYGON = [[5.0, 10.0, 30.0, 10.0, 30.0, 35.0, 5.0, 35.0]]


def talk(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def image_sample(**changes: Any) -> dict[str, Any]:
    sample = {
        "image": "a.png",
        "conversations": talk("<image>\nWhat is <region>?", "A box."),
        "masks": [compressed()],
        "height": HEIGHT,
        "width": WIDTH,
    }
    return {k: v for k, v in (sample | changes).items() if v is not ...}


def video_sample(**changes: Any) -> dict[str, Any]:
    sample = {
        "video": "clip",
        "conversations": talk("<video>\nWhat is <region>?", "A box."),
        "masks": [{"1": compressed(), "0": compressed(OTHER)}],
        "height": HEIGHT,
        "width": WIDTH,
    }
    return {k: v for k, v in (sample | changes).items() if v is not ...}


@pytest.mark.parametrize("mask", [compressed(), uncompressed(), {"segmentation": compressed()}])
@pytest.mark.parametrize("sized", [True, False])
def test_run_lengths_of_an_image_with_and_without_a_size_beside_them(mask: Any, sized: bool, media: Path) -> None:
    sample = image_sample(masks=[mask]) if sized else image_sample(masks=[mask], height=..., width=...)
    record = parse_record(sample, media, "lite")
    assert record.media == media / "a.png"
    assert not record.video
    assert record.size == (HEIGHT, WIDTH)
    assert len(record.objects) == 1
    np.testing.assert_array_equal(record.objects[0].mask(HEIGHT, WIDTH), MASK)


@pytest.mark.parametrize("polygon", [POLYGON, POLYGON[0], [[[5, 10], [30, 10], [30, 35], [5, 35]]]])
def test_polygons_are_drawn_as_pycocotools_draws_them(polygon: Any, media: Path) -> None:
    record = parse_record(image_sample(masks=[polygon]), media, "full")
    wanted = coco.decode(coco.merge(coco.frPyObjects(POLYGON, HEIGHT, WIDTH)))
    np.testing.assert_array_equal(record.objects[0].mask(HEIGHT, WIDTH), wanted)


def test_polygons_take_their_size_from_the_run_lengths_beside_them(media: Path) -> None:
    sample = image_sample(
        masks=[POLYGON, compressed(OTHER)],
        conversations=talk("<region> and <region>?", "Two."),
        height=...,
        width=...,
    )
    record = parse_record(sample, media, "lite")
    assert record.size == (HEIGHT, WIDTH)
    assert record.objects[0].mask(HEIGHT, WIDTH).sum() > 500


@pytest.mark.parametrize("layout", ["masks", "annotation"])
@pytest.mark.parametrize("encode", [compressed, uncompressed, lambda mask=None: POLYGON])
def test_a_video_marks_objects_by_frame_in_both_layouts(layout: str, encode: Any, media: Path) -> None:
    frames = {"10": encode(), "2": encode(OTHER)}
    if layout == "annotation":
        frames = {key: {"segmentation": value} for key, value in frames.items()}
    record = parse_record(video_sample(**({"masks": ...} | {layout: [frames]})), media, "lite")
    assert record.video
    assert record.objects[0].frames == (2, 10)
    if encode is not compressed:
        return
    np.testing.assert_array_equal(record.objects[0].mask(HEIGHT, WIDTH, 2), OTHER)
    np.testing.assert_array_equal(record.objects[0].mask(HEIGHT, WIDTH, 10), MASK)


def test_annotation_needs_no_size_where_run_lengths_have_it(media: Path) -> None:
    sample = video_sample(masks=..., annotation=[{"0": {"segmentation": compressed()}}], height=..., width=...)
    assert parse_record(sample, media, "lite").size == (HEIGHT, WIDTH)


@pytest.mark.parametrize("absent", [{"segmentation": None}, {}, None, {"segmentation": []}])
def test_a_frame_without_a_segmentation_is_left_out(absent: Any, media: Path) -> None:
    sample = video_sample(masks=..., annotation=[{"0": absent, "1": {"segmentation": compressed()}}])
    record = parse_record(sample, media, "lite")
    assert record.objects[0].frames == (1,)


def test_full_takes_the_first_of_several_frames_and_says_so(media: Path) -> None:
    record = parse_record(video_sample(), media, "full")
    assert record.objects[0].frames == (0,)
    assert record.dropped == 1
    assert parse_record(video_sample(masks=[{"1": compressed()}]), media, "full").dropped == 0
    assert parse_record(video_sample(), media, "lite").dropped == 0


def test_lite_is_not_shown_tags_of_whole_images(media: Path) -> None:
    assert parse_record(image_sample(), media, "lite").turns == (("What is <region>?", "A box."),)
    assert parse_record(image_sample(), media, "full").turns == (("<image>\nWhat is <region>?", "A box."),)
    assert parse_record(video_sample(), media, "lite").turns == (("What is <region>?", "A box."),)


def test_tags_of_several_turns_name_the_objects_in_order(media: Path) -> None:
    turns = talk("What is <region>?", "One.", "And <region>?", "Two.")
    record = parse_record(image_sample(conversations=turns, masks=[compressed(), compressed(OTHER)]), media, "full")
    assert record.turns == (("What is <region>?", "One."), ("And <region>?", "Two."))
    np.testing.assert_array_equal(record.objects[1].mask(HEIGHT, WIDTH), OTHER)


@pytest.mark.parametrize("masks", [..., None, []])
def test_full_learns_about_images_without_objects_and_lite_does_not(masks: Any, media: Path) -> None:
    sample = image_sample(masks=masks, conversations=talk("<image>\nWhat is it?", "A picture."))
    record = parse_record(sample, media, "full")
    assert record.objects == ()
    with pytest.raises(ValueError, match=r"masks: expected at least one object, as PixelRefer-Lite"):
        parse_record(sample, media, "lite")


ONE_TURN_MORE = talk("What is <region>?", "A box.", "Why?")
MALFORMED: dict[str, tuple[dict[str, Any], str]] = {
    "no media": (image_sample(image=...), "expected either image or video, got neither"),
    "both media": (image_sample(video="clip"), "expected either image or video, got image and video"),
    "media that is missing": (image_sample(image="b.png"), "image: expected an existing file, found no"),
    "a video that is missing": (video_sample(video="b.mp4"), "video: expected an existing video"),
    "an image that is a folder": (image_sample(image="clip"), "image: expected an existing file"),
    "media outside the root": (image_sample(image="../a.png"), "image: expected a path below"),
    "an absolute path": (image_sample(image="/etc/passwd"), "image: expected a path below"),
    "a path that is no text": (image_sample(image=7), "image: expected a path, got 7"),
    "two images": (image_sample(image=["a.png", "a.png"]), "image: expected a path"),
    "a path that is too long": (image_sample(image="a" * 5000), "image: expected an existing file"),
    "no conversation": (image_sample(conversations=...), "conversations: expected turns of human and gpt in pairs"),
    "an empty conversation": (image_sample(conversations=[]), "got 0 turns"),
    "a question without answer": (image_sample(conversations=ONE_TURN_MORE), "in pairs, got 3 turns"),
    "turns in the wrong order": (
        image_sample(conversations=talk("What is <region>?", "A box.")[::-1]),
        'conversations 0: expected {"from": "human", "value": text}',
    ),
    "a turn without text": (
        image_sample(conversations=[{"from": "human"}, {"from": "gpt", "value": "A box."}]),
        "conversations 0: expected",
    ),
    "an answer that is empty": (
        image_sample(conversations=talk("<region>?", " ")),
        "conversations 1: expected an answer",
    ),
    "a question that is empty": (
        image_sample(conversations=talk("<image>", "Yes."), masks=[compressed()]),
        "expected a",
    ),
    "half a character": (
        image_sample(conversations=talk("<region>?", "\ud800")),
        "expected an answer in whole characters",
    ),
    "a tag in an answer": (
        image_sample(conversations=talk("<region>?", "It is <region>.")),
        "conversations 1: expected an answer without <region>",
    ),
    "a reserved token": (image_sample(conversations=talk("<REGION> <region>?", "A box.")), "reserved"),
    "fewer tags than objects": (
        image_sample(masks=[compressed(), compressed(OTHER)]),
        "expected a <region> tag for each of the 2 marked object(s), got 1",
    ),
    "more tags than objects": (
        image_sample(conversations=talk("<region> <region>?", "A box.")),
        "expected a <region> tag for each of the 1 marked object(s), got 2",
    ),
    "tags without objects": (image_sample(masks=...), "for each of the 0 marked object(s), got 1"),
    "a video tag for an image": (
        image_sample(conversations=talk("<video>\n<region>?", "A box.")),
        "conversations 0: expected at most one <image>, in the first turn",
    ),
    "two image tags": (image_sample(conversations=talk("<image><image><region>?", "A box.")), "at most one <image>"),
    "an image tag later on": (
        image_sample(conversations=talk("<region>?", "A box.", "<image>Why?", "Because.")),
        "conversations 2: expected at most one <image>, in the first turn",
    ),
    "masks and annotation": (image_sample(annotation=[]), "expected either masks or annotation, got both"),
    "masks that are no list": (image_sample(masks={"0": compressed()}), "masks: expected a list"),
    "an object without a mask": (image_sample(masks=[None]), "masks 0: expected run lengths or polygons"),
    "an object that is text": (image_sample(masks=["x"]), "masks 0: expected run lengths or polygons"),
    "an object of unknown keys": (image_sample(masks=[{"box": [1, 2, 3, 4]}]), "masks 0: expected run lengths"),
    "a mask of another size": (
        image_sample(height=20, width=30),
        "masks 0: expected a mask of 20x30 (height x width), got 40x60",
    ),
    "masks of different sizes": (
        image_sample(
            masks=[compressed(), compressed(np.ones((4, 4), np.uint8))],
            conversations=talk("<region> <region>?", "Two."),
            height=...,
            width=...,
        ),
        "masks 1: expected a mask of 40x60",
    ),
    "run lengths without a size": (image_sample(masks=[{"counts": "abc"}]), "masks 0: size: expected [height, width]"),
    "run lengths that are cut": (
        image_sample(masks=[{"size": [HEIGHT, WIDTH], "counts": [100, 5]}]),
        "masks 0: RLE counts: expected runs that add up",
    ),
    "run lengths that are no text": (
        image_sample(masks=[{"size": [HEIGHT, WIDTH], "counts": 7}]),
        "masks 0: RLE counts",
    ),
    "polygons without a size": (
        image_sample(masks=[POLYGON], height=..., width=...),
        "masks 0: expected height and width in the sample, which polygons need, got neither",
    ),
    "a polygon of two points": (image_sample(masks=[[[1, 2, 3, 4]]]), "masks 0: polygon: expected at least 3 points"),
    "a polygon of words": (image_sample(masks=[[["a"] * 6]]), "masks 0: polygon"),
    "a height alone": (image_sample(width=...), "height, width: expected two whole numbers of pixels"),
    "a size of text": (image_sample(height="40"), "height, width: expected two whole numbers"),
    "a size of nothing": (image_sample(height=0), "height, width"),
    "a video's mask without frames": (video_sample(masks=[compressed()]), "masks 0: expected frame numbers from 0 on"),
    "a video's object without frames": (video_sample(masks=[{}]), "masks 0: expected an object of frame numbers"),
    "a negative frame": (video_sample(masks=[{"-1": compressed()}]), "masks 0: expected frame numbers from 0 on"),
    "a frame twice": (video_sample(masks=[{"1": compressed(), "01": compressed()}]), "each frame once, got 1 twice"),
    "no frame with a segmentation": (
        video_sample(masks=..., annotation=[{"0": {"segmentation": None}, "1": {}}]),
        "annotation 0: expected a mask in at least one frame, got none",
    ),
    "a damaged mask in a frame": (
        video_sample(masks=[{"3": {"size": [HEIGHT, WIDTH], "counts": "zz~"}}]),
        "masks 0, frame 3: RLE counts",
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.parametrize("kind", ["lite", "full"])
def test_what_is_malformed_is_told_by_its_key(name: str, kind: str, media: Path) -> None:
    sample, message = MALFORMED[name]
    if name == "tags without objects" and kind == "lite":
        message = "got 1"
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_record(copy.deepcopy(sample), media, kind)


@pytest.mark.parametrize("value", [None, [], "text", 7])
def test_a_sample_is_an_object(value: Any, media: Path) -> None:
    with pytest.raises(ValueError, match="expected an object, got"):
        parse_record(value, media, "lite")

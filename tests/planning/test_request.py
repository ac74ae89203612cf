"""Regions bound to the images or frames that they mark."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from pixelrefer_fast.planning.request import FrameSource, ObjectTokens, Request, bind_regions
from pixelrefer_fast.regions import Region

IMAGE = FrameSource.of_images([np.zeros((20, 30, 3), np.uint8)])
VIDEO = FrameSource.of_images([np.zeros((20, 30, 3), np.uint8)] * 4, [0.0, 0.5, 1.0, 1.5])
BOX = Region.of([2, 3, 12, 13])


def _in_frames(*frames: int) -> Region:
    return Region.from_frames({f: [f, 0, f + 5, 5] for f in frames})


def test_sources() -> None:
    assert IMAGE.sizes == [(20, 30)]
    assert not IMAGE.video
    assert VIDEO.sizes == [(20, 30)] * 4
    assert VIDEO.video
    assert [int(f[0, 0, 0]) for f in FrameSource.of_images([np.full((1, 1, 3), i) for i in range(3)]).read([2, 0])] == [
        2,
        0,
    ]


def test_an_image_as_it_is_opened() -> None:
    source = FrameSource.of(np.zeros((7, 9, 3), np.uint8))
    assert (source.sizes, source.times) == ([(7, 9)], None)


def test_binding() -> None:
    assert bind_regions(IMAGE, [BOX, BOX]) == [(0,), (0,)]
    assert bind_regions(VIDEO, [_in_frames(3, 1), _in_frames(0)]) == [_in_frames(3, 1).frames, (0,)]


@pytest.mark.parametrize(
    ("source", "regions", "message"),
    [
        (IMAGE, [], "regions: expected at least one, got none"),
        (IMAGE, [BOX, _in_frames(0)], "region 1: expected a region of an image, got one bound to frames (0,)"),
        (VIDEO, [BOX], "region 0: expected a mapping from frame to region for a video, got a "),
        (VIDEO, [_in_frames(0), _in_frames(4)], "region 1: expected frames from 0 to 3, got 4"),
        (VIDEO, [_in_frames(2, 10**6)], "region 0: expected frames from 0 to 3, got 1000000"),
    ],
)
def test_regions_that_do_not_fit(source: FrameSource, regions: Any, message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        bind_regions(source, regions)


def _request(source: FrameSource, *regions: Region, scene: Any = ()) -> Request:
    return Request(source, regions, bind_regions(source, regions), scene)


def test_marks_of_an_image() -> None:
    request = _request(IMAGE, BOX, Region.of([0, 0, 30, 20]))
    assert request.num_marks == 2
    marks = list(request.marks())
    assert [(m.image, m.name) for m in marks] == [(0, "region 0"), (0, "region 1")]
    expected = np.zeros((20, 30))
    expected[3:13, 2:12] = 1
    assert np.array_equal(marks[0].mask.full(), expected)
    assert marks[1].mask.full().all()


def test_marks_of_a_video() -> None:
    request = _request(VIDEO, _in_frames(1, 3), _in_frames(0))
    assert request.num_marks == 3
    marks = list(request.marks())
    assert [(m.image, m.name) for m in marks] == [
        (1, "region 0, frame 1"),
        (3, "region 0, frame 3"),
        (0, "region 1, frame 0"),
    ]
    assert [m.mask.left for m in marks] == [1, 3, 0]


def test_masks_are_drawn_when_they_are_looked_at() -> None:
    marks = _request(IMAGE, BOX, Region.of([40, 40, 50, 50])).marks()
    assert next(marks).name == "region 0"
    with pytest.raises(ValueError, match=r"^region 1: "):
        next(marks)


def test_a_region_alone_keeps_its_number() -> None:
    request = _request(VIDEO, _in_frames(0), _in_frames(2, 3), scene=[0, 1])
    single = request.single(1)
    assert (single.regions, single.frames, single.scene) == ([request.regions[1]], [(2, 3)], [0, 1])
    assert [m.name for m in single.marks()] == ["region 1, frame 2", "region 1, frame 3"]
    assert [m.name for m in single.single(0).marks()] == ["region 1, frame 2", "region 1, frame 3"]


def test_how_objects_are_written() -> None:
    image = _request(IMAGE, BOX, BOX)
    assert image.object_tokens([8, 3]) == (ObjectTokens((8,)), ObjectTokens((3,)))
    lite = _request(VIDEO, _in_frames(1, 3), _in_frames(0))
    assert lite.object_tokens([8, 8, 8]) == (ObjectTokens((8, 8), (0.5, 1.5)), ObjectTokens((8,), (0.0,)))
    full = _request(VIDEO, _in_frames(1), _in_frames(0), scene=[0, 2])
    assert full.object_tokens([8, 0]) == (ObjectTokens((8,)), ObjectTokens((0,)))

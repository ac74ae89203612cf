"""Loads of the benchmark are as they are said to be."""

from __future__ import annotations

import numpy as np
import pytest

from pixelrefer_fast.bench.run import loads


def test_loads_are_what_they_say() -> None:
    load = loads.image_load("x", (60, 90), 3)
    assert load.sizes == {"objects": 3, "frames": 1, "marked": 1, "height": 60, "width": 90, "batch": 1}
    together = load.together
    assert together is not None
    assert len(together.regions) == 3
    for mask in together.regions:
        assert mask.shape == (60, 90)
        rows, columns = np.nonzero(mask)
        assert 0 < mask.sum() < 60 * 90 / 4
        assert rows.min() >= 0
        assert columns.max() < 90
    batch = loads.batch_load("y", (60, 90), 2)
    assert batch.together is None
    assert batch.batch_size == batch.sizes["objects"] == 2


@pytest.mark.parametrize(
    ("kind", "marked", "frames"), [("lite", None, [0, 1, 2, 3, 4]), ("lite", 2, [0, 4]), ("full", None, [2])]
)
def test_videos_are_seen_whole_and_marked_where_they_say(kind: str, marked: int | None, frames: list[int]) -> None:
    load = loads.video_load("x", (56, 70), 5, kind, marked)
    (request,) = load.requests
    assert request.media.sample() == [0, 1, 2, 3, 4]
    assert list(request.regions[0]) == frames
    assert load.sizes["marked"] == len(frames)


def test_the_pictures_have_the_papers_tokens() -> None:
    height, width = loads.PAPER_PICTURE
    assert height * width // 14**2 == 1408
    assert loads.FRAMES * 1408 // 4 == 7040

"""Regions of any form, and arrays as pictures: a region whose mask is one, or a ValueError."""

from __future__ import annotations

import json

import numpy as np
from fuzzing import Fuzzer, odd_array, odd_value

from pixelrefer_fast.media import open_media
from pixelrefer_fast.media.video import Video
from pixelrefer_fast.regions import Region, as_regions

SIZE = 12, 9


def _masks(value: object) -> str:
    """A region's mask is 0 and 1 of the size asked for, and is the same again from JSON."""
    regions = as_regions(value)
    for region in regions[:4]:
        frame = None if region.frames is None else region.frames[0]
        height, width = SIZE
        marks = region.marks[0][1]
        if hasattr(marks, "height"):
            height, width = marks.height, marks.width
        mask = region.mask(height, width, frame)
        assert mask.shape == (height, width)
        assert mask.dtype == np.uint8
        assert 0 < mask.sum() <= mask.size
        again = Region.from_json(json.loads(json.dumps(region.to_json())))
        assert np.array_equal(again.mask(height, width, frame), mask)
        repr(region)
    return "read" if regions else "none"


def test_values_as_regions(fuzzer: Fuzzer) -> None:
    fuzzer.run("regions: any value", lambda rng: _masks(odd_value(rng)), 1200)


def _near_region(rng: np.random.Generator) -> object:
    """A region as it should be, with one thing wrong."""
    height, width = SIZE
    mask = rng.random((height, width)) > 0.5
    box = sorted(rng.integers(0, 9, 2)) + sorted(rng.integers(0, 9, 2))
    forms: list[object] = [
        {"size": [height, width], "counts": [int(n) for n in rng.integers(0, 40, 5)]},
        {"size": [height, width], "counts": bytes(rng.integers(48, 112, 12, dtype=np.uint8)).decode()},
        {"type": "polygon", "polygons": [rng.normal(5, 4, 8).tolist()]},
        {"type": "scribble", "points": rng.normal(5, 4, (4, 2)).tolist(), "width": float(rng.normal(2, 2))},
        {"type": "box", "xyxy": [float(n) for n in box]},
        {"masks": mask[None], "object_ids": [1]},
        {"boxes": rng.normal(5, 4, (2, 4))},
        {"segmentation": mask, "bbox": [1, 2, 3, 4]},
        {3: mask, "4": [1, 2, 5, 6]},
        [mask, {"mask": mask}],
        rng.integers(0, 3, (height, width)),
    ]
    value = forms[rng.integers(len(forms))]
    if isinstance(value, dict) and rng.random() < 0.7:
        key = list(value)[rng.integers(len(value))]
        value = {**value, key: odd_value(rng, 1)}
    return value


def test_regions_with_one_part_wrong(fuzzer: Fuzzer) -> None:
    fuzzer.run("regions: one part wrong", lambda rng: _masks(_near_region(rng)), 1200)


def _picture(rng: np.random.Generator) -> str:
    value = odd_array(rng) if rng.random() < 0.7 else [odd_array(rng) for _ in range(2)]
    media = open_media(value)
    frames = list(media.read(range(len(media)))) if isinstance(media, Video) else [media]
    assert all(frame.ndim == 3 and frame.shape[2] == 3 and frame.dtype == np.uint8 for frame in frames)
    return "video" if isinstance(media, Video) else "image"


def test_arrays_as_pictures(fuzzer: Fuzzer) -> None:
    fuzzer.run("arrays as pictures", _picture, 1200)

"""Workloads: the places of the benchmarks' own, and what cannot be asked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pixelrefer_fast.bench.estimate.workload import Workload
from pixelrefer_fast.bench.run import loads, workloads


def test_boxes_are_those_of_the_benchmarks() -> None:
    assert Workload(objects=5, height=720, width=1280).boxes() == workloads.boxes(5, 720, 1280)
    masks = list(Workload(objects=2, height=90, width=120, ellipses=True, seed=0).masks(1))
    assert all(np.array_equal(a, b) for a, b in zip(masks, loads.ellipses(2, 90, 120, 1), strict=True))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"objects": 0}, "objects: expected at least 1, got 0"),
        ({"marked": 2}, "frames: expected a number of frames"),
        ({"frames": 3, "marked": 4}, "marked: expected at most 3"),
        ({"frames": 3, "seen": 9}, "seen: expected at most 3"),
        ({"box": (2000, 10)}, "box: expected one within 1080x1920 pixels, got 2000x10"),
        ({"kept": 1.5}, "kept: expected a share"),
    ],
)
def test_workloads_that_cannot_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Workload(**fields)

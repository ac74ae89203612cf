"""ViewPlan + pixels -> packed patches of every view."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch

from pixelrefer_fast import ops
from pixelrefer_fast.ops.view_patches import BLACK, IMAGE, PATCH
from pixelrefer_fast.request import FrameSource
from pixelrefer_fast.views import ViewPlan


def pack_views(plan: ViewPlan, source: FrameSource, backend: str = "auto") -> torch.Tensor:
    """Patches of all views of a plan, packed in the plan's order.

    Frames are read one after the other, in ascending order, and let go: memory is one frame's and the patches'.

    Returns:
        (P, 588) float32, normalised, on the CPU.
    """
    table = plan.table()
    first = plan.first_rows
    by_image: dict[int, list[int]] = defaultdict(list)
    for i, view in enumerate(plan.views):
        by_image[view.image].append(i)
    patches = torch.empty(first[-1], 3 * PATCH * PATCH)
    images = sorted(i for i in by_image if i != BLACK)
    for image, frame in zip(images, source.read(images), strict=True):
        _fill(patches, table, first, by_image[image], frame, backend)
    if BLACK in by_image:
        _fill(patches, table, first, by_image[BLACK], None, backend)
    return patches


def _fill(
    patches: torch.Tensor,
    table: torch.Tensor,
    first: list[int],
    views: list[int],
    frame: np.ndarray | None,
    backend: str,
) -> None:
    rows = table[views]
    pixels = []
    if frame is not None:
        rows[:, IMAGE] = 0
        pixels = [torch.from_numpy(np.ascontiguousarray(frame))]
    packed = ops.view_patches(pixels, rows, backend=backend)
    start = 0
    for view in views:
        count = first[view + 1] - first[view]
        patches[first[view] : first[view + 1]] = packed[start : start + count]
        start += count

"""ViewPlan + pixels -> packed patches of every view."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import accumulate, islice

import numpy as np
import torch

from pixelrefer_fast import ops
from pixelrefer_fast.device.transfers import upload
from pixelrefer_fast.ops.view_patches import BLACK, IMAGE, PATCH, check_plan, pack_pixels
from pixelrefer_fast.planning.request import FrameSource
from pixelrefer_fast.planning.views import ViewPlan

# Source pixels that lie on a device together, in bytes: 170 frames of 1080p are cut in one launch.
PIXEL_BYTES = 2**30


def pack_patches(
    plan: ViewPlan, source: FrameSource, device: torch.device | str = "cpu", backend: str = "auto"
) -> torch.Tensor:
    """Patches of all views of a plan, packed in the plan's order.

    Frames are read one after the other, in ascending order, and let go. Where a kernel cuts the views, the frames lie
    in device memory together and one launch serves all of them; on the CPU memory is one frame's and the patches'.

    Args:
        plan: the views.
        source: their pixels.
        device: where the patches are wanted.
        backend: who cuts the views.

    Returns:
        (P, 588) float32, normalised, on `device`.

    Raises:
        ValueError: the source gives fewer frames than the plan needs.
    """
    device = torch.device(device)
    by_image: dict[int, list[int]] = defaultdict(list)
    for number, view in enumerate(plan.views):
        by_image[view.image].append(number)
    black = by_image.pop(BLACK, [])
    images = sorted(by_image)
    together = device.type == "cuda" or backend == "triton"
    sizes = [3 * height * width for height, width in (source.sizes[i] for i in images)]
    frames = source.read(images)
    first = plan.first_rows
    patches: torch.Tensor | None = None
    position = 0
    for count in _chunks(sizes, PIXEL_BYTES if together else 0):
        own = images[position : position + count]
        read = list(islice(frames, count))
        position += count
        if len(read) < count:
            raise ValueError(f"frames: expected {len(images)} to be read, got {position - count + len(read)}")
        views = sorted([*black, *(v for i in own for v in by_image[i])])
        black = []  # cut with the first images
        packed = _cut(plan, views, own, read, device, backend)
        if len(views) == len(plan.views):
            return packed
        if patches is None:
            patches = torch.empty(first[-1], 3 * PATCH * PATCH, device=device)
        start = 0
        for v in views:
            rows = first[v + 1] - first[v]
            patches[first[v] : first[v + 1]] = packed[start : start + rows]
            start += rows
    assert patches is not None
    return patches


def _chunks(sizes: Sequence[int], limit: int) -> Iterator[int]:
    """How many images go together: as many as fit into `limit` bytes, one at least; without images one empty chunk."""
    count = total = 0
    for size in sizes:
        if count and total + size > limit:
            yield count
            count = total = 0
        count, total = count + 1, total + size
    yield count


def _cut(
    plan: ViewPlan,
    views: Sequence[int],
    images: Sequence[int],
    frames: Sequence[np.ndarray],
    device: torch.device,
    backend: str,
) -> torch.Tensor:
    """The patches of some of a plan's views, whose images are `frames`."""
    rows = plan.table(views)
    place = {image: i for i, image in enumerate(images)} | {BLACK: BLACK}
    rows[:, IMAGE] = torch.tensor([place[plan.views[v].image] for v in views], dtype=torch.int64)
    first_rows = [*accumulate((plan.views[v].patches for v in views), initial=0)]
    cu_seqlens = torch.tensor(first_rows, dtype=torch.int64)
    pixels, sources = _upload_pixels(frames, device) if device.type == "cuda" else pack_pixels(frames)
    check_plan(rows, sources, cu_seqlens, first_rows[-1], len(pixels))
    sources, rows, cu_seqlens = upload([sources, rows, cu_seqlens], device)
    return ops.view_patches(pixels, sources, rows, cu_seqlens, first_rows[-1], backend=backend)


def _upload_pixels(frames: Sequence[np.ndarray], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """As `pack_pixels`, but into device memory through pinned memory, frame by frame."""
    sizes = [f.size for f in frames]
    pixels = torch.empty(sum(sizes), dtype=torch.uint8, device=device)
    images, start = [], 0
    for frame, size in zip(frames, sizes, strict=True):
        pinned = torch.from_numpy(np.ascontiguousarray(frame)).view(-1).pin_memory()
        pixels[start : start + size].copy_(pinned, non_blocking=True)
        images.append((start, *frame.shape[:2]))
        start += size
    return pixels, torch.tensor(images, dtype=torch.int64).reshape(-1, 3)

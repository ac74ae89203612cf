"""Source pixels and a view plan to the packed, normalised patches of every view."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

import numpy as np
import torch

from pixelrefer_fast.checks.values import check_size
from pixelrefer_fast.ops._check import check_count, check_device, check_dtype, check_offsets, check_shape
from pixelrefer_fast.ops._registry import register_op

PATCH = 14

# Columns of a view plan, all integers.
IMAGE, TOP, LEFT, BOTTOM, RIGHT, HEIGHT, WIDTH, FILTER, FINAL_HEIGHT, FINAL_WIDTH, MERGE = range(11)
PLAN_COLUMNS = 11
BLACK = -1  # in column IMAGE: a view of black pixels
LINEAR, AREA = 0, 1  # in column FILTER: OpenCV's INTER_LINEAR and INTER_AREA


def _levels() -> np.ndarray:
    """(256,) float32: the value of each grey level, rounded where the reference's processor rounds."""
    unit = (np.arange(256) * (1 / 255)).astype(np.float32)
    return (unit - np.float32(0.5)) / np.float32(0.5)


LEVELS = _levels()


def _samples(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple]:
    def arguments(rows: list[list[int]], *sizes: tuple[int, int]) -> tuple:
        frames = [
            torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=generator).numpy()
            for height, width in sizes
        ]
        pixels, images = pack_pixels(frames)
        counts = [row[FINAL_HEIGHT] * row[FINAL_WIDTH] // PATCH**2 for row in rows]
        first = list(accumulate(counts, initial=0))
        plan = torch.tensor(rows, dtype=torch.int64).reshape(-1, PLAN_COLUMNS)
        return pixels, images, plan, torch.tensor(first), first[-1]

    yield arguments(
        [
            # image, crop (top, left, bottom, right), resize (h, w, filter), final size (h, w), merge
            [0, 0, 0, 37, 53, 42, 56, LINEAR, 42, 56, 1],
            [0, 5, 7, 25, 35, 14, 14, AREA, 14, 14, 1],
            [1, 0, 0, 1, 1, 28, 14, LINEAR, 28, 14, 1],
            [0, 0, 0, 37, 53, 35, 60, LINEAR, 28, 56, 2],
            [BLACK, 0, 0, 14, 14, 14, 14, LINEAR, 56, 56, 1],
        ],
        (37, 53),
        (1, 1),
    )
    yield arguments([[0, 5, 7, 20, 20, 14, 14, AREA, 14, 14, 1]], (20, 20))
    yield arguments([])


def pack_pixels(frames: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Source images one after the other, as `view_patches` takes them.

    Args:
        frames: (H, W, 3) uint8 each, RGB.

    Returns:
        pixels (B,) uint8, which shares the memory of a single contiguous frame, and images (I, 3) int64: first byte,
        height and width of each.
    """
    flat = [np.ascontiguousarray(frame).reshape(-1) for frame in frames]
    first = accumulate((len(f) for f in flat), initial=0)
    table = [[start, *frame.shape[:2]] for start, frame in zip(first, frames, strict=False)]
    pixels = flat[0] if len(flat) == 1 else np.concatenate(flat or [np.empty(0, dtype=np.uint8)])
    return torch.from_numpy(pixels), torch.tensor(table, dtype=torch.int64).reshape(-1, 3)


def resize_view(image: np.ndarray | None, row: Sequence[int]) -> np.ndarray:
    """One view's pixels after both resizes.

    Args:
        image: (H, W, 3) uint8, or None for a black view.
        row: the view's row of the plan.

    Returns:
        (FINAL_HEIGHT, FINAL_WIDTH, 3) uint8. The first resize is OpenCV's (the crop's own), the second is Pillow's
        bicubic (the image processor's), made only where the size changes: neither can be left out, since rounding to
        grey levels after each is part of what the weights were trained on.
    """
    import cv2

    pixels = crop_view(image, row)
    size = (row[WIDTH], row[HEIGHT])
    if pixels.shape[1::-1] != size:
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if row[FILTER] == AREA else cv2.INTER_LINEAR)
    return _bicubic(pixels, row[FINAL_HEIGHT], row[FINAL_WIDTH])


def _bicubic(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pillow's bicubic resize, one axis at a time, as Pillow 13 orders them.

    It rounds to grey levels between the passes, so the order shows in the last bit. The recorded behaviour is Pillow
    13's (vertical first where the height shrinks by more than twice what the width does); older ones always begin
    horizontally, and asking for one axis at a time makes all of them agree.
    """
    from PIL import Image

    image = Image.fromarray(pixels)
    vertical_first = image.height > height and image.height - height > 2 * (image.width - width)
    between = (image.width, height) if vertical_first else (width, image.height)
    for size in (between, (width, height)):
        if image.size != size:
            image = image.resize(size, Image.Resampling.BICUBIC)
    return np.asarray(image)


def crop_view(image: np.ndarray | None, row: Sequence[int]) -> np.ndarray:
    """The source pixels of one view: (bottom - top, right - left, 3) uint8."""
    top, left, bottom, right = row[TOP : RIGHT + 1]
    if image is None:
        return np.zeros((bottom - top, right - left, 3), dtype=np.uint8)
    return np.ascontiguousarray(image[top:bottom, left:right])


@register_op(
    source="reference mm_utils.resize_image_mask and damovl_encoder/image_processing.py; paper section 4.2.1",
    # One grey level is 2/255; a device may round a resize differently by one level.
    tolerance={torch.float32: 2 / 255, torch.float16: 2 / 255, torch.bfloat16: 2 / 255},
    samples=_samples,
)
def view_patches(
    pixels: torch.Tensor, images: torch.Tensor, plan: torch.Tensor, cu_seqlens: torch.Tensor, patches: int
) -> torch.Tensor:
    """Cut, resize, normalise to -1..1 and flatten every view of a plan.

    Args:
        pixels: (B,) uint8, contiguous: the source images one after the other, RGB, row by row (`pack_pixels`).
        images: (I, 3) int64: first byte, height and width of each image.
        plan: (V, 11) int64, a row a view: image (-1: black), crop as a half-open box (top, left, bottom, right), size
            after the first resize (height, width) and its filter (0 linear, 1 area), final size (height, width:
            multiples of 14 x merge), merge (1, or 2 for patches in 2x2 order).
        cu_seqlens: (V + 1,) int64: first packed row of each view, and the number of patches last.
        patches: the number of patches, P.

    Returns:
        (P, 588) float32, the views one after the other; a patch is flattened as (channel, row, column). Within a view
        patches come in raster order, or with merge 2 in the order (row / 2, column / 2, 2, 2).

    Raises:
        ValueError: wrong shapes or dtypes; in the definition also whatever `check_plan` finds in the values, which on a
            device a kernel does not look at: there a wrong plan gives wrong patches, but reads nothing outside
            `pixels`.
    """
    if pixels.device.type != "cpu":
        on_host = view_patches.definition(pixels.cpu(), images.cpu(), plan.cpu(), cu_seqlens.cpu(), patches)
        return on_host.to(pixels.device)
    check_plan(plan, images, cu_seqlens, patches, len(pixels))
    frames = [pixels[first:][: 3 * h * w].reshape(h, w, 3).numpy() for first, h, w in images.tolist()]
    out = np.empty((patches, 3 * PATCH * PATCH), dtype=np.float32)
    for row, start in zip(plan.tolist(), cu_seqlens.tolist(), strict=False):
        image = None if row[IMAGE] == BLACK else frames[row[IMAGE]]
        levels = _patch_order(resize_view(image, row), row[MERGE])
        np.take(LEVELS, levels, out=out[start : start + len(levels)])
    return torch.from_numpy(out)


@view_patches.check
def _check(
    pixels: torch.Tensor, images: torch.Tensor, plan: torch.Tensor, cu_seqlens: torch.Tensor, patches: int
) -> None:
    """What can be checked of `view_patches`' arguments without reading their values: shapes, dtypes, devices."""
    check_shape("view_patches", "pixels", pixels, None)
    check_dtype("view_patches", "pixels", pixels, torch.uint8)
    check_shape("view_patches", "images", images, None, 3)
    check_shape("view_patches", "plan", plan, None, PLAN_COLUMNS)
    check_shape("view_patches", "cu_seqlens", cu_seqlens, len(plan) + 1)
    for name, table in (("images", images), ("plan", plan), ("cu_seqlens", cu_seqlens)):
        check_dtype("view_patches", name, table, torch.int64)
    check_device("view_patches", pixels.device, images=images, plan=plan, cu_seqlens=cu_seqlens)
    check_count("view_patches", "patches", patches)


@view_patches.fake
def _fake(pixels: torch.Tensor, patches: int) -> torch.Tensor:
    return torch.empty(patches, 3 * PATCH * PATCH, device=pixels.device)


view_patches.kernel()


def _patch_order(pixels: np.ndarray, merge: int) -> np.ndarray:
    """(H, W, 3) uint8 to (H / 14 * W / 14, 588) uint8."""
    height, width = pixels.shape[0] // PATCH, pixels.shape[1] // PATCH
    cells = pixels.reshape(height // merge, merge, PATCH, width // merge, merge, PATCH, 3)
    return cells.transpose(0, 3, 1, 4, 6, 2, 5).reshape(height * width, 3 * PATCH * PATCH)


def check_plan(
    plan: torch.Tensor, images: torch.Tensor, cu_seqlens: torch.Tensor, patches: int, num_bytes: int
) -> None:
    """Check the values of a plan, on tensors of the host (before an upload).

    Args:
        plan, images, cu_seqlens, patches: as `view_patches` takes them.
        num_bytes: length of `pixels`.

    Raises:
        ValueError: an image that lies outside `pixels`, a row that asks for pixels outside its image or for a size that
            is no whole number of patches, or first rows that are not the views'.
    """
    sizes = images.tolist()
    for i, (first, height, width) in enumerate(sizes):
        if min(height, width) < 1 or not 0 <= first <= num_bytes - 3 * height * width:
            raise ValueError(
                f"view_patches: image {i}: expected {height}x{width} pixels within {num_bytes} bytes, got byte {first} "
                "as the first one"
            )
    rows = plan.tolist()
    for i, row in enumerate(rows):
        _check_row(i, row, sizes)
    first_rows = check_offsets("view_patches", "cu_seqlens", cu_seqlens, patches)
    for i, (row, (start, end)) in enumerate(zip(rows, pairwise(first_rows), strict=True)):
        count = row[FINAL_HEIGHT] * row[FINAL_WIDTH] // PATCH**2
        if end - start != count:
            raise ValueError(f"view_patches: row {i}: expected {count} patches in cu_seqlens, got {end - start}")


def _check_row(i: int, row: Sequence[int], sizes: Sequence[Sequence[int]]) -> None:
    top, left, bottom, right = row[TOP : RIGHT + 1]
    if not BLACK <= row[IMAGE] < len(sizes):
        raise ValueError(f"view_patches: row {i}: expected an image from -1 to {len(sizes) - 1}, got {row[IMAGE]}")
    bottom_limit, right_limit = (bottom, right) if row[IMAGE] == BLACK else sizes[row[IMAGE]][1:]
    if not (0 <= top < bottom <= bottom_limit and 0 <= left < right <= right_limit):
        raise ValueError(
            f"view_patches: row {i}: expected a crop within {bottom_limit}x{right_limit}, got rows {top}:{bottom}, "
            f"columns {left}:{right}"
        )
    if row[FILTER] not in (LINEAR, AREA):
        raise ValueError(f"view_patches: row {i}: expected filter {LINEAR} or {AREA}, got {row[FILTER]}")
    if row[MERGE] not in (1, 2):
        raise ValueError(f"view_patches: row {i}: expected merge 1 or 2, got {row[MERGE]}")
    if min(row[HEIGHT], row[WIDTH]) < 1:
        raise ValueError(
            f"view_patches: row {i}: expected a first size of at least one pixel, got {row[HEIGHT]}x{row[WIDTH]}"
        )
    step = PATCH * row[MERGE]
    height, width = row[FINAL_HEIGHT], row[FINAL_WIDTH]
    if min(height, width) < 1 or height % step or width % step:
        raise ValueError(
            f"view_patches: row {i}: expected a final size in whole cells of {step}x{step} pixels, got {height}x{width}"
        )
    sizes_of_row = {"crop": (bottom - top, right - left), "first size": (row[HEIGHT], row[WIDTH])}
    for what, size in (sizes_of_row | {"final size": (height, width)}).items():
        check_size(*size, f"view_patches: row {i}: {what}")

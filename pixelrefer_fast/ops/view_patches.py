"""Source pixels and a view plan to the packed, normalised patches of every view."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from pixelrefer_fast.ops._check import check_dtype, check_shape
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
    def image(height: int, width: int) -> torch.Tensor:
        return torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=generator)

    rows = [
        # image, crop (top, left, bottom, right), resize (h, w, filter), final size (h, w), merge
        [0, 0, 0, 37, 53, 42, 56, LINEAR, 42, 56, 1],
        [0, 5, 7, 30, 50, 14, 14, AREA, 14, 14, 1],
        [1, 0, 0, 1, 1, 28, 14, LINEAR, 28, 14, 1],
        [0, 0, 0, 37, 53, 70, 98, LINEAR, 28, 56, 2],
        [BLACK, 0, 0, 14, 14, 14, 14, LINEAR, 56, 56, 1],
    ]
    yield [image(37, 53), image(1, 1)], torch.tensor(rows)
    yield [image(20, 20)], torch.tensor(rows[1:2]).clamp_(max=20)
    yield [], torch.zeros(0, PLAN_COLUMNS, dtype=torch.int64)


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
def view_patches(images: Sequence[torch.Tensor], plan: torch.Tensor) -> torch.Tensor:
    """Cut, resize, normalise to -1..1 and flatten every view of a plan.

    Args:
        images: (H, W, 3) uint8 each, RGB.
        plan: (V, 11) int64, a row a view: image (-1: black), crop as a half-open box (top, left, bottom, right), size
            after the first resize (height, width) and its filter (0 linear, 1 area), final size (height, width:
            multiples of 14 x merge), merge (1, or 2 for patches in 2x2 order).

    Returns:
        (P, 588) float32, the views one after the other; a patch is flattened as (channel, row, column). Within a view
        patches come in raster order, or with merge 2 in the order (row / 2, column / 2, 2, 2).

    Raises:
        ValueError: a row that asks for pixels outside its image or for a size that is no whole number of patches.
    """
    check_shape("view_patches", "plan", plan, None, PLAN_COLUMNS)
    check_dtype("view_patches", "plan", plan, torch.int64)
    rows = plan.tolist()
    for i, row in enumerate(rows):
        _check_row(i, row, images)
    total = sum(r[FINAL_HEIGHT] * r[FINAL_WIDTH] for r in rows) // PATCH**2
    out = np.empty((total, 3 * PATCH * PATCH), dtype=np.float32)
    start = 0
    for row in rows:
        image = None if row[IMAGE] == BLACK else images[row[IMAGE]].numpy()
        patches = _patch_order(resize_view(image, row), row[MERGE])
        np.take(LEVELS, patches, out=out[start : start + len(patches)])
        start += len(patches)
    return torch.from_numpy(out)


def _patch_order(pixels: np.ndarray, merge: int) -> np.ndarray:
    """(H, W, 3) uint8 to (H / 14 * W / 14, 588) uint8."""
    height, width = pixels.shape[0] // PATCH, pixels.shape[1] // PATCH
    cells = pixels.reshape(height // merge, merge, PATCH, width // merge, merge, PATCH, 3)
    return cells.transpose(0, 3, 1, 4, 6, 2, 5).reshape(height * width, 3 * PATCH * PATCH)


def _check_row(i: int, row: Sequence[int], images: Sequence[torch.Tensor]) -> None:
    top, left, bottom, right = row[TOP : RIGHT + 1]
    if not BLACK <= row[IMAGE] < len(images):
        raise ValueError(f"view_patches: row {i}: expected an image from -1 to {len(images) - 1}, got {row[IMAGE]}")
    if row[IMAGE] != BLACK:
        image = images[row[IMAGE]]
        check_shape("view_patches", f"image {row[IMAGE]}", image, None, None, 3)
        check_dtype("view_patches", f"image {row[IMAGE]}", image, torch.uint8)
        bottom_limit, right_limit = image.shape[:2]
    else:
        bottom_limit, right_limit = bottom, right
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

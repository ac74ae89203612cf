"""Masks that were given as tensors on a device, and stay there."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch

from pixelrefer_fast import ops
from pixelrefer_fast.checks.values import check_size, labelled
from pixelrefer_fast.ops.pack_masks import (
    AREA,
    BELOW,
    BEYOND,
    BOTTOM,
    DIGEST,
    DIGEST2,
    HIGHEST,
    INT64_MAX,
    INT64_MIN,
    LOWEST,
    RIGHT,
    UNFINITE,
)
from pixelrefer_fast.regions.boxed_mask import BoxedMask
from pixelrefer_fast.regions.packed_mask import PackedMask
from pixelrefer_fast.regions.shapes import (
    Bitmap,
    Box,
    Clicks,
    Polygons,
    Rle,
    Scribble,
    check_made_for,
    label_map_error,
    mask_hint,
)

LABELS_TOGETHER = 64
"""Labels of a map that are looked at in one launch; each takes a byte a pixel."""


@dataclass(frozen=True, eq=False, repr=False)
class TensorMask:
    """A mask as bits on the device where it was given: a copy, so later changes to the user's tensor do not reach it.

    Attributes:
        marked: the bits of the whole image, and the area and the box, which were brought to the host.
    """

    marked: PackedMask
    kind: ClassVar[str] = "mask"

    @property
    def is_empty(self) -> bool:
        return self.marked.bounds is None

    @functools.cached_property
    def on_host(self) -> Bitmap:
        """The same mask in host memory, for what draws or writes it; copied when it is first wanted."""
        return Bitmap.of(self.marked.full().view(bool))

    def boxed(self, height: int, width: int, name: str) -> BoxedMask:
        return self.on_host.boxed(height, width, name)

    def packed(self, height: int, width: int, name: str) -> PackedMask:
        check_made_for(self.marked.height, self.marked.width, height, width, name, mask_hint(self.marked.width))
        return self.marked

    def to_json(self) -> dict[str, Any]:
        return self.on_host.to_json()

    def __repr__(self) -> str:
        return f"TensorMask({self.marked.height}x{self.marked.width} on {self.marked.device})"

    def __reduce__(self) -> tuple[Any, ...]:
        """In another process, or a file, it is a mask in host memory."""
        return _same, (self.on_host,)


MaskShape: TypeAlias = Bitmap | TensorMask
Shape: TypeAlias = Box | Polygons | Scribble | Rle | Bitmap | TensorMask | Clicks


def _same(mask: Bitmap) -> Bitmap:
    return mask


def stays(mask: object) -> bool:
    """Whether a mask lies where it is better left."""
    return isinstance(mask, torch.Tensor) and mask.is_cuda


def mask_shapes(masks: torch.Tensor) -> Sequence[MaskShape]:
    """Of a segmenter's masks (N, H, W) bool: on a device they stay there."""
    return tensor_masks(masks) if stays(masks) else [Bitmap.of(mask) for mask in masks.cpu().numpy()]


def tensor_masks(masks: torch.Tensor, logits: bool = False, numbered: bool = False) -> list[TensorMask]:
    """Masks (N, H, W) on any device, of any strides: one launch, and one small copy to the host.

    Args:
        masks: bool; integers of one value each, or uint8 up to 255, where all but 0 is marked; finite floats, marked
            above 0.5.
        logits: floats of which one is negative are marked above 0, as SAM's are.
        numbered: whether messages begin with the mask's number.

    Raises:
        ValueError: as of `Bitmap.of`.
    """
    count, height, width = masks.shape
    check_size(height, width, "mask")
    floats = masks.is_floating_point()
    cuts = torch.full((count,), 0.5, device=masks.device)
    if floats and logits:
        cuts = cuts.masked_fill((masks < 0).flatten(1).any(1), 0.0)
    with torch.inference_mode():
        bits, extents = ops.pack_masks(masks.detach(), cuts)
    per_mask, row_bits = bits[0].numel() if count else 0, 8 * bits.shape[2]
    flat = bits.flatten()
    made = []
    for number, extent in enumerate(extents.tolist()):
        with labelled(f"region {number}") if numbered else nullcontext():
            _check(extent, masks.dtype, width)
        bounds = None
        if extent[AREA]:
            bounds = (height - extent[BELOW], width - extent[BEYOND], extent[BOTTOM] - 1, extent[RIGHT] - 1)
        first = 8 * per_mask * number
        digest = extent[DIGEST], extent[DIGEST2]
        made.append(TensorMask(PackedMask(height, width, extent[AREA], bounds, flat, first, row_bits, digest)))
    return made


def _check(extent: Sequence[int], dtype: torch.dtype, width: int) -> None:
    if extent[UNFINITE]:
        raise ValueError("mask: expected finite values, got NaN or infinity")
    if not extent[AREA] or dtype == torch.bool or dtype.is_floating_point:
        return
    highest, lowest = extent[HIGHEST] ^ INT64_MIN, extent[LOWEST] ^ INT64_MAX
    soft = dtype == torch.uint8 and highest == 255  # a grey mask, whose edges are soft
    if highest != lowest and not soft:
        raise label_map_error(width)


def tensor_labels(labels: torch.Tensor, numbers: Sequence[int]) -> Iterator[TensorMask]:
    """Per number the mask of those pixels of a label map (H, W) that have it."""
    for first in range(0, len(numbers), LABELS_TOGETHER):
        wanted = torch.tensor(numbers[first : first + LABELS_TOGETHER], device=labels.device)
        yield from tensor_masks(labels == wanted[:, None, None])

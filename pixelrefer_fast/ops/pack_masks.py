"""Masks of whole images to packed bits, areas, boxes and digests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from pixelrefer_fast.ops._check import check_device, check_dtype, check_shape
from pixelrefer_fast.ops._extension import available, declines, out_variant
from pixelrefer_fast.ops._registry import Reason, register_op

EXTENTS = 10
# columns of `extents`
AREA, BELOW, BEYOND, BOTTOM, RIGHT, HIGHEST, LOWEST, UNFINITE, DIGEST, DIGEST2 = range(EXTENTS)
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
DTYPES = (torch.bool, torch.uint8, torch.int32, torch.int64, torch.float32, torch.float16, torch.bfloat16)


class PackedMasks(NamedTuple):
    """Masks as bits, and what planning asks of them: sums and maxima that begin with 0, in any order the same."""

    bits: torch.Tensor  # (N, H, ceil(W / 8)) uint8: rows as np.packbits packs them, the first pixel in the highest bit
    extents: torch.Tensor  # (N, 10) int64; all of a mask without a marked pixel are 0, but for `UNFINITE`
    # AREA: marked pixels
    # BELOW, BEYOND: rows from the first marked one to the end, columns likewise
    # BOTTOM, RIGHT: end of the marked rows and columns
    # HIGHEST, LOWEST: of integers that are marked; value ^ INT64_MIN and value ^ INT64_MAX, floats have none
    # UNFINITE: 1 where a float, marked or not, is NaN or infinite
    # DIGEST, DIGEST2: tell the content of masks of one size; sums over the bytes of `bits`, each times a random word


def _samples(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple]:
    for count, height, width in ((3, 5, 40), (1, 1, 1), (2, 9, 8), (0, 4, 4), (1, 17, 131)):
        noise = torch.rand(count, height, width, generator=generator)
        cuts = torch.tensor([0.5, 0.0, 0.9])[:count]
        yield noise > 0.7, cuts
        yield noise.to(dtype), cuts
        yield (noise * 3).int()[:, :, ::2], cuts
        yield ((noise - 0.3) * 9).long().transpose(1, 2), cuts
    broken = torch.zeros(2, 3, 3, dtype=dtype)
    broken[1, 2, 2] = torch.nan
    yield broken, torch.tensor([0.5, 0.5])


@register_op(
    source="reference mm_utils.py resize_image_mask (bounding boxes and areas)",
    tolerance={torch.float32: 0.0, torch.float16: 0.0, torch.bfloat16: 0.0},
    samples=_samples,
)
def pack_masks(masks: torch.Tensor, cuts: torch.Tensor) -> PackedMasks:
    """Pack masks, and find the area, the box, the range of values and a digest of each.

    Args:
        masks: (N, H, W) bool, integers or floats, of any strides; H and W at least 1. Integers other than 0 are
            marked.
        cuts: (N,) float32: floats above a mask's own are marked; of other masks it is not looked at.

    Returns:
        PackedMasks.

    Raises:
        ValueError: wrong shapes or dtypes.
    """
    count, height, width = masks.shape
    floats = masks.is_floating_point()
    marked = masks.float() > cuts[:, None, None] if floats else masks != 0
    padded = torch.nn.functional.pad(marked, (0, -width % 8)).unflatten(2, (-(-width // 8), 8))
    digits = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=masks.device)
    bits = (padded * digits).sum(3, dtype=torch.uint8)

    row, column = marked.any(2).long(), marked.any(1).long()
    places = [torch.arange(size, device=masks.device) for size in (height, width)]
    extents = torch.zeros(count, EXTENTS, dtype=torch.int64, device=masks.device)
    extents[:, AREA] = marked.flatten(1).sum(1)
    extents[:, BELOW] = (row * (height - places[0])).amax(1)
    extents[:, BEYOND] = (column * (width - places[1])).amax(1)
    extents[:, BOTTOM] = (row * (places[0] + 1)).amax(1)
    extents[:, RIGHT] = (column * (places[1] + 1)).amax(1)
    if floats:
        extents[:, UNFINITE] = (~masks.isfinite()).flatten(1).any(1).long()
    else:
        values = masks.long()
        extents[:, HIGHEST] = torch.where(marked, values, INT64_MIN).amax((1, 2)) ^ INT64_MIN
        extents[:, LOWEST] = torch.where(marked, values, INT64_MAX).amin((1, 2)) ^ INT64_MAX
    whole = bits.flatten(1).long()
    for which, digest in enumerate((DIGEST, DIGEST2)):
        extents[:, digest] = (whole * _place_words(whole.shape[1], which, masks.device)).sum(1)
    return PackedMasks(bits, extents)


def _place_words(places: int, which: int, device: torch.device) -> torch.Tensor:
    """(places,) int64: a random word for each (splitmix64: Steele, Lea and Flood 2014); products wrap around."""
    word = (2 * torch.arange(places, device=device) + which + 1) * _signed(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        word = (word ^ _shifted(word, shift)) * _signed(factor)
    return word ^ _shifted(word, 31)


def _signed(word: int) -> int:
    return word - 2**64


def _shifted(word: torch.Tensor, bits: int) -> torch.Tensor:
    """To the right, as of numbers without a sign."""
    return word >> bits & 2 ** (64 - bits) - 1


@pack_masks.check
def _check(masks: torch.Tensor, cuts: torch.Tensor) -> None:
    check_shape("pack_masks", "masks", masks, None, None, None)
    check_shape("pack_masks", "cuts", cuts, len(masks))
    check_dtype("pack_masks", "cuts", cuts, torch.float32)
    check_device("pack_masks", masks.device, cuts=cuts)
    if masks.is_complex() or masks.is_quantized:
        raise ValueError(f"pack_masks: expected masks of bool, integers or floats, got {masks.dtype}")
    if 0 in masks.shape[1:]:
        raise ValueError(f"pack_masks: expected masks of at least 1x1 pixels, got {tuple(masks.shape[1:])}")


@pack_masks.fake
def _fake(masks: torch.Tensor) -> PackedMasks:
    count, height, width = masks.shape
    bits = masks.new_empty((count, height, (width + 7) // 8), dtype=torch.uint8)
    return PackedMasks(bits, masks.new_empty((count, EXTENTS), dtype=torch.int64))


_pack_masks_out = out_variant("pack_masks_out(Tensor masks, Tensor cuts, Tensor(a!) bits, Tensor(b!) extents) -> ()")


def _accepts(masks: torch.Tensor) -> Reason:
    if masks.dtype not in DTYPES:
        return f"masks are {masks.dtype}, the extension reads {', '.join(map(str, DTYPES))}"
    return declines(masks)


@pack_masks.provider("cuda", devices=("cpu", "cuda"), available=available, accepts=_accepts)
def _extension(masks: torch.Tensor, cuts: torch.Tensor) -> PackedMasks:
    packed = _fake(masks)
    _pack_masks_out(masks, cuts.contiguous(), *packed)
    return packed

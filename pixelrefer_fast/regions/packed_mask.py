"""A mask as packed bits on a device: what planning reads of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch


@dataclass(frozen=True, eq=False)
class PackedMask:
    """The pixels of an image as bits, of which those that are marked are set.

    Attributes:
        height, width: of the image, in pixels.
        area: marked pixels.
        bounds: first row and column with a marked pixel, last row and column (included); None where there is none.
        bits: (B,) uint8, the highest bit of a byte first.
        first_bit: where the image's first pixel lies in them.
        row_bits: from one row of the image to the next.
        digest: tells its content from that of any other mask of its size, by two words of `ops.pack_masks`.
    """

    height: int
    width: int
    area: int
    bounds: tuple[int, int, int, int] | None
    bits: torch.Tensor
    first_bit: int
    row_bits: int
    digest: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the image."""
        return self.height, self.width

    def full(self) -> np.ndarray:
        """The whole mask, a new (height, width) uint8 array of 0 and 1, in host memory."""
        bits = self.bits.cpu().numpy()
        size = self.height * self.row_bits
        begin, end = self.first_bit // 8, -(-(self.first_bit + size) // 8)
        own = np.unpackbits(bits[begin:end])[self.first_bit % 8 :][:size]
        return np.ascontiguousarray(own.reshape(self.height, self.row_bits)[:, : self.width])

    @property
    def device(self) -> torch.device:
        """Where the bits lie."""
        return self.bits.device


def joined(masks: Sequence[PackedMask]) -> tuple[torch.Tensor, list[int]]:
    """The bits of all masks in one tensor, on the device of the first, and where those of each begin in it, in bits.

    Those of one tensor are not copied.
    """
    own = {id(mask.bits): mask.bits for mask in masks}
    parts = [bits.to(masks[0].device) for bits in own.values()]
    starts = dict(zip(own, accumulate(map(len, parts), initial=0), strict=False))
    first = [8 * starts[id(mask.bits)] + mask.first_bit for mask in masks]
    return parts[0] if len(parts) == 1 else torch.cat(parts), first

"""A mask as packed bits, in host memory or on a device: what planning reads of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch

from pixelrefer_fast.device.transfers import upload
from pixelrefer_fast.regions.boxed_mask import BoxedMask


@dataclass(frozen=True, eq=False)
class PackedMask:
    """The marked pixels of an image as the bits of a window, outside of which there are none.

    Attributes:
        height, width: of the image, in pixels.
        area: marked pixels.
        bounds: first row and column with a marked pixel, last row and column (included); None where there is none.
        window: top, left, rows and columns of what the bits cover.
        bits: (B,) uint8, the highest bit of a byte first; an array in host memory, or a tensor on any device.
        first_bit: where the window's first pixel lies in them.
        row_bits: from one row of the window to the next.
    """

    height: int
    width: int
    area: int
    bounds: tuple[int, int, int, int] | None
    window: tuple[int, int, int, int]
    bits: np.ndarray | torch.Tensor
    first_bit: int
    row_bits: int

    @classmethod
    def of(cls, mask: np.ndarray) -> PackedMask:
        """Of a whole mask (H, W) of any dtype and strides: anything but 0 is marked."""
        return cls.of_boxed(BoxedMask.of(mask))

    @classmethod
    def of_boxed(cls, mask: BoxedMask) -> PackedMask:
        """Of pixels that were drawn."""
        rows, columns = mask.pixels.shape
        window = (mask.top, mask.left, rows, columns)
        bits = np.packbits(mask.pixels)
        return cls(mask.height, mask.width, mask.area, mask.bounds, window, bits, 0, columns)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the image."""
        return self.height, self.width

    def full(self) -> np.ndarray:
        """The whole mask, a new (height, width) uint8 array of 0 and 1, in host memory."""
        top, left, rows, columns = self.window
        mask = np.zeros((self.height, self.width), np.uint8)
        bits = self.bits.cpu().numpy() if isinstance(self.bits, torch.Tensor) else self.bits
        begin, end = self.first_bit // 8, -(-(self.first_bit + rows * self.row_bits) // 8)
        own = np.unpackbits(bits[begin:end])[self.first_bit % 8 :][: rows * self.row_bits]
        mask[top : top + rows, left : left + columns] = own.reshape(rows, self.row_bits)[:, :columns]
        return mask

    @property
    def device(self) -> torch.device:
        """Where the bits lie."""
        return self.bits.device if isinstance(self.bits, torch.Tensor) else torch.device("cpu")


def joined(masks: Sequence[PackedMask], device: torch.device) -> tuple[torch.Tensor, list[int]]:
    """The bits of all masks in one tensor on `device`, and where those of each begin in it, in bits.

    Those in host memory travel in one copy. Those of one tensor that lies there already are not copied.
    """
    own = {id(mask.bits): mask.bits for mask in masks if isinstance(mask.bits, torch.Tensor)}
    parts = [bits.to(device) for bits in own.values()]
    starts = dict(zip(own, accumulate(map(len, parts), initial=0), strict=False))
    place = sum(map(len, parts))  # of the next one of the host's
    first, on_host = [], []
    for mask in masks:
        if isinstance(mask.bits, torch.Tensor):
            first.append(8 * starts[id(mask.bits)] + mask.first_bit)
        else:
            first.append(8 * place + mask.first_bit)
            place += len(mask.bits)
            on_host.append(mask.bits)
    if on_host or not parts:
        parts += upload([torch.from_numpy(np.concatenate([np.empty(0, np.uint8), *on_host]))], device)
    return parts[0] if len(parts) == 1 else torch.cat(parts), first

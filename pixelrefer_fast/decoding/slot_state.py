"""The state of slots on the device: a column for each number of a sequence, in few tensors.

Sequences come and go all the time, and each time all columns of their slots are written or moved: numbers of one dtype
lie side by side in one tensor, so that this takes an operation a dtype and not one a column.
"""

from __future__ import annotations

from collections import abc
from dataclasses import dataclass

import torch

from pixelrefer_fast.device.transfers import upload


@dataclass(frozen=True)
class Column:
    """A number of a sequence, or `width` of them, and what a vacant slot has there."""

    dtype: torch.dtype
    width: int | None = None
    vacant: float = 0


@dataclass(frozen=True)
class _Pack:
    """Columns of one dtype, side by side."""

    tensor: torch.Tensor  # (size, n)
    vacant: torch.Tensor  # (n,) on the same device
    row: torch.Tensor  # the same on the host
    places: dict[str, int]  # the first place of each column


class SlotState:
    """Columns of `size` slots, all vacant at first.

    Args:
        packed: those that lie side by side by dtype; the order is that of the names.
        alone: those that have a tensor of their own: contiguous, as kernels read them, or wider later.
        size: slots.
        device: where.

    Attributes:
        columns: a view of each, (size,) or (size, width), by name.
    """

    def __init__(
        self, packed: abc.Mapping[str, Column], alone: abc.Mapping[str, Column], size: int, device: torch.device
    ) -> None:
        self.size = size
        self.columns: dict[str, torch.Tensor] = {}
        self._packed, self._alone = packed, alone
        self._packs: list[_Pack] = []
        for dtype in dict.fromkeys(column.dtype for column in packed.values()):
            places: dict[str, int] = {}
            row: list[float] = []
            for name, column in packed.items():
                if column.dtype == dtype:
                    places[name] = len(row)
                    row += [column.vacant] * (1 if column.width is None else column.width)
            host = torch.tensor(row, dtype=dtype)
            vacant = host.to(device)
            pack = _Pack(vacant.repeat(size, 1), vacant, host, places)
            self._packs.append(pack)
            self.columns |= {name: _column(pack.tensor, place, packed[name]) for name, place in places.items()}
        for name, column in alone.items():
            shape = (size,) if column.width is None else (size, column.width)
            self.columns[name] = torch.full(shape, column.vacant, dtype=column.dtype, device=device)

    def fill(self, first: int, rows: int, given: abc.Mapping[str, abc.Sequence[object]]) -> None:
        """Write columns of `rows` slots from the first on, a value or a row of values for each; others become vacant.

        Those with tensors of their own that are not given stay as they are.
        """
        host = []
        for pack in self._packs:
            new = pack.row.repeat(rows, 1)
            for name, place in pack.places.items():
                if name in given:
                    # through NumPy, which takes lists more quickly
                    _column(new, place, self._packed[name]).numpy()[:] = given[name]
            host.append(new)
        own = [name for name in self._alone if name in given]
        host += [torch.tensor(given[name], dtype=self.columns[name].dtype) for name in own]
        targets = [pack.tensor for pack in self._packs] + [self.columns[name] for name in own]
        for target, new in zip(targets, upload(host, targets[0].device), strict=True):
            target[first : first + rows] = new

    def move(self, slots: abc.Sequence[int], idle: abc.Container[str] = ()) -> None:
        """These slots become the first ones, in this order; `idle` columns, which nobody reads, stay as they are."""
        tensors = [pack.tensor for pack in self._packs]
        tensors += [self.columns[name] for name in self._alone if name not in idle]
        (index,) = upload([torch.tensor(slots, dtype=torch.int64)], tensors[0].device)
        for tensor in tensors:
            tensor[: len(slots)] = tensor.index_select(0, index)

    def vacate(self, first: int, stop: int) -> None:
        """Make slots vacant."""
        if first < stop:
            for pack in self._packs:
                pack.tensor[first:stop] = pack.vacant
            for name, column in self._alone.items():
                self.columns[name][first:stop] = column.vacant

    def widen(self, name: str, width: int, filler: torch.Tensor | float | None = None) -> None:
        """Give a column with a tensor of its own room for more; what is new is `filler` (by default vacant)."""
        held = self.columns[name]
        wider = held.new_full((self.size, width), self._alone[name].vacant)
        if filler is not None:
            wider[:] = filler
        wider[:, : held.shape[1]] = held
        self.columns[name] = wider


def _column(tensor: torch.Tensor, place: int, column: Column) -> torch.Tensor:
    """The view of a column of (rows, n)."""
    return tensor[:, place] if column.width is None else tensor[:, place : place + column.width]

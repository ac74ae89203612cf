"""Small tables that stay where they are on a device, for what was captured to read: all are filled in one copy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pixelrefer_fast.device.transfers import aligned, views_of


@dataclass(frozen=True)
class TableShape:
    """The shape and dtype of a table."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def empty(self) -> torch.Tensor:
        """A table of no device, as `views_of` takes it."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")


class StaticTables:
    """Tables of fixed shapes in one buffer.

    Args:
        shapes: of each, by name.
        buffer: (n,) uint8 on the device, at least `bytes_of(shapes)` long; several of these may use it in turn.

    Attributes:
        views: the tables, by name.
    """

    def __init__(self, shapes: Mapping[str, TableShape], buffer: torch.Tensor) -> None:
        self._like = {name: shape.empty() for name, shape in shapes.items()}
        self._buffer = buffer[: self.bytes_of(shapes)]
        self.views = self._named(self._buffer)

    @staticmethod
    def bytes_of(shapes: Mapping[str, TableShape]) -> int:
        return sum(aligned(shape.empty()) for shape in shapes.values())

    def fill(self, given: Mapping[str, torch.Tensor], padding: Mapping[str, torch.Tensor | int]) -> None:
        """Write all tables: each begins with what is given, and goes on with its padding.

        Args:
            given: by name, as long as the table or shorter; in host memory, or where the tables are.
            padding: by name, a number or a row (broadcast over those that are left); 0 where it is not named.
        """
        # zeros: rows that nobody names are no garbage
        staged = torch.zeros(len(self._buffer), dtype=torch.uint8, pin_memory=self._buffer.is_cuda)
        beside = {}
        for name, view in self._named(staged).items():
            own = given[name]
            if own.device == staged.device:
                view[: len(own)] = own
            else:
                beside[name] = own
            if name in padding:
                view[len(own) :] = padding[name]
        self._buffer.copy_(staged, non_blocking=True)
        for name, own in beside.items():
            self.views[name][: len(own)] = own

    def _named(self, buffer: torch.Tensor) -> dict[str, torch.Tensor]:
        return dict(zip(self._like, views_of(buffer, list(self._like.values())), strict=True))

"""What follows from weights alone: made once, and again when a weight was written to or moved."""

from __future__ import annotations

from collections.abc import Callable

import torch


class Constant:
    """The result of one computation on weights, kept.

    Where a gradient may be asked for, and where torch.compile looks on, it is computed as it stands.
    """

    def __init__(self) -> None:
        self._made_of: list[tuple[int, int, torch.dtype]] = []
        self._value: torch.Tensor | None = None

    def of(self, make: Callable[..., torch.Tensor], *weights: torch.Tensor) -> torch.Tensor:
        """`make(*weights)`; always of the same function, which depends on nothing else."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return make(*weights)
        made_of = [(w.data_ptr(), 0 if w.is_inference() else w._version, w.dtype) for w in weights]
        if self._value is None or made_of != self._made_of:
            self._value, self._made_of = make(*weights), made_of
        return self._value

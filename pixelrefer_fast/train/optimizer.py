"""The optimisers of a training: AdamW, or Muon for matrices and AdamW for the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

OPTIMIZERS = ("adamw", "muon")


class MuonAdamW(torch.optim.Optimizer):
    """Muon (torch.optim) for the groups marked `muon`, whose weights are matrices, and AdamW for the others.

    For training from scratch it needs about half as many steps as AdamW. Updates are scaled like AdamW's, so that a
    learning rate means the same for both.

    Args:
        groups: parameter groups, each with `lr`, `weight_decay` and the flag `muon`.
        betas: AdamW's betas.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], betas: tuple[float, float]) -> None:
        matrices = [g for g in groups if g["muon"]]
        others = [g for g in groups if not g["muon"]]
        self.parts: list[torch.optim.Optimizer] = []
        if matrices:
            self.parts.append(torch.optim.Muon(matrices, lr=1e-3, adjust_lr_fn="match_rms_adamw"))
        if others:
            self.parts.append(torch.optim.AdamW(others, lr=1e-3, betas=betas, eps=1e-8))
        # the very groups of the parts: what a schedule writes into them reaches the parts
        super().__init__([g for part in self.parts for g in part.param_groups], {})

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None if closure is None else closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, own in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(own)
        self.param_groups = [g for part in self.parts for g in part.param_groups]


def is_hidden_matrix(name: str, parameter: torch.Tensor) -> bool:
    """Whether Muon is made for a weight: a matrix, but no embedding, which is a table of rows, and no output head."""
    return parameter.ndim == 2 and not any(part in name for part in ("embed", "lm_head", "heads", "pos_linear"))

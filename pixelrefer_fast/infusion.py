"""Object tokens + context features -> object tokens: Object-Centric Infusion (paper algorithm 1), Lite only."""

from __future__ import annotations

import torch
from torch import nn

from pixelrefer_fast import ops
from pixelrefer_fast.selection import Selection

HEADS = 8  # at any width


class InfusionStep(nn.Module):
    """LayerNorm and cross-attention with un-normalised features; weights as PyTorch's MultiheadAttention keeps them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(
        self, tokens: torch.Tensor, features: torch.Tensor, context: torch.Tensor, backend: str
    ) -> torch.Tensor:
        return ops.infuse(
            tokens,
            features,
            context,
            self.in_proj.weight,
            self.in_proj.bias,
            self.out_proj.weight,
            self.out_proj.bias,
            self.norm.weight,
            self.norm.bias,
            HEADS,
            backend=backend,
        )


class Infusion(nn.Module):
    """Local view first, then the global one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.local_step = InfusionStep(width)
        self.global_step = InfusionStep(width)
        # In every released checkpoint and used by nothing; kept so that a saved copy is whole.
        self.mask_embedding = nn.Conv2d(1, width, kernel_size=1)

    def forward(
        self, tokens: torch.Tensor, features: torch.Tensor, selection: Selection, backend: str = "auto"
    ) -> torch.Tensor:
        """(M, n, D) pooled tokens to (M, n, D) infused tokens; `features` are (P, D) of all views."""
        tokens = self.local_step(tokens, features, selection.local_context, backend)
        return self.global_step(tokens, features, selection.global_context, backend)

    def checkpoint_slots(self) -> dict[str, torch.Tensor]:
        slots: dict[str, torch.Tensor] = {f"mask_embedding.{n}": p for n, p in self.mask_embedding.named_parameters()}
        for name, step in (("local", self.local_step), ("global", self.global_step)):
            attention = f"fusion_attention_{name}"
            slots[f"{attention}.in_proj_weight"] = step.in_proj.weight
            slots[f"{attention}.in_proj_bias"] = step.in_proj.bias
            slots[f"{attention}.out_proj.weight"] = step.out_proj.weight
            slots[f"{attention}.out_proj.bias"] = step.out_proj.bias
            slots[f"ln_{name}.weight"] = step.norm.weight
            slots[f"ln_{name}.bias"] = step.norm.bias
        return slots

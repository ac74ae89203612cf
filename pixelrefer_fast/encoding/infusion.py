"""Object tokens + context features -> object tokens: Object-Centric Infusion (paper algorithm 1), Lite only."""

from __future__ import annotations

import torch
from torch import nn

from pixelrefer_fast import ops
from pixelrefer_fast.ops.infuse import Groups, is_projected
from pixelrefer_fast.planning.selection import Selection

HEADS = 8  # at any width


class InfusionStep(nn.Module):
    """Cross-attention with un-normalised features; weights as PyTorch's MultiheadAttention keeps them.

    The LayerNorm is the one before this step's attention: what comes before the step makes it, in one launch with its
    own result.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(
        self,
        tokens: torch.Tensor,
        normed: torch.Tensor,
        features: torch.Tensor,
        groups: Groups,
        following: nn.LayerNorm | None,
        backend: str,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(M, n, D) tokens and `norm` of them to the infused tokens and `following` of those (empty without one)."""
        query_bias, _, value_bias = self.in_proj.bias.chunk(3)
        projected = is_projected(groups, tokens.shape[1], tokens.shape[2], HEADS)
        return ops.infuse(
            tokens,
            normed,
            features,
            groups.order,
            groups.groups,
            self.in_proj.weight,
            query_bias,
            self.out_proj.weight,
            # the weights of an attention sum to one: the value's bias passes through it to the output product
            torch.addmv(self.out_proj.bias, self.out_proj.weight, value_bias),
            None if following is None else following.weight,
            None if following is None else following.bias,
            HEADS,
            groups.max_members,
            groups.max_rows,
            projected,
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
        self,
        tokens: torch.Tensor,
        normed: torch.Tensor,
        features: torch.Tensor,
        selection: Selection,
        backend: str = "auto",
    ) -> torch.Tensor:
        """(M, n, D) pooled tokens and the local step's norm of them to (M, n, D) infused tokens.

        `features` are (F, D), those that `selection` was made for.
        """
        tokens, normed = self.local_step(
            tokens, normed, features, selection.local_groups, self.global_step.norm, backend
        )
        tokens, _ = self.global_step(tokens, normed, features, selection.global_groups, None, backend)
        return tokens

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

"""Object tokens + context features -> object tokens: Object-Centric Infusion (paper algorithm 1), Lite only."""

from __future__ import annotations

import torch
from torch import nn

from pixelrefer_fast.encoding.constants import Constant
from pixelrefer_fast.ops.infuse import Groups, is_projected
from pixelrefer_fast.planning.selection import Selection

HEADS = 8  # at any width


class InfusionStep(nn.Module):
    """LayerNorm and cross-attention with un-normalised features; weights as PyTorch's MultiheadAttention has them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)
        self._out_bias = Constant()

    def out_bias(self) -> torch.Tensor:
        """(D,) what the output product adds."""
        out = self.out_proj
        return self._out_bias.of(_with_value_bias, out.bias, out.weight, self.in_proj.bias)

    def arguments(self, groups: Groups, n: int) -> tuple[list[torch.Tensor], list[int]]:
        """What `ops.object_tokens` takes of this step, for n tokens a mark: `steps` and `step_sizes`."""
        norm, in_proj = self.norm, self.in_proj  # looked up once: a module's attributes are slow
        width = norm.normalized_shape[0]
        tensors = [
            groups.order,
            groups.groups,
            norm.weight,
            norm.bias,
            in_proj.weight,
            in_proj.bias[:width],
            self.out_proj.weight,
            self.out_bias(),
        ]
        projected = is_projected(groups, n, width, HEADS)
        return tensors, [groups.max_members, groups.max_rows, groups.first_row, groups.span, int(projected)]


def _with_value_bias(out_bias: torch.Tensor, out_weight: torch.Tensor, in_bias: torch.Tensor) -> torch.Tensor:
    # the weights of an attention sum to one: the value's bias passes through it to the output product
    return torch.addmv(out_bias, out_weight, in_bias.chunk(3)[2])


class Infusion(nn.Module):
    """Weights of the two steps: local view first, then the global one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.local_step = InfusionStep(width)
        self.global_step = InfusionStep(width)
        # In every released checkpoint and used by nothing; kept so that a saved copy is whole.
        self.mask_embedding = nn.Conv2d(1, width, kernel_size=1)

    def arguments(self, selection: Selection, n: int) -> tuple[list[torch.Tensor], list[int]]:
        """What `ops.object_tokens` takes of both steps, for n tokens a mark: `steps` and `step_sizes`."""
        tensors, sizes = self.local_step.arguments(selection.local_groups, n)
        more_tensors, more_sizes = self.global_step.arguments(selection.global_groups, n)
        return tensors + more_tensors, sizes + more_sizes

    @torch.no_grad()
    def prepare(self) -> None:
        """Make what follows from the weights alone, which the first request makes otherwise."""
        for step in (self.local_step, self.global_step):
            step.out_bias()

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

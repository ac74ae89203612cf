"""Calls of infuse, and torch.nn.MultiheadAttention as what they are judged by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from pixelrefer_fast.ops.infuse import LN_EPS, plan_groups

FLOATS = (
    "tokens",
    "features",
    "ln_weight",
    "ln_bias",
    "in_weight",
    "query_bias",
    "out_weight",
    "out_bias",
)


@dataclass
class Case:
    """Arguments of one call but for the groups, which are those of `context`: (first row, rows) of each object."""

    tokens: torch.Tensor
    features: torch.Tensor
    context: torch.Tensor
    ln_weight: torch.Tensor
    ln_bias: torch.Tensor
    in_weight: torch.Tensor
    query_bias: torch.Tensor
    out_weight: torch.Tensor
    out_bias: torch.Tensor
    heads: int

    def arguments(self, projected: bool) -> tuple:
        plan = plan_groups(self.context)
        device = self.tokens.device
        return (
            self.tokens,
            self.features,
            plan.order.to(device),
            plan.groups.to(device),
            self.ln_weight,
            self.ln_bias,
            self.in_weight,
            self.query_bias,
            self.out_weight,
            self.out_bias,
            self.heads,
            plan.max_members,
            plan.max_rows,
            plan.first_row,
            plan.span,
            projected,
        )

    def to(self, target: torch.dtype | torch.device) -> Case:
        found = {name: getattr(self, name) for name in FLOATS}
        return replace(self, **{name: t.to(target) for name, t in found.items()})


def infusion_case(context: Sequence[tuple[int, int]], tokens: int, width: int, heads: int, seed: int = 0) -> Case:
    """Random float32 arguments; three feature rows lie after the last that a context needs."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * scale

    return Case(
        random(len(context), tokens, width),
        random(max((first + length for first, length in context), default=0) + 3, width),
        torch.tensor(context, dtype=torch.int64).reshape(-1, 2),
        random(width, scale=0.2) + 1,
        random(width, scale=0.2),
        random(3 * width, width, scale=2 * width**-0.5),
        random(width, scale=0.5),
        random(width, width, scale=width**-0.5),
        random(width, scale=0.5),
        heads,
    )


def attended(
    case: Case, dtype: torch.dtype = torch.float64, key_and_value_bias: torch.Tensor | None = None
) -> torch.Tensor:
    """T + MultiheadAttention(LayerNorm(T), F, F), one object after the other, in a dtype."""
    case = case.to(dtype)
    width = case.tokens.shape[2]
    attention = torch.nn.MultiheadAttention(width, case.heads, batch_first=True, dtype=dtype)
    rest = torch.zeros(2 * width) if key_and_value_bias is None else key_and_value_bias
    weights = {
        "in_proj_weight": case.in_weight,
        "in_proj_bias": torch.cat([case.query_bias, rest.to(case.query_bias)]),
        "out_proj.weight": case.out_weight,
        "out_proj.bias": case.out_bias,
    }
    normed = F.layer_norm(case.tokens, (width,), case.ln_weight, case.ln_bias, LN_EPS)
    out = []
    for own, query, (first, length) in zip(case.tokens, normed, case.context.tolist(), strict=True):
        context = case.features[first : first + length]
        out.append(own + torch.func.functional_call(attention, weights, (query, context, context))[0])
    return torch.stack(out) if out else case.tokens

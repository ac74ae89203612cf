"""Packed patches -> features: the vision encoder (VL3-SigLIP-NaViT) in one pass over all views.

Every view is a sequence of its own; reference model/damovl_encoder/modeling_damovl_encoder.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from pixelrefer_fast import ops
from pixelrefer_fast.config import VisionConfig
from pixelrefer_fast.ops.rope2d import rope2d_table

Grid = tuple[int, int, int]  # rows, columns, merge
# Patches that go through the layers together: it bounds the MLP's activations (4304 wide, float32: 280 MB).
PASS_PATCHES = 16384


def patch_places(grids: Sequence[Grid]) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column of every packed patch, (P,) int64 each, in the views' own patch order."""
    rows, columns = [], []
    for height, width, merge in grids:
        place = torch.arange(height * width).view(height, width)
        place = place.view(height // merge, merge, width // merge, merge).transpose(1, 2).flatten()
        rows.append(place // width)
        columns.append(place % width)
    if not rows:
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    return torch.cat(rows), torch.cat(columns)


class EncoderLayer(nn.Module):
    """LayerNorm, attention within each view, LayerNorm, MLP; query, key and value as one product."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_heads
        self.norm1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(width, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, width)

    def forward(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, cu_seqlens: torch.Tensor, backend: str
    ) -> torch.Tensor:
        q, k, v = self.qkv(self.norm1(x)).view(len(x), 3, self.heads, -1).unbind(1)
        q, k = ops.rope2d(q, k, cos, sin, backend=backend)
        attended = ops.varlen_attention(q, k, v, cu_seqlens, backend=backend)
        x = x + self.out(attended.flatten(1))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x)), approximate="tanh"))


class VisionEncoder(nn.Module):
    """All layers and the post-LayerNorm; the patch embedding is a matrix product."""

    PREFIX = "model.vision_encoder.vision_encoder."

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embedding = nn.Linear(3 * config.patch_size**2, config.hidden_size)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_layers))
        self.post_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, patches: torch.Tensor, grids: Sequence[Grid], backend: str = "auto") -> torch.Tensor:
        """Features of packed views.

        Args:
            patches: (P, 588), normalised, flattened as (channel, row, column).
            grids: (rows, columns, merge) of each view; merge 2 means patches in 2x2 order.
            backend: who computes the operations.

        Returns:
            (P, D) in the weights' dtype, in the order of the patches.
        """
        total = sum(h * w for h, w, _ in grids)
        if len(patches) != total:
            raise ValueError(f"encoder: expected {total} patches for these grids, got {len(patches)}")
        features = patches.new_empty(total, self.config.hidden_size, dtype=self.patch_embedding.weight.dtype)
        start = 0
        for part in _passes(grids):
            stop = start + sum(h * w for h, w, _ in part)
            features[start:stop] = self._run(patches[start:stop], part, backend)
            start = stop
        return features

    def _run(self, patches: torch.Tensor, grids: Sequence[Grid], backend: str) -> torch.Tensor:
        rows, columns = (place.to(patches.device) for place in patch_places(grids))
        cos, sin = rope2d_table(rows, columns, self.config.head_dim)
        cu_seqlens = torch.tensor([0, *(h * w for h, w, _ in grids)]).cumsum(0)
        x = self.patch_embedding(patches.to(self.patch_embedding.weight.dtype))
        for layer in self.layers:
            x = layer(x, cos, sin, cu_seqlens, backend)
        return self.post_norm(x)

    def checkpoint_slots(self) -> dict[str, torch.Tensor]:
        """Where each tensor of a released checkpoint goes: views of the parameters by checkpoint key."""
        slots: dict[str, torch.Tensor] = {}
        # a convolution in the checkpoint: (D, 3, 14, 14)
        patch = self.config.patch_size
        slots["embeddings.patch_embedding.weight"] = self.patch_embedding.weight.view(-1, 3, patch, patch)
        slots["embeddings.patch_embedding.bias"] = self.patch_embedding.bias
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, EncoderLayer)
            own: dict[str, nn.Module] = {
                "layer_norm1": layer.norm1,
                "self_attn.out_proj": layer.out,
                "layer_norm2": layer.norm2,
                "mlp.fc1": layer.fc1,
                "mlp.fc2": layer.fc2,
            }
            for key, module in own.items():
                slots |= {f"encoder.layers.{i}.{key}.{n}": p for n, p in module.named_parameters()}
            for n, parameter in layer.qkv.named_parameters():
                for part, view in zip("qkv", parameter.chunk(3), strict=True):
                    slots[f"encoder.layers.{i}.self_attn.{part}_proj.{n}"] = view
        slots |= {f"post_layernorm.{n}": p for n, p in self.post_norm.named_parameters()}
        return {self.PREFIX + key: slot for key, slot in slots.items()}


def _passes(grids: Sequence[Grid]) -> Iterator[list[Grid]]:
    """The views in order, cut into passes of at most PASS_PATCHES patches (a larger view goes alone)."""
    part: list[Grid] = []
    for grid in grids:
        if part and sum(h * w for h, w, _ in part) + grid[0] * grid[1] > PASS_PATCHES:
            yield part
            part = []
        part.append(grid)
    if part:
        yield part

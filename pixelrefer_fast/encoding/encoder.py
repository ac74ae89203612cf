"""Packed patches -> features: the vision encoder (VL3-SigLIP-NaViT) in one pass over all views.

Every view is a sequence of its own; reference model/damovl_encoder/modeling_damovl_encoder.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from pixelrefer_fast import ops
from pixelrefer_fast.checkpoint.config import VisionConfig
from pixelrefer_fast.device.transfers import upload
from pixelrefer_fast.device.weights import WatchedWeights, WeightsState
from pixelrefer_fast.ops.rope2d import rope2d_table

Grid = tuple[int, int, int]  # rows, columns, merge
# Patches that go through the layers together: it bounds the MLP's activations (4304 wide, float32: 280 MB).
PASS_PATCHES = 16384


@dataclass(frozen=True)
class PassTables:
    """What decides the layout of a pass over views: made in host memory, small."""

    grids: torch.Tensor  # (V, 3) int64: rows, columns, merge
    read: torch.Tensor  # (F,) int64: the patches whose features are read, in order
    cu_reads: torch.Tensor  # (V + 1,) int32: the views among those
    patches: int
    longest: int  # patches of the largest view
    most_reads: int  # of one view
    places: int  # rows and columns are below this

    @classmethod
    def of(cls, grids: Sequence[Grid], reads: torch.Tensor | None) -> PassTables:
        """Of views of these grids.

        Args:
            grids: (rows, columns, merge) of each view.
            reads: (P,) bool in host memory, or None where all features are read.
        """
        sizes = [h * w for h, w, _ in grids]
        marked = np.ones(sum(sizes), bool) if reads is None else reads.numpy()
        before = np.concatenate([[0], np.cumsum(marked)])  # reads before each patch
        cu_reads = before[np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])].astype(np.int32)
        return cls(
            torch.tensor(grids, dtype=torch.int64).reshape(-1, 3),
            torch.from_numpy(np.flatnonzero(marked)),
            torch.from_numpy(cu_reads),
            sum(sizes),
            max(sizes, default=0),
            int(np.diff(cu_reads).max(initial=0)),
            max((side for h, w, _ in grids for side in (h, w)), default=1),
        )


@dataclass(frozen=True)
class PassLayout:
    """Where the patches of one pass lie, and which of their features are read.

    Tensors may be longer than the pass: what lies beyond `cu_seqlens` is padding, which belongs to no sequence.
    """

    row: torch.Tensor  # (P,) int32: in the patch's own grid
    column: torch.Tensor  # (P,) int32
    cu_seqlens: torch.Tensor  # (V + 1,) int32: the views among the patches
    read: torch.Tensor  # (F,) int64: the patches whose features are read, in order
    cu_reads: torch.Tensor  # (V + 1,) int32: the views among those
    longest: int  # patches of the largest view
    most_reads: int  # of one view
    places: int  # rows and columns are below this
    partial: bool  # whether some patches' features are not read

    @classmethod
    def of(
        cls,
        grids: Sequence[Grid],
        reads: torch.Tensor | None,
        device: torch.device | str = "cpu",
        backend: str = "auto",
    ) -> PassLayout:
        """The layout of a pass over views, made where the pass runs: the host sends a row a view, and what is read.

        Args:
            grids, reads: as of `PassTables.of`.
            device: where the pass runs.
            backend: who packs the views.
        """
        tables = PassTables.of(grids, reads)
        own_grids, read, cu_reads = upload([tables.grids, tables.read, tables.cu_reads], torch.device(device))
        packed = ops.pack_views(own_grids, tables.patches, backend=backend)
        return cls(
            packed.row,
            packed.column,
            packed.cu_seqlens,
            read,
            cu_reads,
            tables.longest,
            tables.most_reads,
            tables.places,
            len(read) < tables.patches,
        )


class EncoderLayer(nn.Module):
    """Attention within each view and MLP; query, key and value as one product.

    The residual stream and its LayerNorm travel together, since one launch makes both: a layer takes the stream and
    its normed form and returns them for the next one.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_heads
        self.eps = config.layer_norm_eps
        self.norm1 = nn.LayerNorm(width, eps=self.eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=self.eps)
        self.fc1 = nn.Linear(width, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, width)

    def forward(
        self,
        x: torch.Tensor,
        normed: torch.Tensor,
        layout: PassLayout,
        rope: tuple[torch.Tensor, torch.Tensor],
        following: nn.LayerNorm,
        last: bool,
        backend: str,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One layer.

        Args:
            x, normed: (P, D) the residual stream and `norm1` of it.
            layout: of the pass.
            rope: table of `rope2d_table`.
            following: the LayerNorm that comes next: the next layer's first, or the encoder's last.
            last: whether to go on with the patches that are read only.
            backend: who computes the operations.

        Returns:
            The stream and `following` of it, (P, D) each, or (F, D) after the last layer.
        """
        # in mixed precision the products are narrower than what the operations get
        qkv = (normed @ self.qkv.weight.T).to(x.dtype).view(len(x), 3, self.heads, -1)
        bias = self.qkv.bias.view(3, self.heads, -1)
        ops.rope2d(qkv, bias, layout.row, layout.column, *rope, backend=backend)
        q, k, v = qkv.unbind(1)
        cu_queries, longest = layout.cu_seqlens, layout.longest
        if last and layout.partial:
            # keys and values are everybody's; queries, MLP and norms only matter where the features are read
            x, q = x[layout.read], q[layout.read]
            cu_queries, longest = layout.cu_reads, layout.most_reads
        attended = ops.varlen_attention(
            q, k, v, cu_queries, layout.cu_seqlens, longest, layout.longest, backend=backend
        )
        x, normed = self._add(x, self.out(attended.flatten(1)), self.norm2, backend)
        inner = ops.linear_gelu(normed, self.fc1.weight, self.fc1.bias, backend=backend)
        return self._add(x, self.fc2(inner), following, backend)

    def _add(
        self, x: torch.Tensor, delta: torch.Tensor, norm: nn.LayerNorm, backend: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return ops.add_norm(x, delta.to(x.dtype), norm.weight, norm.bias, self.eps, backend=backend)


class VisionEncoder(nn.Module):
    """All layers and the post-LayerNorm; the patch embedding is a matrix product."""

    PREFIX = "model.vision_encoder.vision_encoder."

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embedding = nn.Linear(3 * config.patch_size**2, config.hidden_size)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_layers))
        self.post_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self._watched: WatchedWeights | None = None
        self._tables: dict[tuple[int, torch.device], tuple[torch.Tensor, torch.Tensor]] = {}

    def forward(
        self,
        patches: torch.Tensor,
        grids: Sequence[Grid],
        reads: torch.Tensor | None = None,
        backend: str = "auto",
    ) -> torch.Tensor:
        """Features of packed views.

        Args:
            patches: (P, 588), normalised, flattened as (channel, row, column).
            grids: (rows, columns, merge) of each view; merge 2 means patches in 2x2 order.
            reads: (P,) bool in host memory: the patches whose features are wanted; None: all.
            backend: who computes the operations.

        Returns:
            (F, D) in the weights' dtype, in the order of the patches; F = P or the number that is read.

        Raises:
            ValueError: patches or reads that do not fit the grids.
        """
        total = sum(h * w for h, w, _ in grids)
        if len(patches) != total:
            raise ValueError(f"encoder: expected {total} patches for these grids, got {len(patches)}")
        if reads is not None and (reads.shape != (total,) or reads.dtype != torch.bool):
            raise ValueError(f"encoder: expected {total} bool reads, got {tuple(reads.shape)} of {reads.dtype}")
        parts, start = [], 0
        for part in _passes(grids):
            stop = start + sum(h * w for h, w, _ in part)
            own_reads = None if reads is None else reads[start:stop]
            layout = PassLayout.of(part, own_reads, patches.device, backend)
            parts.append(self.run(patches[start:stop], layout, backend))
            start = stop
        if len(parts) == 1:
            return parts[0]
        empty = patches.new_empty(0, self.config.hidden_size, dtype=self.patch_embedding.weight.dtype)
        return torch.cat([empty, *parts])

    def run(self, patches: torch.Tensor, layout: PassLayout, backend: str = "auto") -> torch.Tensor:
        """One pass, all on the patches' device: no value of a tensor is looked at, so that it can be captured."""
        rope = self._rope(layout.places, patches.device)
        dtype = self.patch_embedding.weight.dtype
        x = self.patch_embedding(patches.to(dtype)).to(dtype)  # in mixed precision the residual stream stays wide
        layers = [layer for layer in self.layers if isinstance(layer, EncoderLayer)]
        norms = [*(layer.norm1 for layer in layers), self.post_norm]
        normed = norms[0](x)
        for layer, following in zip(layers, norms[1:], strict=True):
            x, normed = layer(x, normed, layout, rope, following, following is self.post_norm, backend)
        return normed

    def _rope(self, places: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """The rotary table of at least `places` rows or columns; kept, one for each power of two."""
        key = 1 << max(places - 1, 0).bit_length(), device
        if key not in self._tables:
            with torch.inference_mode(False):  # a pass in training may come after one without gradients
                self._tables[key] = rope2d_table(key[0], self.config.head_dim, device)
        return self._tables[key]

    def state(self) -> WeightsState:
        """What features depend on beside pixels: changes with every change of the weights."""
        if self._watched is None:
            self._watched = WatchedWeights([self])
        return self._watched.state()

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

"""Features + masks -> object tokens: the Scale-Adaptive Object Tokenizer (paper section 4.2.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from pixelrefer_fast import ops
from pixelrefer_fast.checks import is_integer
from pixelrefer_fast.config import ModelConfig
from pixelrefer_fast.decoder import check_seed
from pixelrefer_fast.infusion import Infusion
from pixelrefer_fast.views import MarkPlan, View, ViewPlan

ITERATIONS = {"lite": 3, "full": 5}


@dataclass(frozen=True)
class Selection:
    """The selected patches of all marks: what `ops.object_pool` reads, and where the context views lie.

    Offsets and context stay in host memory; the rest goes where the features are.
    """

    index: torch.Tensor  # (S, K) int64 rows of the packed features
    weights: torch.Tensor  # (S, K) float32
    positions: torch.Tensor  # (S, 2) float32
    offsets: torch.Tensor  # (M + 1,) int64
    local_context: torch.Tensor  # (M, 2) int64: first row and number of rows; no rows in Full
    global_context: torch.Tensor  # (M, 2) int64

    @property
    def counts(self) -> list[int]:
        """Selected patches of each mark."""
        return self.offsets.diff().tolist()

    def to(self, device: torch.device) -> Selection:
        return Selection(
            self.index.to(device),
            self.weights.to(device),
            self.positions.to(device),
            self.offsets,
            self.local_context,
            self.global_context,
        )


def select_patches(plan: ViewPlan, backend: str = "auto") -> Selection:
    """Find each mark's patches among the packed features of a plan's views.

    Where the pixel budget has made a crop's grid coarser than its mask's, a patch reads four feature rows (bilinear,
    half-pixel centres, as torch's interpolate weighs them), else one.
    """
    first_row = torch.tensor(plan.first_rows, dtype=torch.int64)
    marks = plan.marks
    shapes = torch.tensor([m.mask_grid.shape for m in marks], dtype=torch.int64).reshape(-1, 2)
    grids = [torch.from_numpy(m.mask_grid).flatten() for m in marks]
    packed = ops.pack_objects(torch.cat(grids) if grids else torch.zeros(0), shapes, backend=backend)

    crops = [plan.views[m.crop] for m in marks]
    feature_shapes = torch.tensor([v.grid for v in crops], dtype=torch.int64).reshape(-1, 2)
    owner = torch.repeat_interleave(torch.arange(len(marks)), packed.offsets.diff())
    start = first_row[torch.tensor([m.crop for m in marks], dtype=torch.int64)][owner]
    columns = feature_shapes[owner, 1]
    if torch.equal(shapes, feature_shapes):
        index = (start + packed.row * columns + packed.column)[:, None]
        weights = torch.ones(len(index), 1)
        positions = _positions(packed.row, packed.column, owner, marks, crops)
    else:
        low_row, high_row, row_weight = _neighbours(packed.row, shapes[owner, 0], feature_shapes[owner, 0])
        low_col, high_col, col_weight = _neighbours(packed.column, shapes[owner, 1], columns)
        corners = [(low_row, low_col), (low_row, high_col), (high_row, low_col), (high_row, high_col)]
        by_row, by_col = (1 - row_weight, row_weight), (1 - col_weight, col_weight)
        index = torch.stack([start + r * columns + c for r, c in corners], dim=1)
        weights = torch.stack([r * c for r in by_row for c in by_col], dim=1)
        corner_positions = torch.stack([_positions(r, c, owner, marks, crops) for r, c in corners], dim=1)
        positions = (corner_positions * weights[:, :, None]).sum(1)

    def context(views: list[int | None]) -> torch.Tensor:
        rows = [(int(first_row[v]), plan.views[v].patches) for v in views if v is not None]
        return torch.tensor(rows, dtype=torch.int64).reshape(-1, 2)

    return Selection(
        index,
        weights,
        positions,
        packed.offsets,
        context([m.local_view for m in marks]),
        context([m.global_view for m in marks]),
    )


def _neighbours(place: torch.Tensor, size: torch.Tensor, source: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Lower and upper source place and the upper one's weight, for half-pixel centres."""
    scale = source.float() / size.float()
    at = (scale * (place.float() + 0.5) - 0.5).clamp(min=0)
    low = at.long()
    high = torch.minimum(low + 1, source - 1)
    return low, high, at - low


def _positions(
    row: torch.Tensor, column: torch.Tensor, owner: torch.Tensor, marks: Sequence[MarkPlan], crops: Sequence[View]
) -> torch.Tensor:
    """(S, 2) float32 (x, y) of patches, relative to the whole image (paper equation 4).

    As trained, the box's rows lie on the x axis and its columns on the y axis. A side of one pixel has no extent: its
    divisor, which the reference leaves at zero, is one.
    """
    table = [(*m.box, *m.image_size, *v.grid) for m, v in zip(marks, crops, strict=True)]
    values = torch.tensor(table, dtype=torch.float32).reshape(-1, 8)[owner]
    box0, box1, box2, box3, height, width, rows, columns = values.unbind(1)
    x = (column / columns * (box2 - box0) + box0) / (width - 1).clamp(min=1)
    y = (row / rows * (box3 - box1) + box1) / (height - 1).clamp(min=1)
    return torch.stack([x, y], dim=1)


def kmeans_starts(
    counts: Sequence[int], clusters: int, given: Sequence[Sequence[int] | None] | None = None, seed: int | None = None
) -> torch.Tensor:
    """First centroids of every mark: (M, clusters) int64, ranks among the mark's selected patches.

    Args:
        counts: selected patches of each mark.
        clusters: n; marks of at most n patches need no start (their row is zero).
        given: the caller's starts, one entry a mark (None for the default).
        seed: draw random permutations as the reference does, one per clustering and in order; None: evenly spaced
            ranks, so that answers repeat.

    Raises:
        ValueError: `given` together with `seed`, or starts of the wrong number or range.
    """
    if given is not None and seed is not None:
        raise ValueError("kmeans_start and kmeans_seed: expected one of them, got both")
    if given is not None and len(given) != len(counts):
        raise ValueError(f"kmeans_start: expected an entry for each of the {len(counts)} marks, got {len(given)}")
    check_seed("kmeans_seed", seed)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    starts = torch.zeros(len(counts), clusters, dtype=torch.int64)
    for i, count in enumerate(counts):
        if count <= clusters:
            continue
        own = None if given is None else given[i]
        if own is not None:
            ranks = own.tolist() if isinstance(own, (torch.Tensor, np.ndarray)) else own
            if (
                not isinstance(ranks, (list, tuple))
                or len(ranks) != clusters
                or not all(is_integer(r) and 0 <= r < count for r in ranks)
            ):
                raise ValueError(
                    f"kmeans_start: mark {i}: expected {clusters} ranks from 0 to {count - 1}, got {ranks!r}"
                )
            starts[i] = torch.tensor(ranks)
        elif generator is not None:
            starts[i] = torch.randperm(count, generator=generator)[:clusters]
        else:
            starts[i] = torch.arange(clusters) * count // clusters
    return starts


class ObjectTokenizer(nn.Module):
    """Selected features to object tokens; in Lite with the infusion of context."""

    PREFIX = "model.region_encoder."

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, out = config.vision.hidden_size, config.llm["hidden_size"]
        self.iterations = ITERATIONS[config.kind]
        self.pos_linear = nn.Linear(2, width)
        self.infusion = Infusion(width) if config.kind == "lite" else None
        self.feat_linear = nn.Sequential(nn.Linear(width, out), nn.GELU(), nn.Linear(out, out))

    def forward(
        self, features: torch.Tensor, selection: Selection, starts: torch.Tensor, backend: str = "auto"
    ) -> torch.Tensor:
        """Object tokens of all marks, packed.

        Args:
            features: (P, D) of the views that `selection` was made for.
            selection: the marks' patches.
            starts: (M, n) first centroids.

        Returns:
            (T, C): n tokens a mark in Lite, min(n, selected patches) in Full.
        """
        pooled = ops.object_pool(
            features,
            selection.index,
            selection.weights,
            selection.positions,
            selection.offsets,
            starts,
            self.pos_linear.weight,
            self.pos_linear.bias,
            self.iterations,
            backend=backend,
        )
        if self.infusion is not None:
            tokens = self.infusion(pooled, features, selection, backend).flatten(0, 1)
        else:
            parts = [p[:count] for p, count in zip(pooled, selection.counts, strict=True)]
            tokens = torch.cat(parts) if parts else pooled.flatten(0, 1)
        return self.feat_linear(tokens)

    def checkpoint_slots(self) -> dict[str, torch.Tensor]:
        """Where each tensor of a released checkpoint goes, by checkpoint key."""
        slots: dict[str, torch.Tensor] = {}
        for name, module in (("pos_linear", self.pos_linear), ("feat_linear", self.feat_linear)):
            slots |= {f"{name}.{n}": p for n, p in module.named_parameters()}
        if self.infusion is not None:
            slots |= self.infusion.checkpoint_slots()
        return {self.PREFIX + key: slot for key, slot in slots.items()}

"""ViewPlan -> the feature rows that each object reads: its selected patches, their positions, its context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from pixelrefer_fast import ops
from pixelrefer_fast.device.transfers import upload
from pixelrefer_fast.ops.infuse import Groups, plan_groups
from pixelrefer_fast.planning.views import MarkPlan, View, ViewPlan


@dataclass(frozen=True)
class Selection:
    """The selected patches of all marks: what `ops.object_pool` reads, and where the context views lie.

    Rows are those of the features that the encoder returns: `reads` of all packed patches.
    """

    reads: torch.Tensor  # (P,) bool in host memory: the packed patches whose features anybody reads
    first_rows: tuple[int, ...]  # first feature row of each view, and the number of rows last
    index: torch.Tensor  # (S, K) int64 rows of the features
    weights: torch.Tensor  # (S, K) float32
    positions: torch.Tensor  # (S, 2) float32
    offsets: torch.Tensor  # (M + 1,) int64
    counts: tuple[int, ...]  # selected patches of each mark
    local_groups: Groups  # no object in Full
    global_groups: Groups

    def reads_of(self, plan: ViewPlan, views: Sequence[int]) -> torch.Tensor:
        """`reads` of some views of the plan that this was made for, in the order given."""
        by_view = self.reads.split([v.patches for v in plan.views])
        return torch.cat([self.reads[:0], *(by_view[v] for v in views)])

    def to(self, device: torch.device) -> Selection:
        """The tables on `device`, in one copy; `reads` stays."""
        local_groups, global_groups = self.local_groups, self.global_groups
        index, weights, positions, offsets, *groups = upload(
            [
                self.index,
                self.weights,
                self.positions,
                self.offsets,
                local_groups.order,
                local_groups.groups,
                global_groups.order,
                global_groups.groups,
            ],
            device,
        )
        return replace(
            self,
            index=index,
            weights=weights,
            positions=positions,
            offsets=offsets,
            local_groups=local_groups._replace(order=groups[0], groups=groups[1]),
            global_groups=global_groups._replace(order=groups[2], groups=groups[3]),
        )


def select_patches(plan: ViewPlan, backend: str = "auto") -> Selection:
    """Find each mark's patches among the features of a plan's views; all of it in host memory, where the plan is.

    Where the pixel budget has made a crop's grid coarser than its mask's, a patch reads four feature rows (bilinear,
    half-pixel centres, as torch's interpolate weighs them), else one.
    """
    first = plan.first_rows
    first_row = torch.tensor(first, dtype=torch.int64)
    marks = plan.marks
    shapes = torch.tensor([m.mask_grid.shape for m in marks], dtype=torch.int64).reshape(-1, 2)
    grids = [torch.from_numpy(m.mask_grid).flatten() for m in marks]
    cells = torch.cat(grids) if grids else torch.zeros(0)
    packed = ops.pack_objects(cells, shapes, int((cells > 0).sum()), backend=backend)

    crops = [plan.views[m.crop] for m in marks]
    feature_shapes = torch.tensor([v.grid for v in crops], dtype=torch.int64).reshape(-1, 2)
    owner = torch.repeat_interleave(torch.arange(len(marks)), packed.counts)
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

    reads = torch.zeros(first[-1], dtype=torch.bool)
    reads[index.flatten()] = True
    local_views = [m.local_view for m in marks if m.local_view is not None]
    global_views = [m.global_view for m in marks if m.global_view is not None]
    for view in {*plan.scene, *local_views, *global_views}:
        reads[first[view] : first[view + 1]] = True
    before = torch.cat([torch.zeros(1, dtype=torch.int64), reads.cumsum(0)])  # rows that are read before each patch
    first_rows = before[first_row].tolist()

    def groups(views: Sequence[int]) -> Groups:
        rows = [(first_rows[v], plan.views[v].patches) for v in views]
        return plan_groups(torch.tensor(rows, dtype=torch.int64).reshape(-1, 2))

    return Selection(
        reads,
        tuple(first_rows),
        before[index],
        weights,
        positions,
        packed.offsets,
        tuple(packed.counts.tolist()),
        groups(local_views),
        groups(global_views),
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

"""ViewPlan -> the feature rows that each object reads: its selected patches, their positions, its context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from pixelrefer_fast import ops
from pixelrefer_fast.device.transfers import upload
from pixelrefer_fast.ops.infuse import Groups, plan_groups
from pixelrefer_fast.ops.place_patches import COLUMNS
from pixelrefer_fast.planning.views import MarkPlan, ViewPlan


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
    counts: tuple[int, ...]  # selected patches of each mark; at most so many where nothing was brought to the host
    tokens: int  # object tokens of all marks
    local_groups: Groups  # no object in Full
    global_groups: Groups

    def reads_of(self, plan: ViewPlan, views: Sequence[int]) -> torch.Tensor:
        """`reads` of some views of the plan that this was made for, in the order given."""
        by_view = self.reads.split([v.patches for v in plan.views])
        return torch.cat([self.reads[:0], *(by_view[v] for v in views)])

    def to(self, device: torch.device) -> Selection:
        """The tables on `device`, those that are not there in one copy; `reads` stays."""
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


def select_patches(plan: ViewPlan, backend: str = "auto", brought: bool = True) -> Selection:
    """Find each mark's patches among the features of a plan's views, on the device where the masks were drawn.

    The host gets one small copy: how many patches each mark has, and which of the packed ones are read.

    Args:
        plan: the views and the marks.
        backend: who selects.
        brought: False: nothing is brought to the host, for a pass whose shapes do not depend on it. Then `counts` are
            upper bounds, crops are read whole, and `index`, `weights` and `positions` have rows of no meaning behind
            the selected ones.
    """
    first = plan.first_rows
    marks, patches = plan.marks, first[-1]
    grids = [m.mask_grid for m in marks]
    device = next((g.device for g in grids if g.device.type != "cpu"), torch.device("cpu"))
    crops = [plan.views[m.crop] for m in marks]
    table = [
        (first[m.crop], *v.grid, *m.mask_grid.shape, *m.box, *m.image_size) for m, v in zip(marks, crops, strict=True)
    ]
    local_views = [m.local_view for m in marks if m.local_view is not None]
    global_views = [m.global_view for m in marks if m.global_view is not None]
    # the patches of views that are read whole; one more stands for those that slots without a patch read
    whole = np.zeros(patches + 1, bool)
    for view in {*plan.scene, *local_views, *global_views, *(() if brought else [m.crop for m in marks])}:
        whole[first[view] : first[view + 1]] = True

    on_host = [g.flatten() for g in grids if g.device != device]
    rows, shapes, *moved = upload(
        [
            torch.tensor(table, dtype=torch.int64).reshape(-1, COLUMNS),
            torch.tensor([g.shape for g in grids], dtype=torch.int64).reshape(-1, 2),
            *([torch.from_numpy(whole)] if brought else ()),
            *on_host,
        ],
        device,
    )
    reads = moved.pop(0) if brought else None
    uploaded = iter(moved)
    own = [next(uploaded) if g.device != device else g.flatten() for g in grids]
    cells = torch.cat(own) if own else torch.zeros(0, device=device)
    counts = [] if brought else [_most_selected(m) for m in marks]
    packed = ops.pack_objects(cells, shapes, len(cells) if brought else sum(counts), backend=backend)
    corners = 1 if all(m.mask_grid.shape == v.grid for m, v in zip(marks, crops, strict=True)) else 4
    placed = ops.place_patches(packed.row, packed.column, packed.offsets, rows, corners, patches, backend=backend)
    index = placed.patch
    if reads is None:
        on_host_reads = torch.from_numpy(whole[:-1])
    else:
        reads.index_fill_(0, index.flatten(), True)
        reads[patches] = False
        counts, on_host_reads = _brought(packed.counts, reads)
        # of each patch that is read, its row among the features
        index = (reads.cumsum(0) - 1)[index[: sum(counts)]]
    before = np.concatenate([[0], np.cumsum(on_host_reads.numpy())])
    first_rows = before[first].tolist()
    selected = sum(counts)

    def groups(views: Sequence[int]) -> Groups:
        places = [(first_rows[v], plan.views[v].patches) for v in views]
        return plan_groups(torch.tensor(places, dtype=torch.int64).reshape(-1, 2))

    return Selection(
        on_host_reads,
        tuple(first_rows),
        index,
        placed.weights[:selected],
        placed.positions[:selected],
        packed.offsets,
        tuple(counts),
        sum(m.tokens for m in marks),
        groups(local_views),
        groups(global_views),
    )


def _most_selected(mark: MarkPlan) -> int:
    """At most so many patches of a mark are selected; of a mask in host memory it is their number."""
    return int(torch.count_nonzero(mark.mask_grid > 0)) if mark.on_device is None else mark.on_device.most


def _brought(counts: torch.Tensor, reads: torch.Tensor) -> tuple[list[int], torch.Tensor]:
    """Counts (M,) and which patches are read (P,), in host memory: in one copy."""
    together = torch.cat([counts.view(torch.uint8), reads.view(torch.uint8)]).cpu()
    size = counts.nbytes
    return together[:size].view(torch.int64).tolist(), together[size:-1].view(torch.bool)

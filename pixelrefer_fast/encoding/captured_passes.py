"""Packed patches -> object tokens as captured computations (`device/graphs.py`): one launch for the whole pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F

from pixelrefer_fast import ops
from pixelrefer_fast.checkpoint.config import ModelConfig
from pixelrefer_fast.device import trust
from pixelrefer_fast.device.graphs import Capturer, GraphStore
from pixelrefer_fast.device.static_tables import StaticTables, TableShape
from pixelrefer_fast.device.weights import WatchedWeights, WeightsState
from pixelrefer_fast.encoding.encoder import PassLayout, PassTables, VisionEncoder
from pixelrefer_fast.encoding.object_tokenizer import ObjectTokenizer, kmeans_starts
from pixelrefer_fast.encoding.pass_sizes import PassSizes, pass_sizes
from pixelrefer_fast.ops.infuse import Groups, plan_groups
from pixelrefer_fast.ops.view_patches import PATCH
from pixelrefer_fast.planning.selection import Selection
from pixelrefer_fast.planning.views import View

CORNERS = 4  # feature rows of a selected patch; where one is meant, the others have no weight
SIDE = 8  # of the views of the pass that is captured
PIXELS = 3 * PATCH**2  # values of a patch
NO_READS = torch.empty(0, dtype=torch.bool)


@dataclass(frozen=True)
class PassInputs:
    """What a pass from patches to object tokens works on, its tables in host memory or on the device.

    Attributes:
        patches: (P, 588) on the device, of the views that are encoded.
        tables: of these views, in host memory.
        places: (F',) int64, the rows of all features that theirs become.
        known: other features (n, D), by the row of the first.
        selection: what is read of all features.
        starts: (M, n) first centroids.
    """

    patches: torch.Tensor
    tables: PassTables
    places: torch.Tensor
    known: Mapping[int, torch.Tensor]
    selection: Selection
    starts: torch.Tensor

    @classmethod
    def of(
        cls,
        patches: torch.Tensor,
        grids: Sequence[tuple[int, int, int]],
        reads: torch.Tensor,
        selection: Selection,
        starts: torch.Tensor,
        known: Mapping[int, torch.Tensor],
    ) -> PassInputs:
        """Of a plan of which some views are known.

        Args:
            patches: of the others.
            grids: of the others.
            reads: of their patches (`Selection.reads_of`).
            selection, starts: of the whole plan.
            known: features of views, by their numbers in the plan.
        """
        bounds = list(pairwise(selection.first_rows))
        fresh = [np.arange(*bounds[view]) for view in range(len(bounds)) if view not in known]
        return cls(
            patches,
            PassTables.of(grids, reads),
            torch.from_numpy(np.concatenate([np.arange(0), *fresh])),
            {bounds[view][0]: features for view, features in known.items()},
            selection,
            starts,
        )


class CapturedPasses:
    """The passes of `pass_sizes`, captured by `warm_up`.

    Patches, features and tables lie in buffers of the largest pass, of which the others take the beginnings. What is
    beyond a request's own is padding: patches of no view, features that nobody reads, marks without patches, whose
    groups have no rows.

    Args:
        encoder, tokenizer: who computes.
        config: their model's.
        backend: who computes the operations.
        limit_bytes: of device memory that the captures may keep, buffers included.
        capturer: makes the graphs; that of torch.cuda unless given.
    """

    def __init__(
        self,
        encoder: VisionEncoder,
        tokenizer: ObjectTokenizer,
        config: ModelConfig,
        backend: str,
        limit_bytes: int,
        capturer: Capturer | None = None,
    ) -> None:
        self._encoder, self._tokenizer = encoder, tokenizer
        self._kind, self._clusters, self._backend = config.kind, config.mask_num, backend
        self._sizes = pass_sizes(config)
        self._limit, self._capturer = limit_bytes, capturer
        self._weights = WatchedWeights([encoder, tokenizer])
        self.store: GraphStore[PassSizes] = GraphStore(limit_bytes, capturer)
        self._buffers: _Buffers | None = None
        self._captured_with: WeightsState = ()

    def __getstate__(self) -> dict[str, object]:
        """A copy has weights of its own, and captures of its own to make."""
        return self.__dict__ | {
            "store": GraphStore(self._limit, self._capturer),
            "_buffers": None,
            "_captured_with": (),
        }

    def unusable(self, device: torch.device) -> str | None:
        """Why nothing can be captured on this device, or None."""
        return self.store.unusable(device)

    def fitting(self, views: list[View], selection: Selection, starts: torch.Tensor) -> PassSizes | None:
        """The smallest captured pass that has room for a request; None where it runs as it is.

        Args:
            views: that are encoded.
            selection, starts: of the request.
        """
        if self._buffers is None or starts.shape[1] != self._clusters:
            return None
        if self._weights.state() != self._captured_with:  # a capture reads what was made of those that it was made with
            self.store.clear()
            self._buffers = None
            trust.dropped("the weights of the vision side were written to")
            return None
        return next((s for s in reversed(self._sizes) if s in self.store and s.hold(views, selection)), None)

    @torch.no_grad()
    def run(self, sizes: PassSizes, inputs: PassInputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (F, D), over which the next pass writes, and object tokens (T, C) of a request.

        Args:
            sizes: what `fitting` gave.
            inputs: the request's.
        """
        assert self._buffers is not None
        # normal tensors even within inference mode: buffers that live on are written to in every mode
        with torch.inference_mode(False):
            self._buffers.fill(sizes, inputs)
            result = self.store.replay(sizes)
            assert result is not None
        selection = inputs.selection
        return self._buffers.features[: selection.first_rows[-1]], result[: selection.tokens].clone()

    @torch.no_grad()
    def warm_up(self) -> None:
        """Capture all passes that have not been, the largest first.

        Raises:
            torch.OutOfMemoryError: there is no memory for buffers or a capture; those before it stay.
        """
        with torch.inference_mode(False):
            weight = self._encoder.post_norm.weight
            if self._buffers is None:
                needed = _Buffers.bytes_of(self._sizes, self._clusters, weight)
                if needed > self._limit:
                    return
                self._buffers = _Buffers(self._sizes, self._clusters, weight)
                self.store.limit_bytes = self._limit - needed
            self._captured_with = self._weights.state()
            for sizes in self._sizes:
                self._buffers.fill(sizes, example(sizes, self._kind, self._clusters, weight))
                state = {"features": self._buffers.features[: sizes.rows]}
                self.store.capture(sizes, lambda sizes=sizes: self.compute(sizes), state, weight.device)  # type: ignore[misc]

    def compute(self, sizes: PassSizes) -> torch.Tensor:
        """What is captured: (T, C) object tokens of what lies in the buffers; nothing of it comes from the host."""
        assert self._buffers is not None
        buffers, tables = self._buffers, self._buffers.tables[sizes].views
        features = buffers.features[: sizes.rows + 1]
        if sizes.patches:
            packed = ops.pack_views(tables["grids"], sizes.patches, backend=self._backend)
            layout = PassLayout(
                row=packed.row,
                column=packed.column,
                cu_seqlens=packed.cu_seqlens,
                read=tables["read"],
                cu_reads=tables["cu_reads"],
                longest=sizes.longest,
                most_reads=sizes.longest,
                places=sizes.longest,
                partial=True,
            )
            encoded = self._encoder.run(buffers.patches[: sizes.patches], layout, self._backend)
            features.index_copy_(0, tables["places"], encoded)
        selection = Selection(
            reads=NO_READS,  # the layout has them
            first_rows=(),
            index=tables["index"],
            weights=tables["weights"],
            positions=tables["positions"],
            offsets=tables["offsets"],
            counts=(sizes.largest,) * sizes.marks,
            tokens=sizes.marks * self._clusters,
            local_groups=_padded_groups(sizes, tables["local_order"], tables["local_groups"]),
            global_groups=_padded_groups(sizes, tables["global_order"], tables["global_groups"]),
        )
        return self._tokenizer(features, selection, tables["starts"], self._backend)


class _Buffers:
    """What captured passes read and write.

    Attributes:
        patches: (P, 588) float32 of the largest pass.
        features: (F + 1, D) of the largest pass; a pass leaves its padding in the row behind its own.
        tables: of each pass, in one buffer.
    """

    def __init__(self, sizes: Sequence[PassSizes], clusters: int, like: torch.Tensor) -> None:
        device = like.device
        shapes = {s: _shapes(s, clusters) for s in sizes}
        most = max(s.patches for s in sizes)
        # loaders make a model's dtype the default: this is float32 all the same
        self.patches = torch.zeros(most, PIXELS, dtype=torch.float32, device=device)
        self.features = torch.zeros(max(s.rows for s in sizes) + 1, len(like), dtype=like.dtype, device=device)
        bytes_ = torch.zeros(max(map(StaticTables.bytes_of, shapes.values())), dtype=torch.uint8, device=device)
        self.tables = {s: StaticTables(own, bytes_) for s, own in shapes.items()}

    @staticmethod
    def bytes_of(sizes: Sequence[PassSizes], clusters: int, like: torch.Tensor) -> int:
        """What these buffers take."""
        patches, rows = max(s.patches for s in sizes), max(s.rows for s in sizes) + 1
        tables = max(StaticTables.bytes_of(_shapes(s, clusters)) for s in sizes)
        return 4 * patches * PIXELS + rows * len(like) * like.element_size() + tables

    def fill(self, sizes: PassSizes, inputs: PassInputs) -> None:
        own, selection = inputs.tables, inputs.selection
        self.patches[: len(inputs.patches)] = inputs.patches
        for row, features in inputs.known.items():
            self.features[row : row + len(features)] = features
        marks = len(selection.counts)
        index, weights = selection.index, selection.weights
        if index.shape[1] != CORNERS:
            index, weights = index.expand(-1, CORNERS), F.pad(torch.ones_like(weights), (0, CORNERS - 1))
        given = {
            "grids": own.grids,
            "read": own.read,
            "cu_reads": own.cu_reads,
            "places": inputs.places,
            "index": index,
            "weights": weights,
            "positions": selection.positions,
            # of marks that are padding where the others end, which only a device may know
            "offsets": torch.cat([selection.offsets, selection.offsets[-1:].expand(sizes.marks - marks)]),
            "starts": inputs.starts,
        }
        padding: dict[str, torch.Tensor | int] = {
            "grids": torch.tensor([0, 0, 1]),
            "cu_reads": len(own.read),
            "places": sizes.rows,
        }
        for name, groups in (("local", selection.local_groups), ("global", selection.global_groups)):
            given |= {f"{name}_order": groups.order, f"{name}_groups": groups.groups}
            if sizes.groups:
                # a group without rows has the marks that are padding, further ones have none
                rows = torch.tensor([[sizes.marks, 0, 0, 0]], dtype=torch.int32).repeat(
                    sizes.groups + 1 - len(groups.groups), 1
                )
                rows[0, 0], rows[0, 1] = marks, sizes.marks - marks
                padding |= {f"{name}_order": torch.arange(marks, sizes.marks), f"{name}_groups": rows}
        self.tables[sizes].fill(given, padding)


def _shapes(sizes: PassSizes, clusters: int) -> dict[str, TableShape]:
    """The tables of a pass; nothing of groups in Full."""
    int32, int64 = torch.int32, torch.int64
    grouped = sizes.marks if sizes.groups else 0
    return {
        "grids": TableShape((sizes.views, 3), int64),
        "read": TableShape((sizes.patches,), int64),
        "cu_reads": TableShape((sizes.views + 1,), int32),
        "places": TableShape((sizes.patches,), int64),
        "index": TableShape((sizes.selected, CORNERS), int64),
        "weights": TableShape((sizes.selected, CORNERS), torch.float32),
        "positions": TableShape((sizes.selected, 2), torch.float32),
        "offsets": TableShape((sizes.marks + 1,), int64),
        "starts": TableShape((sizes.marks, clusters), int64),
        "local_order": TableShape((grouped,), int32),
        "local_groups": TableShape((sizes.groups + 1 if grouped else 0, 4), int32),
        "global_order": TableShape((grouped,), int32),
        "global_groups": TableShape((sizes.groups + 1 if grouped else 0, 4), int32),
    }


def _padded_groups(sizes: PassSizes, order: torch.Tensor, groups: torch.Tensor) -> Groups:
    """Groups of which only the device knows how many are no padding: planned as one of all marks."""
    return Groups(order, groups, sizes.marks, sizes.context, 0, sizes.rows, ((sizes.marks, sizes.context),))


def example(sizes: PassSizes, kind: str, clusters: int, like: torch.Tensor) -> PassInputs:
    """A request that leaves no room: a view for each mark, and in Lite one that all have as context.

    Args:
        sizes: that it fills.
        kind: of the model.
        clusters: n.
        like: a tensor of the features' dtype and device.
    """
    generator = torch.Generator().manual_seed(0)
    views = min(sizes.marks + 1, sizes.views) if sizes.patches else 0
    grids = [(SIDE, SIDE, 1)] * views
    cells = SIDE * SIDE
    rows = views * cells or min(sizes.rows, (sizes.marks + 1) * cells)
    marks = torch.arange(sizes.marks)
    index = (marks % (rows // cells) * cells)[:, None] + torch.arange(cells)
    context = torch.tensor([[0, cells]]).expand(sizes.marks if kind == "lite" else 0, 2)
    counts = (cells,) * sizes.marks
    selection = Selection(
        reads=torch.ones(views * cells, dtype=torch.bool),
        first_rows=(*range(0, rows + 1, cells),),
        index=index.flatten()[:, None],
        weights=torch.ones(index.numel(), 1),
        positions=torch.rand(index.numel(), 2, generator=generator),
        offsets=torch.arange(sizes.marks + 1) * cells,
        counts=counts,
        tokens=sizes.marks * clusters,
        local_groups=plan_groups(context),
        global_groups=plan_groups(context),
    )
    patches = torch.rand(views * cells, PIXELS, generator=generator) * 2 - 1
    known = {} if views else {0: torch.randn(rows, len(like), generator=generator).to(like)}
    return PassInputs(
        patches.to(like.device),
        PassTables.of(grids, selection.reads),
        torch.arange(views * cells),
        known,
        selection,
        kmeans_starts(counts, clusters),
    )

"""From pixels to object tokens: one packed pass of the vision weights for any number of requests."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from pixelrefer_fast import ops
from pixelrefer_fast.checkpoint.config import ModelConfig
from pixelrefer_fast.device.graphs import GRAPH_BYTES
from pixelrefer_fast.device.stages import heard, stage
from pixelrefer_fast.device.transfers import upload
from pixelrefer_fast.encoding.captured_passes import CapturedPasses, PassInputs
from pixelrefer_fast.encoding.encoder import VisionEncoder
from pixelrefer_fast.encoding.kept_features import KeptFeatures, completed
from pixelrefer_fast.encoding.object_tokenizer import ObjectTokenizer, even_starts, kmeans_starts
from pixelrefer_fast.encoding.objects import SceneTokens
from pixelrefer_fast.encoding.pass_sizes import PassSizes
from pixelrefer_fast.encoding.patches import pack_patches
from pixelrefer_fast.encoding.projector import VisionProjector, kept_tokens
from pixelrefer_fast.planning.request import FrameSource
from pixelrefer_fast.planning.selection import Selection, select_patches
from pixelrefer_fast.planning.views import ViewPlan

log = logging.getLogger("pixelrefer_fast")

Result = TypeVar("Result")
Starts = Callable[[Sequence[int]], torch.Tensor]
"""From the numbers of selected patches of a plan's marks to their first centroids, (M, n) int64 ranks."""


@dataclass(frozen=True)
class _Begun:
    """What is known of a plan before a pixel of it is read."""

    selection: Selection  # its tables where the masks were drawn, for all views
    starts: torch.Tensor  # (M, n) first centroids
    known: dict[int, torch.Tensor]  # features that are kept, by view
    fresh: list[int]  # the other views
    own: list[int]  # those of the first part
    sizes: PassSizes | None  # of the captured pass that computes it; None: it runs as it is


@dataclass(frozen=True)
class Encoded:
    """What a plan became.

    Attributes:
        selection: its tables where the masks were drawn.
        patches: (P, 588) packed of each view that was not known.
        features: (F, D) of all views.
        tokens: (T, C) object tokens of all marks.
    """

    selection: Selection
    patches: Mapping[int, torch.Tensor]
    features: torch.Tensor
    tokens: torch.Tensor


class VisionSide(nn.Module):
    """All weights but those of the language model. Its methods are the stages from a plan to object tokens, in order.

    Args:
        config: the model's.
        backend: who computes the operations.

    Attributes:
        captured: passes from patches to object tokens that are replayed; None: each runs as it is.
    """

    def __init__(self, config: ModelConfig, backend: str = "auto") -> None:
        super().__init__()
        self.config = config
        self.backend = backend
        self.encoder = VisionEncoder(config.vision)
        self.object_tokenizer = ObjectTokenizer(config)
        self.projector = VisionProjector(config.vision.hidden_size, config.llm["hidden_size"])
        self.captured: CapturedPasses | None = None

    @property
    def device(self) -> torch.device:
        return self.projector.first.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.projector.first.weight.dtype

    def capture_passes(self, graph_bytes: int | None = None) -> None:
        """Capture passes from patches to object tokens, anew where they were.

        Args:
            graph_bytes: of device memory that they may keep; 0: nothing is captured; None: 1 GiB where kernels compute
                on a CUDA device, 0 elsewhere.

        Raises:
            ValueError: there are no CUDA graphs where these weights are.
        """
        self.captured = None
        default = GRAPH_BYTES if ops.kernels_serve(self.device, self.backend) else 0
        limit = default if graph_bytes is None else graph_bytes
        if not limit:
            return
        captured = CapturedPasses(self.encoder, self.object_tokenizer, self.config, self.backend, limit)
        if reason := captured.unusable(self.device):
            raise ValueError(f"graph_bytes: expected 0 on {self.device}, got {limit}: {reason}")
        self.captured = captured
        try:
            captured.warm_up()
        except torch.OutOfMemoryError as error:
            log.warning("encoder: no memory to capture further passes, which run as they are (%s)", error)

    def vision_slots(self) -> dict[str, torch.Tensor]:
        """Where each vision tensor of a released checkpoint goes, by checkpoint key; views of this module's memory."""
        slots = self.encoder.checkpoint_slots() | self.object_tokenizer.checkpoint_slots()
        return slots | self.projector.checkpoint_slots()

    @stage("plan")
    def select(self, plan: ViewPlan, starts: Starts | None, brought: bool = True) -> tuple[Selection, torch.Tensor]:
        """The feature rows that each mark reads, and its first centroids (M, n).

        Args:
            plan: the views and the marks.
            starts: makes the centroids; None: evenly spaced ones.
            brought: whether the host is told what was selected (`select_patches`); always where `starts` is given.
        """
        selection = select_patches(plan, self.backend, brought)
        if starts is not None:
            return selection, starts(selection.counts)
        clusters = self.config.mask_num
        if brought:
            return selection, kmeans_starts(selection.counts, clusters)
        return selection, even_starts(selection.offsets, clusters)

    def _begin(
        self,
        plan: ViewPlan,
        source: FrameSource,
        starts: Starts | None,
        kept: KeptFeatures | None,
        captured: CapturedPasses | None,
        most: int | None,
        brought: bool,
    ) -> _Begun:
        selection, centroids = self.select(plan, starts, brought)
        known = {} if kept is None else kept.find(plan, source, selection, (self.backend, *self.encoder.state()))
        fresh = [v for v in range(len(plan.views)) if v not in known]
        own = _part(plan, fresh, most)
        sizes = None
        if captured is not None and len(own) == len(fresh):
            sizes = captured.fitting(plan.only(own).views, selection, centroids)
        return _Begun(selection, centroids, known, fresh, own, sizes)

    def encode(
        self,
        plan: ViewPlan,
        source: FrameSource,
        starts: Starts | None,
        scenes: Sequence[tuple[int, ...]],
        kept: KeptFeatures | None = None,
    ) -> tuple[torch.Tensor, list[SceneTokens | None]]:
        """From pixels to object tokens and, in Full, vision tokens.

        Args:
            plan: the views of one or more requests.
            source: their pixels.
            starts: makes the first centroids; None: evenly spaced ones.
            scenes: the views of each request's whole images or frames, in order; empty where none is wanted.
            kept: what it knows of the views is not encoded again, and it learns the rest.

        Returns:
            Object tokens (T, C) of all marks, and the vision tokens of each request.

        Raises:
            ValueError: a frame that cannot be read, a k-means start that does not fit.
        """
        return result_of(self.encode_in_parts(plan, source, starts, scenes, kept, lambda: None))

    @torch.inference_mode()
    def encode_in_parts(
        self,
        plan: ViewPlan,
        source: FrameSource,
        starts: Starts | None,
        scenes: Sequence[tuple[int, ...]],
        kept: KeptFeatures | None,
        most: Callable[[], int | None],
    ) -> Generator[None, None, tuple[torch.Tensor, list[SceneTokens | None]]]:
        """As `encode`, with a pause after each part but the last: others may use the device, and encode, meanwhile.

        Args:
            plan, source, starts, scenes, kept: as there.
            most: patches of the next part, one view at least; None: all that are left.
        """
        plan, places = plan.context_first()
        scenes = [tuple(places[v] for v in scene) for scene in scenes]
        done = yield from self.passes(plan, source, starts, kept, self.captured, most)
        return done.tokens, self.scene_tokens(plan, scenes, done.selection, done.patches, done.features)

    @torch.inference_mode()
    def passes(
        self,
        plan: ViewPlan,
        source: FrameSource,
        starts: Starts | None,
        kept: KeptFeatures | None,
        captured: CapturedPasses | None,
        most: Callable[[], int | None],
    ) -> Generator[None, None, Encoded]:
        """From pixels to object tokens, as `encode_in_parts`.

        Args:
            plan: as `ViewPlan.context_first` orders its views.
            source, starts, kept, most: as there.
            captured: what is replayed where it has room, unless somebody listens to the stages; for one caller at a
                time.
        """
        limit = most()
        captured = None if heard() else captured
        # the shapes of a captured pass do not depend on what is selected: if one has room for whatever that may be,
        # nothing of masks on a device is brought here
        stays = starts is None and captured is not None
        stays = stays and any(mark.on_device is not None for mark in plan.marks)
        begun = self._begin(plan, source, starts, kept, captured, limit, brought=not stays)
        if stays and begun.sizes is None:
            begun = self._begin(plan, source, starts, kept, captured, limit, brought=True)
        selected, centroids, known = begun.selection, begun.starts, begun.known
        fresh, own = begun.fresh, begun.own
        if begun.sizes is not None:
            assert captured is not None
            reads = selected.reads_of(plan, own)
            packed = self.further_views(plan.only(own), source)
            patches = dict(zip(own, packed.split([plan.views[v].patches for v in own]), strict=True))
            inputs = PassInputs.of(packed, plan.only(own).grids, reads, selected, centroids, known)
            features, tokens = captured.run(begun.sizes, inputs)
        else:
            packed, selection, centroids = self.views(plan.only(own), source, selected, centroids)
            parts: list[torch.Tensor] = []
            patches = {}
            done = 0
            while True:
                parts.append(self.features(packed, plan.only(own).grids, selection.reads_of(plan, own)))
                patches |= zip(own, packed.split([plan.views[v].patches for v in own]), strict=True)
                done += len(own)
                if done == len(fresh):
                    break
                yield
                own = _part(plan, fresh[done:], most())
                packed = self.further_views(plan.only(own), source)
            features = completed(selection, parts[0] if len(parts) == 1 else torch.cat(parts), known)
            tokens = self.object_tokens(features, selection, centroids)
        if kept is not None:
            kept.keep(plan, source, selected, features, known)
        return Encoded(selected, patches, features, tokens)

    @stage("views")
    def views(
        self, plan: ViewPlan, source: FrameSource, selection: Selection, starts: torch.Tensor
    ) -> tuple[torch.Tensor, Selection, torch.Tensor]:
        """Packed patches (P, 588) of all views, and the tables of the selection, on the device."""
        patches = pack_patches(plan, source, self.device, self.backend)
        (starts,) = upload([starts], self.device)
        return patches, selection.to(self.device), starts

    @stage("views")
    def further_views(self, plan: ViewPlan, source: FrameSource) -> torch.Tensor:
        """Packed patches (P, 588) of views, on the device: of a later part, or where the tables go another way."""
        return pack_patches(plan, source, self.device, self.backend)

    @stage("encoder")
    def features(
        self, patches: torch.Tensor, grids: Sequence[tuple[int, int, int]], reads: torch.Tensor
    ) -> torch.Tensor:
        """(F, D) features of the patches that anybody reads."""
        return self.encoder(patches, grids, reads, self.backend)

    def object_tokens(self, features: torch.Tensor, selection: Selection, starts: torch.Tensor) -> torch.Tensor:
        """Features (F, D) to object tokens (T, C) of all marks: the stages pooling, in Lite infusion, and projector."""
        return self.object_tokenizer(features, selection, starts, self.backend)

    @stage("projector")
    def scene_tokens(
        self,
        plan: ViewPlan,
        scenes: Sequence[tuple[int, ...]],
        selection: Selection,
        patches: Mapping[int, torch.Tensor],
        features: torch.Tensor,
    ) -> list[SceneTokens | None]:
        """Full: the vision tokens of each request's whole images or frames; `patches` of the frames of videos."""
        if self.config.kind == "lite":
            return [None] * len(scenes)
        rows = selection.first_rows
        views = sorted({v for scene in scenes for v in scene})
        frames = [(rows[v], rows[v + 1], plan.views[v].merge) for v in views]
        projected = dict(zip(views, self.vision_tokens(features, frames), strict=True))
        videos = {s for s in scenes if len(s) > 1 and plan.views[s[0]].merge > 1}
        kept = kept_tokens(plan, videos, patches)
        made: dict[tuple[int, ...], SceneTokens | None] = {(): None}
        for scene in scenes:
            if scene not in made:
                with torch.inference_mode(False):  # a tensor that tells whether it was written to, as object tokens do
                    tokens = torch.cat([projected[v] for v in scene])
                    everything = torch.ones(len(tokens), dtype=torch.bool)
                    if scene in kept:
                        (places,) = upload([places_of(kept[scene])], tokens.device)
                        tokens = tokens[places]
                counts = tuple(len(projected[v]) for v in scene)
                made[scene] = SceneTokens(tokens, kept.get(scene, everything), counts)
        return [made[scene] for scene in scenes]

    def vision_tokens(self, features: torch.Tensor, frames: Sequence[tuple[int, int, int]]) -> list[torch.Tensor]:
        """Vision tokens of whole images or frames.

        Args:
            features: (F, D).
            frames: first and last row (exclusive) of each, and how many cells a side are merged: images have 1, frames
                of videos 2.

        Returns:
            (Z, C) of each. All of one merge are projected together.
        """
        tokens: dict[int, torch.Tensor] = {}
        for merge in sorted({merge for *_, merge in frames}):
            own = [i for i, frame in enumerate(frames) if frame[2] == merge]
            rows = [features[start:stop] for start, stop, _ in (frames[i] for i in own)]
            sizes = [len(row) // merge**2 for row in rows]
            tokens |= zip(own, self.projector(torch.cat(rows), merge).split(sizes), strict=True)
        return [tokens[i] for i in range(len(frames))]


def result_of(parts: Generator[None, None, Result]) -> Result:
    """What comes of parts that are run one after the other."""
    while True:
        try:
            next(parts)
        except StopIteration as end:
            result: Result = end.value
            return result


def _part(plan: ViewPlan, views: Sequence[int], most: int | None) -> list[int]:
    """The first of some views, of at most so many patches together; one at least."""
    if most is None:
        return list(views)
    ends = accumulate(plan.views[v].patches for v in views)
    return [v for n, (v, end) in enumerate(zip(views, ends, strict=True)) if not n or end <= most]


def places_of(mask: torch.Tensor) -> torch.Tensor:
    """Where a mask in host memory is true, int64: on a device a mask as an index is a wait."""
    return torch.from_numpy(np.flatnonzero(mask.numpy()))

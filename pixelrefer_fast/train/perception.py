"""The vision encoder's own pretraining: every patch learns to tell what object it shows.

Released models begin with a pretrained encoder; one made from scratch begins here. The synthetic world knows the truth
of every pixel, so that each patch of the very views that a model looks at (crops, context views, whole frames) has
labels: colour, shape, pattern, size and angle of its object, what that object touches, whether it hides a part of
another or is hidden, and in whole images how many objects are like it and where the patch itself lies. The linear heads
are thrown away afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from pixelrefer_fast import ops
from pixelrefer_fast.config import ModelConfig
from pixelrefer_fast.encoder import VisionEncoder
from pixelrefer_fast.joint import Joint, join, together
from pixelrefer_fast.ops.view_patches import LINEAR
from pixelrefer_fast.patches import pack_patches
from pixelrefer_fast.request import FrameSource, Request
from pixelrefer_fast.train.pretraining import EndlessBatches
from pixelrefer_fast.train.symbols import shown_objects
from pixelrefer_fast.views import View, ViewPlan
from pixelrefer_fast.world import Scene, make_scene
from pixelrefer_fast.world.marked import scene_media, scene_region
from pixelrefer_fast.world.things import COLORS, PATTERNS, SHAPES, SIZES, SYMMETRY

IGNORED = -100
MOST_ALIKE = 6
PLACES = 6  # into which each side of a whole image is parted
COVERED_PIXELS = 15  # from which one object plainly hides a part of another
COLOR_PIXELS = 24  # visible of each object, from which colours are counted
ANGLES = 8  # into which a turn is parted, as far as a shape shows it
HEADS = {
    "color": len(COLORS) + 1,  # the last: no object
    "shape": len(SHAPES),
    "pattern": len(PATTERNS),
    "size": len(SIZES),
    "touched_color": len(COLORS) + 1,  # the last: it touches nothing
    "touched_shape": len(SHAPES) + 1,
    "same_color": MOST_ALIKE,  # objects of its colour in the image, less one
    "same_shape": MOST_ALIKE,
    "angle": ANGLES,
    "row": PLACES,
    "column": PLACES,
    "hides": 2,  # a part of another object
    "hidden": 2,  # in part by another
}
COUNTS = ("same_color", "same_shape")
COUNTED = 3.0  # weight of what has to be read off the whole image, and would be learnt last
COLUMN = {name: i for i, name in enumerate(HEADS)}  # of the labels


@dataclass(frozen=True)
class PerceptionBatch:
    """Views of some scenes and what their patches show.

    Attributes:
        patches: (P, 588) float32.
        grids: (rows, columns, merge) of each view.
        labels: (P, heads) int64, IGNORED where there is nothing to tell.
    """

    patches: torch.Tensor
    grids: list[tuple[int, int, int]]
    labels: torch.Tensor


class PerceptionModel(nn.Module):
    """The encoder with a linear head for each kind of label."""

    def __init__(self, encoder: VisionEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.Linear(encoder.config.hidden_size, sum(HEADS.values()))

    def forward(self, batch: PerceptionBatch) -> dict[str, torch.Tensor]:
        """{"loss": weighted sum over the heads of the cross-entropy per patch, "accuracy": (heads,)}."""
        logits = self.heads(self.encoder(batch.patches, batch.grids)).float().split(list(HEADS.values()), dim=1)
        losses, right = [], []
        # a label that few patches have counts little: its mean alone would be mostly noise
        least = (batch.labels[:, 1] != IGNORED).sum() / 2
        for name, own, labels in zip(HEADS, logits, batch.labels.unbind(1), strict=True):
            told = labels != IGNORED
            summed = F.cross_entropy(own, labels, ignore_index=IGNORED, reduction="sum")
            weight = COUNTED if name in COUNTS else 1.0
            losses.append(weight * summed / torch.maximum(told.sum(), least).clamp(min=1))
            right.append((own.detach().argmax(1) == labels).sum() / told.sum().clamp(min=1))
        return {"loss": torch.stack(losses).sum(), "accuracy": torch.stack(right)}


class PerceptionData(EndlessBatches):
    """Batches of training scenes, half seen as Lite sees them and half as Full does.

    Args:
        lite, full: configs whose views are made.
        scenes: of a batch.
        close: further scenes of a batch, of whose objects only close-ups are shown: a tenth of the patches of the views
            that models look at, so that shapes and patterns are learnt from many more objects.
        whole: further images of a batch, of which only the whole view is shown: what is to be counted there is told
            once a scene.
        first_seed: of the first scene.
    """

    def __init__(
        self, lite: ModelConfig, full: ModelConfig, scenes: int, close: int = 0, whole: int = 0, first_seed: int = 0
    ) -> None:
        self.configs = (lite, full)
        self.scenes, self.close, self.whole = scenes, close, whole
        self.first_seed = first_seed

    def make(self, number: int) -> dict[str, PerceptionBatch]:
        first = self.first_seed + number * (self.scenes + self.close + self.whole)
        scenes = [make_scene(seed) for seed in range(first, first + self.scenes)]
        more = range(first + self.scenes, first + self.scenes + self.close + self.whole)
        others = [make_scene(seed, video=False) for seed in more]
        return {"batch": perception_batch(scenes, self.configs, others[: self.close], others[self.close :])}


def perception_batch(
    scenes: Sequence[Scene],
    configs: tuple[ModelConfig, ModelConfig],
    close: Sequence[Scene] = (),
    whole: Sequence[Scene] = (),
) -> PerceptionBatch:
    """The views of scenes, in turn those of each config's model, close-ups of the objects of others, and the whole
    views of yet others."""
    parts = []
    for turn, config in enumerate(configs):
        for some, chosen in ((scenes, _every_view), (whole, _whole_views)):
            own = some[turn :: len(configs)]
            if own:
                parts.append(chosen(own, config))
    if close:
        parts.append(_close_ups(close))
    return PerceptionBatch(
        torch.cat([p.patches for p in parts]),
        [grid for p in parts for grid in p.grids],
        torch.cat([p.labels for p in parts]),
    )


def _every_view(scenes: Sequence[Scene], config: ModelConfig) -> PerceptionBatch:
    return _seen(_joint(scenes, config), scenes)


def _whole_views(scenes: Sequence[Scene], config: ModelConfig) -> PerceptionBatch:
    joint = _joint(scenes, config)
    plan = ViewPlan()
    for view in joint.plan.views:
        if _is_whole(view, joint.source.sizes[view.image]):
            plan.add(view)
    return _seen(replace(joint, plan=plan), scenes)


def _is_whole(view: View, size: tuple[int, int]) -> bool:
    return (view.top, view.left, view.bottom, view.right) == (0, 0, *size)


def _seen(joint: Joint, scenes: Sequence[Scene]) -> PerceptionBatch:
    return PerceptionBatch(pack_patches(joint.plan, joint.source), joint.plan.grids, _labels(joint, scenes))


def _joint(scenes: Sequence[Scene], config: ModelConfig) -> Joint:
    requests: list[Request] = []
    for scene in scenes:
        source = FrameSource.of(scene_media(scene))
        whole = list(range(len(scene.frames))) if config.kind == "full" else []
        for i in range(len(scene.things)):
            region = scene_region(scene, i, "full")  # one frame of each object: the others look alike
            requests.append(Request(source, [region], [region.frames or (0,)], whole))
    return join(config, requests)


def _close_ups(scenes: Sequence[Scene]) -> PerceptionBatch:
    """Each clear object by itself, filling a view of 4x4 or 5x5 patches."""
    plan = ViewPlan()
    sources = [FrameSource.of_images([scene.frames[0]]) for scene in scenes]
    for image, scene in enumerate(scenes):
        for i in np.flatnonzero(scene.facts.visible[:, 0] >= 0.6).tolist():
            left, top, right, bottom = scene.facts.boxes[i, 0].tolist()
            height, width = scene.size
            box = (max(0, top - 3), max(0, left - 3), min(height, bottom + 3), min(width, right + 3))
            side = 14 * (4 + (scene.seed + i) % 2)
            plan.add(View(image, *box, side, side, LINEAR, side, side, 1))
    joint = Joint(plan, together(sources, list(range(len(scenes)))), ())
    labels = _labels(joint, scenes)
    for name in ("size", "touched_color", "touched_shape", "hides", "hidden"):
        labels[:, COLUMN[name]] = IGNORED  # lost, as nothing else is seen
    return PerceptionBatch(pack_patches(plan, joint.source), plan.grids, labels)


def _labels(joint: Joint, scenes: Sequence[Scene]) -> torch.Tensor:
    """(P, heads) what each patch of a joint plan shows."""
    owner = [(scene, frame) for scene in scenes for frame in range(len(scene.frames))]
    known = {id(scene): _object_labels(scene) for scene in scenes}
    found = []
    for view in joint.plan.views:
        scene, frame = owner[view.image]
        table = known[id(scene)][frame]
        seen = scene.masks[:, frame, view.top : view.bottom, view.left : view.right]
        own = table[shown_objects(seen, *view.grid).reshape(-1)]
        if _is_whole(view, scene.size):
            high, wide = view.grid
            own[:, COLUMN["row"]] = np.repeat(np.arange(high) * PLACES // high, wide)
            own[:, COLUMN["column"]] = np.tile(np.arange(wide) * PLACES // wide, high)
        else:  # how many are alike shows in whole images only
            own[:, [COLUMN[name] for name in COUNTS]] = IGNORED
        found.append(own)
    grids = torch.tensor(joint.plan.grids, dtype=torch.int64).reshape(-1, 3)
    packed = ops.pack_views(grids, int((grids[:, 0] * grids[:, 1]).sum()))
    # patches of a merged view come in 2x2 order
    first = torch.repeat_interleave(packed.cu_seqlens[:-1].long(), grids[:, 0] * grids[:, 1])
    columns = torch.repeat_interleave(grids[:, 1], grids[:, 0] * grids[:, 1])
    place = first + packed.row.long() * columns + packed.column.long()
    return torch.from_numpy(np.concatenate(found))[place]


def _object_labels(scene: Scene) -> list[np.ndarray]:
    """For each frame (objects + 1, heads) int64; the last row is that of the background."""
    colors, shapes, patterns, sizes = list(COLORS), list(SHAPES), list(PATTERNS), list(SIZES)
    things, facts = scene.things, scene.facts
    clear = facts.visible.min(axis=1) >= 0.6
    plain = bool(clear.all()) and all(t.size in sizes for t in things)
    colored = bool((facts.areas >= COLOR_PIXELS).all())
    tables = []
    for frame in range(len(scene.frames)):
        table = np.full((len(things) + 1, len(HEADS)), IGNORED, np.int64)
        table[-1, 0] = len(colors)
        covers = facts.covers[frame]
        for i, thing in enumerate(things):
            table[i, 0] = colors.index(thing.color)
            if colored:
                table[i, COLUMN["same_color"]] = sum(t.color == thing.color for t in things) - 1
            for name, most in (("hides", covers[i].max()), ("hidden", covers[:, i].max())):
                if not 0 < most < COVERED_PIXELS:
                    table[i, COLUMN[name]] = most > 0
            if thing.size not in sizes or not clear[i]:
                continue
            table[i, 1:3] = shapes.index(thing.shape), patterns.index(thing.pattern)
            if scene.motions is None or scene.motions[i] not in ("growing", "shrinking"):
                table[i, 3] = sizes.index(thing.size)
            if thing.shape in SYMMETRY:
                turn = scene.angles[i, frame] * SYMMETRY[thing.shape] / 360 % 1
                table[i, COLUMN["angle"]] = int(turn * ANGLES) % ANGLES
            near = [j for j in range(len(things)) if j != i and not facts.apart[frame, i, j]]
            if not near:
                table[i, 4:6] = len(colors), len(shapes)
            elif len(near) == 1 and facts.touching[frame, i, near[0]]:
                other = things[near[0]]
                table[i, 4] = colors.index(other.color)
                if clear[near[0]] and other.size in sizes:
                    table[i, 5] = shapes.index(other.shape)
            if plain:
                table[i, COLUMN["same_shape"]] = sum(t.shape == thing.shape for t in things) - 1
        tables.append(table)
    return tables


def without_budget(config: ModelConfig) -> ModelConfig:
    """The config with a pixel budget that nothing here reaches, so that labels lie on the grids they are made for."""
    return replace(config, mm_max_length=1 << 20)

"""The vision encoder's own pretraining: every patch learns to tell what object it shows.

Released models begin with a pretrained encoder; one made from scratch begins here. The synthetic world knows the truth
of every pixel, so that each patch of the very views that a model looks at (crops, context views, whole frames) has
labels: colour, shape, pattern, size and angle of its object, what that object touches, whether it hides a part of
another or is hidden, and in whole images how many objects are like it and where the patch itself lies. The linear heads
are thrown away afterwards. Some attention heads are shown what to count (`alike.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from pixelrefer_fast import ops
from pixelrefer_fast.checkpoint.config import ModelConfig
from pixelrefer_fast.encoding.encoder import VisionEncoder
from pixelrefer_fast.encoding.patches import pack_patches
from pixelrefer_fast.ops.view_patches import LINEAR
from pixelrefer_fast.planning.merge import Joint, join, together
from pixelrefer_fast.planning.request import FrameSource, Request
from pixelrefer_fast.planning.views import View, ViewPlan
from pixelrefer_fast.world import Scene, make_crowd, make_scene
from pixelrefer_fast.world.marked import scene_media, scene_region
from pixelrefer_fast.world.things import COLORS, PATTERNS, SHAPES, SIZES, SYMMETRY
from recipe.alike import Watch, WholeView, WholeViews, alike
from recipe.pretraining import EndlessBatches
from recipe.symbols import ALIKE, shown_objects

IGNORED = -100
PLACES = 6  # into which each side of a whole image is parted
COVERED_PIXELS = 15  # from which one object plainly hides a part of another
CLEAR = 0.6  # visible part of an object, from which its shape and pattern are told
COLOR_PIXELS = 24  # visible of each object, from which colours are counted
ANGLES = 8  # into which a turn is parted, as far as a shape shows it
HEADS = {
    "color": len(COLORS) + 1,  # the last: no object
    "shape": len(SHAPES),
    "pattern": len(PATTERNS),
    "size": len(SIZES),
    "touched_color": len(COLORS) + 1,  # the last: it touches nothing
    "touched_shape": len(SHAPES) + 1,
    "same_color": ALIKE,  # objects of its colour in the image, less one
    "same_shape": ALIKE,
    "angle": ANGLES,
    "row": PLACES,
    "column": PLACES,
    "hides": 2,  # a part of another object
    "hidden": 2,  # in part by another
}
COUNTS = ("same_color", "same_shape")
COUNTED = 3.0  # weight of what has to be read off the whole image, and would be learnt last
COUNT_WEIGHTS = (
    0.5,
    1.0,
    1.5,
    2.0,
    2.0,
    2.0,
)  # of 1, 2, ... alike: most objects have none like them, and few are asked for
COLUMN = {name: i for i, name in enumerate(HEADS)}  # of the labels


class _Part(NamedTuple):
    """Some views of a batch, and the whole images among them."""

    patches: torch.Tensor
    grids: list[tuple[int, int, int]]
    labels: torch.Tensor
    weights: torch.Tensor
    whole: list[WholeView]


@dataclass(frozen=True)
class PerceptionBatch:
    """Views of some scenes and what their patches show.

    Attributes:
        patches: (P, 588) float32.
        grids: (rows, columns, merge) of each view.
        labels: (P, heads) int64, IGNORED where there is nothing to tell.
        weights: (P,) float32 of the patches. An object's all together weigh as the fourth root of their number: the
            shape of a small one is the hardest to see, and would be learnt last.
        whole: the whole images among the views.
    """

    patches: torch.Tensor
    grids: list[tuple[int, int, int]]
    labels: torch.Tensor
    weights: torch.Tensor
    whole: WholeViews


class PerceptionModel(nn.Module):
    """The encoder with a linear head for each kind of label."""

    count_weights: torch.Tensor

    def __init__(self, encoder: VisionEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.Linear(encoder.config.hidden_size, sum(HEADS.values()))
        nn.init.zeros_(self.heads.weight)  # they learn before they move an encoder that sees already
        self.watch = Watch(encoder)
        self.register_buffer("count_weights", torch.tensor(COUNT_WEIGHTS), persistent=False)

    def forward(self, batch: PerceptionBatch) -> dict[str, torch.Tensor]:
        """{"loss": weighted sum over the heads of the cross-entropy per patch, and what the counting heads of the
        encoder do not look at, "accuracy": (heads,)}."""
        with self.watch.watching():
            features = self.encoder(batch.patches, batch.grids)
        logits = self.heads(features).float().split(list(HEADS.values()), dim=1)
        losses, right = [], []
        # a label that few patches have counts little: its mean alone would be mostly noise
        least = (batch.weights * (batch.labels[:, 1] != IGNORED)).sum() / 2
        for name, own, labels in zip(HEADS, logits, batch.labels.unbind(1), strict=True):
            told = labels != IGNORED
            counts = name in COUNTS
            by_class = self.count_weights if counts else None
            missed = F.cross_entropy(own, labels, by_class, ignore_index=IGNORED, reduction="none")
            weighed = (missed * batch.weights).sum() / torch.maximum((told * batch.weights).sum(), least).clamp(min=1)
            losses.append((COUNTED if counts else 1.0) * weighed)
            right.append((own.detach().argmax(1) == labels).sum() / told.sum().clamp(min=1))
        looked = COUNTED * self.watch.losses(batch.whole).sum()
        return {"loss": torch.stack(losses).sum() + looked, "accuracy": torch.stack(right)}


class PerceptionData(EndlessBatches):
    """Batches of training scenes, each seen as one of some models sees it.

    Args:
        configs: of models whose views are made, in turn.
        scenes: of a batch.
        close: further scenes of a batch, of whose objects only close-ups are shown: a tenth of the patches of the views
            that models look at, so that shapes and patterns are learnt from many more objects.
        whole: further images of a batch, of which only the whole view is shown: what is to be counted there is told
            once a scene.
        first_seed: of the first scene.
        crowds: further images, crowds, likewise.
    """

    def __init__(
        self,
        configs: Sequence[ModelConfig],
        scenes: int,
        close: int = 0,
        whole: int = 0,
        first_seed: int = 0,
        crowds: int = 0,
    ) -> None:
        self.configs = configs
        self.scenes, self.close, self.whole, self.crowds = scenes, close, whole, crowds
        self.first_seed = first_seed

    def make(self, number: int) -> dict[str, PerceptionBatch]:
        first = self.first_seed + number * (self.scenes + self.close + self.whole)
        scenes = [make_scene(seed) for seed in range(first, first + self.scenes)]
        more = range(first + self.scenes, first + self.scenes + self.close + self.whole)
        others = [make_scene(seed, video=False) for seed in more]
        crowd = self.first_seed + number * self.crowds
        crowds = [make_crowd(seed) for seed in range(crowd, crowd + self.crowds)]
        whole = [*others[self.close :], *crowds]
        return {"batch": perception_batch(scenes, self.configs, others[: self.close], whole)}


def perception_batch(
    scenes: Sequence[Scene],
    configs: Sequence[ModelConfig],
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
    starts = np.cumsum([0, *(len(p.patches) for p in parts)]).tolist()
    return PerceptionBatch(
        torch.cat([p.patches for p in parts]),
        [grid for p in parts for grid in p.grids],
        torch.cat([p.labels for p in parts]),
        torch.cat([p.weights for p in parts]),
        WholeViews.of(
            [
                view._replace(patches=start + view.patches)
                for start, p in zip(starts, parts, strict=False)
                for view in p.whole
            ]
        ),
    )


def _every_view(scenes: Sequence[Scene], config: ModelConfig) -> _Part:
    return _seen(_joint(scenes, config), scenes)


def _whole_views(scenes: Sequence[Scene], config: ModelConfig) -> _Part:
    joint = _joint(scenes, config, most=1)
    plan = ViewPlan()
    for view in joint.plan.views:
        if _is_whole(view, joint.source.sizes[view.image]):
            plan.add(view)
    return _seen(replace(joint, plan=plan), scenes)


def _is_whole(view: View, size: tuple[int, int]) -> bool:
    return (view.top, view.left, view.bottom, view.right) == (0, 0, *size)


def _seen(joint: Joint, scenes: Sequence[Scene]) -> _Part:
    return _Part(pack_patches(joint.plan, joint.source), joint.plan.grids, *_labels(joint, scenes))


def _joint(scenes: Sequence[Scene], config: ModelConfig, most: int | None = None) -> Joint:
    """The views of scenes with all their objects marked, or with `most` of them."""
    requests: list[Request] = []
    for scene in scenes:
        source = FrameSource.of(scene_media(scene))
        whole = list(range(len(scene.frames))) if config.kind == "full" else []
        for i in range(len(scene.things))[:most]:
            region = scene_region(scene, i, "full")  # one frame of each object: the others look alike
            requests.append(Request(source, [region], [region.frames or (0,)], whole))
    return join(config, requests)


def _close_ups(scenes: Sequence[Scene]) -> _Part:
    """Each clear object by itself, filling a view of 4x4 or 5x5 patches."""
    plan = ViewPlan()
    sources = [FrameSource.of_images([scene.frames[0]]) for scene in scenes]
    for image, scene in enumerate(scenes):
        for i in np.flatnonzero(scene.facts.visible[:, 0] >= CLEAR).tolist():
            left, top, right, bottom = scene.facts.boxes[i, 0].tolist()
            height, width = scene.size
            box = (max(0, top - 3), max(0, left - 3), min(height, bottom + 3), min(width, right + 3))
            side = 14 * (4 + (scene.seed + i) % 2)
            plan.add(View(image, *box, side, side, LINEAR, side, side, 1))
    joint = Joint(plan, together(sources, list(range(len(scenes)))), ())
    labels, weights, _ = _labels(joint, scenes)
    for name in ("size", "touched_color", "touched_shape", "hides", "hidden"):
        labels[:, COLUMN[name]] = IGNORED  # lost, as nothing else is seen
    return _Part(pack_patches(plan, joint.source), plan.grids, labels, weights, [])


def _labels(joint: Joint, scenes: Sequence[Scene]) -> tuple[torch.Tensor, torch.Tensor, list[WholeView]]:
    """(P, heads) what each patch of a joint plan shows, and the `weights` and `whole` of a `_Part`."""
    owner = [(scene, frame) for scene in scenes for frame in range(len(scene.frames))]
    known = {id(scene): _object_labels(scene) for scene in scenes}
    found, shown, weights, centres = [], [], [], []
    for view in joint.plan.views:
        scene, frame = owner[view.image]
        seen = scene.masks[:, frame, view.top : view.bottom, view.left : view.right]
        shown.append(shown_objects(seen, *view.grid).reshape(-1))
        patches = np.bincount(shown[-1] + 1)  # the background's, then each object's
        patches[0] = 1
        weights.append(patches[shown[-1] + 1] ** -0.75)
        own = known[id(scene)][frame][shown[-1]]
        if _is_whole(view, scene.size):
            high, wide = view.grid
            centres.append(_centres(scene, frame, shown[-1].reshape(view.grid)).reshape(-1))
            own[:, COLUMN["row"]] = np.repeat(np.arange(high) * PLACES // high, wide)
            own[:, COLUMN["column"]] = np.tile(np.arange(wide) * PLACES // wide, high)
        else:  # how many are alike shows in whole images only
            own[:, [COLUMN[name] for name in COUNTS]] = IGNORED
            centres.append(np.zeros(len(own), np.float32))
        found.append(own)
    grids = torch.tensor(joint.plan.grids, dtype=torch.int64).reshape(-1, 3)
    packed = ops.pack_views(grids, int((grids[:, 0] * grids[:, 1]).sum()))
    # patches of a merged view come in 2x2 order
    first = torch.repeat_interleave(packed.cu_seqlens[:-1].long(), grids[:, 0] * grids[:, 1])
    columns = torch.repeat_interleave(grids[:, 1], grids[:, 0] * grids[:, 1])
    place = first + packed.row.long() * columns + packed.column.long()
    objects, centre = np.concatenate(shown)[place.numpy()], np.concatenate(centres)[place.numpy()]
    whole = []
    for v, view in enumerate(joint.plan.views):
        scene, _ = owner[view.image]
        if _is_whole(view, scene.size):
            patches = np.arange(*packed.cu_seqlens[v : v + 2].tolist())
            whole.append(WholeView(patches, objects[patches], alike(scene, _counted(scene)), centre[patches]))
    weight = torch.from_numpy(np.concatenate(weights)).float()
    return torch.from_numpy(np.concatenate(found))[place], weight[place], whole


def _centres(scene: Scene, frame: int, shown: np.ndarray) -> np.ndarray:
    """(rows, columns) float32: how much of the centre of the object that a cell shows lies in it.

    A centre is parted among the four cells around it by its distance from theirs, as far as they show the object; where
    none does (a ring's), it lies in the nearest cell that does.
    """
    rows, columns = shown.shape
    height, width = scene.size
    row, column = np.arange(rows)[:, None], np.arange(columns)
    found = np.zeros(shown.shape, np.float32)
    for i in np.unique(shown[shown >= 0]):
        x, y = scene.facts.centres[i, frame]
        down, right = np.abs(row + 0.5 - (y + 0.5) * rows / height), np.abs(column + 0.5 - (x + 0.5) * columns / width)
        own = shown == i
        near = np.clip(1 - down, 0, None) * np.clip(1 - right, 0, None) * own
        if not near.any():
            far = np.where(own, down**2 + right**2, np.inf)
            near = (far == far.min()).astype(np.float32)
        found += near / near.sum()
    return found


def _counted(scene: Scene) -> tuple[bool, bool]:
    """Of each of LOOKS, whether it is plain of every object."""
    facts = scene.facts
    sized = all(thing.size in SIZES for thing in scene.things)
    return bool((facts.areas >= COLOR_PIXELS).all()), bool((facts.visible >= CLEAR).all()) and sized


def _object_labels(scene: Scene) -> list[np.ndarray]:
    """For each frame (objects + 1, heads) int64; the last row is that of the background."""
    colors, shapes, patterns, sizes = list(COLORS), list(SHAPES), list(PATTERNS), list(SIZES)
    things, facts = scene.things, scene.facts
    clear = facts.visible.min(axis=1) >= CLEAR
    colored, plain = _counted(scene)
    tables = []
    for frame in range(len(scene.frames)):
        table = np.full((len(things) + 1, len(HEADS)), IGNORED, np.int64)
        table[-1, 0] = len(colors)
        covers = facts.covers[frame]
        for i, thing in enumerate(things):
            table[i, 0] = colors.index(thing.color)
            if colored:
                table[i, COLUMN["same_color"]] = _alike(sum(t.color == thing.color for t in things))
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
                table[i, COLUMN["same_shape"]] = _alike(sum(t.shape == thing.shape for t in things))
        tables.append(table)
    return tables


def _alike(count: int) -> int:
    """The label of so many."""
    return count - 1 if count <= ALIKE else IGNORED


def without_budget(config: ModelConfig) -> ModelConfig:
    """The config with a pixel budget that nothing here reaches, so that labels lie on the grids they are made for."""
    return replace(config, mm_max_length=1 << 20)

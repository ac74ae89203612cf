"""A planned request -> the items that vLLM schedules, caches and hands to workers: one a mark, and PixelRefer's scene.

An item holds all that its tokens depend on: its views, among them Lite's local view of the request's first object, its
mask, its first centroids, and the pixels that its views read. So its digest tells it from every other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace

import numpy as np
import torch

from pixelrefer_fast.encoding.patches import pack_patches
from pixelrefer_fast.encoding.projector import kept_cells
from pixelrefer_fast.ops.view_patches import BLACK, resize_view
from pixelrefer_fast.planning.request import FrameSource, Request
from pixelrefer_fast.planning.views import MarkPlan, View, ViewPlan

Tensors = dict[str, torch.Tensor]
DIGEST = 16  # bytes
MARK_COLUMNS = 13  # integers that describe a mark


@dataclass(frozen=True)
class VisionItem:
    """What one run of tokens is made of.

    Attributes:
        plan: the views, and either one mark or the views of a scene; images are numbered as below.
        images: (H, W, 3) uint8 each, cut to what the views read.
        keys: of the images, equal where these are.
        start: (M, n) int64, first centroids of the mark.
        kept: (Z,) bool, which of a scene's tokens are wanted; empty for a mark.
    """

    plan: ViewPlan
    images: Sequence[np.ndarray]
    keys: tuple[bytes, ...]
    start: torch.Tensor
    kept: torch.Tensor

    @property
    def tokens(self) -> int:
        return sum(mark.tokens for mark in self.plan.marks) + int(self.kept.sum())

    def to_tensors(self) -> Tensors:
        """In host memory, for the way to a worker."""
        sizes = [image.shape[:2] for image in self.images]
        keys = np.frombuffer(b"".join(self.keys), np.int64).reshape(-1, DIGEST // 8)
        pixels = [image.reshape(-1) for image in self.images]
        marks = [_mark_row(mark) for mark in self.plan.marks]
        cells = [mark.mask_grid.reshape(-1) for mark in self.plan.marks]
        return {
            "views": self.plan.table(),
            "scene": torch.tensor(self.plan.scene, dtype=torch.int64),
            "marks": torch.tensor(marks, dtype=torch.int64).reshape(-1, MARK_COLUMNS),
            "cells": torch.cat(cells).cpu() if cells else torch.zeros(0),
            "start": self.start,
            "kept": self.kept,
            "images": torch.from_numpy(np.concatenate([np.array(sizes, np.int64).reshape(-1, 2), keys], axis=1)),
            "pixels": torch.from_numpy(
                np.require(pixels[0], None, "W") if len(pixels) == 1 else np.concatenate(pixels)
            ),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> VisionItem:
        """What `to_tensors` gave."""
        own = {name: tensor.numpy() for name, tensor in tensors.items()}
        views = [View(*row) for row in own["views"].tolist()]
        marks = [_mark_of(row, tensors["cells"]) for row in own["marks"].tolist()]
        images, first = [], 0
        for height, width in own["images"][:, :2].tolist():
            last = first + 3 * height * width
            images.append(own["pixels"][first:last].reshape(height, width, 3))
            first = last
        keys = tuple(row.tobytes() for row in own["images"][:, 2:])
        plan = ViewPlan(views, own["scene"].tolist(), marks)
        return cls(plan, images, keys, tensors["start"], tensors["kept"])


@dataclass(frozen=True)
class PlannedItems:
    """The items of several prompts, a row for each, in the order of their tokens."""

    rows: tuple[tuple[VisionItem, ...], ...]


def digest_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """Of everything in an item; its pixels count by their keys."""
    digest = hashlib.blake2b(digest_size=DIGEST)
    for name in sorted(tensors.keys() - {"pixels"}):
        array = tensors[name].numpy()
        digest.update(f"{name} {array.dtype} {array.shape};".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def items_of(request: Request, plan: ViewPlan, starts: torch.Tensor, backend: str) -> list[VisionItem]:
    """The items of a request in the order of their tokens; a mark of no token has none.

    Args:
        request: the regions and their pixels, of which each frame is read once.
        plan: its views.
        starts: (M, n) first centroids of all marks.
        backend: who cuts the patches of a video's frames, which tell what is kept of them.

    Raises:
        ValueError: a frame that cannot be read.
    """
    scene_merge = plan.views[plan.scene[0]].merge if plan.scene else 1
    # frames that are merged come resized: a mask of tokens is made of them here, and they are small then
    resized = {plan.views[v].image: plan.views[v] for v in plan.scene} if scene_merge > 1 else {}
    views = [_views_of(mark) for mark in plan.marks]
    whole = {plan.views[v].image for own in views for v in own} - {BLACK}
    if not resized:
        whole |= {plan.views[v].image for v in plan.scene}
    frames, scene_frames = {}, {}
    numbers = sorted(whole | resized.keys())
    for number, frame in zip(numbers, request.source.read(numbers), strict=True):
        if number in whole:
            frames[number] = frame
        if number in resized:
            scene_frames[number] = resize_view(frame, [*astuple(resized[number])])
    items = []
    if plan.scene:
        if resized:
            items.append(_scene_item([resized[n] for n in sorted(resized)], scene_frames, starts, backend))
        else:
            cut = _cut(plan, plan.scene, frames, {})
            kept = torch.ones(sum(plan.views[v].patches for v in plan.scene), dtype=torch.bool)
            scene = ViewPlan(cut.views, list(range(len(cut.views))))
            items.append(VisionItem(scene, cut.images, cut.keys, starts[:0], kept))
    keys: dict[int, bytes] = {}
    for number, (mark, own) in enumerate(zip(plan.marks, views, strict=True)):
        if mark.tokens:
            cut = _cut(plan, own, frames, keys)
            place = {view: i for i, view in enumerate(own)}
            moved = replace(
                mark,
                image=0,
                crop=place[mark.crop],
                global_view=None if mark.global_view is None else place[mark.global_view],
                local_view=None if mark.local_view is None else place[mark.local_view],
            )
            items.append(
                VisionItem(
                    ViewPlan(cut.views, [], [moved]), cut.images, cut.keys, starts[number : number + 1], _NOTHING_KEPT
                )
            )
    return items


_NOTHING_KEPT = torch.zeros(0, dtype=torch.bool)


@dataclass(frozen=True)
class _Cut:
    views: list[View]
    images: list[np.ndarray]
    keys: tuple[bytes, ...]


def _views_of(mark: MarkPlan) -> list[int]:
    wanted = (mark.crop, mark.global_view, mark.local_view)
    return list(dict.fromkeys(view for view in wanted if view is not None))


def _cut(plan: ViewPlan, views: Sequence[int], frames: Mapping[int, np.ndarray], whole_keys: dict[int, bytes]) -> _Cut:
    """Some views with their images numbered from 0, each cut to the box that these views read.

    Args:
        whole_keys: of images that were used as they are, which is made once for all marks of one.
    """
    own = [plan.views[v] for v in views]
    moved: list[View] = []
    images: list[np.ndarray] = []
    keys: list[bytes] = []
    boxes: dict[int, tuple[int, int, int]] = {}  # by image: its number here, and the corner of its box
    for view in own:
        if view.image != BLACK and view.image not in boxes:
            same = [other for other in own if other.image == view.image]
            top, left = min(other.top for other in same), min(other.left for other in same)
            bottom, right = max(other.bottom for other in same), max(other.right for other in same)
            frame = frames[view.image]
            part = frame[top:bottom, left:right]
            if part.shape == frame.shape:
                if view.image not in whole_keys:
                    whole_keys[view.image] = _key(frame)
                keys.append(whole_keys[view.image])
            else:
                keys.append(_key(part))
            boxes[view.image] = len(images), top, left
            images.append(np.require(part, None, ["C", "W"]))
    for view in own:
        if view.image != BLACK:
            number, top, left = boxes[view.image]
            view = replace(
                view,
                image=number,
                top=view.top - top,
                left=view.left - left,
                bottom=view.bottom - top,
                right=view.right - left,
            )
        moved.append(view)
    return _Cut(moved, images, tuple(keys))


def _scene_item(
    views: Sequence[View], frames: Mapping[int, np.ndarray], starts: torch.Tensor, backend: str
) -> VisionItem:
    """A video's whole frames, which are resized already, and which of their tokens are kept."""
    images = [np.array(frames[view.image]) for view in views]
    moved = [
        replace(view, image=i, top=0, left=0, bottom=view.final_height, right=view.final_width,
                height=view.final_height, width=view.final_width)
        for i, view in enumerate(views)
    ]  # fmt: skip
    plan = ViewPlan(moved, list(range(len(moved))))
    merge = views[0].merge
    if len(views) > 1:
        patches = pack_patches(plan, FrameSource.of_images(images), "cpu", backend)
        kept = kept_cells(patches.split([view.patches for view in moved]), merge)
    else:
        kept = torch.ones(moved[0].patches // merge**2, dtype=torch.bool)
    return VisionItem(plan, images, tuple(map(_key, images)), starts[:0], kept)


def _key(image: np.ndarray) -> bytes:
    digest = hashlib.blake2b(f"{image.shape}".encode(), digest_size=DIGEST)
    digest.update(np.ascontiguousarray(image).data)
    return digest.digest()


def _mark_row(mark: MarkPlan) -> list[int]:
    places: Iterable[int | None] = (mark.crop, mark.global_view, mark.local_view)
    return [
        mark.image, *(-1 if place is None else place for place in places), *mark.mask_grid.shape, *mark.box,
        *mark.image_size, mark.tokens,
    ]  # fmt: skip


def _mark_of(row: Sequence[int], cells: torch.Tensor) -> MarkPlan:
    image, crop, global_view, local_view, rows, columns, top, left, bottom, right, height, width, tokens = row
    return MarkPlan(
        name="region",
        image=image,
        crop=crop,
        mask_grid=cells.reshape(rows, columns),
        box=(top, left, bottom, right),
        image_size=(height, width),
        tokens=tokens,
        global_view=None if global_view < 0 else global_view,
        local_view=None if local_view < 0 else local_view,
    )

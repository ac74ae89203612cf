"""Items of any requests -> their tokens, in one packed pass of the vision side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from pixelrefer_fast.encoding.vision import VisionSide
from pixelrefer_fast.engines.items import VisionItem
from pixelrefer_fast.planning.merge import merge
from pixelrefer_fast.planning.request import FrameSource, Request

PATCHES = 1 << 16
"""Of one pass, which bounds its memory: vLLM measures that with equal items, whose views are encoded once."""


def embed_items(vision: VisionSide, items: Sequence[VisionItem]) -> list[torch.Tensor]:
    """The tokens (t, C) of each item: object tokens of a mark, or the vision tokens of a scene that are kept.

    Images that several items hold are cut once, and views that they share are encoded once. Items of more than PATCHES
    patches go through several passes.
    """
    return [tokens for some in _passes(items) for tokens in _embed(vision, some)]


def _passes(items: Sequence[VisionItem]) -> Iterator[list[VisionItem]]:
    some: list[VisionItem] = []
    total = 0
    for item in items:
        patches = item.plan.first_rows[-1]
        if some and total + patches > PATCHES:
            yield some
            some, total = [], 0
        some.append(item)
        total += patches
    if some:
        yield some


@torch.inference_mode()
def _embed(vision: VisionSide, items: Sequence[VisionItem]) -> list[torch.Tensor]:
    sources: dict[tuple[bytes, ...], FrameSource] = {}
    requests = []
    for item in items:
        source = sources.setdefault(item.keys, FrameSource.of_images(item.images))
        requests.append(Request(source, (), (), item.plan.scene))
    joint = merge(requests, [item.plan for item in items])
    plan = joint.plan
    starts = torch.cat([item.start for item in items])
    on_host, starts = vision.select(plan, lambda counts: starts)
    packed, selection, starts = vision.views(plan, joint.source, on_host, starts)
    features = vision.features(packed, plan.grids, selection.reads)
    found: dict[int, torch.Tensor] = {}
    marked = [i for i, part in enumerate(joint.parts) if part.marks]
    if marked:
        sizes = [items[i].tokens for i in marked]
        found |= zip(marked, vision.object_tokens(features, selection, starts).split(sizes), strict=True)
    views = sorted({view for part in joint.parts for view in part.scene})
    if views:
        rows = selection.first_rows
        frames = [(rows[v], rows[v + 1], plan.views[v].merge) for v in views]
        projected = dict(zip(views, vision.vision_tokens(features, frames), strict=True))
        for i, part in enumerate(joint.parts):
            if part.scene:
                # the processor has decided what is kept: the prompt is as long as that
                tokens = torch.cat([projected[v] for v in part.scene])
                found[i] = tokens[items[i].kept.to(tokens.device)]
    return [found[i] for i in range(len(items))]

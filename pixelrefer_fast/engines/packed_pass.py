"""Items of any requests -> their tokens, in one packed pass of the vision side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from pixelrefer_fast.encoding.captured_passes import CapturedPasses
from pixelrefer_fast.encoding.vision import VisionSide, result_of
from pixelrefer_fast.engines.items import VisionItem
from pixelrefer_fast.planning.merge import merge
from pixelrefer_fast.planning.request import FrameSource, Request

PATCHES = 1 << 16
"""Of one pass, which bounds its memory: vLLM measures that with equal items, whose views are encoded once."""


def embed_items(
    vision: VisionSide, items: Sequence[VisionItem], captured: CapturedPasses | None = None
) -> list[torch.Tensor]:
    """The tokens (t, C) of each item: object tokens of a mark, or the vision tokens of a scene that are kept.

    Images that several items hold are cut once, and views that they share are encoded once. Items of more than PATCHES
    patches go through several passes.

    Args:
        vision: who computes.
        items: of any requests.
        captured: passes of its that are replayed where they have room; for one caller at a time.
    """
    return [tokens for some in _passes(items) for tokens in _embed(vision, some, captured)]


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
def _embed(vision: VisionSide, items: Sequence[VisionItem], captured: CapturedPasses | None) -> list[torch.Tensor]:
    sources: dict[tuple[bytes, ...], FrameSource] = {}
    requests = []
    for item in items:
        source = sources.setdefault(item.keys, FrameSource.of_images(item.images))
        requests.append(Request(source, (), (), item.plan.scene))
    joint = merge(requests, [item.plan for item in items])
    plan, places = joint.plan.context_first()
    starts = torch.cat([item.start for item in items])
    made = result_of(vision.passes(plan, joint.source, lambda counts: starts, None, captured, lambda: None))
    marked = [i for i, part in enumerate(joint.parts) if part.marks]
    sizes = [items[i].tokens for i in marked]
    found = dict(zip(marked, made.tokens.split(sizes), strict=True))
    scenes = {i: [places[view] for view in part.scene] for i, part in enumerate(joint.parts) if part.scene}
    views = sorted({view for scene in scenes.values() for view in scene})
    if views:
        rows = made.selection.first_rows
        frames = [(rows[v], rows[v + 1], plan.views[v].merge) for v in views]
        projected = dict(zip(views, vision.vision_tokens(made.features, frames), strict=True))
        for i, scene in scenes.items():
            # the processor has decided what is kept: the prompt is as long as that
            tokens = torch.cat([projected[v] for v in scene])
            found[i] = tokens[items[i].kept.to(tokens.device)]
    return [found[i] for i in range(len(items))]

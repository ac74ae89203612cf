"""What the real planner says of a workload: views, marks, and the tokens of its prompts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from pixelrefer_fast.bench.estimate.costs import Sizes
from pixelrefer_fast.bench.estimate.workload import Workload
from pixelrefer_fast.checkpoint.config import ModelConfig
from pixelrefer_fast.decoding.decoder import SHARED
from pixelrefer_fast.planning.selection import select_patches
from pixelrefer_fast.planning.views import Mark, ViewPlan, plan_views
from pixelrefer_fast.regions.boxed_mask import BoxedMask

# Tokens of text, counted with Qwen2.5's tokenizer: what stands around any question, the brackets of an object, a time
# ("Time 12.0:" and a comma), and what stands before the first of them.
TEMPLATE, BRACKETS, TIME, OPENING = 8, 2, 8, 3


def sizes_of(config: ModelConfig, workload: Workload) -> tuple[Sizes, dict[str, int]]:
    """What the planner says of a workload, and its tokens as `Estimate` has them.

    Raises:
        ValueError: as the planner, or a prompt beyond the model's context.
    """
    parts = [_image_sizes(config, workload, image) for image in range(workload.batch)]
    sizes = Sizes(
        views=sum((part.views for part in parts), ()),
        pixels=sum(part.pixels for part in parts),
        marks=sum((part.marks for part in parts), ()),
        corners=max(part.corners for part in parts),
        local=sum((part.local for part in parts), ()),
        global_=sum((part.global_ for part in parts), ()),
        tokens=sum(part.tokens for part in parts),
        scene=sum((part.scene for part in parts), ()),
        videos=sum((part.videos for part in parts), ()),
        prompts=sum((part.prompts for part in parts), ()),
        answer=workload.answer,
    )
    each = workload.objects if workload.each else 1
    tokens = {
        "patches": sizes.patches,
        "read": sum(reads for _, reads in sizes.views),
        "object": sizes.tokens,
        "vision": each * sum(_kept(part, workload.kept) for part in parts),
        "prompt": sum(prompt for prompt, _ in sizes.prompts),
        "answer": len(sizes.prompts) * workload.answer,
        "prompts": len(sizes.prompts),
    }
    return sizes, tokens


def _image_sizes(config: ModelConfig, workload: Workload, image: int) -> Sizes:
    """Of one image or video of a batch."""
    plan = plan_of(config, workload, image)
    selection = select_patches(plan)
    first, video = selection.first_rows, workload.frames is not None
    scene = tuple((plan.views[v].patches, plan.views[v].merge) for v in dict.fromkeys(plan.scene))
    several = video and len(scene) > 1
    sizes = Sizes(
        views=tuple((view.patches, first[i + 1] - first[i]) for i, view in enumerate(plan.views)),
        pixels=3 * workload.height * workload.width * len({view.image for view in plan.views if view.image >= 0}),
        marks=selection.counts,
        corners=selection.index.shape[1],
        local=selection.local_groups.sizes,
        global_=selection.global_groups.sizes,
        tokens=sum(mark.tokens for mark in plan.marks),
        scene=scene,
        videos=((len(scene), sum(patches for patches, _ in scene)),) if several else (),
        prompts=(),
        answer=workload.answer,
    )
    vision = _kept(sizes, workload.kept)
    text = _text(config, workload, len(scene)) if workload.text is None else workload.text
    per_prompt = len(plan.marks) // (workload.objects if workload.each else 1)
    prompts = [
        text + vision + sum(mark.tokens for mark in plan.marks[i : i + per_prompt])
        for i in range(0, len(plan.marks), per_prompt)
    ]
    context = config.llm["max_position_embeddings"]
    if max(prompts) >= context:
        raise ValueError(f"prompt: expected fewer than {context} tokens, got {max(prompts)}; mark or show less")
    # of questions about one image all but the first find the prefix with its vision tokens computed
    prefix = vision + OPENING + (TIME * len(scene) if video else 0) if vision and workload.shared else 0
    prefix = prefix if prefix >= SHARED else 0
    return replace(sizes, prompts=tuple((tokens, prefix if i else 0) for i, tokens in enumerate(prompts)))


def _kept(sizes: Sizes, share: float) -> int:
    """Vision tokens that are left of the whole images or frames of one image or video."""
    cells = [patches // merge**2 for patches, merge in sizes.scene]
    return cells[0] + round(share * sum(cells[1:])) if sizes.videos else sum(cells)


def plan_of(config: ModelConfig, workload: Workload, image: int = 0) -> ViewPlan:
    """The real plan of one image or video of a workload.

    Raises:
        ValueError: as the planner.
    """
    video, full = workload.frames is not None, config.kind == "full"
    if full and workload.marked > 1:
        raise ValueError(f"marked: expected 1, in which PixelRefer takes an object, got {workload.marked}")
    frames = workload.frames_marked()
    scene = workload.frames_seen() if full else []
    sizes = [(workload.height, workload.width)] * (workload.frames or 1)
    middle = (workload.frames or 1) // 2

    def marks(number: int, mask: np.ndarray) -> Iterator[Mark]:
        for frame in frames:
            moved = np.roll(mask, 2 * (frame - middle), axis=1) if workload.ellipses and video else mask
            name = f"object {number}, frame {frame}" if video else f"object {number}"
            yield Mark(frame, BoxedMask.of(moved), name)

    plan, merge = ViewPlan(), config.spatial_merge_size if video else 1
    all_marks = (marks(number, mask) for number, mask in enumerate(workload.masks(image)))
    if workload.each:
        for own in all_marks:
            plan_views(config, sizes, own, len(frames), scene, merge, into=plan)
        return plan
    together = (mark for own in all_marks for mark in own)
    return plan_views(config, sizes, together, workload.objects * len(frames), scene, merge, into=plan)


def _text(config: ModelConfig, workload: Workload, seen: int) -> int:
    """Tokens of a prompt's text, by rule."""
    objects = 1 if workload.each else workload.objects
    found = TEMPLATE + workload.question + BRACKETS * objects
    if config.kind == "full":
        return found + (TIME * seen if workload.frames is not None else 1)
    return found + (TIME * objects * workload.marked if workload.frames is not None else 0)

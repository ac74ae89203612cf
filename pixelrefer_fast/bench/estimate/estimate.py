"""What a question will cost on a machine that is not here: tokens, FLOPs, bytes, memory and time, without weights.

The real planner says which views a question needs, from sizes and masks alone; `costs` says what they cost; a
`Gpu` says how long that takes at least. `docs/estimating.md` has the assumptions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from pixelrefer_fast.bench.estimate import costs
from pixelrefer_fast.bench.estimate.costs import Machine, Sizes, Work
from pixelrefer_fast.bench.estimate.gpus import Gpu
from pixelrefer_fast.checkpoint.config import VISION_FILE, VISION_KEY, ModelConfig, VisionConfig, read_config
from pixelrefer_fast.decoding.decoder import SHARED
from pixelrefer_fast.planning.selection import select_patches
from pixelrefer_fast.planning.views import Mark, ViewPlan, plan_views

ITEMS = {"float32": 4, "bfloat16": 2, "float16": 2}
# Tokens of text, counted with Qwen2.5's tokenizer: what stands around any question, the brackets of an object, a time
# ("Time 12.0:" and a comma), and what stands before the first of them.
TEMPLATE, BRACKETS, TIME, OPENING = 8, 2, 8, 3
QUESTION = 16


@dataclass(frozen=True)
class Workload:
    """What is asked.

    Attributes:
        objects: marked in each image or video.
        frames: of each video; None for images.
        marked: frames of a video in which each object is marked, spread evenly (Lite; Full takes one).
        seen: frames of a video that Full sees whole, spread evenly; None: all.
        height, width: of images and frames, in pixels.
        box: height and width of what is marked, a filled box; None: a ninth of the height and a twelfth of the width.
        ellipses: whether the ellipses of `whole.py`'s cases are marked instead, each a little elsewhere in each frame.
        kept: share of the vision tokens that a video keeps after its first frame, whose unchanged cells are dropped.
        batch: images or videos, asked about together.
        each: whether each object has a question of its own (`describe`) or all of an image share one (`ask`).
        question: tokens of the question's own words.
        text: tokens of all text of a prompt, if they are known; None: counted from the question by rule.
        answer: tokens of each answer, its end included.
        shared: whether questions about one image find its vision tokens computed by the first of them (Full, `each`).
        seed: of the places of the first image's objects; the next one has the next.
    """

    objects: int = 1
    frames: int | None = None
    marked: int = 1
    seen: int | None = None
    height: int = 1080
    width: int = 1920
    box: tuple[int, int] | None = None
    ellipses: bool = False
    kept: float = 1.0
    batch: int = 1
    each: bool = False
    question: int = QUESTION
    text: int | None = None
    answer: int = 64
    shared: bool = True
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("objects", "marked", "height", "width", "batch", "answer"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("frames", "seen"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if self.frames is None and (self.marked > 1 or self.seen is not None):
            raise ValueError("frames: expected a number of frames with what is marked or seen in several, got none")
        for name in ("marked", "seen"):
            value = getattr(self, name)
            if self.frames is not None and value is not None and value > self.frames:
                raise ValueError(f"{name}: expected at most {self.frames}, the video's frames, got {value}")
        tall, wide = self.marked_box
        if not (1 <= tall <= self.height and 1 <= wide <= self.width):
            raise ValueError(f"box: expected one within {self.height}x{self.width} pixels, got {tall}x{wide}")
        if not 0 <= self.kept <= 1:
            raise ValueError(f"kept: expected a share from 0 to 1, got {self.kept}")

    @property
    def marked_box(self) -> tuple[int, int]:
        """Height and width of what is marked."""
        return self.box or (max(1, self.height // 9), max(1, self.width // 12))

    def boxes(self, image: int = 0) -> list[list[int]]:
        """(x0, y0, x1, y1) of each object of an image: the places of `workloads.boxes`."""
        random, (tall, wide) = np.random.default_rng(self.seed + image), self.marked_box
        tops = random.integers(0, max(1, self.height - tall), self.objects).tolist()
        lefts = random.integers(0, max(1, self.width - wide), self.objects).tolist()
        return [[x, y, x + wide, y + tall] for x, y in zip(lefts, tops, strict=True)]

    def masks(self, image: int = 0) -> Iterator[np.ndarray]:
        """(H, W) uint8 of each object of an image, in the middle of a video."""
        if self.ellipses:
            from pixelrefer_fast.bench.run.whole import ellipses

            yield from ellipses(self.objects, self.height, self.width, image)
            return
        for x0, y0, x1, y1 in self.boxes(image):
            mask = np.zeros((self.height, self.width), np.uint8)
            mask[y0:y1, x0:x1] = 1
            yield mask

    def frames_marked(self) -> list[int]:
        """In which each object is marked; the image itself is 0."""
        return [(self.frames or 1) // 2] if self.marked == 1 else _spread(self.frames or 1, self.marked)

    def frames_seen(self) -> list[int]:
        """Those that Full sees whole."""
        return _spread(self.frames or 1, self.seen or self.frames or 1)


@dataclass(frozen=True)
class Stage:
    """One stage of a question.

    Attributes:
        name: as in `bench.stages`.
        flops, moved, launches: of all requests together.
        seconds: at least, on the GPU that was asked about; None without one.
        limit: what takes the longest of it: "matrix" or "memory" rate, "launches" (gaps between them on a device),
            "host" (which issues them) or "upload" of pixels; None without a GPU.
        works: the launches.
    """

    name: str
    flops: int
    moved: int
    launches: int
    seconds: float | None
    limit: str | None
    works: tuple[Work, ...]


@dataclass(frozen=True)
class Estimate:
    """What was estimated.

    Attributes:
        model: as it was asked for.
        kind: "lite" or "full".
        dtype: of the weights.
        workload: what is asked.
        tokens: "patches", "read" (patches whose features are used), "object", "vision" (kept ones), "prompt", "answer"
            of all requests together, and "prompts", how many.
        stages: in order.
        paper_flops: of the LLM as the paper counts them (see `paper_flops`).
        memory: bytes, as `costs.memory` names them.
        gpu: where.
    """

    model: str
    kind: str
    dtype: str
    workload: Workload
    tokens: dict[str, int]
    stages: tuple[Stage, ...]
    paper_flops: int
    memory: dict[str, int]
    gpu: Gpu | None

    @property
    def flops(self) -> int:
        return sum(stage.flops for stage in self.stages)

    @property
    def moved(self) -> int:
        return sum(stage.moved for stage in self.stages)

    @property
    def launches(self) -> int:
        return sum(stage.launches for stage in self.stages)

    @property
    def seconds(self) -> float | None:
        return None if self.gpu is None else sum(stage.seconds or 0.0 for stage in self.stages)

    @property
    def first_token(self) -> float | None:
        """Seconds from opened media to the first token."""
        return None if self.gpu is None else sum(s.seconds or 0.0 for s in self.stages if s.name != "decode")

    @property
    def step(self) -> float | None:
        """Seconds of a decode step: of one token of all sequences that run together."""
        decode = self.stage("decode").seconds
        return None if decode is None or self.workload.answer < 2 else decode / (self.workload.answer - 1)

    @property
    def fits(self) -> bool | None:
        """Whether the memory that is needed is there."""
        return None if self.gpu is None else self.memory["peak"] <= self.gpu.memory

    def stage(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)

    def to_json(self) -> dict[str, Any]:
        gpu = None
        if self.gpu is not None:
            gpu = asdict(self.gpu) | {
                "used": {"copy": self.gpu.copy, self.dtype: self.gpu.rate(self.dtype)},
                "basis": self.gpu.basis(self.dtype),
            }
        return {
            "model": self.model,
            "kind": self.kind,
            "dtype": self.dtype,
            "workload": asdict(self.workload),
            "tokens": self.tokens,
            "stages": [asdict(stage) for stage in self.stages],
            "flops": self.flops,
            "paper_flops": self.paper_flops,
            "moved": self.moved,
            "launches": self.launches,
            "memory": self.memory,
            "gpu": gpu,
            "seconds": self.seconds,
            "first_token": self.first_token,
            "step": self.step,
            "fits": self.fits,
        }


def estimate(
    model: str | ModelConfig,
    workload: Workload | None = None,
    gpu: Gpu | None = None,
    dtype: str = "bfloat16",
    graphs: bool = False,
    **options: Any,
) -> Estimate:
    """What a question costs.

    Args:
        model: a configuration, or a name as `config_of` takes it.
        workload: what is asked; or its fields as `options`.
        gpu: where; None: no time is predicted, and the code is a GPU's.
        dtype: of the weights.
        graphs: whether encoder passes and decode steps are captured as CUDA graphs.
        options: fields of `Workload`.

    Raises:
        ValueError: naming what cannot be: a model that is not there, a workload that the planner refuses, a prompt
            beyond the model's context, a dtype that the GPU does not multiply.
    """
    config = config_of(model) if isinstance(model, str) else model
    given = Workload(**options) if workload is None else replace(workload, **options)
    if dtype not in ITEMS:
        raise ValueError(f"dtype: expected one of {', '.join(ITEMS)}, got {dtype}")
    if gpu is not None:
        gpu.rate(dtype)
    sizes, tokens = sizes_of(config, given)
    machine = Machine("cuda" if gpu is None else gpu.kind, ITEMS[dtype], graphs)
    return Estimate(
        model=model if isinstance(model, str) else config.kind,
        kind=config.kind,
        dtype=dtype,
        workload=given,
        tokens=tokens,
        stages=tuple(
            _stage(name, works, sizes, gpu, dtype, graphs)
            for name, works in costs.stages(config, sizes, machine).items()
        ),
        paper_flops=_paper_flops(config, given, tokens),
        memory=costs.memory(config, sizes, machine),
        gpu=gpu,
    )


def config_of(name: str) -> ModelConfig:
    """A model's sizes by name; no weights are read.

    Args:
        name: one of `workloads.NAMES` ("lite-2b", "full-7b", ...), "embedded:lite", "embedded:full", a checkpoint's
            folder, or a hub id, of which the configuration alone is downloaded. A checkpoint without the sizes of its
            vision encoder is taken to have the released one's.

    Raises:
        ValueError: there is no such model.
    """
    from pixelrefer_fast.bench.run import workloads
    from pixelrefer_fast.checkpoint.hub import checkpoint_folder
    from pixelrefer_fast.checks.safe_files import file_in

    if name in workloads.NAMES:
        return workloads.model_config(name)
    try:
        folder = checkpoint_folder(name, progress=False, sizes_only=True)
    except ValueError as error:
        raise ValueError(f"{error}; {', '.join(workloads.NAMES)} need no file") from None
    path, raw = read_config(folder)
    if raw.get(VISION_KEY) is None and file_in(folder, VISION_FILE) is None:
        vision = VisionConfig.from_dict({**workloads.VISION, "num_hidden_layers": workloads.LAYERS}, "released")
        return ModelConfig.from_dict(raw, vision, str(path))
    return ModelConfig.from_folder(folder, {})


def other_kind(config: ModelConfig) -> ModelConfig:
    """Full's sizes for Lite's, and the other way round."""
    return replace(config, kind="full" if config.kind == "lite" else "lite")


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
            yield Mark(frame, moved, f"object {number}, frame {frame}" if video else f"object {number}")

    plan, merge = ViewPlan(), config.spatial_merge_size if video else 1
    all_marks = (marks(number, mask) for number, mask in enumerate(workload.masks(image)))
    if workload.each:
        for own in all_marks:
            plan_views(config, sizes, own, len(frames), scene, merge, into=plan)
        return plan
    together = (mark for own in all_marks for mark in own)
    return plan_views(config, sizes, together, workload.objects * len(frames), scene, merge, into=plan)


def paper_flops(config: ModelConfig, object_tokens: int, vision_tokens: int, marks: int = 1) -> int:
    """The LLM's FLOPs as the paper counts them (equation 9), of one prompt.

    L tokens (objects' and vision's; no text) through the layers, a multiply-add being one operation:
    2 L C² + 2 L C C_kv + 2 L² C + 3 L C C_mlp for each layer. For Lite the infusion is added in the same way. Neither
    the vision encoder nor the text nor decoding is in it. The paper's own table is lower than this formula with
    Qwen2.5's sizes, by up to 1.4 times for Full and 8 times for Lite: do not set these numbers beside the table's.

    Args:
        config: the model's.
        object_tokens, vision_tokens: of the prompt.
        marks: of Lite, how many infusions there are.
    """
    llm, tokens = config.llm, object_tokens + vision_tokens
    width, inner = llm["hidden_size"], llm["intermediate_size"]
    keys = width // llm["num_attention_heads"] * llm["num_key_value_heads"]
    layer = 2 * tokens * width * (width + keys) + 2 * tokens**2 * width + 3 * tokens * width * inner
    found = llm["num_hidden_layers"] * layer
    if config.kind == "lite":
        own = config.vision.hidden_size
        for side in (config.local_view_size, config.global_view_size):
            rows = (side // 14) ** 2
            found += marks * (2 * rows * own**2) + 2 * object_tokens * own**2 + 2 * object_tokens * rows * own
    return int(found)


def _paper_flops(config: ModelConfig, workload: Workload, tokens: dict[str, int]) -> int:
    prompts, marks = tokens["prompts"], workload.marked * (1 if workload.each else workload.objects)
    return prompts * paper_flops(config, tokens["object"] // prompts, tokens["vision"] // prompts, marks)


def _text(config: ModelConfig, workload: Workload, seen: int) -> int:
    """Tokens of a prompt's text, by rule."""
    objects = 1 if workload.each else workload.objects
    found = TEMPLATE + workload.question + BRACKETS * objects
    if config.kind == "full":
        return found + (TIME * seen if workload.frames is not None else 1)
    return found + (TIME * objects * workload.marked if workload.frames is not None else 0)


def _stage(name: str, works: list[Work], sizes: Sizes, gpu: Gpu | None, dtype: str, graphs: bool) -> Stage:
    flops, moved, launches = (
        sum(work.flops * work.times for work in works),
        sum(work.moved * work.times for work in works),
        sum(work.launches * work.times for work in works),
    )
    if gpu is None:
        return Stage(name, flops, moved, launches, None, None, tuple(works))
    computing = [work.times * work.flops * (1 - work.spared) / gpu.rate(dtype) for work in works]
    moving = [work.times * work.moved / gpu.copy for work in works]
    device = sum(map(max, computing, moving)) + launches * gpu.gap
    issue = 0.0 if graphs and name in ("encoder", "decode") else launches * gpu.issue
    upload = sizes.pixels / gpu.upload if name == "views" and gpu.kind == "cuda" else 0.0
    # a CPU computes what it has issued before it issues the next; a device goes on by itself
    seconds = device + issue if gpu.kind == "cpu" else max(device + upload, issue)
    limits = {"matrix": sum(computing), "memory": sum(moving), "launches": launches * gpu.gap}
    limits |= {"host": issue, "upload": upload}
    return Stage(name, flops, moved, launches, seconds, max(limits, key=lambda k: limits[k]), tuple(works))


def _spread(count: int, some: int) -> list[int]:
    """`some` of `count` numbers, spread evenly."""
    return np.linspace(0, count - 1, some).round().astype(int).tolist()

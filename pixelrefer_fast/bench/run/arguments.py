"""The arguments of one call of each operation, by named sizes, for `benchmarks/ops/` and `run_kernel`.

Every function makes the same random values each time, never zeros, without padding. Its defaults are those of one
object of an image in PixelRefer-Lite-2B.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from pixelrefer_fast import ops
from pixelrefer_fast.bench.run.cases import Arguments, normal
from pixelrefer_fast.checkpoint.config import ModelConfig, VisionConfig
from pixelrefer_fast.checks.values import is_integer, shown
from pixelrefer_fast.ops.infuse import is_projected, plan_groups
from pixelrefer_fast.ops.rope2d import rope2d_table
from pixelrefer_fast.ops.view_patches import pack_pixels
from pixelrefer_fast.planning.views import Mark, ViewPlan, plan_views
from pixelrefer_fast.regions.boxed_mask import BoxedMask

CROP, LOCAL, GLOBAL = 150, 256, 576  # patches of an object's views
WIDTH, LLM_WIDTH, TOKENS = 1152, 1536, 32
PLACES = 64  # rows and columns of a rotary table
CELLS = (16, 17)  # rows and columns of an object's mask
VIEWS = ((16, 17, 1), (14, 20, 2), (18, 32, 2))  # rows, columns, merge of an object's sequences
PROMPT_OBJECTS, PROMPT_TEXT = 16, 120  # of one prompt: objects, other tokens
MAX_LENGTH = 16384  # the pixel budget of the released models, in patches
Sizes = int | Sequence[int]


def add_norm(device: torch.device, dtype: torch.dtype, *, rows: int = CROP + LOCAL + GLOBAL, width: int = WIDTH) -> Any:
    draw = functools.partial(normal, device=device, dtype=dtype)
    weight, bias = draw((width,), 2) * 0.1 + 1, draw((width,), 3) * 0.1
    return draw((rows, width), 0), draw((rows, width), 1), weight, bias, 1e-6


def infuse(
    device: torch.device,
    dtype: torch.dtype,
    *,
    objects: int = 1,
    rows: Sizes = GLOBAL,
    first: Sizes | None = None,
    tokens: int = TOKENS,
    width: int = WIDTH,
    heads: int = 8,
) -> Arguments:
    """`rows` and `first`: feature rows of each object's view and where they begin; alike, they are one view."""
    starts = _each("first", CROP * objects if first is None else first, objects)
    context = list(zip(starts, _each("rows", rows, objects), strict=True))
    plan = plan_groups(torch.tensor(context))
    draw = functools.partial(normal, device=device, dtype=dtype)
    return (
        draw((objects, tokens, width), 0),
        draw((max(begin + count for begin, count in context), width), 2),
        plan.order.to(device),
        plan.groups.to(device),
        *_infusion_weights(draw, width),
        heads,
        plan.max_members,
        plan.max_rows,
        plan.first_row,
        plan.span,
        is_projected(plan, tokens, width, heads),
    )


def _infusion_weights(draw: Callable[[tuple[int, ...], int], torch.Tensor], width: int) -> list[torch.Tensor]:
    """Of one step, in the order of `ops.infuse`."""
    return [
        draw((width,), 7) * 0.1 + 1,
        draw((width,), 8) * 0.1,
        draw((3 * width, width), 3) * width**-0.5,
        draw((width,), 4) * 0.1,
        draw((width, width), 5) * width**-0.5,
        draw((width,), 6) * 0.1,
    ]


def object_pool(
    device: torch.device,
    dtype: torch.dtype,
    *,
    objects: int = 1,
    patches: Sizes = CROP,
    tokens: int = TOKENS,
    width: int = WIDTH,
    corners: int = 1,
    iterations: int = 3,
) -> Arguments:
    """`patches` of each object, in well-parted heaps: which centroid is nearest is then the same in every dtype."""
    counts = _each("patches", patches, objects)
    generator = torch.Generator().manual_seed(0)
    rows = sum(counts)
    # the corners of a patch lie in its own heap
    heaps = torch.cat([torch.arange(count) % tokens + i * tokens for i, count in enumerate(counts)])
    centres = 8 * torch.randn(len(counts) * tokens, width, generator=generator)
    features = centres[heaps].repeat(corners, 1) + torch.randn(corners * rows, width, generator=generator)
    index = torch.arange(rows)[:, None] + rows * torch.arange(corners)
    weights = torch.rand(rows, corners, generator=generator) + 0.1
    weights /= weights.sum(1, keepdim=True)
    positions = torch.rand(rows, 2, generator=generator)
    offsets = torch.tensor([0, *counts]).cumsum(0)
    starts = torch.arange(tokens).expand(len(counts), tokens)
    draw = functools.partial(normal, device=device, dtype=dtype)
    given = (x.to(device).contiguous() for x in (index, weights, positions, offsets, starts))
    parameters = (draw(shape, seed) * 0.1 for seed, shape in enumerate(((width, 2), (width,))))
    return features.to(device, dtype), *given, *parameters, iterations, max(counts)


def object_tokens(
    device: torch.device,
    dtype: torch.dtype,
    *,
    objects: int = 1,
    patches: Sizes = CROP,
    tokens: int = TOKENS,
    width: int = WIDTH,
    llm_width: int = LLM_WIDTH,
    rows: Sequence[int] = (LOCAL, GLOBAL),
    heads: int = 8,
    iterations: int = 3,
) -> Arguments:
    """Of PixelRefer-Lite: objects that share the views of their context, whose feature `rows` come first."""
    pool = object_pool(
        device, dtype, objects=objects, patches=patches, tokens=tokens, width=width, iterations=iterations
    )
    draw = functools.partial(normal, device=device, dtype=dtype)
    features = torch.cat([draw((sum(rows), width), 10), pool[0]])
    steps: list[torch.Tensor] = []
    step_sizes: list[int] = []
    for i, own in enumerate(rows):
        plan = plan_groups(torch.tensor([[sum(rows[:i]), own]]).expand(objects, 2))
        steps += [plan.order.to(device), plan.groups.to(device), *_infusion_weights(draw, width)]
        projected = is_projected(plan, tokens, width, heads)
        step_sizes += [plan.max_members, plan.max_rows, plan.first_row, plan.span, int(projected)]
    projection = [
        draw((llm_width, width), 11) * width**-0.5,
        draw((llm_width,), 12) * 0.1,
        draw((llm_width, llm_width), 13) * llm_width**-0.5,
        draw((llm_width,), 14) * 0.1,
    ]
    return features, pool[1] + sum(rows), *pool[2:8], steps, step_sizes, projection, *pool[8:], heads, None


def pack_masks(
    device: torch.device, dtype: torch.dtype, *, objects: int = 1, height: int = 1080, width: int = 1920
) -> Arguments:
    """A box of random pixels in each mask."""
    masks = torch.zeros(objects, height, width, dtype=torch.bool)
    inside = masks[:, height // 4 : height // 2 + 1, width // 4 : width // 2 + 1]
    inside.copy_(torch.rand(inside.shape, generator=torch.Generator().manual_seed(0)) < 0.8)
    return masks.to(device), torch.full((objects,), 0.5, device=device)


def mask_grids(device: torch.device, dtype: torch.dtype, *, objects: int = 1) -> Arguments:
    """Masks of 300 by 320 pixels in crops with 28 more on each side."""
    (rows, columns), (height, width) = CELLS, (300, 320)
    size = height * width
    table = [
        (i * rows * columns, i * size, width, 28, 28, height, width, 0, 0, height + 56, width + 56, rows, columns, 0, 0)
        for i in range(objects)
    ]
    bits = torch.randint(256, (objects * size // 8,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return bits.to(device), torch.tensor(table).to(device), objects * rows * columns


def place_patches(device: torch.device, dtype: torch.dtype, *, objects: int = 1) -> Arguments:
    """What `pack_objects` gives, for crops of the masks' own grids."""
    rows, columns = CELLS
    packed = ops.pack_objects(*pack_objects(torch.device("cpu"), dtype, objects=objects), backend="torch")
    size = rows * columns
    table = [(i * size, rows, columns, rows, columns, 100, 80, 324, 318, 1080, 1920) for i in range(objects)]
    tensors = [packed.row, packed.column, packed.offsets, torch.tensor(table)]
    return *(t.to(device) for t in tensors), 1, objects * size


def pack_objects(device: torch.device, dtype: torch.dtype, *, objects: int = 1) -> Arguments:
    """About half of each object's cells are selected."""
    rows, columns = CELLS
    masks = torch.rand(objects * rows * columns, generator=torch.Generator().manual_seed(0)) - 0.5
    shapes = torch.tensor([[rows, columns]] * objects)
    return masks.to(device), shapes.to(device), int((masks > 0).sum())


def pack_views(device: torch.device, dtype: torch.dtype, *, objects: int = 1) -> Arguments:
    patches = sum(rows * columns for rows, columns, _ in VIEWS)
    return torch.tensor(VIEWS * objects).to(device), objects * patches


def paged_attention(
    device: torch.device,
    dtype: torch.dtype,
    *,
    sequences: int = 1,
    lengths: Sizes = 100,
    heads: int = 12,
    groups: int = 2,
    head: int = 128,
    size: int = 64,
) -> Arguments:
    """`lengths` of the sequences in tokens, `size` of a block; `groups` heads of keys and values."""
    held = _each("lengths", lengths, sequences)
    needed = [-(-n // size) for n in held]
    qkv = normal((len(held), heads + 2 * groups, head), 0, device, dtype)
    cos, sin = normal((2, len(held), head // 2), 3, device, dtype)
    turns = torch.stack([torch.cat([cos, cos], 1), torch.cat([-sin, sin], 1)], 1)
    keys, values = (normal((sum(needed) + 1, size, groups, head), seed, device, dtype) for seed in (1, 2))
    table = torch.zeros(len(held), max(needed), dtype=torch.int32)
    for i, count in enumerate(needed):
        table[i, :count] = torch.arange(count) + 1 + sum(needed[:i])
    rows = torch.tensor([(1 + sum(needed[:i])) * size + n - 1 for i, n in enumerate(held)])
    arrivals = torch.zeros(len(held) * groups, dtype=torch.int32, device=device)
    counts = torch.tensor(held, dtype=torch.int32, device=device)
    return qkv, turns, rows.to(device), keys, values, table.to(device), counts, arrivals


def rope2d(
    device: torch.device,
    dtype: torch.dtype,
    *,
    patches: int = CROP + LOCAL + GLOBAL,
    heads: int = 16,
    head: int = 72,
) -> Arguments:
    qkv = normal((patches, 3, heads, head), 0, device, dtype)
    bias = normal((3, heads, head), 1, device, dtype)
    place = torch.arange(patches, dtype=torch.int32, device=device)
    return qkv, bias, place // PLACES % PLACES, place % PLACES, *rope2d_table(PLACES, head, device)


def best_token(
    device: torch.device, dtype: torch.dtype, *, rows: int = 1, vocabulary: int = 151936, said: int = 100
) -> Arguments:
    """`said`: tokens of each row that are less likely, all of them different."""
    count = min(said, vocabulary)
    tokens = torch.arange(count).expand(rows, -1).contiguous()
    counts, least = torch.full((rows,), count), torch.zeros(rows, dtype=torch.int64)
    penalties = [torch.full((rows,), value, device=device) for value in (1.1, 0.0, 0.0)]
    logits = normal((rows, vocabulary), 0, device, dtype)
    arrivals = torch.zeros(rows, dtype=torch.int32, device=device)
    state = counts.to(device), tokens.to(device), *penalties
    return logits, *state, None, None, None, least.to(device), arrivals


def swiglu(
    device: torch.device, dtype: torch.dtype, *, rows: int = 1, width: int = LLM_WIDTH, inner: int = 8960
) -> Arguments:
    """`rows` of a step, `inner` the width of the MLP."""
    weight = normal((2 * inner, width), 2, device, dtype) * width**-0.5
    return normal((rows, width), 0, device, dtype), normal((width,), 1, device, dtype), 1e-6, weight


def norm_linear(
    device: torch.device, dtype: torch.dtype, *, rows: int = 1, width: int = LLM_WIDTH, made: int = 2048
) -> Arguments:
    """`rows` of a step, `made` the width of queries, keys and values together."""
    weight = normal((made, width), 2, device, dtype) * width**-0.5
    x, norm, bias = (normal(shape, n, device, dtype) for n, shape in enumerate(((rows, width), (width,), (made,))))
    return x, norm, 1e-6, weight, bias


def linear_gelu(
    device: torch.device,
    dtype: torch.dtype,
    *,
    rows: int = CROP + LOCAL + GLOBAL,
    width: int = WIDTH,
    inner: int = 4304,
) -> Arguments:
    """`rows` of a pass of the encoder, `inner` the width of its MLP."""
    weight = normal((inner, width), 2, device, dtype) * width**-0.5
    return normal((rows, width), 0, device, dtype), weight, normal((inner,), 1, device, dtype)


def scatter_tokens(
    device: torch.device, dtype: torch.dtype, *, objects: int = 1, tokens: int = TOKENS, width: int = LLM_WIDTH
) -> Arguments:
    """Prompts of 16 objects at most, whose text comes first."""
    length = objects * tokens + -(-objects // PROMPT_OBJECTS) * PROMPT_TEXT
    place = torch.arange(objects * tokens)
    slots = place + PROMPT_TEXT * (1 + place // (PROMPT_OBJECTS * tokens))
    embeds = normal((length, width), 0, device, dtype)
    return embeds, normal((objects * tokens, width), 1, device, dtype), slots.to(device)


def varlen_attention(
    device: torch.device,
    dtype: torch.dtype,
    *,
    keys: Sizes = (CROP, LOCAL, GLOBAL),
    queries: Sizes | None = None,
    heads: int = 16,
    groups: int | None = None,
    head: int = 72,
    causal: int = 0,
) -> Arguments:
    """`keys` and `queries` (as many unless given) of each sequence; `causal`: 1 for the LLM's prompts.

    With as many heads of keys as of queries (`groups`) they are parts of one product, as in the encoder.
    """
    long = [keys] if isinstance(keys, int) else list(keys)
    asked = long if queries is None else _each("queries", queries, len(long))
    groups = heads if groups is None else groups
    if groups == heads:
        q, k, v = normal((sum(long), 3, heads, head), 0, device, dtype).unbind(1)
        q = q if asked == long else q[: sum(asked)].contiguous()
    else:
        q = normal((sum(asked), heads, head), 0, device, dtype)
        k, v = (normal((sum(long), groups, head), seed, device, dtype) for seed in (1, 2))
    offsets = [torch.tensor([0, *x]).cumsum(0, dtype=torch.int32).to(device) for x in (asked, long)]
    return q, k, v, *offsets, max(asked), max(long), bool(causal)


def view_patches(
    device: torch.device,
    dtype: torch.dtype,
    *,
    kind: str = "lite",
    objects: int = 1,
    height: int = 480,
    width: int = 640,
    frames: int = 1,
) -> Arguments:
    """The views that a request of this `kind` of model gets, as `view_plan` has them."""
    rng = np.random.default_rng(1)
    pixels, images = pack_pixels([rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(frames)])
    plan = view_plan(kind, objects, (height, width), frames)
    first = plan.first_rows
    return (*(t.to(device) for t in (pixels, images, plan.table(), torch.tensor(first))), first[-1])


def view_plan(kind: str, objects: int, size: tuple[int, int], frames: int) -> ViewPlan:
    """Of boxes of all sizes from an eighth to a half of the frame's sides."""
    if kind not in ("lite", "full"):
        raise ValueError(f"kind: expected lite or full, got {kind!r}")
    config = ModelConfig(
        "full" if kind == "full" else "lite", VisionConfig(WIDTH, 27, 16, 4304), {}, TOKENS, MAX_LENGTH, 2, {}
    )
    rng = np.random.default_rng(0)
    marks = []
    for i in range(objects):
        height, width = (int(rng.integers(side // 8, side // 2)) for side in size)
        top, left = (int(rng.integers(0, side - own)) for side, own in zip(size, (height, width), strict=True))
        mask = BoxedMask(*size, top, left, np.ones((height, width), bool))
        marks.append(Mark(i % frames, mask, f"object {i}"))
    scene = range(frames) if kind == "full" else []
    return plan_views(config, [size] * frames, marks, objects, scene=scene, scene_merge=2 if frames > 1 else 1)


MAKERS: dict[str, Callable[..., Arguments]] = {
    maker.__name__: maker
    for maker in (
        add_norm,
        best_token,
        infuse,
        linear_gelu,
        mask_grids,
        norm_linear,
        object_pool,
        object_tokens,
        pack_masks,
        pack_objects,
        pack_views,
        paged_attention,
        place_patches,
        rope2d,
        scatter_tokens,
        swiglu,
        varlen_attention,
        view_patches,
    )
}


def sizes_of(op: str) -> dict[str, Any]:
    """The named sizes of an operation with their defaults."""
    parameters = inspect.signature(MAKERS[op]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def make(op: str, device: torch.device, dtype: torch.dtype, sizes: dict[str, Any]) -> Arguments:
    """Arguments of `op` at these sizes, the others as they are by default.

    Raises:
        ValueError: an operation or a size that is not known, or a size that is not positive.
    """
    if op not in MAKERS:
        raise ValueError(f"operation: expected one of {', '.join(MAKERS)}, got {op!r}")
    known = sizes_of(op)
    for name, value in sizes.items():
        if name not in known:
            raise ValueError(f"{op}: expected sizes out of {', '.join(known)}, got {name!r}")
        if isinstance(known[name], str) != isinstance(value, str):
            raise ValueError(f"{op}: {name}: expected a value like {shown(known[name])}, got {shown(value)}")
        numbers = [] if isinstance(value, str) else [value] if isinstance(value, int) else list(value)
        least = 0 if name in ("first", "causal") else 1
        if not all(is_integer(n) and n >= least for n in numbers) or (numbers == [] and not isinstance(value, str)):
            raise ValueError(f"{op}: {name}: expected integers of at least {least}, got {shown(value)}")
    return MAKERS[op](device, dtype, **sizes)


def _each(name: str, value: Sizes, count: int) -> list[int]:
    """One number for each of `count` things."""
    numbers = [value] * count if isinstance(value, int) else list(value)
    if len(numbers) != count:
        raise ValueError(f"{name}: expected one number or {count} of them, got {len(numbers)}")
    return numbers

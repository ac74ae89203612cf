"""What the stages before the LLM compute and move."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby

import torch

from pixelrefer_fast.bench.estimate.costs.work import VALUES, Machine, Sizes, Work, alike, repeated
from pixelrefer_fast.checkpoint.config import ModelConfig
from pixelrefer_fast.encoding.encoder import PASS_PATCHES
from pixelrefer_fast.encoding.infusion import HEADS
from pixelrefer_fast.encoding.object_tokenizer import ITERATIONS
from pixelrefer_fast.ops.infuse import BYTES, Groups, folded_work, is_projected, projected_work
from pixelrefer_fast.ops.object_pool import TILE


def views(sizes: Sizes, machine: Machine) -> list[Work]:
    """Cutting, resizing and normalising: NumPy, OpenCV and Pillow on a CPU, one launch on a device."""
    work = Work("view_patches", 0, sizes.pixels + 4 * VALUES * sizes.patches)
    return [work, Work("tables", 0, 0, 2)] if machine.kernels else [work]


def passes(views: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """The views of each pass of the encoder, which takes a limited number of patches."""
    part: list[tuple[int, int]] = []
    for view in views:
        if part and sum(patches for patches, _ in part) + view[0] > PASS_PATCHES:
            yield part
            part = []
        part.append(view)
    if part:
        yield part


def encoder(config: ModelConfig, sizes: Sizes, machine: Machine) -> list[Work]:
    works: list[Work] = []
    for part, times in alike(passes(sizes.views)):
        works += [repeated(work, times) for work in _encoder_pass(config, part, machine)]
    return works


def _encoder_pass(config: ModelConfig, part: Sequence[tuple[int, int]], machine: Machine) -> list[Work]:
    vision, item = config.vision, machine.item
    width, inner, layers = vision.hidden_size, vision.intermediate_size, vision.num_layers
    rows, read = sum(patches for patches, _ in part), sum(reads for _, reads in part)
    partial = read < rows
    works = []
    if machine.kernels:
        works.append(Work("upload", 0, 0))
        if item != 4:
            works.append(Work("patches, cast", 0, (4 + item) * rows * VALUES))
    else:
        works.append(Work("tables", 0, 8 * rows, 1, 21))
    works += [
        machine.linear("patch embedding", rows, VALUES, width),
        machine.pointwise("norm", rows * width, 2),
        machine.linear("qkv", rows, width, 3 * width, bias=False, times=layers),
        # as the kernel declares it: qkv in and out; the definition goes over parts of it in 24 operations
        Work("rope2d", 9 * rows * width, 6 * item * rows * width + 8 * rows, layers)
        if machine.kernels
        else machine.pointwise("rope2d", rows * width, 23.4, 24, layers),
    ]
    for last in (False, True):
        times = 1 if last else layers - 1
        queries = read if last and partial else rows
        if last and partial:
            works.append(machine.pointwise("rows that are read", queries * width, 2, 1, 2))
        pairs = sum((reads if last and partial else patches) * patches for patches, reads in part)
        runs = len(list(groupby((patches, reads if last and partial else patches) for patches, reads in part)))
        attention = item * width * 2 * (queries + rows)
        if machine.kernels:
            works.append(Work("varlen_attention", 4 * pairs * width, attention, times))
        else:
            together = machine.pointwise("varlen_attention, join", queries * width, 2, 1, times)
            works += [Work("varlen_attention", 4 * pairs * width, attention, times, runs), together]
        works += [
            machine.linear("out", queries, width, width, times=times),
            machine.linear("linear_gelu", queries, width, inner, times=times),
            machine.linear("fc2", queries, inner, width, times=times),
            _add_norm(queries, width, machine, 2 * times),
        ]
        if not machine.kernels:  # elsewhere it is the end of the product
            works.append(machine.pointwise("gelu", queries * inner, 2, times=times))
    return works


def _add_norm(rows: int, width: int, machine: Machine, times: int = 1, norm: bool = True) -> Work:
    if machine.kernels:
        moved = machine.item * width * (rows * (4 if norm else 3) + 2 * norm)
        return Work("add_norm", (9 if norm else 1) * rows * width, moved, times)
    return machine.pointwise("add_norm", rows * width, 5 if norm else 3, 2 if norm else 1, times)


def pooling(config: ModelConfig, sizes: Sizes, machine: Machine) -> list[Work]:
    """`object_pool`: the kernels work with inner products of patches, the definition with their distances."""
    width, item, n, corners = config.vision.hidden_size, machine.item, config.mask_num, sizes.corners
    iterations = ITERATIONS[config.kind]
    selected, marks = sum(sizes.marks), len(sizes.marks)
    pooled = item * marks * n * width
    if machine.kernels:
        most = max((0, *sizes.marks))
        rows = min(selected, marks * most)
        inner = rows * (most + 1) * width if most > n else 0
        cluster = 2 * iterations * rows * most * n if most > n else 0
        described = rows * (corners * 12 + 8) + item * rows * corners * width if most > n else 0
        works = [Work("object_pool.pool", rows * width, pooled)]
        if most > TILE:
            works.insert(0, Work("object_pool.cluster", cluster, 8 * marks * n))
            works.insert(0, Work("object_pool.gram", inner, described))
        else:
            works.insert(0, Work("object_pool.cluster_tile", inner + cluster, 8 * marks * n + described))
        return works
    gathered = 2 * corners + (0 if corners == 1 else 4 * corners)
    works = [
        machine.pointwise("object_pool, features", selected * width, gathered, 3 if corners == 1 else 7),
        machine.linear("object_pool, position", selected, 2, width),
        machine.pointwise("object_pool, sum", selected * width, 3),
        Work("object_pool, result", 0, pooled, 1, 2),
    ]
    for count in sizes.marks:
        if count <= n:
            works.append(machine.pointwise("object_pool, copy", count * width, 2))
            continue
        # distances in float64, means in float32
        works.append(Work("object_pool, wide", 0, 12 * count * width, 1, 7))
        moved = (36 * count + 68 * n) * width + 100 * count * n
        works.append(Work("k-means", 4 * count * width * n, moved, iterations, 30))
    return works


def infusion(config: ModelConfig, sizes: Sizes, machine: Machine) -> list[Work]:
    """Two steps of cross-attention, each with keys and values projected or with their weights folded."""
    if config.kind != "lite":
        return []
    width, item, n = config.vision.hidden_size, machine.item, config.mask_num
    rows = len(sizes.marks) * n
    works = []
    for groups in (sizes.local, sizes.global_):
        # the rows of a step's views lie together, so that no others are between them
        span = sum(length for _, length in groups)
        none = torch.empty(0)
        projected = is_projected(Groups(none, none, 0, 0, 0, span, tuple(groups)), n, width, HEADS)
        if machine.kernels:
            work = projected_work if projected else folded_work
            costs = work([(members * n, length) for members, length in groups], span, width, HEADS)
            works += [Work("infuse", cost.flops, cost.moved * item // BYTES) for cost in costs]
            continue
        works += [
            machine.pointwise("norm", rows * width, 2),
            machine.linear("query", rows, width, width),
            *_attend(groups, projected, width, n, machine),
            machine.linear("out", rows, width, width),
            machine.pointwise("sum", rows * width, 3),
        ]
    return works


def _attend(groups: Sequence[tuple[int, int]], projected: bool, width: int, n: int, machine: Machine) -> Iterator[Work]:
    """The definition's attention, a group at a time."""
    item = machine.item
    for (members, length), times in Counter(groups).items():
        queries = members * n
        yield machine.pointwise("infuse, rows", queries * width, 4, 2, times)
        if projected:
            yield machine.linear("key and value", length, width, width, bias=False, times=2 * times)
            moved = item * width * 2 * (queries + length)
            yield Work("attention", 4 * queries * length * width, moved, times)
        else:
            weight = item * (width * width + queries * width * (1 + HEADS))
            yield Work("folded weight", 2 * queries * width * width, weight, 2 * times)
            scores = item * HEADS * queries * length
            shared = item * (HEADS * queries + length) * width
            yield Work("attention", 2 * HEADS * queries * length * width, shared + scores, 2 * times)
            yield Work("softmax", 0, 4 * scores, times, 3)


def projector(config: ModelConfig, sizes: Sizes, machine: Machine) -> list[Work]:
    """Object tokens, and in Full the features of whole images and frames, to the LLM's width."""
    width, out = config.vision.hidden_size, config.hidden_size
    works = list(_two_layers("object tokens", sizes.tokens, width, out, machine))
    if config.kind == "full":
        works.append(machine.pointwise("object tokens, packed", sizes.tokens * width, 2, 9))
    for merge in sorted({merge for _, merge in sizes.scene}):
        patches = sum(own for own, of in sizes.scene if of == merge)
        works.append(machine.pointwise("whole features", patches * width, 2))
        if merge > 1:
            works.append(machine.pointwise("halving", patches * width, 1 + merge**-2))
        works += _two_layers("vision tokens", patches // merge**2, width, out, machine)
    if sizes.scene:
        works.append(machine.pointwise("vision tokens, joined", sizes.vision_tokens * out, 2))
    for frames, patches in sizes.videos:
        # normalised patches, float32, of each frame and the one before it
        works.append(Work("kept cells", 0, 6 * 4 * VALUES * patches // frames, frames - 1, 9))
    if sizes.videos:
        works.append(machine.pointwise("vision tokens, kept", sizes.vision_tokens * out, 2))
    return works


def _two_layers(what: str, rows: int, width: int, out: int, machine: Machine) -> Iterator[Work]:
    yield machine.linear(what, rows, width, out)
    yield machine.pointwise("gelu", rows * out, 2)
    yield machine.linear(what, rows, out, out)

"""k-means of objects too large for a matrix of inner products: explicit centroids, spread over many programs."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from pixelrefer_fast.kernels._cluster_tile import TIE_FLOAT32, TIE_FLOAT64
from pixelrefer_fast.kernels._launch import configuration, launch
from pixelrefer_fast.kernels._sizes import cdiv
from pixelrefer_fast.kernels._tokens import bounds, tokens


@triton.jit(do_not_specialize=["capacity", "most", "upto"])
def seed(
    features,  # (F, D) features' dtype
    index,  # (S, K) int64
    weights,  # (S, K) float32
    positions,  # (S, 2) float32
    offsets,  # (M + 1,) int64
    starts,  # (M, n) int64
    pos_weight,  # (D, 2) features' dtype
    pos_bias,  # (D,) features' dtype
    centroids,  # out: (M, n, D) float32, float64 for float32 features
    pooled,  # out: (M, n, D) features' dtype
    capacity,  # S
    most,  # largest object
    upto,  # objects of more patches are clustered here
    STRIDE: tl.constexpr,  # of features' rows
    CORNERS: tl.constexpr,  # K
    WIDTH: tl.constexpr,  # D
    CLUSTERS: tl.constexpr,  # n
    BLOCK_CLUSTERS: tl.constexpr,  # n, rounded up to a power of two of at least 16
    BLOCK_WIDTH: tl.constexpr,
):
    """The first centroids, BLOCK_WIDTH of their width a program: tokens, or zero where a start is no patch."""
    item = tl.program_id(0).to(tl.int64)
    first, count = bounds(offsets, item, capacity, most)
    if count <= upto:
        return
    j = tl.arange(0, BLOCK_CLUSTERS)  # [n]
    d = tl.program_id(1) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)  # [C]
    begun = tl.load(starts + item * CLUSTERS + j, mask=j < CLUSTERS, other=-1)
    inside = (begun >= 0) & (begun < count)
    token = tokens(
        features, index, weights, positions, pos_weight, pos_bias, first + begun, inside, d, STRIDE, CORNERS, WIDTH
    )  # [n, C]
    at = (item * CLUSTERS + j)[:, None] * WIDTH + d[None, :]
    here = (j < CLUSTERS)[:, None] & (d < WIDTH)[None, :]
    tl.store(centroids + at, token.to(centroids.dtype.element_ty), mask=here)
    tl.store(pooled + at, token, mask=here)


@triton.jit(do_not_specialize=["capacity", "most", "upto"])
def assign(
    features,  # (F, D) features' dtype
    index,  # (S, K) int64
    weights,  # (S, K) float32
    positions,  # (S, 2) float32
    offsets,  # (M + 1,) int64
    pos_weight,  # (D, 2) features' dtype
    pos_bias,  # (D,) features' dtype
    centroids,  # (M, n, D) float32, float64 for float32 features
    labels,  # out: (S,) int32: nearest centroid of each token
    capacity,  # S
    most,  # largest object
    upto,  # objects of more patches are clustered here
    STRIDE: tl.constexpr,  # of features' rows
    CORNERS: tl.constexpr,  # K
    WIDTH: tl.constexpr,  # D
    CLUSTERS: tl.constexpr,  # n
    BLOCK_CLUSTERS: tl.constexpr,  # n, rounded up to a power of two of at least 16
    BLOCK_ROWS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    """The nearest centroid of BLOCK_ROWS tokens of one object, by the rules of `cluster`."""
    item = tl.program_id(0).to(tl.int64)
    first, count = bounds(offsets, item, capacity, most)
    if (count <= upto) | (tl.program_id(1) * BLOCK_ROWS >= count):
        return
    kind: tl.constexpr = centroids.dtype.element_ty
    i = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)  # [R]
    j = tl.arange(0, BLOCK_CLUSTERS)  # [n]
    inside = i < count
    total = tl.zeros([BLOCK_ROWS, BLOCK_CLUSTERS], kind)  # inner products with the centroids
    # summed after the loop: a sum across lanes whose first products are fused is another one in each of them
    lengths = tl.zeros([BLOCK_ROWS, BLOCK_WIDTH], kind)
    squares = tl.zeros([BLOCK_CLUSTERS, BLOCK_WIDTH], kind)
    for start in range(0, WIDTH, BLOCK_WIDTH):
        d = start + tl.arange(0, BLOCK_WIDTH)  # [C]
        token = tokens(
            features, index, weights, positions, pos_weight, pos_bias, first + i, inside, d, STRIDE, CORNERS, WIDTH
        ).to(kind)  # [R, C]
        at = centroids + (item * CLUSTERS + j)[:, None] * WIDTH + d[None, :]
        centroid = tl.load(at, mask=(j < CLUSTERS)[:, None] & (d < WIDTH)[None, :], other=0.0)  # [n, C]
        lengths += token * token
        squares += centroid * centroid
        if kind == tl.float64:
            total = tl.dot(token, tl.trans(centroid), total, input_precision="ieee", out_dtype=kind)
        else:
            # 16-bit tokens are exact in TF32; a centroid's first eleven bits and what is left of it are two products
            high = (centroid.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
            total = tl.dot(token, tl.trans(high), total, input_precision="tf32")
            total = tl.dot(token, tl.trans(centroid - high), total, input_precision="tf32")
    length, norms = tl.sum(lengths, 1), tl.sum(squares, 1)  # |x|², |c|²
    # |x - c|² without |x|², which is the same for every centroid
    distance = tl.where((j < CLUSTERS)[None, :], norms[None, :] - 2 * total, float("inf"))
    # spread over the rows first: Triton 3.6 cannot reduce a vector that a product of sm_100 has made
    furthest = tl.max(tl.broadcast_to(norms[None, :], [BLOCK_ROWS, BLOCK_CLUSTERS]), 1)
    near = tl.min(distance, 1) + (TIE_FLOAT64 if kind == tl.float64 else TIE_FLOAT32) * (furthest + length)
    label = tl.min(tl.where(distance <= near[:, None], j[None, :], BLOCK_CLUSTERS), 1)  # [R]
    label = tl.where(label < BLOCK_CLUSTERS, label, 0)  # of a token that is not finite
    tl.store(labels + first + i, label, mask=inside)


@triton.jit(do_not_specialize=["capacity", "most", "upto"])
def means(
    features,  # (F, D) features' dtype
    index,  # (S, K) int64
    weights,  # (S, K) float32
    positions,  # (S, 2) float32
    offsets,  # (M + 1,) int64
    labels,  # (S,) int32, of `assign`
    pos_weight,  # (D, 2) features' dtype
    pos_bias,  # (D,) features' dtype
    centroids,  # out: (M, n, D) float32, float64 for float32 features
    pooled,  # out: (M, n, D) features' dtype
    capacity,  # S
    most,  # largest object
    upto,  # objects of more patches are clustered here
    STRIDE: tl.constexpr,  # of features' rows
    CORNERS: tl.constexpr,  # K
    WIDTH: tl.constexpr,  # D
    CLUSTERS: tl.constexpr,  # n
    BLOCK_ROWS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    """A cluster's new centroid, BLOCK_WIDTH of its width a program; an empty cluster keeps the one it has.

    The cluster's tokens are picked out of BLOCK_ROWS at a time and added BLOCK_TOKENS at a time, as in `pool`.
    """
    item = tl.program_id(0).to(tl.int64)
    j = tl.program_id(1)
    first, count = bounds(offsets, item, capacity, most)
    if count <= upto:
        return
    kind: tl.constexpr = centroids.dtype.element_ty
    d = tl.program_id(2) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)  # [C]
    total = tl.zeros([BLOCK_WIDTH], kind)
    size = 0
    for start in range(0, count, BLOCK_ROWS):
        i = start + tl.arange(0, BLOCK_ROWS)  # [R]
        own = (tl.load(labels + first + i, mask=i < count, other=-1) == j).to(tl.int32)
        place = tl.where(own == 1, tl.cumsum(own, 0) - 1, -1)
        found = tl.sum(own, 0)
        for taken in range(0, found, BLOCK_TOKENS):
            wanted = taken + tl.arange(0, BLOCK_TOKENS)  # [T]
            rank = tl.sum(tl.where(place[:, None] == wanted[None, :], i[:, None], 0), 0)  # [T]
            token = tokens(
                features,
                index,
                weights,
                positions,
                pos_weight,
                pos_bias,
                first + rank,
                wanted < found,
                d,
                STRIDE,
                CORNERS,
                WIDTH,
            )  # [T, C]
            total += tl.sum(token.to(kind), 0)
        size += found
    at = (item * CLUSTERS + j) * WIDTH + d
    here = d < tl.where(size > 0, WIDTH, 0)
    mean = total / tl.maximum(size, 1).to(kind)
    tl.store(centroids + at, mean, mask=here)
    tl.store(pooled + at, mean.to(pooled.dtype.element_ty), mask=here)


def cluster_spread(
    described: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    starts: torch.Tensor,
    position: tuple[torch.Tensor, torch.Tensor],
    labels: torch.Tensor,
    pooled: torch.Tensor,
    limits: tuple[int, int, int],
    iterations: int,
    moved: int,
    constants: dict[str, int],
) -> None:
    """Centroids of the objects of more than `upto` patches, written to `pooled`; others are left alone.

    Args:
        described: features, index, weights, positions and offsets, as of `object_pool`.
        starts: (M, n) int64.
        position: weight and bias of the position term.
        labels: (S,) int32, scratch.
        pooled: (M, n, D) in the features' dtype.
        limits: capacity, most and upto of the kernels.
        iterations: of k-means.
        moved: bytes of what describes all tokens, with the features.
        constants: what all kernels of `object_pool` take, and BLOCK_CLUSTERS.
    """
    features, (objects, clusters, width) = described[0], pooled.shape
    capacity, most, _ = limits
    wide = torch.float64 if features.dtype == torch.float32 else torch.float32
    suffix = "_float32" if features.dtype == torch.float32 else ""
    centroids = torch.empty(objects, clusters, width, device=features.device, dtype=wide)
    rows = min(capacity, objects * most)
    written = pooled.numel() * (centroids.element_size() + pooled.element_size())
    name = f"object_pool.seed{suffix}"
    config = configuration(name, most, features.device)
    launch(
        seed,
        name,
        (objects, cdiv(width, config["BLOCK_WIDTH"])),
        *described,
        starts,
        *position,
        centroids,
        pooled,
        *limits,
        flops=5 * pooled.numel(),
        moved=written + pooled.numel() * features.element_size() + starts.numel() * 8,
        **constants,
        **config,
    )
    shared = {k: v for k, v in constants.items() if k != "BLOCK_CLUSTERS"}
    for _ in range(iterations):
        name = f"object_pool.assign{suffix}"
        config = configuration(name, most, features.device)
        launch(
            assign,
            name,
            (objects, cdiv(most, config["BLOCK_ROWS"])),
            *described,
            *position,
            centroids,
            labels,
            *limits,
            flops=2 * rows * clusters * width,
            moved=moved + centroids.numel() * centroids.element_size() + rows * 4,
            **constants,
            **config,
        )
        name = f"object_pool.means{suffix}"
        config = configuration(name, most, features.device)
        launch(
            means,
            name,
            (objects, clusters, cdiv(width, config["BLOCK_WIDTH"])),
            *described,
            labels,
            *position,
            centroids,
            pooled,
            *limits,
            flops=rows * width,
            moved=moved + written + rows * 4,
            **shared,
            **config,
        )

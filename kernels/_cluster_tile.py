"""k-means of objects whose inner products fit into one program's registers, and when two distances are the same."""

from __future__ import annotations

import triton
import triton.language as tl

from pixelrefer_fast.kernels._tokens import bounds, tokens

# Two distances nearer than this, relative to the terms they are made of, are the same; in float32 what a sum of 1152
# products loses in tensor cores, which cut off instead of rounding, sixteen products at a time.
TIE_FLOAT32 = tl.constexpr(2.0**-19)
TIE_FLOAT64 = tl.constexpr(1e-12)


@triton.jit(do_not_specialize=["capacity", "most", "iterations"])
def cluster_tile(
    features,  # (F, D) features' dtype
    index,  # (S, K) int64
    weights,  # (S, K) float32
    positions,  # (S, 2) float32
    offsets,  # (M + 1,) int64
    starts,  # (M, n) int64
    pos_weight,  # (D, 2) features' dtype
    pos_bias,  # (D,) features' dtype
    members,  # out: (S,) int64: bit j is set for the tokens whose mean is centroid j
    capacity,  # S
    most,  # largest object, at most BLOCK_ROWS
    iterations,
    STRIDE: tl.constexpr,  # of features' rows
    CORNERS: tl.constexpr,  # K
    WIDTH: tl.constexpr,  # D
    CLUSTERS: tl.constexpr,  # n
    BLOCK_CLUSTERS: tl.constexpr,  # n, rounded up to a power of two of at least 16
    BLOCK_ROWS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    """`gram` and `cluster` of one object of at most BLOCK_ROWS patches, in registers, by the same rules."""
    exact: tl.constexpr = features.dtype.element_ty == tl.float32
    kind: tl.constexpr = tl.float64 if exact else tl.float32
    item = tl.program_id(0).to(tl.int64)
    first, count = bounds(offsets, item, capacity, most)
    i = tl.arange(0, BLOCK_ROWS)  # [R]
    j = tl.arange(0, BLOCK_CLUSTERS)  # [n]
    inside = i < count
    clustered = count > CLUSTERS
    # one comparison: of a scalar one, spread over a block, the interpreter makes an integer, which is no mask to it
    begun = tl.load(starts + item * CLUSTERS + j, mask=j < tl.where(clustered, CLUSTERS, 0), other=-1)
    begun = tl.where(clustered, begun, j)
    own = ((begun[None, :] == i[:, None]) & inside[:, None]).to(kind)  # [R, n]
    sizes = tl.sum(own, 0)

    product = tl.zeros([BLOCK_ROWS, BLOCK_ROWS], kind)
    length = tl.zeros([BLOCK_ROWS], kind)  # |x|²
    for start in range(0, tl.where(clustered, WIDTH, 0), BLOCK_WIDTH):
        d = start + tl.arange(0, BLOCK_WIDTH)
        tile = tokens(
            features, index, weights, positions, pos_weight, pos_bias, first + i, inside, d, STRIDE, CORNERS, WIDTH
        )  # [R, C]
        if exact:
            tile = tile.to(tl.float64)
        length += tl.sum(tile.to(kind) * tile.to(kind), 1)
        product = tl.dot(tile, tl.trans(tile), product, input_precision="ieee", out_dtype=kind)

    for _ in range(tl.where(clustered, iterations, 0)):
        if exact:
            total = tl.dot(product, own, input_precision="ieee", out_dtype=kind)  # [R, n]
        else:
            # 0 and 1 are exact in TF32; a number's first eleven bits and what is left of it are two products
            high = (product.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
            total = tl.dot(high, own, input_precision="tf32")
            total = tl.dot(product - high, own, total, input_precision="tf32")
        share = 1.0 / tl.maximum(sizes, 1.0)
        norms = tl.sum(own * total, 0) * share * share  # |c|²
        # |x - c|² without |x|², which is the same for every centroid
        distance = tl.where((j < CLUSTERS)[None, :], norms[None, :] - 2 * total * share[None, :], float("inf"))
        # spread over the rows first: Triton 3.6 cannot reduce a vector that a product of sm_100 has made
        furthest = tl.max(tl.broadcast_to(norms[None, :], [BLOCK_ROWS, BLOCK_CLUSTERS]), 1)
        near = tl.min(distance, 1) + (TIE_FLOAT64 if exact else TIE_FLOAT32) * (furthest + length)
        label = tl.min(tl.where(distance <= near[:, None], j[None, :], BLOCK_CLUSTERS), 1)  # [R]
        label = tl.where(label < BLOCK_CLUSTERS, label, 0)  # of a token that is not finite
        joining = ((label[:, None] == j[None, :]) & inside[:, None]).to(kind)
        joined = tl.sum(joining, 0)
        sizes = tl.where(joined > 0, joined, sizes)
        own = tl.where((joined > 0)[None, :], joining, own)  # an empty cluster keeps its centroid
    bit = tl.full([BLOCK_CLUSTERS], 1, tl.int64) << j
    tl.store(members + first + i, tl.sum(tl.where(own > 0, bit[None, :], 0), 1), mask=inside)

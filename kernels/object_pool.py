"""Object pooling for all objects at once: k-means in the space of inner products, then means.

Up to 32 patches an object it takes two launches. `cluster_tile`, one program an object,
makes the inner products of its tokens and runs every iteration of k-means on them, all in registers; `pool`, one
program a pooled token, takes the mean of that token's own patches. Larger objects take three: `gram` writes the inner
products, an N x N matrix that stays in the L2 cache, and `cluster`, one program an object, works on that matrix tile by
tile. No token and no distance as wide as a feature is written in between.

Features are read from device memory once, by the first launch; `pool` reads each again, from L2. See
docs/kernels/object_pool.md.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from pixelrefer_fast.kernels._cluster_tile import TIE_FLOAT32, TIE_FLOAT64, cluster_tile
from pixelrefer_fast.kernels._launch import CompileCase, configuration, launch, shipped
from pixelrefer_fast.kernels._sizes import cdiv, next_power_of_2
from pixelrefer_fast.kernels._tokens import bounds, tokens

# Patches of an object whose inner products stay in one program's registers. 64 of 16 bit would fit too, but of 64 rows
# Triton 3.6 makes wgmma for sm_90 and writes its accumulators behind the fence, as the emulator found; with two warps,
# which have no wgmma, it spills.
TILE = 32
MOST_CLUSTERS = 64  # a bit each in an int64


@triton.jit(do_not_specialize=["blocks", "capacity", "most"])
def gram(
    features,  # (F, D) features' dtype
    index,  # (S, K) int64
    weights,  # (S, K) float32
    positions,  # (S, 2) float32
    offsets,  # (M + 1,) int64
    pos_weight,  # (D, 2) features' dtype
    pos_bias,  # (D,) features' dtype
    inner,  # out: (S, 64 blocks) float32, float64 for float32 features: row and column of two tokens of an object
    blocks,  # of 64 columns in inner: as many as `most` takes
    capacity,  # S
    most,  # largest object
    STRIDE: tl.constexpr,  # of features' rows
    CORNERS: tl.constexpr,  # K
    WIDTH: tl.constexpr,  # D
    CLUSTERS: tl.constexpr,  # n
    BLOCK_ROWS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    """Inner products of an object's tokens, a tile of the upper triangle a program; the tile's mirror image as well.

    16-bit tokens are multiplied as they are and added in float32. float32 tokens are in float64, as in the definition:
    a distance can be a small difference of large inner products, and labels must be those of the distances.
    """
    exact: tl.constexpr = features.dtype.element_ty == tl.float32
    first, count = bounds(offsets, tl.program_id(0), capacity, most)
    row_tile, column_tile, columns = tl.program_id(1), tl.program_id(2), blocks * 64
    if (count <= CLUSTERS) | (column_tile < row_tile) | (column_tile * BLOCK_ROWS >= count):
        return
    i = row_tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)  # [R]
    k = column_tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)  # [R]
    product = tl.zeros([BLOCK_ROWS, BLOCK_ROWS], inner.dtype.element_ty)
    for start in range(0, WIDTH, BLOCK_WIDTH):
        d = start + tl.arange(0, BLOCK_WIDTH)
        left = tokens(
            features, index, weights, positions, pos_weight, pos_bias, first + i, i < count, d, STRIDE, CORNERS, WIDTH
        )  # [R, C]
        right = tokens(
            features, index, weights, positions, pos_weight, pos_bias, first + k, k < count, d, STRIDE, CORNERS, WIDTH
        )  # [R, C]
        if exact:
            left, right = left.to(tl.float64), right.to(tl.float64)
        product = tl.dot(left, tl.trans(right), product, input_precision="ieee", out_dtype=product.dtype)
    here = (i < count)[:, None] & (k < count)[None, :]
    tl.store(inner + (first + i)[:, None] * columns + k[None, :], product, mask=here)
    if column_tile > row_tile:
        tl.store(inner + (first + k)[None, :] * columns + i[:, None], product, mask=here)


@triton.jit
def _members(members, rows, inside, BLOCK_CLUSTERS: tl.constexpr):
    """Whether each token of `rows` belongs to each cluster: [R, n] of 0 and 1, from a bit a cluster."""
    bits = tl.load(members + rows, mask=inside, other=0)
    return (bits[:, None] >> tl.arange(0, BLOCK_CLUSTERS)[None, :]) & 1


@triton.jit(do_not_specialize=["blocks", "capacity", "most", "iterations"])
def cluster(
    offsets,  # (M + 1,) int64
    starts,  # (M, n) int64
    inner,  # (S, 64 blocks) float32 or float64, of `gram`
    sums,  # scratch: (S, n), inner's dtype: inner products of each token with the sum of each cluster
    labels,  # scratch: (S,) int32: nearest centroid of each token
    members,  # out: (S,) int64: bit j is set for the tokens whose mean is centroid j
    blocks,  # of 64 columns in inner
    capacity,  # S
    most,  # largest object
    iterations,
    CLUSTERS: tl.constexpr,  # n
    BLOCK_CLUSTERS: tl.constexpr,  # n, rounded up to a power of two of at least 16
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """k-means of one object in the space of inner products.

    A centroid is the mean of some tokens, so its distances follow from `inner` alone. An empty cluster keeps its
    centroid, which may have tokens that belong to another cluster by now: hence a bit a cluster instead of a label. The
    tokens of an object of at most n are clusters of their own.
    """
    item = tl.program_id(0).to(tl.int64)
    first, count = bounds(offsets, item, capacity, most)
    columns = blocks * 64
    kind: tl.constexpr = inner.dtype.element_ty
    j = tl.arange(0, BLOCK_CLUSTERS)  # [n]
    bit = tl.full([BLOCK_CLUSTERS], 1, tl.int64) << j
    clustered = count > CLUSTERS

    # one comparison: of a scalar one, spread over a block, the interpreter makes an integer, which is no mask to it
    begun = tl.load(starts + item * CLUSTERS + j, mask=j < tl.where(clustered, CLUSTERS, 0), other=-1)
    begun = tl.where(clustered, begun, j)
    sizes = tl.zeros([BLOCK_CLUSTERS], kind)
    for start in range(0, count, BLOCK_ROWS):
        i = start + tl.arange(0, BLOCK_ROWS)  # [R]
        own = (begun[None, :] == i[:, None]) & (i < count)[:, None]  # [R, n]
        tl.store(members + first + i, tl.sum(tl.where(own, bit[None, :], 0), 1), mask=i < count)
        sizes += tl.sum(own.to(kind), 0)
    tl.debug_barrier()  # members are read by other threads below

    for _ in range(tl.where(clustered, iterations, 0)):
        norms = tl.zeros([BLOCK_CLUSTERS], kind)
        for start in range(0, count, BLOCK_ROWS):
            k = start + tl.arange(0, BLOCK_ROWS)  # [R]
            total = tl.zeros([BLOCK_ROWS, BLOCK_CLUSTERS], kind)
            for begin in range(0, count, BLOCK_COLUMNS):
                i = begin + tl.arange(0, BLOCK_COLUMNS)  # [C]
                at = inner + (first + k)[:, None] * columns + i[None, :]
                tile = tl.load(at, mask=(k < count)[:, None] & (i < count)[None, :], other=0.0)  # [R, C]
                own = _members(members, first + i, i < count, BLOCK_CLUSTERS).to(kind)  # [C, n]
                if kind == tl.float64:
                    total = tl.dot(tile, own, total, input_precision="ieee", out_dtype=kind)
                else:
                    # 0 and 1 are exact in TF32; a number's first eleven bits and what is left of it are two products
                    high = (tile.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
                    total = tl.dot(high, own, total, input_precision="tf32")
                    total = tl.dot(tile - high, own, total, input_precision="tf32")
            at = sums + (first + k)[:, None] * CLUSTERS + j[None, :]
            tl.store(at, total, mask=(k < count)[:, None] & (j < CLUSTERS)[None, :])
            norms += tl.sum(_members(members, first + k, k < count, BLOCK_CLUSTERS).to(kind) * total, 0)
        tl.debug_barrier()  # sums are read by other threads

        share = 1.0 / tl.maximum(sizes, 1.0)
        norms *= share * share  # |c|²
        furthest = tl.max(norms, 0)
        joined = tl.zeros([BLOCK_CLUSTERS], kind)
        for start in range(0, count, BLOCK_ROWS):
            k = start + tl.arange(0, BLOCK_ROWS)  # [R]
            at = sums + (first + k)[:, None] * CLUSTERS + j[None, :]
            total = tl.load(at, mask=(k < count)[:, None] & (j < CLUSTERS)[None, :], other=0.0)
            # |x - c|² without |x|², which is the same for every centroid
            distance = tl.where((j < CLUSTERS)[None, :], norms[None, :] - 2 * total * share[None, :], float("inf"))
            length = tl.load(inner + (first + k) * columns + k, mask=k < count, other=0.0)  # |x|²
            near = tl.min(distance, 1) + (TIE_FLOAT64 if kind == tl.float64 else TIE_FLOAT32) * (furthest + length)
            label = tl.min(tl.where(distance <= near[:, None], j[None, :], BLOCK_CLUSTERS), 1)  # [R]
            label = tl.where(label < BLOCK_CLUSTERS, label, 0)  # of a token that is not finite
            tl.store(labels + first + k, label, mask=k < count)
            joined += tl.sum(((k < count)[:, None] & (label[:, None] == j[None, :])).to(kind), 0)

        sizes = tl.where(joined > 0, joined, sizes)
        kept = tl.sum(tl.where(joined > 0, 0, bit), 0)  # the bits of empty clusters
        tl.debug_barrier()  # labels are read by other threads
        for start in range(0, count, BLOCK_ROWS):
            i = start + tl.arange(0, BLOCK_ROWS)  # [R]
            label = tl.load(labels + first + i, mask=i < count, other=0)
            before = tl.load(members + first + i, mask=i < count, other=0)
            after = (before & kept) | (tl.full([BLOCK_ROWS], 1, tl.int64) << label)
            # where a row has more threads than one, a warp may store before another has loaded
            tl.debug_barrier()
            tl.store(members + first + i, after, mask=i < count)
        tl.debug_barrier()  # members are read by other threads


@triton.jit(do_not_specialize=["capacity", "most"])
def pool(
    features,  # (F, D) features' dtype
    index,  # (S, K) int64
    weights,  # (S, K) float32
    positions,  # (S, 2) float32
    offsets,  # (M + 1,) int64
    members,  # (S,) int64, of `cluster`
    pos_weight,  # (D, 2) features' dtype
    pos_bias,  # (D,) features' dtype
    pooled,  # out: (M, n, D) features' dtype
    capacity,  # S
    most,  # largest object
    STRIDE: tl.constexpr,  # of features' rows
    CORNERS: tl.constexpr,  # K
    WIDTH: tl.constexpr,  # D
    CLUSTERS: tl.constexpr,  # n
    BLOCK_WIDTH: tl.constexpr,  # D, rounded up to a power of two
    BLOCK_ROWS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
):
    """Mean of one cluster's tokens; zero for a cluster that no token has.

    The cluster's tokens are picked out of BLOCK_ROWS at a time and added BLOCK_TOKENS at a time, so that their loads
    overlap.
    """
    item = tl.program_id(0).to(tl.int64)
    j = tl.program_id(1)
    first, count = bounds(offsets, item, capacity, most)
    dtype: tl.constexpr = features.dtype.element_ty
    d = tl.arange(0, BLOCK_WIDTH)  # [D]
    total = tl.zeros([BLOCK_WIDTH], tl.float32)
    size = 0
    for start in range(0, count, BLOCK_ROWS):
        i = start + tl.arange(0, BLOCK_ROWS)  # [R]
        own = ((tl.load(members + first + i, mask=i < count, other=0) >> j) & 1).to(tl.int32)
        place = tl.where(own == 1, tl.cumsum(own, 0) - 1, -1)
        found = tl.sum(own, 0)
        for begin in range(0, found, BLOCK_TOKENS):
            wanted = begin + tl.arange(0, BLOCK_TOKENS)  # [T]
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
            )  # [T, D]
            total += tl.sum(token.to(tl.float32), 0)
        size += found
    mean = tl.div_rn(total, tl.full([BLOCK_WIDTH], 1.0, tl.float32) * tl.maximum(size, 1)).to(dtype)
    tl.store(pooled + (item * CLUSTERS + j) * WIDTH + d, mean, mask=d < WIDTH)


def object_pool(
    features: torch.Tensor,
    index: torch.Tensor,
    weights: torch.Tensor,
    positions: torch.Tensor,
    offsets: torch.Tensor,
    starts: torch.Tensor,
    pos_weight: torch.Tensor,
    pos_bias: torch.Tensor,
    iterations: int,
    max_patches: int,
) -> torch.Tensor:
    """As the definition; nothing is read back from the device.

    An object's patches past `max_patches`, and rows past the end of `index`, are left out instead of raising. FLOPs and
    bytes are counted as if every object were of `max_patches` patches, as far as the rows go: how many there are only
    the device knows. What is read again from L2 is not counted as moved.
    """
    features = features if features.stride(-1) == 1 else features.contiguous()
    index, weights, positions = index.contiguous(), weights.contiguous(), positions.contiguous()
    offsets, starts = offsets.contiguous(), starts.contiguous()
    pos_weight, pos_bias = pos_weight.contiguous(), pos_bias.contiguous()
    if pos_weight.data_ptr() % (2 * pos_weight.element_size()):  # both weights of a column are loaded as one number
        pos_weight = pos_weight.clone()
    (objects, clusters), width, (capacity, corners) = starts.shape, features.shape[1], index.shape
    device, kind = features.device, features.dtype
    pooled = torch.empty(objects, clusters, width, device=device, dtype=kind)
    members = torch.empty(capacity, device=device, dtype=torch.int64)
    rows = min(capacity, objects * max_patches)
    described = rows * (corners * (8 + 4) + 8) + rows * corners * width * features.element_size()
    common = {"STRIDE": features.stride(0), "CORNERS": corners, "WIDTH": width, "CLUSTERS": clusters}
    inner_flops = rows * (max_patches + 1) * width if max_patches > clusters else 0
    flops = 2 * iterations * rows * max_patches * clusters if max_patches > clusters else 0
    suffix = "_float32" if kind == torch.float32 else ""
    block_clusters = max(16, next_power_of_2(clusters))
    if max_patches <= TILE:
        name = f"object_pool.cluster_tile{suffix}"
        launch(
            cluster_tile,
            name,
            (objects,),
            features,
            index,
            weights,
            positions,
            offsets,
            starts,
            pos_weight,
            pos_bias,
            members,
            capacity,
            max_patches,
            iterations,
            flops=inner_flops + flops,
            moved=starts.numel() * 8 + (described if max_patches > clusters else 0),
            BLOCK_CLUSTERS=block_clusters,
            **common,
            **configuration(name, max_patches, device),
        )
    else:
        blocks = cdiv(max_patches, 64)
        wide = torch.float64 if kind == torch.float32 else torch.float32
        inner = torch.empty(capacity, blocks * 64, device=device, dtype=wide)
        sums = torch.empty(capacity, clusters, device=device, dtype=wide)
        labels = torch.empty(capacity, device=device, dtype=torch.int32)
        name = f"object_pool.gram{suffix}"
        config = configuration(name, max_patches, device)
        tiles = cdiv(max_patches, config["BLOCK_ROWS"])
        launch(
            gram,
            name,
            (objects, tiles, tiles),
            features,
            index,
            weights,
            positions,
            offsets,
            pos_weight,
            pos_bias,
            inner,
            blocks,
            capacity,
            max_patches,
            flops=inner_flops,
            moved=described,
            **common,
            **config,
        )
        name = f"object_pool.cluster{suffix}"
        launch(
            cluster,
            name,
            (objects,),
            offsets,
            starts,
            inner,
            sums,
            labels,
            members,
            blocks,
            capacity,
            max_patches,
            iterations,
            flops=flops,
            moved=starts.numel() * 8,
            CLUSTERS=clusters,
            BLOCK_CLUSTERS=block_clusters,
            **configuration(name, max_patches, device),
        )
    launch(
        pool,
        "object_pool.pool",
        (objects, clusters),
        features,
        index,
        weights,
        positions,
        offsets,
        members,
        pos_weight,
        pos_bias,
        pooled,
        capacity,
        max_patches,
        flops=rows * width,
        moved=pooled.numel() * features.element_size(),
        **common,
        BLOCK_WIDTH=next_power_of_2(width),
        **configuration("object_pool.pool", max_patches, device),
    )
    return pooled


def compile_cases() -> Iterator[CompileCase]:
    released = {"STRIDE": 1152, "WIDTH": 1152, "CLUSTERS": 32, "BLOCK_WIDTH": 2048}
    halves = [(f"{t}, K {k}", t, {"CORNERS": k}) for t in ("fp16", "bf16") for k in (1, 4)]
    floats = [(f"fp32, K {k}", "fp32", {"CORNERS": k}) for k in (1, 4)]
    tokens = [(f"n {n}", "", {"CLUSTERS": n, "BLOCK_CLUSTERS": n}) for n in (32, MOST_CLUSTERS)]
    for name, kernel, wide, variants in (
        ("object_pool.cluster_tile", cluster_tile, "", halves),
        ("object_pool.cluster_tile_float32", cluster_tile, "", floats),
        ("object_pool.gram", gram, "fp32", halves),
        ("object_pool.gram_float32", gram, "fp64", floats),
        ("object_pool.cluster", cluster, "fp32", tokens),
        ("object_pool.cluster_float32", cluster, "fp64", tokens),
        ("object_pool.pool", pool, "", floats + halves),
    ):
        for device, config in shipped(name):
            limit = f"up to {config['upto']} patches" if "upto" in config else "any number of patches"
            blocks = {k: v for k, v in config.items() if k.startswith("BLOCK")}
            for text, dtype, variant in variants:
                constants = released | {"BLOCK_CLUSTERS": 32} | variant | blocks
                yield CompileCase(
                    kernel=kernel,
                    name=name,
                    shape=f"{text}, {limit}, {device}",
                    signature={k: v.format(dtype, wide) for k, v in SIGNATURE.items() if k in kernel.arg_names},
                    constants={k: v for k, v in constants.items() if k in kernel.arg_names},
                    options={k: config[k] for k in ("num_warps", "num_stages")},
                    matrix=name == "object_pool.gram",  # a tile has too few rows for wgmma
                )


SIGNATURE = {
    "features": "*{0}",
    "index": "*i64",
    "weights": "*fp32",
    "positions": "*fp32",
    "offsets": "*i64",
    "starts": "*i64",
    "pos_weight": "*{0}",
    "pos_bias": "*{0}",
    "inner": "*{1}",
    "sums": "*{1}",
    "members": "*i64",
    "labels": "*i32",
    "pooled": "*{0}",
    "blocks": "i32",
    "capacity": "i32",
    "most": "i32",
    "iterations": "i32",
}

"""Selected patches of every object to at most n pooled tokens: position, k-means."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F

from pixelrefer_fast.ops._check import check_count, check_device, check_dtype, check_offsets, check_shape
from pixelrefer_fast.ops._registry import Reason, register_op

# Two float64 distances nearer than this, relative to the terms they are made of, are the same distance: which of them
# a matrix product rounds down must not decide a label.
TIE = 1e-12

DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # that the Triton kernels take
MOST_PATCHES = 1024  # of an object that the Triton kernels take
TILE = 32  # patches of an object that they cluster without a matrix in memory
MOST_CLUSTERS = 64  # they keep a bit a cluster in an int64


def _samples(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple]:
    for counts, clusters, width, iterations, corners, spare in (
        ([9, 0, 3, 4, 1], 4, 24, 3, 1, 0),
        ([40, 70], 8, 72, 5, 4, 3),
        ([12], 1, 16, 0, 1, 0),
        ([], 4, 8, 3, 1, 2),
    ):
        selected = sum(counts)
        rows = selected + 5
        features = torch.randn(rows, width, generator=generator)
        index = torch.randint(0, rows, (selected, corners), generator=generator)
        starts = torch.zeros(len(counts), clusters, dtype=torch.int64)
        first = 0
        for i, count in enumerate(counts):
            if count > clusters:
                # well-parted heaps: which centroid is nearest is then no matter of rounding
                starts[i] = torch.randperm(count, generator=generator)[:clusters]
                heap = torch.randint(0, clusters, (count,), generator=generator)
                heap[starts[i]] = torch.arange(clusters)
                index[first : first + count] = torch.arange(first, first + count)[:, None]
                features[first : first + count] += 8 * torch.randn(clusters, width, generator=generator)[heap]
            first += count
        # rows past the last object's are padding: of no index and of no number
        index = torch.cat([index, torch.full((spare, corners), -1)])
        weights = torch.rand(selected, corners, generator=generator)
        weights /= weights.sum(1, keepdim=True).clamp(min=1e-6)
        weights = torch.cat([weights, torch.full((spare, corners), torch.nan)])
        positions = torch.cat([torch.rand(selected, 2, generator=generator), torch.full((spare, 2), torch.nan)])
        given = [torch.randn(shape, generator=generator).to(dtype) for shape in ((width, 2), (width,))]
        yield (
            features.to(dtype),
            index,
            weights,
            positions,
            torch.tensor([0, *counts]).cumsum(0),
            starts,
            *given,
            iterations,
            max(counts, default=0),
        )


@register_op(
    source="reference model/region_encoder.py MaskPooling, kmeans_fast; paper section 4.2.1 (eq. 4 to 6)",
    tolerance={torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2},
    samples=_samples,
    static=("iterations", "max_patches"),
)
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
    """Pool each object's selected patches to n tokens.

    A patch's token is its feature (a weighted sum of K feature rows: one row, or four where the mask's grid is finer
    than the features') plus `pos_linear(x, y)`. An object of at most n patches keeps its tokens and is filled up with
    zero rows; a larger one gives the centroids of k-means.

    Args:
        features: (F, D) packed features of all views.
        index: (S, K) int64, the feature rows of each selected patch. Rows of index, weights and positions from
            offsets[M] on are padding and may hold anything.
        weights: (S, K) float32, their weights; one row is taken as it is.
        positions: (S, 2) float32, (x, y) of each selected patch, relative to the whole image.
        offsets: (M + 1,) int64: object i's patches are offsets[i]:offsets[i + 1]. On a device the definition waits
            for them.
        starts: (M, n) int64, for objects of more than n patches the ranks of the first centroids among its patches.
        pos_weight, pos_bias: (D, 2), (D,) of `pos_linear`.
        iterations: of k-means (squared Euclidean, an empty cluster keeps its centroid, ties go to the lowest index).
        max_patches: at least the number of patches of the largest object.

    Returns:
        (M, n, D) in the features' dtype.

    Raises:
        ValueError: shapes or dtypes that do not fit, an index outside the features, a start outside its object's
            patches, an object of more than max_patches.
    """
    name = "object_pool"
    bounds = check_offsets(name, "offsets", offsets, int(offsets[-1]))
    selected = bounds[-1]
    if selected > len(index):
        raise ValueError(f"{name}: expected offsets up to {len(index)} (rows of index), got {selected}")
    largest = max((stop - start for start, stop in pairwise(bounds)), default=0)
    if max_patches < largest:
        raise ValueError(f"{name}: expected max_patches of at least {largest} (the largest object), got {max_patches}")
    index, weights, positions = index[:selected], weights[:selected], positions[:selected]
    if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < len(features):
        raise ValueError(
            f"{name}: expected an index from 0 to {len(features) - 1}, got {int(index.min())} to {int(index.max())}"
        )

    if index.shape[1] == 1:
        tokens = features[index[:, 0]]
    else:
        tokens = (_wide(features[index]) * weights[:, :, None]).sum(1).to(features.dtype)
    tokens = tokens + F.linear(positions.to(features.dtype), pos_weight, pos_bias)

    pooled = features.new_zeros(*starts.shape, features.shape[1])
    for i, (start, stop) in enumerate(pairwise(bounds)):
        own = tokens[start:stop]
        if len(own) > starts.shape[1]:
            own = kmeans(own, starts[i], iterations)
        pooled[i, : len(own)] = own
    return pooled


def kmeans(tokens: torch.Tensor, start: torch.Tensor, iterations: int) -> torch.Tensor:
    """Centroids of `tokens` (N, D) from the tokens ranked `start` (n,): (n, D) in the tokens' dtype.

    Assignments are made in float64 without gradient; the means carry it. The reference also stops once the centroids
    move by less than 1e-6; going on from there moves them no further, so that stop needs no wait for the device here.
    """
    if not ((start >= 0) & (start < len(tokens))).all():
        raise ValueError(f"object_pool: expected k-means starts from 0 to {len(tokens) - 1}, got {start.tolist()}")
    exact = tokens.detach().double()
    points = _wide(tokens)
    centroids = points[start]
    for _ in range(iterations):
        means = centroids.detach().double()
        norms = means.square().sum(1)
        # |x - c|² without |x|², which is the same for every centroid
        distance = norms - 2 * (exact @ means.T)
        slack = TIE * (norms.max() + exact.square().sum(1, keepdim=True))
        nearest = distance <= distance.amin(1, keepdim=True) + slack
        member = torch.nn.functional.one_hot(nearest.int().argmax(1), len(start)).T.to(centroids.dtype)
        count = member.sum(1, keepdim=True)
        centroids = torch.where(count > 0, member @ points / count.clamp(min=1), centroids)
    return centroids.to(tokens.dtype)


def _wide(x: torch.Tensor) -> torch.Tensor:
    """In float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@object_pool.check
def _check(
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
) -> None:
    """What can be checked without looking into a tensor."""
    name = "object_pool"
    check_shape(name, "features", features, None, None)
    width = features.shape[1]
    check_shape(name, "index", index, None, None)
    check_shape(name, "weights", weights, *index.shape)
    check_shape(name, "positions", positions, len(index), 2)
    check_shape(name, "offsets", offsets, None)
    if not len(offsets):
        raise ValueError(f"{name}: expected at least one offset, got none")
    check_shape(name, "starts", starts, len(offsets) - 1, None)
    for argument, integers in (("index", index), ("offsets", offsets), ("starts", starts)):
        check_dtype(name, argument, integers, torch.int64)
    for argument, floats in (("weights", weights), ("positions", positions)):
        check_dtype(name, argument, floats, torch.float32, torch.float64)
    check_shape(name, "pos_weight", pos_weight, width, 2)
    check_shape(name, "pos_bias", pos_bias, width)
    for argument, parameter in (("pos_weight", pos_weight), ("pos_bias", pos_bias)):
        check_dtype(name, argument, parameter, features.dtype)
    for argument, count in (("iterations", iterations), ("max_patches", max_patches)):
        check_count(name, argument, count)
    tables = {"index": index, "weights": weights, "positions": positions, "offsets": offsets, "starts": starts}
    check_device(name, features.device, **tables, pos_weight=pos_weight, pos_bias=pos_bias)


@object_pool.fake
def _fake(features: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    return features.new_empty(*starts.shape, features.shape[1])


def _accepts(
    features: torch.Tensor, weights: torch.Tensor, positions: torch.Tensor, starts: torch.Tensor, max_patches: int
) -> Reason:
    if features.dtype not in DTYPES:
        return f"it computes {', '.join(str(d) for d in DTYPES)}, not {features.dtype}"
    if weights.dtype != torch.float32 or positions.dtype != torch.float32:
        return f"it takes float32 weights and positions, not {weights.dtype} and {positions.dtype}"
    if not 1 <= starts.shape[1] <= MOST_CLUSTERS:
        return f"it pools to 1 to {MOST_CLUSTERS} tokens, not {starts.shape[1]}"
    if max_patches > MOST_PATCHES:
        return f"it pools objects of up to {MOST_PATCHES} patches, not {max_patches}"
    return None


object_pool.kernel(accepts=_accepts)

"""Selected patches of every object to at most n pooled tokens: position, then k-means."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch

from pixelrefer_fast.ops._check import check_offsets, check_shape
from pixelrefer_fast.ops._registry import register_op

# Two float64 distances nearer than this, relative to the terms they are made of, are the same distance: which of them
# a matrix product rounds down must not decide a label.
TIE = 1e-12


def _samples(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple]:
    for counts, clusters, width, iterations, corners in (
        ([9, 0, 3, 4, 1], 4, 24, 3, 1),
        ([40, 70], 8, 72, 5, 4),
        ([12], 1, 16, 0, 1),
        ([], 4, 8, 3, 1),
    ):
        selected = sum(counts)
        rows = selected + 5
        features = torch.randn(rows, width, generator=generator).to(dtype)
        index = torch.randint(0, rows, (selected, corners), generator=generator)
        weights = torch.rand(selected, corners, generator=generator)
        weights /= weights.sum(1, keepdim=True).clamp(min=1e-6)
        positions = torch.rand(selected, 2, generator=generator)
        starts = torch.zeros(len(counts), clusters, dtype=torch.int64)
        for i, count in enumerate(counts):
            if count > clusters:
                starts[i] = torch.randperm(count, generator=generator)[:clusters]
        linear = (
            torch.randn(width, 2, generator=generator).to(dtype),
            torch.randn(width, generator=generator).to(dtype),
        )
        yield features, index, weights, positions, torch.tensor([0, *counts]).cumsum(0), starts, *linear, iterations


@register_op(
    source="reference model/region_encoder.py MaskPooling, kmeans_fast; paper section 4.2.1 (equations 4 to 6)",
    tolerance={torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2},
    samples=_samples,
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
) -> torch.Tensor:
    """Pool each object's selected patches to n tokens.

    A patch's token is its feature (a weighted sum of K feature rows: one row, or four where the mask's grid is finer
    than the features') plus `pos_linear(x, y)`. An object of at most n patches keeps its tokens and is filled up with
    zero rows; a larger one gives the centroids of k-means.

    Args:
        features: (P, D) packed features of all views.
        index: (S, K) int64, the feature rows of each selected patch.
        weights: (S, K) float32, their weights.
        positions: (S, 2) float32, (x, y) of each selected patch, relative to the whole image.
        offsets: (M + 1,) integers in host memory: object i's patches are offsets[i]:offsets[i + 1].
        starts: (M, n) int64, for objects of more than n patches the ranks of the first centroids among its patches.
        pos_weight, pos_bias: (D, 2), (D,) of `pos_linear`.
        iterations: of k-means (squared Euclidean, an empty cluster keeps its centroid, ties go to the lowest index).

    Returns:
        (M, n, D) in the features' dtype.

    Raises:
        ValueError: shapes that do not fit, an index outside the features, a start outside its object's patches.
    """
    name = "object_pool"
    selected, width = len(index), features.shape[-1]
    check_shape(name, "features", features, None, None)
    check_shape(name, "index", index, None, None)
    check_shape(name, "weights", weights, *index.shape)
    check_shape(name, "positions", positions, selected, 2)
    check_shape(name, "pos_weight", pos_weight, width, 2)
    check_shape(name, "pos_bias", pos_bias, width)
    bounds = check_offsets(name, "offsets", offsets, selected)
    check_shape(name, "starts", starts, len(bounds) - 1, None)
    clusters = starts.shape[1]
    if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < len(features):
        raise ValueError(
            f"{name}: expected an index from 0 to {len(features) - 1}, got {int(index.min())} to {int(index.max())}"
        )

    if index.shape[1] == 1:
        tokens = features[index[:, 0]]
    else:
        tokens = (features[index].float() * weights[:, :, None]).sum(1).to(features.dtype)
    tokens = tokens + torch.nn.functional.linear(positions.to(features.dtype), pos_weight, pos_bias)

    pooled = features.new_zeros(len(bounds) - 1, clusters, width)
    for i, (start, stop) in enumerate(pairwise(bounds)):
        own = tokens[start:stop]
        if len(own) > clusters:
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
    centroids = tokens[start].float()
    for _ in range(iterations):
        means = centroids.detach().double()
        norms = means.square().sum(1)
        # |x - c|² without |x|², which is the same for every centroid
        distance = norms - 2 * (exact @ means.T)
        slack = TIE * (norms.max() + exact.square().sum(1, keepdim=True))
        nearest = distance <= distance.amin(1, keepdim=True) + slack
        member = torch.nn.functional.one_hot(nearest.int().argmax(1), len(start)).T.to(centroids.dtype)
        count = member.sum(1, keepdim=True)
        centroids = torch.where(count > 0, member @ tokens.float() / count.clamp(min=1), centroids)
    return centroids.to(tokens.dtype)

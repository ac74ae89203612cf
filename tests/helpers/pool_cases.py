"""Calls of object_pool and their results in plain Python."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torch.nn.functional as F

from pixelrefer_fast.ops import object_pool


@dataclass
class Case:
    """The arguments of one call, in order."""

    features: torch.Tensor
    index: torch.Tensor
    weights: torch.Tensor
    positions: torch.Tensor
    offsets: torch.Tensor
    starts: torch.Tensor
    pos_weight: torch.Tensor
    pos_bias: torch.Tensor
    iterations: int
    max_patches: int

    def run(self, backend: str = "auto") -> torch.Tensor:
        """The pooled tokens."""
        return object_pool(*vars(self).values(), backend=backend)

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Case:
        """Features and parameters in a dtype, all tensors on a device."""
        moved = {k: v.to(device=device) for k, v in vars(self).items() if isinstance(v, torch.Tensor)}
        floats = ("features", "pos_weight", "pos_bias")
        return replace(self, **{k: v.to(dtype=dtype) if k in floats else v for k, v in moved.items()})


def random_case(
    counts: list[int],
    clusters: int,
    width: int,
    iterations: int,
    corners: int = 1,
    seed: int = 0,
    separate: bool = False,
    spare: int = 0,
) -> Case:
    """Random patches; with `separate` in well-parted heaps, so that no rounding changes a label.

    `spare` rows of NaN and wild indices follow the last object's.
    """
    generator = torch.Generator().manual_seed(seed)
    selected = sum(counts)
    features = torch.randn(selected + 7, width, generator=generator)
    index = torch.randint(0, selected + 7, (selected, corners), generator=generator)
    starts = torch.zeros(len(counts), clusters, dtype=torch.int64)
    first = 0
    for i, count in enumerate(counts):
        if count > clusters:
            starts[i] = torch.randperm(count, generator=generator)[:clusters]
            if separate:
                heap = torch.randint(0, clusters, (count,), generator=generator)
                heap[starts[i]] = torch.arange(clusters)
                index[first : first + count] = torch.arange(first, first + count)[:, None]
                centres = 8 * torch.randn(clusters, width, generator=generator)
                features[first : first + count] = features[first : first + count] * 0.25 + centres[heap]
        first += count
    weights = torch.rand(selected, corners, generator=generator) + 0.1
    weights /= weights.sum(1, keepdim=True)
    wild = torch.tensor([-1, 2**62, -(2**62)])[torch.arange(spare) % 3][:, None].expand(spare, corners)
    return Case(
        features,
        torch.cat([index, wild]),
        torch.cat([weights, torch.full((spare, corners), torch.nan)]),
        torch.cat([torch.rand(selected, 2, generator=generator), torch.full((spare, 2), torch.nan)]),
        torch.tensor([0, *counts]).cumsum(0),
        starts,
        torch.randn(width, 2, generator=generator),
        torch.randn(width, generator=generator),
        iterations,
        max(counts, default=0),
    )


def case_of_tokens(tokens: torch.Tensor, start: list[int], iterations: int) -> Case:
    """One object whose patches' tokens are given."""
    count, width = tokens.shape
    return Case(
        tokens,
        torch.arange(count)[:, None],
        torch.ones(count, 1),
        torch.zeros(count, 2),
        torch.tensor([0, count]),
        torch.tensor([start]),
        torch.zeros(width, 2, dtype=tokens.dtype),
        torch.zeros(width, dtype=tokens.dtype),
        iterations,
        count,
    )


def oracle(case: Case, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """The definition's docstring, object by object and patch by patch."""
    features, positions, pos_weight, pos_bias = (
        x.to(dtype) for x in (case.features, case.positions, case.pos_weight, case.pos_bias)
    )
    clusters = case.starts.shape[1]
    objects = []
    for i, (first, last) in enumerate(pairwise(case.offsets.tolist())):
        tokens = []
        for s in range(first, last):
            if case.index.shape[1] == 1:
                feature = features[case.index[s, 0]]
            else:
                weighed = zip(case.index[s].tolist(), case.weights[s].tolist(), strict=True)
                feature = torch.stack([features[row] * weight for row, weight in weighed]).sum(0)
            tokens.append(feature + pos_weight @ positions[s] + pos_bias)
        own = torch.stack(tokens) if tokens else features.new_zeros(0, features.shape[1])
        if len(own) > clusters:
            own = _kmeans(own, case.starts[i].tolist(), case.iterations)
        objects.append(F.pad(own, (0, 0, 0, clusters - len(own))))
    return torch.stack(objects) if objects else features.new_zeros(0, clusters, features.shape[1])


def _kmeans(tokens: torch.Tensor, start: list[int], iterations: int) -> torch.Tensor:
    """Labels by loops over Python floats; the means as tensors, so that gradients pass."""
    points = tokens.tolist()
    centroids = [tokens[s] for s in start]
    for _ in range(iterations):
        places = [c.tolist() for c in centroids]
        members: list[list[int]] = [[] for _ in centroids]
        for i, point in enumerate(points):
            distances = [sum((p - c) ** 2 for p, c in zip(point, place, strict=True)) for place in places]
            members[distances.index(min(distances))].append(i)
        centroids = [tokens[own].mean(0) if own else c for own, c in zip(members, centroids, strict=True)]
    return torch.stack(centroids)

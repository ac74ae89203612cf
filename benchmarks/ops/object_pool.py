"""object_pool at the released sizes: 32 tokens of width 1152 an object, 3 iterations, LayerNorm of the infusion."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator

import torch
from _case import Arguments, Case, Rivals, normal

TOKENS, WIDTH, ITERATIONS = 32, 1152, 3
PATCHES = 150  # selected ones of an ordinary object


def cases() -> Iterator[Case]:
    yield _case("2 objects of 9 and 3 patches", [9, 3], tokens=4, width=48, smoke=True)
    for objects in (1, 4, 16, 64):
        yield _case(f"{objects} object{'s' * (objects > 1)} of {PATCHES} patches", [PATCHES] * objects)
    yield _case(f"16 objects of {PATCHES} patches on finer grids", [PATCHES] * 16, corners=4)
    yield _case("16 objects of 20 to 395 patches", [20 + 25 * i for i in range(16)])
    yield _case("1 object of 1,024 patches", [1024])


def _case(
    name: str, counts: list[int], tokens: int = TOKENS, width: int = WIDTH, corners: int = 1, smoke: bool = False
) -> Case:
    rows, pooled = sum(counts), len(counts) * tokens
    clustered = [count for count in counts if count > tokens]
    return Case(
        "object_pool",
        name,
        functools.partial(_arguments, counts, tokens, width, corners),
        # tokens, means and LayerNorm; inner products (half of a symmetric matrix), sums of its rows in each iteration
        flops=(2 * corners + 6) * rows * width
        + 8 * pooled * width
        + sum(count * (count + 1) * width + 2 * ITERATIONS * count**2 * tokens for count in clustered),
        # feature rows, their indices and weights, places; starts and offsets; parameters; both results
        moved=lambda dtype: (
            (corners * rows + 5 + 2 * pooled) * width * dtype.itemsize
            + (12 * corners + 8) * rows
            + 8 * (pooled + len(counts) + 1)
        ),
        smoke=smoke,
        rivals=_rivals,
    )


def _arguments(
    counts: list[int], tokens: int, width: int, corners: int, device: torch.device, dtype: torch.dtype
) -> Arguments:
    """Patches in well-parted heaps: which centroid is nearest is then the same in every dtype."""
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
    shapes = ((width, 2), (width,), (width,), (width,))
    parameters = (draw(shape, seed) * 0.1 for seed, shape in enumerate(shapes))
    return features.to(device, dtype), *given, *parameters, ITERATIONS, max(counts)


def _rivals(arguments: Arguments) -> Rivals:
    """The clustering alone, of tokens that are already made, by a library that takes objects of one size."""
    features, index, _, _, offsets, starts, *_, iterations, most = arguments
    equal = offsets.diff().eq(most).all().item()
    if not equal or most <= starts.shape[1] or importlib.util.find_spec("flash_kmeans") is None:
        return {}
    from flash_kmeans import batch_kmeans_Euclid

    tokens = features[index[:, 0]].unflatten(0, (-1, most))
    first = torch.gather(tokens, 1, starts[:, :, None].expand(-1, -1, tokens.shape[2]))

    def run() -> None:
        batch_kmeans_Euclid(tokens, starts.shape[1], max_iters=iterations, tol=0.0, init_centroids=first)

    return {"flash-kmeans (clustering alone)": run}

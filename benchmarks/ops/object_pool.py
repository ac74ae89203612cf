"""object_pool at the released sizes: 32 tokens of width 1152 an object, 3 iterations."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch

from pixelrefer_fast.bench.run import arguments as makers
from pixelrefer_fast.bench.run.cases import Arguments, Case, Rival

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
    equal = len(set(counts)) == 1
    return Case(
        "object_pool",
        name,
        functools.partial(
            makers.object_pool,
            objects=len(counts),
            patches=counts,
            tokens=tokens,
            width=width,
            corners=corners,
            iterations=ITERATIONS,
        ),
        # tokens and means; inner products (half of a symmetric matrix), sums of its rows in each iteration
        flops=(2 * corners + 6) * rows * width
        + sum(count * (count + 1) * width + 2 * ITERATIONS * count**2 * tokens for count in clustered),
        # feature rows, their indices and weights, places; starts and offsets; parameters; the result
        moved=lambda dtype: (
            (corners * rows + 3 + pooled) * width * dtype.itemsize
            + (12 * corners + 8) * rows
            + 8 * (pooled + len(counts) + 1)
        ),
        smoke=smoke,
        # it takes objects of one size
        rivals={"flash-kmeans": _flash_kmeans} if equal and clustered and corners == 1 else {},
    )


def _flash_kmeans(arguments: Arguments) -> Rival:
    """A library for batches of equal size, on tokens that are already made."""
    from flash_kmeans import batch_kmeans_Euclid

    features, index, _, positions, _, starts, weight, bias, iterations, most = arguments
    tokens = features[index[:, 0]] + torch.nn.functional.linear(positions.to(features.dtype), weight, bias)
    tokens = tokens.unflatten(0, (-1, most))
    first = torch.gather(tokens, 1, starts[:, :, None].expand(-1, -1, tokens.shape[2]))

    def run() -> torch.Tensor:
        return batch_kmeans_Euclid(tokens, starts.shape[1], max_iters=iterations, tol=0.0, init_centroids=first)[1]

    return Rival(run, lambda centroids: [centroids.to(features.dtype)], "clustering alone")

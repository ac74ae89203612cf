"""object_pool against k-means in plain Python, interpolation against F.interpolate, LayerNorm against its formula."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from pool_cases import case_of_tokens, oracle, random_case

from pixelrefer_fast.ops import object_pool

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@given(
    counts=st.lists(st.integers(0, 20), max_size=5),
    clusters=st.integers(1, 6),
    width=st.integers(1, 9),
    iterations=st.integers(0, 5),
    corners=st.sampled_from([1, 2, 4]),
)
def test_against_plain_python(counts: list[int], clusters: int, width: int, iterations: int, corners: int) -> None:
    case = random_case(counts, clusters, width, iterations, corners, seed=sum(counts))
    pooled = case.run()
    assert pooled.shape == (len(counts), clusters, width)
    torch.testing.assert_close(pooled.double(), oracle(case), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("corners", [1, 4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_precision(dtype: torch.dtype, corners: int, numeric_bar: Callable[..., None]) -> None:
    case = random_case([40, 3, 0, 25], 6, 24, 3, corners, separate=True).to(dtype=dtype)
    result = case.run()
    assert result.dtype == dtype
    numeric_bar(object_pool, result, oracle(case), oracle(case, dtype))


@pytest.mark.parametrize(("count", "clusters"), [(1, 1), (1, 4), (2, 1), (4, 4), (5, 4), (33, 32), (700, 32)], ids=str)
def test_numbers_of_patches(count: int, clusters: int) -> None:
    case = random_case([count], clusters, 5, 3)
    torch.testing.assert_close(case.run().double(), oracle(case), rtol=1e-5, atol=2e-6)


def test_an_object_of_few_patches_keeps_them_in_order_and_is_filled_with_zeros() -> None:
    tokens = torch.randn(3, 4)
    pooled = case_of_tokens(tokens, [9, 9, 9, 9, 9], 3).run()  # a start that is not needed is not looked at
    assert torch.equal(pooled[0, :3], tokens)
    assert pooled[0, 3:].eq(0).all()


def test_nothing() -> None:
    assert random_case([], 4, 8, 3).run().shape == (0, 4, 8)
    assert random_case([0, 0], 4, 8, 3).run().eq(0).all()


def test_many_objects() -> None:
    case = random_case([1 + i % 9 for i in range(300)], 4, 3, 3, seed=5)
    torch.testing.assert_close(case.run().double(), oracle(case), rtol=1e-5, atol=2e-6)


def test_objects_do_not_depend_on_each_other() -> None:
    case = random_case([30, 9, 0, 17], 4, 6, 5)
    together = case.run()
    bounds = case.offsets.tolist()
    for i, (first, last) in enumerate(pairwise(bounds)):
        alone = replace(
            case,
            index=case.index[first:last],
            weights=case.weights[first:last],
            positions=case.positions[first:last],
            offsets=torch.tensor([0, last - first]),
            starts=case.starts[i : i + 1],
            max_patches=last - first,
        )
        torch.testing.assert_close(alone.run()[0], together[i], rtol=0, atol=1e-6)


# Labels


def test_iterations_zero_returns_the_starts() -> None:
    tokens = torch.randn(9, 4)
    assert torch.equal(case_of_tokens(tokens, [7, 2, 5], 0).run()[0], tokens[[7, 2, 5]])


@pytest.mark.parametrize(("start", "expected"), [([0, 1], [[0.5], [2.0]]), ([1, 0], [[1.5], [0.0]])])
def test_a_tie_goes_to_the_lowest_index(start: list[int], expected: list) -> None:
    tokens = torch.tensor([[0.0], [2.0], [1.0]])
    assert case_of_tokens(tokens, start, 1).run()[0].tolist() == expected


@pytest.mark.parametrize("seed", range(6))
def test_ties_that_rounding_would_break(seed: int) -> None:
    """Half-way tokens of full precision at the released width: their distances are equal, no product of them is."""
    generator = torch.Generator().manual_seed(seed)
    width = 1152
    ends = torch.randint(0, 2**22, (4, width), generator=generator) * 2
    pairs = [(a, b) for a in range(4) for b in range(a + 1, 4)]
    halves = torch.stack([(ends[a] + ends[b]) // 2 for a, b in pairs])
    whole = torch.cat([ends, halves])  # integers below 2^23: exact in float32
    start = torch.randperm(4, generator=generator).tolist()

    members: list[list[int]] = [[] for _ in start]
    for i, point in enumerate(whole):
        distances = [int((point - whole[s]).square().sum()) for s in start]
        members[distances.index(min(distances))].append(i)
    expected = [[Fraction(int(x), len(own)) for x in whole[own].sum(0)] for own in members]

    pooled = case_of_tokens(whole.float(), start, 1).run()[0]
    error = max(
        abs(got - want) for a, b in zip(pooled.tolist(), expected, strict=True) for got, want in zip(a, b, strict=True)
    )
    assert error <= 1, f"a tie was not given to the lowest index: off by {float(error):.3g}"


def test_equal_tokens_and_empty_clusters() -> None:
    """All tokens tie; the first cluster takes them and the others keep their centroid."""
    tokens = torch.ones(5, 3)
    assert case_of_tokens(tokens, [0, 1, 2], 5).run()[0].eq(1).all()


def test_an_empty_cluster_keeps_its_centroid() -> None:
    tokens = torch.tensor([[0.0], [0.0], [1.0], [10.0]])
    # the second centroid equals the first, and so never has a member
    assert case_of_tokens(tokens, [0, 1, 3], 1).run()[0, :, 0].tolist() == pytest.approx([1 / 3, 0.0, 10.0])
    # in the second iteration it has: both zeros are nearer to it
    assert case_of_tokens(tokens, [0, 1, 3], 2).run()[0, :, 0].tolist() == pytest.approx([1.0, 0.0, 10.0])


def test_converged_centroids_stay() -> None:
    """So the reference's early stop needs no counterpart."""
    case = random_case([60], 4, 6, 3, separate=True)
    assert torch.equal(case.run(), replace(case, iterations=60).run())


@pytest.mark.parametrize("shift", [1e3, 3e4])
def test_a_common_offset_does_not_change_labels(shift: float) -> None:
    """Distances of tokens far from the origin are small differences of large numbers."""
    case = random_case([40], 6, 16, 3, separate=True)
    features = (case.features * 64).round() / 64  # the shifted ones are then exact in float32
    near = replace(case, features=features, positions=torch.zeros(40, 2), pos_bias=torch.zeros(16))
    far = replace(near, features=features + shift)
    torch.testing.assert_close(far.run() - shift, near.run(), rtol=0, atol=shift * 1e-6)


# Interpolation


@pytest.mark.parametrize(("fine", "coarse"), [((9, 7), (4, 5)), ((6, 8), (6, 3)), ((5, 5), (1, 1)), ((3, 4), (3, 4))])
def test_four_corners_against_interpolate(fine: tuple[int, int], coarse: tuple[int, int]) -> None:
    width = 6
    features = torch.randn(coarse[0] * coarse[1], width)
    rows, weights = [], []
    for i in range(fine[0]):
        for j in range(fine[1]):
            places = []
            for place, size, source in ((i, fine[0], coarse[0]), (j, fine[1], coarse[1])):
                at = max((place + 0.5) * source / size - 0.5, 0)
                low = int(at)
                places.append(((low, 1 - (at - low)), (min(low + 1, source - 1), at - low)))
            corners = [(r * coarse[1] + c, wr * wc) for r, wr in places[0] for c, wc in places[1]]
            rows.append([row for row, _ in corners])
            weights.append([weight for _, weight in corners])
    cells = len(rows)
    case = replace(
        case_of_tokens(features, [0] * cells, 3),
        index=torch.tensor(rows),
        weights=torch.tensor(weights),
        positions=torch.zeros(cells, 2),
        offsets=torch.tensor([0, cells]),
        max_patches=cells,
    )
    grid = features.double().T.reshape(1, width, *coarse)
    expected = F.interpolate(grid, size=fine, mode="bilinear", align_corners=False).flatten(2)[0].T
    torch.testing.assert_close(case.run()[0].double(), expected, rtol=0, atol=1e-6)


# Poison


@pytest.mark.parametrize("corners", [1, 4])
def test_rows_past_the_last_object_may_hold_anything(corners: int) -> None:
    counts = [20, 3, 8]
    clean = random_case(counts, 4, 6, 3, corners).run()
    spare = random_case(counts, 4, 6, 3, corners, spare=5).run()
    assert all(torch.equal(a, b) for a, b in zip(clean, spare, strict=True))


@pytest.mark.parametrize("corners", [1, 4])
def test_rows_that_nobody_selects_do_not_leak(corners: int) -> None:
    case = random_case([20, 3, 8], 4, 6, 3, corners)
    clean = case.run()
    spare = torch.ones(len(case.features), dtype=torch.bool)
    spare[case.index.flatten()] = False
    assert spare.any()
    case.features[spare] = torch.nan
    assert torch.equal(case.run(), clean)


@pytest.mark.parametrize("poisoned", range(3))
def test_a_poisoned_object_does_not_reach_the_others(poisoned: int) -> None:
    case = random_case([20, 3, 12], 4, 6, 3)
    case.index = torch.arange(35)[:, None]
    clean = case.run()
    case.features[case.offsets[poisoned] : case.offsets[poisoned + 1]] = torch.nan
    pooled = case.run()
    others = [i for i in range(3) if i != poisoned]
    assert torch.isnan(pooled[poisoned]).any()
    assert torch.equal(pooled[others], clean[others])


# Gradients


@pytest.mark.parametrize("corners", [1, 4])
def test_gradients(corners: int) -> None:
    """Through the means with the labels fixed, to the features and all weights."""
    names = ("features", "pos_weight", "pos_bias")
    case = random_case([30, 3, 0], 4, 6, 3, corners, separate=True)
    exact = replace(case, **{n: getattr(case, n).double().requires_grad_() for n in names})
    case = replace(case, **{n: getattr(case, n).requires_grad_() for n in names})
    towards = torch.randn(3, 4, 6)
    got = torch.autograd.grad((case.run() * towards).sum(), [getattr(case, n) for n in names])
    expected = torch.autograd.grad((oracle(exact) * towards).sum(), [getattr(exact, n) for n in names])
    for name, a, b in zip(names, got, expected, strict=True):
        assert b.abs().max() > 0
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4, msg=f"gradient of {name}")


# Errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"index": torch.zeros(9, dtype=torch.int64)}, r"expected index of shape \(any, any\), got \(9,\)"),
        ({"weights": torch.ones(9, 2)}, r"expected weights of shape \(9, 1\), got \(9, 2\)"),
        ({"positions": torch.ones(8, 2)}, r"expected positions of shape \(9, 2\), got \(8, 2\)"),
        ({"pos_weight": torch.ones(2, 6)}, r"expected pos_weight of shape \(6, 2\), got \(2, 6\)"),
        ({"pos_bias": torch.ones(5)}, r"expected pos_bias of shape \(6\), got \(5,\)"),
        ({"index": torch.zeros(9, 1)}, r"expected index of torch.int64, got torch.float32"),
        ({"index": torch.full((9, 1), 16)}, r"expected an index from 0 to 15, got 16 to 16"),
        ({"offsets": torch.tensor([], dtype=torch.int64)}, r"expected at least one offset, got none"),
        ({"offsets": torch.tensor([0, 10])}, r"expected offsets up to 9 \(rows of index\), got 10"),
        ({"offsets": torch.tensor([1, 9])}, r"expected offsets from 0 to 9, got \[1, 9\]"),
        ({"max_patches": 8}, r"expected max_patches of at least 9 \(the largest object\), got 8"),
        (
            {"offsets": torch.tensor([0, 10, 9]), "starts": torch.zeros(2, 4, dtype=torch.int64)},
            r"expected offsets that never fall, got \[0, 10, 9\]",
        ),
        ({"starts": torch.zeros(2, 4, dtype=torch.int64)}, r"expected starts of shape \(1, any\), got \(2, 4\)"),
        ({"starts": torch.tensor([[0, 1, 2, 9]])}, r"expected k-means starts from 0 to 8, got \[0, 1, 2, 9\]"),
        ({"starts": torch.tensor([[0, -1, 2, 3]])}, r"expected k-means starts from 0 to 8, got \[0, -1, 2, 3\]"),
    ],
)
def test_errors(change: dict, message: str) -> None:
    case = replace(random_case([9], 4, 6, 3), **change)
    with pytest.raises(ValueError, match=f"^object_pool: {message}$"):
        case.run()

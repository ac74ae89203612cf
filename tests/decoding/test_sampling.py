"""The choice of a token: numbers that are random and repeat, and the distribution that they are drawn from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from pixelrefer_fast.decoding.sampling import Sampling, choose_among, choose_from_all, signed, uniform

MASK = 2**64 - 1


def _splitmix(state: int) -> int:
    """The finaliser of splitmix64 with integers of any size."""
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & MASK
    return state ^ (state >> 31)


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63), 12345678901234567])
def test_uniform_is_splitmix64(seed: int) -> None:
    counts = torch.arange(20)
    found = uniform(torch.full((20,), seed), counts)
    expected = []
    for count in range(20):
        state = _splitmix(seed & MASK) + count * 0x9E3779B97F4A7C15 & MASK
        expected.append((_splitmix(state) >> 11) * 2.0**-53)
    assert found.tolist() == expected


def test_uniform_is_uniform() -> None:
    """Over seeds as well as over tokens: 16 bins of 20,000 numbers, each within six standard deviations."""
    many = torch.arange(20_000)
    for draws in (uniform(many, torch.full_like(many, 5)), uniform(torch.full_like(many, 5), many)):
        assert draws.min() >= 0
        assert draws.max() < 1
        counts = torch.histc(draws, 16, 0, 1)
        assert (counts - 1250).abs().max() < 6 * 1250**0.5
        assert len(draws.unique()) == len(draws)


@pytest.mark.parametrize(("seed", "expected"), [(0, 0), (-1, -1), (2**64 - 1, -1), (2**63, -(2**63)), (7, 7)])
def test_signed(seed: int, expected: int) -> None:
    assert signed(seed) == expected


def _sampling(rows: int, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Sampling:
    def column(value: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        return torch.full((rows,), value, dtype=dtype)

    return Sampling(column(temperature), column(top_k, torch.int64), column(top_p), column(min_p))


def _chosen(logits: torch.Tensor, draws: list[float], **options: Any) -> list[int]:
    """The tokens that these draws choose from the same logits."""
    scores, sampling = logits.expand(len(draws), -1), _sampling(len(draws), **options)
    draw = torch.tensor(draws, dtype=torch.float64)
    if options.get("top_k"):
        return choose_among(scores, options["top_k"], sampling, draw).tolist()
    return choose_from_all(scores, options.get("top_p", 1.0) < 1, sampling, draw).tolist()


LAST = 1 - 2**-53


def test_the_draw_decides_by_the_share_of_each_token() -> None:
    logits = torch.tensor([0.125, 0.5, 0.125, 0.25]).log()
    # in the order of the tokens where all may be drawn, else the most likely first
    draws = [0.0, 0.124, 0.126, 0.62, 0.63, 0.74, 0.76, LAST]
    assert _chosen(logits, draws) == [0, 0, 1, 1, 2, 2, 3, 3]
    found = _chosen(logits, [0.0, 0.49, 0.51, 0.74, 0.76, LAST], top_k=4)
    assert found[:4] == [1, 1, 3, 3]
    assert set(found[4:]) == {0, 2}
    assert _chosen(logits, [0.0, 0.66, 0.67, LAST], top_k=2) == [1, 1, 3, 3]
    # of three quarters, the last eighths are left out
    for few in (0, 3):
        assert _chosen(logits, [0.0, 0.66, 0.67, LAST], top_p=0.7, top_k=few) == [1, 1, 3, 3]
        assert set(_chosen(logits, [0.0, 0.5, LAST], top_p=1e-9, top_k=few)) == {1}
        assert set(_chosen(logits, [0.0, 0.5, LAST], min_p=1.0, top_k=few)) == {1}
        assert set(_chosen(logits, [0.0, 0.5, LAST], temperature=1e-300, top_k=few)) == {1}
        assert _chosen(logits, [0.0, 0.66, 0.67, LAST], min_p=0.4, top_k=few) == [1, 1, 3, 3]


def test_of_equally_likely_tokens_as_many_as_are_wanted() -> None:
    """Thresholds alone would keep all of them."""
    draws = [(i + 0.5) / 64 for i in range(64)]
    assert set(_chosen(torch.zeros(8), draws, top_p=0.5)) == {0, 1, 2, 3}
    assert set(_chosen(torch.zeros(8), draws, top_p=0.51)) == {0, 1, 2, 3, 4}
    assert len(set(_chosen(torch.zeros(8), draws, top_k=3))) == 3
    ties = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0])
    assert set(_chosen(ties, draws, top_p=0.87)) == {0, 1, 2, 3}


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [0, 1, 5, 49, 80])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.4])
@pytest.mark.parametrize("min_p", [0.0, 0.2])
def test_distributions_are_those_of_transformers(temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    """Evenly spread draws choose each token as often as the warped probabilities say."""
    logits = 2 * torch.randn(3, 60, generator=torch.Generator().manual_seed(top_k))
    warpers: list[Any] = [TemperatureLogitsWarper(temperature)]
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    warpers += [MinPLogitsWarper(min_p)] if min_p else []
    warped = logits.double()
    for warper in warpers:
        warped = warper(torch.zeros(3, 1, dtype=torch.int64), warped)
    count = 4000
    draws = [(i + 0.5) / count for i in range(count)]
    for row, wanted in zip(logits, warped.softmax(-1), strict=True):
        found = _chosen(row, draws, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        shares = torch.bincount(torch.tensor(found), minlength=60) / count
        assert (shares - wanted).abs().max() <= 1.5 / count
        assert shares[wanted == 0].eq(0).all()


def test_each_row_has_options_of_its_own() -> None:
    logits = torch.tensor([0.125, 0.5, 0.125, 0.25]).log().expand(3, -1)
    sampling = Sampling(
        torch.ones(3, dtype=torch.float64),
        torch.tensor([1, 4, 2]),
        torch.tensor([1.0, 0.5, 1.0], dtype=torch.float64),
        torch.zeros(3, dtype=torch.float64),
    )
    draw = torch.full((3,), 0.9, dtype=torch.float64)
    assert choose_among(logits, 4, sampling, draw).tolist() == [1, 1, 3]
    assert choose_from_all(logits, True, sampling, draw).tolist() == [3, 1, 3]


def test_what_else_a_row_may_draw_does_not_change_its_token() -> None:
    """Neighbours make the number of candidates larger, or ask for a nucleus."""
    logits = torch.randn(50, 40)
    draw = torch.rand(50, dtype=torch.float64)
    few, all_ = _sampling(50, top_k=5, top_p=0.8), _sampling(50)
    assert torch.equal(choose_among(logits, 8, few, draw), choose_among(logits, 32, few, draw))
    assert torch.equal(choose_from_all(logits, False, all_, draw), choose_from_all(logits, True, all_, draw))

"""The choice of a token: numbers that are random and repeat, and the distribution that they are drawn from."""

from __future__ import annotations

import pytest
import torch

from pixelrefer_fast.decoding.sampling import choose, penalised, signed, uniform

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


def _choose(logits: torch.Tensor, temperature: float, top_p: float, draw: float) -> int:
    def one(value: float) -> torch.Tensor:
        return torch.tensor([value], dtype=torch.float64)

    return int(choose(logits[None], one(temperature), one(top_p), one(draw)))


def test_the_draw_decides_by_the_share_of_each_token() -> None:
    logits = torch.tensor([0.125, 0.5, 0.125, 0.25]).log()
    found = [_choose(logits, 1.0, 1.0, draw) for draw in (0.0, 0.49, 0.51, 0.74, 0.76, 0.87, 0.88, 0.999)]
    assert found == [1, 1, 3, 3, 0, 0, 2, 2]
    # of three quarters, the last eighths are left out
    assert [_choose(logits, 1.0, 0.7, draw) for draw in (0.0, 0.66, 0.67, 1 - 2**-53)] == [1, 1, 3, 3]
    assert {_choose(logits, 1.0, 1e-9, draw) for draw in (0.0, 0.5, 1 - 2**-53)} == {1}


def test_each_row_has_options_of_its_own() -> None:
    logits = torch.tensor([0.125, 0.5, 0.125, 0.25]).log().expand(3, -1)
    temperature, top_p, draw = (
        torch.tensor(x, dtype=torch.float64) for x in ([0.0, 1.0, 1.0], [1.0, 1.0, 0.5], [0.9, 0.9, 0.9])
    )
    assert choose(logits, temperature, top_p, draw).tolist() == [1, 2, 1]


def test_the_penalty_is_that_of_transformers() -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    logits = torch.randn(2, 9)
    said = torch.zeros(2, 9, dtype=torch.bool)
    said[0, [1, 4]] = said[1, [0]] = True
    for i, tokens in enumerate(([1, 4, 4], [0])):
        expected = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([tokens]), logits[i : i + 1].clone())
        assert torch.equal(penalised(logits, said, 1.7)[i : i + 1], expected)

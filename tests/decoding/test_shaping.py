"""Scores of single tokens are changed as transformers and vLLM change them, and taken back to the last bit."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from pixelrefer_fast.ops._shaping import Shaping

VOCABULARY = 19


def _column(*values: float) -> torch.Tensor:
    return torch.tensor(values)


def _penalised(scores: torch.Tensor, said: list[list[int]], rate: float, once: float, each: float) -> Shaping:
    """Rows of different lengths, filled up with tokens that were not said."""
    rows = len(said)
    width = max(map(len, said)) + 2
    padded = torch.tensor([[*own, *[7] * (width - len(own))] for own in said])
    shaping = Shaping(scores)
    counts = torch.tensor([len(own) for own in said])
    shaping.penalise(padded, counts, *(torch.full((rows,), x) for x in (rate, once, each)))
    return shaping


def test_the_repetition_penalty_is_that_of_transformers() -> None:
    scores = torch.randn(3, VOCABULARY)
    before, said = scores.clone(), [[1, 4, 4], [0], []]
    shaping = _penalised(scores, said, 1.7, 0.0, 0.0)
    for row, own, found in zip(before, said, scores, strict=True):
        ids = torch.tensor([own], dtype=torch.int64)
        assert torch.equal(found, RepetitionPenaltyLogitsProcessor(1.7)(ids, row[None].clone())[0])
    shaping.undo()
    assert torch.equal(scores, before)


def test_presence_once_and_frequency_each_time() -> None:
    scores = torch.randn(3, VOCABULARY)
    before, said = scores.clone(), [[1, 4, 4, 4], [0, 0], []]
    shaping = _penalised(scores, said, 1.0, 0.5, 0.25)
    for row, own, found in zip(before, said, scores, strict=True):
        counts = torch.bincount(torch.tensor(own, dtype=torch.int64), minlength=VOCABULARY)
        torch.testing.assert_close(found, row - 0.5 * (counts > 0) - 0.25 * counts)
    shaping.undo()
    assert torch.equal(scores, before)


def test_a_bias_is_that_of_transformers() -> None:
    scores = torch.randn(2, VOCABULARY)
    before = scores.clone()
    shaping = Shaping(scores)
    shaping.bias(torch.tensor([[3, 8, 0, 0], [0, 0, 0, 0]]), torch.tensor([[-100.0, 2.5, 0, 0], [1.5, 0, 0, 0]]))
    for row, biases, found in zip(before, ({3: -100.0, 8: 2.5}, {0: 1.5}), scores, strict=True):
        wanted = SequenceBiasLogitsProcessor({(token,): bias for token, bias in biases.items()})
        torch.testing.assert_close(found, wanted(torch.zeros(1, 2, dtype=torch.int64), row[None].clone())[0])
    shaping.undo()
    assert torch.equal(scores, before)


@pytest.mark.parametrize("said", [0, 2, 3, 4])
def test_no_end_before_so_many_tokens_as_in_transformers(said: int) -> None:
    scores = torch.randn(3, VOCABULARY)
    before = scores.clone()
    shaping = Shaping(scores)
    # a row with ends, one whose single end fills up its places, one without any
    shaping.forbid(torch.tensor([[5, 9], [0, 0], [-1, -1]]), torch.full((3,), said) < 3)
    for row, ends, found in zip(before, ([5, 9], [0]), scores, strict=False):
        wanted = MinNewTokensLengthLogitsProcessor(2, 3, ends)(torch.zeros(1, 2 + said), row[None].clone())
        assert torch.equal(found, wanted[0])
    assert torch.equal(scores[2], before[2])
    shaping.undo()
    assert torch.equal(scores, before)


def test_all_of_them_are_taken_back() -> None:
    scores = torch.randn(2, VOCABULARY)
    before = scores.clone()
    shaping = Shaping(scores)
    tokens = torch.tensor([[3, 4], [4, 5]])
    shaping.bias(tokens, torch.ones(2, 2))
    shaping.forbid(tokens, torch.tensor([True, False]))
    shaping.penalise(tokens, torch.tensor([2, 1]), _column(1.5, 2.0), _column(1.0, 0.0), _column(0.0, 1.0))
    assert not torch.equal(scores, before)
    shaping.undo()
    assert torch.equal(scores, before)

"""The first centroids of k-means: evenly spaced by default, given by the caller, or drawn with a seed."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pixelrefer_fast.encoding.object_tokenizer import kmeans_starts


def test_default_starts_are_evenly_spaced_ranks() -> None:
    starts = kmeans_starts([4, 5, 8, 13, 0], 4)
    assert starts.dtype == torch.int64
    assert starts.tolist() == [[0] * 4, [0, 1, 2, 3], [0, 2, 4, 6], [0, 3, 6, 9], [0] * 4]


@given(counts=st.lists(st.integers(0, 500), max_size=6), clusters=st.integers(1, 40))
def test_default_starts_are_distinct_and_in_range(counts: list[int], clusters: int) -> None:
    starts = kmeans_starts(counts, clusters)
    assert starts.shape == (len(counts), clusters)
    for count, own in zip(counts, starts.tolist(), strict=True):
        if count > clusters:
            assert own == sorted(set(own))
            assert own[0] == 0
            assert own[-1] < count
            steps = np.diff([*own, count])
            assert steps.max() - steps.min() <= 1


def test_given_starts() -> None:
    given_starts: list[Any] = [[5, 1, 0], None, np.array([2, 2, 8]), [7, 7, 7]]
    assert kmeans_starts([6, 6, 9, 3], 3, given_starts).tolist() == [[5, 1, 0], [0, 2, 4], [2, 2, 8], [0, 0, 0]]


def test_seeded_starts_are_the_first_of_one_permutation_after_another() -> None:
    counts = [20, 3, 9, 20]
    starts = kmeans_starts(counts, 4, seed=11)
    generator = torch.Generator().manual_seed(11)
    expected = [torch.randperm(n, generator=generator)[:4].tolist() if n > 4 else [0] * 4 for n in counts]
    assert starts.tolist() == expected
    assert torch.equal(kmeans_starts(counts, 4, seed=11), starts)
    assert not torch.equal(kmeans_starts(counts, 4, seed=12), starts)
    assert starts[0].tolist() != starts[3].tolist()


@pytest.mark.parametrize(
    ("given_starts", "message"),
    [
        ([[0, 1, 2]], "kmeans_start: expected an entry for each of the 2 marks, got 1"),
        ([], "kmeans_start: expected an entry for each of the 2 marks, got 0"),
        ([None, [0, 1]], "kmeans_start: mark 1: expected 3 ranks from 0 to 6, got [0, 1]"),
        ([None, []], "kmeans_start: mark 1: expected 3 ranks from 0 to 6, got []"),
        ([None, [0, 1, 7]], "kmeans_start: mark 1: expected 3 ranks from 0 to 6, got [0, 1, 7]"),
        ([[0, -1, 2], None], "kmeans_start: mark 0: expected 3 ranks from 0 to 5, got [0, -1, 2]"),
        ([[[0, 1, 2]], None], "kmeans_start: mark 0: expected 3 ranks from 0 to 5, got [[0, 1, 2]]"),
        ([[0, 1, 2**70], None], "kmeans_start: mark 0: expected 3 ranks from 0 to 5, got [0, 1, 11"),
        (["abc", None], "kmeans_start: mark 0: expected 3 ranks from 0 to 5, got "),
        ([[0.5, 1.5, 2.5], None], "kmeans_start: mark 0: expected 3 ranks from 0 to 5, got [0.5, 1.5, 2.5]"),
    ],
)
def test_wrong_starts(given_starts: Any, message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        kmeans_starts([6, 7], 3, given_starts)


def test_starts_together_with_a_seed() -> None:
    message = "^kmeans_start and kmeans_seed: expected one of them, got both$"
    with pytest.raises(ValueError, match=message):
        kmeans_starts([6], 3, [None], seed=0)


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 10**30, "x", 1.5])
def test_seeds_that_are_none(seed: Any) -> None:
    with pytest.raises(ValueError, match=r"^kmeans_seed: expected "):
        kmeans_starts([6], 3, seed=seed)

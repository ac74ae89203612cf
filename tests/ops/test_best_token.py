"""The definition of best_token: what transformers' processors make of the scores, and the logits as they were."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import MinNewTokensLengthLogitsProcessor, RepetitionPenaltyLogitsProcessor

from pixelrefer_fast.ops import best_token

VOCABULARY = 19


def _arguments(**changes: Any) -> dict[str, Any]:
    rows = len(changes["logits"])
    return {
        "counts": torch.zeros(rows, dtype=torch.int64),
        "said": None,
        "repetition": torch.ones(rows),
        "presence": torch.zeros(rows),
        "frequency": torch.zeros(rows),
        "biased": None,
        "bias": None,
        "ends": None,
        "least": torch.zeros(rows, dtype=torch.int64),
        "arrivals": torch.zeros(rows, dtype=torch.int32),
    } | changes


def test_as_transformers_says() -> None:
    differing = 0
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(2, VOCABULARY, generator=generator)
        before = logits.clone()
        said = torch.randint(VOCABULARY, (2, 6), generator=generator)
        end = int(logits[0].argmax())
        processors = RepetitionPenaltyLogitsProcessor(1.5), MinNewTokensLengthLogitsProcessor(0, 7, end, device="cpu")
        wanted = processors[0](said, processors[1](said, logits.clone())).argmax(-1)
        found, finite = best_token(
            **_arguments(
                logits=logits,
                said=said,
                counts=torch.tensor([6, 6]),
                repetition=torch.full((2,), 1.5),
                ends=torch.full((2, 1), end),
                least=torch.full((2,), 7),
            )
        )
        assert torch.equal(found, wanted)
        assert finite.all()
        assert torch.equal(logits, before)
        differing += int((found != before.argmax(-1)).sum())
    assert differing > 15


def test_low_precision_scores_are_changed_in_float32() -> None:
    """A change that bfloat16 would not show decides."""
    logits = torch.tensor([[8.0, 8.0, 1.0]], dtype=torch.bfloat16)
    said, presence = torch.tensor([[0]]), torch.tensor([0.001])
    found, _ = best_token(**_arguments(logits=logits, said=said, counts=torch.tensor([1]), presence=presence))
    assert found.tolist() == [1]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_finite(value: float) -> None:
    logits = torch.randn(3, VOCABULARY)
    logits[1, 4] = value
    assert best_token(**_arguments(logits=logits))[1].tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(2)}, r"expected logits of shape \(any, any\), got \(2,\)"),
        ({"logits": torch.zeros(2, 0)}, r"expected logits of a token or more, got \(2, 0\)"),
        ({"said": torch.zeros(2, 3)}, "expected said of torch.int64, got torch.float32"),
        ({"bias": torch.zeros(2, 3)}, "expected biased and bias or neither, got only bias"),
        ({"ends": torch.zeros(3, 1, dtype=torch.int64)}, r"expected ends of shape \(2, any\), got \(3, 1\)"),
        ({"repetition": torch.ones(2).double()}, "expected repetition of torch.float32, got torch.float64"),
        ({"arrivals": torch.zeros(1, dtype=torch.int32)}, "expected arrivals of 2 or more, got 1"),
    ],
)
def test_errors(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^best_token: {message}$"):
        best_token(**_arguments(logits=torch.zeros(2, 9)) | change)

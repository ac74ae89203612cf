"""A capture is used only if its first replay was the eager run: what agrees, what does not, and what is counted."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from recorded_graphs import Recorder

from pixelrefer_fast.device import trust
from pixelrefer_fast.device.graphs import GraphStore


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "_agreed", {"bit_for_bit": 0, "within_bar": 0})
    monkeypatch.setattr(trust, "_dropped", Counter())


def _agree(eager: torch.Tensor, replayed: torch.Tensor) -> None:
    trust.confirm({"logits": eager}, {"logits": replayed})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_the_same_bits(dtype: torch.dtype) -> None:
    x = torch.tensor([[0, 1, 2], [3, 4, 5]]).to(dtype)
    _agree(x, x.clone())
    _agree(x.T, x.clone().T)  # however they lie in memory
    assert trust.counts() == {"bit_for_bit": 2, "within_bar": 0, "dropped": {}}


def test_values_that_are_not_finite_in_both() -> None:
    x = torch.tensor([1.0, torch.nan, torch.inf, -0.0])
    _agree(x, x.clone())
    _agree(x, torch.tensor([1.0, torch.nan, torch.inf, 0.0]))
    assert trust.counts() == {"bit_for_bit": 1, "within_bar": 1, "dropped": {}}
    for off in ([torch.nan, torch.nan, torch.inf, 0.0], [1.0, 2.0, torch.inf, 0.0]):
        with pytest.raises(trust.UntrustedCapture, match="logits is off by inf"):
            _agree(x, torch.tensor(off))


@pytest.mark.parametrize(
    ("dtype", "bar"), [(torch.float32, 1e-4), (torch.float16, 4 * 2.0**-10), (torch.bfloat16, 4 * 2.0**-7)]
)
def test_the_bar_is_of_the_largest_value(dtype: torch.dtype, bar: float) -> None:
    x = torch.tensor([8.0, -512.0, 1.0], dtype=dtype)
    for part, agrees in ((0.7, True), (1.4, False)):
        y = x.clone()
        y[1] -= 512 * bar * part
        assert not torch.equal(x, y)
        if agrees:
            _agree(x, y)
        else:
            with pytest.raises(trust.UntrustedCapture, match="first replay is not what the eager run gave: logits"):
                _agree(x, y)
    assert trust.counts()["within_bar"] == 1


def test_integers_have_no_bar() -> None:
    with pytest.raises(trust.UntrustedCapture, match="tokens is off by inf"):
        trust.confirm({"tokens": torch.tensor([10**9, 7])}, {"tokens": torch.tensor([10**9, 8])})


def test_zeros_are_met_exactly_and_nothing_by_nothing() -> None:
    _agree(torch.zeros(3), torch.zeros(3))
    _agree(torch.zeros(0, 4), torch.zeros(0, 4))
    with pytest.raises(trust.UntrustedCapture):
        _agree(torch.zeros(3), torch.full((3,), 1e-30))


@pytest.mark.parametrize(
    ("replayed", "found"),
    [
        ({}, "got nothing"),
        ({"logits": torch.ones(2)}, r"got \(2,\) of torch.float32"),
        ({"logits": torch.ones(3, dtype=torch.float64)}, r"got \(3,\) of torch.float64"),
    ],
)
def test_another_shape_or_dtype(replayed: dict[str, torch.Tensor], found: str) -> None:
    with pytest.raises(trust.UntrustedCapture, match=rf"expected logits of \(3,\) of torch.float32, {found}$"):
        trust.confirm({"logits": torch.ones(3)}, replayed)


def test_failed_captures_are_counted_by_reason() -> None:
    recorder = Recorder()
    recorder.error = RuntimeError("no")
    store: GraphStore[int] = GraphStore(10**6, recorder)
    for key in (1, 2):
        store.capture(key, lambda: torch.ones(2), {}, torch.device("cpu"))
    assert trust.counts()["dropped"] == {"the capture failed: no": 2}

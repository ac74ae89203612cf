"""Copy bandwidth and matrix rate, at sizes of nothing."""

from __future__ import annotations

import pytest
import torch

from pixelrefer_fast.bench.measure import rates, timing


def test_bytes_and_operations_over_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy reads and writes; a product of n by n matrices has 2 n³ operations."""

    def sample(run, device, repeats):
        run()
        return [4.0, 0.5, 0.25, 0.5, 0.125][:repeats]

    monkeypatch.setattr(timing, "sample", sample)
    assert rates.copy_rate("cpu", size=1000) == 2 * 1000 / 0.5
    assert rates.matrix_rate("cpu", torch.float32, size=10) == 2 * 10**3 / 0.5


def test_measured_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rates.COPY, "cpu", 1 << 16)
    monkeypatch.setitem(rates.SIZES, "cpu", 16)
    found = rates.measured("cpu", [torch.float32, torch.bfloat16])
    assert list(found) == ["copy", "float32", "bfloat16"]
    assert all(rate > 0 for rate in found.values())

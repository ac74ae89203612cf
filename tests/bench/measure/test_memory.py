"""Bytes alive during a block."""

from __future__ import annotations

import contextlib
import types

import pytest
import torch

from pixelrefer_fast.bench.measure import memory

KB = 1024


def ones(kilobytes: int) -> torch.Tensor:
    return torch.zeros(kilobytes * KB, dtype=torch.uint8) + 1


def test_peak_and_final_bytes_on_a_cpu() -> None:
    weights = ones(100)
    with memory.watching("cpu", [weights, weights.view(10, -1)]) as held:
        kept = torch.empty(8 * KB, dtype=torch.uint8)
        passing = torch.empty(50 * KB, dtype=torch.uint8)
        views = passing[10:], passing.view(5, -1)  # no memory of their own
        del passing, views
        again = torch.empty(20 * KB, dtype=torch.uint8)
        del again
    assert held.start == 100 * KB
    assert held.peak == 158 * KB
    assert held.final == 108 * KB
    del kept


def test_a_block_that_fails_leaves_its_numbers() -> None:
    with contextlib.suppress(ZeroDivisionError), memory.watching("cpu") as held:
        torch.empty(4 * KB, dtype=torch.uint8)
        _ = 1 / 0
    assert (held.peak, held.final) == (4 * KB, 0)


def test_a_device_is_asked_for_its_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    allocated = iter([10, 30])
    cuda = types.SimpleNamespace(
        synchronize=lambda device: log.append("wait"),
        reset_peak_memory_stats=lambda device: log.append("reset"),
        memory_allocated=lambda device: next(allocated),
        max_memory_allocated=lambda device: 70,
    )
    monkeypatch.setattr(memory.torch, "cuda", cuda)
    with memory.watching("cuda:0") as held:
        log.append("block")
    assert (held.start, held.peak, held.final) == (10, 70, 30)
    assert log == ["wait", "reset", "block", "wait"]

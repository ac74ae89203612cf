"""Free memory: of a CUDA device with torch's reserve, of a CPU as the system counts it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from pixelrefer_fast.device import memory
from pixelrefer_fast.device.memory import free_memory

CPU = torch.device("cpu")


def _listed(monkeypatch: pytest.MonkeyPatch, path: Path, text: str) -> None:
    path.write_text(text)
    monkeypatch.setattr(memory, "MEMINFO", path)


def test_of_this_machine() -> None:
    assert 2**24 < free_memory(CPU) < 2**50


def test_files_that_linux_keeps_in_memory_are_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "MemTotal:   9000 kB\nMemFree:    1000 kB\nMemAvailable:    7000 kB\nCached:  6500 kB\n"
    _listed(monkeypatch, tmp_path / "meminfo", text)
    assert free_memory(CPU) == 7000 * 1024


@pytest.mark.parametrize(
    "text", [None, "", "MemFree: 1000 kB\n", "MemAvailable: many kB\n", "MemAvailable:\n", "no colon\n"]
)
def test_half_of_the_machine_where_it_is_not_told(
    text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "missing")
    if text is not None:
        _listed(monkeypatch, tmp_path / "meminfo", text)
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 100}.__getitem__)
    assert free_memory(CPU) == 4096 * 50


def test_a_system_that_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "missing")
    monkeypatch.delattr(os, "sysconf")
    assert free_memory(CPU) == memory.UNKNOWN


def test_the_reserve_of_torch_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 1)
    for name, value in (("mem_get_info", (100, 1000)), ("memory_reserved", 700), ("memory_allocated", 650)):
        monkeypatch.setattr(torch.cuda, name, {device: value}.__getitem__)
    assert free_memory(device) == 150


@pytest.mark.gpu
def test_what_a_tensor_gives_back_is_free() -> None:
    device, size = torch.device("cuda"), 2**28
    torch.cuda.empty_cache()
    before = free_memory(device)
    x = torch.empty(size, dtype=torch.uint8, device=device)
    assert free_memory(device) <= before - size
    del x
    assert torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device) >= size
    assert abs(free_memory(device) - before) < size // 4

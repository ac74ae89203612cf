"""What a copy and a matrix product reach on this machine: the limits that results of the same run are set against."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch

from pixelrefer_fast.bench.measure import timing

COPY = {"cuda": 1 << 31, "cpu": 1 << 27}  # bytes; beyond what either caches
SIZES = {"cuda": 8192, "cpu": 1024}  # of square matrices
REPEATS = {"cuda": 20, "cpu": 5}


def measured(
    device: torch.device | str, dtypes: Iterable[torch.dtype] = (torch.bfloat16, torch.float16, torch.float32)
) -> dict[str, float]:
    """{"copy": bytes a second, read plus written, "bfloat16": FLOP a second of a matrix product, ...}."""
    return {"copy": copy_rate(device)} | {_name(dtype): matrix_rate(device, dtype) for dtype in dtypes}


def copy_rate(device: torch.device | str, size: int | None = None) -> float:
    """Bytes a second, read plus written, of a copy within the device's memory."""
    device = torch.device(device)
    size = size or COPY[device.type]
    if device.type == "cuda":  # twice that must fit beside what is there
        size = min(size, torch.cuda.mem_get_info(device)[0] // 4)
    source = torch.empty(size, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    return 2 * size / _median(lambda: target.copy_(source), device)


def matrix_rate(device: torch.device | str, dtype: torch.dtype, size: int | None = None) -> float:
    """FLOP a second of a large matrix product by the vendor's library, on random data.

    Of float32 without TF32, unless `torch.set_float32_matmul_precision` allows that for everything.
    """
    device = torch.device(device)
    size = size or SIZES[device.type] // (2 if dtype == torch.float32 and device.type == "cuda" else 1)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / _median(lambda: a @ b, device)


def _median(run: Callable[[], Any], device: torch.device) -> float:
    repeats = REPEATS[device.type]
    if device.type != "cuda":
        return sorted(timing.sample(run, device, repeats))[repeats // 2]
    with torch.cuda.device(device):
        until = time.perf_counter() + 0.1
        while time.perf_counter() < until:  # clocks rise with work
            run()
            torch.cuda.synchronize()
        seconds = []
        for _ in range(repeats):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            torch.cuda.synchronize()
            seconds.append(start.elapsed_time(end) / 1e3)
    return sorted(seconds)[repeats // 2]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

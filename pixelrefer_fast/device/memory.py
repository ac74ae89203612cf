"""Memory that can still be taken on a device."""

from __future__ import annotations

import os
from pathlib import Path

import torch

MEMINFO = Path("/proc/meminfo")
UNKNOWN = 2**32  # bytes, where no system call tells


def free_memory(device: torch.device) -> int:
    """Bytes that tensors can still take on a device.

    Of a CUDA device: what the driver has and what torch's allocator has reserved and not handed out. Of a CPU: what
    Linux calls available, elsewhere half of what the machine has.
    """
    if device.type == "cuda":
        # torch keeps what tensors give back, so that the driver alone shows little once a model has run; the reserve
        # goes to the next tensors. (Of it, what captured graphs keep for themselves does not: at most their limit.)
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserve
    # not SC_AVPHYS_PAGES: it leaves out files that Linux keeps in memory and drops when it is needed, and once a
    # checkpoint was read these are most of it
    try:
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text(encoding="ascii").splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, LookupError, ValueError):  # not a Linux
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, OSError, ValueError):  # a Windows
        return UNKNOWN

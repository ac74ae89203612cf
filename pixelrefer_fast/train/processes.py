"""Several processes of one training, as `torchrun` and `accelerate launch` start them: one a device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist


def process() -> int:
    """Which of the training's processes this is; 0 writes its files."""
    return int(os.environ.get("RANK", "0"))


def processes() -> int:
    """How many there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def own_device(device: torch.device) -> torch.device:
    """This process's device of the kind asked for."""
    if device.type != "cuda" or processes() == 1:
        return device
    own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(own)
    return own


@contextmanager
def together(device: torch.device) -> Iterator[None]:
    """Meet the other processes, if there are any and they have not met yet, and part from them at the end."""
    meets = processes() > 1 and not dist.is_initialized()
    if meets:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        if meets:
            dist.destroy_process_group()


def wait() -> None:
    """Go on when all processes have come here."""
    if dist.is_initialized():
        dist.barrier()


def gradient_backend(device: str) -> str | None:
    """What several processes exchange gradients by; None: the Trainer's own choice, and that of a single process."""
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    return "gloo" if on_cpu and processes() > 1 else None

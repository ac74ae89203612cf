"""The processes of a training that `torchrun` or `accelerate launch` starts, one per device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist


def process() -> int:
    """Number of this process; process 0 writes the files."""
    return int(os.environ.get("RANK", "0"))


def processes() -> int:
    """Number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def own_device(device: torch.device) -> torch.device:
    """This process's device of the requested kind."""
    if device.type != "cuda" or processes() == 1:
        return device
    own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(own)
    return own


@contextmanager
def together(device: torch.device) -> Iterator[None]:
    """Join the other processes, if there are any and they have not been joined yet, and leave them at the end."""
    meets = processes() > 1 and not dist.is_initialized()
    if meets:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        if meets:
            dist.destroy_process_group()


def wait() -> None:
    """Wait until all processes are here."""
    if dist.is_initialized():
        dist.barrier()


def gradient_backend(device: str) -> str | None:
    """The backend for exchanging gradients; None: the Trainer's own choice, also with a single process."""
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    return "gloo" if on_cpu and processes() > 1 else None

"""What tells weights apart: a digest of every tensor's values, made while they are loaded."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pixelrefer_fast.checks.safe_files import name_of

if TYPE_CHECKING:
    from pixelrefer_fast.checkpoint.config import ModelConfig

_THREADS = min(4, os.cpu_count() or 1)
_CHUNK = 1 << 17  # values that are looked at together, so that no copy of a large tensor is made
_LOW_HALF = (1 << 16) - 1  # the bits of a float32 that a bfloat16 lacks


def tensor_digest(tensor: torch.Tensor) -> str:
    """Digest of a tensor's shape and values, the same in every dtype that holds the values exactly.

    Args:
        tensor: dense, of any device; float16, bfloat16, float32 or float64.
    """
    parts = tensor.detach().cpu().contiguous().flatten().split(_CHUNK)
    dtype = torch.float32
    if tensor.dtype == torch.float64 and not all(map(_fits_float32, parts)):
        dtype = torch.float64
    if tensor.dtype == torch.bfloat16 or (dtype == torch.float32 and all(map(_fits_bfloat16, parts))):
        dtype = torch.bfloat16  # what most checkpoints hold
    digest = hashlib.sha256(f"{dtype} {tuple(tensor.shape)}".encode())
    for part in parts:
        digest.update(part.to(dtype).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _fits_float32(part: torch.Tensor) -> bool:
    return bool((part.float() == part).all())


def _fits_bfloat16(part: torch.Tensor) -> bool:
    return not bool(torch.bitwise_and(part.float().view(torch.int32), _LOW_HALF).any())


def combined_digest(description: str, digests: Mapping[str, str]) -> str:
    """32 hexadecimal digits for a description and named tensors, in whatever order they come."""
    lines = (description, *(f"{name} {digests[name]}" for name in sorted(digests)))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def model_fingerprint(config: ModelConfig, digests: Mapping[str, str]) -> str:
    """32 hexadecimal digits that tell a model from others: of its sizes, and of the digest of each of its tensors."""
    sizes = {own.name: getattr(config, own.name) for own in fields(config) if own.name not in ("vision", "raw")}
    sizes["vision"] = config.vision.to_dict()
    return combined_digest(json.dumps(sizes, sort_keys=True), digests)


@contextmanager
def digesting(path: Path, digests: dict[str, str]) -> Iterator[Callable[[str, torch.Tensor], None]]:
    """A function that takes the tensors of a file by name; threads make their digests beside the caller's work.

    All are in `digests` when the context ends.

    Raises:
        ValueError: a value is not finite; it names the file and the tensor.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        waiting: dict[str, Future[str]] = {}

        def take(name: str, tensor: torch.Tensor) -> None:
            waiting[name] = pool.submit(_checked_digest, path, name, tensor)

        yield take
        try:
            digests |= {name: future.result() for name, future in waiting.items()}
        finally:
            pool.shutdown(cancel_futures=True)


def _checked_digest(path: Path, name: str, tensor: torch.Tensor) -> str:
    check_finite(path, name, tensor)
    return tensor_digest(tensor)


def check_finite(path: Path, name: str, tensor: torch.Tensor) -> None:
    """ValueError where a value of a file's tensor is NaN or infinite; it names both."""
    if tensor.numel() and not all(bool(torch.isfinite(end)) for end in tensor.aminmax()):
        raise ValueError(f"{path}: tensor {name_of(name)}: expected finite values, got NaN or infinity")

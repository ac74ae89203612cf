"""The compiled extension as a provider: the schemas of its out-variants, and whether it can compute a call.

An out-variant writes into tensors that it is given, scratch included, and allocates nothing. Its schema stands beside
the operation's definition; `csrc/` implements it for the CPU and for CUDA devices.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from pixelrefer_fast.ops._registry import Reason, library


def out_variant(schema: str) -> Callable[..., None]:
    """Define an operator "name(Tensor a, Tensor(a!) out) -> ()"; what comes back calls it."""
    name = schema.split("(")[0]
    library.define(schema)
    torch.library.register_fake(f"pixelrefer_fast::{name}", lambda *args: None, lib=library)
    return getattr(torch.ops.pixelrefer_fast, name).default


def available() -> Reason:
    """Why nothing of the extension can be used here, or None. Loads it."""
    from pixelrefer_fast.ops.extension import load as extension

    return extension.reason("cpu")


def declines(tensor: torch.Tensor) -> Reason:
    """Why the extension cannot compute where this tensor is, or None."""
    from pixelrefer_fast.ops.extension import load as extension

    return extension.reason(tensor.device.type)


def scratch(tensor: torch.Tensor, words: int) -> torch.Tensor:
    """Room for the look-back of a scan on a device; on the CPU nothing is needed."""
    return torch.empty(words if tensor.is_cuda else 0, dtype=torch.int64, device=tensor.device)

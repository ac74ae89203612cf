"""Released and own checkpoints in and out.

Names are loaded when first used: every command line imports `checkpoint.embedded`, and `--help` must not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pixelrefer_fast.checkpoint.folder import Checkpoint, open_checkpoint, save_checkpoint

__all__ = ["Checkpoint", "open_checkpoint", "save_checkpoint"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("pixelrefer_fast.checkpoint.folder"), name)
    raise AttributeError(f"module 'pixelrefer_fast.checkpoint' has no attribute {name!r}")
